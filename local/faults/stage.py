"""One deployment against a shop, a workspace and a container of its own: passes, kills, faults, and how it heals."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

import pyodbc
from azure.core.exceptions import AzureError
from azure.storage.blob import BlobLeaseClient, ContainerClient

from local.customerio.control import CustomerioStandin, Workspace
from local.faults.doomed import Doomed
from local.faults.proxy import CustomerioProxy, Fault, Proxy
from local.faults.shop import Clerk, Cursor, add_customers, add_orders, open_shop
from local.services import Child, SqlServer

_PASS_SECONDS = 180.0
_HEALING_SECONDS = 240.0


@dataclass(frozen=True, slots=True)
class House:
    """The services that all scenarios share."""

    sql_server: SqlServer
    customerio: CustomerioStandin
    azurite: str

    @property
    def blob_port(self) -> int:
        """Where Azurite answers for blobs."""
        found = re.search(r"BlobEndpoint=http://127\.0\.0\.1:(\d+)/", self.azurite)
        assert found
        return int(found[1])


@dataclass(frozen=True, slots=True)
class Kill:
    """When a process meets kill -9: `by` time, after `at` seconds of its pass; else with its `at`-th request to blob
    storage or to Customer.io from its pass's start, before that is forwarded or once it is done.
    """

    by: Literal["time", "blob", "customerio"]
    at: float
    forwarded: bool = False

    @classmethod
    def at_random(cls, choose: random.Random) -> Kill:
        """Some moment of a pass. Most passes of a scenario are short."""
        match choose.choice(("time", "blob", "blob", "customerio")):
            case "time":
                return cls("time", choose.uniform(0.02, 0.8))
            case "blob":
                return cls("blob", 1 + int(choose.expovariate(1 / 8)), choose.random() < 0.5)
            case _:
                return cls("customerio", 1 + int(choose.expovariate(1 / 3)), choose.random() < 0.5)


@dataclass(frozen=True, slots=True)
class Pass:
    """What a pass came to; `outcome` is "killed" where it did not end by itself."""

    outcome: str
    message: str = ""
    operations: int = 0

    @property
    def idle(self) -> bool:
        """Whether all was well and nothing to do."""
        return self.outcome == "ok" and not self.operations


class Stage:
    """A deployment of Tidemark and everything around it. Made by `stage()`."""

    def __init__(
        self,
        house: House,
        seed: str,
        cursor: Cursor,
        syncs: Sequence[str],
        doomed: Doomed,
        people: int,
        orders: int,
        clerks: int,
        resources: ExitStack,
    ) -> None:
        self.choose = random.Random(seed)
        self.cursor = cursor
        self.syncs = syncs
        self.people = people
        self.orders = orders
        self.doomed = doomed
        self.runs = self.kills = self.sql_struck = 0
        self.unexpected: list[str] = []
        self._counting = threading.Lock()
        name = f"faults_{uuid.uuid4().hex[:12]}"
        self.database = name
        connection_string = house.sql_server.create_database(name)
        resources.callback(house.sql_server.drop_database, name)
        self._master = resources.enter_context(
            closing(pyodbc.connect(house.sql_server.connection_string(), autocommit=True))
        )
        self.sql = resources.enter_context(closing(pyodbc.connect(connection_string, autocommit=True)))
        open_shop(self.sql, cursor)
        add_customers(self.sql, range(people))
        add_orders(self.sql, range(orders), people, self.choose)
        self.workspace: Workspace = house.customerio.create_workspace(region="us", lag_seconds=0, latency_seconds=0.01)
        self.container = resources.enter_context(
            ContainerClient.from_connection_string(house.azurite, name.replace("_", "-"))
        )
        self.blobs: Proxy = resources.enter_context(Proxy(house.blob_port))
        upstream = urlsplit(self.workspace.url).port
        assert upstream
        self.customerio: CustomerioProxy = resources.enter_context(CustomerioProxy(upstream, doomed))
        url = f"http://127.0.0.1:{self.customerio.port}"
        self._environment = {
            **os.environ,
            "SQL_CONNECTION_STRING": connection_string,
            "CUSTOMERIO_REGION": self.workspace.region,
            "CUSTOMERIO_SITE_ID": self.workspace.site_id,
            "CUSTOMERIO_API_KEY": self.workspace.api_key,
            "CUSTOMERIO_APP_API_KEY": self.workspace.app_api_key,
            "CUSTOMERIO_TRACK_URL": url,
            "CUSTOMERIO_APP_URL": url,
            "CUSTOMERIO_REQUESTS_PER_SECOND": "1000",
            "CUSTOMERIO_BATCHES_IN_FLIGHT": "2",
            "AzureWebJobsStorage": house.azurite.replace(f":{house.blob_port}/", f":{self.blobs.port}/"),
            "STATE_CONTAINER": self.container.container_name,
            "FIRST_PASS": "all",
            "PAGE_SIZE": "25",
            "LOOKBACK_SECONDS": "60",
            # a scenario's changes are meant, however many
            "MASS_CHANGE_PERCENT": "100",
            "EMPTIED_PERCENT": "100",
        }
        self._clerks = [
            Clerk(connection_string, cursor, self.choose.randrange(10**9), number, people, orders)
            for number in range(clerks)
        ]
        for clerk in self._clerks:
            clerk.start()
        resources.callback(self.send_clerks_home)

    # --- passes -------------------------------------------------------------------------------------------------------

    def run(
        self,
        sync: str,
        kill: Kill | None = None,
        *,
        ahead: int = 0,
        break_lease: bool = True,
        pausing: Callable[[Child], None] | None = None,
    ) -> Pass:
        """One pass as a process. After a kill its lease is broken, once the process is seen dead, if that is wanted.

        `pausing` is called with the process right after its start.
        """
        command = [sys.executable, "-m", "local.faults.worker", sync, "--ahead", str(ahead)]
        with self._counting:
            self.runs += 1
        with Child(command, name=f"a pass of {sync}", env=self._environment) as child:
            assert child.process.stdout
            if not child.process.stdout.readline():  # a quick pass has said its last line before the first is read
                child.process.wait()
                raise child.fault("ended while starting")
            if pausing:
                pausing(child)
            timeout = _PASS_SECONDS
            proxy: Proxy = self.blobs if kill and kill.by == "blob" else self.customerio
            if kill and kill.by == "time":
                timeout = kill.at
            elif kill:
                proxy.at(int(kill.at), Fault(forwarded=kill.forwarded, then=child.process.kill))
            try:
                child.process.wait(timeout)
            except subprocess.TimeoutExpired:
                child.kill()
                if timeout == _PASS_SECONDS:
                    self.unexpected.append(f"A pass of {sync} did not end within {_PASS_SECONDS:.0f} s.")
            if kill:
                proxy.forget()
            if child.process.returncode == -signal.SIGKILL:
                with self._counting:
                    self.kills += 1
                if break_lease:
                    self.break_lease(sync)
                return Pass("killed")
            if child.process.returncode:
                raise child.fault("ended with an error")
            ended = Pass(**json.loads(child.process.stdout.read()))
        if "Unexpected" in ended.message:
            self.unexpected.append(f"{sync}: {ended.message}")
        return ended

    def together(self, *passes: tuple[str, Kill | None]) -> list[Pass]:
        """Several passes at once."""
        with ThreadPoolExecutor(len(passes)) as pool:
            return list(pool.map(lambda one: self.run(*one), passes))

    def break_lease(self, sync: str) -> None:
        """Take the lease from a process that was seen dead, instead of waiting for its minute to end."""
        with suppress(AzureError):
            BlobLeaseClient(self.container.get_blob_client(f"syncs/{sync}/mark.json")).break_lease(0)

    # --- faults -------------------------------------------------------------------------------------------------------

    def sql_faults(self, *faults: dict[str, Any]) -> None:
        """The faults of SQL Server from now on; see local/sqlserver/faults.py."""
        command = f"EXEC sp_standin_faults N'{self.database}', N'{json.dumps(faults)}'"
        self.sql_struck = self._master.execute(command).fetchval()

    def sql_clock(self, ahead: int) -> None:
        """By how many seconds SQL Server's clock is ahead from now on."""
        self._master.execute(f"EXEC sp_standin_clock N'{self.database}', {ahead}").fetchval()

    @property
    def struck(self) -> int:
        """How many faults have struck so far, kills aside."""
        statuses = self.workspace.stats()["requests_by_status"]
        refused: int = sum(count for status, count in statuses.items() if status not in ("200", "207"))
        return self.sql_struck + self.blobs.struck + self.customerio.struck + self.customerio.refused + refused

    def send_clerks_home(self) -> None:
        """Nobody changes the tables any more."""
        clerks, self._clerks = self._clerks, []
        for clerk in clerks:
            clerk.go_home()

    # --- healing ------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """No more faults and no more changes; then passes, until each of a round is well and has nothing to do."""
        self.send_clerks_home()
        self.sql_faults()
        self.sql_clock(0)
        self.workspace.clear_faults()
        self.workspace.configure(latency_seconds=0)
        self.blobs.clear()
        self.customerio.clear()
        deadline = time.monotonic() + _HEALING_SECONDS
        while True:
            ended = {sync: self.run(sync) for sync in self.syncs}
            if all(one.idle for one in ended.values()):
                return
            if time.monotonic() > deadline:
                self.unexpected += [f"{sync} does not heal: {one}" for sync, one in ended.items() if not one.idle]
                return
            if any(one.outcome not in ("ok", "budget") for one in ended.values()):
                time.sleep(1)


@contextmanager
def stage(
    house: House,
    seed: str,
    cursor: Cursor,
    *,
    syncs: Sequence[str] = ("customers", "orders"),
    doomed: Doomed | None = None,
    people: int,
    orders: int,
    clerks: int = 2,
) -> Iterator[Stage]:
    """A deployment with so many people and orders, and clerks at work."""
    with ExitStack() as resources:
        yield Stage(house, seed, cursor, syncs, doomed or Doomed(0), people, orders, clerks, resources)
