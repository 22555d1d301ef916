"""The ledger: one write a page, ids packed, folded by day, and never silently empty."""

import random
import re
import time
import tracemalloc
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import pytest
from azure.storage.blob import BlobLeaseClient, ContainerClient
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import StateFault, StateUnavailable
from shared.ledger import Ids, Ledger, SortedIds
from shared.mapping import SECONDS_PER_DAY, event_digest
from shared.syncs import CATALOGUE

(ORDERS,) = [sync for sync in CATALOGUE if sync.name == "orders"]
TOMORROW = int(time.time()) // SECONDS_PER_DAY + 1  # a day that is not over before the tests are


@pytest.fixture
def stored(container: ContainerClient) -> ContainerClient:
    container.create_container()
    return container


def entries(count: int, days: int = 1, first_day: int = 20_000) -> list[tuple[int, bytes]]:
    return [(first_day + number % days, event_digest("orders", str(number))) for number in range(count)]


def watched(container: ContainerClient, **hooks: Callable[[Any], None]) -> ContainerClient:
    """A client of its own for the same container; `raw_request_hook` sees each request, `raw_response_hook` each answer."""
    account = container.url.rsplit("/", 1)[0]
    return ContainerClient(account, container.container_name, credential=container.credential, **hooks)


def name_of(request: Any) -> str:
    """Of a request, the method and the blob's name within the ledger; of a list, the folder's."""
    name = re.search(r"/ledger/([\w/-]+)", unquote(request.http_request.url))
    return f"{request.http_request.method} {name[1]}"


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


@pytest.mark.parametrize("days", [3, 100])
def test_a_run_over_one_day_costs_the_same_however_many_days_are_stored(stored, days):
    first = Ledger(stored, ORDERS, "run1", 0)
    first.record(entries(days, days, TOMORROW - days + 1))
    first.fold()
    yesterday, today, tomorrows = names(stored, "days")[-3:]
    calls: list[str] = []
    watching = watched(stored, raw_request_hook=lambda request: calls.append(name_of(request)))

    def asked() -> list[str]:
        told = calls[:]
        del calls[:]
        return told

    ledger = Ledger(watching, ORDERS, "run2", days)
    assert asked() == ["GET journals/", "GET index"]
    page = [(TOMORROW - 1, digest) for _, digest in entries(days + 10)[days:]]
    assert ledger.unsent(page) == [True] * 10
    assert sorted(asked()) == [f"GET days/{day}" for day in (yesterday, today, tomorrows)]
    ledger.record(page[:9])
    assert asked() == ["PUT journals/run2"] * 3  # there is no such blob; it is made; the block
    ledger.record(page[9:])
    assert asked() == ["PUT journals/run2"]
    ledger.fold()
    assert asked() == ["GET journals/run2", f"PUT days/{today}", "GET index", "PUT index", "DELETE journals/run2"]


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


class Killed(Exception):
    """Nothing of the process goes on."""


@pytest.mark.parametrize("when", ["raw_request_hook", "raw_response_hook"])
def test_a_fold_that_is_killed_at_any_request_is_completed_by_the_next(stored, when):
    """Dead from its n-th request on, before that is made or once it is done, for each n."""
    *page, new = entries(13, days=4, first_day=TOMORROW)
    lives: list[None] = []

    def live(_: Any) -> None:
        try:
            lives.pop()
        except IndexError:
            raise Killed from None

    for requests in range(100):
        for blob in stored.list_blobs("syncs/orders/ledger/"):
            stored.delete_blob(blob.name)
        first = Ledger(stored, ORDERS, "run1", 0)
        first.record(page[:2])
        first.fold()
        Ledger(stored, ORDERS, "run2", 2).record(page[2:8])
        lives[:] = [None] * 100
        doomed = Ledger(watched(stored, **{when: live}), ORDERS, "run3", 2)
        doomed.record(page[8:])
        lives[:] = [None] * requests
        try:
            doomed.fold()
            killed = False
        except Killed:
            killed = True
        found = Ledger(stored, ORDERS, "run4", 2)  # the mark may be behind
        assert found.unsent([*page, new]) == [False] * 12 + [True]
        found.fold()
        assert names(stored, "journals") == []
        ids = [digest for name in names(stored, "days") for digest in stored_ids(stored, name)]
        assert sorted(ids) == sorted(digest for _, digest in page)
        assert Ledger(stored, ORDERS, "run5", 12).unsent([*page, new]) == [False] * 12 + [True]
        if not killed:
            break
    # two journals; four days, of which two were there; the index; the journals again
    assert requests == 2 + 2 + 4 + 2 + 2


def test_a_stored_day_that_is_gone_or_holds_less_is_a_fault_once_it_is_needed(stored):
    first = Ledger(stored, ORDERS, "run1", 0)
    first.record(entries(100, days=5, first_day=TOMORROW - 4))  # today's first run has looked for all of them
    first.fold()
    names_of_days = names(stored, "days")
    gone, less, torn = (f"syncs/orders/ledger/days/{name}" for name in (names_of_days[0], *names_of_days[3:]))
    stored.delete_blob(gone)
    stored.upload_blob(less, stored.download_blob(less).readall()[16:], overwrite=True)
    stored.upload_blob(torn, stored.download_blob(torn).readall() + b"x", overwrite=True)
    for before, name in ((5, gone), (4, gone), (2, less), (-1, torn)):
        elsewhere = Ledger(stored, ORDERS, "run2", 100)
        with pytest.raises(StateFault, match=f"{name} is damaged"):
            elsewhere.unsent([(TOMORROW - before, event_digest("orders", "new"))])
    late = Ledger(stored, ORDERS, "run3", 100)
    late.record([(TOMORROW - 4, event_digest("orders", "new"))])
    with pytest.raises(StateFault, match=f"{gone} is damaged"):
        late.fold()
    assert names(stored, "journals") == ["run3"]


def test_the_first_run_with_events_of_a_day_looks_whether_all_days_are_there(stored):
    first = Ledger(stored, ORDERS, "run1", 0)
    first.record(entries(100, days=5, first_day=TOMORROW - 6))  # up to yesterday, or the day before that
    first.fold()
    stored.delete_blob(f"syncs/orders/ledger/days/{names(stored, 'days')[0]}")
    with pytest.raises(StateFault, match="100 sent events, 80 are left"):
        Ledger(stored, ORDERS, "run2", 100)


@pytest.mark.parametrize("damage", ["gone", "torn", "old"])
def test_an_index_that_is_damaged_is_made_anew_from_the_days(stored, damage):
    page = entries(100, days=5, first_day=TOMORROW - 4)
    index = stored.get_blob_client("syncs/orders/ledger/index")
    first = Ledger(stored, ORDERS, "run1", 0)
    first.record(page[:50])
    first.fold()
    old = index.download_blob().readall()
    first.record(page[50:])
    first.fold()
    whole = index.download_blob().readall()
    match damage:
        case "gone":
            index.delete_blob()
        case "torn":
            index.upload_blob(whole[:-3], overwrite=True)
        case "old":
            index.upload_blob(old, overwrite=True)
    second = Ledger(stored, ORDERS, "run2", 100)
    assert second.unsent(page) == [False] * 100
    second.record([(TOMORROW, event_digest("orders", "new"))])
    second.fold()
    assert index.download_blob().readall() == whole[:-1] + bytes([whole[-1] + 1])


def stored_ids(container: ContainerClient, name: str) -> SortedIds:
    return SortedIds(container.download_blob(f"syncs/orders/ledger/days/{name}").readall())
