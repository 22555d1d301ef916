"""A flood of dead letters: when so many rows fail for one reason that it is the mapping and not the rows. Pure."""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping

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
    """Watches the latest 1,000 rows: 50 of them, and a fifth, with one reason are a flood, unless it is `released`.

    `rows` and `bad`, {name of the reason: count}, are what an earlier pass has left: the passes of a quiet sync are too
    short to judge by one of them.
    """

    def __init__(self, released: Collection[str], rows: int = 0, bad: Mapping[str, int] | None = None) -> None:
        self._released = frozenset(released)
        self._pages: deque[tuple[int, Counter[str]]] = deque([(rows, Counter(bad or {}))])

    def add(self, rows: int, reasons: Iterable[Reason]) -> str | None:
        """Take in a page's rows and what is wrong with some of them; the name of a flood's reason, if this is one."""
        self._pages.append((rows, Counter(map(name_of, reasons))))
        while sum(count for count, _ in self._pages) - self._pages[0][0] >= _WINDOW:
            self._pages.popleft()
        seen, total = self._sum()
        for name, count in total.most_common():
            if count >= max(_LEAST, _SHARE * seen) and name not in self._released:
                return name
        return None

    def latest(self) -> tuple[int, dict[str, int]]:
        """What the next pass goes on from: no more than 1,000 rows, and the bad ones among them by reason."""
        seen, total = self._sum()
        if seen > _WINDOW:
            total = Counter({name: count * _WINDOW // seen for name, count in total.items()})
        return min(seen, _WINDOW), {name: count for name, count in total.items() if count}

    def _sum(self) -> tuple[int, Counter[str]]:
        total: Counter[str] = Counter()
        for _, counts in self._pages:
            total.update(counts)
        return sum(count for count, _ in self._pages), total
