"""The audit: some of those to whom a run has sent something are read back a little later. 2xx is accepted, not applied.

    run        draws a sample of what was accepted, and sends one message: keys of rows, and a seal of each
    audit      reads these rows anew. One whose seal is another has changed since, and is not judged. What Customer.io
               does not show yet is looked at again, twice, later and later; then it is a finding
    findings   `audit-<sync>`: each audit looks at some of its people again, and lets go who is fine by now

With them go the failures that the activity log has of the time since the last audit, of whomever: those of attributes
where `customers` is audited, those of events where their own sync is.

A seal is a hash, by the key of people.json, of what a row was mapped to. No value is in a message or in state.
"""

import heapq
import json
import logging
import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import itemgetter
from typing import Any

import orjson

from shared import findings, readback, stored
from shared.appapi import AppApi, FailedEvent, as_text
from shared.errors import StateFault, TidemarkError
from shared.findings import MOST_PEOPLE, Finding
from shared.mapping import Operation
from shared.people import People
from shared.queues import Queues
from shared.run import account_digest
from shared.settings import Settings, load
from shared.source import Source
from shared.state import Document, State, storage_errors
from shared.syncs import Kind, Sync, find
from shared.view import View

log = logging.getLogger("tidemark")

_AGAIN = {Kind.PROFILE: 100, Kind.EVENT: 5}
"""How much of what was found before an audit looks at again: people cost a request a hundred, events one each."""

_FAILED_EVENTS = 500
_LINES = 100  # the latest of a person's activity log, which one request brings
_MESSAGE_BYTES = 48_000  # of a queue's 64 kB (Azure's documentation)

_RUN_SECONDS = 1800
"""So long before its audit was asked for a run may have begun: TIME_BUDGET_SECONDS, and some."""

_LOG = "Look at the people in Customer.io: the activity log has the line."
_TWO_WRITERS = "Somebody else writes it: find out who, in the activity log of the people."

KINDS = {
    "no_person": (
        stored.KINDS["no_person"],
        "Were they deleted or suppressed there, or has a new id come with their address? Where it is everybody,"
        " CUSTOMERIO_APP_API_KEY is another workspace's.",
    ),
    "missing": (stored.KINDS["missing"], _LOG),
    "type": (stored.KINDS["type"], _TWO_WRITERS),
    "value": (stored.KINDS["value"], _TWO_WRITERS),
    "not_cleared": (stored.KINDS["not_cleared"], _LOG),
    "email_forbidden": (
        "a changed address was not taken",
        "Turn on 'Allow updates to email using ID' in the settings of the workspace, then touch these rows.",
    ),
    "email_taken": (
        "the address belongs to another id at Customer.io, so the person keeps the former one",
        "Look for the address there. If both are one person, merge them; else give the other another address first.",
    ),
    "email_swapped": (
        "people have exchanged their addresses, and each still has the former one, since no two can have one at a time",
        "Give the first an address that nobody has; touch the row of the second; give the first the right one again.",
    ),
    readback.FAILED: ("Customer.io did not make the change", _LOG),
    readback.SKIPPED: (
        "Customer.io skipped the update, because it holds one with a later time",
        "Somebody else writes it, with times that are ahead: find out who, in the activity log of the people.",
    ),
    "event_missing": (stored.KINDS["event_missing"], "Were they deleted and made anew, or merged there? " + _LOG),
    "event_twice": (stored.KINDS["event_twice"], "Somebody else sends the same events: stop one of the two."),
    "failed_event": ("Customer.io accepted the event and then did not take it", _LOG),
}
"""What an audit can find, and what to do."""

Subject = tuple[str, str]
"""What a finding is about: a person and an attribute ("" for none), or a person and an event's id."""


# --- what a run asks for ----------------------------------------------------------------------------------------------


class Sample:
    """Some of the operations of a run, each as likely as any other: AUDIT_PEOPLE at most, 0 where nobody can audit."""

    def __init__(self, sync: Sync, settings: Settings) -> None:
        can = sync.kind in _AGAIN and settings.customerio_app_api_key is not None
        self._most = settings.audit_people if can else 0
        self._drawn: list[tuple[float, str, Operation]] = []

    def draw(self, accepted: Iterable[tuple[str, Operation]]) -> None:
        """Take accepted operations, and the keys of their rows, into account."""
        if self._most:
            lots = ((random.random(), key, operation) for key, operation in accepted)
            self._drawn = heapq.nsmallest(self._most, [*self._drawn, *lots], key=itemgetter(0))

    def sealed(self, sync: Sync, people: People) -> dict[str, str]:
        """The seals of those that were drawn, by the keys of their rows."""
        found = {}
        for _, key, operation in self._drawn:
            sent = orjson.loads(operation.payloads[-1])
            parts = (sent["attributes"],) if sync.kind is Kind.PROFILE else (operation.person, sent["name"], sent["id"])
            found[key] = _seal(people, *parts)
        return found


def _seal(people: People, *parts: Any) -> str:
    return people.hash_of(json.dumps(parts, sort_keys=True))


def ask(settings: Settings, run: str, sync: Sync, sample: Sample, people: People) -> None:
    """Send for an audit of what was drawn. Where that fails there is none, and the run is none the worse."""
    rows = sample.sealed(sync, people)
    while len(json.dumps(rows)) > _MESSAGE_BYTES:
        rows.popitem()
    if rows:
        message = {"sync": sync.name, "run": run, "at": int(time.time()), "look": 0, "rows": rows}
        try:
            Queues(settings).send("audits", message, delay=_delay(settings, 0))
        except TidemarkError as error:
            log.warning("What run %s of %s has sent will not be audited: %s", run, sync.name, error)


def _delay(settings: Settings, look: int) -> int:
    """Seconds before the first, second and third look: 1, 3 and 9 minutes where QA_WAIT_SECONDS is what it is."""
    return settings.qa_wait_seconds * (1, 3, 9)[look] // 3


_LAST_LOOK = 2


# --- what is known of earlier audits ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Book:
    """What the audits of a sync have found and not seen mended, the longest unseen first. `at`: the last one's time."""

    at: int = 0
    open: Mapping[Subject, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        return orjson.dumps({"at": self.at, "open": [[*subject, kind] for subject, kind in self.open.items()]})

    @classmethod
    def from_json(cls, text: bytes | None, name: str) -> "_Book":
        if text is None:
            return cls()
        try:
            known = orjson.loads(text)
            return cls(int(known["at"]), {(person, what): kind for person, what, kind in known["open"]})
        except (ValueError, KeyError, TypeError):
            raise StateFault(f"{name} is damaged. Delete that blob: the next audits write it anew.") from None


_FOLDER = "audits/"


def check(sync: Sync) -> str:
    """The name under which the findings of a sync's audits are noted."""
    return f"audit-{sync.name}"


def forget(state: State, people: Collection[str]) -> None:
    """Keep nothing of these people. Raises StateUnavailable, StateFault."""
    with storage_errors():
        names = [blob.name for blob in state.container.list_blobs(_FOLDER)]
    for name in names:

        def change(text: bytes | None, name: str = name) -> bytes:
            book = _Book.from_json(text, name)
            left = {subject: kind for subject, kind in book.open.items() if subject[0] not in people}
            return replace(book, open=left).to_json()

        Document(state.container, name).change(change)


# --- the audit --------------------------------------------------------------------------------------------------------


def carry_out(message: str) -> None:
    """A message of the queue of audits: look, and send for the next look or note what was found.

    Raises StopRun or TryLater as a pass does.
    """
    asked = json.loads(message)
    sync = find(asked["sync"])
    settings = load()
    if settings.customerio_app_api_key is None or not settings.audit_people:
        return
    with closing(State(settings)) as state, Source(settings) as source, AppApi(settings) as app:
        mark = state.peek(sync)
        if mark is None or mark.account != account_digest(settings):
            return  # the state is another workspace's, as the next pass will say
        survey = source.survey(sync)
        state.check_source(mark, survey)
        view = View(sync, survey, settings)
        name = f"{_FOLDER}{sync.name}.json"
        document = Document(state.container, name)
        book = _Book.from_json(document.read(), name)
        now = int(time.time())
        since = min(book.at or asked["at"], asked["at"]) - _RUN_SECONDS
        look = _Look(state, settings, source, app, view, asked["rows"], book.open, since)
        differs = look.people() if sync.kind is Kind.PROFILE else look.events()
        new = {subject for subject, kind in differs.items() if subject not in book.open and kind not in _CERTAIN}
        if new and asked["look"] < _LAST_LOOK:
            differs = {subject: kind for subject, kind in differs.items() if subject not in new}
            rows = {key: seal for key, seal in asked["rows"].items() if key in {s[look.unit] for s in new}}
            again = {**asked, "look": asked["look"] + 1, "rows": rows}
            Queues(settings).send("audits", again, delay=_delay(settings, again["look"]))
        differs = look.explained(differs)

        def change(text: bytes | None) -> bytes:
            known = _Book.from_json(text, name)
            left = {subject: kind for subject, kind in known.open.items() if subject[look.unit] not in look.looked}
            return _Book(now, dict([*left.items(), *differs.items()][-MOST_PEOPLE:])).to_json()

        book = _Book.from_json(document.change(change), name)
        findings.note(state, check(sync), _told(sync, book.open), sync.name)
        people = People(state)
        people.refresh()
        if removed := people.removed({person for person, _ in book.open}):  # a removal's own purge may have come before
            forget(state, removed)
            findings.forget(state, removed)


_CERTAIN = ("failed_event", "event_twice")
"""What no later look changes."""


def give_up(message: str) -> None:
    """A message of the poison queue: there is no such audit."""
    asked = json.loads(message)
    log.warning(
        "The audit of run %s of %s failed several times and was dropped; the log of the function audit tells why. What"
        " the run sent was accepted; later runs are audited.",
        asked["run"],
        asked["sync"],
    )


class _Look:
    """One look at the rows of a message, at some of what was found before, and at what the activity log has.

    `looked` are the keys that were looked at; a subject's is at its index `unit`.
    """

    def __init__(
        self,
        state: State,
        settings: Settings,
        source: Source,
        app: AppApi,
        view: View,
        seals: Mapping[str, str],
        known: Mapping[Subject, str],
        since: int,
    ) -> None:
        self._parts = (state, settings, source)
        self._app = app
        self._view = view
        self._people = People(state)
        self._people.refresh()
        self._seals = seals
        self._open = known
        self._since = since
        self.unit = 0 if view.sync.kind is Kind.PROFILE else 1
        self._before = list(dict.fromkeys(subject[self.unit] for subject in known))[: _AGAIN[view.sync.kind]]
        self.looked: set[str] = set()
        self._addresses: dict[str, str] = {}

    def people(self) -> dict[Subject, str]:
        """What differs of people, by kind."""
        not_made = readback.changes_not_made(self._app, self._since)
        people = self._keys(person for person, _ in not_made)
        differs: dict[Subject, str] = {}
        for person, found in stored.compare_people(*self._parts, self._app, people).items():
            as_sent = self._is_sealed(person, found.sent)
            for one in found.differences:
                subject = (person, one.attribute)
                of_type, change = not_made.get(subject, ("", None))
                # a change to what the row no longer says tells nothing of the row
                if change is None or not stored.same(one.attribute, one.sent, as_text(change.wanted)):
                    of_type = ""
                if one.kind not in stored.FINAL and (as_sent or of_type or subject in self._open):
                    differs[subject] = of_type or self._open.get(subject, one.kind)
                    if of_type == readback.FAILED and one.attribute == "email":
                        self._addresses[person] = str(one.sent)
        return differs

    def events(self) -> dict[Subject, str]:
        """What differs of events, by kind."""
        failed = set(islice(self._app.failed_events(self._since), _FAILED_EVENTS))
        keys = self._keys(one.event_id for one in failed)
        differs: dict[Subject, str] = {}
        expected = []
        for event in stored.named_events(*self._parts, self._view, keys):
            subject = (event.person, event.event_id)
            if FailedEvent(event.person, event.name, event.event_id) in failed:
                differs[subject] = "failed_event"
            elif subject in self._open or self._is_sealed(event.event_id, event.person, event.name, event.ulid):
                expected.append(event)
        seen: dict[str, stored.Findings] = {}
        stored.look_for(seen, self._app, expected, self._parts[2].now(), _LINES)
        for one in (one for found in seen.values() for one in found.events):
            subject = (one.customer_id, one.event_id)
            differs[subject] = self._open.get(subject, one.kind)
        return differs

    def explained(self, differs: Mapping[Subject, str]) -> dict[Subject, str]:
        """The same, with what stands in the way of an address that was not taken."""
        failed = [person for person, what in differs if what == "email" and person in self._addresses]
        why = readback.why_addresses_failed(self._app, {person: self._addresses[person] for person in failed})
        return {**differs, **{(person, "email"): kind for person, kind in why.items()}}

    def _keys(self, logged: Iterable[str]) -> list[str]:
        """What to look at: the message's rows, some of those before, and the log's where they can be of this view."""
        keys = [*self._seals, *self._before, *(one for one in logged if self._view.is_key(one))]
        self.looked = set(keys)
        return list(self.looked)

    def _is_sealed(self, key: str, *parts: Any) -> bool:
        return self._seals.get(key) == _seal(self._people, *parts)


def _told(sync: Sync, differs: Mapping[Subject, str]) -> Sequence[Finding]:
    """One finding for each kind of difference, and each attribute."""
    groups: dict[tuple[str, str], list[str]] = {}
    for (person, what), kind in differs.items():
        groups.setdefault((kind, what if sync.kind is Kind.PROFILE else ""), []).append(person)
    return [
        Finding(f"attribute {name}" if name else sync.name, *KINDS[kind], len(people), tuple(dict.fromkeys(people)))
        for (kind, name), people in sorted(groups.items())
    ]
