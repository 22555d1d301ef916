"""The scenarios: what happens to a deployment before it heals. Each draws everything that it does from its seed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from local.faults.doomed import Doomed
from local.faults.proxy import Fault, Faults
from local.faults.shop import Cursor, merge, remove
from local.faults.stage import House, Kill, Stage, stage
from local.faults.verdict import Verdict, judge
from local.services import Child

_EVERYTHING = ("customers", "orders", "merges", "removals")

BLOB_FAULTS = (
    Fault(409, "LeaseAlreadyPresent"),
    Fault(412, "ConditionNotMet"),
    Fault(500, "InternalError"),
    Fault(500, "OperationTimedOut", forwarded=True),
    Fault(503, "ServerBusy"),
    Fault(),
    Fault(forwarded=True),
    Fault(503, "ServerBusy", forwarded=True),
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """`play` gets the stage and the number of rounds, or of kills; `short` is that number in the short version, 0 where
    it has no part in it. `doomed` is the percentage of operations that Customer.io refuses for good.
    """

    name: str
    cursor: Cursor
    play: Callable[[Stage, int], None]
    rounds: int
    short: int = 0
    syncs: Sequence[str] = ("customers", "orders")
    doomed: float = 0.0

    def run(self, house: House, seed: int, *, short: bool = False) -> Verdict:
        """Play, heal and judge."""
        people, orders = (100, 150) if short else (300, 600)
        with stage(
            house,
            f"{seed} {self.name}",
            self.cursor,
            syncs=self.syncs,
            doomed=Doomed(seed, self.doomed),
            people=people,
            orders=orders,
        ) as deployment:
            self.play(deployment, self.short if short else self.rounds)
            deployment.heal()
            return judge(deployment)


def kills(stage: Stage, count: int) -> None:
    """Kill -9, again and again; now and then two passes at once, of one sync or of two."""
    for _ in range(4 * count):
        if stage.kills >= count:
            return
        sync = stage.choose.choice(stage.syncs)
        if stage.choose.random() < 0.2:
            other = stage.choose.choice(stage.syncs)
            stage.together((sync, Kill.at_random(stage.choose)), (other, None))
        else:
            stage.run(sync, Kill.at_random(stage.choose))


def refusals(stage: Stage, count: int) -> None:
    """Some operations are refused for good, by 207 or 400, while answers get lost and processes are killed."""
    for number in range(count):
        stage.customerio.whole = number % 2 == 1
        stage.workspace.clear_faults()
        stage.workspace.add_fault(reset="after", share=0.1, seed=stage.choose.randrange(10**6))
        kill = Kill.at_random(stage.choose) if stage.choose.random() < 0.5 else None
        stage.run(stage.choose.choice(stage.syncs), kill)


def storms(stage: Stage, count: int) -> None:
    """429, with and without Retry-After."""
    for _ in range(count):
        storm_at_customerio(stage)
        stage.run(stage.choose.choice(stage.syncs))


def storm_at_customerio(stage: Stage) -> None:
    choose = stage.choose
    stage.workspace.clear_faults()
    if choose.random() < 0.5:
        stage.workspace.add_fault(status=429, retry_after=1, times=choose.randint(1, 4))
    stage.workspace.add_fault(status=429, times=choose.randint(1, 4))
    stage.workspace.add_fault(status=429, share=0.15, seed=choose.randrange(10**6))


def failures(stage: Stage, count: int) -> None:
    """500s, resets, lost and slow answers, once slower than the client waits for."""
    for number in range(count):
        failures_at_customerio(stage)
        if number == 4:
            stage.workspace.add_fault(delay_seconds=32, times=1)
        stage.run(stage.choose.choice(stage.syncs))


def failures_at_customerio(stage: Stage) -> None:
    choose = stage.choose
    stage.workspace.clear_faults()
    for fault in (
        {"status": 500},
        {"status": 500, "accepted": True},
        {"reset": "before"},
        {"reset": "after"},
        {"delay_seconds": 1.5},
        {"delay_seconds": 1.5, "reset": "after"},
    ):
        stage.workspace.add_fault(**fault, share=0.06, seed=choose.randrange(10**6))


def sql_failures(stage: Stage, count: int) -> None:
    """Deadlocks and lost connections in the middle of a page, and a server that lets nobody in, once for a while."""
    for number in range(count):
        failures_at_sql_server(stage)
        if number == 4:
            stage.sql_faults({"at": "login", "error": 40613})
            threading.Timer(12, stage.sql_faults).start()
        stage.run(stage.choose.choice(stage.syncs))


def failures_at_sql_server(stage: Stage) -> None:
    choose = stage.choose
    stage.sql_faults(
        {"at": "login", "error": 40613, "every": choose.randint(2, 4)},
        {"at": "login", "every": choose.randint(3, 5)},
        {"containing": "INFORMATION_SCHEMA", "error": 1205, "every": 3},
        {"containing": "[retention]", "error": 1205, "after_rows": choose.randint(0, 200), "every": 2, "times": 3},
        {"containing": "[retention]", "after_rows": choose.randint(0, 200), "every": 2, "times": 3},
    )


def blob_failures(stage: Stage, count: int) -> None:
    """409, 412, 500 and 503 of blob storage, and answers of it that are lost; now and then with a kill."""
    for _ in range(count):
        failures_at_blob_storage(stage, 0.05)
        kill = Kill.at_random(stage.choose) if stage.choose.random() < 0.3 else None
        stage.run(stage.choose.choice(stage.syncs), kill)


def failures_at_blob_storage(stage: Stage, share: float) -> None:
    stage.blobs.decide = Faults(stage.choose.randrange(10**9), share, BLOB_FAULTS)


def sql_clock_jumps(stage: Stage, count: int) -> None:
    """The clock of SQL Server jumps by minutes, and passes are killed.

    By updated_at, what is written while the clock goes by more than the lookback after the mark can only be found by a
    pass that reads while it does: so each jump is followed by a whole pass before the next.
    """
    for _ in range(count):
        stage.sql_clock(stage.choose.choice((0, -40, 40, -200, 200)))
        stage.run(stage.choose.choice(stage.syncs), Kill.at_random(stage.choose))
        for sync in stage.syncs:
            while stage.run(sync).outcome != "ok":
                pass


def machine_clock_jumps(stage: Stage, count: int) -> None:
    """The clocks of the machines that passes run on do not agree by minutes, and passes are killed."""
    for _ in range(count):
        kill = Kill.at_random(stage.choose) if stage.choose.random() < 0.3 else None
        stage.run(stage.choose.choice(stage.syncs), kill, ahead=stage.choose.choice((0, 0, -200, 200)))


def merges_and_removals(stage: Stage, count: int) -> None:
    """People are merged and removed while everything else goes on about them, and processes are killed."""
    for sync in stage.syncs:
        stage.run(sync)
    people = list(range(stage.people))
    stage.choose.shuffle(people)
    number = 0
    for _ in range(4 * count):
        if stage.kills >= count:
            return
        for _ in range(2):
            if len(people) > 3:
                number += 1
                merge(stage.sql, number, people.pop(), people.pop())
                remove(stage.sql, number, people.pop(), stage.choose.choice(("delete", "suppress")))
        sync, other = stage.choose.sample(list(stage.syncs), 2)
        stage.together((sync, Kill.at_random(stage.choose)), (other, None))


def merges_and_removals_with_faults(stage: Stage, count: int) -> None:
    """The same, while nothing works as it should."""
    failures_at_customerio(stage)
    failures_at_blob_storage(stage, 0.02)
    merges_and_removals(stage, count)


def everything(stage: Stage, count: int) -> None:
    """All at once."""
    for _ in range(count):
        stage.customerio.whole = stage.choose.random() < 0.5
        failures_at_customerio(stage)
        failures_at_blob_storage(stage, 0.02)
        failures_at_sql_server(stage)
        kill = Kill.at_random(stage.choose) if stage.choose.random() < 0.6 else None
        stage.together((stage.choose.choice(stage.syncs), kill), (stage.choose.choice(stage.syncs), None))


def lease_expiry(stage: Stage, count: int) -> None:
    """A killed pass whose lease nobody breaks: the next ones say so and end well, until it ends by itself."""
    for _ in range(count):
        stage.run("orders", Kill("customerio", 2), break_lease=False)
        deadline = time.monotonic() + 90
        busy = 0
        while (ended := stage.run("orders")).outcome == "busy" and time.monotonic() < deadline:
            busy += 1
            stage.run("customers")
            time.sleep(4)
        if ended.outcome != "ok" or not busy:
            stage.unexpected.append(f"The lease of a killed pass: {busy} passes were busy, then {ended}.")


def pauses(stage: Stage, count: int) -> None:
    """A pass that stands still for longer than its lease lasts, while others go on, and then wakes up."""
    for _ in range(count):
        asleep = threading.Event()

        def sleep_at(child: Child, request: int, asleep: threading.Event = asleep) -> None:
            def fall_asleep() -> None:
                child.process.send_signal(signal.SIGSTOP)
                asleep.set()
                threading.Timer(66, wake_up).start()

            def wake_up() -> None:
                with suppress(ProcessLookupError):
                    child.process.send_signal(signal.SIGCONT)

            stage.customerio.at(request, Fault(forwarded=True, then=fall_asleep))

        moment = stage.choose.randint(1, 3)
        sleeper = threading.Thread(
            target=lambda moment=moment: stage.run("orders", pausing=lambda child: sleep_at(child, moment))
        )
        sleeper.start()
        asleep.wait(30)
        while sleeper.is_alive():
            stage.run("orders")
            time.sleep(2)
        sleeper.join()


SCENARIOS = (
    Scenario("kills, row_version", "row_version", kills, 120, short=4),
    Scenario("kills, updated_at", "updated_at", kills, 120, short=4),
    Scenario("refusals, row_version", "row_version", refusals, 24, short=2, doomed=1),
    Scenario("refusals, updated_at", "updated_at", refusals, 24, doomed=1),
    Scenario("429 storms", "row_version", storms, 8),
    Scenario("Customer.io fails, row_version", "row_version", failures, 12),
    Scenario("Customer.io fails, updated_at", "updated_at", failures, 12),
    Scenario("SQL Server fails, row_version", "row_version", sql_failures, 12),
    Scenario("SQL Server fails, updated_at", "updated_at", sql_failures, 12, short=1),
    Scenario("blob storage fails, row_version", "row_version", blob_failures, 24, short=2),
    Scenario("blob storage fails, updated_at", "updated_at", blob_failures, 24),
    Scenario("clock of SQL Server jumps, row_version", "row_version", sql_clock_jumps, 8),
    Scenario("clock of SQL Server jumps, updated_at", "updated_at", sql_clock_jumps, 8),
    Scenario("clock of a machine jumps, row_version", "row_version", machine_clock_jumps, 16),
    Scenario("clock of a machine jumps, updated_at", "updated_at", machine_clock_jumps, 16),
    Scenario("merges and removals, row_version", "row_version", merges_and_removals, 25, syncs=_EVERYTHING),
    Scenario("merges and removals, updated_at", "updated_at", merges_and_removals, 25, syncs=_EVERYTHING),
    Scenario("merges and removals with faults", "row_version", merges_and_removals_with_faults, 12, syncs=_EVERYTHING),
    Scenario("everything, row_version", "row_version", everything, 12, doomed=1),
    Scenario("everything, updated_at", "updated_at", everything, 12, doomed=1),
    Scenario("a lease that nobody breaks", "row_version", lease_expiry, 1),
    Scenario("a pass that stands still", "row_version", pauses, 2),
)
