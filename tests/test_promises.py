"""What the project promises, one test a promise, by behaviour alone: rows go into a SQL Server, passes run, and what
Customer.io, the state container and the log hold afterwards is compared with the promise.

Nothing in here knows how the product is built; it knows the view contract, the app settings and the two ends.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyodbc
import pytest

from local import services
from local.host import Host
from tests.conftest import SYNCS, Deployment

DIGITS = "(VALUES (0),(1),(2),(3),(4),(5),(6),(7),(8),(9))"
NUMBERS = (
    f"CREATE VIEW shop.numbers AS SELECT a.d + 10*b.d + 100*c.d + 1000*d.d + 10000*e.d + 100000*f.d AS n"
    f" FROM {DIGITS} AS a(d) CROSS JOIN {DIGITS} AS b(d) CROSS JOIN {DIGITS} AS c(d) CROSS JOIN {DIGITS} AS d(d)"
    f" CROSS JOIN {DIGITS} AS e(d) CROSS JOIN {DIGITS} AS f(d)"
)
PASS = """
import json, resource, sys
from shared import passes, syncs
run = passes.run(next(sync for sync in syncs.CATALOGUE if sync.name == sys.argv[1]))
print(json.dumps({"outcome": run.outcome, "rows": run.rows, "kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))
"""
ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
SECRET = "planted-Secret-7731"
EMAIL = "planted.person.7731@example.com"


@dataclass
class Shop:
    """Base tables and the two views over them, with the columns that a test wants."""

    sql: pyodbc.Connection

    def customers(self, columns: str, view: str = "SELECT * FROM shop.people") -> None:
        self.sql.execute(f"CREATE TABLE shop.people ({columns})")
        self.sql.execute(f"CREATE VIEW retention.customers AS {view}")

    def orders(
        self, key: str = "int", cursor: str = "row_version rowversion", more: str = "", shown: str = "", time: str = "at"
    ) -> None:
        """An event view over shop.sales: event_id of the type `key`, `more` columns of which `shown` are in the view."""
        self.sql.execute(
            f"CREATE TABLE shop.sales (event_id {key}, customer_id varchar(40), at datetime2(3), {cursor}"
            f"{', ' if more else ''}{more})"
        )
        self.sql.execute(
            "CREATE VIEW retention.orders AS SELECT customer_id, CAST('Order Placed' AS varchar(100)) AS event_name,"
            f" {time} AS event_time, event_id, {cursor.split()[0]}{', ' if shown else ''}{shown} FROM shop.sales"
        )

    def sell(self, count: int, first: int = 1, minutes_apart: int = 1, people: int = 50) -> None:
        """Orders `first`, `first` + 1, ...: each `minutes_apart` before the one ahead of it."""
        self.sql.execute(
            f"INSERT INTO shop.sales (event_id, customer_id, at) SELECT n, n % {people},"
            f" DATEADD(minute, -{minutes_apart} * n, SYSUTCDATETIME()) FROM shop.numbers"
            f" WHERE n >= {first} AND n < {first + count}"
        )


@pytest.fixture
def shop(sql: pyodbc.Connection) -> Shop:
    sql.execute(NUMBERS)
    return Shop(sql)


def event_ids(deployment: Deployment) -> list[Any]:
    return [event["attributes"]["event_id"] for event in deployment.workspace.events()]


def one_person(deployment: Deployment) -> dict[str, Any]:
    (person,) = deployment.workspace.people().values()
    return person


def now_text(**delta: float) -> str:
    """A moment as SQL Server's literal, UTC, to the millisecond."""
    return (datetime.now(UTC) + timedelta(**delta)).isoformat(timespec="milliseconds")[:23]


def start_pass(deployment: Deployment, sync: str, **settings: Any) -> subprocess.Popen[str]:
    """One pass in a process of its own."""
    environment = {**os.environ, **deployment.environment, **{name: str(value) for name, value in settings.items()}}
    return subprocess.Popen(
        [sys.executable, "-c", PASS, sync],
        cwd=services.REPOSITORY,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


# Point 2: a pass ----------------------------------------------------------------------------------------------------

KEYS = {
    "int": "n",
    "bigint": "CAST(n AS bigint) * 100000000000",
    "uniqueidentifier": "NEWID()",
    "varchar(20)": "CONCAT('k', n)",
    "nvarchar(20)": "CONCAT(N'é', n)",
    "char(12)": "CONCAT('k', n)",
    "decimal(18,0)": "n",
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("cursor", ["row_version", "updated_at"])
def test_rows_that_share_a_cursor_are_paged_by_key_whatever_its_type(deployment, shop, cursor, key):
    # a view over a join: one row version, or one moment, for all rows
    shop.sql.execute("CREATE TABLE shop.batch (one int, row_version rowversion, updated_at datetime2(7))")
    shop.sql.execute("INSERT INTO shop.batch (one, updated_at) VALUES (1, SYSUTCDATETIME())")
    shop.sql.execute(f"CREATE TABLE shop.sales (event_id {key}, customer_id int)")
    shop.sql.execute(
        "CREATE VIEW retention.orders AS SELECT s.customer_id, CAST('Order Placed' AS varchar(50)) AS event_name,"
        f" CAST('2026-01-05T00:00:00' AS datetime2) AS event_time, s.event_id, b.{cursor}"
        " FROM shop.sales AS s CROSS JOIN shop.batch AS b"
    )
    shop.sql.execute(f"INSERT INTO shop.sales SELECT {KEYS[key]}, n FROM shop.numbers WHERE n < 95")
    run = deployment.run("orders", PAGE_SIZE=10)
    assert (run.outcome, run.rows, run.accepted, run.dead_letters) == ("ok", 95, 95, 0)
    assert len(set(event_ids(deployment))) == 95
    assert deployment.run("orders", PAGE_SIZE=10).operations == 0
    shop.sql.execute("UPDATE shop.batch SET updated_at = SYSUTCDATETIME()")
    again = deployment.run("orders", PAGE_SIZE=10)
    assert (again.rows, again.operations) == (95, 0)
    assert deployment.workspace.stats()["duplicate_events_dropped"] == 0


@pytest.mark.parametrize("cursor", ["row_version rowversion", "updated_at datetime2(3)"])
@pytest.mark.parametrize("sync", ["customers", "orders"])
def test_text_keys_that_differ_in_case_or_trailing_blanks_alone_are_never_lost_between_pages(
    deployment, shop, sync, cursor
):
    name = cursor.split()[0]
    if sync == "customers":
        shop.customers(f"customer_id varchar(20), {cursor}")
        insert = "INSERT INTO shop.people (customer_id{}) VALUES (?{})"
    else:
        shop.orders("varchar(20)", cursor)
        insert = "INSERT INTO shop.sales (event_id, customer_id, at{}) VALUES (?, 'p', '2026-01-05T00:00:00'{})"
    insert = insert.format(*((f", {name}", ", '2026-01-05T00:00:00'") if name == "updated_at" else ("", "")))
    keys = [form for n in range(12) for form in (f"key{n}", f"KEY{n}", f"Key{n}", f"kEy{n}", f"key{n} ", f"key{n}  ")]
    for key in keys:
        shop.sql.execute(insert, key)
    run = deployment.run(sync, PAGE_SIZE=10)
    assert run.rows == len(keys)
    sent = set(deployment.workspace.people()) if sync == "customers" else set(event_ids(deployment))
    # the four spellings are four ids at Customer.io
    assert {key.rstrip() for key in keys} <= {key.rstrip() for key in sent}
    assert len(sent) + run.dead_letters == len(keys), "every row is sent or set aside with its reason"
    assert deployment.run(sync, PAGE_SIZE=10).operations == 0


def literals_of(kind: str) -> list[str]:
    """Values of a cursor type in the last minutes, ascending; the last ones lie one step of the type apart."""
    minute = datetime.now(UTC).replace(second=0, microsecond=0, tzinfo=None) - timedelta(minutes=2)
    fractions = {
        "datetime": [f"{ms:03}" for ms in (0, 3, 7, 10, 13, 17, 20, 500, 987, 990, 993, 997)],
        "datetime2(7)": [f"{ticks:07}" for ticks in (0, 1, 2, 9, 10, 11, 1234567, 1234568, 9999998, 9999999)],
    }
    if kind in fractions:
        return [f"{minute.isoformat()}.{fraction}" for fraction in fractions[kind]]
    if kind == "datetime2(0)":
        return [(minute + timedelta(seconds=second)).isoformat() for second in range(12)]
    if kind == "smalldatetime":
        return [(minute - timedelta(minutes=8 - ago)).isoformat() for ago in range(9)]
    offsets = [("05:30", 330), ("-04:45", -285), ("+00:00", 0), ("-05:30", -330), ("+13:00", 780), ("-00:30", -30)]
    return [
        f"{(minute + timedelta(minutes=shift)).isoformat()}.{tick:07} {'+' * (sign[0] not in '+-')}{sign}"
        for tick, (sign, shift) in enumerate(offsets, 1234565)
    ]


@pytest.mark.parametrize("kind", ["datetime", "datetime2(7)", "datetime2(0)", "smalldatetime", "datetimeoffset(7)"])
def test_an_updated_at_of_any_type_is_followed_to_its_last_tick(deployment, shop, kind):
    shop.orders("int", f"updated_at {kind}")
    literals = literals_of(kind)

    def sell(event_id: int, literal: str) -> None:
        shop.sql.execute(
            "INSERT INTO shop.sales (event_id, customer_id, at, updated_at)"
            f" VALUES (?, 'p', '2026-01-05T00:00:00', CAST('{literal}' AS {kind}))",
            event_id,
        )

    # seven rows a value, so that pages of ten cut through ties
    for number in range(7 * len(literals)):
        sell(number, literals[number // 7])
    run = deployment.run("orders", PAGE_SIZE=10)
    assert (run.outcome, run.rows, run.accepted) == ("ok", 7 * len(literals), 7 * len(literals))
    assert deployment.run("orders", PAGE_SIZE=10).operations == 0
    # late commits: with the highest value that a pass has read, and with one step less
    for late, literal in enumerate(literals[:-3:-1], 1):
        sell(-late, literal)
        assert deployment.run("orders", PAGE_SIZE=10).accepted == 1
    assert deployment.run("orders", PAGE_SIZE=10).operations == 0
    assert len(set(event_ids(deployment))) == 7 * len(literals) + 2


@pytest.mark.parametrize("kind", ["smalldatetime", "datetime2(0)"])
def test_a_row_that_changes_again_within_one_tick_of_its_updated_at_is_sent_as_it_ended(deployment, shop, kind):
    shop.customers(f"customer_id int, updated_at {kind}, plan_name varchar(20)")
    shop.sql.execute("INSERT INTO shop.people VALUES (1, DATEADD(minute, -1, SYSUTCDATETIME()), 'silver')")
    assert deployment.run("customers").accepted == 1
    for plan in ("gold", "silver", "gold"):
        shop.sql.execute("UPDATE shop.people SET plan_name = ?", plan)  # its updated_at is the same
        deployment.run("customers")
        assert one_person(deployment)["plan_name"] == plan
    assert deployment.run("customers").operations == 0


@pytest.mark.parametrize(("zone", "minutes"), [("America/New_York", -300), ("Asia/Kolkata", 330)])
def test_an_updated_at_in_the_zone_of_the_settings_is_followed_in_that_zone(deployment, shop, zone, minutes):
    shop.customers("customer_id int, updated_at datetime2(3)")
    for person in range(3):
        shop.sql.execute(f"INSERT INTO shop.people VALUES ({person}, DATEADD(minute, {minutes}, SYSUTCDATETIME()))")
        # in winter; in summer New York's rows lie an hour ahead of the clock, which must not lose them either
        assert deployment.run("customers", SQL_TIME_ZONE=zone).accepted == 1
    assert deployment.run("customers", SQL_TIME_ZONE=zone).operations == 0


@pytest.mark.parametrize("cursor", ["row_version rowversion", "updated_at datetime2(7) DEFAULT SYSUTCDATETIME()"])
def test_what_changes_between_two_passes_is_all_that_the_second_one_sends(deployment, shop, cursor):
    shop.customers(f"customer_id int PRIMARY KEY, n int, {cursor}")
    shop.sql.execute("INSERT INTO shop.people (customer_id, n) SELECT n, 0 FROM shop.numbers WHERE n < 300")
    assert deployment.run("customers", PAGE_SIZE=50).accepted == 300
    moved = ", updated_at = SYSUTCDATETIME()" if cursor.startswith("updated_at") else ""
    shop.sql.execute(f"UPDATE shop.people SET n = 1{moved} WHERE customer_id % 100 = 7")
    shop.sql.execute("INSERT INTO shop.people (customer_id, n) VALUES (1000, 1)")
    run = deployment.run("customers", PAGE_SIZE=50)
    assert run.accepted == 4
    assert {id for id, person in deployment.workspace.people().items() if person["n"] == 1} == {"7", "107", "207", "1000"}
    assert deployment.run("customers").operations == 0


def test_rows_of_an_open_transaction_are_waited_for_and_not_lost(deployment, shop, database):
    shop.customers("customer_id int PRIMARY KEY, n int, row_version rowversion")
    shop.sql.execute("INSERT INTO shop.people (customer_id, n) VALUES (1, 0)")
    deployment.run("customers")
    with closing(pyodbc.connect(database)) as slow:
        slow.execute("INSERT INTO shop.people (customer_id, n) VALUES (2, 0)")
        shop.sql.execute("INSERT INTO shop.people (customer_id, n) VALUES (3, 0)")  # a later version, committed before
        deployment.run("customers")
        slow.commit()
    deployment.run("customers")
    assert set(deployment.workspace.people()) == {"1", "2", "3"}
    assert deployment.run("customers").operations == 0


@pytest.mark.parametrize("cursor", ["row_version binary(8)", "updated_at datetime2(7)"])
def test_rows_without_a_cursor_are_counted_and_said(deployment, shop, caplog, cursor):
    caplog.set_level(logging.INFO)
    name, kind = cursor.split()
    value = "0x0000000000000001" if kind == "binary(8)" else "'2026-01-05T00:00:00'"
    shop.orders("int", cursor)
    shop.sql.execute(
        f"INSERT INTO shop.sales (event_id, customer_id, at, {name}) SELECT n, 'p', '2026-01-05T00:00:00',"
        f" CASE WHEN n < 3 THEN NULL ELSE CAST({value} AS {kind}) END FROM shop.numbers WHERE n < 10"
    )
    run = deployment.run("orders")
    assert len(event_ids(deployment)) == 7
    said = [text for text in [run.message, *caplog.messages] if name in text and re.search(r"\b3\b", text)]
    assert said, "3 rows have no cursor, and nobody says so"


def test_a_first_pass_walks_by_key_while_rows_change_and_nothing_is_lost(deployment, shop, database):
    shop.customers("customer_id int PRIMARY KEY, n int, row_version rowversion")
    shop.sql.execute("INSERT INTO shop.people (customer_id, n) SELECT n + 1000, 0 FROM shop.numbers WHERE n < 600")
    deployment.workspace.configure(latency_seconds=0.01)
    runs = []
    walking = threading.Thread(
        target=lambda: runs.append(deployment.run("customers", PAGE_SIZE=10, CUSTOMERIO_BATCHES_IN_FLIGHT=1))
    )
    walking.start()
    with closing(pyodbc.connect(database, autocommit=True)) as other:
        until(lambda: deployment.workspace.stats()["people"] > 30)
        round_number = 0
        while walking.is_alive():
            round_number += 1
            # behind, at and ahead of the walk: an update, a new first and a new last key
            other.execute("UPDATE shop.people SET n = n + 1 WHERE customer_id % 50 = 3")
            other.execute("INSERT INTO shop.people (customer_id, n) VALUES (?, 0)", 1000 - round_number)
            other.execute("INSERT INTO shop.people (customer_id, n) VALUES (?, 0)", 9000 + round_number)
            time.sleep(0.02)
    walking.join()
    assert runs[0].outcome == "ok"
    assert round_number > 3
    deployment.workspace.configure(latency_seconds=0)
    deployment.run("customers")
    held = {id: person["n"] for id, person in deployment.workspace.people().items()}
    assert held == {str(id): n for id, n in shop.sql.execute("SELECT customer_id, n FROM shop.people").fetchall()}
    assert deployment.run("customers").operations == 0


def test_the_bound_of_a_first_pass_is_taken_before_the_walk(deployment, shop):
    """A first pass in three parts (a time budget cuts it); what changed behind the walk meanwhile comes afterwards."""
    shop.customers("customer_id int PRIMARY KEY, n int, row_version rowversion")
    shop.sql.execute("INSERT INTO shop.people (customer_id, n) SELECT n, 0 FROM shop.numbers WHERE n < 400")
    deployment.workspace.configure(latency_seconds=0.05)
    first = deployment.run("customers", PAGE_SIZE=10, TIME_BUDGET_SECONDS=1, CUSTOMERIO_BATCHES_IN_FLIGHT=1)
    assert 0 < len(deployment.workspace.people()) < 400
    assert first.outcome != "ok" or first.message, "a pass that its budget ended says so"
    shop.sql.execute("UPDATE shop.people SET n = 1 WHERE customer_id IN (0, 399)")
    deployment.workspace.configure(latency_seconds=0)
    before = deployment.workspace.stats()["operations"]
    rest = deployment.run("customers", PAGE_SIZE=10)
    assert rest.outcome == "ok"
    assert rest.operations < 400, "the next pass goes on from there"
    deployment.run("customers")
    people = deployment.workspace.people()
    assert len(people) == 400
    assert (people["0"]["n"], people["399"]["n"], people["200"]["n"]) == (1, 1, 0)
    assert deployment.workspace.stats()["operations"] - before < 420
    assert deployment.run("customers").operations == 0


def test_customer_changes_says_whom_to_read_again(deployment, shop):
    shop.customers("customer_id int PRIMARY KEY, email nvarchar(100)", "SELECT customer_id, email FROM shop.people")
    shop.sql.execute("CREATE TABLE shop.moves (move_id int IDENTITY(1,1) PRIMARY KEY, customer_id int, row_version rowversion)")
    shop.sql.execute("CREATE VIEW retention.customer_changes AS SELECT customer_id, row_version FROM shop.moves")
    shop.sql.execute("INSERT INTO shop.people SELECT n, CONCAT('p', n, '@example.com') FROM shop.numbers WHERE n < 120")
    shop.sql.execute("INSERT INTO shop.moves (customer_id) SELECT n % 120 FROM shop.numbers WHERE n < 500")
    first = deployment.run("customers", PAGE_SIZE=50)
    assert (first.outcome, first.accepted) == ("ok", 120)
    assert deployment.run("customers", PAGE_SIZE=50).operations == 0
    # 90 people move, some of them often, one without a profile, one row without a person
    shop.sql.execute("UPDATE shop.people SET email = CONCAT('new', customer_id, '@example.com') WHERE customer_id < 90")
    shop.sql.execute("INSERT INTO shop.moves (customer_id) SELECT n % 90 FROM shop.numbers WHERE n < 270")
    shop.sql.execute("INSERT INTO shop.moves (customer_id) VALUES (777), (NULL)")
    run = deployment.run("customers", PAGE_SIZE=20)
    assert run.outcome == "ok"
    assert 90 <= run.accepted <= 270
    people = deployment.workspace.people()
    assert {id for id, person in people.items() if person["email"].startswith("new")} == {str(n) for n in range(90)}
    assert len(people) == 120
    assert deployment.run("customers", PAGE_SIZE=20).operations == 0


def test_customer_changes_finds_text_ids_case_exactly(deployment, shop):
    shop.customers("customer_id varchar(20), n int", "SELECT customer_id, n FROM shop.people")
    shop.sql.execute("CREATE TABLE shop.moves (customer_id varchar(20), row_version rowversion)")
    shop.sql.execute("CREATE VIEW retention.customer_changes AS SELECT customer_id, row_version FROM shop.moves")
    shop.sql.execute("INSERT INTO shop.people VALUES ('ann', 0), ('ANN', 0), ('Bo', 0)")
    shop.sql.execute("INSERT INTO shop.moves (customer_id) SELECT customer_id FROM shop.people")
    deployment.run("customers")
    assert set(deployment.workspace.people()) == {"ann", "ANN", "Bo"}
    shop.sql.execute("UPDATE shop.people SET n = n + 1")
    shop.sql.execute("INSERT INTO shop.moves (customer_id) SELECT customer_id FROM shop.people")
    run = deployment.run("customers")
    assert {id: person["n"] for id, person in deployment.workspace.people().items()} == {"ann": 1, "ANN": 1, "Bo": 1}
    assert run.dead_letters == 0


def test_an_order_that_is_edited_five_times_is_one_event(deployment, shop):
    shop.orders(more="total int", shown="total")
    shop.sell(30)
    for edit in range(5):
        shop.sql.execute("UPDATE shop.sales SET total = ?", edit)
        run = deployment.run("orders", PAGE_SIZE=10)
        assert run.operations == (30 if edit == 0 else 0)
    assert sorted(event_ids(deployment)) == list(range(1, 31))
    assert deployment.workspace.stats()["duplicate_events_dropped"] == 0


def test_an_event_id_that_comes_twice_in_one_pass_is_one_event(deployment, shop):
    shop.orders()
    shop.sell(15)
    shop.sell(15)
    run = deployment.run("orders", PAGE_SIZE=10)
    assert run.rows == 30
    assert sorted(event_ids(deployment)) == list(range(1, 16))
    assert deployment.workspace.stats()["duplicate_events_stored"] == 0


def test_reading_ahead_and_sending_overlap(deployment, shop):
    slow = " + ".join(f"(SELECT SUM(CAST(x.n AS float) * {n}) FROM shop.numbers AS x WHERE x.n % 3 <> {n})" for n in range(8))
    shop.sql.execute("CREATE TABLE shop.sales (event_id int PRIMARY KEY, row_version rowversion)")
    shop.sql.execute(
        "CREATE VIEW retention.orders AS SELECT CAST('p' AS varchar(5)) AS customer_id,"
        " CAST('Order Placed' AS varchar(50)) AS event_name, CAST('2026-01-05T00:00:00' AS datetime2) AS event_time,"
        f" event_id, row_version, {slow} AS slow FROM shop.sales"
    )
    shop.sql.execute("INSERT INTO shop.sales (event_id) SELECT n FROM shop.numbers WHERE n < 100")

    def timed() -> float:
        run = deployment.run("orders", PAGE_SIZE=10, CUSTOMERIO_BATCHES_IN_FLIGHT=1)
        assert (run.outcome, run.rows) == ("ok", 100)
        return run.seconds

    timed()
    shop.sql.execute("UPDATE shop.sales SET event_id = event_id")
    reading = timed()  # everything was sent before: nothing but reading
    shop.sql.execute("UPDATE shop.sales SET event_id = event_id + 1000")
    sending = reading  # ten answers that take as long as the ten pages
    deployment.workspace.configure(latency_seconds=sending / 10)
    both = timed()
    print(f"reading {reading:.2f} s, sending {sending:.2f} s, both {both:.2f} s")
    assert both < 0.8 * (reading + sending)


def test_a_further_event_sync_is_one_line_in_the_catalogue(deployment, shop, tmp_path):
    app = tmp_path / "app"
    app.mkdir()
    for name in ("function_app.py", "host.json"):
        shutil.copy(services.REPOSITORY / name, app)
    shutil.copytree(services.REPOSITORY / "shared", app / "shared", ignore=shutil.ignore_patterns("__pycache__"))
    catalogue = app / "shared/syncs.py"
    orders = next(line for line in catalogue.read_text().splitlines() if line.strip().startswith('Sync("orders"'))
    catalogue.write_text(catalogue.read_text().replace(orders, f"{orders}\n{orders.replace('orders', 'refunds')}"))
    shop.sql.execute(
        "CREATE VIEW retention.refunds AS SELECT CAST('p1' AS varchar(5)) AS customer_id,"
        " CAST('Refund Made' AS varchar(50)) AS event_name, CAST('2026-01-05T00:00:00' AS datetime2) AS event_time,"
        " n AS event_id, CAST('2026-01-05T00:00:00' AS datetime2) AS updated_at FROM shop.numbers WHERE n < 20"
    )
    schedules = {f"{name}_SCHEDULE": "0 0 5 * * *" for name in ("CUSTOMERS", "ORDERS", "REFUNDS")}
    with Host(app, {**deployment.environment, **schedules}) as host:
        assert set(host.functions()) == {"customers", "orders", "refunds"}
        done = host.invoke_timer("refunds", timeout=60)
        assert done.ok, done.error
        again = host.invoke_timer("refunds", timeout=60)
        assert again.ok, again.error
    events = list(deployment.workspace.events())
    assert sorted(event["attributes"]["event_id"] for event in events) == list(range(20))
    assert {event["name"] for event in events} == {"Refund Made"}
    assert deployment.workspace.stats()["operations"] == 20


def test_the_same_event_id_in_two_syncs_is_two_events(deployment, shop):
    shop.orders()
    shop.sell(5)
    shop.sql.execute("CREATE VIEW retention.refunds AS SELECT * FROM retention.orders")
    deployment.syncs["refunds"] = type(SYNCS["orders"])("refunds", SYNCS["orders"].kind)
    deployment.run("orders")
    deployment.run("refunds")
    assert Counter(event_ids(deployment)) == dict.fromkeys(range(1, 6), 2)
    assert len({event["ulid"] for event in deployment.workspace.events()}) == 10
