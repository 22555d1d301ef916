"""Whatever type a column has and whatever it holds: a row is sent as Customer.io takes it, or set aside with a reason.

Generated rows are held against the vendor's contract as the stand-in knows it, first through the Mapper alone, with all
that SQL Server's types can hold and more, then through the real driver. Repeatable: hypothesis draws the same every time.
"""

import json
import math
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from local.customerio.contract import MAX_OPERATION_BYTES, violations
from shared.errors import ViewFault
from shared.mapping import Mapped, Mapper
from shared.settings import Settings
from shared.source import Page
from shared.syncs import Kind, Sync
from shared.view import Column, Form, Position, Survey, View
from tests.conftest import bare_settings

NOW = 1_795_500_000  # 2026-11-24
SYNCS = {
    Kind.PROFILE: Sync("customers", Kind.PROFILE),
    Kind.EVENT: Sync("orders", Kind.EVENT),
    Kind.MERGE: Sync("merges", Kind.MERGE),
    Kind.REMOVAL: Sync("removals", Kind.REMOVAL),
}

# --- what columns hold ------------------------------------------------------------------------------------------------

ODD_TEXTS = [
    *(
        "",
        " ",
        "\t\r\n",
        "\0",
        "a\0b",
        "\x1b[0m",
        "\x7f",
        "\x85",
        "\u2028",
        "\ufeff",
        "\uffff",
        "e\u0301",
        "'; --",
        '"\\',
    ),
    *("null", "NaN", "true", "1e400", "-0", "2026-01-01", '"text"', '{"a": 1}', "[1, 2]", "{", "[" * 300 + "]" * 300),
    *(
        '{"plan": {"a b": [null, 1.5, "\\u0000"]}}',
        '{"a": "\\ud800"}',
        "[" + "1e15," * 190 + "1]",
        "[1e400]",
        "9" * 400,
    ),
    *("😀", "x" * 4000, "😀" * 2000),
    *("jane@example.com", " jane@example.com ", "jüdith@exämple.com", "x" * 140 + "@example.com", "@", "none"),
]
# two of UTF-16's code units that make no character: nvarchar takes them one by one
HALVES = ["\ud800", "x\udfff", '{"a": "\udc00"}', "\ud800@example.com"]

driver_texts = st.one_of(
    st.sampled_from(ODD_TEXTS),
    st.text(max_size=20),
    # at one of the limits, and right above it
    st.builds(
        lambda unit, limit, more: unit * (limit // len(unit.encode()) + more),
        st.sampled_from(["a", "é", "語", "😀", "\0"]),
        st.sampled_from([100, 150, 1000]),
        st.sampled_from([0, 1]),
    ),
)
texts = st.one_of(driver_texts, st.sampled_from(HALVES), st.text(st.characters(codec=None), max_size=20))
seconds = st.one_of(
    st.sampled_from([-62_135_596_800, -1, 0, NOW, NOW + 301, 4_102_444_801, 253_402_300_799]),
    st.integers(-62_135_596_800, 253_402_300_799),  # the years 1 to 9999
)
floats = st.floats(allow_nan=False, allow_infinity=False)


def mostly(good: st.SearchStrategy[Any], odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """So that a row is not always set aside for one column before its others are looked at."""
    return st.integers(0, 9).flatmap(lambda number: odd if number == 9 else good)


def decimals(whole: int, scale: int) -> st.SearchStrategy[float]:
    """Decimals as the server's CAST to float makes them."""
    return st.integers(-(10**whole), 10**whole).map(lambda number: number / 10**scale)


def wholes(bits: int) -> st.SearchStrategy[int]:
    top = 2 ** (bits - 1)
    return st.one_of(st.sampled_from([-top, 0, top - 1]), st.integers(-top, top - 1))


# Each type of SQL Server, and its values as the driver hands them over after the SELECT's conversion.
TYPES: list[tuple[Column, st.SearchStrategy[Any]]] = [
    (Column("", "bit"), st.booleans()),
    (Column("", "tinyint"), st.integers(0, 255)),
    (Column("", "smallint"), wholes(16)),
    (Column("", "int"), wholes(32)),
    (Column("", "bigint"), wholes(64)),
    (Column("", "decimal", None, 18, 0), st.integers(-(10**18) + 1, 10**18 - 1)),
    (Column("", "numeric", None, 38, 0), st.integers(-(10**38) + 1, 10**38 - 1).map(str)),
    (Column("", "decimal", None, 12, 2), decimals(12, 2)),
    (Column("", "numeric", None, 38, 20), decimals(38, 20)),
    (Column("", "money"), decimals(18, 4)),
    (Column("", "smallmoney"), decimals(9, 4)),
    (Column("", "float"), floats),
    (Column("", "real"), st.floats(allow_nan=False, allow_infinity=False, width=32)),
    *((Column("", kind), seconds) for kind in ("date", "datetime", "datetime2", "smalldatetime", "datetimeoffset")),
    (Column("", "uniqueidentifier"), st.uuids().map(str)),
    (Column("", "time"), st.times().map(lambda moment: moment.strftime("%H:%M:%S"))),
    *((Column("", kind, 100), texts) for kind in ("char", "nchar", "varchar")),
    (Column("", "nvarchar", -1), texts),
]
IDS = [
    (Column("", "int"), st.sampled_from([-1, 0, 7, 8])),
    (Column("", "bigint"), wholes(64)),
    (Column("", "numeric", None, 18, 0), st.integers(-(10**18) + 1, 10**18 - 1)),
    (Column("", "uniqueidentifier"), st.uuids().map(str)),
    (Column("", "nchar", 20), st.sampled_from(["a", "A", "b", "ccc", "00042"])),
    (Column("", "nvarchar", -1), mostly(st.sampled_from(["a", "b", "ccc", "😀"]), texts)),
]
TIMES = [
    (Column("", kind), mostly(st.integers(NOW - 10**6, NOW - 10**4), seconds))
    for kind in ("date", "datetime2", "datetimeoffset")
]
CONTRACT: dict[Kind, dict[str, list[tuple[Column, st.SearchStrategy[Any]]]]] = {
    Kind.PROFILE: {"customer_id": IDS},
    Kind.EVENT: {
        "customer_id": IDS,
        "event_name": [(Column("", "nvarchar", 200), mostly(st.just("Order Placed"), texts))],
        "event_time": TIMES,
        "event_id": IDS,
    },
    Kind.MERGE: {
        "merge_id": IDS,
        "primary_customer_id": IDS,
        "secondary_customer_id": [*IDS, *TYPES],
        "secondary_email": [(Column("", "nvarchar", 320), texts), *TYPES],
        "merged_at": TIMES,
    },
    Kind.REMOVAL: {
        "removal_id": IDS,
        "customer_id": IDS,
        "action": [(Column("", "varchar", 20), mostly(st.sampled_from(["delete", "suppress", "restore"]), texts))],
        "removed_at": TIMES,
    },
}
# the types that these attributes should have, which chance alone would seldom give them
USUAL = {"unsubscribed": "bit", "email": "nvarchar", "phone": "varchar", "created_at": "datetime2"}
ROWS = 3
column_names = st.one_of(
    st.sampled_from(["email", "Email", "phone", "created_at", "unsubscribed", "plan", "a b", "a]b", "💡", "é" * 76]),
    st.sampled_from(["", "id", "_x", "cio_x", "a.b", "recipient", "backfill", "x" * 128, "語" * 128]),
    st.text(min_size=1, max_size=12),
)


@dataclass(frozen=True)
class Table:
    """A generated view with rows: `columns` are its own, `rows` hold `(cursor, key, *values)`."""

    kind: Kind
    columns: tuple[Column, ...]
    rows: list[tuple[Any, ...]]
    settings: Settings

    @property
    def view(self) -> View:
        sync = SYNCS[self.kind]
        columns = (Column("row_version", "timestamp"), *self.columns)
        survey = Survey({sync.view: columns}, "0x00", "0x00", datetime(2026, 1, 1), "server", "shop", False)
        return View(sync, survey, self.settings)

    def map(self, primaries: Callable[[Collection[str]], Mapping[str, str]] = lambda people: {}) -> Mapped:
        page = Page(self.rows, Position("0x00", None), NOW, NOW)
        return Mapper(self.view, self.settings).map(page, NOW - 3600, primaries)


@st.composite
def tables(draw: st.DrawFn, kind: Kind) -> Table:
    """A view of a kind, with columns of any type and name beside the contract's own, and rows of anything."""
    chosen: dict[str, tuple[Column, st.SearchStrategy[Any]]] = {}
    for name, types in CONTRACT[kind].items():
        chosen[name] = draw(st.sampled_from(types))
    if kind in (Kind.PROFILE, Kind.EVENT):
        for name in draw(st.lists(column_names, max_size=5, unique_by=str.lower)):
            of_person = kind is Kind.EVENT and draw(st.booleans())
            if name.lower() not in chosen and name.lower() not in ("row_version", "updated_at"):
                usual = [one for one in TYPES if one[0].type == USUAL.get(name)]
                of_type = draw(st.sampled_from(usual if usual and draw(st.booleans()) else TYPES))
                chosen["person." + name if of_person else name] = of_type
    columns = tuple(replace(column, name=name) for name, (column, _) in chosen.items())
    rows: list[tuple[Any, ...]] = []
    for _ in range(ROWS):
        row = [draw(mostly(of_type, st.none())) for _, of_type in chosen.values()]
        key = draw(st.sampled_from([None, 7]))
        if kind is Kind.PROFILE and row[0] is None and key is not None:
            row = [None] * len(row)  # a person who is no longer in the view
        rows.append((b"\0" * 8, key, *row))
    # some columns many times over, to meet the limits of the whole operation
    if kind in (Kind.PROFILE, Kind.EVENT) and (copies := draw(st.sampled_from([0, 0, 0, 40, 310]))):
        columns += tuple(Column(f"copy {number}", "nvarchar", -1) for number in range(copies))
        rows = [(*row, *[None if row[2] is None else draw(texts)] * copies) for row in rows]
    plain = [name.removeprefix("person.") for name in chosen]
    never_cleared = {"id", "cio_id", "email", "customer_id", "unsubscribed"}
    return Table(
        kind,
        columns,
        rows,
        bare_settings(
            sql_time_zone=draw(st.sampled_from(["UTC", "Europe/Berlin"])),
            json_columns=frozenset(draw(st.sets(st.sampled_from(plain), max_size=2))),
            clear_when_null=frozenset(draw(st.sets(st.sampled_from(plain), max_size=2))) - never_cleared,
            sql_owns_consent=draw(st.booleans()),
        ),
    )


# --- the Mapper alone -------------------------------------------------------------------------------------------------


def finite(text: str) -> float:
    number = float(text)
    assert math.isfinite(number)
    return number


def parsed(payload: bytes) -> dict[str, Any]:
    """An operation as Customer.io reads it. Strict: UTF-8, no NaN, no number that a double cannot hold."""

    def refused(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    operation: dict[str, Any] = json.loads(payload.decode("utf-8"), parse_float=finite, parse_constant=refused)
    json.dumps(operation, ensure_ascii=False).encode("utf-8")  # half a surrogate pair may hide behind an escape
    return operation


def check(table: Table, mapped: Mapped) -> None:
    """Each row has one outcome, and whatever is to be sent can be."""
    sent = [operation.row for operation in mapped.operations]
    assert sent == sorted(set(sent))
    assert not set(sent) & mapped.bad.keys()
    assert len(sent) + len(mapped.bad) + mapped.vanished + len(mapped.merged) == len(table.rows)
    cleared, owns_consent = table.settings.clear_when_null, table.settings.sql_owns_consent
    for operation in mapped.operations:
        assert operation.payloads
        for payload in operation.payloads:
            content = parsed(payload)
            assert violations(content) == []
            assert len(payload) <= MAX_OPERATION_BYTES
            for name, value in content.get("attributes", {}).items():
                of_person = content["action"] == "identify"
                assert value is not None or (of_person and name in cleared)
                assert not of_person or name != "unsubscribed" or value is True or owns_consent
    columns = {column.name for column in table.columns}
    for row, (column, reason) in mapped.bad.items():
        assert column is None or column in columns
        for value in table.rows[row][2:]:
            assert len(str(value)) < 8 or str(value) not in reason


@pytest.mark.parametrize("kind", Kind)
def test_whatever_the_rows_of_a_view_hold_each_is_sent_as_customerio_takes_it_or_set_aside(kind):
    @settings(max_examples=400, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(tables(kind), st.booleans())
    def every(table: Table, some_are_merged: bool) -> None:
        primaries = {str(row[2]): "the primary" for row in table.rows[1:]} if some_are_merged else {}
        with suppress(ViewFault):
            check(table, table.map(lambda people: {p: primaries[p] for p in people if p in primaries}))

    every()


SENT_AS: dict[Form, tuple[type, ...]] = {
    Form.TEXT: (str,),
    Form.WHOLE: (int,),
    Form.LONG: (int, str),  # beyond 2^53
    Form.DECIMAL: (float,),
    Form.NUMBER: (float,),
    Form.SINGLE: (float,),
    Form.FLAG: (bool,),
    Form.WALL_TIME: (int,),
    Form.INSTANT: (int,),
}


@pytest.mark.parametrize("column, of_type", TYPES, ids=lambda column: getattr(column, "type", ""))
def test_a_column_is_sent_with_one_type_whatever_it_holds(column, of_type):
    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(st.lists(of_type, min_size=1, max_size=5), st.sampled_from(["UTC", "Europe/Berlin"]))
    def every(values: list[Any], zone: str) -> None:
        columns = (Column("customer_id", "int"), replace(column, name="x"))
        rows = [(b"\0" * 8, number, number, value) for number, value in enumerate(values)]
        table = Table(Kind.PROFILE, columns, rows, bare_settings(sql_time_zone=zone))
        mapped = table.map()
        check(table, mapped)
        types = SENT_AS[next(field.form for field in table.view.fields if field.name == "x")]
        for operation in mapped.operations:
            assert type(parsed(operation.payloads[0])["attributes"]["x"]) in types

    every()


def one_person(column: Column, value: Any, customer_id: str = "7", **changes: Any) -> Table:
    columns = (Column("customer_id", "nvarchar", 200), column)
    return Table(Kind.PROFILE, columns, [(b"\0" * 8, customer_id, customer_id, value)], bare_settings(**changes))


TEXT = Column("x", "nvarchar", -1)
JSON_OF_X: dict[str, Any] = {"json_columns": frozenset({"x"})}
EDGES = {
    "an id of 38 characters and 152 bytes": one_person(TEXT, "a", "😀" * 38),
    "a value of 251 characters and 1004 bytes": one_person(TEXT, "😀" * 251),
    "half a character that should be JSON": one_person(TEXT, "\ud800", **JSON_OF_X),
    "JSON that is longer as it is sent than as it was read": one_person(TEXT, f"[{'1e15,' * 100}1]", **JSON_OF_X),
    "JSON too deep to be written": one_person(TEXT, "[" * 300 + "]" * 300, **JSON_OF_X),
    "NULL that clears a name of over 150 bytes": one_person(
        Column("é" * 76, "int"), None, clear_when_null=frozenset({"é" * 76})
    ),
    "an email that is a number": one_person(Column("email", "int"), 7),
    "an email that is JSON": one_person(Column("email", "nvarchar", 320), "[]", json_columns=frozenset({"email"})),
    "a phone that is a number": one_person(Column("phone", "bigint"), 4_930_123_456),
    "a created_at that is text": one_person(Column("created_at", "nvarchar", 20), "2026-01-01"),
    "a created_at before 1970": one_person(Column("created_at", "date"), -1),
    "a created_at after 2100": one_person(Column("created_at", "date"), 4_102_444_801),
}


@pytest.mark.parametrize("table", EDGES.values(), ids=EDGES)
def test_what_lies_at_an_edge_is_sent_as_customerio_takes_it_or_refused(table):
    with suppress(ViewFault):
        check(table, table.map())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("of_type", ["float", "real", "money"])
def test_what_is_no_number_makes_no_invalid_json(of_type, value):
    """SQL Server has no such values; should one come all the same, its batch must not be refused as a whole."""
    for operation in one_person(Column("x", of_type), value).map().operations:
        assert violations(parsed(operation.payloads[0])) == []


# --- through the real driver ------------------------------------------------------------------------------------------

MOMENTS = st.datetimes(datetime(1753, 1, 1), datetime(9999, 12, 30))
STORED: dict[str, st.SearchStrategy[Any]] = {
    "bit": st.booleans(),
    "tinyint": st.integers(0, 255),
    "smallint": wholes(16),
    "int": wholes(32),
    "bigint": wholes(64),
    "decimal(18, 0)": st.integers(-(10**18) + 1, 10**18 - 1).map(Decimal),
    "decimal(38, 0)": st.integers(-(10**38) + 1, 10**38 - 1).map(Decimal),
    "decimal(12, 2)": st.decimals(-(10**9), 10**9, places=2),
    "money": st.decimals(-(10**14), 10**14, places=4),
    "float": floats,
    "real": st.floats(allow_nan=False, allow_infinity=False, width=32),
    "date": st.dates(),
    "datetime": MOMENTS.map(lambda moment: moment.replace(microsecond=0)),
    "datetime2(6)": st.datetimes(),
    "datetimeoffset(0)": MOMENTS.map(lambda moment: f"{moment:%Y-%m-%d %H:%M:%S} +05:30"),
    "uniqueidentifier": st.uuids().map(str),
    "time(0)": st.times().map(lambda moment: moment.replace(microsecond=0)),
    "char(8)": st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8),
    "varchar(max)": st.text(st.characters(codec="cp1252"), max_size=40),
    "nvarchar(max)": driver_texts,
}
RECENT = st.datetimes(datetime(2026, 1, 1), datetime(2026, 1, 31))
STORED_ROWS = st.lists(
    st.tuples(
        mostly(st.uuids().map(str), st.one_of(st.none(), driver_texts)),
        mostly(st.just("Order Placed"), st.one_of(st.none(), driver_texts)),
        mostly(RECENT, st.one_of(st.none(), st.datetimes())),
        *(mostly(of_type, st.none()) for of_type in STORED.values()),
    ),
    min_size=12,
    max_size=12,
)


def test_a_table_with_every_type_is_sent_through_the_driver_without_a_refusal(deployment, customerio):
    sql = deployment.sql
    own = "n int NOT NULL PRIMARY KEY, customer_id nvarchar(max), event_name nvarchar(max), event_time datetime2(6)"
    columns = ", ".join(f"c{number} {of_type}" for number, of_type in enumerate(STORED))
    sql.execute(f"CREATE TABLE shop.things ({own}, {columns}, row_version rowversion)")
    of_any_type = [f"c{number}" for number in range(len(STORED))]
    names = ["n", "customer_id", "event_name", "event_time", *of_any_type]
    values = ", ".join(of_any_type)
    of_person = ", ".join(f"{name} AS [person.{name} too]" for name in of_any_type)
    sql.execute(f"CREATE VIEW retention.customers AS SELECT customer_id, {values}, row_version FROM shop.things")
    sql.execute(
        f"CREATE VIEW retention.orders AS SELECT n AS event_id, customer_id, event_name, event_time, {values},"
        f" {of_person}, row_version FROM shop.things"
    )

    # looking for the smallest of the failing examples would take minutes
    @settings(
        max_examples=5,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(STORED_ROWS)
    def every(rows: list[tuple[Any, ...]]) -> None:
        sql.execute("DELETE FROM shop.things")
        for number, row in enumerate(rows):
            # the stand-in cannot insert an untyped NULL into every type, so a NULL is what is left out
            held = {name: value for name, value in zip(names, (number, *row), strict=True) if value is not None}
            places = ", ".join("?" * len(held))
            sql.execute(f"INSERT INTO shop.things ({', '.join(held)}) VALUES ({places})", *held.values())
        workspace = customerio.create_workspace(region="us", lag_seconds=0)
        state = f"state-{uuid.uuid4().hex[:16]}"
        of_workspace = {
            "CUSTOMERIO_SITE_ID": workspace.site_id,
            "CUSTOMERIO_API_KEY": workspace.api_key,
            "CUSTOMERIO_APP_API_KEY": workspace.app_api_key,
            "STATE_CONTAINER": state,
        }
        customers = deployment.run("customers", **of_workspace)
        assert (customers.outcome, customers.rows) == ("ok", len(rows))
        assert len(workspace.people()) + customers.dead_letters == len(rows)
        orders = deployment.run("orders", **of_workspace)
        stats = workspace.stats()
        assert (orders.outcome, orders.rows) == ("ok", len(rows))
        assert stats["events_stored"] + orders.dead_letters == len(rows)
        assert stats["requests_by_status"].keys() == {"200"}, stats["rejections"]

    every()
