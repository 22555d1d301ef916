"""What a run tells the metrics: METRICS has them all, and the README the same as a table.

In Azure the Functions worker starts Azure Monitor's OpenTelemetry distribution, which sends them to Application
Insights; anywhere else nobody listens, and nothing is sent. A point never holds a customer's data: its dimensions are
the sync and what the code itself names.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from opentelemetry import metrics

from shared.run import Run

_FLUSH_MILLISECONDS = 5000


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric. A count adds up, and a count of nothing is not told; a value is what holds at the end of a run.

    Every metric has the dimension `sync`; `dimensions` are those besides it.
    """

    name: str
    kind: Literal["count", "value"]
    unit: str
    dimensions: tuple[str, ...]
    meaning: str


RUNS = Metric("tidemark.runs", "count", "runs", ("outcome",), "Runs that ended; a timer that ran has one.")
SECONDS = Metric("tidemark.seconds", "value", "s", ("outcome",), "How long the run took.")
ROWS = Metric("tidemark.rows", "count", "rows", (), "Rows read.")
OPERATIONS = Metric(
    "tidemark.operations",
    "count",
    "operations",
    ("outcome",),
    "Operations that Customer.io `accepted` or `rejected`.",
)
HELD = Metric(
    "tidemark.held",
    "count",
    "operations",
    ("reason",),
    "Operations held back: `before_start`, `too_old`, `could_fire` (in a replay) or `removed` (the person was).",
)
ALREADY_SENT = Metric(
    "tidemark.already_sent", "count", "operations", (), "Operations that the ledger knew and that were not sent again."
)
DEAD_LETTERS = Metric("tidemark.dead_letters", "count", "letters", (), "Rows and operations that the run set aside.")
DEAD_LETTER_DEPTH = Metric(
    "tidemark.dead_letter_depth", "value", "letters", (), "Dead letters on the list, if the run came to its end."
)
REQUESTS = Metric("tidemark.requests", "count", "requests", (), "Requests to the Track API, every try of them.")
THROTTLED = Metric("tidemark.throttled", "count", "requests", (), "Those of them that were answered 429.")
MARK_AGE = Metric(
    "tidemark.mark_age",
    "value",
    "s",
    (),
    "How long ago the view was last read to its end; while it never was, how long ago the first pass began.",
)
HELD_BACK = Metric(
    "tidemark.held_back",
    "value",
    "min",
    (),
    "How long an open transaction has kept newer rows from being read; not told where none does.",
)
DRIFT = Metric(
    "tidemark.drift",
    "value",
    "columns",
    (),
    "Columns that are gone, or not sent for their types, until somebody looks.",
)
STOPS = Metric(
    "tidemark.stops",
    "count",
    "runs",
    ("kind",),
    "Runs that stopped before they sent or set aside too much: `flood`, `mass_change` or `emptied`.",
)
POISON = Metric("tidemark.slices_given_up", "count", "slices", (), "Slices of a run that failed again and again.")
FRESHNESS = Metric(
    "tidemark.freshness",
    "value",
    "s",
    (),
    "From a row's commit to its acceptance, the longest of a run's new rows; by `row_version` at most so long.",
)
FINDINGS = Metric(
    "tidemark.findings",
    "value",
    "findings",
    ("check",),
    "What a check found, told each time it looks; 0 ends it. `sync` is `all` where a check is of no one sync.",
)

METRICS = (
    RUNS, SECONDS, ROWS, OPERATIONS, HELD, ALREADY_SENT, DEAD_LETTERS, DEAD_LETTER_DEPTH, REQUESTS, THROTTLED, MARK_AGE,
    HELD_BACK, DRIFT, STOPS, POISON, FRESHNESS, FINDINGS,
)  # fmt: skip

# A value is a histogram, because the SDK repeats a gauge's last value for as long as the process lives: of what is over
# it would tell each minute, and so would an instance that no longer runs the sync.
_meter = metrics.get_meter("tidemark")
_counters = {one: _meter.create_counter(one.name, one.unit, one.meaning) for one in METRICS if one.kind == "count"}
_values = {one: _meter.create_histogram(one.name, one.unit, one.meaning) for one in METRICS if one.kind == "value"}


@contextmanager
def told(run: Run) -> Iterator[None]:
    """Tell how the run ends, whether or not it comes so far as to have a record."""
    try:
        yield
    except BaseException:
        run.outcome = "failed"
        raise
    finally:
        run.end()
        tell(run)


def tell(run: Run) -> None:
    """Tell the metrics what a run did, and send them off: an instance may be frozen as soon as it ends."""
    for metric, amount, dimensions in _points(run):
        attributes = {"sync": run.sync, **dimensions}
        if metric.kind == "value":
            _values[metric].record(amount, attributes)
        elif amount:
            _counters[metric].add(amount, attributes)
    _flush()


def gave_up(sync: str) -> None:
    """Tell the metrics that a slice was given up."""
    _counters[POISON].add(1, {"sync": sync})
    _flush()


def found(check: str, sync: str, findings: int) -> None:
    """Tell the metrics how much a check has found."""
    _values[FINDINGS].record(findings, {"sync": sync, "check": check})
    _flush()


def _flush() -> None:
    if flush := getattr(metrics.get_meter_provider(), "force_flush", None):
        with suppress(Exception):  # no run fails for its metrics
            flush(_FLUSH_MILLISECONDS)


def _points(run: Run) -> Iterator[tuple[Metric, float, dict[str, str]]]:
    yield RUNS, 1, {"outcome": run.outcome}
    yield SECONDS, run.seconds, {"outcome": run.outcome}
    yield ROWS, run.rows, {}
    yield OPERATIONS, run.accepted, {"outcome": "accepted"}
    yield OPERATIONS, run.rejected, {"outcome": "rejected"}
    for reason, count in run.held.items():
        yield HELD, count, {"reason": reason}
    yield ALREADY_SENT, run.already_sent, {}
    yield DEAD_LETTERS, run.dead_letters, {}
    yield REQUESTS, run.requests, {}
    yield THROTTLED, run.throttled, {}
    if run.stop:
        yield STOPS, 1, {"kind": run.stop}
    if run.dead_letter_depth is not None:
        yield DEAD_LETTER_DEPTH, run.dead_letter_depth, {}
    if run.read_to_end:
        age = (datetime.now(UTC) - datetime.fromisoformat(run.read_to_end).replace(tzinfo=UTC)).total_seconds()
        yield MARK_AGE, max(0.0, age), {}  # SQL Server's clock may be ahead
    if run.freshness is not None:
        yield FRESHNESS, run.freshness, {}
    if run.held_back_minutes:
        yield HELD_BACK, run.held_back_minutes, {}
    if run.withheld is not None:
        yield DRIFT, run.withheld, {}
