"""The ledger: one write a page, ids packed, folded by day, and never silently empty."""

import random
import tracemalloc

import pytest
from azure.storage.blob import BlobLeaseClient, ContainerClient
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import StateFault, StateUnavailable
from shared.ledger import Ids, Ledger, SortedIds
from shared.mapping import event_digest
from shared.syncs import CATALOGUE

(ORDERS,) = [sync for sync in CATALOGUE if sync.name == "orders"]


@pytest.fixture
def stored(container: ContainerClient) -> ContainerClient:
    container.create_container()
    return container


def entries(count: int, days: int = 1, first_day: int = 20_000) -> list[tuple[int, bytes]]:
    return [(first_day + number % days, event_digest("orders", str(number))) for number in range(count)]


def names(container: ContainerClient, folder: str) -> list[str]:
    return [blob.name.rsplit("/", 1)[1] for blob in container.list_blobs(f"syncs/orders/ledger/{folder}/")]


def test_what_was_recorded_is_not_to_be_sent_again(stored):
    ledger = Ledger(stored, ORDERS, "run1", 0)
    page = entries(10)
    assert ledger.unsent(page) == [True] * 10
    ledger.record(page)
    assert ledger.unsent(page) == [False] * 10


def test_the_next_run_finds_it_in_an_open_journal_and_after_folding(stored):
    first = Ledger(stored, ORDERS, "run1", 0)
    first.record(entries(10, days=3))
    assert Ledger(stored, ORDERS, "run2", 10).unsent(entries(11, days=3)) == [False] * 10 + [True]
    first.fold()
    assert names(stored, "journals") == []
    assert len(names(stored, "days")) == 3
    assert Ledger(stored, ORDERS, "run3", 10).unsent(entries(11, days=3)) == [False] * 10 + [True]


def test_of_two_alike_in_one_page_the_first_is_sent(stored):
    assert Ledger(stored, ORDERS, "run1", 0).unsent([*entries(2), *entries(3)]) == [True, True, False, False, True]


def test_what_is_on_its_way_is_not_sent_a_second_time_and_what_failed_is(stored):
    ledger = Ledger(stored, ORDERS, "run1", 0)
    page = entries(2)
    assert ledger.unsent(page) == [True, True]
    assert ledger.unsent(page) == [False, False]
    ledger.record(page[:1])
    ledger.release(page[1:])
    assert ledger.unsent(page) == [False, True]


def test_a_page_costs_one_write_however_many_days_it_touches(stored):
    ledger = Ledger(stored, ORDERS, "run1", 0)
    ledger.record(entries(1000, days=350))
    assert names(stored, "days") == []
    (journal,) = stored.list_blobs("syncs/orders/ledger/journals/")
    assert journal.size == 1000 * 20


@pytest.mark.parametrize(("moved", "unsent"), [(-1, False), (0, False), (1, False), (2, True), (-2, True)])
def test_an_event_is_looked_for_on_both_neighbouring_days(stored, moved, unsent):
    ledger = Ledger(stored, ORDERS, "run1", 0)
    ledger.record(entries(1))
    ledger.fold()
    (day, digest) = entries(1)[0]
    assert Ledger(stored, ORDERS, "run2", 1).unsent([(day + moved, digest)]) == [unsent]


def test_folding_what_was_already_folded_changes_nothing(stored):
    """As after a kill between the days and the deletion of the journal."""
    ledger = Ledger(stored, ORDERS, "run1", 0)
    ledger.record(entries(100, days=5))
    journal = stored.download_blob("syncs/orders/ledger/journals/run1").readall()
    ledger.fold()
    days = {name: stored.download_blob(f"syncs/orders/ledger/days/{name}").readall() for name in names(stored, "days")}
    stored.upload_blob("syncs/orders/ledger/journals/run1", journal, blob_type="AppendBlob")
    second = Ledger(stored, ORDERS, "run2", 100)
    second.record(entries(101, days=5)[100:])
    second.fold()
    after = {name: stored.download_blob(f"syncs/orders/ledger/days/{name}").readall() for name in names(stored, "days")}
    assert sum(map(len, after.values())) == 101 * 16
    assert all(set(SortedIds(days[name])) <= set(SortedIds(after[name])) for name in days)


def test_two_writers_of_one_day_lose_nothing(stored):
    one, two = Ledger(stored, ORDERS, "run1", 0), Ledger(stored, ORDERS, "run2", 0)
    one.record(entries(10)[:5])
    two.record(entries(10)[5:])
    one.fold()
    two.fold()
    assert Ledger(stored, ORDERS, "run3", 10).unsent(entries(10)) == [False] * 10


def test_a_repeated_append_is_harmless(stored):
    ledger = Ledger(stored, ORDERS, "run1", 0)
    ledger.record(entries(10))
    ledger.record(entries(10))
    ledger.fold()
    (day,) = stored.list_blobs("syncs/orders/ledger/days/")
    assert day.size == 160


def test_a_ledger_that_is_gone_is_a_fault_and_never_an_empty_one(stored):
    with pytest.raises(StateFault, match="the mark knows of 10 sent events, 0 are left"):
        Ledger(stored, ORDERS, "run1", 10)


def test_a_ledger_that_lost_a_day_is_a_fault(stored):
    ledger = Ledger(stored, ORDERS, "run1", 0)
    ledger.record(entries(100, days=5))
    ledger.fold()
    stored.delete_blob(f"syncs/orders/ledger/days/{names(stored, 'days')[2]}")
    with pytest.raises(StateFault, match="100 sent events, 80 are left"):
        Ledger(stored, ORDERS, "run2", 100)


def test_a_torn_day_is_a_fault(stored):
    stored.upload_blob("syncs/orders/ledger/days/2026-01-01", b"x" * 17)
    with pytest.raises(StateFault, match="damaged"):
        Ledger(stored, ORDERS, "run1", 0)


def test_the_digest_depends_on_sync_and_event_alone():
    assert event_digest("orders", "1") != event_digest("refunds", "1")
    assert event_digest("orders", "1") != event_digest("orders", "2")
    assert event_digest("orders", "1") == event_digest("orders", "1")


ids_of_16 = st.sets(st.binary(min_size=16, max_size=16), max_size=50)


@given(inside=ids_of_16, outside=ids_of_16)
def test_packed_sets_hold_what_was_put_in_and_nothing_else(inside, outside):
    packed = Ids()
    for digest in inside:
        packed.add(digest)
    stored = SortedIds(b"".join(sorted(inside)))
    for digest in inside | outside:
        assert (digest in packed) == (digest in stored) == (digest in inside)


def test_an_id_that_lies_across_two_others_is_not_taken_for_one():
    packed = Ids()
    packed.add(b"ab" + b"\0" * 8 + b"ab\0\0\0\0")
    packed.add(b"ab" + b"\0" * 14)
    assert b"ab\0\0\0\0ab\0\0\0\0\0\0\0\0" not in packed


def test_half_a_million_ids_stay_packed():
    packed = Ids()
    source = random.Random(1)
    tracemalloc.start()
    for _ in range(500_000):
        packed.add(source.randbytes(16))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / 500_000 < 45  # a set of bytes objects takes more than a hundred


def test_a_torn_journal_is_a_fault(stored):
    Ledger(stored, ORDERS, "run1", 0).record(entries(3))
    stored.get_blob_client("syncs/orders/ledger/journals/run1").append_block(b"x")
    with pytest.raises(StateFault, match="journals/run1 is damaged"):
        Ledger(stored, ORDERS, "run2", 3)


def test_a_journal_is_kept_until_its_days_are_written(stored):
    first = Ledger(stored, ORDERS, "run1", 0)
    first.record(entries(1))
    first.fold()
    (day,) = stored.list_blobs("syncs/orders/ledger/days/")
    held = BlobLeaseClient(stored.get_blob_client(day.name))
    held.acquire(60)  # so the day cannot be written
    second = Ledger(stored, ORDERS, "run2", 1)
    second.record(entries(5)[1:])
    with pytest.raises(StateUnavailable):
        second.fold()
    held.release()
    assert names(stored, "journals") == ["run2"]
    assert Ledger(stored, ORDERS, "run3", 5).unsent(entries(6)) == [False] * 5 + [True]


def test_what_was_folded_after_its_day_was_read_is_known_too(stored):
    ledger = Ledger(stored, ORDERS, "run1", 0)
    for count in (1, 2, 3):
        ledger.record(entries(count)[-1:])
        ledger.fold()
        assert ledger.unsent(entries(count)) == [False] * count


def test_what_a_run_without_its_lease_adds_while_another_folds_is_kept(stored):
    zombie = Ledger(stored, ORDERS, "run1", 0)
    zombie.record(entries(5))
    other = Ledger(stored, ORDERS, "run2", 0)
    other.record(entries(6)[5:])

    class Late(ContainerClient):
        """As the container is, but the zombie writes just before its journal is deleted."""

        def delete_blob(self, blob, *rest, **options):
            if blob.endswith("run1"):
                zombie.record(entries(7)[6:])
            return super().delete_blob(blob, *rest, **options)

    late = Late(stored.url.rsplit("/", 1)[0], stored.container_name, credential=stored.credential)
    last = Ledger(late, ORDERS, "run3", 0)
    last.fold()
    assert Ledger(stored, ORDERS, "run4", 7).unsent(entries(7)) == [False] * 7
