"""T-SQL types: what the stand-in remembers of every column, parameter and expression."""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp
from sqlglot.expressions import DataType

from .errors import SqlError, cannot

TEXT = frozenset({"char", "varchar", "nchar", "nvarchar", "text", "ntext", "xml", "sql_variant"})
WIDE = frozenset({"nchar", "nvarchar", "ntext", "xml", "sql_variant"})
BINARY = frozenset({"binary", "varbinary", "timestamp", "image", "geography"})
INTEGERS = {"tinyint": 3, "smallint": 5, "int": 10, "bigint": 19}
MONEY = {"money": 19, "smallmoney": 10}
EXACT = frozenset({"decimal", "numeric", *MONEY})
FLOATS = {"real": 24, "float": 53}
NUMBERS = frozenset({"bit", *INTEGERS, *EXACT, *FLOATS})
DATETIMES = frozenset({"datetime", "datetime2", "smalldatetime"})
TEMPORAL = frozenset({"date", "time", "datetimeoffset", *DATETIMES})

# Lowest to highest data type precedence:
# https://learn.microsoft.com/sql/t-sql/data-types/data-type-precedence-transact-sql
PRECEDENCE = {
    name: rank
    for rank, name in enumerate(
        [
            "null",
            "unknown",
            "binary",
            "varbinary",
            "image",
            "geography",
            "char",
            "varchar",
            "nchar",
            "nvarchar",
            "text",
            "ntext",
            "uniqueidentifier",
            "timestamp",
            "bit",
            "tinyint",
            "smallint",
            "int",
            "bigint",
            "smallmoney",
            "money",
            "numeric",
            "decimal",
            "real",
            "float",
            "time",
            "date",
            "smalldatetime",
            "datetime",
            "datetime2",
            "datetimeoffset",
            "xml",
            "sql_variant",
        ]
    )
}

_DUCK = {
    "bit": "BOOLEAN", "tinyint": "UTINYINT", "smallint": "SMALLINT", "int": "INTEGER", "bigint": "BIGINT",
    "money": "DECIMAL(19,4)", "smallmoney": "DECIMAL(10,4)", "float": "DOUBLE", "real": "FLOAT", "date": "DATE",
    "time": "TIME", "datetime": "TIMESTAMP", "smalldatetime": "TIMESTAMP", "datetime2": "TIMESTAMP",
    "datetimeoffset": "STRUCT(utc TIMESTAMP, m SMALLINT)", "uniqueidentifier": "UUID", "null": "INTEGER",
}  # fmt: skip

_NAMES = {
    DataType.Type.BIT: "bit", DataType.Type.BOOLEAN: "bit", DataType.Type.UTINYINT: "tinyint",
    DataType.Type.TINYINT: "tinyint", DataType.Type.SMALLINT: "smallint", DataType.Type.INT: "int",
    DataType.Type.BIGINT: "bigint", DataType.Type.DECIMAL: "decimal", DataType.Type.BIGDECIMAL: "numeric",
    DataType.Type.MONEY: "money", DataType.Type.SMALLMONEY: "smallmoney", DataType.Type.DOUBLE: "float",
    DataType.Type.FLOAT: "real", DataType.Type.DATE: "date", DataType.Type.TIME: "time",
    DataType.Type.DATETIME: "datetime", DataType.Type.DATETIME2: "datetime2",
    DataType.Type.SMALLDATETIME: "smalldatetime", DataType.Type.TIMESTAMPTZ: "datetimeoffset",
    DataType.Type.CHAR: "char", DataType.Type.NCHAR: "nchar", DataType.Type.VARCHAR: "varchar",
    DataType.Type.NVARCHAR: "nvarchar", DataType.Type.TEXT: "text", DataType.Type.LONGTEXT: "ntext",
    DataType.Type.BINARY: "binary", DataType.Type.VARBINARY: "varbinary", DataType.Type.IMAGE: "image",
    DataType.Type.ROWVERSION: "timestamp", DataType.Type.UUID: "uniqueidentifier", DataType.Type.XML: "xml",
    DataType.Type.VARIANT: "sql_variant", DataType.Type.GEOGRAPHY: "geography",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SqlType:
    """A type as T-SQL names it.

    length: characters (or bytes of binary), -1 for max. precision: of decimal and numeric. scale: of decimal, numeric,
    and the fractional digits of time, datetime2 and datetimeoffset.
    """

    name: str
    length: int | None = None
    precision: int | None = None
    scale: int | None = None

    @property
    def duck(self) -> str:
        """The DuckDB type that holds it."""
        if self.name in ("decimal", "numeric"):
            return f"DECIMAL({self.precision},{self.scale})"
        if self.name in BINARY:
            return "BLOB"
        return _DUCK.get(self.name, "VARCHAR")

    @property
    def digits(self) -> tuple[int, int]:
        """Precision and scale of an exact number."""
        if self.name in ("decimal", "numeric"):
            return self.precision or 18, self.scale or 0
        if self.name in MONEY:
            return MONEY[self.name], 4
        return {"bit": 1, **INTEGERS}.get(self.name, 10), 0

    @property
    def size(self) -> int:
        """Characters of a text type, 8000 and more meaning max."""
        if self.name in TEXT or self.name in BINARY:
            return 1 << 30 if self.length is None or self.length < 0 else self.length
        return 40

    def __str__(self) -> str:
        if self.name in ("decimal", "numeric"):
            return f"{self.name}({self.precision},{self.scale})"
        if self.length is not None and self.name in ("char", "varchar", "nchar", "nvarchar", "binary", "varbinary"):
            return f"{self.name}({'max' if self.length < 0 else self.length})"
        if self.scale is not None and self.name in ("time", "datetime2", "datetimeoffset"):
            return f"{self.name}({self.scale})"
        return self.name


def make(name: str, *args: int, default_length: int = 1) -> SqlType:
    """A type from its name and the numbers in its parentheses; a length in a CAST defaults to 30, elsewhere to 1."""
    name = {"rowversion": "timestamp", "sysname": "nvarchar", "integer": "int", "dec": "decimal"}.get(name, name)
    if name in ("decimal", "numeric"):
        precision = args[0] if args else 18
        if not 1 <= precision <= 38:
            raise SqlError(2750, f"Column, parameter, or variable: Specified column precision {precision} is invalid.")
        return SqlType(name, None, precision, args[1] if len(args) > 1 else 0)
    if name in ("char", "varchar", "nchar", "nvarchar", "binary", "varbinary"):
        return SqlType(name, args[0] if args else default_length)
    if name in ("time", "datetime2", "datetimeoffset"):
        return SqlType(name, None, None, args[0] if args else 7)
    if name == "float" and args and args[0] <= 24:
        return SqlType("real")
    if name == "timestamp":
        return SqlType(name, 8)
    if name in ("text", "ntext", "image", "xml", "geography"):
        return SqlType(name, -1)
    if name not in PRECEDENCE:
        raise SqlError(243, f"Type {name} is not a defined system type.")
    return SqlType(name)


def from_node(node: exp.DataType, default_length: int = 1) -> SqlType:
    """The type of a column definition or CAST."""
    if node.this == DataType.Type.USERDEFINED:
        kind = str(node.args.get("kind")).lower()
        if kind == "sysname":
            return SqlType("nvarchar", 128)
        raise cannot(f"use the type {kind}")
    name = _NAMES.get(node.this)
    if name is None:
        raise cannot(f"use the type {node.this}")
    args = [-1 if p.name.upper() == "MAX" else int(p.name) for p in node.expressions]
    return make(name, *args, default_length=default_length)


def decimal(precision: int, scale: int) -> SqlType:
    """decimal(p,s), cut to 38 digits as SQL Server cuts results: the fraction first, down to six digits."""
    if precision > 38:
        scale = max(min(scale, 6), scale - (precision - 38))
        precision = 38
    return SqlType("decimal", None, precision, scale)


def unify(types: list[SqlType]) -> SqlType:
    """The result type of CASE, COALESCE, UNION and the like."""
    result = types[0]
    for other in types[1:]:
        result = _unify(result, other)
    return result


def _unify(a: SqlType, b: SqlType) -> SqlType:
    if a == b:
        return a
    high, low = (a, b) if PRECEDENCE[a.name] >= PRECEDENCE[b.name] else (b, a)
    if low.name in ("null", "unknown"):
        return high
    if high.name in ("decimal", "numeric") and low.name in NUMBERS and low.name not in FLOATS:
        (p1, s1), (p2, s2) = high.digits, low.digits
        scale = max(s1, s2)
        return SqlType(high.name, None, min(38, max(p1 - s1, p2 - s2) + scale), scale)
    if high.name in TEXT and low.name in TEXT | BINARY and high.length is not None:
        length = -1 if -1 in (a.length, b.length) else max(a.size, b.size)
        name = high.name if a.name == b.name or "var" in high.name else high.name.replace("char", "varchar")
        return SqlType(name, length)
    if high.name in BINARY and low.name in BINARY:
        return SqlType("varbinary", -1 if -1 in (a.length, b.length) else max(a.length or 1, b.length or 1))
    if high.name in ("datetime2", "datetimeoffset", "time"):
        return SqlType(high.name, None, None, max(high.scale or 0, low.scale or {"datetime": 3}.get(low.name, 0)))
    return high


def from_duck(name: str) -> SqlType:
    """The nearest T-SQL type of a DuckDB type, for the few expressions whose type is not derived."""
    if name.startswith("DECIMAL"):
        precision, scale = (int(x) for x in name[8:-1].split(","))
        return SqlType("decimal", None, precision, scale)
    return {
        "BOOLEAN": SqlType("bit"), "UTINYINT": SqlType("tinyint"), "SMALLINT": SqlType("smallint"),
        "INTEGER": SqlType("int"), "BIGINT": SqlType("bigint"), "HUGEINT": decimal(38, 0), "DOUBLE": SqlType("float"),
        "FLOAT": SqlType("real"), "DATE": SqlType("date"), "TIME": make("time"), "TIMESTAMP": make("datetime2"),
        "BLOB": SqlType("varbinary", -1), "UUID": SqlType("uniqueidentifier"),
    }.get(name, SqlType("nvarchar", -1))  # fmt: skip
