"""The SQL Server stand-in, through Microsoft's ODBC driver.

What holds on a real server too runs there when TEST_SQL_SERVER names one.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import threading
import time as clock
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from local import driver

driver.register()
import pyodbc  # noqa: E402

pyodbc.pooling = False
REAL = os.environ.get("TEST_SQL_SERVER")
ROOT = Path(__file__).parent.parent
Connect = Callable[..., pyodbc.Connection]

only_standin = pytest.mark.skipif(bool(REAL), reason="about the stand-in itself")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A connection string without a database."""
    if REAL:
        yield re.sub(r"(?i)\bdatabase=[^;]*;?", "", REAL)
        return
    with subprocess.Popen(
        [sys.executable, "-m", "local.sqlserver", "--password", "Pass-word1"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        port = json.loads(process.stdout.readline())["port"]
        yield f"Driver={{{driver.NAME}}};Server=127.0.0.1,{port};UID=sa;PWD=Pass-word1;Encrypt=no"
        process.terminate()
        assert process.wait(5) == 0


@pytest.fixture
def connect(server: str) -> Iterator[Connect]:
    """Opens connections to a scratch database that goes away with the test."""
    name, opened = f"t{uuid.uuid4().hex[:12]}", []

    def open_one(autocommit: bool = True, database: str = name) -> pyodbc.Connection:
        connection = pyodbc.connect(f"{server};Database={database}", autocommit=autocommit, timeout=15)
        opened.append(connection)
        return connection

    open_one(database="master").execute(f"CREATE DATABASE {name}")
    yield open_one
    for connection in opened:
        with suppress(pyodbc.ProgrammingError):  # closed already
            connection.close()
    with pyodbc.connect(f"{server};Database=master", autocommit=True) as last:
        last.execute(f"ALTER DATABASE {name} SET SINGLE_USER WITH ROLLBACK IMMEDIATE")
        last.execute(f"DROP DATABASE {name}")
    last.close()


@pytest.fixture
def db(connect: Connect) -> pyodbc.Connection:
    return connect()


def code(error: pytest.ExceptionInfo[pyodbc.Error]) -> tuple[str, int]:
    state, text = error.value.args[:2]
    return state, int(re.findall(r"\((\d+)\) \(SQL", text)[-1])


def one(db: pyodbc.Connection, sql: str, *parameters: object) -> object:
    row = db.execute(sql, *parameters).fetchone()
    assert row is not None
    return row[0]


# ---------------------------------------------------------------- connecting


def test_a_wrong_password_is_refused_with_18456(server: str) -> None:
    with pytest.raises(pyodbc.Error) as error:
        pyodbc.connect(re.sub(r"PWD=[^;]*", "PWD=wrong", server), timeout=5)
    assert error.value.args[0] == "28000"
    assert "18456" in error.value.args[1]


def test_an_unknown_database_is_refused_with_4060(server: str) -> None:
    with pytest.raises(pyodbc.Error, match="4060"):
        pyodbc.connect(f"{server};Database=nowhere", timeout=5)


def test_databases_are_apart(server: str, connect: Connect, db: pyodbc.Connection) -> None:
    db.execute("CREATE TABLE dbo.t (a int)")
    other = f"o{uuid.uuid4().hex[:12]}"
    master = connect(database="master")
    master.execute(f"CREATE DATABASE {other}")
    try:
        second = connect(database=other)
        with pytest.raises(pyodbc.Error) as error:
            second.execute("SELECT a FROM dbo.t")
        assert code(error) == ("42S02", 208)
        second.close()
    finally:
        master.execute(f"DROP DATABASE {other}")


@only_standin
def test_the_process_ends_at_once_and_says_nothing_on_sigterm_and_sigint() -> None:
    for number in (15, 2):
        process = subprocess.Popen(
            [sys.executable, "-m", "local.sqlserver"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        json.loads(process.stdout.readline())
        process.send_signal(number)
        assert process.communicate(timeout=2) == ("", "")
        assert process.returncode == 0


# ---------------------------------------------------------------- types

VALUES: list[tuple[str, object]] = [
    ("bit", True), ("tinyint", 255), ("smallint", -32768), ("int", -(2**31)), ("bigint", 2**63 - 1), ("bigint",
    -(2**63)),
    ("decimal(5,2)", Decimal("-123.45")), ("decimal(18,4)", Decimal("12345678901234.5678")), ("numeric(28,10)",
    Decimal("123456789012345678.0123456789")),
    ("decimal(38,0)", Decimal("-12345678901234567890123456789012345678")), ("money", Decimal("-922337203685477.5808")),
    ("smallmoney", Decimal("214748.3647")), ("float", 1.0e-300), ("float", -0.1), ("real", 0.5), ("date", date(1, 1,
    1)),
    ("date", date(9999, 12, 31)), ("time(0)", time(23, 59, 59)), ("time(6)", time(1, 2, 3)),
    ("datetime", datetime(2024, 2, 29, 23, 59, 59, 997000)), ("datetime", datetime(1753, 1, 1)),
    ("smalldatetime", datetime(2024, 2, 29, 23, 59)), ("datetime2(0)", datetime(2024, 2, 29, 1, 2, 3)),
    ("datetime2(3)", datetime(1, 1, 1, 0, 0, 0, 1000)), ("datetime2(7)", datetime(9999, 12, 31, 23, 59, 59, 999999)),
    ("char(5)", "ab   "), ("varchar(50)", "Zoë €"), ("varchar(max)", "x" * 10_000), ("nchar(3)", "ж  "), (
        "nvarchar(50)", "日本 😀"),
    ("nvarchar(max)", "é" * 9_000), ("nvarchar(max)", ""), ("binary(4)", b"\1\2\0\0"), ("varbinary(10)", b""),
    ("varbinary(max)", b"\xff" * 9_000),
    ("uniqueidentifier", "6F9619FF-8B86-D011-B42D-00C04FC964FF"), ("text", "long ago"), ("ntext", "дав"), ("image",
    b"\0\1"), ("xml", "<a>1</a>"),
]  # fmt: skip


@pytest.mark.parametrize(("declared", "value"), VALUES)
def test_a_value_comes_back_as_it_went_in(db: pyodbc.Connection, declared: str, value: object) -> None:
    db.execute(f"CREATE TABLE dbo.t (a {declared} NULL)")
    db.execute("INSERT INTO dbo.t (a) VALUES (?)", value)
    assert one(db, "SELECT a FROM dbo.t") == value


@pytest.mark.parametrize("declared", sorted({d for d, _ in VALUES} | {"datetimeoffset(7)"}))
def test_null_comes_back_of_every_type(db: pyodbc.Connection, declared: str) -> None:
    db.execute(f"CREATE TABLE dbo.t (k int, a {declared} NULL)")
    db.execute("INSERT INTO dbo.t (k, a) VALUES (?, ?)", 1, None)
    db.add_output_converter(-155, lambda raw: raw)  # pyodbc does not know datetimeoffset
    assert one(db, "SELECT a FROM dbo.t") is None


def test_a_datetimeoffset_keeps_its_offset(db: pyodbc.Connection) -> None:
    db.execute("CREATE TABLE dbo.t (a datetimeoffset(3))")
    db.execute("INSERT INTO dbo.t (a) VALUES ('2024-03-01T10:00:00.123-05:30')")
    seen: list[bytes] = []
    db.add_output_converter(-155, lambda raw: seen.append(raw) or "")
    db.execute("SELECT a FROM dbo.t").fetchone()
    year, month, day, hour, minute, second, nanoseconds, offset_hour, offset_minute = struct.unpack("<6hI2h", seen[0])
    assert (year, month, day, hour, minute, second, nanoseconds) == (2024, 3, 1, 10, 0, 0, 123_000_000)
    assert (offset_hour, offset_minute) == (-5, -30)
    row = db.execute(
        "SELECT DATEDIFF_BIG(second, CAST('1970-01-01' AS datetime2(0)), CAST(SWITCHOFFSET(a, '+00:00') AS "
        "datetime2(7))), CONVERT(varchar(40), a, 126) FROM dbo.t"
    ).fetchone()
    assert tuple(row) == (1709307000, "2024-03-01T10:00:00.123-05:30")


def test_the_schema_tells_types_of_tables_and_views_as_sql_server_names_them(db: pyodbc.Connection) -> None:
    db.execute("CREATE SCHEMA s")
    db.execute(
        "CREATE TABLE s.t (id int IDENTITY(1,1) PRIMARY KEY, v rowversion NOT NULL, m money, d decimal(12,3), n "
        "nvarchar(40) NOT NULL, "
        "x varchar(max), o datetimeoffset(2), s smalldatetime, g uniqueidentifier, c char(3), f float, r real, "
        "b varbinary(16), u numeric(9))"
    )
    db.execute(
        "CREATE VIEW s.w AS SELECT t.id, MAX(t.v) AS v, ISNULL(MAX(t.n), N'') AS [person.n], COALESCE(SUM(t.m), "
        "0) AS total, "
        "CAST(MAX(t.d) AS decimal(18,2)) AS d, CASE WHEN MAX(t.c) = 'x' THEN 'yes' ELSE 'no' END AS said, "
        "COUNT(*) AS many, "
        "MAX(t.o) AS o FROM s.t AS t GROUP BY t.id"
    )
    found = db.execute(
        "SELECT TABLE_NAME, COLUMN_NAME, DATA_TYPE, CHARACTER_MAXIMUM_LENGTH, NUMERIC_PRECISION, NUMERIC_SCALE, "
        "DATETIME_PRECISION "
        "FROM INFORMATION_SCHEMA.COLUMNS WHERE TABLE_SCHEMA = ? ORDER BY TABLE_NAME, ORDINAL_POSITION", "s",
    ).fetchall()  # fmt: skip
    assert [tuple(r) for r in found if r[0] == "t"] == [
        ("t", "id", "int", None, 10, 0, None), ("t", "v", "timestamp", None, None, None, None), ("t", "m", "money",
        None, 19, 4, None),
        ("t", "d", "decimal", None, 12, 3, None), ("t", "n", "nvarchar", 40, None, None, None), ("t", "x", "varchar",
        -1, None, None, None),
        ("t", "o", "datetimeoffset", None, None, None, 2), ("t", "s", "smalldatetime", None, None, None, 0),
        ("t", "g", "uniqueidentifier", None, None, None, None), ("t", "c", "char", 3, None, None, None), ("t", "f",
        "float", None, 53, None, None),
        ("t", "r", "real", None, 24, None, None), ("t", "b", "varbinary", 16, None, None, None), ("t", "u", "numeric",
        None, 9, 0, None),
    ]  # fmt: skip
    assert [(r[1], r[2]) for r in found if r[0] == "w"] == [
        ("id", "int"), ("v", "timestamp"), ("person.n", "nvarchar"), ("total", "money"), ("d", "decimal"), ("said",
        "varchar"), ("many", "int"),
        ("o", "datetimeoffset"),
    ]  # fmt: skip
    assert one(db, "SELECT TABLE_TYPE FROM INFORMATION_SCHEMA.TABLES WHERE TABLE_NAME = 'w'") == "VIEW"
    assert one(db, "SELECT COUNT(*) FROM INFORMATION_SCHEMA.VIEWS WHERE TABLE_SCHEMA = 's'") == 1


# ---------------------------------------------------------------- expressions

EXPRESSIONS: list[tuple[str, object]] = [
    ("7 / 2", 3), ("-7 / 2", -3), ("-7 % 3", -1), ("7 / 2.0", Decimal("3.500000")), ("1 + 1.5", Decimal("2.5")),
    ("'a' + N'b'", "ab"),
    ("CAST(1 AS float) / 3", 1 / 3), ("ISNULL(CAST(NULL AS varchar(3)), 'abcdef')", "abc"), ("COALESCE(NULL, 1, 2)", 1),
    ("IIF(1 = 2, 'x', 'y')", "y"), ("LEN('ab  ')", 2), ("DATALENGTH(N'ab')", 4), ("SUBSTRING('abcdef', 2, 3)", "bcd"),
    ("SUBSTRING('abc', 0, 2)", "a"),
    ("LEFT('abc', 2) + RIGHT('abc', 1)", "abc"), ("REPLACE('aXbx', 'x', '-')", "a-b-"), ("UPPER('é') + LOWER('ABC')",
    "Éabc"),
    ("LTRIM(RTRIM('  a '))", "a"), ("CAST('ab' AS char(4)) + '|'", "ab  |"), ("TRIM('  a ')", "a"),
    ("CONCAT('a', NULL, 1)", "a1"), ("CHARINDEX('C', 'abc')", 3),
    ("ABS(-5)", 5),
    ("ROUND(1.256, 2)", Decimal("1.260")), ("FLOOR(-1.5)", Decimal("-2")), ("CEILING(1.2)", Decimal("2")),
    ("CAST('2024-01-31' AS date)", date(2024, 1, 31)), ("DATEADD(month, 1, CAST('2024-01-31' AS date))", date(2024, 2,
    29)),
    ("DATEDIFF(day, '2024-01-01', '2024-03-01')", 60), ("DATEDIFF(year, '2023-12-31', '2024-01-01')", 1),
    ("DATEDIFF_BIG(second, CAST('1970-01-01' AS datetime2(0)), CAST('2100-01-01' AS datetime2(0)))", 4102444800),
    ("DATEPART(weekday, CAST('2024-03-03' AS date))", 1), ("YEAR('2024-03-03')", 2024), ("EOMONTH('2024-02-01')",
    date(2024, 2, 29)),
    ("CONVERT(varchar(33), CAST('2024-01-02T03:04:05.1234560' AS datetime2(7)), 126)", "2024-01-02T03:04:05.1234560"),
    ("CONVERT(varchar(33), CAST('2024-01-02T03:04:05.120' AS datetime2(3)), 126)", "2024-01-02T03:04:05.120"),
    ("CONVERT(varchar(33), CAST('2024-01-02 03:04:05' AS datetime2(0)), 126)", "2024-01-02T03:04:05"),
    ("CONVERT(varchar(10), CAST('2024-01-02' AS datetime), 112)", "20240102"), ("CONVERT(varchar(8), "
        "CAST('03:04:05.6' AS time(3)), 108)", "03:04:05"),
    ("CONVERT(varchar(30), CAST('2024-01-02 03:04:05' AS datetime), 120)", "2024-01-02 03:04:05"), (
        "CONVERT(varchar(20), CAST(1.5 AS money))", "1.50"),
    ("LOWER(CONVERT(char(36), CAST('6F9619FF-8B86-D011-B42D-00C04FC964FF' AS uniqueidentifier)))",
        "6f9619ff-8b86-d011-b42d-00c04fc964ff"),
    ("TRY_CONVERT(int, 'x')", None), ("TRY_CAST('2024-99-01' AS date)", None), ("CAST(2.9 AS int)", 2), (
        "CAST('12' AS int)", 12),
    ("CAST(256 AS binary(4))", b"\0\0\1\0"), ("CAST(0x0100 AS int)", 256), ("CONVERT(varchar(10), 0x0AFF, 1)",
    "0x0AFF"),
    ("CONVERT(varchar(32), HASHBYTES('MD5', 'a'), 2)", "0CC175B9C0F1B6A831C399E269772661"),
    ("CONVERT(varchar(64), HASHBYTES('SHA2_256', N'a'), 2)",
        "FFE9AAEAA2A2D5048174DF0B80599EF0197EC024C4B051BC9860CFF58EF7F9F3"),
    ("CASE WHEN 'abc' = 'ABC  ' THEN 1 ELSE 0 END", 1), ("CASE WHEN 'abc' COLLATE Latin1_General_100_BIN2 = "
        "'ABC' THEN 1 ELSE 0 END", 0),
    ("CASE WHEN 'abc' LIKE 'A[a-c]%' THEN 1 ELSE 0 END", 1), ("CASE WHEN 'a%c' LIKE 'a!%c' ESCAPE '!' THEN 1 "
        "ELSE 0 END", 1),
    ("CASE WHEN 'b' IN ('A', 'B ') THEN 1 ELSE 0 END", 1), ("CASE WHEN 5 BETWEEN 1 AND 5 THEN 1 ELSE 0 END", 1),
    ("NULLIF(1, 1)", None),
    ("CAST('2024-01-02 03:04:05.678' AS datetime)", datetime(2024, 1, 2, 3, 4, 5, 677000)),
    ("CAST('2024-01-02 03:04:31' AS smalldatetime)", datetime(2024, 1, 2, 3, 5)), ("CAST('01:02:03.456789' AS "
        "time(6))", time(1, 2, 3, 456789)), ("CAST(1 AS bit) & 1", True), ("6 | 1", 7), ("5 ^ 1", 4),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "value"), EXPRESSIONS)
def test_an_expression_gives_what_sql_server_gives(db: pyodbc.Connection, expression: str, value: object) -> None:
    result = one(db, f"SELECT {expression}")
    assert result == value
    assert type(result) is type(value) or isinstance(value, bool)


def test_aggregates_windows_and_apply(db: pyodbc.Connection) -> None:
    db.execute("CREATE TABLE dbo.t (k int, g varchar(5), n int)")
    db.execute("INSERT INTO dbo.t VALUES (1, 'a', 1), (2, 'A', 2), (3, 'b', 4), (4, NULL, NULL)")
    grouped = db.execute("SELECT g, AVG(n), COUNT(n), SUM(n) FROM dbo.t GROUP BY g ORDER BY g").fetchall()
    assert [(r[0] and r[0].lower(), *r[1:]) for r in grouped] == [(None, None, 0, None), ("a", 1, 2, 3), ("b", 4, 1, 4)]
    numbered = db.execute(
        "SELECT k, ROW_NUMBER() OVER (PARTITION BY g ORDER BY n DESC), SUM(n) OVER (ORDER BY k) FROM dbo.t ORDER BY k"
    ).fetchall()
    assert [tuple(r) for r in numbered] == [(1, 2, 1), (2, 1, 3), (3, 1, 7), (4, 1, 7)]
    applied = db.execute(
        "SELECT t.k, a.n FROM dbo.t AS t OUTER APPLY (SELECT TOP (1) u.n FROM dbo.t AS u WHERE u.n > t.n ORDER "
        "BY u.n) AS a ORDER BY t.k"
    ).fetchall()
    assert [tuple(r) for r in applied] == [(1, 2), (2, 4), (3, None), (4, None)]
    assert one(db, "SELECT STRING_AGG(g, ',') WITHIN GROUP (ORDER BY k DESC) FROM dbo.t") == "b,A,a"
    assert one(db, "WITH c AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM c WHERE n < 5) SELECT SUM(n) FROM c") == 15
    assert [r[0] for r in db.execute("SELECT k FROM dbo.t ORDER BY n OFFSET 1 ROWS FETCH NEXT 2 ROWS ONLY")] == [1, 2]


def test_datetimeoffsets_compare_and_sort_by_their_moment(db: pyodbc.Connection) -> None:
    db.execute("CREATE TABLE dbo.t (k int, at datetimeoffset(0))")
    db.execute(
        "INSERT INTO dbo.t VALUES (1, '2024-01-01T12:00:00+02:00'), (2, '2024-01-01T10:00:00+00:00'), "
        "(3, '2024-01-01T04:00:00-05:00'), (4, '2024-01-01T09:59:59Z')"
    )
    assert [r[0] for r in db.execute("SELECT k FROM dbo.t ORDER BY at, k DESC")] == [3, 4, 2, 1]
    found = db.execute("SELECT k FROM dbo.t WHERE at = CAST(? AS datetimeoffset(7)) ORDER BY k", "2024-01-01T10:00:00Z")
    assert [r[0] for r in found] == [1, 2]
    assert one(db, "SELECT COUNT(DISTINCT at) FROM dbo.t") == 3
    assert one(db, "SELECT CONVERT(varchar(40), MAX(at), 127) FROM dbo.t") == "2024-01-01T10:00:00Z"


def test_order_by_is_exact_under_bin2_and_nulls_come_first(db: pyodbc.Connection) -> None:
    db.execute("CREATE TABLE dbo.t ([key] varchar(10))")
    db.execute("INSERT INTO dbo.t VALUES ('b'), ('B'), ('a'), ('A'), (NULL)")
    exact = db.execute("SELECT v.[key] FROM dbo.t AS v ORDER BY v.[key] COLLATE Latin1_General_100_BIN2").fetchall()
    assert [r[0] for r in exact] == [None, "A", "B", "a", "b"]
    above = db.execute(
        "SELECT v.[key] FROM dbo.t AS v WHERE v.[key] COLLATE Latin1_General_100_BIN2 > CAST(? AS nvarchar(50)) "
        "COLLATE Latin1_General_100_BIN2 "
        "ORDER BY v.[key] COLLATE Latin1_General_100_BIN2", "B",
    ).fetchall()  # fmt: skip
    assert [r[0] for r in above] == ["a", "b"]


# ---------------------------------------------------------------- errors

FAULTS = [
    ("SELECT * FROM retention.nothing", "42S02", 208), ("SELECT nope FROM dbo.t", "42S22", 207), (
        "SELECT x.a FROM dbo.t AS t", "42000", 4104),
    ("SELECT 1 / 0", "22012", 8134), ("SELECT a / 0.0 FROM dbo.t", "22012", 8134), ("INSERT INTO dbo.t (a) VALUES (1)",
    "23000", 2627),
    ("INSERT INTO dbo.t (a) VALUES (NULL)", "23000", 515), ("SELECT CAST('x' AS int)", "22018", 245), (
        "SELECT CAST('x' AS date)", "22007", 241),
    ("INSERT INTO dbo.t (a, s) VALUES (9, 'long text')", None, 2628), ("SELECT CAST(300 AS tinyint)", "22003", 220),
    ("CREATE TABLE dbo.t (a int)", "42S01", 2714), ("CREATE TABLE nowhere.t (a int)", "42000", 2760),
    ("SELECT a, s, COUNT(*) FROM dbo.t GROUP BY a", "42000", 8120), ("SELECT nothing_known(1)", "42000", 195),
    ("SELEC 1", "42000", None),
]  # fmt: skip


@pytest.mark.parametrize(("sql", "state", "number"), FAULTS)
def test_an_error_has_the_number_and_the_state_of_a_real_one(
    db: pyodbc.Connection, sql: str, state: str | None, number: int | None
) -> None:
    db.execute("CREATE TABLE dbo.t (a int NOT NULL PRIMARY KEY, s varchar(3))")
    db.execute("INSERT INTO dbo.t (a) VALUES (1)")
    with pytest.raises(pyodbc.Error) as error:
        db.execute(sql).fetchall()
    assert state is None or code(error)[0] == state
    assert number is None or code(error)[1] == number
    assert one(db, "SELECT COUNT(*) FROM dbo.t") == 1


@only_standin
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT TOP 1 WITH TIES 1 AS a ORDER BY a",
        "SELECT 1 AS a INTO #x",
        "SELECT 1 FOR JSON PATH",
        "DECLARE @x int = 1",
        "MERGE INTO dbo.t AS t USING dbo.t AS s ON t.a = s.a WHEN MATCHED THEN DELETE;",
    ],
)
def test_what_it_cannot_do_it_refuses(db: pyodbc.Connection, sql: str) -> None:
    db.execute("CREATE TABLE dbo.t (a int)")
    with pytest.raises(pyodbc.Error, match="stand-in"):
        db.execute(sql)


# ---------------------------------------------------------------- row versions and transactions


@pytest.fixture
def orders(db: pyodbc.Connection) -> pyodbc.Connection:
    db.execute("CREATE TABLE dbo.orders (id int NOT NULL PRIMARY KEY, n int, row_version rowversion NOT NULL)")
    db.execute("INSERT INTO dbo.orders (id, n) VALUES (1, 0), (2, 0), (3, 0)")
    return db


def versions(db: pyodbc.Connection) -> dict[int, bytes]:
    return {r[0]: r[1] for r in db.execute("SELECT id, row_version FROM dbo.orders")}


def test_every_change_of_a_row_gives_it_a_new_row_version(orders: pyodbc.Connection) -> None:
    before = versions(orders)
    assert len(set(before.values())) == 3
    assert orders.execute("UPDATE dbo.orders SET n = n WHERE id = 2").rowcount == 1
    after = versions(orders)
    assert (after[1], after[3]) == (before[1], before[3])
    assert after[2] > max(before.values())
    assert after[2] == one(orders, "SELECT @@DBTS")
    assert one(orders, "SELECT MIN_ACTIVE_ROWVERSION()") > after[2]  # type: ignore[operator]


def test_an_open_transaction_holds_min_active_rowversion_back(connect: Connect, orders: pyodbc.Connection) -> None:
    a, b = connect(autocommit=False), connect(autocommit=False)
    a.execute("INSERT INTO dbo.orders (id, n) VALUES (10, 0)")
    b.execute("INSERT INTO dbo.orders (id, n) VALUES (11, 0)")
    b.commit()
    own = one(a, "SELECT row_version FROM dbo.orders WHERE id = 10")
    theirs = one(b, "SELECT row_version FROM dbo.orders WHERE id = 11")
    b.commit()
    bound = one(orders, "SELECT MIN_ACTIVE_ROWVERSION()")
    assert bound == own < theirs  # type: ignore[operator]
    a.commit()
    assert one(orders, "SELECT MIN_ACTIVE_ROWVERSION()") > theirs  # type: ignore[operator]


def test_a_rollback_lets_min_active_rowversion_go_on(connect: Connect, orders: pyodbc.Connection) -> None:
    a = connect(autocommit=False)
    a.execute("UPDATE dbo.orders SET n = 5 WHERE id = 1")
    held = one(orders, "SELECT MIN_ACTIVE_ROWVERSION()")
    a.rollback()
    assert one(orders, "SELECT MIN_ACTIVE_ROWVERSION()") > held  # type: ignore[operator]
    assert one(orders, "SELECT n FROM dbo.orders WHERE id = 1") == 0


def test_two_writers_of_different_rows_do_not_wait_for_each_other(connect: Connect, orders: pyodbc.Connection) -> None:
    a, b = connect(autocommit=False), connect(autocommit=False)
    assert a.execute("UPDATE dbo.orders SET n = 1 WHERE id = 1").rowcount == 1
    assert b.execute("UPDATE dbo.orders SET n = 2 WHERE id = 2").rowcount == 1
    b.commit()
    a.commit()
    assert [r[0] for r in orders.execute("SELECT n FROM dbo.orders ORDER BY id")] == [1, 2, 0]


@pytest.mark.parametrize("autocommit", [True, False])
def test_a_second_writer_of_a_row_waits_and_sees_the_first_ones_change(
    connect: Connect, orders: pyodbc.Connection, autocommit: bool
) -> None:
    a, b = connect(autocommit=False), connect(autocommit=autocommit)
    if not autocommit:
        b.execute("UPDATE dbo.orders SET n = n + 100 WHERE id = 3")
    a.execute("UPDATE dbo.orders SET n = n + 1 WHERE id = 1")
    done = threading.Event()

    def second() -> None:
        b.execute("UPDATE dbo.orders SET n = n + 10 WHERE id = 1")
        if not autocommit:
            b.commit()
        done.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not done.wait(0.5)
    a.commit()
    assert done.wait(5)
    thread.join()
    assert [r[0] for r in orders.execute("SELECT n FROM dbo.orders ORDER BY id")] == [11, 0, 0 if autocommit else 100]


def test_a_lock_timeout_is_1222(connect: Connect, orders: pyodbc.Connection) -> None:
    a, b = connect(autocommit=False), connect()
    a.execute("UPDATE dbo.orders SET n = 1 WHERE id = 1")
    b.execute("SET LOCK_TIMEOUT 300")
    with pytest.raises(pyodbc.Error) as error:
        b.execute("UPDATE dbo.orders SET n = 2 WHERE id = 1")
    assert code(error)[1] == 1222


def test_a_commit_that_meets_a_key_committed_meanwhile_fails_and_leaves_a_fresh_transaction(
    connect: Connect, orders: pyodbc.Connection
) -> None:
    if REAL:
        pytest.skip("a real server's INSERT would have waited")
    a, b = connect(autocommit=False), connect(autocommit=False)
    a.execute("INSERT INTO dbo.orders (id, n) VALUES (10, 1)")
    b.execute("INSERT INTO dbo.orders (id, n) VALUES (10, 2)")
    a.commit()
    with pytest.raises(pyodbc.IntegrityError):
        b.commit()
    b.rollback()
    b.execute("UPDATE dbo.orders SET n = 3 WHERE id = 10")
    assert one(orders, "SELECT n FROM dbo.orders WHERE id = 10") == 1
    b.rollback()
    assert one(orders, "SELECT n FROM dbo.orders WHERE id = 10") == 1


def test_a_transaction_goes_on_after_a_failed_statement(connect: Connect, orders: pyodbc.Connection) -> None:
    a = connect(autocommit=False)
    a.execute("INSERT INTO dbo.orders (id, n) VALUES (10, 1)")
    with pytest.raises(pyodbc.IntegrityError):
        a.execute("INSERT INTO dbo.orders (id, n) VALUES (1, 1)")
    a.execute("UPDATE dbo.orders SET n = 2 WHERE id = 10")
    a.commit()
    assert one(orders, "SELECT n FROM dbo.orders WHERE id = 10") == 2


def test_nothing_stays_of_a_client_that_is_killed_within_a_transaction(
    server: str, connect: Connect, orders: pyodbc.Connection
) -> None:
    name = one(orders, "SELECT DB_NAME()")
    script = (
        "import sys, time; sys.path.insert(0, '.'); from local import driver; driver.register(); import pyodbc\n"
        f"c = pyodbc.connect({server!r} + ';Database={name}'); c.execute('UPDATE dbo.orders SET n = 9'); "
        f"print('written', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "written\n"
        client.kill()
    deadline = clock.monotonic() + 10
    while (
        one(orders, "SELECT MIN_ACTIVE_ROWVERSION()") <= one(orders, "SELECT @@DBTS") and clock.monotonic() < deadline
    ):  # type: ignore[operator]
        clock.sleep(0.05)
    assert one(orders, "SELECT MIN_ACTIVE_ROWVERSION()") > one(orders, "SELECT @@DBTS")  # type: ignore[operator]
    assert one(orders, "SELECT SUM(n) FROM dbo.orders") == 0
    assert orders.execute("UPDATE dbo.orders SET n = 1").rowcount == 3


def test_no_row_version_below_the_bound_appears_later(connect: Connect, orders: pyodbc.Connection) -> None:
    faults: list[Exception] = []

    def write(client: pyodbc.Connection, first: int) -> None:
        try:
            for i in range(first, first + 40):
                client.execute("INSERT INTO dbo.orders (id, n) VALUES (?, 0)", i)
                client.execute("UPDATE dbo.orders SET n = n + 1 WHERE id = ?", first)
                client.rollback() if i % 5 == 0 else client.commit()
        except Exception as e:
            faults.append(e)

    threads = [threading.Thread(target=write, args=(connect(autocommit=False), 1000 * n)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    reader, bounds = connect(), []
    while any(thread.is_alive() for thread in threads):
        bound = one(reader, "SELECT MIN_ACTIVE_ROWVERSION()")
        seen = reader.execute("SELECT id, row_version FROM dbo.orders WHERE row_version < CAST(? AS binary(8))", bound)
        bounds.append((bound, {tuple(r) for r in seen.fetchall()}))
    assert faults == []
    final = {tuple(r) for r in orders.execute("SELECT id, row_version FROM dbo.orders").fetchall()}
    assert len(bounds) > 5
    for bound, seen_then in bounds:
        assert {r for r in final if r[1] < bound} <= seen_then


def test_readers_do_not_wait_for_writers_and_read_what_is_committed(
    connect: Connect, orders: pyodbc.Connection
) -> None:
    if REAL:
        connect(database="master").execute(
            f"ALTER DATABASE {one(orders, 'SELECT DB_NAME()')} SET READ_COMMITTED_SNAPSHOT ON WITH ROLLBACK IMMEDIATE"
        )
        orders = connect()
    a = connect(autocommit=False)
    a.execute("UPDATE dbo.orders SET n = 7")
    assert one(orders, "SELECT MAX(n) FROM dbo.orders") == 0
    assert one(a, "SELECT MIN(n) FROM dbo.orders") == 7


# ---------------------------------------------------------------- paging, streaming, bulk


def test_fifty_thousand_rows_of_one_updated_at_are_paged_by_key(db: pyodbc.Connection) -> None:
    db.execute("CREATE TABLE dbo.t ([key] nvarchar(20) NOT NULL PRIMARY KEY, updated_at datetime2(7) NOT NULL)")
    cursor = db.cursor()
    cursor.fast_executemany = True
    moment = datetime(2024, 1, 2, 3, 4, 5, 678901)
    cursor.executemany(
        "INSERT INTO dbo.t ([key], updated_at) VALUES (?, ?)", [(f"k{i:06}", moment) for i in range(50_000)]
    )
    mark, key, seen = "0001-01-01T00:00:00", "", 0
    while True:
        page = db.execute(
            "SELECT TOP (5000) CONVERT(varchar(33), v.[updated_at], 126), v.[key] FROM dbo.t AS v WHERE "
            "v.[updated_at] >= CAST(? AS datetime2(7)) "
            "AND (v.[updated_at] > CAST(? AS datetime2(7)) OR v.[key] COLLATE Latin1_General_100_BIN2 > CAST(? "
            "AS nvarchar(50)) COLLATE Latin1_General_100_BIN2) "
            "ORDER BY v.[updated_at], v.[key] COLLATE Latin1_General_100_BIN2", mark, mark, key,
        ).fetchall()  # fmt: skip
        if not page:
            break
        seen += len(page)
        mark, key = page[-1]
    assert (seen, mark) == (50_000, "2024-01-02T03:04:05.6789010")


def test_a_view_is_paged_by_row_version_and_key(orders: pyodbc.Connection) -> None:
    orders.execute("CREATE SCHEMA retention")
    orders.execute(
        "CREATE VIEW retention.orders AS SELECT o.id AS event_id, o.row_version, N'a@b.c' AS [person.email] "
        "FROM dbo.orders AS o"
    )
    bound = one(orders, "SELECT MIN_ACTIVE_ROWVERSION()")
    page = (
        "SELECT TOP (2) v.[row_version], CAST(v.[event_id] AS nvarchar(50)), v.[person.email] "
        "FROM [retention].[orders] AS v WHERE v.[row_version] >= CAST(? AS binary(8)) "
        "AND (v.[row_version] > CAST(? AS binary(8)) OR v.[event_id] > CAST(? AS int)) "
        "AND v.[row_version] < CAST(? AS binary(8)) ORDER BY v.[row_version], v.[event_id]"
    )
    first = orders.execute(page, b"\0" * 8, b"\0" * 8, "0", bound).fetchall()
    second = orders.execute(page, first[-1][0], first[-1][0], first[-1][1], bound).fetchall()
    assert [r[1] for r in first + second] == ["1", "2", "3"]
    assert first[0][2] == "a@b.c"


def test_changes_are_joined_to_their_customers(orders: pyodbc.Connection) -> None:
    orders.execute("CREATE TABLE dbo.people (id int PRIMARY KEY, name nvarchar(10))")
    orders.execute("INSERT INTO dbo.people VALUES (2, N'two')")
    rows = orders.execute(
        "SELECT ch.change_cursor, ch.change_key, v.name FROM (SELECT h.[id] AS change_key, MAX(h.[row_version]) "
        "AS change_cursor FROM dbo.orders AS h "
        "WHERE h.row_version < MIN_ACTIVE_ROWVERSION() GROUP BY h.[id]) AS ch LEFT JOIN dbo.people AS v ON v.id "
        "= ch.change_key "
        "ORDER BY ch.change_cursor, ch.change_key"
    ).fetchall()
    assert [tuple(r[1:]) for r in rows] == [(1, None), (2, "two"), (3, None)]


NUMBERS = "SELECT a.n * 1000 + b.n AS n, CONCAT('row ', b.n) AS t FROM dbo.n AS a CROSS JOIN dbo.n AS b"


@pytest.fixture
def numbers(db: pyodbc.Connection) -> pyodbc.Connection:
    db.execute("CREATE TABLE dbo.n (n int)")
    cursor = db.cursor()
    cursor.fast_executemany = True
    cursor.executemany("INSERT INTO dbo.n VALUES (?)", [(i,) for i in range(1000)])
    return db


def test_a_large_result_is_streamed_and_holds_nobody_up(connect: Connect, numbers: pyodbc.Connection) -> None:
    started = clock.monotonic()
    cursor = numbers.execute(f"{NUMBERS} WHERE a.n < 300")
    assert len(cursor.fetchmany(1000)) == 1000
    assert clock.monotonic() - started < 2
    assert one(connect(), "SELECT COUNT(*) FROM dbo.n") == 1000
    seen = 1000
    while rows := cursor.fetchmany(1000):
        seen += len(rows)
    assert seen == 300_000


def test_an_abandoned_result_does_not_spoil_the_connection(numbers: pyodbc.Connection) -> None:
    for _ in range(3):
        cursor = numbers.execute(NUMBERS)
        cursor.fetchmany(10)
        cursor.close()
        assert one(numbers, "SELECT COUNT(*) FROM dbo.n") == 1000


def test_cancel_stops_a_statement(numbers: pyodbc.Connection) -> None:
    cursor = numbers.cursor()
    timer = threading.Timer(0.4, cursor.cancel)
    timer.start()
    started = clock.monotonic()
    with pytest.raises(pyodbc.Error) as error:
        cursor.execute("WAITFOR DELAY '00:00:20'")
    assert error.value.args[0] == "HY008"
    assert clock.monotonic() - started < 5
    timer.join()
    assert one(numbers, "SELECT 1") == 1


def test_a_query_timeout_stops_a_statement(numbers: pyodbc.Connection) -> None:
    numbers.timeout = 1
    with pytest.raises(pyodbc.Error) as error:
        numbers.execute(
            "SELECT COUNT(*) FROM dbo.n AS a, dbo.n AS b, dbo.n AS c, dbo.n AS d WHERE (a.n * 7 + b.n * 3 + "
            "c.n) % 11 = d.n % 10"
        ).fetchall()
    assert error.value.args[0] == "HYT00"
    numbers.timeout = 0
    assert one(numbers, "SELECT 1") == 1


def test_a_bulk_insert_of_seventy_thousand_rows_is_typed(db: pyodbc.Connection) -> None:
    db.execute(
        "CREATE TABLE dbo.t (id int PRIMARY KEY, name nvarchar(50), total decimal(12,2), at datetime2(0), score "
        "float, paid bit, v rowversion)"
    )
    start = datetime(2024, 1, 1)
    rows = [
        (
            i,
            f"name {i}" if i % 10 else None,
            Decimal(i) / 100,
            start + timedelta(seconds=i),
            i * 1.5,
            i % 2 == 0,
        )
        for i in range(70_000)
    ]
    cursor = db.cursor()
    cursor.fast_executemany = True
    cursor.executemany("INSERT INTO dbo.t (id, name, total, at, score, paid) VALUES (?, ?, ?, ?, ?, ?)", rows)
    back = db.execute("SELECT id, name, total, at, score, paid FROM dbo.t ORDER BY id").fetchall()
    assert [tuple(r) for r in back] == rows
    assert one(db, "SELECT COUNT(DISTINCT v) FROM dbo.t") == 70_000


def test_one_bad_row_of_a_bulk_insert_is_reported(connect: Connect, orders: pyodbc.Connection) -> None:
    a = connect(autocommit=False)
    cursor = a.cursor()
    cursor.fast_executemany = True
    with pytest.raises(pyodbc.IntegrityError):
        cursor.executemany("INSERT INTO dbo.orders (id, n) VALUES (?, ?)", [(i, 0) for i in (20, 21, 1, 22)])
    a.rollback()
    assert one(orders, "SELECT COUNT(*) FROM dbo.orders") == 3


# ---------------------------------------------------------------- statements that change things


def test_counts_defaults_identity_and_output(db: pyodbc.Connection) -> None:
    db.execute(
        "CREATE TABLE dbo.t (id int IDENTITY(10,5) NOT NULL CONSTRAINT pk_t PRIMARY KEY CLUSTERED, a varchar(5) "
        "NOT NULL DEFAULT 'x', "
        "at datetime2(3) NOT NULL DEFAULT SYSUTCDATETIME(), g uniqueidentifier NOT NULL DEFAULT NEWID(), "
        "CONSTRAINT ck CHECK (a <> 'bad'))"
    )
    assert db.execute("INSERT INTO dbo.t DEFAULT VALUES").rowcount == 1
    assert db.execute("INSERT INTO dbo.t (a) VALUES ('p'), ('q')").rowcount == 2
    assert one(db, "SELECT SCOPE_IDENTITY()") == 20
    assert one(db, "INSERT INTO dbo.t (a) OUTPUT inserted.id VALUES ('r')") == 25
    assert [tuple(r) for r in db.execute("SELECT id, a FROM dbo.t ORDER BY id")] == [
        (10, "x"),
        (15, "p"),
        (20, "q"),
        (25, "r"),
    ]
    assert abs(one(db, "SELECT DATEDIFF(second, MIN(at), SYSUTCDATETIME()) FROM dbo.t")) < 60  # type: ignore[arg-type]
    with pytest.raises(pyodbc.IntegrityError):
        db.execute("INSERT INTO dbo.t (a) VALUES ('bad')")
    assert (
        db.execute("UPDATE t SET a = u.a FROM dbo.t AS t JOIN dbo.t AS u ON u.id = t.id + 5 WHERE t.id < 20").rowcount
        == 2
    )
    assert [r[0] for r in db.execute("SELECT a FROM dbo.t ORDER BY id")] == ["p", "q", "q", "r"]
    assert db.execute("DELETE FROM dbo.t WHERE a = 'Q'").rowcount == 2
    assert db.execute("DELETE t FROM dbo.t AS t JOIN dbo.t AS u ON u.id = t.id WHERE u.a = 'p'").rowcount == 1
    db.execute("TRUNCATE TABLE dbo.t")
    assert one(db, "SELECT COUNT(*) FROM dbo.t") == 0


def test_tables_and_views_change(db: pyodbc.Connection) -> None:
    db.execute("CREATE TABLE dbo.t (id int PRIMARY KEY)")
    db.execute("INSERT INTO dbo.t VALUES (1)")
    db.execute("ALTER TABLE dbo.t ADD note nvarchar(20) NULL, v rowversion")
    db.execute("CREATE OR ALTER VIEW dbo.w AS SELECT id FROM dbo.t")
    db.execute("CREATE OR ALTER VIEW dbo.w AS SELECT id, note AS [person.note] FROM dbo.t")
    assert [tuple(r) for r in db.execute("SELECT * FROM dbo.w")] == [(1, None)]
    assert len(one(db, "SELECT v FROM dbo.t")) == 8  # type: ignore[arg-type]
    db.execute("DROP VIEW IF EXISTS dbo.w")
    db.execute("DROP VIEW IF EXISTS dbo.w")
    db.execute("IF OBJECT_ID('dbo.t', 'U') IS NOT NULL DROP TABLE dbo.t")
    with pytest.raises(pyodbc.Error) as error:
        db.execute("SELECT * FROM dbo.t")
    assert code(error)[1] == 208


def test_many_clients_at_once(connect: Connect, orders: pyodbc.Connection) -> None:
    clients = [connect() for _ in range(8)]
    faults: list[Exception] = []

    def work(client: pyodbc.Connection) -> None:
        try:
            for _ in range(10):
                client.execute("UPDATE dbo.orders SET n = n + 1 WHERE id = 1")
        except Exception as e:
            faults.append(e)

    threads = [threading.Thread(target=work, args=(c,)) for c in clients]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert faults == []
    assert one(orders, "SELECT n FROM dbo.orders WHERE id = 1") == 80


PERMISSIONS = (
    "SELECT HAS_PERMS_BY_NAME('dbo', 'SCHEMA', 'SELECT'), HAS_PERMS_BY_NAME(DB_NAME(), 'DATABASE', 'INSERT'),"
    " HAS_PERMS_BY_NAME('[dbo].[orders]', 'OBJECT', 'SELECT'), HAS_PERMS_BY_NAME('dbo.orders', 'OBJECT', 'UPDATE')"
)


def test_who_owns_the_database_has_every_permission(orders):
    assert tuple(orders.execute(PERMISSIONS).fetchone()) == (1, 1, 1, 1)


@only_standin
def test_it_tells_the_permissions_that_it_was_told(orders):
    command = f"EXEC sp_standin_permissions N'{one(orders, 'SELECT DB_NAME()')}', N'%s'"
    for told, has in [
        ('["SELECT ON SCHEMA::dbo"]', (1, 0, 1, 0)),
        ('["UPDATE ON OBJECT::dbo.orders"]', (0, 0, 0, 1)),
        ('["INSERT ON DATABASE"]', (0, 1, 0, 0)),
        ('["CONTROL ON DATABASE"]', (1, 1, 1, 1)),
        ("[]", (0, 0, 0, 0)),
        ("null", (1, 1, 1, 1)),
    ]:
        orders.execute(command % told)
        assert tuple(orders.execute(PERMISSIONS).fetchone()) == has, told
