"""What there is to see of everything at one moment, and what of it is not as it should be.

Blobs are read and nothing else: neither SQL Server nor Customer.io is asked, so this answers while they do not. Each
part is read by itself: where one is damaged, that is a problem among the others, and they are told all the same.

Nothing here tells of a person: of findings what all may see of them, of dead letters their reasons without keys, of
runs neither request nor plan.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, TypeVar

import azure.functions as func
from azure.storage.blob import ContainerClient
from ulid import ULID

from shared import findings, pages, reconcile, volume
from shared.deadletters import DeadLetters
from shared.errors import StateFault, TidemarkError
from shared.pause import ALL, Pause, Stop
from shared.resync import Asked, Runs, Stage, Status
from shared.run import unforeseen
from shared.settings import Settings, is_disabled
from shared.state import Mark, State, storage_errors
from shared.syncs import CATALOGUE, Sync

DAYS = 30
"""Of so many days, the present one too, the volume is shown."""

_SECONDS = 20.0
"""After this no other part is begun: a blob service that is down takes half a minute to be told so, each time."""

_LATE = timedelta(hours=26)
"""A live sync that was not read to its end for so long is late, be it one that runs once a day."""

_LETTERS = 20_000
"""Dead letters that are read to count their reasons; of more only the number is told."""

_RUNS = 20
"""So many of the newest runs are looked at for those under way."""

_COUNTS = (
    "rows", "operations", "accepted", "rejected", "already_sent", "recognised", "held", "dead_letters", "requests",
    "throttled", "withheld", "held_back_minutes", "stop",
)  # fmt: skip
_SEGMENT = (
    "name", "segment", "title", "state", "sql", "customerio", "difference", "within", "compared", "missing", "surplus",
    "message",
)  # fmt: skip

Level = Literal["ok", "warning", "failed"]
_T = TypeVar("_T")


@dataclass(slots=True)
class _Look:
    """One look at everything: what it has met that is not as it should be, and until when it may go on."""

    problems: list[dict[str, str]] = field(default_factory=list)
    deadline: float = field(default_factory=lambda: time.monotonic() + _SECONDS)
    late: bool = False

    def note(self, level: Level, about: str, what: str) -> None:
        self.problems.append({"level": level, "about": about, "what": what})

    def part(self, about: str, read: Callable[..., _T], *of: Any) -> _T | None:
        """What a part has to tell; None where it cannot be read, which is noted."""
        if time.monotonic() > self.deadline:
            self.late = True
            return None
        try:
            return read(*of)
        except TidemarkError as error:
            self.note("failed", about, str(error))
        except Exception as error:
            self.note("failed", about, str(unforeseen(error)))
        return None


def gather(state: State, settings: Settings) -> dict[str, Any]:
    """Everything, as the JSON of GET /api/status has it; docs/status.md names the fields. Raises nothing of its own."""
    look = _Look()
    now = datetime.now(UTC)
    told: dict[str, Any] = {"at": now.isoformat(timespec="seconds"), "level": "ok", "problems": look.problems}
    look.part("state", state.create)
    stops = look.part("pauses", Pause(state).stops) or {}
    for name, stop in stops.items():
        look.note(
            "warning",
            "all syncs" if name == ALL else name,
            f"paused since {stop.since[:16].replace('T', ' ')} UTC: {stop.reason}",
        )
    told["paused"] = {name: stop._asdict() for name, stop in stops.items()}
    history = look.part("volume", volume.history, state) or {}
    told["syncs"] = [_sync(look, state, settings, sync, stops, now) for sync in CATALOGUE]
    for one in told["syncs"]:
        one["volume"] = look.part("volume", _volume, history.get(one["sync"], {}), now.date())
    if not any(one["state"] in ("live", "first pass", "going live", "paused", "unknown") for one in told["syncs"]):
        look.note("warning", "all syncs", "none is live, so nothing is sent by timers: POST /api/go-live plans it.")
    told["findings"] = look.part("findings", _findings, look, state) or []
    told["reconciliation"] = look.part("reconciliation", _reconciliation, state)
    told["runs"] = look.part("runs", _runs, look, state) or []
    if look.late:
        look.note(
            "failed", "status", f"after {_SECONDS:.0f} s not everything was read: blob storage is slow. Look again."
        )
    look.problems.sort(key=lambda one: one["level"] != "failed")
    if look.problems:
        told["level"] = look.problems[0]["level"]
    return told


def page(told: dict[str, Any]) -> func.HttpResponse:
    """The same as a page."""
    first = date.fromisoformat(told["at"][:10]) - timedelta(days=DAYS - 1)
    days = [(first + timedelta(days=number)).isoformat() for number in range(DAYS)]
    return pages.render(
        "status.html",
        told=told,
        days=days,
        sums=lambda events: [sum(counts) for counts in zip(*events.values(), strict=True)],
        ago=lambda at: _ago(at, told["at"]),
        span=_span,
    )


# --- syncs ------------------------------------------------------------------------------------------------------------


def _sync(
    look: _Look, state: State, settings: Settings, sync: Sync, stops: dict[str, Stop], now: datetime
) -> dict[str, Any]:
    told: dict[str, Any] = {"sync": sync.name, "state": "unknown", "read_to_end": None, "lag_seconds": None}
    problems = len(look.problems)
    mark = look.part(sync.name, state.peek, sync)
    if is_disabled(sync.name):
        told["state"] = "disabled"
    elif len(look.problems) == problems and not look.late:
        told["state"] = _state(mark, ALL in stops or sync.name in stops)
    if mark and mark.live and mark.seen:
        at = datetime.fromisoformat(mark.seen.at).replace(tzinfo=UTC)
        lag = max(timedelta(), now - at)  # SQL Server's clock may be ahead
        told |= {"read_to_end": at.isoformat(timespec="seconds"), "lag_seconds": round(lag.total_seconds())}
        if lag > _LATE and told["state"] in ("live", "first pass"):
            look.note("failed", sync.name, f"was last read to its end {_span(lag.total_seconds())} ago.")
    told["last_run"] = run = look.part(sync.name, _last_run, state, sync)
    if run and told["state"] in ("live", "first pass", "going live"):
        if run["outcome"] == "failed":
            look.note("failed", sync.name, f"its last run failed: {run['message']}")
        elif run["message"] and run["outcome"] == "ok":
            look.note("warning", sync.name, run["message"])
    letters = DeadLetters(state.container, sync, "", settings.dead_letter_days)
    told["dead_letters"] = dead = look.part(sync.name, _dead_letters, letters)
    if dead and dead["total"]:
        look.note("warning", sync.name, f"dead letters: {dead['total']:,}")
    return told


def _state(mark: Mark | None, paused: bool) -> str:
    if mark is None or not mark.live:
        return "not live"
    if paused:
        return "paused"
    if mark.going_live:
        return "going live"
    return "live" if mark.began is None else "first pass"


def _last_run(state: State, sync: Sync) -> dict[str, Any] | None:
    """The newest record of a run, in short; None where the last days have none."""
    folder = f"syncs/{sync.name}/runs/"
    for run in _newest(state.container, folder, 1):
        name = f"{folder}{run}.json"
        with storage_errors():
            text = state.container.download_blob(name).readall()
        try:
            record = json.loads(text)
            told = {name: record[name] for name in ("run", "outcome", "started", "finished", "seconds", "message")}
            return told | {name: record[name] for name in _COUNTS} | {"findings": len(record["findings"])}
        except (ValueError, KeyError, TypeError):
            raise StateFault(f"{name} is damaged. It is a record only: delete that blob.") from None
    return None


def _newest(container: ContainerClient, folder: str, most: int) -> list[str]:
    """Of a folder in which ULIDs are the names, the newest, for at most six listings of some thousand names each.

    A ULID begins with its time: names of one beginning of 6 characters are of 17 minutes, of 5 of 9 hours, and of 4 of
    12 days. What is older than the 12 days before the present ones is not found.
    """
    now = datetime.now(UTC)
    found: set[str] = set()
    for length in (6, 5, 4):
        for moment in (now, now - timedelta(milliseconds=32 ** (10 - length))):
            prefix = folder + str(ULID.from_datetime(moment))[:length]
            with storage_errors():
                names = [blob.name for blob in container.walk_blobs(prefix, delimiter="/")]
            found.update(name.removeprefix(folder).rstrip("/").removesuffix(".json") for name in names)
            if len(found) >= most:
                return sorted(found, reverse=True)[:most]
    return sorted(found, reverse=True)


def _dead_letters(letters: DeadLetters) -> dict[str, Any]:
    total = letters.depth()
    if total > _LETTERS:
        return {"total": total, "reasons": None}
    summary = letters.summary()
    reasons = [{name: one[name] for name in ("reason", "count", "last_seen")} for one in summary["reasons"]]
    return {"total": summary["total"], "reasons": reasons}


def _volume(events: dict[str, dict[str, int]], today: date) -> dict[str, list[int]]:
    """By event ("" where the operations have no name) what was accepted on each of the last DAYS days, today last."""
    days = [(today - timedelta(days=DAYS - 1 - number)).isoformat() for number in range(DAYS)]
    try:
        return {name: [int(counts.get(day, 0)) for day in days] for name, counts in sorted(events.items())}
    except (ValueError, TypeError, AttributeError):
        raise StateFault("volume.json is damaged. Restore an earlier version of that blob.") from None


# --- checks and runs --------------------------------------------------------------------------------------------------


def _findings(look: _Look, state: State) -> list[dict[str, Any]]:
    told = []
    for noted in findings.everything(state):
        if noted.findings:
            look.note("warning", noted.check, f"findings: {len(noted.findings)}")
        told.append({"check": noted.check, "at": noted.at, "findings": [one.told() for one in noted.findings]})
    return told


def _reconciliation(state: State) -> dict[str, Any] | None:
    last = reconcile.last(state)
    try:
        return last and {
            "at": last["at"],
            "segments": [{name: one[name] for name in _SEGMENT} for one in last["segments"]],
        }
    except (KeyError, TypeError):
        raise StateFault("reconciliation.json is damaged. Delete that blob: the next one writes it anew.") from None


def _runs(look: _Look, state: State) -> list[dict[str, Any]]:
    """The runs that are not over, the newest first."""
    runs, told = Runs(state), []
    for run in _newest(state.container, "runs/", _RUNS):
        asked = look.part(f"run {run}", runs.read, run)
        if asked and asked.state in (Stage.PLANNING, Stage.AWAITING, Stage.RUNNING) and not asked.expired:
            told.append(_run(look, runs, asked))
    return told


def _run(look: _Look, runs: Runs, asked: Asked) -> dict[str, Any]:
    name = f"run {asked.run}"
    told: dict[str, Any] = {
        "run": asked.run,
        "kind": asked.kind,
        "sync": asked.sync,
        "state": asked.state,
        "created": asked.created,
        "slices": {},
        "percent": None,
    }
    if asked.state is Stage.AWAITING:
        look.note("warning", name, f"waits for approval until {asked.expires}: GET /api/runs/{asked.run}")
    if asked.state is Stage.RUNNING:
        statuses = look.part(name, _statuses, runs, asked.run) or []
        told["slices"] = dict(Counter(str(status) for status in statuses))
        if statuses:
            told["percent"] = 100 * statuses.count(Status.DONE) // len(statuses)
        if given_up := statuses.count(Status.POISON):
            look.note("failed", name, f"slices that were given up: {given_up}. GET /api/runs/{asked.run} says why.")
    return told


def _statuses(runs: Runs, run: str) -> Sequence[Status]:
    """How far each slice is: a listing tells it, whatever their number."""
    known = runs.statuses(run)
    return [known.get(number, Status.WAITING) for number in range(len(runs.slices(run)))]


# --- words ------------------------------------------------------------------------------------------------------------


def _ago(at: str, now: str) -> str:
    then = datetime.fromisoformat(at)
    passed = datetime.fromisoformat(now) - then.replace(tzinfo=then.tzinfo or UTC)
    return f"{_span(round(passed.total_seconds()))} ago"


def _span(seconds: float) -> str:
    """A length of time in one unit: 0.3 s, 48 s, 12 min, 30 h, 3 days."""
    if seconds < 10 and seconds % 1:
        return f"{seconds:.1f} s"
    for unit, size, most in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{max(0, seconds) / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"
