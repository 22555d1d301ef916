"""What Tidemark remembers, in blobs of one container:

    identity.json                          the Customer.io workspace, server and database that the state belongs to
    people.json                            who was removed, who was merged: see people
    types.json                             the types of all columns: see drift
    fingerprints/                          what was last sent of each person: see fingerprints
    findings/                              what checks have found: see findings
    volume.json                            what was accepted, by day: see volume
    census.json                            what the columns of the views hold: see census
    audits/<sync>.json                     what differs, and who of it is to be looked at again: see audit
    pause.json                             what a person has paused: see pause
    reconciliation.json                    what the last comparison of segments has found: see reconcile
    probe-<ulid>                           readiness writes, reads and deletes it
    runs/<run>/                            what a person asked for, and how far it is: see resync
    syncs/<sync>/mark.json                 the mark; its lease makes one pass at a time the sync's only writer
    syncs/<sync>/runs/<run>.json           one record a run, with its counts
    syncs/<sync>/dead-letters/             see deadletters
    syncs/<sync>/ledger/                   see ledger

Invariant: the mark is written last. What it has passed is sent, ledgered or set aside, durably.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from azure.core import MatchConditions
from azure.core.exceptions import (
    AzureError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.storage.blob import BlobClient, BlobLeaseClient, ContainerClient, ContentSettings

from shared.errors import Busy, ConfigurationFault, NotLive, StateFault, StateUnavailable
from shared.settings import Settings
from shared.syncs import Sync
from shared.view import Position, Survey

log = logging.getLogger("tidemark")

# the SDK tells of every request that it makes
logging.getLogger("azure").setLevel(logging.WARNING)

LEASE_SECONDS = 60
_RENEW_EVERY = 15
_RENEW_PATIENCE = 5
_JSON = ContentSettings(content_type="application/json")


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose state this is: Customer.io's environment_id, SQL Server's name and the database."""

    workspace: str
    server: str
    database: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A moment of the server: `bound` is MIN_ACTIVE_ROWVERSION() as `0x` and 16 hex digits, `at` ISO 8601 in UTC."""

    bound: str
    at: str


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a sync's source has been read and durably accounted for.

    `walking` is the bound that was taken before the first pass of a profile sync began to walk the view by key; it
    becomes the position when the walk ends. `ledgered` is the number of ids that the ledger must at least hold.
    `began` is when the first pass began (unix seconds), None once it is over: earlier events are its backfill.
    `start` is the event time before which the gate holds events back, None for all.
    `live`: a sync that is not yet live may have a mark, because a sample was sent; its passes send nothing.
    `going_live` is the run whose slices still send what was there before the mark: who goes after this sync waits.
    `account` is a digest of the site id and region with which the workspace was last asked for.
    `released` are reasons for which rows may be set aside in any number, and surges that a person has let pass.
    `behind` (removals only) is where the pass before the last one ended: what came after it is deleted once more.
    `seen` is how far the last pass that came to its end has read, and when; while the first pass is not over, how far
    it will have. Other syncs may go after this one by it.
    `stamped` is the latest time of reading that anything was sent with (unix seconds).
    `held_back` is the bound that an open transaction keeps from moving, and since when.
    `first_rows` is how many rows the first pass has read, `first_empty` how often an attribute was empty in them.
    `incomplete` (profiles only) is where the mark stood when `without` columns were first left out because their types
    had changed: once they may go, what has changed since is sent again; without a cursor it means everybody.
    `mending` is where the mark stood before it went back to `incomplete`: so far a pass is no surge.
    `latest_rows` and `latest_bad` are Flood's: {reason: count}.
    `volume` is what Customer.io has accepted, {day: {event name: count}}, and `freshness` how fast, {day: {seconds:
    rows}}, both of the last days, as `night` takes them over; `looks` is what `freshness` is measured by.
    `recent` (updated_at only) are the digests, 16 bytes each, of rows beyond the position that are accounted for.
    """

    identity: Identity
    strategy: str
    position: Position | None = None
    walking: str | None = None
    ledgered: int = 0
    began: int | None = None
    start: int | None = None
    live: bool = True
    going_live: str | None = None
    account: str = ""
    released: Sequence[str] = ()
    behind: Position | None = None
    seen: Seen | None = None
    held_back: Seen | None = None
    stamped: int = 0
    first_rows: int = 0
    first_empty: Mapping[str, int] = field(default_factory=dict)
    incomplete: Position | None = None
    without: Sequence[str] = ()
    mending: Position | None = None
    latest_rows: int = 0
    latest_bad: Mapping[str, int] = field(default_factory=dict)
    volume: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    freshness: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    looks: Sequence[Seen] = ()
    recent: bytes = field(default=b"", repr=False)

    def without_keys(self) -> "Mark":
        """The mark with positions before all rows of their cursors: for keys that have another type, and order, now."""

        def at(position: Position | None) -> Position | None:
            return Position(position.cursor, None) if position and position.cursor else None

        return replace(self, position=at(self.position), behind=at(self.behind), incomplete=at(self.incomplete))

    def to_json(self) -> bytes:
        """The mark as it is stored."""
        return json.dumps({**asdict(self), "recent": self.recent.hex()}, indent=1).encode()

    @classmethod
    def from_json(cls, text: bytes, name: str) -> "Mark":
        """Read a stored mark; `name` is the blob's. Raises StateFault."""
        try:
            stored = json.loads(text)
            seen, held_back = stored["seen"], stored["held_back"]
            return cls(
                identity=Identity(**stored["identity"]),
                strategy=stored["strategy"],
                position=_position(stored["position"]),
                walking=stored["walking"],
                ledgered=int(stored["ledgered"]),
                began=stored["began"],
                start=stored["start"],
                live=stored["live"],
                going_live=stored["going_live"],
                account=stored["account"],
                released=tuple(stored["released"]),
                behind=_position(stored["behind"]),
                seen=Seen(**seen) if seen else None,
                held_back=Seen(**held_back) if held_back else None,
                stamped=int(stored["stamped"]),
                first_rows=int(stored["first_rows"]),
                first_empty=dict(stored["first_empty"]),
                incomplete=_position(stored["incomplete"]),
                without=tuple(stored["without"]),
                mending=_position(stored["mending"]),
                latest_rows=int(stored["latest_rows"]),
                latest_bad=dict(stored["latest_bad"]),
                # marks of earlier versions have none of these
                volume={day: dict(counts) for day, counts in stored.get("volume", {}).items()},
                freshness={day: dict(counts) for day, counts in stored.get("freshness", {}).items()},
                looks=tuple(Seen(**one) for one in stored.get("looks", ())),
                recent=bytes.fromhex(stored["recent"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StateFault(
                f"The mark {name} is damaged. Restore an earlier version of that blob; do not delete it."
            ) from None


def _position(stored: Mapping[str, str | None] | None) -> Position | None:
    return Position(stored["cursor"], stored["key"]) if stored else None


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what is left of the Azure SDK's errors after its retries into ours."""
    try:
        yield
    except HttpResponseError as error:
        if error.status_code in (401, 403):
            raise ConfigurationFault(
                f"The storage account refuses access ({error.status_code}). Check AzureWebJobsStorage, or grant the"
                " managed identity the roles Storage Blob Data Owner and Storage Queue Data Contributor on the account."
            ) from None
        raise StateUnavailable(
            f"Blob storage answers {error.status_code} {getattr(error, 'error_code', '') or ''}."
            " The next pass goes on from the mark."
        ) from None
    except AzureError as error:
        raise StateUnavailable(
            f"Blob storage cannot be reached ({type(error).__name__}). Check AzureWebJobsStorage."
            " The next pass goes on from the mark."
        ) from None


def managed_identity(settings: Settings) -> Any:
    """The credential of the storage account, where no connection string is set."""
    from azure.identity import DefaultAzureCredential  # not for who has a connection string

    return DefaultAzureCredential(managed_identity_client_id=settings.storage_client_id)


class State:
    """The state container. Every method raises StateUnavailable where blob storage does not answer."""

    def __init__(self, settings: Settings) -> None:
        retries: dict[str, Any] = {
            "retry_total": 4,
            "initial_backoff": 1,
            "increment_base": 2,
            "connection_timeout": 10,
        }
        self.name = settings.state_container
        try:
            if settings.azure_web_jobs_storage:
                self.container = ContainerClient.from_connection_string(
                    settings.azure_web_jobs_storage.get_secret_value(), self.name, **retries
                )
            else:
                self.container = ContainerClient(
                    f"https://{settings.storage_account_name}.blob.core.windows.net",
                    self.name,
                    credential=managed_identity(settings),
                    **retries,
                )
        except ValueError:
            raise ConfigurationFault("AzureWebJobsStorage is not a storage connection string. Correct it.") from None

    def close(self) -> None:
        """Close the connections."""
        self.container.close()

    def claim(self, sync: Sync) -> "Claim":
        """Take the sync's lease and read its mark.

        Raises Busy where another pass holds it, NotLive where there is no mark and nothing that a mark should be
        beside, and StateFault where there is.
        """
        with storage_errors():
            blob = self.container.get_blob_client(f"syncs/{sync.name}/mark.json")
            lease = BlobLeaseClient(blob)
            try:
                lease.acquire(lease_duration=LEASE_SECONDS)
            except ResourceNotFoundError:
                self._refuse_orphans(sync)
                raise _not_live(sync) from None
            except ResourceExistsError:
                raise Busy(f"Another pass of {sync.name} is at work; this one has nothing to do.") from None
            download = blob.download_blob()
            mark = Mark.from_json(download.readall(), blob.blob_name)
            if not mark.live:
                with suppress(AzureError):
                    lease.release()
                raise _not_live(sync)
            return Claim(blob, lease, mark, download.properties.etag)

    def peek(self, sync: Sync) -> Mark | None:
        """A sync's mark, without its lease; None where there is none."""
        name = f"syncs/{sync.name}/mark.json"
        with storage_errors():
            try:
                return Mark.from_json(self.container.download_blob(name).readall(), name)
            except ResourceNotFoundError:
                return None

    def live(self, sync: Sync) -> Mark:
        """The mark of a sync that is live, without its lease. Raises NotLive."""
        mark = self.peek(sync)
        if mark is None or not mark.live:
            raise _not_live(sync)
        return mark

    def begin(self, sync: Sync, mark: Mark) -> None:
        """Write a sync's first mark, over one that is not live. Raises Busy where another has just written one."""
        name = f"syncs/{sync.name}/mark.json"

        def change(text: bytes | None) -> bytes:
            if text is not None and Mark.from_json(text, name).live:
                raise Busy(f"Another pass of {sync.name} has just begun; this one has nothing to do.")
            return mark.to_json()

        Document(self.container, name).change(change)

    def create(self) -> None:
        """Make the container, where it is not there."""
        with storage_errors(), suppress(ResourceExistsError):
            self.container.create_container()

    def is_new(self) -> bool:
        """Whether the container belongs to nobody yet."""
        with storage_errors():
            return not self.container.get_blob_client("identity.json").exists()

    def identity(self) -> Identity | None:
        """Whom the container belongs to; None where that is nobody yet. Raises StateFault."""
        with storage_errors():
            try:
                return Identity(**json.loads(self.container.download_blob("identity.json").readall()))
            except ResourceNotFoundError:
                return None
            except (ValueError, TypeError):
                raise StateFault("identity.json is damaged. Restore an earlier version of that blob.") from None

    def remember(self, identity: Identity) -> None:
        """Tie the container to a workspace, server and database. Raises StateFault where it belongs to others."""
        with storage_errors():
            blob = self.container.get_blob_client("identity.json")
            try:
                blob.upload_blob(json.dumps(asdict(identity), indent=1).encode(), content_settings=_JSON)
            except ResourceExistsError:
                self.check(Identity(**json.loads(blob.download_blob().readall())), identity)

    def check(self, stored: Identity, found: Identity) -> None:
        """Raise StateFault where `stored` state would be carried on against something else than it was made with."""
        words = {
            "workspace": ("Customer.io workspace", "CUSTOMERIO_SITE_ID"),
            "server": ("SQL Server", "SQL_CONNECTION_STRING"),
            "database": ("database", "SQL_CONNECTION_STRING"),
        }
        for name, (what, setting) in words.items():
            before, now = getattr(stored, name), getattr(found, name)
            if before != now:
                raise StateFault(
                    f"The state in the container {self.name} belongs to the {what} {before}, but {setting} now leads to"
                    f" {now}. Nothing was sent. Put {setting} back, or set STATE_CONTAINER to a new container to start"
                    f" afresh with {now}."
                )

    def check_source(self, mark: Mark, survey: Survey) -> None:
        """Raise StateFault where a mark was made against another server or database than the one that was asked."""
        known = mark.identity
        self.check(known, replace(known, server=survey.server, database=survey.database))

    def _refuse_orphans(self, sync: Sync) -> None:
        try:
            orphan = next(iter(self.container.list_blobs(f"syncs/{sync.name}/", results_per_page=1)), None)
        except ResourceNotFoundError:  # the container itself
            return
        if orphan is not None and orphan.name == f"syncs/{sync.name}/mark.json":
            raise Busy(f"Another pass of {sync.name} has just begun; this one has nothing to do.")
        if orphan is not None:
            raise StateFault(
                f"The mark of {sync.name} is missing from the container {self.name}, beside {orphan.name}. Nothing was"
                f" sent. Restore syncs/{sync.name}/mark.json (soft delete, versions), or set STATE_CONTAINER to a new"
                " container to start afresh."
            )

    def record_run(self, sync: Sync, run: str, record: Mapping[str, Any]) -> None:
        """Write the run's record."""
        with storage_errors():
            self.container.upload_blob(
                f"syncs/{sync.name}/runs/{run}.json", json.dumps(record, indent=1).encode(), content_settings=_JSON
            )


def _not_live(sync: Sync) -> NotLive:
    """What a sync says of which nobody has approved that it goes live."""
    return NotLive(
        f"{sync.name} is not live, so its timer sends nothing. POST /api/go-live makes the plan for it, which a person"
        " approves; FIRST_PASS=all lets a development machine start from the beginning."
    )


class Document:
    """A small blob that several runs read and change. What has not changed since is not fetched again.

    Its methods may be called from several threads at once, and raise StateUnavailable.
    """

    def __init__(self, container: ContainerClient, name: str) -> None:
        self._blob = container.get_blob_client(name)
        self._lock = threading.Lock()
        self._etag: str | None = None
        self._content: bytes | None = None

    def read(self) -> bytes | None:
        """The content; None where there is no such blob."""
        with self._lock, storage_errors():
            return self._read()

    def change(self, change: Callable[[bytes | None], bytes]) -> bytes:
        """Write what `change` makes of the content, over again where another run was faster; returns it."""
        with self._lock, storage_errors():
            while True:
                before = self._read()
                after = change(before)
                if after == before:
                    return after
                try:
                    if self._etag:
                        written = self._blob.upload_blob(
                            after,
                            overwrite=True,
                            content_settings=_JSON,
                            etag=self._etag,
                            match_condition=MatchConditions.IfNotModified,
                        )
                    else:
                        written = self._blob.upload_blob(after, content_settings=_JSON)
                    self._etag, self._content = written["etag"], after
                    return after
                except (ResourceModifiedError, ResourceExistsError):
                    continue

    def _read(self) -> bytes | None:
        try:
            download = (
                self._blob.download_blob(etag=self._etag, match_condition=MatchConditions.IfModified)
                if self._etag
                else self._blob.download_blob()
            )
            self._content, self._etag = download.readall(), download.properties.etag
        except ResourceNotFoundError:
            self._content, self._etag = None, None
        except HttpResponseError as error:
            if error.status_code != 304:  # as it was
                raise
        return self._content


def append(blob: BlobClient, block: bytes) -> None:
    """Append a block, and create the blob with its first. A block whose answer is lost may stand there twice."""
    try:
        blob.append_block(block)
    except ResourceNotFoundError:
        with suppress(ResourceExistsError):
            # without the condition it would empty what another writer has just begun
            blob.create_append_blob(match_condition=MatchConditions.IfMissing)
        blob.append_block(block)


class Lease:
    """The lease of one blob, kept up by a thread. Only who holds it can write the blob. A context manager."""

    def __init__(self, blob: BlobClient, lease: BlobLeaseClient, etag: str) -> None:
        self._blob = blob
        self._lease = lease
        self._etag = etag
        self._renewed = time.monotonic()
        self._released = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._keeper.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._keeper.join()
        with suppress(AzureError):  # an unreleased lease ends by itself
            self._lease.release()

    def _keep(self) -> None:
        while not self._released.wait(_RENEW_EVERY):
            asked = time.monotonic()  # the lease counts from some moment after this one
            try:
                # an answer that does not come must not outlast the lease: soon it is asked for by another connection
                self._lease.renew(connection_timeout=_RENEW_PATIENCE, read_timeout=_RENEW_PATIENCE)
                self._renewed = asked
            except (ResourceExistsError, ResourceNotFoundError, ResourceModifiedError):
                self._renewed = float("-inf")  # another has it
                return
            except AzureError as error:
                # nothing breaks here: a mark that is written without the lease is refused
                log.warning("The lease of %s could not be renewed (%s).", self._blob.blob_name, type(error).__name__)

    def check(self) -> None:
        """Raise StateUnavailable where the lease is no longer this run's: it must send nothing more."""
        if time.monotonic() - self._renewed > LEASE_SECONDS:
            raise self._lost()

    def _lost(self) -> StateUnavailable:
        return StateUnavailable(
            f"The lease of {self._blob.blob_name} was lost, or the mark was written by another pass. This pass stops;"
            " the next goes on from the mark."
        )

    def write(self, content: bytes, metadata: dict[str, str] | None = None) -> None:
        """Write the blob. Raises StateUnavailable where the lease or the blob is no longer this run's."""
        with storage_errors():
            try:
                written = self._blob.upload_blob(
                    content,
                    overwrite=True,
                    content_settings=_JSON,
                    metadata=metadata,
                    lease=self._lease,
                    etag=self._etag,
                    match_condition=MatchConditions.IfNotModified,
                )
                self._etag = written["etag"]
            except HttpResponseError as error:
                if error.status_code not in (404, 409, 412):
                    raise
                # a write whose answer was lost meets itself when the SDK tries again
                download = self._blob.download_blob()
                if error.status_code != 412 or download.readall() != content:
                    raise self._lost() from None
                self._etag = download.properties.etag


class Claim(Lease):
    """The lease of one sync, and its mark."""

    def __init__(self, blob: BlobClient, lease: BlobLeaseClient, mark: Mark, etag: str) -> None:
        super().__init__(blob, lease, etag)
        self.mark = mark

    def save(self, mark: Mark) -> None:
        """Write the mark. Raises StateUnavailable where the lease or the mark is no longer this pass's."""
        self.write(mark.to_json())
        self.mark = mark
