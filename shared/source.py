"""The connection to SQL Server: what it says of the views, and their rows in keyset order.

A pass asks SQL Server twice when nothing is new: `survey` (columns, clock and bound in one statement) and one query
for the rows. That query streams: each page is what `fetchmany` brings, and its last row's position is enough to go on
from there in a later pass, or after a lost connection.

Why no row is missed (facts from Microsoft's documentation of rowversion and MIN_ACTIVE_ROWVERSION):
- `row_version` is assigned by the statement, not at commit. Rows at or above MIN_ACTIVE_ROWVERSION() may still be
  joined by lower ones, so they wait for the next pass. A row that is updated while it is read moves above that bound.
- `updated_at` may be committed late. The mark therefore stays `lookback_seconds` behind the server's clock, and what
  lies between is read again and recognised (see passes).
"""

import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

import pyodbc
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from shared.errors import ConfigurationFault, CredentialFault, SourceUnavailable, ViewFault
from shared.settings import Settings
from shared.syncs import Kind, Sync
from shared.view import CHANGES, EVERYTHING, SCHEMA, SEGMENT, Column, Position, Survey, View, Within, position_of

# Pooled connections would keep old access tokens, and hide a server's restart from the retries.
pyodbc.pooling = False


@dataclass(frozen=True, slots=True)
class Page:
    """Rows in keyset order as `(cursor, key, *fields)`, and the position of the last.

    Unix seconds by SQL Server's clock: `read_at` is when the query began, so the values are no older; `fetched_at` when
    the page arrived.
    """

    rows: list[tuple[object, ...]]
    last: Position
    read_at: int
    fetched_at: int


# --- the connection ---------------------------------------------------------------------------------------------------

_SURVEY = """\
SELECT c.TABLE_NAME, c.COLUMN_NAME, c.DATA_TYPE, c.CHARACTER_MAXIMUM_LENGTH, c.NUMERIC_PRECISION, c.NUMERIC_SCALE,
 MIN_ACTIVE_ROWVERSION() AS bound, @@DBTS AS last_version, CONVERT(varchar(33), SYSUTCDATETIME(), 126) AS server_now,
 DB_NAME() AS database_name, CONVERT(nvarchar(128), SERVERPROPERTY('ServerName')) AS server_name,
 CONVERT(nvarchar(60), DATABASEPROPERTYEX(DB_NAME(), 'Updateability')) AS updateability
FROM INFORMATION_SCHEMA.COLUMNS AS c
WHERE c.TABLE_SCHEMA = ? AND c.TABLE_NAME IN (?, ?)
ORDER BY c.TABLE_NAME, c.ORDINAL_POSITION"""

_SEGMENTS = """\
SELECT c.TABLE_NAME, c.COLUMN_NAME, c.DATA_TYPE, c.CHARACTER_MAXIMUM_LENGTH, c.NUMERIC_PRECISION, c.NUMERIC_SCALE
FROM INFORMATION_SCHEMA.COLUMNS AS c
WHERE c.TABLE_SCHEMA = ? AND LEFT(c.TABLE_NAME, 8) = ?
ORDER BY c.TABLE_NAME, c.ORDINAL_POSITION"""

_LOGIN_TIMEOUT = 15  # seconds
_QUERY_TIMEOUT = 300  # seconds until the first row
_TRIES_WITHOUT_PROGRESS = 5

T = TypeVar("T")


class Source:
    """Reads one database. Not for use by several threads at once."""

    def __init__(self, settings: Settings, query_timeout: int = _QUERY_TIMEOUT) -> None:
        self._settings = settings
        self._query_timeout = query_timeout
        self._connection: pyodbc.Connection | None = None
        self._clock: Callable[[], float] = time.time

    def __enter__(self) -> "Source":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the server gives up a query that still runs."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(pyodbc.Error):
                connection.close()

    def now(self) -> int:
        """Unix seconds by SQL Server's clock, as the last survey told it.

        Not by this machine's: where workers' clocks differ, an attribute would be sent with an older time than before,
        and Customer.io would drop it.
        """
        return int(self._clock())

    def survey(self, sync: Sync) -> Survey:
        """Ask for the columns of the sync's views, the server's clock and the bound.

        Raises SourceUnavailable, CredentialFault, ConfigurationFault, or ViewFault where the view is missing.
        """
        views = [sync.view, CHANGES if sync.kind is Kind.PROFILE else sync.view]

        def ask() -> list[pyodbc.Row]:
            return list(self._connect().execute(_SURVEY, SCHEMA, *views).fetchall())

        rows = self._retrying(ask)
        columns: dict[str, list[Column]] = {}
        for view, name, kind, length, precision, scale, *_ in rows:
            columns.setdefault(view.lower(), []).append(Column(name, kind.lower(), length, precision, scale))
        if sync.view not in columns:
            raise ViewFault(
                f"The view {SCHEMA}.{sync.view} is missing in the database of SQL_CONNECTION_STRING, or the login may"
                f" not SELECT from it. Create it (reference views are in sql/), or grant SELECT on the schema {SCHEMA}."
            )
        bound, last, now, database, server, updateability = rows[0][6:]
        survey_at, server_at = time.monotonic(), datetime.fromisoformat(now).replace(tzinfo=UTC).timestamp()
        self._clock = lambda: server_at + time.monotonic() - survey_at
        return Survey(
            columns=columns,
            bound="0x" + bytes(bound).hex().upper(),
            last="0x" + bytes(last).hex().upper(),
            now=datetime.fromisoformat(now),
            server=server,
            database=database,
            read_only=updateability == "READ_ONLY",
        )

    def named(self, view: View, keys: Sequence[str]) -> Page | None:
        """The rows with these keys, 2,000 at most; None where there are none. Raises as `pages` does."""
        read_at = self.now()

        def ask() -> list[pyodbc.Row]:
            text, parameters = view.named(keys)
            return list(self._connect().execute(text, *parameters).fetchall())

        rows: list[tuple[object, ...]] = [tuple(row) for row in self._retrying(ask)]
        return Page(rows, position_of(rows[-1]), read_at, self.now()) if rows else None

    def pages(
        self,
        view: View,
        order: Literal["changed", "walk"],
        start: Position | None,
        bound: str | None = None,
        within: Within = EVERYTHING,
    ) -> Generator[Page, None, None]:
        """Stream the rows after `start`: those that changed below `bound`, or by key alone those `within` a selection.

        A connection that is lost, or a query that was a deadlock's victim, is taken up again after the last page that
        was handed out. Rows with one (cursor, key) are never parted by a page's end.
        Raises SourceUnavailable, CredentialFault or ViewFault.
        """
        position = start
        tries = 0
        while True:
            text, parameters = view.changed(position, bound) if order == "changed" else view.walk(position, within)
            read_at = self.now()
            try:
                cursor = self._connect().execute(text, *parameters)
                for page in _pages(cursor, self._settings.page_size, read_at, self.now):
                    tries = 0
                    position = page.last
                    yield page
                return
            except pyodbc.Error as error:
                self.close()
                tries += 1
                failure = _failure(error, view.name)
                if not isinstance(failure, _Passing):
                    raise failure from None
                if tries >= _TRIES_WITHOUT_PROGRESS or not failure.patience:
                    raise SourceUnavailable(str(failure)) from None
                time.sleep(max(2.0 ** (tries - 1), failure.pause))
            except UnicodeDecodeError:
                raise ViewFault(
                    f"The view {view.name} holds text that is not valid Unicode (half of a surrogate pair). Correct it,"
                    " or leave the column out of the view."
                ) from None

    def count(self, statement: tuple[str, list[object]]) -> int:
        """The number that a statement of a View asks for. Raises as `survey` does."""
        return int(self.rows(statement)[0][0])

    def rows(self, statement: tuple[str, list[object]]) -> list[tuple[Any, ...]]:
        """The rows that a statement of a View asks for, all at once. Raises as `survey` does."""
        text, parameters = statement

        def ask() -> list[tuple[Any, ...]]:
            return [tuple(row) for row in self._connect().execute(text, *parameters).fetchall()]

        return self._retrying(ask)

    def stream(self, statement: tuple[str, list[object]]) -> Iterator[list[pyodbc.Row]]:
        """The rows that a statement of a view asks for, a page at a time; a query that breaks off is not taken up.

        Raises as `survey` does.
        """
        text, parameters = statement
        cursor = self._retrying(lambda: self._connect().execute(text, *parameters))
        try:
            while rows := cursor.fetchmany(self._settings.page_size):
                yield rows
        except pyodbc.Error as error:
            self.close()
            failure = _failure(error, f"the schema {SCHEMA}")
            raise (SourceUnavailable(str(failure)) if isinstance(failure, _Passing) else failure) from None
        finally:
            with suppress(pyodbc.Error):
                cursor.close()

    def segments(self) -> dict[str, list[Column]]:
        """The columns of the views `retention.segment_<name>`, by that name in lower case. Raises as `survey` does."""
        columns: dict[str, list[Column]] = {}
        for view, name, kind, length, precision, scale in self.rows((_SEGMENTS, [SCHEMA, SEGMENT])):
            segment = view.lower().removeprefix(SEGMENT)
            columns.setdefault(segment, []).append(Column(name, kind.lower(), length, precision, scale))
        return columns

    def _connect(self) -> pyodbc.Connection:
        if self._connection is None:
            text = with_driver(self._settings.sql_connection_string.get_secret_value())

            def open_connection() -> pyodbc.Connection:
                return pyodbc.connect(text, timeout=_LOGIN_TIMEOUT, autocommit=True)

            self._connection = self._retrying(open_connection)
            self._connection.timeout = self._query_timeout
        return self._connection

    def _retrying(self, call: Callable[[], T]) -> T:
        def attempt() -> T:
            try:
                return call()
            except pyodbc.Error as error:
                self.close()
                raise _failure(error, f"the schema {SCHEMA}") from None

        def out_of_patience(state: RetryCallState) -> bool:
            failure = state.outcome.exception() if state.outcome else None
            return isinstance(failure, _Passing) and (state.seconds_since_start or 0) >= failure.patience

        try:
            return Retrying(
                retry=retry_if_exception_type(_Passing),
                wait=wait_exponential_jitter(multiplier=1, max=10),
                stop=out_of_patience,
                reraise=True,
            )(attempt)
        except _Passing as failure:
            raise SourceUnavailable(str(failure)) from None


def _pages(cursor: pyodbc.Cursor, size: int, read_at: int, now: Callable[[], int]) -> Iterator[Page]:
    """Cut what the cursor brings into pages that never end between rows of one (cursor, key)."""
    held: list[tuple[object, ...]] = []
    more = True
    while more:
        fetched = cursor.fetchmany(size)
        more = len(fetched) == size
        rows = held + fetched
        end = len(rows)
        if more:
            # a row without a key is held for nobody: any number of them may share a cursor
            while end and rows[-1][1] is not None and _place(rows[end - 1]) == _place(rows[-1]):
                end -= 1
        held = rows[end:]
        if end:
            yield Page(rows[:end], position_of(rows[end - 1]), read_at, now())


def _place(row: Sequence[object]) -> tuple[object, object]:
    """Cursor and key as SQL Server compares them: `=` does not see trailing blanks."""
    return row[0], row[1].rstrip() if isinstance(row[1], str) else row[1]


# --- what SQL Server's errors mean ------------------------------------------------------------------------------------


class _Passing(Exception):
    """A failure that may pass: tried again for `patience` seconds, after at least `pause` seconds."""

    def __init__(self, message: str, patience: float, pause: float = 0.0) -> None:
        super().__init__(message)
        self.patience = patience
        self.pause = pause


# Numbers that Microsoft's SqlClient retries, and those of a lost connection.
_TRANSIENT = frozenset(
    {64, 233, 997, 1204, 1205, 1222, 4221, 10053, 10054, 10060, 10061, 10928, 10929, 40143, 40197, 40501, 40540, 40613}
    | {42108, 42109, 49918, 49919, 49920}
)
_TRANSIENT_STATES = ("08", "40001", "HYT00", "HYT01")
_NUMBER = re.compile(r"\((\d+)\) \(SQL")
_QUOTED_NAME = re.compile(r"Invalid (?:object|column) name '([^']{1,256})'")


def _failure(error: pyodbc.Error, view: str) -> Exception:
    """A pyodbc error as one of ours. The server's words may quote a row's values, so only names are taken from them."""
    state, text = str(error.args[0]) if error.args else "", str(error.args[-1]) if error.args else ""
    numbers = _NUMBER.findall(text)
    number = int(numbers[-1]) if numbers else 0
    code = f"SQL Server error {number}" if number else f"SQLSTATE {state}"
    name = match.group(1) if (match := _QUOTED_NAME.search(text)) else ""
    if number == 18456 or state == "28000":
        return CredentialFault(
            "SQL Server refuses the login of SQL_CONNECTION_STRING (18456). Correct UID and PWD, or grant the managed"
            " identity access to the database."
        )
    if number == 4060:
        # also said for some seconds while a database is being moved
        return _Passing("SQL Server cannot open the Database that SQL_CONNECTION_STRING names (4060). Correct it.", 10)
    if state in ("IM002", "IM003") or "Can't open lib" in text:
        return ConfigurationFault(
            "SQL_CONNECTION_STRING names an ODBC driver that this machine does not have. Leave Driver out to use the"
            " newest one that is installed."
        )
    if "certificate" in text.lower():
        return ConfigurationFault(
            "The certificate of the server in SQL_CONNECTION_STRING is not trusted. Use the server's full name, or"
            " install a certificate that this machine trusts."
        )
    if number == 208:
        return ViewFault(f"{view} needs the object {name}, which does not exist in the database. Create it. (208)")
    if number == 207:
        return ViewFault(f"{view} needs the column {name}, which no longer exists. Refresh or correct the view. (207)")
    if number in (229, 230):
        return ViewFault(
            f"The login of SQL_CONNECTION_STRING may not read {view}. Grant SELECT on the schema {SCHEMA}."
        )
    if state == "HYT00" and view != f"the schema {SCHEMA}":
        return _Passing(f"Reading {view} took longer than {_QUERY_TIMEOUT} seconds to begin. Give it an index.", 0)
    if number in _TRANSIENT or state.startswith(_TRANSIENT_STATES):
        if number in _TRANSIENT - {64, 233, 10053, 10054, 10060, 10061}:
            # a serverless database takes up to a minute to wake (40613); 40501 asks for ten seconds
            return _Passing(f"SQL Server is not available at the moment ({code}).", 90, 10 if number == 40501 else 0)
        return _Passing(
            f"The Server of SQL_CONNECTION_STRING cannot be reached ({code}). Check its name, port and firewall.",
            10,
        )
    return ViewFault(
        f"Reading {view} fails with {code}. Run SELECT * FROM the view in SQL Server to see the row and column;"
        " a division by zero or a failing conversion belongs into a CASE or TRY_CONVERT there."
    )


def with_driver(connection_string: str) -> str:
    """The connection string with the newest installed Microsoft driver, where it names none.

    Raises ConfigurationFault where none is installed.
    """
    if re.search(r"(?i)(^|;)\s*driver\s*=", connection_string):
        return connection_string
    drivers = [name for name in pyodbc.drivers() if re.fullmatch(r"ODBC Driver \d+ for SQL Server", name)]
    if not drivers:
        raise ConfigurationFault(
            "No Microsoft ODBC Driver for SQL Server is installed on this machine. Install ODBC Driver 18, or name one"
            " by Driver= in SQL_CONNECTION_STRING."
        )
    return f"Driver={{{max(drivers, key=lambda name: int(name.split()[2]))}}};{connection_string}"
