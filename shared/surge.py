"""A surge: a pass of profiles that looks like an upstream reload and not like a day's work. Pure.

Every attribute that moves can move its person into a segment, and a segment can start a campaign. So a pass that would
touch everybody, or that finds an attribute emptied for many, waits for a person.
"""

from collections.abc import Mapping, Sequence

LEAST = 1000
"""Fewer people than these are no surge."""

LARGE_PAGE = 500
"""Fewer rows than these say nothing about all people."""

MASS_CHANGE = "mass change"
"""What releases a pass that touches too many people."""

EMPTIED = "emptied: "
"""With the attribute's name after it, what releases a pass in which an attribute is empty too often."""


def is_mass(changed: int, people: int, percent: int) -> bool:
    """Whether so many changed people of all are too many."""
    return changed >= LEAST and changed * 100 > people * percent


def count_empty(names: Sequence[str], rows: Sequence[Sequence[object]]) -> dict[str, int]:
    """How often each column of a page is NULL, zero, false or blank; a row is (cursor, key, *values)."""
    columns = list(zip(*rows, strict=True))[2:]
    return {name: sum(not value for value in values) for name, values in zip(names, columns, strict=True)}


def emptied(now: Mapping[str, int], rows: int, before: Mapping[str, int], rows_before: int, percent: int) -> str | None:
    """The first attribute that in these rows is empty by more percentage points more than it was before, if any."""
    if rows < LARGE_PAGE or not rows_before:
        return None
    for name, count in now.items():
        if name in before and (count / rows - before[name] / rows_before) * 100 > percent:
            return name
    return None
