"""The shop of a scenario: its tables and views, and the people who work in it while passes run."""

from __future__ import annotations

import random
import threading
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from typing import Literal

import pyodbc

Cursor = Literal["row_version", "updated_at"]

_PAST = datetime(2026, 1, 1)  # noqa: DTZ001 - the zone of the database is UTC


def open_shop(sql: pyodbc.Connection, cursor: Cursor) -> None:
    """Make tables and views. Every change of a person is a revision of its own: no content is like the one before."""
    column = "row_version rowversion" if cursor == "row_version" else "updated_at datetime2(6) DEFAULT SYSUTCDATETIME()"
    for statement in (
        "CREATE SCHEMA retention",
        "CREATE SCHEMA shop",
        "CREATE TABLE shop.customers (customer_id int NOT NULL PRIMARY KEY, email nvarchar(320), tier nvarchar(20),"
        f" revision int NOT NULL DEFAULT 1, {column})",
        "CREATE TABLE shop.orders (order_id int NOT NULL PRIMARY KEY, customer_id int, paid_at datetime2(0),"
        f" total decimal(12, 2), note nvarchar(40), {column})",
        "CREATE TABLE shop.merges (merge_id int NOT NULL PRIMARY KEY, primary_customer_id int,"
        f" secondary_customer_id int, merged_at datetime2(0) DEFAULT SYSUTCDATETIME(), {column})",
        "CREATE TABLE shop.removals (removal_id int NOT NULL PRIMARY KEY, customer_id int, action varchar(20),"
        f" removed_at datetime2(0) DEFAULT SYSUTCDATETIME(), {column})",
        f"CREATE VIEW retention.customers AS SELECT customer_id, email, tier, revision, {cursor} FROM shop.customers",
        "CREATE VIEW retention.orders AS SELECT o.customer_id, 'Order Placed' AS event_name, o.paid_at AS event_time,"
        f" o.order_id AS event_id, o.total, o.{cursor}, c.email AS [person.email]"
        " FROM shop.orders AS o LEFT JOIN shop.customers AS c ON c.customer_id = o.customer_id",
        "CREATE VIEW retention.merges AS SELECT * FROM shop.merges",
        "CREATE VIEW retention.removals AS SELECT * FROM shop.removals",
    ):
        sql.execute(statement)


class Clerk(threading.Thread):
    """Changes the tables, some statements a second, until it is sent home: inserts, updates, and transactions that stay
    open for a while, of which some are rolled back.

    Ids of what it adds are its own, so that no two clerks meet there. What it leaves open is ended when it goes home.
    Raises from `go_home` what went wrong.
    """

    def __init__(
        self, connection_string: str, cursor: Cursor, seed: int, number: int, people: int, orders: int
    ) -> None:
        super().__init__(name="clerk", daemon=True)
        self._random = random.Random(f"{seed} {number}")
        self._sql = pyodbc.connect(connection_string, autocommit=True)
        self._touch = ", updated_at = SYSUTCDATETIME()" if cursor == "updated_at" else ""
        self._people = people
        self._orders = orders
        self._next_person = self._next_order = 1_000_000 * (number + 1)
        self._leave = threading.Event()
        self._failure: pyodbc.Error | None = None
        self.statements = 0

    def run(self) -> None:
        try:
            with closing(self._sql):
                while not self._leave.wait(self._random.uniform(0.01, 0.08)):
                    self._sql.autocommit = self._random.random() < 0.8
                    if self._sql.autocommit:
                        self._work()
                    else:
                        self._transaction()
        except pyodbc.Error as error:
            self._failure = error

    def go_home(self) -> None:
        self._leave.set()
        self.join()
        if self._failure:
            raise self._failure

    def _transaction(self) -> None:
        for _ in range(self._random.randint(1, 3)):
            self._work()
        self._leave.wait(self._random.uniform(0.0, 1.0))
        if self._random.random() < 0.8:
            self._sql.commit()
        else:
            self._sql.rollback()

    def _work(self) -> None:
        """One statement. A conflict with another clerk is only that: the work is left."""
        choose = self._random
        self.statements += 1
        with suppress(pyodbc.IntegrityError):
            match choose.choice(("orders", "orders", "edit", "people", "people", "newcomer")):
                case "orders":
                    count = choose.randint(1, 8)
                    numbers = range(self._next_order, self._next_order + count)
                    self._next_order += count
                    add_orders(self._sql, numbers, self._people, choose)
                case "edit":
                    start = choose.randrange(self._orders)
                    self._sql.execute(
                        f"UPDATE shop.orders SET note = ?{self._touch} WHERE order_id BETWEEN ? AND ?",
                        f"edit {choose.randrange(10**6)}", start, start + 5,
                    )  # fmt: skip
                case "people":
                    start = choose.randrange(self._people)
                    self._sql.execute(
                        f"UPDATE shop.customers SET revision = revision + 1, tier = ?{self._touch}"
                        " WHERE customer_id BETWEEN ? AND ?",
                        choose.choice(("gold", "silver", "bronze")), start, start + 3,
                    )  # fmt: skip
                case "newcomer":
                    add_customers(self._sql, range(self._next_person, self._next_person + 2))
                    self._next_person += 2


def add_customers(sql: pyodbc.Connection, numbers: range) -> None:
    """People with an address and a tier each."""
    for start in range(numbers.start, numbers.stop, 500):
        some = range(start, min(start + 500, numbers.stop))
        values = ", ".join(f"({number}, 'c{number}@example.com', 'gold')" for number in some)
        sql.execute(f"INSERT INTO shop.customers (customer_id, email, tier) VALUES {values}")


def add_orders(sql: pyodbc.Connection, numbers: range, people: int, choose: random.Random) -> None:
    """Orders of these people, two thirds of them of the past and the rest of the last day."""
    now = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)
    for start in range(numbers.start, numbers.stop, 500):
        values = []
        for number in range(start, min(start + 500, numbers.stop)):
            recent = number % 3 == 0
            at = now - timedelta(minutes=number % 1000) if recent else _PAST + timedelta(hours=7 * (number % 40))
            who = choose.randrange(people)
            values.append(f"({number}, {who}, '{at.isoformat(sep=' ', timespec='seconds')}', {number % 500}.99)")
        sql.execute(f"INSERT INTO shop.orders (order_id, customer_id, paid_at, total) VALUES {', '.join(values)}")


def merge(sql: pyodbc.Connection, number: int, primary: int, secondary: int) -> None:
    """One person is another."""
    sql.execute(
        "INSERT INTO shop.merges (merge_id, primary_customer_id, secondary_customer_id) VALUES (?, ?, ?)",
        number, primary, secondary,
    )  # fmt: skip


def remove(sql: pyodbc.Connection, number: int, customer: int, action: str) -> None:
    """One person goes."""
    sql.execute(
        "INSERT INTO shop.removals (removal_id, customer_id, action) VALUES (?, ?, ?)", number, customer, action
    )
