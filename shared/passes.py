"""A pass: one run of a sync from its mark, and the order in which it makes things durable.

    lease and mark -> pages -> operations -> unsent only -> batches -> ledger -> dead letters -> mark

Reading, mapping and sending overlap: while a page is on its way, the next is mapped and the one after it is read.
Pages are accounted for whole and in their order. Of a page with operations of unknown fate, what was accepted is
ledgered, and the mark stays before it: the next pass sends the rest again, under the same ULIDs.
"""

import json
import logging
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext, suppress
from contextvars import copy_context
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path

from ulid import ULID

from shared.customerio import CustomerIo, Rejection, Sending
from shared.errors import Busy, NotLive, StateFault, StopRun, TidemarkError, TryLater, ViewFault
from shared.flood import Flood, Reason, name_of
from shared.gate import Gate
from shared.ledger import Entry, Ledger, SortedIds
from shared.mapping import DIGEST_BYTES, FUTURE, Bad, Mapper, Operation, digest
from shared.settings import Settings, load
from shared.source import Form, Page, Position, Source, View, position_of, quote
from shared.state import Claim, Identity, Mark, State
from shared.syncs import CATALOGUE, Kind, Sync

log = logging.getLogger("tidemark")

_MOST_RECENT = 100_000
"""Rows younger than the lookback that a mark remembers, 16 bytes each."""

_HIGHEST = "0x" + "F" * 16
"""A bound above every row version."""


@dataclass(slots=True)
class Run:
    """What a run did; its record in the blobs holds these fields.

    `outcome` is ok, budget (time was up, the next pass goes on), waiting (for another sync), busy, not_live or failed.
    `rows` were read in `pages`, and `operations` sent in `requests`, which counts the tries too; `accepted` and
    `rejected` are the operations' known fates. `already_sent` events were in the ledger, `held` ones are counted by the
    gate's reason, `recognised` rows were accounted for by an earlier pass, `dead_letters` counts rows and operations
    set aside, `vanished` changes of people who are no longer in the view. `seconds` is wall time.
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
    already_sent: int = 0
    held: dict[str, int] = field(default_factory=dict)
    recognised: int = 0
    dead_letters: int = 0
    vanished: int = 0
    requests: int = 0
    message: str = ""


def run(sync: Sync, settings: Settings | None = None) -> Run:
    """Run one pass of `sync` and return what it did.

    Busy and NotLive are outcomes, not failures. Raises StopRun where a person must act and TryLater where the next pass
    may succeed; both are also in the run's record, once the sync has a mark.
    """
    started = time.monotonic()
    result = Run(run=str(ULID()), sync=sync.name, started=datetime.now(UTC).isoformat(timespec="milliseconds"))
    settings = settings or load()
    with ExitStack() as resources:
        state = State(settings)
        resources.callback(state.close)
        source = resources.enter_context(Source(settings))
        try:
            claim = resources.enter_context(_claim(sync, settings, state, source))
        except (Busy, NotLive) as reason:
            result.outcome = "busy" if isinstance(reason, Busy) else "not_live"
            result.message = str(reason)
            log.info("%s", reason)
            return result
        try:
            _Pass(result, sync, settings, state, source, claim, started + settings.time_budget_seconds).run()
        except TidemarkError as error:
            result.outcome, result.message = "failed", str(error)
            raise
        except BaseException as error:
            # its own text may quote a row
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{Path(place.filename).name}:{place.lineno}"
            result.outcome, result.message = "failed", f"Unexpected {type(error).__name__} at {where}. Report it."
            if isinstance(error, Exception):
                raise StopRun(result.message) from None
            raise
        finally:
            result.finished = datetime.now(UTC).isoformat(timespec="milliseconds")
            result.seconds = round(time.monotonic() - started, 3)
            log.log(logging.INFO if result.outcome != "failed" else logging.ERROR, "run %s", json.dumps(asdict(result)))
            with suppress(TryLater) if result.outcome == "failed" else nullcontext():
                state.record_run(sync, result.run, asdict(result))
    return result


def release(sync: Sync, reason: str, settings: Settings | None = None) -> None:
    """Let rows that fail for `reason` (the text of the flood's message) be set aside from now on.

    Raises Busy while a pass is at work, NotLive, and StopRun or TryLater as `run` does.
    """
    with closing(State(settings or load())) as state, state.claim(sync) as claim:
        claim.save(replace(claim.mark, released=[*claim.mark.released, reason]))


def _claim(sync: Sync, settings: Settings, state: State, source: Source) -> Claim:
    try:
        return state.claim(sync)
    except NotLive:
        if settings.first_pass != "all":
            raise
    # Everything that can be wrong is found out before the mark is there.
    survey = source.survey(sync)
    view = View(sync, survey, settings)
    Mapper(view, settings)
    with CustomerIo(settings) as client:
        identity = Identity(client.workspace(), survey.server, survey.database)
    state.remember(identity)
    walking = view.horizon(survey, settings.lookback_seconds) if sync.kind is Kind.PROFILE else None
    state.begin(
        sync, Mark(identity, view.strategy, walking=walking, began=int(time.time()), account=_account_digest(settings))
    )
    return state.claim(sync)


def _account_digest(settings: Settings) -> str:
    return digest(f"{settings.customerio_region}/{settings.customerio_site_id}").hex()


@dataclass(frozen=True, slots=True)
class _Sent:
    """A page whose operations are on their way.

    `recent` are the digests of its rows beyond the horizon, `settled` those that a mark beyond the page need not know.
    """

    page: Page
    bad: Bad
    operations: list[Operation]
    sending: Sending | None
    recent: list[bytes]
    settled: list[bytes]

    @property
    def batches(self) -> int:
        """A page of which nothing is sent counts as one too: memory holds few pages."""
        return self.sending.batches if self.sending else 1


class _Pass:
    def __init__(
        self, result: Run, sync: Sync, settings: Settings, state: State, source: Source, claim: Claim, deadline: float
    ) -> None:
        self._result = result
        self._sync = sync
        self._settings = settings
        self._state = state
        self._source = source
        self._claim = claim
        self._deadline = deadline
        self._client: CustomerIo | None = None
        self._ledger: Ledger | None = None
        # By updated_at, the digests of rows beyond the mark that are accounted for: all of them, and those that this
        # pass has met beyond the horizon. Only the latter are of use once the view was read to its end.
        self._known = set(SortedIds(claim.mark.recent))
        self._met: set[bytes] = set()

    def run(self) -> None:
        mark = self._claim.mark
        survey = self._source.survey(self._sync)
        self._state.check(mark.identity, Identity(mark.identity.workspace, survey.server, survey.database))
        view = View(self._sync, survey, self._settings)
        if view.strategy != mark.strategy:
            raise StateFault(
                f"The mark of {self._sync.name} was made by {mark.strategy}, but the cursor of {view.name} is now"
                f" {view.strategy}. Put the column {mark.strategy} back, or set STATE_CONTAINER to a new container to"
                " start afresh."
            )
        self._view = view
        # a column that the view now converts is sent again
        texts = {field.name for field in view.fields if field.form is Form.TEXT}
        self._withhold({name: what for name, what in mark.withheld.items() if name in texts})
        self._sampled = mark.began is None  # what was once sent as text stays text
        self._gate = Gate(mark.start, self._sync.max_age)
        self._flood = Flood(mark.released)
        bound = view.horizon(survey, self._settings.lookback_seconds)
        self._horizon = mark.walking or bound
        if self._sync.after and self._unread(self._sync.after):
            self._result.outcome = "waiting"
            self._result.message = f"{self._sync.name} waits until {self._sync.after} has sent what is new."
            return
        start = mark.position
        if start and start.cursor and start.cursor > bound:
            if view.by_row_version:
                raise StateFault(
                    f"The row versions of database {survey.database} went back behind the mark of {self._sync.name}:"
                    " was a backup restored? Changes would be missed. Restore the state of that time, or set"
                    " STATE_CONTAINER to a new container to start afresh."
                )
            # the server's clock went back, and rows may have come in behind the mark
            start = Position(bound, None)
        if start and start.cursor and (earlier := view.before_clock_change(start.cursor, survey)):
            start = Position(earlier, None)
        pages = self._source.pages(view, "walk" if mark.walking else "changed", start, bound)
        try:
            if mark.account != _account_digest(self._settings):
                self._open_client()
            complete = self._deliver(pages)
            if complete:
                self._finish()
            if self._ledger is not None:
                self._ledger.fold()
            self._say(count=complete and mark.began is not None)
        finally:
            if self._client is not None:
                self._client.close()
                self._result.requests = self._client.requests

    def _deliver(self, pages: Iterator[Page]) -> bool:
        """Send and account for page after page. False where time, or the room to remember rows, was up."""
        on_their_way: deque[_Sent] = deque()
        in_flight = self._settings.customerio_batches_in_flight
        complete = True
        failure: TidemarkError | None = None
        try:
            # closed here, so that the reader has ended before its connection is
            with closing(_read_ahead(pages)) as read_ahead:
                while complete:
                    try:
                        if (page := next(read_ahead, None)) is None:
                            break
                        on_their_way.append(self._send(page))
                    except TidemarkError as error:
                        # what is on its way is accounted for all the same
                        failure = error
                        break
                    while len(on_their_way) > 1 and sum(sent.batches for sent in on_their_way) >= in_flight:
                        self._account(on_their_way.popleft())
                    complete = self._may_go_on()
            while on_their_way:
                self._account(on_their_way.popleft())
        finally:
            for sent in on_their_way:
                self._note_accepted(sent)
        if failure is not None:
            raise failure
        return complete

    def _may_go_on(self) -> bool:
        if time.monotonic() >= self._deadline:
            self._result.outcome = "budget"
            self._result.message = "TIME_BUDGET_SECONDS was up; the next pass goes on from here."
            return False
        if len(self._met) > _MOST_RECENT and not self._claim.mark.walking:
            self._result.message = (
                "More rows than a mark remembers were changed within LOOKBACK_SECONDS; the next passes read the rest"
                " once it is older."
            )
            return False
        return True

    def _note_accepted(self, sent: _Sent) -> None:
        """Of a page that cannot be accounted for, the ledger learns what was accepted: it may be ahead of the mark."""
        if self._ledger is not None and sent.sending is not None:
            fates = zip(sent.operations, sent.sending.wait(), strict=True)
            with suppress(TryLater):
                self._ledger.record([(one.day, one.digest) for one, parts in fates if parts[-1] is None])

    def _send(self, page: Page) -> _Sent:
        result = self._result
        result.pages += 1
        result.rows += len(page.rows)
        if not self._sampled:
            self._sampled = True
            if found := self._mapper.disguised(page):
                self._withhold({**self._withheld, **found})
        self._claim.check()
        page, recent, settled = self._without_known(page)
        mapped = self._mapper.map(page, self._claim.mark.began) if page.rows else None
        if mapped is None:
            return _Sent(page, {}, [], None, recent, settled)
        result.vanished += mapped.vanished
        self._refuse_flood(len(page.rows), mapped.bad.values())
        operations = mapped.operations
        if operations and self._sync.kind is Kind.EVENT:
            if self._ledger is None:
                mark = self._claim.mark
                self._ledger = Ledger(self._state.container, self._sync, result.run, mark.ledgered)
            unsent = self._ledger.unsent([(operation.day, operation.digest) for operation in operations])
            result.already_sent += unsent.count(False)
            operations = [one for one in compress(operations, unsent) if self._may_go(one, page.fetched_at)]
        sending = None
        if operations:
            sending = self._open_client().send([operation.payloads for operation in operations])
            result.operations += sum(len(operation.payloads) for operation in operations)
        return _Sent(page, mapped.bad, operations, sending, recent, settled)

    def _may_go(self, event: Operation, now: int) -> bool:
        if (reason := self._gate.holds(event.time, now)) is None:
            return True
        self._result.held[reason] = self._result.held.get(reason, 0) + 1
        if self._ledger is not None:
            self._ledger.release([(event.day, event.digest)])
        return False

    def _withhold(self, columns: dict[str, str]) -> None:
        self._withheld = columns
        self._mapper = Mapper(self._view, self._settings, {name.lower() for name in columns})

    def _say(self, count: bool) -> None:
        """Put into the run's message what a person should know of the view; `count`: also rows without cursor."""
        says = [self._result.message] if self._result.message else []
        for column, what in self._withheld.items():
            kind = "bit" if what == "flags" else "datetime2"
            says.append(
                f"Column {column} of {self._view.name} is text but holds only {what}, which no condition on {what}"
                f" would match: it is not sent. Convert it in the view: CAST({quote(column)} AS {kind})."
            )
        if count:
            # a large view must not be counted at every pass: the first one tells
            with suppress(TryLater, ViewFault):
                if missing := self._source.count(self._view.without_cursor()):
                    says.append(
                        f"{missing} rows of {self._view.feed} have no {self._view.strategy}, so no change of theirs is"
                        " read. Give them one in the view."
                    )
        self._result.message = " ".join(says)

    def _without_known(self, page: Page) -> tuple[Page, list[bytes], list[bytes]]:
        """The page without the rows that are accounted for already; the digests of its rows beyond the horizon, and of
        the known ones that no longer are.

        By updated_at such rows are read again and again, until they are older than the lookback.
        """
        if self._view.by_row_version:
            return page, [], []
        rows, recent, settled = [], [], []
        for row in page.rows:
            beyond = row[0] is not None and str(row[0]) >= self._horizon
            if beyond or self._known:
                known = _row_digest(row)
                if beyond:
                    recent.append(known)
                if known in self._known:
                    self._result.recognised += 1
                    if not beyond:
                        settled.append(known)
                    continue
            rows.append(row)
        return replace(page, rows=rows), recent, settled

    def _open_client(self) -> CustomerIo:
        if self._client is None:
            self._client = CustomerIo(self._settings)
            known = self._claim.mark.identity
            self._state.check(known, replace(known, workspace=self._client.workspace()))
        return self._client

    def _account(self, sent: _Sent) -> None:
        """Make a page's outcome durable: the ledger, then the dead letters, then the mark."""
        result = self._result
        dead = [self._dead_letter(sent.page, row, field, reason) for row, (field, reason) in sent.bad.items()]
        accepted: list[Entry] = []
        failed: list[Entry] = []
        unknown = False
        rejections: list[Reason] = []
        for operation, fates in zip(sent.operations, sent.sending.wait() if sent.sending else [], strict=True):
            for part, fate in enumerate(fates, 1):
                if isinstance(fate, Rejection):
                    result.rejected += 1
                    reason = (fate.field, f"Customer.io: {fate.reason}")
                    dead.append(self._dead_letter(sent.page, operation.row, *reason))
                    if part == len(fates):  # an identify comes no second time when its event was accepted
                        rejections.append(reason)
                elif fate is None:
                    result.accepted += 1
                else:
                    unknown = True
            (accepted if fates[-1] is None else failed).append((operation.day, operation.digest))
        if self._ledger is not None:
            self._ledger.record(accepted)
            self._ledger.release(failed)
        if unknown and self._client is not None and self._client.failure is not None:
            raise self._client.failure
        self._refuse_flood(0, rejections)
        if dead:
            self._state.set_aside(self._sync, result.run, dead)
            result.dead_letters += len(dead)
        self._advance(sent, len(accepted) if self._ledger is not None else 0)

    def _refuse_flood(self, rows: int, reasons: Iterable[Reason]) -> None:
        reason = self._flood.add(rows, reasons)
        if reason is not None:
            zone = f" SQL_TIME_ZONE ({self._settings.sql_time_zone}) may not be theirs." if reason[1] == FUTURE else ""
            raise ViewFault(
                f"{self._view.name}: a fifth of the latest rows or more cannot be sent for one reason, which is"
                f" {name_of(reason)}.{zone} Correct the view, or release the reason by"
                f" POST /api/syncs/{self._sync.name}/release."
            )

    def _unread(self, name: str) -> bool:
        """Whether the sync of that name has rows that are not accounted for."""
        other = next(sync for sync in CATALOGUE if sync.name == name)
        mark = self._state.peek(other)
        if mark is None:
            return True
        known = set(SortedIds(mark.recent))
        with Source(self._settings) as source:
            view = View(other, source.survey(other), self._settings)
            with closing(source.pages(view, "changed", mark.position, _HIGHEST)) as pages:
                return any(view.by_row_version or _row_digest(row) not in known for page in pages for row in page.rows)

    def _dead_letter(self, page: Page, row: int, field: str | None, reason: str) -> dict[str, str | None]:
        position = position_of(page.rows[row])
        return {
            "key": position.key,
            "cursor": position.cursor,
            "field": field,
            "reason": reason,
            "seen": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _advance(self, sent: _Sent, ledgered: int) -> None:
        mark = self._claim.mark
        last = sent.page.last
        if not mark.walking or len(self._met) < _MOST_RECENT:  # to send a person again does no harm
            self._known.update(sent.recent)
            self._met.update(sent.recent)
        self._known.difference_update(sent.settled)
        if mark.walking:
            position: Position | None = Position(None, last.key)
        elif last.cursor is not None and last.cursor < self._horizon:
            position = last
        elif sent.page.rows:
            position = Position(self._horizon, None)
        else:  # nothing new
            position = mark.position
        if sent.page.rows or position != mark.position:
            recent = b"".join(sorted(self._known))
            self._claim.save(
                replace(
                    mark,
                    position=position,
                    ledgered=mark.ledgered + ledgered,
                    account=_account_digest(self._settings),
                    withheld=self._withheld,
                    recent=recent,
                )
            )

    def _finish(self) -> None:
        """The view was read to its end: the mark moves to the bound, and remembers only what lies beyond it."""
        mark = self._claim.mark
        done = replace(mark, walking=None, began=None)
        if mark.walking:
            done = replace(done, position=Position(mark.walking, None))
        elif self._view.by_row_version and self._result.rows:
            done = replace(done, position=Position(self._horizon, None))
        elif len(self._met) * DIGEST_BYTES < len(mark.recent):
            # the mark must pass what it no longer remembers
            done = replace(done, position=Position(self._horizon, None), recent=b"".join(sorted(self._met)))
        if done != mark:
            self._claim.save(done)


def _row_digest(row: Sequence[object]) -> bytes:
    return digest(repr(tuple(row)))


def _read_ahead(pages: Iterator[Page]) -> Generator[Page, None, None]:
    """Read the next page in a thread of its own while one is worked on."""
    context = copy_context()

    def read() -> Page | None:
        return next(pages, None)

    with ThreadPoolExecutor(1, "reader") as pool:
        upcoming = pool.submit(context.run, read)
        while (page := upcoming.result()) is not None:
            upcoming = pool.submit(context.run, read)
            yield page
