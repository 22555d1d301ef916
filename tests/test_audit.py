"""The audit after a run: what was accepted is read back, and what differs, and only that, is a finding."""

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from azure.storage.queue import QueueClient

from shared import findings
from shared.audit import KINDS, Sample
from shared.mapping import Operation
from shared.people import People
from shared.state import State
from tests.conftest import SYNCS, Deployment
from tests.test_golive import add_merges, add_removals
from tests.test_passes import add_customers, make_tables
from tests.test_qa import identify, track
from tests.test_resync import Worker, add_young_orders, call, call_queue, go_live, resynced, worker

__all__ = ["worker"]

VALUES = "CAST('2026-01-02 03:04:05' AS datetime2(0)) AS bought_at, CAST(29.90 AS decimal(9, 2)) AS ltv"


@pytest.fixture
def shop(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """Ten customers of one view, two of their attributes the same for all; audits look at once, and again at once."""
    make_tables(deployment.sql)
    deployment.sql.execute("DROP VIEW retention.customers")
    deployment.sql.execute(
        f"CREATE VIEW retention.customers AS SELECT customer_id, email, tier, {VALUES}, row_version FROM shop.customers"
    )
    add_customers(deployment.sql, range(10))
    deployment.environment["QA_WAIT_SECONDS"] = "0"
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    return deployment


def look(worker: Worker, most: int = 100) -> int:
    """Let audits look until no message is left; how many did."""
    looks = 0
    while looks < most and worker.one("audits", "audit"):
        looks += 1
    return looks


def judge(shop: Deployment, worker: Worker) -> None:
    """Let audits look for the last time, at once."""
    messages = worker.messages("audits")
    storage, queue = shop.environment["AzureWebJobsStorage"], f"{shop.container.container_name}-audits"
    with QueueClient.from_connection_string(storage, queue) as client:
        client.clear_messages()
    for message in messages:
        call_queue("audit", json.dumps({**message, "look": 2}))


def found(shop: Deployment, sync: str = "customers") -> list[tuple[str, str, int, list[str]]]:
    """What is noted: about what, which kind, how many, and who."""
    state = State(shop.settings())
    noted = findings.last(state, f"audit-{sync}")
    state.close()
    if noted is None:
        return []
    kinds = {texts: kind for kind, texts in KINDS.items()}
    return [
        (one.about.removeprefix("attribute "), kinds[one.what, one.do], one.count, list(one.people))
        for one in noted.findings
    ]


def touch(shop: Deployment, *people: int) -> None:
    for person in people:
        shop.sql.execute("UPDATE shop.customers SET tier = tier WHERE customer_id = ?", person)


def delete(shop: Deployment, person: str) -> None:
    """Somebody deletes a person at Customer.io."""
    workspace = shop.workspace
    answer = httpx.post(
        f"{workspace.url}/api/v2/batch",
        auth=(workspace.site_id, workspace.api_key),
        json={"batch": [{"type": "person", "identifiers": {"id": person}, "action": "delete"}]},
        trust_env=False,
    )
    assert answer.json() == {}


def later() -> int:
    return int(time.time()) + 3600


# --- when there is one ------------------------------------------------------------------------------------------------


def test_a_pass_sends_for_one_audit_and_a_pass_that_sent_nothing_for_none(shop, worker):
    shop.run("customers", AUDIT_PEOPLE=3)
    (message,) = worker.messages("audits")
    assert (message["sync"], len(message["rows"])) == ("customers", 3)
    assert set(message["rows"]) < {str(number) for number in range(10)}
    assert look(worker) == 1
    shop.run("customers")
    assert worker.messages("audits") == []
    assert (found(shop), shop.blobs("findings/")) == ([], ["findings/audit-customers.json"])


def test_everything_that_was_sent_has_the_same_chance_to_be_drawn(shop):
    settings = shop.settings(AUDIT_PEOPLE=3)
    people = People(State(settings))
    operations = [(str(number), Operation(0, str(number), (b'{"attributes": {}}',))) for number in range(30)]
    drawn: Counter[str] = Counter()
    for _ in range(600):
        sample = Sample(SYNCS["customers"], settings)
        for page in range(0, 30, 10):
            sample.draw(operations[page : page + 10])
        drawn.update(sample.sealed(SYNCS["customers"], people).keys())
    assert (len(drawn), drawn.total()) == (30, 1800)
    assert min(drawn.values()) > 20 and max(drawn.values()) < 120  # of 60 each


@pytest.mark.parametrize("changes", [{"AUDIT_PEOPLE": "0"}, {"CUSTOMERIO_APP_API_KEY": None}], ids=str)
def test_without_people_or_a_key_there_is_no_audit(shop, worker, changes, monkeypatch):
    monkeypatch.delenv("CUSTOMERIO_APP_API_KEY")
    shop.environment.update(changes)
    assert shop.run("customers").accepted == 10
    assert worker.messages("audits") == []


@pytest.mark.slow
def test_slices_are_audited_too(shop, worker, monkeypatch):
    monkeypatch.setenv("FIRST_PASS", "approved")
    add_young_orders(shop.sql, range(100, 105), age=5 * 86_400)
    go_live(worker)
    assert {message["sync"] for message in worker.messages("audits")} == {"customers", "orders"}
    look(worker)
    resynced(worker, "customers", customer_ids=[4])
    identify(shop, "4", later(), tier="silver")
    look(worker)
    assert found(shop) == [("tier", "value", 1, ["4"])]


def test_no_value_of_a_row_is_in_a_message_in_state_or_in_the_log(shop, worker, caplog):
    caplog.set_level(logging.DEBUG)
    shop.sql.execute("UPDATE shop.customers SET tier = 'Zanzibar'")
    add_young_orders(shop.sql, range(100, 110))
    shop.run("customers")
    shop.run("orders")
    identify(shop, "1", later(), tier="Timbuktu")
    caplog.clear()
    told = json.dumps(worker.messages("audits"))
    look(worker)
    told += caplog.text + "".join(shop.read(name).decode("latin-1") for name in shop.blobs(""))
    assert found(shop) == [("tier", "value", 1, ["1"])]
    for value in ("Zanzibar", "Timbuktu", "example.com"):
        assert value not in told


def test_a_pass_whose_message_cannot_be_sent_is_none_the_worse(shop, worker, caplog):
    storage = shop.environment["AzureWebJobsStorage"]
    parts = [part + "x" if part.startswith("QueueEndpoint") else part for part in storage.split(";")]
    run = shop.run("customers", AzureWebJobsStorage=";".join(parts))
    assert (run.outcome, run.accepted, run.message) == ("ok", 10, "")
    assert [record.levelname for record in caplog.records if "audited" in record.getMessage()] == ["WARNING"]


def test_an_audit_that_fails_again_and_again_is_dropped_with_a_word(shop, worker, caplog):
    shop.run("customers")
    (message,) = worker.messages("audits")
    call_queue("give_up_audit", json.dumps(message))
    (record,) = [record for record in caplog.records if "dropped" in record.getMessage()]
    assert message["run"] in record.getMessage() and "customers" in record.getMessage()


# --- nothing is found that is not so ----------------------------------------------------------------------------------


def test_what_customer_io_does_not_show_yet_is_no_finding(shop, worker):
    add_young_orders(shop.sql, range(100, 110))
    for sync in ("customers", "orders"):
        shop.workspace.configure(lag_seconds=600)
        shop.run(sync)
        assert look(worker, 1) == 1
        assert found(shop, sync) == []
        (message,) = worker.messages("audits")
        assert (message["look"], len(message["rows"])) == (1, 10)
        shop.workspace.configure(lag_seconds=0)
        assert look(worker) == 1
        assert found(shop, sync) == []


def test_what_customer_io_never_shows_is_one_after_the_third_look(shop, worker):
    shop.workspace.configure(lag_seconds=600)
    shop.run("customers")
    assert look(worker, 2) == 2
    assert found(shop) == []
    assert look(worker) == 1
    ((_, kind, count, people),) = found(shop)
    assert (kind, count, sorted(people)) == ("no_person", 10, [str(number) for number in range(10)])


def test_the_order_of_processing_makes_no_finding(shop, worker):
    shop.workspace.configure(shuffle_seed=7)
    add_young_orders(shop.sql, range(100, 150))
    for sync in ("customers", "orders"):
        shop.run(sync)
        assert look(worker) == 1
        assert found(shop, sync) == []


def test_a_row_that_has_changed_since_is_not_judged(shop, worker):
    shop.run("customers")
    shop.sql.execute("UPDATE shop.customers SET tier = 'silver' WHERE customer_id = 3")
    assert (look(worker), found(shop)) == (1, [])
    shop.run("customers")
    assert (look(worker), found(shop)) == (1, [])


def test_an_event_whose_row_has_changed_since_is_still_there_once(shop, worker):
    add_young_orders(shop.sql, range(100, 110))
    shop.run("orders")
    shop.sql.execute("UPDATE shop.orders SET total = 7 WHERE order_id < 105")
    shop.sql.execute("DELETE FROM shop.orders WHERE order_id = 109")
    assert (look(worker), found(shop, "orders")) == (1, [])


def test_who_was_removed_or_merged_since_is_not_judged(shop, worker):
    add_removals(shop)
    add_merges(shop)
    add_young_orders(shop.sql, range(100, 110))
    shop.run("customers")
    shop.run("orders")
    shop.sql.execute("INSERT INTO shop.removals (removal_id, customer_id, action) VALUES (1, 2, 'suppress')")
    shop.sql.execute("INSERT INTO shop.merges (merge_id, primary_customer_id, secondary_customer_id) VALUES (1, 5, 6)")
    for sync in ("removals", "customers", "merges"):
        shop.run(sync)
    assert shop.workspace.people().keys() == {"0", "1", "3", "4", "5", "7", "8", "9"}
    assert look(worker) == 2
    assert (found(shop), found(shop, "orders")) == ([], [])


def test_a_change_that_failed_to_what_the_row_no_longer_says_is_no_finding(shop, worker):
    shop.run("customers")
    judge(shop, worker)
    shop.sql.execute("UPDATE shop.customers SET email = 'new@example.com' WHERE customer_id = 1")
    shop.run("customers")
    shop.sql.execute("UPDATE shop.customers SET email = 'newer@example.com' WHERE customer_id = 1")
    judge(shop, worker)
    assert found(shop) == []


def test_the_state_of_another_account_is_not_judged(shop, worker, monkeypatch):
    shop.run("customers")
    other = shop.workspace.site_id + "x"
    monkeypatch.setenv("CUSTOMERIO_SITE_ID", other)
    delete(shop, "1")
    judge(shop, worker)
    assert shop.blobs("findings/") == []


def test_an_update_that_was_skipped_rightly_is_no_finding(shop, worker):
    shop.run("customers")
    identify(shop, "1", int(time.time()) - 3600, tier="bronze")  # of somebody whose clock is behind
    assert (look(worker), found(shop)) == (1, [])


def test_what_is_left_alone_is_no_finding(shop, worker):
    shop.sql.execute("UPDATE shop.customers SET tier = NULL WHERE customer_id = 1")
    shop.sql.execute("UPDATE shop.customers SET email = 'none' WHERE customer_id = 2")
    identify(shop, "1", tier="silver")
    shop.run("customers")
    judge(shop, worker)
    assert found(shop) == []


def test_events_beyond_the_activity_log_are_not_missed(shop, worker):
    add_young_orders(shop.sql, range(100, 110), age=40 * 86_400)
    shop.run("orders")
    delete(shop, "1")
    assert (look(worker), found(shop, "orders")) == (1, [])


# --- what is so is found ----------------------------------------------------------------------------------------------


def test_an_attribute_in_another_form_and_other_values_are_found_each_with_their_people(shop, worker):
    shop.run("customers")
    identify(shop, "1", later(), bought_at="2026-01-02T03:04:05Z")
    identify(shop, "2", later(), ltv=7, tier="silver")
    identify(shop, "3", later(), tier="silver")
    delete(shop, "4")
    judge(shop, worker)
    assert [(about, kind, count, sorted(people)) for about, kind, count, people in found(shop)] == [
        ("customers", "no_person", 1, ["4"]),
        ("bought_at", "type", 1, ["1"]),
        ("ltv", "value", 1, ["2"]),
        ("tier", "value", 2, ["2", "3"]),
    ]


def test_an_update_that_was_skipped_is_found_of_whomever(shop, worker, monkeypatch):
    identify(shop, "7", later(), tier="bronze")
    monkeypatch.setenv("AUDIT_PEOPLE", "1")
    shop.run("customers", AUDIT_PEOPLE=1)
    judge(shop, worker)
    assert found(shop) == [("tier", "skipped_update", 1, ["7"])]


def test_an_event_that_is_shown_twice_one_that_failed_and_one_that_is_gone_are_found(shop, worker):
    add_young_orders(shop.sql, range(100, 110))
    shop.workspace.add_fault(when_event_id=103, events="twice")
    shop.run("orders")
    delete(shop, "5")
    judge(shop, worker)
    assert found(shop, "orders") == [
        ("orders", "event_missing", 1, ["5"]),
        ("orders", "event_twice", 1, ["3"]),
    ]
    add_young_orders(shop.sql, range(110, 120))
    shop.workspace.clear_faults()
    shop.workspace.add_fault(when_event_id=117, events="failed")
    shop.run("orders", AUDIT_PEOPLE=1)
    judge(shop, worker)
    assert found(shop, "orders") == [
        ("orders", "event_missing", 1, ["5"]),
        ("orders", "event_twice", 1, ["3"]),
        ("orders", "failed_event", 1, ["7"]),
    ]


def test_an_event_that_another_source_sends_too_is_found(shop, worker):
    add_young_orders(shop.sql, range(100, 110))
    shop.run("orders")
    track(shop, "2", "Order Placed", event_id=102)
    track(shop, "3", "Other", event_id=103)
    judge(shop, worker)
    assert found(shop, "orders") == [("orders", "event_twice", 1, ["2"])]


def test_an_address_that_was_not_taken_is_found_of_whomever_with_what_stands_in_the_way(shop, worker):
    shop.run("customers")
    judge(shop, worker)
    shop.sql.execute("UPDATE shop.customers SET email = 'new@example.com' WHERE customer_id = 1")
    shop.run("customers", AUDIT_PEOPLE=1)
    judge(shop, worker)
    assert found(shop) == [("email", "email_forbidden", 1, ["1"])]
    shop.workspace.configure(email_updates_allowed=True)
    touch(shop, 1)
    shop.sql.execute("UPDATE shop.customers SET email = 'c3@example.com' WHERE customer_id = 2")
    shop.run("customers", AUDIT_PEOPLE=1)
    judge(shop, worker)
    assert found(shop) == [("email", "email_taken", 1, ["2"])]


@pytest.mark.slow
def test_two_who_swap_their_addresses_are_one_finding_with_a_repair_that_works(shop, worker):
    shop.workspace.configure(email_updates_allowed=True)
    shop.run("customers")
    shop.sql.execute(
        "UPDATE shop.customers SET email = CASE customer_id WHEN 1 THEN 'c2@example.com' ELSE 'c1@example.com' END"
        " WHERE customer_id IN (1, 2)"
    )
    shop.run("customers")
    judge(shop, worker)
    ((about, kind, count, people),) = found(shop)
    assert (about, kind, count, sorted(people)) == ("email", "email_swapped", 2, ["1", "2"])
    shop.sql.execute("UPDATE shop.customers SET email = 'nobody@example.com' WHERE customer_id = 1")
    shop.run("customers")
    touch(shop, 2)
    shop.run("customers")
    shop.sql.execute("UPDATE shop.customers SET email = 'c2@example.com' WHERE customer_id = 1")
    shop.run("customers")
    people = shop.workspace.people()
    assert (people["1"]["email"], people["2"]["email"]) == ("c2@example.com", "c1@example.com")
    judge(shop, worker)
    assert found(shop) == []


# --- how long a finding stays -----------------------------------------------------------------------------------------


def test_a_finding_stays_until_a_later_audit_sees_it_mended(shop, worker):
    shop.run("customers")
    identify(shop, "1", later(), tier="silver")
    identify(shop, "2", later(), tier="silver")
    judge(shop, worker)
    assert found(shop)[0][:3] == ("tier", "value", 2)
    touch(shop, 9)
    shop.run("customers")
    judge(shop, worker)
    assert found(shop)[0][:3] == ("tier", "value", 2)
    identify(shop, "1", later() + 1, tier="gold")
    touch(shop, 9)
    shop.run("customers")
    judge(shop, worker)
    assert found(shop) == [("tier", "value", 1, ["2"])]


def test_who_is_removed_vanishes_from_findings_at_once(shop, worker):
    add_removals(shop)
    shop.run("customers")
    identify(shop, "1", later(), tier="silver")
    identify(shop, "2", later(), tier="silver", ltv=7)
    judge(shop, worker)
    shop.sql.execute("INSERT INTO shop.removals (removal_id, customer_id, action) VALUES (1, 2, 'delete')")
    shop.run("removals")
    assert found(shop) == [("tier", "value", 1, ["1"])]
    assert json.loads(shop.read("audits/customers.json"))["open"] == [["1", "tier", "value"]]


def test_who_is_removed_while_an_audit_is_at_work_vanishes_with_it(shop, worker):
    add_removals(shop)
    shop.run("customers")
    shop.sql.execute("INSERT INTO shop.removals (removal_id, customer_id, action) VALUES (1, 2, 'delete')")
    shop.run("removals")
    # as if it had read before the removal and written after it; an audit of events looks at five of these again
    left = [["1", str(number), "event_missing"] for number in range(900, 905)] + [["2", "999", "event_missing"]]
    shop.container.upload_blob("audits/orders.json", json.dumps({"at": int(time.time()), "open": left}))
    add_young_orders(shop.sql, range(100, 102))
    shop.run("orders")
    judge(shop, worker)
    assert found(shop, "orders") == []
    assert json.loads(shop.read("audits/orders.json"))["open"] == []


def test_the_metric_tells_how_many_findings_there_are(shop, worker, watch):
    shop.run("customers")
    identify(shop, "1", later(), tier="silver", ltv=7)
    judge(shop, worker)
    told = [(labels, amount) for name, labels, amount in watch.points if name == "tidemark.findings"]
    assert told[-1] == ({"sync": "customers", "check": "audit-customers"}, 2)


def test_the_report_names_who_it_is_and_is_there_once_something_was_audited(shop, worker):
    status, answer = call("audit_report", sync="customers")
    assert (status, "audited" in answer["error"]) == (404, True)
    shop.run("customers")
    identify(shop, "1", later(), tier="silver")
    judge(shop, worker)
    status, answer = call("audit_report", sync="customers")
    assert (status, answer["check"]) == (200, "audit-customers")
    assert [(one["about"], one["people"]) for one in answer["findings"]] == [("attribute tier", ["1"])]


# --- the App API is everybody's ---------------------------------------------------------------------------------------


@contextmanager
def others_at_the_app_api(shop: Deployment, seconds: float) -> Iterator[None]:
    """For so long somebody else uses up the App API's requests."""
    begun = threading.Event()

    def ask() -> None:
        headers = {"Authorization": f"Bearer {shop.workspace.app_api_key}"}
        until = time.monotonic() + seconds
        with httpx.Client(base_url=shop.workspace.url, headers=headers, trust_env=False) as client:
            while time.monotonic() < until:
                if client.get("/v1/segments").status_code == 429:
                    begun.set()

    thread = threading.Thread(target=ask)
    thread.start()
    begun.wait()
    yield
    thread.join()


def requests(shop: Deployment) -> dict[str, int]:
    return dict(shop.workspace.stats()["app_requests_by_status"])


def test_an_audit_costs_few_requests(shop, worker):
    add_young_orders(shop.sql, range(100, 110), customers=5)
    shop.run("customers")
    judge(shop, worker)
    assert requests(shop) == {"200": 3}
    shop.run("orders")
    judge(shop, worker)
    assert requests(shop) == {"200": 3 + 1 + 5}


def test_an_app_api_that_answers_429_delays_an_audit_and_is_no_finding(shop, worker):
    shop.run("customers")
    identify(shop, "1", later(), tier="silver")
    with others_at_the_app_api(shop, 2):
        judge(shop, worker)
    assert found(shop) == [("tier", "value", 1, ["1"])]
