"""What GitHub and azd are told: names, versions and commands are of this repository, and no secret is among them.

Neither can be run here. What they start can be wrong in ways that only a run shows.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / ".github" / "workflows"
WORKFLOWS: dict[str, dict[Any, Any]] = {path.name: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yml")}
DEPENDABOT = yaml.safe_load((REPOSITORY / ".github" / "dependabot.yml").read_text())
AZD = yaml.safe_load((REPOSITORY / "azure.yaml").read_text())

# Publishers whose actions are used, by tags that only they can move.
ACTIONS = {"actions/checkout@v4", "actions/setup-python@v5", "actions/setup-node@v4", "azure/login@v2"}


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for workflow, content in WORKFLOWS.items():
        for name, job in content["jobs"].items():
            yield workflow, name, job


def steps() -> Iterator[dict[str, Any]]:
    for _, _, job in jobs():
        yield from job.get("steps", [])


COMMANDS = [line for step in steps() for line in step.get("run", "").splitlines()]


def test_there_are_two_workflows():
    assert sorted(WORKFLOWS) == ["ci.yml", "deploy.yml"]


def test_every_action_is_one_of_few_and_every_workflow_that_is_called_is_here():
    assert {step["uses"] for step in steps() if "uses" in step} == ACTIONS
    called = [job["uses"] for _, _, job in jobs() if "uses" in job]
    assert called and all((REPOSITORY / path).is_file() for path in called)
    assert "workflow_call" in WORKFLOWS["ci.yml"][True]  # YAML reads `on` so


def test_every_job_ends_by_itself():
    assert [name for _, name, job in jobs() if "uses" not in job and "timeout-minutes" not in job] == []


def test_the_suite_runs_on_every_python_that_the_project_is_for():
    floor = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["requires-python"]
    versions = WORKFLOWS["ci.yml"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13"]
    assert floor == f">={versions[0]}"


def test_every_target_of_make_is_in_the_makefile():
    there = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    asked = {target for line in COMMANDS if line.startswith("make ") for target in line.split()[1:]}
    assert {"lint", "test"} <= asked <= there


def test_every_file_that_a_command_names_is_here():
    named = {path for line in COMMANDS for path in re.findall(r"(?<![\w/])(?:infra|tests|docs|sql)/[\w./-]+", line)}
    assert "infra/bicep/main.bicep" in named
    if not (REPOSITORY / "infra").exists():
        pytest.skip("infra/ is not here yet")
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


def test_no_workflow_holds_or_reads_a_secret():
    for path in FOLDER.glob("*.yml"):
        text = path.read_text()
        assert not re.search(r"secrets[.\[]|publish-profile|creds:|client-secret", text), path
        # the password of the SQL Server container lives as long as the job
        assert {one for one in re.findall(r"(?:PASSWORD|PWD)[:=] ?([^\s;\"]+)", text) if "Scratch-" not in one} == set()


def test_only_the_deployment_may_ask_for_a_token_of_azure_and_nothing_may_write():
    assert WORKFLOWS["ci.yml"]["permissions"] == {"contents": "read"}
    assert WORKFLOWS["deploy.yml"]["permissions"] == {"contents": "read", "id-token": "write"}
    assert WORKFLOWS["deploy.yml"]["jobs"]["ci"]["permissions"] == {"contents": "read"}
    (login,) = [step for step in steps() if step.get("uses", "").startswith("azure/login")]
    names = {"client-id": "CLIENT_ID", "tenant-id": "TENANT_ID", "subscription-id": "SUBSCRIPTION_ID"}
    assert login["with"] == {key: f"${{{{ vars.AZURE_{name} }}}}" for key, name in names.items()}


def test_a_deployment_is_asked_for_by_a_person_after_the_tests_and_builds_before_it_changes_anything():
    deploy = WORKFLOWS["deploy.yml"]
    assert list(deploy[True]) == ["workflow_dispatch"]
    assert deploy["jobs"]["deploy"]["needs"] == "ci"
    said = [step.get("run", step.get("uses")) for step in deploy["jobs"]["deploy"]["steps"]]
    order = ["azure/login", "az bicep build", "az deployment group create", "func azure functionapp publish"]
    assert [next(i for i, text in enumerate(said) if one in text) for one in order] == sorted(
        next(i for i, text in enumerate(said) if one in text) for one in order
    )


def test_the_deployment_does_what_the_page_says():
    page = (REPOSITORY / "docs" / "deploy.md").read_text()
    files = "-f infra/bicep/main.bicep -p infra/bicep/main.bicepparam"
    for one in (files, "--python --build remote", "azure-functions-core-tools@4"):
        assert one in page
        assert any(one in line for line in COMMANDS), one


def test_dependabot_looks_where_there_is_something_to_look_at():
    marks = {"pip": "requirements.txt", "npm": "package.json", "github-actions": ".github/workflows"}
    assert {one["package-ecosystem"] for one in DEPENDABOT["updates"]} == set(marks)
    missing = [
        folder
        for one in DEPENDABOT["updates"]
        for folder in one.get("directories", [one.get("directory")])
        if not (REPOSITORY / folder.lstrip("/") / marks[one["package-ecosystem"]]).exists()
    ]
    if missing == ["/local/axe"]:
        pytest.skip("local/axe is not here yet")
    assert missing == []


def test_azd_deploys_the_same_infrastructure_and_publishes_the_same_app():
    (how,) = AZD["services"].values()
    assert how.pop("resourceName") == "${functionAppName}"
    assert how == {"project": ".", "language": "python", "host": "function"}
    template = REPOSITORY / AZD["infra"]["path"] / f"{AZD['infra']['module']}.bicep"
    assert template.relative_to(REPOSITORY).as_posix() == "infra/bicep/main.bicep"
    if not template.exists():
        pytest.skip("infra/ is not here yet")
    assert "output functionAppName string" in template.read_text()
