"""Resync and going live: the plan, its approval, slices, and what may happen beside them."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import azure.functions as func
import pytest
from azure.core.exceptions import ResourceNotFoundError
from azure.storage.queue import QueueClient

import function_app
from shared.errors import StateUnavailable, TidemarkError
from tests.conftest import Deployment
from tests.test_passes import add_customers, add_orders, bulk, make_tables

Ask = Callable[..., tuple[int, dict[str, Any]]]


def call(name: str, body: object = None, **params: str) -> tuple[int, dict[str, Any]]:
    function = getattr(function_app, name).build().get_user_function()
    answer = function(
        func.HttpRequest("POST", "/api/x", body=b"" if body is None else json.dumps(body).encode(), route_params=params)
    )
    return answer.status_code, json.loads(answer.get_body())


MOST_TRIES: int = json.loads(Path("host.json").read_text())["extensions"]["queues"]["maxDequeueCount"]


class Worker:
    """Takes messages from the queues and hands them to their functions, as the platform does, one after the other.

    What the blobs refuse is tried again as often as the platform would; any other failure is the test's.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._connection = deployment.environment["AzureWebJobsStorage"]
        self._container = deployment.container.container_name

    def work(self, most: int = 10_000) -> int:
        """Until the queues are empty; the number of messages."""
        done = 0
        while done < most:
            before = done
            for queue, function in (("plans", "make_plan"), ("slices", "deliver_slice")):
                while done < most and self.one(queue, function):
                    done += 1
            if done == before:
                break
        return done

    def one(self, queue: str, function: str) -> bool:
        with QueueClient.from_connection_string(self._connection, f"{self._container}-{queue}") as client:
            try:
                message = next(iter(client.receive_messages(max_messages=1, visibility_timeout=300)), None)
            except ResourceNotFoundError:
                return False
            if message is None:
                return False
            for tries_left in reversed(range(MOST_TRIES)):
                try:
                    call_queue(function, message.content)
                    break
                except StateUnavailable:  # a machine that stood still has lost a lease: the next try goes on
                    if not tries_left:
                        raise
            client.delete_message(message)
            return True

    def messages(self, queue: str = "slices") -> list[dict[str, Any]]:
        with QueueClient.from_connection_string(self._connection, f"{self._container}-{queue}") as client:
            try:
                return [json.loads(one.content) for one in client.peek_messages(32)]
            except ResourceNotFoundError:
                return []


def call_queue(function: str, content: str) -> None:
    getattr(function_app, function).build().get_user_function()(func.QueueMessage(body=content.encode()))


@pytest.fixture
def shop(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    make_tables(deployment.sql)
    deployment.environment["FIRST_PASS"] = "approved"
    deployment.environment["RESYNC_SLICE_ROWS"] = "100"
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    return deployment


@pytest.fixture
def worker(shop: Deployment) -> Worker:
    return Worker(shop)


def go_live(worker: Worker, **body: Any) -> dict[str, Any]:
    status, answer = call("go_live", {"syncs": ["customers", "orders"], **body})
    assert status == 202, answer
    worker.work()
    planned = call("run", run=answer["run"])[1]
    assert planned["state"] == "awaiting_approval", planned["message"]
    status, told = call("decide", run=answer["run"], decision="approve")
    assert status == 200, told
    worker.work()
    told = call("run", run=answer["run"])[1]
    assert told["state"] == "done", told
    return told


def test_going_live_sends_all_and_passes_go_on_from_there(shop, worker):
    add_customers(shop.sql, range(250))
    add_orders(shop.sql, range(350))
    assert shop.run("orders").outcome == "not_live"
    told = go_live(worker)
    assert shop.workspace.stats()["events_stored"] == 350
    assert len(shop.workspace.people()) == 250
    assert told["progress"]["slices"]["done"] >= 6
    for sync in ("customers", "orders"):
        ran = shop.run(sync)
        assert (ran.outcome, ran.operations) == ("ok", 0)


def test_a_young_order_waits_for_approval_and_an_old_one_does_not(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker, since="2026-06-01T00:00:00Z")
    add_orders(shop.sql, range(5))
    ran = shop.run("orders")
    assert (ran.operations, ran.held) == (0, {"before_start": 5})
    status, answer = call("resync", {"all": True, "held": True}, sync="orders")
    assert status == 202
    worker.work()
    told = call("run", run=answer["run"])[1]
    assert told["state"] == "awaiting_approval", told
    assert (told["plan"]["to_send"], told["plan"]["young_to_send"]) == (5, 0)
    call("decide", run=answer["run"], decision="approve")
    worker.work()
    assert shop.workspace.stats()["events_stored"] == 5


# --- what is asked for ------------------------------------------------------------------------------------------------


def add_young_orders(sql: Any, numbers: range, *, age: int = 3600, customers: int = 10) -> None:
    """Orders that were paid `age` seconds ago."""
    paid = (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%d %H:%M:%S")
    rows = [(number, number % customers, paid, 1) for number in numbers]
    bulk(sql, "INSERT INTO shop.orders (order_id, customer_id, paid_at, total) VALUES (?, ?, ?, ?)", rows)


def planned(worker: Worker, sync: str, **body: Any) -> dict[str, Any]:
    """The run after a resync was asked for and its plan was made; slices are not delivered yet."""
    status, answer = call("resync", body, sync=sync)
    assert status == 202, answer
    while worker.one("plans", "make_plan"):
        pass
    return call("run", run=answer["run"])[1]


def resynced(worker: Worker, sync: str, **body: Any) -> dict[str, Any]:
    """The run when everything that was asked for is sent, approved if need be."""
    return carried_out(worker, planned(worker, sync, **body))


def carried_out(worker: Worker, told: dict[str, Any]) -> dict[str, Any]:
    """A planned run when it is done, approved if need be."""
    if told["state"] == "awaiting_approval":
        assert call("decide", run=told["run"], decision="approve")[0] == 200
    worker.work()
    told = call("run", run=told["run"])[1]
    assert told["state"] == "done", told
    return told


def ids(deployment: Deployment) -> list[int]:
    return sorted(event["attributes"]["event_id"] for event in deployment.workspace.events())


def sent_since(deployment: Deployment, before: int) -> int:
    return operations_so_far(deployment) - before


def operations_so_far(deployment: Deployment) -> int:
    operations: int = deployment.workspace.stats()["operations"]
    return operations


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "customer_ids"),
        ([], "body"),
        ({"all": False}, "customer_ids"),
        ({"all": "true"}, "all"),
        ({"all": 1}, "all"),
        ({"everything": True}, "everything"),
        ({"all": True, "sinc": "2026-01-01T00:00:00Z"}, "sinc"),
        ({"all": True, "customer_ids": [1]}, "customer_ids"),
        ({"all": True, "since": "2026-01-01T00:00:00Z"}, "since"),
        ({"customer_ids": [1], "until": "2026-01-01T00:00:00Z"}, "until"),
        ({"customer_ids": [1], "sample": 1}, "sample"),
        ({"customer_ids": []}, "customer_ids"),
        ({"customer_ids": [""]}, "customer_ids.0"),
        ({"customer_ids": [1, 2.5]}, "customer_ids.1"),
        ({"customer_ids": [1, True]}, "customer_ids.1"),
        ({"customer_ids": [None]}, "customer_ids.0"),
        ({"customer_ids": "1"}, "customer_ids"),
        ({"customer_ids": [1, "x"]}, "customer_ids.1"),
        ({"customer_ids": [2**70]}, "customer_ids.0"),
        ({"customer_ids": [2**31]}, "customer_ids.0"),
        ({"customer_ids": [*range(10_001)]}, "customer_ids"),
        ({"sample": 0}, "sample"),
        ({"sample": -1}, "sample"),
        ({"sample": "5"}, "sample"),
        ({"sample": 10_001}, "sample"),
        ({"all": True, "dry_run": "yes"}, "dry_run"),
        ({"all": True, "held": 1}, "held"),
        ({"since": "2026-01-01T00:00:00"}, "since"),
        ({"since": "yesterday"}, "since"),
        ({"since": 1767225600}, "since"),
        ({"until": "2026-01-01"}, "until"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "since"),
        ({"since": "2026-01-01T00:00:00Z", "until": "2026-01-01T01:00:00+01:00"}, "since"),
        ({"since": "0001-01-01T00:00:00+14:00"}, "since"),
        ({"until": "9999-12-31T23:59:59-12:00"}, "until"),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_wrong_request_is_a_422_that_names_the_field(shop, worker, body, named):
    shop.environment["FIRST_PASS"] = "all"
    shop.run("customers")
    shop.run("orders")
    status, answer = call("resync", body, sync="orders")
    assert (status, list(answer)) == (422, ["error"]), answer
    assert named in answer["error"]
    assert worker.messages("plans") == []
    assert shop.blobs("runs/") == []


@pytest.mark.parametrize("field", ["syncs", "since", "surprise"])
def test_a_wrong_request_to_go_live_is_a_422_that_names_the_field(shop, field):
    wrong = {"syncs": [], "since": "2026-01-01T00:00:00", "surprise": 1}
    status, answer = call("go_live", {field: wrong[field]})
    assert (status, field in answer["error"]) == (422, True), answer


@pytest.mark.parametrize(
    ("type_", "good", "wrong"),
    [
        ("int", [7, "7"], ["seven", "7.5", ""]),
        ("bigint", [2**40], [2**63, "x"]),
        ("nvarchar(20)", ["C7", "c 7"], [None]),
        ("uniqueidentifier", ["0E984725-C51C-4BF4-9960-E1C80E27ABA0"], [7, "7", "0E984725"]),
    ],
)
def test_ids_are_held_to_the_type_of_the_views_column(deployment, shop, type_, good, wrong):
    shop.sql.execute("DROP VIEW retention.customers")
    shop.sql.execute(
        f"CREATE TABLE shop.others (customer_id {type_} NOT NULL PRIMARY KEY, email nvarchar(320), row_version rowversion)"
    )
    shop.sql.execute("CREATE VIEW retention.customers AS SELECT customer_id, email, row_version FROM shop.others")
    for one in good[:1]:
        shop.sql.execute("INSERT INTO shop.others (customer_id, email) VALUES (?, 'o@example.com')", one)
    shop.run("customers", FIRST_PASS="all")
    before = operations_so_far(shop)
    for one in wrong:
        status, answer = call("resync", {"customer_ids": [one]}, sync="customers")
        assert (status, "customer_ids" in answer["error"]) == (422, True), (one, answer)
    told = resynced(Worker(shop), "customers", customer_ids=good)
    assert told["plan"]["rows"] == 1
    assert sent_since(shop, before) == 1


def test_a_resync_answers_at_once_with_the_runs_address(shop):
    shop.run("orders", FIRST_PASS="all")
    function = function_app.resync.build().get_user_function()
    answer = function(func.HttpRequest("POST", "/api/x", body=b'{"all": true}', route_params={"sync": "orders"}))
    told = json.loads(answer.get_body())
    assert answer.status_code == 202
    assert answer.headers["Location"].endswith(f"/api/runs/{told['run']}")
    assert call("run", run=told["run"])[1]["state"] == "planning"


def test_what_does_not_exist_is_a_404(shop):
    assert call("resync", {"all": True}, sync="nothing")[0] == 404
    for run in ("x", "../orders", "01M8713JR8D4C8BJY00432M2BM"):
        assert call("run", run=run)[0] == 404
        for decision in ("approve", "cancel", "retry", "explode"):
            assert call("decide", run=run, decision=decision)[0] == 404


def test_only_what_is_live_and_can_be_sent_again_is_resynced(shop, worker):
    status, answer = call("resync", {"all": True}, sync="orders")
    assert (status, "live" in answer["error"]) == (409, True), answer
    for sync in ("merges", "removals"):
        status, answer = call("resync", {"all": True}, sync=sync)
        assert (status, sync in answer["error"]) == (409, True), answer
    assert worker.messages("plans") == []


def test_a_period_of_people_needs_updated_at(shop, worker):
    shop.run("customers", FIRST_PASS="all")
    for body in ({"since": "2026-01-01T00:00:00Z"}, {"until": "2026-01-01T00:00:00Z"}):
        status, answer = call("resync", body, sync="customers")
        assert (status, "updated_at" in answer["error"]) == (422, True), answer


def test_a_period_of_people_is_of_those_that_changed_in_it(deployment, monkeypatch):
    make_tables(deployment.sql, "updated_at")
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    add_customers(deployment.sql, range(10))
    deployment.sql.execute("UPDATE shop.customers SET updated_at = '2026-03-01T00:00:00' WHERE customer_id = 1")
    deployment.sql.execute("UPDATE shop.customers SET updated_at = '2026-03-02T00:00:00' WHERE customer_id = 2")
    deployment.sql.execute("UPDATE shop.customers SET updated_at = '2026-03-03T00:00:00' WHERE customer_id = 3")
    deployment.run("customers")
    deployment.sql.execute("UPDATE shop.customers SET tier = 'moved'")
    told = resynced(Worker(deployment), "customers", since="2026-03-01T01:00:00+01:00", until="2026-03-03T00:00:00Z")
    assert told["plan"]["rows"] == 2
    moved = [person for person, has in deployment.workspace.people().items() if has["tier"] == "moved"]
    assert sorted(moved) == ["1", "2"]


# --- the plan's numbers -----------------------------------------------------------------------------------------------


def test_the_numbers_of_a_plan_of_events_are_exact(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(28), customers=10)  # one a day, from the 1st of January
    go_live(worker, since="2026-01-10T00:00:00Z")
    assert len(ids(shop)) == 19
    add_young_orders(shop.sql, range(100, 105))
    shop.sql.execute("UPDATE shop.orders SET customer_id = 77 WHERE order_id = 104")
    add_young_orders(shop.sql, range(110, 112), age=73 * 3600)
    shop.sql.execute("INSERT INTO shop.orders (order_id, customer_id) VALUES (200, 1)")  # never paid: no event time
    told = planned(worker, "orders", all=True)
    plan = told["plan"]
    assert told["state"] == "awaiting_approval"
    assert (plan["rows"], plan["people"], plan["already_sent"], plan["to_send"]) == (36, 11, 19, 7)
    assert (plan["young_to_send"], plan["held"], plan["cannot_be_sent"]) == (5, {"before_start": 9}, 1)
    assert (plan["batches"], plan["requests"]) == (1, 1)
    assert (plan["people_not_in_customers"], plan["people_afterwards"]) == (1, 11)
    held = planned(worker, "orders", all=True, held=True)["plan"]
    assert (held["to_send"], held["young_to_send"], held["held"]) == (16, 5, {})


def test_of_many_events_the_young_are_counted_exactly_and_the_old_are_estimated(shop, worker):
    shop.run("orders", FIRST_PASS="all")
    add_orders(shop.sql, range(30_000))
    assert shop.run("orders").accepted == 30_000
    add_orders(shop.sql, range(30_000, 51_000))
    add_young_orders(shop.sql, range(60_000, 60_003))
    plan = planned(worker, "orders", all=True)["plan"]
    assert (plan["rows"], plan["young_to_send"]) == (51_003, 3)
    assert "to_send" in plan["estimated"]
    assert "young_to_send" not in plan["estimated"]
    assert abs(plan["already_sent"] - 30_000) < 500
    assert abs(plan["to_send"] - 21_003) < 500
    assert plan["batches"] > 1


def test_the_numbers_of_a_plan_of_people_are_exact(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker)
    shop.sql.execute("UPDATE shop.customers SET email = NULL WHERE customer_id < 2")
    shop.sql.execute("UPDATE shop.customers SET email = '' WHERE customer_id = 2")
    add_customers(shop.sql, range(20, 25))
    told = planned(worker, "customers", all=True)
    plan = told["plan"]
    assert (plan["rows"], plan["people"], plan["to_send"]) == (15, 15, 15)
    assert (plan["without_email_and_phone"], plan["people_afterwards"]) == (3, 15)
    assert "segments" in plan["attributes"]
    assert told["state"] == "running"  # fifteen people, no events: it starts at once


def test_who_has_a_phone_can_be_reached(shop, worker):
    shop.sql.execute("DROP VIEW retention.customers")
    shop.sql.execute(
        "CREATE VIEW retention.customers AS SELECT customer_id, email, tier AS phone, row_version FROM shop.customers"
    )
    add_customers(shop.sql, range(4))
    shop.sql.execute("UPDATE shop.customers SET email = NULL WHERE customer_id < 3")
    shop.sql.execute("UPDATE shop.customers SET tier = NULL WHERE customer_id = 2")
    shop.run("customers", FIRST_PASS="all")
    assert planned(worker, "customers", all=True)["plan"]["without_email_and_phone"] == 1


def test_a_plan_counts_what_was_removed_as_held_and_sends_none_of_it(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(20), customers=10)
    shop.sql.execute(
        "CREATE TABLE shop.removals (removal_id int NOT NULL PRIMARY KEY, customer_id int, action nvarchar(20),"
        " removed_at datetime2(0) DEFAULT SYSUTCDATETIME(), row_version rowversion)"
    )
    shop.sql.execute(
        "CREATE VIEW retention.removals AS SELECT removal_id, customer_id, action, removed_at, row_version FROM shop.removals"
    )
    go_live(worker, syncs=["removals", "customers", "orders"])
    shop.sql.execute("INSERT INTO shop.removals (removal_id, customer_id, action) VALUES (1, 3, 'delete')")
    shop.run("removals")
    assert "3" not in shop.workspace.people()
    told = resynced(worker, "customers", all=True)
    assert "3" not in shop.workspace.people()
    assert told["progress"]["accepted"] == 9
    assert told["progress"]["held"] == {"removed": 1}


@pytest.mark.parametrize("key", [True, False])
def test_a_plan_names_the_running_campaigns_that_its_events_start(shop, worker, monkeypatch, key):
    segment = shop.workspace.add_segment("Gold", {"attr": "tier", "op": "eq", "value": "gold"})
    shop.workspace.add_campaign("Thanks", event_name="Order Placed")
    shop.workspace.add_campaign("Draft", event_name="Order Placed", state="draft")
    shop.workspace.add_campaign("Other", event_name="Refund Issued")
    shop.workspace.add_campaign("Golden", trigger_segment_ids=[segment])
    shop.workspace.add_campaign("Stopped gold", trigger_segment_ids=[segment], state="stopped")
    add_customers(shop.sql, range(10))
    go_live(worker)
    if not key:
        monkeypatch.delenv("CUSTOMERIO_APP_API_KEY")
    add_young_orders(shop.sql, range(3))
    told = json.dumps(planned(worker, "orders", all=True)["plan"])
    assert ("Thanks" in told, "Golden" in told) == (key, key)
    assert not any(name in told for name in ("Draft", "Other", "Stopped"))
    if not key:
        assert "CUSTOMERIO_APP_API_KEY" in told  # so nobody takes silence for "none"


# --- approval ---------------------------------------------------------------------------------------------------------


def test_a_plan_waits_exactly_when_it_could_reach_people(shop, worker, monkeypatch):
    monkeypatch.setenv("APPROVAL_PEOPLE", "10")
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(30), customers=10)
    go_live(worker)
    add_young_orders(shop.sql, range(100, 103), age=72 * 3600 + 120)
    assert planned(worker, "orders", all=True)["state"] == "running"
    worker.work()
    assert planned(worker, "customers", all=True)["state"] == "running"
    worker.work()
    add_young_orders(shop.sql, range(200, 201), age=72 * 3600 - 600)
    assert planned(worker, "orders", all=True)["state"] == "awaiting_approval"
    shop.run("orders")
    assert planned(worker, "orders", all=True)["state"] != "awaiting_approval"  # a pass has sent it: none is left
    worker.work()
    add_customers(shop.sql, range(50, 51))
    assert planned(worker, "customers", all=True)["state"] == "awaiting_approval"


def test_a_plan_expires_after_an_hour(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker)
    add_young_orders(shop.sql, range(5))
    told = planned(worker, "orders", all=True)
    name = f"runs/{told['run']}/run.json"
    record = json.loads(shop.read(name))
    made = datetime.fromisoformat(record["created"])
    assert timedelta(minutes=59) < datetime.fromisoformat(record["expires"]) - made < timedelta(minutes=62)
    record["expires"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat(timespec="milliseconds")
    shop.container.upload_blob(name, json.dumps(record), overwrite=True)
    assert call("run", run=told["run"])[1]["state"] == "expired"
    status, answer = call("decide", run=told["run"], decision="approve")
    assert (status, "expired" in answer["error"]) == (409, True), answer
    worker.work()
    assert ids(shop) == []
    assert call("run", run=told["run"])[1]["state"] == "expired"


def test_a_run_that_is_approved_twice_is_delivered_once(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker)
    add_young_orders(shop.sql, range(250))
    told = planned(worker, "orders", all=True)
    assert call("decide", run=told["run"], decision="approve")[0] == 200
    waiting = len(worker.messages())
    assert call("decide", run=told["run"], decision="approve")[0] in (200, 409)
    assert waiting >= 1
    worker.work()
    assert call("decide", run=told["run"], decision="approve")[0] in (200, 409)
    worker.work()
    told = call("run", run=told["run"])[1]
    assert (told["state"], told["progress"]["accepted"]) == ("done", 500)  # an identify each
    stats = shop.workspace.stats()
    assert (stats["events_stored"], stats["duplicate_events_dropped"]) == (250, 0)


def test_what_is_canceled_is_not_approved_and_what_is_done_not_canceled(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker)
    add_young_orders(shop.sql, range(5))
    told = planned(worker, "orders", all=True)
    status, answer = call("decide", run=told["run"], decision="cancel")
    assert (status, answer["state"]) == (200, "canceled")
    assert call("decide", run=told["run"], decision="approve")[0] == 409
    worker.work()
    assert ids(shop) == []
    done = resynced(worker, "orders", all=True)
    assert call("decide", run=done["run"], decision="cancel")[0] == 409
    assert call("decide", run=done["run"], decision="approve")[0] in (200, 409)
    assert call("run", run=done["run"])[1]["state"] == "done"
    assert ids(shop) == [*range(5)]


def test_a_run_is_canceled_before_its_plan_is_made(shop, worker):
    shop.run("orders", FIRST_PASS="all")
    add_young_orders(shop.sql, range(5))
    _, answer = call("resync", {"all": True}, sync="orders")
    assert call("decide", run=answer["run"], decision="approve")[0] == 409
    assert call("decide", run=answer["run"], decision="cancel")[1]["state"] == "canceled"
    worker.work()
    assert call("run", run=answer["run"])[1]["state"] == "canceled"
    assert ids(shop) == []


@pytest.mark.shows_people
def test_a_dry_run_shows_its_operations_to_the_caller_and_sends_nothing(shop, worker, caplog):
    caplog.set_level("DEBUG")
    shop.run("customers", FIRST_PASS="all")
    shop.run("orders", FIRST_PASS="all")
    add_customers(shop.sql, range(30))
    add_young_orders(shop.sql, range(30), customers=30)
    for sync, kind in (("customers", "identify"), ("orders", "event")):
        before = operations_so_far(shop)
        status, answer = call("resync", {"all": True, "dry_run": True}, sync=sync)
        assert (status, len(answer["operations"])) == (202, 20)
        assert kind in {operation["action"] for operation in answer["operations"]}
        assert "@example.com" in json.dumps(answer["operations"])
        worker.work()
        told = call("run", run=answer["run"])[1]
        assert told["plan"]["to_send"] == 30
        assert "operations" not in told
        assert call("decide", run=answer["run"], decision="approve")[0] == 409
        worker.work()
        assert sent_since(shop, before) == 0
    assert not any(b"@example.com" in shop.read(name) for name in shop.blobs(""))
    assert "@example.com" not in caplog.text
    assert shop.workspace.people() == {}


@pytest.mark.shows_people
def test_a_dry_run_shows_what_is_then_sent(shop, worker):
    add_customers(shop.sql, range(3))
    shop.run("customers", FIRST_PASS="all")
    shop.run("orders", FIRST_PASS="all")
    add_young_orders(shop.sql, range(3), customers=3)
    _, answer = call("resync", {"customer_ids": [1], "dry_run": True}, sync="orders")
    [event] = [one for one in answer["operations"] if one["action"] == "event"]
    resynced(worker, "orders", customer_ids=[1])
    [sent] = shop.workspace.events()
    assert (event["id"], event["timestamp"], event["name"]) == (sent["ulid"], sent["timestamp"], sent["name"])
    assert event["attributes"].keys() == sent["attributes"].keys()


# --- what is sent -----------------------------------------------------------------------------------------------------


def test_an_event_of_the_ledger_is_never_sent_again(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(120), customers=10)
    go_live(worker)
    before = operations_so_far(shop)
    told = resynced(worker, "orders", all=True)
    assert (told["progress"]["already_sent"], told["progress"]["operations"]) == (120, 0)
    shop.sql.execute("UPDATE shop.orders SET total = 5")
    resynced(worker, "orders", customer_ids=[1, 2])
    assert sent_since(shop, before) == 0


def test_exactly_the_meant_rows_are_sent(shop, worker):
    shop.run("customers", FIRST_PASS="all")
    shop.run("orders", FIRST_PASS="all")
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(28), customers=10)
    told = resynced(worker, "orders", customer_ids=[3, 5, 999])
    assert ids(shop) == [3, 5, 13, 15, 23, 25]
    assert (told["plan"]["rows"], told["plan"]["people"]) == (6, 2)
    resynced(worker, "customers", customer_ids=[4])
    assert shop.workspace.people()["4"] == {"email": "c4@example.com", "tier": "gold"}
    resynced(worker, "orders", since="2026-01-08T12:00:00Z", until="2026-01-10T12:00:00Z")  # days 8 and 9
    assert ids(shop) == [3, 5, 7, 8, 13, 15, 23, 25]
    resynced(worker, "orders", until="2026-01-01T13:00:00+01:00")
    assert 0 not in ids(shop)
    resynced(worker, "orders", until="2026-01-01T13:00:01+01:00")
    assert 0 in ids(shop)
    resynced(worker, "orders", since="2026-01-28T12:00:00Z")
    assert 27 in ids(shop)
    assert len(ids(shop)) == 10
    resynced(worker, "orders", all=True)
    assert ids(shop) == [*range(28)]
    for sync in ("customers", "orders"):
        assert shop.run(sync).outcome == "ok"
    assert ids(shop) == [*range(28)]


def test_a_sample_is_of_so_many_people_with_all_that_is_theirs(shop, worker):
    shop.run("customers", FIRST_PASS="all")
    shop.run("orders", FIRST_PASS="all")
    add_customers(shop.sql, range(50))
    add_orders(shop.sql, range(100), customers=50)
    told = resynced(worker, "customers", sample=7)
    assert told["plan"]["people"] == 7
    assert len(shop.workspace.people()) == 7
    told = resynced(worker, "orders", sample=4)
    assert (told["plan"]["people"], told["plan"]["rows"]) == (4, 8)
    assert len(ids(shop)) == 8


def test_held_events_go_only_when_they_are_asked_for(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker, since="2026-01-10T00:00:00Z")
    add_orders(shop.sql, range(28), customers=10)
    told = resynced(worker, "orders", all=True)
    assert told["progress"]["held"] == {"before_start": 9}
    assert len(ids(shop)) == 19
    told = planned(worker, "orders", all=True, held=True)
    assert told["state"] == "awaiting_approval"
    call("decide", run=told["run"], decision="approve")
    worker.work()
    assert ids(shop) == [*range(28)]


def test_only_going_live_marks_the_past_as_backfill(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(5), customers=10)
    add_young_orders(shop.sql, range(10, 12))
    go_live(worker)
    assert all(event["attributes"]["backfill"] is True for event in shop.workspace.events())
    add_young_orders(shop.sql, range(20, 22), age=5)
    resynced(worker, "orders", all=True)
    marks = {event["attributes"]["event_id"]: event["attributes"].get("backfill") for event in shop.workspace.events()}
    assert len(marks) == 9
    assert marks[20] is None


# --- much at once -----------------------------------------------------------------------------------------------------


def test_a_resync_of_everything_twice_on_top_of_passes_with_faults_on_doubles_no_event(shop, worker):
    add_customers(shop.sql, range(100))
    add_orders(shop.sql, range(500))
    go_live(worker)
    workspace = shop.workspace
    workspace.add_fault(share=0.15, status=503, seed=1)
    workspace.add_fault(share=0.15, reset="after", seed=2)
    stop = threading.Event()
    outcomes: set[str] = set()

    def passes() -> None:
        while not stop.is_set():
            for sync in ("customers", "orders"):
                with suppress(TidemarkError):
                    outcomes.add(shop.run(sync).outcome)

    timers = threading.Thread(target=passes)
    timers.start()
    try:
        asked = []
        for first in (1000, 1300):
            add_young_orders(shop.sql, range(first, first + 300), customers=100)
            status, answer = call("resync", {"all": True}, sync="orders")
            assert status == 202
            asked.append(answer["run"])
            while worker.one("plans", "make_plan"):
                pass
            call("decide", run=answer["run"], decision="approve")
            while worker.messages():
                with suppress(TidemarkError):
                    worker.work()
    finally:
        stop.set()
        timers.join()
    workspace.clear_faults()
    worker.work()
    for sync in ("customers", "orders"):
        shop.break_lease(sync)
        assert shop.run(sync).outcome == "ok"
    assert ids(shop) == [*range(500), *range(1000, 1600)]
    assert workspace.stats()["duplicate_events_stored"] == 0
    assert "ok" in outcomes
