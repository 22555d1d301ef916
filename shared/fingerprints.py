"""What was last sent of each person, as a fingerprint: how the full comparison finds who differs without sending all.

    fingerprints/head.json               the generation that counts, its columns, and the last comparison
    fingerprints/<generation>/<n>        people in the order of their keys: a line of JSON, then 16 bytes a person
    fingerprints/sent/<time>-<ulid>      the people of one page that was sent since; the next walk takes them in

A walk reads one generation and writes the next, which counts once the head names it. It holds what was last sent, never
what is yet to be sent: so a run that is not approved, or killed, leaves people who differ to the next walk. Everything
that sends people notes it (see Delivery), after the sending: what was sent and not noted is sent once more.

A fingerprint is a hash of a row as it was read. It costs less than the row's mapping, and changes whenever that does.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from operator import itemgetter
from typing import Any, NamedTuple

import orjson
from azure.core.exceptions import ResourceNotFoundError
from ulid import ULID

from shared.errors import StateFault
from shared.mapping import DIGEST_BYTES
from shared.source import Page
from shared.state import Document, State, storage_errors
from shared.view import View

Key = int | str
Rows = Sequence[Sequence[Any]]

OTHER = bytes(DIGEST_BYTES)
"""The fingerprint of somebody of whom it is not known what was sent: no row has it."""

FORGET = b""
"""Noted of somebody who has vanished, and with whom that was dealt."""

_PREFIX = "fingerprints/"
_HEAD = "fingerprints/head.json"
_SENT = "fingerprints/sent/"


@dataclass(frozen=True, slots=True)
class Head:
    """Which fingerprints count. `columns` are those that they are made of, in this order; `key` is the key's type.

    `parts` is the number of the generation's blobs; there is no generation before the first walk has come to its end.
    `offered` are new columns that a person was offered to send, by the run `offer`. `last` is the last comparison.
    """

    generation: str = ""
    parts: int = 0
    columns: Sequence[str] = ()
    key: str = ""
    offered: Sequence[str] = ()
    offer: str = ""
    last: str = ""


class Part(NamedTuple):
    """People whose keys lie side by side; `last` is the highest that the part covers."""

    known: dict[Key, bytes]
    last: Key


@dataclass(frozen=True, slots=True)
class Sent:
    """What was noted since the last walk, and in which blobs. It grows with the people that were sent."""

    blobs: Sequence[str] = ()
    known: dict[Key, bytes] = field(default_factory=dict)


class Fingerprints:
    """The fingerprints of one container. Raises StateUnavailable, and StateFault where they are damaged."""

    def __init__(self, state: State) -> None:
        self._container = state.container
        self._head = Document(state.container, _HEAD)

    def head(self) -> Head | None:
        """The head; None where there was never a comparison."""
        return _parse(self._head.read())

    def change(self, change: Callable[[Head], Head]) -> Head:
        """Change the head; returns it."""
        return _parse(self._head.change(lambda text: _to_json(change(_parse(text) or Head())))) or Head()

    def write(self, generation: str, number: int, part: Part) -> None:
        """Write a part of a generation that does not count yet."""
        head = orjson.dumps({"last": part.last, "keys": list(part.known)})
        with storage_errors():
            self._container.upload_blob(
                f"{_PREFIX}{generation}/{number}", head + b"\n" + b"".join(part.known.values()), overwrite=True
            )

    def parts(self, head: Head) -> Iterator[Part]:
        """The parts of the generation that counts, in the order of their keys."""
        for number in range(head.parts):
            yield self._part(f"{_PREFIX}{head.generation}/{number}")

    def _part(self, name: str) -> Part:
        with storage_errors():
            try:
                head, _, digests = self._container.download_blob(name).readall().partition(b"\n")
                stored = orjson.loads(head)
                keys = stored["keys"]
                if len(digests) != len(keys) * DIGEST_BYTES:
                    raise ValueError
                starts = range(0, len(digests), DIGEST_BYTES)
                known = {key: digests[at : at + DIGEST_BYTES] for key, at in zip(keys, starts, strict=True)}
                return Part(known, stored["last"])
            except (ResourceNotFoundError, ValueError, KeyError, TypeError):
                raise StateFault(
                    f"The fingerprints in {name} are gone or damaged. Restore that blob; or delete {_HEAD}: the next"
                    " comparison then records everybody anew, and sends nothing."
                ) from None

    def publish(self, head: Head, sent: Sent) -> None:
        """Let a generation count, and drop what it supersedes: all others, and the notes that it has taken in."""
        self.change(lambda before: replace(head, last=before.last))
        with storage_errors():
            names = [blob.name for blob in self._container.list_blobs(_PREFIX)]
            keep = (_HEAD, _SENT, f"{_PREFIX}{head.generation}/")
            for name in [*(name for name in names if not name.startswith(keep)), *sent.blobs]:
                with suppress(ResourceNotFoundError):
                    self._container.delete_blob(name)

    def note(self, columns: Sequence[str], read_at: int, people: Mapping[Key, bytes]) -> None:
        """Note who was sent, by fingerprints of these columns, as read at that time (unix seconds)."""
        content = {"columns": columns, "keys": list(people)}
        name = f"{_SENT}{read_at:012}-{ULID()}"
        with storage_errors():
            self._container.upload_blob(name, orjson.dumps(content) + b"\n" + b"".join(people.values()))

    def forget(self, keys: Sequence[Key]) -> None:
        """Note people who have vanished, and with whom that was dealt."""
        with storage_errors():
            name = f"{_SENT}{int(time.time()):012}-{ULID()}"
            self._container.upload_blob(name, orjson.dumps({"forget": keys}) + b"\n")

    def sent(self, columns: Sequence[str]) -> Sent:
        """What was noted, the latest of each person. What other columns were noted of counts as OTHER."""
        with storage_errors():
            names = [blob.name for blob in self._container.list_blobs(_SENT)]
            known: dict[Key, bytes] = {}
            for name in names:  # in the order of time
                head, _, digests = self._container.download_blob(name).readall().partition(b"\n")
                stored = orjson.loads(head)
                known.update(dict.fromkeys(stored.get("forget", ()), FORGET))
                comparable = stored.get("columns") == list(columns)
                for number, key in enumerate(stored.get("keys", ())):
                    digest = digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]
                    known[key] = digest if comparable else OTHER
        return Sent(names, known)


class Notes:
    """Notes what is sent of people, once there are fingerprints."""

    def __init__(self, state: State, view: View) -> None:
        self._fingerprints = Fingerprints(state)
        self._view = view
        self._head: Head | None = None
        self._asked = False

    def add(self, page: Page, withheld: Set[str]) -> None:
        """Note a page that is accounted for; `withheld` columns were not sent of it."""
        if not page.rows:
            return
        if not self._asked:
            self._asked, self._head = True, self._fingerprints.head()
        if self._head is None:
            return
        columns = self._head.columns
        if (fingerprint := fingerprints_by(self._view, columns)) is None or not withheld.isdisjoint(columns):
            return  # the next walk compares by other columns
        # not the key of the change, which may differ in case
        place = next(index for index, one in enumerate(self._view.fields, start=2) if one.name.lower() == "customer_id")
        people: dict[Any, bytes] = {
            row[place]: digest for row, digest in zip(page.rows, fingerprint(page.rows), strict=True)
        }
        people.pop(None, None)  # who has vanished since the change
        self._fingerprints.note(columns, page.read_at, people)


def fingerprints_by(view: View, columns: Sequence[str]) -> Callable[[Rows], list[bytes]] | None:
    """What makes the fingerprints of rows, by these columns of the view; None where one of them is gone."""
    places = {one.name: index for index, one in enumerate(view.fields, start=2)}
    if not columns or not all(name in places for name in columns):
        return None
    first, *rest = (places[name] for name in columns)
    values = itemgetter(first, first, *rest)  # at least two, so that it gives a tuple
    blake2b, dumps = hashlib.blake2b, orjson.dumps

    def fingerprint(rows: Rows) -> list[bytes]:
        try:
            return [blake2b(dumps(values(row)), digest_size=DIGEST_BYTES).digest() for row in rows]
        except orjson.JSONEncodeError:  # a number of more than 64 bits
            texts = [repr(values(row)).encode("utf-8", "surrogatepass") for row in rows]
            return [blake2b(text, digest_size=DIGEST_BYTES).digest() for text in texts]

    return fingerprint


def _to_json(head: Head) -> bytes:
    return json.dumps(asdict(head), indent=1).encode()


def _parse(text: bytes | None) -> Head | None:
    if text is None:
        return None
    try:
        return Head(**json.loads(text))
    except (ValueError, TypeError):
        raise StateFault(f"{_HEAD} is damaged. Restore an earlier version of that blob.") from None
