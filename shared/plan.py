"""The plan of a resync: what it would send, and whom that could reach, counted before anything is sent.

Events of the last 72 hours can start campaigns, so they are counted one by one, mapped and looked for in the ledger, as
they would be sent. Older ones are counted so where they are few, and estimated by hours and ledger days where not.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from math import ceil
from typing import Any

import orjson
from ulid import ULID

from shared.appapi import AppApi
from shared.customerio import BATCH_BYTES
from shared.drift import Drift
from shared.errors import Refused, TryLater, ViewFault, WrongRequest
from shared.gate import CAN_TRIGGER_SECONDS, Gate
from shared.ledger import Ledger
from shared.mapping import Mapper, Operation
from shared.people import People
from shared.resync import Planned
from shared.settings import Settings
from shared.source import Source
from shared.state import Mark, State
from shared.syncs import Kind, Sync
from shared.view import View, Within, count_customers

COUNTED_ROWS = 50_000
"""Up to so many rows a plan counts every one of them; of more, the young ones."""

PEOPLE_A_SLICE = 1000
SHOWN = 20
"""Operations that a dry run shows."""

_ROWS_A_SECOND = 3000
"""Of one worker, roughly: what a plan's duration is worked out with."""


def select(view: View, request: Mapping[str, Any], source: Source) -> list[Within]:
    """Turn a request into conditions on a view: parts whose rows do not overlap.

    Raises WrongRequest for an id of another type than the column's, and for a period of a view that has no such column.
    """
    if ids := request.get("customer_ids"):
        people = [str(one) for one in dict.fromkeys(ids)]
        name, type_ = view.people_are()
        if wrong := [number for number, one in enumerate(people) if not view.is_person(one)]:
            raise WrongRequest(f"customer_ids.{wrong[0]}: {name} of {view.name} is {type_}, and this is not.")
        return list(_chunks(people))
    since, until = (_moment(request.get(name)) for name in ("since", "until"))
    if (since or until) and view.moment is None:
        raise WrongRequest(
            f"since, until: {view.name} has no column updated_at, so nobody knows who has changed since. Add it to the"
            " view, or ask for customer_ids or all."
        )
    within = Within(since=view.moment_at(since) if since else None, until=view.moment_at(until) if until else None)
    if size := request.get("sample"):
        _, people_count = source.rows(view.count_within(within))[0]
        step = max(1, people_count // size)
        people = [str(row[0]) for row in source.rows(view.sample(within, step))][:size]
        return [replace(within, people=one.people) for one in _chunks(people)]
    return [within]


def plan(state: State, settings: Settings, sync: Sync, request: Mapping[str, Any]) -> Planned:
    """The plan of a resync of one sync. Raises WrongRequest, NotLive, Refused, and what a pass raises."""
    mark = _live_mark(state, sync)
    with Source(settings) as source:
        survey = source.survey(sync)
        state.check_source(mark, survey)
        view = View(sync, survey, settings)
        parts = select(view, request, source)
        told = Count(state, settings, source, view, mark, gate_of(sync, mark.start, request)).told(parts)
        slices = list(cut(source, view, parts, settings.resync_slice_rows, phase=0))
    told["slices"] = len(slices)
    told |= duration(told["requests"], told["rows"], len(slices), settings)
    told |= campaigns(settings, sync.kind, told.pop("event_names"))
    why = why_approve(settings, told.get("young_to_send", 0), told["people"])
    if request.get("held"):
        why.append("it sends what the gate holds back")
    told["needs_approval"] = why
    return Planned(told, slices, bool(why))


def gate_of(sync: Sync, start: int | None, request: Mapping[str, Any], *, silent: bool = False) -> Gate:
    """The gate of a request: where it asks for what is held, only `silent` holds anything."""
    return Gate(None, None, silent) if request.get("held") else Gate(start, sync.max_age, silent)


def why_approve(settings: Settings, young: int, people: int) -> list[str]:
    """Why a person must approve so many young events, and so many people; [] where nobody must."""
    why = []
    if young:
        why.append("events younger than 72 hours can start campaigns")
    if people > settings.approval_people:
        why.append(f"it is about more than {settings.approval_people:,} people (APPROVAL_PEOPLE)")
    return why


def check(state: State, settings: Settings, sync: Sync, request: Mapping[str, Any], *, show: bool = False) -> list[Any]:
    """Find out at once what can be wrong with a request, before it is a run; raises as `plan` does.

    With `show`, the first operations as they would be sent, 20 at most: customers' data, for who asked and nobody else.
    """
    mark = _live_mark(state, sync)
    with Source(settings.model_copy(update={"page_size": 500})) as source:
        view = View(sync, source.survey(sync), settings)
        if not show:
            select(view, {name: value for name, value in request.items() if name != "sample"}, source)
            return []
        count = Count(state, settings, source, view, mark, gate_of(sync, mark.start, request))
        shown: list[Any] = []
        for within in select(view, request, source):
            for operation in count.sendable(within):
                shown += map(orjson.loads, operation.payloads)
                if len(shown) >= SHOWN:
                    return shown[:SHOWN]
        return shown


def _live_mark(state: State, sync: Sync) -> Mark:
    if sync.kind not in (Kind.PROFILE, Kind.EVENT):
        raise Refused(f"The rows of {sync.name} are not sent again: their order counts. Its passes see to them.")
    return state.live(sync)


@dataclass(slots=True)
class Count:
    """Counts what would be sent of a view's rows, by the very steps that would send them."""

    state: State
    settings: Settings
    source: Source
    view: View
    mark: Mark
    gate: Gate
    rows: int = 0
    to_send: int = 0
    young: int = 0
    already: int = 0
    bad: int = 0
    size: int = 0
    held: Counter[str] = field(default_factory=Counter)
    _people: People = field(init=False)
    _mapper: Mapper = field(init=False)
    _ledger: Ledger | None = None

    def __post_init__(self) -> None:
        self._people = People(self.state)
        self._people.refresh()
        self._mapper = Drift(self.state, self.view, self.settings, first=True).mapper()

    def sendable(self, within: Within) -> Iterator[Operation]:
        """What would be sent of these rows; counts on the way."""
        profile = self.view.sync.kind is Kind.PROFILE
        if self._ledger is None and not profile:
            self._ledger = Ledger(self.state.container, self.view.sync, str(ULID()), self.mark.ledgered)
        for page in self.source.pages(self.view, "walk", None, within=within):
            mapped = self._mapper.map(page, None, self._people.primaries)
            self.rows += len(page.rows)
            self.bad += len(mapped.bad)
            removed = self._people.removed({one.person for one in mapped.operations})
            entries = [(one.day, one.digest) for one in mapped.operations]
            unsent = self._ledger.unsent(entries) if self._ledger else [True] * len(entries)
            for operation, new in zip(mapped.operations, unsent, strict=True):
                if not new:
                    self.already += 1
                elif operation.person in removed:
                    self.held["removed"] += 1
                elif not profile and (reason := self.gate.holds(operation.time, page.fetched_at)):
                    self.held[reason] += 1
                else:
                    self.to_send += 1
                    self.young += not profile and page.fetched_at - operation.time <= CAN_TRIGGER_SECONDS
                    self.size += sum(map(len, operation.payloads))
                    yield operation

    def all(self, within: Within) -> None:
        """Count, and that is all."""
        for _ in self.sendable(within):
            pass

    def told(self, parts: Sequence[Within]) -> dict[str, Any]:
        """The counts of a plan. Where older events are estimated, `estimated` says which counts."""
        view, source = self.view, self.source
        counts = [source.rows(view.count_within(within))[0] for within in parts]
        rows, people = sum(one[0] for one in counts), sum(one[1] for one in counts)
        told: dict[str, Any] = {"sync": view.sync.name, "rows": rows, "people": people}
        names: set[str] = set()
        estimated = False
        if view.sync.kind is Kind.PROFILE:
            if rows <= COUNTED_ROWS:
                for within in parts:
                    self.all(within)
            else:
                self.to_send, self.size, estimated = rows, self._size_of_some(parts) * rows, True
        else:
            young_since = view.moment_at(datetime.fromtimestamp(source.now() - CAN_TRIGGER_SECONDS, UTC))
            for within in parts:
                young = within
                if rows > COUNTED_ROWS:
                    young = replace(within, since=max(within.since or young_since, young_since))
                self.all(young)
                names.update(str(row[0]) for row in source.rows(view.event_names(young)) if row[0] is not None)
            if rows > COUNTED_ROWS:
                estimated = True
                young_to_send = self.to_send
                before = [replace(one, until=min(one.until or young_since, young_since)) for one in parts]
                self._estimate(before)
                self.size += self._size_of_some(parts) * (self.to_send - young_to_send)
        told |= {
            "already_sent": self.already,
            "to_send": self.to_send,
            "cannot_be_sent": self.bad,
            "held": dict(self.held),
        }
        if view.sync.kind is Kind.EVENT:
            told["young_to_send"] = self.young
        if estimated:
            told["estimated"] = ["already_sent", "to_send", "cannot_be_sent", "held"]
        told["batches"] = told["requests"] = ceil(self.size / BATCH_BYTES)
        told["event_names"] = sorted(names)
        told |= self._told_people(parts)
        return told

    def _told_people(self, parts: Sequence[Within]) -> dict[str, Any]:
        """Who cannot be reached, and how many people there will be: what no view answers is left out."""
        view, source = self.view, self.source
        told: dict[str, Any] = {}
        with suppress(ViewFault):
            if view.sync.kind is Kind.PROFILE:
                told["without_email_and_phone"] = sum(source.count(view.count_unreachable(within)) for within in parts)
                told["people_afterwards"] = source.count(view.count_all())
            else:
                strangers = sum(source.count(view.count_strangers(within)) for within in parts)
                told["people_not_in_customers"] = strangers
                told["people_afterwards"] = strangers + source.count(count_customers())
        return told

    def _estimate(self, parts: Sequence[Within]) -> None:
        """Estimate the older events: of each day, no more were sent before than the ledger has of it."""
        assert self._ledger is not None
        now = self.source.now()
        for within in parts:
            by_day: Counter[str] = Counter()
            for hour, count in self.source.rows(self.view.hours(within)):
                by_day[str(hour)[:10]] += int(count)
            for day, count in by_day.items():
                time = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp())
                sent = min(count, self._ledger.count_of(day))
                self.already += sent
                if reason := self.gate.holds(time, now):
                    self.held[reason] += count - sent
                else:
                    self.to_send += count - sent

    def _size_of_some(self, parts: Sequence[Within]) -> int:
        """Bytes of a row's operations, by the rows of one page."""
        count = Count(self.state, self.settings, self.source, self.view, self.mark, Gate(None, None))
        with Source(self.settings) as source:
            source.survey(self.view.sync)
            count.source = source
            for within in parts[:1]:
                for number, _ in enumerate(count.sendable(within)):
                    if number >= 500:
                        break
        return ceil(count.size / count.to_send) if count.to_send else 300


def cut(source: Source, view: View, parts: Sequence[Within], size: int, phase: int) -> Iterator[dict[str, Any]]:
    """The slices of a selection, of `size` rows each, roughly: events by event time, so that a slice touches few ledger
    days; people by key.
    """
    for within in parts:
        if within.people:
            bounds = [within]
        elif view.sync.kind is Kind.EVENT:
            bounds = list(_by_time(within, source.rows(view.hours(within)), size))
        else:
            keys = [str(row[0]) for row in source.rows(view.cuts(within, size))]
            bounds = [
                replace(within, after=after, upto=upto)
                for after, upto in zip([None, *keys], [*keys, None], strict=True)
            ]
        for one in bounds:
            yield {"phase": phase, "sync": view.sync.name, "within": asdict(one)}


def _by_time(within: Within, hours: Sequence[tuple[Any, ...]], size: int) -> Iterator[Within]:
    since, rows = within.since, 0
    for hour, count in hours:
        if rows and rows + count > size:
            start = str(hour) if len(str(hour)) == 10 else f"{hour}:00:00"
            yield replace(within, since=since, until=start)
            since, rows = start, 0
        rows += count
    yield replace(within, since=since)


def duration(requests: int, rows: int, slices: int, settings: Settings) -> dict[str, Any]:
    """How long it will take, in seconds, roughly."""
    workers = max(1, min(slices, settings.resync_slices_in_flight))
    by_rate = requests / settings.customerio_requests_per_second
    return {"expected_seconds": ceil(max(by_rate, rows / (_ROWS_A_SECOND * workers)))}


def campaigns(settings: Settings, kind: Kind, event_names: Sequence[str]) -> dict[str, Any]:
    """Which campaigns that run these events could start, and which start on segments."""
    attributes = (
        "Attribute changes can move people into segments and so start campaigns, whatever the age of the data."
        if kind is Kind.PROFILE
        else "Events of the last 72 hours go with their [person.x] attributes, which can move people into segments."
    )
    told: dict[str, Any] = {"attributes": attributes}
    if settings.customerio_app_api_key is None:
        return told | {"campaigns": "unknown: CUSTOMERIO_APP_API_KEY is not set"}
    try:
        with AppApi(settings) as app:
            running = [one for one in app.campaigns() if one.running]
    except TryLater as error:
        return told | {"campaigns": f"unknown: {error}"}
    told["campaigns"] = {
        "started_by_these_events": [one.told() for one in running if one.event_name in event_names],
        "started_by_segments": [one.told() for one in running if one.segments],
    }
    return told


def _chunks(people: Sequence[str]) -> Iterator[Within]:
    for start in range(0, len(people), PEOPLE_A_SLICE):
        yield Within(people=people[start : start + PEOPLE_A_SLICE])


def _moment(text: Any) -> datetime | None:
    return datetime.fromisoformat(text).astimezone(UTC).replace(tzinfo=None) if text else None
