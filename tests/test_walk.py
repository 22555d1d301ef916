"""A newcomer's walk through docs/deploy.md: no step is missing, comes too early, or names what is not there.

Azure itself is not here, so no command of `az` and `func` is run: what they are given is held to the repository.
tests/test_docs.py follows the page's links and calls.
"""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = (REPOSITORY / "docs" / "deploy.md").read_text()
PROSE = re.sub(r"```.*?```", "", PAGE, flags=re.S)
STEPS = re.findall(r"^## (\d+)\. .*?$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
COMMANDS = [
    (int(number), command)
    for number, text in STEPS
    for block in re.findall(r"^```\n(.*?)^```", text, re.M | re.S)
    for line in block.splitlines()
    for command in re.split(r" && |; (?=az )", line)
]
TEMPLATE = REPOSITORY / "infra" / "bicep" / "main.bicep"
deployed = pytest.mark.skipif(not (REPOSITORY / "infra").exists(), reason="infra/ is not here yet")

# What a newcomer knows, or has chosen; all else in <...> must have been shown by a step before.
OWN = {"repository", "subscription", "group", "location", "server", "database", "app"}
SHOWN = ("functionAppName", "vaultName", "identityName", "identityClientId", "storageAccountName")


def test_the_steps_are_numbered_without_a_gap_and_each_does_something():
    assert [int(number) for number, _ in STEPS] == list(range(1, 12))
    without = {int(number) for number, _ in STEPS} - {number for number, _ in COMMANDS}
    assert without == {1, 11}  # before, and afterwards


def test_the_steps_come_in_the_only_order_in_which_they_work():
    order = [
        "git clone", "az login", "az account set", "az group create", "az deployment group create",
        "az deployment group show", "az keyvault secret set", "sqlcmd", "func azure functionapp publish",
        "az functionapp keys list", "/api/readiness", "/api/qa", "/api/go-live",
    ]  # fmt: skip
    first = [next(at for at, (_, command) in enumerate(COMMANDS) if one in command) for one in order]
    assert first == sorted(set(first))


def test_every_placeholder_is_the_newcomers_own_or_was_shown_before():
    assert [name for name in SHOWN if f"`{name}`" not in dict(STEPS)["4"]] == []
    shown = next(at for at, (_, command) in enumerate(COMMANDS) if "az deployment group show" in command)
    for at, (_, command) in enumerate(COMMANDS):
        for name in re.findall(r"<([\w ]+)>", command):
            assert name in OWN or (name in SHOWN and at > shown), command


def test_every_variable_is_set_before_it_is_used():
    known: set[str] = set()
    for _, command in COMMANDS:
        known |= set(re.findall(r"^(?:read -rs )?([A-Z]+)(?:=|$)", command))
        assert set(re.findall(r"\$(\w+)", command)) <= known, command


def test_every_tool_is_among_what_one_needs():
    tools = {re.sub(r"^\w+=\$\(", "", command).split()[0] for _, command in COMMANDS}
    needed = dict(STEPS)["1"]
    names = {"az": "Azure CLI", "func": "azure-functions-core-tools", "sqlcmd": "sqlcmd"}
    assert tools == {*names, "git", "cd", "read", "curl"}  # of which any bash machine has the last four
    assert [tool for tool, name in names.items() if name not in needed] == []


def test_every_path_is_there():
    named = {
        path
        for path in re.findall(r"(?<![\w/.<-])((?:infra|sql|docs|tests|\.github)/[\w./-]*\w|azure\.yaml)", PAGE)
        if not path.startswith("infra/") or TEMPLATE.parent.exists()
    }
    assert "sql/grants.sql" in named
    # what other branches bring
    later = set() if TEMPLATE.exists() else {"tests/test_infra.py"}
    assert {path for path in named if not (REPOSITORY / path).exists()} <= later


def test_every_target_of_make_is_there():
    targets = set(re.findall(r"`make (\w+)`", PROSE))
    assert targets
    assert targets <= set(re.findall(r"^(\w+):", (REPOSITORY / "Makefile").read_text(), re.M))


def test_the_identity_is_given_to_the_script_under_the_name_that_it_reads():
    (command,) = [command for _, command in COMMANDS if command.startswith("sqlcmd")]
    (name,) = re.findall(r'-v (\w+)="<identityName>"', command)
    assert set(re.findall(r"\$\((\w+)\)", (REPOSITORY / "sql" / "grants.sql").read_text())) == {name}


@deployed
def test_every_parameter_and_output_that_is_named_is_one_of_the_template():
    template = TEMPLATE.read_text()
    outputs, parameters = re.findall(r"^output (\w+) ", template, re.M), re.findall(r"^param (\w+) ", template, re.M)
    assert set(SHOWN) <= set(outputs)
    named = set(re.findall(r"`([a-z]+(?:[A-Z]\w+)+)`", PROSE)) - set(SHOWN)
    assert "sqlServer" in named
    assert named - set(parameters) == set()
    required = set(re.findall(r"^param (\w+) \w+$", template, re.M))
    assert required <= named, "the page leaves out what cannot be left out"


@deployed
def test_the_secrets_go_where_the_settings_look_for_them():
    templates = "".join(path.read_text() for path in TEMPLATE.parent.glob("*.bicep"))
    written = set(re.findall(r"secret set --vault-name <vaultName> -n ([\w-]+)", PAGE))
    assert written == {"customerio-api-key", "customerio-app-api-key"}
    assert [name for name in {*written, "sql-connection-string"} if f"/{name})" not in templates] == []


def test_nothing_that_sends_comes_without_an_approval_and_the_page_ends_with_what_to_do_next():
    assert not [command for _, command in COMMANDS if "/approve" in command or '"confirm": true' in command]
    for page in ("going-live.md", "qa.md", "readiness.md", "runbooks/README.md", "status.md", "backfill.md"):
        assert f"]({page})" in PAGE
