"""The full comparison of 1,000,000 customers of whom 1 % changed, against fetching `SELECT *` of the same view.

Both are processes of their own, in turns: one fetches all rows through pyodbc and drops them; the other walks,
compares, writes the fingerprints and sends the 10,000 who differ. SQL Server's stand-in and Azurite share the machine
with them; Customer.io is a sink that only counts.

    python -m bench.comparison fetch|compare    one of the two; prints what it took
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from local import driver

driver.register()

import pyodbc  # noqa: E402
from azure.storage.blob import ContainerClient  # noqa: E402

from bench import Figure, environment  # noqa: E402
from local.faults.stage import House  # noqa: E402
from local.services import REPOSITORY, Child  # noqa: E402
from shared import comparison, work  # noqa: E402
from shared.drift import Drift  # noqa: E402
from shared.fingerprints import Fingerprints  # noqa: E402
from shared.people import People  # noqa: E402
from shared.resync import Runs, Stage  # noqa: E402
from shared.run import account_digest  # noqa: E402
from shared.settings import load  # noqa: E402
from shared.source import Source  # noqa: E402
from shared.state import Identity, Mark, State  # noqa: E402
from shared.syncs import find  # noqa: E402
from shared.view import Position, View  # noqa: E402

PEOPLE = int(os.environ.get("BENCH_PEOPLE", "1000000"))
_ROUNDS = int(os.environ.get("BENCH_ROUNDS", "3"))
_CHANGED_PERCENT = 1
_CUSTOMERS = find("customers")
_VIEW = "SELECT * FROM retention.customers"


def measure(house: House) -> Sequence[Figure]:
    """Wall seconds of whole processes' work, without their start; memory is in MiB."""
    with ExitStack() as resources:
        sink = resources.enter_context(Child([sys.executable, "-m", "bench.sink"], name="the sink"))
        url = f"http://127.0.0.1:{sink.read_ready()['port']}"
        connection_string, sql = resources.enter_context(_customers(house))
        deployment = _deploy(house, connection_string, url)
        first = _run("compare", deployment)
        assert (first["sent"], first["compared"]) == (0, PEOPLE), first
        fetched: list[dict[str, Any]] = []
        compared: list[dict[str, Any]] = []
        for turn in range(_ROUNDS):
            sql.execute(f"UPDATE shop.customers SET tier = 'tier {turn}' WHERE customer_id % 100 = {turn}")
            for what in ("fetch", "compare") if turn % 2 else ("compare", "fetch"):
                done = _run(what, deployment)
                (fetched if what == "fetch" else compared).append(done)
                assert done.get("sent", 0) == (PEOPLE * _CHANGED_PERCENT // 100 if what == "compare" else 0), done
        ContainerClient.from_connection_string(house.azurite, deployment["STATE_CONTAINER"]).delete_container()
    figures = [Figure("people", PEOPLE), Figure("sent_a_night", compared[0]["sent"])]
    for name, choose in (("median", statistics.median), ("best", min)):
        one, other = (choose(done["seconds"] for done in taken) for taken in (fetched, compared))
        figures += [
            Figure(f"rows_a_second_select_{name}", PEOPLE / one),
            Figure(f"rows_a_second_comparison_{name}", PEOPLE / other),
            Figure(f"seconds_walk_{name}", choose(done["walk_seconds"] for done in compared)),
            Figure(f"select_rate_of_comparison_rate_{name}", other / one, at_most=1 / 0.7),
        ]
    figures += [
        Figure("first_night_seconds", first["seconds"]),
        Figure("select_peak_mb_highest", max(done["peak_mb"] for done in fetched)),
        Figure("comparison_peak_mb_highest", max(done["peak_mb"] for done in compared), at_most=300),
    ]
    return figures


@contextmanager
def _customers(house: House) -> Iterator[tuple[str, pyodbc.Connection]]:
    """A database with that many customers, of twelve columns."""
    name = f"bench_{uuid.uuid4().hex[:12]}"
    connection_string = house.sql_server.create_database(name)
    with closing(pyodbc.connect(connection_string, autocommit=True)) as sql:
        sql.execute("CREATE SCHEMA retention")
        sql.execute("CREATE SCHEMA shop")
        sql.execute(
            "CREATE TABLE shop.customers (customer_id int NOT NULL PRIMARY KEY, email nvarchar(320),"
            " first_name nvarchar(60), city nvarchar(60), country char(2), tier nvarchar(20), orders_count int,"
            " ltv decimal(12, 2), is_subscriber bit, created_at datetime2(0), last_order_at datetime2(0),"
            " row_version rowversion)"
        )
        sql.execute("CREATE VIEW retention.customers AS SELECT * FROM shop.customers")
        columns = (
            "customer_id, email, first_name, city, country, tier, orders_count, ltv, is_subscriber, created_at,"
            " last_order_at"
        )
        rows = ", ".join(
            f"({n}, 'customer{n}@example.com', 'Name{n % 97}', 'City of {n % 211}', 'DE', 'gold', {n % 40},"
            f" {n % 900}.5, {n % 2}, '2024-11-{1 + n % 28:02} 10:00:00', '2026-10-{1 + n % 28:02} 12:30:00')"
            for n in range(1000)
        )
        sql.execute(f"INSERT INTO shop.customers ({columns}) VALUES {rows}")
        count = 1000
        while count < PEOPLE:
            more = min(count, PEOPLE - count)
            sql.execute(
                f"INSERT INTO shop.customers ({columns}) SELECT customer_id + {count},"
                f" CONCAT('customer', customer_id + {count}, '@example.com'), first_name, city, country, tier,"
                " orders_count, ltv, is_subscriber, created_at, last_order_at"
                f" FROM shop.customers WHERE customer_id < {more}"
            )
            count += more
        yield connection_string, sql
    house.sql_server.drop_database(name)


def _deploy(house: House, connection_string: str, url: str) -> dict[str, str]:
    """The settings of a deployment whose customers are live, as if all had been sent."""
    settings_of_it = environment(house, connection_string, url)
    os.environ.update(settings_of_it)
    settings = load()
    with closing(State(settings)) as state, Source(settings) as source:
        survey = source.survey(_CUSTOMERS)
        identity = Identity("1", survey.server, survey.database)
        state.create()
        People(state).begin()
        state.remember(identity)
        Drift(state, View(_CUSTOMERS, survey, settings), settings, first=True).settle()
        position = Position(survey.bound, None)
        state.begin(_CUSTOMERS, Mark(identity, "row_version", position, account=account_digest(settings)))
    return settings_of_it


def _run(what: str, deployment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.comparison", what]
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **deployment}, stdout=subprocess.PIPE, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def _fetch() -> dict[str, Any]:
    with closing(pyodbc.connect(load().sql_connection_string.get_secret_value(), autocommit=True)) as sql:
        began = time.monotonic()
        cursor = sql.execute(_VIEW)
        rows = 0
        while fetched := cursor.fetchmany(5000):
            rows += len(fetched)
        assert rows == PEOPLE
        return {"seconds": time.monotonic() - began}


def _compare() -> dict[str, Any]:
    began = time.monotonic()
    comparison.nightly()
    settings = load()
    with closing(State(settings)) as state:
        head = Fingerprints(state).head()
        assert head
        run = head.last
        work.make_plan(json.dumps({"run": run}))
        walked = time.monotonic()
        for number in range(len(Runs(state).slices(run))):
            work.deliver_slice(json.dumps({"run": run, "slice": number}))
        seconds = time.monotonic() - began
    status = work.status(run)
    assert status["state"] == Stage.DONE, status
    return {
        "seconds": seconds,
        "walk_seconds": walked - began,
        "compared": status["plan"]["compared"],
        "sent": status["progress"].get("accepted", 0),
    }


if __name__ == "__main__":
    told = {"fetch": _fetch, "compare": _compare}[sys.argv[1]]()
    # ru_maxrss would count that of the parent, which this was forked from
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak
    print(json.dumps(told | {"peak_mb": int(peak[1]) / 1024}))
