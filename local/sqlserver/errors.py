"""Errors as a SQL Server reports them: number, message, class (severity) and state."""

from __future__ import annotations

import re

import duckdb

# Our own number for what the stand-in refuses; it lies outside every range that clients take for transient.
REFUSED = 40000


class SqlError(Exception):
    """An error token. The ODBC driver derives the SQLSTATE from the number: 208 is 42S02, 1205 is 40001, and so on."""

    def __init__(self, number: int, message: str, severity: int = 16, state: int = 1) -> None:
        super().__init__(message)
        self.number, self.message, self.severity, self.state = number, message, severity, state


class Cancelled(Exception):
    """The client sent ATTENTION (or went away) while a statement ran."""


def cannot(what: str) -> SqlError:
    """The loud refusal: what a real server would do and this one does not."""
    return SqlError(REFUSED, f"The stand-in cannot {what}.")


def is_conflict(error: Exception) -> bool:
    """True for DuckDB's write-write conflicts, where a SQL Server's writer would have waited."""
    return isinstance(error, duckdb.TransactionException) and (
        "onflict" in str(error) or "has been altered" in str(error)
    )


def translate(error: Exception) -> Exception:
    """DuckDB's error as SQL Server words it; what is not known becomes the stand-in's own number with DuckDB's text."""
    if isinstance(error, SqlError | Cancelled):
        return error
    if isinstance(error, duckdb.InterruptException):
        return Cancelled()
    text = str(error)
    if raised := re.search(r"\[\[(\d+)\]\] ?([^\n]*)", text):
        return SqlError(int(raised[1]), raised[2])
    if "ivision by zero" in text:
        return SqlError(8134, "Divide by zero error encountered.")
    if "PRIMARY KEY or UNIQUE" in text or re.search(r"violates (primary key|unique) constraint", text):
        key = re.search(r'[Dd]uplicate key "([^"]*)"', text)
        value = re.sub(r"\w+: ", "", key[1]) if key else ""
        return SqlError(
            2627, f"Violation of PRIMARY KEY or UNIQUE constraint. Cannot insert duplicate key. The duplicate "
                  f"key value is ({value}).", 14
        )  # fmt: skip
    if null := re.search(r"NOT NULL constraint failed: (\w+)\.(.+)", text):
        return SqlError(
            515, f"Cannot insert the value NULL into column '{null[2].strip()}', table '{null[1]}'; column does "
                 f"not allow nulls.", state=2
        )  # fmt: skip
    if schema := re.search(r"Schema with name (.+?) does not exist", text):
        return SqlError(
            2760,
            f'The specified schema name "{schema[1]}" either does not exist or you do not have permission to use it.',
        )
    if grouped := re.search(r'column "(.+?)" must appear in the GROUP BY clause', text):
        return SqlError(
            8120,
            f"Column '{grouped[1]}' is invalid in the select list because it is not contained "
            f"in either an aggregate function or the GROUP BY clause.",
        )
    if "CHECK constraint" in text:
        return SqlError(547, "The statement conflicted with a CHECK constraint.")
    if isinstance(error, duckdb.ConversionException):
        if re.search(r"timestamp|date|time field", text):
            return SqlError(241, "Conversion failed when converting date and/or time from character string.")
        if text_value := re.search(r"Could not convert string '(.*)' to (\w+)", text):
            return SqlError(
                245, f"Conversion failed when converting the varchar value '{text_value[1]}' to data type int."
            )
        if small := re.search(r"with value (\S+) can't be cast .* type (UINT8|INT16)", text):
            name = "tinyint" if small[2] == "UINT8" else "smallint"
            return SqlError(220, f"Arithmetic overflow error for data type {name}, value = {small[1]}.")
        return SqlError(8115, "Arithmetic overflow error converting expression to data type.", state=2)
    if isinstance(error, duckdb.OutOfRangeException):
        return SqlError(8115, "Arithmetic overflow error converting expression to data type.", state=2)
    first = text.split("\n")[0]
    return SqlError(REFUSED, f"The stand-in cannot run this statement: {first}")
