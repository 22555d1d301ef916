"""Reconciliation: segments against their views, who differs and why, and sending just these again."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from azure.functions.timer import TimerRequest

import function_app
from shared import findings, reconcile
from shared.findings import Finding
from shared.state import State
from tests.conftest import Deployment
from tests.test_golive import add_removals
from tests.test_passes import add_customers
from tests.test_qa import identify
from tests.test_resync import Worker, call, carried_out, shop, worker

__all__ = ["shop", "worker"]

VIP = ({"attr": "tier", "op": "eq", "value": "gold"}, {"attr": "since", "op": "is_timestamp"})


@pytest.fixture
def vip(shop: Deployment, monkeypatch: pytest.MonkeyPatch) -> int:
    """A segment of those whose tier is gold, for certain since a moment; 100 of the shop's 200 people are in it."""
    shop.sql.execute(
        "ALTER VIEW retention.customers AS SELECT customer_id, email, tier, CAST(500 AS int) AS spent,"
        " CAST('2026-01-02' AS datetime2(0)) AS since, row_version FROM shop.customers"
    )
    shop.sql.execute(
        "CREATE VIEW retention.segment_vip AS SELECT customer_id FROM retention.customers WHERE tier = 'gold'"
    )
    add_customers(shop.sql, range(200))
    shop.sql.execute("UPDATE shop.customers SET tier = 'silver' WHERE customer_id >= 100")
    number = shop.workspace.add_segment("VIP", *VIP, {"attr": "spent", "op": "gt", "value": 100})
    monkeypatch.setenv("SEGMENTS", f"vip={number}")
    return number


@pytest.fixture
def live(vip: int, shop: Deployment) -> Deployment:
    assert shop.run("customers", FIRST_PASS="all").outcome == "ok"
    return shop


def behind(shop: Deployment, person: int | str, **attributes: Any) -> None:
    """Somebody else writes, later than Tidemark did."""
    identify(shop, str(person), int(time.time()) + 1, **attributes)


def act(shop: Deployment, person: int, action: str) -> None:
    workspace = shop.workspace
    operation = {"type": "person", "identifiers": {"id": str(person)}, "action": action}
    credentials = (workspace.site_id, workspace.api_key)
    answer = httpx.post(f"{workspace.url}/api/v2/batch", auth=credentials, json={"batch": [operation]}, trust_env=False)
    assert answer.json() == {}


def asked(worker: Worker, **body: Any) -> dict[str, Any]:
    """The run once its plan is made: a reconciliation is done by then, but for a repair."""
    status, answer = call("reconcile", body)
    assert status == 202, answer
    while worker.one("plans", "make_plan"):
        pass
    return call("run", run=answer["run"])[1]


def reconciled(worker: Worker, **body: Any) -> dict[str, Any]:
    """The one segment that was compared."""
    told = asked(worker, **body)
    assert told["state"] == "done", told
    (segment,) = told["plan"]["segments"]
    return segment


def noted(shop: Deployment) -> list[Finding]:
    with closing(State(shop.settings())) as state:
        last = findings.last(state, "reconciliation")
    assert last is not None
    return list(last.findings)


def kept(shop: Deployment) -> dict[str, Any] | None:
    with closing(State(shop.settings())) as state:
        return reconcile.last(state)


def reasons(segment: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {one["customer_id"]: (one["is"], one["reason"]) for one in segment["people"]}


# --- what it finds ----------------------------------------------------------------------------------------------------


def test_twelve_who_are_missing_and_three_who_are_surplus_are_named_with_their_reasons(live, worker):
    behind(live, 1, since="2026-01-02T00:00:00Z")
    behind(live, 2, spent="500")
    identify(live, "stranger", email="c3@example.com", tier="gold")  # takes over who has this address
    act(live, 4, "delete")
    for person in range(5, 13):
        behind(live, person, tier="silver")
    for person in (100, 101):
        behind(live, person, tier="gold")
    segment = reconciled(worker)
    assert (segment["sql"], segment["customerio"], segment["difference"]) == (100, 91, -9)
    assert (segment["within"], segment["compared"], segment["missing"], segment["surplus"]) == (False, True, 12, 3)
    assert reasons(segment) == {
        "1": ("missing", "attribute_differs"),
        "2": ("missing", "unknown"),  # a number and its text read back alike
        "3": ("missing", "address_of_another_id"),
        "4": ("missing", "no_person"),
        **{str(person): ("missing", "attribute_differs") for person in range(5, 13)},
        "100": ("surplus", "attribute_differs"),
        "101": ("surplus", "attribute_differs"),
        "stranger": ("surplus", "no_row"),
    }
    differing = {one["customer_id"]: one["attributes"] for one in segment["people"] if "attributes" in one}
    assert (differing["1"], differing["5"]) == ({"since": "type"}, {"tier": "value"})
    (finding,) = noted(live)
    assert (finding.about, finding.count) == ("segment_vip", 15)
    assert set(finding.people) == set(reasons(segment))
    assert finding.what == segment["message"]
    assert finding.what.startswith("12 missing, 3 surplus. Of 15 looked at: attribute_differs 11,")
    assert "Attributes: tier 10, since 1." in finding.what


def test_what_is_kept_names_nobody(live, worker):
    behind(live, 77, tier="silver")
    behind(live, "stranger", tier="gold", since=1, spent=500)
    reconciled(worker)
    result = kept(live)
    assert result is not None
    (segment,) = result["segments"]
    assert set(segment) - {"at"} == {
        *("name", "segment", "title", "state", "sql", "customerio", "difference", "within", "compared", "missing"),
        *("surplus", "message"),
    }
    assert (segment["title"], segment["state"], segment["within"]) == ("VIP", "finished", True)
    for person in range(50, 60):
        behind(live, person, tier="silver")
    reconciled(worker)
    text = live.read("reconciliation.json").decode()
    assert json.loads(text)["segments"][0]["missing"] == 11
    assert "stranger" not in text and '"77"' not in text
    assert all("stranger" not in str(one.told()) for one in noted(live))


def test_a_clean_state_and_one_within_the_tolerance_are_no_finding(live, worker, monkeypatch):
    segment = reconciled(worker)
    assert (segment["difference"], segment["within"], segment["compared"]) == (0, True, False)
    assert (segment["missing"], segment["people"], noted(live)) == (None, [], [])
    behind(live, 1, tier="silver")
    monkeypatch.setenv("RECONCILIATION_TOLERANCE_PERCENT", "1")
    assert reconciled(worker)["within"] is True
    assert noted(live) == []
    monkeypatch.setenv("RECONCILIATION_TOLERANCE_PERCENT", "0.9")
    assert reconciled(worker)["within"] is False
    assert len(noted(live)) == 1
    monkeypatch.setenv("RECONCILIATION_TOLERANCE_PERCENT", "1")
    reconciled(worker)
    assert noted(live) == []  # what is over goes by itself


@pytest.mark.parametrize("state", ["build", "events_queued"])
def test_a_segment_that_is_being_built_is_not_compared(live, worker, monkeypatch, state):
    number = live.workspace.add_segment("Nobody yet", *VIP, {"attr": "tier", "op": "eq", "value": "?"}, state=state)
    monkeypatch.setenv("SEGMENTS", f"vip={number}")
    segment = reconciled(worker)
    assert (segment["state"], segment["compared"], segment["customerio"]) == (state, False, None)
    assert "still building" in segment["message"]
    assert noted(live) == []


def test_who_has_changed_since_the_last_pass_is_not_yet_synced_and_no_finding(live, worker):
    live.sql.execute("UPDATE shop.customers SET tier = 'gold' WHERE customer_id >= 195")
    live.sql.execute("UPDATE shop.customers SET tier = 'bronze' WHERE customer_id < 2")
    segment = reconciled(worker)
    assert (segment["missing"], segment["surplus"]) == (5, 2)
    assert {reason for _, reason in reasons(segment).values()} == {"not_yet_synced"}
    assert noted(live) == []
    live.run("customers")
    assert reconciled(worker)["within"] is True


def test_with_updated_at_too_only_what_changed_since_the_last_pass_is_not_yet_synced(deployment, monkeypatch):
    deployment.sql.execute(
        "CREATE TABLE shop.people (customer_id nvarchar(20) NOT NULL PRIMARY KEY, tier varchar(9),"
        " updated_at datetime2(6) DEFAULT SYSUTCDATETIME())"
    )
    deployment.sql.execute("CREATE VIEW retention.customers AS SELECT customer_id, tier, updated_at FROM shop.people")
    deployment.sql.execute(
        "CREATE VIEW retention.segment_vip AS SELECT customer_id FROM shop.people WHERE tier = 'gold'"
    )
    for person in "abcdefgh":
        deployment.sql.execute("INSERT INTO shop.people (customer_id, tier) VALUES (?, 'gold')", person)
    number = deployment.workspace.add_segment("VIP", VIP[0])
    for name, value in {**deployment.environment, "SEGMENTS": f"vip={number}"}.items():
        monkeypatch.setenv(name, value)
    deployment.run("customers")
    time.sleep(1)
    deployment.run("customers")
    behind(deployment, "a", tier="silver")
    deployment.sql.execute("INSERT INTO shop.people (customer_id, tier) VALUES ('A', 'gold')")  # another than a
    segment = reconciled(Worker(deployment))
    assert reasons(segment) == {"a": ("missing", "attribute_differs"), "A": ("missing", "not_yet_synced")}


def test_ids_are_compared_as_they_are_sent(deployment, monkeypatch):
    deployment.sql.execute(
        "CREATE TABLE shop.people (customer_id uniqueidentifier NOT NULL PRIMARY KEY, tier varchar(9), row_version rowversion)"
    )
    deployment.sql.execute("CREATE VIEW retention.customers AS SELECT customer_id, tier, row_version FROM shop.people")
    deployment.sql.execute("CREATE VIEW retention.segment_vip AS SELECT customer_id FROM shop.people")
    first, second = "0e984725-c51c-4bf4-9960-e1c80e27aba0", "FFFFFFFF-C51C-4BF4-9960-E1C80E27ABA0"
    for person in (first, second):
        deployment.sql.execute("INSERT INTO shop.people (customer_id, tier) VALUES (?, 'gold')", person)
    number = deployment.workspace.add_segment("VIP", VIP[0])
    for name, value in {**deployment.environment, "SEGMENTS": f"vip={number}"}.items():
        monkeypatch.setenv(name, value)
    deployment.run("customers")
    behind(deployment, first, tier="silver")
    assert reasons(reconciled(Worker(deployment))) == {first: ("missing", "attribute_differs")}


def test_who_was_removed_is_missing_rightly_and_surplus_wrongly(live, worker):
    add_removals(live)
    live.sql.execute("INSERT INTO shop.removals (removal_id, customer_id, action) VALUES (1, 2, 'delete')")
    live.run("removals", FIRST_PASS="all")
    segment = reconciled(worker)
    assert (segment["missing"], segment["people"]) == (1, [])  # no id of who was removed is kept
    assert segment["message"] == "1 missing (1 of them rightly: they were removed), 0 surplus."
    assert noted(live) == []
    live.sql.execute("UPDATE shop.customers SET tier = 'silver' WHERE customer_id IN (2, 3)")
    live.run("customers")
    identify(live, "2", tier="gold", since=1, spent=500)
    assert reasons(reconciled(worker)) == {"2": ("surplus", "removed")}
    assert len(noted(live)) == 1


def test_people_without_an_id_are_counted(live, worker):
    workspace = live.workspace
    operations = [
        {
            "type": "person",
            "identifiers": {"email": f"guest{number}@example.com"},
            "action": "identify",
            "attributes": {"tier": "gold", "since": 1, "spent": 500},
        }
        for number in range(2)
    ]
    credentials = (workspace.site_id, workspace.api_key)
    httpx.post(f"{workspace.url}/api/v2/batch", auth=credentials, json={"batch": operations}, trust_env=False)
    segment = reconciled(worker)
    assert (segment["missing"], segment["surplus"], segment["people"]) == (0, 2, [])
    assert "2 of them without an id" in segment["message"]
    assert [one.count for one in noted(live)] == [2]


def test_an_app_api_that_answers_429_at_first_is_waited_out(live, worker):
    workspace = live.workspace
    headers = {"Authorization": f"Bearer {workspace.app_api_key}"}
    with httpx.Client(base_url=workspace.url, headers=headers, trust_env=False) as other:
        while other.get("/v1/segments").status_code != 429:
            pass
    before = workspace.stats()["app_requests_by_status"]["429"]
    assert reconciled(worker)["within"] is True
    assert workspace.stats()["app_requests_by_status"]["429"] > before


def test_null_that_left_an_attribute_alone_is_a_reason_of_its_own(live, worker):
    live.sql.execute("UPDATE shop.customers SET tier = NULL WHERE customer_id = 1")
    live.run("customers")
    segment = reconciled(worker)
    assert reasons(segment) == {"1": ("surplus", "attribute_kept")}


# --- settings, views and segments that do not fit ---------------------------------------------------------------------


def test_what_is_mapped_wrongly_is_said_of_each_and_holds_nobody_else_up(live, worker, vip, monkeypatch):
    live.sql.execute("CREATE VIEW retention.segment_wrong AS SELECT email FROM shop.customers")
    live.sql.execute("CREATE VIEW retention.segment_unmapped AS SELECT customer_id FROM shop.customers")
    monkeypatch.setenv("SEGMENTS", f"vip={vip}, gone={vip}, wrong={vip}")
    told = asked(worker)
    said = {one["name"]: one["message"] for one in told["plan"]["segments"]}
    assert said["vip"] == ""
    assert "no view retention.segment_gone" in said["gone"]
    assert "retention.segment_wrong has no column customer_id" in said["wrong"]
    assert told["plan"]["not_in_segments"] == ["unmapped"]
    assert {one.about for one in noted(live)} == {"segment_gone", "segment_wrong"}
    result = kept(live)
    assert result is not None
    assert {one["name"]: one["segment"] for one in result["segments"]} == {
        **dict.fromkeys(("gone", "vip", "wrong"), vip),
        "unmapped": None,
    }
    monkeypatch.setenv("SEGMENTS", "vip=99")
    assert "no segment 99" in reconciled(worker)["message"]
    assert [(one.about, "SEGMENTS" in one.do) for one in noted(live)] == [("segment_vip", True)]


def test_a_part_that_is_asked_for_leaves_what_is_known_of_the_others(live, worker, vip, monkeypatch):
    live.sql.execute("CREATE VIEW retention.segment_all AS SELECT customer_id FROM shop.customers")
    everybody = live.workspace.add_segment("All", VIP[1])
    monkeypatch.setenv("SEGMENTS", f"vip={vip}, all={everybody}")
    behind(live, 1, tier="silver")
    asked(worker)
    act(live, 198, "delete")
    act(live, 199, "delete")
    segment = reconciled(worker, segments=["all"])
    assert (segment["name"], segment["missing"]) == ("all", 2)
    assert {one.about: one.count for one in noted(live)} == {"segment_all": 2, "segment_vip": 1}
    result = kept(live)
    assert result is not None
    assert {one["name"]: one["missing"] for one in result["segments"]} == {"all": 2, "vip": 1}


@pytest.mark.parametrize("body", [{"segments": []}, {"segments": ["gold"]}, {"repair": "yes"}, {"segment": ["vip"]}])
def test_a_wrong_request_is_a_422_that_names_the_field(live, body):
    status, answer = call("reconcile", body)
    assert (status, next(iter(body)) in answer["error"]) == (422, True), answer


def timer() -> None:
    function_app.reconciliation.build().get_user_function()(TimerRequest())


@pytest.mark.parametrize("name", ["SEGMENTS", "CUSTOMERIO_APP_API_KEY"])
def test_without_segments_or_a_key_the_timer_says_so_and_does_nothing(live, worker, monkeypatch, caplog, name):
    caplog.set_level(logging.INFO, "tidemark")
    monkeypatch.setenv(name, "")
    before = live.blobs("runs/")
    timer()
    assert name in caplog.text
    assert live.blobs("runs/") == before
    status, answer = call("reconcile", {})
    assert (status, name in answer["error"]) == (409, True)


def test_before_going_live_nothing_is_compared(vip, shop, worker, caplog):
    caplog.set_level(logging.INFO, "tidemark")
    timer()
    assert "customers is not live" in caplog.text
    assert call("reconcile", {})[0] == 409
    assert worker.messages("plans") == []


def test_the_timer_compares_all(live, worker):
    behind(live, 1, tier="silver")
    timer()
    worker.work()
    assert [one.count for one in noted(live)] == [1]


# --- the repair -------------------------------------------------------------------------------------------------------


def test_a_repair_sends_exactly_who_differs_and_the_segment_is_right_again(live, worker, vip):
    behind(live, 1, since="2026-01-02T00:00:00Z")
    behind(live, 2, spent="500")
    act(live, 3, "delete")
    identify(live, "stranger", tier="gold", since=1, spent=500)
    time.sleep(2)  # what was written behind has a later time than a resync before that
    live.workspace.add_campaign("Draft", trigger_segment_ids=[vip], state="draft")
    before = live.workspace.stats()["operations"]
    told = asked(worker, repair=True)
    assert told["plan"]["used_by"] == {"vip": [{"id": 1, "name": "Draft", "state": "draft"}]}
    assert (told["state"], told["plan"]["needs_approval"], told["plan"]["people"]) == ("running", [], 3)
    told = carried_out(worker, told)
    assert live.workspace.stats()["operations"] - before == 3
    assert told["progress"]["accepted"] == 3
    assert reasons(reconciled(worker)) == {"stranger": ("surplus", "no_row")}


@pytest.mark.parametrize("why", ["campaign", "APPROVAL_PEOPLE"])
def test_a_repair_that_could_reach_many_or_start_a_campaign_waits_for_approval(live, worker, vip, monkeypatch, why):
    for person in (1, 2):
        behind(live, person, tier="silver")
    if why == "campaign":
        live.workspace.add_campaign("Dear VIP", trigger_segment_ids=[vip])
    else:
        monkeypatch.setenv("APPROVAL_PEOPLE", "1")
    before = live.workspace.stats()["operations"]
    told = asked(worker, repair=True)
    worker.work()
    assert told["state"] == "awaiting_approval"
    assert why in str(told["plan"]["needs_approval"])
    assert live.workspace.stats()["operations"] == before
    carried_out(worker, told)
    assert live.workspace.stats()["operations"] == before + 2


def test_a_repair_of_nobody_sends_nothing(live, worker):
    before = live.workspace.stats()["operations"]
    told = asked(worker, repair=True)
    worker.work()
    assert (told["state"], live.workspace.stats()["operations"]) == ("done", before)


def test_more_people_than_a_resync_may_name_are_no_repair(live, worker, monkeypatch):
    fill(live, "many", 10_001)
    nobody = live.workspace.add_segment("Nobody", {"attr": "tier", "op": "eq", "value": "?"})
    monkeypatch.setenv("SEGMENTS", f"many={nobody}")
    told = asked(worker, repair=True)
    assert (told["state"], told["plan"]["segments"][0]["missing"]) == ("failed", 10_001)
    assert "many more than 10,000 people" in told["message"]
    assert len(told["plan"]["segments"][0]["people"]) == 100
    assert [one.count for one in noted(live)] == [10_001]


# --- a million --------------------------------------------------------------------------------------------------------


def fill(shop: Deployment, name: str, size: int) -> None:
    """A view of so many people, with the ids from 0 on."""
    digits = "(VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9))"
    number = "a.d + 10 * b.d + 100 * c.d + 1000 * e.d + 10000 * f.d + 100000 * g.d"
    joins = " CROSS JOIN ".join(f"{digits} AS {one}(d)" for one in "abcefg")
    shop.sql.execute(f"CREATE TABLE shop.{name} (customer_id int NOT NULL PRIMARY KEY)")
    shop.sql.execute(f"INSERT INTO shop.{name} SELECT {number} FROM {joins} WHERE {number} < {size}")
    shop.sql.execute(f"CREATE VIEW retention.segment_{name} AS SELECT customer_id FROM shop.{name}")


SIZE = 1_000_000
MISSING, SURPLUS = range(12), range(SIZE, SIZE + 3)


@pytest.fixture
def crowd() -> Iterator[tuple[str, list[str]]]:
    """An App API whose one segment has a million people, by pages as Customer.io's; its address, and what was asked."""
    paths: list[str] = []
    members = [*range(len(MISSING), SIZE), *SURPLUS]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            paths.append(self.path)
            path, _, query = self.path.partition("?")
            params = dict(one.split("=") for one in query.split("&") if one)
            if path.endswith("/customer_count"):
                answer: dict[str, Any] = {"segment_id": 1, "count": len(members) + 6000}  # counts may lag behind
            elif path.endswith("/membership"):
                start = int(params.get("start", 0))
                page = [str(one) for one in members[start : start + int(params["limit"])]]
                following = str(start + len(page)) if start + len(page) < len(members) else ""
                people = [{"id": one, "email": f"{one}@example.com", "cio_id": f"a{one}"} for one in page]
                answer = {"segment_id": 1, "ids": page, "identifiers": people, "next": following}
            elif path == "/v1/segments":
                answer = {"segments": [{"id": 1, "name": "All", "state": "finished", "type": "dynamic"}]}
            else:
                answer = {"customers": [], "results": []}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", paths
        server.shutdown()


CHILD = """
import sys
from pathlib import Path
from local import driver

driver.register()
from shared import work

work.make_plan(sys.argv[1])
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(peak.split()[1])
"""


@pytest.mark.slow
def test_a_million_people_cost_less_than_300_megabytes_and_40_requests(live, crowd, monkeypatch):
    url, paths = crowd
    fill(live, "all", SIZE)
    monkeypatch.setenv("SEGMENTS", "all=1")
    monkeypatch.setenv("CUSTOMERIO_APP_URL", url)
    status, answer = call("reconcile", {})
    assert status == 202
    # the peak of this very process: what getrusage tells of a child begins with its parent's
    child = [sys.executable, "-c", CHILD, json.dumps({"run": answer["run"]})]
    began = time.monotonic()
    ran = subprocess.run(child, capture_output=True, text=True, env=dict(os.environ), check=False)
    assert ran.returncode == 0, ran.stderr
    megabytes = int(ran.stdout) / 1024
    print(f"{megabytes:.0f} MB, {len(paths)} requests, {time.monotonic() - began:.1f} s")
    told = call("run", run=answer["run"])[1]
    (segment,) = told["plan"]["segments"]
    assert (segment["sql"], segment["missing"], segment["surplus"]) == (SIZE, 12, 3)
    assert set(reasons(segment)) == {str(one) for one in (*MISSING, *SURPLUS)}
    assert {reason for side, reason in reasons(segment).values() if side == "missing"} == {"no_person"}
    assert megabytes < 300
    assert len(paths) < 40
