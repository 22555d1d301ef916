"""A replay: dead letters are read again from their view, and sent as they are now."""

import time
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from shared.deadletters import DeadLetters
from shared.delivery import Delivery
from shared.errors import Refused
from shared.flood import name_of
from shared.gate import Gate
from shared.run import Run, recorded
from shared.settings import Settings, load
from shared.source import Source
from shared.state import State
from shared.syncs import Kind, Sync
from shared.telemetry import told
from shared.view import View

_ROWS = 500
"""Rows a page."""

_SECONDS = 180
"""After this a replay ends: the platform cuts an HTTP request off after 230 seconds (Azure's documentation)."""


@dataclass(slots=True)
class Replay:
    """What became of the letters that were asked for.

    `delivered` keys have left the list, `gone` ones are no longer in the view. `unconfirmed` are events that were not
    sent because they could start a campaign, or are past their sync's maximum age; `held` counts what the gate holds
    anyway, by reason. `left` were not come to for want of time. What else there is has failed once more.
    """

    sync: str
    run: str
    letters: int = 0
    delivered: int = 0
    gone: int = 0
    unconfirmed: int = 0
    held: dict[str, int] = field(default_factory=dict)
    left: int = 0


def replay(
    sync: Sync,
    keys: Collection[str] | None = None,
    reason: str | None = None,
    *,
    confirmed: bool = False,
    settings: Settings | None = None,
) -> Replay:
    """Replay the letters with these keys, or of this reason, or all.

    Raises Busy while a pass is at work, NotLive, Refused, and StopRun or TryLater as a pass does.
    """
    if sync.kind is Kind.REMOVAL:
        raise Refused(
            f"Dead letters of {sync.name} are not replayed, because their order counts. Correct the row: the next pass"
            " reads it again."
        )
    began = time.monotonic()
    settings = settings or load()
    run = Run.begin(sync)
    result = Replay(sync.name, run.run)
    with ExitStack() as resources:
        state = State(settings)
        resources.callback(state.close)
        source = resources.enter_context(Source(settings))
        claim = resources.enter_context(state.claim(sync))
        resources.enter_context(told(run))
        resources.enter_context(recorded(run, sync, state))
        wanted: dict[str, None] = {}
        for letter in DeadLetters(state.container, sync, run.run, settings.dead_letter_days).letters():
            asked_for = reason is None or name_of((letter.field, letter.reason)) == reason
            if letter.key is not None and asked_for and (keys is None or letter.key in keys):
                wanted[letter.key] = None
        result.letters = len(wanted)
        survey = source.survey(sync)
        mark = claim.mark
        state.check_source(mark, survey)
        view = View(sync, survey, settings)
        gate = Gate(mark.start, None if confirmed else sync.max_age, silent=not confirmed)
        with Delivery(run, view, settings, state, mark, gate, None, None) as delivery:
            if sync.kind is Kind.PROFILE and delivery.drift.without:
                raise Refused(
                    f"Columns of {view.name} are not sent at the moment ({', '.join(sorted(delivery.drift.without))}),"
                    " so a replay would send people without them. Mend or accept these first."
                )
            names = list(wanted)
            for start in range(0, len(names), _ROWS):
                if time.monotonic() - began > _SECONDS:
                    result.left = len(names) - start
                    break
                some = names[start : start + _ROWS]
                page = source.named(view, some)
                result.gone += len(some) - (len({row[1] for row in page.rows}) if page else 0)
                if page is None:
                    continue
                claim.check()
                run.pages += 1
                run.rows += len(page.rows)
                ledgered = delivery.account(delivery.send(page))
                claim.save(replace(claim.mark, ledgered=claim.mark.ledgered + ledgered))
            delivery.fold()
        letters = DeadLetters(state.container, sync, run.run, settings.dead_letter_days).letters()
        result.delivered = len(wanted.keys() - {letter.key for letter in letters})
    result.unconfirmed = sum(run.held.pop(name, 0) for name in ("could_fire", "too_old"))
    result.held = run.held
    return result
