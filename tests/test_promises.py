"""What the project promises, one test a promise, by behaviour alone: rows go into a SQL Server, passes run, and what
Customer.io, the state container and the log hold afterwards is compared with the promise.

Nothing in here knows how the product is built; it knows the view contract, the app settings and the two ends.
"""

import base64
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyodbc
import pytest

from local import services
from local.host import Host
from shared.errors import StateFault, TidemarkError, ViewFault
from tests.conftest import SYNCS, Deployment

DIGITS = "(VALUES (0),(1),(2),(3),(4),(5),(6),(7),(8),(9))"
NUMBERS = (
    f"CREATE VIEW shop.numbers AS SELECT a.d + 10*b.d + 100*c.d + 1000*d.d + 10000*e.d + 100000*f.d AS n"
    f" FROM {DIGITS} AS a(d) CROSS JOIN {DIGITS} AS b(d) CROSS JOIN {DIGITS} AS c(d) CROSS JOIN {DIGITS} AS d(d)"
    f" CROSS JOIN {DIGITS} AS e(d) CROSS JOIN {DIGITS} AS f(d)"
)
# VmHWM and not ru_maxrss, which a child inherits from the process that started it
PASS = """
import json, re, sys
from pathlib import Path
from shared import passes, syncs
run = passes.run(next(sync for sync in syncs.CATALOGUE if sync.name == sys.argv[1]))
peak = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps({"outcome": run.outcome, "rows": run.rows, "kb": peak}))
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
        self,
        key: str = "int",
        cursor: str = "row_version rowversion",
        more: str = "",
        shown: str = "",
        time: str = "at",
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
    assert {id for id, person in deployment.workspace.people().items() if person["n"] == 1} == {
        "7",
        "107",
        "207",
        "1000",
    }
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
    shop.customers(
        "customer_id int PRIMARY KEY, plan_name varchar(20)", "SELECT customer_id, plan_name FROM shop.people"
    )
    shop.sql.execute(
        "CREATE TABLE shop.moves (move_id int IDENTITY(1,1) PRIMARY KEY, customer_id int, row_version rowversion)"
    )
    shop.sql.execute("CREATE VIEW retention.customer_changes AS SELECT customer_id, row_version FROM shop.moves")
    shop.sql.execute("INSERT INTO shop.people SELECT n, 'old' FROM shop.numbers WHERE n < 120")
    shop.sql.execute("INSERT INTO shop.moves (customer_id) SELECT n % 120 FROM shop.numbers WHERE n < 500")
    first = deployment.run("customers", PAGE_SIZE=50)
    assert (first.outcome, first.accepted) == ("ok", 120)
    assert deployment.run("customers", PAGE_SIZE=50).operations == 0
    # 90 people move, some of them often, one without a profile, one row without a person
    shop.sql.execute("UPDATE shop.people SET plan_name = 'new' WHERE customer_id < 90")
    shop.sql.execute("INSERT INTO shop.moves (customer_id) SELECT n % 90 FROM shop.numbers WHERE n < 270")
    shop.sql.execute("INSERT INTO shop.moves (customer_id) VALUES (777), (NULL)")
    run = deployment.run("customers", PAGE_SIZE=20)
    assert run.outcome == "ok"
    assert 90 <= run.accepted <= 270
    people = deployment.workspace.people()
    assert {id for id, person in people.items() if person["plan_name"] == "new"} == {str(n) for n in range(90)}
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


def test_several_batches_are_in_flight_and_no_more_than_the_setting_says(deployment, shop):
    """A page is one batch here, so the third page was read and mapped while the first two were on their way."""
    shop.orders()
    shop.sell(400)
    deployment.workspace.configure(latency_seconds=0.05)
    run = deployment.run("orders", PAGE_SIZE=20, CUSTOMERIO_BATCHES_IN_FLIGHT=3)
    assert run.accepted == 400
    assert deployment.workspace.stats()["max_in_flight"] == 3


def test_a_further_event_sync_is_one_line_in_the_catalogue(deployment, shop, tmp_path):
    app = tmp_path / "app"
    app.mkdir()
    for name in ("function_app.py", "host.json"):
        shutil.copy(services.REPOSITORY / name, app)
    shutil.copytree(services.REPOSITORY / "shared", app / "shared", ignore=shutil.ignore_patterns("__pycache__"))
    catalogue = app / "shared/syncs.py"
    orders = next(line for line in catalogue.read_text().splitlines() if line.strip().startswith('Sync("orders"'))
    catalogue.write_text(catalogue.read_text().replace(orders, f"{orders}\n{orders.replace('orders', 'reviews')}"))
    shop.sql.execute(
        "CREATE VIEW retention.reviews AS SELECT CAST('p1' AS varchar(5)) AS customer_id,"
        " CAST('Review Written' AS varchar(50)) AS event_name, CAST('2026-01-05T00:00:00' AS datetime2) AS event_time,"
        " n AS event_id, CAST('2026-01-05T00:00:00' AS datetime2) AS updated_at FROM shop.numbers WHERE n < 20"
    )
    schedules = {**SCHEDULES, "REVIEWS_SCHEDULE": "0 0 5 * * *"}
    with Host(app, {**deployment.environment, **schedules}) as host:
        timers = {name for name, each in host.functions().items() if each.kind == "timer"}
        assert timers == {*TIMERS, "reviews"}
        done = host.invoke_timer("reviews", timeout=60)
        assert done.ok, done.error
        again = host.invoke_timer("reviews", timeout=60)
        assert again.ok, again.error
    events = list(deployment.workspace.events())
    assert sorted(event["attributes"]["event_id"] for event in events) == list(range(20))
    assert {event["name"] for event in events} == {"Review Written"}
    assert deployment.workspace.stats()["operations"] == 20


def test_the_same_event_id_in_two_syncs_is_two_events(deployment, shop):
    shop.orders()
    shop.sell(5)
    shop.sql.execute("CREATE VIEW retention.refunds AS SELECT * FROM retention.orders")
    deployment.run("orders")
    deployment.run("refunds")
    assert Counter(event_ids(deployment)) == dict.fromkeys(range(1, 6), 2)
    assert len({event["ulid"] for event in deployment.workspace.events()}) == 10


# Point 3: no surprise on day one ------------------------------------------------------------------------------------


@pytest.fixture
def three_orders(shop: Shop) -> Shop:
    shop.orders()
    shop.sell(3)
    return shop


def test_a_sync_without_a_mark_sends_nothing_and_says_so_until_it_is_let(deployment, three_orders):
    run = deployment.run("orders", FIRST_PASS="approved")
    assert "not live" in run.message
    assert deployment.workspace.stats()["operations"] == 0
    assert deployment.run("orders", FIRST_PASS="approved").outcome == run.outcome
    # that it waited for days is no first pass that got lost
    assert deployment.run("orders", FIRST_PASS="all").accepted == 3
    assert deployment.run("orders", FIRST_PASS="approved").outcome == "ok", "with a mark it is live"


def test_a_first_pass_that_failed_before_its_first_page_may_start_again(deployment, three_orders):
    three_orders.sql.execute("DROP VIEW retention.orders")
    with pytest.raises(ViewFault, match=r"retention\.orders"):
        deployment.run("orders")
    three_orders.sql.execute(
        "CREATE VIEW retention.orders AS SELECT customer_id, CAST('Order Placed' AS varchar(50)) AS event_name,"
        " at AS event_time, event_id, row_version FROM shop.sales"
    )
    assert deployment.run("orders").accepted == 3


def test_state_of_another_workspace_stops_every_sync_with_the_way_out(deployment, three_orders, customerio):
    three_orders.customers("customer_id int, row_version rowversion")
    deployment.run("orders")
    other = customerio.create_workspace(lag_seconds=0)
    for sync in ("orders", "customers"):
        three_orders.sql.execute("UPDATE shop.sales SET event_id = event_id + 100")
        with pytest.raises(StateFault, match="STATE_CONTAINER"):
            deployment.run(sync, CUSTOMERIO_SITE_ID=other.site_id, CUSTOMERIO_API_KEY=other.api_key)
    assert other.stats()["operations"] == 0


def test_state_of_another_database_stops_the_sync(deployment, three_orders, sql_server):
    deployment.run("orders")
    name = f"tidemark_{uuid.uuid4().hex[:12]}"
    text = sql_server.create_database(name)
    try:
        with closing(pyodbc.connect(text, autocommit=True)) as other:
            for schema in ("shop", "retention"):
                other.execute(f"CREATE SCHEMA {schema}")
            other.execute(NUMBERS)
            shop = Shop(other)
            shop.orders()
            shop.sell(5, first=100)
        with pytest.raises(StateFault, match="STATE_CONTAINER"):
            deployment.run("orders", SQL_CONNECTION_STRING=text)
    finally:
        sql_server.drop_database(name)
    assert len(event_ids(deployment)) == 3


def test_a_mark_that_is_gone_beside_a_ledger_or_runs_is_a_fault_and_no_first_pass(deployment, three_orders):
    deployment.run("orders")
    three_orders.sql.execute("UPDATE shop.sales SET event_id = event_id + 100")
    deployment.container.delete_blob("syncs/orders/mark.json")
    with pytest.raises(StateFault):
        deployment.run("orders")
    for name in deployment.blobs("syncs/orders/ledger"):
        deployment.container.delete_blob(name)
    with pytest.raises(StateFault):
        deployment.run("orders")
    assert len(event_ids(deployment)) == 3


@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_a_ledger_that_is_gone_or_torn_beside_a_mark_stops_the_sync(deployment, three_orders, damage):
    deployment.run("orders")
    three_orders.sql.execute("UPDATE shop.sales SET customer_id = 'q'")
    for name in deployment.blobs("syncs/orders/ledger"):
        if damage == "gone":
            deployment.container.delete_blob(name)
        else:
            deployment.container.upload_blob(name, deployment.read(name)[:-5], overwrite=True)
    with pytest.raises(StateFault):
        deployment.run("orders")
    assert deployment.workspace.stats()["operations"] == 3


# Point 4: identity and types ----------------------------------------------------------------------------------------

TYPES: dict[str, tuple[str, str, Any]] = {
    # column: SQL type, literal, what Customer.io holds
    "a_bit": ("bit", "1", True),
    "no_bit": ("bit", "0", False),
    "a_tinyint": ("tinyint", "255", 255),
    "a_smallint": ("smallint", "-32768", -32768),
    "an_int": ("int", "0", 0),
    "a_bigint": ("bigint", "9007199254740991", 9007199254740991),
    "beyond_2_53": ("bigint", "9007199254740993", "9007199254740993"),
    "below_2_53": ("bigint", "-9007199254740993", "-9007199254740993"),
    "a_decimal": ("decimal(18,4)", "12.3400", 12.34),
    "a_numeric": ("numeric(5,2)", "-0.10", -0.1),
    "a_money": ("money", "19.99", 19.99),
    "a_float": ("float", "0.1", 0.1),
    "a_real": ("real", "0.5", 0.5),
    "a_date": ("date", "'2026-01-05'", 1767571200),
    "an_old_date": ("date", "'1955-06-01'", -460339200),
    "a_datetime": ("datetime", "'2026-01-05T10:00:00.997'", 1767607200),
    "a_datetime2": ("datetime2(7)", "'2026-01-05T10:00:00.9999999'", 1767607200),
    "a_smalldatetime": ("smalldatetime", "'2026-01-05T10:01:00'", 1767607260),
    "a_datetimeoffset": ("datetimeoffset(7)", "'2026-01-05T10:00:00.1234567 -03:30'", 1767619800),
    "an_id": ("uniqueidentifier", "'6F9619FF-8B86-D011-B42D-00C04FC964FF'", "6f9619ff-8b86-d011-b42d-00c04fc964ff"),
    "a_char": ("char(10)", "'abc'", "abc"),
    "an_nchar": ("nchar(10)", "N'żó'", "żó"),
    "a_varchar": ("varchar(10)", "'abc'", "abc"),
    "an_nvarchar": ("nvarchar(50)", "N'日本 😀'", "日本 😀"),
    "an_nvarchar_max": ("nvarchar(max)", "N'x'", "x"),
    "a_time": ("time(7)", "'09:05:07.1234567'", "09:05:07"),
}
ODD_NAMES = ["a b", "[x]", "x]y", "ünïcode", "日本", "a'b", 'a"b', "per%cent", "{brace}", "a?b", "select", "a;b--"]


@pytest.mark.parametrize("sync", ["customers", "orders"])
def test_every_sql_type_arrives_as_the_table_of_types_says(deployment, shop, sync):
    columns = ", ".join(f"{name} {kind}" for name, (kind, _, _) in TYPES.items())
    values = ", ".join(f"CAST({literal} AS {kind})" for kind, literal, _ in TYPES.values())
    if sync == "customers":
        shop.customers(f"customer_id int, row_version rowversion, nothing int, {columns}")
        shop.sql.execute(f"INSERT INTO shop.people (customer_id, {', '.join(TYPES)}) SELECT 1, {values}")
    else:
        shop.orders(more=f"nothing int, {columns}", shown=f"nothing, {', '.join(TYPES)}")
        shop.sql.execute(
            f"INSERT INTO shop.sales (event_id, customer_id, at, {', '.join(TYPES)})"
            f" SELECT 1, 'p', '2026-01-05T00:00:00', {values}"
        )
    deployment.run(sync)
    held = one_person(deployment) if sync == "customers" else next(iter(deployment.workspace.events()))["attributes"]
    seen = {name: held.get(name) for name in TYPES}
    assert seen == {name: value for name, (_, _, value) in TYPES.items()}
    # True == 1 == 1.0 in Python: the types are part of the promise
    assert {name: type(value) for name, value in seen.items()} == {n: type(value) for n, (_, _, value) in TYPES.items()}
    assert "nothing" not in held, "NULL leaves the attribute alone"


@pytest.mark.parametrize("kind", ["varbinary(10)", "xml", "sql_variant"])
def test_a_type_that_customerio_cannot_hold_is_a_fault_of_the_view_that_names_the_column(deployment, shop, kind):
    shop.customers(f"customer_id int, row_version rowversion, odd {kind}")
    shop.sql.execute("INSERT INTO shop.people (customer_id) VALUES (1)")
    with pytest.raises(ViewFault, match="odd"):
        deployment.run("customers")
    assert deployment.workspace.stats()["operations"] == 0


@pytest.mark.parametrize("value", ['{"a": 1}', "[1, 2]"])
def test_json_in_a_text_column_is_refused(deployment, shop, value):
    shop.customers("customer_id int, row_version rowversion, odd nvarchar(50)")
    shop.sql.execute("INSERT INTO shop.people (customer_id, odd) VALUES (1, ?)", value)
    try:
        run = deployment.run("customers")
    except ViewFault as fault:
        assert "odd" in str(fault)
    else:
        assert run.dead_letters == 1
    assert "odd" not in deployment.workspace.people().get("1", {})


@pytest.mark.parametrize(
    "values", [("true", "false"), ("Y", "N"), ("0", "1"), ("2026-01-05", "2026-01-06T10:00:00")], ids=" ".join
)
def test_text_that_is_a_flag_or_a_date_throughout_is_a_fault_of_the_view_that_is_said(deployment, shop, caplog, values):
    caplog.set_level(logging.INFO)
    shop.customers("customer_id int, row_version rowversion, odd_one varchar(30)")
    for person in range(40):
        shop.sql.execute("INSERT INTO shop.people (customer_id, odd_one) VALUES (?, ?)", person, values[person % 2])
    try:
        said = deployment.run("customers").message
    except ViewFault as fault:
        said = str(fault)
    assert "odd_one" in " ".join([said, *caplog.messages])


def test_quoted_and_odd_column_names_arrive_as_they_are(deployment, shop):
    names = ", ".join(f"v AS [{name.replace(']', ']]')}]" for name in ODD_NAMES)
    shop.customers(
        "customer_id int, row_version rowversion, v int", f"SELECT customer_id, row_version, {names} FROM shop.people"
    )
    shop.sql.execute("INSERT INTO shop.people (customer_id, v) VALUES (1, 5)")
    deployment.run("customers")
    assert one_person(deployment) == dict.fromkeys(ODD_NAMES, 5)


def test_a_persons_columns_of_an_event_go_right_before_it_and_only_beside_a_sent_event(deployment, shop):
    shop.orders(more="email nvarchar(100), n int", shown="email AS [person.email], n AS [person.orders_count]")
    shop.sql.execute(
        "INSERT INTO shop.sales (event_id, customer_id, at, email, n)"
        " VALUES (1, 'new', SYSUTCDATETIME(), 'ann@example.com', 1)"
    )
    run = deployment.run("orders")
    assert run.operations == 2
    assert deployment.workspace.people() == {"new": {"email": "ann@example.com", "orders_count": 1}}
    (event,) = deployment.workspace.events()
    assert event["person"] == "new"
    assert event["attributes"].keys() == {"event_id", "late_minutes"} | ({"backfill"} & event["attributes"].keys())
    shop.sql.execute("UPDATE shop.sales SET n = 2")
    assert deployment.run("orders").operations == 0


def test_a_ulid_depends_on_sync_event_id_and_event_time_alone(deployment, shop, customerio):
    shop.orders(more="total int", shown="total")
    shop.sell(20)
    deployment.run("orders")
    first = {event["attributes"]["event_id"]: event["ulid"] for event in deployment.workspace.events()}
    assert all(ULID.fullmatch(ulid) for ulid in first.values())
    assert len(set(first.values())) == 20
    # another workspace, another state, other properties, another person: the same event
    shop.sql.execute("UPDATE shop.sales SET total = 9, customer_id = 'other'")
    other = customerio.create_workspace(lag_seconds=0)
    deployment.run(
        "orders",
        CUSTOMERIO_SITE_ID=other.site_id,
        CUSTOMERIO_API_KEY=other.api_key,
        STATE_CONTAINER=f"state-{uuid.uuid4().hex[:16]}",
    )
    assert {event["attributes"]["event_id"]: event["ulid"] for event in other.events()} == first


def test_rows_beyond_customerios_limits_are_set_aside_with_column_and_reason_and_the_rest_goes_on(deployment, shop):
    many = ", ".join(f"n AS c{i}" for i in range(299))
    shop.customers(
        "customer_id nvarchar(200), row_version rowversion, note nvarchar(2000), n int",
        f"SELECT customer_id, row_version, note, {many} FROM shop.people",
    )
    rows = [
        ("fine", "x"),
        ("i" * 151, "x"),
        ("é" * 76, "x"),
        ("long", "n" * 1001),
        ("wide", "é" * 501),
        ("last", "x" * 1000),
    ]
    for customer_id, note in rows:
        shop.sql.execute("INSERT INTO shop.people (customer_id, note, n) VALUES (?, ?, 1)", customer_id, note)
    run = deployment.run("customers")
    assert set(deployment.workspace.people()) == {"fine", "last"}
    assert run.dead_letters == 4
    fields = Counter(letter["field"] for letter in deployment.dead_letters("customers"))
    assert fields == {"customer_id": 2, "note": 2}
    assert all(letter["reason"] for letter in deployment.dead_letters("customers"))
    assert deployment.workspace.stats()["rejected"] == 0, "the limits are checked before anything is sent"


def test_bad_rows_are_set_aside_and_the_others_go_on(deployment, shop):
    shop.orders()
    shop.sell(5)
    shop.sql.execute(
        "INSERT INTO shop.sales (event_id, customer_id, at) VALUES (100, NULL, SYSUTCDATETIME()),"
        " (101, 'p', NULL), (NULL, 'p', SYSUTCDATETIME()), (102, '', SYSUTCDATETIME())"
    )
    run = deployment.run("orders", PAGE_SIZE=10)
    assert (run.outcome, run.dead_letters) == ("ok", 4)
    assert sorted(event_ids(deployment)) == [1, 2, 3, 4, 5]
    assert {letter["field"] for letter in deployment.dead_letters("orders")} == {
        "customer_id",
        "event_time",
        "event_id",
    }


@pytest.mark.parametrize("walk", ["first pass", "later pass"])
def test_a_customer_id_that_comes_twice_is_set_aside_and_the_others_go_on(deployment, shop, walk):
    shop.customers("customer_id int, n int, row_version rowversion")
    if walk == "later pass":
        shop.sql.execute("INSERT INTO shop.people (customer_id, n) VALUES (0, 0)")
        deployment.run("customers")
    shop.sql.execute("INSERT INTO shop.people (customer_id, n) SELECT n + 1, n FROM shop.numbers WHERE n < 40")
    shop.sql.execute("INSERT INTO shop.people (customer_id, n) VALUES (10, 99), (20, 99)")
    run = deployment.run("customers", PAGE_SIZE=10)
    assert run.outcome == "ok"
    assert {letter["key"] for letter in deployment.dead_letters("customers")} == {"10", "20"}
    assert set(deployment.workspace.people()) - {"0"} == {str(n) for n in range(1, 41) if n not in (10, 20)}


@pytest.mark.parametrize("keys", [["a", "A", "b"], ["a", "a ", "b"], ["a", "A ", "b"]], ids=repr)
def test_a_later_pass_sends_or_sets_aside_each_of_the_ids_that_sql_server_takes_for_equal(deployment, shop, keys):
    shop.customers("customer_id varchar(20), n int, row_version rowversion")
    for key in keys:
        shop.sql.execute("INSERT INTO shop.people (customer_id, n) VALUES (?, 0)", key)
    deployment.run("customers")
    shop.sql.execute("UPDATE shop.people SET n = 1")
    run = deployment.run("customers")
    assert run.rows == len(keys)
    new = {id for id, person in deployment.workspace.people().items() if person["n"] == 1}
    aside = [letter["key"] for letter in deployment.dead_letters("customers")]
    assert new | set(aside) == set(keys)
    assert len(aside) == len(set(aside))


# Point 5: the client ------------------------------------------------------------------------------------------------


def test_one_rejected_operation_of_a_207_is_set_aside_and_the_rest_is_accepted(deployment, shop):
    shop.customers("customer_id int, created_at int, row_version rowversion")
    shop.sql.execute(
        "INSERT INTO shop.people (customer_id, created_at) SELECT n, CASE n WHEN 7 THEN -9 ELSE 9 END FROM shop.numbers WHERE n < 50"
    )
    run = deployment.run("customers", PAGE_SIZE=10)
    assert (run.outcome, run.accepted, run.dead_letters) == ("ok", 49, 1)
    (letter,) = deployment.dead_letters("customers")
    assert letter["key"] == "7"
    assert "created_at" in json.dumps(letter)
    assert deployment.run("customers").operations == 0


@pytest.mark.parametrize("index", [-1, 10_000, None, "3", 2.5, True])
def test_a_207_with_an_index_that_belongs_to_no_operation_loses_nothing(deployment, shop, index):
    shop.orders()
    shop.sell(20)
    deployment.workspace.add_fault(extra_errors=[{"batch_index": index, "reason": "invalid", "message": "strange"}])
    with_fault = None
    try:
        with_fault = deployment.run("orders")
    except TidemarkError:
        deployment.break_lease("orders")
    for _ in range(2):
        deployment.run("orders")
    assert sorted(event_ids(deployment)) == list(range(1, 21))
    assert deployment.workspace.stats()["duplicate_events_stored"] == 0
    assert with_fault is None or with_fault.accepted + with_fault.rejected == with_fault.operations


def test_a_400_is_bisected_until_the_guilty_operation_stands_alone(deployment, shop):
    shop.orders()
    shop.sell(200)
    deployment.workspace.add_fault(status=400, when_event_id=77)
    run = deployment.run("orders")
    assert (run.outcome, run.accepted, run.dead_letters) == ("ok", 199, 1)
    assert [letter["key"] for letter in deployment.dead_letters("orders")] == ["77"]
    assert sorted(event_ids(deployment)) == [n for n in range(1, 201) if n != 77]
    assert run.requests < 30
    assert deployment.run("orders").operations == 0


def test_answers_that_are_lost_after_acceptance_store_nothing_twice(deployment, shop):
    shop.orders()
    shop.sell(100)
    deployment.workspace.add_fault(reset="after", times=3)
    deployment.workspace.add_fault(status=500, accepted=True, times=2)
    assert deployment.run("orders", PAGE_SIZE=20).outcome == "ok"
    assert sorted(event_ids(deployment)) == list(range(1, 101))
    stats = deployment.workspace.stats()
    assert stats["duplicate_events_stored"] == 0
    assert stats["duplicate_events_dropped"] >= 20, "what went again carried the same ULID"


@pytest.mark.parametrize("fault", [{"status": 429, "retry_after": 1}, {"status": 503}, {"reset": "before"}], ids=str)
def test_passing_trouble_is_waited_out(deployment, three_orders, fault):
    deployment.workspace.add_fault(**fault, times=1)
    started = time.monotonic()
    assert deployment.run("orders").accepted == 3
    if "retry_after" in fault:
        assert time.monotonic() - started >= 1, "Retry-After is honoured"


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_stop_the_run_at_once_and_name_the_setting(deployment, three_orders, status):
    deployment.workspace.add_fault(status=status, times=100)
    with pytest.raises(TidemarkError, match="CUSTOMERIO_API_KEY"):
        deployment.run("orders")
    assert deployment.workspace.stats()["requests"] < 6
    deployment.workspace.clear_faults()
    assert deployment.run("orders").accepted == 3


def test_requests_stay_under_the_rate_and_batches_under_the_size(deployment, shop):
    shop.orders(more="note varchar(1000)", shown="note, note AS note2, note AS note3")
    shop.sell(600)
    shop.sql.execute("UPDATE shop.sales SET note = REPLICATE('x', 900)")
    run = deployment.run("orders", PAGE_SIZE=10, CUSTOMERIO_REQUESTS_PER_SECOND=30)
    assert run.accepted == 600
    # by when they arrive: on a busy machine a few of the second before are late
    assert deployment.workspace.stats()["max_requests_in_a_second"] <= 35
    shop.sql.execute("UPDATE shop.sales SET event_id = event_id + 10000")
    assert deployment.run("orders", PAGE_SIZE=5000).requests < 12
    assert 300_000 < deployment.workspace.stats()["max_body_bytes"] <= 475_000


# Point 6: state -----------------------------------------------------------------------------------------------------


def test_one_pass_of_a_sync_at_a_time(deployment, three_orders):
    deployment.workspace.configure(latency_seconds=0.5)
    runs = []
    first = threading.Thread(target=lambda: runs.append(deployment.run("orders")))
    first.start()
    mark = deployment.container.get_blob_client("syncs/orders/mark.json")
    until(lambda: mark.exists() and mark.get_blob_properties().lease.state == "leased")
    second = deployment.run("orders")
    first.join()
    assert second.outcome == "busy"
    assert second.operations == 0
    assert runs[0].accepted == 3


def test_a_pass_that_is_killed_between_pages_is_taken_up_and_loses_nothing(deployment, shop):
    shop.orders()
    shop.sell(400)
    deployment.workspace.configure(latency_seconds=0.05)
    process = start_pass(deployment, "orders", PAGE_SIZE=10, CUSTOMERIO_BATCHES_IN_FLIGHT=1)
    until(lambda: deployment.workspace.stats()["operations"] >= 60)
    process.kill()
    process.communicate()
    assert len(event_ids(deployment)) < 400
    deployment.break_lease("orders")
    deployment.workspace.configure(latency_seconds=0)
    run = deployment.run("orders", PAGE_SIZE=10)
    assert run.outcome == "ok"
    assert run.operations < 370, "the pages that were accounted do not go again"
    assert sorted(event_ids(deployment)) == list(range(1, 401))
    assert deployment.workspace.stats()["duplicate_events_stored"] == 0


class BlobCalls(logging.Handler):
    """The blob service's requests as azure-core logs them: method, path and query of each."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.calls: list[tuple[str, str]] = []
        self.missing = 0

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if found := re.search(r"Request URL: '([^']+)'\s+Request method: '(\w+)'", text):
            self.calls.append((found[2], found[1]))
        self.missing += "Response status: 404" in text

    @property
    def writes(self) -> int:
        return sum(method == "PUT" and "comp=lease" not in url for method, url in self.calls)


@pytest.fixture
def blob_calls() -> Iterator[BlobCalls]:
    logger = logging.getLogger("azure.core.pipeline.policies.http_logging_policy")
    calls, level = BlobCalls(), logger.level
    logger.addHandler(calls)
    logger.setLevel(logging.INFO)
    yield calls
    logger.removeHandler(calls)
    logger.setLevel(level)


def test_writes_and_reads_of_blobs_grow_with_pages_and_not_with_the_days_of_a_page(deployment, shop, blob_calls):
    shop.orders()
    # twelve pages, each of which touches the same 350 days
    shop.sql.execute(
        "INSERT INTO shop.sales (event_id, customer_id, at) SELECT n, 'p', DATEADD(day, -(n % 350), SYSUTCDATETIME())"
        " FROM shop.numbers WHERE n < 4200"
    )
    assert deployment.run("orders", PAGE_SIZE=350).accepted == 4200
    first, missing = blob_calls.writes, blob_calls.missing
    print(f"{first} writes, {missing} reads of what does not exist, {len(blob_calls.calls)} calls")
    # 350 days are folded once, when the pass ends; a page costs a journal and a mark
    assert first < 350 + 12 * 4 + 20
    assert missing < 30
    # a later pass of one page over 350 days that exist, with nothing to send, writes next to nothing
    shop.sql.execute("UPDATE shop.sales SET customer_id = 'q' WHERE event_id < 350")
    blob_calls.calls.clear()
    assert deployment.run("orders", PAGE_SIZE=350).operations == 0
    assert blob_calls.writes < 15


@pytest.mark.parametrize("sync", ["orders"])
def test_memory_is_bounded_by_pages_and_not_by_rows(deployment, shop, sync):
    peak = {}
    shop.orders(more="total int", shown="total")
    for rows in (20_000, 200_000):
        shop.sell(rows, first=1 if rows == 20_000 else 20_001)
        process = start_pass(deployment, sync, PAGE_SIZE=2000)
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        done = json.loads(out)
        assert (done["outcome"], done["rows"]) == ("ok", rows)
        peak[rows] = done["kb"] / 1024
    print(f"peak MiB: {peak}")
    assert peak[200_000] - peak[20_000] < 40


def test_a_run_is_recorded_with_its_counts(deployment, three_orders):
    run = deployment.run("orders")
    (name,) = deployment.blobs("syncs/orders/runs/")
    record = json.loads(deployment.read(name))
    assert record["outcome"] == run.outcome == "ok"
    assert (record["rows"], record["operations"], record["accepted"]) == (3, 3, 3)


# What must hold -----------------------------------------------------------------------------------------------------


def everything_said(deployment: Deployment, caplog: pytest.LogCaptureFixture, *more: object) -> str:
    """Every log record with its exception, and every blob that somebody would read: runs and dead letters."""
    records = [caplog.handler.format(record) for record in caplog.records]
    blobs = [
        deployment.read(name).decode()
        for sync in ("customers", "orders")
        for folder in ("runs", "dead-letters")
        for name in deployment.blobs(f"syncs/{sync}/{folder}/")
    ]
    return "\n".join([*records, *blobs, *map(str, more)])


def test_no_value_of_a_row_is_in_a_log_a_run_or_a_dead_letter(deployment, shop, caplog):
    caplog.set_level(logging.DEBUG)
    shop.customers(
        "customer_id int, email nvarchar(200), note nvarchar(2000), row_version rowversion",
    )
    shop.sql.execute(
        "INSERT INTO shop.people (customer_id, email, note) VALUES (1, ?, 'x'), (2, ?, REPLICATE('7', 1001)), (3, ?, 'y')",
        EMAIL,
        "p" + EMAIL,
        "q" + EMAIL,
    )
    # Customer.io repeats the value in the reason of a rejection
    deployment.workspace.add_fault(
        extra_errors=[
            {
                "batch_index": 0,
                "reason": f"invalid {EMAIL}",
                "field": f"attributes.email {EMAIL}",
                "message": f"bad: {EMAIL}",
            }
        ]
    )
    run = deployment.run("customers")
    assert run.dead_letters == 2
    assert EMAIL not in everything_said(deployment, caplog, run)
    assert {letter["key"] for letter in deployment.dead_letters("customers")} == {"1", "2"}
    assert "777777" not in everything_said(deployment, caplog, run)


def test_no_value_of_a_row_is_in_what_sql_server_complains_about(deployment, shop, caplog):
    caplog.set_level(logging.DEBUG)
    shop.customers(
        "customer_id int, note nvarchar(200), row_version rowversion",
        "SELECT customer_id, row_version, CAST(note AS int) AS note FROM shop.people",
    )
    shop.sql.execute("INSERT INTO shop.people (customer_id, note) VALUES (1, ?)", EMAIL)
    with pytest.raises(TidemarkError) as failure:
        deployment.run("customers")
    told = "".join(traceback.format_exception(failure.value))
    assert EMAIL not in everything_said(deployment, caplog, failure.value)
    assert EMAIL not in told, "the host logs the exception with its causes"


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"SQL_CONNECTION_STRING": "PWD"}, "SQL_CONNECTION_STRING"),
        ({"CUSTOMERIO_API_KEY": SECRET}, "CUSTOMERIO_API_KEY"),
        ({"AzureWebJobsStorage": "key"}, "AzureWebJobsStorage"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_secret_is_told_by_its_settings_name_alone(deployment, three_orders, caplog, setting, named):
    caplog.set_level(logging.DEBUG)
    if setting.get("SQL_CONNECTION_STRING"):
        text = re.sub(r"PWD=[^;]*", f"PWD={SECRET}", deployment.environment["SQL_CONNECTION_STRING"])
        setting = {"SQL_CONNECTION_STRING": text}
    if setting.get("AzureWebJobsStorage"):
        planted = base64.b64encode(SECRET.encode()).decode()
        text = re.sub(r"AccountKey=[^;]*", f"AccountKey={planted}", deployment.environment["AzureWebJobsStorage"])
        setting = {"AzureWebJobsStorage": text}
    with pytest.raises(TidemarkError, match=named) as failure:
        deployment.run("orders", **setting)
    told = "".join(traceback.format_exception(failure.value)) + caplog.text
    for secret in (SECRET, *(value for value in setting.values())):
        assert secret not in told
    assert deployment.workspace.stats()["operations"] == 0


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ({"CUSTOMERIO_REGION": "mars"}, "CUSTOMERIO_REGION"),
        ({"CUSTOMERIO_SITE_ID": ""}, "CUSTOMERIO_SITE_ID"),
        ({"CUSTOMERIO_API_KEY": "wrong"}, "CUSTOMERIO_API_KEY"),
        ({"CUSTOMERIO_TRACK_URL": "https://track.example.com"}, "CUSTOMERIO_TRACK_URL"),
        ({"CUSTOMERIO_APP_URL": "http://10.1.2.3"}, "CUSTOMERIO_APP_URL"),
        ({"SQL_CONNECTION_STRING": ""}, "SQL_CONNECTION_STRING"),
        ({"PAGE_SIZE": "many"}, "PAGE_SIZE"),
        ({"FIRST_PASS": "maybe"}, "FIRST_PASS"),
    ],
    ids=str,
)
def test_the_invocation_fails_with_one_message_that_names_the_setting(
    host_app, deployment, three_orders, setting, named
):
    with Host(host_app, {**deployment.environment, **SCHEDULES, **setting}) as host:
        done = host.invoke_timer("orders", timeout=60)
    assert not done.ok
    assert named in done.error
    assert len(done.error) < 600
    assert deployment.workspace.stats()["operations"] == 0


TIMERS = {*SYNCS, "comparison", "reconciliation", "night"}
SCHEDULES = {f"{name.upper()}_SCHEDULE": "0 */5 * * * *" for name in TIMERS}


@pytest.fixture
def host_app() -> Path:
    return services.REPOSITORY


def test_each_sync_has_its_timer_and_its_schedule_is_a_setting(host_app, deployment, three_orders):
    with Host(host_app, {**deployment.environment, **SCHEDULES, "FIRST_PASS": "approved"}) as host:
        assert {name for name, each in host.functions().items() if each.kind == "timer"} == TIMERS
        for name in SYNCS:
            function = host.functions()[name]
            assert f"%{name.upper()}_SCHEDULE%" in str(function)
        waiting = host.invoke_timer("orders", timeout=60)
    assert waiting.ok, "not live is no failure"
    assert any("not live" in log.message for log in waiting.logs)
    assert deployment.workspace.stats()["operations"] == 0


@pytest.mark.parametrize(
    ("view", "named"),
    [
        ("SELECT at AS event_time, event_id, row_version, customer_id FROM shop.sales", "event_name"),
        (
            "SELECT at AS event_time, event_id, row_version, CAST('x' AS varchar(5)) AS event_name FROM shop.sales",
            "customer_id",
        ),
        (
            "SELECT at AS event_time, event_id, customer_id, CAST('x' AS varchar(5)) AS event_name FROM shop.sales",
            "row_version",
        ),
        (
            "SELECT event_id, row_version, customer_id, CAST('x' AS varchar(5)) AS event_name FROM shop.sales",
            "event_time",
        ),
        (
            "SELECT at AS event_time, row_version, customer_id, CAST('x' AS varchar(5)) AS event_name FROM shop.sales",
            "event_id",
        ),
    ],
    ids=["event_name", "customer_id", "cursor", "event_time", "event_id"],
)
def test_a_view_without_a_column_of_the_contract_is_a_fault_that_names_it(deployment, three_orders, view, named):
    three_orders.sql.execute("DROP VIEW retention.orders")
    three_orders.sql.execute(f"CREATE VIEW retention.orders AS {view}")
    with pytest.raises(ViewFault, match=named):
        deployment.run("orders")
    assert deployment.workspace.stats()["operations"] == 0


def test_an_unreachable_server_is_told_by_its_settings_name(deployment, three_orders):
    text = re.sub(r"Server=[^;]*", "Server=127.0.0.1,1", deployment.environment["SQL_CONNECTION_STRING"])
    with pytest.raises(TidemarkError, match="SQL_CONNECTION_STRING"):
        deployment.run("orders", SQL_CONNECTION_STRING=f"{text};Connection Timeout=1", TIME_BUDGET_SECONDS=2)
