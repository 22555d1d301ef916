"""The one place that knows SQL: what a view holds, and its rows in keyset order.

A pass asks SQL Server twice when nothing is new: `survey` (columns, clock and bound in one statement) and one query
for the rows. That query streams: each page is what `fetchmany` brings, and its last row's position is enough to go on
from there in a later pass, or after a lost connection.

Why no row is missed (facts from Microsoft's documentation of rowversion and MIN_ACTIVE_ROWVERSION):
- `row_version` is assigned by the statement, not at commit. Rows at or above MIN_ACTIVE_ROWVERSION() may still be
  joined by lower ones, so they wait for the next pass. A row that is updated while it is read moves above that bound.
- `updated_at` may be committed late. The mark therefore stays `lookback_seconds` behind the server's clock, and what
  lies between is read again and recognised (see passes).
- Ties are paged by (cursor, key); text keys by their code points, since the default collation calls 'a' and 'A' equal.
"""

import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Literal, TypeVar, cast
from zoneinfo import ZoneInfo

import pyodbc
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential_jitter

from shared.errors import ConfigurationFault, CredentialFault, SourceUnavailable, ViewFault
from shared.settings import Settings
from shared.syncs import Kind, Sync

SCHEMA = "retention"
CHANGES = "customer_changes"

# Pooled connections would keep old access tokens, and hide a server's restart from the retries.
pyodbc.pooling = False


@dataclass(frozen=True, slots=True)
class Column:
    """A column as INFORMATION_SCHEMA describes it: `type` is SQL Server's name, `length` -1 for max."""

    name: str
    type: str
    length: int | None = None
    precision: int | None = None
    scale: int | None = None


@dataclass(frozen=True, slots=True)
class Survey:
    """What one statement tells about the server and the views: the start of every pass.

    `bound` is MIN_ACTIVE_ROWVERSION() and `last` is @@DBTS, the last row version given out, as `0x` and 16 hex digits:
    as long as a transaction that writes is open, `bound` stays at or below `last`. `now` is the server's UTC clock.
    """

    columns: Mapping[str, Sequence[Column]]
    bound: str
    last: str
    now: datetime
    server: str
    database: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Position:
    """How far a view was read: everything up to and including (cursor, key), as the server's own literals.

    `key` None means that nothing at `cursor` itself was read. `cursor` None belongs to a walk by key alone.
    """

    cursor: str | None
    key: str | None


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


# --- what SQL Server's types become -----------------------------------------------------------------------------------


class Form(StrEnum):
    """The form in which a column's values arrive: times as unix seconds, decimals as float. mapping checks by it."""

    TEXT = "text"
    WHOLE = "whole"
    LONG = "long"
    DECIMAL = "decimal"
    NUMBER = "number"
    SINGLE = "single"
    FLAG = "flag"
    WALL_TIME = "wall time"
    INSTANT = "instant"


_EPOCH = "CAST('1970-01-01' AS datetime2(0))"


def _selection(column: Column, name: str) -> tuple[str, Form] | None:
    """The expression that fetches `name` in the form in which it is sent, and what it then is. None: unsupported.

    Conversion in the SELECT costs Python nothing; a Decimal or a datetime object would.
    """
    match column.type:
        case "tinyint" | "smallint" | "int":
            return name, Form.WHOLE
        case "bigint":
            return name, Form.LONG
        case "bit":
            return name, Form.FLAG
        case "decimal" | "numeric" if _is_whole(column):
            return f"CAST({name} AS bigint)", Form.LONG
        case "decimal" | "numeric" if column.scale == 0:
            return f"CAST({name} AS varchar(40))", Form.LONG
        case "decimal" | "numeric" | "money" | "smallmoney":
            return f"CAST({name} AS float)", Form.DECIMAL
        case "real":
            return f"CAST({name} AS float)", Form.SINGLE
        case "float":
            return name, Form.NUMBER
        case "date" | "datetime" | "datetime2" | "smalldatetime":
            return f"DATEDIFF_BIG(second, {_EPOCH}, {name})", Form.WALL_TIME
        case "datetimeoffset":
            return f"DATEDIFF_BIG(second, {_EPOCH}, CAST(SWITCHOFFSET({name}, '+00:00') AS datetime2(7)))", Form.INSTANT
        case "uniqueidentifier":
            return f"LOWER(CONVERT(char(36), {name}))", Form.TEXT
        case "varchar":
            # as nvarchar, because the driver hands out varchar in the process's locale
            return f"CAST({name} AS {_as_nvarchar(column)})", Form.TEXT
        case "nvarchar":
            return name, Form.TEXT
        case "char" | "nchar":
            return f"RTRIM(CAST({name} AS {_as_nvarchar(column)}))", Form.TEXT
        case "time":
            return f"CONVERT(varchar(8), {name}, 108)", Form.TEXT
    return None


def _as_nvarchar(column: Column) -> str:
    fits = column.length is not None and 0 < column.length <= 4000
    return f"nvarchar({column.length if fits else 'max'})"


def _is_whole(column: Column) -> bool:
    return column.scale == 0 and (column.precision or 38) <= 18


def quote(name: str) -> str:
    """A name as a T-SQL identifier."""
    return "[" + name.replace("]", "]]") + "]"


def position_of(row: Sequence[object]) -> Position:
    """The position of a row `(cursor, key, ...)`, as the server's own literals."""
    cursor, key = row[0], row[1]
    literal = "0x" + cursor.hex().upper() if isinstance(cursor, bytes) else cast("str | None", cursor)
    return Position(literal, None if key is None else str(key))


_A_TIME = ((Form.WALL_TIME, Form.INSTANT), "datetime2 or another date with time")
_A_TEXT = ((Form.TEXT,), "text")

# The columns that a view of each kind needs beside its cursor: ids, and those that must be of a certain form.
_IDS = {
    Kind.PROFILE: ("customer_id",),
    Kind.EVENT: ("event_id", "customer_id"),
    Kind.MERGE: ("merge_id", "primary_customer_id"),
    Kind.REMOVAL: ("removal_id", "customer_id"),
}
_FORMS: dict[Kind, dict[str, tuple[tuple[Form, ...], str]]] = {
    Kind.PROFILE: {},
    Kind.EVENT: {"event_name": _A_TEXT, "event_time": _A_TIME},
    Kind.MERGE: {"merged_at": _A_TIME},
    Kind.REMOVAL: {"action": _A_TEXT, "removed_at": _A_TIME},
}


def contract_columns(kind: Kind) -> tuple[str, ...]:
    """The columns, cursor aside, without which a view of this kind cannot be read."""
    return (*_IDS[kind], *_FORMS[kind])


# --- a view under the contract ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Field:
    """A column as it is read from the view; `scale` is the number of decimals of Form.DECIMAL."""

    name: str
    form: Form
    expression: str
    scale: int = 0


class View:
    """A view that keeps the contract: its key, cursor and fields, and the statements that read it.

    The contract's own columns are found whatever their case; every other column keeps its name as it is.
    Raises ViewFault where the view breaks the contract.
    """

    def __init__(self, sync: Sync, survey: Survey, settings: Settings) -> None:
        self.sync = sync
        self.name = f"{SCHEMA}.{sync.view}"
        self._table = f"{quote(SCHEMA)}.{quote(sync.view)}"
        columns = {column.name.lower(): column for column in survey.columns[sync.view]}
        for name in contract_columns(sync.kind):
            if name not in columns:
                raise ViewFault(f"The view {self.name} has no column {name}. Add it: every {sync.kind} view needs it.")
        if sync.kind is Kind.MERGE and not {"secondary_customer_id", "secondary_email"} & columns.keys():
            raise ViewFault(
                f"The view {self.name} has neither secondary_customer_id nor secondary_email. Add the one there is."
            )
        self._key = columns[sync.key]
        self._key_type = self._require_key(self._key)
        for name in _IDS[sync.kind]:
            self._require_key(columns[name])

        changes = {column.name.lower(): column for column in survey.columns.get(CHANGES, ())}
        self._feed = self._table
        self._feed_key = self._key.name
        if sync.kind is Kind.PROFILE and changes:
            self._feed = f"{quote(SCHEMA)}.{quote(CHANGES)}"
            self.cursor = self._find_cursor(changes, f"{SCHEMA}.{CHANGES}")
            if "customer_id" not in changes:
                raise ViewFault(f"The view {SCHEMA}.{CHANGES} has no column customer_id. Add it.")
            self._feed_key = changes["customer_id"].name
            if self._require_key(changes["customer_id"]).split("(")[0] != self._key_type.split("(")[0]:
                raise ViewFault(
                    f"customer_id is {changes['customer_id'].type} in {SCHEMA}.{CHANGES} and {self._key.type} in"
                    f" {self.name}. Give both views the same type."
                )
        else:
            self.cursor = self._find_cursor(columns, self.name)
        self.by_row_version = self.cursor.type in ("timestamp", "binary", "varbinary")
        if self.by_row_version and survey.read_only:
            raise ConfigurationFault(
                f"SQL_CONNECTION_STRING reaches a read-only replica of {survey.database}. A replica does not know the"
                f" open transactions of the primary, so {self.name} cannot be read by row_version there: name the"
                " primary, without ApplicationIntent=ReadOnly."
            )
        self._zone = ZoneInfo(settings.sql_time_zone)
        self._types = {column.name: column.type for column in columns.values()}
        self.fields = tuple(
            self._field(column)
            for name, column in columns.items()
            if name != "row_version" and not (self._feed == self._table and name == self.cursor.name.lower())
        )
        for field in self.fields:
            forms, what = _FORMS[sync.kind].get(field.name.lower(), ((), ""))
            if forms and field.form not in forms:
                raise ViewFault(
                    f"Column {field.name} of {self.name} is {columns[field.name.lower()].type}; it must be {what}."
                    " Convert it in the view."
                )

    def _require_key(self, column: Column) -> str:
        """The type to which a key's literal is cast. Raises ViewFault for what cannot be a key."""
        match column.type:
            case "tinyint" | "smallint" | "int" | "bigint" | "uniqueidentifier":
                return column.type
            case "decimal" | "numeric" if _is_whole(column):
                return f"decimal({column.precision}, 0)"
            case "char" | "varchar" | "nchar" | "nvarchar":
                return _as_nvarchar(column)
        raise ViewFault(
            f"Column {column.name} of {self.name} is {column.type}; an id must be a whole number, text or"
            " uniqueidentifier. Convert it in the view."
        )

    def _find_cursor(self, columns: dict[str, Column], view: str) -> Column:
        if column := columns.get("row_version"):
            if column.type in ("timestamp", "binary", "varbinary"):
                return column
            raise ViewFault(f"Column row_version of {view} is {column.type}; it must be a rowversion or binary(8).")
        if column := columns.get("updated_at"):
            if column.type in ("datetime", "datetime2", "smalldatetime", "datetimeoffset"):
                return column
            raise ViewFault(
                f"Column updated_at of {view} is {column.type}; it must be datetime2 or another date with time."
            )
        raise ViewFault(f"The view {view} has no cursor column. Add row_version (binary(8)) or updated_at (datetime2).")

    def _field(self, column: Column) -> Field:
        selection = _selection(column, f"v.{quote(column.name)}")
        if selection is None:
            kind = "rowversion" if column.type == "timestamp" else column.type
            raise ViewFault(
                f"Column {column.name} of {self.name} is {kind}, which Customer.io cannot hold."
                " Leave it out of the view, or convert it there."
            )
        expression, form = selection
        scale = 4 if "money" in column.type else column.scale or 0
        return Field(column.name, form, expression, scale)

    def field_type(self, field: Field) -> str:
        """SQL Server's name of a field's type."""
        return self._types[field.name]

    @property
    def feed(self) -> str:
        """The view that the cursor is in: this one, or retention.customer_changes."""
        return self.name if self._feed == self._table else f"{SCHEMA}.{CHANGES}"

    @property
    def strategy(self) -> str:
        """The name of the cursor's strategy: row_version or updated_at."""
        return "row_version" if self.by_row_version else "updated_at"

    def horizon(self, survey: Survey, lookback_seconds: int) -> str:
        """The cursor below which no transaction is open: MIN_ACTIVE_ROWVERSION(), or the clock less the lookback."""
        if self.by_row_version:
            return survey.bound
        return self.cursor_at(survey.now - timedelta(seconds=lookback_seconds))

    def cursor_at(self, moment: datetime) -> str:
        """A moment in UTC as a literal of `updated_at`."""
        if self.cursor.type != "datetimeoffset":
            moment = moment.replace(tzinfo=ZoneInfo("UTC")).astimezone(self._zone).replace(tzinfo=None)
        return moment.isoformat(timespec="microseconds")

    def before_clock_change(self, cursor: str, survey: Survey) -> str | None:
        """Where to start when the clock of `updated_at` was put back since the mark: earlier by as much. Else None.

        Times without a zone come twice in the hour after summer time ends, and the mark may stand at the first of them.
        """
        if self.by_row_version or self.cursor.type == "datetimeoffset":
            return None
        moment = datetime.fromisoformat(cursor[:26]).replace(tzinfo=self._zone)
        now = survey.now.replace(tzinfo=ZoneInfo("UTC")).astimezone(self._zone)
        back = cast("timedelta", moment.utcoffset()) - cast("timedelta", now.utcoffset())
        if back <= timedelta(0) or now.replace(tzinfo=None) - moment.replace(tzinfo=None) > timedelta(days=1):
            return None
        return (moment.replace(tzinfo=None) - back).isoformat(timespec="microseconds")

    # Statements. Every literal is a parameter, cast to a type of ours: pyodbc sends every text as nvarchar.

    def changed(self, start: Position | None, bound: str | None) -> tuple[str, list[object]]:
        """The rows after `start` in order of (cursor, key), and below `bound` where there is one."""
        profile = self.sync.kind is Kind.PROFILE
        feed = "h" if profile else "v"
        cursor, key = f"{feed}.{quote(self.cursor.name)}", f"{feed}.{quote(self._feed_key)}"
        where, parameters = self._between(cursor, key, start, bound)
        rows = f"{self._feed} AS {feed} WHERE {where}"
        if profile:
            # One row per changed person, whatever the number of changes, and both where an id stands twice in the view.
            rows = (
                f"(SELECT {key} AS change_key, MAX({cursor}) AS change_cursor FROM {rows} GROUP BY {key}) AS h"
                f" LEFT JOIN {self._table} AS v ON v.{quote(self._key.name)} = h.change_key"
            )
            cursor, key = "h.change_cursor", "h.change_key"
        return self._select(self._fetched_cursor(cursor), key, rows, f"{cursor}, {self._exact(key)}"), parameters

    def walk(self, start: Position | None) -> tuple[str, list[object]]:
        """Every row of the view after `start` by key alone: the first pass of a profile sync."""
        key = f"v.{quote(self._key.name)}"
        cursor = self._fetched_cursor(f"v.{quote(self.cursor.name)}") if self._feed == self._table else "NULL"
        rows = f"{self._table} AS v"
        parameters: list[object] = []
        if start and start.key is not None:
            rows += f" WHERE {self._exact(key)} > {self._key_parameter}"
            parameters.append(start.key)
        return self._select(cursor, key, rows, self._exact(key)), parameters

    def named(self, keys: Sequence[str]) -> tuple[str, list[object]]:
        """The rows with these keys (2,000 at most: SQL Server takes 2,100 parameters), whatever their cursor."""
        key = f"v.{quote(self._key.name)}"
        cursor = self._fetched_cursor(f"v.{quote(self.cursor.name)}") if self._feed == self._table else "NULL"
        wanted = ", ".join([self._key_parameter] * len(keys))
        rows = f"{self._table} AS v WHERE {self._exact(key)} IN ({wanted})"
        return self._select(cursor, key, rows, self._exact(key)), list(keys)

    def _between(self, cursor: str, key: str, start: Position | None, bound: str | None) -> tuple[str, list[object]]:
        where = [f"{cursor} IS NOT NULL"]
        parameters: list[object] = []
        if start and start.cursor is not None:
            where.append(f"{cursor} >= {self._cursor_parameter}")
            parameters.append(self._cursor_value(start.cursor))
            if start.key is not None:
                where.append(f"({cursor} > {self._cursor_parameter} OR {self._exact(key)} > {self._key_parameter})")
                parameters += [self._cursor_value(start.cursor), start.key]
        if bound is not None:
            where.append(f"{cursor} < {self._cursor_parameter}")
            parameters.append(self._cursor_value(bound))
        return " AND ".join(where), parameters

    def count_changed(self, start: Position | None, bound: str | None) -> tuple[str, list[object]]:
        """How many keys `changed` has rows for."""
        key = f"h.{quote(self._feed_key)}"
        where, parameters = self._between(f"h.{quote(self.cursor.name)}", key, start, bound)
        return f"SELECT COUNT(DISTINCT {self._exact(key)}) FROM {self._feed} AS h WHERE {where}", parameters

    def count_all(self) -> tuple[str, list[object]]:
        """How many rows the view has. Its one-row joins cost nothing: SQL Server leaves out what no count needs."""
        return f"SELECT COUNT(*) FROM {self._table} AS v", []

    def without_cursor(self) -> tuple[str, list[object]]:
        """How many rows no pass will ever read, because their cursor is NULL."""
        return f"SELECT COUNT(*) FROM {self._feed} AS h WHERE h.{quote(self.cursor.name)} IS NULL", []

    def _select(self, cursor: str, key: str, rows: str, order: str) -> str:
        fetched_key, _ = cast("tuple[str, Form]", _selection(self._key, key))
        fields = ", ".join(field.expression for field in self.fields)
        return f"SELECT {cursor}, {fetched_key}, {fields} FROM {rows} ORDER BY {order}"

    def _exact(self, expression: str) -> str:
        """A text key by its code points. As nvarchar first: COLLATE would take a varchar to another code page."""
        if "nvarchar" not in self._key_type:
            return expression
        return f"CAST({expression} AS {self._key_type}) COLLATE Latin1_General_100_BIN2"

    @property
    def _key_parameter(self) -> str:
        return self._exact("?") if "nvarchar" in self._key_type else f"CAST(? AS {self._key_type})"

    def _fetched_cursor(self, expression: str) -> str:
        if self.by_row_version:
            return expression
        if self.cursor.type == "datetimeoffset":
            expression = f"CAST(SWITCHOFFSET({expression}, '+00:00') AS datetime2(7))"
        return f"CONVERT(varchar(33), {expression}, 126)"

    @property
    def _cursor_parameter(self) -> str:
        if self.by_row_version:
            return "CAST(? AS binary(8))"
        return f"CAST(? AS {self.cursor.type}{'(7)' if self.cursor.type in ('datetime2', 'datetimeoffset') else ''})"

    def _cursor_value(self, literal: str) -> object:
        """The literal in the form that the cursor's type accepts: datetime has three decimals, smalldatetime none."""
        if self.by_row_version:
            return bytes.fromhex(literal.removeprefix("0x"))
        match self.cursor.type:
            case "datetimeoffset":
                return literal + "+00:00"
            case "datetime":
                return literal[:23]
            case "smalldatetime":
                return literal[:19]
        return literal


# --- the connection ---------------------------------------------------------------------------------------------------

_SURVEY = """\
SELECT c.TABLE_NAME, c.COLUMN_NAME, c.DATA_TYPE, c.CHARACTER_MAXIMUM_LENGTH, c.NUMERIC_PRECISION, c.NUMERIC_SCALE,
 MIN_ACTIVE_ROWVERSION() AS bound, @@DBTS AS last_version, CONVERT(varchar(33), SYSUTCDATETIME(), 126) AS server_now,
 DB_NAME() AS database_name, CONVERT(nvarchar(128), SERVERPROPERTY('ServerName')) AS server_name,
 CONVERT(nvarchar(60), DATABASEPROPERTYEX(DB_NAME(), 'Updateability')) AS updateability
FROM INFORMATION_SCHEMA.COLUMNS AS c
WHERE c.TABLE_SCHEMA = ? AND c.TABLE_NAME IN (?, ?)
ORDER BY c.TABLE_NAME, c.ORDINAL_POSITION"""

_LOGIN_TIMEOUT = 15  # seconds
_QUERY_TIMEOUT = 300  # seconds until the first row
_TRIES_WITHOUT_PROGRESS = 5

T = TypeVar("T")


class Source:
    """Reads one database. Not for use by several threads at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
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
        self, view: View, order: Literal["changed", "walk"], start: Position | None, bound: str | None
    ) -> Generator[Page, None, None]:
        """Stream the rows after `start`.

        A connection that is lost, or a query that was a deadlock's victim, is taken up again after the last page that
        was handed out. Rows with one (cursor, key) are never parted by a page's end.
        Raises SourceUnavailable, CredentialFault or ViewFault.
        """
        position = start
        tries = 0
        while True:
            text, parameters = view.changed(position, bound) if order == "changed" else view.walk(position)
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
        text, parameters = statement

        def ask() -> int:
            return int(self._connect().execute(text, *parameters).fetchval())

        return self._retrying(ask)

    def _connect(self) -> pyodbc.Connection:
        if self._connection is None:
            text = _with_driver(self._settings.sql_connection_string.get_secret_value())

            def open_connection() -> pyodbc.Connection:
                return pyodbc.connect(text, timeout=_LOGIN_TIMEOUT, autocommit=True)

            self._connection = self._retrying(open_connection)
            self._connection.timeout = _QUERY_TIMEOUT
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


def _with_driver(connection_string: str) -> str:
    """The connection string with the newest installed Microsoft driver, where it names none."""
    if re.search(r"(?i)(^|;)\s*driver\s*=", connection_string):
        return connection_string
    drivers = [name for name in pyodbc.drivers() if re.fullmatch(r"ODBC Driver \d+ for SQL Server", name)]
    if not drivers:
        raise ConfigurationFault(
            "No Microsoft ODBC Driver for SQL Server is installed on this machine. Install ODBC Driver 18, or name one"
            " by Driver= in SQL_CONNECTION_STRING."
        )
    return f"Driver={{{max(drivers, key=lambda name: int(name.split()[2]))}}};{connection_string}"
