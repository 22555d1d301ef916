"""The reference schema and the retention views of `sql/`, on a SQL Server, empty and with CDNOW's histories."""

import re
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
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


def insert(shop: pyodbc.Connection, table: str, **columns: Any) -> None:
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    shop.execute(f"INSERT INTO shop.{table} ({names}) VALUES ({marks})", *columns.values())


def customer(shop: pyodbc.Connection, customer_id: int, email: str | None = None, **columns: Any) -> None:
    insert(shop, "customers", **{"customer_id": customer_id, "email": email, "created_at": NOON} | columns)


def product(shop: pyodbc.Connection, sku: str, category: str = "Jazz") -> None:
    insert(shop, "products", sku=sku, name=f"{category} {sku}", category=category, unit_cost=Decimal(4))


def order(shop: pyodbc.Connection, order_id: int, customer_id: int, total: str = "10.00", **columns: Any) -> None:
    row = {"status": "paid", "placed_at": NOON, "paid_at": NOON, "items": 1, "total": Decimal(total)}
    insert(shop, "orders", **{"order_id": order_id, "customer_id": customer_id} | row | columns)


def line(shop: pyodbc.Connection, order_id: int, line_no: int, sku: str, amount: str = "10.00", **columns: Any) -> None:
    row = {"sku": sku, "quantity": 1, "amount": Decimal(amount), "unit_cost": Decimal(4)}
    insert(shop, "order_lines", **{"order_id": order_id, "line_no": line_no} | row | columns)


def refund(shop: pyodbc.Connection, refund_id: int, order_id: int, amount: str = "10.00", **columns: Any) -> None:
    row = {"refund_type": "full", "amount": Decimal(amount), "refunded_at": NOON, "recorded_at": NOON}
    insert(shop, "refunds", **{"refund_id": refund_id, "order_id": order_id} | row | columns)


def subscription(shop: pyodbc.Connection, subscription_id: int, customer_id: int, status: str = "active") -> None:
    insert(
        shop,
        "subscriptions",
        subscription_id=subscription_id,
        customer_id=customer_id,
        status=status,
        started_at=NOON,
    )


def entry(shop: pyodbc.Connection, event_id: int, subscription_id: int, kind: str, **columns: Any) -> None:
    row = {"kind": kind, "occurred_at": NOON, "plan_name": "Monthly", "amount": Decimal("14.99")}
    insert(
        shop,
        "subscription_events",
        **{"subscription_event_id": event_id, "subscription_id": subscription_id} | row | columns,
    )


def cart(shop: pyodbc.Connection, cart_id: int, customer_id: int | None, minutes_ago: int, **columns: Any) -> datetime:
    """A cart of one line, last touched so long ago by the server's clock; the moment of that."""
    (at,) = shop.execute("SELECT CAST(DATEADD(minute, ?, SYSUTCDATETIME()) AS datetime2(3))", -minutes_ago).fetchone()
    insert(shop, "carts", **{"cart_id": cart_id, "customer_id": customer_id, "last_activity_at": at} | columns)
    cart_line(shop, cart_id, 1, "CD-1")
    assert isinstance(at, datetime)
    return at


def cart_line(shop: pyodbc.Connection, cart_id: int, line_no: int, sku: str, amount: str = "10.00") -> None:
    insert(shop, "cart_lines", cart_id=cart_id, line_no=line_no, sku=sku, quantity=2, amount=Decimal(amount))


def rows(shop: pyodbc.Connection, query: str, *parameters: object) -> list[dict[str, Any]]:
    cursor = shop.execute(query, *parameters)
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def profile(shop: pyodbc.Connection, customer_id: int) -> dict[str, Any]:
    (row,) = rows(shop, "SELECT * FROM retention.customers WHERE customer_id = ?", customer_id)
    return row


def events(shop: pyodbc.Connection, view: str) -> list[dict[str, Any]]:
    """The events of a view without what they say of their person, in the order of their ids."""
    return [
        {name: value for name, value in row.items() if not name.startswith("person.")}
        for row in rows(shop, f"SELECT * FROM retention.{view} ORDER BY event_id")
    ]


def full_shop(shop: pyodbc.Connection) -> None:
    """Three people, each with something in every table that retention.customers reads; 1 and 2 share an address."""
    product(shop, "CD-1")
    product(shop, "CD-2", "Rock")
    product(shop, "CD-3", "Folk")
    for person, email in ((1, "Ann@example.com"), (2, " ann@example.com "), (3, "bob@example.com")):
        customer(shop, person, email)
        order(shop, person * 10, person, "100.00", paid_at=NOON.replace(day=person), currency="EUR", rate_to_base=1.1)
        line(shop, person * 10, 1, f"CD-{person}", "100.00")
        refund(shop, person * 10, person * 10, "40.00", refund_type="partial")
        subscription(shop, person, person, ("active", "paused", "canceled")[person - 1])
        entry(shop, person, person, ("started", "paused", "canceled")[person - 1])
        insert(shop, "support_tickets", ticket_id=person, customer_id=person, opened_at=NOON, escalated=True)
        insert(shop, "back_in_stock_requests", request_id=person, customer_id=person, sku="CD-1", requested_at=NOON)
        cart(shop, person, person, minutes_ago=61)


def test_a_customer_without_anything_has_a_profile_with_no_null_count_flag_or_tier(shop: pyodbc.Connection) -> None:
    customer(shop, 1, "ann@example.com")
    assert rows(shop, "SELECT * FROM retention.customers") == [
        {
            "customer_id": 1,
            "email": "ann@example.com",
            "created_at": NOON,
            "first_order_at": None,
            "last_order_at": None,
            "orders_count": 0,
            "ltv": Decimal("0.00"),
            "ltv_currency": "USD",
            "is_subscriber": False,
            "subscription_status": "none",
            "refund_flag": False,
            "last_refund_at": None,
            "vip_tier": "none",
            "preferred_category": None,
            "last_purchased_sku": None,
            "last_fulfilled_at": None,
            "gross_margin_bucket": "none",
            "do_not_discount": False,
            "support_escalation_open": False,
        }
    ]


def test_a_profile_sums_up_the_orders_of_one_person(shop: pyodbc.Connection) -> None:
    customer(shop, 1)
    customer(shop, 2)
    order(shop, 10, 1, "29.99", paid_at=NOON.replace(day=1), fulfilled_at=NOON.replace(day=4))
    order(shop, 11, 1, "10.02", paid_at=NOON.replace(day=9))
    order(shop, 12, 2, "5.00")
    first, second = profile(shop, 1), profile(shop, 2)
    assert (first["first_order_at"], first["last_order_at"]) == (NOON.replace(day=1), NOON.replace(day=9))
    assert (first["orders_count"], first["ltv"]) == (2, Decimal("40.01"))
    assert first["last_fulfilled_at"] == NOON.replace(day=4)
    assert (second["orders_count"], second["ltv"], second["last_fulfilled_at"]) == (1, Decimal("5.00"), None)


@pytest.mark.parametrize(
    ("ltv", "tier"),
    [("99.99", "none"), ("100.00", "bronze"), ("299.99", "bronze"), ("300.00", "silver"), ("1000.00", "gold")],
)
def test_the_tier_follows_from_lifetime_value(shop: pyodbc.Connection, ltv: str, tier: str) -> None:
    customer(shop, 1)
    order(shop, 10, 1, ltv)
    assert profile(shop, 1)["vip_tier"] == tier


@pytest.mark.parametrize(
    ("cost", "bucket"), [("5.00", "high"), ("5.01", "medium"), ("7.00", "medium"), ("7.01", "low"), ("20.00", "low")]
)
def test_the_margin_is_that_of_all_lines_in_the_base_currency(shop: pyodbc.Connection, cost: str, bucket: str) -> None:
    customer(shop, 1)
    product(shop, "CD-1")
    order(shop, 10, 1, "5.00", currency="EUR", rate_to_base=Decimal(2))
    line(shop, 10, 1, "CD-1", "3.00", unit_cost=Decimal(cost))
    line(shop, 10, 2, "CD-1", "2.00", unit_cost=Decimal(0))
    assert profile(shop, 1)["gross_margin_bucket"] == bucket


def test_the_preferred_category_has_the_most_pieces_and_of_equals_the_first_name(shop: pyodbc.Connection) -> None:
    customer(shop, 1)
    for sku, category in (("CD-1", "Rock"), ("CD-2", "Jazz"), ("CD-3", "Folk")):
        product(shop, sku, category)
    order(shop, 10, 1)
    line(shop, 10, 1, "CD-1", quantity=2)
    line(shop, 10, 2, "CD-2", quantity=1)
    assert profile(shop, 1)["preferred_category"] == "Rock"
    order(shop, 11, 1)
    line(shop, 11, 1, "CD-2", quantity=1)
    order(shop, 12, 1, is_test=True)
    line(shop, 12, 1, "CD-3", quantity=50)
    assert profile(shop, 1)["preferred_category"] == "Jazz"


def test_the_last_purchased_sku_is_the_dearest_line_of_the_latest_order(shop: pyodbc.Connection) -> None:
    customer(shop, 1)
    for sku in ("CD-1", "CD-2", "CD-3"):
        product(shop, sku)
    order(shop, 10, 1, paid_at=NOON.replace(day=9))
    line(shop, 10, 1, "CD-1", "5.00")
    line(shop, 10, 2, "CD-2", "7.00")
    order(shop, 11, 1, paid_at=NOON.replace(day=8))
    line(shop, 11, 1, "CD-3", "99.00")
    assert profile(shop, 1)["last_purchased_sku"] == "CD-2"


def test_an_escalation_is_open_until_its_ticket_is_closed(shop: pyodbc.Connection) -> None:
    customer(shop, 1)
    insert(shop, "support_tickets", ticket_id=1, customer_id=1, opened_at=NOON)
    assert profile(shop, 1)["support_escalation_open"] is False
    shop.execute("UPDATE shop.support_tickets SET escalated = 1")
    assert profile(shop, 1)["support_escalation_open"] is True
    shop.execute("UPDATE shop.support_tickets SET closed_at = opened_at")
    assert profile(shop, 1)["support_escalation_open"] is False


@pytest.mark.parametrize(
    ("statuses", "status"),
    [(["canceled"], "canceled"), (["canceled", "paused"], "paused"), (["active", "paused", "canceled"], "active")],
)
def test_a_person_is_what_the_liveliest_subscription_is(
    shop: pyodbc.Connection, statuses: list[str], status: str
) -> None:
    customer(shop, 1)
    for number, each in enumerate(statuses):
        subscription(shop, number, 1, each)
    person = profile(shop, 1)
    assert (person["subscription_status"], person["is_subscriber"]) == (status, status == "active")


# --- addresses --------------------------------------------------------------------------------------------------------


def emails(shop: pyodbc.Connection) -> dict[int, str | None]:
    return {
        row["customer_id"]: row["email"] for row in rows(shop, "SELECT customer_id, email FROM retention.customers")
    }


def test_an_address_is_trimmed_and_a_blank_one_is_none(shop: pyodbc.Connection) -> None:
    customer(shop, 1, "  Ann@Example.com ")
    customer(shop, 2, "   ")
    customer(shop, 3, "")
    customer(shop, 4)
    assert emails(shop) == {1: "Ann@Example.com", 2: None, 3: None, 4: None}


def test_a_shared_address_is_of_the_lowest_id_until_one_of_them_buys(shop: pyodbc.Connection) -> None:
    customer(shop, 1, "ann@example.com")
    customer(shop, 2, " ANN@example.com")
    customer(shop, 3, "ann@example.com")
    assert emails(shop) == {1: "ann@example.com", 2: None, 3: None}
    order(shop, 20, 2, paid_at=NOON.replace(day=1))
    assert emails(shop) == {1: None, 2: "ANN@example.com", 3: None}
    order(shop, 30, 3, paid_at=NOON.replace(day=2), is_test=True)
    assert emails(shop) == {1: None, 2: "ANN@example.com", 3: None}
    order(shop, 31, 3, paid_at=NOON.replace(day=1))
    assert emails(shop) == {1: None, 2: "ANN@example.com", 3: None}  # a draw: the lower id
    order(shop, 32, 3, paid_at=NOON.replace(day=3))
    assert emails(shop) == {1: None, 2: None, 3: "ann@example.com"}


# --- orders -----------------------------------------------------------------------------------------------------------


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
    (event,) = events(shop, "orders")
    base = rows(shop, "SELECT row_version FROM shop.orders")[0]
    assert event == {
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
    numbers = {event["event_id"]: event["order_number"] for event in events(shop, "orders")}
    assert numbers == {12: 1, 10: 2, 13: 3, 14: 1}


# --- refunds ----------------------------------------------------------------------------------------------------------


def test_a_refund_that_lands_nine_days_late_is_an_event_of_now(shop: pyodbc.Connection) -> None:
    customer(shop, 1, "ann@example.com")
    order(shop, 10, 1, "29.99", paid_at=NOON.replace(day=1))
    (before,) = shop.execute("SELECT SYSUTCDATETIME()").fetchone()
    shop.execute(
        "INSERT INTO shop.refunds (refund_id, order_id, refund_type, amount, refunded_at)"
        " VALUES (7, 10, 'partial', 9.99, DATEADD(day, -9, SYSUTCDATETIME()))"
    )
    (event,) = rows(shop, "SELECT * FROM retention.refunds")
    assert timedelta(milliseconds=-1) <= event["event_time"] - before < timedelta(minutes=1)
    assert timedelta(days=8, hours=23) < event["event_time"] - event["refunded_at"] < timedelta(days=9, hours=1)
    assert event["person.refund_flag"] is True
    assert event["person.last_refund_at"] == event["refunded_at"]
    assert profile(shop, 1)["ltv"] == Decimal("20.00")


@pytest.mark.parametrize(("kind", "amount"), [("partial", "9.99"), ("full", "29.99"), ("chargeback", "29.99")])
def test_partial_refund_full_refund_and_chargeback_are_told_apart(
    shop: pyodbc.Connection, kind: str, amount: str
) -> None:
    customer(shop, 1)
    order(shop, 10, 1, "29.99")
    refund(shop, 7, 10, amount, refund_type=kind)
    (event,) = events(shop, "refunds")
    base = rows(shop, "SELECT row_version FROM shop.refunds")[0]
    assert event == {
        "customer_id": 1,
        "event_name": "Refund Issued",
        "event_time": NOON,
        "event_id": 7,
        "row_version": base["row_version"],
        "refund_id": 7,
        "refund_type": kind,
        "amount": Decimal(amount),
        "currency": "USD",
        "refunded_at": NOON,
        "order_id": 10,
        "order_total": Decimal("29.99"),
        "order_currency": "USD",
    }
    person = profile(shop, 1)
    assert (person["refund_flag"], person["orders_count"]) == (True, 1)
    assert person["ltv"] == Decimal("29.99") - Decimal(amount)


def test_the_refund_flag_goes_off_with_an_order_paid_after_the_refund_was_recorded(shop: pyodbc.Connection) -> None:
    customer(shop, 1)
    order(shop, 10, 1, paid_at=NOON.replace(day=1))
    assert profile(shop, 1)["refund_flag"] is False
    refund(shop, 7, 10, refunded_at=NOON.replace(day=2), recorded_at=NOON.replace(day=9))
    order(shop, 11, 1, paid_at=NOON.replace(day=5))  # before anybody here knew of the refund
    order(shop, 12, 1, paid_at=NOON.replace(day=10), is_test=True)
    order(shop, 13, 1, paid_at=NOON.replace(day=10), status="cancelled")
    assert profile(shop, 1)["refund_flag"] is True
    order(shop, 14, 1, paid_at=NOON.replace(day=10))
    assert profile(shop, 1)["refund_flag"] is False
    (event,) = rows(shop, "SELECT * FROM retention.refunds")
    assert event["person.refund_flag"] is False
    refund(shop, 8, 14, refunded_at=NOON.replace(day=11), recorded_at=NOON.replace(day=11), refund_type="chargeback")
    assert profile(shop, 1)["refund_flag"] is True


def test_lifetime_value_is_net_of_refunds_in_the_base_currency(shop: pyodbc.Connection) -> None:
    customer(shop, 1)
    order(shop, 10, 1, "100.00", currency="EUR", rate_to_base=Decimal("1.10"))
    order(shop, 11, 1, "20.00")
    refund(shop, 7, 10, "50.00", refund_type="partial", currency="EUR", rate_to_base=Decimal("1.20505"))
    assert profile(shop, 1)["ltv"] == Decimal("69.75")
    (event,) = events(shop, "refunds")
    assert (event["amount"], event["currency"]) == (Decimal("50.00"), "EUR")


def test_a_refund_of_a_cancelled_order_is_news_but_no_loss_and_of_a_test_order_nothing(
    shop: pyodbc.Connection,
) -> None:
    customer(shop, 1)
    customer(shop, 2)
    order(shop, 10, 1, "29.99")
    order(shop, 11, 1, "50.00", status="cancelled")
    order(shop, 20, 2, "10.00", is_test=True)
    refund(shop, 7, 11, "50.00")
    refund(shop, 8, 20, "10.00")
    assert [event["event_id"] for event in events(shop, "refunds")] == [7]
    assert (profile(shop, 1)["ltv"], profile(shop, 1)["refund_flag"]) == (Decimal("29.99"), True)
    assert (profile(shop, 2)["ltv"], profile(shop, 2)["refund_flag"]) == (Decimal("0.00"), False)


# --- subscriptions, requests ------------------------------------------------------------------------------------------


def test_each_entry_of_a_subscriptions_history_is_an_event_with_its_terms(shop: pyodbc.Connection) -> None:
    customer(shop, 1)
    subscription(shop, 5, 1, "canceled")
    for number, kind in enumerate(("started", "renewed", "paused", "canceled"), start=1):
        entry(shop, number, 5, kind, occurred_at=NOON.replace(day=number))
    shop.execute("UPDATE shop.subscription_events SET next_renewal_at = '2026-04-01' WHERE kind = 'renewed'")
    started, renewed, paused, canceled = events(shop, "subscriptions")
    assert [event["event_name"] for event in (started, renewed, paused, canceled)] == [
        "Subscription Started",
        "Subscription Renewed",
        "Subscription Paused",
        "Subscription Canceled",
    ]
    del renewed["row_version"]
    assert renewed == {
        "customer_id": 1,
        "event_name": "Subscription Renewed",
        "event_time": NOON.replace(day=2),
        "event_id": 2,
        "subscription_id": 5,
        "plan": "Monthly",
        "amount": Decimal("14.99"),
        "currency": "USD",
        "order_id": None,
        "next_renewal_at": datetime(2026, 4, 1),
    }
    assert started["row_version"] < canceled["row_version"]


def test_a_request_for_a_product_is_an_event_that_names_it(shop: pyodbc.Connection) -> None:
    customer(shop, 1, "ann@example.com")
    product(shop, "CD-1", "Jazz")
    insert(shop, "back_in_stock_requests", request_id=3, customer_id=1, sku="CD-1", requested_at=NOON)
    (event,) = events(shop, "back_in_stock")
    del event["row_version"]
    assert event == {
        "customer_id": 1,
        "event_name": "Back In Stock Requested",
        "event_time": NOON,
        "event_id": 3,
        "sku": "CD-1",
        "product_name": "Jazz CD-1",
        "category": "Jazz",
    }


# --- carts ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shelf(shop: pyodbc.Connection) -> pyodbc.Connection:
    """A shop with one person and twelve products."""
    customer(shop, 1, "ann@example.com")
    for number in range(1, 13):
        product(shop, f"CD-{number}")
    return shop


def names(shop: pyodbc.Connection) -> list[str]:
    return sorted(event["event_name"] for event in events(shop, "carts"))


def test_a_cart_is_abandoned_once_its_hour_has_passed_though_no_row_is_touched(shelf: pyodbc.Connection) -> None:
    early, late = cart(shelf, 1, 1, minutes_ago=61), cart(shelf, 2, 1, minutes_ago=59)
    found = {(event["event_name"], event["cart_id"]): event for event in events(shelf, "carts")}
    assert set(found) == {("Cart Updated", 1), ("Cart Abandoned", 1), ("Cart Updated", 2)}
    abandoned = found["Cart Abandoned", 1]
    assert abandoned["updated_at"] == abandoned["event_time"] == early + timedelta(minutes=60)
    assert abandoned["event_id"] == f"cart-1-abandoned-{early.isoformat(sep=' ', timespec='milliseconds')}"
    updated = found["Cart Updated", 2]
    assert updated["updated_at"] == updated["event_time"] == late
    assert updated["event_id"] == f"cart-2-updated-{late.isoformat(sep=' ', timespec='milliseconds')}"


def test_a_cart_that_is_touched_again_is_a_new_event_and_abandoned_an_hour_later(shelf: pyodbc.Connection) -> None:
    cart(shelf, 1, 1, minutes_ago=90)
    before = {event["event_id"] for event in events(shelf, "carts")}
    shelf.execute("UPDATE shop.carts SET last_activity_at = SYSUTCDATETIME()")
    (event,) = events(shelf, "carts")
    assert event["event_name"] == "Cart Updated"
    assert event["event_id"] not in before


def test_a_cart_of_many_lines_is_one_event_that_sums_them_up(shelf: pyodbc.Connection) -> None:
    cart(shelf, 1, 1, minutes_ago=5)
    for number in range(2, 13):
        cart_line(shelf, 1, number, f"CD-{number}", "1.01")
    cart_line(shelf, 1, 13, "CD-1", "0.50")
    (event,) = events(shelf, "carts")
    assert (event["items"], event["product_count"]) == (26, 12)
    assert (event["total"], event["currency"]) == (Decimal("21.61"), "USD")
    assert event["skus"] == ",".join(f"CD-{number}" for number in range(1, 11))


def test_an_empty_cart_and_one_of_nobody_known_are_no_events(shelf: pyodbc.Connection) -> None:
    cart(shelf, 1, 1, minutes_ago=61)
    cart(shelf, 2, None, minutes_ago=61)
    shelf.execute("DELETE FROM shop.cart_lines WHERE cart_id = 1")
    assert events(shelf, "carts") == []


def test_a_cart_that_names_its_order_is_a_cart_no_more(shelf: pyodbc.Connection) -> None:
    cart(shelf, 1, 1, minutes_ago=61)
    assert names(shelf) == ["Cart Abandoned", "Cart Updated"]
    shelf.execute("UPDATE shop.carts SET order_id = 10")
    assert names(shelf) == []


@pytest.mark.parametrize(
    ("minutes", "columns", "left"),
    [
        (0, {}, 0),
        (30, {}, 0),
        (-30, {}, 2),
        (30, {"status": "cancelled"}, 2),
        (30, {"is_test": True}, 2),
        (30, {"paid_at": None, "status": "pending"}, 2),
        (30, {"customer_id": 2}, 2),
    ],
    ids=["at that moment", "later", "before", "cancelled", "a test", "not paid yet", "by another"],
)
def test_a_cart_is_over_with_an_order_that_its_person_placed_elsewhere_afterwards(
    shelf: pyodbc.Connection, minutes: int, columns: dict[str, Any], left: int
) -> None:
    customer(shelf, 2)
    at = cart(shelf, 1, 1, minutes_ago=61).replace(microsecond=0) + timedelta(minutes=minutes)
    order(shelf, 10, **{"customer_id": 1, "placed_at": at, "paid_at": at} | columns)
    assert len(names(shelf)) == left


# --- identity ---------------------------------------------------------------------------------------------------------


def test_merges_name_the_two_records_and_removals_what_is_to_be_done(shop: pyodbc.Connection) -> None:
    insert(shop, "customer_merges", merge_id=1, primary_customer_id=1, secondary_customer_id=2, merged_at=NOON)
    insert(
        shop,
        "customer_merges",
        merge_id=2,
        primary_customer_id=1,
        secondary_email=" ann@example.com ",
        merged_at=NOON,
    )
    insert(shop, "customer_removals", removal_id=1, customer_id=3, action="delete", removed_at=NOON)
    first, second = rows(shop, "SELECT * FROM retention.merges ORDER BY row_version")
    assert list(first.values())[:5] == [1, 1, 2, None, NOON]
    assert list(second.values())[:5] == [2, 1, None, "ann@example.com", NOON]
    (removal,) = rows(shop, "SELECT * FROM retention.removals")
    assert list(removal.values())[:4] == [1, 3, "delete", NOON]


# --- segments ---------------------------------------------------------------------------------------------------------


def test_the_canary_segment_is_of_buyers_who_came_back_within_sixty_days(shop: pyodbc.Connection) -> None:
    (now,) = shop.execute("SELECT CAST(SYSUTCDATETIME() AS datetime2(0))").fetchone()
    for person, (orders, days) in enumerate([(2, 59), (2, 61), (1, 1), (3, 0), (0, 0)]):
        customer(shop, person)
        for number in range(orders):
            order(shop, 10 * person + number, person, paid_at=now - timedelta(days=days + 100 * number))
    order(shop, 99, 2, paid_at=now, status="cancelled")
    segment = shop.execute("SELECT customer_id FROM retention.segment_canary_repeat_recent").fetchall()
    assert sorted(one for (one,) in segment) == [0, 3]


def test_the_segment_vip_is_of_the_tier_gold(shop: pyodbc.Connection) -> None:
    for person, total in enumerate(["999.99", "1000.00", "100.00"]):
        customer(shop, person)
        order(shop, person, person, total)
    assert [one for (one,) in shop.execute("SELECT customer_id FROM retention.segment_vip").fetchall()] == [1]


# --- all views --------------------------------------------------------------------------------------------------------

CARRIED = {
    "orders": {"email", "orders_count", "last_order_at", "ltv", "refund_flag"},
    "refunds": {"email", "refund_flag", "last_refund_at", "ltv"},
    "subscriptions": {"email", "is_subscriber", "subscription_status"},
    "back_in_stock": {"email"},
    "carts": {"email"},
}


@pytest.mark.parametrize("view", CARRIED)
def test_what_an_event_says_of_its_person_is_what_the_profile_says(shop: pyodbc.Connection, view: str) -> None:
    full_shop(shop)
    order(shop, 31, 3, "29.99", paid_at=NOON.replace(day=20))
    profiles = {row["customer_id"]: row for row in rows(shop, "SELECT * FROM retention.customers")}
    found = rows(shop, f"SELECT * FROM retention.{view}")
    assert {event["customer_id"] for event in found} == {1, 2, 3}
    for event in found:
        said = {name.removeprefix("person."): value for name, value in event.items() if name.startswith("person.")}
        assert said.keys() == CARRIED[view]
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
        "ltv": "decimal",
        "ltv_currency": "char",
        "is_subscriber": "bit",
        "subscription_status": "varchar",
        "refund_flag": "bit",
        "last_refund_at": "datetime2",
        "vip_tier": "varchar",
        "preferred_category": "nvarchar",
        "last_purchased_sku": "varchar",
        "last_fulfilled_at": "datetime2",
        "gross_margin_bucket": "varchar",
        "do_not_discount": "bit",
        "support_escalation_open": "bit",
    }
    for view, name in types:
        if name.startswith("person."):
            assert types[view, name] == types["customers", name.removeprefix("person.")], name
    cursors = {view: kind[0] for (view, name), kind in types.items() if name in ("row_version", "updated_at")}
    assert cursors.pop("customer_changes") in ("timestamp", "binary")
    assert cursors.pop("carts") == "datetime2"
    assert cursors == dict.fromkeys(
        ("orders", "refunds", "subscriptions", "back_in_stock", "merges", "removals"), "timestamp"
    )


# --- who moved --------------------------------------------------------------------------------------------------------

# A change of each base table: the people whose profile it changes. 1 and 2 share an address, and 2 has it.
CHANGES = {
    "customers": ("UPDATE shop.customers SET do_not_discount = 1 WHERE customer_id = 3", {3}),
    "customers, a new one": (
        "INSERT INTO shop.customers (customer_id, email, created_at) VALUES (0, N'ANN@example.com', '2026-01-01')",
        {0},
    ),
    "customers, an address that becomes shared": (
        "UPDATE shop.customers SET email = N'ann@example.com' WHERE customer_id = 3",
        {2, 3},
    ),
    "orders": ("UPDATE shop.orders SET total = 1 WHERE order_id = 30", {3}),
    "orders, cancelled": ("UPDATE shop.orders SET status = 'cancelled' WHERE order_id = 20", {1, 2}),
    "orders, new": (
        "INSERT INTO shop.orders (order_id, customer_id, status, placed_at, paid_at, items, total)"
        " VALUES (31, 1, 'paid', '2026-03-11T00:00:00', '2026-03-11T00:00:00', 1, 1.00)",
        {1, 2},
    ),
    "order_lines": ("UPDATE shop.order_lines SET sku = 'CD-2' WHERE order_id = 30", {3}),
    "products": ("UPDATE shop.products SET category = 'Metal' WHERE sku = 'CD-3'", {3}),
    "refunds": ("UPDATE shop.refunds SET amount = 1 WHERE order_id = 30", {3}),
    "subscriptions": ("UPDATE shop.subscriptions SET status = 'active' WHERE customer_id = 3", {3}),
    "support_tickets": ("UPDATE shop.support_tickets SET closed_at = opened_at WHERE customer_id = 3", {3}),
}


def profiles_by_id(shop: pyodbc.Connection) -> dict[int, dict[str, Any]]:
    return {row["customer_id"]: row for row in rows(shop, "SELECT * FROM retention.customers")}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_in_any_base_table_shows_whose_profile_moved(shop: pyodbc.Connection, what: str) -> None:
    change, people = CHANGES[what]
    full_shop(shop)
    (mark,) = shop.execute("SELECT MAX(row_version) FROM retention.customer_changes").fetchone()
    before = profiles_by_id(shop)
    shop.execute(change)
    after = profiles_by_id(shop)
    changed = {person for person in after if after[person] != before.get(person)}
    seen = {
        row[0] for row in shop.execute("SELECT customer_id FROM retention.customer_changes WHERE row_version > ?", mark)
    }
    assert changed == people
    assert people <= seen <= people | {1, 2}  # those who share an address may be read again in vain


def test_who_is_left_with_a_shared_address_is_no_change_that_can_be_seen(shop: pyodbc.Connection) -> None:
    full_shop(shop)
    (mark,) = shop.execute("SELECT MAX(row_version) FROM retention.customer_changes").fetchone()
    shop.execute("UPDATE shop.customers SET email = N'new@example.com' WHERE customer_id = 2")
    moved = shop.execute("SELECT customer_id FROM retention.customer_changes WHERE row_version > ?", mark).fetchall()
    assert [tuple(row) for row in moved] == [(2,)]
    assert emails(shop)[1] == "Ann@example.com"  # the view knows, and only a comparison of everything finds it


def test_every_base_table_of_the_profiles_is_changed_by_the_test_above(shop: pyodbc.Connection) -> None:
    text = (cdnow.SCRIPTS / "02_retention_customers.sql").read_text(encoding="utf-8")
    view = text[: text.index("CREATE VIEW retention.customer_changes")]
    behind = set(re.findall(r"(?:FROM|JOIN) shop\.(\w+)", view)) - {"paid_orders"}
    assert behind | {"orders"} == {what.split(",")[0] for what in CHANGES}


# --- CDNOW ------------------------------------------------------------------------------------------------------------


def test_cdnow_fills_the_shop_and_every_line_of_it_reaches_the_views(empty_database: str) -> None:
    now = datetime.now(UTC)
    loaded = cdnow.load(empty_database, cdnow.HISTORIES, now)
    assert (loaded.people, loaded.orders) == (23_570, 69_659)
    assert loaded.last.date() == now.date()
    assert loaded.last <= now.replace(tzinfo=None)
    with closing(pyodbc.connect(empty_database)) as connection:
        assert rows(
            connection,
            "SELECT COUNT(*) AS people, SUM(orders_count) AS orders, MAX(last_order_at) AS last,"
            " SUM(ltv) + (SELECT SUM(amount) FROM shop.refunds) AS paid,"
            " SUM(CASE WHEN created_at <= first_order_at THEN 1 ELSE 0 END) AS opened_before FROM retention.customers",
        ) == [
            {
                "people": 23_570,
                "orders": 69_659,
                "last": loaded.last,
                "paid": Decimal("2500315.63"),
                "opened_before": 23_570,
            }
        ]
        assert rows(
            connection,
            "SELECT COUNT(*) AS events, COUNT(DISTINCT event_id) AS ids, MAX(event_id) AS last FROM retention.orders",
        ) == [{"events": 69_659, "ids": 69_659, "last": 69_659}]
        assert rows(
            connection,
            "SELECT SUM(amount) AS paid, SUM(quantity) AS items FROM shop.order_lines",
        ) == rows(connection, "SELECT SUM(total) AS paid, SUM(items) AS items FROM shop.orders")
        for view, name, expected in (
            ("refunds", "refund_type", {"partial", "full", "chargeback"}),
            (
                "subscriptions",
                "event_name",
                {f"Subscription {what}" for what in ("Started", "Renewed", "Paused", "Canceled")},
            ),
            ("customers", "subscription_status", {"active", "paused", "canceled", "none"}),
            ("customers", "vip_tier", {"gold", "silver", "bronze", "none"}),
            ("customers", "gross_margin_bucket", {"high", "medium", "low", "none"}),
            ("customers", "support_escalation_open", {True, False}),
        ):
            found = connection.execute(f"SELECT DISTINCT {name} FROM retention.{view}").fetchall()
            assert {value for (value,) in found} == expected
        (refunds, future) = connection.execute(
            "SELECT COUNT(*), SUM(CASE WHEN event_time > ? THEN 1 ELSE 0 END) FROM retention.refunds", now
        ).fetchone()
        assert (refunds, future) == (loaded.refunds, 0)
        (latest,) = connection.execute("SELECT MAX(event_time) FROM retention.subscriptions").fetchone()
        assert latest <= now.replace(tzinfo=None)


def test_a_shop_is_not_filled_twice(shop: pyodbc.Connection, empty_database: str, tmp_path: Path) -> None:
    customer(shop, 1)
    histories = tmp_path / "histories.txt"
    histories.write_text("header\n 00002 19970101 1 11.77\n", encoding="ascii")
    with pytest.raises(pyodbc.Error):
        cdnow.load(empty_database, histories, datetime.now(UTC))
    assert rows(shop, "SELECT customer_id FROM shop.customers") == [{"customer_id": 1}]


def test_new_orders_are_by_people_of_the_shop_and_one_newcomer(shop: pyodbc.Connection) -> None:
    product(shop, cdnow.PRODUCTS[0].sku)
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
