"""What a run did, and how that is told: its record in the blobs, and one line in the log."""

import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from ulid import ULID

from shared.errors import Paused, StopRun, TidemarkError, TryLater, Waiting
from shared.mapping import digest
from shared.settings import Settings
from shared.state import State
from shared.syncs import Sync

log = logging.getLogger("tidemark")


@dataclass(slots=True)
class Run:
    """What a run did; its record in the blobs holds these fields.

    `outcome` is ok, budget (time was up, the next pass goes on), waiting (for another sync, or a comparison), paused
    (by a person), busy, not_live or failed. `rows` were read in `pages`, and `operations` sent in `requests`, which
    counts the tries too, and of which `throttled` were answered by 429; `accepted` and `rejected` are the operations'
    known fates, `repeated` the deletions that were sent once more. `already_sent` events were in the ledger, `held`
    ones are counted by the gate's reason ("removed": the person was), `recognised` rows were accounted for by an
    earlier pass, `dead_letters` counts rows and operations set aside, and `reasons` why; `vanished` are changes of
    people who are no longer in the view, `merged` the profiles of people who are others now, `invalid_emails` addresses
    that were left out, `held_back_minutes` how long an open transaction has kept newer rows from being read. `stop` is
    what the run stopped before: flood, mass_change or emptied. `withheld` is how many columns somebody must look at,
    `dead_letter_depth` how many letters the list holds; None where the run did not come to know. `read_to_end` is when
    the view was last read to its end (ISO 8601, UTC, SQL Server's clock), `freshness` the most seconds that a row
    took from its commit to its acceptance, of those that were new in this run. `seconds` is wall time. `findings` are
    for a person to look at: they are in the record, and in the log only their number.
    """

    run: str
    sync: str
    started: str
    outcome: str = "ok"
    finished: str = ""
    seconds: float = 0.0
    pages: int = 0
    rows: int = 0
    operations: int = 0
    accepted: int = 0
    rejected: int = 0
    repeated: int = 0
    already_sent: int = 0
    held: dict[str, int] = field(default_factory=dict)
    recognised: int = 0
    dead_letters: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    vanished: int = 0
    merged: int = 0
    invalid_emails: int = 0
    held_back_minutes: int = 0
    requests: int = 0
    throttled: int = 0
    stop: str = ""
    withheld: int | None = None
    dead_letter_depth: int | None = None
    read_to_end: str = ""
    freshness: float | None = None
    message: str = ""
    findings: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, sync: Sync) -> Self:
        """A run of `sync` that starts now."""
        return cls(run=str(ULID()), sync=sync.name, started=_now())

    def set_aside(self, reason: str) -> None:
        """Count a row or an operation that cannot be delivered."""
        self.dead_letters += 1
        self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def hold(self, reason: str) -> None:
        """Count an operation that is not sent."""
        self.held[reason] = self.held.get(reason, 0) + 1

    def end(self) -> None:
        """The run ends now, unless it has already ended."""
        if not self.finished:
            self.finished = _now()
            self.seconds = round(
                (datetime.fromisoformat(self.finished) - datetime.fromisoformat(self.started)).total_seconds(), 3
            )


@contextmanager
def recorded(run: Run, sync: Sync, state: State) -> Iterator[None]:
    """Record how the run ends.

    What nobody foresaw becomes a StopRun that names the place in the code and nothing else: its text may quote a row.
    """
    try:
        yield
    except (Paused, Waiting) as reason:
        run.outcome, run.message = "paused" if isinstance(reason, Paused) else "waiting", str(reason)
        raise
    except TidemarkError as error:
        run.outcome, run.message = "failed", str(error)
        raise
    except BaseException as error:
        stop = unforeseen(error)
        run.outcome, run.message = "failed", str(stop)
        if isinstance(error, Exception):
            raise stop from None
        raise
    finally:
        run.end()
        told = {name: value for name, value in asdict(run).items() if name != "findings"}
        if run.findings:
            told["findings"] = len(run.findings)
        log.log(logging.INFO if run.outcome != "failed" else logging.ERROR, "run %s", json.dumps(told))
        with suppress(TryLater) if run.outcome == "failed" else nullcontext():
            state.record_run(sync, run.run, asdict(run))


def unforeseen(error: BaseException) -> StopRun:
    """What to raise in place of an error that nobody foresaw: it names the place in the code, and no row."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return StopRun(f"Unexpected {type(error).__name__} at {Path(place.filename).name}:{place.lineno}. Report it.")


def account_digest(settings: Settings) -> str:
    """What stands in a mark for the account that the settings lead to."""
    return digest(f"{settings.customerio_region}/{settings.customerio_site_id}").hex()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
