"""What the checks of readiness share: what they tell, and the connections through which they look.

A check is a generator of notes. It raises what it meets: the others are made all the same (see readiness).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import Any, NamedTuple, Self

from shared.appapi import AppApi
from shared.customerio import CustomerIo
from shared.errors import SourceUnavailable, TidemarkError
from shared.run import unforeseen
from shared.settings import Settings, load
from shared.source import Source
from shared.state import State
from shared.syncs import Kind
from shared.view import Survey, Tally, View


class Outcome(StrEnum):
    """How an item is. `skipped`: it could not be looked at. In the order in which one outweighs the other."""

    OK = "ok"
    SKIPPED = "skipped"
    WARNING = "warning"
    FAILED = "failed"


class Note(NamedTuple):
    """What a check has seen, and what to do about it. Counts and names only: no value from a row."""

    outcome: Outcome
    seen: str
    do: str = ""


def ok(seen: str) -> Note:
    """All is well."""
    return Note(Outcome.OK, seen)


def warning(seen: str, do: str) -> Note:
    """A person should look, and may decide that it is meant."""
    return Note(Outcome.WARNING, seen, do)


def failed(seen: str, do: str) -> Note:
    """It does not work like this."""
    return Note(Outcome.FAILED, seen, do)


class NotLookedAt(Exception):
    """Why a check cannot look. It says nothing about what it is about."""


class TooLong(NotLookedAt):
    """The time for it is over."""


def cut_short(error: Exception) -> Note:
    """What is told where a check could not come to its end."""
    match error:
        case TooLong():
            do = "`make readiness` looks at the same and waits longer; a view that takes so long wants an index."
            return Note(Outcome.SKIPPED, f"Not all was looked at: {error}", do)
        case NotLookedAt():
            return Note(Outcome.SKIPPED, f"Not looked at: {error}", "Mend that first.")
        case TidemarkError():
            return failed(str(error), "Do what the message says.")
    return failed(str(unforeseen(error)), "Report it, with the log of the function.")


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: what a query may take until its first row, and when no check and no query begins any more."""

    query: int
    begin: float


@dataclass
class Look:
    """The settings and connections of one report. A context manager. `views` are those that keep the contract."""

    given: Settings | None
    patience: Patience
    views: list[View] = field(default_factory=list)
    surveys: dict[str, Survey] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    too_slow: dict[str, TooLong] = field(default_factory=dict)
    """Views that are not asked again."""
    clocks: dict[str, float] = field(default_factory=dict)
    """By how many seconds another clock is ahead of this machine's."""
    identity: dict[str, str] = field(default_factory=dict)
    """What was learned of workspace, server and database."""

    def __post_init__(self) -> None:
        self._stack = ExitStack()
        self._end = time.monotonic() + self.patience.begin

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @cached_property
    def settings(self) -> Settings:
        """Raises ConfigurationFault."""
        return self.given or load()

    @cached_property
    def state(self) -> State:
        """The container, and its connections."""
        state = State(self.settings)
        self._stack.callback(state.close)
        return state

    @cached_property
    def source(self) -> Source:
        """SQL Server."""
        return self._stack.enter_context(Source(self.settings, self.patience.query))

    @cached_property
    def client(self) -> CustomerIo:
        """The Track API."""
        return self._stack.enter_context(CustomerIo(self.settings, attempts=2))

    @cached_property
    def app(self) -> AppApi:
        """The App API. Raises ConfigurationFault where its key is missing."""
        return self._stack.enter_context(AppApi(self.settings, attempts=3))

    def may_begin(self) -> None:
        """Raise TooLong where nothing is to begin any more."""
        if time.monotonic() > self._end:
            raise TooLong("the time for all checks was over.")

    def rows(self, statement: tuple[str, list[object]]) -> list[tuple[Any, ...]]:
        """The rows that a statement gives. Raises what Source does, and TooLong."""
        self.may_begin()
        begun = time.monotonic()
        try:
            return self.source.rows(statement)
        except SourceUnavailable:
            if time.monotonic() - begun < self.patience.query:
                raise
            raise TooLong(f"a query took longer than {self.patience.query} seconds.") from None

    def row(self, statement: tuple[str, list[object]]) -> tuple[Any, ...]:
        """The only row that a statement gives."""
        return self.rows(statement)[0]


@dataclass(frozen=True, slots=True)
class Check:
    """An item of readiness: what looks, and the items without which it cannot."""

    name: str
    look: Callable[[Look], Iterator[Note]]
    needs: tuple[str, ...] = ()


def over_views(look: Look, judge: Callable[[Look, View], Iterator[Note]], kind: Kind | None = None) -> Iterator[Note]:
    """What there is to tell of each view (of a kind): what goes wrong with one hides no other. Raises NotLookedAt."""
    found = [view for view in look.views if kind in (None, view.sync.kind)]
    if not found:
        raise NotLookedAt(f"there is no view{f' of the kind {kind}' if kind else ''} that can be read.")
    for view in found:
        try:
            if view.name in look.too_slow:
                raise look.too_slow[view.name]
            yield from judge(look, view)
        except Exception as error:
            if isinstance(error, TooLong):
                look.too_slow[view.name] = error
            note = cut_short(error)
            yield note._replace(seen=f"{view.name}: {note.seen}")


def number(count: int, one: str, more: str = "") -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else more or one + 's'}"
