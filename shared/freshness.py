"""How long it takes from a committed row to its acceptance by Customer.io.

By `updated_at` each row tells when it was written. By `row_version` no row does; but a version above the last one that
was given out when an earlier pass looked (@@DBTS) was given out after that, and its row committed later still. So it
has taken at most as long as since then. Moments at which passes have looked are kept in the mark (Mark.looks).

Rows that are below all of them are not measured: those of a first pass, and what has piled up while a person had
paused the sync. What has piled up because passes failed is late, and is measured.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
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


def took(view: View, looks: Sequence[Seen], cursors: Iterable[object], now: float) -> list[float]:
    """The seconds that rows with these cursors have taken at most until `now` (unix); of those that can be told."""
    bounds: list[Any] = [bytes.fromhex(one.bound[2:]) if view.by_row_version else one.bound for one in looks]
    at = [datetime.fromisoformat(one.at).replace(tzinfo=UTC).timestamp() for one in looks]
    seconds = []
    for cursor in cursors:
        if above := bisect_left(bounds, cursor) if cursor is not None else 0:
            since = at[above - 1] if view.by_row_version else view.time_of(str(cursor)).timestamp()
            seconds.append(max(0.0, now - since))
    return seconds


def counted(seconds: Iterable[float]) -> Counter[str]:
    """How many took up to how long, as a mark remembers it: {"300": 12}."""
    return Counter(str(_BOUNDS[min(bisect_left(_BOUNDS, one), len(_BOUNDS) - 1)]) for one in seconds)


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
