"""Who was removed, and who was merged into whom: what must be known of people before anything is sent to them.

    people.json   the key of the hashes, the removed people (16 bytes each), and {merged person: the primary's id}

It is made with the container's first state, so that its absence is a fault and never means that nobody was removed.

One blob, so that one read tells all; every batch asks for it anew right before it is posted, and mostly hears that
nothing changed. A removal or a merge is recorded here before Customer.io is told. So what another pass still has to
send, or tries again, meets the record and does not bring the person back.

A person stands here by a hash with a key (BLAKE2b), because an id that was removed must not be kept as it is, and a
plain hash of a small number is soon guessed. Only the id of a primary, to whom rows have to go, is kept as it is.
"""

import hashlib
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import orjson

from shared.customerio import Barred
from shared.errors import StateFault
from shared.mapping import DIGEST_BYTES
from shared.state import Document, Identity, State

_NAME = "people.json"


@dataclass(frozen=True, slots=True)
class _Book:
    """What the blob holds."""

    key: bytes = b""
    removed: frozenset[bytes] = frozenset()
    merged: Mapping[bytes, str] = field(default_factory=dict)

    def hash_of(self, person: str) -> bytes:
        return hashlib.blake2b(person.encode("utf-8", "surrogatepass"), key=self.key, digest_size=DIGEST_BYTES).digest()

    def primary_of(self, person: str) -> str:
        """Who the person is now: the end of a chain of merges. Who was removed is nobody else."""
        met = set()  # a circle is refused when it is recorded; should there be one, it must not hang every sync
        while (known := self.hash_of(person)) in self.merged and known not in self.removed and known not in met:
            met.add(known)
            person = self.merged[known]
        return person

    def to_json(self) -> bytes:
        return orjson.dumps(
            {
                "key": self.key.hex(),
                "removed": b"".join(sorted(self.removed)).hex(),
                "merged": {person.hex(): primary for person, primary in self.merged.items()},
            }
        )

    @classmethod
    def from_json(cls, text: bytes | None) -> "_Book":
        if text is None:
            raise StateFault(
                f"{_NAME} is gone, so nobody knows who was removed. Nothing more was sent. Restore that blob (soft"
                " delete, versions)."
            )
        try:
            stored = orjson.loads(text)
            packed = bytes.fromhex(stored["removed"])
            return cls(
                bytes.fromhex(stored["key"]),
                frozenset(packed[at : at + DIGEST_BYTES] for at in range(0, len(packed), DIGEST_BYTES)),
                {bytes.fromhex(person): primary for person, primary in stored["merged"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StateFault(
                f"{_NAME} is damaged, so nobody knows who was removed. Nothing was sent. Restore an earlier version of"
                " that blob; do not delete it."
            ) from None


def admit(state: State, identity: Identity) -> None:
    """Before people are sent outside of a pass: make the record in a container that has no state yet.

    Raises StateFault where the state belongs to another workspace, server or database.
    """
    if state.is_new():
        People(state).begin()
    else:
        state.remember(identity)


class People:
    """The record of one container. Its methods may be called from several threads at once.

    Each raises StateFault where the record is damaged and StateUnavailable where blob storage does not answer.
    """

    def __init__(self, state: State) -> None:
        self._document = Document(state.container, _NAME)
        self._read: tuple[bytes | None, _Book] = (None, _Book())

    @property
    def _book(self) -> _Book:
        return self._read[1]

    def _take(self, text: bytes | None) -> _Book:
        read = self._read
        if text is None or text is not read[0]:
            # in one assignment: other threads take theirs at any moment
            read = self._read = (text, _Book.from_json(text))
        return read[1]

    def begin(self) -> None:
        """Make the record of a container that has no state yet."""
        self._document.change(lambda text: text or _Book(secrets.token_bytes(32)).to_json())

    def refresh(self) -> None:
        """Read what was recorded since the last time."""
        self._take(self._document.read())

    def barred(self, people: Sequence[str]) -> dict[str, Barred]:
        """Of these people, read anew: who was removed, and who is somebody else by now."""
        book = self._take(self._document.read())
        if not book.removed and not book.merged:
            return {}
        found = {}
        for person in people:
            known = book.hash_of(person)
            if known in book.removed:
                found[person] = Barred.REMOVED
            elif known in book.merged and book.primary_of(person) != person:
                found[person] = Barred.MERGED
        return found

    def removed(self, people: Collection[str]) -> set[str]:
        """Which of these people were removed, as of the last read."""
        book = self._book
        return {person for person in people if book.removed and book.hash_of(person) in book.removed}

    def primaries(self, people: Collection[str]) -> dict[str, str]:
        """Who of these people was merged, and into whom: the end of the chain. As of the last read."""
        book = self._book
        if not book.merged:
            return {}
        found = {person: book.primary_of(person) for person in set(people)}
        return {person: primary for person, primary in found.items() if primary != person}

    def hash_of(self, person: str) -> str:
        """What stands for a person in state: 32 hex digits. As of the last read."""
        return self._book.hash_of(person).hex()

    def remove(self, people: Collection[str]) -> None:
        """Record that these people are removed, before Customer.io is told; with them who was merged into them."""

        def change(book: _Book) -> _Book:
            gone = {book.hash_of(person) for person in people}
            ends = {merged: book.primary_of(primary) for merged, primary in book.merged.items()}
            theirs = {merged for merged, end in ends.items() if book.hash_of(end) in gone}
            # who was merged into one of the removed, and with that one into somebody else, stays with the latter
            left = {merged: end for merged, end in ends.items() if merged not in theirs}
            return replace(book, removed=book.removed | gone | theirs, merged=left)

        self._change(change)

    def restore(self, people: Collection[str]) -> None:
        """Record that these people are to be sent again."""
        self._change(lambda book: replace(book, removed=book.removed - {book.hash_of(person) for person in people}))

    def merge(self, primaries: Mapping[str, str]) -> None:
        """Record who is merged into whom, {person: primary}, before Customer.io is told."""
        self._change(
            lambda book: replace(
                book, merged={**book.merged, **{book.hash_of(person): into for person, into in primaries.items()}}
            )
        )

    def part(self, people: Collection[str]) -> None:
        """Take back the record of merges that Customer.io has refused."""

        def change(book: _Book) -> _Book:
            apart = {book.hash_of(person) for person in people}
            return replace(book, merged={key: into for key, into in book.merged.items() if key not in apart})

        self._change(change)

    def _change(self, change: Callable[[_Book], _Book]) -> None:
        self._take(self._document.change(lambda text: change(_Book.from_json(text)).to_json()))
