"""Who was removed or merged: the record, and that every batch asks for it."""

import threading
import time

import pytest

from shared.customerio import Barred, CustomerIo, Group
from shared.errors import StateFault
from shared.people import People
from shared.state import State
from tests.conftest import bare_settings
from tests.test_customerio_client import event, settings_of
from tests.test_passes import add_customers, add_orders, make_tables


@pytest.fixture
def state(azurite, container):
    container.create_container()
    state = State(bare_settings(AzureWebJobsStorage=azurite, state_container=container.container_name))
    People(state).begin()
    yield state
    state.close()


def test_what_one_has_recorded_another_knows_when_it_asks_again(state):
    here, there = People(state), People(state)
    assert there.barred(["1", "2", "3"]) == {}
    here.remove(["1"])
    here.merge({"2": "3"})
    assert there.barred(["1", "2", "3"]) == {"1": Barred.REMOVED, "2": Barred.MERGED}
    assert (there.removed(["1", "2"]), there.primaries(["1", "2", "3"])) == ({"1"}, {"2": "3"})
    here.restore(["1"])
    here.part(["2"])
    assert there.barred(["1", "2", "3"]) == {}


def test_a_chain_of_merges_ends_with_who_is_left(state):
    people = People(state)
    people.merge({"c": "b"})
    people.merge({"b": "a"})
    assert people.primaries(["a", "b", "c", "d"]) == {"b": "a", "c": "a"}


def test_who_was_merged_into_a_removed_person_is_removed_too(state):
    people = People(state)
    people.merge({"c": "b", "b": "a", "y": "x"})
    people.remove(["a"])
    assert people.removed(["a", "b", "c", "x", "y"]) == {"a", "b", "c"}
    assert people.primaries(["b", "c", "y"]) == {"y": "x"}


def test_who_was_merged_and_is_removed_leaves_the_primary_as_it_is(state):
    people = People(state)
    people.merge({"b": "a"})
    people.remove(["b"])
    assert people.removed(["a", "b"]) == {"b"}


def test_who_was_merged_into_a_person_who_is_another_now_stays_with_that_one(state, container):
    people = People(state)
    people.merge({"c-4711": "b-4712"})
    people.merge({"b-4712": "a"})
    people.remove(["b-4712"])
    assert people.removed(["a", "b-4712", "c-4711"]) == {"b-4712"}
    assert people.primaries(["b-4712", "c-4711"]) == {"c-4711": "a"}
    assert b"4712" not in container.download_blob("people.json").readall()


def test_who_was_removed_and_is_merged_afterwards_stays_removed(state):
    people = People(state)
    people.remove(["b"])
    people.merge({"b": "a"})
    assert people.primaries(["a", "b"]) == {}
    assert people.barred(["a", "b"]) == {"b": Barred.REMOVED}


def test_no_removed_id_can_be_read_in_the_record(state, container):
    people = People(state)
    people.remove(["jane-4711"])
    people.merge({"guest-4712": "jane"})
    stored = container.download_blob("people.json").readall()
    assert b"4711" not in stored and b"4712" not in stored
    other = People(state)
    other.refresh()
    assert other.hash_of("jane-4711") == people.hash_of("jane-4711") != people.hash_of("jane-4712")


def test_many_that_record_at_once_lose_nothing(state):
    threads = [threading.Thread(target=People(state).remove, args=([str(number)],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(People(state).barred([str(number) for number in range(9)])) == 8


@pytest.mark.parametrize("text", [b"", b"{}", b'{"key": "zz", "removed": "", "merged": {}}', b"[1]"])
def test_a_damaged_record_stops_everything(state, container, text):
    container.upload_blob("people.json", text, overwrite=True)
    with pytest.raises(StateFault, match=r"people\.json is damaged"):
        People(state).barred(["1"])


def test_a_record_that_is_gone_stops_everything(state, container):
    container.delete_blob("people.json")
    for act in (People(state).refresh, lambda: People(state).barred(["1"]), lambda: People(state).remove(["1"])):
        with pytest.raises(StateFault, match=r"people\.json is gone"):
            act()


def test_to_begin_a_record_anew_changes_nothing(state):
    people = People(state)
    people.remove(["1"])
    People(state).begin()
    assert people.barred(["1"]) == {"1": Barred.REMOVED}


def test_a_circle_of_merges_hangs_nobody(state):
    people = People(state)
    people.merge({"a": "b", "b": "a"})
    assert set(people.primaries(["a", "b"])) <= {"a", "b"}


def test_who_was_merged_removed_and_restored_is_the_primary_again(state):
    people = People(state)
    people.merge({"b": "a"})
    people.remove(["b"])
    people.restore(["b"])
    assert people.primaries(["b"]) == {"b": "a"}


def test_a_batch_leaves_out_who_is_barred_and_sends_the_others(workspace):
    barred = {"1": Barred.REMOVED, "3": Barred.MERGED}
    with CustomerIo(settings_of(workspace), lambda people: barred) as client:
        fates = client.send([Group(str(number), (event(number), event(number + 10))) for number in range(5)]).wait()
    assert fates == [
        (None, None),
        (Barred.REMOVED, Barred.REMOVED),
        (None, None),
        (Barred.MERGED, Barred.MERGED),
        (None, None),
    ]
    assert {stored["person"] for stored in workspace.events()} == {"0", "2", "4", "10", "12", "14"}


def test_the_record_is_asked_before_every_try_and_not_only_before_the_first(workspace):
    asked = []

    def guard(people):
        asked.append(list(people))
        return {"1": Barred.REMOVED} if len(asked) > 1 and "1" in people else {}

    workspace.add_fault(status=503, times=1)
    with CustomerIo(settings_of(workspace), guard) as client:
        assert client.send([Group(str(number), (event(number),)) for number in range(3)]).wait() == [
            (None,),
            (Barred.REMOVED,),
            (None,),
        ]
    assert asked == [["0", "1", "2"], ["0", "1", "2"], ["0", "2"]]
    assert {stored["person"] for stored in workspace.events()} == {"0", "2"}


def test_a_record_that_cannot_be_read_sends_nothing(workspace):
    def guard(people):
        raise StateFault("people.json is damaged")

    with CustomerIo(settings_of(workspace), guard) as client:
        client.send([Group("1", (event(1),))]).wait()
        assert isinstance(client.failure, StateFault)
    assert workspace.stats()["operations"] == 0


def test_a_record_that_is_gone_stops_a_sync_that_never_met_it(deployment):
    make_tables(deployment.sql)
    add_customers(deployment.sql, range(3))
    deployment.run("customers")
    deployment.container.delete_blob("people.json")
    add_orders(deployment.sql, range(3))
    with pytest.raises(StateFault, match=r"people\.json is gone"):
        deployment.run("orders")
    assert list(deployment.workspace.events()) == []


def test_somebody_who_is_merged_while_an_event_is_on_its_way_gets_it_as_who_they_are(deployment):
    make_tables(deployment.sql)
    add_customers(deployment.sql, range(3))
    add_orders(deployment.sql, range(3))
    deployment.run("customers")
    state = State(deployment.settings())
    deployment.workspace.add_fault(status=503, times=1, retry_after=2)
    runs = []
    orders = threading.Thread(target=lambda: runs.append(deployment.run("orders")))
    orders.start()
    deadline = time.monotonic() + 20
    while not deployment.workspace.stats()["requests_by_status"].get("503"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (whose,) = deployment.sql.execute("SELECT customer_id FROM shop.orders WHERE order_id = 1").fetchone()
    People(state).merge({str(whose): "registered"})
    orders.join()
    state.close()
    assert (runs[0].outcome, runs[0].dead_letters) == ("ok", 0)
    assert {e["attributes"]["event_id"]: e["person"] for e in deployment.workspace.events()}[1] == "registered"
    assert len(list(deployment.workspace.events())) == 3
    assert deployment.run("orders").operations == 0
