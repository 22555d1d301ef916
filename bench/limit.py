"""What all the checks of a pass cost, against merely moving the same rows: the limit.

The limit reads `SELECT *` of the view through pyodbc, makes a dict and then JSON of each row, and posts as many rows a
request as a pass does, one request after another: no types, ids, ledger, limits or accounting. Each is a process of its
own, in turns, on the same rows and services; a sink takes what they send and only counts.

    python -m bench.limit pass|limit|converted SYNC [ROWS_A_REQUEST]    one of them; prints what it took
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from decimal import Decimal
from typing import Any

from local import driver

driver.register()

import httpx  # noqa: E402
import orjson  # noqa: E402
import psutil  # noqa: E402
import pyodbc  # noqa: E402
from azure.storage.blob import ContainerClient  # noqa: E402

from bench import Figure, environment, shop  # noqa: E402
from local.faults.stage import House  # noqa: E402
from local.services import REPOSITORY, Child  # noqa: E402
from shared import passes  # noqa: E402
from shared.settings import load  # noqa: E402
from shared.source import Source  # noqa: E402
from shared.syncs import find  # noqa: E402
from shared.view import View  # noqa: E402

ROWS = int(os.environ.get("BENCH_ROWS", "200000"))
_ROUNDS = int(os.environ.get("BENCH_ROUNDS", "5"))
_SYNCS = {"events": "orders", "profiles": "customers"}


def measure(house: House) -> Sequence[Figure]:
    """CPU and wall seconds of what each process does after its imports; ratios to the limit."""
    figures = [Figure("rows", ROWS)]
    with ExitStack() as resources:
        sink = resources.enter_context(Child([sys.executable, "-m", "bench.sink"], name="the sink"))
        url = f"http://127.0.0.1:{sink.read_ready()['port']}"
        connection_string = resources.enter_context(shop.opened(house, ROWS, ROWS))
        others = {"sql_server": psutil.Process(house.sql_server.pid), "sink": psutil.Process(sink.pid)}
        for name, sync in _SYNCS.items():
            figures += _measure(name, sync, house, connection_string, url, others)
    return figures


def _measure(
    name: str, sync: str, house: House, connection_string: str, url: str, others: dict[str, psutil.Process]
) -> Iterator[Figure]:
    taken: dict[str, list[dict[str, float]]] = {"limit": [], "converted": [], "pass": [], "idle": []}
    used: dict[str, float] = dict.fromkeys(others, 0.0)
    rows_a_request = 0
    for turn in range(_ROUNDS + 1):  # the first, which also tells how many rows a request has, is not counted
        order = ["pass", "limit", "converted"]
        for what in order if not turn or turn % 2 else reversed(order):
            deployment = environment(house, connection_string, url, FIRST_PASS="all")
            before = httpx.get(f"{url}/taken").json()
            cpu_before = {other: sum(process.cpu_times()[:2]) for other, process in others.items()}
            done = _run(what, sync, rows_a_request, deployment)
            if what == "pass":
                after = httpx.get(f"{url}/taken").json()
                assert (done["rows"], done["operations"]) == (ROWS, ROWS), done
                assert after["operations"] - before["operations"] == ROWS
                rows_a_request = ROWS // (after["requests"] - before["requests"])
                for other, process in others.items():
                    used[other] = sum(process.cpu_times()[:2]) - cpu_before[other]
                idle = _run("pass", sync, rows_a_request, deployment)
                assert idle["operations"] == 0
                if turn:
                    taken["idle"].append(idle)
                with ContainerClient.from_connection_string(house.azurite, deployment["STATE_CONTAINER"]) as container:
                    container.delete_container()
            if turn:
                taken[what].append(done)
    yield Figure(f"{name}_rows_a_request", rows_a_request)
    for choice, choose in (("median", statistics.median), ("best", min)):
        for what in taken:
            for unit in ("cpu", "wall"):
                yield Figure(f"{name}_{what}_{unit}_seconds_{choice}", _of(taken[what], unit, choose))
    for unit, goal in (("cpu", 1.33), ("wall", 1.15)):
        limit, ours = (_of(taken[what], unit, statistics.median) for what in ("limit", "pass"))
        is_goal = unit == "cpu" or name == "events"
        yield Figure(f"{name}_{unit}_vs_limit", ours / limit, at_most=goal if is_goal else None)
        converted = _of(taken["converted"], unit, statistics.median)
        yield Figure(f"{name}_{unit}_vs_converted", ours / converted)
    for other, seconds in used.items():
        yield Figure(f"{name}_{other}_cpu_seconds", seconds)


def _of(taken: Sequence[dict[str, float]], unit: str, choose: Callable[[Iterator[float]], float]) -> float:
    return choose(one[unit] for one in taken)


def _run(what: str, sync: str, rows_a_request: int, deployment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.limit", what, sync, str(rows_a_request)]
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, **deployment}, stdout=subprocess.PIPE, check=True)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@contextmanager
def timed() -> Iterator[dict[str, Any]]:
    """What the block takes of this process: `cpu` and `wall` seconds."""
    taken: dict[str, Any] = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield taken
    taken["wall"], taken["cpu"] = time.perf_counter() - wall, time.process_time() - cpu


def _pass(sync: str) -> dict[str, Any]:
    with timed() as taken:
        run = passes.run(find(sync))
    assert run.outcome == "ok", run.message
    return taken | {"rows": run.rows, "operations": run.operations}


def _plain(value: Any) -> Any:
    return float(value) if isinstance(value, Decimal) else value.hex()


def _limit(sync: str, rows_a_request: int, *, converted: bool) -> dict[str, Any]:
    settings = load()
    statement = f"SELECT * FROM retention.{sync}"
    if converted:
        with Source(settings) as source:
            statement, _ = View(find(sync), source.survey(find(sync)), settings).walk(None)
    url = settings.customerio_track_url
    auth = (settings.customerio_site_id, settings.customerio_api_key.get_secret_value())
    rows = 0
    with (
        timed() as taken,
        closing(pyodbc.connect(settings.sql_connection_string.get_secret_value(), autocommit=True)) as sql,
        httpx.Client(base_url=url or "", auth=auth, headers={"Content-Type": "application/json"}) as http,
    ):
        cursor = sql.execute(statement)
        names = [column[0] for column in cursor.description]
        while page := cursor.fetchmany(rows_a_request):
            body = orjson.dumps([dict(zip(names, row, strict=True)) for row in page], default=_plain)
            http.post("/api/v2/batch", content=body).raise_for_status()
            rows += len(page)
    assert rows == ROWS
    return taken | {"rows": rows}


if __name__ == "__main__":
    what, sync, rows_a_request = sys.argv[1], sys.argv[2], int(sys.argv[3])
    told = _pass(sync) if what == "pass" else _limit(sync, rows_a_request, converted=what == "converted")
    print(json.dumps(told))
