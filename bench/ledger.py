"""What a pass costs beside a ledger of 10,000,000 ids over two years, and beside an almost empty one.

Two deployments on the same services have a pass over 1,000 new orders each, in turns, in this process. Then 1,000
orders of 350 old days are edited, all of which are in the ledger, so nothing may be sent: every second day, so that
with their neighbours almost all days have to be read. Memory is that of passes in processes of their own.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pyodbc
from azure.storage.blob import ContainerClient

from bench import Figure, environment
from bench.blobs import blob_calls
from local.faults.shop import add_customers, open_shop
from local.faults.stage import House
from local.services import REPOSITORY
from shared import passes
from shared.ledger import SortedIds
from shared.mapping import DIGEST_BYTES
from shared.run import Run
from shared.settings import Settings
from shared.state import State
from shared.syncs import find

IDS = 10_000_000
DAYS = 730
_WARM_UP = 2
_ROUNDS = 25
_FEW_ROUNDS = 5
_NEW = _OLD = 1_000
_OLD_DAYS = 350
_PEOPLE = 1_000
_SEED = 1

_ORDERS = find("orders")


def measure(house: House) -> Sequence[Figure]:
    """`big` and `small` are the two ledgers. Seconds are those of whole passes, memory is in MiB."""
    with ExitStack() as resources:
        big = resources.enter_context(closing(Shop(house)))
        small = resources.enter_context(closing(Shop(house)))
        big.add_old_orders()
        for shop in (big, small):
            shop.run()
        big.fill_ledger()
        figures = [Figure("ids", big.ledgered()), *_new_orders(big, small), *_calls(big, small), *_old_orders(big)]
        assert not big.duplicates() and not small.duplicates()
    return figures


def _new_orders(big: Shop, small: Shop) -> Iterator[Figure]:
    cpu: defaultdict[Shop, list[float]] = defaultdict(list)
    wall: defaultdict[Shop, list[float]] = defaultdict(list)

    def one_pass(shop: Shop) -> None:
        shop.add_orders(_NEW)
        wall_before, cpu_before = time.monotonic(), time.process_time()
        run = shop.run()
        wall[shop].append(time.monotonic() - wall_before)
        cpu[shop].append(time.process_time() - cpu_before)
        assert (run.rows, run.accepted) == (_NEW, 2 * _NEW)  # with each event goes its person

    for turn in range(_WARM_UP + _ROUNDS):
        if turn == _WARM_UP:
            cpu.clear()
            wall.clear()
        for shop in (big, small) if turn % 2 else (small, big):
            one_pass(shop)
    for what, taken in (("cpu", cpu), ("wall", wall)):
        for name, choose in (("median", statistics.median), ("best", min)):
            yield Figure(f"new_{what}_seconds_big_{name}", choose(taken[big]))
            yield Figure(f"new_{what}_seconds_small_{name}", choose(taken[small]))
            yield Figure(f"new_{what}_ratio_{name}", choose(taken[big]) / choose(taken[small]), at_most=1.2)
    cpu.clear()
    for _ in range(_FEW_ROUNDS):
        big.delete_index()  # so that the days are listed, as by the first pass of a day
        one_pass(big)
    yield Figure("new_cpu_seconds_big_first_of_day_median", statistics.median(cpu[big]))


def _calls(big: Shop, small: Shop) -> Iterator[Figure]:
    """What the passes ask of blob storage; counted apart, since to count takes time."""
    for name, shop in (("big", big), ("small", small)):
        shop.add_orders(_NEW)
        with blob_calls() as calls:
            run = shop.run()
        yield Figure(f"new_blob_requests_{name}", calls.total() - calls["not 2xx"])
        yield Figure(f"new_days_read_{name}", calls["GET days"])
        yield Figure(f"new_days_written_{name}", calls["PUT days"])
        yield Figure(f"new_journal_blocks_a_page_{name}", calls["PUT journals block"] / run.pages)


def _old_orders(big: Shop) -> Iterator[Figure]:
    new, old = [], []
    for _ in range(_FEW_ROUNDS):
        big.add_orders(_NEW)
        new.append(big.run_as_process())
        big.edit_old_orders()
        old.append(big.run_as_process())
        assert old[-1]["already_sent"] == _OLD
    with blob_calls() as calls:
        big.edit_old_orders()
        big.run()
    yield Figure("edited_operations", sum(one["operations"] for one in old), at_most=0)
    yield Figure("edited_days_read", calls["GET days"])
    yield Figure("edited_seconds_median", statistics.median(one["seconds"] for one in old), at_most=10)
    yield Figure("edited_seconds_of_new_median", statistics.median(one["seconds"] for one in new))
    highest, lowest = max(one["peak_mb"] for one in old), min(one["peak_mb"] for one in new)
    yield Figure("edited_peak_mb_highest", highest)
    yield Figure("edited_peak_mb_of_new_lowest", lowest)
    yield Figure("edited_mb_more", highest - lowest, at_most=100)


class Shop:
    """A database, a workspace and a container of its own, with orders that are sent by passes."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._database = f"bench_{uuid.uuid4().hex[:12]}"
        connection_string = house.sql_server.create_database(self._database)
        self._sql = pyodbc.connect(connection_string, autocommit=True)
        open_shop(self._sql, "row_version")
        add_customers(self._sql, range(_PEOPLE))
        self._orders = 0
        self._workspace = house.customerio.create_workspace(region="us", lag_seconds=0)
        self._container = ContainerClient.from_connection_string(house.azurite, self._database.replace("_", "-"))
        self._environment = environment(
            house,
            connection_string,
            self._workspace.url,
            CUSTOMERIO_SITE_ID=self._workspace.site_id,
            CUSTOMERIO_API_KEY=self._workspace.api_key,
            STATE_CONTAINER=self._container.container_name,
            FIRST_PASS="all",
        )
        by_field = {name.lower() if name.isupper() else name: text for name, text in self._environment.items()}
        self._settings = Settings(**by_field)  # type: ignore[arg-type]

    def close(self) -> None:
        """Close the connections and drop the database."""
        self._container.close()
        self._sql.close()
        self._house.sql_server.drop_database(self._database)

    def run(self) -> Run:
        """One pass of orders, in this process."""
        return passes.run(_ORDERS, self._settings)

    def run_as_process(self) -> dict[str, Any]:
        """One pass of orders in a process of its own; what it came to, see worker."""
        command = [sys.executable, "-m", "bench.worker", _ORDERS.name]
        environment = {**os.environ, **self._environment}
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, check=True)
        told: dict[str, Any] = json.loads(done.stdout)
        return told

    def add_orders(self, count: int, spread: timedelta = timedelta(0), days: int = 1) -> None:
        """Orders that are paid now, or one `spread` or more ago, on so many days."""
        now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
        rows = []
        for number in range(self._orders, self._orders + count):
            at = now - spread * (1 + number % days)
            rows.append(f"({number}, {number % _PEOPLE}, '{at.isoformat(sep=' ')}', {number % 500}.99)")
        self._sql.execute(f"INSERT INTO shop.orders (order_id, customer_id, paid_at, total) VALUES {', '.join(rows)}")
        self._orders += count

    def add_old_orders(self) -> None:
        """The first orders, on every second day of the past."""
        self.add_orders(_OLD, timedelta(days=2), _OLD_DAYS)

    def edit_old_orders(self) -> None:
        """Each of the first orders gets a new row version."""
        self._sql.execute("UPDATE shop.orders SET total = total + 1 WHERE order_id < ?", _OLD)

    def fill_ledger(self) -> None:
        """Random ids, evenly over the days, beside those that are there; and the mark knows of them."""
        choose = random.Random(_SEED)
        today = datetime.now(UTC).date()
        missing = IDS - self.ledgered()
        prefix = f"syncs/{_ORDERS.name}/ledger/days/"

        for day in range(DAYS):
            share = missing * (day + 1) // DAYS - missing * day // DAYS
            ids = [*SortedIds(choose.randbytes(share * DIGEST_BYTES))]
            blob = self._container.get_blob_client(f"{prefix}{today - timedelta(days=day)}")
            if blob.exists():
                ids += SortedIds(blob.download_blob().readall())
            blob.upload_blob(b"".join(sorted(ids)), overwrite=True)
        with closing(State(self._settings)) as state, state.claim(_ORDERS) as claim:
            claim.save(replace(claim.mark, ledgered=IDS))

    def delete_index(self) -> None:
        """The ledger makes it anew from the days."""
        self._container.delete_blob(f"syncs/{_ORDERS.name}/ledger/index")

    def ledgered(self) -> int:
        """How many ids the ledger's days hold."""
        return sum(day.size for day in self._container.list_blobs(f"syncs/{_ORDERS.name}/ledger/days/")) // DIGEST_BYTES

    def duplicates(self) -> int:
        """How many events Customer.io got a second time."""
        stats = self._workspace.stats()
        count: int = stats["duplicate_events_stored"] + stats["duplicate_events_dropped"]
        return count
