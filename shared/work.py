"""What the queues bring: plans to make, slices to deliver, and slices that were given up; and what a person decides.

The platform hands a message to one worker, hands it out again where that fails or dies, and moves it to the poison
queue after five tries. So whatever is done here may have been done before, wholly or in part.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from typing import Any

from shared import canary, comparison, golive, plan, qa, reconcile, slices, telemetry
from shared.errors import Busy, CarryOn, Paused, Refused, TidemarkError, TryLater
from shared.queues import Queues
from shared.resync import Asked, Kind, Planned, Runs, SliceLease, Stage, Status, due, now, phases_done
from shared.run import unforeseen
from shared.settings import Settings, load
from shared.state import State
from shared.syncs import find

log = logging.getLogger("tidemark")

_AGAIN_SECONDS = 15
"""After so long it is tried again to end a phase, while a pass is at work."""


def ask(kind: Kind, request: Mapping[str, Any], sync: str | None = None) -> Asked:
    """Record a run and have its plan made."""
    settings = load()
    with closing(State(settings)) as state:
        state.create()
        asked = Runs(state).create(kind, request, sync)
        Queues(settings).send("plans", {"run": asked.run})
    return asked


def make_plan(message: str) -> None:
    """A message of the queue of plans: make the plan, and begin where nobody need approve it."""
    run = json.loads(message)["run"]
    settings = load()
    with closing(State(settings)) as state:
        runs = Runs(state)
        asked = runs.read(run)
        if asked.state is Stage.RUNNING and not runs.statuses(run):
            _send_due(settings, runs, run)  # a worker before this one may have died over it
        if asked.state is not Stage.PLANNING:
            return
        try:
            planned = _plan(state, settings, asked)
        except TryLater:
            raise
        except TidemarkError as error:
            with suppress(Refused):  # it was canceled meanwhile
                _tell(runs.change(run, [Stage.PLANNING], state=Stage.FAILED, message=str(error), finished=now()))
            return
        except Exception as error:
            raise unforeseen(error) from None
        if planned.refused:
            changes = {"plan": planned.plan, "message": planned.refused, "state": Stage.FAILED, "finished": now()}
            _tell(runs.change(run, [Stage.PLANNING], **changes))
            return
        runs.write_slices(run, planned.slices)
        stage = Stage.AWAITING if planned.needs_approval else Stage.RUNNING
        if asked.request.get("dry_run"):
            stage = Stage.PLANNED
        expires = (datetime.now(UTC) + planned.expires).isoformat(timespec="milliseconds")
        changes = {"plan": planned.plan, "private": planned.private, "state": stage, "expires": expires}
        _tell(runs.change(run, [Stage.PLANNING], **changes))
        if stage is Stage.RUNNING:
            _send_due(settings, runs, run)


def deliver_slice(message: str) -> None:
    """A message of the queue of slices: deliver it, and send for what is due next."""
    content = json.loads(message)
    run, number = content["run"], content["slice"]
    settings = load()
    with closing(State(settings)) as state:
        runs = Runs(state)
        asked = runs.read(run)
        if asked.state is not Stage.RUNNING:
            return
        try:
            with runs.claim(run, number) as lease:
                if lease.report.status not in (Status.DONE, Status.POISON):
                    _deliver(state, settings, asked, {**runs.slices(run)[number], "number": number}, lease)
                status = lease.report.status
        except Busy as reason:  # another worker is at it
            log.info("%s", reason)
            return
        if status in (Status.DONE, Status.POISON):
            _go_on(state, settings, runs, asked, number)
        elif status is Status.RUNNING:  # its time was up
            Queues(settings).send("slices", content)


def _deliver(state: State, settings: Settings, asked: Asked, one: Mapping[str, Any], lease: SliceLease) -> None:
    """Deliver a slice; its report says what became of it. Raises what is worth another try, and what nobody foresaw."""
    report = lease.report
    report.status, report.message = Status.RUNNING, ""
    report.tries += 1
    lease.save()
    try:
        if slices.deliver(state, settings, asked, one, lease):
            report.status = Status.DONE
    except Paused as reason:
        report.status, report.message = Status.PAUSED, str(reason)
    except Refused as reason:  # the run was canceled
        report.status, report.message = Status.WAITING, str(reason)
    except TidemarkError as error:
        report.message = str(error)
        raise
    except Exception as error:
        stop = unforeseen(error)
        report.message = str(stop)
        raise stop from None
    finally:
        told = {"run": asked.run, "slice": one["number"], "sync": one["sync"], "status": report.status}
        told |= {"tries": report.tries, "message": report.message, **report.counts}
        log.info("slice %s", json.dumps(told))
        lease.save()


def give_up_slice(message: str) -> None:
    """A message of the poison queue: the slice is shown as given up, and the others go on."""
    content = json.loads(message)
    run, number = content["run"], content["slice"]
    settings = load()
    with closing(State(settings)) as state:
        runs = Runs(state)
        asked = runs.read(run)
        with runs.claim(run, number) as lease:
            if lease.report.status is not Status.DONE:
                lease.report.status = Status.POISON
                lease.save()
                telemetry.gave_up(str(runs.slices(run)[number]["sync"]))
                log.error("Slice %d of run %s was given up after several tries: %s", number, run, lease.report.message)
        if asked.state is Stage.RUNNING:
            _go_on(state, settings, runs, asked, number)


def give_up_plan(message: str) -> None:
    """A message of the other poison queue: the run has failed."""
    run = json.loads(message)["run"]
    with closing(State(load())) as state:
        failed = Runs(state).change(
            run,
            [Stage.PLANNING],
            state=Stage.FAILED,
            finished=now(),
            message="The plan could not be made in several tries. The log of the function tells why; ask again.",
        )
    _tell(failed)


def approve(run: str) -> Asked:
    """Let a plan be carried out. Once more does no harm: it sends for slices whose messages were lost."""
    settings = load()
    with closing(State(settings)) as state:
        runs = Runs(state)
        asked = runs.read(run)
        if asked.state is not Stage.RUNNING:
            asked = runs.change(run, [Stage.AWAITING], state=Stage.RUNNING, approved=now())
        _begin(state, settings, runs, asked)
        _send_due(settings, runs, run)
    return asked


def cancel(run: str) -> Asked:
    """Stop a run before its next batch. What was sent stays sent; a sync that has gone live stays live.

    Raises Refused where it has ended, and Busy where it is canceled, but a pass kept this from being noted in a mark.
    """
    settings = load()
    with closing(State(settings)) as state:
        runs = Runs(state)
        asked = runs.read(run)
        if asked.state is not Stage.CANCELED or asked.kind != "go-live":
            stages = [Stage.PLANNING, Stage.AWAITING, Stage.RUNNING]
            asked = runs.change(run, stages, state=Stage.CANCELED, finished=now())
        if asked.kind == "go-live":
            try:
                _settle(state, runs, asked, {one["phase"] for one in runs.slices(run)})
            except Busy:
                raise Busy(
                    "The run is canceled. But a pass is at work, so a sync that goes after another still waits for the"
                    " run: cancel it once more in a while."
                ) from None
    return asked


def retry(run: str) -> Asked:
    """Let slices that were given up be tried again, and send for those whose messages were lost."""
    settings = load()
    with closing(State(settings)) as state:
        runs = Runs(state)
        asked = runs.change(run, [Stage.RUNNING])
        _begin(state, settings, runs, asked)
        given_up = [number for number, status in runs.statuses(run).items() if status is Status.POISON]
        for number in given_up:
            with runs.claim(run, number) as lease:
                lease.report.status, lease.report.message = Status.WAITING, ""
                lease.save()
        _send_due(settings, runs, run)
    return asked


def go_on_after_pause() -> None:
    """Send for the slices of all runs that a pause has stopped."""
    settings = load()
    with closing(State(settings)) as state:
        runs = Runs(state)
        for run in runs.running():
            with suppress(Refused):
                _begin(state, settings, runs, runs.read(run))
                _send_due(settings, runs, run)


def status(run: str) -> dict[str, Any]:
    """A run as a person is shown it: its plan, and the sum of its slices."""
    with closing(State(load())) as state:
        runs = Runs(state)
        asked = runs.read(run)
        told: dict[str, Any] = {
            "run": asked.run,
            "kind": asked.kind,
            "sync": asked.sync,
            "request": asked.request,
            "state": "expired" if asked.expired else asked.state,
            "created": asked.created,
            "message": asked.message,
        }
        if asked.plan:
            told["plan"] = asked.plan
        if asked.state is Stage.AWAITING and not asked.expired:
            told["approve"] = f"POST /api/runs/{run}/approve until {asked.expires}"
        if asked.state in (Stage.RUNNING, Stage.DONE, Stage.CANCELED):
            told["progress"] = _progress(runs, asked)
        if asked.kind == "qa":
            told |= {"result": qa.summary(runs, asked)}
        return told


def report(run: str) -> dict[str, Any]:
    """What a QA sync has found, with values read anew: for who has asked, and nobody else."""
    settings = load()
    with closing(State(settings)) as state:
        return qa.report(state, settings, Runs(state).read(run))


def _progress(runs: Runs, asked: Asked) -> dict[str, Any]:
    reports = runs.reports(asked.run)
    total = len(runs.slices(asked.run))
    by_status = Counter(str(report.status) for report in reports.values())
    by_status["waiting"] += total - len(reports)
    sums: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    held: Counter[str] = Counter()
    for report in reports.values():
        for name in ("rows", "operations", "accepted", "rejected", "already_sent", "dead_letters", "requests"):
            sums[name] += report.counts.get(name, 0)
        reasons.update(report.counts.get("reasons", {}))
        held.update(report.counts.get("held", {}))
    rows = int(asked.plan.get("rows") or 0)
    begun = datetime.fromisoformat(asked.approved or asked.created)
    ended = datetime.fromisoformat(asked.finished) if asked.finished else datetime.now(UTC)
    seconds = max(0.001, (ended - begun).total_seconds())
    rate = sums["rows"] / seconds
    done = asked.state is Stage.DONE
    percent = 100.0 if done else min(99.0, round(100 * sums["rows"] / rows, 1)) if rows else 0.0
    told: dict[str, Any] = {
        "slices": {name: count for name, count in by_status.items() if count},
        **sums,
        "held": dict(held),
        "reasons": dict(reasons.most_common(20)),
        "percent": percent,
        "rows_per_second": round(rate, 1),
        "seconds": round(seconds, 1),
    }
    if asked.state is Stage.RUNNING and rate:
        told["expected_seconds_left"] = round(max(0, rows - sums["rows"]) / rate)
    messages = {number: report.message for number, report in sorted(reports.items()) if report.message}
    if messages:
        told["messages"] = dict(list(messages.items())[:20])
    if by_status["poison"]:
        told["retry"] = f"POST /api/runs/{asked.run}/retry tries the slices again that were given up"
    return told


def _tell(asked: Asked) -> None:
    """One line in the log for a plan that was made, or not: its numbers, since the rest may name people."""
    told = {"run": asked.run, "kind": asked.kind, "sync": asked.sync, "state": asked.state, "message": asked.message}
    numbers = {name: value for name, value in asked.plan.items() if isinstance(value, int | float)}
    log.log(logging.ERROR if asked.state is Stage.FAILED else logging.INFO, "plan %s", json.dumps(told | numbers))


def _plan(state: State, settings: Settings, asked: Asked) -> Planned:
    if asked.kind == "go-live":
        return golive.plan(state, settings, asked.request)
    if asked.kind == "canary":
        return canary.plan(state, settings, asked)
    if asked.kind == "comparison":
        return comparison.plan(state, settings, asked)
    if asked.kind == "qa":
        return qa.plan(state, settings, asked.request)
    if asked.kind == "reconciliation":
        return reconcile.plan(state, settings, asked)
    return plan.plan(state, settings, find(asked.sync), asked.request)


def _begin(state: State, settings: Settings, runs: Runs, asked: Asked) -> None:
    """Before the first slice of going live is sent for, the marks stand: an approval may have died before."""
    if asked.kind != "go-live" or asked.private.get("begun"):
        return
    try:
        golive.begin(state, settings, asked)
    except Refused as reason:
        if runs.read(asked.run).private.get("begun"):  # another approval was faster
            return
        runs.change(asked.run, [Stage.RUNNING], state=Stage.FAILED, message=str(reason), finished=now())
        raise
    runs.change(asked.run, [Stage.RUNNING], private={**asked.private, "begun": True})


def _send_due(settings: Settings, runs: Runs, run: str) -> None:
    queues = Queues(settings)
    all_slices, statuses = runs.slices(run), runs.statuses(run)
    if not all_slices:
        runs.change(run, [Stage.RUNNING], state=Stage.DONE, finished=now())
        return
    numbers = due(all_slices, statuses, settings.resync_slices_in_flight)
    if all(statuses.get(number) is Status.DONE for number in range(len(all_slices))):
        numbers = {len(all_slices) - 1}  # its worker died before it could say that all is done
    for number in sorted(numbers):
        queues.send("slices", {"run": run, "slice": number})


def _go_on(state: State, settings: Settings, runs: Runs, asked: Asked, number: int) -> None:
    """After a slice: what is due now that it is finished; and where its phase is done, what comes of that."""
    run, all_slices, statuses = asked.run, runs.slices(asked.run), runs.statuses(asked.run)
    queues = Queues(settings)
    done = phases_done(all_slices, statuses)
    if all_slices[number]["phase"] in done and asked.kind == "go-live":
        try:
            _settle(state, runs, asked, done)
        except Busy as reason:  # a pass is at work, which may take long; what is next must wait for it
            log.info("%s", reason)
            queues.send("slices", {"run": run, "slice": number}, delay=_AGAIN_SECONDS)
            return
    if len(done) == len({one["phase"] for one in all_slices}):
        with suppress(CarryOn):  # another worker was faster, or it was canceled
            runs.change(run, [Stage.RUNNING], state=Stage.DONE, finished=now())
        return
    before = {other: status for other, status in statuses.items() if other != number}
    in_flight = settings.resync_slices_in_flight
    for following in sorted(due(all_slices, statuses, in_flight) - due(all_slices, before, in_flight)):
        queues.send("slices", {"run": run, "slice": following})


def _settle(state: State, runs: Runs, asked: Asked, phases: set[int]) -> None:
    all_slices, reports = runs.slices(asked.run), runs.reports(asked.run)
    syncs = {one["sync"] for one in all_slices if one["phase"] in phases}
    golive.settle(state, asked, {n: (all_slices[n], report) for n, report in reports.items()}, syncs)
