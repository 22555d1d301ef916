"""A view under the contract: its columns, its key and cursor, and the statements that read it. Pure: text, no I/O.

Ties are paged by (cursor, key); text keys by their code points, since the default collation calls 'a' and 'A' equal.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple, cast
from zoneinfo import ZoneInfo

from shared.errors import ConfigurationFault, ViewFault
from shared.settings import Settings
from shared.syncs import Kind, Sync

SCHEMA = "retention"
CHANGES = "customer_changes"
SEGMENT = "segment_"
"""What the names of the views begin with that say who belongs to a segment."""

STRATA = 20
"""A column with more different values than these does not part people into strata."""


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
class Within:
    """Which rows of a view are meant. Each part that is left out is no limit.

    `after` and `upto` are keys: the rows beyond the first, up to and with the second. `since` and `until` are moments
    as the server's own literals (see View.moment): from the first on, before the second. `people` are customer ids,
    2,000 at most. Rows without a key, or without a moment, belong to where the range has no lower end.
    """

    after: str | None = None
    upto: str | None = None
    since: str | None = None
    until: str | None = None
    people: Sequence[str] = ()


EVERYTHING = Within()


class Tally(NamedTuple):
    """Of a view the rows, those with a key, the different keys by code points and as SQL Server compares, those with
    the (last) id of a person; of events those with a time, those at midnight, and the newest time as it is fetched."""

    rows: int
    keyed: int
    keys: int
    alike: int
    of_person: int
    timed: int = 0
    midnight: int | None = None
    newest: int | None = None


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


def _type_of_key(column: Column, view: str) -> str:
    """The type to which a key's literal is cast. Raises ViewFault for what cannot be a key."""
    match column.type:
        case "tinyint" | "smallint" | "int" | "bigint" | "uniqueidentifier":
            return column.type
        case "decimal" | "numeric" if _is_whole(column):
            return f"decimal({column.precision}, 0)"
        case "char" | "varchar" | "nchar" | "nvarchar":
            return _as_nvarchar(column)
    raise ViewFault(
        f"Column {column.name} of {view} is {column.type}; an id must be a whole number, text or uniqueidentifier."
        " Convert it in the view."
    )


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
        columns = self._columns = {column.name.lower(): column for column in survey.columns[sync.view]}
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
        self.moment = columns.get("event_time" if sync.kind is Kind.EVENT else "updated_at")
        """The column that `since` and `until` are about, where there is one."""

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
        return _type_of_key(column, self.name)

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
        return self._literal(self.cursor, moment)

    def time_of(self, cursor: str) -> datetime:
        """The moment of a literal of `updated_at`: the inverse of `cursor_at`."""
        zone = ZoneInfo("UTC") if self.cursor.type == "datetimeoffset" else self._zone
        return datetime.fromisoformat(cursor[:26]).replace(tzinfo=zone)

    def moment_at(self, moment: datetime) -> str:
        """A moment in UTC as a literal of the column `moment`."""
        return self._literal(cast("Column", self.moment), moment)

    def _literal(self, column: Column, moment: datetime) -> str:
        if column.type != "datetimeoffset":
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

    def walk(self, start: Position | None, within: Within = EVERYTHING) -> tuple[str, list[object]]:
        """Every row of the view after `start` by key alone, or those that are meant of them."""
        key = f"v.{quote(self._key.name)}"
        cursor = self._fetched_cursor(f"v.{quote(self.cursor.name)}") if self._feed == self._table else "NULL"
        where, parameters = self._within(within)
        if start and start.key is not None:
            where.append(f"{self._exact(key)} > {self._key_parameter}")
            parameters.append(start.key)
        return self._select(cursor, key, self._rows(where), self._exact(key)), parameters

    def named(self, keys: Sequence[str]) -> tuple[str, list[object]]:
        """The rows with these keys (2,000 at most: SQL Server takes 2,100 parameters), whatever their cursor."""
        key = f"v.{quote(self._key.name)}"
        cursor = self._fetched_cursor(f"v.{quote(self.cursor.name)}") if self._feed == self._table else "NULL"
        wanted = ", ".join([self._key_parameter] * len(keys))
        rows = f"{self._table} AS v WHERE {self._exact(key)} IN ({wanted})"
        return self._select(cursor, key, rows, self._exact(key)), list(keys)

    def changed_of(self, keys: Sequence[str], start: Position | None) -> tuple[str, list[object]]:
        """Which of these keys (2,000 at most) have changed after `start`."""
        key = f"h.{quote(self._feed_key)}"
        fetched, _ = cast("tuple[str, Form]", _selection(self._key, key))
        where, parameters = self._between(f"h.{quote(self.cursor.name)}", key, start, None)
        where += f" AND {self._exact(key)} IN ({', '.join([self._key_parameter] * len(keys))})"
        return f"SELECT DISTINCT {fetched} FROM {self._feed} AS h WHERE {where}", [*parameters, *keys]

    def _rows(self, where: Sequence[str]) -> str:
        return f"{self._table} AS v" + (f" WHERE {' AND '.join(where)}" if where else "")

    def _within(self, within: Within) -> tuple[list[str], list[object]]:
        """The conditions of a selection, and their parameters."""
        key = f"v.{quote(self._key.name)}"
        where: list[str] = []
        parameters: list[object] = []
        if within.after is not None:
            where.append(f"{self._exact(key)} > {self._key_parameter}")
            parameters.append(within.after)
        if within.upto is not None:
            below = f"{self._exact(key)} <= {self._key_parameter}"
            where.append(below if within.after is not None else f"({below} OR {key} IS NULL)")
            parameters.append(within.upto)
        if self.moment is not None:
            moment, parameter = f"v.{quote(self.moment.name)}", _time_parameter(self.moment)
            if within.since is not None:
                where.append(f"{moment} >= {parameter}")
                parameters.append(_time_value(self.moment, within.since))
            if within.until is not None:
                below = f"{moment} < {parameter}"
                where.append(below if within.since is not None else f"({below} OR {moment} IS NULL)")
                parameters.append(_time_value(self.moment, within.until))
        if within.people:
            person = self._person
            wanted = ", ".join([person.parameter] * len(within.people))
            where.append(f"{person.exact(f'v.{quote(person.name)}')} IN ({wanted})")
            parameters += within.people
        return where, parameters

    @property
    def _person(self) -> "_Id":
        column = self._columns["customer_id"]
        return _Id(column, self._require_key(column))

    def people_are(self) -> tuple[str, str]:
        """The name and the type of the column that holds the customer's id."""
        return self._person.name, self._columns["customer_id"].type

    def is_person(self, text: str) -> bool:
        """Whether a text can be an id of the type that `customer_id` has."""
        return _can_be(self._columns["customer_id"], text)

    def is_key(self, text: str) -> bool:
        """Whether a text can be a key of the type that the view's has."""
        return _can_be(self._key, text)

    def has(self, name: str) -> bool:
        """Whether the view has a column of this name, in lower case."""
        return name in self._columns

    # What a plan asks.

    def count_within(self, within: Within) -> tuple[str, list[object]]:
        """How many rows are meant, and of how many people."""
        where, parameters = self._within(within)
        person = self._person.exact(f"v.{quote(self._person.name)}")
        return f"SELECT COUNT(*), COUNT(DISTINCT {person}) FROM {self._rows(where)}", parameters

    def hours(self, within: Within) -> tuple[str, list[object]]:
        """How many of the rows that are meant lie in each hour of `moment`: (a literal without minutes, rows)."""
        column = cast("Column", self.moment)
        moment = f"v.{quote(column.name)}"
        if column.type == "datetimeoffset":
            moment = f"CAST(SWITCHOFFSET({moment}, '+00:00') AS datetime2(7))"
        hour = f"CONVERT(varchar(13), {moment}, 126)"
        where, parameters = self._within(within)
        where.append(f"v.{quote(column.name)} IS NOT NULL")
        return f"SELECT {hour}, COUNT(*) FROM {self._rows(where)} GROUP BY {hour} ORDER BY {hour}", parameters

    def cuts(self, within: Within, size: int) -> tuple[str, list[object]]:
        """The key of each `size`-th row of those that are meant, in order."""
        key = f"v.{quote(self._key.name)}"
        fetched, _ = cast("tuple[str, Form]", _selection(self._key, key))
        where, parameters = self._within(within)
        where.append(f"{key} IS NOT NULL")
        numbered = f"SELECT {fetched} AS k, ROW_NUMBER() OVER (ORDER BY {self._exact(key)}) AS n"
        rows = f"{numbered} FROM {self._rows(where)}"
        return f"SELECT r.k FROM ({rows}) AS r WHERE r.n % {size:d} = 0 ORDER BY r.n", parameters

    def sample(self, within: Within, step: int) -> tuple[str, list[object]]:
        """The ids of each `step`-th of the people that are meant, in order."""
        person = self._person
        fetched, _ = cast("tuple[str, Form]", _selection(self._columns["customer_id"], f"v.{quote(person.name)}"))
        where, parameters = self._within(within)
        where.append(f"v.{quote(person.name)} IS NOT NULL")
        people = f"SELECT DISTINCT {fetched} AS k FROM {self._rows(where)}"
        numbered = f"SELECT p.k, ROW_NUMBER() OVER (ORDER BY p.k) AS n FROM ({people}) AS p"
        return f"SELECT r.k FROM ({numbered}) AS r WHERE r.n % {step:d} = 0 ORDER BY r.n", parameters

    def strata(self, name: str, size: int, now: datetime) -> tuple[str, list[object]]:
        """People of each stratum of a column (of any case), evenly spread by their ids: (id, stratum).

        Of each at least `size` and fewer than twice as many, where it has so many; of more than 20 strata only some. A
        text is its own stratum, and so is a flag; numbers go by powers of ten, and moments by their age at `now` (UTC).
        """
        column, person = self._columns[name.lower()], self._person
        fetched, _ = cast("tuple[str, Form]", _selection(self._columns["customer_id"], f"v.{quote(person.name)}"))
        stratum, parameters = self._stratum(column, now)
        people = f"SELECT {fetched} AS k, {person.exact(f'v.{quote(person.name)}')} AS o, {stratum} AS s"
        people += f" FROM {self._table} AS v WHERE v.{quote(person.name)} IS NOT NULL"
        numbered = "SELECT p.k, p.s, ROW_NUMBER() OVER (PARTITION BY p.s ORDER BY p.o) AS n,"
        numbered += f" COUNT(*) OVER (PARTITION BY p.s) AS c FROM ({people}) AS p"
        spread = f"r.n % (CASE WHEN r.c < {2 * size:d} THEN 1 ELSE r.c / {size:d} END) = 0"
        limit = 2 * size * (STRATA + 1)
        return f"SELECT TOP ({limit:d}) r.k, r.s FROM ({numbered}) AS r WHERE {spread} ORDER BY r.s, r.n", parameters

    def _stratum(self, column: Column, now: datetime) -> tuple[str, list[object]]:
        name = f"v.{quote(column.name)}"
        expression, form = cast("tuple[str, Form]", _selection(column, name))
        parameters: list[object] = []
        match form:
            case Form.TEXT:
                return f"ISNULL(CAST({expression} AS nvarchar(100)), N'NULL')", []
            case Form.FLAG:
                cases = [f"WHEN {name} = 1 THEN 'true' WHEN {name} = 0 THEN 'false'"]
            case Form.WALL_TIME | Form.INSTANT:
                cases = []
                for days in (30, 90, 365):
                    cases.append(f"WHEN {name} >= {_time_parameter(column)} THEN 'within {days} days'")
                    parameters.append(_time_value(column, self._literal(column, now - timedelta(days=days))))
                cases.append(f"WHEN {name} IS NOT NULL THEN 'earlier'")
            case _:
                cases = [f"WHEN {name} <= {most} THEN 'up to {most}'" for most in (0, 1, 10, 100, 1000)]
                cases.append(f"WHEN {name} IS NOT NULL THEN 'more'")
        return f"CASE {' '.join(cases)} ELSE 'NULL' END", parameters

    def event_names(self, within: Within) -> tuple[str, list[object]]:
        """The names of the events that are meant."""
        where, parameters = self._within(within)
        name = f"v.{quote(self._columns['event_name'].name)}"
        return f"SELECT DISTINCT CAST({name} AS nvarchar(400)) FROM {self._rows(where)}", parameters

    def count_strangers(self, within: Within) -> tuple[str, list[object]]:
        """How many of the people of the rows that are meant are not in retention.customers."""
        person = self._person
        mine = person.exact(f"v.{quote(person.name)}")
        known = f"SELECT 1 FROM {quote(SCHEMA)}.[customers] AS c WHERE {person.exact('c.[customer_id]')} = {mine}"
        where, parameters = self._within(within)
        where.append(f"NOT EXISTS ({known})")
        return f"SELECT COUNT(DISTINCT {mine}) FROM {self._rows(where)}", parameters

    def count_unreachable(self, within: Within) -> tuple[str, list[object]]:
        """How many of the rows that are meant have neither an email nor a phone."""
        where, parameters = self._within(within)
        names = [self._columns[name].name for name in ("email", "phone") if self.has(name)]
        where += [f"NULLIF(CAST(v.{quote(name)} AS nvarchar(400)), N'') IS NULL" for name in names]
        return f"SELECT COUNT(*) FROM {self._rows(where)}", parameters

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

    def count_young(self, start: Position | None, since: str) -> tuple[str, list[object]]:
        """How many rows changed after `start` and have their `moment` at or after a literal of it."""
        moment = cast("Column", self.moment)
        where, parameters = self._between(f"v.{quote(self.cursor.name)}", f"v.{quote(self._key.name)}", start, None)
        where += f" AND v.{quote(moment.name)} >= {_time_parameter(moment)}"
        return f"SELECT COUNT(*) FROM {self._table} AS v WHERE {where}", [*parameters, _time_value(moment, since)]

    def count_all(self) -> tuple[str, list[object]]:
        """How many rows the view has. Its one-row joins cost nothing: SQL Server leaves out what no count needs."""
        return f"SELECT COUNT(*) FROM {self._table} AS v", []

    # What readiness asks.

    def tally(self) -> tuple[str, list[object]]:
        """The columns of a Tally, over all rows."""
        key, person = f"v.{quote(self._key.name)}", self._columns[_IDS[self.sync.kind][-1]]
        counts = ["COUNT(*)", f"COUNT({key})", f"COUNT(DISTINCT {self._exact(key)})", f"COUNT(DISTINCT {key})"]
        counts.append(f"COUNT(v.{quote(person.name)})")
        if self.sync.kind is Kind.EVENT:
            column = cast("Column", self.moment)
            seconds, _ = cast("tuple[str, Form]", _selection(column, f"v.{quote(column.name)}"))
            midnight = f"SUM(CASE WHEN {seconds} % 86400 = 0 THEN 1 ELSE 0 END)"
            counts += [f"COUNT(v.{quote(column.name)})", midnight, f"MAX({seconds})"]
        return f"SELECT {', '.join(counts)} FROM {self._table} AS v", []

    def emails(self) -> tuple[str, list[object]]:
        """How many rows there are, have an email, one that looks like an address, and how many emails differ."""
        email = f"NULLIF(LTRIM(RTRIM(v.{quote(self._columns['email'].name)})), N'')"
        shaped = f"{email} LIKE N'%_@_%._%' AND CHARINDEX(N' ', {email}) = 0"
        counts = f"COUNT(*), COUNT({email}), SUM(CASE WHEN {shaped} THEN 1 ELSE 0 END), COUNT(DISTINCT {email})"
        return f"SELECT {counts} FROM {self._table} AS v", []

    def nulls(self, names: Sequence[str]) -> tuple[str, list[object]]:
        """In how many rows each of these columns is NULL."""
        counts = ", ".join(f"COUNT(*) - COUNT(v.{quote(name)})" for name in names)
        return f"SELECT {counts} FROM {self._table} AS v", []

    def moment_of(self, seconds: int) -> int:
        """Unix seconds of a value of the column `moment` as it is fetched."""
        if cast("Column", self.moment).type == "datetimeoffset":
            return seconds
        wall = datetime(1970, 1, 1) + timedelta(seconds=seconds)  # noqa: DTZ001  # a wall clock's
        return int(wall.replace(tzinfo=self._zone).timestamp())

    def precedes(self, key: object, other: object) -> tuple[str, list[object]]:
        """1 where a key comes before another, 0 where not: only the server knows its order."""
        text = f"SELECT CASE WHEN {self._key_parameter} < {self._key_parameter} THEN 1 ELSE 0 END"
        return text, [str(key), str(other)]

    def census(self, within: Within) -> tuple[str, list[object]]:
        """How many rows are meant, and in how many of them each of `fields` is not NULL."""
        where, parameters = self._within(within)
        filled = "".join(f", COUNT(v.{quote(field.name)})" for field in self.fields)
        return f"SELECT COUNT(*){filled} FROM {self._rows(where)}", parameters

    def without_cursor(self) -> tuple[str, list[object]]:
        """How many rows no pass will ever read, because their cursor is NULL."""
        return f"SELECT COUNT(*) FROM {self._feed} AS h WHERE h.{quote(self.cursor.name)} IS NULL", []

    def _select(self, cursor: str, key: str, rows: str, order: str) -> str:
        fetched_key, _ = cast("tuple[str, Form]", _selection(self._key, key))
        fields = ", ".join(field.expression for field in self.fields)
        return f"SELECT {cursor}, {fetched_key}, {fields} FROM {rows} ORDER BY {order}"

    def _exact(self, expression: str) -> str:
        return _Id(self._key, self._key_type).exact(expression)

    @property
    def _key_parameter(self) -> str:
        return _Id(self._key, self._key_type).parameter

    def _fetched_cursor(self, expression: str) -> str:
        if self.by_row_version:
            return expression
        if self.cursor.type == "datetimeoffset":
            expression = f"CAST(SWITCHOFFSET({expression}, '+00:00') AS datetime2(7))"
        return f"CONVERT(varchar(33), {expression}, 126)"

    @property
    def _cursor_parameter(self) -> str:
        return "CAST(? AS binary(8))" if self.by_row_version else _time_parameter(self.cursor)

    def _cursor_value(self, literal: str) -> object:
        return bytes.fromhex(literal.removeprefix("0x")) if self.by_row_version else _time_value(self.cursor, literal)


class SegmentView:
    """A view `retention.segment_<name>`: in its column customer_id, who SQL Server says belongs to a segment.

    Raises ViewFault where it has no such column, or one that cannot be an id.
    """

    def __init__(self, name: str, columns: Sequence[Column]) -> None:
        self.name = f"{SCHEMA}.{SEGMENT}{name}"
        column = next((one for one in columns if one.name.lower() == "customer_id"), None)
        if column is None:
            raise ViewFault(
                f"The view {self.name} has no column customer_id. Add it: it says who belongs to the segment."
            )
        self._id = _Id(column, _type_of_key(column, self.name))
        self._person = f"v.{quote(column.name)}"
        self._rows = f"{quote(SCHEMA)}.{quote(SEGMENT + name)} AS v WHERE {self._person} IS NOT NULL"

    def count(self) -> tuple[str, list[object]]:
        """How many people belong to it, case-exact."""
        return f"SELECT COUNT(DISTINCT {self._id.exact(self._person)}) FROM {self._rows}", []

    def members(self) -> tuple[str, list[object]]:
        """Their ids, in the form in which the profiles' are sent, in no order."""
        fetched, _ = cast("tuple[str, Form]", _selection(self._id.column, self._person))
        return f"SELECT {fetched} FROM {self._rows}", []


def count_customers() -> tuple[str, list[object]]:
    """How many rows retention.customers has, for who has another view at hand."""
    return f"SELECT COUNT(*) FROM {quote(SCHEMA)}.[customers] AS c", []


def _can_be(column: Column, text: str) -> bool:
    match column.type:
        case "uniqueidentifier":
            return re.fullmatch(r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text) is not None
        case "tinyint" | "smallint" | "int" | "bigint" | "decimal" | "numeric" as type_:
            bits = {"tinyint": 8, "smallint": 15, "int": 31}.get(type_, 63)
            return re.fullmatch(r"-?\d{1,19}", text, re.ASCII) is not None and abs(int(text)) < 2**bits
    return len(text) <= 4000


@dataclass(frozen=True, slots=True)
class _Id:
    """A column that holds an id, and the type to which its literals are cast."""

    column: Column
    type: str

    @property
    def name(self) -> str:
        return self.column.name

    def exact(self, expression: str) -> str:
        """A text by its code points. As nvarchar first: COLLATE would take a varchar to another code page."""
        if "nvarchar" not in self.type:
            return expression
        return f"CAST({expression} AS {self.type}) COLLATE Latin1_General_100_BIN2"

    @property
    def parameter(self) -> str:
        return self.exact("?") if "nvarchar" in self.type else f"CAST(? AS {self.type})"


def _time_parameter(column: Column) -> str:
    # a date is compared as the moment at which it begins
    kind = "datetime2" if column.type == "date" else column.type
    return f"CAST(? AS {kind}{'(7)' if kind in ('datetime2', 'datetimeoffset') else ''})"


def _time_value(column: Column, literal: str) -> str:
    """The literal in the form that the column's type accepts: datetime has three decimals, smalldatetime none."""
    match column.type:
        case "datetimeoffset":
            return literal + "+00:00"
        case "datetime":
            return literal[:23]
        case "smalldatetime":
            return literal[:19]
    return literal
