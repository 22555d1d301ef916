"""Rows become Customer.io operations, and a row that cannot becomes a dead letter. Pure: no I/O, no clock.

A page is checked column by column, so that a good row costs a few C loops and not a chain of questions; only where a
column holds something bad are its values looked at one by one.

Limits (Customer.io's Track API documentation): id 150 bytes, attribute name 150, value 1,000, event name 100, 300
attributes an identify, 32 kB an operation.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import orjson
from ulid import ULID

from shared.errors import ViewFault
from shared.settings import Settings
from shared.source import Field, Form, Page, View
from shared.syncs import Kind

ID_BYTES = 150
NAME_BYTES = 150
VALUE_BYTES = 1000
EVENT_NAME_BYTES = 100
ATTRIBUTES = 300
OPERATION_BYTES = 32_000

CAN_TRIGGER_SECONDS = 72 * 3600
"""An event older than this starts no campaign at Customer.io."""

DIGEST_BYTES = 16
SECONDS_PER_DAY = 86_400
FUTURE = "more than five minutes in the future"
_LAST_SECOND = 253_402_300_799  # of the year 9999
_EXACT_IN_JAVASCRIPT = 2**53
_SAMPLE = 20
_FLAGS = ({"true", "false"}, {"0", "1"}, {"y", "n"}, {"yes", "no"})
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?)?(Z|[+-]\d\d:?\d\d)?")
_PERSON = "person."
_RESERVED_ATTRIBUTES = frozenset({"id", "cio_id", "anonymous_id"})
_HEADERS = frozenset({"recipient", "from_address", "reply_to"})
_OWN_PROPERTIES = frozenset({"late_minutes", "backfill"})
_FUTURE_SECONDS = 300

Values = Sequence[Any]
"""One column of a page: ints, floats, bools, texts and None."""

Bad = dict[int, tuple[str | None, str]]
"""The rows of a page that cannot be sent: row number to the column and the reason."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What one row becomes: an identify, or an event with the identify that must stand right before it, as JSON.

    `row` is its number in the page. `digest` (16 bytes) names an event in the ledger, `time` is its unix seconds.
    """

    row: int
    payloads: tuple[bytes, ...]
    digest: bytes = b""
    time: int = 0

    @property
    def day(self) -> int:
        """Days since 1970: where the ledger keeps the event."""
        return self.time // SECONDS_PER_DAY


@dataclass(frozen=True, slots=True)
class Mapped:
    """A page's outcome: each row is an operation, or bad, or has vanished from its view since its change was noted."""

    operations: list[Operation]
    bad: Bad
    vanished: int


def digest(text: str) -> bytes:
    """A hash of any text, half surrogate pairs included: DIGEST_BYTES bytes that stand for it in state."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def event_digest(sync: str, event_id: str) -> bytes:
    """The digest that names an event in the ledger. Its first 10 bytes are the random part of the event's ULID."""
    return digest(f"{sync}\0{event_id}")


def event_ulid(digest: bytes, event_time: int) -> str:
    """The ULID of an event at `event_time` (unix seconds): the same whoever sends the event, and however often."""
    return str(ULID((event_time * 1000).to_bytes(6, "big") + digest[:10]))


class Mapper:
    """Maps the pages of one view, but for the columns `withheld` (names in lower case).

    Raises ViewFault where a column's name is not the view's to use.
    """

    def __init__(self, view: View, settings: Settings, withheld: Set[str] = frozenset()) -> None:
        self._view = view
        self._wall_clock = None if settings.sql_time_zone == "UTC" else _WallClock(ZoneInfo(settings.sql_time_zone))
        # a row starts with cursor and key
        self._columns = {field.name.lower(): (index, field) for index, field in enumerate(view.fields, start=2)}
        event = view.sync.kind is Kind.EVENT
        own = {"customer_id", "event_name", "event_time"} if event else {"customer_id"}
        rest = [(index, field) for name, (index, field) in self._columns.items() if name not in own | withheld]
        person = [(i, f) for i, f in rest if event and f.name.lower().startswith(_PERSON)]
        values = [(i, f) for i, f in rest if (i, f) not in person]
        self._values = tuple((index, field, field.name) for index, field in values)
        self._person = tuple((index, field, field.name[len(_PERSON) :]) for index, field in person)
        for _, field, name in self._person if event else self._values:
            lower = name.lower()
            if not name or lower in _RESERVED_ATTRIBUTES or lower.startswith(("_", "cio_")) or "." in name:
                self._refuse(
                    field, "Customer.io reserves this name on a person (id, cio_id, anonymous_id, _..., cio_..., a dot)"
                )
            if lower == "unsubscribed" and (field.form is not Form.FLAG or name != lower):
                self._refuse(
                    field, "unsubscribed must have this name and be a bit, for any value but true resubscribes"
                )
        for _, field, name in self._values if event else ():
            if name.lower() in _HEADERS:
                self._refuse(field, "on an event it would overwrite the header of every message")
            if name.lower() in _OWN_PROPERTIES:
                self._refuse(field, "Tidemark itself sends a property of this name with every event")

    def _refuse(self, field: Field, why: str) -> None:
        raise ViewFault(f"Column {field.name} of {self._view.name} cannot be sent: {why}. Rename it in the view.")

    def disguised(self, page: Page) -> dict[str, str]:
        """The text columns that hold nothing but flags or dates, and which of the two: {column: what}.

        A text never matches a true/false or a date condition at Customer.io, so such a column is the view's to convert.
        A page with fewer than 20 values says nothing.
        """
        found = {}
        for index, field, _ in (*self._values, *self._person):
            if field.form is not Form.TEXT or field.name.lower() == "event_id":
                continue
            values = {row[index] for row in page.rows if row[index] is not None}
            if sum(row[index] is not None for row in page.rows) < _SAMPLE:
                continue
            if any({str(value).strip().lower() for value in values} == flags for flags in _FLAGS):
                found[field.name] = "flags"
            elif values and all(_DATE.fullmatch(str(value).strip()) for value in values):
                found[field.name] = "dates"
        return found

    def map(self, page: Page, backfill_before: int | None = None) -> Mapped:
        """Turn the rows of a page into operations, in their order.

        Events before `backfill_before` (unix seconds) are marked `backfill: true`, so that triggers can leave them out.
        """
        columns = list(zip(*page.rows, strict=True))
        bad: Bad = {}
        if self._view.sync.kind is Kind.EVENT:
            return Mapped(self._events(columns, page, backfill_before or 0, bad), bad, 0)
        return self._profiles(columns, page.read_at, bad)

    def _profiles(self, columns: Sequence[Values], read_at: int, bad: Bad) -> Mapped:
        changed, ids = columns[1], columns[self._columns["customer_id"][0]]
        # a change whose person is no longer in the view; the walk by key has no such rows
        vanished = {row for row, value in enumerate(ids) if value is None and changed[row] is not None}
        ids = self._texts("customer_id", ids, ID_BYTES, bad, vanished)
        counts = Counter(ids)
        if len(counts) < len(ids):
            for row, value in enumerate(ids):
                if counts[value] > 1 and row not in vanished:
                    bad.setdefault(row, ("customer_id", "the view holds this customer_id more than once"))
        names = [name for *_, name in self._values]
        operations = []
        for row, values in enumerate(_rows(self._checked(self._values, columns, bad), len(ids))):
            if row in bad or row in vanished:
                continue
            if payloads := _encode(row, [_identify(ids[row], read_at, _present(names, values))], bad):
                operations.append(Operation(row, payloads))
        return Mapped(operations, bad, len(vanished))

    def _events(self, columns: Sequence[Values], page: Page, backfill_before: int, bad: Bad) -> list[Operation]:
        def column(name: str) -> Values:
            return columns[self._columns[name][0]]

        ids = self._texts("customer_id", column("customer_id"), ID_BYTES, bad)
        event_ids = self._texts("event_id", column("event_id"), VALUE_BYTES, bad)
        event_names = self._texts("event_name", column("event_name"), EVENT_NAME_BYTES, bad)
        now = page.fetched_at
        times = self._times(column("event_time"), now, bad)
        names = [name for *_, name in self._values]
        person_names = [name for *_, name in self._person]
        rows = _rows(self._checked(self._values, columns, bad), len(ids))
        person = _rows(self._checked(self._person, columns, bad), len(ids))
        young = now - CAN_TRIGGER_SECONDS
        operations = []
        for row, values in enumerate(rows):
            if row in bad:
                continue
            ledger_id = event_digest(self._view.sync.name, event_ids[row])
            properties = _present(names, values)
            properties["late_minutes"] = max(0, now - times[row]) // 60
            if times[row] < backfill_before:
                properties["backfill"] = True
            event: dict[str, Any] = {
                "type": "person",
                "identifiers": {"id": ids[row]},
                "action": "event",
                "name": event_names[row],
                "id": event_ulid(ledger_id, times[row]),
                "timestamp": times[row],
                "attributes": properties,
            }
            parts = [event]
            # beside an event of the past, the person's state of now has no place
            if person_names and times[row] >= young and (state := _present(person_names, person[row])):
                parts = [_identify(ids[row], page.read_at, state), event]
            if payloads := _encode(row, parts, bad):
                operations.append(Operation(row, payloads, ledger_id, times[row]))
        return operations

    # Each of these looks at one column of a page; what breaks a rule goes into `bad`, and None stands in its place.

    def _texts(self, name: str, values: Values, limit: int, bad: Bad, skip: Set[int] = frozenset()) -> list[str]:
        """An identifier as text, case-exact."""
        texts = [value if isinstance(value, str) else "" if value is None else str(value) for value in values]
        for row, text in enumerate(texts):
            if not text.strip() and row not in skip:
                bad.setdefault(row, (name, "NULL or empty"))
            elif len(text) * 3 > limit and len(text.encode("utf-8", "surrogatepass")) > limit:
                bad.setdefault(row, (name, f"longer than {limit} bytes"))
        return texts

    def _times(self, values: Values, now: int, bad: Bad) -> list[int]:
        """Event times in unix seconds."""
        _, field = self._columns["event_time"]
        times = self._unix_seconds(field, values)
        for row, value in enumerate(times):
            if value is None:
                bad.setdefault(row, ("event_time", "NULL"))
            elif not 0 <= value <= _LAST_SECOND:
                bad.setdefault(row, ("event_time", "before the year 1970 or after 9999"))
            elif value > now + _FUTURE_SECONDS:
                bad.setdefault(row, ("event_time", FUTURE))
        return list(times)

    def _unix_seconds(self, field: Field, values: Values) -> Values:
        if field.form is Form.WALL_TIME and self._wall_clock is not None:
            return [None if value is None else self._wall_clock.unix_seconds(value) for value in values]
        return values

    def _checked(self, fields: Sequence[tuple[int, Field, str]], columns: Sequence[Values], bad: Bad) -> list[Values]:
        """The columns of attributes or properties, each value ready to be sent."""
        checked = []
        for index, field, name in fields:
            values = columns[index]
            if len(name.encode()) > NAME_BYTES:
                for row, value in enumerate(values):
                    if value is not None:
                        bad.setdefault(row, (field.name, f"the column's name is longer than {NAME_BYTES} bytes"))
            match field.form:
                case Form.TEXT:
                    if name == "email":  # Customer.io refuses a blank one
                        values = [None if value is None else value.strip() or None for value in values]
                    for row, value in enumerate(values):
                        if value is not None and value[:1] in ("{", "[") and _is_json(value):
                            bad.setdefault(row, (field.name, "JSON: nested values are refused"))
                    if max((len(value) for value in values if value is not None), default=0) * 3 > VALUE_BYTES:
                        for row, value in enumerate(values):
                            if value is not None and len(value.encode("utf-8", "surrogatepass")) > VALUE_BYTES:
                                bad.setdefault(row, (field.name, f"longer than {VALUE_BYTES} bytes"))
                case Form.LONG:
                    if any(
                        isinstance(value, str) for value in values
                    ):  # decimal(38, 0) has more digits than any number
                        values = [None if value is None else int(value) for value in values]
                    # beyond 2^53 a number loses digits in JavaScript, hence in messages
                    if any(value is not None and abs(value) > _EXACT_IN_JAVASCRIPT for value in values):
                        values = [str(v) if v is not None and abs(v) > _EXACT_IN_JAVASCRIPT else v for v in values]
                case Form.DECIMAL:
                    # the nearest double of a decimal, whatever the server's own conversion made of its last bit
                    values = [None if value is None else round(value, field.scale) for value in values]
                case Form.SINGLE:  # real has seven digits
                    values = [None if value is None else float(f"{value:.7g}") for value in values]
                case Form.FLAG if name == "unsubscribed":
                    # only true is ever sent: consent withdrawn at Customer.io must not be given back by SQL Server
                    values = [value or None for value in values]
                case _:
                    values = self._unix_seconds(field, values)
            checked.append(values)
        return checked


def _is_json(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict | list)
    except orjson.JSONDecodeError:
        return False


def _rows(columns: Sequence[Values], count: int) -> list[tuple[Any, ...]]:
    return list(zip(*columns, strict=True)) if columns else [()] * count


def _present(names: list[str], values: tuple[Any, ...]) -> dict[str, Any]:
    """The attributes that have a value: NULL leaves an attribute at Customer.io alone."""
    attributes = dict(zip(names, values, strict=True))
    if None in values:
        return {name: value for name, value in attributes.items() if value is not None}
    return attributes


def _identify(customer_id: str, read_at: int, attributes: dict[str, Any]) -> dict[str, Any]:
    """`timestamp` is the time of reading, so that an identify that arrives late overwrites nothing newer."""
    return {
        "type": "person",
        "identifiers": {"id": customer_id},
        "action": "identify",
        "timestamp": read_at,
        "attributes": attributes,
    }


def _encode(row: int, parts: list[dict[str, Any]], bad: Bad) -> tuple[bytes, ...]:
    """The operations of a row as JSON; () and an entry in `bad` where Customer.io would refuse one of them."""
    try:
        payloads = tuple(map(orjson.dumps, parts))
    except orjson.JSONEncodeError:
        bad[row] = (None, "a text is not valid Unicode (half of a surrogate pair)")
        return ()
    for part, payload in zip(parts, payloads, strict=True):
        if len(payload) > OPERATION_BYTES:
            bad[row] = (None, f"the {part['action']} is larger than {OPERATION_BYTES} bytes")
        elif part["action"] == "identify" and len(part["attributes"]) > ATTRIBUTES:
            bad[row] = (None, f"more than {ATTRIBUTES} attributes")
    return () if row in bad else payloads


class _WallClock:
    """Turns times without a zone into unix seconds. Of a time that a clock change repeats, the first is meant."""

    def __init__(self, zone: ZoneInfo) -> None:
        self._zone = zone
        self._offsets: dict[int, int] = {}

    def unix_seconds(self, wall: int) -> int:
        """`wall`: the seconds between 1970-01-01T00:00 and the time on the clock, as if the clock showed UTC."""
        quarter = wall // 900  # no zone's offset changes within a quarter of an hour
        if (offset := self._offsets.get(quarter)) is None:
            moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=quarter * 900)
            offset = int(moment.replace(tzinfo=self._zone).utcoffset().total_seconds())  # type: ignore[union-attr]
            self._offsets[quarter] = offset
        return wall - offset
