"""What a retention manager relies on, one story a test: what happens in the shop, and what Customer.io then holds.

The stories are those of the retention contract, told from outside: rows go into a SQL Server, passes run, people ask over
HTTP. Stories of orders, refunds and carts happen in the reference shop of `sql/`; those that need ids of text or columns
that change happen in a small club of the test's own.
"""

import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import azure.functions as func
import httpx
import pyodbc
import pytest

import function_app
from local import cdnow
from shared import settings
from shared.errors import ConfigurationFault, StopRun, ViewFault
from shared.run import Run
from tests.conftest import Deployment
from tests.test_passes import bulk
from tests.test_promises import until
from tests.test_reference_views import cart, customer, order, product, refund

Ask = Callable[..., tuple[int, dict[str, Any]]]


def ago(**delta: float) -> datetime:
    """A moment before now in whole seconds, UTC, zoneless as the columns are."""
    return (datetime.now(UTC) - timedelta(**delta)).replace(microsecond=0, tzinfo=None)


def seconds(moment: datetime) -> int:
    return int(moment.replace(tzinfo=UTC).timestamp())


def events(deployment: Deployment, name: str = "") -> list[dict[str, Any]]:
    """The events that Customer.io has, each its attributes and `person`, `timestamp` and `name`, in order of arrival."""
    return [
        {**event["attributes"], "person": event["person"], "timestamp": event["timestamp"], "name": event["name"]}
        for event in deployment.workspace.events()
        if name in ("", event["name"])
    ]


def track(deployment: Deployment, **operation: Any) -> None:
    """An operation that somebody else sends: the shop's own site, or a person at Customer.io."""
    workspace = deployment.workspace
    # a pass stamps what it read with whole seconds, so that within one second the later of the two counts
    operation = {"type": "person", "timestamp": int(time.time()), **operation}
    answer = httpx.post(
        f"{workspace.url}/api/v2/batch", auth=(workspace.site_id, workspace.api_key), json={"batch": [operation]}
    )
    assert answer.status_code == 200, answer.text


def members(deployment: Deployment, segment: int) -> set[str]:
    """Who is in a segment, by the App API."""
    workspace = deployment.workspace
    answer = httpx.get(
        f"{workspace.url}/v1/segments/{segment}/membership",
        headers={"Authorization": f"Bearer {workspace.app_api_key}"},
    )
    return set(answer.raise_for_status().json()["ids"])


def stop(deployment: Deployment, sync: str, **changes: Any) -> str:
    """The message of a pass that has to stop, having sent nothing."""
    before = deployment.workspace.stats()["operations"]
    with pytest.raises(StopRun) as stopped:
        deployment.run(sync, **changes)
    assert deployment.workspace.stats()["operations"] == before
    return str(stopped.value)


@pytest.fixture
def ask(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Calls an HTTP function: its name, the sync and the body; the status and the answer."""
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)

    def call(function: str, sync: str, **body: Any) -> tuple[int, dict[str, Any]]:
        request = func.HttpRequest(
            "GET" if function == "dead_letters" else "POST",
            f"/api/{function}/{sync}",
            body=json.dumps(body).encode(),
            route_params={"sync": sync},
        )
        answer = getattr(function_app, function).build().get_user_function()(request)
        return answer.status_code, json.loads(answer.get_body())

    return call


@pytest.fixture
def shop(deployment: Deployment) -> pyodbc.Connection:
    """The reference shop and its views, with one customer and a product, and every sync live since before them."""
    sql = deployment.sql
    for schema in ("retention", "shop"):  # the scripts make their own
        sql.execute(f"DROP SCHEMA {schema}")
    cdnow.create_schema(sql)
    for sync in ("customers", "orders", "refunds", "carts"):
        run = deployment.run(sync)
        assert run.outcome == "ok", (sync, run.message)
    customer(sql, 1, "ann@example.com", created_at=ago(days=100))
    product(sql, "CD-1")
    return sql


@dataclass
class Club:
    """People, sales, merges and removals with ids of text: the reference shop's are numbers, so it has no guests."""

    deployment: Deployment

    def __post_init__(self) -> None:
        self.sql.execute(
            "CREATE TABLE shop.people (customer_id varchar(40) NOT NULL PRIMARY KEY, email nvarchar(320),"
            " plan_name varchar(1500), points int, score decimal(12,2), vip bit, joined datetime2(0), note varchar(400),"
            " row_version rowversion)"
        )
        self.sql.execute(
            "CREATE TABLE shop.sales (event_id varchar(40) NOT NULL PRIMARY KEY, customer_id varchar(400),"
            " at datetime2(3), total decimal(12,2), remark varchar(1500), row_version rowversion)"
        )
        self.sql.execute(
            "CREATE TABLE shop.unions (merge_id int NOT NULL PRIMARY KEY, primary_customer_id varchar(40),"
            " secondary_customer_id varchar(40), secondary_email nvarchar(320),"
            " merged_at datetime2(0) DEFAULT SYSUTCDATETIME(), row_version rowversion)"
        )
        self.sql.execute(
            "CREATE TABLE shop.farewells (removal_id int NOT NULL PRIMARY KEY, customer_id varchar(40),"
            " action varchar(20), removed_at datetime2(0) DEFAULT SYSUTCDATETIME(), row_version rowversion)"
        )
        self.people("email, plan_name")
        self.sales("total, remark")
        self.view("merges", "SELECT * FROM shop.unions")
        self.view("removals", "SELECT * FROM shop.farewells")

    @property
    def sql(self) -> pyodbc.Connection:
        return self.deployment.sql

    def view(self, name: str, select: str) -> None:
        self.sql.execute(f"DROP VIEW IF EXISTS retention.{name}")
        self.sql.execute(f"CREATE VIEW retention.{name} AS {select}")

    def people(self, columns: str) -> None:
        """The view of customers, made anew with these attributes."""
        self.view("customers", f"SELECT customer_id, row_version, {columns} FROM shop.people")

    def sales(self, columns: str) -> None:
        """The view of orders, made anew with these properties."""
        self.view(
            "orders",
            "SELECT customer_id, CAST('Order Placed' AS varchar(50)) AS event_name, at AS event_time, event_id,"
            f" row_version, {columns} FROM shop.sales",
        )

    def live(self, *syncs: str) -> None:
        for sync in syncs or ("customers", "orders", "merges", "removals"):
            run = self.deployment.run(sync)
            assert run.outcome == "ok", (sync, run.message)

    def add(self, table: str, **columns: Any) -> None:
        self.sql.execute(
            f"INSERT INTO shop.{table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})",
            *columns.values(),
        )

    def person(self, customer_id: str, **columns: Any) -> None:
        self.add("people", customer_id=customer_id, **columns)

    def sale(self, event_id: str, customer_id: str, at: datetime | None = None, **columns: Any) -> None:
        self.add("sales", event_id=event_id, customer_id=customer_id, at=at or ago(minutes=5), **columns)

    def merge(self, merge_id: int, primary: str, secondary: str | None, email: str | None = None) -> None:
        self.add(
            "unions",
            merge_id=merge_id,
            primary_customer_id=primary,
            secondary_customer_id=secondary,
            secondary_email=email,
        )

    def remove(self, removal_id: int, customer_id: str, action: str = "delete") -> None:
        self.add("farewells", removal_id=removal_id, customer_id=customer_id, action=action)

    def crowd(self, count: int) -> None:
        rows = [(f"p{number}", "gold", number) for number in range(1, count + 1)]
        bulk(self.sql, "INSERT INTO shop.people (customer_id, plan_name, points) VALUES (?, ?, ?)", rows)

    def touch(self) -> None:
        """Every person's row is written, and changes nothing."""
        self.sql.execute("UPDATE shop.people SET plan_name = plan_name")


@pytest.fixture
def club(deployment: Deployment) -> Club:
    return Club(deployment)


# Orders and refunds -------------------------------------------------------------------------------------------------


def test_a_refund_that_lands_nine_days_late_starts_the_apology_today(deployment, shop):
    order(shop, 10, 1, "29.99", paid_at=ago(days=12), placed_at=ago(days=12))
    deployment.run("orders")
    deployment.run("customers")
    assert deployment.workspace.people()["1"]["refund_flag"] is False
    happened = ago(days=9)
    shop.execute(
        "INSERT INTO shop.refunds (refund_id, order_id, refund_type, amount, refunded_at) VALUES (7, 10, 'partial', 9.99, ?)",
        happened,
    )
    deployment.run("refunds")
    (event,) = events(deployment, "Refund Issued")
    assert abs(event["timestamp"] - time.time()) < 60
    assert event["refunded_at"] == seconds(happened)
    assert (event["person"], event["refund_type"], event["amount"], event["currency"]) == ("1", "partial", 9.99, "USD")
    assert (event["order_id"], event["order_total"], event["late_minutes"]) == (10, 29.99, 0)
    assert "backfill" not in event
    # the journey that starts on the event meets a person of now, before any pass of customers
    person = deployment.workspace.people()["1"]
    assert (person["refund_flag"], person["last_refund_at"], person["ltv"]) == (True, seconds(happened), 20)
    deployment.run("customers")
    person = deployment.workspace.people()["1"]
    assert (person["refund_flag"], person["last_refund_at"], person["ltv"]) == (True, seconds(happened), 20)
    for sync in ("refunds", "orders", "customers"):
        assert deployment.run(sync).operations == 0


def test_the_refund_exit_opens_again_with_the_next_order(deployment, shop):
    order(shop, 10, 1, "50.00", paid_at=ago(days=12))
    refund(shop, 7, 10, "50.00", refunded_at=ago(days=2), recorded_at=ago(days=1))
    deployment.run("refunds")
    assert deployment.workspace.people()["1"]["refund_flag"] is True
    order(shop, 11, 1, "10.00", paid_at=ago(minutes=1), placed_at=ago(minutes=1))
    deployment.run("orders")
    assert deployment.workspace.people()["1"]["refund_flag"] is False
    deployment.run("customers")
    assert deployment.workspace.people()["1"]["refund_flag"] is False


def test_a_chargeback_is_told_apart_from_a_refund_and_takes_the_money_off(deployment, shop):
    order(shop, 10, 1, "400.00", paid_at=ago(days=40))
    deployment.run("orders")
    deployment.run("customers")
    assert deployment.workspace.people()["1"]["vip_tier"] == "silver"
    refund(shop, 7, 10, "400.00", refund_type="chargeback", refunded_at=ago(days=3), recorded_at=ago(minutes=1))
    deployment.run("refunds")
    deployment.run("customers")
    (event,) = events(deployment, "Refund Issued")
    assert (event["refund_type"], event["amount"]) == ("chargeback", 400)
    person = deployment.workspace.people()["1"]
    assert (person["ltv"], person["vip_tier"], person["refund_flag"], person["orders_count"]) == (0, "none", True, 1)


def test_an_order_that_is_edited_five_times_is_one_event_and_a_profile_that_follows(deployment, shop):
    order(shop, 10, 1, "29.99", paid_at=ago(minutes=30), placed_at=ago(minutes=30))
    deployment.run("orders")
    deployment.run("customers")
    for edit in range(1, 6):
        shop.execute("UPDATE shop.orders SET total = ? WHERE order_id = 10", Decimal(f"{30 + edit}.99"))
        run = deployment.run("orders")
        assert (run.operations, run.already_sent) == (0, 1)
        deployment.run("customers")
        assert deployment.workspace.people()["1"]["ltv"] == float(f"{30 + edit}.99")
    (event,) = events(deployment)
    assert (event["total"], event["order_id"]) == (29.99, 10)
    assert deployment.workspace.stats()["duplicate_events_dropped"] == 0
    assert deployment.workspace.people()["1"]["orders_count"] == 1


def test_a_first_order_meets_a_person_who_can_be_mailed_whatever_the_order_of_the_syncs(deployment, shop):
    order(shop, 10, 1, "29.99", paid_at=ago(minutes=1), placed_at=ago(minutes=1))
    deployment.run("orders")
    person = deployment.workspace.people()["1"]
    assert (person["email"], person["orders_count"], person["ltv"]) == ("ann@example.com", 1, 29.99)


def test_no_old_order_moves_anybody_back(deployment, shop):
    """Not one that is read again, not one that comes late, and not a whole history into an empty state."""
    for number, days in ((10, 100), (11, 30), (12, 4)):
        order(shop, number, 1, "10.00", paid_at=ago(days=days), placed_at=ago(days=days))
    latest = ago(hours=1)
    order(shop, 13, 1, "10.00", paid_at=latest, placed_at=latest)
    deployment.run("orders")
    deployment.run("customers")
    # what another system knows, and SQL Server not yet: an old event must not undo it
    newer = int(time.time())
    track(deployment, action="identify", identifiers={"id": "1"}, attributes={"last_order_at": newer})
    shop.execute("UPDATE shop.orders SET items = 2")
    assert (run := deployment.run("orders")).already_sent == 4 and run.operations == 0
    assert deployment.workspace.people()["1"]["last_order_at"] == newer
    order(shop, 14, 1, "10.00", paid_at=ago(days=4), placed_at=ago(days=4))  # known late, too old to fire
    assert deployment.run("orders").accepted == 1
    assert deployment.workspace.people()["1"]["last_order_at"] == newer
    shop.execute("DELETE FROM shop.orders WHERE order_id = 13")
    again = deployment.run("orders", STATE_CONTAINER=deployment.environment["STATE_CONTAINER"] + "-again")
    assert again.accepted == 4
    assert deployment.workspace.people()["1"]["last_order_at"] == newer
    stats = deployment.workspace.stats()
    assert (stats["duplicate_events_stored"], stats["events_stored"]) == (0, 5)


def test_every_order_rewritten_by_an_etl_fires_nothing(deployment, shop):
    for number in range(10, 60):
        order(shop, number, 1, "10.00", paid_at=ago(hours=number), placed_at=ago(hours=number))
    assert deployment.run("orders").accepted >= 50
    deployment.run("customers")
    before = deployment.workspace.stats()
    shop.execute("UPDATE shop.orders SET total = total")
    run = deployment.run("orders")
    assert (run.outcome, run.rows, run.already_sent, run.operations) == ("ok", 50, 50, 0)
    after = deployment.workspace.stats()
    assert (after["operations"], after["events_stored"]) == (before["operations"], before["events_stored"])


def test_an_etl_that_rewrites_every_order_touches_nobodys_profile_unasked(deployment, shop):
    bulk(
        shop,
        "INSERT INTO shop.customers (customer_id, email, created_at) VALUES (?, ?, ?)",
        [(number, f"c{number}@example.com", ago(days=50)) for number in range(2, 1101)],
    )
    bulk(
        shop,
        "INSERT INTO shop.orders (order_id, customer_id, status, placed_at, paid_at, items, total)"
        " VALUES (?, ?, 'paid', ?, ?, 1, 10)",
        [(number, number, ago(days=40), ago(days=40)) for number in range(1, 1101)],
    )
    fresh = {"STATE_CONTAINER": deployment.environment["STATE_CONTAINER"] + "-big", "PAGE_SIZE": "5000"}
    assert deployment.run("customers", **fresh).accepted == 1100
    assert deployment.run("orders", **fresh).accepted == 1100
    shop.execute("UPDATE shop.orders SET items = items")
    assert "1,100" in stop(deployment, "customers", **fresh)
    run = deployment.run("orders", **fresh)
    assert (run.outcome, run.already_sent, run.operations) == ("ok", 1100, 0)
    assert deployment.workspace.stats()["duplicate_events_dropped"] == 0


# Carts --------------------------------------------------------------------------------------------------------------


def test_a_cart_on_the_desktop_an_order_on_the_phone_and_four_hours_without_a_pass(deployment, shop):
    for person in (2, 3):
        customer(shop, person, f"c{person}@example.com")
    cart(shop, 1, 1, minutes_ago=240)
    order(shop, 10, 1, paid_at=ago(minutes=200), placed_at=ago(minutes=200))
    cart(shop, 2, 2, minutes_ago=230)  # nobody bought, and nobody wants to be reminded of it now
    cart(shop, 3, 3, minutes_ago=90)  # this one is still worth a mail
    fresh = {"STATE_CONTAINER": deployment.environment["STATE_CONTAINER"] + "-outage"}
    assert deployment.run("carts", **fresh).outcome == "waiting"
    deployment.run("orders", **fresh)
    run = deployment.run("carts", **fresh)
    assert run.held.get("too_old", 0) >= 1
    assert [event["cart_id"] for event in events(deployment, "Cart Abandoned")] == [3]
    assert [event["person"] for event in events(deployment, "Order Placed")] == ["1"]


def soon_abandoned(shop: pyodbc.Connection, cart_id: int) -> None:
    """A cart of person 1 that counts as abandoned in a second."""
    shop.execute(
        "INSERT INTO shop.carts (cart_id, customer_id, last_activity_at)"
        " VALUES (?, 1, DATEADD(millisecond, 1000, DATEADD(minute, -60, SYSUTCDATETIME())))",
        cart_id,
    )
    shop.execute(
        "INSERT INTO shop.cart_lines (cart_id, line_no, sku, quantity, amount) VALUES (?, 1, 'CD-1', 2, 19.98)", cart_id
    )


def until_abandoned(shop: pyodbc.Connection) -> None:
    count = "SELECT COUNT(*) FROM retention.carts WHERE event_name = 'Cart Abandoned'"
    until(lambda: shop.execute(count).fetchval() == 1)


@pytest.mark.parametrize("trouble", ["failing", "behind"])
def test_no_cart_counts_as_abandoned_while_orders_is_in_trouble(deployment, shop, trouble):
    soon_abandoned(shop, 5)
    deployment.run("orders")
    until_abandoned(shop)
    if trouble == "failing":
        shop.execute("DROP VIEW retention.orders")
        shop.execute("CREATE VIEW retention.orders AS SELECT order_id FROM shop.orders")
        with pytest.raises(ViewFault):
            deployment.run("orders")
    else:
        order(shop, 10, 1, paid_at=ago(minutes=70), placed_at=ago(minutes=70))  # before the cart, and not yet sent
    with suppress(StopRun):
        deployment.run("carts")
    assert events(deployment, "Cart Abandoned") == []


def test_an_abandoned_cart_is_told_though_no_row_is_touched(deployment, shop):
    soon_abandoned(shop, 5)
    deployment.run("orders")
    deployment.run("carts")
    assert events(deployment, "Cart Abandoned") == []
    until_abandoned(shop)
    deployment.run("orders")
    deployment.run("carts")
    (event,) = events(deployment, "Cart Abandoned")
    assert (event["person"], event["cart_id"], event["items"], event["total"]) == ("1", 5, 2, 19.98)
    assert abs(event["timestamp"] - time.time()) < 30
    person = deployment.workspace.people()["1"]
    assert person["email"] == "ann@example.com"
    assert not any("cart" in name for name in person)  # carts are events, never attributes
    deployment.run("orders")
    deployment.run("carts")
    assert len(events(deployment, "Cart Abandoned")) == 1


# Addresses ----------------------------------------------------------------------------------------------------------


def test_a_changed_address_is_an_attribute_like_any_other_where_the_workspace_allows_it(deployment, club):
    deployment.workspace.configure(email_updates_allowed=True)
    club.person("17", email="ann@example.com")
    club.live("customers")
    club.sql.execute("UPDATE shop.people SET email = 'ann.new@example.com'")
    deployment.run("customers")
    assert deployment.workspace.people()["17"]["email"] == "ann.new@example.com"


def test_an_address_that_is_none_is_left_out_and_counted_and_the_rest_of_the_row_goes(deployment, club):
    club.live("customers")
    for number, email in enumerate((" ann@example.com ", "", "   ", "not an address", "a@b@c", None)):
        club.person(f"p{number}", email=email, plan_name="gold")
    run = deployment.run("customers")
    assert (run.accepted, run.dead_letters, run.invalid_emails) == (6, 0, 2)
    assert "email" in run.message and "not an address" not in run.message
    people = deployment.workspace.people()
    assert people["p0"] == {"email": "ann@example.com", "plan_name": "gold"}
    assert all(people[f"p{number}"] == {"plan_name": "gold"} for number in range(1, 6))


# Merges -------------------------------------------------------------------------------------------------------------


def test_a_guest_with_three_orders_who_registers_is_one_person_ever_after(deployment, club):
    club.live()
    club.person("guest-7", email="gina@example.com", plan_name="none")
    for number in range(3):
        club.sale(f"o{number}", "guest-7", ago(hours=30 - number), total=Decimal("9.99"))
    club.live("customers", "orders")
    # she registers: the account has the address from now on, as the reference view's rule gives it to one of the two
    club.person("42", email="gina@example.com", plan_name="gold")
    club.sql.execute("UPDATE shop.people SET email = NULL WHERE customer_id = 'guest-7'")
    club.merge(1, "42", "guest-7")
    club.live("customers", "merges")
    assert set(deployment.workspace.people()) == {"42"}
    assert {event["person"] for event in events(deployment)} == {"42"}
    # what still comes under the old id is hers
    club.sql.execute("UPDATE shop.sales SET total = 8 WHERE event_id = 'o1'")
    club.sale("late", "guest-7", total=Decimal("1.00"))
    club.sql.execute("UPDATE shop.people SET plan_name = 'old' WHERE customer_id = 'guest-7'")
    orders, customers = deployment.run("orders"), deployment.run("customers")
    assert (orders.accepted, orders.already_sent) == (1, 1)
    assert (customers.operations, customers.merged) == (0, 1)
    people = deployment.workspace.people()
    assert set(people) == {"42"}
    assert (people["42"]["email"], people["42"]["plan_name"]) == ("gina@example.com", "gold")
    assert [(event["person"], event["event_id"]) for event in events(deployment)][-1] == ("42", "late")
    assert deployment.run("merges").repeated == 1  # should an identify of the guest have been on its way
    assert deployment.run("merges").operations == 0
    assert set(deployment.workspace.people()) == {"42"}


@pytest.mark.parametrize("together", [True, False], ids=["in one page", "in two passes"])
@pytest.mark.parametrize("links", [("BC", "AB"), ("AB", "BC")], ids=["inside out", "outside in"])
@pytest.mark.parametrize("seed", [None, 3], ids=["in order", "shuffled"])
def test_a_chain_of_merges_ends_with_one_person(deployment, club, together, links, seed):
    deployment.workspace.configure(shuffle_seed=seed)
    for person in "ABC":
        club.person(person, plan_name=f"of {person}")
        club.sale(f"first of {person}", person)
    club.live()
    for number, (primary, secondary) in enumerate(links):
        club.merge(number, primary, secondary)
        if not together:
            club.live("customers", "merges")  # a merge is read once customers has looked after it
    club.live("customers", "merges")
    assert deployment.dead_letters("merges") == []
    assert set(deployment.workspace.people()) == {"A"}
    for person in "BC":
        club.sale(f"second of {person}", person)
        club.sql.execute("UPDATE shop.people SET plan_name = 'new' WHERE customer_id = ?", person)
    club.live("orders", "customers")
    assert set(deployment.workspace.people()) == {"A"}
    assert sorted((event["event_id"], event["person"]) for event in events(deployment)) == [
        (sale, "A") for sale in ("first of A", "first of B", "first of C", "second of B", "second of C")
    ]


def test_a_merge_whose_primary_is_not_there_yet_is_never_raced(deployment, club, ask):
    club.person("guest-7", plan_name="none")
    club.live()
    club.merge(1, "42", "guest-7")
    club.merge(2, "43", "guest-8")
    club.person("43")
    club.person("guest-8")
    with suppress(StopRun):
        deployment.run("customers")
        deployment.run("merges")
    # the other one went, this one has left no trace: a merge into nobody is lost for ever
    assert set(deployment.workspace.people()) == {"guest-7", "43"}
    club.person("42", plan_name="gold")
    club.live("customers")
    club.sql.execute("UPDATE shop.people SET plan_name = 'guest' WHERE customer_id = 'guest-7'")
    club.live("customers", "merges")
    if letters := deployment.dead_letters("merges"):
        assert [letter["key"] for letter in letters] == ["1"]
        status, answer = ask("replay", "merges", keys=["1"])
        assert status == 200, answer
    assert set(deployment.workspace.people()) == {"42", "43"}
    assert deployment.dead_letters("merges") == []
    club.sale("late", "guest-7")
    club.live("orders")
    assert [event["person"] for event in events(deployment)] == ["42"]


def test_a_merge_by_address_is_for_profiles_that_others_made_and_never_for_a_customer(deployment, club):
    track(deployment, action="identify", identifiers={"email": "form@example.com"}, attributes={"source": "newsletter"})
    club.person("42", plan_name="gold")
    club.person("43", email="someone@example.com")
    club.live()
    club.merge(1, "42", None, "form@example.com")
    club.merge(2, "42", None, "someone@example.com")
    club.live("customers", "merges")
    people = deployment.workspace.people()
    assert set(people) == {"42", "43"}
    assert people["42"]["source"] == "newsletter"
    assert people["43"]["email"] == "someone@example.com"
    (letter,) = deployment.dead_letters("merges")
    assert letter["key"] == "2"
    assert "example.com" not in json.dumps(letter)


def test_whose_primary_was_removed_is_removed_too(deployment, club):
    club.person("42")
    club.person("guest-7")
    club.live()
    club.merge(1, "42", "guest-7")
    club.live("customers", "merges")
    club.remove(1, "42")
    club.live("removals")
    club.sale("late", "guest-7")
    club.touch()
    assert deployment.run("orders").held == {"removed": 1}
    club.live("customers")
    assert deployment.workspace.people() == {}


def test_two_records_that_were_merged_into_each_other_stay_one_person(deployment, club):
    club.person("A", plan_name="a")
    club.person("B", plan_name="b")
    club.live()
    club.merge(1, "A", "B")
    club.live("customers", "merges")
    club.merge(2, "B", "A")
    club.live("customers", "merges")
    assert set(deployment.workspace.people()) == {"A"}
    club.sale("of A", "A")
    club.sale("of B", "B")
    club.live("orders")
    assert {(event["event_id"], event["person"]) for event in events(deployment)} == {("of A", "A"), ("of B", "A")}
    assert set(deployment.workspace.people()) == {"A"}


# Removals -----------------------------------------------------------------------------------------------------------


def forgotten(club: Club, action: str = "delete") -> None:
    """Person 7 was known, bought something, and is removed."""
    club.person("7", email="seven@example.com", plan_name="gold")
    club.person("8", plan_name="gold")
    club.sale("old", "7", total=Decimal("9.99"))
    club.live()
    club.remove(1, "7", action)
    club.live("removals")
    assert set(club.deployment.workspace.people()) == {"8"}


@pytest.mark.parametrize("action", ["delete", "suppress"])
def test_who_was_removed_does_not_come_back_with_an_edited_order_a_new_one_or_a_profile(deployment, club, action):
    forgotten(club, action)
    for _ in range(2):
        club.sql.execute("UPDATE shop.sales SET total = total + 1")
        edited = deployment.run("orders")
        assert (edited.operations, edited.dead_letters) == (0, 0)
    club.sale("new", "7")
    club.sale("of another", "8")
    bought = deployment.run("orders")
    assert (bought.accepted, bought.held) == (1, {"removed": 1})
    club.sql.execute("UPDATE shop.people SET plan_name = 'silver'")
    changed = deployment.run("customers")
    assert (changed.accepted, changed.held) == (1, {"removed": 1})
    assert set(deployment.workspace.people()) == {"8"}
    club.live("removals")
    assert set(deployment.workspace.people()) == {"8"}


@pytest.mark.parametrize("action", ["delete", "suppress"])
def test_a_removal_wins_against_an_identify_that_is_being_retried(deployment, club, action):
    club.live()
    club.person("7", email="seven@example.com")
    club.person("8")
    club.remove(1, "7", action)
    deployment.workspace.add_fault(status=503, retry_after=3, times=1, when_person_id="8")
    runs: list[Run] = []
    thread = threading.Thread(target=lambda: runs.append(deployment.run("customers")))
    thread.start()
    until(lambda: deployment.workspace.stats()["requests_by_status"].get("503", 0) == 1)
    removal = deployment.run("removals")
    assert (removal.outcome, removal.accepted) == ("ok", 1)
    assert thread.is_alive(), "the identify was to be on its way while the person was removed"
    thread.join()
    assert (runs[0].outcome, runs[0].held) == ("ok", {"removed": 1})
    assert set(deployment.workspace.people()) == {"8"}


def test_a_deletion_that_an_identify_overtakes_is_sent_again_one_pass_later(deployment, club):
    club.live()
    club.person("7", email="seven@example.com")
    club.remove(1, "7")
    deployment.workspace.add_fault(delay_seconds=3, times=1)
    before = deployment.workspace.stats()["requests"]
    thread = threading.Thread(target=lambda: deployment.run("customers"))
    thread.start()
    # the batch, after the question for the workspace, has passed the last check and waits at Customer.io's door
    until(lambda: deployment.workspace.stats()["requests"] == before + 2)
    club.live("removals")
    assert thread.is_alive(), "the identify was to arrive after the deletion"
    thread.join()
    assert set(deployment.workspace.people()) == {"7"}
    second = deployment.run("removals")
    assert (second.outcome, second.repeated) == ("ok", 1)
    assert deployment.workspace.people() == {}
    assert deployment.run("removals").repeated == 0


@pytest.mark.parametrize("action", ["delete", "suppress"])
def test_who_is_restored_is_taken_again(deployment, club, action):
    forgotten(club, action)
    club.remove(2, "7", "restore")
    club.live("removals")
    club.sale("after", "7")
    club.sql.execute("UPDATE shop.people SET plan_name = 'silver' WHERE customer_id = '7'")
    club.live("customers", "orders")
    person = deployment.workspace.people()["7"]
    assert (person["email"], person["plan_name"]) == ("seven@example.com", "silver")
    assert [event["event_id"] for event in events(deployment)][-1] == "after"
    club.live("removals")
    club.live("removals")
    assert "7" in deployment.workspace.people()


def test_of_who_was_removed_nothing_is_left_in_the_state(deployment, club):
    secret = "forget-me-7731"
    club.person(secret, email="forget.me@example.com", plan_name="x" * 1100)
    club.person("other")
    club.sale("good", secret)
    club.sale("bad", secret, remark="x" * 1100)
    club.merge(1, secret, "other")
    club.live("customers", "orders", "merges", "removals")
    club.live("customers", "merges")
    assert [letter["key"] for letter in deployment.dead_letters("customers")] == [secret]
    assert len(deployment.dead_letters("orders")) == 1
    club.remove(1, secret)
    club.live("removals")
    assert deployment.dead_letters("customers") == deployment.dead_letters("orders") == []
    # the marks stand at rows, so that others go by first
    club.person("zz-1")
    club.sale("another", "zz-1")
    club.remove(2, "nobody")
    club.live("customers", "orders", "removals")
    club.live("customers", "orders", "removals")
    found = [name for name in deployment.blobs("") if secret.encode() in deployment.read(name)]
    assert found == []
    assert [name for name in deployment.blobs("") if b"forget.me" in deployment.read(name)] == []
    assert secret not in deployment.workspace.people()


# Types --------------------------------------------------------------------------------------------------------------

JOINED = datetime(2026, 3, 10, 12, 0)


def night(club: Club, columns: str) -> None:
    """Overnight somebody has changed the view, and by the morning everybody's row."""
    club.people(columns)
    club.sql.execute("UPDATE shop.people SET plan_name = CONCAT(plan_name, '+')")


def test_last_order_at_becoming_text_overnight_stops_that_attribute_and_nothing_else(deployment, club, ask):
    club.people("plan_name, joined AS last_order_at, points")
    club.person("1", plan_name="gold", joined=JOINED, points=5)
    club.live("customers", "orders")
    club.sql.execute("UPDATE shop.people SET joined = '2026-06-01', points = 6")
    night(club, "plan_name, CONVERT(nvarchar(30), joined, 126) AS last_order_at, points")
    run = deployment.run("customers")
    assert (run.outcome, run.accepted, run.dead_letters) == ("ok", 1, 0)
    as_it_was = {"plan_name": "gold+", "points": 6, "last_order_at": seconds(JOINED)}
    assert deployment.workspace.people()["1"] == as_it_was
    for said in ("last_order_at", "was timestamp and is text", "within the past", "/api/syncs/customers/accept"):
        assert said in run.message, run.message
    assert "2026-06-01" not in run.message
    assert deployment.run("orders").outcome == "ok"
    # it says so until somebody does something, though no row changes
    assert "last_order_at" in deployment.run("customers").message
    # put right again: nobody has to be asked
    night(club, "plan_name, joined AS last_order_at, points")
    run = deployment.run("customers")
    assert (run.outcome, run.message) == ("ok", "")
    assert deployment.workspace.people()["1"]["last_order_at"] == seconds(datetime(2026, 6, 1))
    # and when it is meant, one call accepts it
    night(club, "plan_name, CONVERT(nvarchar(30), joined, 126) AS last_order_at, points")
    assert "last_order_at" in deployment.run("customers").message
    assert ask("accept", "customers", column="last_order_at")[0] == 200
    club.touch()
    run = deployment.run("customers")
    assert (run.outcome, run.message) == ("ok", "")
    assert deployment.workspace.people()["1"]["last_order_at"] == "2026-06-01T00:00:00"


@pytest.mark.parametrize("broken", ["CONVERT(nvarchar(30), joined, 126) AS joined", "1 AS other"])
@pytest.mark.parametrize("accepted", [False, True])
def test_what_changed_while_a_column_was_left_out_is_made_good_once_it_may_go(deployment, club, ask, broken, accepted):
    club.people("plan_name, joined")
    for number in range(3):
        club.person(f"p{number}", plan_name="gold", joined=JOINED)
    club.live("customers")
    club.people(f"plan_name, {broken}")
    club.sql.execute("UPDATE shop.people SET joined = '2026-06-01' WHERE customer_id = 'p1'")
    assert deployment.run("customers").accepted == 1
    club.sql.execute("UPDATE shop.people SET plan_name = 'silver' WHERE customer_id = 'p2'")
    assert deployment.run("customers").accepted == 1
    assert deployment.run("customers").operations == 0
    if accepted and "other" not in broken:
        assert ask("accept", "customers", column="joined")[0] == 200
        arrived: object = "2026-06-01T00:00:00"
    else:
        club.people("plan_name, joined")
        arrived = seconds(datetime(2026, 6, 1))
    assert deployment.run("customers").accepted == 2  # those two rows and no others
    assert deployment.workspace.people()["p1"]["joined"] == arrived
    assert deployment.run("customers").operations == 0


def test_a_bit_becoming_the_words_true_and_false_is_not_sent(deployment, club):
    club.people("plan_name, vip")
    club.person("1", plan_name="gold", vip=True)
    club.live("customers")
    night(club, "plan_name, CAST(CASE vip WHEN 1 THEN 'true' ELSE 'false' END AS varchar(5)) AS vip")
    run = deployment.run("customers")
    assert (run.outcome, run.accepted) == ("ok", 1)
    assert deployment.workspace.people()["1"] == {"plan_name": "gold+", "vip": True}
    assert all(said in run.message for said in ("vip", "was true/false and is text", "is true")), run.message
    segment = deployment.workspace.add_segment("vips", {"attr": "vip", "op": "eq", "value": True})
    assert members(deployment, segment) == {"1"}


def test_a_column_that_vanished_is_told_and_the_others_go_on(deployment, club):
    club.people("plan_name, points")
    club.person("1", plan_name="gold", points=5)
    club.live("customers")
    night(club, "plan_name")
    run = deployment.run("customers")
    assert (run.outcome, run.accepted) == ("ok", 1)
    assert "points" in run.message
    assert deployment.workspace.people()["1"] == {"plan_name": "gold+", "points": 5}


def test_a_new_column_is_noted_and_sent(deployment, club):
    club.people("plan_name")
    club.person("1", plan_name="gold", points=5)
    club.live("customers")
    night(club, "plan_name, points")
    run = deployment.run("customers")
    assert run.outcome == "ok" and "points" in run.message
    assert deployment.workspace.people()["1"] == {"plan_name": "gold+", "points": 5}
    club.touch()
    assert deployment.run("customers").message == ""


def test_one_attribute_that_two_views_type_differently_keeps_the_first_type(deployment, club):
    club.people("plan_name, score AS ltv")
    club.person("1", plan_name="gold", score=Decimal("29.99"))
    club.live("customers")
    club.sales("total, CAST('much' AS varchar(10)) AS [person.ltv]")
    club.sale("o1", "1", total=Decimal("5.00"))
    said = ""
    try:
        said = deployment.run("orders").message
    except StopRun as stopped:
        said = str(stopped)
    assert "ltv" in said and "customers" in said, said
    assert deployment.workspace.people()["1"]["ltv"] == 29.99


@pytest.mark.parametrize(
    ("sync", "before", "after"),
    [
        ("customers", "CAST(customer_id AS int) AS customer_id", "customer_id"),
        ("orders", "CAST(event_id AS int) AS event_id", "event_id"),
        ("orders", "CAST(customer_id AS int) AS customer_id", "customer_id"),
        ("orders", "at AS event_time", "CONVERT(varchar(30), at, 126) AS event_time"),
        ("orders", "at AS event_time", "CAST(at AS datetimeoffset) AS event_time"),
    ],
)
def test_an_id_or_a_time_that_changes_its_type_stops_the_sync(deployment, club, sync, before, after):
    columns = {"customers": ["customer_id", "plan_name", "row_version"], "orders": [
        "customer_id", "event_id", "at AS event_time", "row_version", "CAST('Sale' AS varchar(9)) AS event_name"]}[sync]  # fmt: skip
    table = {"customers": "people", "orders": "sales"}[sync]
    others = [column for column in columns if column.split()[-1] != after.split()[-1]]
    club.view(sync, f"SELECT {', '.join([before, *others])} FROM shop.{table}")
    club.person("1", plan_name="gold")
    club.sale("10", "1")
    club.live(sync)
    club.view(sync, f"SELECT {', '.join([after, *others])} FROM shop.{table}")
    club.person("2", plan_name="gold")
    club.sale("11", "2")
    assert after.split()[-1] in stop(deployment, sync)
    club.view(sync, f"SELECT {', '.join([before, *others])} FROM shop.{table}")
    assert deployment.run(sync).accepted == 1


@pytest.mark.parametrize(
    ("values", "sent"),
    [(("2026-01-05", "2026-02-06"), "2026-01-05"), (("29.99", "5"), "29.99"), (("true", "false"), "true")],
    ids=["dates", "numbers", "flags"],
)
def test_a_text_that_is_something_else_in_disguise_is_not_sent_until_it_is_accepted(
    deployment, club, ask, values, sent
):
    club.people("plan_name, note")
    for number in range(40):
        club.person(f"p{number}", plan_name="gold", note=values[number % 2])
    run = deployment.run("customers")
    assert (run.outcome, run.accepted) == ("ok", 40)
    assert "note" in run.message and sent not in run.message
    assert deployment.workspace.people()["p0"] == {"plan_name": "gold"}
    status, answer = ask("accept", "customers", column="note")
    assert status == 200, answer
    club.touch()
    club.live("customers")
    assert deployment.workspace.people()["p0"] == {"plan_name": "gold", "note": sent}


def test_what_sql_server_says_works_in_the_conditions_of_a_segment(deployment, club):
    club.people(
        "joined AS last_order_at, score AS ltv, points AS orders_count, vip AS is_subscriber, plan_name AS vip_tier"
    )
    for person, days, ltv, count, flag in (("1", 2, "29.99", 3, True), ("2", 20, "100.01", 0, False)):
        club.person(person, joined=ago(days=days), score=Decimal(ltv), points=count, vip=flag, plan_name="gold")
    club.live("customers")
    add = deployment.workspace.add_segment
    conditions = {
        ("last_order_at", "within_past_days", 7): {"1"},
        ("last_order_at", "within_past_days", 30): {"1", "2"},
        ("ltv", "gt", 100): {"2"},
        ("ltv", "eq", 29.99): {"1"},
        ("orders_count", "lt", 1): {"2"},
        ("is_subscriber", "eq", True): {"1"},
        ("is_subscriber", "eq", False): {"2"},
        ("vip_tier", "eq", "gold"): {"1", "2"},
    }
    found = {
        (attr, op, value): members(deployment, add(f"{attr} {op} {value}", {"attr": attr, "op": op, "value": value}))
        for attr, op, value in conditions
    }
    assert found == conditions


# NULL, JSON and consent ---------------------------------------------------------------------------------------------


def test_null_clears_only_what_the_setting_lists(deployment, club):
    club.people("email, plan_name, points")
    club.person("1", email="ann@example.com", plan_name="gold", points=5)
    club.live("customers")
    club.sql.execute("UPDATE shop.people SET email = NULL, plan_name = NULL, points = NULL")
    deployment.run("customers", CLEAR_WHEN_NULL="plan_name, never_heard_of")
    assert deployment.workspace.people()["1"] == {"email": "ann@example.com", "points": 5}


@pytest.mark.parametrize("name", ["email", "id", "customer_id", "cio_id"])
def test_an_identifier_can_not_be_put_on_the_list_of_what_null_clears(deployment, ask, monkeypatch, name):
    monkeypatch.setenv("CLEAR_WHEN_NULL", f"plan_name,{name}")
    with pytest.raises(ConfigurationFault, match=rf"CLEAR_WHEN_NULL.*{name}"):
        settings.load()


def test_json_is_sent_as_what_it_is_where_its_column_is_allowed_by_name_and_else_set_aside(
    deployment, club, ask, monkeypatch
):
    club.people("plan_name, note")
    club.person("1", plan_name="gold", note='{"size": "L", "colours": ["red", "blue"]}')
    club.person("2", plan_name="gold", note="likes jazz")
    club.live("customers")
    assert set(deployment.workspace.people()) == {"2"}
    (letter,) = deployment.dead_letters("customers")
    assert (letter["key"], letter["field"]) == ("1", "note")
    deployment.environment["JSON_COLUMNS"] = "note"
    monkeypatch.setenv("JSON_COLUMNS", "note")
    assert "note" in deployment.run("customers").message  # it was text until now, so a person has to agree
    assert ask("accept", "customers", column="note")[0] == 200
    club.touch()
    club.live("customers")
    assert deployment.workspace.people()["1"]["note"] == {"size": "L", "colours": ["red", "blue"]}


def test_who_unsubscribes_at_customerio_stays_unsubscribed_unless_sql_owns_consent(deployment, club):
    club.people("plan_name, vip AS unsubscribed")
    club.person("1", plan_name="gold", vip=False)
    club.person("2", plan_name="gold", vip=True)
    club.live("customers")
    assert deployment.workspace.people()["2"]["unsubscribed"] is True
    track(deployment, action="identify", identifiers={"id": "1"}, attributes={"unsubscribed": True})
    for _ in range(2):
        club.sql.execute("UPDATE shop.people SET plan_name = CONCAT(plan_name, '+')")
        club.live("customers")
    deployment.run("customers", STATE_CONTAINER=deployment.environment["STATE_CONTAINER"] + "-again")
    assert deployment.workspace.people()["1"] == {"plan_name": "gold++", "unsubscribed": True}
    club.touch()
    deployment.run("customers", SQL_OWNS_CONSENT="true")
    people = deployment.workspace.people()
    assert (people["1"]["unsubscribed"], people["2"]["unsubscribed"]) == (False, True)


def test_subscription_preferences_are_refused(deployment, club):
    club.people("plan_name, note AS cio_subscription_preferences")
    club.person("1", plan_name="gold", note="x")
    assert "cio_subscription_preferences" in stop(deployment, "customers")


# Too much at once ---------------------------------------------------------------------------------------------------


def reason(message: str) -> str:
    """The reason that a message tells to send to /release."""
    found = re.search(r'"reason": "([^"]+)"', message)
    assert found and "/api/syncs/customers/release" in message, message
    return found[1]


def test_a_reload_that_rewrites_everybody_stops_and_is_released_for_once(deployment, club, ask):
    club.crowd(1500)
    club.live("customers")
    club.sql.execute("UPDATE shop.people SET plan_name = 'silver' WHERE points <= 999")
    assert deployment.run("customers").accepted == 999  # a lot, and less than a thousand
    for reload in ("first", "second"):
        club.sql.execute("UPDATE shop.people SET plan_name = ?", reload)
        why = reason(stop(deployment, "customers", PAGE_SIZE=5000))
        stop(deployment, "customers", PAGE_SIZE=5000)
        assert ask("release", "customers", reason=why)[0] == 200
        assert deployment.run("customers", PAGE_SIZE=5000).accepted == 1500
    assert {person["plan_name"] for person in deployment.workspace.people().values()} == {"second"}


@pytest.mark.parametrize("size", [100, 1000, 5000])
def test_a_reload_stops_before_anything_is_sent_whatever_the_size_of_a_page(deployment, club, size):
    club.crowd(1500)
    club.live("customers")
    club.sql.execute("UPDATE shop.people SET plan_name = 'silver'")
    assert "1,500" in stop(deployment, "customers", PAGE_SIZE=size)


def test_an_attribute_that_is_empty_for_a_large_part_of_a_large_page_stops(deployment, club, ask):
    settings = {"PAGE_SIZE": 5000, "MASS_CHANGE_PERCENT": 100}
    club.people("plan_name, points")
    club.crowd(1200)
    club.live("customers")
    club.sql.execute("UPDATE shop.people SET points = CASE WHEN points % 2 = 0 THEN 0 ELSE points END")
    message = stop(deployment, "customers", **settings)
    assert "points" in message
    assert ask("release", "customers", reason=reason(message))[0] == 200
    assert deployment.run("customers", **settings).accepted == 1200
    assert deployment.workspace.people()["p2"]["points"] == 0


# Dead letters -------------------------------------------------------------------------------------------------------


def spoilt(club: Club, *event_ids: str, at: datetime | None = None) -> None:
    """Sales whose remark is too long for Customer.io."""
    for event_id in event_ids:
        club.sale(event_id, "1", at, remark="planted-secret " * 80)
    club.live("orders")


def test_dead_letters_are_counted_by_reason_with_keys_and_without_personal_data(deployment, club, ask):
    club.live("orders")
    spoilt(club, "o1", "o2")
    club.sale("o3", "planted-person-id" * 20)
    club.live("orders")
    status, answer = ask("dead_letters", "orders")
    assert (status, answer["sync"], answer["total"]) == (200, "orders", 3)
    counts = {one["reason"]: (one["count"], sorted(one["keys"])) for one in answer["reasons"]}
    assert sorted(counts.values()) == [(1, ["o3"]), (2, ["o1", "o2"])]
    assert any("remark" in name for name in counts)
    assert "planted" not in json.dumps(answer)
    assert ask("dead_letters", "nothing")[0] == 404


def test_a_row_that_fails_again_is_one_record_with_more_tries_and_leaves_the_list_when_it_is_sent(deployment, club):
    club.live("orders")
    spoilt(club, "o1")
    (first,) = deployment.dead_letters("orders")
    club.sql.execute("UPDATE shop.sales SET total = 1")
    club.live("orders")
    (second,) = deployment.dead_letters("orders")
    assert (first["tries"], second["tries"]) == (1, 2)
    assert second["first_seen"] == first["first_seen"] <= second["last_seen"]
    club.sql.execute("UPDATE shop.sales SET remark = 'fine'")
    club.live("orders")
    assert deployment.dead_letters("orders") == []


def test_a_replay_sends_the_row_as_it_is_now(deployment, club, ask):
    old = ago(days=5)  # fires nothing any more
    club.live("orders")
    spoilt(club, "o1", "o2", "o3", at=old)
    # mended at the source, which for once does not move the row version: the view cuts the text, for all but o2
    club.view(
        "orders",
        "SELECT customer_id, CAST('Order Placed' AS varchar(50)) AS event_name, at AS event_time, event_id, row_version,"
        " total, CAST(CASE event_id WHEN 'o2' THEN remark ELSE LEFT(remark, 14) END AS varchar(1500)) AS remark"
        " FROM shop.sales WHERE event_id <> 'o3'",
    )
    assert deployment.run("orders").rows == 0
    status, answer = ask("replay", "orders")
    assert status == 200, answer
    (event,) = events(deployment)
    assert (event["event_id"], event["remark"], event["timestamp"]) == ("o1", "planted-secret", seconds(old))
    letters = {letter["key"]: letter["tries"] for letter in deployment.dead_letters("orders")}
    assert letters["o2"] == 2
    assert "o1" not in letters
    assert "o3" in json.dumps(answer) or "gone" in json.dumps(answer), answer
    assert "planted" not in json.dumps(answer)
    # once more: what was sent is not sent again
    ask("replay", "orders")
    assert len(events(deployment)) == 1
    club.sql.execute("UPDATE shop.sales SET total = 3 WHERE event_id = 'o1'")
    assert deployment.run("orders").already_sent == 1


def test_a_replay_takes_only_the_keys_or_the_reason_that_are_asked_for(deployment, club, ask):
    club.live("orders")
    spoilt(club, "o1", "o2", at=ago(days=5))
    club.sale("o3", "x" * 200, ago(days=5))
    club.live("orders")
    club.sales("total")
    ask("replay", "orders", keys=["o2"])
    assert [event["event_id"] for event in events(deployment)] == ["o2"]
    (why,) = [one["reason"] for one in ask("dead_letters", "orders")[1]["reasons"] if "remark" in one["reason"]]
    ask("replay", "orders", reason=why)
    assert [event["event_id"] for event in events(deployment)] == ["o2", "o1"]
    assert [letter["key"] for letter in deployment.dead_letters("orders")] == ["o3"]


def test_a_replay_of_what_could_fire_a_campaign_needs_a_confirmation(deployment, club, ask):
    club.live("orders")
    spoilt(club, "o1", at=ago(hours=3))
    club.sales("total")
    _, answer = ask("replay", "orders")
    assert "confirm" in json.dumps(answer)
    assert events(deployment) == []
    assert [letter["key"] for letter in deployment.dead_letters("orders")] == ["o1"]
    status, answer = ask("replay", "orders", confirm=True)
    assert status == 200, answer
    assert [event["event_id"] for event in events(deployment)] == ["o1"]
    assert deployment.dead_letters("orders") == []


def test_a_replay_past_the_maximum_age_needs_a_confirmation_too(deployment, club, ask):
    club.view(
        "carts",
        "SELECT customer_id, CAST('Cart Abandoned' AS varchar(50)) AS event_name, at AS event_time, event_id,"
        " row_version, remark FROM shop.sales",
    )
    club.live("orders", "carts")
    club.sale("c1", "1", ago(minutes=100), remark="x" * 1200)
    with suppress(StopRun):
        deployment.run("orders")
    club.live("carts")
    assert [letter["key"] for letter in deployment.dead_letters("carts")] == ["c1"]
    club.sql.execute("UPDATE shop.sales SET remark = 'fine', at = ?", ago(days=4))  # as if four days had passed
    _, answer = ask("replay", "carts")
    assert "confirm" in json.dumps(answer)
    assert events(deployment, "Cart Abandoned") == []
    status, answer = ask("replay", "carts", confirm=True)
    assert status == 200, answer
    assert [event["event_id"] for event in events(deployment, "Cart Abandoned")] == ["c1"]
    assert deployment.dead_letters("carts") == []


def test_a_profile_that_was_set_aside_is_replayed_as_it_is_now(deployment, club, ask):
    club.person("1", plan_name="x" * 1200)
    club.person("2", plan_name="gold")
    club.live("customers")
    assert set(deployment.workspace.people()) == {"2"}
    club.people("email, LEFT(plan_name, 4) AS plan_name")
    status, answer = ask("replay", "customers")
    assert status == 200, answer
    assert deployment.workspace.people()["1"] == {"plan_name": "xxxx"}
    assert deployment.dead_letters("customers") == []
