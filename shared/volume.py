"""How much was accepted, by UTC day: counted by passes, kept for 400 days, judged every night.

    volume.json   {"passes": {sync: {event name: {day: count}}}, "resyncs": {sync: {day: count}}}

A pass adds to its mark what Customer.io has accepted (Mark.volume), so that counting costs no call. Each night takes
the last days of every mark over; once more does no harm. What resyncs and comparisons have sent is kept apart, from the
reports of their slices: a backfill of years would hide what a day of the shop looks like.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from statistics import median

from ulid import ULID

from shared.errors import StateFault
from shared.findings import Finding
from shared.resync import Runs
from shared.state import Document, State, storage_errors

Days = dict[str, int]
"""Counts by day, `YYYY-MM-DD`. Where a day is missing, nobody knows; nothing is 0."""

History = dict[str, dict[str, Days]]
"""By sync and event name; the name is "" for all that is no event."""

KEPT_DAYS = 400
IN_MARK = 8
"""Days that a mark remembers: so long the night may fail."""
MOST_NAMES = 50
"""Event names that a sync is counted by. The others are OTHERS: a name that holds an id must not fill the mark."""
OTHERS = "(others)"

_NAME = "volume.json"
_BEFORE = 28
_LEAST_DAYS = 14
_SAME_WEEKDAY = 7
"""So much a day of the same weekday weighs: four of them just outweigh the 24 others, and two the 12."""
_LEAST = 10
"""Events a day below which a shop's days differ by chance alone."""
_FAR = 5
"""Spreads from the median that are far: by chance once in years."""
_TO_SIGMA = 1.4826  # from the median absolute deviation to a normal distribution's standard deviation


def add(days: Mapping[str, Mapping[str, int]], day: str, counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """What a mark remembers, {day: {name: count}}, with the counts of `day` added; the oldest days are left out."""
    if not counts:
        return {one: dict(names) for one, names in days.items()}
    kept = {one: dict(names) for one, names in sorted({day: {}, **days}.items())[-IN_MARK:]}
    if (today := kept.get(day)) is not None:
        for name, count in counts.items():
            name = name if name in today or len(today) < MOST_NAMES else OTHERS
            today[name] = today.get(name, 0) + count
    return kept


def history(state: State) -> History:
    """What passes had accepted, by sync, event name and day. Raises StateUnavailable, StateFault."""
    passes, _ = _parse(Document(state.container, _NAME).read())
    return passes


def resyncs(state: State) -> dict[str, Days]:
    """Operations that slices had accepted, by sync, on the day that the slice ended. Raises as `history` does."""
    _, slices = _parse(Document(state.container, _NAME).read())
    return slices


def fold(state: State, marks: Mapping[str, Mapping[str, Mapping[str, int]]], today: date) -> History:
    """Take over what the marks remember, {sync: Mark.volume}, and what slices did. Raises as `history` does."""
    sent = _by_slices(state, today)
    folded: History = {}

    def change(text: bytes | None) -> bytes:
        passes, slices = _parse(text)
        for sync, days in marks.items():
            by_name = passes.setdefault(sync, {})
            for name in {*by_name, *(name for names in days.values() for name in names)}:
                by_name[name] = _taken_over(by_name.get(name, {}), days, name, today)
        for sync, counts in sent.items():
            slices[sync] = _recent({**slices.get(sync, {}), **counts}, today)
        folded.update(passes)
        return json.dumps({"passes": passes, "resyncs": slices}, sort_keys=True).encode()

    Document(state.container, _NAME).change(change)
    return folded


def judge(days: Mapping[str, int], day: date) -> float | None:
    """What would have been usual on `day`, if its count is far from it; None if not, or where nobody can tell.

    By the four weeks before, of which two must be known. The same weekday counts most. Far is five spreads from the
    median, a spread being the largest of what the days really differ by, what chance makes of such a number, and a
    tenth. Nothing at all is far where the weekday always has something. But what happened twice is not far: so much on
    any two of the days, so little on two of the same weekday.
    """
    if (count := days.get(day.isoformat())) is None:
        return None
    before = [day - timedelta(days=ago) for ago in range(1, _BEFORE + 1)]
    known = [(one.weekday() == day.weekday(), days[one.isoformat()]) for one in before if one.isoformat() in days]
    if len(known) < _LEAST_DAYS:
        return None
    weighed = [number for same, number in known for _ in range(_SAME_WEEKDAY if same else 1)]
    usual = median(weighed)
    if count == 0 and usual >= _LEAST and all(number for same, number in known if same):
        return usual
    base = max(usual, _LEAST)
    spread = max(_TO_SIGMA * median(abs(number - usual) for number in weighed), base**0.5, base / 10)
    if count > usual:
        alike = sum(number >= count for _, number in known)
    else:
        alike = sum(same and number <= count for same, number in known)
    return usual if abs(count - usual) > _FAR * spread and alike < 2 else None


def find(known: History, day: date) -> list[Finding]:
    """What of `day` is far outside the four weeks before."""
    found = []
    for sync, by_name in sorted(known.items()):
        for name, days in sorted(by_name.items()):
            if (usual := judge(days, day)) is None:
                continue
            count = days[day.isoformat()]
            found.append(
                Finding(
                    about=f"{sync}: {name}" if name else sync,
                    what=f"{count:,} were accepted on {day:%A}, {day}. Usual are {usual:,.0f}.",
                    do=f"If the shop had no such day, compare retention.{sync} with its tables, and look at the runs,"
                    f" the dead letters and pauses of {sync}.",
                    count=count,
                )
            )
    return found


def _taken_over(known: Days, days: Mapping[str, Mapping[str, int]], name: str, today: date) -> Days:
    """Of the days since the name was first counted, those that the mark can tell; a restored mark takes none away."""
    first = min([*known, *(day for day, names in days.items() if name in names)])
    told = (str(today - timedelta(days=ago)) for ago in range(IN_MARK))
    counts = {day: max(known.get(day, 0), days.get(day, {}).get(name, 0)) for day in told if day >= first}
    return _recent({**known, **counts}, today)


def _recent(days: Days, today: date) -> Days:
    return {day: count for day, count in days.items() if day > str(today - timedelta(days=KEPT_DAYS))}


def _by_slices(state: State, today: date) -> dict[str, Days]:
    """What slices had accepted in the last days; also those that are a first pass, which counts in no mark."""
    runs, oldest = Runs(state), str(today - timedelta(days=IN_MARK - 1))
    sums: dict[str, Counter[str]] = {}
    for run in _young(state, today):
        slices = runs.slices(run)
        for number, report in runs.reports(run).items():
            day = report.updated[:10]
            if day >= oldest and (count := report.counts.get("accepted")):
                sums.setdefault(slices[number]["sync"], Counter())[day] += count
    return {sync: dict(days) for sync, days in sums.items()}


def _young(state: State, today: date) -> Iterable[str]:
    """The runs that were asked for in the last weeks: a run's id tells when."""
    since = datetime.combine(today, datetime.min.time(), UTC) - timedelta(days=3 * IN_MARK)
    with storage_errors():
        names = [one.name.split("/")[1] for one in state.container.walk_blobs("runs/", delimiter="/")]
    return [run for run in names if ULID.from_str(run).datetime >= since]


def _parse(text: bytes | None) -> tuple[History, dict[str, Days]]:
    try:
        stored = json.loads(text or b'{"passes": {}, "resyncs": {}}')
        return (
            {sync: {name: dict(days) for name, days in names.items()} for sync, names in stored["passes"].items()},
            {sync: dict(days) for sync, days in stored["resyncs"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StateFault(
            f"{_NAME} is damaged. Restore an earlier version of that blob; or delete it, and only the last"
            f" {IN_MARK} days come back, from the marks."
        ) from None
