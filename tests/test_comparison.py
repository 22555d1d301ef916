"""The full comparison: it sends who differs from what was last sent, and nobody else; and what waits for a person."""

import json
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import function_app
from shared.errors import SurgeStop
from tests.conftest import Deployment
from tests.test_passes import add_customers, bulk
from tests.test_resync import Worker, call, shop, worker  # noqa: F401

Shop = Deployment


def timer() -> None:
    function_app.comparison.build().get_user_function()(None)


def compared(shop: Shop, worker: Worker, *, slices: bool = True) -> dict[str, Any]:  # noqa: F811
    """The run of a night; with its slices, where it needs no approval."""
    timer()
    if slices:
        worker.work()
    else:
        while worker.one("plans", "make_plan"):
            pass
    return last(shop)


def last(shop: Shop) -> dict[str, Any]:  # noqa: F811
    told: dict[str, Any] = call("run", run=json.loads(shop.read("fingerprints/head.json"))["last"])[1]
    return told


def approve(worker: Worker, run: str) -> dict[str, Any]:  # noqa: F811
    assert call("decide", run=run, decision="approve")[0] == 200
    worker.work()
    told: dict[str, Any] = call("run", run=run)[1]
    return told


class Night:
    """What operations a block of calls has sent."""

    def __init__(self, shop: Shop) -> None:  # noqa: F811
        self._shop = shop
        self._before = self._count()

    def _count(self) -> int:
        count: int = self._shop.workspace.stats()["operations"]
        return count

    @property
    def sent(self) -> int:
        return self._count() - self._before


def lost_update(shop: Shop, numbers: range, tier: str) -> None:  # noqa: F811
    """Another tier without another cursor: the view takes it from a table that its cursor knows nothing of."""
    bulk(shop.sql, "INSERT INTO shop.tiers (customer_id, tier) VALUES (?, ?)", [(n, tier) for n in numbers])


@pytest.fixture
def customers(shop: Shop, settings: Callable[..., None]) -> Shop:  # noqa: F811
    """350 people who were sent by a first pass, in slices of 100."""
    shop.environment["FIRST_PASS"] = "all"
    shop.sql.execute("CREATE TABLE shop.tiers (customer_id int NOT NULL PRIMARY KEY, tier nvarchar(20))")
    shop.sql.execute("DROP VIEW retention.customers")
    make_view(shop)
    add_customers(shop.sql, range(350))
    settings(PAGE_SIZE=20)
    assert shop.run("customers").accepted == 350
    return shop


def make_view(shop: Shop, columns: str = "") -> None:  # noqa: F811
    with suppress(Exception):
        shop.sql.execute("DROP VIEW retention.customers")
    shop.sql.execute(
        f"CREATE VIEW retention.customers AS SELECT c.customer_id, c.email, COALESCE(t.tier, c.tier) AS tier{columns},"
        " c.row_version FROM shop.customers AS c LEFT JOIN shop.tiers AS t ON t.customer_id = c.customer_id"
    )


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, shop: Shop) -> Callable[..., None]:  # noqa: F811
    """Changes settings."""

    def change(**values: object) -> None:
        for name, value in values.items():
            shop.environment[name] = str(value)
            monkeypatch.setenv(name, str(value))

    return change


def test_the_first_night_records_and_sends_nothing(customers, worker):  # noqa: F811
    night = Night(customers)
    told = compared(customers, worker)
    assert (told["state"], told["plan"]["first"], told["plan"]["compared"]) == ("done", True, 350)
    assert night.sent == 0
    assert compared(customers, worker)["plan"]["rows"] == 0
    assert night.sent == 0
    assert len([name for name in customers.blobs("fingerprints/") if "sent" not in name]) == 5  # four parts and a head


def test_only_people_whose_content_differs_are_sent(customers, worker):  # noqa: F811
    compared(customers, worker)
    night = Night(customers)
    lost_update(customers, range(100, 104), "vip")
    customers.sql.execute("UPDATE shop.customers SET tier = tier WHERE customer_id < 50")  # moves cursors, and no more
    assert customers.run("customers").accepted == 50
    assert night.sent == 50
    told = compared(customers, worker)
    assert (told["state"], told["plan"]["rows"], told["progress"]["accepted"]) == ("done", 4, 4)
    assert night.sent == 54
    assert customers.workspace.people()["102"]["tier"] == "vip"
    assert compared(customers, worker)["plan"]["rows"] == 0


def test_whom_a_pass_has_sent_since_is_not_sent_again(customers, worker):  # noqa: F811
    compared(customers, worker)
    customers.sql.execute("UPDATE shop.customers SET tier = 'silver' WHERE customer_id < 50")
    add_customers(customers.sql, range(400, 420))
    assert customers.run("customers").accepted == 70
    night = Night(customers)
    told = compared(customers, worker)
    assert (told["plan"]["rows"], told["plan"]["compared"], night.sent) == (0, 370, 0)


def test_who_changed_again_unseen_after_a_pass_is_sent(customers, worker):  # noqa: F811
    compared(customers, worker)
    customers.sql.execute("UPDATE shop.customers SET tier = 'silver' WHERE customer_id = 7")
    customers.run("customers")
    lost_update(customers, range(7, 8), "gold")  # as it was on the first night
    night = Night(customers)
    assert compared(customers, worker)["plan"]["rows"] == 1
    assert night.sent == 1
    assert customers.workspace.people()["7"]["tier"] == "gold"


def test_new_people_whom_no_pass_has_read_are_sent(customers, worker):  # noqa: F811
    compared(customers, worker)
    add_customers(customers.sql, range(1000, 1003))
    add_customers(customers.sql, range(-300, -290))
    told = compared(customers, worker)
    assert (told["plan"]["rows"], told["plan"]["new_people"]) == (13, 13)
    assert len(customers.workspace.people()) == 363


def test_a_night_whose_slices_never_came_leaves_all_to_the_next(customers, worker):  # noqa: F811
    compared(customers, worker)
    lost_update(customers, range(100, 104), "vip")
    first = compared(customers, worker, slices=False)
    assert first["state"] == "running"
    call("decide", run=first["run"], decision="cancel")
    worker.work()
    night = Night(customers)
    assert compared(customers, worker)["plan"]["rows"] == 4
    assert night.sent == 4


def test_what_was_sent_and_not_noted_is_sent_once_more(customers, worker):  # noqa: F811
    """As after a kill between the delivery and the note."""
    compared(customers, worker)
    lost_update(customers, range(100, 104), "vip")
    compared(customers, worker)
    for name in customers.blobs("fingerprints/sent/"):
        customers.container.delete_blob(name)
    night = Night(customers)
    assert compared(customers, worker)["plan"]["rows"] == 4
    assert night.sent == 4
    assert compared(customers, worker)["plan"]["rows"] == 0


def test_a_plan_that_is_made_twice_finds_the_same(customers, worker):  # noqa: F811
    """As after a kill between the walk's end and the record of the plan."""
    compared(customers, worker)
    lost_update(customers, range(100, 104), "vip")
    timer()
    run = last(customers)["run"]
    from shared import comparison
    from shared.resync import Runs
    from shared.settings import load
    from shared.state import State

    state = State(load())
    comparison.plan(state, load(), Runs(state).read(run))
    state.close()
    night = Night(customers)
    worker.work()
    assert (last(customers)["state"], night.sent) == ("done", 4)


def test_who_has_vanished_is_told_once_and_nothing_else_is_done(customers, worker):  # noqa: F811
    compared(customers, worker)
    customers.sql.execute("DELETE FROM shop.customers WHERE customer_id IN (0, 5, 99, 100, 349)")
    night = Night(customers)
    told = compared(customers, worker)
    assert told["plan"]["vanished"] == 5
    assert sorted(map(int, told["plan"]["vanished_customers"])) == [0, 5, 99, 100, 349]
    assert compared(customers, worker)["plan"]["vanished"] == 0
    assert night.sent == 0


def test_attributes_of_who_has_vanished_are_cleared(customers, worker, settings):  # noqa: F811
    settings(VANISHED_CUSTOMERS="clear", VANISHED_CLEAR="tier")
    compared(customers, worker)
    customers.sql.execute("DELETE FROM shop.customers WHERE customer_id IN (5, 349)")
    told = compared(customers, worker)
    assert (told["state"], told["plan"]["vanished"]) == ("done", 2)
    assert customers.workspace.people()["5"] == {"email": "c5@example.com"}
    night = Night(customers)
    assert compared(customers, worker)["plan"]["vanished"] == 0
    add_customers(customers.sql, range(5, 6))
    assert compared(customers, worker)["plan"]["new_people"] == 1
    assert night.sent == 1
    assert customers.workspace.people()["5"]["tier"] == "gold"


def test_who_has_vanished_is_deleted_and_does_not_come_back(customers, worker, settings):  # noqa: F811
    settings(VANISHED_CUSTOMERS="delete")
    compared(customers, worker)
    customers.sql.execute("DELETE FROM shop.customers WHERE customer_id IN (5, 349)")
    assert compared(customers, worker)["state"] == "done"
    assert {"5", "349"}.isdisjoint(customers.workspace.people())
    add_customers(customers.sql, range(5, 6))
    assert customers.run("customers").held == {"removed": 1}
    told = compared(customers, worker)
    assert (told["plan"]["vanished"], told["plan"]["rows"]) == (0, 0)
    assert "5" not in customers.workspace.people()


def test_an_emptied_view_deletes_nobody_before_a_person_approves(customers, worker, settings):  # noqa: F811
    settings(VANISHED_CUSTOMERS="delete")
    compared(customers, worker)
    customers.sql.execute("DELETE FROM shop.customers")
    night = Night(customers)
    told = compared(customers, worker)
    assert (told["state"], told["plan"]["vanished"], night.sent) == ("awaiting_approval", 350, 0)
    add_customers(customers.sql, range(349))
    told = compared(customers, worker)
    assert (told["state"], told["plan"]["vanished"]) == ("done", 1)
    assert len(customers.workspace.people()) == 349


def test_who_is_back_before_the_approval_is_not_deleted(customers, worker, settings):  # noqa: F811
    settings(VANISHED_CUSTOMERS="delete")
    compared(customers, worker)
    customers.sql.execute("DELETE FROM shop.customers WHERE customer_id < 100")
    told = compared(customers, worker)
    assert told["state"] == "awaiting_approval"
    add_customers(customers.sql, range(99))
    assert approve(worker, told["run"])["state"] == "done"
    assert customers.workspace.people().keys() == {str(number) for number in range(350) if number != 99}


def add_column(shop: Shop) -> None:  # noqa: F811
    make_view(shop, ", CAST(c.customer_id % 3 AS int) AS lucky")


def test_a_new_column_is_offered_once_and_the_rest_is_compared(customers, worker):  # noqa: F811
    compared(customers, worker)
    add_column(customers)
    lost_update(customers, range(10, 13), "vip")
    night = Night(customers)
    told = compared(customers, worker)
    assert (told["plan"]["new_columns"], told["plan"]["rows"], night.sent) == (["lucky"], 3, 3)
    offer = told["plan"]["offer"].rsplit("/", 1)[1]
    offered = call("run", run=offer)[1]
    assert (offered["state"], offered["plan"]["new_columns"]) == ("awaiting_approval", ["lucky"])
    again = compared(customers, worker)["plan"]
    assert (again["rows"], "offer" in again) == (0, False)
    assert approve(worker, offer)["progress"]["accepted"] == 350
    assert customers.workspace.people()["7"]["lucky"] == 1
    night = Night(customers)
    assert compared(customers, worker)["plan"]["rows"] == 0
    assert night.sent == 0
    customers.sql.execute("CREATE TABLE shop.luck (customer_id int, lucky int)")
    customers.sql.execute("INSERT INTO shop.luck VALUES (8, 77)")
    make_view(
        customers,
        ", COALESCE((SELECT l.lucky FROM shop.luck AS l WHERE l.customer_id = c.customer_id), c.customer_id % 3) AS lucky",
    )
    told = compared(customers, worker)["plan"]
    assert ("new_columns" in told, told["rows"]) == (False, 1)
    assert customers.workspace.people()["8"]["lucky"] == 77


def test_a_new_column_that_is_not_wanted_is_not_offered_again(customers, worker):  # noqa: F811
    compared(customers, worker)
    add_column(customers)
    offer = compared(customers, worker)["plan"]["offer"].rsplit("/", 1)[1]
    assert call("decide", run=offer, decision="cancel")[0] == 200
    night = Night(customers)
    lost_update(customers, range(10, 13), "vip")
    told = compared(customers, worker)["plan"]
    assert (told["rows"], "offer" in told) == (3, False)
    told = compared(customers, worker)["plan"]
    assert (told["rows"], "new_columns" in told, night.sent) == (0, False, 3)


def test_a_column_that_is_gone_sends_nothing(customers, worker):  # noqa: F811
    add_column(customers)
    customers.run("customers")
    compared(customers, worker)
    make_view(customers)
    night = Night(customers)
    told = compared(customers, worker)["plan"]
    assert (told["columns_gone"], told["rows"]) == (["lucky"], 0)
    lost_update(customers, range(10, 13), "vip")
    assert compared(customers, worker)["plan"]["rows"] == 3
    assert night.sent == 3


@pytest.fixture
def many(customers: Shop, settings: Callable[..., None]) -> Shop:
    """2,000 people more, so that most of them are a surge."""
    settings(RESYNC_SLICE_ROWS=500, PAGE_SIZE=500)
    add_customers(customers.sql, range(1000, 3000))
    with pytest.raises(SurgeStop):
        customers.run("customers")
    call("release", {"reason": "mass change"}, sync="customers")
    assert customers.run("customers").accepted == 2000
    return customers


def test_more_than_five_percent_wait_for_approval(many, worker):  # noqa: F811
    compared(many, worker)
    night = Night(many)
    lost_update(many, range(1000, 2200), "vip")
    told = compared(many, worker)
    assert (told["state"], told["plan"]["rows"], night.sent) == ("awaiting_approval", 1200, 0)
    newer = compared(many, worker)
    assert (newer["state"], call("run", run=told["run"])[1]["state"]) == ("awaiting_approval", "canceled")
    told = approve(worker, newer["run"])
    assert (told["state"], told["progress"]["accepted"], night.sent) == ("done", 1200, 1200)
    assert compared(many, worker)["plan"]["rows"] == 0


def test_what_was_taken_back_before_the_approval_is_not_sent(many, worker):  # noqa: F811
    compared(many, worker)
    lost_update(many, range(1000, 2200), "vip")
    assert compared(many, worker)["state"] == "awaiting_approval"
    many.sql.execute("DELETE FROM shop.tiers")
    told = compared(many, worker)
    assert (told["state"], told["plan"]["rows"]) == ("done", 0)


def rewrite(shop: Shop) -> None:  # noqa: F811
    shop.sql.execute("UPDATE shop.customers SET tier = tier")


def test_a_reload_of_the_same_content_costs_a_walk_and_no_identify(many, worker):  # noqa: F811
    compared(many, worker)
    rewrite(many)
    lost_update(many, range(10, 13), "vip")
    night = Night(many)
    ran = many.run("customers")
    assert (ran.outcome, ran.operations) == ("waiting", 0)
    assert last(many)["run"] in ran.message
    assert many.run("customers").outcome == "waiting"
    worker.work()
    assert (last(many)["state"], last(many)["plan"]["rows"], night.sent) == ("done", 3, 3)
    assert many.run("customers").outcome == "waiting"  # moves the mark
    ran = many.run("customers")
    assert (ran.outcome, ran.rows, night.sent) == ("ok", 0, 3)
    many.sql.execute("UPDATE shop.customers SET tier = 'silver' WHERE customer_id = 5")
    assert many.run("customers").accepted == 1


def test_a_reload_of_other_content_waits_and_a_cancelation_loses_nothing(many, worker):  # noqa: F811
    compared(many, worker)
    many.sql.execute("UPDATE shop.customers SET tier = 'silver'")
    night = Night(many)
    assert many.run("customers").outcome == "waiting"
    worker.work()
    told = last(many)
    assert (told["state"], told["plan"]["rows"]) == ("awaiting_approval", 2350)
    assert "approval" in many.run("customers").message
    mark = many.read("syncs/customers/mark.json")
    call("decide", run=told["run"], decision="cancel")
    with pytest.raises(SurgeStop):
        many.run("customers")
    assert night.sent == 0
    assert json.loads(many.read("syncs/customers/mark.json"))["position"] == json.loads(mark)["position"]
    call("release", {"reason": "mass change"}, sync="customers")
    assert many.run("customers").accepted == 2350
    assert many.workspace.people()["2000"]["tier"] == "silver"


def test_a_reload_within_the_lookback_waits_until_it_is_older(shop, worker, monkeypatch):  # noqa: F811
    from tests.test_passes import make_tables

    for table in ("orders", "customers"):
        shop.sql.execute(f"DROP VIEW retention.{table}")
        shop.sql.execute(f"DROP TABLE shop.{table}")
    make_tables(shop.sql, "updated_at")
    shop.environment["FIRST_PASS"] = "all"
    shop.environment["PAGE_SIZE"] = "1000"
    add_customers(shop.sql, range(1200))
    shop.sql.execute("UPDATE shop.customers SET updated_at = '2026-01-01'")
    assert shop.run("customers").accepted == 1200
    compared(shop, worker)
    shop.sql.execute("UPDATE shop.customers SET updated_at = SYSUTCDATETIME()")
    ran = shop.run("customers")
    assert (ran.outcome, ran.operations, "LOOKBACK_SECONDS" in ran.message) == ("waiting", 0, True)
    assert worker.messages("plans") == []


def test_without_fingerprints_a_reload_stops_as_before(many):
    rewrite(many)
    with pytest.raises(SurgeStop):
        many.run("customers")


def test_nothing_is_compared_while_customers_are_not_live_or_paused(shop, worker):  # noqa: F811
    timer()
    assert worker.messages("plans") == []
    shop.run("customers", FIRST_PASS="all")
    call("pause", {"reason": "test"})
    timer()
    assert worker.messages("plans") == []
    call("resume", {"confirm": True})
    timer()
    assert len(worker.messages("plans")) == 1
    timer()
    assert len(worker.messages("plans")) == 1


KEYS = {
    "int": [*range(-150, 150)],
    "bigint": [2**40 + number for number in range(300)],
    "nvarchar(20)": [
        f"{letter}{number}" for number in range(50) for letter in ("a", "A", "ä", "\U0001f600", "\uffe0", "_")
    ],
    "varchar(20)": [f"{letter}-{number}" for number in range(100) for letter in "aAb"],
    "uniqueidentifier": [str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))) for number in range(300)],
}


@pytest.mark.parametrize("of_type", KEYS)
def test_ids_of_every_type_are_compared_in_the_servers_order(shop, worker, settings, of_type):  # noqa: F811
    keys = KEYS[of_type]
    settings(PAGE_SIZE=20)
    shop.sql.execute("DROP VIEW retention.customers")
    shop.sql.execute(f"CREATE TABLE shop.people (customer_id {of_type} NOT NULL, tier int, row_version rowversion)")
    shop.sql.execute("CREATE VIEW retention.customers AS SELECT customer_id, tier, row_version FROM shop.people")
    add = "INSERT INTO shop.people (customer_id, tier) VALUES (?, ?)"
    bulk(shop.sql, add, [(key, 1) for number, key in enumerate(keys) if number % 10])
    assert shop.run("customers", FIRST_PASS="all").accepted == 270
    assert compared(shop, worker)["plan"]["compared"] == 270
    bulk(shop.sql, add, [(key, 1) for number, key in enumerate(keys) if number % 10 == 0])
    assert shop.run("customers").accepted >= 30  # with each, who differs by case alone
    assert compared(shop, worker)["plan"]["rows"] == 0
    changed, gone = keys[7::50], keys[8::50]
    exact = (
        "customer_id = ?"
        if "char" not in of_type
        else "CAST(customer_id AS nvarchar(20)) COLLATE Latin1_General_100_BIN2 = ?"
    )
    for key in changed:
        shop.sql.execute(f"UPDATE shop.people SET tier = 2 WHERE {exact}", key)
    for key in gone:
        shop.sql.execute(f"DELETE FROM shop.people WHERE {exact}", key)
    told = compared(shop, worker)["plan"]
    assert (told["rows"], told["new_people"], told["compared"]) == (len(changed), 0, 300 - len(gone))
    assert sorted(told["vanished_customers"]) == sorted(map(str, gone))
    people = shop.workspace.people()
    assert {key for key, attributes in people.items() if attributes["tier"] == 2} == set(map(str, changed))


def test_a_long_run_of_people_who_vanish_hides_nobody_beyond_it(customers, worker):  # noqa: F811
    compared(customers, worker)
    customers.sql.execute("DELETE FROM shop.customers WHERE customer_id BETWEEN 30 AND 320")
    lost_update(customers, range(325, 330), "vip")
    night = Night(customers)
    told = compared(customers, worker)["plan"]
    assert (told["rows"], told["new_people"], told["vanished"], night.sent) == (5, 0, 291, 5)


def test_nobody_who_was_removed_is_kept_as_a_fingerprint(customers, worker):  # noqa: F811
    compared(customers, worker)
    customers.sql.execute(
        "CREATE TABLE shop.removals (removal_id int, customer_id int, action varchar(20), removed_at datetime2(0),"
        " row_version rowversion)"
    )
    customers.sql.execute("CREATE VIEW retention.removals AS SELECT * FROM shop.removals")
    customers.sql.execute(
        "INSERT INTO shop.removals (removal_id, customer_id, action, removed_at) VALUES (1, 7, 'delete', '2026-01-01')"
    )
    assert customers.run("removals").accepted == 1
    lost_update(customers, range(7, 8), "vip")
    told = compared(customers, worker)["plan"]
    assert (told["rows"], told["vanished"], told["compared"]) == (0, 0, 349)
    generation = json.loads(customers.read("fingerprints/head.json"))["generation"]
    assert 7 not in json.loads(customers.read(f"fingerprints/{generation}/0").split(b"\n")[0])["keys"]
    customers.sql.execute(
        "INSERT INTO shop.removals (removal_id, customer_id, action, removed_at) VALUES (2, 7, 'restore', '2026-01-02')"
    )
    customers.run("removals")
    assert compared(customers, worker)["plan"]["new_people"] == 1
    assert customers.workspace.people()["7"]["tier"] == "vip"


def test_a_damaged_part_stops_the_comparison_and_sends_nothing(customers, worker):  # noqa: F811
    compared(customers, worker)
    generation = json.loads(customers.read("fingerprints/head.json"))["generation"]
    customers.container.delete_blob(f"fingerprints/{generation}/2")
    night = Night(customers)
    told = compared(customers, worker)
    assert (told["state"], f"fingerprints/{generation}/2" in told["message"], night.sent) == ("failed", True, 0)
