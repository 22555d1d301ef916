"""A slice of a resync: one range of a view, delivered from the first of its rows that is not accounted for yet.

It moves no mark, and passes go on beside it. Where the two meet on an event, both send it under one ULID.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from shared import comparison, passes, qa, surge
from shared.delivery import Delivery, Sent
from shared.errors import Paused, Refused, TidemarkError, TryLater
from shared.flood import Flood
from shared.gate import CAN_TRIGGER_SECONDS
from shared.pause import Pause
from shared.pipeline import overlapped
from shared.plan import gate_of
from shared.resync import Asked, Report, Runs, SliceLease, Stage
from shared.run import Run
from shared.settings import Settings
from shared.source import Page, Source
from shared.state import State
from shared.syncs import Kind, Sync, find
from shared.view import Position, View, Within

_PASS_PATIENCE = 120.0
"""Seconds for which a slice that is a pass waits for another pass to end."""


_Tally = Counter[tuple[str, str]]
"""Counts of a run by name; those by reason, by name and reason."""


@dataclass(frozen=True, slots=True)
class _OnItsWay:
    """A page that is being sent, and what it has added to the counts so far."""

    sent: Sent
    added: _Tally


def deliver(state: State, settings: Settings, asked: Asked, one: Mapping[str, Any], lease: SliceLease) -> bool:
    """Deliver a slice. Whether it came to its end; else time was up. Raises Paused, Refused, and what a pass raises."""
    sync = find(one["sync"])
    may_send = _may_send(state, asked, sync)
    may_send()
    if one.get("verify"):
        return qa.verify(state, settings, one["within"]["people"], lease, may_send)
    if one.get("pass"):
        return _whole_pass(state, sync, settings, lease)
    rate = max(1, settings.customerio_requests_per_second // settings.resync_slices_in_flight)
    settings = settings.model_copy(update={"customerio_requests_per_second": rate})
    deadline = time.monotonic() + settings.time_budget_seconds
    report = lease.report
    run = Run(f"{asked.run}-{one['number']:06}", sync.name, started="")
    counted = _tally(report.counts)
    ahead: _Tally = Counter()  # what pages beyond the position have added: they may be read again
    with ExitStack() as resources:
        source = resources.enter_context(Source(settings))
        survey = source.survey(sync)
        view = View(sync, survey, settings)
        mark = qa.begin(state, settings, asked, view) if asked.kind == "qa" else state.live(sync)
        state.check_source(mark, survey)
        backfill = asked.private.get("backfill_before") or source.now() - CAN_TRIGGER_SECONDS
        # without an approval nothing goes that could start a campaign
        silent = not asked.approved or (asked.kind == "qa" and not asked.request.get("include_young"))
        gate = gate_of(sync, mark.start, asked.request, silent=silent)
        flood = Flood(mark.released)
        resources.callback(_count_requests, report, counted, run)  # once the client is closed
        delivery = resources.enter_context(
            Delivery(run, view, settings, state, mark, gate, flood, backfill, may_send, alone=False)
        )

        if "vanished" in one:
            delivery.client()  # only the workspace that the state belongs to
            comparison.let_go(state, settings, asked, one["vanished"], source, view, run, may_send)
            report.counts = _by_name(_tally(asdict(run)))
            return True
        pages = (
            comparison.differing(state, asked.run, one["differing"], source, view, report.position)
            if "differing" in one
            else source.pages(view, "walk", report.position, within=Within(**one["within"]))
        )

        def send(page: Page) -> _OnItsWay:
            lease.check()
            # Customer.io drops what looks older than what a pass has sent
            page = replace(page, read_at=max(page.read_at, mark.stamped))
            before = _tally(asdict(run))
            try:
                run.pages += 1
                run.rows += len(page.rows)
                sent = delivery.send(page)
            finally:
                added = _tally(asdict(run))
                added.subtract(before)
                ahead.update(added)
            return _OnItsWay(sent, added)

        def account(one: _OnItsWay) -> None:
            delivery.account(one.sent)
            ahead.subtract(one.added)
            if sync.kind is Kind.PROFILE:
                counted.update(_count_empty(view, one.sent.page))
            done = _tally(asdict(run))
            done.subtract(ahead)
            done.update(counted)
            report.position = Position(None, one.sent.page.last.key)
            report.counts = _by_name(done)
            lease.save()

        try:
            complete = overlapped(
                delivery,
                pages,
                settings.customerio_batches_in_flight,
                send,
                account,
                may_go_on=lambda: time.monotonic() < deadline,
            )
        except TidemarkError:
            with suppress(TidemarkError):
                delivery.fold()  # slices of other runs do not look into this one's journal
            raise
        delivery.fold()
        if asked.kind != "qa":  # which compares everybody itself
            delivery.audit()
    return complete


def _may_send(state: State, asked: Asked, sync: Sync) -> Callable[[], None]:
    """Raises where a person has paused the sync or canceled the run."""
    pause, runs = Pause(state), Runs(state)

    def check() -> None:
        pause.check(sync)
        if runs.read(asked.run).state is not Stage.RUNNING:
            raise Refused("The run was canceled.")

    return check


def _tally(counts: Mapping[str, Any]) -> _Tally:
    tally: _Tally = Counter()
    for name, value in counts.items():
        if isinstance(value, int):
            tally[name, ""] = value
        elif isinstance(value, dict):
            tally.update({(name, reason): count for reason, count in value.items()})
    return tally


def _by_name(tally: _Tally) -> dict[str, Any]:
    """The inverse of `_tally`."""
    counts: dict[str, Any] = {}
    for (name, reason), count in tally.items():
        if not reason:
            counts[name] = count
        elif count:
            counts.setdefault(name, {})[reason] = count
    return counts


def _count_requests(report: Report, before: _Tally, run: Run) -> None:
    for name, count in (("requests", run.requests), ("throttled", run.throttled)):
        report.counts[name] = before[name, ""] + count


def _count_empty(view: View, page: Page) -> _Tally:
    """How often each attribute is empty, for the guard of later passes; see surge.Emptied."""
    return _tally({"empty": surge.count_empty([field.name for field in view.fields], page.rows)})


def _whole_pass(state: State, sync: Sync, settings: Settings, lease: SliceLease) -> bool:
    """Merges and removals go in their own order: by passes, until one has come to its end."""
    deadline = time.monotonic() + _PASS_PATIENCE
    while True:
        ran = passes.run(sync, settings)
        lease.report.message = ran.message
        if ran.outcome != "busy":
            done = _tally(lease.report.counts)
            done.update(_tally(asdict(ran)))  # a pass whose time was up is followed by another
            lease.report.counts = _by_name(done)
            break
        lease.check()
        if time.monotonic() > deadline:
            return False  # it may last: to wait for it is no failure
        time.sleep(2)
    if ran.outcome == "paused":
        raise Paused(ran.message)
    if ran.outcome == "waiting" and sync.after:
        before = state.peek(find(sync.after))
        if before is not None and before.seen and not before.going_live:
            return True  # it has gone as far as it may, and its timer sees to the rest
    if ran.outcome in ("not_live", "waiting"):
        raise TryLater(ran.message)
    return ran.outcome == "ok"
