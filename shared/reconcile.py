"""Reconciliation: who is in a segment by SQL Server and not at Customer.io, or the other way round, and why.

    count      of each view that SEGMENTS maps, and of its segment; within the tolerance that is all
    members    beyond it, id by id: SQL Server's as digests in order, Customer.io's page by page against them
    reasons    of some who are missing or surplus: what Customer.io holds of them against what their rows say
    repair     where it is asked for, a resync of exactly these people

A segment that Customer.io is still building is not compared, since nobody knows yet who is in it. The latest result is
kept in `reconciliation.json`, without ids; people are named by the run, and in findings.
"""

import hashlib
import json
import logging
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import orjson

from shared import comparison, findings, qa
from shared import plan as planning
from shared.appapi import MEMBERS, AppApi, Segment
from shared.errors import CarryOn, Refused, StateFault, ViewFault, WrongRequest
from shared.findings import Finding
from shared.gate import Gate
from shared.people import People
from shared.plan import Count
from shared.queues import Queues
from shared.resync import Asked, Planned, Runs
from shared.settings import Settings, load
from shared.source import Source
from shared.state import Document, Mark, State
from shared.stored import compare_people
from shared.syncs import find
from shared.view import SCHEMA, SEGMENT, Position, SegmentView, View, Within

log = logging.getLogger("tidemark")

_CUSTOMERS = find("customers")
_CHECK = "reconciliation"
_NAME = "reconciliation.json"

MOST = 10_000
"""So many people a segment and way are known by their ids, as many as a resync may name; more are counted."""

SAMPLE = 100
"""Of so many people a segment and way it is looked up why."""

_REQUESTS = 39
"""Requests to the App API that one segment of a million members may cost."""
_MOST_HOLDERS = 20

REASONS = {
    "removed": "the person was removed, and yet Customer.io has them",
    "merged": "the person was merged into another: let the view name the other one",
    "not_yet_synced": "the row has changed since the last pass of customers: the next one sends it",
    "no_row": "retention.customers has no row for this id",
    "set_aside": "the row cannot be sent: see the dead letters of customers",
    "address_of_another_id": "the person's address belongs to another id at Customer.io",
    "no_person": "Customer.io shows no person with this id",
    "attribute_differs": "Customer.io has other values than the row, or in another form",
    "attribute_kept": "NULL in SQL Server left alone what Customer.io has of an attribute",
    "unknown": "Customer.io shows what the row says: it may hold a number or flag as text, which looks alike; or the"
    " segment's conditions are not the view's, or it lags behind",
}
"""Why somebody may be missing or surplus; of several the first."""


@dataclass(slots=True)
class Row:
    """What is told of one segment: `difference` is Customer.io's count less SQL Server's, None where not counted.

    `state` is the segment's at Customer.io. `missing` are in SQL Server's alone, `surplus` in Customer.io's alone.
    """

    name: str
    segment: int | None
    title: str = ""
    state: str = ""
    sql: int | None = None
    customerio: int | None = None
    difference: int | None = None
    within: bool | None = None
    compared: bool = False
    missing: int | None = None
    surplus: int | None = None
    message: str = ""
    at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))


# --- asking for one ---------------------------------------------------------------------------------------------------


def check(state: State, settings: Settings, request: Mapping[str, Any]) -> Mark:
    """Find out at once what can be wrong with a request, else the mark of customers.

    Raises Refused, WrongRequest, NotLive.
    """
    if not settings.segments:
        raise Refused(f"SEGMENTS is not set, so no view {SCHEMA}.{SEGMENT}<name> is compared with a segment.")
    if settings.customerio_app_api_key is None:
        raise Refused(
            "Who is in a segment is asked of the App API, and for that CUSTOMERIO_APP_API_KEY is missing: set it to an"
            " App API key of the workspace (another key than the Track API's)."
        )
    for number, name in enumerate(request.get("segments") or ()):
        if name not in settings.segments:
            raise WrongRequest(f"segments.{number}: SEGMENTS has no such name. It has {', '.join(settings.segments)}.")
    return comparison.ready(state)


def daily() -> None:
    """Ask for a reconciliation of all segments, where there is anything to compare, and all people were sent once."""
    settings = load()
    with closing(State(settings)) as state:
        try:
            check(state, settings, {})
        except CarryOn as reason:
            log.info("%s", reason)
            return
        asked = Runs(state).create("reconciliation", {}, _CUSTOMERS.name)
        Queues(settings).send("plans", {"run": asked.run})


def last(state: State) -> dict[str, Any] | None:
    """The latest result: `at` (ISO 8601, UTC) and `segments`, each the fields of Row. None where there is none.

    Raises StateUnavailable, StateFault.
    """
    text = Document(state.container, _NAME).read()
    try:
        result: dict[str, Any] | None = json.loads(text) if text else None
    except ValueError:
        raise StateFault(f"{_NAME} is damaged. Delete that blob: the next one writes it anew.") from None
    return result


# --- comparing --------------------------------------------------------------------------------------------------------


def plan(state: State, settings: Settings, asked: Asked) -> Planned:
    """Compare the segments, keep what is found, and plan the repair where one is asked for.

    Raises as `check` does, and what a pass and AppApi raise.
    """
    mark = check(state, settings, asked.request)
    names = asked.request.get("segments") or list(settings.segments)
    rows: list[Row] = []
    found: list[Finding] = []
    told: list[dict[str, Any]] = []
    off: dict[str, list[str]] = {}
    with Source(settings) as source, AppApi(settings) as app:
        survey = source.survey(_CUSTOMERS)
        state.check_source(mark, survey)
        look = _Look(state, settings, source, app, View(_CUSTOMERS, survey, settings), mark, asked.run)
        views = source.segments()
        segments = {one.id: one for one in app.segments()}
        for name in names:
            row = Row(name, settings.segments[name])
            try:
                people, finding = look.compare(row, views.get(name), segments.get(settings.segments[name]))
            except ViewFault as fault:
                row.message, people = str(fault), _Differing()
                finding = Finding(SEGMENT + name, row.message, "Mend the view; then POST /api/reconciliation.")
            if finding:
                found.append(finding)
            if people.missing or people.surplus:
                off[name] = [one for one in (*people.missing, *people.surplus) if look.view.is_person(one)]
            rows.append(row)
            told.append({**asdict(row), "people": people.looked_at})
        unmapped = sorted(views.keys() - settings.segments.keys())
        rows += [Row(name, None, message="SEGMENTS names no segment to compare it with.") for name in unmapped]
        _remember(state, settings, rows, found, names)
        result = {"segments": told, "not_in_segments": unmapped, "reasons": REASONS}
        if not asked.request.get("repair") or not any(off.values()):
            return Planned(result, [], needs_approval=False)
        used_by = {name: _used_by(app, settings.segments[name]) for name in off}
    large = [row.name for row in rows if max(row.missing or 0, row.surplus or 0) > MOST]
    if large:
        refused = (
            f"In {', '.join(large)} more than {MOST:,} people are missing or surplus, and a repair is of some people."
            ' Find out why; then POST /api/syncs/customers/resync with {"all": true} sends everybody again.'
        )
        return Planned(result | {"used_by": used_by}, [], needs_approval=False, refused=refused)
    return _repair(state, settings, [one for people in off.values() for one in people], result, used_by)


@dataclass(slots=True)
class _Differing:
    """Who is in one alone: how many, the ids of at most MOST, and of some why.

    `removed` are missing because they were removed: no id of theirs is kept. `nameless` have no id at Customer.io.
    """

    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    missing_count: int = 0
    surplus_count: int = 0
    removed: int = 0
    nameless: int = 0
    looked_at: list[dict[str, Any]] = field(default_factory=list)


@dataclass(slots=True)
class _Look:
    """One look at the segments, and what it needs."""

    state: State
    settings: Settings
    source: Source
    app: AppApi
    view: View
    mark: Mark
    run: str

    def compare(
        self, row: Row, columns: Sequence[Any] | None, segment: Segment | None
    ) -> tuple[_Differing, Finding | None]:
        """Compare one segment and fill in its row; who differs, and what a person is to look at. Raises ViewFault."""
        nobody = _Differing()
        about = SEGMENT + row.name
        if segment is not None:
            row.title, row.state = segment.name, segment.state
        if columns is None:
            row.message = f"There is no view {SCHEMA}.{about}, or the login may not SELECT from it. Not compared."
            return nobody, Finding(about, row.message, f"Create it, or take {row.name} off SEGMENTS.")
        members = SegmentView(row.name, columns)
        row.sql = self.source.count(members.count())
        if segment is None:
            row.message = f"Customer.io has no segment {row.segment}. Not compared."
            return nobody, Finding(about, row.message, f"Correct the id of {row.name} in SEGMENTS.")
        if segment.state != "finished":
            row.message = f"Customer.io is still building the segment ({segment.state}). Not compared."
            return nobody, None
        row.customerio = self.app.count(segment.id)
        row.difference = row.customerio - row.sql
        row.within = abs(row.difference) * 100 <= row.sql * self.settings.reconciliation_tolerance_percent
        if row.within:
            return nobody, None
        people = _differing(self.source, members, self.app, segment.id)
        row.compared, row.missing, row.surplus = True, people.missing_count, people.surplus_count
        holders = max(1, min(_MOST_HOLDERS, _REQUESTS - 4 - row.customerio // MEMBERS - 1))
        everybody = People(self.state)
        everybody.refresh()
        removed = everybody.removed(people.missing)
        people.missing, people.removed = [one for one in people.missing if one not in removed], len(removed)
        people.looked_at = self._reasons(people, everybody, holders)
        row.message = _message(people)
        if people.nameless == 0 and all(map(_is_explained, people.looked_at)):
            return people, None
        return people, Finding(
            about,
            row.message,
            f"GET /api/runs/{self.run} names people and reasons; docs/reconciliation.md has what to do about which.",
            people.missing_count + people.surplus_count,
            [one["customer_id"] for one in people.looked_at],
        )

    def _reasons(self, people: _Differing, everybody: People, holders: int) -> list[dict[str, Any]]:
        """Of some people why they differ, in two requests and one for each of at most so many addresses."""
        sides = {one: side for side in ("missing", "surplus") for one in _some(getattr(people, side))}
        removed, merged = everybody.removed(sides), everybody.primaries(sides)
        ids = [one for one in sides if self.view.is_person(one)]
        late = self._changed_since_the_last_pass(ids)
        differences = {
            person: {one.attribute: one.kind for one in found.differences}
            for person, found in compare_people(self.state, self.settings, self.source, self.app, ids).items()
        }
        suspects = [one for one in ids if _may_clash(differences[one])]
        clashes = self._clashes(suspects[:holders])

        def reason(person: str) -> str:
            if person in removed:
                return "removed"
            if person in merged:
                return "merged"
            if person in late:
                return "not_yet_synced"
            kinds = set(differences.get(person, {"": "no_row"}).values())
            if person in clashes:
                return "address_of_another_id"
            for kind in ("no_row", "set_aside", "no_person"):
                if kind in kinds:
                    return kind
            return "unknown" if not kinds else "attribute_kept" if kinds == {"kept"} else "attribute_differs"

        looked_at = []
        for person, side in sides.items():
            one: dict[str, Any] = {"customer_id": person, "is": side, "reason": reason(person)}
            if one["reason"].startswith("attribute"):
                one["attributes"] = differences[person]
            looked_at.append(one)
        return looked_at

    def _changed_since_the_last_pass(self, ids: Sequence[str]) -> set[str]:
        mark, view = self.mark, self.view
        start = mark.position
        if mark.seen:
            at = mark.seen.bound if view.by_row_version else view.cursor_at(datetime.fromisoformat(mark.seen.at))
            start = Position(at, None)
        return {str(key) for (key,) in self.source.rows(view.changed_of(ids, start))} if ids else set()

    def _clashes(self, ids: Sequence[str]) -> Mapping[str, str]:
        if not ids:
            return {}
        count = Count(self.state, self.settings, self.source, self.view, self.mark, Gate(None, None))
        rows = count.sendable(Within(people=ids))
        emails = {one.person: orjson.loads(one.payloads[0])["attributes"].get("email") for one in rows}
        return qa.address_clashes(self.app, emails)[0]


def _differing(source: Source, view: SegmentView, app: AppApi, segment: int) -> _Differing:
    """Compare the members id by id. A million of them are 8 MB of digests; ids are kept of those who differ alone.

    Two of a million people have one digest (64 bits) in one case of some thirty million.
    """
    read = array("Q")
    for rows in source.stream(view.members()):
        read.extend(_digest(str(one)) for (one,) in rows)
    known = array("Q", (one for one, _ in groupby(sorted(read))))
    del read
    met = bytearray(len(known))
    people = _Differing()
    strangers: set[int] = set()
    for page in app.members(segment):
        for person in page:
            if not person:
                people.nameless += 1
                continue
            digest = _digest(person)
            at = bisect_left(known, digest)
            if at < len(known) and known[at] == digest:
                met[at] = 1
            elif digest not in strangers:
                strangers.add(digest)
                if len(people.surplus) < MOST:
                    people.surplus.append(person)
    people.surplus_count = len(strangers) + people.nameless
    people.missing_count = met.count(0)
    if people.missing_count:
        wanted = {digest for digest, is_there in zip(known, met, strict=True) if not is_there}
        for rows in source.stream(view.members()):
            for (one,) in rows:
                if len(people.missing) < MOST and (digest := _digest(str(one))) in wanted:
                    wanted.remove(digest)
                    people.missing.append(str(one))
    return people


def _digest(person: str) -> int:
    text = person.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


def _some(people: Sequence[str]) -> Sequence[str]:
    """Evenly spread over all."""
    return people[:: max(1, len(people) // SAMPLE)][:SAMPLE]


def _may_clash(differences: Mapping[str, str]) -> bool:
    return "no_person" in differences.values() or differences.get("email") in ("value", "missing")


def _is_explained(one: Mapping[str, Any]) -> bool:
    """Whether it is as it should be: who was merged is to be missing, and not to be surplus."""
    return one["reason"] == "not_yet_synced" or (one["reason"], one["is"]) == ("merged", "missing")


def _message(people: _Differing) -> str:
    reasons = Counter(one["reason"] for one in people.looked_at)
    names = Counter(name for one in people.looked_at for name in one.get("attributes", ()))
    removed = f" ({people.removed:,} of them rightly: they were removed)" if people.removed else ""
    nameless = f" ({people.nameless:,} of them without an id)" if people.nameless else ""
    told = f"{people.missing_count:,} missing{removed}, {people.surplus_count:,} surplus{nameless}."
    if reasons:
        told += f" Of {len(people.looked_at)} looked at: "
        told += ", ".join(f"{reason} {count}" for reason, count in reasons.most_common()) + "."
    if names:
        told += f" Attributes: {', '.join(f'{name} {count}' for name, count in names.most_common(20))}."
    return told


# --- keeping and repairing --------------------------------------------------------------------------------------------


def _remember(
    state: State, settings: Settings, rows: Sequence[Row], found: Sequence[Finding], names: Sequence[str]
) -> None:
    """Keep what was found; of segments that were not asked for, what was found before."""
    others = settings.segments.keys() - set(names)
    before = last(state) or {"segments": []}
    told = [asdict(row) for row in rows] + [one for one in before["segments"] if one["name"] in others]
    result = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "segments": sorted(told, key=lambda one: one["name"]),
    }
    Document(state.container, _NAME).change(lambda _: json.dumps(result, indent=1).encode())
    noted = findings.last(state, _CHECK) if others else None
    kept = [one for one in noted.findings if one.about.removeprefix(SEGMENT) in others] if noted else []
    findings.note(state, _CHECK, [*found, *kept])


def _used_by(app: AppApi, segment: int) -> list[dict[str, Any]]:
    """The campaigns that use a segment, running or not; of one that the list does not have, nobody knows."""
    known = {one.id: one for one in app.campaigns()}
    ids = {*app.used_by(segment), *(one.id for one in known.values() if segment in one.segments)}
    return [
        {"id": one, "name": known[one].name, "state": known[one].state}
        if one in known
        else {"id": one, "name": "", "state": "unknown"}
        for one in sorted(ids)
    ]


def _repair(
    state: State, settings: Settings, people: Sequence[str], result: dict[str, Any], used_by: Mapping[str, Any]
) -> Planned:
    """A resync of these people, which a person must approve where it could start a campaign."""
    planned = planning.plan(state, settings, _CUSTOMERS, {"customer_ids": people})
    why = list(planned.plan["needs_approval"])
    for name, campaigns in used_by.items():
        if running := [str(one["id"]) for one in campaigns if one["state"] in ("running", "unknown")]:
            why.append(f"running campaigns use {SEGMENT}{name}: {', '.join(running)}")
    told = {**result, **planned.plan, "used_by": used_by, "needs_approval": why}
    return Planned(told, planned.slices, bool(why))
