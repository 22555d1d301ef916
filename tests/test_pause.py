"""The stop switch: what it stops and when, what resuming shows, and that nothing is lost by it."""

import threading
import time
from typing import Any

import pytest

from tests.conftest import Deployment
from tests.test_passes import add_customers, add_orders, make_tables
from tests.test_resync import Worker, add_young_orders, call, go_live, ids, planned, resynced, shop, worker

__all__ = ["shop", "worker"]


@pytest.fixture
def live(shop: Deployment, worker: Worker) -> Deployment:
    """Customers and orders are live, and nothing waits."""
    add_customers(shop.sql, range(10))
    add_orders(shop.sql, range(20), customers=10)
    go_live(worker)
    return shop


def pause(**body: Any) -> dict[str, Any]:
    status, answer = call("pause", {"reason": "the view is wrong", **body})
    assert status == 200, answer
    return answer


def resume(**body: Any) -> dict[str, Any]:
    status, answer = call("resume", body)
    assert status == 200, answer
    return answer


@pytest.mark.parametrize(
    ("name", "body", "code", "named"),
    [
        ("pause", {}, 422, "reason"),
        ("pause", {"reason": ""}, 422, "reason"),
        ("pause", {"reason": 5}, 422, "reason"),
        ("pause", {"reason": "x", "sync": 5}, 422, "sync"),
        ("pause", {"reason": "x", "sync": "nothing"}, 404, "sync"),
        ("pause", {"reason": "x", "synk": "orders"}, 422, "synk"),
        ("pause", None, 422, "body"),
        ("resume", {"confirm": "yes"}, 422, "confirm"),
        ("resume", {"sync": "nothing"}, 404, "sync"),
        ("resume", {"sure": True}, 422, "sure"),
    ],
)
def test_a_wrong_request_names_the_field_and_pauses_nothing(live, name, body, code, named):
    status, answer = call(name, body)
    assert (status, named in answer["error"]) == (code, True), answer
    assert resume()["paused"] == {}


def test_a_pause_of_all_stops_every_sync_and_a_resume_lets_it_go_on(live):
    told = pause()
    assert "the view is wrong" in str(told)
    add_customers(live.sql, range(10, 20))
    add_young_orders(live.sql, range(100, 105))
    before = live.workspace.stats()["operations"]
    for sync in ("customers", "orders"):
        run = live.run(sync)
        assert (run.outcome, run.operations) == ("paused", 0)
        assert "the view is wrong" in run.message
        assert "resume" in run.message
    assert live.workspace.stats()["operations"] == before
    assert resume(confirm=True)["paused"] == {}
    assert (live.run("customers").accepted, live.run("orders").accepted) == (10, 10)  # a young order is two operations


def test_a_pause_of_one_sync_leaves_the_others_alone(live):
    pause(sync="orders")
    add_customers(live.sql, range(10, 20))
    add_young_orders(live.sql, range(100, 105))
    assert live.run("orders").outcome == "paused"
    assert (live.run("customers").outcome, live.run("customers").operations) == ("ok", 0)
    assert resume(sync="customers", confirm=True)["paused"].keys() == {"orders"}
    assert live.run("orders").outcome == "paused"
    assert resume(sync="orders", confirm=True)["paused"] == {}
    assert live.run("orders").accepted == 10
    assert len(ids(live)) == 25


def test_a_sync_that_is_paused_by_itself_stays_so_when_another_goes_on(live):
    pause()
    pause(sync="orders", reason="another")
    left = resume(sync="orders", confirm=True)["paused"]
    assert left.keys() == {"*"}
    add_young_orders(live.sql, range(100, 105))
    assert live.run("orders").outcome == "paused"
    assert resume(confirm=True)["paused"] == {}


def test_a_pass_that_is_under_way_stops_before_its_next_batch(live):
    add_orders(live.sql, range(1000, 1400), customers=10)
    live.workspace.configure(latency_seconds=0.3)
    runs: list[Any] = []
    timer = threading.Thread(
        target=lambda: runs.append(live.run("orders", PAGE_SIZE=20, CUSTOMERIO_BATCHES_IN_FLIGHT=1))
    )
    timer.start()
    while len(ids(live)) <= 20:
        time.sleep(0.02)
    pause(sync="orders")
    then = len(ids(live))
    timer.join()
    assert runs[0].outcome == "paused"
    after = len(ids(live))
    assert after <= then + 40  # at most what was on its way, and the batch that had asked before
    live.workspace.configure(latency_seconds=0)
    assert live.run("orders").outcome == "paused"
    assert len(ids(live)) == after
    resume(confirm=True)
    assert live.run("orders").outcome == "ok"
    assert ids(live) == [*range(20), *range(1000, 1400)]
    stats = live.workspace.stats()
    assert stats["duplicate_events_stored"] == 0
    assert runs[0].accepted == after - 20


def test_slices_stop_and_go_on_where_they_were(live, worker, monkeypatch):
    add_orders(live.sql, range(1000, 1400), customers=10)
    told = planned(worker, "orders", all=True)
    worker.work(most=1)
    pause()
    then = len(ids(live))
    worker.work(most=50)
    assert len(ids(live)) == then
    told = call("run", run=told["run"])[1]
    assert told["state"] != "done"
    assert "paused" in str(told)
    resume(confirm=True)
    worker.work()
    told = call("run", run=told["run"])[1]
    assert (told["state"], told["progress"]["accepted"], told["progress"]["already_sent"]) == ("done", 400, 20)
    assert ids(live) == [*range(20), *range(1000, 1400)]
    assert live.workspace.stats()["duplicate_events_dropped"] == 0


def test_a_slice_that_is_under_way_stops_and_is_not_given_up(live, worker, monkeypatch):
    monkeypatch.setenv("PAGE_SIZE", "10")
    add_orders(live.sql, range(1000, 1400), customers=10)
    told = planned(worker, "orders", all=True)
    live.workspace.configure(latency_seconds=0.3)
    slices = threading.Thread(target=worker.work)
    slices.start()
    while len(ids(live)) <= 20:
        time.sleep(0.02)
    pause(sync="orders")
    then = len(ids(live))
    slices.join()
    live.workspace.configure(latency_seconds=0)
    assert len(ids(live)) <= then + 50
    assert worker.messages("slices-poison") == []
    resume(confirm=True)
    worker.work()
    told = call("run", run=told["run"])[1]
    assert (told["state"], told["progress"]["accepted"]) == ("done", 400)
    assert live.workspace.stats()["duplicate_events_stored"] == 0


def test_a_run_may_be_asked_for_and_approved_while_all_is_paused_and_sends_nothing(live, worker):
    pause()
    add_young_orders(live.sql, range(100, 105))
    told = planned(worker, "orders", all=True)
    assert told["state"] == "awaiting_approval"
    assert call("decide", run=told["run"], decision="approve")[0] == 200
    worker.work()
    assert len(ids(live)) == 20
    resume(confirm=True)
    worker.work()
    assert call("run", run=told["run"])[1]["state"] == "done"
    assert len(ids(live)) == 25


def test_a_run_that_is_paused_can_be_canceled(live, worker):
    add_orders(live.sql, range(1000, 1400), customers=10)
    told = planned(worker, "orders", all=True)
    pause()
    worker.work()
    assert call("decide", run=told["run"], decision="cancel")[1]["state"] == "canceled"
    resume(confirm=True)
    worker.work()
    assert call("run", run=told["run"])[1]["state"] == "canceled"
    assert len(ids(live)) == 20


def test_resuming_first_shows_what_has_piled_up_and_what_could_still_fire(live):
    pause()
    add_customers(live.sql, range(10, 17))
    add_orders(live.sql, range(500, 504), customers=10)
    add_young_orders(live.sql, range(100, 105))
    for _ in range(2):
        told = resume()
        waiting = {one["sync"]: one for one in told["waiting"]}
        assert (waiting["customers"]["rows"], waiting["orders"]["rows"]) == (7, 9)
        assert waiting["orders"]["could_start_campaigns"] == 5
        assert "*" in told["paused"]
        assert live.run("orders").outcome == "paused"  # nothing goes on yet
    assert [one["sync"] for one in resume(sync="orders")["waiting"]] == ["orders"]
    resume(confirm=True)
    live.run("orders")
    assert len(ids(live)) == 29


def test_by_updated_at_what_has_piled_up_is_shown_too(deployment, monkeypatch):
    make_tables(deployment.sql, "updated_at")
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    deployment.run("orders")
    pause()
    add_young_orders(deployment.sql, range(100, 105))
    [told] = [one for one in resume()["waiting"] if one["sync"] == "orders"]
    assert (told["rows"], told["could_start_campaigns"]) == (5, 5)


def test_what_is_not_paused_can_be_resumed_and_a_new_deployment_paused(shop):
    assert resume(confirm=True) == {"paused": {}, "waiting": []}
    pause()
    assert resume()["paused"].keys() == {"*"}


def test_a_replay_stops_too(live):
    add_orders(live.sql, range(500, 501), customers=10)
    live.sql.execute("UPDATE shop.orders SET customer_id = NULL WHERE order_id = 500")
    live.run("orders")
    live.sql.execute("UPDATE shop.orders SET customer_id = 1 WHERE order_id = 500")
    pause()
    status, answer = call("replay", {}, sync="orders")
    assert (status, "paused" in str(answer)) in ((409, True), (200, True), (503, True)), answer
    assert 500 not in ids(live)
    resume(confirm=True)
    assert call("replay", {}, sync="orders")[0] == 200
    assert 500 in ids(live)


def test_a_damaged_switch_stops_everything_and_says_so(live):
    live.container.upload_blob("pause.json", b"{rubbish", overwrite=True)
    add_young_orders(live.sql, range(100, 105))
    with pytest.raises(Exception, match=r"pause\.json"):
        live.run("orders")
    assert len(ids(live)) == 20
    status, answer = call("resume", {"confirm": True})
    assert (status, "pause.json" in answer["error"]) == (500, True)


def test_going_live_waits_while_all_is_paused(shop, worker):
    add_customers(shop.sql, range(10))
    pause()
    _, answer = call("go_live", {"syncs": ["customers"]})
    worker.work()
    assert call("decide", run=answer["run"], decision="approve")[0] == 200
    worker.work()
    assert shop.workspace.people() == {}
    assert call("run", run=answer["run"])[1]["state"] != "done"
    resume(confirm=True)
    worker.work()
    assert call("run", run=answer["run"])[1]["state"] == "done"
    assert len(shop.workspace.people()) == 10
    assert resynced(worker, "customers", all=True)["progress"]["accepted"] == 10
