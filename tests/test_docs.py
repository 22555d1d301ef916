"""The docs say of the code and the views what is so: names, reasons, settings."""

import ast
import json
import re
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path

import pyodbc
import pytest

from local import cdnow, services
from local.host.app import cron
from local.reference import with_tables
from shared import mapping, state
from shared.drift import types_of
from shared.http import GoLive, Resync
from shared.readiness import CHECKS
from shared.resync import Stage, Status
from shared.settings import Settings, setting_name
from shared.source import Source
from shared.syncs import CATALOGUE, SCHEDULES, Kind
from shared.telemetry import METRICS
from shared.view import View, contract_columns
from tests.conftest import bare_settings

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "docs"
DOCS = {path.relative_to(FOLDER).as_posix(): path.read_text() for path in FOLDER.rglob("*.md")}
RUNBOOKS = {name: text for name, text in DOCS.items() if name.startswith("runbooks/")}

# What pages may name before it is merged. Once infra/ is here, everything is: then nothing is left out any more.
PENDING = not (REPOSITORY / "infra").exists()
PENDING_PAGES = {f"{name}.md" for name in ("audit", "canary", "readiness", "reconciliation", "status", "volume")}
PENDING_ROUTES = {("GET", "/api/readiness"), ("GET", "/api/status")}


def rows(text: str, heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    table = text.split(f"\n{heading}", 1)[1].split("\n|", 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.fixture(scope="module")
def reference(sql_server: services.SqlServer) -> Iterator[dict[str, View]]:
    """The reference views, by the names of their syncs."""
    name = f"tidemark_{uuid.uuid4().hex[:12]}"
    text = sql_server.create_database(name)
    with closing(pyodbc.connect(text, autocommit=True)) as connection:
        cdnow.create_schema(connection)
    settings = bare_settings(sql_connection_string=text)
    with Source(settings) as source:
        yield {sync.name: View(sync, source.survey(sync), settings) for sync in CATALOGUE}
    sql_server.drop_database(name)


def test_journeys_names_every_event_with_its_properties_and_what_it_sets(reference):
    told = {
        event: (quoted(properties), quoted(sets))
        for events, _, properties, sets in rows(DOCS["journeys.md"], "## Events")
        for event in quoted(events)
    }
    there = {}
    for sync in CATALOGUE:
        if sync.kind is Kind.EVENT:
            names = [one.name for one in reference[sync.name].fields if one.name not in contract_columns(Kind.EVENT)]
            (script,) = (REPOSITORY / "sql").glob(f"*_{sync.name}.sql")
            for event in re.findall(r"'([A-Z][a-z]+(?: [A-Z][a-z]+)+)'", script.read_text()):
                there[event] = (
                    [name for name in names if not name.startswith(mapping.PERSON)],
                    [name[len(mapping.PERSON) :] for name in names if name.startswith(mapping.PERSON)],
                )
    assert told == there


def test_journeys_names_every_attribute_with_its_type(reference):
    told = {quoted(name)[0]: of_type for name, of_type, _ in rows(DOCS["journeys.md"], "## Attributes")}
    view = reference["customers"]
    types = types_of(view, bare_settings())
    assert told == {one.name: types[one.name] for one in view.fields if one.name != "customer_id"}


def test_dead_letters_names_every_reason_for_which_a_row_is_set_aside():
    told = [reason for cell, _ in rows(DOCS["dead-letters.md"], "## Reasons") for reason in quoted(cell)]
    assert sorted(told) == sorted(_reasons())


def _reasons() -> set[str]:
    """What the code says of bad rows, with … for what it fills in."""
    found = set()
    for module in ("mapping", "identity"):
        for node in ast.walk(ast.parse((REPOSITORY / "shared" / f"{module}.py").read_text())):
            match node:
                case ast.Assign(targets=[ast.Subscript(value=ast.Name("bad" | "refused"))], value=ast.Tuple([_, why])):
                    found.add(_text(why))
                case ast.Call(func=ast.Attribute(ast.Name("bad"), "setdefault"), args=[_, ast.Tuple([_, why])]):
                    found.add(_text(why))
    return found


def _text(node: ast.expr) -> str:
    match node:
        case ast.Constant(value):
            return str(value)
        case ast.Name(name):
            return str(getattr(mapping, name))
        case ast.JoinedStr(parts):
            return "".join(_text(part) if isinstance(part, ast.Constant) else "…" for part in parts)
    raise AssertionError(ast.dump(node))


def test_who_means_the_nightly_comparison_links_to_its_page_and_not_to_the_one_about_other_products():
    assert [name for name, text in DOCS.items() if re.search(r"\]\((\.\./)?comparison\.md", text)] == []


NO_SETTINGS_OF_OURS = {
    "APPLICATIONINSIGHTS_CONNECTION_STRING", "PYTHON_APPLICATIONINSIGHTS_ENABLE_TELEMETRY",  # Azure's
    "AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP",  # GitHub's variables
    "STRING_AGG",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(DOCS))
def test_a_doc_names_no_setting_that_does_not_exist_and_links_to_what_is_there(name):
    settings = {setting_name(one) for one in Settings.model_fields} | set(SCHEDULES) | NO_SETTINGS_OF_OURS
    prose = re.sub(r"```.*?```", "", DOCS[name], flags=re.S)
    assert {one for one in quoted(prose) if re.fullmatch(r"[A-Z]+(_[A-Z]+)+", one)} <= settings
    for link in re.findall(r"\]\((?!https:)([^)#]+)(?:#[^)]*)?\)", DOCS[name]):
        there = (FOLDER / name).parent / link
        assert there.exists() or (PENDING and there.name in PENDING_PAGES), link


HEADINGS = {
    path: re.findall(r"^#+ (.*)$", path.read_text(), re.M) for path in (REPOSITORY / "README.md", *FOLDER.rglob("*.md"))
}


@pytest.mark.parametrize("name", sorted(DOCS))
def test_a_link_into_a_page_finds_its_heading(name):
    for link, anchor in re.findall(r"\]\((?!https:)([^)#]*)#([^)]+)\)", DOCS[name]):
        page = ((FOLDER / name).parent / link).resolve() if link else FOLDER / name
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADINGS[page]]
        assert anchor in anchors, (link, anchor)


@pytest.mark.parametrize("name", sorted(DOCS))
def test_a_page_names_no_metric_that_does_not_exist(name):
    assert set(re.findall(r"`(tidemark\.\w+)`", DOCS[name])) <= {one.name for one in METRICS}


ALERTS = (
    "pass-failing", "mark-old", "silence", "dead-letters", "stopped-before-sending", "drift", "reconciliation-off",
    "volume-outside", "freshness", "audit", "canary", "poison-slices", "throttled", "bound-frozen",
)  # fmt: skip


def test_every_alert_has_a_runbook_and_every_runbook_is_an_alerts_or_a_persons():
    others = {"README", "key-rotation", "stop-switch"}
    assert {name[len("runbooks/") : -len(".md")] for name in RUNBOOKS} == {*ALERTS, *others}
    index = [
        re.findall(r"\[([\w-]+)\]", alert)[0] for alert, _ in rows(RUNBOOKS["runbooks/README.md"], "An alert's name is")
    ]
    assert index == list(ALERTS)
    if not PENDING:
        deployed = "".join(path.read_text() for path in (REPOSITORY / "infra").rglob("*.bicep"))
        assert [name for name in ALERTS if f"'{name}'" not in deployed] == []


@pytest.mark.parametrize("alert", ALERTS)
def test_a_runbook_says_what_it_means_where_to_look_what_to_do_and_when_it_is_over(alert):
    text = RUNBOOKS[f"runbooks/{alert}.md"]
    assert text.startswith(f"# {alert}\n")
    order = ["What it means", "What to look at", "What to do", "It is over when"]
    assert re.findall(r"^## (.*)$", text, re.M) == order


def test_the_house_lists_every_module_as_it_describes_itself():
    assert with_tables(DOCS["architecture.md"]) == DOCS["architecture.md"]


def test_the_page_on_security_tells_of_every_blob():
    there = set(re.findall(r"^    ([\w/<>.-]+) {2,}\w", state.__doc__ or "", re.M))
    assert len(there) > 8
    told = {name for cell, *_ in rows(DOCS["security.md"], "## What is stored") for name in quoted(cell)}
    assert [name for name in there if not any(name.startswith(one) for one in told)] == []


def test_the_example_of_what_it_costs_adds_up_and_follows_from_the_schedules():
    values = json.loads((REPOSITORY / "local.settings.example.json").read_text())["Values"]
    start = datetime(2026, 6, 1, tzinfo=UTC)
    passes = 0
    for sync in CATALOGUE:
        times = cron(values[sync.schedule_setting], start - timedelta(seconds=1))
        passes += sum(1 for _ in takewhile(lambda at: at < start + timedelta(days=30), times.all_next(datetime)))
    bill = rows(DOCS["cost.md"], "## The example")
    many = {what: float(number.replace(",", "")) for what, number, _, _ in bill[:-1]}
    assert many["executions"] == passes
    assert many["compute of passes, GB-seconds"] == passes * 2 * 2
    assert many["compute of full comparisons, GB-seconds"] == 30 * 60 * 2
    assert many["blob calls"] == passes * 7
    assert many["log and metrics, GB"] == round(passes * 15 / 1e6, 3)
    often, seldom = (many[f"alert rules, every {how}"] for how in ("5 minutes", "15 minutes or less often"))
    assert often + seldom == len(ALERTS)
    if not PENDING:
        deployed = (REPOSITORY / "infra" / "bicep" / "alerts.bicep").read_text()
        assert deployed.count("frequency: 'PT5M'") == often
    for _, number, price, amount in bill[:-1]:
        assert f"${float(number.replace(',', '')) * float(price[1:]):.2f}" == amount
    assert bill[-1][-1].strip("*") == f"${sum(float(amount[1:]) for *_, amount in bill[:-1]):.2f}"


def test_every_picture_is_named_by_a_page_and_small():
    pictures = {path.name: path.stat().st_size for path in (REPOSITORY / "docs/pictures").iterdir()}
    named = {name for text in DOCS.values() for name in re.findall(r"!\[[^\]]+\]\(pictures/([^)]+)\)", text)}
    assert named == set(pictures)
    assert max(pictures.values()) < 200_000


PAGES = DOCS | {"README.md": (REPOSITORY / "README.md").read_text()}


def routes() -> set[tuple[str, str]]:
    """What the app answers: method and path."""
    app = (REPOSITORY / "function_app.py").read_text()
    found = re.findall(r'@app\.route\("([^"]+)", methods=\["(\w+)"\]', app)
    return {(method, f"/api/{route}") for route, method in found}


def is_answered(method: str, path: str) -> bool:
    """Whether the app has such a route; <run> and the like stand for a name."""
    if PENDING and (method, path) in PENDING_ROUTES:
        return True
    filled = {"{decision}": "(approve|cancel|retry|{decision})", "{sync}": "([a-z_]+|{sync})", "{run}": "(<run>|{run})"}
    patterns = [(one, re.sub(r"{\w+}", lambda part: filled[part[0]], route)) for one, route in routes()]
    return any(one == method and re.fullmatch(pattern, path) for one, pattern in patterns)


def test_the_docs_call_what_the_app_answers():
    called = 0
    for text in DOCS.values():
        for command in re.findall(r"^(?:\w+=\$\()?curl (?:.*\\\n)*.*$", text, re.M):
            (path,) = re.findall(r'azurewebsites\.net([^"?]+)[^"]*"', command)
            assert is_answered("POST" if "-X POST" in command else "GET", path), command
            called += 1
    assert called > 20


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_names_no_route_that_does_not_exist(name):
    for method, path in re.findall(r"`(GET|POST) (/api/[^`? ]+)", PAGES[name]):
        assert is_answered(method, path), (method, path)


def test_the_readme_lists_every_route():
    assert {tuple(quoted(call)[0].split()) for call, _, _ in rows(PAGES["README.md"], "## Calls")} == routes()


def test_resync_explains_every_state_of_a_run_and_of_a_slice():
    text = DOCS["resync.md"]
    assert first_words(text, "| state |") == sorted([*Stage, "expired"])
    assert first_words(text, "| slice |") == sorted(Status)


def test_resync_explains_every_field_of_a_request_and_going_live_of_its_own():
    assert [field for field in Resync.model_fields if f'"{field}"' not in DOCS["resync.md"]] == []
    assert first_words(DOCS["going-live.md"], "| field | meaning |\n|---|---|\n| `since` |") == sorted(
        GoLive.model_fields
    )


def test_readiness_explains_every_item_in_its_order():
    assert [quoted(name)[0] for name, _, _ in rows(DOCS["readiness.md"], "## Items")] == [one.name for one in CHECKS]


def first_words(text: str, head: str) -> list[str]:
    """What the first column of the table that begins so names, sorted."""
    table = text[text.index(f"\n{head}") :].lstrip("\n").split("\n\n", 1)[0]
    return sorted(quoted(line)[0] for line in table.splitlines()[2:])
