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

from shared.errors import StopRun, TidemarkError, TryLater
from shared.state import State
from shared.syncs import Sync

log = logging.getLogger("tidemark")


@dataclass(slots=True)
class Run:
    """What a run did; its record in the blobs holds these fields.

    `outcome` is ok, budget (time was up, the next pass goes on), waiting (for another sync), busy, not_live or failed.
    `rows` were read in `pages`, and `operations` sent in `requests`, which counts the tries too; `accepted` and
    `rejected` are the operations' known fates, `repeated` the deletions that were sent once more. `already_sent` events
    were in the ledger, `held` ones are counted by the gate's reason ("removed": the person was), `recognised` rows were
    accounted for by an earlier pass, `dead_letters` counts rows and operations set aside, `vanished` changes of people
    who are no longer in the view, `merged` the profiles of people who are others now, `invalid_emails` addresses that
    were left out, `held_back_minutes` how long an open transaction has kept newer rows from being read. `throttled`
    requests were answered 429. `stop` is what the run stopped before: flood, mass_change or emptied. `withheld` is how
    many columns somebody must look at, `dead_letter_depth` how many letters the list holds; None where the run did not
    come to know. `read_to_end` is when the view was last read to its end (ISO 8601, UTC, SQL Server's clock). `seconds`
    is wall time. `findings` name ids, so they are in the record and in no log.
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
    message: str = ""
    findings: list[str] = field(default_factory=list)

    @classmethod
    def begin(cls, sync: Sync) -> Self:
        """A run of `sync` that starts now."""
        return cls(run=str(ULID()), sync=sync.name, started=_now())

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
    except TidemarkError as error:
        run.outcome, run.message = "failed", str(error)
        raise
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        run.outcome, run.message = "failed", f"Unexpected {type(error).__name__} at {where}. Report it."
        if isinstance(error, Exception):
            raise StopRun(run.message) from None
        raise
    finally:
        run.end()
        told = {name: value for name, value in asdict(run).items() if name != "findings"}
        if run.findings:
            told["findings"] = len(run.findings)
        log.log(logging.INFO if run.outcome != "failed" else logging.ERROR, "run %s", json.dumps(told))
        with suppress(TryLater) if run.outcome == "failed" else nullcontext():
            state.record_run(sync, run.run, asdict(run))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
