"""How long it takes from a committed row to its acceptance by Customer.io.

By `updated_at` each row tells when it was written. By `row_version` no row does; but a version above the last one that
was given out when an earlier pass looked (@@DBTS) was given out after that, and its row committed later still. So it
has taken at most as long as since then. Moments at which passes have looked are kept in the mark (Mark.looks).

Rows that are below all of them are not measured: those of a first pass, and what has piled up while a person had
paused the sync. What has piled up because passes failed is late, and is measured.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from statistics import median
from typing import Any

from shared.findings import Finding
from shared.state import Seen
from shared.view import Survey, View

GOALS = {"orders": 300, "carts": 300}
"""Seconds within which 95 % of a day's rows are to be accepted: what a reminder, and its end, depend on."""

_HOUR = 3600
"""The goal of every other sync, or three times what is usual with it, if that is more."""
_TIMES_USUAL = 3

_BOUNDS = (60, 120, 180, 300, 600, 1200, 1800, 3600, 7200, 14_400, 28_800, 86_400, 604_800)
"""Seconds up to which rows are counted together. What took longer than a week counts as a week."""

_MOST_LOOKS = 30


def look(view: View, survey: Survey) -> Seen:
    """The cursor above which every row was written after the moment of this survey."""
    return Seen(survey.last if view.by_row_version else view.cursor_at(survey.now), survey.now.isoformat())


def looked(looks: Sequence[Seen], latest: Seen, horizon: str) -> list[Seen]:
    """The moments that rows at or above `horizon` can be measured by, which are still to be read: at most 30.

    More than one is needed only while an open transaction holds the horizon back, or by `updated_at` the lookback.
    """
    ascending = sorted((*looks, latest), key=lambda one: (one.bound, one.at))
    below = bisect_left([one.bound for one in ascending], horizon)
    needed = ascending[max(0, below - 1) :]
    while len(needed) > _MOST_LOOKS:
        del needed[1::2]  # a row then seems to have taken longer, never shorter
    return needed


def took(view: View, looks: Sequence[Seen], cursors: Iterable[Any], now: float) -> tuple[Counter[str], float | None]:
    """How many rows with these cursors took up to how many seconds until `now` (unix), as {"300": 12}; and the longest.

    Of those that can be told; None where there are none. A row costs a comparison or two in C.
    """
    steps = _by_looks(looks, now) if view.by_row_version else _by_moments(view, now)
    lowest = looks and (steps[0][0] if view.by_row_version else looks[0].bound)
    rows = sorted(cursor for cursor in cursors if lowest and cursor is not None and cursor > lowest)
    if not rows:
        return Counter(), None
    ends = [*accumulate((bisect_right(rows, cursor) for cursor, _ in steps[1:]), max), len(rows)]
    counts: Counter[str] = Counter()
    for (_, seconds), end, begin in zip(steps, ends, [0, *ends], strict=False):
        if end > begin:
            counts[str(_BOUNDS[min(bisect_left(_BOUNDS, seconds), len(_BOUNDS) - 1)])] += end - begin
    if view.by_row_version:
        return counts, next(seconds for (_, seconds), end in zip(steps, ends, strict=True) if end)
    return counts, max(0.0, now - view.time_of(rows[0]).timestamp())


def _by_looks(looks: Sequence[Seen], now: float) -> list[tuple[Any, float]]:
    """In ascending order, versions above which a row has taken at most so many seconds."""
    ages = [now - datetime.fromisoformat(one.at).replace(tzinfo=UTC).timestamp() for one in looks]
    return [(bytes.fromhex(one.bound[2:]), max(0.0, age)) for one, age in zip(looks, ages, strict=True)]


def _by_moments(view: View, now: float) -> list[tuple[Any, float]]:
    """The same for moments of `updated_at`, one a bound."""
    ago = [(datetime.fromtimestamp(now - bound, UTC).replace(tzinfo=None), bound) for bound in reversed(_BOUNDS)]
    return [(view.cursor_at(moment), bound) for moment, bound in ago]


def percentile(counts: Mapping[str, int]) -> int | None:
    """Within so many seconds 95 % were accepted; None of none."""
    rest = sum(counts.values()) * 0.95
    for bound in _BOUNDS:
        rest -= counts.get(str(bound), 0)
        if rest <= 0 and counts:
            return bound
    return None


def judge(sync: str, days: Mapping[str, Mapping[str, int]], day: str) -> Finding | None:
    """Whether more than 5 % of a day's rows took too long; `days` is Mark.freshness, {day: {"300": 12}}."""
    counts = days.get(day, {})
    usual = [p for one, earlier in days.items() if one < day and (p := percentile(earlier)) is not None]
    goal = GOALS.get(sync) or max(_HOUR, _TIMES_USUAL * median(usual or [0]))
    rows, late = sum(counts.values()), sum(count for bound, count in counts.items() if int(bound) > goal)
    if late * 20 <= rows:
        return None
    return Finding(
        about=sync,
        what=f"{late:,} of the {rows:,} rows of {day} took longer than {goal / 60:,.0f} minutes from their commit to"
        f" their acceptance (95 % took up to {(percentile(counts) or 0) / 60:,.0f}).",
        do=f"Look at the runs of {sync} on that day: which failed, waited, took long or were throttled, and whether a"
        " transaction was open (held_back_minutes). Then at its schedule.",
        count=late,
    )
