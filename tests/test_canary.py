"""The canary: an event of a test person, followed to its message, sent again, and what is said where that goes wrong."""

import json
import threading
import time
from contextlib import closing
from typing import Any

import httpx
import pytest

from shared import findings
from shared.people import People
from shared.resync import Runs, Stage
from shared.state import Identity, State
from tests.conftest import Deployment
from tests.test_passes import add_customers
from tests.test_qa import identify
from tests.test_resync import Worker, call, call_queue, go_live, shop, worker

__all__ = ["shop", "worker"]

PERSON = "tidemark-canary"
ONLY_IT = [{"attr": "tidemark_canary", "op": "eq", "value": True}]


@pytest.fixture(autouse=True)
def canary(shop: Deployment, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """A test person with an address, as the operator has made it, and no patience."""
    monkeypatch.setenv("CANARY_CUSTOMER_ID", PERSON)
    monkeypatch.setenv("QA_WAIT_SECONDS", "0")
    identify(shop, PERSON, email="canary@example.com")
    return shop


@pytest.fixture
def campaign(shop: Deployment, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes CANARY_CAMPAIGN, or with another event's name CANARY_CART_CAMPAIGN."""

    def make(event_name: str = "Order Placed", setting: str = "", **changes: Any) -> int:
        setting = setting or ("CANARY_CAMPAIGN" if event_name == "Order Placed" else "CANARY_CART_CAMPAIGN")
        number = shop.workspace.add_campaign(
            "Canary", **{"event_name": event_name, "delays": [0], "filter": ONLY_IT, **changes}
        )
        monkeypatch.setenv(setting, str(number))
        return number

    return make


@pytest.fixture
def cart(campaign: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the campaign of carts, whose second message comes three seconds after the first."""
    monkeypatch.setenv("QA_WAIT_SECONDS", "4")

    def make(**changes: Any) -> int:
        number: int = campaign("Cart Abandoned", **{"delays": [0, 3], "exit_event": "Order Placed", **changes})
        return number

    return make


def asked(worker: Worker, journey: str = "order") -> dict[str, Any]:
    """The run once it is over."""
    status, answer = call("canary", {"journey": journey})
    assert status == 202, answer
    worker.work()
    return call("run", run=answer["run"])[1]


def found(shop: Deployment, check: str = "canary") -> list[findings.Finding]:
    with closing(State(shop.settings())) as state:
        noted = findings.last(state, check)
    assert noted is not None
    return list(noted.findings)


def steps(run: dict[str, Any]) -> list[str]:
    return [one["step"] for one in run["plan"]["steps"]]


def test_an_order_and_its_message_come_once_and_its_repetitions_change_nothing(shop, worker, campaign):
    number = campaign()
    run = asked(worker)
    assert (run["state"], run["plan"]["campaign"], run["message"]) == ("done", number, "")
    (event,) = shop.workspace.events()
    assert (event["person"], event["name"], event["attributes"]["canary"]) == (PERSON, "Order Placed", True)
    assert event["attributes"]["order_id"] == event["attributes"]["event_id"]
    assert shop.workspace.people()[PERSON]["tidemark_canary"] is True
    assert shop.workspace.stats()["duplicate_events_dropped"] == 2
    sent = [one for one in run["plan"]["steps"] if "ulid" in one]
    assert (len(sent), {one["ulid"] for one in sent}) == (3, {event["ulid"]})
    seen = [(one["events"], one["messages"]) for one in run["plan"]["steps"] if "events" in one]
    assert seen == [(1, 1), (1, 1)]
    assert found(shop) == []


def test_after_going_live_another_canary_is_another_event_and_not_confused_by_the_last_message(shop, worker, campaign):
    campaign()
    assert asked(worker)["state"] == "done"
    add_customers(shop.sql, range(3))
    go_live(worker, syncs=["customers"])
    assert asked(worker)["state"] == "done"
    assert len({event["ulid"] for event in shop.workspace.events()}) == 2


def test_without_a_campaign_only_the_event_is_looked_for_and_that_is_said(shop, worker):
    run = asked(worker)
    assert run["state"] == "done"
    assert "CANARY_CAMPAIGN is not set" in run["plan"]["note"]
    assert run["plan"]["steps"][-1]["events"] == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"state": "stopped"}, "stopped"),
        ({"event_name": "Refund Issued", "setting": "CANARY_CAMPAIGN"}, "does not start on the event Order Placed"),
    ],
)
def test_a_campaign_that_cannot_start_is_named_before_anything_is_sent(shop, worker, campaign, changes, said):
    number = campaign(**changes)
    run = asked(worker)
    assert run["state"] == "failed"
    assert f"Campaign {number}" in run["message"] and said in run["message"]
    assert "tidemark_canary" not in shop.workspace.people()[PERSON]
    assert list(shop.workspace.events()) == []
    (finding,) = found(shop)
    assert (finding.about, finding.people, finding.count) == ("canary order", [PERSON], 1)
    assert f"{finding.what} {finding.do}" == run["message"]


def test_a_campaign_that_is_not_there_is_named(shop, worker, monkeypatch):
    monkeypatch.setenv("CANARY_CAMPAIGN", "77")
    assert "no campaign 77" in asked(worker)["message"]


def test_what_was_found_is_over_when_all_is_well_again(shop, worker, campaign):
    campaign(state="stopped")
    asked(worker)
    assert len(found(shop)) == 1
    campaign()
    asked(worker)
    assert found(shop) == []


def test_an_event_that_is_shown_twice_is_found(shop, worker, campaign):
    campaign()
    shop.workspace.configure(deduplicates=False)
    run = asked(worker)
    assert run["state"] == "failed"
    assert "shows the canary's Order Placed 3 times" in run["message"]
    assert steps(run)[-1] == "Order Placed sent the third time, with the same ULID"


@pytest.mark.parametrize(("deduplicates", "state"), [(True, "done"), (False, "failed")])
def test_events_whose_lines_tell_nothing_but_their_time_are_known_by_it(shop, worker, campaign, deduplicates, state):
    campaign()
    shop.workspace.configure(bare_events=True, deduplicates=deduplicates)
    assert asked(worker)["state"] == state


def test_a_message_that_comes_twice_is_found(shop, worker, campaign):
    campaign(copies=2)
    assert "has made 2 messages" in asked(worker)["message"]


def test_a_message_that_could_not_be_delivered_is_found_without_its_reason(shop, worker, campaign):
    campaign(failure="no mailbox canary@example.com")
    assert "it could not be delivered" in asked(worker)["message"]


@pytest.mark.parametrize(
    "changes",
    [{"filter": [{"attr": "vip", "op": "exists"}]}, {"delays": [60]}],
    ids=["the filter excludes the person", "the message comes late"],
)
def test_a_message_that_does_not_come_is_found(shop, worker, campaign, changes):
    number = campaign(**changes)
    run = asked(worker)
    assert run["state"] == "failed"
    assert f"campaign {number} has made no message within 0 seconds" in run["message"]
    assert "filter" in run["message"]


@pytest.mark.parametrize("with_campaign", [True, False])
def test_an_event_that_does_not_show_is_found(shop, worker, campaign, with_campaign):
    if with_campaign:
        campaign()
    assert asked(worker)["state"] == "done"
    shop.workspace.configure(lag_seconds=60)
    assert "does not show it within 0 seconds" in asked(worker)["message"]


def test_a_person_who_is_suppressed_is_found(shop, worker, campaign):
    campaign()
    workspace = shop.workspace
    operation = {"type": "person", "identifiers": {"id": PERSON}, "action": "suppress"}
    auth = (workspace.site_id, workspace.api_key)
    httpx.post(f"{workspace.url}/api/v2/batch", auth=auth, json={"batch": [operation]}, trust_env=False)
    run = asked(worker)
    assert "does not show the person" in run["message"]
    assert list(workspace.events()) == []


def test_a_person_who_was_removed_is_sent_nothing(shop, worker, campaign):
    campaign()
    with closing(State(shop.settings())) as state:
        state.create()
        People(state).begin()
        People(state).remove([PERSON])
    assert "was removed" in asked(worker)["message"]
    assert "tidemark_canary" not in shop.workspace.people()[PERSON]


def test_a_state_that_belongs_to_another_workspace_is_left_alone(shop, worker, campaign):
    campaign()
    with closing(State(shop.settings())) as state:
        state.create()
        state.remember(Identity("another", "server", "shop"))
    assert "belongs to the Customer.io workspace another" in asked(worker)["message"]
    assert list(shop.workspace.events()) == []


# --- the cart ---------------------------------------------------------------------------------------------------------


def test_an_order_ends_the_journey_of_the_cart(shop, worker, cart):
    cart()
    run = asked(worker, "cart")
    assert (run["state"], run["message"]) == ("done", "")
    assert [event["name"] for event in shop.workspace.events()] == ["Cart Abandoned", "Order Placed"]
    assert run["plan"]["steps"][-1]["left"] is True
    assert found(shop, "canary_cart") == []


def test_a_message_after_the_order_is_found(shop, worker, cart):
    number = cart(exit_event="Nothing")
    run = asked(worker, "cart")
    assert run["state"] == "failed"
    assert f"Campaign {number} has made 2 messages" in run["message"] and "conversion goal" in run["message"]
    (finding,) = found(shop, "canary_cart")
    assert finding.about == "canary cart"


def test_a_second_message_that_was_faster_than_the_order_is_no_reason_to_blame_the_exit(shop, worker, cart):
    cart(delays=[0, 0])
    run = asked(worker, "cart")
    assert "two minutes or more" in run["message"] and "conversion goal" not in run["message"]


def test_that_nobody_is_seen_to_leave_is_said_and_no_finding(shop, worker, cart, monkeypatch):
    monkeypatch.setenv("QA_WAIT_SECONDS", "0")
    cart(delays=[0, 60], exit_event="Nothing")
    run = asked(worker, "cart")
    assert (run["state"], run["plan"]["steps"][-1]["left"]) == ("done", False)
    assert "what is taken for it" in steps(run)[-1]


# --- what may be asked, and when --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "journey"),
    [("CANARY_CUSTOMER_ID", "order"), ("CUSTOMERIO_APP_API_KEY", "order"), ("CANARY_CART_CAMPAIGN", "cart")],
)
def test_a_setting_that_is_missing_is_a_409_that_names_it(shop, worker, monkeypatch, missing, journey):
    monkeypatch.delenv(missing, raising=False)
    status, answer = call("canary", {"journey": journey})
    assert (status, missing in answer["error"]) == (409, True)
    assert worker.messages("plans") == []


@pytest.mark.parametrize("body", [{"journey": "refund"}, {"person": "42"}])
def test_a_wrong_request_is_a_422_that_names_the_field(shop, worker, body):
    status, answer = call("canary", body)
    assert (status, next(iter(body)) in answer["error"]) == (422, True)


def test_a_customer_is_never_the_test_person(shop, worker, campaign, monkeypatch):
    campaign(filter=[])
    monkeypatch.setenv("CANARY_CUSTOMER_ID", "3")
    answer = call("canary")[1]
    add_customers(shop.sql, range(5))  # between the request and the run
    worker.work()
    run = call("run", run=answer["run"])[1]
    assert run["state"] == "failed" and "the id of a customer" in run["message"]
    status, answer = call("canary")
    assert (status, "the id of a customer" in answer["error"]) == (422, True)
    assert "3" not in shop.workspace.people()


@pytest.mark.parametrize(("paused", "sends"), [(None, 0), ("orders", 1)])
def test_a_pause_stops_it_before_its_next_batch(shop, worker, campaign, paused, sends):
    campaign()
    before = shop.workspace.stats()["operations"]
    call("pause", {"reason": "wrong prices", **({"sync": paused} if paused else {})})
    run = asked(worker)
    assert run["state"] == "failed" and "is paused" in run["message"]
    assert shop.workspace.stats()["operations"] == before + sends


def test_a_run_whose_worker_died_sends_the_same_events_again(shop, worker, cart, monkeypatch):
    monkeypatch.setenv("QA_WAIT_SECONDS", "0")
    cart(delays=[0, 60])
    run = asked(worker, "cart")["run"]
    with closing(State(shop.settings())) as state:
        Runs(state).change(run, [Stage.DONE], state=Stage.PLANNING)  # it died before it could say so
    time.sleep(1.1)  # another second
    call_queue("make_plan", json.dumps({"run": run}))
    told = call("run", run=run)[1]
    assert (told["state"], told["plan"]["steps"][-1]["left"]) == ("done", True)
    stats = shop.workspace.stats()
    assert (stats["events_stored"], stats["duplicate_events_dropped"]) == (2, 2)


def test_two_canaries_do_not_go_at_once(shop, worker, campaign):
    campaign()
    with closing(State(shop.settings())) as state:
        state.create()
        other = Runs(state).create("canary", {"journey": "order"})
    run = asked(worker)
    assert run["state"] == "failed" and other.run in run["message"]
    call("decide", run=other.run, decision="cancel")
    assert asked(worker)["state"] == "done"


def test_a_canceled_run_sends_nothing_more_and_stays_canceled(shop, worker, campaign, monkeypatch):
    campaign(delays=[60])
    monkeypatch.setenv("QA_WAIT_SECONDS", "4")
    run = call("canary")[1]["run"]
    working = threading.Thread(target=worker.work)
    working.start()
    while not list(shop.workspace.events()):
        time.sleep(0.05)
    assert call("decide", run=run, decision="cancel")[0] == 200
    working.join()
    told = call("run", run=run)[1]
    assert (told["state"], told["message"]) == ("canceled", "")
    assert worker.messages("plans") == []
    assert shop.workspace.stats()["duplicate_events_dropped"] == 0
