"""The stop switch: what a person has paused, and why.

    pause.json   {"*" for all, or a sync's name: {"reason": ..., "since": ISO 8601, UTC}}

It is asked before the first batch of a run and right before every try of every batch, so that a run stops where it is.
A pass that finds nothing to send does not ask, and costs nothing by it.
"""

import json
from datetime import UTC, datetime
from typing import NamedTuple

from shared.errors import Paused, StateFault
from shared.state import Document, State
from shared.syncs import Sync

_NAME = "pause.json"
ALL = "*"
"""Stands for all syncs."""


class Stop(NamedTuple):
    """Why something is paused, and since when (ISO 8601, UTC)."""

    reason: str
    since: str


class Pause:
    """The switch of one container. Its methods may be called from several threads; they raise StateUnavailable."""

    def __init__(self, state: State) -> None:
        self._document = Document(state.container, _NAME)

    def stops(self) -> dict[str, Stop]:
        """What is paused, by the sync's name. Raises StateFault where the blob is damaged."""
        return _parse(self._document.read())

    def check(self, sync: Sync) -> None:
        """Raise Paused where this sync, or all, are to send nothing more."""
        stops = self.stops()
        if stop := stops.get(ALL) or stops.get(sync.name):
            raise Paused(
                f"{sync.name} is paused since {stop.since}: {stop.reason}. Nothing more is sent, and nothing is lost:"
                " POST /api/resume lets it go on."
            )

    def begin(self, sync: Sync | None, reason: str) -> None:
        """Pause a sync, or all."""
        stop = Stop(reason, datetime.now(UTC).isoformat(timespec="seconds"))
        self._change(sync, stop)

    def end(self, sync: Sync | None) -> None:
        """Let a sync go on, or all, those that were paused by themselves too."""
        self._change(sync, None)

    def _change(self, sync: Sync | None, stop: Stop | None) -> None:
        def change(text: bytes | None) -> bytes:
            stops = _parse(text)
            if stop is not None:
                stops[sync.name if sync else ALL] = stop
            elif sync is None:
                stops.clear()
            else:
                stops.pop(sync.name, None)
            return json.dumps({name: one._asdict() for name, one in stops.items()}, indent=1).encode()

        self._document.change(change)


def _parse(text: bytes | None) -> dict[str, Stop]:
    try:
        return {name: Stop(**stop) for name, stop in json.loads(text or b"{}").items()}
    except (ValueError, TypeError, AttributeError):
        raise StateFault(
            f"{_NAME} is damaged, so nobody knows what is paused. Nothing was sent. Restore an earlier version of that"
            " blob."
        ) from None
