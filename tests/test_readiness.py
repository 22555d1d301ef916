"""Readiness: a deployment that is in order is told so; each fault is found and named, and nothing else is reported."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import azure.functions as func
import httpx
import pyodbc
import pytest
from azure.storage.blob import ContainerClient
from azure.storage.queue import QueueServiceClient

import function_app
from local import services
from local.customerio.control import CustomerioStandin
from shared import findings, readiness
from shared.checks import Check, Look, Note, Patience
from shared.checks_source import zones_ahead
from shared.people import People
from shared.state import Identity
from shared.syncs import CATALOGUE
from tests.conftest import Deployment, planted
from tests.test_passes import add_customers, add_orders, make_tables
from tests.test_qa import done, identify, track
from tests.test_resync import Worker, call

ACTION_GROUP = "/subscriptions/1/resourceGroups/tidemark/providers/Microsoft.Insights/actionGroups/on-call"
GRANTED = ["SELECT ON SCHEMA::retention"]
FAST = [one for one in readiness.CHECKS if one.name != "people_there"]
"""A request a person would take this file beyond a minute; people_there has tests of its own."""

only_standin = pytest.mark.skipif("TEST_SQL_SERVER" in os.environ, reason="what only the stand-in does on request")


def report(
    deployment: Deployment, patience: Patience = readiness.OVER_HTTP, checks: Sequence[Check] = readiness.CHECKS
) -> dict[str, Any]:
    return readiness.check(deployment.settings(), patience, checks)


def changed(deployment: Deployment, **changes: Any) -> Deployment:
    """The deployment with other app settings; None: without one."""
    environment = {**deployment.environment, **changes}
    return Deployment(deployment.sql, deployment.workspace, deployment.container, environment)


def items(told: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {item["name"]: item for item in told["items"]}


def standin(deployment: Deployment, what: str, argument: str) -> None:
    """A command to the SQL Server stand-in about the deployment's database."""
    name = deployment.sql.execute("SELECT DB_NAME()").fetchval()
    deployment.sql.execute(f"EXEC sp_standin_{what} N'{name}', {argument}")


def grant(deployment: Deployment, *granted: str) -> None:
    if "TEST_SQL_SERVER" not in os.environ:
        standin(deployment, "permissions", f"N'{json.dumps(granted)}'")


@contextmanager
def view(deployment: Deployment, name: str, select: str) -> Iterator[None]:
    """For a while the view is another."""
    sql = deployment.sql
    before = sql.execute(
        "SELECT VIEW_DEFINITION FROM INFORMATION_SCHEMA.VIEWS WHERE TABLE_SCHEMA = 'retention' AND TABLE_NAME = ?", name
    ).fetchval()
    sql.execute(f"DROP VIEW retention.{name}")
    if select:
        sql.execute(f"CREATE VIEW retention.{name} AS {select}")
    yield
    if select:
        sql.execute(f"DROP VIEW retention.{name}")
    sql.execute(before)


def only_customers_and_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    for sync in CATALOGUE:
        if sync.name not in ("customers", "orders"):
            monkeypatch.setenv(f"AzureWebJobs.{sync.name}.Disabled", "1")


@pytest.fixture(scope="module")
def well(sql_server: services.SqlServer, customerio: CustomerioStandin, azurite: str) -> Iterator[Deployment]:
    """A deployment in order, and live. A test that breaks it puts it back."""
    database = sql_server.create_database(f"tidemark_{uuid.uuid4().hex[:12]}")
    keys = {name: planted() for name in ("site_id", "api_key", "app_api_key")}
    workspace = customerio.create_workspace(region="us", lag_seconds=0, **keys)
    container = ContainerClient.from_connection_string(azurite, f"state-{uuid.uuid4().hex[:16]}")
    segment = workspace.add_segment("Canary", {"attr": "tier", "op": "eq", "value": "gold"})
    campaign = workspace.add_campaign("Canary", event_name="Order Placed")
    environment = {
        "SQL_CONNECTION_STRING": database,
        "CUSTOMERIO_REGION": "us",
        "CUSTOMERIO_SITE_ID": workspace.site_id,
        "CUSTOMERIO_API_KEY": workspace.api_key,
        "CUSTOMERIO_APP_API_KEY": workspace.app_api_key,
        "CUSTOMERIO_TRACK_URL": workspace.url,
        "CUSTOMERIO_APP_URL": workspace.url,
        "AzureWebJobsStorage": azurite,
        "STATE_CONTAINER": container.container_name,
        "FIRST_PASS": "approved",
        "QA_WAIT_SECONDS": "0",
        "SEGMENTS": f"canary_repeat_recent={segment}",
        "CANARY_CUSTOMER_ID": "canary",
        "CANARY_CAMPAIGN": str(campaign),
        "ALERT_ACTION_GROUP": ACTION_GROUP,
    }
    with (
        container,
        closing(pyodbc.connect(database, autocommit=True)) as sql,
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        only_customers_and_orders(monkeypatch)
        deployment = Deployment(sql, workspace, container, environment)
        sql.execute("CREATE SCHEMA retention")
        sql.execute("CREATE SCHEMA shop")
        make_tables(sql)
        add_customers(sql, range(6))
        add_orders(sql, range(4), customers=6)
        grant(deployment, *GRANTED)
        for sync in ("customers", "orders"):
            deployment.run(sync, FIRST_PASS="all")
        track(deployment, "canary", "Order Placed")
        qa(deployment, 2)
        with Look(deployment.settings(), readiness.OVER_HTTP) as look:
            findings.note(look.state, "canary", [])
        yield deployment


def qa(deployment: Deployment, person: int) -> None:
    assert done(Worker(deployment), {"customer_ids": [person]})["state"] == "done"


@pytest.fixture
def new(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """A deployment of which nothing is live yet, in a workspace that others may have used."""
    make_tables(deployment.sql)
    add_customers(deployment.sql, range(5))
    add_orders(deployment.sql, range(3), customers=5)
    deployment.environment["FIRST_PASS"] = "approved"
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    only_customers_and_orders(monkeypatch)
    grant(deployment, *GRANTED)
    return deployment


# --- in order ---------------------------------------------------------------------------------------------------------


@only_standin
def test_of_a_deployment_in_order_every_item_is_ok_and_nothing_is_left_behind(well):
    queues = QueueServiceClient.from_connection_string(well.environment["AzureWebJobsStorage"])
    before = set(well.blobs("")), {queue.name for queue in queues.list_queues()}
    told = report(well)
    assert {name: item for name, item in items(told).items() if item["state"] != "ok" or item["do"]} == {}
    assert (told["ready"], told["counts"]["ok"]) == (True, len(readiness.CHECKS))
    assert (set(well.blobs("")), {queue.name for queue in queues.list_queues()}) == before
    assert len(list(well.workspace.events())) == 5


@only_standin
def test_the_page_and_the_json_are_answered_with_200_whatever_is_found(well, monkeypatch):
    monkeypatch.setenv("ALERT_ACTION_GROUP", "<b>nobody</b>")
    monkeypatch.setenv("CUSTOMERIO_API_KEY", planted())

    def ask(accept: str) -> func.HttpResponse:
        function = function_app.readiness.build().get_user_function()
        return function(func.HttpRequest("GET", "/api/readiness", headers={"Accept": accept}, body=b""))

    answer = ask("application/json")
    told = items(json.loads(answer.get_body()))
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    assert (told["track_api"]["state"], told["alerts"]["state"]) == ("failed", "warning")
    page = ask("text/html,*/*")
    text = page.get_body().decode()
    assert (page.status_code, page.mimetype) == (200, "text/html")
    assert "Not ready." in text and '<td class="failed">failed</td>' in text and "<b>nobody" not in text
    assert all(f">{one.name}<" in text for one in readiness.CHECKS)


# --- one fault, one item ----------------------------------------------------------------------------------------------

CUSTOMERS = "SELECT customer_id, email, tier, row_version FROM shop.customers"
ORDERS = (
    "SELECT {customer} AS customer_id, {name} AS event_name, {time} AS event_time, {id} AS event_id, o.total,"
    " {cursor} AS row_version FROM shop.orders AS o"
)
PARTS = {
    "customer": "o.customer_id",
    "name": "'Order Placed'",
    "time": "o.paid_at",
    "id": "o.order_id",
    "cursor": "o.row_version",
}


def customers(select: str) -> Callable[[Deployment], AbstractContextManager[None]]:
    return lambda deployment: view(deployment, "customers", select)


def orders(more: str = "", **parts: str) -> Callable[[Deployment], AbstractContextManager[None]]:
    return lambda deployment: view(deployment, "orders", ORDERS.format(**{**PARTS, **parts}) + more)


def as_text(tier: str = "tier", email: str = "email", more: str = "") -> str:
    return f"SELECT CAST(customer_id AS nvarchar(20)) AS customer_id, {email} AS email, {tier}, row_version{more}"


@contextmanager
def clock(deployment: Deployment, seconds: int) -> Iterator[None]:
    standin(deployment, "clock", str(seconds))
    yield
    standin(deployment, "clock", "0")


@contextmanager
def granted(deployment: Deployment, *permissions: str) -> Iterator[None]:
    grant(deployment, *permissions)
    yield
    grant(deployment, *GRANTED)


@contextmanager
def blob(deployment: Deployment, name: str, content: bytes | None) -> Iterator[None]:
    """For a while a blob holds something else, or is gone."""
    before = deployment.read(name)
    if content is None:
        deployment.container.delete_blob(name)
    else:
        deployment.container.upload_blob(name, content, overwrite=True)
    yield
    deployment.container.upload_blob(name, before, overwrite=True)


@contextmanager
def open_transaction(deployment: Deployment) -> Iterator[None]:
    with closing(pyodbc.connect(deployment.environment["SQL_CONNECTION_STRING"], autocommit=False)) as other:
        other.execute("UPDATE shop.customers SET tier = 'x' WHERE customer_id = 5")
        deployment.sql.execute("UPDATE shop.orders SET total = total WHERE order_id = 3")
        yield
        other.rollback()


@contextmanager
def configured(deployment: Deployment, **settings: Any) -> Iterator[None]:
    deployment.workspace.configure(**settings)
    yield
    deployment.workspace.configure(region="us")


@contextmanager
def canary_found(deployment: Deployment) -> Iterator[None]:
    with Look(deployment.settings(), readiness.OVER_HTTP) as look:
        findings.note(look.state, "canary", [findings.Finding("order", "The event shows twice.", "Ask Customer.io.")])
        yield
        findings.note(look.state, "canary", [])


@contextmanager
def qa_with_a_difference(deployment: Deployment) -> Iterator[None]:
    """Somebody has written to a person with a time that lies ahead of us."""
    identify(deployment, "1", timestamp=int(datetime.now(UTC).timestamp()) + 3600, tier="lead")
    qa(deployment, 1)
    yield
    for name in deployment.blobs(f"runs/{deployment.blobs('runs/')[-1].split('/')[1]}/"):
        deployment.container.delete_blob(name)


@contextmanager
def no_fault(_: Deployment) -> Iterator[None]:
    yield


def berlin_ahead() -> timedelta:
    return datetime.now(ZoneInfo("Europe/Berlin")).utcoffset() or timedelta(0)


def ahead(difference: timedelta) -> str:
    """As T-SQL: a time that lies so far ahead for the newest order, which is three minutes old."""
    seconds = int(difference.total_seconds()) - 180
    return f"CASE WHEN o.order_id = 3 THEN DATEADD(second, {seconds}, SYSUTCDATETIME()) ELSE o.paid_at END"


Fault = Callable[[Deployment], AbstractContextManager[None]]
FAULTS: list[tuple[str, str, list[str], Fault, dict[str, Any]]] = [
    ("settings", "warning", ["FIRST_PASS"], no_fault, {"FIRST_PASS": "all"}),
    ("queue", "failed", ["cannot be reached"], no_fault, {"AzureWebJobsStorage": "no queue"}),
    ("track_api", "failed", ["CUSTOMERIO_REGION", "eu"], lambda one: configured(one, region="eu"), {}),
    ("rate", "warning", ["CUSTOMERIO_REQUESTS_PER_SECOND", "500"], no_fault, {"CUSTOMERIO_REQUESTS_PER_SECOND": 500}),
    (
        "identity",
        "failed",
        ["elsewhere", "SQL_CONNECTION_STRING"],
        lambda one: blob(
            one, "identity.json", json.dumps({**json.loads(one.read("identity.json")), "server": "elsewhere"}).encode()
        ),
        {},
    ),
    ("identity", "failed", ["damaged"], lambda one: blob(one, "identity.json", b"{"), {}),
    ("clocks", "warning", ["SQL Server", "behind"], lambda one: clock(one, -60), {}),
    ("clocks", "failed", ["SQL Server", "ahead of"], lambda one: clock(one, 400), {}),
    ("permissions", "failed", ["no SELECT on the schema retention"], granted, {}),
    (
        "permissions",
        "warning",
        ["SELECT on the database"],
        lambda one: granted(one, *GRANTED, "SELECT ON DATABASE"),
        {},
    ),
    (
        "permissions",
        "warning",
        ["INSERT on the schema retention"],
        lambda one: granted(one, *GRANTED, "INSERT ON SCHEMA::retention"),
        {},
    ),
    (
        "permissions",
        "warning",
        ["UPDATE on 1 object elsewhere"],
        lambda one: granted(one, *GRANTED, "UPDATE ON OBJECT::shop.orders"),
        {},
    ),
    ("permissions", "warning", ["CONTROL on the database"], lambda one: granted(one, "CONTROL ON DATABASE"), {}),
    ("views", "failed", ["retention.orders", "missing"], lambda one: view(one, "orders", ""), {}),
    (
        "views",
        "failed",
        ["retention.orders", "event_time", "datetime2"],
        orders(time="CONVERT(varchar(33), o.paid_at, 126)"),
        {},
    ),
    ("keys", "warning", ["retention.orders", "1 row of 4 without event_id"], orders(id="NULLIF(o.order_id, 2)"), {}),
    ("keys", "warning", ["1 row of 4 without a person"], orders(customer="NULLIF(o.customer_id, 2)"), {}),
    ("keys", "failed", ["1 row of 4 with a event_id"], orders(id="CASE o.order_id WHEN 2 THEN 1 ELSE o.order_id END"), {}),
    (
        "keys",
        "failed",
        ["retention.customers", "2 rows of 8 with a customer_id"],
        customers(f"{CUSTOMERS} UNION ALL SELECT customer_id, NULL, tier, row_version FROM shop.customers WHERE customer_id < 2"),
        {},
    ),
    (
        "keys",
        "warning",
        ["1 of its customer_id", "case"],
        customers(
            "SELECT CASE customer_id WHEN 0 THEN N'a' WHEN 1 THEN N'A' ELSE CAST(customer_id AS nvarchar(20)) END"
            " AS customer_id, CASE WHEN customer_id > 1 THEN email END AS email, tier, row_version FROM shop.customers"
        ),
        {},
    ),
    (
        "cursors",
        "warning",
        ["retention.orders", "1 row where row_version is NULL"],
        orders(cursor="CASE WHEN o.order_id <> 2 THEN o.row_version END"),
        {},
    ),
    ("cursors", "warning", ["open for 3 seconds"], open_transaction, {}),
    ("event_times", "warning", ["1 row of 4 without event_time"], orders(time="CASE WHEN o.order_id <> 2 THEN o.paid_at END"), {}),
    ("event_times", "warning", ["all 4 events are at midnight"], orders(time="CAST(CAST(o.paid_at AS date) AS datetime2(0))"), {}),
    ("time_zone", "failed", ["in the future", "UTC", "Europe/Berlin"], orders(time=ahead(berlin_ahead())), {}),
    ("time_zone", "failed", ["5 h 27 min in the future", "Asia/Kolkata"], orders(time=ahead(timedelta(hours=5.5))), {}),
    ("time_zone", "failed", ["3 days in the future by SQL Server's clock."], orders(time=ahead(timedelta(days=3, hours=1))), {}),
    ("emails", "warning", ["no column email"], customers("SELECT customer_id, tier, row_version FROM shop.customers"), {}),
    ("emails", "warning", ["1 of 6 emails", "no addresses"], customers(CUSTOMERS.replace("email", "CASE customer_id WHEN 5 THEN N'nobody' ELSE email END AS email")), {}),
    ("emails", "warning", ["1 customer with an email that another customer has"], customers(CUSTOMERS.replace("email", "CASE customer_id WHEN 5 THEN N'C4@example.com' ELSE email END AS email")), {}),
    ("emails", "warning", ["2 of 6 customers (33.3 %)", "less than half"], customers(CUSTOMERS.replace("email", "CASE WHEN customer_id < 2 THEN email END AS email")), {}),
    ("flags", "warning", ["retention.customers", "vip (1 row)"], customers(CUSTOMERS.replace("tier", "tier, CAST(NULLIF(customer_id, 1) AS bit) AS vip")), {}),
    ("flags", "warning", ["retention.orders", "person.late (1 row)"], orders(total="o.total", cursor="CAST(NULLIF(o.order_id, 1) AS bit) AS [person.late], o.row_version"), {}),
    ("canary_segment", "warning", ["SEGMENTS has no canary_repeat_recent"], no_fault, {"SEGMENTS": "vip=1"}),
    ("canary_segment", "failed", ["canary_repeat_recent=999999"], no_fault, {"SEGMENTS": "canary_repeat_recent=999999"}),
    ("canary_segment", "warning", ["not built yet (build)"], no_fault, {"SEGMENTS": "building"}),
    ("canary_trigger", "warning", ["CANARY_CAMPAIGN", "not set"], no_fault, {"CANARY_CAMPAIGN": None}),
    ("canary_trigger", "failed", ["campaign 999999", "not there"], no_fault, {"CANARY_CAMPAIGN": 999999}),
    ("canary_trigger", "failed", ["is stopped"], no_fault, {"CANARY_CAMPAIGN": "stopped"}),
    ("canary_trigger", "warning", ["never sent"], lambda one: blob(one, "findings/canary.json", None), {}),
    ("canary_trigger", "failed", ["The event shows twice."], canary_found, {}),
    ("qa", "failed", ["1 difference"], qa_with_a_difference, {}),
    ("alerts", "warning", ["ALERT_ACTION_GROUP is not set"], no_fault, {"ALERT_ACTION_GROUP": None}),
    ("alerts", "warning", ["resource id"], no_fault, {"ALERT_ACTION_GROUP": "on-call"}),
]  # fmt: skip


def told_of(deployment: Deployment, changes: dict[str, Any]) -> dict[str, Any]:
    """What the changes stand for: a service that is not there, a segment or campaign of another state."""
    text = deployment.environment["AzureWebJobsStorage"]
    workspace = deployment.workspace
    match changes:
        case {"AzureWebJobsStorage": _}:
            return {
                "AzureWebJobsStorage": text.split("QueueEndpoint")[0] + "QueueEndpoint=http://127.0.0.1:9/tidemark;"
            }
        case {"SEGMENTS": "building"}:
            condition = {"attr": "tier", "op": "exists"}
            return {"SEGMENTS": f"canary_repeat_recent={workspace.add_segment('Slow', condition, state='build')}"}
        case {"CANARY_CAMPAIGN": "stopped"}:
            return {"CANARY_CAMPAIGN": workspace.add_campaign("Old", event_name="Order Placed", state="stopped")}
    return changes


@only_standin
@pytest.mark.parametrize(
    ("name", "state", "words", "fault", "changes"), FAULTS, ids=[f"{one[0]}: {one[2][0]}" for one in FAULTS]
)
def test_a_fault_is_named_in_its_item_and_nowhere_else(well, name, state, words, fault, changes):
    with fault(well):
        found = items(report(changed(well, **told_of(well, changes)), checks=FAST))
    assert found[name]["state"] == state, found[name]
    assert [word for word in words if word not in found[name]["seen"]] == [], found[name]["seen"]
    assert len(found[name]["do"]) > 10
    wrong = {one for one, item in found.items() if item["state"] in ("warning", "failed")}
    assert wrong == {name}, {one: found[one] for one in wrong}
    skipped = {one for one, item in found.items() if item["state"] == "skipped"}
    unusable = {"views": {"event_times", "time_zone", "other_sources"}, "track_api": {"identity"}}
    assert skipped == unusable.get(name, set())


# --- what keeps others from being looked at ---------------------------------------------------------------------------


def test_a_setting_that_is_missing_is_named_and_the_rest_is_skipped(well, monkeypatch):
    monkeypatch.delenv("CUSTOMERIO_SITE_ID")
    told = readiness.check()
    found = items(told)
    assert (found["settings"]["state"], "CUSTOMERIO_SITE_ID" in found["settings"]["seen"]) == ("failed", True)
    assert {item["state"] for name, item in found.items() if name != "settings"} == {"skipped"}
    assert told["ready"] is False


@pytest.mark.parametrize(
    ("name", "change", "word", "state"),
    [
        ("driver", ("Driver={ODBC Driver 18 for SQL Server}", "Driver={No such driver}"), "not installed", "failed"),
        ("sql_server", ("PWD=", "PWD=not"), "18456", "failed"),
        ("blobs", ("AccountKey=", "AccountKey=bm90"), "refuses access", "failed"),
        ("app_api", None, "CUSTOMERIO_APP_API_KEY", "failed"),
        ("track_api", "wrong", "CUSTOMERIO_SITE_ID", "failed"),
    ],
)
@only_standin
def test_what_cannot_be_reached_hides_nothing_that_does_not_need_it(well, name, change, word, state):
    settings = {
        "driver": "SQL_CONNECTION_STRING",
        "sql_server": "SQL_CONNECTION_STRING",
        "blobs": "AzureWebJobsStorage",
    }
    setting = settings.get(name, "CUSTOMERIO_APP_API_KEY" if name == "app_api" else "CUSTOMERIO_API_KEY")
    value = well.environment[setting].replace(*change) if isinstance(change, tuple) else planted() if change else None
    found = items(report(changed(well, **{setting: value})))
    assert (found[name]["state"], word in found[name]["seen"]) == (state, True), found[name]
    skipped = {one for one, item in found.items() if item["state"] == "skipped"}
    unusable = {name}
    for one in readiness.CHECKS:
        if unusable & set(one.needs):
            unusable.add(one.name)
    assert skipped == unusable - {name} and skipped
    assert {item["state"] for one, item in found.items() if one not in unusable} == {"ok"}


def test_a_view_that_is_wrong_hides_no_other_view_and_one_that_is_switched_off_is_no_fault(new, monkeypatch):
    monkeypatch.delenv("AzureWebJobs.refunds.Disabled")
    found = items(report(new))
    assert (found["views"]["state"], "retention.refunds is missing" in found["views"]["seen"]) == ("failed", True)
    assert "AzureWebJobs.refunds.Disabled" in found["views"]["do"]
    assert "retention.orders: 3 rows" in found["keys"]["seen"] and found["keys"]["state"] == "ok"
    assert "carts" not in found["views"]["seen"] and "carts" in found["settings"]["seen"]


@only_standin
def test_a_view_whose_rows_cannot_be_computed_is_named_and_the_next_is_counted(well):
    with view(well, "customers", CUSTOMERS.replace("customer_id", "1 / (customer_id - customer_id) AS customer_id", 1)):
        found = items(report(well, checks=FAST))["keys"]
    assert found["state"] == "failed", found
    assert "retention.customers: Reading the schema retention fails with SQL Server error 8134" in found["seen"]
    assert "retention.orders: 4 rows" in found["seen"]


def test_what_nobody_foresaw_is_a_failed_item_with_a_place_and_no_value(well):
    def broken(_: Look) -> Iterator[Note]:
        yield Note("ok", "The first half is well.")
        raise KeyError("planted")

    told = readiness.check(well.settings(), checks=(Check("broken", broken), Check("next", no_notes)))
    one, other = told["items"]
    assert one["state"] == "failed" and "KeyError at test_readiness.py" in one["seen"]
    assert "The first half is well." in one["seen"] and "planted" not in str(told)
    assert other["state"] == "ok"


def no_notes(_: Look) -> Iterator[Note]:
    return iter(())


def test_after_its_time_nothing_begins_any_more_and_what_was_not_looked_at_says_so(well):
    told = report(well, Patience(query=20, begin=-1))
    assert {item["state"] for item in told["items"]} == {"skipped"}
    assert "make readiness" in items(told)["settings"]["do"]
    assert told["ready"] is False


@pytest.mark.slow
@only_standin
def test_a_view_that_takes_too_long_is_given_up_and_the_others_are_counted(well):
    with view(well, "orders", f"{ORDERS.format(**PARTS)} {SLOW}"):
        found = items(report(well, Patience(query=1, begin=100)))
    assert found["keys"]["state"] == "skipped", found["keys"]
    assert found["keys"]["do"].startswith("`make readiness`")
    assert "retention.orders: Not all was looked at: a query took longer than 1 seconds" in found["keys"]["seen"]
    assert "retention.customers: 6 rows" in found["keys"]["seen"]
    assert found["permissions"]["state"] == "ok"


MANY = ", ".join(f"INFORMATION_SCHEMA.COLUMNS AS c{number}" for number in range(9))
TEXT = ", ".join(f"c{number}.COLUMN_NAME" for number in range(9))
SLOW = f"CROSS JOIN (SELECT COUNT(*) AS n FROM {MANY} WHERE LEN(CONCAT({TEXT})) = 0) AS slow WHERE slow.n >= 0"


# --- before going live ------------------------------------------------------------------------------------------------


def test_what_nobody_has_done_yet_is_to_be_done(new):
    found = items(report(new))
    assert {name: found[name]["state"] for name in ("qa", "backfill", "identity", "people_there", "other_sources")} == {
        "qa": "warning",
        "backfill": "warning",
        "identity": "ok",
        "people_there": "ok",
        "other_sources": "ok",
    }
    assert "no QA sync yet" in found["qa"]["seen"] and "Not live: customers, orders" in found["backfill"]["seen"]


def test_a_plan_that_waits_for_approval_is_named_and_what_was_declined_is_told(new):
    worker = Worker(new)
    _, answer = call("go_live", {"syncs": ["customers", "orders"], "since": "2026-06-01T00:00:00Z"})
    worker.work()
    found = items(report(new))
    assert answer["run"] in found["backfill"]["seen"] and "waits for approval" in found["backfill"]["seen"]
    assert call("decide", run=answer["run"], decision="approve")[0] == 200
    worker.work()
    found = items(report(new))
    assert found["backfill"]["state"] == "ok", found["backfill"]
    assert "Live: customers, orders. Events before 2026-06-01 were declined." in found["backfill"]["seen"]


@pytest.mark.parametrize("live", [False, True], ids=["before going live", "live"])
def test_another_source_of_our_events_is_named_with_the_event(new, live):
    if live:
        for sync in ("customers", "orders"):
            new.run(sync, FIRST_PASS="all")
    for number in range(2):
        track(new, str(number), "Order Placed", order=number)
    track(new, "1", "Something Else")
    found = items(report(new))["other_sources"]
    assert found["state"] == "failed"
    assert f"Order Placed: 2 of the latest {5 if live else 2} were sent by another source" in found["seen"]


def test_an_address_that_belongs_to_another_id_is_told_with_both_ids_and_no_address(new):
    identify(new, "old-3", email="c3@example.com")
    identify(new, "1", email="c1@example.com")
    found = items(report(new))["people_there"]
    assert (found["state"], "belong to another id: 3 (old-3 has it)." in found["seen"]) == ("failed", True), found
    assert "Of 5 customers 1 are in the workspace" in found["seen"]
    assert "example.com" not in json.dumps(found)


def test_who_was_merged_has_no_address_of_an_own_that_could_belong_to_another(new):
    identify(new, "old-3", email="c3@example.com")
    with Look(new.settings(), readiness.OVER_HTTP) as look:
        look.state.create()
        look.state.remember(Identity("1", "server", "database"))
        People(look.state).begin()
        People(look.state).merge({"3": "old-3"})
    told = items(report(new))
    assert told["people_there"]["state"] == "ok", told["people_there"]
    assert told["people_there"]["seen"].startswith("Of 4 customers")
    assert told["identity"]["state"] == "failed"


def test_a_profile_that_is_known_by_its_address_only_is_a_warning(new):
    workspace = new.workspace
    person = {"type": "person", "identifiers": {"email": "c2@example.com"}, "action": "identify", "attributes": {}}
    httpx.post(
        f"{workspace.url}/api/v2/batch",
        auth=(workspace.site_id, workspace.api_key),
        json={"batch": [person]},
        trust_env=False,
    ).raise_for_status()
    found = items(report(new))["people_there"]
    assert (found["state"], "1 belong to profiles without an id" in found["seen"]) == ("warning", True), found


# --- by hand ----------------------------------------------------------------------------------------------------------


@only_standin
def test_make_readiness_prints_the_same_and_its_exit_code_says_whether_something_failed(well, tmp_path):
    repository = Path(__file__).resolve().parent.parent

    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        values = {name: value for name, value in well.environment.items() if name != "STATE_CONTAINER"}
        (tmp_path / "local.settings.json").write_text(json.dumps({"Values": values}))
        kept = {name: value for name, value in os.environ.items() if name not in values}
        return subprocess.run(
            [sys.executable, "-m", "local.readiness"],
            cwd=tmp_path,
            env={**kept, "PYTHONPATH": str(repository), **changes},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    fine = run()
    assert fine.returncode == 0, fine.stdout + fine.stderr
    assert [line.split()[1] for line in fine.stdout.splitlines() if line.startswith("ok ")] == [
        one.name for one in readiness.CHECKS
    ]
    broken = run(CUSTOMERIO_API_KEY="no-such-key")
    assert broken.returncode == 1
    assert "failed   track_api" in broken.stdout and "CUSTOMERIO_API_KEY" in broken.stdout


def test_a_zone_is_named_by_the_wall_clock_that_it_has_now():
    hours = berlin_ahead().total_seconds()
    assert "Europe/Berlin" in zones_ahead(hours - 120, "UTC")
    assert "Europe/Berlin" not in zones_ahead(hours + 60, "UTC")
    assert zones_ahead(5.5 * 3600 - 1, "UTC") == ["Asia/Kolkata"]
    assert zones_ahead(4.5 * 3600 - 1, "UTC") == []
