"""Volume, freshness and census: what passes note by the way, and what a night makes of it."""

import json
import logging
import random
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pyodbc
import pytest

import function_app
from shared import census, findings, freshness, volume
from shared.census import Count
from shared.errors import CredentialFault, StateFault
from shared.state import Mark, Seen, State
from tests.conftest import Deployment
from tests.test_golive import add_removals
from tests.test_passes import add_customers, add_orders, bulk, make_tables
from tests.test_pause import pause, resume
from tests.test_resync import add_young_orders, call, go_live, shop, worker
from tests.test_state import MARK

__all__ = ["shop", "worker"]

TODAY = datetime.now(UTC).date()
YESTERDAY = TODAY - timedelta(days=1)
FRIDAY = date(2026, 11, 27)


def mark_of(deployment: Deployment, sync: str = "orders") -> Mark:
    return Mark.from_json(deployment.read(f"syncs/{sync}/mark.json"), sync)


def edit(deployment: Deployment, sync: str = "orders", **changes: Any) -> None:
    """Let a mark be as an earlier pass would have left it."""
    mark = replace(mark_of(deployment, sync), **changes)
    deployment.container.upload_blob(f"syncs/{sync}/mark.json", mark.to_json(), overwrite=True)


def looked_ago(deployment: Deployment, *minutes: int) -> None:
    """Let the moments at which passes of orders have looked be so long ago."""
    looks = mark_of(deployment).looks
    ago = [datetime.now(UTC).replace(tzinfo=None) - timedelta(minutes=one) for one in minutes]
    edit(deployment, looks=[Seen(one.bound, at.isoformat()) for one, at in zip(looks, ago, strict=True)])


def night() -> None:
    function_app.night.build().get_user_function()(None)


def noted(deployment: Deployment, check: str) -> list[findings.Finding] | None:
    with closing(State(deployment.settings())) as state:
        last = findings.last(state, check)
        return None if last is None else list(last.findings)


def stored(deployment: Deployment, name: str) -> Any:
    return json.loads(deployment.read(name))


def store(deployment: Deployment, name: str, content: Any) -> None:
    deployment.container.upload_blob(name, json.dumps(content), overwrite=True)


@pytest.fixture
def live(shop: Deployment) -> Deployment:
    """Customers and orders are live, their first passes are over, and nothing waits."""
    add_customers(shop.sql, range(5))
    add_orders(shop.sql, range(5))
    for sync in ("customers", "orders"):
        shop.run(sync, FIRST_PASS="all")
        shop.run(sync)
    return shop


# --- volume: what passes count ----------------------------------------------------------------------------------------


def test_passes_count_what_was_accepted_by_event_name_and_a_first_pass_does_not(live):
    assert (mark_of(live).volume, mark_of(live, "customers").volume) == ({}, {})
    add_orders(live.sql, range(5, 37))
    live.sql.execute("UPDATE shop.orders SET total = 7 WHERE order_id < 3")  # known to the ledger, so not sent
    live.sql.execute("UPDATE shop.customers SET tier = 'vip' WHERE customer_id < 3")
    assert live.run("orders", PAGE_SIZE=10).pages > 2
    live.run("customers")
    assert mark_of(live).volume == {str(TODAY): {"Order Placed": 32}}
    assert mark_of(live, "customers").volume == {str(TODAY): {"": 3}}
    add_orders(live.sql, range(37, 39))
    live.run("orders")
    assert mark_of(live).volume == {str(TODAY): {"Order Placed": 34}}


def test_what_customerio_refuses_is_not_counted(live):
    add_orders(live.sql, range(5, 25))
    live.workspace.add_fault(reject_share=0.5, times=1)
    run = live.run("orders")
    assert 0 < run.rejected < 20
    assert mark_of(live).volume == {str(TODAY): {"Order Placed": live.workspace.stats()["events_stored"] - 5}}


def test_of_a_page_that_is_not_accounted_for_what_was_accepted_counts_once(live):
    add_orders(live.sql, range(5, 6000))
    live.workspace.add_fault(status=401, every=3)
    with pytest.raises(CredentialFault):
        live.run("orders", PAGE_SIZE=6000, CUSTOMERIO_BATCHES_IN_FLIGHT=1)
    sent = live.workspace.stats()["events_stored"] - 5
    assert 0 < sent < 5995
    assert mark_of(live).volume == {str(TODAY): {"Order Placed": sent}}
    live.workspace.clear_faults()
    live.run("orders", PAGE_SIZE=6000)
    assert mark_of(live).volume == {str(TODAY): {"Order Placed": 5995}}


def test_counting_costs_a_pass_no_blob_call(live, caplog):
    add_orders(live.sql, range(5, 12))
    edit(live, stamped=0)
    with caplog.at_level(logging.INFO, "azure.core.pipeline.policies.http_logging_policy"):
        live.run("orders")
    urls = [message.split("\n")[0] for message in caplog.messages if "Request URL" in message]
    # it is read, and written with the time of reading, after the page, and at the end
    assert sum("mark.json'" in url for url in urls) == 4
    assert not any("volume" in url for url in urls)


def test_a_mark_of_an_earlier_version_has_counted_nothing():
    earlier = json.loads(MARK.to_json())
    for name in ("volume", "freshness", "looks"):
        del earlier[name]
    assert Mark.from_json(json.dumps(earlier).encode(), "mark") == MARK


def test_a_mark_keeps_its_counts_and_moments():
    mark = replace(
        MARK,
        volume={"2026-11-27": {"Order Placed": 3}},
        freshness={"2026-11-27": {"300": 3}},
        looks=(Seen("0x01", "2026-11-27T00:00:00"),),
    )
    assert Mark.from_json(mark.to_json(), "mark") == mark


def test_a_mark_remembers_few_days_and_few_names():
    days: dict[str, dict[str, int]] = {}
    for ago in range(20):
        days = volume.add(days, f"2026-11-{27 - ago:02}", {"a": 1})
    assert list(days) == [f"2026-11-{day}" for day in range(20, 28)]
    days = volume.add(days, "2026-11-27", {f"event of {number}": 1 for number in range(1000)})
    assert len(days["2026-11-27"]) == volume.MOST_NAMES + 1
    assert sum(days["2026-11-27"].values()) == 1001
    assert volume.add(days, "2026-11-27", {}) == days


# --- volume: what is kept ---------------------------------------------------------------------------------------------


def test_the_night_takes_over_what_the_marks_remember_and_once_more_does_no_harm(live):
    three = str(TODAY - timedelta(days=3))
    edit(live, volume={three: {"Order Placed": 3, "Order Paid": 1}, str(YESTERDAY): {"Order Placed": 40}})
    for _ in range(2):
        night()
        kept = stored(live, "volume.json")["passes"]["orders"]
        assert list(kept) == ["Order Paid", "Order Placed"]
        assert kept["Order Placed"] == {three: 3, str(TODAY - timedelta(days=2)): 0, str(YESTERDAY): 40, str(TODAY): 0}
        assert kept["Order Paid"][str(YESTERDAY)] == 0
    edit(live, volume={str(YESTERDAY): {"Order Placed": 12}, str(TODAY): {"Order Placed": 2}})  # a restored mark
    night()
    kept = stored(live, "volume.json")["passes"]["orders"]["Order Placed"]
    assert (kept[three], kept[str(YESTERDAY)], kept[str(TODAY)]) == (3, 40, 2)


def test_days_are_kept_for_400_days_and_what_no_night_has_seen_is_not_called_zero(live):
    past = {str(TODAY - timedelta(days=ago)): ago for ago in (399, 400, 100)}
    store(live, "volume.json", {"passes": {"orders": {"Order Placed": past}}, "resyncs": {}})
    night()
    kept = stored(live, "volume.json")["passes"]["orders"]["Order Placed"]
    assert sorted(kept) == sorted(str(TODAY - timedelta(days=ago)) for ago in (399, 100, *range(volume.IN_MARK)))


def test_what_going_live_and_resyncs_send_is_kept_apart(shop, worker):
    add_customers(shop.sql, range(30))
    add_orders(shop.sql, range(40))
    add_removals(shop)
    shop.sql.execute("INSERT INTO shop.removals (removal_id, customer_id, action) VALUES (1, 500, 'suppress')")
    go_live(worker, syncs=["customers", "orders", "removals"])
    status, answer = call("resync", {"all": True}, sync="customers")
    assert status == 202
    worker.work()
    call("decide", run=answer["run"], decision="approve")
    worker.work()
    for _ in range(2):
        night()
    assert stored(shop, "volume.json") == {
        "passes": {"customers": {}, "orders": {}, "removals": {}},
        "resyncs": {"customers": {str(TODAY): 60}, "orders": {str(TODAY): 40}, "removals": {str(TODAY): 1}},
    }


# --- volume: what is far from usual -----------------------------------------------------------------------------------


def days_before(day: date, counts: Callable[[date], int], known: int = 28) -> volume.Days:
    before = [day - timedelta(days=ago) for ago in range(1, known + 1)]
    return {str(one): counts(one) for one in before}


def weekly(day: date) -> int:
    return (100, 110, 105, 120, 160, 0, 300)[day.weekday()]


@pytest.mark.parametrize(
    ("before", "count", "usual"),
    [
        (days_before(FRIDAY, lambda day: 100), 100, None),
        (days_before(FRIDAY, lambda day: 100), 140, None),
        (days_before(FRIDAY, lambda day: 100), 160, 100),
        (days_before(FRIDAY, lambda day: 100), 40, 100),
        (days_before(FRIDAY, lambda day: 100), 0, 100),
        (days_before(FRIDAY, lambda day: 100, known=14), 0, 100),
        (days_before(FRIDAY, lambda day: 100, known=13), 0, None),  # too little is known
        (days_before(FRIDAY, lambda day: 12), 0, 12),
        (days_before(FRIDAY, lambda day: 9), 0, None),
        (days_before(FRIDAY, lambda day: 0 if day.day == 13 else 12), 0, None),  # a Friday had none
        (days_before(FRIDAY, weekly), 165, None),
        (days_before(FRIDAY, weekly), 400, 160),
        (days_before(FRIDAY - timedelta(days=4), weekly), 0, 100),  # a Monday
        (days_before(FRIDAY + timedelta(days=1), weekly), 0, None),  # on Saturdays the shop is closed
        (days_before(FRIDAY + timedelta(days=2), weekly), 310, None),
        (days_before(FRIDAY + timedelta(days=2), weekly), 100, 300),  # for a Sunday that is little
        (days_before(FRIDAY, lambda day: 2), 0, None),  # small numbers are chance
        (days_before(FRIDAY, lambda day: 2), 12, None),
        (days_before(FRIDAY, lambda day: 2), 500, 2),
        (days_before(FRIDAY, lambda day: 0), 500, 0),
        (days_before(FRIDAY, lambda day: 500 * (day.day % 9 == 0)), 450, None),  # it is so now and then
        # one strange day hides no other, and two are how the shop is
        (days_before(FRIDAY, lambda day: 300 if day.day == 19 else 100), 300, 100),
        (days_before(FRIDAY, lambda day: 300 if day.day in (18, 19) else 100), 300, None),
        (days_before(FRIDAY, lambda day: 0 if day.day == 20 else 100), 10, 100),
        (days_before(FRIDAY, lambda day: 5 if day.day in (13, 20) else 100), 10, None),
    ],
)
def test_a_day_is_judged_by_the_four_weeks_before_it_and_its_weekday(before, count, usual):
    day = max(date.fromisoformat(one) for one in before) + timedelta(days=1)
    assert volume.judge({**before, str(day): count}, day) == usual


def test_an_outage_of_two_days_is_told_on_both():
    days = {**days_before(FRIDAY, lambda day: 100), str(FRIDAY): 10, str(FRIDAY + timedelta(days=1)): 10}
    assert [volume.judge(days, FRIDAY + timedelta(days=ahead)) for ahead in (0, 1)] == [100, 100]


@pytest.mark.parametrize("mean", [3, 20, 150, 5000])
def test_years_of_a_shop_like_any_other_bring_hardly_a_finding(mean):
    chance = random.Random(7)
    start = date(2020, 1, 1)

    def count(day: date) -> int:
        expected = mean * (1, 0.9, 1, 1.1, 1.4, 1.6, 0.5)[day.weekday()] * (1 + 0.0005 * (day - start).days)
        return max(0, round(chance.gauss(expected, expected**0.5 + 0.1 * expected)))

    days = {str(day): count(day) for day in (start + timedelta(days=number) for number in range(5 * 365))}
    found = [day for day in days if volume.judge(days, date.fromisoformat(day)) is not None]
    assert len(found) <= 5, found


def test_a_day_that_is_far_from_usual_is_a_finding_until_a_night_finds_it_no_more(live, watch):
    before = {"Order Placed": days_before(YESTERDAY, lambda day: 1000), "Order Paid": {}}
    store(live, "volume.json", {"passes": {"orders": before, "carts": before}, "resyncs": {}})
    edit(live, volume={str(YESTERDAY): {"Order Placed": 12, "Order Paid": 1}})
    watch.points.clear()
    night()
    (one,) = noted(live, "volume") or []
    assert (one.about, one.count, list(one.people)) == ("orders: Order Placed", 12, [])
    assert one.what == f"12 were accepted on {YESTERDAY:%A}, {YESTERDAY}. Usual are 1,000."
    told = {attributes["check"]: amount for name, attributes, amount in watch.points if name == "tidemark.findings"}
    assert told == {"volume": 1, "freshness": 0, "census": 0}
    edit(live, volume={str(YESTERDAY): {"Order Placed": 1001}})
    night()
    assert noted(live, "volume") == []


def test_a_day_without_any_event_is_a_finding(live):
    store(live, "volume.json", {"passes": {"orders": {"A": days_before(YESTERDAY, lambda day: 50)}}, "resyncs": {}})
    night()
    assert [(one.about, one.count) for one in noted(live, "volume") or []] == [("orders: A", 0)]


# --- freshness --------------------------------------------------------------------------------------------------------


def test_by_row_version_a_row_took_at_most_as_long_as_since_the_pass_before(live, watch):
    assert mark_of(live).freshness == {}
    looked_ago(live, 4)
    add_orders(live.sql, range(5, 8))
    watch.points.clear()
    run = live.run("orders")
    assert 240 <= run.freshness < 270
    assert [amount for name, _, amount in watch.points if name == "tidemark.freshness"] == [run.freshness]
    assert stored(live, f"syncs/orders/runs/{run.run}.json")["freshness"] == run.freshness
    add_orders(live.sql, range(8, 9))
    assert live.run("orders").freshness < 60
    assert mark_of(live).freshness == {str(TODAY): {"300": 3, "60": 1}}
    assert live.run("orders").freshness is None


def test_an_open_transaction_makes_no_row_look_fresher_than_it_is(live, database):
    with closing(pyodbc.connect(database)) as writer:
        add_orders(writer, range(100, 101))
        add_orders(live.sql, range(101, 102))
        assert live.run("orders").operations == 0
        add_orders(live.sql, range(102, 103))
        assert live.run("orders").operations == 0
        looked_ago(live, 40, 15, 4)  # before all three, between the second and the third, after them
        writer.commit()
    run = live.run("orders")
    assert run.operations == 3
    assert 2400 <= run.freshness < 2430
    assert mark_of(live).freshness == {str(TODAY): {"3600": 2, "1200": 1}}
    assert len(mark_of(live).looks) == 1


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_by_updated_at_each_row_tells_how_long_it_took(deployment, zone):
    make_tables(deployment.sql, "updated_at")
    for _ in range(2):
        deployment.run("orders", SQL_TIME_ZONE=zone)
    now = datetime.now(ZoneInfo(zone)).replace(tzinfo=None)
    (look,) = mark_of(deployment).looks
    assert abs(datetime.fromisoformat(look.bound) - now) < timedelta(seconds=30)
    edit(deployment, looks=[replace(look, bound=(now - timedelta(minutes=20)).isoformat())])
    for number, seconds in enumerate((5, 100, 500, 5000)):  # the last one is older than all that is to be measured
        deployment.sql.execute(
            "INSERT INTO shop.orders (order_id, customer_id, paid_at, total, updated_at) VALUES (?, 1, '2026-01-01', 1, ?)",
            number,
            now - timedelta(seconds=seconds),
        )
    run = deployment.run("orders", SQL_TIME_ZONE=zone)
    assert 500 <= run.freshness < 530
    assert mark_of(deployment).freshness == {str(TODAY): {"60": 1, "120": 1, "600": 1}}


def test_what_has_piled_up_behind_a_pause_is_not_late_and_what_comes_after_it_is_measured(live):
    looked_ago(live, 90)
    pause(sync="orders")
    add_orders(live.sql, range(5, 8))
    assert live.run("orders").outcome == "paused"
    add_orders(live.sql, range(8, 9))
    resume(confirm=True)
    run = live.run("orders")
    assert (run.operations, run.freshness < 60) == (4, True)
    assert mark_of(live).freshness == {str(TODAY): {"60": 1}}


def test_what_has_piled_up_because_passes_failed_is_late(live):
    looked_ago(live, 45)
    add_orders(live.sql, range(5, 8))
    live.workspace.add_fault(status=401)
    with pytest.raises(CredentialFault):
        live.run("orders")
    assert live.run("orders").freshness >= 2700
    assert mark_of(live).freshness == {str(TODAY): {"3600": 3}}


def test_few_moments_are_kept_however_long_a_transaction_is_open():
    looks: list[Seen] = []
    for number in range(500):
        looks = freshness.looked(
            looks, Seen(f"0x{number:016X}", f"2026-11-27T{number // 60:02}:{number % 60:02}:00"), "0x"
        )
    assert len(looks) <= 30
    assert looks[0].bound == f"0x{0:016X}"  # who was written before all others can still be measured
    view: Any = SimpleNamespace(by_row_version=True)
    now = datetime(2026, 11, 27, 9, tzinfo=UTC).timestamp()
    for version in (1, 3, 77, 250, 499, 600):
        _, seconds = freshness.took(view, looks, [version.to_bytes(8, "big")], now)
        assert seconds and seconds >= now - datetime(2026, 11, 27, tzinfo=UTC).timestamp() - 60 * version


ON_TIME, LATE, SLOW = {"120": 96, "300": 1, "600": 3}, {"120": 90, "600": 10}, {"7200": 10}


@pytest.mark.parametrize(
    ("sync", "days", "late"),
    [
        ("orders", {"2026-11-27": ON_TIME}, None),
        ("orders", {"2026-11-27": LATE}, 10),
        ("carts", {"2026-11-27": LATE}, 10),
        ("refunds", {"2026-11-27": LATE}, None),
        ("refunds", {"2026-11-27": SLOW}, 10),
        ("refunds", {"2026-11-25": SLOW, "2026-11-26": SLOW, "2026-11-27": SLOW}, None),  # it is a slow one
        ("orders", {"2026-11-25": LATE, "2026-11-26": LATE, "2026-11-27": LATE}, 10),  # its goal does not move
        ("orders", {"2026-11-26": LATE}, None),
        ("orders", {"2026-11-27": {}}, None),
        ("orders", {}, None),
    ],
)
def test_a_day_is_late_when_more_than_a_twentieth_of_its_rows_took_longer_than_the_goal(sync, days, late):
    found = freshness.judge(sync, days, "2026-11-27")
    assert (found.count if found else None) == late


def test_a_late_day_is_a_finding_with_its_95th_percentile(live):
    edit(live, freshness={str(YESTERDAY): LATE})
    night()
    (one,) = noted(live, "freshness") or []
    assert one.about == "orders"
    assert one.what == (
        f"10 of the 100 rows of {YESTERDAY} took longer than 5 minutes from their commit to their acceptance"
        " (95 % took up to 10)."
    )


# --- census -----------------------------------------------------------------------------------------------------------


def test_the_census_counts_customers_and_the_events_of_28_days(live):
    add_young_orders(live.sql, range(50, 60))
    live.sql.execute("UPDATE shop.customers SET tier = NULL WHERE customer_id < 2")
    night()
    counted = stored(live, "census.json")
    assert counted["customers"][str(TODAY)] == {
        "rows": 5,
        "filled": {"customer_id": 5, "email": 5, "tier": 3},
        "types": {"customer_id": "int", "email": "nvarchar", "tier": "nvarchar"},
    }
    orders = counted["orders"][str(TODAY)]
    assert (orders["rows"], orders["filled"]["total"]) == (10, 10)
    assert orders["filled"]["person.email"] < 10  # some are of nobody
    assert orders["types"]["total"] == "decimal"


@pytest.mark.parametrize("of_type", ["datetime2(7)", "datetimeoffset(3)", "date"])
def test_the_census_asks_for_event_times_of_every_type(live, of_type):
    live.sql.execute("DROP VIEW retention.orders")
    now = datetime.now(UTC).replace(tzinfo=None)
    rows = [(number, now - timedelta(days=ago)) for number, ago in enumerate((1, 20, 35, 300))]
    live.sql.execute(
        "CREATE TABLE shop.facts (event_id int NOT NULL PRIMARY KEY, at datetime2(0), row_version rowversion)"
    )
    bulk(live.sql, "INSERT INTO shop.facts (event_id, at) VALUES (?, ?)", rows)
    live.sql.execute(
        f"CREATE VIEW retention.orders AS SELECT 1 AS customer_id, 'A' AS event_name, CAST(at AS {of_type}) AS event_time,"
        " event_id, event_id AS [what ]] it costs], row_version FROM shop.facts"
    )
    night()
    assert stored(live, "census.json")["orders"][str(TODAY)]["rows"] == 2
    assert stored(live, "census.json")["orders"][str(TODAY)]["filled"]["what ] it costs"] == 2


def nights(shares: list[float], rows: int = 200, of_type: str = "int") -> dict[str, Count]:
    """Nights before the 27th on which x was NULL in these shares of all rows."""
    return {
        str(FRIDAY - timedelta(days=ago)): Count(rows, {"x": round(rows * (1 - share))}, {"x": of_type})
        for ago, share in enumerate(shares, 1)
    }


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        (nights([0.02] * 5), 0.02, []),
        (nights([0.02] * 5), 0.21, []),
        (nights([0.02] * 5), 0.25, ["It is NULL in 25.0 % of 200 rows."]),
        (nights([0.9] * 5), 0.5, ["It is NULL in 50.0 % of 200 rows."]),
        (nights([0.02, 0.9, 0.02, 0.02]), 0.9, ["It is NULL in 90.0 % of 200 rows."]),
        (nights([0.02, 0.02]), 0.9, []),  # too few nights
        (nights([0.02] * 5, rows=99), 0.9, []),  # too few rows
        ({}, 0.9, []),
    ],
)
def test_a_share_of_nulls_that_moved_is_a_finding(before, now, found):
    told = census.judge("retention.a", {**before, **with_share(now)}, str(FRIDAY), 20)
    assert [one.what.split(". On")[0] + "." for one in told] == found
    assert {one.about for one in told} <= {"retention.a.x"}


def with_share(share: float, rows: int = 200, of_type: str = "int") -> dict[str, Count]:
    return {str(FRIDAY): Count(rows, {"x": round(rows * (1 - share))}, {"x": of_type})}


def test_few_rows_of_now_say_nothing_and_an_empty_view_is_no_share():
    for rows in (99, 0):
        assert census.judge("a", {**nights([0.02] * 5), **with_share(1, rows)}, str(FRIDAY), 20) == []


def test_a_type_that_changed_is_a_finding_until_most_nights_have_it():
    before = nights([0] * 5)
    (one,) = census.judge("retention.a", {**before, **with_share(0, of_type="bigint")}, str(FRIDAY), 20)
    assert (one.about, one.what) == ("retention.a.x", "Its type is bigint. On most nights before it was int.")
    once = {**before, "2026-11-26": with_share(0, of_type="bigint")[str(FRIDAY)]}
    assert len(census.judge("a", {**once, **with_share(0, of_type="bigint")}, str(FRIDAY), 20)) == 1
    more = {**before, **{f"2026-11-{day}": with_share(0, of_type="bigint")[str(FRIDAY)] for day in range(24, 28)}}
    assert census.judge("a", more, str(FRIDAY), 20) == []


def test_a_column_that_is_emptied_by_its_join_is_a_finding_and_nights_are_kept_for_five_weeks(live):
    add_customers(live.sql, range(5, 205))
    live.sql.execute("UPDATE shop.customers SET tier = NULL WHERE customer_id < 100")
    night_before = asdict(
        Count(205, {"customer_id": 205, "email": 205, "tier": 200}, dict.fromkeys(("email", "tier"), "nvarchar"))
    )
    past = {str(TODAY - timedelta(days=ago)): night_before for ago in range(1, 60)}
    store(live, "census.json", {"customers": past})
    night()
    (one,) = noted(live, "census") or []
    assert (one.about, one.count) == ("retention.customers.tier", 100)
    kept = stored(live, "census.json")["customers"]
    assert (len(kept), max(kept)) == (35, str(TODAY))


def test_a_view_that_cannot_be_read_is_told_and_the_others_are_counted(live):
    live.sql.execute("DROP VIEW retention.customers")
    night()
    (one,) = noted(live, "census") or []
    assert (one.about, "is missing" in one.what) == ("retention.customers", True)
    assert list(stored(live, "census.json")) == ["orders"]


# --- the night --------------------------------------------------------------------------------------------------------


def test_a_check_that_fails_does_not_keep_the_night_from_the_others_and_the_night_fails(live, caplog):
    live.container.upload_blob("volume.json", b"{nothing", overwrite=True)
    edit(live, freshness={str(YESTERDAY): LATE})
    with caplog.at_level(logging.INFO, "tidemark"), pytest.raises(StateFault, match=r"volume.json is damaged"):
        night()
    (line,) = [json.loads(one.removeprefix("night ")) for one in caplog.messages if one.startswith("night ")]
    assert (line["freshness"], line["census"], "damaged" in line["volume"]) == (1, 0, True)
    assert noted(live, "volume") is None
    assert len(noted(live, "freshness") or []) == 1


def test_where_nothing_is_live_nothing_is_judged(shop):
    night()
    assert not shop.container.exists()


def test_a_sync_that_is_switched_off_is_not_judged(live, monkeypatch):
    edit(live, freshness={str(YESTERDAY): LATE})
    monkeypatch.setenv("AzureWebJobs.orders.Disabled", "1")
    night()
    assert noted(live, "freshness") == []
    assert list(stored(live, "volume.json")["passes"]) == ["customers"]


def test_every_run_of_a_timer_or_a_queue_has_one_line_in_the_log_with_its_counts(shop, worker, caplog):
    add_customers(shop.sql, range(30))
    add_orders(shop.sql, range(40))
    with caplog.at_level(logging.INFO, "tidemark"):
        run = go_live(worker)
        night()
        function_app.comparison.build().get_user_function()(None)
    lines: dict[str, list[dict[str, Any]]] = {"plan": [], "slice": [], "night": []}
    for one in caplog.messages:
        if (kind := one.split(" ")[0]) in lines:
            lines[kind].append(json.loads(one.partition(" ")[2]))
    assert [(one["run"], one["kind"], one["state"]) for one in lines["plan"]] == [
        (run["run"], "go-live", "awaiting_approval")
    ]
    assert {(one["sync"], one["status"], one["accepted"]) for one in lines["slice"]} == {
        ("customers", "done", 30),
        ("orders", "done", 40),
    }
    (asked,) = [one for one in caplog.messages if one.startswith("comparison ")]
    assert asked.split()[1] in {name.split("/")[1] for name in shop.blobs("runs/")}
    assert lines["night"] == [{"day": str(YESTERDAY), "syncs": 2, "volume": 0, "freshness": 0, "census": 0}]


def test_a_plan_that_fails_is_an_error_in_the_log(shop, worker, caplog):
    shop.sql.execute("DROP VIEW retention.orders")
    with caplog.at_level(logging.INFO, "tidemark"):
        call("go_live", {"syncs": ["orders"]})
        worker.work()
    (record,) = [one for one in caplog.records if one.getMessage().startswith("plan ")]
    assert (record.levelname, "is missing" in record.getMessage()) == ("ERROR", True)
