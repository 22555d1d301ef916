"""A pass: one run of a sync from its mark, and the order in which it makes things durable.

    lease and mark -> pages -> delivery -> mark

Reading, mapping and sending overlap (see pipeline); pages are accounted for whole and in their order. Of a page with
operations of unknown fate, what was accepted is ledgered, and the mark stays before it: the next pass sends the rest
again, under the same ULIDs.
"""

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Literal

from shared import comparison, drift, freshness, identity, surge, volume
from shared.customerio import CustomerIo
from shared.delivery import Delivery, Sent
from shared.drift import Drift
from shared.errors import (
    Busy,
    NotLive,
    Paused,
    StateFault,
    StateUnavailable,
    SurgeStop,
    TidemarkError,
    TryLater,
    ViewFault,
    Waiting,
)
from shared.flood import Flood
from shared.gate import Gate
from shared.ledger import SortedIds
from shared.mapping import DIGEST_BYTES, Mapper, digest
from shared.people import People
from shared.pipeline import overlapped
from shared.run import Run, account_digest, recorded
from shared.settings import Settings, load
from shared.source import Page, Source
from shared.state import Claim, Identity, Mark, Seen, State
from shared.syncs import Kind, Sync, find
from shared.telemetry import told
from shared.view import Position, View

log = logging.getLogger("tidemark")

_MOST_RECENT = 100_000
"""Rows younger than the lookback that a mark remembers, 16 bytes each."""

_IN_ORDER = (Kind.MERGE, Kind.REMOVAL)
"""The order of their rows counts: each page has arrived before the next one is sent."""

_HELD_BACK_MINUTES = 15
"""A transaction that is open for so long is worth a word."""

_BEHIND_MINUTES = 30
"""A sync that was not read to its end for so long holds up those that go after it, and they say so."""


def run(sync: Sync, settings: Settings | None = None) -> Run:
    """Run one pass of `sync` and return what it did.

    Busy, NotLive and Paused are outcomes, not failures. Raises StopRun where a person must act and TryLater where the
    next pass may succeed; both are also in the run's record, once the sync has a mark.
    """
    started = time.monotonic()
    result = Run.begin(sync)
    with told(result), ExitStack() as resources:
        settings = settings or load()
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
        result.read_to_end = claim.mark.seen.at if claim.mark.seen else ""
        with suppress(Paused, Waiting), recorded(result, sync, state):
            _Pass(result, sync, settings, state, source, claim, started + settings.time_budget_seconds).run()
    return result


def release(sync: Sync, reason: str, settings: Settings | None = None) -> None:
    """Let rows that fail for `reason` (the text of the flood's message) be set aside from now on.

    Raises Busy while a pass is at work, NotLive, and StopRun or TryLater as `run` does.
    """
    with closing(State(settings or load())) as state, state.claim(sync) as claim:
        claim.save(replace(claim.mark, released=[*dict.fromkeys([*claim.mark.released, reason])]))


def accept(sync: Sync, column: str, settings: Settings | None = None) -> str | None:
    """Take a column's type of now for the one that is meant; returns it, None where the column is gone.

    Raises NotThere where there is nothing to accept, Busy while a pass is at work, NotLive, and StopRun or TryLater
    as `run` does.
    """
    settings = settings or load()
    with closing(State(settings)) as state, Source(settings) as source, state.claim(sync) as claim:
        view = View(sync, source.survey(sync), settings)
        if column.lower() == sync.key:
            # Keys of another type have another order: what shares a cursor, or was walked, is read again. That does no
            # harm where nothing comes of the acceptance, and it must be there before it.
            claim.save(claim.mark.without_keys())
        return drift.accept(state, view, settings, column)


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
    state.create()
    if state.is_new():
        People(state).begin()
    state.remember(identity)
    walking = view.horizon(survey, settings.lookback_seconds) if sync.kind is Kind.PROFILE else None
    state.begin(
        sync,
        Mark(
            identity,
            view.strategy,
            walking=walking,
            began=source.now(),
            account=account_digest(settings),
            seen=Seen(survey.bound, survey.now.isoformat()),
        ),
    )
    return state.claim(sync)


@dataclass(frozen=True, slots=True)
class _OnItsWay:
    """A page that is being sent.

    `recent` are the digests of its rows beyond the horizon, `settled` those that a mark beyond the page need not know.
    """

    sent: Sent
    recent: list[bytes]
    settled: list[bytes]


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
        mark = claim.mark
        self._survey = source.survey(sync)
        self._state.check_source(mark, self._survey)
        self._view = View(sync, self._survey, settings)
        if self._view.strategy != mark.strategy:
            raise StateFault(
                f"The mark of {sync.name} was made by {mark.strategy}, but the cursor of {self._view.name} is now"
                f" {self._view.strategy}. Put the column {mark.strategy} back, or set STATE_CONTAINER to a new"
                " container to start afresh."
            )
        self._bound = self._view.horizon(self._survey, settings.lookback_seconds)
        # by updated_at, rows beyond the horizon are read too, and remembered
        self._until = self._bound if self._view.by_row_version else None
        self._horizon = mark.walking or self._bound
        # By updated_at, the digests of rows beyond the mark that are accounted for: all of them, and those that this
        # pass has met beyond the horizon. Only the latter are of use once the view was read to its end.
        self._known = set(SortedIds(mark.recent))
        self._met: set[bytes] = set()
        self._judged = False
        names = [field.name for field in self._view.fields]
        self._emptied = surge.Emptied(names, mark.first_empty, mark.first_rows, settings.emptied_percent, mark.released)
        self._started_at = mark.position

    def run(self) -> None:
        result, mark, view = self._result, self._claim.mark, self._view
        held_back = self._held_back()
        if self._sync.after and not self._follow(self._sync.after):
            result.outcome = "waiting"
            result.message = f"{self._sync.name} waits until {self._sync.after} has sent everything once."
            return
        delivery = Delivery(
            result,
            view,
            self._settings,
            self._state,
            mark,
            Gate(mark.start, self._sync.max_age),
            Flood(mark.released, mark.latest_rows, mark.latest_bad),
            mark.began,
        )
        with delivery:
            if mark.account != account_digest(self._settings):
                delivery.client()
            self._mend(delivery.drift)
            order: Literal["walk", "changed"] = "walk" if self._claim.mark.walking else "changed"
            pages: Iterator[Page] = self._source.pages(view, order, self._start(), self._until)
            if self._sync.kind is Kind.REMOVAL:
                pages = identity.nobody_twice(pages, view)
            complete = self._deliver(delivery, pages)
            if complete:
                delivery.drift.settle()
                self._finish(held_back)
            delivery.fold()
            delivery.audit()
            self._say(delivery.drift, count=complete and mark.began is not None)

    def _mend(self, drift: Drift) -> None:
        """Go back to where columns were left out that may go now: what has changed since was sent without them."""
        mark = self._claim.mark
        left = [name for name in mark.without if name in drift.without]
        if mark.incomplete is None or len(left) == len(mark.without):
            return
        mended = replace(mark, without=left, incomplete=mark.incomplete if left else None)
        if any(name in drift.columns for name in mark.without if name not in left):  # the others are meant to be gone
            self._known.clear()
            if mark.incomplete.cursor is None:  # it happened during the first pass
                self._horizon = mark.walking or self._bound
                mended = replace(mended, walking=self._horizon, position=None, recent=b"")
            else:
                mended = replace(mended, position=mark.incomplete, mending=mark.position, recent=b"")
        self._claim.save(mended)

    def _start(self) -> Position | None:
        """Where to start reading."""
        mark, view = self._claim.mark, self._view
        # what the pass before this one has sent in order goes once more
        start = mark.behind if self._sync.kind in _IN_ORDER and mark.began is None else mark.position
        if mark.position and mark.position.cursor and mark.position.cursor > self._bound:
            if view.by_row_version:
                raise StateFault(
                    f"The row versions of database {self._survey.database} went back behind the mark of"
                    f" {self._sync.name}: was a backup restored? Changes would be missed. Restore the state of that"
                    " time, or set STATE_CONTAINER to a new container to start afresh."
                )
            # the server's clock went back, and rows may have come in behind the mark
            start = min(start, Position(self._bound, None), key=lambda one: one.cursor or "") if start else None
        if start and start.cursor and (earlier := view.before_clock_change(start.cursor, self._survey)):
            start = Position(earlier, None)
        return start

    def _deliver(self, delivery: Delivery, pages: Iterator[Page]) -> bool:
        """Send and account for page after page. False where time, or the room to remember rows, was up."""
        in_flight = 0 if self._sync.kind in _IN_ORDER else self._settings.customerio_batches_in_flight
        try:
            return overlapped(
                delivery,
                pages,
                in_flight,
                send=lambda page: self._send(delivery, page),
                account=lambda one: self._account(delivery, one),
                may_go_on=self._may_go_on,
            )
        except TidemarkError as error:
            # What was accepted of pages that are not accounted for counts, and what a person has paused is not late.
            mark = self._measured(delivery, [])
            if isinstance(error, Paused):
                mark = replace(mark, looks=[freshness.look(self._view, self._survey)])
            if mark != self._claim.mark and not isinstance(error, StateUnavailable):
                with suppress(TidemarkError):
                    self._claim.save(mark)
            raise

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

    def _send(self, delivery: Delivery, page: Page) -> _OnItsWay:
        self._result.pages += 1
        self._result.rows += len(page.rows)
        self._claim.check()
        page, recent, settled = self._without_known(page)
        if self._sync.kind is Kind.PROFILE:
            self._refuse_surge(page, delivery.drift)
        if page.rows:
            page = self._stamped(page)
        return _OnItsWay(delivery.send(page), recent, settled)

    def _account(self, delivery: Delivery, one: _OnItsWay) -> None:
        ledgered = delivery.account(one.sent)
        self._advance(one, ledgered, delivery)

    def _measured(self, delivery: Delivery, rows: Sequence[Sequence[object]]) -> Mark:
        """The mark with what was accepted since the last time, and how fast these rows were; not in a first pass."""
        mark, accepted = self._claim.mark, delivery.accepted
        delivery.accepted = Counter()
        if mark.walking or mark.began is not None:
            return mark
        now = self._source.now() + 1  # in whole seconds, and nothing is to look faster than it was
        day = str(datetime.fromtimestamp(now, UTC).date())
        counts, longest = freshness.took(self._view, mark.looks, (row[0] for row in rows), now)
        if longest is not None:
            self._result.freshness = round(max(self._result.freshness or 0.0, longest), 3)
        return replace(
            mark,
            volume=volume.add(mark.volume, day, accepted),
            freshness=volume.add(mark.freshness, day, counts),
        )

    def _stamped(self, page: Page) -> Page:
        """The page with a time of reading that no earlier page's exceeds, though SQL Server's clock went back.

        It is noted before anything is sent with it, once a pass: Customer.io drops what looks older than what it has.
        """
        mark = self._claim.mark
        if page.read_at <= mark.stamped:
            return replace(page, read_at=mark.stamped)
        self._claim.save(replace(mark, stamped=page.read_at))
        return page

    def _refuse_surge(self, page: Page, drift: Drift) -> None:
        """Raise SurgeStop before a pass touches too many people, or empties an attribute for too many."""
        mark, settings = self._claim.mark, self._settings
        if mark.walking:
            return
        if not self._judged and len(page.rows) >= min(surge.LEAST, settings.page_size - 1):
            self._judged = True  # by its first page: of a full one the last row waits for the next
            if surge.MASS_CHANGE not in mark.released:
                since = mark.mending or mark.position
                changed = self._source_count(self._view.count_changed(since, self._until)) - len(self._known)
                people = self._source_count(self._view.count_all())
                if surge.is_mass(changed, people, settings.mass_change_percent):
                    self._hand_over(people, drift)
                    self._result.stop = "mass_change"
                    raise SurgeStop(
                        f"{changed:,} of the {people:,} people of {self._view.name} have changed, more than"
                        f" {settings.mass_change_percent} % (MASS_CHANGE_PERCENT): an upstream reload? Nothing was"
                        f" sent. {self._how_to_release(surge.MASS_CHANGE)}"
                    )
        if found := self._emptied.add(page.rows):
            name, count, rows = found
            self._result.stop = "emptied"
            raise SurgeStop(
                f"{name} is NULL, zero or false in {count:,} of {rows:,} changed rows of {self._view.name}, by more"
                f" than {settings.emptied_percent} points (EMPTIED_PERCENT) more often than in the first pass. These"
                f" rows were not sent. Correct the view. {self._how_to_release(surge.EMPTIED + name)}"
            )

    def _hand_over(self, people: int, drift: Drift) -> None:
        """Let a full comparison account for too many changed people, if one can; raises Waiting if so.

        The mark moves only to the bound of a comparison that has sent everybody who differed.
        """
        mark, view, settings = self._claim.mark, self._view, self._settings
        if mark.incomplete or mark.mending:
            return  # who was sent without some columns is to be sent again, differing or not
        after = Position(self._bound, None)
        recent = self._source_count(view.count_changed(after, self._until))  # by updated_at, those of the lookback
        if surge.is_mass(recent, people, settings.mass_change_percent):
            raise Waiting(
                f"Too many people of {view.name} have changed within LOOKBACK_SECONDS. A full comparison finds out who"
                " of them really differs, once they are older; until then nothing is sent."
            )
        position = comparison.hand_over(self._state, settings, view, drift.withheld.keys(), mark)
        if position is not None:
            self._claim.save(replace(mark, position=position))
            raise Waiting(
                f"A full comparison has accounted for the people of {view.name} that had changed, and the mark was"
                " moved to where it began. The next pass goes on from there."
            )

    def _source_count(self, statement: tuple[str, list[object]]) -> int:
        # the pass's own connection streams the rows
        with Source(self._settings) as source:
            return source.count(statement)

    def _how_to_release(self, reason: str) -> str:
        call = f'POST /api/syncs/{self._sync.name}/release with {{"reason": "{reason}"}}'
        return f"If it is meant, {call} lets this one pass."

    def _say(self, drift: Drift, count: bool) -> None:
        """Put into the run's message what a person should know of the view; `count`: also rows without cursor."""
        says = [self._result.message] if self._result.message else []
        says += drift.notes()
        self._result.withheld = len(drift.withheld)
        if self._result.invalid_emails:
            says.append(
                f"{self._result.invalid_emails} addresses of {self._view.name} are no valid email and were left out;"
                " the rest of their rows was sent."
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
        if self._view.by_row_version or self._sync.kind in _IN_ORDER:  # of these the ledger knows all
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

    def _follow(self, name: str) -> bool:
        """Go only as far as the sync of that name has sent everything. False where it never came to its end."""
        mark = self._state.peek(find(name))
        if mark is None or mark.seen is None or mark.began is not None or mark.going_live:
            return False
        at = datetime.fromisoformat(mark.seen.at)
        limit = mark.seen.bound if self._view.by_row_version else self._view.cursor_at(at)
        self._until = min(self._until or limit, limit)
        self._horizon = min(self._horizon, limit)
        behind = round((self._survey.now - at).total_seconds() / 60)
        if behind > _BEHIND_MINUTES:
            self._result.outcome = "waiting"
            self._result.message = (
                f"{name} has not been read to its end for {behind} minutes; {self._sync.name} goes no further."
            )
        return True

    def _advance(self, one: _OnItsWay, ledgered: int, delivery: Delivery) -> None:
        page = one.sent.page
        mark = self._measured(delivery, [page.rows[operation.row] for operation in one.sent.operations])
        last = page.last
        if not mark.walking or len(self._met) < _MOST_RECENT:  # to send a person again does no harm
            self._known.update(one.recent)
            self._met.update(one.recent)
        self._known.difference_update(one.settled)
        if mark.walking:
            position: Position | None = Position(None, last.key)
        elif last.cursor is not None and last.cursor < self._horizon:
            position = last
        elif page.rows:
            position = Position(self._horizon, None)
        else:  # nothing new
            position = mark.position
        if page.rows or position != mark.position:
            rows, empty = mark.first_rows, mark.first_empty
            if self._sync.kind is Kind.PROFILE and mark.began is not None:
                rows += len(page.rows)
                counts = surge.count_empty([field.name for field in self._view.fields], page.rows)
                empty = {name: count + empty.get(name, 0) for name, count in counts.items()}
            if self._sync.kind is Kind.PROFILE and delivery.drift.without:
                since = Position(None, None) if mark.walking else mark.position
                without = sorted(delivery.drift.without.union(mark.without))
                mark = replace(mark, incomplete=mark.incomplete or since, without=without)
            latest_rows, latest_bad = delivery.flood.latest() if delivery.flood else (0, {})
            self._claim.save(
                replace(
                    mark,
                    position=position,
                    ledgered=mark.ledgered + ledgered,
                    account=account_digest(self._settings),
                    first_rows=rows,
                    first_empty=empty,
                    latest_rows=latest_rows,
                    latest_bad=latest_bad,
                    recent=b"".join(sorted(self._known)),
                )
            )

    def _held_back(self) -> Seen | None:
        """The bound that an open transaction keeps from moving, and since when; says so when it is for long."""
        survey, before = self._survey, self._claim.mark.held_back
        if not self._view.by_row_version or survey.bound > survey.last:
            return None
        if before is None or before.bound != survey.bound:
            return Seen(survey.bound, survey.now.isoformat())
        minutes = int((survey.now - datetime.fromisoformat(before.at)).total_seconds() // 60)
        self._result.held_back_minutes = minutes
        if minutes >= _HELD_BACK_MINUTES:
            self._result.message = (
                f"A transaction in {survey.database} has been open for {minutes} minutes or more, and nothing that was"
                f" written since it began to write can be read by row_version: {self._view.feed} stands still. Find it"
                " (DBCC OPENTRAN), and end it."
            )
            self._result.findings.append(self._result.message)
        return before

    def _finish(self, held_back: Seen | None) -> None:
        """The view was read to its end: the mark moves to the bound, and remembers only what lies beyond it."""
        mark = self._claim.mark
        done = replace(mark, walking=None, began=None, mending=None, held_back=held_back)
        if any(reason.startswith((surge.MASS_CHANGE, surge.EMPTIED)) for reason in mark.released):
            left = [one for one in mark.released if not one.startswith((surge.MASS_CHANGE, surge.EMPTIED))]
            done = replace(done, released=left)  # each lets one pass
        if mark.walking:
            done = replace(done, position=Position(mark.walking, None))
        elif self._view.by_row_version and self._result.rows:
            done = replace(done, position=Position(self._horizon, None))
        elif len(self._met) * DIGEST_BYTES < len(mark.recent):
            # the mark must pass what it no longer remembers
            done = replace(done, position=Position(self._horizon, None), recent=b"".join(sorted(self._met)))
        if self._sync.kind in _IN_ORDER:
            done = replace(done, behind=self._started_at)
        if not mark.walking and self._result.outcome == "ok":  # a walk has read what was there when it began
            done = replace(done, seen=Seen(self._survey.bound, self._survey.now.isoformat()))
        if not mark.walking and mark.began is None:
            latest = freshness.look(self._view, self._survey)
            done = replace(done, looks=freshness.looked(mark.looks, latest, self._horizon))
        if done != mark:
            self._claim.save(done)
        self._result.read_to_end = done.seen.at if done.seen else ""


def _row_digest(row: Sequence[object]) -> bytes:
    return digest(repr(tuple(row)))
