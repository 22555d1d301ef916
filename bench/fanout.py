"""Two workers against one: a resync of 500,000 events, while Customer.io answers after 100 ms, as over the internet.

A worker is a process that takes slices from the real queue, one at a time, as the platform's instances do. SQL Server's
stand-in and Azurite share the machine with them; Customer.io is a sink that only counts.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import httpx
import pyodbc
from azure.storage.blob import ContainerClient

from bench import Figure, environment
from bench.blobs import blob_calls
from local.faults.shop import open_shop
from local.faults.stage import House
from local.services import Child
from shared import passes, work
from shared.resync import Runs, Stage
from shared.settings import load
from shared.state import State
from shared.syncs import find

EVENTS = 500_000
_DELAY = 0.1
_ROUNDS = 3


def measure(house: House) -> Sequence[Figure]:
    """Wall seconds of whole resyncs, from the approval to the end."""
    with ExitStack() as resources:
        sink = resources.enter_context(
            Child([sys.executable, "-m", "bench.sink", "--delay", str(_DELAY)], name="the sink")
        )
        url = f"http://127.0.0.1:{sink.read_ready()['port']}"
        connection_string = resources.enter_context(_orders(house))
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(_ROUNDS):
            for workers in (1, 2) if turn % 2 else (2, 1):
                seconds[workers].append(_resync(house, connection_string, url, workers))
        taken = httpx.get(f"{url}/taken").json()
        blob_requests = _blob_requests(house, connection_string, url)
    figures = [
        Figure("events", EVENTS),
        Figure("events_a_request", taken["operations"] / taken["requests"]),
        Figure("blob_requests_a_slice_of_50000", blob_requests),
    ]
    for name, choose in (("median", statistics.median), ("best", min)):
        one, two = choose(seconds[1]), choose(seconds[2])
        figures += [
            Figure(f"seconds_one_worker_{name}", one),
            Figure(f"seconds_two_workers_{name}", two),
            Figure(f"ratio_{name}", two / one, at_most=0.75),
        ]
    return figures


@contextmanager
def _orders(house: House) -> Iterator[str]:
    """A database with that many orders, spread over two years."""
    name = f"bench_{uuid.uuid4().hex[:12]}"
    connection_string = house.sql_server.create_database(name)
    with closing(pyodbc.connect(connection_string, autocommit=True)) as sql:
        open_shop(sql, "row_version")
        sql.execute(
            "INSERT INTO shop.orders (order_id, customer_id, paid_at, total) VALUES "
            + ", ".join(f"({n}, {n % 20_000}, '2024-11-01', {n % 500}.99)" for n in range(1000))
        )
        count = 1000
        while count < EVENTS:
            more = min(count, EVENTS - count)
            sql.execute(
                "INSERT INTO shop.orders (order_id, customer_id, paid_at, total)"
                f" SELECT order_id + {count}, (order_id + {count}) % 20000,"
                f" DATEADD(minute, (order_id + {count}) % 1000000, CAST('2024-11-01' AS datetime2(0))), total"
                f" FROM shop.orders WHERE order_id < {more}"
            )
            count += more
    yield connection_string
    house.sql_server.drop_database(name)


def _blob_requests(house: House, connection_string: str, url: str) -> float:
    """What one slice of the default size asks of blob storage, on average of the first three; counted, not timed."""
    deployment = environment(house, connection_string, url)
    os.environ.update(deployment)
    asked = work.ask("go-live", {"syncs": ["orders"]})
    work.make_plan(f'{{"run": "{asked.run}"}}')
    work.approve(asked.run)
    with blob_calls() as calls:
        for number in range(3):
            work.deliver_slice(f'{{"run": "{asked.run}", "slice": {number}}}')
    work.cancel(asked.run)
    return calls.total() / 3


def _resync(house: House, connection_string: str, url: str, workers: int) -> float:
    deployment = environment(house, connection_string, url, RESYNC_SLICE_ROWS="25000")
    os.environ.update(deployment)
    before = httpx.get(f"{url}/taken").json()
    asked = work.ask("go-live", {"syncs": ["orders"]})
    work.make_plan(f'{{"run": "{asked.run}"}}')
    assert work.status(asked.run)["state"] == Stage.AWAITING, work.status(asked.run)
    command = [sys.executable, "-m", "bench.slices", asked.run]
    with ExitStack() as resources:
        children = [
            resources.enter_context(Child(command, name="a worker", stdout=subprocess.PIPE)) for _ in range(workers)
        ]
        for child in children:
            child.read_ready()
        began = time.monotonic()
        work.approve(asked.run)
        with closing(State(load())) as state:
            runs = Runs(state)
            while runs.read(asked.run).state is Stage.RUNNING:
                time.sleep(0.1)
        seconds = time.monotonic() - began
    status = work.status(asked.run)
    assert status["state"] == Stage.DONE and status["progress"]["accepted"] == EVENTS, status
    after = httpx.get(f"{url}/taken").json()
    assert after["operations"] - before["operations"] == EVENTS
    assert passes.run(find("orders")).operations == 0
    ContainerClient.from_connection_string(house.azurite, deployment["STATE_CONTAINER"]).delete_container()
    return seconds
