"""The two catalogue procedures that the ODBC driver calls by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from . import wire
from .dialect import SYSNAME, parse
from .sqltypes import MONEY, SqlType, make
from .statements import compile_statement

if TYPE_CHECKING:
    from .engine import Outcome, Session

INT, SMALLINT, TINYINT, BIT = SqlType("int"), SqlType("smallint"), SqlType("tinyint"), SqlType("bit")

# system_type_id of sys.types: https://learn.microsoft.com/sql/relational-databases/system-catalog-views/sys-types-transact-sql
_IDS = {
    "image": 34, "text": 35, "uniqueidentifier": 36, "date": 40, "time": 41, "datetime2": 42, "datetimeoffset": 43,
    "tinyint": 48, "smallint": 52, "int": 56, "smalldatetime": 58, "real": 59, "money": 60, "datetime": 61, "float": 62,
    "sql_variant": 98, "ntext": 99, "bit": 104, "decimal": 106, "numeric": 108, "smallmoney": 122, "bigint": 127,
    "varbinary": 165, "varchar": 167, "binary": 173, "char": 175, "timestamp": 189, "nvarchar": 231, "nchar": 239,
    "xml": 241,
}  # fmt: skip

_PARAMETER_COLUMNS = [
    wire.column(name, t)
    for name, t in [
        ("parameter_ordinal", INT), ("name", SYSNAME), ("suggested_system_type_id", INT),
        ("suggested_system_type_name", SqlType("nvarchar", 256)), ("suggested_max_length", SMALLINT),
        ("suggested_precision", TINYINT), ("suggested_scale", TINYINT), ("suggested_user_type_id", INT),
        ("suggested_user_type_database", SYSNAME), ("suggested_user_type_schema", SYSNAME), (
            "suggested_user_type_name", SYSNAME),
        ("suggested_assembly_qualified_type_name", SqlType("nvarchar", 4000)), ("suggested_xml_collection_id", INT),
        ("suggested_xml_collection_database", SYSNAME), ("suggested_xml_collection_schema", SYSNAME),
        ("suggested_xml_collection_name", SYSNAME), ("suggested_is_xml_document", BIT), ("suggested_is_case_sensitive",
        BIT),
        ("suggested_is_fixed_length_clr_type", BIT), ("suggested_is_input", BIT), ("suggested_is_output", BIT),
        ("formal_parameter_name", SYSNAME), ("suggested_tds_type_id", INT), ("suggested_tds_length", INT),
    ]
]  # fmt: skip


def undeclared_parameters(session: Session, sql: str) -> Iterator[Outcome]:
    """sp_describe_undeclared_parameters: the types that a statement's parameters should have, by where they stand."""
    from .engine import Outcome

    found = sorted({int(n) for n in re.findall(r"@P(\d+)\b", sql, re.I)})
    parameters = {f"p{n}": (n, SqlType("unknown")) for n in found}
    inferred: dict[int, SqlType] = {}
    for node in parse(sql):
        inferred |= compile_statement(node, session, parameters, sql, True).inferred
    rows = [_parameter(i, n, inferred.get(n, SqlType("nvarchar", 4000))) for i, n in enumerate(found, 1)]
    yield Outcome(_PARAMETER_COLUMNS, iter([rows] if rows else []))


def _parameter(ordinal: int, number: int, t: SqlType) -> tuple[Any, ...]:
    if t.name == "timestamp":
        t = SqlType("binary", 8)
    widths = {"bit": 1, "tinyint": 1, "smallint": 2, "int": 4, "bigint": 8, "real": 4, "float": 8, "money": 8,
        "smallmoney": 4,
              "datetime": 8, "smalldatetime": 4, "date": 3, "time": 5, "datetime2": 8, "datetimeoffset": 10,
              "decimal": 17,
              "numeric": 17, "uniqueidentifier": 16}  # fmt: skip
    length = t.length if t.length is not None else 0
    size = widths.get(t.name, -1 if length < 0 else length * 2 if t.name in ("nchar", "nvarchar") else length)
    precision = t.precision or MONEY.get(t.name) or {"tinyint": 3, "smallint": 5, "int": 10, "bigint": 19, "bit": 1,
        "float": 53,
                                                     "real": 24, "date": 10, "time": 16, "datetime2": 27,
                                                     "datetime": 23,
                                                     "smalldatetime": 16, "datetimeoffset": 34}.get(t.name,
                                                     0)  # fmt: skip
    scale = t.scale if t.scale is not None else {"money": 4, "smallmoney": 4, "datetime": 3}.get(t.name, 0)
    tds = wire.column("", t).info[0]
    tds_length = 65_535 if size < 0 else size
    return (
        ordinal, f"@P{number}", _IDS[t.name], str(t), size, precision, scale, None, None, None, None, None, None, None,
            None, None,
        False, False, False, True, False, None, tds, tds_length,
    )  # fmt: skip


_TYPE_COLUMNS = [
    wire.column(name, t)
    for name, t in [
        ("TYPE_NAME", SYSNAME), ("DATA_TYPE", SMALLINT), ("PRECISION", INT), ("LITERAL_PREFIX", SqlType("varchar", 32)),
        ("LITERAL_SUFFIX", SqlType("varchar", 32)), ("CREATE_PARAMS", SqlType("varchar", 32)), ("NULLABLE", SMALLINT),
        ("CASE_SENSITIVE", SMALLINT), ("SEARCHABLE", SMALLINT), ("UNSIGNED_ATTRIBUTE", SMALLINT), ("MONEY", SMALLINT),
        ("AUTO_INCREMENT", SMALLINT), ("LOCAL_TYPE_NAME", SYSNAME), ("MINIMUM_SCALE", SMALLINT), ("MAXIMUM_SCALE",
        SMALLINT),
        ("SQL_DATA_TYPE", SMALLINT), ("SQL_DATETIME_SUB", SMALLINT), ("NUM_PREC_RADIX", INT), ("INTERVAL_PRECISION",
        SMALLINT),
        ("USERTYPE", SMALLINT),
    ]
]  # fmt: skip

# ODBC type -> name, precision, prefix, create parameters, scale; pyodbc asks for the longest of some.
_TYPES: dict[int, list[tuple[str, int, str | None, str | None, int | None]]] = {
    1: [("char", 8000, "'", "length", None)], 12: [("varchar", 8000, "'", "max length", None)],
    -8: [("nchar", 4000, "N'", "length", None)], -9: [("nvarchar", 4000, "N'", "max length", None)],
    -2: [("binary", 8000, "0x", "length", None), ("timestamp", 8, "0x", None, None)], -3: [("varbinary", 8000, "0x",
        "max length", None)],
    -1: [("text", 2147483647, "'", None, None)], -10: [("ntext", 1073741823, "N'", None, None)], -4: [("image",
        2147483647, "0x", None, None)],
    93: [("datetime2", 27, "'", "scale", 7), ("datetime", 23, "'", None, 3), ("smalldatetime", 16, "'", None, 0)],
    91: [("date", 10, "'", None, None)], -154: [("time", 16, "'", "scale", 7)], -155: [("datetimeoffset", 34, "'",
        "scale", 7)],
    4: [("int", 10, None, None, 0)], 5: [("smallint", 5, None, None, 0)], -5: [("bigint", 19, None, None, 0)],
    -6: [("tinyint", 3, None, None, 0)], -7: [("bit", 1, None, None, 0)], 6: [("float", 53, None, None, None)],
    7: [("real", 24, None, None, None)], 3: [("decimal", 38, None, "precision,scale", 38), ("money", 19, "$", None, 4)],
    2: [("numeric", 38, None, "precision,scale", 38)], -11: [("uniqueidentifier", 36, "'", None, None)], -152: [("xml",
        0, "N'", None, None)],
}  # fmt: skip


def data_types(odbc_type: int | None) -> Iterator[Outcome]:
    """sp_datatype_info_100: what SQLGetTypeInfo tells."""
    from .engine import Outcome

    wanted = _TYPES.items() if not odbc_type else [(odbc_type, _TYPES.get(odbc_type, []))]
    rows = [
        (name, number, precision, prefix, "'" if prefix and prefix.endswith("'") else None, create, 1, 0, 3, None, 0,
        None, name,
         0 if scale is not None else None, scale, number, None, None, None, 0)
        for number, entries in wanted
        for name, precision, prefix, create, scale in entries
    ]  # fmt: skip
    yield Outcome(_TYPE_COLUMNS, iter([rows] if rows else []))


__all__ = ["data_types", "make", "undeclared_parameters"]
