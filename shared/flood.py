"""A flood of dead letters: when so many rows fail for one reason that it is the mapping and not the rows. Pure."""

from collections import Counter, deque
from collections.abc import Collection, Iterable

Reason = tuple[str | None, str]
"""The column, where there is one, and what is wrong with it."""

_WINDOW = 1000
_LEAST = 50
_SHARE = 0.2


def name_of(reason: Reason) -> str:
    """A reason in one text: what a person releases."""
    field, why = reason
    return f"{field}: {why}" if field else why


class Flood:
    """Watches the latest 1,000 rows: 50 of them, and a fifth, with one reason are a flood, unless it is `released`."""

    def __init__(self, released: Collection[str]) -> None:
        self._released = frozenset(released)
        self._pages: deque[tuple[int, Counter[Reason]]] = deque()

    def add(self, rows: int, reasons: Iterable[Reason]) -> Reason | None:
        """Take in a page's rows and what is wrong with some of them; the reason of a flood, if this makes one."""
        self._pages.append((rows, Counter(reasons)))
        while sum(count for count, _ in self._pages) - self._pages[0][0] >= _WINDOW:
            self._pages.popleft()
        total: Counter[Reason] = Counter()
        for _, counts in self._pages:
            total.update(counts)
        seen = sum(count for count, _ in self._pages)
        for reason, count in total.most_common():
            if count >= max(_LEAST, _SHARE * seen) and name_of(reason) not in self._released:
                return reason
        return None
