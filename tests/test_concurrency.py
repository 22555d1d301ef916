"""Whatever writes and whatever runs at the same time: rows are read right, and each sync has one writer.

Writers with connections of their own change the tables while passes run, by a seed; passes run as real processes that
start at the same moment, stand still, and go on. Where it counts who comes first, a gate before Customer.io says so.
"""

import asyncio
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, closing
from itertools import islice
from math import inf
from typing import Any
from urllib.parse import urlsplit

import orjson
import pyodbc
import pytest

from local.faults.proxy import Answer, Proxy, Request
from local.services import Child, SqlServer
from shared.mapping import DIGEST_BYTES
from shared.run import Run
from tests.conftest import Deployment
from tests.test_passes import STRATEGIES, add_customers, add_orders, event_ids, make_tables
from tests.test_promises import until

SEED = 20261124

_SECONDS = 60
"""More than anything takes here, on a busy machine too."""

# --- reading under writers --------------------------------------------------------------------------------------------


class Writer(threading.Thread):
    """Inserts and updates in transactions of random length. Some stay open while others commit, some are rolled back.

    What is written is a version of its own: the tier of a person, the total of an order. `totals` are those of orders
    that were committed, by order. By updated_at a statement may say that it is up to 57 s old, as in a transaction that
    is open for so long, and commits within the lookback of a minute or not at all.
    """

    def __init__(self, connection_string: str, strategy: str, number: int, transactions: int = 18) -> None:
        super().__init__(name=f"writer {number}", daemon=True)
        self.totals: set[tuple[int, float]] = set()
        self.rolled_back = 0
        self.failure: pyodbc.Error | None = None
        self._connection_string = connection_string
        self._by_time = strategy == "updated_at"
        self._random = random.Random(f"{SEED} {number}")
        self._transactions = transactions
        self._first = self._next = 1000 * number
        self._version = 10_000 * number

    def run(self) -> None:
        with closing(pyodbc.connect(self._connection_string)) as sql:
            for _ in range(self._transactions):
                try:
                    self._transaction(sql)
                except pyodbc.Error as error:
                    sql.rollback()
                    if error.args[0] != "40001":  # a deadlock's victim has only to do something else
                        self.failure = error
                        return

    def _transaction(self, sql: pyodbc.Connection) -> None:
        choose = self._random
        began = time.monotonic()
        written = set()
        for _ in range(choose.randint(1, 6)):
            written |= self._statement(sql)
            time.sleep(choose.choice((0, 0, 0.01, 0.05)))
        time.sleep(choose.choice((0, 0, 0, 0.4)))
        if choose.random() < 0.8 and time.monotonic() - began < 1.5:
            sql.commit()
            self.totals |= written
        else:
            sql.rollback()
            self.rolled_back += 1

    def _statement(self, sql: pyodbc.Connection) -> set[tuple[int, float]]:
        """Write a few rows; returns the orders' versions."""
        choose = self._random
        self._version += 1
        total = float(self._version)
        at = f"DATEADD(second, -{choose.choice((0, 0, 20, 57))}, SYSUTCDATETIME())"
        touch = f", updated_at = {at}" if self._by_time else ""
        column, value = (", updated_at", f", {at}") if self._by_time else ("", "")
        self._next += 1
        match choose.choice(("order", "newcomer", "edit", "edit", "people", "people")):
            case "order":
                sql.execute(
                    f"INSERT INTO shop.orders (order_id, customer_id, paid_at, total{column})"
                    f" VALUES (?, ?, DATEADD(minute, -90, SYSUTCDATETIME()), ?{value})",
                    self._next, choose.randrange(40), total,
                )  # fmt: skip
                return {(self._next, total)}
            case "newcomer":
                sql.execute(
                    f"INSERT INTO shop.customers (customer_id, email, tier{column}) VALUES (?, ?, ?{value})",
                    self._next, f"c{self._next}@example.com", f"tier {self._version}",
                )  # fmt: skip
                return set()
            case "edit":
                # its own newest ones, which no pass may have seen yet, or everybody's
                first = choose.choice((max(self._first, self._next - 8), choose.randrange(60)))
                ids = [row[0] for row in sql.execute(
                    "SELECT order_id FROM shop.orders WHERE order_id BETWEEN ? AND ?", first, first + 3
                )]  # fmt: skip
                for order in ids:
                    sql.execute(f"UPDATE shop.orders SET total = ?{touch} WHERE order_id = ?", total, order)
                return {(order, total) for order in ids}
            case _:
                first = choose.randrange(40)
                sql.execute(
                    f"UPDATE shop.customers SET tier = ?{touch} WHERE customer_id BETWEEN ? AND ?",
                    f"tier {self._version}", first, first + 3,
                )  # fmt: skip
                return set()


@pytest.fixture(params=["locking", "snapshot"])
def isolation(request: pytest.FixtureRequest, sql: pyodbc.Connection, sql_server: object) -> None:
    """READ COMMITTED with locks, and with READ_COMMITTED_SNAPSHOT, Azure SQL's default."""
    if not isinstance(sql_server, SqlServer):
        on = "ON" if request.param == "snapshot" else "OFF"
        sql.execute(f"ALTER DATABASE CURRENT SET READ_COMMITTED_SNAPSHOT {on} WITH ROLLBACK IMMEDIATE")
    elif request.param == "locking":
        pytest.skip("readers of the stand-in never wait for writers: as under READ_COMMITTED_SNAPSHOT, and only so")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_while_writers_hammer_the_tables_nothing_is_lost_doubled_or_read_before_it_is_committed(
    deployment, database, isolation, strategy
):
    sql = deployment.sql
    make_tables(sql, strategy)
    add_customers(sql, range(40))
    add_orders(sql, range(60), customers=40)
    first = {(order, float(total)) for order, total in sql.execute("SELECT order_id, total FROM shop.orders")}
    changes = {"PAGE_SIZE": 10, "LOOKBACK_SECONDS": 60}
    writers = [Writer(database, strategy, number) for number in (1, 2, 3)]

    def timer(sync: str) -> list[Run]:
        runs = []
        while any(writer.is_alive() for writer in writers):
            runs.append(deployment.run(sync, **changes))
        return runs

    for writer in writers:
        writer.start()
    try:
        with ThreadPoolExecutor(2) as timers:
            customers, orders = timers.map(timer, ("customers", "orders"))
    finally:
        for writer in writers:
            writer.join()
    assert [writer.failure for writer in writers] == [None] * 3
    quiet = [deployment.run(sync, **changes) for _ in range(2) for sync in ("customers", "orders")]

    assert {(run.outcome, run.message, run.dead_letters) for run in [*customers, *orders, *quiet]} == {("ok", "", 0)}
    assert [run.operations for run in quiet[2:]] == [0, 0]
    rows = sql.execute("SELECT customer_id, email, tier FROM shop.customers").fetchall()
    assert deployment.workspace.people() == {str(id): {"email": email, "tier": tier} for id, email, tier in rows}
    events = [
        (event["attributes"]["event_id"], event["attributes"]["total"]) for event in deployment.workspace.events()
    ]
    rows = sql.execute("SELECT order_id FROM shop.orders ORDER BY order_id").fetchall()
    assert sorted(order for order, _ in events) == [row[0] for row in rows]
    assert set(events) <= first.union(*(writer.totals for writer in writers)), (
        "values of a version that was rolled back"
    )
    assert deployment.workspace.stats()["duplicate_events_dropped"] == 0
    # it was a hammering: writers gave up, and passes of both syncs had something to do time and again
    assert all(writer.rolled_back for writer in writers)
    assert min(sum(run.operations > 0 for run in runs) for runs in (customers, orders)) > 2


# --- one writer at a time ---------------------------------------------------------------------------------------------


class Gate(Proxy):
    """Customer.io behind a gate that lets `left` more batches through; the others wait before it.

    `came` are the operations of each batch that came, in their order, `waiting` is how many of these stand before it.
    """

    def __init__(self, url: str) -> None:
        port = urlsplit(url).port
        assert port
        super().__init__(port)
        self.left: float = inf
        self.came: list[list[dict[str, Any]]] = []
        self.waiting = 0

    async def exchange(self, request: Request, upstream: Any) -> Answer:
        if request.path.endswith("/batch"):
            self.came.append(orjson.loads(request.body)["batch"])
            self.waiting += 1
            while self.left < 1:
                await asyncio.sleep(0.005)
            self.left -= 1
            self.waiting -= 1
        return await super().exchange(request, upstream)


WORKER = """
import json, sys
import azure.functions as func
import function_app
from shared import passes, syncs
from shared.errors import TidemarkError

def replay(sync):
    request = func.HttpRequest("POST", "/api/x", body=b'{"confirm": true}', route_params={"sync": sync})
    answer = function_app.replay.build().get_user_function()(request)
    return {"status": answer.status_code, **json.loads(answer.get_body())}

def run(sync):
    try:
        run = passes.run(syncs.find(sync))
        return {"outcome": run.outcome, "message": run.message, "operations": run.operations}
    except TidemarkError as error:
        return {"outcome": "failed", "message": str(error)}

print("ready", flush=True)
for line in sys.stdin:
    what, sync = line.split()
    print(json.dumps({"replay": replay, "pass": run}[what](sync)), flush=True)
"""


class Crew:
    """Processes of deployments that share one state, and reach Customer.io through the gate."""

    def __init__(self, deployment: Deployment, resources: ExitStack) -> None:
        self.gate = resources.enter_context(Gate(deployment.workspace.url))
        self._environment = {**os.environ, **deployment.environment}
        for name in ("CUSTOMERIO_TRACK_URL", "CUSTOMERIO_APP_URL"):
            self._environment[name] = f"http://127.0.0.1:{self.gate.port}"
        self._pool = resources.enter_context(ThreadPoolExecutor(8))
        self._resources = resources

    def start(self, *page_sizes: int) -> list[Child]:
        """A process for each, ready to be asked."""
        command = [sys.executable, "-c", WORKER]
        children = [
            self._resources.enter_context(
                Child(
                    command,
                    name="a worker",
                    env={**self._environment, "PAGE_SIZE": str(size), "CUSTOMERIO_BATCHES_IN_FLIGHT": "2"},
                    stdin=-1,
                )
            )
            for size in page_sizes
        ]
        for child in children:
            if child.process.stdout.readline() != b"ready\n":
                raise child.fault("did not start")
        return children

    def ask(self, child: Child, what: str) -> "Future[dict[str, Any]]":
        """What the process answers to "pass orders" or "replay orders"."""

        def answer() -> dict[str, Any]:
            child.process.stdin.write(f"{what}\n".encode())
            child.process.stdin.flush()
            return json.loads(child.process.stdout.readline())

        return self._pool.submit(answer)

    def await_batches(self, count: int, asked: "Future[dict[str, Any]]") -> None:
        """Wait until so many batches of what was asked stand before the gate, or more."""
        until(lambda: self.gate.waiting >= count or asked.done(), _SECONDS)
        assert not asked.done(), asked.result()


@pytest.fixture
def crew(deployment: Deployment) -> Iterator[Crew]:
    with ExitStack() as resources:
        yield Crew(deployment, resources)


def ledgered(deployment: Deployment, sync: str) -> int:
    """How many ids the days of the ledger hold, once no journal is left."""
    folder = f"syncs/{sync}/ledger"
    assert deployment.blobs(f"{folder}/journals/") == []
    return sum(blob.size for blob in deployment.container.list_blobs(f"{folder}/days/")) // DIGEST_BYTES


def assert_whole(deployment: Deployment, orders: int) -> None:
    """Each of so many orders is there once and was sent once; ledger and mark say the same, and nothing is to do."""
    assert deployment.run("orders").operations == 0
    assert sorted(event_ids(deployment)) == list(range(orders))
    stats = deployment.workspace.stats()
    assert (stats["duplicate_events_stored"], stats["duplicate_events_dropped"]) == (0, 0)
    assert ledgered(deployment, "orders") == orders
    assert json.loads(deployment.read("syncs/orders/mark.json"))["ledgered"] == orders


def test_of_processes_that_start_at_the_same_moment_one_works_and_the_others_say_so(deployment, crew):
    """Two of the deployment of before and two of the next one, which reads other pages; the first time, no mark is there."""
    make_tables(deployment.sql)
    workers = crew.start(10, 10, 25, 25)
    for start in range(0, 150, 30):
        add_orders(deployment.sql, range(start, start + 30))
        crew.gate.left = 0
        asked = [crew.ask(worker, "pass orders") for worker in workers]
        others = list(islice(as_completed(asked, timeout=_SECONDS), 3))
        for one in others:
            said = one.result()
            assert (said["outcome"], said["operations"]) == ("busy", 0)
            assert "Another pass of orders" in said["message"]
        crew.gate.left = inf
        (working,) = set(asked) - set(others)
        assert working.result(_SECONDS) == {"outcome": "ok", "message": "", "operations": 30}
    assert_whole(deployment, 150)


def test_processes_that_pass_again_and_again_while_rows_come_in_send_each_once(deployment, crew):
    make_tables(deployment.sql)
    workers = crew.start(10, 10, 25)
    said: list[dict[str, Any]] = []
    for start in range(0, 200, 20):
        add_orders(deployment.sql, range(start, start + 20))
        asked = [crew.ask(worker, "pass orders") for worker in workers]
        add_orders(deployment.sql, range(200 + start, 200 + start + 20))
        said += [one.result(_SECONDS) for one in asked]
    assert {one["outcome"] for one in said} == {"ok", "busy"}
    rest = deployment.run("orders").operations
    assert sum(one["operations"] for one in said) + rest == 400
    assert_whole(deployment, 400)


def test_a_replay_over_http_and_a_pass_do_not_work_at_the_same_time(deployment, crew):
    make_tables(deployment.sql)
    first, second = crew.start(10, 10)
    add_orders(deployment.sql, range(10))
    deployment.workspace.add_fault(reject_share=1, times=1)
    assert deployment.run("orders").dead_letters == 10

    add_orders(deployment.sql, range(10, 20))
    for at_work, other, refused in (
        ("pass orders", "replay orders", {"status": 409}),
        ("replay orders", "pass orders", {"outcome": "busy"}),
    ):
        crew.gate.left = 0
        working = crew.ask(first, at_work)
        crew.await_batches(1, working)
        said = crew.ask(second, other).result(_SECONDS)
        assert refused.items() <= said.items()
        assert "Another pass of orders is at work" in (said.get("message") or said["error"])
        crew.gate.left = inf
        done = working.result(_SECONDS)
        assert 10 in (done.get("operations"), done.get("delivered")), done
    assert deployment.dead_letters("orders") == []
    assert_whole(deployment, 20)


def second_of(sql: pyodbc.Connection) -> int:
    return int(sql.execute("SELECT DATEDIFF_BIG(second, '2026-01-01', SYSUTCDATETIME())").fetchval())


@pytest.mark.parametrize("sync", ["orders", "customers"])
def test_a_pass_that_stood_still_while_another_took_over_writes_no_mark_and_sends_only_what_was_on_its_way(
    deployment, crew, sync
):
    sql, gate = deployment.sql, crew.gate
    make_tables(sql)
    add_customers(sql, range(100))
    add_orders(sql, range(100))
    (worker,) = crew.start(10)
    gate.left = 3
    asked = crew.ask(worker, f"pass {sync}")
    crew.await_batches(2, asked)
    os.kill(worker.pid, signal.SIGSTOP)

    sql.execute("UPDATE shop.customers SET tier = 'vip'")
    sql.execute("UPDATE shop.orders SET total = 1")
    stopped = second_of(sql)
    until(lambda: second_of(sql) > stopped)  # a lease lasts a minute, and Customer.io compares seconds
    deployment.break_lease(sync)
    while (run := deployment.run(sync)).operations:
        assert run.outcome == "ok"
    mark = deployment.read(f"syncs/{sync}/mark.json")
    people = deployment.workspace.people()
    events = list(deployment.workspace.events())

    os.kill(worker.pid, signal.SIGCONT)
    gate.left = inf
    said = asked.result(_SECONDS)
    assert said["outcome"] == "failed"
    assert f"lease of syncs/{sync}/mark.json was lost" in said["message"]
    assert len(gate.came) == 5, "a batch that was not on its way yet"
    assert deployment.read(f"syncs/{sync}/mark.json") == mark
    assert deployment.workspace.people() == people
    assert list(deployment.workspace.events()) == events
    if sync == "customers":
        assert {person["tier"] for person in people.values()} == {"vip"}
        assert len(people) == 100
        assert deployment.run(sync).operations == 0
    else:
        late = {one["id"] for batch in gate.came[3:] for one in batch if one["action"] == "event"}
        assert late < {event["ulid"] for event in events}
        assert deployment.workspace.stats()["duplicate_events_dropped"] == len(late) == 20
        add_orders(sql, range(100, 101))
        assert deployment.run(sync).operations == 1
        assert sorted(event_ids(deployment)) == list(range(101))
        assert ledgered(deployment, sync) == 101
