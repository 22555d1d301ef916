"""The census: what the columns of a view hold as a whole, counted once a night by one query a view.

    census.json   {sync: {night: {"rows": n, "filled": {column: n}, "types": {column: SQL Server's type}}}}

Passes see only what changes. A join that finds nothing any more, or a type that was converted, shows in all rows.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from statistics import median

from shared.errors import StateFault, ViewFault
from shared.findings import Finding
from shared.settings import Settings
from shared.source import Source
from shared.state import Document, Mark, State
from shared.syncs import Kind, Sync
from shared.view import EVERYTHING, View, Within

log = logging.getLogger("tidemark")

KEPT_NIGHTS = 35

_NAME = "census.json"
_EVENT_DAYS = 28
_LEAST_ROWS = 100
"""Of fewer rows a share says little."""
_LEAST_NIGHTS = 3


@dataclass(frozen=True, slots=True)
class Count:
    """What a night has counted: rows, those in which a column is not NULL, and the columns' declared types."""

    rows: int
    filled: Mapping[str, int]
    types: Mapping[str, str]

    def empty(self, column: str) -> float:
        """The share of rows in which a column is NULL, in percent."""
        return 100 * (1 - self.filled[column] / self.rows)


def take(state: State, settings: Settings, live: Mapping[Sync, Mark], night: str) -> list[Finding]:
    """Count the views of profiles and events, of these the last 28 days; what is not as on the nights before.

    `night` is a day, `YYYY-MM-DD`. A view that cannot be read is told, and the others are counted. Raises
    SourceUnavailable, StateUnavailable, StateFault.
    """
    counts: dict[str, Count] = {}
    found: list[Finding] = []
    with Source(settings) as source:
        for sync, mark in live.items():
            if sync.kind not in (Kind.PROFILE, Kind.EVENT):
                continue
            try:
                counts[sync.name] = _count(state, settings, source, sync, mark)
            except ViewFault as error:
                found.append(Finding(f"retention.{sync.view}", str(error), "Correct the view; the night counts anew."))
    for sync_name, nights in _remember(state, counts, night).items():
        if sync_name in counts:
            found += judge(f"retention.{sync_name}", nights, night, settings.emptied_percent)
    return found


def judge(view: str, nights: Mapping[str, Count], night: str, percent: int) -> list[Finding]:
    """The columns whose share of NULLs, or whose type, is not what it was on the nights before.

    The share by more than `percent` points against the median of at least three nights of 100 rows or more; the type
    against the one of most nights.
    """
    now, before = nights[night], [one for at, one in nights.items() if at < night]
    found = []
    for column, of_type in now.types.items():
        types = Counter(one.types[column] for one in before if column in one.types)
        if types and (usual_type := types.most_common(1)[0][0]) != of_type:
            found.append(
                Finding(
                    about=f"{view}.{column}",
                    what=f"Its type is {of_type}. On most nights before it was {usual_type}.",
                    do=f"If it is meant, re-check the conditions on {column} at Customer.io; else convert it back.",
                    count=now.rows,
                )
            )
        shares = [one.empty(column) for one in before if column in one.filled and one.rows >= _LEAST_ROWS]
        if len(shares) < _LEAST_NIGHTS or now.rows < _LEAST_ROWS:
            continue
        if abs(now.empty(column) - (usual := median(shares))) > percent:
            found.append(
                Finding(
                    about=f"{view}.{column}",
                    what=f"It is NULL in {now.empty(column):.1f} % of {now.rows:,} rows. On the nights before it was in"
                    f" {usual:.1f} %, and EMPTIED_PERCENT ({percent}) points are allowed.",
                    do="Look at the joins of the view, and at the table that the column is from. If it is meant, this"
                    " ends by itself once most nights are like it.",
                    count=now.rows - now.filled[column],
                )
            )
    return found


def _count(state: State, settings: Settings, source: Source, sync: Sync, mark: Mark) -> Count:
    survey = source.survey(sync)
    state.check_source(mark, survey)
    view = View(sync, survey, settings)
    month = EVERYTHING
    if sync.kind is Kind.EVENT:
        month = Within(since=view.moment_at(survey.now - timedelta(days=_EVENT_DAYS)))
    ((rows, *filled),) = source.rows(view.census(month))
    names = [field.name for field in view.fields]
    return Count(rows, dict(zip(names, filled, strict=True)), {one.name: view.field_type(one) for one in view.fields})


def _remember(state: State, counts: Mapping[str, Count], night: str) -> dict[str, dict[str, Count]]:
    """Add a night to those that are kept; returns them all."""
    known: dict[str, dict[str, Count]] = {}

    def change(text: bytes | None) -> bytes:
        known.clear()
        known.update(_parse(text))
        for sync, count in counts.items():
            known[sync] = dict(sorted({**known.get(sync, {}), night: count}.items())[-KEPT_NIGHTS:])
        stored = {sync: {at: asdict(one) for at, one in nights.items()} for sync, nights in known.items()}
        return json.dumps(stored).encode()

    Document(state.container, _NAME).change(change)
    return known


def _parse(text: bytes | None) -> dict[str, dict[str, Count]]:
    try:
        return {
            sync: {at: Count(**one) for at, one in nights.items()} for sync, nights in json.loads(text or b"{}").items()
        }
    except (ValueError, TypeError, AttributeError):
        raise StateFault(f"{_NAME} is damaged. Delete that blob: the next nights write it anew.") from None
