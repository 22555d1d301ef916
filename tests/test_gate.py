"""The gate, the flood and the order among syncs: what is not sent, and why."""

import json
from datetime import datetime, timedelta

import azure.functions as func
import pytest

import function_app
from shared import passes
from shared.errors import CredentialFault, ViewFault
from shared.flood import Flood
from shared.gate import Gate
from shared.syncs import Kind, Sync
from tests.conftest import Deployment
from tests.test_passes import add_orders, event_ids, make_tables


@pytest.mark.parametrize(
    ("start", "max_age", "event_time", "held"),
    [
        (None, None, 0, None),
        (1000, None, 999, "before_start"),
        (1000, None, 1000, None),
        (None, 60, 940, None),
        (None, 60, 939, "too_old"),
        (1000, 60, 939, "before_start"),
    ],
)
def test_the_gate_holds_what_is_before_the_start_or_too_old(start, max_age, event_time, held):
    assert Gate(start, max_age).holds(event_time, now=1000) == held


def test_an_event_of_before_the_start_is_held_when_its_row_is_edited_later_and_is_not_ledgered(deployment):
    make_tables(deployment.sql)
    assert deployment.run("orders").outcome == "ok"
    mark = json.loads(deployment.read("syncs/orders/mark.json"))
    mark["start"] = 1767744000  # 2026-01-07: as an approved going live would write it
    deployment.container.upload_blob("syncs/orders/mark.json", json.dumps(mark), overwrite=True)
    add_orders(deployment.sql, range(1, 11))  # one a day from 2026-01-02 on
    run = deployment.run("orders")
    assert (run.operations, run.held) == (5, {"before_start": 5})
    deployment.sql.execute("UPDATE shop.orders SET total = 1 WHERE order_id < 3")
    run = deployment.run("orders")
    assert (run.operations, run.held, run.already_sent) == (0, {"before_start": 2}, 0)
    assert sorted(event_ids(deployment)) == [6, 7, 8, 9, 10]


def test_only_the_past_of_a_first_pass_is_backfill(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(2))
    deployment.run("orders")
    add_orders(deployment.sql, range(2, 4))
    deployment.run("orders")
    assert [event["attributes"].get("backfill") for event in deployment.workspace.events()] == [True, True, None, None]


def test_a_flood_stops_the_sync_before_it_is_buried_and_a_release_lets_it_pass(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(1000))
    deployment.sql.execute("UPDATE shop.orders SET paid_at = NULL WHERE order_id % 4 = 0")
    for _ in range(2):
        with pytest.raises(ViewFault, match=r"which is event_time: NULL\. .*POST /api/syncs/orders/release"):
            deployment.run("orders")
    assert deployment.dead_letters("orders") == []
    assert deployment.workspace.stats()["operations"] == 0
    passes.release(deployment.syncs["orders"], "event_time: NULL", deployment.settings())
    run = deployment.run("orders")
    assert (run.outcome, run.accepted, run.dead_letters) == ("ok", 750, 250)


def test_a_flood_ends_by_itself_when_the_view_is_mended(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(3000))
    deployment.sql.execute("UPDATE shop.orders SET paid_at = NULL WHERE order_id >= 2000")
    with pytest.raises(ViewFault, match="event_time: NULL"):
        deployment.run("orders")
    assert (
        len(event_ids(deployment)) == 1999
    )  # the last row of a full page waits for the next, which may share its cursor
    deployment.sql.execute("UPDATE shop.orders SET paid_at = '2026-01-05' WHERE order_id >= 2000")
    run = deployment.run("orders")
    assert (run.operations, run.dead_letters) == (1001, 0)


def test_a_flood_of_future_times_names_the_zone(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(100))
    deployment.sql.execute("UPDATE shop.orders SET paid_at = DATEADD(minute, 118, SYSUTCDATETIME())")
    with pytest.raises(ViewFault, match=r"SQL_TIME_ZONE \(UTC\)"):
        deployment.run("orders")


def test_a_page_that_is_rejected_as_a_whole_is_a_flood_too(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(100))
    deployment.workspace.add_fault(reject_share=1.0, seed=1)
    with pytest.raises(ViewFault, match=r"Customer\.io: invalid"):
        deployment.run("orders")
    assert deployment.dead_letters("orders") == []
    deployment.workspace.clear_faults()
    assert deployment.run("orders").operations == 100


def test_a_few_bad_rows_are_no_flood_nor_are_many_reasons():
    flood = Flood(())
    assert flood.add(1000, [("a", "x")] * 49) is None
    assert flood.add(1000, [("a", "x")] * 49 + [("b", "x")] * 49) is None
    assert flood.add(1000, [("a", "x")] * 199) is None
    assert flood.add(1000, [("a", "x")] * 200) == "a: x"
    assert Flood(["a: x"]).add(1000, [("a", "x")] * 900) is None


def make_carts(deployment: Deployment) -> None:
    """A reminder is of no use after two hours, and of harm after an order that Customer.io does not know of yet."""
    deployment.syncs["carts"] = Sync("carts", Kind.EVENT, max_age=2 * 3600, after="orders")
    sql = deployment.sql
    sql.execute(
        "CREATE TABLE shop.carts (cart_id int NOT NULL PRIMARY KEY, customer_id int, last_activity datetime2(7))"
    )
    sql.execute(
        "CREATE VIEW retention.carts AS SELECT customer_id, 'Cart Abandoned' AS event_name,"
        " DATEADD(minute, 60, last_activity) AS event_time, CONCAT('cart-', cart_id) AS event_id,"
        " DATEADD(minute, 60, last_activity) AS updated_at FROM shop.carts"
        " WHERE DATEADD(minute, 60, last_activity) <= SYSUTCDATETIME()"
    )


def abandon(deployment: Deployment, number: int, minutes_ago: int) -> None:
    deployment.sql.execute(
        "INSERT INTO shop.carts (cart_id, customer_id, last_activity)"
        f" VALUES ({number}, 1, DATEADD(minute, -{minutes_ago + 60}, SYSUTCDATETIME()))"
    )


def abandoned(deployment: Deployment) -> list[str]:
    return [e["attributes"]["event_id"] for e in deployment.workspace.events() if e["name"] == "Cart Abandoned"]


@pytest.mark.parametrize("strategy", ["row_version", "updated_at"])
def test_carts_go_no_further_than_orders_have_come(deployment, strategy):
    make_tables(deployment.sql, strategy)
    make_carts(deployment)
    abandon(deployment, 1, 1)
    abandon(deployment, 2, -1)  # in a minute
    abandon(deployment, 3, 122)
    waiting = deployment.run("carts")
    assert (waiting.outcome, waiting.rows) == ("waiting", 0)  # orders is not even live
    assert "orders" in waiting.message
    add_orders(deployment.sql, range(3))
    deployment.run("orders")
    run = deployment.run("carts")
    assert (run.outcome, run.operations, run.held) == ("ok", 1, {"too_old": 1})
    abandon(deployment, 4, 0)  # after orders were read
    assert deployment.run("carts").operations == 0
    deployment.workspace.add_fault(status=401)
    add_orders(deployment.sql, range(3, 5))
    with pytest.raises(CredentialFault):
        deployment.run("orders")
    assert deployment.run("carts").operations == 0
    assert abandoned(deployment) == ["cart-1"]
    deployment.run("orders")
    assert deployment.run("carts").operations == 1
    assert deployment.run("carts").operations == 0
    assert abandoned(deployment) == ["cart-1", "cart-4"]


def test_carts_say_that_orders_are_behind(deployment):
    make_tables(deployment.sql)
    make_carts(deployment)
    deployment.run("orders")
    assert deployment.run("carts").outcome == "ok"
    mark = json.loads(deployment.read("syncs/orders/mark.json"))
    at = datetime.fromisoformat(mark["seen"]["at"]) - timedelta(minutes=241)
    mark["seen"]["at"] = at.isoformat()
    deployment.container.upload_blob("syncs/orders/mark.json", json.dumps(mark), overwrite=True)
    run = deployment.run("carts")
    assert run.outcome == "waiting"
    assert "orders has not been read to its end for 241 minutes" in run.message


@pytest.mark.parametrize(
    ("sync", "body", "status", "said"),
    [
        ("orders", b"{", 422, "body"),
        ("orders", b"{}", 422, "reason"),
        ("orders", b'{"reason": 5}', 422, "reason"),
        ("orders", b'{"reason": "x", "force": true}', 422, "force"),
        ("nothing", b'{"reason": "x"}', 404, "orders"),
        ("orders", b'{"reason": "x"}', 409, "not live"),
    ],
)
def test_a_release_that_is_asked_for_wrongly_says_what_is_wrong(deployment, monkeypatch, sync, body, status, said):
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    request = func.HttpRequest("POST", "/api/syncs/x/release", body=body, route_params={"sync": sync})
    answer = function_app.release.build().get_user_function()(request)
    assert answer.status_code == status
    assert said in json.loads(answer.get_body())["error"]


def test_a_release_over_http_is_kept_in_the_mark(deployment, monkeypatch):
    make_tables(deployment.sql)
    deployment.run("orders")
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    body = json.dumps({"reason": "event_time: NULL"}).encode()
    request = func.HttpRequest("POST", "/api/syncs/orders/release", body=body, route_params={"sync": "orders"})
    answer = function_app.release.build().get_user_function()(request)
    assert (answer.status_code, json.loads(answer.get_body())) == (
        200,
        {"sync": "orders", "released": "event_time: NULL"},
    )
    assert json.loads(deployment.read("syncs/orders/mark.json"))["released"] == ["event_time: NULL"]
