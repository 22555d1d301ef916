"""The full comparison: who differs from what was last sent, whether or not their cursor moved.

A walk of `retention.customers` by key beside the fingerprints of everybody, two streams in one order. It finds what no
pass can see (attributes that move without the cursor, lost updates, people who have vanished), and sends only who
differs. A pass of `customers` that finds too many changed people waits for one: an upstream reload costs a walk.

Keys are compared by SQL Server alone, in whose order they come; Python asks only whether two are the same.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import chain, repeat
from operator import itemgetter
from typing import Any

import orjson
from ulid import ULID

from shared import identity, surge
from shared import plan as planning
from shared.customerio import Barred, CustomerIo, Group, Rejection, Unknown
from shared.drift import Drift
from shared.errors import Busy, CarryOn, DeliveryUnavailable, NotThere, Refused, Waiting
from shared.fingerprints import FORGET, OTHER, Fingerprints, Head, Key, Part, Rows, Sent, fingerprints_by
from shared.mapping import Operation
from shared.pause import Pause
from shared.people import People
from shared.pipeline import read_ahead
from shared.queues import Queues
from shared.resync import Asked, Planned, Runs, Stage, now
from shared.run import Run
from shared.settings import Settings, load
from shared.source import Page, Source
from shared.state import Mark, State, storage_errors
from shared.syncs import find
from shared.view import Position, View

log = logging.getLogger("tidemark")

EXPIRES = timedelta(hours=23)
"""So long a plan may be approved: until the next night's."""

_CUSTOMERS = find("customers")
_SHOWN = 1000
"""Ids of people who have vanished that a plan shows."""
_SOME = 2000
"""People who are read anew by one statement, which has room for 2,100 parameters."""


# --- asking for one ---------------------------------------------------------------------------------------------------


def nightly() -> None:
    """Ask for a comparison, where customers are live and none is at work. One that waits for approval is superseded."""
    settings = load()
    with closing(State(settings)) as state:
        try:
            ready(state)
            Pause(state).check(_CUSTOMERS)
            log.info("comparison %s was asked for", ask(state, settings, {}, supersede=True).run)
        except CarryOn as reason:
            log.info("%s", reason)


def ask(state: State, settings: Settings, request: Mapping[str, Any], *, supersede: bool) -> Asked:
    """Record a comparison and have it planned. Raises Busy where one is at work, or waits and is not superseded."""
    runs, fingerprints = Runs(state), Fingerprints(state)
    head = fingerprints.head() or Head()
    if (last := _run_of(runs, head.last)) is not None and _is_open(last):
        if last.state is not Stage.AWAITING or not supersede:
            raise Busy(f"Comparison {last.run} is {last.state}; nothing to do.")
        with suppress(CarryOn):
            runs.change(
                last.run,
                [Stage.AWAITING],
                state=Stage.CANCELED,
                finished=now(),
                message="A newer comparison has taken its place.",
            )
    asked = runs.create("comparison", request, _CUSTOMERS.name)
    won = fingerprints.change(lambda one: replace(one, last=asked.run) if one.last == head.last else one)
    if won.last != asked.run:
        runs.change(asked.run, [Stage.PLANNING], state=Stage.CANCELED, finished=now())
        raise Busy("Another comparison has just been asked for; nothing to do.")
    Queues(settings).send("plans", {"run": asked.run})
    return asked


def hand_over(state: State, settings: Settings, view: View, withheld: Set[str], mark: Mark) -> Position | None:
    """What a pass does that finds too many changed people: the position to which a comparison has accounted for them.

    None where no comparison can stand in for the pass: there are no fingerprints yet, they are of other columns than
    the view has, or a person has canceled the last one. Raises Waiting while one is at work; it is asked for here.
    """
    head = Fingerprints(state).head()
    if head is None or set(head.columns) != set(_columns(view, withheld)):
        return None
    last = _run_of(Runs(state), head.last)
    horizon = last.private.get("horizon") if last is not None and last.state is Stage.DONE else None
    if horizon and (mark.position is None or (mark.position.cursor or "") < horizon):
        return Position(horizon, None)
    if last is not None and last.state is Stage.CANCELED:
        return None
    if last is None or not _is_open(last):
        with suppress(Busy):
            last = ask(state, settings, {"reason": "a pass has found too many changed people"}, supersede=False)
    told = f"Run {last.run}, a full comparison, " if last else "A full comparison "
    raise Waiting(
        f"{told}finds out who of them really differs. Until it is done nothing is sent, and the mark stays where it is"
        + (f": it waits for approval (GET /api/runs/{last.run})." if last and last.state is Stage.AWAITING else ".")
    )


def _run_of(runs: Runs, run: str) -> Asked | None:
    with suppress(NotThere):
        return runs.read(run) if run else None
    return None


def _is_open(asked: Asked) -> bool:
    """Whether a comparison may still come to its end by itself, or by an approval; one a day old is given up."""
    old = datetime.fromisoformat(asked.created) < datetime.now(UTC) - timedelta(days=1)
    return asked.state in (Stage.PLANNING, Stage.AWAITING, Stage.RUNNING) and not asked.expired and not old


def ready(state: State) -> Mark:
    """The mark of customers, once all of them were sent. Raises NotLive, and Refused while they are being sent."""
    mark = state.live(_CUSTOMERS)
    if mark.walking or mark.going_live:
        raise Refused("customers is still being sent for the first time; a comparison makes sense after that.")
    return mark


def _columns(view: View, withheld: Set[str]) -> list[str]:
    return [one.name for one in view.fields if one.name not in withheld]


# --- the walk ---------------------------------------------------------------------------------------------------------


def plan(state: State, settings: Settings, asked: Asked) -> Planned:
    """Walk the view, write the next generation of fingerprints, and plan to send who differs.

    Raises NotLive, Refused, and what a pass raises.
    """
    if columns := asked.request.get("columns"):
        return _plan_columns(state, settings, columns)
    mark = ready(state)
    with Source(settings) as source, Source(settings) as aside:
        survey = source.survey(_CUSTOMERS)
        aside.survey(_CUSTOMERS)
        state.check_source(mark, survey)
        view = View(_CUSTOMERS, survey, settings)
        fingerprints = Fingerprints(state)
        head = fingerprints.head() or Head()
        columns = _columns(view, Drift(state, view, settings, first=True).withheld.keys())
        frame = _Frame.of(head, columns, view.people_are()[1], offering=_is_offered(Runs(state), head))
        fingerprints.change(lambda one: replace(one, columns=one.columns or frame.columns))  # from now on it is noted
        walk = _Walk(state, settings, asked.run, view, aside, frame, head)
        walk.walk(source)
    next_head = Head(walk.generation, walk.parts, frame.columns, frame.key, frame.offered, frame.offer)
    if frame.offer_now:
        offer = Runs(state).create("comparison", {"columns": frame.offer_now}, _CUSTOMERS.name)
        Queues(settings).send("plans", {"run": offer.run})
        next_head = replace(next_head, offered=frame.offer_now, offer=offer.run)
    fingerprints.publish(next_head, walk.sent)
    told = walk.told | frame.told()
    if next_head.offer and next_head.offer != head.offer:
        told["offer"] = f"/api/runs/{next_head.offer}"
    percent, action = settings.mass_change_percent, settings.vanished_customers
    why = []
    if surge.is_mass(walk.differing, walk.people, percent):
        why.append(f"more than {percent} % of all people differ (MASS_CHANGE_PERCENT)")
    if action != "report" and walk.vanished * 100 > (walk.people + walk.vanished) * percent:
        why.append(f"more than {percent} % of all people have vanished, whom VANISHED_CUSTOMERS would {action}")
    told["needs_approval"] = why
    told |= planning.duration(0, walk.differing, len(walk.slices), settings)
    private = {"horizon": view.horizon(survey, settings.lookback_seconds) if frame.covers else None}
    return Planned(told, walk.slices, bool(why), private, expires=EXPIRES)


def _plan_columns(state: State, settings: Settings, columns: Sequence[str]) -> Planned:
    """A plan to send everybody, because of new columns. It always waits for approval."""
    planned = planning.plan(state, settings, _CUSTOMERS, {"all": True})
    told = {"new_columns": columns, **planned.plan, "needs_approval": ["new columns are sent to all only if approved"]}
    return replace(planned, plan=told, needs_approval=True, expires=EXPIRES)


def _is_offered(runs: Runs, head: Head) -> bool:
    """Whether the run that offers new columns may still be approved, or is being carried out."""
    return (offer := _run_of(runs, head.offer)) is not None and _is_open(offer)


@dataclass(frozen=True, slots=True)
class _Frame:
    """By which columns people are compared (`compared`), and by which they are remembered (`columns`).

    `compared` is empty where nothing can be compared: then everybody is recorded as they are, and only new people
    differ. `first`: nobody is known at all. `offer_now` are the new columns that are to be offered.
    """

    first: bool
    compared: Sequence[str]
    columns: Sequence[str]
    key: str
    new: Sequence[str] = ()
    gone: Sequence[str] = ()
    offered: Sequence[str] = ()
    offer: str = ""
    offer_now: Sequence[str] = ()

    @classmethod
    def of(cls, head: Head, columns: Sequence[str], key: str, *, offering: bool) -> "_Frame":
        """How to go on from what the head says; `offering`: an offer of new columns is still open."""
        if not head.generation or head.key != key:
            return cls(True, (), columns, key)
        new = [name for name in columns if name not in head.columns]
        gone = [name for name in head.columns if name not in columns]
        if gone:  # what is left of a fingerprint without one of its columns, nobody can tell
            return cls(False, (), columns, key, gone=gone, offer_now=new)
        if not new:
            return cls(False, head.columns, head.columns, key)
        if offering:
            return cls(False, head.columns, head.columns, key, new, offered=head.offered, offer=head.offer)
        if set(new) <= set(head.offered):  # it was offered, and is over: sent, or not wanted
            return cls(False, head.columns, columns, key)
        return cls(False, head.columns, head.columns, key, new, offer_now=new)

    @property
    def covers(self) -> bool:
        """Whether who does not differ has been sent as they are, in every column."""
        return bool(self.compared) and self.compared is self.columns and not self.new

    def told(self) -> dict[str, Any]:
        """What a plan says of it."""
        told: dict[str, Any] = {"first": self.first}
        if self.new:
            told["new_columns"] = list(self.new)
        if self.gone:
            told["columns_gone"] = list(self.gone)
            told["note"] = "Columns are gone, so everybody was recorded anew, and nobody compared."
        return told


@dataclass(slots=True)
class _Walk:
    """One walk. It holds a part or two of the old fingerprints, one of the new, and what was noted since the last."""

    state: State
    settings: Settings
    run: str
    view: View
    aside: Source
    frame: _Frame
    head: Head
    generation: str = field(default_factory=lambda: str(ULID()))
    parts: int = 0
    people: int = 0
    differing: int = 0
    new: int = 0
    vanished: int = 0
    without_id: int = 0
    slices: list[dict[str, Any]] = field(default_factory=list)
    sent: Sent = field(default_factory=Sent)
    _shown: list[str] = field(default_factory=list)
    _known: dict[Key, bytes] = field(default_factory=dict)
    _to_send: list[Key] = field(default_factory=list)
    _to_let_go: list[Key] = field(default_factory=list)
    _everybody: People = field(init=False)

    def walk(self, source: Source) -> None:
        """Compare everybody. Raises what reading the view raises."""
        fingerprints = Fingerprints(self.state)
        self._everybody = People(self.state)
        self._everybody.refresh()
        self.sent = fingerprints.sent(self.head.columns)
        unread = iter(()) if self.frame.first else fingerprints.parts(self.head)
        old: list[Part] = []
        last: Key | None = None
        with closing(read_ahead(source.pages(self.view, "walk", None))) as pages:
            for page in pages:
                last = page.rows[-1][1]  # type: ignore[assignment]  # a key is a number or a text
                if last is not None:
                    # all old parts that can know somebody of this page
                    while not old or not self._reaches(old[-1], last):
                        if (part := next(unread, None)) is None:
                            break
                        old.append(part)
                self._compare(page.rows, old)
                for part in old[:-1]:  # the walk is beyond them
                    self._vanish(part)
                del old[:-1]
                self._flush(last)
        for part in chain(old, unread):
            self._vanish(part)
            if last is None or self.aside.count(self.view.precedes(last, part.last)):
                last = part.last
            self._flush(last)
        self._flush(last, least=1)

    @property
    def told(self) -> dict[str, Any]:
        """What a plan says of it."""
        told: dict[str, Any] = {
            "sync": _CUSTOMERS.name,
            "compared": self.people,
            "rows": self.differing,
            "people": self.differing,
            "new_people": self.new,
            "vanished": self.vanished,
            "vanished_customers": self._shown,
            "slices": len(self.slices),
        }
        return told | ({"without_id": self.without_id} if self.without_id else {})

    def _reaches(self, part: Part, key: Key) -> bool:
        """Whether a part covers a key, or what comes after it."""
        return key in part.known or key == part.last or not self.aside.count(self.view.precedes(part.last, key))

    def _compare(self, rows: Rows, old: Sequence[Part]) -> None:
        """Take in rows, and who of them differs from what was last sent."""
        frame = self.frame
        prints = fingerprints_by(self.view, frame.columns)
        assert prints is not None  # they are the view's own
        now: dict[Any, bytes] = dict(zip(map(itemgetter(1), rows), prints(rows), strict=True))
        if None in now:
            self.without_id += sum(row[1] is None for row in rows)
            del now[None]
        for key in self._removed(now):
            del now[key]
        self.people += len(now)
        if frame.first:
            self._known.update(now)
            return
        first, *more = old or [Part({}, "")]
        was: list[bytes | None] = list(map(first.known.pop, now, repeat(None)))
        for part in more:
            pop = part.known.pop
            was = [before or pop(key, None) for key, before in zip(now, was, strict=True)]
        if noted := self.sent.known:
            was = [noted.get(key, before) or None for key, before in zip(now, was, strict=True)]
        if not frame.compared:
            self._to_send += [key for key, before in zip(now, was, strict=True) if before is None]
            self._known.update({key: one for (key, one), before in zip(now.items(), was, strict=True) if before})
        elif frame.compared is frame.columns:
            self._take(now, list(now.values()), was)
        else:
            by_old = fingerprints_by(self.view, frame.compared)
            assert by_old is not None  # none of them is gone
            compared = dict(zip((row[1] for row in rows), by_old(rows), strict=True))
            self._take(now, [compared[key] for key in now], was)

    def _take(self, now: Mapping[Key, bytes], compared: Sequence[bytes], was: Sequence[bytes | None]) -> None:
        """Remember who is as before, and of who differs what was last sent."""
        if compared == was:
            self._known.update(now)
            return
        comparable = self.frame.compared is self.frame.columns
        for (key, digest), one, before in zip(now.items(), compared, was, strict=True):
            if one == before:
                self._known[key] = digest
                continue
            self._to_send.append(key)
            if before is None:
                self.new += 1
            else:
                self._known[key] = before if comparable else OTHER

    def _removed(self, people: Mapping[Key, bytes]) -> set[Key]:
        removed = self._everybody.removed([str(key) for key in people])
        return {key for key in people if str(key) in removed} if removed else set()

    def _vanish(self, part: Part) -> None:
        """Who of a part has met no row: not in the view any more, when it is asked for them."""
        left = {key: known for key, known in part.known.items() if self.sent.known.get(key, known) != FORGET}
        gone, merged = self._removed(left), self._everybody.primaries([str(key) for key in left])
        keys = [key for key in left if key not in gone and str(key) not in merged]
        for start in range(0, len(keys), _SOME):
            some = {key: left[key] for key in keys[start : start + _SOME]}
            if (page := self.aside.named(self.view, [str(key) for key in some])) is not None:
                self._compare(page.rows, [Part(some, keys[-1])])
            self.vanished += len(some)
            self._shown += [str(key) for key in some][: _SHOWN - len(self._shown)]
            if self.settings.vanished_customers != "report":
                self._known.update(some if self.frame.compared is self.frame.columns else dict.fromkeys(some, OTHER))
                self._to_let_go += some

    def _flush(self, last: Key | None, least: int | None = None) -> None:
        """Write what is large enough: a part; and beside the run, as slices, who differs and who has vanished."""
        least = least or self.settings.resync_slice_rows
        if last is not None and len(self._known) >= least:
            Fingerprints(self.state).write(self.generation, self.parts, Part(self._known, last))
            self.parts += 1
            self._known = {}
        for what, keys in (("differing", self._to_send), ("vanished", self._to_let_go)):
            if len(keys) >= least:
                number = len(self.slices)
                with storage_errors():
                    name = _list_name(self.run, what, number)
                    self.state.container.upload_blob(name, orjson.dumps(keys), overwrite=True)
                self.slices.append({"phase": 0, "sync": _CUSTOMERS.name, what: number, "rows": len(keys)})
                self.differing += len(keys) if what == "differing" else 0
                keys.clear()


# --- the slices -------------------------------------------------------------------------------------------------------


def _list_name(run: str, what: str, number: int) -> str:
    return f"runs/{run}/{what}/{number}"


def _keys(state: State, run: str, what: str, number: int) -> list[Key]:
    with storage_errors():
        keys: list[Key] = orjson.loads(state.container.download_blob(_list_name(run, what, number)).readall())
        return keys


def differing(
    state: State, run: str, number: int, source: Source, view: View, after: Position | None
) -> Iterator[Page]:
    """The people of a list who differ, read anew; those after a position."""
    keys = [str(key) for key in _keys(state, run, "differing", number)]
    start = keys.index(after.key) + 1 if after and after.key in keys else 0
    for at in range(start, len(keys), _SOME):
        if (page := source.named(view, keys[at : at + _SOME])) is not None:
            yield page


def let_go(
    state: State,
    settings: Settings,
    asked: Asked,
    number: int,
    source: Source,
    view: View,
    run: Run,
    may_send: Callable[[], None],
) -> None:
    """Clear or delete the people of a list who have vanished, and are still not in the view.

    Deletions are recorded as removals are, before Customer.io is told: nobody of them comes back, unless restored.
    """
    people = People(state)
    delete = settings.vanished_customers == "delete"

    def guard(persons: Sequence[str]) -> Mapping[str, Barred]:
        may_send()
        return {} if delete else people.barred(persons)  # a deletion has to reach who was removed

    for start in range(0, len(keys := _keys(state, asked.run, "vanished", number)), _SOME):
        some = keys[start : start + _SOME]
        page = source.named(view, [str(key) for key in some])
        back = {row[1] for row in page.rows} if page else set()
        people.refresh()
        merged = people.primaries([str(key) for key in some])
        gone = [key for key in some if key not in back and str(key) not in merged]
        run.rows += len(gone)
        if not gone:
            continue
        if delete:
            removals = [
                Operation(row, str(key), (_payload(str(key), "delete"),), action="delete")
                for row, key in enumerate(gone)
            ]
            identity.record_removals(removals, people)
            identity.purge_removed(removals, people, state, run.run, settings)
            groups = [Group(one.person, one.payloads) for one in removals]
        else:
            cleared = {"attributes": dict.fromkeys(sorted(settings.vanished_clear)), "timestamp": source.now()}
            groups = [Group(str(key), (_payload(str(key), "identify", **cleared),)) for key in gone]
        with CustomerIo(settings, guard) as client:
            fates = [one for group in client.send(groups).wait() for one in group]
            if any(isinstance(fate, Unknown) for fate in fates):
                raise client.failure or DeliveryUnavailable("Customer.io did not answer; the slice is tried again.")
            run.requests += client.requests
        run.operations += len(fates)
        run.rejected += sum(isinstance(fate, Rejection) for fate in fates)
        run.accepted += sum(fate is None for fate in fates)
        Fingerprints(state).forget(gone)


def _payload(person: str, action: str, **more: Any) -> bytes:
    return json.dumps({"type": "person", "identifiers": {"id": person}, "action": action, **more}).encode()
