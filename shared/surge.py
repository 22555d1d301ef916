"""A surge: a pass of profiles that looks like an upstream reload and not like a day's work. Pure.

Every attribute that moves can move its person into a segment, and a segment can start a campaign. So a pass that would
touch everybody, or that finds an attribute emptied for many, waits for a person.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

LEAST = 1000
"""Fewer people than these are no surge."""

LARGE = 500
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


class Emptied:
    """Watches the changed rows of a pass for an attribute that is empty more often than it was in the first pass.

    `before` is how often each was, {name: count}, in `rows_before` rows; it may be by `percent` points more often now.
    Rows are judged by 500 at least.
    """

    def __init__(
        self,
        names: Sequence[str],
        before: Mapping[str, int],
        rows_before: int,
        percent: int,
        released: Collection[str] = (),
    ) -> None:
        self._names = names
        self._before = {name: count for name, count in before.items() if EMPTIED + name not in released}
        self._rows_before = rows_before
        self._percent = percent
        self._rows: list[Sequence[object]] = []

    def add(self, rows: Iterable[Sequence[object]]) -> tuple[str, int, int] | None:
        """Take in a page; the first attribute that is empty too often, if one is, how often, and of how many rows."""
        self._rows += [row for row in rows if any(value is not None for value in row[2:])]  # not who has vanished
        if len(self._rows) < LARGE or not self._rows_before:
            return None
        counts = count_empty(self._names, self._rows)
        count, self._rows = len(self._rows), []
        for name, empty in counts.items():
            if name in self._before and (empty / count - self._before[name] / self._rows_before) * 100 > self._percent:
                return name, empty, count
        return None
