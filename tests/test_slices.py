"""Slices: how many at once, killed, doubled, lost, given up, retried, canceled; and passes between them."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from azure.storage.blob import BlobLeaseClient
from azure.storage.queue import QueueClient

from shared.errors import TidemarkError
from tests.conftest import Deployment
from tests.test_passes import add_customers, add_orders, bulk
from tests.test_resync import Worker, call, call_queue, go_live, ids, planned, resynced, shop, worker

__all__ = ["shop", "worker"]

_CHILD = """
import sys
from local import driver
driver.register()
import azure.functions as func
import function_app
function = function_app.deliver_slice.build().get_user_function()
print("ready", flush=True)
function(func.QueueMessage(body=sys.argv[1].encode()))
"""


def queue(worker: Worker, name: str = "slices") -> QueueClient:
    return QueueClient.from_connection_string(worker._connection, f"{worker._container}-{name}")


def take(worker: Worker) -> str:
    """The next message of the slices, gone from the queue: it never comes back by itself."""
    with queue(worker) as client:
        message = next(iter(client.receive_messages(max_messages=1)))
        client.delete_message(message)
        content: str = message.content
        return content


def put(worker: Worker, content: str) -> None:
    """Deliver a message again, as the queue does when nobody has deleted it."""
    with queue(worker) as client:
        client.send_message(content)


def break_leases(deployment: Deployment) -> None:
    """Take every lease from processes that the test has seen dead, instead of waiting for their minute to end."""
    for blob in deployment.container.list_blobs():
        if blob.lease.state == "leased":
            with suppress(Exception):
                BlobLeaseClient(deployment.container.get_blob_client(blob.name)).break_lease(0)


def killed(deployment: Deployment, content: str, *, operations: int) -> None:
    """Deliver a slice in a process of its own, and kill it once Customer.io has so many more operations."""
    before = deployment.workspace.stats()["operations"]
    environment = {**os.environ, **deployment.environment}
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, content], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        while deployment.workspace.stats()["operations"] < before + operations and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    break_leases(deployment)


@pytest.fixture
def approved(shop: Deployment, worker: Worker) -> str:
    """A resync of 450 old orders, none of it delivered: the run. (Young ones carry an identify each, and count twice.)"""
    add_customers(shop.sql, range(10))
    go_live(worker)
    add_orders(shop.sql, range(450), customers=10)
    return str(planned(worker, "orders", all=True)["run"])


def status(run: str) -> dict[str, Any]:
    code, told = call("run", run=run)
    assert code == 200
    return told


def sound(deployment: Deployment, run: str, events: int = 450) -> None:
    """Everything is at Customer.io once, and the run counts it so."""
    told = status(run)
    progress = told["progress"]
    assert (told["state"], progress["percent"]) == ("done", 100)
    assert progress["accepted"] + progress["already_sent"] == progress["rows"] == events
    assert ids(deployment) == [*range(events)]
    assert deployment.workspace.stats()["duplicate_events_stored"] == 0
    assert deployment.dead_letters("orders") == []
    assert deployment.run("orders").operations == 0


@pytest.mark.parametrize("most", [1, 2])
def test_so_many_slices_are_in_flight_as_the_setting_says(shop, worker, monkeypatch, most):
    monkeypatch.setenv("RESYNC_SLICES_IN_FLIGHT", str(most))
    add_customers(shop.sql, range(10))
    go_live(worker)
    add_orders(shop.sql, range(450), customers=10)
    run = planned(worker, "orders", all=True)["run"]
    seen = []
    while messages := worker.messages():
        seen.append(len(messages))
        assert worker.one("slices", "deliver_slice")
    assert max(seen) == most
    assert len(seen) >= 5
    sound(shop, run)


def test_a_run_tells_how_far_it_is(shop, worker, approved):
    told = status(approved)
    assert (told["state"], told["progress"]["percent"]) == ("running", 0)
    worker.work(most=2)
    told = status(approved)["progress"]
    assert told["slices"]["done"] == 2
    assert 0 < told["percent"] < 100
    assert told["requests"] >= 2
    assert told["rows_per_second"] > 0
    assert told["expected_seconds_left"] > 0
    worker.work()
    sound(shop, approved)


@pytest.mark.parametrize("operations", [0, 1, 21, 61, 90])
def test_a_slice_that_is_killed_is_delivered_again_and_counts_once(shop, worker, approved, monkeypatch, operations):
    shop.environment["PAGE_SIZE"] = "20"
    monkeypatch.setenv("PAGE_SIZE", "20")
    shop.workspace.configure(latency_seconds=0.1)
    content = take(worker)
    killed(shop, content, operations=operations)
    shop.workspace.configure(latency_seconds=0)
    put(worker, content)
    worker.work()
    sound(shop, approved)
    assert shop.workspace.stats()["duplicate_events_dropped"] <= 80  # at most the pages that were under way


def test_a_slice_of_people_that_is_killed_goes_on_where_it_was(shop, worker, monkeypatch):
    monkeypatch.setenv("PAGE_SIZE", "20")
    shop.environment["PAGE_SIZE"] = "20"
    add_customers(shop.sql, range(250))
    shop.sql.execute("UPDATE shop.customers SET tier = NULL WHERE customer_id % 2 = 0")
    _, answer = call("go_live", {"syncs": ["customers"]})
    worker.one("plans", "make_plan")
    assert call("decide", run=answer["run"], decision="approve")[0] == 200
    shop.workspace.configure(latency_seconds=0.15)
    content = take(worker)
    killed(shop, content, operations=41)
    assert 40 < len(shop.workspace.people()) < 100
    shop.workspace.configure(latency_seconds=0)
    put(worker, content)
    worker.work()
    told = status(answer["run"])
    assert (told["state"], told["progress"]["rows"], told["progress"]["accepted"]) == ("done", 250, 250)
    assert len(shop.workspace.people()) == 250
    mark = json.loads(shop.read("syncs/customers/mark.json"))
    assert (mark["first_rows"], mark["first_empty"]["tier"]) == (250, 125)  # what later passes are judged by


def test_a_slice_whose_time_is_up_goes_on_and_counts_once(shop, worker, approved, monkeypatch):
    monkeypatch.setenv("PAGE_SIZE", "20")
    monkeypatch.setenv("TIME_BUDGET_SECONDS", "1")
    shop.workspace.configure(latency_seconds=0.6)
    before = shop.workspace.stats()["requests"]
    assert worker.work() > 5  # messages
    assert status(approved)["progress"]["requests"] == shop.workspace.stats()["requests"] - before
    shop.workspace.configure(latency_seconds=0)
    sound(shop, approved)


def test_a_slice_that_is_killed_again_and_again_ends_where_it_should(shop, worker, approved, monkeypatch):
    shop.environment["PAGE_SIZE"] = "20"
    monkeypatch.setenv("PAGE_SIZE", "20")
    shop.workspace.configure(latency_seconds=0.1)
    for operations in (1, 21, 41):
        content = take(worker)
        killed(shop, content, operations=operations)
        put(worker, content)
    shop.workspace.configure(latency_seconds=0)
    worker.work()
    sound(shop, approved)


def test_every_message_is_delivered_twice(shop, worker, approved):
    while worker.messages():
        content = take(worker)
        call_queue("deliver_slice", content)
        call_queue("deliver_slice", content)
    sound(shop, approved)
    assert shop.workspace.stats()["duplicate_events_dropped"] == 0


def test_a_message_is_delivered_twice_at_once(shop, worker, approved):
    shop.workspace.configure(latency_seconds=0.2)

    def deliver(content: str) -> None:
        try:
            call_queue("deliver_slice", content)
        except TidemarkError:
            put(worker, content)

    while worker.messages():
        content = take(worker)
        both = [threading.Thread(target=deliver, args=(content,)) for _ in range(2)]
        for one in both:
            one.start()
        for one in both:
            one.join()
    sound(shop, approved)
    assert shop.workspace.stats()["duplicate_events_dropped"] == 0


def test_slices_that_are_delivered_at_once_count_right(shop, worker, approved):
    shop.workspace.configure(latency_seconds=0.1)

    def work() -> None:
        while worker.messages():
            worker.one("slices", "deliver_slice")

    workers = [threading.Thread(target=work) for _ in range(4)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    worker.work()
    sound(shop, approved)
    assert shop.workspace.stats()["duplicate_events_dropped"] == 0


def test_a_slice_that_was_killed_before_it_enqueued_the_next_does_so_when_delivered_again(shop, worker, monkeypatch):
    monkeypatch.setenv("RESYNC_SLICES_IN_FLIGHT", "1")
    add_customers(shop.sql, range(10))
    go_live(worker)
    add_orders(shop.sql, range(450), customers=10)
    run = planned(worker, "orders", all=True)["run"]
    first = take(worker)
    call_queue("deliver_slice", first)
    take(worker)  # the next one: as if it had never been enqueued
    assert worker.messages() == []
    put(worker, first)
    worker.work()
    sound(shop, run)


def test_a_worker_that_died_when_the_plan_was_made_is_followed_by_one_that_begins(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker)
    add_orders(shop.sql, range(450), customers=10)
    run = planned(worker, "orders", all=True)["run"]
    with queue(worker) as client:
        client.clear_messages()
    call_queue("make_plan", json.dumps({"run": run}))
    worker.work()
    sound(shop, run)


def test_a_worker_that_died_before_it_could_say_that_all_is_done_is_made_good_by_a_retry(shop, worker, approved):
    worker.work()
    name = f"runs/{approved}/run.json"
    record = json.loads(shop.read(name))
    record |= {"state": "running", "finished": ""}
    shop.container.upload_blob(name, json.dumps(record), overwrite=True)
    assert call("decide", run=approved, decision="retry")[0] == 200
    worker.work()
    sound(shop, approved)


def test_messages_that_are_lost_are_put_back_by_a_retry(shop, worker, approved):
    worker.work(most=2)
    with queue(worker) as client:
        client.clear_messages()
    worker.work()
    told = status(approved)
    assert told["state"] == "running"
    code, answer = call("decide", run=approved, decision="retry")
    assert code == 200, answer
    worker.work()
    sound(shop, approved)


def give_up(worker: Worker, name: str = "slices", tries: int = 5) -> list[str]:
    """Deliver every message as the platform does: five times, then its poison function; what was given up."""
    gone = []
    while worker.messages(name):
        content = take(worker)
        for attempt in range(tries):
            try:
                call_queue("deliver_slice", content)
                break
            except TidemarkError:
                if attempt == tries - 1:
                    call_queue("give_up_slice", content)
                    gone.append(content)
    return gone


def test_a_slice_that_fails_for_good_is_shown_and_the_others_go_on_and_a_retry_sends_it(shop, worker, approved):
    shop.workspace.add_fault(when_event_id=250, status=401)
    gone = give_up(worker)
    assert len(gone) == 1
    told = status(approved)
    assert told["state"] == "running"
    assert told["progress"]["slices"]["poison"] == 1
    assert "retry" in told["progress"]["retry"]
    assert 250 not in ids(shop)
    assert 350 <= len(ids(shop)) < 450
    assert told["progress"]["slices"].get("done", 0) >= 4
    assert "CUSTOMERIO" in json.dumps(told)  # why it was given up
    assert worker.messages() == []
    shop.workspace.clear_faults()
    code, answer = call("decide", run=approved, decision="retry")
    assert (code, answer["state"]) == (200, "running")
    worker.work()
    sound(shop, approved)
    assert call("decide", run=approved, decision="retry")[0] == 409


def test_poison_is_told_while_the_others_go_on(shop, worker, approved):
    content = take(worker)
    call_queue("give_up_slice", content)
    told = status(approved)
    assert told["state"] == "running"
    assert sum(number for name, number in told["progress"]["slices"].items() if name not in ("waiting", "done")) == 1
    code, _ = call("decide", run=approved, decision="retry")  # while the others are under way
    assert code == 200
    worker.work()
    sound(shop, approved)


def test_a_poison_message_of_a_slice_that_is_done_changes_nothing(shop, worker, approved):
    content = take(worker)
    call_queue("deliver_slice", content)
    call_queue("give_up_slice", content)
    worker.work()
    sound(shop, approved)


def test_messages_that_mean_nothing_break_nothing(shop, worker, approved):
    for content in ('{"run": "01M8713JR8D4C8BJY00432M2BM", "slice": 0}', json.dumps({"run": approved, "slice": 999})):
        for function in ("deliver_slice", "give_up_slice"):
            with suppress(TidemarkError, IndexError):
                call_queue(function, content)
    for function in ("make_plan", "give_up_plan"):
        with suppress(TidemarkError):
            call_queue(function, json.dumps({"run": approved}))
    assert status(approved)["state"] == "running"
    worker.work()
    sound(shop, approved)


def test_a_damaged_ledger_fails_plans_and_all_slices_and_a_retry_sends_them_a_few_at_a_time(shop, worker, approved):
    worker.work()
    sound(shop, approved)
    name = shop.blobs("syncs/orders/ledger/days/")[0]
    good = shop.read(name)
    add_orders(shop.sql, range(450, 1000), customers=10)
    run = planned(worker, "orders", all=True)["run"]
    shop.container.upload_blob(name, b"rubbish" * 40, overwrite=True)
    told = planned(worker, "orders", all=True)
    assert (told["state"], name in told["message"]) == ("failed", True)
    given_up = give_up(worker, tries=1)
    told = status(run)
    assert told["progress"]["slices"] == {"poison": len(given_up)}
    assert name in json.dumps(told["progress"]["messages"])
    assert len(ids(shop)) == 450
    shop.container.upload_blob(name, good, overwrite=True)
    assert call("decide", run=run, decision="retry")[0] == 200
    assert len(worker.messages()) == 4 < len(given_up)
    worker.work()
    sound(shop, run, 1000)


def test_a_cancel_in_the_middle_stops_what_is_left(shop, worker, approved):
    worker.work(most=2)
    sent = len(ids(shop))
    assert 0 < sent < 450
    code, answer = call("decide", run=approved, decision="cancel")
    assert (code, answer["state"]) == (200, "canceled")
    worker.work()
    told = status(approved)
    assert (told["state"], told["progress"]["accepted"]) == ("canceled", sent)
    assert len(ids(shop)) == sent
    assert call("decide", run=approved, decision="retry")[0] == 409
    assert call("decide", run=approved, decision="approve")[0] == 409
    assert shop.run("orders").accepted == 450 - sent  # the timer sends what is left


def test_a_cancel_stops_a_slice_that_is_under_way(shop, worker, approved, monkeypatch):
    monkeypatch.setenv("PAGE_SIZE", "10")
    shop.workspace.configure(latency_seconds=0.3)
    slice_ = threading.Thread(target=worker.work)
    slice_.start()
    while not ids(shop):
        time.sleep(0.02)
    assert call("decide", run=approved, decision="cancel")[0] == 200
    slice_.join()
    told = status(approved)
    assert told["state"] == "canceled"
    assert "running" not in told["progress"]["slices"]
    assert shop.blobs("syncs/orders/ledger/journals/") == []  # what was sent is known to the slices of other runs
    assert told["progress"]["accepted"] == len(ids(shop)) < 100
    shop.workspace.configure(latency_seconds=0)
    assert shop.run("orders").accepted == 450 - len(ids(shop)) or len(ids(shop)) == 450
    assert shop.workspace.stats()["duplicate_events_stored"] == 0


def test_a_pass_between_slices_and_a_pass_beside_them_send_each_event_once(shop, worker, approved):
    worker.work(most=1)
    add_orders(shop.sql, range(450, 460), customers=10)
    assert shop.run("orders").outcome == "ok"
    worker.work()
    told = status(approved)
    assert told["state"] == "done"
    assert told["progress"]["accepted"] + told["progress"]["already_sent"] == told["progress"]["rows"]
    assert ids(shop) == [*range(460)]
    assert shop.workspace.stats()["duplicate_events_dropped"] == 0


def test_a_pass_and_a_slice_that_send_the_same_at_once_show_it_once(shop, worker, approved):
    shop.workspace.configure(latency_seconds=0.3)
    outcomes = []

    def deliver() -> None:
        while worker.messages():
            with suppress(TidemarkError):
                worker.work()

    slices, timer = (
        threading.Thread(target=deliver),
        threading.Thread(target=lambda: outcomes.append(shop.run("orders"))),
    )
    slices.start()
    timer.start()
    slices.join()
    timer.join()
    assert ids(shop) == [*range(450)]
    assert shop.workspace.stats()["duplicate_events_stored"] == 0
    told = status(approved)
    assert told["state"] == "done"
    assert told["progress"]["accepted"] + told["progress"]["already_sent"] == 450
    shop.workspace.configure(latency_seconds=0)
    assert resynced(worker, "orders", all=True)["progress"]["already_sent"] == 450


def test_rejects_are_told_with_their_reasons_and_kept(shop, worker, approved):
    shop.workspace.add_fault(reject_share=0.1, seed=3)
    worker.work()
    shop.workspace.clear_faults()
    told = status(approved)["progress"]
    letters = shop.dead_letters("orders")
    assert told["rejected"] == len(letters) > 0
    assert told["accepted"] == 450 - len(letters) == len(ids(shop))
    assert sum(told["reasons"].values()) == len(letters)


def test_rows_that_cannot_be_sent_are_set_aside_once(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker)
    add_orders(shop.sql, range(300), customers=10)
    shop.sql.execute("UPDATE shop.orders SET customer_id = NULL WHERE order_id IN (3, 150, 299)")
    shop.sql.execute("UPDATE shop.orders SET paid_at = NULL WHERE order_id IN (4, 151)")
    told = resynced(worker, "orders", all=True)
    assert told["plan"]["rows"] == told["progress"]["rows"] == 300
    assert (told["plan"]["cannot_be_sent"], told["progress"]["dead_letters"]) == (5, 5)
    assert len(shop.dead_letters("orders")) == 5
    assert shop.run("orders").outcome == "ok"
    assert len(shop.dead_letters("orders")) == 5
    assert len(ids(shop)) == 295


def test_events_of_one_moment_are_all_sent(shop, worker):
    add_customers(shop.sql, range(10))
    go_live(worker)
    rows = [(number, number % 10, "2026-01-05 00:00:00", 1) for number in range(450)]
    bulk(shop.sql, "INSERT INTO shop.orders (order_id, customer_id, paid_at, total) VALUES (?, ?, ?, ?)", rows)
    sound(shop, resynced(worker, "orders", all=True)["run"])


def test_people_with_keys_of_text_are_sent_once_each(shop, worker):
    keys = sorted(
        {f"{prefix}{number}" for number in range(60) for prefix in ("a", "B", "ä", "O'", "-", "x y", "0", "Z%")}
    )
    shop.sql.execute("DROP VIEW retention.customers")
    shop.sql.execute(
        "CREATE TABLE shop.texts (customer_id nvarchar(40) NOT NULL PRIMARY KEY, email nvarchar(99), row_version rowversion)"
    )
    shop.sql.execute("CREATE VIEW retention.customers AS SELECT customer_id, email, row_version FROM shop.texts")
    bulk(shop.sql, "INSERT INTO shop.texts (customer_id) VALUES (?)", [(key,) for key in keys])
    told = go_live(worker, syncs=["customers"])
    assert told["progress"]["accepted"] == told["plan"]["rows"] == len(keys)
    assert told["progress"]["slices"]["done"] >= 4
    assert sorted(shop.workspace.people()) == sorted(keys)


@pytest.mark.parametrize("type_", ["datetime2(0)", "datetime", "datetimeoffset(3)", "date"])
def test_slices_by_every_type_of_time_meet_without_gap_or_overlap(shop, worker, monkeypatch, type_):
    monkeypatch.setenv("SQL_TIME_ZONE", "Europe/Berlin")
    shop.environment["SQL_TIME_ZONE"] = "Europe/Berlin"
    shop.sql.execute("DROP VIEW retention.orders")
    shop.sql.execute(
        f"CREATE TABLE shop.timed (order_id int NOT NULL PRIMARY KEY, customer_id int, paid_at {type_}, row_version rowversion)"
    )
    shop.sql.execute(
        "CREATE VIEW retention.orders AS SELECT customer_id, 'Order Placed' AS event_name, paid_at AS event_time,"
        " order_id AS event_id, row_version FROM shop.timed"
    )
    add_customers(shop.sql, range(10))
    zone = " +02:00" if type_.startswith("datetimeoffset") else ""
    for number in range(450):  # around the hour that there is twice
        hour, minute = divmod(number, 60)
        time_ = f"2025-10-{25 + hour // 24 + number % 3:02}" + (
            "" if type_ == "date" else f" {hour:02}:{minute:02}:00{zone}"
        )
        shop.sql.execute(
            "INSERT INTO shop.timed (order_id, customer_id, paid_at) VALUES (?, ?, ?)", number, number % 10, time_
        )
    told = go_live(worker)
    assert told["progress"]["rows"] == told["plan"]["rows"] == 460
    assert ids(shop) == [*range(450)]
    resynced(worker, "orders", since="2025-10-25T22:00:00Z")
    assert shop.workspace.stats()["duplicate_events_dropped"] == 0
