"""The dead letters: one record per row and reason, until the row is delivered, its person removed or it is forgotten."""

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from azure.storage.blob import BlobLeaseClient, ContainerClient
from ulid import ULID

from shared.deadletters import DeadLetters, Failure, Letter
from shared.errors import StateFault, StateUnavailable
from tests.conftest import SYNCS

ORDERS = SYNCS["orders"]
PREFIX = "syncs/orders/dead-letters/"
LIST = PREFIX + "list.jsonl"
JOURNALS = PREFIX + "journals/"
NOW = datetime.now(UTC).replace(microsecond=0)
RUNS = [str(ULID.from_datetime(NOW - timedelta(minutes=9 - number))) for number in range(9)]


@pytest.fixture
def swept() -> Iterator[None]:
    """Where a blob is empty the SDK leaves a connection open; let that be found in the test that knows."""
    yield
    gc.collect()


@pytest.fixture
def stored(container: ContainerClient) -> ContainerClient:
    container.create_container()
    return container


@pytest.fixture
def requests(azurite: str, stored: ContainerClient) -> Iterator[tuple[ContainerClient, list[str]]]:
    """The container through a client that tells of its requests: (client, ["GET", ...])."""
    made: list[str] = []

    def tell(request: Any) -> None:
        made.append(request.http_request.method)

    with closing(
        ContainerClient.from_connection_string(azurite, stored.container_name, raw_request_hook=tell)
    ) as client:
        yield client, made


@pytest.fixture
def as_a(stored: ContainerClient) -> Iterator[Callable[[type[ContainerClient]], ContainerClient]]:
    """The container through a client of another class."""
    with ExitStack() as clients:

        def make(kind: type[ContainerClient]) -> ContainerClient:
            client = kind(stored.url.rsplit("/", 1)[0], stored.container_name, credential=stored.credential)
            return clients.enter_context(client)

        yield make


def failure(key: str | None, reason: str = "is blank", field: str | None = "event_time", person: str = "") -> Failure:
    return Failure(key, f"0x{1:016X}", field, reason, person)


def run(container: ContainerClient, number: int, **options: Any) -> DeadLetters:
    return DeadLetters(container, ORDERS, RUNS[number], **options)


def on_the_list(container: ContainerClient) -> list[tuple[str | None, str]]:
    return sorted(((one.key, one.reason) for one in run(container, 8).letters()), key=str)


def journals(container: ContainerClient) -> list[str]:
    return [blob.name.removeprefix(JOURNALS) for blob in container.list_blobs(JOURNALS)]


def days_ago(days: float) -> datetime:
    return NOW - timedelta(days=days)


def write_list(container: ContainerClient, *letters: Letter, pages: tuple[str, ...] = ()) -> None:
    lines = [{"letters": len(letters), "pages": pages}, *map(asdict, letters)]
    container.upload_blob(LIST, "".join(json.dumps(line) + "\n" for line in lines).encode(), overwrite=True)


def letter(key: str, seen: datetime = NOW, run: str = RUNS[0], person: str = "") -> Letter:
    return Letter(key, None, "event_time", "is blank", person, seen.isoformat(), seen.isoformat(), run)


# --- a record ---------------------------------------------------------------------------------------------------------


def test_a_record_says_which_row_it_is_and_what_is_wrong_and_nothing_else(stored):
    run(stored, 0).record([Failure("17", "0x01", "event_time", "is blank", "cafe")])
    (found,) = run(stored, 1).letters()
    assert NOW.isoformat() <= found.first_seen == found.last_seen <= datetime.now(UTC).isoformat()
    assert found.first_seen.endswith("+00:00") and len(found.first_seen) == 25
    assert asdict(found) == {
        "key": "17",
        "cursor": "0x01",
        "field": "event_time",
        "reason": "is blank",
        "person": "cafe",
        "first_seen": found.first_seen,
        "last_seen": found.last_seen,
        "run": RUNS[0],
        "tries": 1,
    }


def test_folding_changes_nothing_of_what_is_listed(stored):
    first = run(stored, 0)
    first.record([failure("1", person="cafe"), failure("2", field=None), failure(None)])
    before = first.letters()
    first.fold()
    assert first.letters() == run(stored, 1).letters() == before
    assert journals(stored) == []


def test_one_row_with_two_reasons_is_two_records(stored):
    run(stored, 0).record([failure("1"), failure("1", "is too long"), failure("1", field="event_id")])
    assert len(on_the_list(stored)) == 3


def test_a_row_that_fails_again_keeps_its_first_time_and_counts_a_try_a_run(stored):
    first = letter("1", seen=days_ago(3))
    write_list(stored, first)
    second = run(stored, 1)
    second.record([failure("1", person="cafe")._replace(cursor="0x02")])
    second.record([failure("1")._replace(cursor="0x03")])  # a run may meet a row twice
    second.fold()
    second.record([failure("1")._replace(cursor="0x03")])
    second.fold()
    (found,) = run(stored, 2).letters()
    assert (found.first_seen, found.run, found.tries) == (first.first_seen, RUNS[1], 2)
    assert (found.cursor, found.person) == ("0x03", "cafe")
    assert found.last_seen >= NOW.isoformat()


def test_syncs_have_lists_of_their_own(stored):
    run(stored, 0).record([failure("1")])
    assert DeadLetters(stored, SYNCS["customers"], RUNS[1]).letters() == []


def test_where_there_is_no_container_there_are_no_letters(container):
    assert run(container, 0).letters() == []


# --- leaving the list -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folded", [False, True])
def test_what_is_delivered_leaves_the_list_with_all_its_reasons(stored, folded):
    first = run(stored, 0)
    first.record([failure("1"), failure("1", "is too long"), failure("2")])
    if folded:
        first.fold()
    second = run(stored, 1)
    second.record([], ["0", "1", "3"])
    assert on_the_list(stored) == [("2", "is blank")]
    second.fold()
    assert on_the_list(stored) == [("2", "is blank")]


def test_a_run_can_deliver_what_it_has_failed_to_deliver_before(stored):
    only = run(stored, 0)
    only.record([], ["1"])
    only.record([failure("1")], ["2"])
    only.record([], ["1"])
    only.fold()
    assert on_the_list(stored) == []


def test_a_failure_beside_a_delivery_of_one_key_stays_and_older_ones_go(stored):
    run(stored, 0).record([failure("1")])
    second = run(stored, 1)
    second.record([failure("1", "Customer.io: refused", "email")], ["1"])
    assert on_the_list(stored) == [("1", "Customer.io: refused")]
    second.record([], ["1"])
    assert on_the_list(stored) == []


def test_a_key_that_fails_after_it_was_delivered_is_a_new_record(stored):
    write_list(stored, letter("1", seen=days_ago(3)))
    second = run(stored, 1)
    second.record([], ["1"])
    second.fold()
    third = run(stored, 2)
    third.record([failure("1")])
    third.fold()
    (found,) = third.letters()
    assert (found.tries, found.run) == (1, RUNS[2])
    assert found.first_seen >= NOW.isoformat()


def test_records_that_were_not_seen_for_the_days_are_gone(stored):
    write_list(stored, letter("old", seen=days_ago(30.01)), letter("young", seen=days_ago(29.99)))
    assert [one.key for one in run(stored, 1).letters()] == ["young"]
    assert [one.key for one in run(stored, 1, days=31).letters()] == ["old", "young"]
    second = run(stored, 1)
    second.record([], ["3"])
    second.fold()
    assert b'"old"' not in stored.download_blob(LIST).readall()


def test_a_record_that_is_seen_again_does_not_expire(stored):
    write_list(stored, letter("1", seen=days_ago(29)))
    run(stored, 1).record([failure("1")])
    (found,) = run(stored, 2, days=2).letters()
    assert found.last_seen >= NOW.isoformat()


def test_an_old_journal_expires_too(stored):
    page = {"id": str(ULID.from_datetime(days_ago(31))), "delivered": [], "failures": [failure("1")._asdict()]}
    stored.upload_blob(JOURNALS + RUNS[0], json.dumps(page).encode() + b"\n", blob_type="AppendBlob")
    assert on_the_list(stored) == []


# --- removing a person ------------------------------------------------------------------------------------------------


def test_a_removed_persons_records_go_from_list_and_journals(stored):
    first = run(stored, 0)
    first.record([failure("1", person="cafe"), failure("2", person="beef"), failure("3")])
    first.fold()
    first.record([failure("4", person="cafe")])
    assert run(stored, 1).purge(["cafe", "none", ""]) == 2
    assert on_the_list(stored) == [("2", "is blank"), ("3", "is blank")]
    assert journals(stored) == []
    assert b"cafe" not in stored.download_blob(LIST).readall()
    assert run(stored, 1).purge(["cafe"]) == 0


def test_a_removed_persons_records_do_not_come_back_from_a_journal_that_a_run_still_writes(stored, as_a):
    zombie = run(stored, 0)
    zombie.record([failure("1", person="cafe")])

    class Late(ContainerClient):
        """As the container is, but the zombie writes just before its journal is deleted."""

        def delete_blob(self, blob, *rest, **options):
            zombie.record([failure("2")])
            return super().delete_blob(blob, *rest, **options)

    assert run(as_a(Late), 1).purge(["cafe"]) == 1
    assert journals(stored) == [RUNS[0]]
    assert on_the_list(stored) == [("2", "is blank")]
    zombie.fold()
    assert on_the_list(stored) == [("2", "is blank")]
    assert journals(stored) == []


def test_a_record_without_a_key_is_nobodys(stored):
    """It stands for any number of rows, so one person's removal must not remove it."""
    run(stored, 0).record([failure(None, person="cafe")])
    assert run(stored, 1).purge(["cafe"]) == 0
    assert [(one.key, one.person) for one in run(stored, 1).letters()] == [(None, "")]


# --- what it costs ----------------------------------------------------------------------------------------------------


def test_where_nothing_failed_ever_a_pass_costs_one_listing(requests):
    client, made = requests
    letters = run(client, 0)
    letters.record([])
    letters.fold()
    assert made == []
    for page in range(5):
        letters.record([], [str(page)])
    letters.fold()
    assert made == ["GET"]


def test_a_page_is_one_write_and_without_news_for_the_list_none(requests):
    client, made = requests
    write_list(client, letter("1"))
    letters = run(client, 1)
    letters.record([failure("2")])
    del made[:]
    for _ in range(3):
        letters.record([failure(str(number)) for number in range(10, 1000)], [str(number) for number in range(500)])
    assert made == ["PUT", "PUT", "PUT"]
    del made[:]
    letters.record([], ["0", "1", "3"])
    assert made == []
    letters.record([], ["2000", "999"])
    assert made == ["PUT"]


def test_a_pass_that_has_no_news_for_the_list_does_not_write_it(requests):
    client, made = requests
    write_list(client, letter("1"))
    letters = run(client, 1)
    del made[:]
    letters.record([], ["2"])
    letters.fold()
    assert made == ["GET", "GET"]
    letters.purge(["cafe"])
    assert made == ["GET"] * 4


def test_a_hundred_thousand_records_are_no_trouble(stored):
    letters = run(stored, 0)
    for start in range(0, 100_000, 25_000):
        letters.record([failure(str(number), person=f"{number:032x}") for number in range(start, start + 25_000)])
    letters.fold()
    later = run(stored, 1)
    later.record([], [str(number) for number in range(1, 100_000)])
    later.fold()
    assert on_the_list(stored) == [("0", "is blank")]


# --- kills and other writers ------------------------------------------------------------------------------------------


def test_a_killed_runs_journal_is_folded_by_the_next(stored):
    run(stored, 0).record([failure("1")])
    second = run(stored, 1)
    second.record([], ["2"])
    second.fold()
    assert journals(stored) == []
    assert on_the_list(stored) == [("1", "is blank")]


def test_a_kill_between_the_list_and_the_journals_changes_nothing(stored):
    first = run(stored, 0)
    first.record([failure("1"), failure("2"), failure("3")])
    first.record([failure("1")], ["2"])
    first.record([failure("4", "refused")], ["3", "4"])
    journal = stored.download_blob(JOURNALS + RUNS[0]).readall()
    first.fold()
    before = first.letters()
    stored.upload_blob(JOURNALS + RUNS[0], journal, blob_type="AppendBlob")
    assert first.letters() == before
    second = run(stored, 1)
    second.record([], ["5"])
    second.fold()
    assert journals(stored) == []
    assert second.letters() == before


def test_a_kill_while_journals_are_deleted_brings_nothing_back(stored):
    run(stored, 0).record([failure("1")])
    left = stored.download_blob(JOURNALS + RUNS[0]).readall()
    second = run(stored, 1)
    second.record([], ["1"])
    second.fold()
    stored.upload_blob(JOURNALS + RUNS[0], left, blob_type="AppendBlob")  # of the two, the later one was deleted first
    assert on_the_list(stored) == []


def test_a_journal_is_kept_until_the_list_is_written(stored):
    write_list(stored)
    held = BlobLeaseClient(stored.get_blob_client(LIST))
    held.acquire(60)
    letters = run(stored, 0)
    letters.record([failure("1")])
    with pytest.raises(StateUnavailable):
        letters.fold()
    held.release()
    assert journals(stored) == [RUNS[0]]
    letters.fold()
    assert on_the_list(stored) == [("1", "is blank")]


@pytest.mark.parametrize("before", [False, True])
def test_two_folds_at_once_lose_nothing(stored, as_a, before):
    if before:
        write_list(stored, letter("0"))
    first, second = run(stored, 0), run(stored, 1)
    first.record([failure("1")])

    class Overtaken(ContainerClient):
        """As the container is, but the other run folds just before the list is written."""

        def upload_blob(self, *rest, **options):
            if journals(stored) == [RUNS[0]]:
                second.record([failure("2")], ["0"])
                second.fold()
            return super().upload_blob(*rest, **options)

    late = run(as_a(Overtaken), 2)
    late.record([], ["3"])
    late.fold()
    assert on_the_list(stored) == [("1", "is blank"), ("2", "is blank")]
    assert [one.tries for one in late.letters()] == [1, 1]
    assert journals(stored) == []


def test_who_reads_while_another_folds_sees_every_record(stored, as_a):
    """The other fold falls between the listing and the reading of what was listed."""
    for exists in (False, True):
        first = run(stored, 0)
        first.record([failure(f"{exists}")])

        class Overtaken(ContainerClient):
            def download_blob(self, *rest, **options):
                first.fold()  # noqa: B023
                return super().download_blob(*rest, **options)

        assert f"{exists}" in {one.key for one in run(as_a(Overtaken), 1).letters()}
        assert journals(stored) == []


def test_a_purge_does_not_forget_what_another_has_folded_and_was_killed_before_it_deleted_the_journal(stored, as_a):
    """All of the other's doing falls between the listing and the reading of the list."""
    write_list(stored, letter("0", person="cafe"))
    slow, other = run(stored, 0), run(stored, 1)
    left: list[bytes] = []

    class Overtaken(ContainerClient):
        def download_blob(self, *rest, **options):
            if not left:
                slow.record([failure("1")])
                left.append(stored.download_blob(JOURNALS + RUNS[0]).readall())
                other.record([], ["1"])
                other.fold()
                stored.upload_blob(JOURNALS + RUNS[0], left[0], blob_type="AppendBlob")
            return super().download_blob(*rest, **options)

    assert run(as_a(Overtaken), 2).purge(["cafe"]) == 1
    assert on_the_list(stored) == []


def test_what_a_run_adds_while_another_folds_is_counted_once(stored):
    slow = run(stored, 0)
    slow.record([failure("1")])
    other = run(stored, 1)
    other.record([failure("1")])
    other.fold()
    slow.record([failure("2")])
    slow.record([failure("1")], ["2"])
    slow.fold()
    (found,) = run(stored, 2).letters()
    assert (found.key, found.tries, found.run) == ("1", 2, RUNS[1])


def test_what_was_delivered_later_counts_though_its_run_is_older(stored):
    slow, fast = run(stored, 0), run(stored, 1)
    fast.record([failure("1")])
    slow.record([], ["1"])
    fast.record([failure("2")])
    assert on_the_list(stored) == [("2", "is blank")]


def test_a_page_that_stands_twice_counts_once(stored):
    """As after an append whose answer was lost."""
    first = run(stored, 0)
    first.record([failure("1")])
    journal = stored.get_blob_client(JOURNALS + RUNS[0])
    page = journal.download_blob().readall()
    first.record([], ["1"])
    journal.append_block(page)
    assert on_the_list(stored) == []


def test_a_line_that_was_not_written_to_its_end_is_no_page(stored):
    run(stored, 0).record([failure("1")])
    stored.get_blob_client(JOURNALS + RUNS[0]).append_block(b'{"id": "01')
    assert on_the_list(stored) == [("1", "is blank")]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_journal_that_was_created_and_not_written_is_folded_away(stored, swept):
    stored.get_blob_client(JOURNALS + RUNS[0]).create_append_blob()
    second = run(stored, 1)
    second.record([], ["1"])
    second.fold()
    assert journals(stored) == []
    assert on_the_list(stored) == []


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x\n",
        b"[]\n",
        b'{"letters": 0}\n',
        b'{"letters": 1, "pages": []}\n{"key": "1"}\n',
        b'{"letters": 2, "pages": []}\n' + json.dumps(asdict(letter("secret"))).encode() + b"\n",
        b'{"letters": 1, "pages": []}\n' + json.dumps(asdict(letter("secret"))).encode()[:-9],
    ],
)
def test_a_damaged_list_is_a_fault_that_names_the_blob(stored, swept, content):
    stored.upload_blob(LIST, content)
    letters = run(stored, 0)
    for act in (letters.letters, letters.summary, lambda: letters.record([failure("1")]), lambda: letters.purge(["x"])):
        with pytest.raises(StateFault, match=rf"{LIST} are damaged\. Restore an earlier version of that blob") as fault:
            act()
        assert "secret" not in str(fault.value)
        assert fault.value.__cause__ is None
    assert stored.download_blob(LIST).readall() == content


def test_a_damaged_journal_is_a_fault_that_names_the_blob(stored):
    stored.upload_blob(JOURNALS + RUNS[0], b'{"id": "17"}\n', blob_type="AppendBlob")
    with pytest.raises(StateFault, match=f"{RUNS[0]} are damaged"):
        run(stored, 1).letters()


# --- the summary ------------------------------------------------------------------------------------------------------


def test_the_summary_counts_by_reason_and_tells_nothing_of_a_person(stored):
    old = days_ago(2)
    write_list(stored, letter("0", seen=old, person="cafe"))
    run(stored, 1).record(
        [failure(str(number), person="cafe") for number in range(1, 150)]
        + [failure("7", "Customer.io: refused", None), failure(None, "Customer.io: refused", None)]
        + [failure("8", "Customer.io: refused", "email")]
    )
    summary = run(stored, 2).summary()
    assert (summary["sync"], summary["total"]) == ("orders", 153)
    many, two, one = summary["reasons"]
    assert (many["reason"], many["count"], len(many["keys"])) == ("event_time: is blank", 150, 100)
    assert many["first_seen"] == old.isoformat() < NOW.isoformat() <= many["last_seen"]
    assert (two["reason"], two["count"], two["keys"]) == ("Customer.io: refused", 2, ["7"])
    assert (one["reason"], one["count"], one["keys"]) == ("email: Customer.io: refused", 1, ["8"])
    assert "cafe" not in json.dumps(summary)


def test_the_summary_of_nothing(stored):
    assert run(stored, 0).summary() == {"sync": "orders", "total": 0, "reasons": []}
