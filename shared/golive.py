"""Going live: one plan for all syncs, one bound, and marks that stand before the first slice is sent.

From the approval on, passes read what has changed since the bound, and slices send what was there before: so timers may
run at any moment, and there is no gap between the two. Merges and removals are not sliced, since their order counts:
their marks stand at the beginning, and passes read them, removals first of all.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from shared import plan as planning
from shared.customerio import CustomerIo
from shared.drift import Drift
from shared.errors import Busy, Refused, ViewFault
from shared.gate import Gate
from shared.ledger import Ledger
from shared.mapping import Mapper
from shared.people import People
from shared.plan import Count
from shared.resync import Asked, Planned, Report
from shared.run import account_digest
from shared.settings import Settings, is_disabled
from shared.source import Source
from shared.state import Identity, Mark, Seen, State
from shared.syncs import CATALOGUE, Kind, Sync, find
from shared.view import Position, View, Within

_PHASES = {Kind.REMOVAL: 0, Kind.PROFILE: 1, Kind.MERGE: 2, Kind.EVENT: 3}
"""Who was removed is known before anybody is sent; primaries are there before merges, and both before events."""


def plan(state: State, settings: Settings, request: Mapping[str, Any]) -> Planned:
    """The plan for the syncs that are asked for, by default all that are enabled and not live yet.

    Raises Refused where none is left, or one that is asked for is live; and what a pass raises.
    """
    syncs = _wanted(state, request)
    start = request.get("since")
    floor = int(datetime.fromisoformat(start).timestamp()) if start else None
    told: list[dict[str, Any]] = []
    slices: list[dict[str, Any]] = []
    names: set[str] = set()
    bound: dict[str, Any] = {}
    left: list[str] = []
    if state.is_new():
        People(state).begin()
    with Source(settings) as source, CustomerIo(settings) as client:
        workspace = client.workspace()
        for sync in sorted(syncs, key=_phase):
            if sync.after and sync.after not in {one["sync"] for one in told} and not _is_live(state, find(sync.after)):
                reason = f"{sync.name} goes after {sync.after}, which is not live."
                if request.get("syncs"):
                    raise Refused(f"{reason} Let both go live.")
                left.append(f"{reason} So it stays as it is.")
                continue
            try:
                survey = source.survey(sync)
            except ViewFault:
                if request.get("syncs"):
                    raise
                left.append(f"{sync.name}: there is no view retention.{sync.view}, so it stays as it is.")
                continue
            if not bound:
                bound = {"bound": survey.bound, "at": survey.now.isoformat(), "now": source.now()}
                identity = Identity(workspace, survey.server, survey.database)
            survey = replace(survey, bound=bound["bound"], now=datetime.fromisoformat(bound["at"]))
            view = View(sync, survey, settings)
            Mapper(view, settings)
            Drift(state, view, settings, first=True)
            bound[sync.name] = {
                "horizon": view.horizon(survey, settings.lookback_seconds),
                "strategy": view.strategy,
            }
            if sync.kind in (Kind.MERGE, Kind.REMOVAL):
                told.append({"sync": sync.name, "rows": source.count(view.count_all()), "in_order": True})
                slices.append({"phase": _phase(sync), "sync": sync.name, "pass": True})
                continue
            mark = Mark(identity, view.strategy, start=floor if sync.kind is Kind.EVENT else None)
            within = Within()
            if mark.start is not None:
                within = Within(since=view.moment_at(datetime.fromtimestamp(mark.start, UTC).replace(tzinfo=None)))
            count = Count(state, settings, source, view, mark, Gate(mark.start, sync.max_age))
            one = count.told([within])
            if missing := source.count(view.without_cursor()):
                one["without_cursor"] = missing  # no pass will ever read these
            if mark.start is not None:
                one["held"]["before_start"] = source.count(view.count_all()) - one["rows"]
            names.update(one.pop("event_names"))
            told.append(one)
            slices += planning.cut(source, view, [within], settings.resync_slice_rows, _phase(sync))
    if not told:
        raise Refused("No sync is left that could go live: each is live already, disabled, or without a view.")
    rows, requests = sum(one["rows"] for one in told), sum(one.get("requests", 0) for one in told)
    shown: dict[str, Any] = {
        "syncs": told,
        "bound": bound["at"],
        "events_since": start,
        "rows": rows,
        "people": max((one.get("people", 0) for one in told), default=0),
        "young_to_send": sum(one.get("young_to_send", 0) for one in told),
        "requests": requests,
        "slices": len(slices),
        "left_out": left,
        "needs_approval": ["going live always does"],
    }
    shown |= planning.duration(requests, rows, len(slices), settings)
    shown |= planning.campaigns(settings, Kind.PROFILE, sorted(names))
    private = {"backfill_before": bound["now"], "bound": bound, "identity": asdict(identity), "start": floor}
    return Planned(shown, slices, True, private)


def begin(state: State, settings: Settings, asked: Asked) -> None:
    """Write the marks of an approved plan, before its first slice: all, once nothing speaks against any of them.

    What was written before by this plan stays. Raises Refused where a sync has gone live by another plan meanwhile,
    StateFault where the container belongs to another workspace, server or database.
    """
    private = asked.private
    identity = Identity(**private["identity"])
    state.remember(identity)
    with Source(settings) as source:
        views = []
        for one in asked.plan["syncs"]:
            sync = find(one["sync"])
            view = View(sync, source.survey(sync), settings)
            if view.strategy != private["bound"][sync.name]["strategy"]:
                raise Refused(f"The cursor of {view.name} is another than when the plan was made. Ask for a new plan.")
            _refuse_live(state, sync, asked)
            views.append(view)
        for view in views:
            # before the mark: its passes find the types recorded
            Drift(state, view, settings, first=True).settle()
            try:
                state.begin(view.sync, _mark(view.sync, identity, settings, asked))
            except Busy:
                _refuse_live(state, view.sync, asked)


def _refuse_live(state: State, sync: Sync, asked: Asked) -> None:
    mark = state.peek(sync)
    if mark is not None and mark.live and mark.going_live != asked.run:
        raise Refused(f"{sync.name} has gone live meanwhile. Ask for a new plan.")


def settle(
    state: State, asked: Asked, reports: Mapping[int, tuple[Mapping[str, Any], Report]], syncs: set[str]
) -> None:
    """The slices of these syncs are all done, or given up: who goes after them need wait no longer.

    Raises Busy while a pass is at work.
    """
    for name in sorted(syncs):
        sync = find(name)
        mark = state.peek(sync)
        if mark is None or mark.going_live != asked.run:
            continue
        counts = [report.counts for one, report in reports.values() if one["sync"] == name]
        empty: dict[str, int] = {}
        for some in counts:
            for attribute, count in some.get("empty", {}).items():
                empty[attribute] = empty.get(attribute, 0) + count
        with state.claim(sync) as claim:
            mark = replace(
                claim.mark,
                going_live=None,
                first_rows=sum(some.get("rows", 0) for some in counts),
                first_empty=empty,
            )
            if sync.kind is Kind.EVENT:  # a ledger that is lost from now on is told
                ledger = Ledger(state.container, sync, asked.run, 0, others=False)
                mark = replace(mark, ledgered=max(mark.ledgered, ledger.stored))
            claim.save(mark)


def _mark(sync: Sync, identity: Identity, settings: Settings, asked: Asked) -> Mark:
    bound = asked.private["bound"]
    mark = Mark(identity, bound[sync.name]["strategy"], account=account_digest(settings), going_live=asked.run)
    if sync.kind in (Kind.MERGE, Kind.REMOVAL):
        return replace(mark, began=bound["now"])
    return replace(
        mark,
        position=Position(bound[sync.name]["horizon"], None),
        start=asked.private["start"] if sync.kind is Kind.EVENT else None,
        seen=Seen(bound["bound"], bound["at"]),
    )


def _phase(sync: Sync) -> int:
    return _PHASES[sync.kind] + (sync.kind is Kind.EVENT and sync.after is not None)


def _is_live(state: State, sync: Sync) -> bool:
    mark = state.peek(sync)
    return mark is not None and mark.live


def _wanted(state: State, request: Mapping[str, Any]) -> Sequence[Sync]:
    """The syncs that are asked for, or all that are enabled and not live."""
    live = {sync.name for sync in CATALOGUE if _is_live(state, sync)}
    if asked_for := request.get("syncs"):
        syncs = [find(name) for name in dict.fromkeys(asked_for)]
        if already := [sync.name for sync in syncs if sync.name in live]:
            raise Refused(f"{', '.join(already)}: live already. A resync sends rows again.")
        return syncs
    return [sync for sync in CATALOGUE if sync.name not in live and not is_disabled(sync.name)]
