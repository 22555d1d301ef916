"""A QA sync: some people of all kinds, sent, read back and compared; before going live, and after it."""

import json
import logging
import time
from typing import Any

import azure.functions as func
import httpx
import pytest

import function_app
from tests.conftest import Deployment
from tests.test_golive import add_removals
from tests.test_passes import add_customers, add_orders, bulk
from tests.test_resync import Worker, add_young_orders, call, carried_out, go_live, ids, planned, resynced, shop, worker

__all__ = ["shop", "worker"]

PEOPLE = {"customer_ids": [1, 2, 3]}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs is a difference at once, unless a test has something else in mind."""
    monkeypatch.setenv("QA_WAIT_SECONDS", "0")


def asked(worker: Worker, body: dict[str, Any]) -> dict[str, Any]:
    """The run once its plan is made."""
    status, answer = call("qa", body)
    assert status == 202, answer
    while worker.one("plans", "make_plan"):
        pass
    return call("run", run=answer["run"])[1]


def done(worker: Worker, body: dict[str, Any]) -> dict[str, Any]:
    """The run when all is sent and compared, approved if need be."""
    return carried_out(worker, asked(worker, body))


def report(run: dict[str, Any], **params: str) -> Any:
    function = function_app.report.build().get_user_function()
    answer = function(
        func.HttpRequest("GET", "/api/x", body=b"", params=params, route_params={"run": run["run"]}),
    )
    assert answer.headers["Cache-Control"] == "no-store"
    text = answer.get_body().decode()
    return text if params else json.loads(text)


def found(run: dict[str, Any], kind: str = "differences") -> set[tuple[Any, ...]]:
    return {tuple(one.values()) for one in report(run)[kind]}


def identify(deployment: Deployment, person: str, timestamp: int | None = None, **attributes: Any) -> None:
    """Somebody else than Tidemark writes to Customer.io."""
    workspace = deployment.workspace
    operation = {"type": "person", "identifiers": {"id": person}, "action": "identify", "attributes": attributes}
    if timestamp is not None:
        operation["timestamp"] = timestamp
    answer = httpx.post(
        f"{workspace.url}/api/v2/batch",
        auth=(workspace.site_id, workspace.api_key),
        json={"batch": [operation]},
        trust_env=False,
    )
    assert answer.json() == {}


def track(deployment: Deployment, person: str, name: str, **attributes: Any) -> None:
    """Somebody else than Tidemark sends an event."""
    workspace = deployment.workspace
    operation = {"type": "person", "identifiers": {"id": person}, "action": "event", "name": name}
    answer = httpx.post(
        f"{workspace.url}/api/v2/batch",
        auth=(workspace.site_id, workspace.api_key),
        json={"batch": [{**operation, "attributes": attributes}]},
        trust_env=False,
    )
    assert answer.json() == {}


# --- whom it picks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def lifecycle(shop: Deployment) -> Deployment:
    """1,000 customers: most are new, some repeat, few were refunded, are gold, subscribe or have not bought for long."""
    shop.sql.execute("DROP VIEW retention.customers")
    shop.sql.execute(
        "CREATE TABLE shop.people (customer_id int NOT NULL PRIMARY KEY, email nvarchar(320), orders_count int,"
        " last_order_at datetime2(0), refund_flag bit, vip_tier nvarchar(20), ltv decimal(12, 2), row_version rowversion)"
    )
    rows = [
        (
            number,
            f"p{number}@example.com",
            0 if number % 10 else number // 100,
            None if number % 10 else ("2026-11-20" if number % 20 else "2024-01-01"),
            number % 50 == 0,
            "gold" if number % 100 == 0 else None if number % 3 else "none",
            number * 1.25,
        )
        for number in range(1000)
    ]
    columns = "customer_id, email, orders_count, last_order_at, refund_flag, vip_tier, ltv"
    bulk(shop.sql, f"INSERT INTO shop.people ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    shop.sql.execute(f"CREATE VIEW retention.customers AS SELECT {columns}, row_version FROM shop.people")
    return shop


@pytest.mark.slow
def test_people_of_every_stratum_are_picked_the_same_each_time_and_evenly_spread(lifecycle, worker):
    told = asked(worker, {"size": 60})
    plan = told["plan"]
    strata = {(one["column"], one["value"]): one["people"] for one in plan["strata"]}
    assert plan["people"] == 60
    assert sum(strata.values()) == 60
    assert {"orders_count", "last_order_at", "refund_flag", "vip_tier"} == {column for column, _ in strata}
    assert {value for column, value in strata if column == "orders_count"} == {"up to 0", "up to 1", "up to 10"}
    assert {value for column, value in strata if column == "refund_flag"} == {"true", "false"}
    assert {value for column, value in strata if column == "vip_tier"} == {"gold", "none", "NULL"}
    assert {"earlier", "NULL"} < {value for column, value in strata if column == "last_order_at"}
    assert max(strata.values()) - min(strata.values()) <= 1
    people = json.loads(lifecycle.read(f"runs/{told['run']}/slices.json"))[0]["within"]["people"]
    again = json.loads(lifecycle.read(f"runs/{asked(worker, {'size': 60})['run']}/slices.json"))[0]["within"]["people"]
    assert (again, len(set(people))) == (people, 60)
    assert sum(int(one) >= 500 for one in people) > 15


@pytest.mark.slow
def test_the_columns_of_the_strata_are_the_callers_or_the_settings(lifecycle, worker, monkeypatch):
    told = asked(worker, {"size": 50, "strata": ["LTV"]})
    assert {one["column"] for one in told["plan"]["strata"]} == {"LTV"}
    monkeypatch.setenv("QA_STRATA", "vip_tier,nowhere")
    told = asked(worker, {})
    assert {one["column"] for one in told["plan"]["strata"]} == {"vip_tier"}
    assert told["plan"]["people"] == 100


def test_a_view_without_such_columns_or_with_few_people_gives_whom_it_has(shop, worker):
    add_customers(shop.sql, range(30))
    assert asked(worker, {})["plan"]["people"] == 30


def test_a_column_of_too_many_values_parts_nobody(lifecycle, worker):
    told = asked(worker, {"strata": ["email"]})
    assert told["state"] == "failed"
    assert "email" in told["message"] and "20" in told["message"]


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"size": 49}, "size"),
        ({"size": 201}, "size"),
        ({"size": "100"}, "size"),
        ({"strata": []}, "strata"),
        ({"strata": ["tier", "nowhere"]}, "strata.1"),
        ({"customer_ids": []}, "customer_ids"),
        ({"customer_ids": ["x"]}, "customer_ids.0"),
        ({"customer_ids": [*range(201)]}, "customer_ids"),
        ({"customer_ids": [1], "size": 50}, "customer_ids"),
        ({"include_young": 1}, "include_young"),
        ({"everything": True}, "everything"),
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_a_wrong_request_is_a_422_that_names_the_field(shop, worker, body, named):
    status, answer = call("qa", body)
    assert (status, named in answer["error"]) == (422, True), answer
    assert worker.messages("plans") == []


def test_without_a_key_of_the_app_api_there_is_no_qa_sync(shop, monkeypatch):
    monkeypatch.delenv("CUSTOMERIO_APP_API_KEY")
    status, answer = call("qa", PEOPLE)
    assert (status, "CUSTOMERIO_APP_API_KEY" in answer["error"]) == (409, True)


# --- what it sends ----------------------------------------------------------------------------------------------------


def test_before_going_live_people_and_their_old_events_are_sent_and_nothing_else(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(20), customers=10)
    add_young_orders(shop.sql, range(100, 110))
    told = asked(worker, PEOPLE)
    assert (told["state"], told["plan"]["not_at_customerio"]) == ("awaiting_approval", ["1", "2", "3"])
    customers, orders = told["plan"]["syncs"][:2]
    assert (customers["to_send"], orders["to_send"], orders["young_left_out"]) == (3, 6, 3)
    assert shop.workspace.people() == {}
    told = done(worker, PEOPLE)
    assert sorted(shop.workspace.people()) == ["1", "2", "3"]
    events = list(shop.workspace.events())
    assert sorted(event["attributes"]["event_id"] for event in events) == [1, 2, 3, 11, 12, 13]
    assert {event["attributes"]["backfill"] for event in events} == {True}
    assert told["result"]["compared"] == {"people": 3, "attributes": 6, "events": 6}
    assert (told["result"]["differences"], told["progress"]["held"]) == (0, {"could_fire": 3})


@pytest.mark.slow
def test_after_a_qa_sync_the_timers_still_send_nothing_and_going_live_sends_the_rest_once(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(20), customers=10)
    done(worker, PEOPLE)
    for sync in ("customers", "orders"):
        assert shop.run(sync).outcome == "not_live"
    assert call("resync", {"all": True}, sync="orders")[0] == 409
    go_live(worker)
    assert ids(shop) == list(range(20))
    stats = shop.workspace.stats()
    assert (stats["duplicate_events_dropped"], stats["duplicate_events_stored"]) == (0, 0)
    assert shop.run("orders").outcome == "ok"


@pytest.mark.slow
def test_a_view_may_change_its_types_between_a_qa_sync_and_going_live(shop, worker):
    shop.sql.execute("DROP VIEW retention.customers")
    view = "VIEW retention.customers AS SELECT customer_id, email, {} AS since, row_version FROM shop.customers"
    shop.sql.execute("CREATE " + view.format("'x2026-01-01'"))
    add_customers(shop.sql, range(10))
    done(worker, PEOPLE)
    shop.sql.execute("ALTER " + view.format("CAST('2026-01-01' AS datetime2(0))"))
    told = done(worker, PEOPLE)
    assert told["result"]["differences"] == 0
    assert shop.workspace.people()["1"]["since"] == 1767225600
    go_live(worker)
    assert shop.workspace.people()["9"]["since"] == 1767225600


def test_once_live_it_starts_at_once_where_everybody_is_there_and_sends_no_event_twice(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(20), customers=10)
    go_live(worker)
    told = asked(worker, PEOPLE)
    assert (told["state"], told["plan"]["needs_approval"]) == ("running", [])
    assert told["plan"]["syncs"][1]["already_sent"] == 6
    worker.work()
    told = call("run", run=told["run"])[1]
    assert told["result"]["compared"]["events"] == 6
    assert told["result"]["differences"] == 0
    assert shop.workspace.stats()["events_stored"] == 20


def test_young_events_go_only_when_they_are_asked_for_and_approved(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker)
    add_young_orders(shop.sql, range(100, 110))
    told = done(worker, PEOPLE)
    assert (told["plan"]["needs_approval"], ids(shop)) == ([], [])
    told = asked(worker, {**PEOPLE, "include_young": True})
    assert (told["state"], told["plan"]["young_to_send"]) == ("awaiting_approval", 3)
    worker.work()
    assert ids(shop) == []
    call("decide", run=told["run"], decision="approve")
    worker.work()
    assert ids(shop) == [101, 102, 103]
    assert not any("backfill" in event["attributes"] for event in shop.workspace.events())


def test_an_approval_of_new_people_lets_no_young_event_go(shop, worker):
    add_customers(shop.sql, range(10))
    add_young_orders(shop.sql, range(100, 110))
    told = asked(worker, PEOPLE)
    assert told["state"] == "awaiting_approval"
    done(worker, PEOPLE)
    assert ids(shop) == []


def test_addresses_of_other_ids_fail_it_with_their_list_and_nothing_is_sent(shop, worker):
    add_customers(shop.sql, range(10))
    identify(shop, "stranger", email="C2@example.com")
    identify(shop, "3", email="c3@example.com")
    told = asked(worker, PEOPLE)
    assert told["state"] == "failed"
    assert "2 (stranger has it)" in told["message"]
    assert told["plan"]["address_of_another_id"] == [{"customer_id": "2", "belongs_to": "stranger"}]
    worker.work()
    assert set(shop.workspace.people()) == {"stranger", "3"}
    assert call("decide", run=told["run"], decision="approve")[0] == 409


@pytest.mark.slow
def test_one_such_address_in_a_hundred_is_left_out(shop, worker):
    add_customers(shop.sql, range(100))
    identify(shop, "stranger", email="c2@example.com")
    told = done(worker, {"size": 100})
    assert (told["plan"]["people"], told["result"]["differences"]) == (99, 0)
    people = shop.workspace.people()
    assert ("2" in people, len(people), people["stranger"]) == (False, 100, {"email": "c2@example.com"})


# --- what it finds ----------------------------------------------------------------------------------------------------


@pytest.mark.shows_people
def test_what_was_changed_behind_our_back_is_found_with_its_three_values(shop, worker):
    add_customers(shop.sql, range(10))
    shop.sql.execute("UPDATE shop.customers SET tier = NULL WHERE customer_id = 3")
    go_live(worker)
    later = int(time.time()) + 3600  # newer than what is sent, so it stays
    identify(shop, "1", later, tier="silver")
    identify(shop, "2", later, tier=None)
    identify(shop, "3", later, tier="kept")
    run = done(worker, PEOPLE)
    assert run["result"]["differences"] == 2
    assert found(run) == {
        ("1", "tier", "value", "gold", "gold", "silver"),
        ("2", "tier", "missing", "gold", "gold", None),
    }
    assert found(run, "kept") == {("3", "tier", "kept", None, None, "kept")}
    identify(shop, "1", later + 1, tier="gold")
    told = report(run)
    assert [one["customer_id"] for one in told["differences"]] == ["2"]
    assert told["settled_since"] == [["1", "tier", "value"]]


@pytest.mark.slow
@pytest.mark.shows_people
def test_a_change_of_an_address_that_was_not_taken_is_found(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker)
    shop.sql.execute("UPDATE shop.customers SET email = 'new@example.com' WHERE customer_id = 2")
    run = done(worker, PEOPLE)
    assert found(run) == {("2", "email", "value", "new@example.com", "new@example.com", "c2@example.com")}


@pytest.mark.shows_people
def test_types_are_told_from_values(shop, worker):
    shop.sql.execute("DROP VIEW retention.customers")
    shop.sql.execute(
        "CREATE VIEW retention.customers AS SELECT customer_id, CAST('2026-01-02 03:04:05' AS datetime2(0)) AS bought_at,"
        " CAST(1 AS bit) AS is_vip, CAST(29.90 AS decimal(9, 2)) AS ltv, CAST('007' AS varchar(9)) AS code,"
        " 'Not an address' AS email, CAST(0 AS bit) AS unsubscribed, row_version FROM shop.customers"
    )
    add_customers(shop.sql, range(10))
    go_live(worker)
    run = done(worker, {"customer_ids": [1]})
    assert found(run) == {("1", "email", "not_sent", "Not an address", None, None)}
    later = int(time.time()) + 3600
    identify(shop, "1", later, bought_at="2026-01-02T03:04:05Z", is_vip="Yes", ltv="29,90", code=7, unsubscribed=True)
    run = done(worker, {"customer_ids": [1]})
    assert found(run) - {("1", "email", "not_sent", "Not an address", None, None)} == {
        ("1", "bought_at", "type", "2026-01-02 03:04:05", 1767323045, "2026-01-02T03:04:05Z"),
        ("1", "is_vip", "type", True, True, "Yes"),
        ("1", "ltv", "value", 29.9, 29.9, "29,90"),
        ("1", "code", "type", "007", "007", "7"),
    }
    assert found(run, "kept") == {("1", "unsubscribed", "kept", False, None, "true")}


@pytest.mark.shows_people
def test_nested_values_and_what_is_cleared_are_compared(shop, worker, monkeypatch):
    monkeypatch.setenv("JSON_COLUMNS", "tier")
    monkeypatch.setenv("CLEAR_WHEN_NULL", "tier")
    add_customers(shop.sql, range(10))
    shop.sql.execute("""UPDATE shop.customers SET tier = '{"a": [1, 2.50]}'""")
    shop.sql.execute("UPDATE shop.customers SET tier = NULL WHERE customer_id = 3")
    go_live(worker)
    later = int(time.time()) + 3600
    identify(shop, "2", later, tier={"a": [1]})
    identify(shop, "3", later, tier="left")
    assert [list(one.values()) for one in report(done(worker, PEOPLE))["differences"]] == [
        ["2", "tier", "value", '{"a": [1, 2.50]}', {"a": [1, 2.5]}, '{"a":[1]}'],
        ["3", "tier", "not_cleared", None, None, "left"],
    ]


@pytest.mark.shows_people
def test_rows_that_cannot_be_sent_and_people_without_a_row_are_found(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker)
    shop.sql.execute("""UPDATE shop.customers SET tier = '{"a": 1}' WHERE customer_id = 2""")
    assert found(done(worker, {"customer_ids": [1, 2, 77]})) == {
        ("2", "tier", "set_aside", None, None, None),
        ("77", "", "no_row", None, None, None),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("type_", "row", "asked_for"),
    [
        ("uniqueidentifier", "0e984725-c51c-4bf4-9960-e1c80e27aba0", "0E984725-C51C-4BF4-9960-E1C80E27ABA0"),
        ("nvarchar(20)", "Ab 7", "Ab 7"),
        ("bigint", 7, "007"),
    ],
)
def test_ids_of_every_type_are_found_again(shop, worker, type_, row, asked_for):
    shop.sql.execute("DROP VIEW retention.customers")
    shop.sql.execute(
        f"CREATE TABLE shop.others (customer_id {type_} NOT NULL PRIMARY KEY, email nvarchar(320), row_version rowversion)"
    )
    shop.sql.execute("CREATE VIEW retention.customers AS SELECT customer_id, email, row_version FROM shop.others")
    shop.sql.execute("DROP VIEW retention.orders")
    shop.sql.execute("INSERT INTO shop.others (customer_id, email) VALUES (?, 'o@example.com')", row)
    result = done(worker, {"customer_ids": [asked_for]})["result"]
    assert (result["differences"], result["compared"]["attributes"]) == (0, 1)
    assert list(shop.workspace.people()) == [str(row)]
    assert done(worker, {})["plan"]["people"] == 1


def test_who_was_removed_is_neither_sent_nor_missed(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker)
    add_removals(shop)
    shop.sql.execute("INSERT INTO shop.removals (removal_id, customer_id, action) VALUES (1, 2, 'delete')")
    shop.run("removals", FIRST_PASS="all")
    told = done(worker, PEOPLE)
    assert (told["progress"]["held"], told["result"]["differences"]) == ({"removed": 1}, 0)
    assert "2" not in shop.workspace.people()


@pytest.mark.shows_people
def test_a_column_that_holds_dates_as_text_is_found_before_going_live(shop, worker):
    add_customers(shop.sql, range(30))
    shop.sql.execute("UPDATE shop.customers SET tier = '2026-01-01'")
    run = done(worker, {"customer_ids": [*range(30)]})
    assert run["result"]["kinds"] == {"not_sent": 30}
    assert ("7", "tier", "not_sent", "2026-01-01", None, None) in found(run)


def add_recent_orders(shop: Deployment, numbers: range) -> None:
    """Older than 72 hours, and young enough to be seen in the activity log."""
    add_young_orders(shop.sql, numbers, age=5 * 86_400)


@pytest.mark.shows_people
def test_each_event_is_there_once(shop, worker):
    add_customers(shop.sql, range(10))
    add_recent_orders(shop, range(100, 110))
    go_live(worker)
    track(shop, "2", "Order Placed", event_id=102)
    track(shop, "3", "Other", event_id=103)
    run = done(worker, PEOPLE)
    assert found(run, "events") == {("2", "orders", "Order Placed", "102", "event_twice", 2)}
    workspace = shop.workspace
    operation = {"type": "person", "identifiers": {"id": "3"}, "action": "delete"}
    httpx.post(
        f"{workspace.url}/api/v2/batch",
        auth=(workspace.site_id, workspace.api_key),
        json={"batch": [operation]},
        trust_env=False,
    )
    assert asked(worker, PEOPLE)["plan"]["not_at_customerio"] == ["3"]
    run = done(worker, PEOPLE)
    assert ("3", "orders", "Order Placed", "103", "event_missing", 0) in found(run, "events")


def test_an_event_beyond_the_activity_log_is_not_visible_which_is_no_difference(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(10), customers=10)
    go_live(worker)
    workspace = shop.workspace
    for person in ("1", "2"):
        operation = {"type": "person", "identifiers": {"id": person}, "action": "delete"}
        httpx.post(
            f"{workspace.url}/api/v2/batch",
            auth=(workspace.site_id, workspace.api_key),
            json={"batch": [operation]},
            trust_env=False,
        )
    result = done(worker, PEOPLE)["result"]
    assert (result["differences"], result["events_not_visible"]) == (0, 2)


@pytest.mark.slow
def test_it_waits_until_customer_io_shows_what_it_was_sent(shop, worker, monkeypatch):
    monkeypatch.setenv("QA_WAIT_SECONDS", "60")
    shop.workspace.configure(lag_seconds=4)
    add_customers(shop.sql, range(10))
    add_recent_orders(shop, range(100, 110))
    result = done(worker, PEOPLE)["result"]
    assert (result["differences"], result["compared"]["events"]) == (0, 3)


@pytest.mark.slow
def test_a_comparison_whose_time_is_up_goes_on_with_its_next_message(shop, worker, monkeypatch):
    add_customers(shop.sql, range(10))
    go_live(worker)
    identify(shop, "2", int(time.time()) + 3600, tier="silver")
    monkeypatch.setenv("QA_WAIT_SECONDS", "5")
    monkeypatch.setenv("TIME_BUDGET_SECONDS", "1")
    run = done(worker, PEOPLE)
    tries = json.loads(shop.read(f"runs/{run['run']}/slices/{run['plan']['slices'] - 1}.json"))["tries"]
    assert (run["result"]["differences"], tries > 1) == (1, True)


# --- how it is told ---------------------------------------------------------------------------------------------------


@pytest.mark.shows_people
def test_the_page_shows_the_values_and_escapes_them(shop, worker):
    add_customers(shop.sql, range(10))
    shop.sql.execute("UPDATE shop.customers SET tier = '<b>&\"x' WHERE customer_id = 1")
    go_live(worker)
    identify(shop, "1", int(time.time()) + 3600, tier="<script>alert(1)</script>")
    run = done(worker, PEOPLE)
    page = report(run, format="html")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;&amp;" in page
    assert "<script" not in page and "<b>" not in page
    assert run["run"] in page and "3 people" in page


def test_no_value_of_a_row_is_in_a_blob_or_a_log(shop, worker, caplog):
    caplog.set_level(logging.DEBUG)
    add_customers(shop.sql, range(10))
    shop.sql.execute("UPDATE shop.customers SET tier = 'Zanzibar'")
    add_recent_orders(shop, range(100, 110))
    go_live(worker)
    identify(shop, "1", int(time.time()) + 3600, tier="Timbuktu")
    caplog.clear()
    run = done(worker, PEOPLE)
    assert run["result"]["differences"] == 1
    told = json.dumps(run) + caplog.text + "".join(shop.read(name).decode("latin-1") for name in shop.blobs(""))
    for value in ("Zanzibar", "Timbuktu", "example.com"):
        assert value not in told


def test_a_report_is_of_a_qa_sync_that_has_compared(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker)
    other = resynced(worker, "customers", customer_ids=[1])
    status, answer = call("report", run=other["run"])
    assert (status, "QA" in answer["error"]) == (409, True)
    status, answer = call("report", run=asked(worker, PEOPLE)["run"])
    assert (status, "running" in answer["error"]) == (409, True)
    assert call("report", run="01M8713JR8D4C8BJY00432M2BM")[0] == 404


def test_a_resync_beside_it_is_none_of_its_business(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker)
    first, other = asked(worker, PEOPLE), planned(worker, "customers", all=True)
    worker.work()
    assert [call("run", run=one["run"])[1]["state"] for one in (first, other)] == ["done", "done"]
