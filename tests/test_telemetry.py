"""What a run tells the metrics, as Azure Monitor's exporter would take it, and what it never tells.

That no point of any test has another dimension than the table says is seen to by tests/leaks.py.
"""

import json
import subprocess
import sys
from contextlib import closing
from datetime import datetime, timedelta

import pyodbc
import pytest
from opentelemetry import metrics
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from local.services import REPOSITORY
from shared.appapi import AppApi
from shared.errors import ConfigurationFault, CredentialFault, SourceUnavailable, ViewFault
from shared.replay import replay
from shared.state import State
from tests.conftest import SYNCS, Deployment
from tests.leaks import Watch
from tests.test_passes import add_customers, add_orders, make_tables

TIMES = {"tidemark.seconds", "tidemark.mark_age"}

Points = dict[tuple[str, ...], float | None]


@pytest.fixture
def told(watch: Watch):
    """What was told since the last call: {(name without tidemark., dimension besides the sync): amount}; None is a time."""

    def take(sync: str = "orders") -> Points:
        points: Points = {}
        for name, dimensions, amount in watch.points:
            assert dimensions["sync"] == sync
            others = [value for dimension, value in dimensions.items() if dimension != "sync"]
            key = (name.removeprefix("tidemark."), *others)
            assert key not in points, "one run tells each point once"
            assert amount >= 0
            points[key] = None if name in TIMES else amount
        watch.points.clear()
        return points

    return take


def edit_mark(deployment: Deployment, sync: str, name: str, minutes: int) -> None:
    """Let a moment that the mark remembers be so long ago."""
    mark = json.loads(deployment.read(f"syncs/{sync}/mark.json"))
    mark[name]["at"] = (datetime.fromisoformat(mark[name]["at"]) - timedelta(minutes=minutes)).isoformat()
    deployment.container.upload_blob(f"syncs/{sync}/mark.json", json.dumps(mark), overwrite=True)


ENDED_WELL = {
    ("runs", "ok"): 1,
    ("seconds", "ok"): None,
    ("dead_letter_depth",): 0,
    ("mark_age",): None,
    ("drift",): 0,
}


def test_a_pass_tells_what_it_did_and_an_idle_one_that_it_ran(deployment, told):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(3))
    run = deployment.run("orders")
    assert told() == {
        **ENDED_WELL,
        ("rows",): 3,
        ("operations", "accepted"): 3,
        ("requests",): run.requests,
    }
    deployment.run("orders")
    assert told() == ENDED_WELL


def test_what_was_told_is_not_told_again_by_a_process_that_lives_on(deployment, told):
    make_tables(deployment.sql)
    deployment.run("orders")
    assert told() == ENDED_WELL
    metrics.get_meter_provider().force_flush()
    assert told() == {}


def test_a_run_that_fails_is_told_with_how_long_ago_the_view_was_read_to_its_end(deployment, told, watch):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(3))
    deployment.run("orders")
    add_orders(deployment.sql, range(3, 6))
    edit_mark(deployment, "orders", "seen", minutes=90)
    told()
    deployment.workspace.add_fault(status=401)
    with pytest.raises(CredentialFault):
        deployment.run("orders")
    (age,) = (amount for name, _, amount in watch.points if name == "tidemark.mark_age")
    assert 90 * 60 <= age < 91 * 60
    assert told() == {
        ("runs", "failed"): 1,
        ("seconds", "failed"): None,
        ("rows",): 3,
        ("requests",): 2,  # the workspace is asked for once a pass that sends
        ("mark_age",): None,
        ("drift",): 0,
    }
    deployment.run("orders")
    (age,) = (amount for name, _, amount in watch.points if name == "tidemark.mark_age")
    assert age < 60


def test_a_source_that_is_away_does_not_hide_how_old_the_mark_is(deployment, told):
    make_tables(deployment.sql)
    deployment.run("orders")
    told()
    with pytest.raises(SourceUnavailable):
        deployment.run(
            "orders", SQL_CONNECTION_STRING="Server=127.0.0.1,1;UID=a;PWD=b;Timeout=1", TIME_BUDGET_SECONDS=1
        )
    assert told() == {("runs", "failed"): 1, ("seconds", "failed"): None, ("mark_age",): None}


def test_a_pass_that_waits_for_another_sync_does_not_say_that_it_read_to_the_end(deployment, told, watch):
    make_tables(deployment.sql)
    deployment.sql.execute(
        "CREATE VIEW retention.carts AS SELECT customer_id, 'Cart Left' AS event_name, paid_at AS event_time,"
        " CONCAT('cart-', order_id) AS event_id, row_version FROM shop.orders"
    )
    for sync in ("orders", "carts"):
        deployment.run(sync)
    edit_mark(deployment, "orders", "seen", minutes=60)
    edit_mark(deployment, "carts", "seen", minutes=40)
    watch.points.clear()
    assert deployment.run("carts").outcome == "waiting"
    (age,) = (amount for name, _, amount in watch.points if name == "tidemark.mark_age")
    assert age >= 40 * 60
    assert ("runs", "waiting") in told("carts")


def test_a_timer_that_ran_is_told_though_the_sync_is_not_live(deployment, told):
    make_tables(deployment.sql)
    deployment.run("orders", FIRST_PASS="approved")
    assert told() == {("runs", "not_live"): 1, ("seconds", "not_live"): None}


def test_a_timer_that_ran_is_told_though_another_pass_is_at_work(deployment, told):
    make_tables(deployment.sql)
    deployment.run("orders")
    told()
    with closing(State(deployment.settings())) as state, state.claim(SYNCS["orders"]):
        deployment.run("orders")
    assert told() == {("runs", "busy"): 1, ("seconds", "busy"): None}


def test_a_run_that_fails_before_it_has_a_record_is_told(deployment, told):
    with pytest.raises(ViewFault):  # there is no view
        deployment.run("orders")
    assert told() == {("runs", "failed"): 1, ("seconds", "failed"): None}
    with pytest.raises(ConfigurationFault):
        deployment.run("orders", AzureWebJobsStorage="nonsense")
    assert told() == {("runs", "failed"): 1, ("seconds", "failed"): None}


def test_an_open_transaction_is_told_in_minutes(deployment, database, told, watch):
    make_tables(deployment.sql)
    deployment.run("orders")
    with closing(pyodbc.connect(database)) as writer:
        add_orders(writer, range(1))
        deployment.run("orders")
        edit_mark(deployment, "orders", "held_back", minutes=20)
        watch.points.clear()
        deployment.run("orders")
        assert told() == {**ENDED_WELL, ("held_back",): 20}
        writer.rollback()
    deployment.run("orders")
    assert told() == ENDED_WELL


def test_the_depth_of_the_dead_letters_is_told_until_they_are_gone(deployment, told):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(3))
    deployment.workspace.add_fault(reject_share=1, times=1)
    run = deployment.run("orders")
    assert told() == {
        **ENDED_WELL,
        ("rows",): 3,
        ("operations", "rejected"): 3,
        ("dead_letters",): 3,
        ("dead_letter_depth",): 3,
        ("requests",): run.requests,
    }
    deployment.run("orders")
    assert told() == {**ENDED_WELL, ("dead_letter_depth",): 3}
    replay(SYNCS["orders"], confirmed=True, settings=deployment.settings())
    points = told()
    assert (points["operations", "accepted"], points["dead_letter_depth",]) == (3, 0)


def test_answers_that_ask_for_patience_are_counted(deployment, told):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(3))
    deployment.run("orders")
    add_orders(deployment.sql, range(3, 6))
    told()
    deployment.workspace.add_fault(status=429, retry_after=0, times=2)
    deployment.run("orders")
    points = told()
    assert (points["throttled",], points["requests",], points["runs", "ok"]) == (2, 4, 1)


def test_events_that_the_ledger_knows_and_that_the_gate_holds_are_told(deployment, told):
    make_tables(deployment.sql)
    add_orders(deployment.sql, range(3))
    deployment.run("orders")
    mark = json.loads(deployment.read("syncs/orders/mark.json"))
    mark["start"] = 4_000_000_000
    deployment.container.upload_blob("syncs/orders/mark.json", json.dumps(mark), overwrite=True)
    deployment.sql.execute("UPDATE shop.orders SET total = 5")
    add_orders(deployment.sql, range(3, 7))
    told()
    deployment.run("orders")
    assert told() == {**ENDED_WELL, ("rows",): 7, ("already_sent",): 3, ("held", "before_start"): 4}


def test_a_column_that_changed_its_type_is_told_until_somebody_has_looked(deployment, told):
    make_tables(deployment.sql)
    add_customers(deployment.sql, range(3))
    deployment.run("customers")
    deployment.sql.execute("DROP VIEW retention.customers")
    deployment.sql.execute(
        "CREATE VIEW retention.customers AS SELECT customer_id, email, 1 AS tier, row_version FROM shop.customers"
    )
    told("customers")
    deployment.run("customers")
    assert told("customers") == {**ENDED_WELL, ("drift",): 1}


@pytest.mark.parametrize("kind", ["flood", "mass_change", "emptied"])
def test_a_run_that_stops_before_it_does_too_much_is_told_by_its_kind(deployment, told, kind):
    make_tables(deployment.sql)
    sync = "orders" if kind == "flood" else "customers"
    if kind != "flood":
        add_customers(deployment.sql, range(1200))
    deployment.run(sync)
    told(sync)
    if kind == "flood":
        add_orders(deployment.sql, range(100))
        deployment.workspace.add_fault(reject_share=1)
    else:
        deployment.sql.execute("UPDATE shop.customers SET tier = NULL")
    percent = 100 if kind == "emptied" else 5
    with pytest.raises(ViewFault):
        deployment.run(sync, MASS_CHANGE_PERCENT=percent)
    points = told(sync)
    assert (points["stops", kind], points["runs", "failed"]) == (1, 1)
    assert [key for key in points if key[0] == "stops"] == [("stops", kind)]


def python(source: str) -> str:
    done = subprocess.run([sys.executable, "-c", source], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_cold_start_does_not_pay_for_the_metrics():
    loaded = python(
        "import sys, function_app; print([n for n in sys.modules if n.startswith(('opentelemetry', 'shared'))])"
    )
    assert "shared.syncs" in loaded
    assert "opentelemetry" not in loaded and "telemetry" not in loaded


RUN = "from shared import telemetry\nfrom shared.run import Run\nfrom shared.syncs import find\n"
RUN += "with telemetry.told(Run.begin(find('orders'))): pass\nprint('ended')"
NO_FLUSH = """
from opentelemetry import metrics
class Provider(metrics.NoOpMeterProvider):
    def force_flush(self, timeout_millis):
        raise OSError("nobody answers")
metrics.set_meter_provider(Provider())
"""


@pytest.mark.parametrize("provider", ["", NO_FLUSH], ids=["nobody listens", "nobody answers"])
def test_no_run_fails_for_its_metrics(provider):
    assert python(provider + RUN) == "ended"


def test_no_trace_holds_the_address_that_the_app_api_is_asked_for(deployment):
    spans = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    HTTPXClientInstrumentor().instrument(tracer_provider=provider)
    try:
        make_tables(deployment.sql)
        add_orders(deployment.sql, range(1))
        deployment.run("orders")
        with AppApi(deployment.settings()) as app:
            assert app.holders("jane@example.com") == []
    finally:
        HTTPXClientInstrumentor().uninstrument()
    urls = [str(dict(span.attributes or {})) for span in spans.get_finished_spans()]
    assert any("/api/v2/batch" in url for url in urls), "requests are traced"
    assert not any("jane" in url or "/v1/customers" in url for url in urls)
