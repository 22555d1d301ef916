"""Rows become Customer.io operations, and a row that cannot becomes a dead letter. Pure: no I/O, no clock.

A page is checked column by column, so that a good row costs a few C loops and not a chain of questions; only where a
column holds something bad are its values looked at one by one.

Limits (Customer.io's Track API documentation): id 150 bytes, attribute name 150, value 1,000, event name 100, 300
attributes an identify, 32 kB an operation.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import orjson
from ulid import ULID

from shared.errors import ViewFault
from shared.gate import CAN_TRIGGER_SECONDS
from shared.settings import Settings
from shared.source import Page
from shared.syncs import Kind
from shared.view import Field, Form, View

ID_BYTES = 150
NAME_BYTES = 150
VALUE_BYTES = 1000
EVENT_NAME_BYTES = 100
ATTRIBUTES = 300
OPERATION_BYTES = 32_000

DIGEST_BYTES = 16
SECONDS_PER_DAY = 86_400
FUTURE = "more than five minutes in the future"
_LAST_SECOND = 253_402_300_799  # of the year 9999
_YEAR_2100 = 4_102_444_800  # created_at beyond it was in milliseconds
_EXACT_IN_JAVASCRIPT = 2**53
_REMOVALS = {"delete": "delete", "suppress": "suppress", "restore": "unsuppress"}
PERSON = "person."
"""What the name of a column begins with that, beside an event, sets an attribute."""

# the pattern of HTML's <input type=email> (WHATWG), with letters of all languages, and a domain of two parts at least
_EMAIL = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+@([^\W_]([\w-]{0,61}[^\W_])?\.)+[^\W_]([\w-]{0,61}[^\W_])?")
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
    """What one row becomes, as JSON: an event with the identify that must stand right before it, else one operation.

    `row` is its number in the page, `person` the id of whom it is about. `digest` (16 bytes) names an event, a merge or
    a removal in the ledger, `time` is its unix seconds. `name` is an event's, `action` a removal's, `secondary` a
    merge's: "id" or "email", and who.
    """

    row: int
    person: str
    payloads: tuple[bytes, ...]
    digest: bytes = b""
    time: int = 0
    action: str = ""
    secondary: tuple[str, str] | None = None
    name: str = ""

    @property
    def day(self) -> int:
        """Days since 1970: where the ledger keeps the event."""
        return self.time // SECONDS_PER_DAY


@dataclass(frozen=True, slots=True)
class Mapped:
    """A page's outcome: each row is an operation, or bad, or one of those that are only counted.

    `vanished`: no longer in its view since its change was noted; `merged` are the rows of people who are others now.
    `invalid_emails` were left out of rows that go otherwise.
    """

    operations: list[Operation]
    bad: Bad
    vanished: int = 0
    merged: Sequence[int] = ()
    invalid_emails: int = 0


def digest(text: str) -> bytes:
    """A hash of any text, half surrogate pairs included: DIGEST_BYTES bytes that stand for it in state."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def event_digest(sync: str, event_id: str) -> bytes:
    """The digest that names an event in the ledger. Its first 10 bytes are the random part of the event's ULID."""
    return digest(f"{sync}\0{event_id}")


def repeat_digest(digest: bytes) -> bytes:
    """The digest that says in the ledger that a merge or a deletion was sent once more."""
    return hashlib.blake2b(digest, digest_size=DIGEST_BYTES, person=b"again").digest()


def event_ulid(digest: bytes, event_time: int) -> str:
    """The ULID of an event at `event_time` (unix seconds): the same whoever sends the event, and however often."""
    return str(ULID((event_time * 1000).to_bytes(6, "big") + digest[:10]))


def identify(customer_id: str, read_at: int, attributes: dict[str, Any]) -> dict[str, Any]:
    """The operation that sets a person's attributes.

    `timestamp` is the time of reading, so that an identify that arrives late overwrites nothing newer.
    """
    return {
        "type": "person",
        "identifiers": {"id": customer_id},
        "action": "identify",
        "timestamp": read_at,
        "attributes": attributes,
    }


def event(customer_id: str, name: str, digest: bytes, time: int, properties: dict[str, Any]) -> dict[str, Any]:
    """The operation that sends an event of this digest (see event_digest) at `time` (unix seconds)."""
    return {
        "type": "person",
        "identifiers": {"id": customer_id},
        "action": "event",
        "name": name,
        "id": event_ulid(digest, time),
        "timestamp": time,
        "attributes": properties,
    }


class Mapper:
    """Maps the pages of one view, but for the columns `withheld` (names in lower case).

    Raises ViewFault where a column's name is not the view's to use.
    """

    def __init__(self, view: View, settings: Settings, withheld: Set[str] = frozenset()) -> None:
        self._view = view
        self._wall_clock = None if settings.sql_time_zone == "UTC" else _WallClock(ZoneInfo(settings.sql_time_zone))
        # a row starts with cursor and key
        self._columns = {field.name.lower(): (index, field) for index, field in enumerate(view.fields, start=2)}
        self._nested = settings.json_columns
        self._cleared = {name for name in settings.clear_when_null if len(name.encode()) <= NAME_BYTES}
        self._owns_consent = settings.sql_owns_consent
        if view.sync.kind not in (Kind.PROFILE, Kind.EVENT):
            return  # these views have no columns but the contract's own
        event = view.sync.kind is Kind.EVENT
        own = {"customer_id", "event_name", "event_time"} if event else {"customer_id"}
        rest = [(index, field) for name, (index, field) in self._columns.items() if name not in own | withheld]
        person = [(i, f) for i, f in rest if event and f.name.lower().startswith(PERSON)]
        values = [(i, f) for i, f in rest if (i, f) not in person]
        self._values = tuple((index, field, field.name) for index, field in values)
        self._person = tuple((index, field, field.name[len(PERSON) :]) for index, field in person)
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
            if lower in ("email", "phone") and (field.form is not Form.TEXT or name in self._nested):
                self._refuse(field, "Customer.io takes only text for it")
            if lower == "created_at" and field.form not in (Form.WALL_TIME, Form.INSTANT, Form.WHOLE, Form.LONG):
                self._refuse(field, "Customer.io takes only a moment for it: a datetime2, or whole unix seconds")
        for _, field, name in self._values if event else ():
            if name.lower() in _HEADERS:
                self._refuse(field, "on an event it would overwrite the header of every message")
            if name.lower() in _OWN_PROPERTIES:
                self._refuse(field, "Tidemark itself sends a property of this name with every event")

    def _refuse(self, field: Field, why: str) -> None:
        raise ViewFault(
            f"Column {field.name} of {self._view.name} cannot be sent: {why}. Rename or convert it in the view."
        )

    def map(
        self,
        page: Page,
        backfill_before: int | None = None,
        primaries: Callable[[Collection[str]], Mapping[str, str]] = lambda people: {},
    ) -> Mapped:
        """Turn the rows of a page into operations, in their order.

        Events before `backfill_before` (unix seconds) are marked `backfill: true`, so that triggers can leave them out.
        `primaries` says of people who was merged, and into whom.
        """
        columns = list(zip(*page.rows, strict=True))
        match self._view.sync.kind:
            case Kind.PROFILE:
                return self._profiles(columns, page.read_at, primaries)
            case Kind.EVENT:
                return self._events(columns, page, backfill_before or 0, primaries)
            case Kind.MERGE:
                return self._merges(columns, primaries)
            case Kind.REMOVAL:
                return self._removals(columns)

    def person_of(self, row: Sequence[object]) -> str:
        """Whom a row is about; "" where that is NULL."""
        name = "primary_customer_id" if self._view.sync.kind is Kind.MERGE else "customer_id"
        value = row[self._columns[name][0]]
        return "" if value is None else str(value)

    def _profiles(
        self,
        columns: Sequence[Values],
        read_at: int,
        primaries: Callable[[Collection[str]], Mapping[str, str]],
    ) -> Mapped:
        bad: Bad = {}
        changed, ids = columns[1], columns[self._columns["customer_id"][0]]
        # a change whose person is no longer in the view; the walk by key has no such rows
        vanished = {row for row, value in enumerate(ids) if value is None and changed[row] is not None}
        ids = self._texts("customer_id", ids, ID_BYTES, bad, vanished)
        counts = Counter(ids)
        if len(counts) < len(ids):
            for row, value in enumerate(ids):
                if counts[value] > 1 and row not in vanished:
                    bad.setdefault(row, ("customer_id", "the view holds this customer_id more than once"))
        # the profile of who was merged would overwrite the primary's, or bring back somebody who is no more
        others = primaries(ids)
        merged = []
        names = [name for *_, name in self._values]
        values, invalid_emails = self._checked(self._values, columns, bad, of_person=True)
        operations = []
        for row, row_values in enumerate(_rows(values, len(ids))):
            if ids[row] in others:
                bad.pop(row, None)
                merged.append(row)
            if row in bad or row in vanished or ids[row] in others:
                continue
            state = identify(ids[row], read_at, _present(names, row_values, self._cleared))
            if payloads := _encode(row, [state], bad):
                operations.append(Operation(row, ids[row], payloads))
        return Mapped(operations, bad, len(vanished), merged, invalid_emails)

    def _events(
        self,
        columns: Sequence[Values],
        page: Page,
        backfill_before: int,
        primaries: Callable[[Collection[str]], Mapping[str, str]],
    ) -> Mapped:
        bad: Bad = {}
        ids = self._texts("customer_id", self._column(columns, "customer_id"), ID_BYTES, bad)
        event_ids = self._texts("event_id", self._column(columns, "event_id"), VALUE_BYTES, bad)
        event_names = self._texts("event_name", self._column(columns, "event_name"), EVENT_NAME_BYTES, bad)
        now = page.fetched_at
        times = self._times("event_time", columns, now, bad)
        others = primaries(ids)
        names = [name for *_, name in self._values]
        person_names = [name for *_, name in self._person]
        values, _ = self._checked(self._values, columns, bad)
        person_values, invalid_emails = self._checked(self._person, columns, bad, of_person=True)
        person = _rows(person_values, len(ids))
        young = now - CAN_TRIGGER_SECONDS
        operations = []
        for row, row_values in enumerate(_rows(values, len(ids))):
            if row in bad:
                continue
            ledger_id = event_digest(self._view.sync.name, event_ids[row])
            properties = _present(names, row_values)
            properties["late_minutes"] = max(0, now - times[row]) // 60
            if times[row] < backfill_before:
                properties["backfill"] = True
            whose = others.get(ids[row], ids[row])
            happened = event(whose, event_names[row], ledger_id, times[row], properties)
            parts = [happened]
            # Beside an event of the past, the person's state of now has no place; nor has that of who was merged.
            now_counts = person_names and times[row] >= young and whose == ids[row]
            if now_counts and (state := _present(person_names, person[row], self._cleared)):
                parts = [identify(whose, page.read_at, state), happened]
            if payloads := _encode(row, parts, bad):
                operations.append(Operation(row, whose, payloads, ledger_id, times[row], name=event_names[row]))
        return Mapped(operations, bad, invalid_emails=invalid_emails)

    def _merges(self, columns: Sequence[Values], primaries: Callable[[Collection[str]], Mapping[str, str]]) -> Mapped:
        """Each merge goes to who its primary is by now, so that merges of one page need no order among them."""
        bad: Bad = {}
        merge_ids = self._texts("merge_id", self._column(columns, "merge_id"), VALUE_BYTES, bad)
        wanted = self._texts("primary_customer_id", self._column(columns, "primary_customer_id"), ID_BYTES, bad)
        nobody = set(range(len(merge_ids)))
        secondaries = self._texts(
            "secondary_customer_id", self._column(columns, "secondary_customer_id"), ID_BYTES, bad, nobody
        )
        emails = ["" if value is None else str(value).strip() for value in self._column(columns, "secondary_email")]
        times = self._times("merged_at", columns, None, bad)
        into = dict(primaries({*wanted, *secondaries}))
        # of rows that merge one person into several, the last is meant
        last = dict(zip(secondaries, wanted, strict=True))

        def end_of(person: str) -> str:
            while person in into:
                person = into[person]
            return person

        for row, (primary, secondary, email) in enumerate(zip(wanted, secondaries, emails, strict=True)):
            if row in bad:
                continue
            if not secondary.strip():
                if not _is_address(email):
                    bad[row] = ("secondary_customer_id", "neither it nor a valid secondary_email is there")
            elif secondary == end_of(primary):
                bad[row] = ("secondary_customer_id", "primary and secondary are one person by now")
            elif secondary not in into and primary != last[secondary]:
                bad[row] = ("secondary_customer_id", "a later row merges it into another person")
            elif (earlier := end_of(secondary)) == secondary:
                into[secondary] = end_of(primary)
            elif earlier != end_of(primary):
                bad[row] = ("secondary_customer_id", "was merged into another person before")
        operations = []
        for row, merge_id in enumerate(merge_ids):
            if row in bad:
                continue
            kind, who = ("id", secondaries[row]) if secondaries[row].strip() else ("email", emails[row])
            primary = end_of(wanted[row])
            # of a row that is corrected in place, what it says now is done too
            ledger_id = event_digest(self._view.sync.name, "\0".join((merge_id, wanted[row], kind, who)))
            operation = {"type": "person", "action": "merge", "primary": {"id": primary}, "secondary": {kind: who}}
            if payloads := _encode(row, [operation], bad):
                operations.append(Operation(row, primary, payloads, ledger_id, times[row], secondary=(kind, who)))
        return Mapped(operations, bad)

    def _removals(self, columns: Sequence[Values]) -> Mapped:
        """A removal is of the id that it names: who was merged into another person stays merged."""
        bad: Bad = {}
        removal_ids = self._texts("removal_id", self._column(columns, "removal_id"), VALUE_BYTES, bad)
        people = self._texts("customer_id", self._column(columns, "customer_id"), ID_BYTES, bad)
        times = self._times("removed_at", columns, None, bad)
        operations = []
        for row, action in enumerate(self._column(columns, "action")):
            if action not in _REMOVALS:
                bad.setdefault(row, ("action", "neither delete nor suppress nor restore"))
            if row in bad:
                continue
            operation = {"type": "person", "identifiers": {"id": people[row]}, "action": _REMOVALS[action]}
            if payloads := _encode(row, [operation], bad):
                # of a row that is corrected in place, what it says now is done too
                ledger_id = event_digest(self._view.sync.name, "\0".join((removal_ids[row], action, people[row])))
                operations.append(Operation(row, people[row], payloads, ledger_id, times[row], action=action))
        return Mapped(operations, bad)

    def _column(self, columns: Sequence[Values], name: str) -> Values:
        """A column by its name; one of NULLs where the view may leave it out and does."""
        if name in self._columns:
            return columns[self._columns[name][0]]
        return [None] * len(columns[0])

    # Each of these looks at one column of a page; what breaks a rule goes into `bad`, and None stands in its place.

    def _texts(self, name: str, values: Values, limit: int, bad: Bad, skip: Set[int] = frozenset()) -> list[str]:
        """An identifier as text, case-exact."""
        texts = [value if isinstance(value, str) else "" if value is None else str(value) for value in values]
        for row, text in enumerate(texts):
            if not text.strip() and row not in skip:
                bad.setdefault(row, (name, "NULL or empty"))
            elif len(text) * 4 > limit and len(text.encode("utf-8", "surrogatepass")) > limit:
                bad.setdefault(row, (name, f"longer than {limit} bytes"))
        return texts

    def _times(self, name: str, columns: Sequence[Values], now: int | None, bad: Bad) -> list[int]:
        """When it happened, in unix seconds. With `now`, what lies more than five minutes beyond it is bad."""
        index, field = self._columns[name]
        times = self._unix_seconds(field, columns[index])
        for row, value in enumerate(times):
            if value is None:
                bad.setdefault(row, (name, "NULL"))
            elif not 0 <= value <= _LAST_SECOND:
                bad.setdefault(row, (name, "before the year 1970 or after 9999"))
            elif now is not None and value > now + _FUTURE_SECONDS:
                bad.setdefault(row, (name, FUTURE))
        return list(times)

    def _unix_seconds(self, field: Field, values: Values) -> Values:
        if field.form is Form.WALL_TIME and self._wall_clock is not None:
            return [None if value is None else self._wall_clock.unix_seconds(value) for value in values]
        return values

    def _checked(
        self,
        fields: Sequence[tuple[int, Field, str]],
        columns: Sequence[Values],
        bad: Bad,
        *,
        of_person: bool = False,
    ) -> tuple[list[Values], int]:
        """The columns of attributes or properties, ready to be sent, and how many invalid emails were left out."""
        checked = []
        invalid_emails = 0
        for index, field, name in fields:
            values = columns[index]
            if len(name.encode()) > NAME_BYTES:
                for row, value in enumerate(values):
                    if value is not None:
                        bad.setdefault(row, (field.name, f"the column's name is longer than {NAME_BYTES} bytes"))
            match field.form:
                case Form.TEXT if name in self._nested:
                    values = self._nested_values(field, values, bad)
                case Form.TEXT:
                    if of_person and name == "email":  # Customer.io refuses a blank one
                        values = [None if value is None else value.strip() or None for value in values]
                        valid = [value if value is None or _is_address(value) else None for value in values]
                        invalid_emails += valid.count(None) - values.count(None)
                        values = valid
                    for row, value in enumerate(values):
                        if value is not None and value[:1] in ("{", "[") and _is_json(value):
                            bad.setdefault(row, (field.name, "JSON: nested values are refused"))
                    if max((len(value) for value in values if value is not None), default=0) * 4 > VALUE_BYTES:
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
                case Form.FLAG if name == "unsubscribed" and not self._owns_consent:
                    # only true is ever sent: consent withdrawn at Customer.io must not be given back by SQL Server
                    values = [value or None for value in values]
                case _:
                    values = self._unix_seconds(field, values)
            if of_person and name == "created_at":
                for row, value in enumerate(values):
                    if value is not None and not (isinstance(value, int) and 0 <= value <= _YEAR_2100):
                        bad.setdefault(row, (field.name, "before the year 1970 or after 2100"))
            checked.append(values)
        return checked, invalid_emails

    def _nested_values(self, field: Field, values: Values, bad: Bad) -> Values:
        """The values of a column that may hold JSON. An event's may be as long as the operation's limit lets them."""
        parsed: list[Any] = []
        for row, value in enumerate(values):
            try:
                parsed.append(None if value is None else orjson.loads(value))
            except (orjson.JSONDecodeError, UnicodeEncodeError):
                bad.setdefault(row, (field.name, "not JSON, though JSON_COLUMNS names the column"))
                parsed.append(None)
            # as it will be sent: 1e15 becomes 1000000000000000.0
            if value is not None and self._view.sync.kind is Kind.PROFILE and _is_long(parsed[-1]):
                bad.setdefault(row, (field.name, f"longer than {VALUE_BYTES} bytes"))
        return parsed


def _is_long(nested: Any) -> bool:
    try:
        return len(orjson.dumps(nested)) > VALUE_BYTES
    except orjson.JSONEncodeError:  # too deep: _encode says so
        return False


def _is_address(text: str) -> bool:
    return _EMAIL.fullmatch(text) is not None and len(text.encode()) <= ID_BYTES


def _is_json(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict | list)
    except orjson.JSONDecodeError:
        return False


def _rows(columns: Sequence[Values], count: int) -> list[tuple[Any, ...]]:
    return list(zip(*columns, strict=True)) if columns else [()] * count


def _present(names: list[str], values: tuple[Any, ...], cleared: Set[str] = frozenset()) -> dict[str, Any]:
    """The attributes that have a value: NULL leaves an attribute at Customer.io alone, unless it is to be cleared."""
    attributes = dict(zip(names, values, strict=True))
    if None in values:
        return {name: value for name, value in attributes.items() if value is not None or name in cleared}
    return attributes


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
