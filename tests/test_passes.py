"""A pass, end to end: SQL Server over the real driver, real blobs, and a Customer.io that refuses what the real one would."""

import json
import logging
import re
import socket
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise, product

import pyodbc
import pytest

from shared import passes
from shared.errors import ConfigurationFault, CredentialFault, DeliveryUnavailable, StateFault, ViewFault
from shared.syncs import Kind, Sync
from tests.conftest import Deployment

STRATEGIES = ["row_version", "updated_at"]


def make_tables(sql: pyodbc.Connection, strategy: str = "row_version") -> None:
    """Customers and orders, and their views with one cursor or the other."""
    cursor = (
        "row_version rowversion" if strategy == "row_version" else "updated_at datetime2(6) DEFAULT SYSUTCDATETIME()"
    )
    sql.execute(
        f"CREATE TABLE shop.customers (customer_id int NOT NULL PRIMARY KEY, email nvarchar(320), tier nvarchar(20), {cursor})"
    )
    sql.execute(
        "CREATE TABLE shop.orders (order_id int NOT NULL PRIMARY KEY, customer_id int, paid_at datetime2(0),"
        f" total decimal(12, 2), {cursor})"
    )
    sql.execute(f"CREATE VIEW retention.customers AS SELECT customer_id, email, tier, {strategy} FROM shop.customers")
    sql.execute(
        "CREATE VIEW retention.orders AS SELECT o.customer_id, 'Order Placed' AS event_name, o.paid_at AS event_time,"
        f" o.order_id AS event_id, o.total, o.{strategy}, c.email AS [person.email]"
        " FROM shop.orders AS o LEFT JOIN shop.customers AS c ON c.customer_id = o.customer_id"
    )


def add_customers(sql: pyodbc.Connection, numbers: range) -> None:
    rows = [(number, f"c{number}@example.com", "gold") for number in numbers]
    bulk(sql, "INSERT INTO shop.customers (customer_id, email, tier) VALUES (?, ?, ?)", rows)


def add_orders(sql: pyodbc.Connection, numbers: range, customers: int = 100) -> None:
    rows = [
        (number, number % customers, f"2026-01-{1 + number % 28:02} 12:00:00", Decimal(f"{number % 500}.99"))
        for number in numbers
    ]
    bulk(sql, "INSERT INTO shop.orders (order_id, customer_id, paid_at, total) VALUES (?, ?, ?, ?)", rows)


def bulk(sql: pyodbc.Connection, statement: str, rows: list[tuple]) -> None:
    with closing(sql.cursor()) as cursor:
        cursor.fast_executemany = True
        cursor.executemany(statement, rows)


def event_ids(deployment: Deployment) -> list[int]:
    return [event["attributes"]["event_id"] for event in deployment.workspace.events()]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_everything_is_sent_once_and_then_only_what_is_new(deployment, strategy):
    make_tables(deployment.sql, strategy)
    add_customers(deployment.sql, range(2500))
    add_orders(deployment.sql, range(1, 3501))

    customers, orders = deployment.run("customers"), deployment.run("orders")
    assert (customers.outcome, customers.accepted, orders.outcome, orders.accepted) == ("ok", 2500, "ok", 3500)
    people = deployment.workspace.people()
    assert len(people) == 2500
    assert people["7"] == {"email": "c7@example.com", "tier": "gold"}
    assert sorted(event_ids(deployment)) == list(range(1, 3501))
    first = next(iter(deployment.workspace.events()))
    late = first["attributes"].pop("late_minutes")
    assert first["attributes"] == {"event_id": 1, "total": 1.99, "backfill": True}
    assert abs(late - (time.time() - 1767355200) // 60) <= 1
    assert first["timestamp"] == 1767355200  # 2026-01-02T12:00:00Z

    for sync in ("customers", "orders"):
        again = deployment.run(sync)
        assert (again.outcome, again.operations, again.requests) == ("ok", 0, 0)

    add_orders(deployment.sql, range(3501, 3511))
    deployment.sql.execute("UPDATE shop.customers SET tier = 'vip' WHERE customer_id = 7")
    if strategy == "updated_at":
        deployment.sql.execute("UPDATE shop.customers SET updated_at = SYSUTCDATETIME() WHERE customer_id = 7")
    assert deployment.run("orders").operations == 10
    assert deployment.run("customers").operations == 1
    assert deployment.workspace.people()["7"]["tier"] == "vip"
    stats = deployment.workspace.stats()
    assert (stats["events_stored"], stats["duplicate_events_stored"], stats["duplicate_events_dropped"]) == (3510, 0, 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fifty_thousand_rows_with_one_cursor_value_are_all_read_and_once(deployment, strategy):
    sql = deployment.sql
    sql.execute("CREATE TABLE shop.facts (event_id int NOT NULL PRIMARY KEY)")
    bulk(sql, "INSERT INTO shop.facts (event_id) VALUES (?)", [(number,) for number in range(50_000)])
    same = (
        "CAST(0x00000000000000AB AS binary(8)) AS row_version"
        if strategy == "row_version"
        else "CAST('2026-01-01T00:00:00.1234567' AS datetime2(7)) AS updated_at"
    )
    sql.execute(
        "CREATE VIEW retention.orders AS SELECT event_id % 1000 AS customer_id, 'Order Placed' AS event_name,"
        f" CAST('2026-01-01' AS datetime2(0)) AS event_time, event_id, {same} FROM shop.facts"
    )
    if strategy == "row_version":  # the bound must lie above the rows' value
        sql.execute("CREATE TABLE shop.counter (id int NOT NULL PRIMARY KEY, row_version rowversion)")
        while sql.execute("SELECT MIN_ACTIVE_ROWVERSION()").fetchval() <= bytes.fromhex("00000000000000AB"):
            sql.execute("INSERT INTO shop.counter (id) SELECT COUNT(*) FROM shop.counter")
    first = deployment.run("orders", PAGE_SIZE=1000)
    assert (first.outcome, first.rows, first.accepted) == ("ok", 50_000, 50_000)
    assert first.pages >= 50
    assert sorted(event_ids(deployment)) == list(range(50_000))
    assert deployment.run("orders", PAGE_SIZE=1000).operations == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_pass_whose_time_is_up_ends_at_a_page_and_the_next_goes_on_from_there(deployment, strategy):
    make_tables(deployment.sql, strategy)
    add_customers(deployment.sql, range(4000))
    add_orders(deployment.sql, range(4000))
    deployment.workspace.configure(latency_seconds=0.5)
    for sync in ("customers", "orders"):
        rows = []
        while True:
            run = deployment.run(sync, PAGE_SIZE=1000, TIME_BUDGET_SECONDS=1)
            rows.append(run.operations)
            if run.outcome == "ok":
                break
            assert run.outcome == "budget"
        assert len(rows) > 1
        assert sum(rows) == 4000
    assert len(deployment.workspace.people()) == 4000
    assert sorted(event_ids(deployment)) == list(range(4000))


def test_rows_of_a_transaction_that_stays_open_are_read_later_and_never_missed(deployment, database):
    make_tables(deployment.sql)
    with closing(pyodbc.connect(database, autocommit=False)) as open_one:
        open_one.execute(
            "INSERT INTO shop.orders (order_id, customer_id, paid_at, total) VALUES (1, 1, '2026-01-01', 1)"
        )
        add_orders(deployment.sql, range(2, 12))
        assert deployment.run("orders").operations == 0
        open_one.commit()
    assert deployment.run("orders").operations == 11
    assert sorted(event_ids(deployment)) == list(range(1, 12))


def test_a_late_commit_within_the_lookback_is_read(deployment):
    make_tables(deployment.sql, "updated_at")
    add_orders(deployment.sql, range(10))
    assert deployment.run("orders").operations == 10
    deployment.sql.execute(
        "INSERT INTO shop.orders (order_id, customer_id, paid_at, total, updated_at)"
        " VALUES (99, 1, '2026-01-01', 1, DATEADD(second, -300, SYSUTCDATETIME()))"
    )
    assert deployment.run("orders").operations == 1
    assert deployment.run("orders").operations == 0


def test_rows_that_have_grown_older_than_the_lookback_are_still_recognised(deployment):
    make_tables(deployment.sql, "updated_at")
    sql = deployment.sql
    add_customers(sql, range(20))
    add_orders(sql, range(20))
    sql.execute("UPDATE shop.customers SET updated_at = DATEADD(second, -120, SYSUTCDATETIME())")
    sql.execute("UPDATE shop.orders SET updated_at = DATEADD(second, -120, SYSUTCDATETIME())")
    for sync in ("customers", "orders"):
        assert deployment.run(sync, LOOKBACK_SECONDS=600).operations == 20
        # a shorter lookback is to the mark what a later hour is
        settled = deployment.run(sync, LOOKBACK_SECONDS=60)
        assert (settled.operations, settled.recognised) == (0, 20)
        assert deployment.run(sync, LOOKBACK_SECONDS=60).rows == 0


def test_rows_within_the_lookback_stay_known_when_older_ones_are_forgotten(deployment):
    make_tables(deployment.sql, "updated_at")
    add_customers(deployment.sql, range(20))
    deployment.sql.execute(
        "UPDATE shop.customers SET updated_at = DATEADD(second, -300, SYSUTCDATETIME()) WHERE customer_id < 10"
    )
    assert deployment.run("customers", LOOKBACK_SECONDS=600).operations == 20
    assert deployment.run("customers", LOOKBACK_SECONDS=60).recognised == 20
    run = deployment.run("customers", LOOKBACK_SECONDS=60)
    assert (run.operations, run.recognised) == (0, 10)


def test_a_clock_that_goes_back_hides_no_row_behind_the_mark(deployment):
    make_tables(deployment.sql, "updated_at")
    add_orders(deployment.sql, range(10))
    deployment.run("orders")
    mark = json.loads(deployment.read("syncs/orders/mark.json"))
    ahead = datetime.fromisoformat(mark["position"]["cursor"]) + timedelta(hours=1)
    mark["position"] = {"cursor": ahead.isoformat(timespec="microseconds"), "key": None}
    deployment.container.upload_blob("syncs/orders/mark.json", json.dumps(mark), overwrite=True)
    add_orders(deployment.sql, range(10, 13))
    assert deployment.run("orders").operations == 3
    assert deployment.run("orders").operations == 0


def test_row_versions_that_went_back_stop_the_sync(deployment):
    """As after a backup was restored: every change up to the old mark would be missed."""
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(3))
    deployment.run("orders")
    mark = json.loads(deployment.read("syncs/orders/mark.json"))
    mark["position"]["cursor"] = "0x00000000FFFFFFFF"
    deployment.container.upload_blob("syncs/orders/mark.json", json.dumps(mark), overwrite=True)
    with pytest.raises(StateFault, match="was a backup restored"):
        deployment.run("orders")


def test_what_was_accepted_before_a_view_fails_on_a_row_is_accounted_for(deployment):
    make_tables(deployment.sql)
    deployment.run("orders")
    deployment.sql.execute("DROP VIEW retention.orders")
    deployment.sql.execute(
        "CREATE VIEW retention.orders AS SELECT customer_id, 'Order Placed' AS event_name, paid_at AS event_time,"
        " order_id AS event_id, row_version, CAST(CASE WHEN order_id = 2500 THEN 'x' ELSE '1' END AS int) AS n FROM shop.orders"
    )
    add_orders(deployment.sql, range(3000))
    for _ in range(2):
        with pytest.raises(ViewFault, match=r"retention\.orders"):
            deployment.run("orders", PAGE_SIZE=100)
    stats = deployment.workspace.stats()
    assert stats["duplicate_events_dropped"] == 0


def test_changes_that_name_people_by_another_type_are_a_fault_of_the_views(deployment):
    make_tables(deployment.sql)
    deployment.sql.execute(
        "CREATE VIEW retention.customer_changes AS SELECT CAST(customer_id AS nvarchar(20)) AS customer_id, row_version"
        " FROM shop.customers"
    )
    with pytest.raises(ViewFault, match=r"nvarchar in retention\.customer_changes and int in retention\.customers"):
        deployment.run("customers")


def test_another_workspace_is_noticed_even_when_there_is_nothing_to_send(deployment, customerio):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(3))
    deployment.run("orders")
    other = customerio.create_workspace(region="us", lag_seconds=0)
    with pytest.raises(StateFault, match="CUSTOMERIO_SITE_ID now leads to"):
        deployment.run("orders", CUSTOMERIO_SITE_ID=other.site_id, CUSTOMERIO_API_KEY=other.api_key)


def test_a_sync_without_a_mark_is_not_live_and_sends_nothing(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(5))
    run = deployment.run("orders", FIRST_PASS="approved")
    assert run.outcome == "not_live"
    assert "not live" in run.message
    assert deployment.workspace.stats()["requests"] == 0
    assert not deployment.container.exists()


def test_a_missing_mark_beside_runs_or_a_ledger_is_a_fault_and_never_a_first_pass(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(5))
    deployment.run("orders")
    deployment.container.delete_blob("syncs/orders/mark.json")
    with pytest.raises(StateFault, match=r"mark of orders is missing .* Restore syncs/orders/mark\.json"):
        deployment.run("orders")
    for blob in deployment.blobs("syncs/orders/runs/"):
        deployment.container.delete_blob(blob)
    with pytest.raises(StateFault, match="beside syncs/orders/ledger/"):
        deployment.run("orders")
    assert deployment.workspace.stats()["operations"] == 5


def test_a_ledger_that_is_gone_beside_a_mark_stops_the_sync(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(5))
    deployment.run("orders")
    for blob in deployment.blobs("syncs/orders/ledger/"):
        deployment.container.delete_blob(blob)
    deployment.sql.execute("UPDATE shop.orders SET total = 5")
    with pytest.raises(StateFault, match="knows of 5 sent events, 0 are left"):
        deployment.run("orders")
    assert deployment.workspace.stats()["operations"] == 5


def test_a_damaged_mark_stops_the_sync(deployment):
    make_tables(deployment.sql)
    deployment.run("orders")
    deployment.container.upload_blob("syncs/orders/mark.json", b"{", overwrite=True)
    with pytest.raises(StateFault, match=r"syncs/orders/mark\.json is damaged"):
        deployment.run("orders")


def test_state_of_another_workspace_stops_every_sync_and_names_the_way_out(deployment, customerio):
    make_tables(deployment.sql)
    add_customers(deployment.sql, range(3))
    add_orders(deployment.sql, range(3))
    deployment.run("orders")
    other = customerio.create_workspace(region="us", lag_seconds=0)
    changes = {"CUSTOMERIO_SITE_ID": other.site_id, "CUSTOMERIO_API_KEY": other.api_key}
    add_orders(deployment.sql, range(3, 5))
    for sync in ("orders", "customers"):  # one with a mark, one on its first pass
        with pytest.raises(StateFault, match=r"belongs to the Customer\.io workspace .*STATE_CONTAINER"):
            deployment.run(sync, **changes)
    assert other.stats()["operations"] == 0
    assert deployment.run("orders").operations == 2


def test_state_of_another_database_stops_every_sync(deployment, sql_server):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(3))
    deployment.run("orders")
    name = f"other_{time.time_ns()}"
    text = sql_server.create_database(name)
    try:
        with closing(pyodbc.connect(text, autocommit=True)) as sql:
            sql.execute("CREATE SCHEMA retention")
            sql.execute("CREATE SCHEMA shop")
            make_tables(sql)
            add_orders(sql, range(10, 13))
            add_customers(sql, range(3))
        for sync in ("orders", "customers"):
            with pytest.raises(StateFault, match=f"SQL_CONNECTION_STRING now leads to {name}"):
                deployment.run(sync, SQL_CONNECTION_STRING=text)
    finally:
        sql_server.drop_database(name)
    assert deployment.workspace.stats()["operations"] == 3


def test_a_pass_that_finds_another_at_work_says_so_and_ends_well(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(3))
    deployment.run("orders")
    from azure.storage.blob import BlobLeaseClient

    lease = BlobLeaseClient(deployment.container.get_blob_client("syncs/orders/mark.json"))
    lease.acquire(15)
    run = deployment.run("orders")
    assert (run.outcome, run.rows) == ("busy", 0)
    lease.release()
    assert deployment.run("orders").outcome == "ok"


def test_bad_rows_are_set_aside_with_their_reason_and_the_others_go_on(deployment):
    sql = deployment.sql
    sql.execute(
        "CREATE TABLE shop.facts (n int NOT NULL PRIMARY KEY, customer_id nvarchar(20), event_id nvarchar(20),"
        " event_time datetime2(0), note nvarchar(max), row_version rowversion)"
    )
    sql.execute(
        "CREATE VIEW retention.orders AS SELECT customer_id, 'Order Placed' AS event_name, event_time, event_id, note,"
        " row_version FROM shop.facts"
    )
    rows = [
        (1, "c1", "e1", "2026-01-01", "fine"),
        (2, None, "e2", "2026-01-01", "a"),
        (3, "c3", None, "2026-01-01", "b"),
        (4, "c4", "e4", None, "c"),
        (5, "c5", "e5", "2026-01-01", "x" * 1001),
        (6, "c6", "e6", "2026-01-01", "fine"),
        (7, "c7", "e6", "2026-01-01", "the same event again"),
    ]
    bulk(sql, "INSERT INTO shop.facts (n, customer_id, event_id, event_time, note) VALUES (?, ?, ?, ?, ?)", rows)
    run = deployment.run("orders")
    assert (run.outcome, run.accepted, run.dead_letters, run.already_sent) == ("ok", 2, 4, 1)
    letters = {(letter["key"], letter["field"]): letter["reason"] for letter in deployment.dead_letters("orders")}
    assert letters == {
        ("e2", "customer_id"): "NULL or empty",
        (None, "event_id"): "NULL or empty",
        ("e4", "event_time"): "NULL",
        ("e5", "note"): "longer than 1000 bytes",
    }
    assert deployment.run("orders").dead_letters == 0


@pytest.mark.parametrize("feed", ["customers", "customer_changes"])
def test_an_id_that_stands_twice_is_set_aside_in_the_first_pass_and_later(deployment, feed):
    sql = deployment.sql
    sql.execute(
        "CREATE TABLE shop.facts (n int NOT NULL PRIMARY KEY, customer_id nvarchar(20), tier nvarchar(10), row_version rowversion)"
    )
    cursor = ", row_version" if feed == "customers" else ""
    sql.execute(f"CREATE VIEW retention.customers AS SELECT customer_id, tier{cursor} FROM shop.facts")
    if feed == "customer_changes":
        sql.execute("CREATE VIEW retention.customer_changes AS SELECT customer_id, row_version FROM shop.facts")
    bulk(
        sql,
        "INSERT INTO shop.facts (n, customer_id, tier) VALUES (?, ?, ?)",
        [(n, f"c{n:05}", "a") for n in range(3000)]
        + [(3000 + n, f"c{n:05}", "b") for n in range(990, 1010)]
        + [(9000, None, "x")],
    )
    run = deployment.run("customers", PAGE_SIZE=1000)
    assert (run.accepted, run.dead_letters) == (2980, 41)
    sql.execute("UPDATE shop.facts SET tier = 'c' WHERE n = 1000")  # one of the two rows of c01000
    sql.execute("UPDATE shop.facts SET tier = 'c' WHERE n = 5")
    run = deployment.run("customers", PAGE_SIZE=1000)
    assert (run.accepted, run.dead_letters) == (1, 2)
    people = deployment.workspace.people()
    assert "c01000" not in people and people["c00005"] == {"tier": "c"}


def test_changes_of_any_base_table_reach_the_person_once(deployment):
    make_tables(deployment.sql)
    sql = deployment.sql
    add_customers(sql, range(1, 101))
    sql.execute("DROP VIEW retention.customers")
    sql.execute(
        "CREATE VIEW retention.customers AS SELECT c.customer_id, c.tier,"
        " (SELECT COUNT(*) FROM shop.orders AS o WHERE o.customer_id = c.customer_id) AS orders_count FROM shop.customers AS c"
    )
    sql.execute(
        "CREATE VIEW retention.customer_changes AS SELECT customer_id, row_version FROM shop.customers"
        " UNION ALL SELECT customer_id, row_version FROM shop.orders"
    )
    assert deployment.run("customers").operations == 100
    assert deployment.run("customers").operations == 0
    add_orders(sql, range(500, 700), customers=10)  # ten people, number 0 is none
    sql.execute("UPDATE shop.customers SET tier = 'vip' WHERE customer_id = 9")
    run = deployment.run("customers")
    assert (run.operations, run.vanished) == (9, 1)
    assert deployment.workspace.people()["9"] == {"tier": "vip", "orders_count": 20}


def test_rejected_operations_become_dead_letters_and_do_not_hold_back_the_mark(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(2000))
    deployment.workspace.add_fault(reject_share=0.01, seed=7)
    run = deployment.run("orders")
    assert run.outcome == "ok"
    assert run.accepted + run.rejected == 2000
    assert 0 < run.rejected == run.dead_letters
    stored = set(event_ids(deployment))
    rejected = {int(letter["key"]) for letter in deployment.dead_letters("orders")}
    assert stored | rejected == set(range(2000))
    assert not stored & rejected
    deployment.workspace.clear_faults()
    assert deployment.run("orders").operations == 0


def test_what_was_accepted_before_the_credentials_were_refused_is_not_sent_again(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(6000))
    deployment.workspace.add_fault(status=401, every=3)
    with pytest.raises(CredentialFault, match="CUSTOMERIO_API_KEY"):
        deployment.run("orders", CUSTOMERIO_BATCHES_IN_FLIGHT=1)
    stored = len(event_ids(deployment))
    assert 0 < stored < 6000
    deployment.workspace.clear_faults()
    run = deployment.run("orders")
    assert (run.outcome, run.operations, run.already_sent) == ("ok", 6000 - stored, stored % 1000 and run.already_sent)
    stats = deployment.workspace.stats()
    assert (stats["events_stored"], stats["duplicate_events_dropped"]) == (6000, 0)


def test_a_failed_run_is_recorded_with_its_message(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(3))
    deployment.run("orders")
    add_orders(deployment.sql, range(3, 6))
    deployment.workspace.add_fault(status=401)
    with pytest.raises(CredentialFault):
        deployment.run("orders")
    records = [json.loads(deployment.read(name)) for name in deployment.blobs("syncs/orders/runs/")]
    assert [record["outcome"] for record in records] == ["ok", "failed"]
    assert "CUSTOMERIO_API_KEY" in records[1]["message"]
    assert records[0]["accepted"] == 3


BAD_SETTINGS = {
    "a driver that is not there": (
        {"SQL_CONNECTION_STRING": "Driver={No Such};Server=127.0.0.1;UID=a;PWD=b"},
        "SQL_CONNECTION_STRING",
    ),
    "a wrong Customer.io key": ({"CUSTOMERIO_API_KEY": "planted-secret"}, "CUSTOMERIO_API_KEY"),
    "a wrong storage string": ({"AzureWebJobsStorage": "planted-secret"}, "AzureWebJobsStorage"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_a_bad_setting_is_named_and_nothing_is_sent(deployment, case):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(3))
    changes, name = BAD_SETTINGS[case]
    with pytest.raises(Exception, match=name) as failure:
        deployment.run("orders", **changes)
    assert type(failure.value).__module__ == "shared.errors"
    assert "planted-secret" not in str(failure.value)
    assert deployment.workspace.stats()["operations"] == 0


def test_a_wrong_password_is_said_at_once_and_not_tried_again(deployment, database):
    started = time.monotonic()
    wrong = ";".join(
        part if not part.upper().startswith("PWD=") else "PWD=planted-secret" for part in database.split(";")
    )
    with pytest.raises(CredentialFault, match="SQL_CONNECTION_STRING") as failure:
        deployment.run("orders", SQL_CONNECTION_STRING=wrong)
    assert "planted-secret" not in str(failure.value)
    assert time.monotonic() - started < 5


def test_a_missing_view_is_named(deployment):
    with pytest.raises(ViewFault, match=r"retention\.orders is missing"):
        deployment.run("orders")
    assert not deployment.container.exists()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            "1 AS customer_id, 'x' AS event_name, SYSUTCDATETIME() AS event_time, SYSUTCDATETIME() AS updated_at",
            "event_id",
        ),
        (
            "'x' AS event_name, SYSUTCDATETIME() AS event_time, 1 AS event_id, SYSUTCDATETIME() AS updated_at",
            "customer_id",
        ),
        (
            "1 AS customer_id, SYSUTCDATETIME() AS event_time, 1 AS event_id, SYSUTCDATETIME() AS updated_at",
            "event_name",
        ),
        ("1 AS customer_id, 'x' AS event_name, 1 AS event_id, SYSUTCDATETIME() AS updated_at", "event_time"),
        ("1 AS customer_id, 'x' AS event_name, SYSUTCDATETIME() AS event_time, 1 AS event_id", "no cursor column"),
        (
            "1 AS customer_id, 'x' AS event_name, SYSUTCDATETIME() AS event_time, 1 AS event_id, 1 AS updated_at",
            "updated_at of retention.orders is int",
        ),
        (
            "1 AS customer_id, 'x' AS event_name, '2026' AS event_time, 1 AS event_id, SYSUTCDATETIME() AS updated_at",
            "event_time of retention.orders is",
        ),
        (
            "1 AS customer_id, 'x' AS event_name, SYSUTCDATETIME() AS event_time, CAST(1 AS float) AS event_id,"
            " SYSUTCDATETIME() AS updated_at",
            "event_id of retention.orders is float",
        ),
        (
            "1 AS customer_id, 'x' AS event_name, SYSUTCDATETIME() AS event_time, 1 AS event_id,"
            " CAST(0x01 AS varbinary(10)) AS picture, SYSUTCDATETIME() AS updated_at",
            "picture of retention.orders is varbinary",
        ),
    ],
)
def test_a_view_that_breaks_the_contract_is_named_with_its_column(deployment, columns, message):
    deployment.sql.execute(f"CREATE VIEW retention.orders AS SELECT {columns}")
    with pytest.raises(ViewFault, match=message.replace(".", r"\.")) as failure:
        deployment.run("orders")
    assert "retention.orders" in str(failure.value)
    assert deployment.workspace.stats()["operations"] == 0


def test_a_view_that_fails_on_a_row_says_where_to_look_and_quotes_no_value(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(5))
    deployment.run("orders")
    deployment.sql.execute("DROP VIEW retention.orders")
    deployment.sql.execute(
        "CREATE VIEW retention.orders AS SELECT customer_id, 'Order Placed' AS event_name, paid_at AS event_time,"
        " order_id AS event_id, total, row_version, 10 / (order_id - 7) AS share FROM shop.orders"
    )
    add_orders(deployment.sql, range(5, 9))
    with pytest.raises(ViewFault, match=r"retention\.orders fails with SQL Server error 8134"):
        deployment.run("orders")


def test_a_sync_of_ones_own_is_a_view_and_an_entry_of_the_catalogue(deployment):
    make_tables(deployment.sql)
    deployment.sql.execute(
        "CREATE VIEW retention.loyalty AS SELECT customer_id, 'Tier Reached' AS event_name, paid_at AS event_time,"
        " CONCAT('tier-', order_id) AS event_id, row_version FROM shop.orders"
    )
    add_orders(deployment.sql, range(4))
    run = passes.run(Sync("loyalty", Kind.EVENT), deployment.settings())
    assert run.accepted == 4
    assert Counter(event["name"] for event in deployment.workspace.events()) == {"Tier Reached": 4}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("sync", ["customers", "orders"])
def test_an_idle_pass_costs_seven_blob_calls_and_no_request(deployment, caplog, strategy, sync):
    make_tables(deployment.sql, strategy)
    add_customers(deployment.sql, range(50))
    add_orders(deployment.sql, range(50))
    deployment.run(sync)
    deployment.run(sync)  # of customers, this one still asks what became of the addresses
    before = deployment.workspace.stats()["requests"]
    with caplog.at_level(logging.INFO, "azure.core.pipeline.policies.http_logging_policy"):
        assert deployment.run(sync).operations == 0
    # lease, mark, types, the mark again (when it was read), how many dead letters there are, record, release
    assert sum("Request URL" in record.getMessage() for record in caplog.records) == 7
    assert deployment.workspace.stats()["requests"] == before


def test_customerio_being_away_fails_the_run_and_loses_nothing(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(1500))
    deployment.run("orders")
    add_orders(deployment.sql, range(1500, 3000))
    deployment.workspace.add_fault(status=500, retry_after=0, every=1)
    with pytest.raises(DeliveryUnavailable, match="keeps answering 500"):
        deployment.run("orders")
    deployment.workspace.clear_faults()
    assert deployment.run("orders").operations == 1500
    assert sorted(event_ids(deployment)) == list(range(3000))


def test_a_changed_cursor_strategy_stops_the_sync(deployment):
    make_tables(deployment.sql)
    deployment.run("orders")
    deployment.sql.execute("DROP VIEW retention.orders")
    deployment.sql.execute(
        "CREATE VIEW retention.orders AS SELECT customer_id, 'x' AS event_name, paid_at AS event_time, order_id AS event_id,"
        " paid_at AS updated_at FROM shop.orders"
    )
    with pytest.raises(StateFault, match="was made by row_version"):
        deployment.run("orders")


def test_a_region_that_is_not_the_accounts_is_a_configuration_fault(deployment):
    make_tables(deployment.sql)
    with pytest.raises(ConfigurationFault, match="CUSTOMERIO_REGION is eu"):
        deployment.run("orders", CUSTOMERIO_REGION="eu")


def test_an_event_whose_identify_is_refused_is_ledgered_all_the_same(deployment):
    make_tables(deployment.sql)
    add_customers(deployment.sql, range(3))
    deployment.sql.execute("INSERT INTO shop.orders (order_id, customer_id, paid_at) VALUES (1, 1, SYSUTCDATETIME())")
    deployment.workspace.add_fault(extra_errors=[{"batch_index": 0, "reason": "invalid", "field": "email"}])
    run = deployment.run("orders")
    assert (run.operations, run.accepted, run.rejected, run.dead_letters) == (2, 1, 1, 1)
    deployment.sql.execute("UPDATE shop.orders SET total = 5")
    run = deployment.run("orders")
    assert (run.operations, run.already_sent) == (0, 1)


def test_the_ledger_and_the_dead_letters_are_durable_before_the_mark_is_written(deployment, caplog):
    make_tables(deployment.sql)
    deployment.run("orders")
    deployment.sql.execute("INSERT INTO shop.orders (order_id, paid_at) VALUES (99, '2026-01-01')")
    add_orders(deployment.sql, range(4))
    with caplog.at_level(logging.INFO, "azure.core.pipeline.policies.http_logging_policy"):
        run = deployment.run("orders")
    assert (run.accepted, run.dead_letters) == (4, 1)
    writes = [
        (name, "201" in answer)
        for request, answer in pairwise(caplog.messages)
        if "'PUT'" in request and "x-ms-lease-action" not in request
        for name in ("journals", "dead-letters", "mark.json", "days")
        if name in request.split("\n", 1)[0]
    ]
    # the first append finds no blob yet: only what succeeded counts
    done = [name for name, stands in writes if stands]
    assert done[0] == "mark.json"  # the time of reading, which passes no row
    done = list(dict.fromkeys(done[1:]))
    assert done == ["journals", "dead-letters", "mark.json", "days"]


def test_a_connection_that_breaks_while_rows_are_read_is_taken_up_after_the_last_page(deployment, database):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(4000))
    host, port = re.search(r"Server=(?:tcp:)?([^,;]+),(\d+)", database).groups()
    with CutConnection(host, int(port), after_bytes=100_000) as cut:
        run = deployment.run(
            "orders", PAGE_SIZE=200, SQL_CONNECTION_STRING=database.replace(f"{host},{port}", f"127.0.0.1,{cut.port}")
        )
    assert cut.connections == 2
    assert (run.outcome, run.rows) == ("ok", 4000)
    assert sorted(event_ids(deployment)) == list(range(4000))


class CutConnection:
    """A way to a server that ends its first connection after so many bytes of answers; later ones stay."""

    def __init__(self, host: str, port: int, after_bytes: int) -> None:
        self._target, self._after_bytes = (host, port), after_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.connections = 0

    def __enter__(self) -> "CutConnection":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                server = socket.create_connection(self._target)
                limit = self._after_bytes if self.connections == 1 else None
                threading.Thread(target=self._pump, args=(client, server, None), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, limit), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket, limit: int | None) -> None:
        passed = 0
        with source, target, suppress(OSError):
            while (data := source.recv(65_536)) and (limit is None or passed < limit):
                target.sendall(data)
                passed += len(data)
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


def test_a_conversion_that_fails_in_the_view_is_told_without_the_value(deployment, caplog):
    sql = deployment.sql
    make_tables(sql)
    deployment.run("customers")
    sql.execute("DROP VIEW retention.customers")
    sql.execute(
        "CREATE VIEW retention.customers AS SELECT customer_id, CAST(email AS int) AS number, row_version FROM shop.customers"
    )
    add_customers(sql, range(3))
    with caplog.at_level(logging.INFO), pytest.raises(ViewFault, match="SQL Server error 245") as failure:
        deployment.run("customers")
    records = [deployment.read(name).decode() for name in deployment.blobs("syncs/customers/runs/")]
    assert "245" in "".join(records)
    for text in (str(failure.value), *caplog.messages, *records):
        assert "example.com" not in text


TYPES = [
    ("tinyint", "255", 255),
    ("bigint", "9007199254740993", "9007199254740993"),
    ("bit", "0", False),
    ("decimal(18, 0)", "12", 12),
    ("decimal(20, 0)", "12", 12),
    ("decimal(9, 3)", "0.069", 0.069),
    ("money", "1234.5678", 1234.5678),
    ("smallmoney", "-0.0001", -0.0001),
    ("real", "0.5", 0.5),
    ("date", "'2026-01-02'", 1767312000),
    ("datetime", "'2026-01-02T12:00:00.997'", 1767355200),
    ("datetime2(7)", "'2026-01-02T12:00:00.9999999'", 1767355200),
    ("smalldatetime", "'2026-01-02T12:00:00'", 1767355200),
    ("datetimeoffset(0)", "'2026-01-02T12:00:00 +05:30'", 1767335400),
    ("uniqueidentifier", "'6F9619FF-8B86-D011-B42D-00C04FC964FF'", "6f9619ff-8b86-d011-b42d-00c04fc964ff"),
    ("char(8)", "'ab'", "ab"),
    ("nchar(8)", "N'ü'", "ü"),
    ("varchar(20)", "'café'", "café"),
    ("nvarchar(max)", "N'日本 😀 '", "日本 😀 "),
    ("time(3)", "'13:05:09.999'", "13:05:09"),
]


def test_every_type_of_sql_server_arrives_as_the_contract_says_and_null_not_at_all(deployment):
    values = ", ".join(f"CAST({literal} AS {kind}) AS c{n}" for n, (kind, literal, _) in enumerate(TYPES))
    nulls = ", ".join(f"CAST(NULL AS {kind})" for kind, *_ in TYPES)
    cursor = "CAST('2026-01-01' AS datetime2(7))"
    deployment.sql.execute(
        f"CREATE VIEW retention.customers AS SELECT 1 AS customer_id, {cursor} AS updated_at, {values}"
        f" UNION ALL SELECT 2, {cursor}, {nulls}"
    )
    assert deployment.run("customers").accepted == 2
    people = deployment.workspace.people()
    expected = {f"c{n}": value for n, (_, _, value) in enumerate(TYPES)}
    assert people == {"1": expected, "2": {}}
    assert {name: type(value) for name, value in people["1"].items()} == {n: type(v) for n, v in expected.items()}


def test_what_was_accepted_of_a_page_is_ledgered_though_the_rest_of_the_page_is_unknown(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(6000))
    deployment.workspace.add_fault(status=401, every=3)
    with pytest.raises(CredentialFault):
        deployment.run("orders", PAGE_SIZE=6000, CUSTOMERIO_BATCHES_IN_FLIGHT=1)
    stored = len(event_ids(deployment))
    assert 0 < stored < 6000
    deployment.workspace.clear_faults()
    run = deployment.run("orders", PAGE_SIZE=6000)
    assert (run.operations, run.already_sent) == (6000 - stored, stored)
    assert deployment.workspace.stats()["duplicate_events_dropped"] == 0


@pytest.mark.parametrize("sync", ["customers", "orders"])
def test_ids_that_differ_in_case_alone_are_not_lost_where_reading_is_taken_up_again(deployment, database, sync):
    """All of these ids are one to the default collation, and all orders have one cursor."""
    sql = deployment.sql
    sql.execute("CREATE TABLE shop.facts (id varchar(20))")
    ids = ["".join(letters) for letters in product(*((letter, letter.upper()) for letter in "abcdefghijk"))]
    bulk(sql, "INSERT INTO shop.facts (id) VALUES (?)", [(each,) for each in ids])
    sql.execute(
        "CREATE VIEW retention.customers AS SELECT id AS customer_id, REPLICATE('x', 50) AS note,"
        " CAST('2026-01-01' AS datetime2(7)) AS updated_at FROM shop.facts"
    )
    sql.execute(
        "CREATE VIEW retention.orders AS SELECT 'p' AS customer_id, 'Order Placed' AS event_name, id AS event_id,"
        " CAST('2026-01-01' AS datetime2(7)) AS event_time, CAST('2026-01-01' AS datetime2(7)) AS updated_at"
        " FROM shop.facts"
    )
    host, port = re.search(r"Server=(?:tcp:)?([^,;]+),(\d+)", database).groups()
    with CutConnection(host, int(port), after_bytes=80_000) as cut:
        run = deployment.run(
            sync, PAGE_SIZE=100, SQL_CONNECTION_STRING=database.replace(f"{host},{port}", f"127.0.0.1,{cut.port}")
        )
    assert cut.connections == 2
    assert (run.outcome, run.rows) == ("ok", len(ids))
    assert sorted(deployment.workspace.people() if sync == "customers" else event_ids(deployment)) == sorted(ids)


def test_an_event_that_was_rejected_is_sent_when_its_row_is_corrected(deployment):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(20))
    deployment.workspace.add_fault(reject_share=0.5, seed=3)
    rejected = deployment.run("orders").rejected
    assert 0 < rejected < 20
    deployment.workspace.clear_faults()
    deployment.sql.execute("UPDATE shop.orders SET total = 5")
    run = deployment.run("orders")
    assert (run.operations, run.already_sent) == (rejected, 20 - rejected)
    assert sorted(event_ids(deployment)) == list(range(20))


def test_a_transaction_that_stays_open_is_told_and_an_idle_database_is_not(deployment, database):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(3))
    for _ in range(3):
        run = deployment.run("orders")
        assert (run.held_back_minutes, run.message, run.findings) == (0, "", [])
    with closing(pyodbc.connect(database)) as writer:
        writer.execute("UPDATE shop.orders SET total = 1 WHERE order_id = 1")
        add_orders(deployment.sql, range(3, 6))
        assert deployment.run("orders").operations == 0  # younger than what is open
        mark = json.loads(deployment.read("syncs/orders/mark.json"))
        since = datetime.fromisoformat(mark["held_back"]["at"]) - timedelta(minutes=20)
        mark["held_back"]["at"] = since.isoformat()
        deployment.container.upload_blob("syncs/orders/mark.json", json.dumps(mark), overwrite=True)
        run = deployment.run("orders")
        assert run.outcome == "ok"
        assert run.held_back_minutes == 20
        assert "open for 20 minutes" in run.message and "DBCC OPENTRAN" in run.message
        assert run.findings == [run.message]
        writer.rollback()
    run = deployment.run("orders")
    assert (run.accepted, run.held_back_minutes, run.message, run.findings) == (3, 0, "", [])


@pytest.mark.parametrize("hours", [-20, 20])
def test_an_event_whose_time_is_corrected_by_less_than_a_day_is_not_sent_again(deployment, hours):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(50))
    assert deployment.run("orders").accepted == 50
    deployment.sql.execute(f"UPDATE shop.orders SET paid_at = DATEADD(hour, {hours}, paid_at)")
    run = deployment.run("orders")
    assert (run.rows, run.already_sent, run.operations) == (50, 50, 0)


def test_a_clock_of_sql_server_that_went_back_makes_no_change_look_old(deployment):
    make_tables(deployment.sql)
    add_customers(deployment.sql, range(3))
    deployment.run("customers")
    mark = json.loads(deployment.read("syncs/customers/mark.json"))
    ahead = mark["stamped"] + 300  # as if it had been ahead until now
    deployment.container.upload_blob(
        "syncs/customers/mark.json", json.dumps({**mark, "stamped": ahead}), overwrite=True
    )
    for tier in ("silver", "bronze"):
        deployment.sql.execute("UPDATE shop.customers SET tier = ? WHERE customer_id = 1", tier)
        assert deployment.run("customers").accepted == 1
        assert deployment.workspace.people()["1"]["tier"] == tier
    assert json.loads(deployment.read("syncs/customers/mark.json"))["stamped"] == ahead
