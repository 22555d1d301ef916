"""What Customer.io has of people, against what their rows are mapped to: by value, by type, and each event once.

Facts (Customer.io's App API description): attributes read back as text; the activity log is sure to reach back 30 days.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

import orjson
from ulid import ULID

from shared.appapi import AppApi, StoredEvent
from shared.drift import Drift
from shared.errors import ViewFault
from shared.ledger import Ledger
from shared.mapping import Mapped, Operation
from shared.people import People
from shared.settings import Settings, is_disabled
from shared.source import Page, Source
from shared.state import State
from shared.syncs import CATALOGUE, Kind, find
from shared.view import Form, View, Within

_CUSTOMERS = find("customers")
_VISIBLE_SECONDS = 29 * 86_400
"""So far back the activity log is sure to show events: 30 days, less one to be sure."""

_LINES = 2000
"""Lines of one person's activity log that are read; each 100 cost a request."""

KINDS = {
    "no_person": "Customer.io shows no person with this id",
    "no_row": "retention.customers has no row for this id",
    "set_aside": "the row cannot be sent; see the dead letters of customers",
    "not_sent": "there is a value in SQL Server, and it is not sent: the address is invalid, or the column is withheld",
    "missing": "it was sent, and Customer.io does not show it",
    "type": "Customer.io has the value in another form, which conditions on the right one do not match",
    "value": "Customer.io has another value",
    "not_cleared": "it is NULL and CLEAR_WHEN_NULL names it, and Customer.io still has a value",
    "kept": "it is NULL in SQL Server (or unsubscribed is false), so what Customer.io has was left alone",
    "event_missing": "the event was sent, and the person's activities do not show it",
    "event_twice": "the person's activities show the event more than once",
}
"""What can differ. All but `kept` is worth a look."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One attribute of one person. `kind` is of KINDS. The values are a customer's data: for who has asked."""

    customer_id: str
    attribute: str
    kind: str
    sql: Any = field(default=None, repr=False)
    sent: Any = field(default=None, repr=False)
    stored: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class EventDifference:
    """One event. `kind` is of KINDS, `found` how often the person's activities show it."""

    customer_id: str
    sync: str
    event: str
    event_id: str
    kind: str
    found: int


@dataclass(slots=True)
class Findings:
    """What was found of one person, and over how much. `not_visible`: events older than the activity log must show."""

    differences: list[Difference] = field(default_factory=list)
    events: list[EventDifference] = field(default_factory=list)
    attributes: int = 0
    sent: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The attributes that the row is mapped to, {} where it is not sent."""
    events_compared: int = 0
    not_visible: int = 0

    @property
    def settled(self) -> bool:
        """Whether there is nothing left for which it would be worth to wait."""
        return not self.events and all(one.kind in FINAL for one in self.differences)


FINAL = frozenset({"kept", "no_row", "set_aside", "not_sent"})
"""Differences that no waiting ends."""


def compare(
    state: State, settings: Settings, source: Source, app: AppApi, people: Sequence[str]
) -> dict[str, Findings]:
    """Of each of these people what differs between the rows, mapped as they would be sent now, and Customer.io."""
    if not people:
        return {}
    found = compare_people(state, settings, source, app, people)
    look_for(found, app, _sent_events(state, settings, source, people), source.now())
    return found


class _Mapped:
    """A view's pages, mapped as they are sent, but for the time of reading; no type is recorded."""

    def __init__(self, state: State, settings: Settings, view: View) -> None:
        self.people = People(state)
        self.people.refresh()
        self._drift = Drift(state, view, settings, first=True, trial=True)

    def map(self, page: Page) -> Mapped:
        self._drift.look(page)
        return self._drift.mapper().map(page, None, self.people.primaries)


def compare_people(
    state: State, settings: Settings, source: Source, app: AppApi, people: Sequence[str]
) -> dict[str, Findings]:
    """Of each of these people what differs in the attributes. One request for each 100."""
    if not people:
        return {}
    found = {person: Findings() for person in people}
    view = View(_CUSTOMERS, source.survey(_CUSTOMERS), settings)
    page = source.named(view, list(found))
    stored = app.attributes(found)
    rows = page.rows if page else []
    mapper = _Mapped(state, settings, view)
    mapped = mapper.map(page) if page else Mapped([], {})
    removed = mapper.people.removed(found)
    sent = {one.row: orjson.loads(one.payloads[0])["attributes"] for one in mapped.operations}
    for person in found.keys() - {str(row[1]) for row in rows}:
        found[person].differences.append(Difference(person, "", "no_row"))
    for number, row in enumerate(rows):
        person = str(row[1])
        findings = found.setdefault(person, Findings())
        if person in removed:
            continue
        if number in mapped.bad:
            findings.differences.append(Difference(person, mapped.bad[number][0] or "", "set_aside"))
            continue
        findings.sent = sent.get(number, {})
        if number in sent and person not in stored:
            findings.differences.append(Difference(person, "", "no_person"))
        elif number in sent:
            findings.attributes = len(sent[number])
            findings.differences += _attributes(view, person, row, sent[number], stored[person])
    return found


def _attributes(
    view: View, person: str, row: Sequence[Any], sent: Mapping[str, Any], stored: Mapping[str, str]
) -> Iterator[Difference]:
    for index, one in enumerate(view.fields, start=2):  # a row starts with cursor and key
        name = one.name
        if name.lower() == "customer_id":
            continue
        raw, has = row[index], stored.get(name)
        blank = raw is None or (isinstance(raw, str) and not raw.strip())
        if sent.get(name) is not None:
            if has is None:
                kind = "missing"
            elif same(name, sent[name], has):
                continue
            else:
                kind = "type" if _other_form(one.form, sent[name], has) else "value"
        elif name in sent:
            kind = "not_cleared"
        elif blank:
            kind = "kept"
        elif name == "unsubscribed":  # of which only true is sent
            kind = "kept" if has == "true" else ""
        else:
            kind = "not_sent"
        if kind == "not_sent" or (kind and (has is not None or kind == "missing")):
            yield Difference(person, name, kind, _as_in_sql(one.form, raw), sent.get(name), has)


def same(name: str, sent: Any, stored: str) -> bool:
    """Whether Customer.io shows the value as it shows one of this type: everything as text, nested values as JSON."""
    match sent:
        case bool():
            return stored == ("true" if sent else "false")
        case int() | float():
            return _number(stored) == sent
        case str():
            # one address, whatever its case
            return stored.lower() == sent.lower() if name == "email" else stored == sent
    with suppress(ValueError):
        return bool(json.loads(stored) == sent)
    return False


def _other_form(form: Form, sent: Any, stored: str) -> bool:
    """Whether it is the same value in a form that no condition on the right one would match."""
    text = stored.strip().lower()
    match sent:
        case bool():
            return text in (("true", "yes", "y", "1") if sent else ("false", "no", "n", "0"))
        case int() | float() if form in (Form.WALL_TIME, Form.INSTANT):
            return re.match(r"\d{4}-\d\d-\d\d", text) is not None
        case int() | float():
            return _number(text.strip('"').replace(",", "")) == sent
        case str():
            return text == sent.strip().lower() or (_number(text) is not None and _number(text) == _number(sent))
    return False


def _number(text: str) -> float | int | None:
    if re.fullmatch(r"-?\d+", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"-?\d+(\.\d+)?([eE][+-]?\d+)?", text, re.ASCII):
        return float(text)
    return None


def _as_in_sql(form: Form, raw: Any) -> Any:
    """A value of the view as a person would see it there; moments come as seconds."""
    if isinstance(raw, int) and form in (Form.WALL_TIME, Form.INSTANT):
        with suppress(OverflowError):
            moment = datetime(1970, 1, 1) + timedelta(seconds=raw)  # noqa: DTZ001  # a wall clock's
            return moment.isoformat(" ") + (" UTC" if form is Form.INSTANT else "")
    return raw


@dataclass(frozen=True, slots=True)
class Expected:
    """An event that was sent, to `person`. `time` is its unix seconds."""

    person: str
    sync: str
    name: str
    event_id: str
    ulid: str
    time: int


def look_for(
    found: dict[str, Findings], app: AppApi, expected: Sequence[Expected], now: int, most: int = _LINES
) -> None:
    """Look for these events in people's activities, of each person in the latest `most` lines; 100 cost a request.

    What differs is added to `found`. `now` is in unix seconds.
    """
    by_person: dict[str, list[Expected]] = {}
    for event in expected:
        by_person.setdefault(event.person, []).append(event)
    for person, events in by_person.items():
        findings = found.setdefault(person, Findings())
        lines = list(islice(app.events(person), most))
        # a line that tells neither its ULID nor an event_id may be any event of its name
        unclear = {line.name for line in lines if line.event_id is None and not _is_ulid(line.ulid)}
        findings.events_compared += len(events)
        for event in events:
            times = sum(_is(line, event) for line in lines)
            if times == 1:
                continue
            older = now - event.time > _VISIBLE_SECONDS
            if times == 0 and (older or event.name in unclear or len(lines) == most):
                findings.not_visible += 1
                continue
            kind = "event_twice" if times else "event_missing"
            findings.events.append(EventDifference(person, event.sync, event.name, event.event_id, kind, times))


def _is(line: StoredEvent, event: Expected) -> bool:
    return line.ulid == event.ulid or (line.name == event.name and line.event_id == event.event_id)


def _is_ulid(text: str) -> bool:
    return re.fullmatch(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", text) is not None


def named_events(state: State, settings: Settings, source: Source, view: View, keys: Sequence[str]) -> list[Expected]:
    """The events of a view with these ids, 2,000 at most, as they would be sent now; of nobody who was removed."""
    page = source.named(view, keys) if keys else None
    if page is None:
        return []
    mapper = _Mapped(state, settings, view)
    events = [_expected(view.sync.name, one) for one in mapper.map(page).operations]
    removed = mapper.people.removed({one.person for one in events})
    return [one for one in events if one.person not in removed]


def _expected(sync: str, operation: Operation) -> Expected:
    event = orjson.loads(operation.payloads[-1])
    event_id = str(event["attributes"]["event_id"])
    return Expected(operation.person, sync, event["name"], event_id, event["id"], operation.time)


def _sent_events(state: State, settings: Settings, source: Source, people: Sequence[str]) -> list[Expected]:
    """The events of these people that the ledger knows as sent."""
    found: list[Expected] = []
    for sync in CATALOGUE:
        mark = state.peek(sync)
        if sync.kind is not Kind.EVENT or mark is None or is_disabled(sync.name):
            continue
        with suppress(ViewFault):
            view = View(sync, source.survey(sync), settings)
            mapper = _Mapped(state, settings, view)
            ledger = Ledger(state.container, sync, str(ULID()), mark.ledgered)
            for page in source.pages(view, "walk", None, within=Within(people=people)):
                operations = mapper.map(page).operations
                unsent = ledger.unsent([(one.day, one.digest) for one in operations])
                sent = [one for one, new in zip(operations, unsent, strict=True) if not new]
                found += [_expected(sync.name, one) for one in sent]
    return found
