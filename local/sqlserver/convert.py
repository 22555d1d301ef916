"""Conversions and comparisons between T-SQL types, written as DuckDB expressions."""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import SqlError, cannot
from .sqltypes import (
    BINARY,
    DATETIMES,
    EXACT,
    FLOATS,
    INTEGERS,
    NUMBERS,
    PRECEDENCE,
    TEMPORAL,
    TEXT,
    WIDE,
    SqlType,
    decimal,
    make,
)


class Value(NamedTuple):
    """A rendered expression. exact: compared by its bytes (BIN2). parameter: its number while its type is unknown."""

    sql: str
    type: SqlType
    exact: bool = False
    parameter: int | None = None


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def variable(t: SqlType) -> SqlType:
    """The varying type of a fixed one: what a string function returns."""
    name = {
        "char": "varchar",
        "nchar": "nvarchar",
        "text": "varchar",
        "ntext": "nvarchar",
        "xml": "nvarchar",
        "sql_variant": "nvarchar",
    }
    return SqlType(name.get(t.name, t.name), t.length if t.length is not None else -1)


def cast(value: Value, to: SqlType, style: int = 0, column: str | None = None, *, safe: bool = False) -> Value:
    """CAST or CONVERT, and the implicit conversions too. column: assigning to it, so what does not fit is an error.
    safe: TRY_CAST, NULL for what does not convert.

    Raises SqlError 529 for a conversion that T-SQL does not allow or the stand-in does not know.
    """
    have = value.type
    if (
        to.name in ("unknown", "null")
        or (have == to and column is None)
        or (have == to and to.name not in TEXT | BINARY)
    ):
        return value
    if have.name == "null":
        return Value(f"CAST(NULL AS {to.duck})", to)
    sql = _cast(value.sql, have, to, style, column)
    if sql is None:
        raise SqlError(
            529,
            f"Explicit conversion from data type {have.name} to {to.name} is not allowed (or not known to the "
            f"stand-in).",
        )
    if safe and (have.name not in TEXT or to.name not in TEXT):
        sql = _try(value.sql, have, to, sql)
    return Value(sql, to, value.exact)


def _try(x: str, have: SqlType, to: SqlType, sql: str) -> str:
    """DuckDB's TRY takes no expression that raises errors of our own, so those have a form without."""
    if have.name in TEXT and to.name in INTEGERS:
        return f"TRY_CAST(CASE WHEN regexp_full_match({x}, '\\s*[+-]?\\d+\\s*') THEN trim({x}) END AS {to.duck})"
    if have.name in TEXT and to.name == "uniqueidentifier":
        return f"TRY_CAST(left({x}, 36) AS UUID)"
    if have.name in TEXT and to.name == "bit":
        return f"TRY_CAST({x} AS BOOLEAN)"
    return f"TRY({sql})"


def _cast(x: str, have: SqlType, to: SqlType, style: int, column: str | None) -> str | None:
    source, target = have.name, to.name
    if target in TEXT:
        return _sized(_to_text(x, have, to, style), have, to, column)
    if target in BINARY:
        return _to_binary(x, have, to, style, column)
    if target == "bit":
        if source in TEXT:
            return f"ms.bit_text({x})"
        return f"({x} <> 0)" if source in NUMBERS else None
    if target in INTEGERS:
        if source in TEXT or source == "unknown":
            return f"CAST(ms.int_text({x}) AS {to.duck})"
        if source in BINARY:
            return f"CAST(ms.bytes_int({x}) AS {to.duck})"
        if source in FLOATS or source in ("decimal", "numeric"):
            return f"CAST(trunc({x}) AS {to.duck})"
        return f"CAST({x} AS {to.duck})" if source in NUMBERS else None
    if target in EXACT or target in FLOATS:
        if source == "bit":
            return f"CAST(CAST({x} AS INTEGER) AS {to.duck})"
        return f"CAST({x} AS {to.duck})" if source in NUMBERS or source in TEXT or source == "unknown" else None
    if target in TEMPORAL:
        return _to_temporal(x, have, to)
    if target == "uniqueidentifier":
        if source in TEXT or source == "unknown":
            return f"ms.guid_text({x})"
        return f"CAST({x} AS UUID)" if source == "uniqueidentifier" else None
    return None


def _sized(x: str, have: SqlType, to: SqlType, column: str | None) -> str:
    length = to.length
    if to.name not in ("char", "varchar", "nchar", "nvarchar") or length is None or length < 0:
        return x
    if have.size > length or have.name not in TEXT:
        x = f"ms.fit({x}, {length}, {literal(column)})" if column is not None else f"left({x}, {length})"
    if to.name in ("char", "nchar") and not (have.name in ("char", "nchar") and have.length == length):
        x = f"ms.pad({x}, {length})"
    return x


_DATE_STYLES = {
    23: "%Y-%m-%d", 101: "%m/%d/%Y", 102: "%Y.%m.%d", 103: "%d/%m/%Y", 104: "%d.%m.%Y", 105: "%d-%m-%Y",
        106: "%d %b %Y",
    107: "%b %d, %Y", 110: "%m-%d-%Y", 111: "%Y/%m/%d", 112: "%Y%m%d", 120: "%Y-%m-%d %H:%M:%S", 20:
        "%Y-%m-%d %H:%M:%S",
    108: "%H:%M:%S", 8: "%H:%M:%S",
}  # fmt: skip


def _to_text(x: str, have: SqlType, to: SqlType, style: int) -> str:
    source = have.name
    if source in TEXT:
        return x
    if source == "unknown":
        return f"CAST({x} AS VARCHAR)"
    if source == "bit":
        return f"CAST(CAST({x} AS INTEGER) AS VARCHAR)"
    if source in ("money", "smallmoney"):
        return f"CAST(CAST({x} AS DECIMAL(19,2)) AS VARCHAR)" if style == 0 else f"CAST({x} AS VARCHAR)"
    if source in FLOATS:
        return f"ms.float_text({x})" if style == 0 else f"printf('%.15e', {x})"
    if source in NUMBERS:
        return f"CAST({x} AS VARCHAR)"
    if source == "uniqueidentifier":
        return f"upper(CAST({x} AS VARCHAR))"
    if source in BINARY:
        if style in (1, 2):
            return f"('0x' || hex({x}))" if style == 1 else f"hex({x})"
        if to.name in WIDE:
            raise cannot("read bytes as UTF-16 text")
        return f"decode({x})"
    if source == "date":
        if style in (0, 20, 21, 120, 121, 126, 23):
            return f"strftime({x}, '%Y-%m-%d')"
        if style in _DATE_STYLES:
            return f"strftime({x}, '{_DATE_STYLES[style]}')"
    if source == "time":
        if style in (8, 108):
            return f"ms.time_text({x}, 0)"
        return f"ms.time_text({x}, {have.scale})"
    if source in (*DATETIMES, "datetimeoffset"):
        scale = {"datetime": 3, "smalldatetime": 0}.get(source, have.scale or 0)
        local = f"ms.local({x})" if source == "datetimeoffset" else x
        offset = f" || ms.offset_text(({x}).m)" if source == "datetimeoffset" else ""
        spaced = f" || ' '{offset}" if offset else ""
        if style in (126, 127):
            if style == 127 and offset:
                return f"(ms.iso_text(({x}).utc, {scale}) || 'Z')"
            return f"(ms.iso_text({local}, {scale}){offset})"
        if style in (21, 121, 25) or (style == 0 and source not in ("datetime", "smalldatetime")):
            digits = scale or (3 if source == "smalldatetime" else 0)
            return f"(ms.ts_text({local}, '%Y-%m-%d %H:%M:%S', {digits}){spaced})"
        if style in _DATE_STYLES:
            return f"(strftime({local}, '{_DATE_STYLES[style]}'){spaced if style in (20, 120) else ''})"
        if style in (0, 100):
            return f"ms.us_text({local})"
    raise cannot(f"convert {source} to text by style {style}")


def _to_binary(x: str, have: SqlType, to: SqlType, style: int, column: str | None) -> str | None:
    source, length = have.name, to.length
    if source in BINARY:
        raw = x
    elif source in TEXT:
        if style in (1, 2):
            raw = f"unhex(substr({x}, 3))" if style == 1 else f"unhex({x})"
        else:
            raw = f"ms.utf16({x})" if source in WIDE else f"encode({x})"
    elif source in INTEGERS or source == "bit":
        width = {"bit": 1, "tinyint": 1, "smallint": 2, "int": 4, "bigint": 8}[source]
        size = length if to.name in ("binary", "timestamp") and length and length > 0 else width
        return f"ms.int_bytes(CAST({x} AS BIGINT), {min(size, length) if length and length > 0 else size})"
    elif source == "unknown":
        raw = f"CAST({x} AS BLOB)"
    elif source == "uniqueidentifier":
        raise cannot("turn a uniqueidentifier into bytes")
    else:
        return None
    if length is None or length < 0:
        return raw
    if source in BINARY and have.length == length and (to.name != "binary" or have.name in ("binary", "timestamp")):
        return raw
    if column is not None:
        raw = f"ms.fit_bytes({raw}, {length}, {literal(column)})"
    return f"ms.pad_bytes({raw}, {length})" if to.name in ("binary", "timestamp") else f"ms.bytes({raw}, {length})"


def _to_temporal(x: str, have: SqlType, to: SqlType) -> str | None:
    source, target = have.name, to.name
    if source == "unknown":
        return f"CAST({x} AS {to.duck})"
    if source in TEXT:
        if target == "datetimeoffset":
            return f"ms.parse_dto({x})"
        x, have = f"ms.parse_ts({x})", make("datetime2", 7)
        source = have.name
    if source not in TEMPORAL:
        return None
    if target == "datetimeoffset":
        if source == "datetimeoffset":
            return (
                x
                if (to.scale or 0) >= min(6, have.scale or 0)
                else f"ms.at(ms.round_ts(({x}).utc, {to.scale}), ({x}).m)"
            )
        inner = _to_temporal(x, have, make("datetime2", to.scale or 0))
        return f"ms.at({inner}, 0)"
    if source == "datetimeoffset":
        x, source = f"ms.local({x})", "datetime2"
    if target == "date":
        return f"CAST({x} AS DATE)" if source != "time" else None
    if target == "time":
        if source == "date":
            return "TIME '00:00:00'"
        x = x if source == "time" else f"CAST({x} AS TIME)"
        coarser = (to.scale or 0) < min(6, have.scale if have.scale is not None else 6)
        return f"ms.round_time({x}, {to.scale})" if coarser else x
    if source == "time":
        x = f"(DATE '1900-01-01' + {x})"
    elif source == "date":
        x = f"CAST({x} AS TIMESTAMP)"
    if target == "datetime":
        return x if source in ("datetime", "smalldatetime", "date") else f"ms.datetime({x})"
    if target == "smalldatetime":
        return f"ms.smalldatetime({x})"
    finer = {"date": 0, "smalldatetime": 0, "datetime": 6}.get(source, have.scale if have.scale is not None else 7)
    return x if (to.scale or 0) >= min(6, finer) else f"ms.round_ts({x}, {to.scale})"


def comparable(a: Value, b: Value) -> tuple[Value, Value]:
    """Both sides in the form that DuckDB compares as SQL Server would.

    Text ignores trailing blanks, and case by the database's default collation (NOCASE); a side with a BIN2 collation
    makes both compare by their bytes, which is code point order.
    """
    left, right = a.type.name, b.type.name
    texts = TEXT | {"null", "unknown"}
    if left in texts and right in texts:
        exact = a.exact or b.exact
        return _text_key(a, exact), _text_key(b, exact)
    if left in BINARY and right in BINARY:
        return a, b
    high = a.type if PRECEDENCE[left] >= PRECEDENCE[right] else b.type
    if high.name in BINARY:
        return _bytes_key(a, high), _bytes_key(b, high)
    if (left in BINARY) != (right in BINARY):
        # A rowversion against a number: T-SQL compares numbers.
        target = high if high.name in INTEGERS else SqlType("bigint")
        return cast(a, target) if left in BINARY else a, cast(b, target) if right in BINARY else b
    if high.name == "datetimeoffset":
        wide = make("datetimeoffset", 7)
        return Value(f"({cast(a, wide).sql}).utc", make("datetime2")), Value(
            f"({cast(b, wide).sql}).utc", make("datetime2")
        )
    if high.name in DATETIMES:
        # datetime compares unrounded with datetime2, so nothing is rounded to the other's ticks.
        wide = make("datetime2", 7)
        return _moment_key(a, high, wide), _moment_key(b, high, wide)
    if high.name in ("decimal", "numeric"):
        return tuple(v if v.type.name in NUMBERS - {"bit"} else cast(v, decimal(38, 10)) for v in (a, b))  # type: ignore[return-value]
    return cast(a, high), cast(b, high)


def _moment_key(v: Value, high: SqlType, wide: SqlType) -> Value:
    if v.type.name in TEXT:
        return cast(v, high)
    return cast(v, wide)


def _bytes_key(v: Value, high: SqlType) -> Value:
    return (
        v
        if v.type.name in BINARY
        else cast(v, SqlType("binary", 8) if high.name == "timestamp" else SqlType("varbinary", -1))
    )


def _text_key(v: Value, exact: bool) -> Value:
    if v.type.name in ("null", "unknown"):
        return v
    trimmed = v.sql if re.fullmatch(r"'[^']*[^' ]'", v.sql) else f"rtrim({v.sql}, ' ')"
    return Value(f"encode({trimmed})" if exact else trimmed, v.type)


def sort_key(v: Value) -> str:
    """What ORDER BY, PARTITION BY and COUNT(DISTINCT) see."""
    if v.type.name == "datetimeoffset":
        return f"({v.sql}).utc"
    return f"encode({v.sql})" if v.exact and v.type.name in TEXT else v.sql


def like_to_regex(pattern: str, escape: str) -> str:
    """A T-SQL LIKE pattern as a regular expression for the whole text."""
    out, i = [], 0
    while i < len(pattern):
        ch = pattern[i]
        if escape and ch == escape and i + 1 < len(pattern):
            i += 1
            out.append(re.escape(pattern[i]))
        elif ch == "%":
            out.append(".*")
        elif ch == "_":
            out.append(".")
        elif ch == "[" and "]" in pattern[i + 1 :]:
            end = pattern.index("]", i + 1)
            out.append("[" + pattern[i + 1 : end].replace("\\", "\\\\") + "]")
            i = end
        else:
            out.append(re.escape(ch))
        i += 1
    return "".join(out)
