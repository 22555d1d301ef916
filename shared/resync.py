"""What a person asks for and a queue carries out: the record of each such run, its slices, and who may write what.

    runs/<run>/run.json          what was asked for, its state, its plan
    runs/<run>/slices.json       what there is to do: a list, one entry a slice
    runs/<run>/slices/<n>.json   how far slice n is; its lease makes one worker at a time its only writer

A run is planned, approved where it could reach people, and then cut into slices, each one message of a queue. Slices
have phases: those of one phase go at once, a few at a time, and the next phase begins when all of one are done. What is
to be sent next is worked out from the reports alone (`due`): a message that comes twice, or was lost, does no harm.
"""

import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobLeaseClient
from ulid import ULID

from shared.errors import Busy, NotThere, Refused, StateFault
from shared.state import LEASE_SECONDS, Document, Lease, State, storage_errors
from shared.view import Position

EXPIRES = timedelta(hours=1)
"""So long a plan may be approved: later it is no longer what would happen."""

Kind = Literal["resync", "go-live", "qa", "comparison", "reconciliation", "canary"]


class Stage(StrEnum):
    """How far a run is."""

    PLANNING = "planning"
    PLANNED = "planned"  # and that was all that was asked for
    AWAITING = "awaiting_approval"
    RUNNING = "running"
    DONE = "done"
    CANCELED = "canceled"
    FAILED = "failed"


class Status(StrEnum):
    """How far a slice is."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    DONE = "done"
    POISON = "poison"  # given up after some tries


@dataclass(frozen=True, slots=True)
class Asked:
    """One run. Times are ISO 8601, UTC. `plan` is what a person is shown, `private` what the slices need beside it."""

    run: str
    kind: Kind
    request: Mapping[str, Any]
    sync: str | None = None
    state: Stage = Stage.PLANNING
    created: str = ""
    expires: str = ""
    approved: str = ""
    finished: str = ""
    message: str = ""
    plan: Mapping[str, Any] = field(default_factory=dict)
    private: Mapping[str, Any] = field(default_factory=dict)

    @property
    def expired(self) -> bool:
        """Whether nobody has approved the plan in time."""
        return self.state is Stage.AWAITING and self.expires < now()


@dataclass(frozen=True, slots=True)
class Planned:
    """What a kind of run makes of a request. A slice is a JSON object, of which "phase" is known here.

    `refused` is why it is not to be carried out, where the plan shows that.
    """

    plan: dict[str, Any]
    slices: list[dict[str, Any]]
    needs_approval: bool
    private: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    expires: timedelta = EXPIRES


@dataclass(slots=True)
class Report:
    """How far a slice is: `position` is that of its last page that is accounted for, `counts` what was done so far.

    `tries` counts the workers that took it up. `message` is why it stopped, where it did.
    """

    status: Status = Status.WAITING
    tries: int = 0
    position: Position | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    updated: str = ""


def no_such_run() -> NotThere:
    """What is said of an id that no run has."""
    return NotThere("There is no such run. Its id is in the answer to the call that asked for it.")


def now() -> str:
    """This moment, as the record has it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Runs:
    """The runs of one container. Every method raises StateUnavailable where blob storage does not answer."""

    def __init__(self, state: State) -> None:
        self._container = state.container
        self._documents: dict[str, Document] = {}  # every try of every batch asks whether the run was canceled

    def create(self, kind: Kind, request: Mapping[str, Any], sync: str | None = None) -> Asked:
        """Record what was asked for."""
        asked = Asked(str(ULID()), kind, request, sync, created=now())
        self._document(asked.run).change(lambda _: _to_json(asked))
        return asked

    def read(self, run: str) -> Asked:
        """One run. Raises NotThere."""
        return _parse(self._document(run).read(), run)

    def running(self) -> list[str]:
        """The ids of the runs that are under way."""
        return [one.run for one in self._all() if one.state is Stage.RUNNING]

    def planning(self) -> list[Asked]:
        """The runs whose plans are being made."""
        return [one for one in self._all() if one.state is Stage.PLANNING]

    def latest(self, kind: Kind) -> Asked | None:
        """The run of a kind that was asked for last; None where there was none."""
        return next((one for one in self._all() if one.kind == kind), None)

    def _all(self) -> Iterator[Asked]:
        """All runs, the newest first."""
        with storage_errors():
            names = [blob.name for blob in self._container.walk_blobs("runs/", delimiter="/")]
        for run in sorted((name.split("/")[1] for name in names), reverse=True):  # the ids are ULIDs
            # old runs are deleted by the storage account, blob by blob: the record may be the first to go
            if text := self._document(run).read():
                yield _parse(text, run)

    def change(self, run: str, states: Collection[Stage], **changes: Any) -> Asked:
        """Change a run that is in one of these states; returns it. Raises NotThere, and Refused in another state."""

        def rewrite(text: bytes | None) -> bytes:
            asked = _parse(text, run)
            if asked.expired:
                raise Refused("The plan has expired: nobody approved it in time. Ask for a new one.")
            if asked.state not in states:
                raise Refused(f"The run is {asked.state}; this is for one that is {' or '.join(states)}.")
            return _to_json(replace(asked, **changes))

        return _parse(self._document(run).change(rewrite), run)

    def write_slices(self, run: str, slices: Sequence[Mapping[str, Any]]) -> None:
        """Record what there is to do, once: where two workers make a plan, the first one's slices stand."""
        self._document(run, "slices.json").change(lambda before: before or json.dumps(slices).encode())

    def slices(self, run: str) -> list[dict[str, Any]]:
        """What there is to do."""
        slices: list[dict[str, Any]] = json.loads(self._document(run, "slices.json").read() or b"[]")
        return slices

    def statuses(self, run: str) -> dict[int, Status]:
        """How far the slices are of which anything is known, in one call for each 5,000 of them."""
        prefix = f"runs/{run}/slices/"
        with storage_errors():
            return {
                int(blob.name.removeprefix(prefix).removesuffix(".json")): Status(blob.metadata["status"])
                for blob in self._container.list_blobs(prefix, include=["metadata"])
            }

    def report(self, run: str, number: int) -> Report:
        """How far a slice is."""
        return _report(self._document(run, _slice(number)).read())

    def reports(self, run: str) -> dict[int, Report]:
        """All reports of slices."""
        return {number: self.report(run, number) for number in self.statuses(run)}

    def claim(self, run: str, number: int) -> "SliceLease":
        """Take a slice, once a worker that has died over it has lost it. Raises Busy while another is at it."""
        blob = self._container.get_blob_client(f"runs/{run}/{_slice(number)}")
        with storage_errors():
            with suppress(ResourceExistsError):
                first = Report(updated=now())
                blob.upload_blob(_dump(first), metadata={"status": first.status})
            lease = BlobLeaseClient(blob)
            deadline = time.monotonic() + LEASE_SECONDS + 10
            while True:
                try:
                    lease.acquire(lease_duration=LEASE_SECONDS)
                    break
                except ResourceExistsError:
                    if time.monotonic() > deadline:
                        raise Busy(f"Slice {number} of run {run} is being worked on; nothing to do.") from None
                    time.sleep(1)
            download = blob.download_blob()
            return SliceLease(blob, lease, download.properties.etag, _report(download.readall()))

    def _document(self, run: str, name: str = "run.json") -> Document:
        name = f"runs/{run}/{name}"
        if name not in self._documents:
            self._documents[name] = Document(self._container, name)
        return self._documents[name]


class SliceLease(Lease):
    """The lease of one slice, and its report."""

    def __init__(self, blob: Any, lease: BlobLeaseClient, etag: str, report: Report) -> None:
        super().__init__(blob, lease, etag)
        self.report = report

    def save(self) -> None:
        """Write the report. Raises StateUnavailable where another worker has the slice by now."""
        self.report.updated = now()
        self.write(_dump(self.report), {"status": self.report.status})


def due(slices: Sequence[Mapping[str, Any]], statuses: Mapping[int, Status], in_flight: int) -> set[int]:
    """The slices that are to be at work: of the first phase that is not done, those not finished whose turn it is.

    At the start of a phase these are its first `in_flight`; a slice that is finished, or given up, makes way for the
    one that stands `in_flight` after it.
    """
    finished = {number for number, status in statuses.items() if status in (Status.DONE, Status.POISON)}
    for phase in sorted({one["phase"] for one in slices}):
        numbers = [number for number, one in enumerate(slices) if one["phase"] == phase]
        if all(statuses.get(number) is Status.DONE for number in numbers):
            continue
        return {
            number
            for index, number in enumerate(numbers)
            if number not in finished and (index < in_flight or numbers[index - in_flight] in finished)
        }
    return set()


def phases_done(slices: Iterable[Mapping[str, Any]], statuses: Mapping[int, Status]) -> set[int]:
    """The phases of which every slice is done."""
    open_phases = {one["phase"] for number, one in enumerate(slices) if statuses.get(number) is not Status.DONE}
    return {one["phase"] for one in slices} - open_phases


def _slice(number: int) -> str:
    return f"slices/{number}.json"


def _to_json(asked: Asked) -> bytes:
    return json.dumps(asdict(asked), indent=1).encode()


def _parse(text: bytes | None, run: str) -> Asked:
    if text is None:
        raise no_such_run()
    try:
        stored = json.loads(text)
        return Asked(**{**stored, "state": Stage(stored["state"])})
    except (ValueError, TypeError, KeyError):
        raise StateFault(f"The record of run {run} is damaged. Restore an earlier version of that blob.") from None


def _dump(report: Report) -> bytes:
    return json.dumps(asdict(report), indent=1).encode()


def _report(text: bytes | None) -> Report:
    stored = json.loads(text or b"{}")
    position = stored.get("position")
    return Report(
        **{
            **stored,
            "status": Status(stored.get("status", Status.WAITING)),
            "position": Position(**position) if position else None,
        }
    )
