"""What the tests themselves watch for: each leak is planted once, and found."""

import logging
import os
from pathlib import Path

import azure.functions as func
import pytest
from opentelemetry import metrics

from shared import telemetry
from shared.run import Run
from tests.leaks import MONITORING, Watch

needs_monitoring = pytest.mark.skipif(not MONITORING, reason="sys.monitoring is there from Python 3.12 on")


@pytest.fixture
def leak(watch: Watch):
    """Whether what a call has leaked is found; it is forgotten then."""

    def found(act, *arguments) -> bool:
        act(*arguments)
        leaks = len(watch.found)
        watch.found.clear()
        return leaks > 0

    return found


def product(source: str):
    """The function `act` of a piece of code that says it is the product's."""
    names: dict[str, object] = {}
    exec(compile(source, Path(telemetry.__file__).with_name("planted.py"), "exec"), names)
    return names["act"]


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("run of orders ended", False),
        ("the person jane.doe+x@example.com was refused", True),
        ("Server=db;PWD=x", True),
        ("such as Server=db;PWD=...", False),
        ("planted", True),
    ],
)
def test_a_line_that_holds_an_address_or_a_secret_is_found(leak, text, leaks):
    assert leak(logging.getLogger("tidemark").warning, "%s", text) is leaks


@pytest.mark.parametrize(("sync", "leaks"), [("orders", False), ("planted", True), ("customer 4711", True)])
def test_a_metric_whose_dimension_holds_a_customers_data_is_found(leak, sync, leaks):
    assert leak(telemetry.tell, Run("01", sync, "2026-01-01T00:00:00+00:00")) is leaks


@pytest.mark.parametrize(
    ("name", "told", "leaks"),
    [
        ("tidemark.rows", {"sync": "orders"}, False),
        ("tidemark.rows", {"sync": "orders", "person": "jane"}, True),
        ("tidemark.people", {"sync": "orders"}, True),
    ],
)
def test_a_metric_or_a_dimension_that_the_table_lacks_is_found(leak, name, told, leaks):
    counter = metrics.get_meter("tidemark").create_counter(name)
    assert leak(lambda: counter.add(1, told) or metrics.get_meter_provider().force_flush()) is leaks


@needs_monitoring
@pytest.mark.parametrize(
    ("statement", "leaks"),
    [
        ("raise ViewFault('the view is missing')", True),  # with what it happened in
        ("raise ViewFault('planted') from None", True),
        ("raise ViewFault('the view is missing') from KeyError('planted')", True),
        ("raise ViewFault('the view is missing') from None", False),
    ],
)
def test_an_exception_that_holds_a_secret_is_found_though_it_is_caught(leak, statement, leaks):
    act = product(
        "from shared.errors import ViewFault\n"
        "def act():\n"
        "    try:\n"
        "        try:\n"
        "            raise KeyError('planted')\n"
        "        except KeyError:\n"
        f"            {statement}\n"
        "    except ViewFault:\n"
        "        pass\n"
    )
    assert leak(act) is leaks


ANSWER = (
    "import azure.functions as func\ndef act(body, headers):\n    return func.HttpResponse(body, headers=headers)\n"
)


@needs_monitoring
@pytest.mark.parametrize(
    ("body", "headers", "leaks"),
    [
        ('{"total": 3}', None, False),
        ('{"error": "planted"}', None, True),
        ("{}", {"Location": "/api/people/jane@example.com"}, True),
    ],
)
def test_an_answer_that_holds_a_customers_data_is_found(leak, body, headers, leaks):
    assert leak(product(ANSWER), body, headers) is leaks


@needs_monitoring
@pytest.mark.shows_people
def test_an_answer_may_show_people_where_that_is_its_purpose(leak):
    assert not leak(product(ANSWER), "planted", None)
    assert leak(logging.getLogger("tidemark").warning, "planted"), "nothing else may"


@needs_monitoring
def test_only_what_the_product_raises_and_answers_is_watched(leak):
    def act() -> func.HttpResponse:
        return func.HttpResponse("planted")

    assert not leak(act)


def test_the_secrets_of_the_tests_are_seen_wherever_they_turn_up(environment):
    for name in ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY", "CUSTOMERIO_APP_API_KEY", "AzureWebJobsStorage"):
        assert "planted" in environment[name]
    if "TEST_SQL_SERVER" not in os.environ:
        assert "PWD=planted" in environment["SQL_CONNECTION_STRING"]
