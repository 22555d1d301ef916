"""Going live: one bound for all, timers that are switched on in the middle, and no gap."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from azure.storage.blob import BlobLeaseClient

from shared.errors import StateFault
from tests.conftest import Deployment
from tests.test_passes import add_customers, add_orders
from tests.test_resync import Worker, add_young_orders, call, call_queue, go_live, ids, resynced, shop, worker
from tests.test_slices import break_leases, queue, take

__all__ = ["shop", "worker"]


def asked(worker: Worker, *syncs: str, **body: Any) -> dict[str, Any]:
    """A go-live whose plan is made."""
    status, answer = call("go_live", {"syncs": [*(syncs or ("customers", "orders"))], **body})
    assert status == 202, answer
    while worker.one("plans", "make_plan"):
        pass
    return call("run", run=answer["run"])[1]


def approve(run: dict[str, Any]) -> None:
    status, answer = call("decide", run=run["run"], decision="approve")
    assert status == 200, answer


def state(run: dict[str, Any]) -> str:
    return str(call("run", run=run["run"])[1]["state"])


def add_removals(shop: Deployment) -> None:
    shop.sql.execute(
        "CREATE TABLE shop.removals (removal_id int NOT NULL PRIMARY KEY, customer_id int, action nvarchar(20),"
        " removed_at datetime2(0) DEFAULT SYSUTCDATETIME(), row_version rowversion)"
    )
    shop.sql.execute(
        "CREATE VIEW retention.removals AS SELECT removal_id, customer_id, action, removed_at, row_version FROM shop.removals"
    )


def add_merges(shop: Deployment) -> None:
    shop.sql.execute(
        "CREATE TABLE shop.merges (merge_id int NOT NULL PRIMARY KEY, primary_customer_id int, secondary_customer_id int,"
        " merged_at datetime2(0) DEFAULT SYSUTCDATETIME(), row_version rowversion)"
    )
    shop.sql.execute(
        "CREATE VIEW retention.merges AS SELECT merge_id, primary_customer_id, secondary_customer_id, merged_at,"
        " row_version FROM shop.merges"
    )


def add_carts(shop: Deployment) -> None:
    shop.sql.execute(
        "CREATE TABLE shop.carts (cart_id int NOT NULL PRIMARY KEY, customer_id int, at datetime2(0), row_version rowversion)"
    )
    shop.sql.execute(
        "CREATE VIEW retention.carts AS SELECT customer_id, 'Cart Updated' AS event_name, at AS event_time,"
        " cart_id AS event_id, row_version FROM shop.carts"
    )


def add_cart(shop: Deployment, number: int, *, age: int) -> None:
    at = (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%d %H:%M:%S")
    shop.sql.execute("INSERT INTO shop.carts (cart_id, customer_id, at) VALUES (?, ?, ?)", number, number % 10, at)


def test_going_live_always_waits_for_approval_and_shows_every_sync(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(5), customers=10)
    add_young_orders(shop.sql, range(10, 13))
    run = asked(worker)
    assert run["state"] == "awaiting_approval"
    by_sync = {one["sync"]: one for one in run["plan"]["syncs"]}
    assert (by_sync["customers"]["rows"], by_sync["customers"]["to_send"]) == (10, 10)
    orders = by_sync["orders"]
    assert (orders["rows"], orders["to_send"], orders["young_to_send"], orders["held"]) == (8, 8, 3, {})
    assert (run["plan"]["rows"], run["plan"]["people"]) == (18, 10)
    assert shop.workspace.stats()["operations"] == 0
    for sync in ("customers", "orders"):
        assert shop.run(sync).outcome == "not_live"


def test_by_default_every_sync_with_a_view_goes_live_and_the_others_are_named(shop, worker):
    add_customers(shop.sql, range(10))
    status, answer = call("go_live", {})
    assert status == 202
    worker.work()
    plan = call("run", run=answer["run"])[1]["plan"]
    assert {one["sync"] for one in plan["syncs"]} == {"customers", "orders"}
    assert "refunds" in json.dumps(plan["left_out"])


def test_a_sync_that_was_named_and_has_no_view_is_told(shop, worker):
    add_customers(shop.sql, range(10))
    run = asked(worker, "customers", "refunds")
    assert "refunds" in json.dumps(run)
    if run["state"] == "awaiting_approval":
        assert [one["sync"] for one in run["plan"]["syncs"]] == ["customers"]
    status, answer = call("go_live", {"syncs": ["nothing"]})
    assert (status, "orders" in answer["error"]) == (404, True)


def test_the_marks_are_written_at_once_by_the_approval(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(5), customers=10)
    run = asked(worker)
    add_customers(shop.sql, range(10, 13))
    add_young_orders(shop.sql, range(10, 13))
    approve(run)
    assert shop.workspace.stats()["operations"] == 0
    ran = shop.run("orders")  # a timer before the first slice: what came after the bound, and nothing before
    assert (ran.outcome, ran.accepted) == ("ok", 6)  # with an identify each, since they are young
    assert shop.run("customers").accepted == 3
    worker.work()
    assert ids(shop) == [*range(5), 10, 11, 12]
    assert len(shop.workspace.people()) == 13
    assert shop.workspace.stats()["duplicate_events_dropped"] == 0


def test_timers_are_switched_on_at_any_moment_and_nothing_is_lost_or_doubled(shop, worker):
    add_customers(shop.sql, range(250))
    add_orders(shop.sql, range(350), customers=250)
    serial = iter(range(10_000))

    def life() -> None:
        """Something changes, and the timers tick: between any two messages."""
        number = next(serial)
        add_customers(shop.sql, range(1000 + number, 1001 + number))
        shop.sql.execute("UPDATE shop.customers SET tier = ? WHERE customer_id = ?", f"t{number}", (number * 37) % 250)
        add_young_orders(shop.sql, range(2000 + number, 2001 + number), age=60)
        add_orders(shop.sql, range(3000 + number, 3001 + number))  # one that comes late
        shop.sql.execute("UPDATE shop.orders SET total = total + 1 WHERE order_id = ?", (number * 41) % 350)
        for sync in ("customers", "orders"):
            assert shop.run(sync).outcome in ("ok", "not_live")

    life()
    run = asked(worker)
    life()
    approve(run)
    life()
    while worker.one("slices", "deliver_slice"):
        life()
    life()
    assert state(run) == "done"
    count = next(serial)
    assert ids(shop) == [*range(350), *range(2000, 2000 + count), *range(3000, 3000 + count)]
    wanted = {
        str(row.customer_id): row.tier
        for row in shop.sql.execute("SELECT customer_id, tier FROM shop.customers").fetchall()
    }
    assert {person: has["tier"] for person, has in shop.workspace.people().items()} == wanted
    stats = shop.workspace.stats()
    assert (stats["duplicate_events_stored"], stats["duplicate_events_dropped"]) == (0, 0)


def test_what_an_open_transaction_wrote_before_the_bound_is_sent(shop, worker, database):
    import pyodbc

    add_orders(shop.sql, range(5), customers=10)
    other = pyodbc.connect(database, autocommit=False)
    other.execute("INSERT INTO shop.orders (order_id, customer_id, paid_at, total) VALUES (77, 1, '2026-02-01', 1)")
    run = asked(worker, "orders")
    approve(run)
    worker.work()
    other.commit()
    other.close()
    assert shop.run("orders").outcome == "ok"
    assert ids(shop) == [*range(5), 77]


def test_events_before_the_chosen_time_are_held_then_and_later(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(28), customers=10)
    run = asked(worker, since="2026-01-10T13:00:00+01:00")
    [orders] = [one for one in run["plan"]["syncs"] if one["sync"] == "orders"]
    assert (orders["rows"], orders["to_send"]) in ((28, 19), (19, 19))
    approve(run)
    worker.work()
    assert ids(shop) == [*range(9, 28)]
    assert len(shop.workspace.people()) == 10
    shop.sql.execute("UPDATE shop.orders SET total = 3 WHERE order_id = 2")
    assert shop.run("orders").held == {"before_start": 1}
    resynced(worker, "orders", all=True)
    assert ids(shop) == [*range(9, 28)]


def test_a_sync_goes_live_later_in_the_same_way(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(5), customers=10)
    go_live(worker, syncs=["customers"])
    assert shop.run("orders").outcome == "not_live"
    told = go_live(worker, syncs=["orders"])
    assert told["progress"]["accepted"] == 5
    assert shop.run("orders").outcome == "ok"


def test_a_sync_that_is_live_does_not_go_live_again(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(5), customers=10)
    go_live(worker)
    before = shop.workspace.stats()["operations"]
    status, answer = call("go_live", {"syncs": ["customers"]})
    if status == 202:
        worker.work()
        told = call("run", run=answer["run"])[1]
        assert told["state"] not in ("awaiting_approval", "running", "done"), told
        assert "customers" in json.dumps(told)
        assert call("decide", run=answer["run"], decision="approve")[0] == 409
    worker.work()
    assert shop.workspace.stats()["operations"] == before


def test_the_second_of_two_plans_is_refused_when_the_first_was_approved(shop, worker):
    add_customers(shop.sql, range(10))
    first, second = asked(worker), asked(worker)
    approve(first)
    mark = shop.read("syncs/orders/mark.json")
    status, answer = call("decide", run=second["run"], decision="approve")
    assert status == 409, answer
    assert shop.read("syncs/orders/mark.json") == mark
    worker.work()
    assert state(first) == "done"
    assert shop.workspace.stats()["operations"] == 10
    assert state(second) != "running"


def test_a_plan_of_a_sync_that_went_live_meanwhile_is_refused_whole(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(5), customers=10)
    both = asked(worker)
    go_live(worker, syncs=["orders"])
    before = shop.workspace.stats()["operations"]
    status, answer = call("decide", run=both["run"], decision="approve")
    assert (status, "orders" in answer["error"]) == (409, True), answer
    worker.work()
    assert shop.run("customers").outcome == "not_live"
    assert shop.workspace.stats()["operations"] == before


def test_a_canceled_plan_leaves_everything_not_live(shop, worker):
    add_customers(shop.sql, range(10))
    run = asked(worker)
    assert call("decide", run=run["run"], decision="cancel")[1]["state"] == "canceled"
    worker.work()
    assert call("decide", run=run["run"], decision="approve")[0] == 409
    assert shop.run("customers").outcome == "not_live"
    go_live(worker)
    assert len(shop.workspace.people()) == 10


def test_after_a_cancel_in_the_middle_the_operator_can_send_the_rest(shop, worker):
    add_customers(shop.sql, range(250))
    add_orders(shop.sql, range(350), customers=250)
    run = asked(worker)
    approve(run)
    worker.work(most=2)
    status, answer = call("decide", run=run["run"], decision="cancel")
    assert (status, answer["state"]) == (200, "canceled")
    worker.work()
    sent = shop.workspace.stats()["operations"]
    assert sent < 600
    assert shop.run("customers").outcome in ("ok", "not_live")
    for sync in ("customers", "orders"):
        if shop.run(sync).outcome == "not_live":
            go_live(worker, syncs=[sync])
        else:
            resynced(worker, sync, all=True)
    assert ids(shop) == [*range(350)]
    assert len(shop.workspace.people()) == 250
    assert shop.workspace.stats()["duplicate_events_dropped"] == 0


def test_removals_go_first_and_who_was_removed_is_never_sent(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(20), customers=10)
    add_removals(shop)
    shop.sql.execute("INSERT INTO shop.removals (removal_id, customer_id, action) VALUES (1, 3, 'delete')")
    told = go_live(worker, syncs=["orders", "customers", "removals"])
    assert sorted(shop.workspace.people()) == [str(number) for number in range(10) if number != 3]
    assert 3 not in ids(shop)
    assert told["progress"]["held"] == {"removed": 3}


def test_customers_wait_until_the_removals_are_all_recorded(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(20), customers=10)
    add_removals(shop)
    for number in range(250):
        shop.sql.execute(
            "INSERT INTO shop.removals (removal_id, customer_id, action) VALUES (?, ?, 'delete')", number, number % 5
        )
    run = asked(worker, "removals", "customers", "orders")
    approve(run)
    for sync in ("customers", "orders"):
        assert shop.run(sync).outcome != "failed"
    while worker.messages():
        worker.one("slices", "deliver_slice")
        for sync in ("customers", "orders"):
            shop.run(sync)
        assert not {*shop.workspace.people()} & {"0", "1", "2", "3", "4"}
    assert state(run) == "done"
    assert sorted(shop.workspace.people()) == ["5", "6", "7", "8", "9"]


def test_events_wait_until_the_people_are_there(shop, worker):
    add_customers(shop.sql, range(250))
    add_orders(shop.sql, range(150), customers=250)
    run = asked(worker)
    approve(run)
    while worker.messages():
        worker.one("slices", "deliver_slice")
        if len(shop.workspace.people()) < 250:
            assert ids(shop) == []
    assert len(ids(shop)) == 150


def test_carts_wait_for_the_slices_of_orders(shop, worker):
    add_carts(shop)
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(350), customers=10)
    add_cart(shop, 1, age=3 * 3600)
    add_cart(shop, 2, age=600)
    run = asked(worker, "customers", "orders", "carts")
    [plan] = [one for one in run["plan"]["syncs"] if one["sync"] == "carts"]
    assert (plan["to_send"], plan["held"]) == (1, {"too_old": 1})
    approve(run)

    def names() -> list[str]:
        return [event["name"] for event in shop.workspace.events()]

    add_cart(shop, 3, age=60)
    while worker.messages():
        shop.run("carts")
        if names().count("Order Placed") < 350:
            assert "Cart Updated" not in names()
        worker.one("slices", "deliver_slice")
    shop.run("orders")
    assert shop.run("carts").outcome == "ok"
    assert (names().count("Order Placed"), names().count("Cart Updated")) == (350, 2)


def test_carts_do_not_go_live_before_orders(shop, worker):
    add_carts(shop)
    add_customers(shop.sql, range(10))
    add_cart(shop, 1, age=60)
    run = asked(worker, "customers", "carts")
    assert (run["state"], "orders" in run["message"]) == ("failed", True)
    shop.sql.execute("DROP VIEW retention.orders")
    _, answer = call("go_live", {})
    worker.work()
    run = call("run", run=answer["run"])[1]
    assert [one["sync"] for one in run["plan"]["syncs"]] == ["customers"]
    assert "carts goes after orders" in json.dumps(run["plan"]["left_out"])


def test_merges_do_not_fail_where_customers_were_not_read_for_long(shop, worker):
    add_merges(shop)
    add_customers(shop.sql, range(10))
    shop.sql.execute("INSERT INTO shop.merges (merge_id, primary_customer_id, secondary_customer_id) VALUES (1, 9, 5)")
    run = asked(worker, "customers", "merges")
    approve(run)
    mark = json.loads(shop.read("syncs/customers/mark.json"))
    mark["seen"]["at"] = (datetime.now(UTC) - timedelta(minutes=55)).replace(tzinfo=None).isoformat()
    shop.container.upload_blob("syncs/customers/mark.json", json.dumps(mark), overwrite=True)
    worker.work()
    assert state(run) == "done"
    assert "5" not in shop.workspace.people()


def test_merges_wait_for_the_slices_of_customers(shop, worker):
    add_merges(shop)
    add_customers(shop.sql, range(250))
    shop.sql.execute(
        "INSERT INTO shop.merges (merge_id, primary_customer_id, secondary_customer_id) VALUES (1, 249, 5)"
    )
    run = asked(worker, "customers", "merges")
    approve(run)
    while worker.messages():
        shop.run("merges")
        if len(shop.workspace.people()) < 100:
            assert shop.workspace.stats().get("merges", 0) == 0
        worker.one("slices", "deliver_slice")
    assert state(run) == "done"
    assert shop.run("merges").outcome == "ok"
    assert "5" not in shop.workspace.people()
    assert len(shop.workspace.people()) == 249
    assert shop.run("customers").outcome == "ok"
    assert resynced(worker, "customers", all=True)["state"] == "done"
    assert len(shop.workspace.people()) == 249


def test_going_live_by_updated_at_has_no_gap(deployment, monkeypatch):
    from tests.test_passes import make_tables

    make_tables(deployment.sql, "updated_at")
    deployment.environment.update(FIRST_PASS="approved", RESYNC_SLICE_ROWS="100")
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    worker = Worker(deployment)
    add_customers(deployment.sql, range(150))
    add_orders(deployment.sql, range(150), customers=150)
    run = asked(worker)
    add_orders(deployment.sql, range(150, 160), customers=150)
    approve(run)
    while worker.one("slices", "deliver_slice"):
        number = 1000 + len(ids(deployment))
        add_young_orders(deployment.sql, range(number, number + 2))
        deployment.run("customers")
        deployment.run("orders")
    for sync in ("customers", "orders"):
        assert deployment.run(sync).outcome == "ok"
    rows = deployment.sql.execute("SELECT order_id FROM shop.orders").fetchall()
    assert ids(deployment) == sorted(row.order_id for row in rows)
    assert len(deployment.workspace.people()) == 150
    assert deployment.workspace.stats()["duplicate_events_dropped"] == 0


def test_a_plan_that_cannot_be_made_says_why(shop, worker):
    add_customers(shop.sql, range(10))
    shop.sql.execute("DROP VIEW retention.orders")
    shop.sql.execute(
        "CREATE VIEW retention.orders AS SELECT customer_id, 'Order Placed' AS event_name FROM shop.orders"
    )
    run = asked(worker)
    assert "retention.orders" in json.dumps(run)
    assert run["state"] != "planning"
    assert shop.run("customers").outcome == "not_live"


@pytest.mark.parametrize("again", ["approve", "retry"])
@pytest.mark.parametrize("lost", [(), ("orders",), ("customers", "orders"), ("removals", "customers", "orders")])
def test_an_approval_that_died_half_way_is_carried_on(shop, worker, again, lost):
    """As if the process was killed after it had written the run, and some of the marks."""
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(5), customers=10)
    add_removals(shop)
    run = asked(worker, "removals", "customers", "orders")
    approve(run)
    with queue(worker) as client:
        client.clear_messages()
    name = f"runs/{run['run']}/run.json"
    record = json.loads(shop.read(name))
    record["private"].pop("begun", None)
    shop.container.upload_blob(name, json.dumps(record), overwrite=True)
    for sync in lost:
        shop.container.delete_blob(f"syncs/{sync}/mark.json")
    assert call("decide", run=run["run"], decision=again)[0] == 200
    worker.work()
    assert state(run) == "done"
    assert ids(shop) == [*range(5)]
    assert len(shop.workspace.people()) == 10
    for sync in ("removals", "customers", "orders"):
        assert json.loads(shop.read(f"syncs/{sync}/mark.json"))["going_live"] is None


def test_a_second_approval_of_a_run_that_is_far_gone_changes_nothing(shop, worker):
    add_customers(shop.sql, range(250))
    add_orders(shop.sql, range(150), customers=250)
    add_removals(shop)
    run = asked(worker, "removals", "customers", "orders")
    approve(run)
    for _ in range(5):
        worker.one("slices", "deliver_slice")
        approve(run)
    worker.work()
    assert state(run) == "done"
    assert (len(shop.workspace.people()), len(ids(shop))) == (250, 150)


def test_a_pass_that_is_at_work_delays_the_end_of_a_phase_and_no_more(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(5), customers=10)
    run = asked(worker)
    approve(run)
    pass_ = BlobLeaseClient(shop.container.get_blob_client("syncs/customers/mark.json"))
    pass_.acquire(60)
    content = take(worker)
    call_queue("deliver_slice", content)
    assert len(shop.workspace.people()) == 10
    call_queue("give_up_slice", content)  # whatever becomes of the message
    assert ids(shop) == []
    pass_.release()
    call_queue("deliver_slice", content)
    worker.work()
    assert state(run) == "done"
    assert ids(shop) == [*range(5)]


def test_a_cancel_that_a_pass_has_kept_from_its_end_is_repeated(shop, worker):
    add_carts(shop)
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(5), customers=10)
    run = asked(worker, "customers", "orders", "carts")
    approve(run)
    pass_ = BlobLeaseClient(shop.container.get_blob_client("syncs/orders/mark.json"))
    pass_.acquire(60)
    status, answer = call("decide", run=run["run"], decision="cancel")
    assert (status, "once more" in answer["error"]) == (409, True)
    assert state(run) == "canceled"
    pass_.release()
    assert call("decide", run=run["run"], decision="cancel")[0] == 200
    shop.run("orders")
    assert shop.run("carts").outcome == "ok"


def test_a_ledger_that_is_lost_after_going_live_stops_the_sync(shop, worker):
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(50), customers=10)
    go_live(worker)
    for name in shop.blobs("syncs/orders/ledger/"):
        shop.container.delete_blob(name)
    shop.sql.execute("UPDATE shop.orders SET total = 9")
    with pytest.raises(StateFault, match="ledger"):
        shop.run("orders")
    assert call("resync", {"all": True}, sync="orders")[0] == 202
    before = shop.workspace.stats()["operations"]
    worker.work()
    assert shop.workspace.stats()["operations"] == before


def test_a_run_whose_record_was_not_written_is_approved_again(shop, worker):
    """As if the process was killed, and the record restored, after the marks were written."""
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(5), customers=10)
    run = asked(worker)
    before = {name: shop.read(name) for name in shop.blobs("runs/")}
    approve(run)
    with queue(worker) as client:
        client.clear_messages()
    for name in shop.blobs("runs/"):
        if name in before:
            shop.container.upload_blob(name, before[name], overwrite=True)
        else:
            shop.container.delete_blob(name)
    break_leases(shop)
    approve(run)
    worker.work()
    assert state(run) == "done"
    assert ids(shop) == [*range(5)]
    assert len(shop.workspace.people()) == 10
