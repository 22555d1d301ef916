"""The ledger of one sync: the ids of everything sent that must not be sent twice.

    syncs/<sync>/ledger/journals/<run>   what one run has sent, in its order: day (4 bytes) and id (16 bytes) an entry
    syncs/<sync>/ledger/days/<date>      the ids of one event day, sorted, 16 bytes each

A page costs one durable write, a block of the run's journal, however many days its events lie on. When the pass ends,
the journal is folded into the days. A journal whose run was killed is read by the next pass, and folded by it.

Invariant: an id is in a journal before the mark passes its row, and in its day before its journal is deleted. So a kill
at any moment leaves it in at least one of them, and folding twice changes nothing.

An id is looked for on its event's day and on both neighbours: a corrected time zone, which moves an event by less than
a day, does not send it again.
"""

import struct
from bisect import bisect_left
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime

from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError
from azure.storage.blob import ContainerClient

from shared.errors import StateFault
from shared.mapping import DIGEST_BYTES, SECONDS_PER_DAY
from shared.state import append, storage_errors
from shared.syncs import Sync

_ENTRY = struct.Struct(f">i{DIGEST_BYTES}s")
_FOLD_AT = 1_000_000  # ids in memory: 16 MB
_CACHED_BYTES = 32 * 2**20
_PARALLEL = 8

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
        return (self[index] for index in range(len(self)))


class Ledger:
    """One run's door to the ledger; used while the sync's lease is held."""

    def __init__(self, container: ContainerClient, sync: Sync, run: str, at_least: int) -> None:
        """Look what is there. Raises StateFault where that is less than the `at_least` ids that the mark knows of."""
        self._container = container
        self._days = f"syncs/{sync.name}/ledger/days/"
        self._journals = f"syncs/{sync.name}/ledger/journals/"
        self._journal = self._journals + run
        self._stored: dict[int, int] = {}  # day -> bytes
        self._cache: OrderedDict[int, SortedIds] = OrderedDict()
        self._recent = Ids()  # journaled, not folded yet
        self._on_their_way: set[bytes] = set()  # of the pages that are being sent
        open_journals: list[str] = []
        journaled = 0
        with storage_errors():
            for blob in container.list_blobs(f"syncs/{sync.name}/ledger/"):
                if blob.name.startswith(self._days):
                    self._stored[_day_of(blob.name[len(self._days) :])] = blob.size
                else:
                    open_journals.append(blob.name)
                    journaled += blob.size // _ENTRY.size
        damaged = [day for day, size in self._stored.items() if size % DIGEST_BYTES]
        found = sum(self._stored.values()) // DIGEST_BYTES + journaled
        if damaged or found < at_least:
            raise StateFault(
                f"The ledger of {sync.name} is damaged: the mark knows of {at_least} sent events, {found} are left."
                f" Nothing was sent. Restore the blobs below syncs/{sync.name}/ledger/ (soft delete, versions)."
            )
        self._open = open_journals
        for name in open_journals:
            for _, digest in self._read_journal(name)[1]:
                if digest not in self._recent:
                    self._recent.add(digest)

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
            etags[name], entries = self._read_journal(name)
            for day, digest in entries:
                by_day[day] += digest
        with ThreadPoolExecutor(_PARALLEL) as pool:
            for day, size in pool.map(self._merge, by_day.items()):
                self._stored[day] = size
                self._cache.pop(day, None)
        with storage_errors():
            for name, etag in etags.items():
                # what a run without its lease has added meanwhile stays for the next fold
                with suppress(ResourceModifiedError, ResourceNotFoundError):
                    self._container.delete_blob(name, etag=etag, match_condition=MatchConditions.IfNotModified)
        self._open = []
        self._recent = Ids()

    def _read_journal(self, name: str) -> tuple[str, Iterable[Entry]]:
        """A journal's ETag and its entries."""
        with storage_errors():
            download = self._container.download_blob(name)
            content = download.readall()
        if len(content) % _ENTRY.size:
            raise StateFault(f"The journal {name} is damaged. Restore an earlier version of that blob.")
        return download.properties.etag, _ENTRY.iter_unpack(content)

    def _read_days(self, days: Sequence[int]) -> Iterator[tuple[int, SortedIds]]:
        """The ids of stored days, a few of them in memory at a time."""

        def read(day: int) -> SortedIds:
            with storage_errors():
                return SortedIds(self._container.download_blob(self._days + _date_of(day)).readall())

        with ThreadPoolExecutor(_PARALLEL) as pool:
            for start in range(0, len(days), _PARALLEL):
                some = days[start : start + _PARALLEL]
                missing = [day for day in some if day not in self._cache]
                self._cache.update(zip(missing, pool.map(read, missing), strict=True))
                for day in some:
                    self._cache.move_to_end(day)
                    yield day, self._cache[day]
                while sum(map(len, self._cache.values())) * DIGEST_BYTES > _CACHED_BYTES:
                    self._cache.popitem(last=False)

    def _merge(self, item: tuple[int, bytearray]) -> tuple[int, int]:
        day, journaled = item
        blob = self._container.get_blob_client(self._days + _date_of(day))
        exists = day in self._stored
        with storage_errors():
            while True:
                download = blob.download_blob() if exists else None
                ids = {*SortedIds(bytes(journaled)), *SortedIds(download.readall() if download else b"")}
                packed = b"".join(sorted(ids))
                try:
                    if download:
                        blob.upload_blob(
                            packed,
                            overwrite=True,
                            etag=download.properties.etag,
                            match_condition=MatchConditions.IfNotModified,
                        )
                    else:
                        blob.upload_blob(packed)
                    return day, len(packed)
                except (ResourceModifiedError, ResourceExistsError):
                    # another writer was at this day: merge with what it wrote
                    exists = True


def _date_of(day: int) -> str:
    return datetime.fromtimestamp(day * SECONDS_PER_DAY, UTC).date().isoformat()


def _day_of(date: str) -> int:
    return int(datetime.fromisoformat(date).replace(tzinfo=UTC).timestamp()) // SECONDS_PER_DAY
