"""The status page: what it tells of everything, what it never tells, and that what is broken does not take it down."""

import json
import re
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import azure.functions as func
import pytest
from ulid import ULID

import function_app
from shared.errors import ViewFault
from shared.findings import Finding, note
from shared.state import State
from shared.syncs import CATALOGUE
from tests.conftest import Deployment
from tests.test_passes import add_customers, add_orders
from tests.test_resync import Worker, call, shop, worker

__all__ = ["shop", "worker"]

PERSON = 987654321
"""Somebody whose id is no number that the page could show for another reason."""

DAMAGED = b'{"damaged'


def answer(accept: str = "", **params: str) -> func.HttpResponse:
    function = function_app.status.build().get_user_function()
    told: func.HttpResponse = function(
        func.HttpRequest("GET", "/api/status", body=b"", headers={"Accept": accept}, params=params)
    )
    assert told.status_code == 200, told.get_body()
    return told


def status() -> dict[str, Any]:
    told: dict[str, Any] = json.loads(answer().get_body())
    return told


def page() -> str:
    return answer("text/html").get_body().decode()


def of(told: dict[str, Any], sync: str) -> dict[str, Any]:
    return next(one for one in told["syncs"] if one["sync"] == sync)


def problems(told: dict[str, Any], about: str) -> list[tuple[str, str]]:
    return [(one["level"], one["what"]) for one in told["problems"] if one["about"] == about]


def write(shop: Deployment, name: str, content: object) -> None:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    shop.container.upload_blob(name, text, overwrite=True)


def add_events(shop: Deployment, sync: str, name: str, every: int) -> None:
    """A view of events over some of the orders."""
    shop.sql.execute(
        f"CREATE VIEW retention.{sync} AS SELECT customer_id, '{name}' AS event_name, paid_at AS event_time,"
        f" order_id AS event_id, total, row_version FROM shop.orders WHERE order_id % {every} = 0"
    )


def fill(shop: Deployment) -> None:
    """Five syncs that are live, and an order that cannot be sent."""
    add_customers(shop.sql, range(300))
    add_orders(shop.sql, range(1, 401), 300)
    shop.sql.execute("INSERT INTO shop.orders (order_id, paid_at, total) VALUES (987654321, '2026-01-01', 1)")
    add_events(shop, "refunds", "Refund Issued", 20)
    add_events(shop, "subscriptions", "Subscription Started", 15)
    add_events(shop, "carts", "Cart Abandoned", 5)
    for sync in ("customers", "orders", "refunds", "subscriptions", "carts"):
        shop.run(sync, FIRST_PASS="all")


def trouble(shop: Deployment, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something of everything that can be seen, and a resync under way."""
    shop.sql.execute("DROP VIEW retention.carts")
    with pytest.raises(ViewFault):
        shop.run("carts")
    monkeypatch.setenv("AzureWebJobs.back_in_stock.Disabled", "1")
    call("pause", {"sync": "refunds", "reason": "amounts are looked into"})
    with closing(State(shop.settings())) as state:
        note(
            state,
            "audit",
            [
                Finding(
                    "customers", "Customer.io did not take a new address.", "See docs/identity.md.", 2, [str(PERSON)]
                ),
                Finding("tier", "It is stored in another form than it was sent in.", "Find out who writes it.", 1),
            ],
        )
        note(state, "census", [])
        note(
            state,
            "reconciliation",
            [Finding("segment_vip", "12 people are missing.", "Ask for a repair.", 15, [str(PERSON)] * 15)],
        )
    write(shop, "reconciliation.json", reconciliation())
    write(shop, "volume.json", {"passes": volume(), "resyncs": {}})
    call("resync", {"all": True}, sync="customers")
    worker.work(2)  # the plan, and the first of its slices


def reconciliation() -> dict[str, Any]:
    def one(name: str, segment: int, title: str, sql: int, customerio: int | None, **more: Any) -> dict[str, Any]:
        counts = {"sql": sql, "customerio": customerio, "difference": None if customerio is None else customerio - sql}
        known = {
            "state": "finished",
            "within": True,
            "compared": False,
            "missing": None,
            "surplus": None,
            "message": "",
        }
        return {"name": name, "segment": segment, "title": title} | known | counts | more

    building = {"state": "building", "within": None, "message": "Customer.io is still building it."}
    return {
        "at": (datetime.now(UTC) - timedelta(hours=4)).isoformat(timespec="seconds"),
        "segments": [
            one("canary_repeat_recent", 7, "Canary: bought again", 1204, 1204),
            one("vip", 12, "VIP", 412, 403, within=False, compared=True, missing=12, surplus=3),
            one("lapsed", 15, "Lapsed", 8120, None, **building),
        ],
    }


def volume() -> dict[str, dict[str, dict[str, int]]]:
    """Some weeks with their weekends, and a day on which little was sent."""
    today = datetime.now(UTC).date()

    def days(usual: int) -> dict[str, int]:
        counts = {}
        for ago in range(60):
            day = today - timedelta(days=ago)
            share = (0.6 if day.weekday() > 4 else 1.0) + (day.toordinal() * usual * 7919 % 37) / 100
            counts[day.isoformat()] = int(usual * (share if ago else share / 3) * (0.15 if ago == 9 else 1))
        return counts

    subscriptions = {
        "Subscription Started": days(40),
        "Subscription Renewed": days(130),
        "Subscription Canceled": days(12),
    }
    return {
        "customers": {"": days(2400)},
        "orders": {"Order Placed": days(900)},
        "refunds": {"Refund Issued": days(35)},
        "subscriptions": subscriptions,
        "carts": {"Cart Abandoned": days(310)},
    }


@pytest.fixture
def seeded(shop: Deployment, worker: Worker, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    fill(shop)
    trouble(shop, worker, monkeypatch)
    return shop


# --- what it tells ----------------------------------------------------------------------------------------------------


def test_it_tells_of_every_sync_and_of_every_check_how_it_is(seeded):
    told = status()
    states = {one["sync"]: one["state"] for one in told["syncs"]}
    assert states == {
        "customers": "live",
        "orders": "live",
        "refunds": "paused",
        "subscriptions": "live",
        "back_in_stock": "disabled",
        "carts": "live",
        "merges": "not live",
        "removals": "not live",
    }
    orders = of(told, "orders")
    run = orders["last_run"]
    assert (run["outcome"], run["rows"], run["accepted"], run["dead_letters"]) == ("ok", 401, 400, 1)
    assert 0 <= orders["lag_seconds"] < 600
    assert orders["dead_letters"]["total"] == 1
    (letter,) = orders["dead_letters"]["reasons"]
    assert (letter["count"], "customer_id" in letter["reason"]) == (1, True)
    (counts,) = orders["volume"].values()
    assert len(counts) == 30
    assert counts[-2] == volume()["orders"]["Order Placed"][(datetime.now(UTC).date() - timedelta(days=1)).isoformat()]
    (failed,) = problems(told, "carts")
    assert failed[0] == "failed" and "retention.carts" in failed[1]
    assert problems(told, "refunds")[0][1].endswith("amounts are looked into")
    assert told["level"] == "failed" and told["problems"][0]["level"] == "failed"
    assert [(one["check"], len(one["findings"])) for one in told["findings"]] == [
        ("audit", 2),
        ("census", 0),
        ("reconciliation", 1),
    ]
    assert {one["about"] for one in told["problems"]} == {"carts", "refunds", "orders", "audit", "reconciliation"}
    assert [one["missing"] for one in told["reconciliation"]["segments"]] == [None, 12, None]
    (resync,) = told["runs"]
    assert (resync["kind"], resync["sync"], resync["state"]) == ("resync", "customers", "running")
    assert resync["slices"]["done"] == 1 and 0 < resync["percent"] < 100


def test_the_page_shows_what_the_json_tells(seeded):
    told, shown = status(), re.sub(r"\s+", " ", page())
    for one in told["problems"]:
        assert one["what"].replace("'", "&#39;") in shown
    for sync in CATALOGUE:
        assert f"<h3>{sync.name}</h3>" in shown
    assert shown.count("<svg") == 5
    assert re.search(r'aria-label="orders, accepted a day from [\d-]+ to [\d-]+: [\d,]+ in all', shown)
    for text in ("VIP", "off</span>", "Customer.io is still building it.", told["runs"][0]["run"], "nothing found"):
        assert text in shown


def test_the_docs_explain_every_state_and_what_the_json_holds(seeded):
    text = Path("docs/status.md").read_text()
    told = status()
    names = [*told, *told["syncs"][0], *told["problems"][0]]
    assert [name for name in names if f"`{name}`" not in text and name not in ("at", "paused", "sync", "state")] == []
    assert [one["state"] for one in told["syncs"] if f"| `{one['state']}` |" not in text] == []


def test_a_new_deployment_has_a_page_that_says_that_nothing_is_live(shop):
    told = status()
    assert told["level"] == "warning"
    assert [one["about"] for one in told["problems"]] == ["all syncs"]
    assert (told["reconciliation"], told["runs"], told["findings"]) == (None, [], [])
    assert "1 thing to look at" in page()


def test_when_nothing_is_wrong_it_says_so(shop):
    add_customers(shop.sql, range(3))
    shop.run("customers", FIRST_PASS="all")
    assert (status()["level"], status()["problems"]) == ("ok", [])
    assert "All is well" in page()


def test_a_sync_that_was_not_read_to_its_end_for_long_is_late(shop):
    add_customers(shop.sql, range(3))
    shop.run("customers", FIRST_PASS="all")
    name = "syncs/customers/mark.json"
    mark = json.loads(shop.read(name))
    for hours, late in ((25, []), (49, [("failed", "was last read to its end 2 days ago.")])):
        mark["seen"]["at"] = (datetime.now(UTC) - timedelta(hours=hours)).replace(tzinfo=None).isoformat()
        write(shop, name, mark)
        assert problems(status(), "customers") == late


def test_a_plan_that_waits_for_approval_is_told_until_it_expires(shop, worker):
    add_customers(shop.sql, range(3))
    call("go_live", {"syncs": ["customers"]})
    worker.work()
    (run,) = status()["runs"]
    assert run["state"] == "awaiting_approval"
    assert "approval" in problems(status(), f"run {run['run']}")[0][1]
    name = f"runs/{run['run']}/run.json"
    write(shop, name, {**json.loads(shop.read(name)), "expires": "2026-01-01T00:00:00.000+00:00"})
    assert status()["runs"] == []


def test_slices_that_were_given_up_are_a_problem(seeded):
    run = status()["runs"][0]["run"]
    seeded.container.upload_blob(f"runs/{run}/slices/1.json", b"{}", overwrite=True, metadata={"status": "poison"})
    assert problems(status(), f"run {run}")[0][0] == "failed"


@pytest.mark.parametrize("age", [timedelta(), timedelta(minutes=40), timedelta(hours=20), timedelta(days=11)], ids=str)
def test_the_last_run_is_the_newest_however_long_ago_it_was(shop, age):
    add_customers(shop.sql, range(3))
    ran = shop.run("customers", FIRST_PASS="all")
    record = json.loads(shop.read(f"syncs/customers/runs/{ran.run}.json"))
    shop.container.delete_blob(f"syncs/customers/runs/{ran.run}.json")
    newest = datetime.now(UTC) - age
    ids = [
        str(ULID.from_datetime(newest - earlier)) for earlier in (timedelta(), timedelta(minutes=1), timedelta(hours=9))
    ]
    for run in ids:
        write(shop, f"syncs/customers/runs/{run}.json", record | {"run": run})
    assert of(status(), "customers")["last_run"]["run"] == ids[0]


def test_of_more_dead_letters_than_are_read_the_number_is_told(shop):
    shop.container.create_container()
    write(shop, "syncs/orders/dead-letters/list.jsonl", b'{"letters": 20001, "pages": []}\n')
    assert of(status(), "orders")["dead_letters"] == {"total": 20001, "reasons": None}
    assert "too many" in page()


# --- how it is asked --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("accept", "params", "html"),
    [
        ("", {}, False),
        ("*/*", {}, False),
        ("application/json", {}, False),
        ("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", {}, True),
        ("application/json, text/html", {}, False),
        ("text/html", {"format": "json"}, False),
        ("", {"format": "html"}, True),
    ],
)
def test_a_browser_gets_a_page_and_anybody_else_json(shop, accept, params, html):
    told = answer(accept, **params)
    assert told.mimetype == ("text/html" if html else "application/json")
    assert told.headers["Cache-Control"] == "no-store"
    if html:
        assert told.headers["Content-Security-Policy"].startswith("default-src 'none'")
        text = told.get_body().decode()
        assert re.findall(r"<script|<link|<img|<iframe|src=|https?://|url\(|@import", text) == []


# --- what it never tells ----------------------------------------------------------------------------------------------


def test_no_person_is_on_it(seeded, worker):
    shop = seeded
    shop.sql.execute(f"INSERT INTO shop.customers (customer_id, email) VALUES ({PERSON}, 'planted@example.com')")
    shop.run("customers")
    call("resync", {"customer_ids": [PERSON]}, sync="customers")
    while worker.one("plans", "make_plan"):
        pass
    assert len(status()["runs"]) == 2
    assert any(str(PERSON).encode() in shop.read(name) for name in shop.blobs("runs/"))
    for text in (json.dumps(status()), page()):
        assert str(PERSON) not in text
        assert "@" not in text


def test_everything_on_the_page_is_escaped(seeded):
    evil = "<script>alert(1)</script>\"'&"
    call("pause", {"reason": evil})
    with closing(State(seeded.settings())) as state:
        note(state, "audit", [Finding(evil, evil, evil)])
    one = reconciliation()["segments"][0] | {"title": evil, "message": evil}
    write(seeded, "reconciliation.json", {"at": "2026-11-01T00:00:00+00:00", "segments": [one]})
    write(seeded, "volume.json", {"passes": {"orders": {evil: {}, "b": {}}}, "resyncs": {}})
    shown = page()
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;") == 7


# --- what is broken ---------------------------------------------------------------------------------------------------

BLOBS = {
    "pauses": "pause.json",
    "volume": "volume.json",
    "findings": "findings/audit.json",
    "reconciliation": "reconciliation.json",
    "customers": "syncs/customers/mark.json",
    "subscriptions": "syncs/subscriptions/runs/{run}.json",
    "orders": "syncs/orders/dead-letters/list.jsonl",
    "run {run}": "runs/{run}/run.json",
}


@pytest.mark.parametrize(
    "content",
    [DAMAGED, b'{"orders": 1}', pytest.param(b"", marks=pytest.mark.slow), pytest.param(b"[]", marks=pytest.mark.slow)],
    ids=["cut", "other", "empty", "list"],
)
def test_a_damaged_blob_is_told_in_its_place_and_all_else_as_before(seeded, content):
    before = status()
    resync, last = before["runs"][0]["run"], of(before, "subscriptions")["last_run"]["run"]
    for about, blob in BLOBS.items():
        run = resync if blob.startswith("runs/") else last
        about, name = about.format(run=run), blob.format(run=run)
        good = seeded.read(name)
        write(seeded, name, content)
        told = status()
        if content.startswith(b"{"):  # the others may pass for nothing
            (said, *_) = problems(told, about)
            assert said[0] == "failed" and (name in said[1] or f"run {run} is damaged" in said[1]), said
        assert page().count("<article") == len(CATALOGUE)
        for one in before["syncs"]:
            if about not in (one["sync"], "pauses", "volume"):
                there = of(told, one["sync"])
                assert {**one, "lag_seconds": 0} == {**there, "lag_seconds": 0}
        write(seeded, name, good)
    assert status()["problems"] == before["problems"]


def test_it_asks_neither_sql_server_nor_customer_io(seeded, monkeypatch):
    before = {**status(), "at": 0, "syncs": 0}
    monkeypatch.setenv("SQL_CONNECTION_STRING", "Server=127.0.0.1,1;Database=x;UID=x;PWD=x")
    for name in ("CUSTOMERIO_TRACK_URL", "CUSTOMERIO_APP_URL"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    began = time.monotonic()
    assert {**status(), "at": 0, "syncs": 0} == before
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_a_blob_service_that_does_not_answer_is_told_on_the_page(shop, monkeypatch):
    monkeypatch.setenv(
        "AzureWebJobsStorage",
        re.sub(
            r"BlobEndpoint=http://[^/]+/", "BlobEndpoint=http://127.0.0.1:1/", shop.environment["AzureWebJobsStorage"]
        ),
    )
    began = time.monotonic()
    shown = page()
    assert "Blob storage cannot be reached" in shown
    assert time.monotonic() - began < 90
