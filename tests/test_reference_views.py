"""The reference schema and the retention views of `sql/`, on a SQL Server, empty and with CDNOW's histories."""

import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyodbc
import pytest

from local import cdnow, services

NOON = datetime(2026, 3, 10, 12, 0)


@pytest.fixture
def empty_database(sql_server: services.SqlServer) -> Iterator[str]:
    name = f"tidemark_{uuid.uuid4().hex[:12]}"
    yield sql_server.create_database(name)
    sql_server.drop_database(name)


@pytest.fixture
def shop(empty_database: str) -> Iterator[pyodbc.Connection]:
    """A shop without people, and its views."""
    with closing(pyodbc.connect(empty_database, autocommit=True)) as connection:
        cdnow.create_schema(connection)
        yield connection


def customer(shop: pyodbc.Connection, customer_id: int, email: str | None = None) -> None:
    shop.execute(
        "INSERT INTO shop.customers (customer_id, email, created_at) VALUES (?, ?, ?)", customer_id, email, NOON
    )


def order(shop: pyodbc.Connection, order_id: int, customer_id: int, total: str = "10.00", **columns: Any) -> None:
    row = {
        "order_id": order_id,
        "customer_id": customer_id,
        "status": "paid",
        "placed_at": NOON,
        "paid_at": NOON,
        "items": 1,
        "total": Decimal(total),
    } | columns
    names, marks = ", ".join(row), ", ".join("?" * len(row))
    shop.execute(f"INSERT INTO shop.orders ({names}) VALUES ({marks})", *row.values())


def rows(shop: pyodbc.Connection, query: str, *parameters: object) -> list[dict[str, Any]]:
    cursor = shop.execute(query, *parameters)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def test_a_customer_without_orders_has_a_profile_with_no_null_count_or_flag(shop: pyodbc.Connection) -> None:
    customer(shop, 1, "ann@example.com")
    assert rows(shop, "SELECT * FROM retention.customers") == [
        {
            "customer_id": 1,
            "email": "ann@example.com",
            "created_at": NOON,
            "first_order_at": None,
            "last_order_at": None,
            "orders_count": 0,
            "items_count": 0,
            "ltv": Decimal("0.00"),
            "ltv_currency": "USD",
            "average_order_value": None,
            "is_repeat_customer": False,
        }
    ]


def test_a_profile_sums_up_the_orders_of_one_person(shop: pyodbc.Connection) -> None:
    customer(shop, 1)
    customer(shop, 2)
    order(shop, 10, 1, "29.99", items=2, paid_at=NOON.replace(day=1))
    order(shop, 11, 1, "10.02", items=3, paid_at=NOON.replace(day=9))
    order(shop, 12, 2, "5.00")
    first, second = rows(shop, "SELECT * FROM retention.customers ORDER BY customer_id")
    assert (first["first_order_at"], first["last_order_at"]) == (NOON.replace(day=1), NOON.replace(day=9))
    assert (first["orders_count"], first["items_count"], first["is_repeat_customer"]) == (2, 5, True)
    assert (first["ltv"], first["average_order_value"]) == (Decimal("40.01"), Decimal("20.01"))
    assert (second["orders_count"], second["ltv"], second["is_repeat_customer"]) == (1, Decimal("5.00"), False)


@pytest.mark.parametrize(
    "kept_out",
    [{"is_test": True}, {"status": "cancelled"}, {"status": "pending", "paid_at": None}],
    ids=["a test order", "a cancelled order", "an unpaid order"],
)
def test_what_is_no_sale_counts_nowhere_and_is_no_event(shop: pyodbc.Connection, kept_out: dict[str, Any]) -> None:
    customer(shop, 1)
    order(shop, 10, 1, "29.99")
    order(shop, 11, 1, "500.00", **kept_out)
    (person,) = rows(shop, "SELECT * FROM retention.customers")
    assert (person["orders_count"], person["ltv"]) == (1, Decimal("29.99"))
    assert [event["event_id"] for event in rows(shop, "SELECT * FROM retention.orders")] == [10]


def test_lifetime_value_is_in_the_base_currency_and_an_event_in_its_own(shop: pyodbc.Connection) -> None:
    customer(shop, 1)
    order(shop, 10, 1, "100.00", currency="EUR", rate_to_base=Decimal("1.08505"))
    order(shop, 11, 1, "1.00")
    (person,) = rows(shop, "SELECT * FROM retention.customers")
    assert (person["ltv"], person["ltv_currency"]) == (Decimal("109.51"), "USD")
    event = rows(shop, "SELECT * FROM retention.orders ORDER BY event_id")[0]
    assert (event["total"], event["currency"]) == (Decimal("100.00"), "EUR")


def test_an_order_is_an_event_dated_when_it_was_paid(shop: pyodbc.Connection) -> None:
    customer(shop, 1)
    order(shop, 10, 1, "29.99", items=2, placed_at=NOON.replace(hour=9))
    (event,) = rows(shop, "SELECT * FROM retention.orders")
    base = rows(shop, "SELECT row_version FROM shop.orders")[0]
    assert {name: value for name, value in event.items() if not name.startswith("person.")} == {
        "customer_id": 1,
        "event_name": "Order Placed",
        "event_time": NOON,
        "event_id": 10,
        "row_version": base["row_version"],
        "order_id": 10,
        "order_number": 1,
        "items": 2,
        "total": Decimal("29.99"),
        "currency": "USD",
        "placed_at": NOON.replace(hour=9),
    }


def test_orders_of_a_person_are_numbered_by_time_and_then_by_id(shop: pyodbc.Connection) -> None:
    customer(shop, 1)
    customer(shop, 2)
    order(shop, 10, 1, paid_at=NOON.replace(day=9))
    order(shop, 11, 1, paid_at=NOON.replace(day=1), is_test=True)
    order(shop, 12, 1, paid_at=NOON.replace(day=2))
    order(shop, 13, 1, paid_at=NOON.replace(day=9))
    order(shop, 14, 2, paid_at=NOON.replace(day=1))
    events = rows(shop, "SELECT event_id, order_number FROM retention.orders")
    assert {event["event_id"]: event["order_number"] for event in events} == {12: 1, 10: 2, 13: 3, 14: 1}


def test_what_an_event_says_of_its_person_is_what_the_profile_says(shop: pyodbc.Connection) -> None:
    customer(shop, 1, "ann@example.com")
    customer(shop, 2)
    order(shop, 10, 1, "29.99", paid_at=NOON.replace(day=1))
    order(shop, 11, 1, "0.02", currency="EUR", rate_to_base=Decimal("1.3"))
    order(shop, 12, 2, "7.00")
    order(shop, 13, 2, "9.00", is_test=True)
    profiles = {row["customer_id"]: row for row in rows(shop, "SELECT * FROM retention.customers")}
    events = rows(shop, "SELECT * FROM retention.orders")
    assert len(events) == 3
    for event in events:
        said = {name.removeprefix("person."): value for name, value in event.items() if name.startswith("person.")}
        assert said.keys() == {"email", "orders_count", "last_order_at", "ltv"}
        assert said == {name: profiles[event["customer_id"]][name] for name in said}


def test_an_attribute_has_one_type_in_every_view(shop: pyodbc.Connection) -> None:
    columns = rows(
        shop,
        "SELECT TABLE_NAME, COLUMN_NAME, DATA_TYPE, CHARACTER_MAXIMUM_LENGTH, NUMERIC_PRECISION, NUMERIC_SCALE"
        " FROM INFORMATION_SCHEMA.COLUMNS WHERE TABLE_SCHEMA = 'retention'",
    )
    types = {(row["TABLE_NAME"], row["COLUMN_NAME"]): tuple(row.values())[2:] for row in columns}
    assert {name: types["customers", name][0] for view, name in types if view == "customers"} == {
        "customer_id": "int",
        "email": "nvarchar",
        "created_at": "datetime2",
        "first_order_at": "datetime2",
        "last_order_at": "datetime2",
        "orders_count": "int",
        "items_count": "int",
        "ltv": "decimal",
        "ltv_currency": "char",
        "average_order_value": "decimal",
        "is_repeat_customer": "bit",
    }
    for view, name in types:
        if name.startswith("person."):
            assert types[view, name] == types["customers", name.removeprefix("person.")], name
    assert types["customer_changes", "row_version"][0] in ("timestamp", "binary")
    assert types["orders", "row_version"][0] == "timestamp"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE shop.customers SET email = N'new@example.com' WHERE customer_id = 2",
        "UPDATE shop.orders SET status = 'cancelled' WHERE order_id = 20",
        "INSERT INTO shop.orders (order_id, customer_id, status, placed_at, paid_at, items, total)"
        " VALUES (21, 2, 'paid', '2026-03-11T00:00:00', '2026-03-11T00:00:00', 1, 1.00)",
    ],
    ids=["the customer", "a cancelled order", "a new order"],
)
def test_a_change_in_any_base_table_shows_whose_profile_moved(shop: pyodbc.Connection, change: str) -> None:
    for person in (1, 2, 3):
        customer(shop, person)
        order(shop, person * 10, person)
    (before,) = shop.execute("SELECT MAX(row_version) FROM retention.customer_changes").fetchone()
    profiles = rows(shop, "SELECT * FROM retention.customers ORDER BY customer_id")
    shop.execute(change)
    moved = shop.execute("SELECT customer_id FROM retention.customer_changes WHERE row_version > ?", before).fetchall()
    assert [tuple(row) for row in moved] == [(2,)]
    after = rows(shop, "SELECT * FROM retention.customers ORDER BY customer_id")
    assert [old["customer_id"] for old, new in zip(profiles, after, strict=True) if old != new] == [2]


def test_cdnow_fills_the_shop_and_every_line_of_it_reaches_the_views(empty_database: str) -> None:
    now = datetime.now(UTC)
    loaded = cdnow.load(empty_database, cdnow.HISTORIES, now)
    assert (loaded.people, loaded.orders) == (23_570, 69_659)
    assert loaded.last.date() == now.date()
    assert loaded.last <= now.replace(tzinfo=None)
    with closing(pyodbc.connect(empty_database)) as connection:
        assert rows(
            connection,
            "SELECT COUNT(*) AS people, SUM(orders_count) AS orders, SUM(ltv) AS ltv, MAX(last_order_at) AS last,"
            " SUM(CASE WHEN created_at <= first_order_at THEN 1 ELSE 0 END) AS opened_before FROM retention.customers",
        ) == [
            {
                "people": 23_570,
                "orders": 69_659,
                "ltv": Decimal("2500315.63"),
                "last": loaded.last,
                "opened_before": 23_570,
            }
        ]
        assert rows(
            connection,
            "SELECT COUNT(*) AS events, COUNT(DISTINCT event_id) AS ids, MAX(event_id) AS last FROM retention.orders",
        ) == [{"events": 69_659, "ids": 69_659, "last": 69_659}]


def test_a_shop_is_not_filled_twice(shop: pyodbc.Connection, empty_database: str, tmp_path: Path) -> None:
    customer(shop, 1)
    histories = tmp_path / "histories.txt"
    histories.write_text("header\n 00002 19970101 1 11.77\n", encoding="ascii")
    with pytest.raises(pyodbc.Error):
        cdnow.load(empty_database, histories, datetime.now(UTC))
    assert rows(shop, "SELECT customer_id FROM shop.customers") == [{"customer_id": 1}]


def test_new_orders_are_by_people_of_the_shop_and_one_newcomer(shop: pyodbc.Connection) -> None:
    for person in (1, 2, 3):
        customer(shop, person)
        order(shop, person * 10, person)
    now = datetime.now(UTC)
    assert cdnow.new_orders(shop, 5, now) == [31, 32, 33, 34, 35]
    events = rows(shop, "SELECT * FROM retention.orders WHERE order_id > 30 ORDER BY order_id")
    assert [event["customer_id"] for event in events if event["customer_id"] > 3] == [4, 4]
    assert [event["order_number"] for event in events if event["customer_id"] == 4] == [1, 2]
    assert {event["event_time"] for event in events} == {now.replace(microsecond=0, tzinfo=None)}
    assert events[0]["person.email"] == "customer-00004@example.com"
    assert cdnow.new_orders(shop, 1, now) == [36]
