"""From pages of rows to operations whose fate is known, and durable.

    drift -> mapping -> unsent only -> gate -> batches -> ledger -> dead letters

What a page leaves behind is durable when `account` returns; only then may a mark pass it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import compress

from shared import audit, identity
from shared.appapi import AppApi
from shared.customerio import Barred, CustomerIo, Group, Rejection, Sending
from shared.deadletters import DeadLetters, Failure
from shared.drift import Drift
from shared.errors import TryLater, ViewFault
from shared.fingerprints import Notes
from shared.flood import Flood, Reason, name_of
from shared.gate import Gate
from shared.ledger import Entry, Ledger
from shared.mapping import FUTURE, Bad, Operation, repeat_digest
from shared.pause import Pause
from shared.people import People
from shared.run import Run
from shared.settings import Settings
from shared.source import Page
from shared.state import Mark, State
from shared.syncs import Kind
from shared.view import View, position_of


@dataclass(frozen=True, slots=True)
class Sent:
    """A page whose operations are on their way. `settled` are the keys of rows that need nothing sent any more."""

    page: Page
    bad: Bad
    operations: list[Operation]
    settled: set[str]
    sending: Sending | None

    @property
    def batches(self) -> int:
        """A page of which nothing is sent counts as one too: memory holds few pages."""
        return self.sending.batches if self.sending else 1


class Delivery:
    """Delivers pages of one view. For one run, while it holds the sync's lease; a context manager.

    `backfill_before`: see Mapper.map. Without `flood` nothing is one. `may_send` is asked before the first page that
    has rows, and right before every try of every batch, and raises where nothing more is to be sent; by default it is
    the stop switch. `alone`: this run holds the sync's lease, and is not one slice of many. Raises what its parts
    raise, and ViewFault where a page is a flood of dead letters.
    """

    def __init__(
        self,
        run: Run,
        view: View,
        settings: Settings,
        state: State,
        mark: Mark,
        gate: Gate,
        flood: Flood | None,
        backfill_before: int | None,
        may_send: Callable[[], None] | None = None,
        *,
        alone: bool = True,
    ) -> None:
        self._run = run
        self._view = view
        self._sync = view.sync
        self._settings = settings
        self._state = state
        self._mark = mark
        self._gate = gate
        self.flood = flood
        self._backfill_before = backfill_before
        self._alone = alone
        pause = Pause(state)
        self._may_send = may_send or (lambda: pause.check(view.sync))
        self._people = People(state)
        self._met_people = False
        self._ledger: Ledger | None = None
        self._client: CustomerIo | None = None
        self._app: AppApi | None = None
        self._dead_letters = DeadLetters(state.container, self._sync, run.run, settings.dead_letter_days)
        trial = not mark.live
        self.drift = Drift(state, view, settings, first=mark.began is not None or trial, trial=trial)
        self._mapper = self.drift.mapper()
        self._notes = Notes(state, view)
        self.accepted: Counter[str] = Counter()
        """Operations that Customer.io has accepted, by the event's name, until somebody takes them out; see volume."""
        self._sample = audit.Sample(self._sync, settings)

    def __enter__(self) -> "Delivery":
        return self

    def __exit__(self, *_: object) -> None:
        self._run.withheld = len(self.drift.withheld.keys() | self.drift.without)
        if self._client is not None:
            self._client.close()
            self._run.requests, self._run.throttled = self._client.requests, self._client.throttled
        if self._app is not None:
            self._app.close()

    def client(self) -> CustomerIo:
        """The client, once the workspace is known to be the one that the state belongs to."""
        if self._client is None:
            self._client = CustomerIo(self._settings, self._barred)
            known = self._mark.identity
            self._state.check(known, replace(known, workspace=self._client.workspace()))
        return self._client

    def _barred(self, people: Sequence[str]) -> Mapping[str, Barred]:
        self._may_send()
        # a removal has to reach exactly those whom everything else must not reach any more
        return {} if self._sync.kind is Kind.REMOVAL else self._people.barred(people)

    def send(self, page: Page) -> Sent:
        """Send what of a page is to be sent."""
        run = self._run
        if not page.rows:
            return Sent(page, {}, [], set(), None)
        if not self._met_people:
            self._met_people = True
            self._may_send()
            self._people.refresh()
        if self.drift.look(page):
            self._mapper = self.drift.mapper()
        mapped = self._mapper.map(page, self._backfill_before, self._people.primaries)
        run.vanished += mapped.vanished
        run.merged += len(mapped.merged)
        run.invalid_emails += mapped.invalid_emails
        self._refuse_flood(len(page.rows), mapped.bad.values())
        bad, settled = mapped.bad, {_key(page, row) for row in mapped.merged}
        operations, before = self._unsent(mapped.operations)
        run.already_sent += len(before)
        settled |= {_key(page, one.row) for one in before}
        match self._sync.kind:
            case Kind.EVENT:
                operations = [one for one in operations if self._may_go(one, page.fetched_at)]
            case Kind.MERGE:
                if operations:
                    self._app = self._app or AppApi(self._settings)
                    merges = identity.check_merges(operations, self._people, self._app)
                    self._release(one for one in operations if one not in merges.ready)
                    self._refuse_flood(0, merges.refused.values())
                    identity.record_merges(merges.ready, self._people)
                    operations, bad = merges.ready, bad | merges.refused
                    settled |= {_key(page, one.row) for one in merges.done}
                operations = operations + self._again(before)
            case Kind.REMOVAL:
                again = self._again(before)
                identity.record_removals(operations, self._people)
                identity.purge_removed(operations, self._people, self._state, run.run, self._settings)
                operations = operations + again
        sending = None
        if operations:
            sending = self.client().send([Group(one.person, one.payloads) for one in operations])
            run.operations += sum(len(one.payloads) for one in operations)
        return Sent(page, bad, operations, settled, sending)

    def _unsent(self, operations: list[Operation]) -> tuple[list[Operation], list[Operation]]:
        """Those that the ledger does not know, which are on their way from now on, and those that it does."""
        if not operations or self._sync.kind is Kind.PROFILE:
            return operations, []
        if self._ledger is None:
            self._ledger = Ledger(
                self._state.container, self._sync, self._run.run, self._mark.ledgered, others=self._alone
            )
        unsent = self._ledger.unsent([(operation.day, operation.digest) for operation in operations])
        return list(compress(operations, unsent)), list(compress(operations, [not new for new in unsent]))

    def _again(self, before: Sequence[Operation]) -> list[Operation]:
        """Of merges and removals that were sent before, those that go once more, and only once."""
        again, _ = self._unsent(
            [replace(one, digest=repeat_digest(one.digest)) for one in identity.to_repeat(before, self._people)]
        )
        self._run.repeated += len(again)
        return again

    def _may_go(self, event: Operation, now: int) -> bool:
        if (reason := self._gate.holds(event.time, now)) is None:
            return True
        self._run.hold(reason)
        self._release([event])
        return False

    def _release(self, operations: Iterable[Operation]) -> None:
        if self._ledger is not None:
            self._ledger.release([(one.day, one.digest) for one in operations])

    def account(self, sent: Sent) -> int:
        """Make a page's outcome durable: ledger, dead letters, fingerprints. Returns the number of ids newly ledgered.

        Raises what made the client give up where the fate of an operation is unknown: what was accepted is ledgered.
        """
        run = self._run
        failures = [self._failure(sent.page, row, field, reason) for row, (field, reason) in sent.bad.items()]
        delivered = set(sent.settled)
        accepted: list[Entry] = []
        arrived: list[tuple[str, Operation]] = []
        failed: list[Entry] = []
        rejections: list[Reason] = []
        undone: list[Operation] = []
        merged: list[int] = []
        names: list[str] = []
        unknown = False
        all_fates = sent.sending.wait() if sent.sending else []
        for operation, fates in zip(sent.operations, all_fates, strict=True):
            for part, fate in enumerate(fates, 1):
                if isinstance(fate, Rejection):
                    run.rejected += 1
                    reason = (fate.field, f"Customer.io: {fate.reason}")
                    failures.append(self._failure(sent.page, operation.row, *reason))
                    if part == len(fates):  # an identify comes no second time when its event was accepted
                        rejections.append(reason)
                        undone.append(operation)
                elif fate is None:
                    run.accepted += 1
                elif isinstance(fate, Barred):
                    run.operations -= 1
                else:
                    unknown = True
            if fates[-1] is Barred.REMOVED:
                run.hold("removed")
                undone.append(operation)
            elif fates[-1] is Barred.MERGED:
                merged.append(operation.row)
            elif fates[-1] is None:
                delivered.add(_key(sent.page, operation.row))
                names.append(operation.name)
                arrived.append((_key(sent.page, operation.row), operation))
            (accepted if fates[-1] is None else failed).append((operation.day, operation.digest))
        self.accepted.update(names)
        if self._ledger is not None:
            self._ledger.record(accepted)
            self._ledger.release(failed)
        if self._sync.kind is Kind.MERGE and undone:
            self._people.part(identity.secondary_ids(undone))
        if unknown and self._client is not None and self._client.failure is not None:
            raise self._client.failure
        self._refuse_flood(0, rejections)
        self._set_aside(failures, delivered)
        self._sample.draw(arrived)
        if self._sync.kind is Kind.PROFILE:
            self._notes.add(sent.page, self.drift.withheld.keys())
        ledgered = len(accepted) if self._ledger is not None else 0
        if merged:
            # they were merged while this was on its way: now it goes to who they are
            self._people.refresh()
            ledgered += self.account(self.send(replace(sent.page, rows=[sent.page.rows[row] for row in merged])))
        return ledgered

    def note_accepted(self, sent: Sent) -> None:
        """Of a page that cannot be accounted for, the ledger learns what was accepted: it may be ahead of the mark."""
        if self._ledger is not None and sent.sending is not None:
            fates = zip(sent.operations, sent.sending.wait(), strict=True)
            accepted = [one for one, parts in fates if parts[-1] is None]
            with suppress(TryLater):
                self._ledger.record([(one.day, one.digest) for one in accepted])
            self.accepted.update(one.name for one in accepted)

    def fold(self) -> None:
        """Put the ledger and the dead letters in order, at the end of a run."""
        if self._ledger is not None:
            self._ledger.fold()
        self._dead_letters.fold()
        self._run.dead_letter_depth = self._dead_letters.depth()

    def audit(self) -> None:
        """Let some of those be read back, later, of whom something was accepted."""
        audit.ask(self._settings, self._run.run, self._sync, self._sample, self._people)

    def _failure(self, page: Page, row: int, field: str | None, reason: str) -> tuple[str, Failure]:
        position = position_of(page.rows[row])
        person = self._mapper.person_of(page.rows[row])
        return person, Failure(position.key, position.cursor, field, reason, "")

    def _set_aside(self, failures: Sequence[tuple[str, Failure]], delivered: set[str]) -> None:
        """Note what failed and what was delivered."""
        letters = []
        if failures:
            self._people.refresh()
        # Of people who were removed nothing is kept; but that a removal failed must be known.
        kept = self._sync.kind in (Kind.MERGE, Kind.REMOVAL)
        removed = set() if kept else self._people.removed({person for person, _ in failures})
        for person, failure in failures:
            if person in removed:
                self._run.hold("removed")
            else:
                self._run.set_aside(name_of((failure.field, failure.reason)))
                letters.append(failure._replace(person=self._people.hash_of(person) if person and not kept else ""))
        self._dead_letters.record(letters, delivered)

    def _refuse_flood(self, rows: int, reasons: Iterable[Reason]) -> None:
        reason = self.flood.add(rows, reasons) if self.flood else None
        if reason is not None:
            self._run.stop = "flood"
            late = reason.endswith(FUTURE)
            zone = f" SQL_TIME_ZONE ({self._settings.sql_time_zone}) may not be theirs." if late else ""
            raise ViewFault(
                f"{self._view.name}: a fifth of the latest rows or more cannot be sent for one reason, which is"
                f" {reason}.{zone} Correct the view, or release the reason by"
                f" POST /api/syncs/{self._sync.name}/release."
            )


def _key(page: Page, row: int) -> str:
    return str(page.rows[row][1])
