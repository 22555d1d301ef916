"""The dead letters of one sync: what could not be delivered, until it is.

    syncs/<sync>/dead-letters/list.jsonl       a head, then one letter a line: all of them, as of the last fold
    syncs/<sync>/dead-letters/journals/<run>   what one run has seen since, one page a line: failures and deliveries

A letter says which row it is, by key and cursor, and what is wrong with it. It never holds the row: a replay reads that
again from its view.

A page costs one durable write, and none where nothing failed and nothing on the list was delivered. When the run ends,
the journals are folded into the list. A journal whose run was killed is read, and folded, by the next run.

Invariant: the head of the list names the pages it has taken in of every journal that may still be there. So a page
counts once, however often it is read: a kill between the list and the deletion of the journals, an append whose answer
was lost, or a run that goes on writing while another folds neither count twice nor bring back what has left the list.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from heapq import merge
from typing import Any, NamedTuple

from azure.core import MatchConditions
from azure.core.exceptions import ResourceExistsError, ResourceModifiedError, ResourceNotFoundError
from azure.storage.blob import ContainerClient
from ulid import ULID

from shared.errors import StateFault
from shared.flood import Reason, name_of
from shared.state import append, storage_errors
from shared.syncs import Sync

_KEYS_TOLD = 100
"""Keys of one reason in a summary."""

_HEAD_BYTES = 40
"""As much of the list as tells the number of its letters."""


class Failure(NamedTuple):
    """A row or an operation that cannot be delivered, as a run has just seen it; see Letter."""

    key: str | None
    cursor: str | None
    field: str | None
    reason: str
    person: str


@dataclass(frozen=True, slots=True)
class Letter:
    """One record of the list; key, field and reason tell it apart.

    `key` and `cursor` are the row's (see Position), `field` the column or attribute, None where there is none.
    `person` is a keyed hash of the customer id, "" where unknown: also without a key, where the letter stands for any
    number of rows. `first_seen` and `last_seen` are ISO 8601, UTC, to the second. `tries` counts the runs that saw it,
    `run` is the latest of them.
    """

    key: str | None
    cursor: str | None
    field: str | None
    reason: str
    person: str
    first_seen: str
    last_seen: str
    run: str
    tries: int = 1


@dataclass(frozen=True, slots=True)
class _Page:
    """A line of a journal: of one page, first the keys that were delivered, then what failed."""

    id: str
    run: str
    seen: str
    delivered: list[str]
    failures: list[Failure]


@dataclass(slots=True)
class _Stored:
    """List and journals at one moment. ETags: `etag` is the list's, None without one; `journals` are by blob name."""

    etag: str | None = None
    journals: dict[str, str] = field(default_factory=dict)
    pages: list[str] = field(default_factory=list)  # ids of all that is in the journals
    letters: dict[str | None, dict[Reason, Letter]] = field(default_factory=dict)  # by key
    expired: bool = False

    def __iter__(self) -> Iterator[Letter]:
        return (letter for letters in self.letters.values() for letter in letters.values())

    def keep(self, letter: Letter) -> None:
        self.letters.setdefault(letter.key, {})[letter.field, letter.reason] = letter

    def apply(self, page: _Page) -> None:
        for key in page.delivered:
            self.letters.pop(key, None)
        for failure in page.failures:
            known = self.letters.get(failure.key, {}).get((failure.field, failure.reason))
            if known is None:
                self.keep(Letter(*failure, first_seen=page.seen, last_seen=page.seen, run=page.run))
            else:
                again = page.run > known.run  # a run counts once, whatever number of its pages meets the row
                self.keep(
                    replace(
                        known,
                        cursor=failure.cursor,
                        person=failure.person or known.person,
                        last_seen=page.seen,
                        run=max(page.run, known.run),
                        tries=known.tries + again,
                    )
                )


class DeadLetters:
    """One run's door to the list. Making it asks nothing of blob storage.

    Every method raises StateUnavailable where that does not answer, and StateFault where what is there is damaged.
    """

    def __init__(self, container: ContainerClient, sync: Sync, run: str, days: int = 30) -> None:
        """`run` is a ULID; letters that nobody has seen for `days` are gone."""
        self._container = container
        self._sync = sync
        self._days = days
        self._prefix = f"syncs/{sync.name}/dead-letters/"
        self._list = self._prefix + "list.jsonl"
        self._journals = self._prefix + "journals/"
        self._journal = self._journals + run
        self._keys: set[str | None] | None = None  # of the letters on the list, once it was read
        self._due = False

    def record(self, failures: Sequence[Failure], delivered: Collection[str] = ()) -> None:
        """Note what a page has failed to deliver and the keys it has delivered, in one durable write or none.

        A key that is delivered loses its letters. One that is in both keeps what failed now: an event may be accepted
        and the identify before it refused.
        """
        if not failures and not delivered:
            return
        if self._keys is None:
            stored = self._read()
            self._keys = set(stored.letters)
            self._due = bool(stored.journals) or stored.expired
        left = sorted(key for key in self._keys.intersection(delivered) if key is not None)
        if not failures and not left:
            return
        page = {
            "id": str(ULID()),
            "delivered": left,
            # a letter without a key is of several people
            "failures": [(one if one.key is not None else one._replace(person=""))._asdict() for one in failures],
        }
        self._due = True
        with storage_errors():
            append(self._container.get_blob_client(self._journal), json.dumps(page).encode() + b"\n")
        self._keys.difference_update(left)
        self._keys.update(one.key for one in failures)

    def fold(self) -> None:
        """Move what the journals hold into the list, and drop what has expired.

        Asks nothing of blob storage where this run knows of nothing to do. Killed at any point, the next fold completes
        it.
        """
        if self._due:
            self._rewrite(frozenset())

    def letters(self) -> list[Letter]:
        """All letters as of now."""
        return list(self._read())

    def depth(self) -> int:
        """How many letters the list holds as of its last fold, for one small read; 0 without a list."""
        with storage_errors():
            try:
                head = self._container.download_blob(self._list, offset=0, length=_HEAD_BYTES).readall()
            except ResourceNotFoundError:
                return 0
        with _damage(self._list):
            return int(head.removeprefix(b'{"letters": ').split(b",")[0])

    def purge(self, persons: Collection[str]) -> int:
        """Remove all letters of these persons, who are removed themselves; how many there were."""
        return self._rewrite(frozenset(persons) - {""})

    def summary(self) -> dict[str, Any]:
        """The letters counted by reason, the most frequent first, without anything personal but keys.

        {"sync": ..., "total": n, "reasons": [{"reason": the text that a flood's release takes, "count": n,
        "first_seen": ..., "last_seen": ..., "keys": [at most 100]}, ...]}
        """
        reasons: dict[str, dict[str, Any]] = {}
        total = 0
        for letter in self._read():
            total += 1
            name = name_of((letter.field, letter.reason))
            told = reasons.setdefault(
                name,
                {
                    "reason": name,
                    "count": 0,
                    "first_seen": letter.first_seen,
                    "last_seen": letter.last_seen,
                    "keys": [],
                },
            )
            told["count"] += 1
            told["first_seen"] = min(told["first_seen"], letter.first_seen)
            told["last_seen"] = max(told["last_seen"], letter.last_seen)
            if letter.key is not None and len(told["keys"]) < _KEYS_TOLD:
                told["keys"].append(letter.key)
        by_count = sorted(reasons.values(), key=lambda told: (-told["count"], told["reason"]))
        return {"sync": self._sync.name, "total": total, "reasons": by_count}

    def _rewrite(self, gone: Collection[str]) -> int:
        """Write the list anew, without the letters of the persons that are `gone`; how many these were."""
        while True:
            stored = self._read()
            kept = [letter for letter in stored if letter.person not in gone]
            removed = sum(1 for _ in stored) - len(kept)
            if not (stored.journals or stored.expired or removed):
                break
            head = {"letters": len(kept), "pages": stored.pages}
            lines = [json.dumps(head), *(json.dumps(asdict(letter)) for letter in kept)]
            condition: dict[str, Any] = {}
            if stored.etag is not None:
                condition = {
                    "overwrite": True,
                    "etag": stored.etag,
                    "match_condition": MatchConditions.IfNotModified,
                }
            with storage_errors():
                try:
                    self._container.upload_blob(self._list, ("\n".join(lines) + "\n").encode(), **condition)
                except (ResourceModifiedError, ResourceExistsError):
                    continue  # another run has folded meanwhile, or the SDK met its own write, whose answer was lost
                for name, etag in stored.journals.items():
                    # what another run has added meanwhile stays for the next fold
                    with suppress(ResourceModifiedError, ResourceNotFoundError):
                        self._container.delete_blob(name, etag=etag, match_condition=MatchConditions.IfNotModified)
            break
        self._keys = {letter.key for letter in kept}
        self._due = False
        return removed

    def _read(self) -> _Stored:
        """List and journals as they stood together at one moment, without what has expired."""
        with storage_errors():
            while True:
                try:
                    etags = {blob.name: blob.etag for blob in self._container.list_blobs(self._prefix)}
                except ResourceNotFoundError:  # the container itself
                    return _Stored()
                # a fold between the listing and the reading changes the list or removes a journal
                with suppress(ResourceNotFoundError, ResourceModifiedError):
                    if (stored := self._load(etags)) is not None:
                        return stored

    def _load(self, etags: dict[str, str]) -> _Stored | None:
        """Read what a listing has found; None where the list is another by now."""
        oldest = (datetime.now(UTC) - timedelta(days=self._days)).isoformat(timespec="seconds")
        stored = _Stored()
        folded: set[str] = set()
        if self._list in etags:
            download = self._container.download_blob(self._list)
            stored.etag = download.properties.etag
            if stored.etag.strip('"') != etags[self._list].strip('"'):  # a listing tells it without quotes
                return None
            with _damage(self._list):
                head, *lines = download.readall().splitlines()
                head = json.loads(head)
                folded.update(head["pages"])
                if len(lines) != head["letters"]:
                    raise ValueError
                for line in lines:
                    letter = Letter(**json.loads(line))
                    if letter.last_seen < oldest:
                        stored.expired = True
                    else:
                        stored.keep(letter)
        journals = []
        for name in etags:
            if name.startswith(self._journals):
                download = self._container.download_blob(name)
                with _damage(name):
                    journals.append(_pages(name.removeprefix(self._journals), download.readall()))
                stored.journals[name] = download.properties.etag
        # in the order of time, and each run's pages in their own
        for page in merge(*journals, key=lambda page: page.id):
            stored.pages.append(page.id)
            if page.id not in folded and page.seen >= oldest:
                folded.add(page.id)
                stored.apply(page)
        return stored


def _pages(run: str, content: bytes) -> list[_Page]:
    """The pages of a journal. A last line without its end was never answered for, so that its page is done again."""
    *lines, _ = content.split(b"\n")
    pages = []
    for line in lines:
        page = json.loads(line)
        seen = ULID.from_str(page["id"]).datetime.isoformat(timespec="seconds")
        failures = [Failure(**failure) for failure in page["failures"]]
        pages.append(_Page(page["id"], run, seen, page["delivered"], failures))
    return pages


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """Say of a blob that cannot be read that it is damaged."""
    try:
        yield
    except (ValueError, KeyError, TypeError):
        raise StateFault(f"The dead letters in {name} are damaged. Restore an earlier version of that blob.") from None
