"""Faults on request, which no real server has: what a database's connections meet instead of a plain answer.

    EXEC sp_standin_faults N'database', N'[{"error": 1205, "containing": "retention", "after_rows": 150, "every": 3}]'
    EXEC sp_standin_clock N'database', -300
    EXEC sp_standin_permissions N'database', N'["SELECT ON SCHEMA::retention", "SELECT ON OBJECT::shop.orders"]'

The first replaces the faults of a database, the second moves its clock, by seconds, the third says what
HAS_PERMS_BY_NAME tells there, everything for `null`. Each answers with one row: how often faults have struck there so
far. They belong into a batch without parameters, on a connection to any database.

A fault is an object; the first of the list that strikes is the one that counts:
- `at`: "statement" (the default) or "login"
- `containing`: of statements, only those with this text
- `every`: n, each n-th that it is about (default 1); `times`: it ends after so many (default: never)
- `after_rows`: of a statement with a result, after so many rows (default 0)
- `error`: the number of the error that is answered, 1205 or 40613; without it the connection is lost
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .engine import Outcome
from .errors import SqlError
from .sqltypes import make
from .wire import column

_COMMAND = re.compile(
    r"\s*EXEC\s+sp_standin_(faults|clock|permissions)\s+N?'([^']*)'\s*,\s*(?:N?'(.*)'|(-?\d+))\s*;?\s*", re.S | re.I
)
_ERRORS = {
    1205: (
        "Transaction was deadlocked on lock resources with another process and has been chosen as the deadlock victim."
        " Rerun the transaction.",
        13,
    ),
    40613: ("The database is not currently available. Please retry the connection later.", 17),
}


@dataclass(slots=True)
class Fault:
    """One fault of a database. Raises TypeError for a key that does not exist and ValueError for an unknown error."""

    at: str = "statement"
    containing: str = ""
    every: int = 1
    times: float = float("inf")
    after_rows: int = 0
    error: int | None = None
    seen: int = 0

    def __post_init__(self) -> None:
        if self.error is not None and self.error not in _ERRORS:
            raise ValueError(f"the error of a fault is one of {', '.join(map(str, _ERRORS))}")

    def strikes(self, at: str, text: str) -> bool:
        """Whether it strikes here; counts what it is about."""
        if at != self.at or self.containing not in text or self.times <= 0:
            return False
        self.seen += 1
        if self.seen % self.every:
            return False
        self.times -= 1
        return True

    def failure(self) -> Exception:
        """What is raised in the place of an answer; ConnectionError: the connection is lost."""
        if self.error is None:
            return ConnectionResetError()
        message, severity = _ERRORS[self.error]
        return SqlError(self.error, message, severity)


class Faults:
    """The faults of all databases; called by the threads of all connections."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_database: dict[str, list[Fault]] = {}
        self._struck: dict[str, int] = {}
        self.clocks: dict[str, int] = {}
        self.permissions: dict[str, list[str]] = {}

    def find(self, database: str, at: str, text: str = "") -> Fault | None:
        """The fault that a login or a statement meets, if any."""
        with self._lock:
            for fault in self._by_database.get(database.lower(), ()):
                if fault.strikes(at, text):
                    self._struck[database.lower()] = self._struck.get(database.lower(), 0) + 1
                    return fault
        return None

    def command(self, text: str) -> Iterator[Outcome] | None:
        """Runs a batch that is one of these commands. None for every other. Raises SqlError for a bad one."""
        if (match := _COMMAND.fullmatch(text)) is None:
            return None
        what, database, faults, seconds = match[1].lower(), match[2].lower(), match[3], match[4]
        try:
            with self._lock:
                if what == "faults":
                    self._by_database[database] = [Fault(**one) for one in json.loads(faults.replace("''", "'"))]
                elif what == "clock":
                    self.clocks[database] = int(seconds)
                elif (granted := json.loads(faults.replace("''", "'"))) is None:
                    self.permissions.pop(database, None)
                else:
                    self.permissions[database] = [str(one).lower() for one in granted]
        except (TypeError, ValueError, AttributeError) as error:
            raise SqlError(102, f"Incorrect syntax of sp_standin_{what}: {error}") from None
        return iter([_one_row(self._struck.get(database, 0))])


def _one_row(count: int) -> Outcome:
    return Outcome(columns=[column("struck", make("int"))], chunks=iter([[(count,)]]), command=0xC1)


def struck(fault: Fault, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """What a statement that meets the fault still gives."""
    for outcome in outcomes:
        if outcome.chunks is None:
            break
        yield replace(outcome, chunks=_cut(outcome.chunks, fault))
    raise fault.failure()


def _cut(chunks: Iterable[list[tuple[Any, ...]]], fault: Fault) -> Iterator[list[tuple[Any, ...]]]:
    left = fault.after_rows
    for chunk in chunks:
        if len(chunk) > left:
            if left:
                yield chunk[:left]
            raise fault.failure()
        left -= len(chunk)
        yield chunk
