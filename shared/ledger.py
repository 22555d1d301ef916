"""The ledger of one sync: the ids of everything sent that must not be sent twice.

    syncs/<sync>/ledger/journals/<run>   what one run has sent, in its order: day (4 bytes) and id (16 bytes) an entry
    syncs/<sync>/ledger/days/<date>      the ids of one event day, sorted, 16 bytes each
    syncs/<sync>/ledger/index            the days that are there: day (4 bytes) and its number of ids (4 bytes) an entry

A page costs one durable write, a block of the run's journal, however many days its events lie on. When the pass ends,
the journal is folded into the days. A journal whose run was killed is read by the next pass, and folded by it.

Invariant: an id is in a journal before the mark passes its row, and in its day, and its day in the index, before its
journal is deleted. So a kill at any moment leaves it in at least one of them, and folding twice changes nothing.

Runs go by the index: to list two years of days costs more than all the rest of a pass. Only where it knows of no event
of today yet, or of less than the mark does, are the days listed: so a lost one is told while it can still be restored.
In between, a day that is not there as the index says is a fault once it is needed. The index itself may be deleted.

An id is looked for on its event's day and on both neighbours: a corrected time zone, which moves an event by less than
a day, does not send it again.
"""

import struct
import time
from bisect import bisect_left
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from itertools import starmap
from typing import Any

from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError
from azure.storage.blob import ContainerClient

from shared.errors import StateFault
from shared.mapping import DIGEST_BYTES, SECONDS_PER_DAY
from shared.state import Document, append, storage_errors
from shared.syncs import Sync

_ENTRY = struct.Struct(f">i{DIGEST_BYTES}s")
_ID = struct.Struct(f"{DIGEST_BYTES}s")
_IN_INDEX = struct.Struct(">iI")
_FOLD_AT = 1_000_000  # ids in memory: 16 MB
_CACHED_BYTES = 32 * 2**20
_PARALLEL = 8
_RESTORE = "Restore {} (soft delete, versions)."

Entry = tuple[int, bytes]
"""An event's day (days since 1970) and the id of 16 bytes."""


class Ids:
    """A set of ids of 16 bytes that stays packed: a Python set would take five times the memory."""

    def __init__(self) -> None:
        self._buckets: defaultdict[bytes, bytearray] = defaultdict(bytearray)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, digest: bytes) -> bool:
        bucket = self._buckets.get(digest[:2])
        if bucket is None:
            return False
        at = bucket.find(digest)
        while at % DIGEST_BYTES and at > 0:  # found across two ids
            at = bucket.find(digest, at + 1)
        return at >= 0

    def add(self, digest: bytes) -> None:
        """Add an id that is not in the set."""
        self._buckets[digest[:2]] += digest
        self._count += 1


class SortedIds:
    """The ids of a stored day: sorted, packed, searched by halving."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed) // DIGEST_BYTES

    def __getitem__(self, index: int) -> bytes:
        return self._packed[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]

    def __contains__(self, digest: bytes) -> bool:
        at = bisect_left(self, digest)
        return at < len(self) and self[at] == digest

    def __iter__(self) -> Iterator[bytes]:
        return (digest for (digest,) in _ID.iter_unpack(self._packed))


_Stored = tuple[str, SortedIds]
"""A stored day's ETag and its ids."""


class Ledger:
    """One run's door to the ledger. Several may write at once: a pass, which holds the sync's lease, and slices."""

    def __init__(self, container: ContainerClient, sync: Sync, run: str, at_least: int, *, others: bool = True) -> None:
        """Look what is there. Raises StateFault where that is less than the `at_least` ids that the mark knows of.

        `unsent` and `fold` raise it too, where a stored day that they need holds less than it did. Without `others` the
        journals of other slices are left to these, or each would fold those of all.
        """
        folder = f"syncs/{sync.name}/ledger/"
        self._container = container
        self._days = f"{folder}days/"
        self._journal = f"{folder}journals/{run}"
        self._index = Document(container, f"{folder}index")
        self._cache: OrderedDict[int, _Stored] = OrderedDict()
        self._recent = Ids()  # journaled, not folded yet
        self._on_their_way: set[bytes] = set()  # of the pages that are being sent
        # journals before days: what another run folds meanwhile is met twice, and not missed
        with storage_errors():
            journals = {blob.name: blob.size // _ENTRY.size for blob in container.list_blobs(f"{folder}journals/")}
        self._stored = _unpack_index(self._index.read())  # day -> ids, at least
        journaled = sum(journals.values())
        if not others:
            journals = {name: count for name, count in journals.items() if name == self._journal or not _of_slice(name)}
        today = int(time.time()) // SECONDS_PER_DAY
        if max(self._stored, default=today - 1) < today or sum(self._stored.values()) + journaled < at_least:
            self._stored = self._list_days()
        found = sum(self._stored.values()) + journaled
        if found < at_least:
            raise StateFault(
                f"The ledger of {sync.name} is damaged: the mark knows of {at_least} sent events, {found} are left."
                f" Nothing was sent. {_RESTORE.format(f'the blobs below {folder}')}"
            )
        self._open = list(journals)
        for name in journals:
            etag, entries = self._read_journal(name)
            for _, digest in entries:
                if digest not in self._recent:
                    self._recent.add(digest)
            if etag is None:  # another run has folded it, perhaps into days that nobody knew of when the index was read
                self._stored = {**self._stored, **_unpack_index(self._index.read())}

    def unsent(self, entries: Sequence[Entry]) -> list[bool]:
        """For each event of a page, whether it is to be sent; if so, it is on its way from now on."""
        wanted: defaultdict[int, list[int]] = defaultdict(list)
        unsent = []
        for index, (day, digest) in enumerate(entries):
            new = digest not in self._recent and digest not in self._on_their_way
            unsent.append(new)
            if new:
                self._on_their_way.add(digest)
                for near in (day - 1, day, day + 1):
                    if near in self._stored:
                        wanted[near].append(index)
        for day, ids in self._read_days(sorted(wanted)):
            for index in wanted[day]:
                digest = entries[index][1]
                if unsent[index] and digest in ids:
                    unsent[index] = False
                    self._on_their_way.discard(digest)
        return unsent

    @property
    def stored(self) -> int:
        """How many ids the days hold, at least."""
        return sum(self._stored.values())

    def count_of(self, date: str) -> int:
        """How many ids a day (ISO 8601) has, without those of open journals."""
        return self._stored.get(_day_of(date), 0)

    def record(self, sent: Sequence[Entry]) -> None:
        """Note what a page has sent, in one durable write."""
        if sent:
            block = b"".join(_ENTRY.pack(*entry) for entry in sent)
            with storage_errors():
                append(self._container.get_blob_client(self._journal), block)
            if self._journal not in self._open:
                self._open.append(self._journal)
        for _, digest in sent:
            self._recent.add(digest)
        self.release(sent)
        if len(self._recent) >= _FOLD_AT:
            self.fold()

    def release(self, entries: Sequence[Entry]) -> None:
        """These are not on their way after all."""
        self._on_their_way.difference_update(digest for _, digest in entries)

    def fold(self) -> None:
        """Move the journals' ids into their days. Killed at any point, the next fold completes it."""
        by_day: defaultdict[int, bytearray] = defaultdict(bytearray)
        etags = {}
        for name in self._open:
            etag, entries = self._read_journal(name)
            if etag is not None:
                etags[name] = etag
            for day, digest in entries:
                by_day[day] += digest
        with ThreadPoolExecutor(_PARALLEL) as pool:
            for day, count in pool.map(self._merge, by_day.items()):
                self._stored[day] = count
                self._cache.pop(day, None)
        if by_day:
            self._index.change(self._with_stored)
        with storage_errors():
            for name, etag in etags.items():
                # what a run without its lease has added meanwhile stays for the next fold
                with suppress(ResourceModifiedError, ResourceNotFoundError):
                    self._container.delete_blob(name, etag=etag, match_condition=MatchConditions.IfNotModified)
        self._open = []
        self._recent = Ids()

    def _read_journal(self, name: str) -> tuple[str | None, Iterable[Entry]]:
        """A journal's ETag and its entries; None and nothing where another run has folded it."""
        with storage_errors():
            try:
                download = self._container.download_blob(name)
            except ResourceNotFoundError:
                return None, ()
            content = download.readall()
        if len(content) % _ENTRY.size:
            raise StateFault(f"The journal {name} is damaged. Restore an earlier version of that blob.")
        return download.properties.etag, _ENTRY.iter_unpack(content)

    def _read_days(self, days: Sequence[int]) -> Iterator[tuple[int, SortedIds]]:
        """The ids of stored days, a few of them in memory at a time."""
        with ThreadPoolExecutor(_PARALLEL) as pool:
            for start in range(0, len(days), _PARALLEL):
                some = days[start : start + _PARALLEL]
                missing = [day for day in some if day not in self._cache]
                self._cache.update(zip(missing, pool.map(self._read_day, missing), strict=True))
                for day in some:
                    self._cache.move_to_end(day)
                    yield day, self._cache[day][1]
                while sum(len(ids) for _, ids in self._cache.values()) * DIGEST_BYTES > _CACHED_BYTES:
                    self._cache.popitem(last=False)

    def _read_day(self, day: int) -> _Stored:
        """A stored day. Raises StateFault where it holds less than it did."""
        name = self._days + _date_of(day)
        with storage_errors():
            try:
                download = self._container.download_blob(name)
                content = download.readall()
            except ResourceNotFoundError:
                raise _damaged(name) from None
        if len(content) % DIGEST_BYTES or len(content) // DIGEST_BYTES < self._stored.get(day, 0):
            raise _damaged(name)
        return download.properties.etag, SortedIds(content)

    def _list_days(self) -> dict[int, int]:
        """The days that are there, and how many ids each holds. Raises StateFault where one is torn."""
        days = {}
        with storage_errors():
            for blob in self._container.list_blobs(self._days):
                count, rest = divmod(blob.size, DIGEST_BYTES)
                if rest:
                    raise _damaged(blob.name)
                days[_day_of(blob.name[len(self._days) :])] = count
        return days

    def _with_stored(self, index: bytes | None) -> bytes:
        """The index with what this run knows. Days only grow: of two counts the higher one is the later one."""
        for day, count in _unpack_index(index).items():
            self._stored[day] = max(count, self._stored.get(day, 0))
        return b"".join(starmap(_IN_INDEX.pack, sorted(self._stored.items())))

    def _merge(self, item: tuple[int, bytearray]) -> tuple[int, int]:
        day, journaled = item
        blob = self._container.get_blob_client(self._days + _date_of(day))
        stored = self._cache.get(day) or (self._read_day(day) if day in self._stored else None)
        with storage_errors():
            while True:
                before, only_if = SortedIds(b""), dict[str, Any]()
                if stored:
                    etag, before = stored
                    only_if = {"overwrite": True, "etag": etag, "match_condition": MatchConditions.IfNotModified}
                ids = dict.fromkeys([*before, *SortedIds(bytes(journaled))])  # in order but for the new: quickly sorted
                try:
                    blob.upload_blob(b"".join(sorted(ids)), **only_if)
                    return day, len(ids)
                except (ResourceModifiedError, ResourceExistsError):
                    stored = self._read_day(day)  # another writer was at this day: merge with what it wrote


def _of_slice(journal: str) -> bool:
    """Whether a journal is a slice's: the run's id has the slice's number after it."""
    return "-" in journal.rpartition("/")[2]


def _damaged(name: str) -> StateFault:
    return StateFault(f"{name} is damaged: sent events are missing in it. {_RESTORE.format('that blob')}")


def _unpack_index(index: bytes | None) -> dict[int, int]:
    whole = index or b""
    return dict(_IN_INDEX.iter_unpack(whole[: len(whole) // _IN_INDEX.size * _IN_INDEX.size]))


def _date_of(day: int) -> str:
    return datetime.fromtimestamp(day * SECONDS_PER_DAY, UTC).date().isoformat()


def _day_of(date: str) -> int:
    return int(datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp()) // SECONDS_PER_DAY
