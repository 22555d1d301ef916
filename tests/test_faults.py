"""The fault suite in its short version: nothing is lost, doubled or misreported, and where something is, it says so."""

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import httpx
import pyodbc
import pytest

from local.faults.__main__ import play, total
from local.faults.scenarios import SCENARIOS
from local.faults.shop import add_orders
from local.faults.stage import House, Stage, stage
from local.faults.verdict import Verdict, judge
from local.services import SqlServer
from shared.deadletters import DeadLetters, Failure
from shared.mapping import DIGEST_BYTES, event_ulid
from shared.syncs import find

SEED = 20261124


@pytest.fixture(scope="session")
def house(azurite, customerio, sql_server) -> House:
    if not isinstance(sql_server, SqlServer):
        pytest.skip("the faults of SQL Server are those of the stand-in")
    return House(sql_server, customerio, azurite)


@dataclass
class Damaged:
    stage: Stage
    before: Verdict

    def counts(self) -> tuple[int, int, int]:
        """How many more are lost, duplicated and misreported than before the test."""
        now = judge(self.stage)
        return (
            now.lost - self.before.lost,
            now.duplicated - self.before.duplicated,
            now.misreported - self.before.misreported,
        )


@pytest.fixture(scope="module")
def _rest(house: House) -> Iterator[Stage]:
    with stage(house, "at rest", "row_version", people=20, orders=30, clerks=0) as deployment:
        deployment.heal()
        assert judge(deployment) == Verdict(runs=4)
        yield deployment


@pytest.fixture
def rest(_rest: Stage) -> Damaged:
    """A small deployment at rest. The tests damage it one after the other, each something else."""
    return Damaged(_rest, judge(_rest))


def test_kills_and_faults_lose_double_and_misreport_nothing(house):
    verdicts = play(house, [one for one in SCENARIOS if one.short], SEED, short=True)
    totals = total(verdicts.values())
    assert totals.good, totals.told
    # all of it really happened
    assert all(verdict.kills or verdict.faults for verdict in verdicts.values()), verdicts
    assert totals.kills >= 8
    assert totals.faults >= 10
    assert totals.runs > 2 * totals.kills


def test_the_full_suite_kills_three_hundred_times_and_has_every_scenario_by_a_name_of_its_own():
    killing = ("kills", "merges_and_removals", "merges_and_removals_with_faults")
    assert sum(one.rounds for one in SCENARIOS if one.play.__name__ in killing) >= 300
    assert len({one.name for one in SCENARIOS}) == len(SCENARIOS)


def test_an_order_that_a_mark_has_passed_unsent_is_lost(rest):
    deployment = rest.stage
    add_orders(deployment.sql, range(100, 104), deployment.people, deployment.choose)
    bound = deployment.sql.execute("SELECT MIN_ACTIVE_ROWVERSION()").fetchval()
    mark = deployment.container.get_blob_client("syncs/orders/mark.json")
    stored = json.loads(mark.download_blob().readall())
    stored["position"] = {"cursor": "0x" + bound.hex().upper(), "key": None}
    mark.upload_blob(json.dumps(stored), overwrite=True)
    deployment.heal()
    assert rest.counts() == (4, 0, 0)


def test_a_person_who_is_not_as_in_sql_is_lost(rest):
    rest.stage.sql.execute("UPDATE shop.customers SET revision = 2 WHERE customer_id IN (3, 4)")
    assert rest.counts() == (2, 0, 0)


def test_an_event_that_is_sent_under_another_ulid_is_a_duplicate(rest):
    workspace = rest.stage.workspace
    event = next(workspace.events())
    operation = {
        "type": "person",
        "action": "event",
        "identifiers": {"id": event["person"]},
        "name": event["name"],
        "timestamp": event["timestamp"],
        "attributes": event["attributes"],
        "id": event_ulid(bytes(16), event["timestamp"]),
    }
    auth = (workspace.site_id, workspace.api_key)
    httpx.post(f"{workspace.url}/api/v2/batch", json={"batch": [operation]}, auth=auth).raise_for_status()
    assert rest.counts() == (0, 1, 0)


def test_an_event_that_arrived_and_has_a_dead_letter_is_misreported(rest):
    DeadLetters(rest.stage.container, find("orders"), "0" * 26).record([Failure("7", None, None, "rejected", "")])
    assert rest.counts() == (0, 0, 1)


def test_an_event_that_is_of_no_row_is_misreported(rest):
    rest.stage.sql.execute("DELETE FROM shop.orders WHERE order_id = 8")
    assert rest.counts() == (0, 0, 1)


def test_an_event_that_the_ledger_does_not_know_is_misreported(rest):
    container = rest.stage.container
    name = next(iter(container.list_blob_names(name_starts_with="syncs/orders/ledger/days/")))
    ids = len(container.download_blob(name).readall()) // DIGEST_BYTES
    container.delete_blob(name)
    assert rest.counts() == (0, 0, ids)


def test_a_pass_that_ends_on_what_nobody_foresaw_is_misreported(rest):
    rest.stage.unexpected.append("orders: Unexpected ValueError")
    assert rest.counts() == (0, 0, 1)


@pytest.mark.parametrize(
    ("fault", "state", "rows"),
    [
        ({"error": 1205, "after_rows": 150}, "40001", 100),
        ({"after_rows": 2500}, "08S01", 2400),
        ({"error": 1205}, "40001", 0),
        ({"at": "login", "error": 40613}, "42000", 0),
        ({"at": "login"}, "08S01", 0),
    ],
)
def test_sql_server_fails_on_request(house, database, sql, fault, state, rows):
    sql.execute("CREATE TABLE shop.facts (id int NOT NULL PRIMARY KEY, text nvarchar(100))")
    with closing(sql.cursor()) as cursor:
        cursor.fast_executemany = True
        cursor.executemany("INSERT INTO shop.facts VALUES (?, ?)", [(number, "x" * 90) for number in range(3000)])
    name = sql.execute("SELECT DB_NAME()").fetchval()
    command = f"EXEC sp_standin_faults N'{name}', N'{json.dumps([fault])}'"
    fetched = 0
    with closing(pyodbc.connect(house.sql_server.connection_string(), autocommit=True)) as master:
        assert master.execute(command).fetchval() == 0
        with pytest.raises(pyodbc.Error) as error, closing(pyodbc.connect(database, autocommit=True)) as connection:
            found = connection.execute("SELECT id, text FROM shop.facts ORDER BY id")
            while some := found.fetchmany(100):
                fetched += len(some)
        assert (error.value.args[0], fetched) == (state, rows)
        assert master.execute(f"EXEC sp_standin_faults N'{name}', N'[]'").fetchval() >= 1
    assert sql.execute("SELECT COUNT(*) FROM shop.facts").fetchval() == 3000


def test_the_clock_of_sql_server_moves_on_request(house, sql):
    name = sql.execute("SELECT DB_NAME()").fetchval()
    before = sql.execute("SELECT SYSUTCDATETIME()").fetchval()
    with closing(pyodbc.connect(house.sql_server.connection_string(), autocommit=True)) as master:
        master.execute(f"EXEC sp_standin_clock N'{name}', -300")
    moved = sql.execute("SELECT SYSUTCDATETIME()").fetchval() - before
    assert -300 <= moved.total_seconds() < -200


def test_a_wrong_verdict_is_a_bad_one():
    assert Verdict(runs=9, kills=9, resent_same_ulid=9).good
    for name in ("lost", "duplicated", "misreported"):
        assert not replace(Verdict(), **{name: 1}).good
