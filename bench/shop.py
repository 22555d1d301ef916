"""The rows that the measurements move: people of twenty columns, and orders of twelve over two years."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pyodbc

from local.faults.stage import House

_FIRST = 1_000
_TWO_YEARS = 730 * 86_400

_TABLES = (
    "CREATE SCHEMA retention",
    "CREATE SCHEMA shop",
    "CREATE TABLE shop.customers (customer_id int NOT NULL PRIMARY KEY, email nvarchar(320), first_name nvarchar(60),"
    " last_name nvarchar(60), phone nvarchar(40), city nvarchar(60), country char(2), language char(2),"
    " tier nvarchar(20), orders_count int, items_count int, refunds_count int, total_spent decimal(12, 2),"
    " average_order decimal(12, 2), is_subscriber bit, has_app bit, created_at datetime2(0),"
    " first_order_at datetime2(0), last_order_at datetime2(0), row_version rowversion)",
    "CREATE TABLE shop.orders (event_id int NOT NULL PRIMARY KEY, customer_id int, event_name nvarchar(40),"
    " event_time datetime2(0), total decimal(12, 2), discount decimal(12, 2), currency char(3), items int,"
    " is_first bit, channel nvarchar(20), coupon nvarchar(40), row_version rowversion)",
    "CREATE VIEW retention.customers AS SELECT * FROM shop.customers",
    "CREATE VIEW retention.orders AS SELECT * FROM shop.orders",
)

# what differs from row to row is computed from the row's number; the rest is the first thousand's over again
_PERSON = (
    "customer_id, email, first_name, last_name, phone, city, country, language, tier, orders_count, items_count,"
    " refunds_count, total_spent, average_order, is_subscriber, has_app, created_at, first_order_at, last_order_at"
)
_ORDER = "event_id, customer_id, event_name, event_time, total, discount, currency, items, is_first, channel, coupon"


@contextmanager
def opened(house: House, people: int, orders: int) -> Iterator[str]:
    """The connection string of a database with so many; it is dropped at the end."""
    name = f"bench_{uuid.uuid4().hex[:12]}"
    connection_string = house.sql_server.create_database(name)
    with closing(pyodbc.connect(connection_string, autocommit=True)) as sql:
        for statement in _TABLES:
            sql.execute(statement)
        add_people(sql, people)
        add_orders(sql, orders, max(people, 1))
    yield connection_string
    house.sql_server.drop_database(name)


def add_people(sql: pyodbc.Connection, count: int) -> None:
    """The people 0 to `count`, into an empty table."""
    rows = [
        f"({n}, 'customer{n}@example.com', 'Name{n % 97}', 'Family{n % 89}', '+4930{n:07}', 'City of {n % 211}', 'DE',"
        f" 'de', 'gold', {n % 40}, {n % 90}, {n % 3}, {n % 900}.5, {n % 90}.25, {n % 2}, {n % 5 // 4},"
        f" '2024-11-{1 + n % 28:02} 10:00:00', '2025-01-{1 + n % 28:02} 12:00:00', '2026-10-{1 + n % 28:02} 12:30:00')"
        for n in range(min(_FIRST, count))
    ]
    more = _PERSON.replace(
        "customer_id, email", "customer_id + {0}, CONCAT('customer', customer_id + {0}, '@example.com')"
    )
    _fill(sql, "customers", _PERSON, more, "customer_id", rows, count)


def add_orders(sql: pyodbc.Connection, count: int, people: int) -> None:
    """The orders 0 to `count`, into an empty table, their times in random order."""
    at = "DATEADD(second, ({0} * CAST(48271 AS bigint)) % {1}, CAST('2024-11-01' AS datetime2(0)))"
    rows = [
        f"({n}, {n % people}, 'Order Placed', {at.format(n, _TWO_YEARS)}, {n % 500}.99, {n % 20}.5, 'EUR', {n % 9},"
        f" {n % 2}, 'web', {'NULL' if n % 3 else repr('SPRING')})"
        for n in range(min(_FIRST, count))
    ]
    more = _ORDER.replace("event_id, customer_id", f"event_id + {{0}}, (event_id + {{0}}) % {people}")
    more = more.replace("event_time", at.format("(event_id + {0})", _TWO_YEARS))
    _fill(sql, "orders", _ORDER, more, "event_id", rows, count)


def _fill(sql: pyodbc.Connection, table: str, columns: str, more: str, key: str, first: list[str], count: int) -> None:
    if first:
        sql.execute(f"INSERT INTO shop.{table} ({columns}) VALUES {', '.join(first)}")
    there = len(first)
    while there < count:
        some = min(there, count - there)
        sql.execute(
            f"INSERT INTO shop.{table} ({columns}) SELECT {more.format(there)} FROM shop.{table} WHERE {key} < {some}"
        )
        there += some
