"""What is asked over HTTP, however wrongly: one clear message, never a stack trace, and nothing changed."""

import json
import os

import azure.functions as func
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import function_app
from shared.syncs import CATALOGUE
from tests.conftest import Deployment
from tests.test_passes import add_customers, add_orders, make_tables

REQUESTS = int(os.environ.get("HTTP_REQUESTS", "20"))
"""How many requests are made up for each function; .ci/run asks for more."""

FUNCTIONS = {
    "release": (function_app.release, "reason"),
    "accept": (function_app.accept, "column"),
    "dead_letters": (function_app.dead_letters, None),
    "replay": (function_app.replay, "keys"),
    "resync": (function_app.resync, None),
    "go_live": (function_app.go_live, None),
    "qa": (function_app.qa, None),
    "run": (function_app.run, None),
    "decide": (function_app.decide, None),
    "report": (function_app.report, None),
    "audit_report": (function_app.audit_report, None),
    "reconcile": (function_app.reconcile, None),
    "pause": (function_app.pause, None),
    "resume": (function_app.resume, None),
    "canary": (function_app.canary, None),
    "status": (function_app.status, None),
}
INJECTIONS = (
    "orders'; DROP TABLE shop.orders; --",
    "orders] FROM retention.orders; DROP VIEW retention.orders; --",
    "../../identity",
    "orders/../customers",
    "ORDERS",
    "orders\0",
    "%2e%2e/mark.json",
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40) | st.sampled_from(INJECTIONS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
names = st.sampled_from(
    ["reason", "column", "keys", "confirm", "sync", "force", "customer_ids", "since", "all", "sample", "size"]
)
bodies = (
    st.binary(max_size=200)
    | st.dictionaries(names | st.text(max_size=8), values, max_size=4).map(lambda body: json.dumps(body).encode())
    | values.map(lambda value: json.dumps(value).encode())
    | st.integers(1, 300_000).map(lambda size: b'{"reason": "' + b"x" * size + b'"}')
    | st.integers(1, 20_000).map(lambda depth: b"[" * depth)
)
syncs = st.sampled_from([sync.name for sync in CATALOGUE]) | st.sampled_from(INJECTIONS) | st.text(max_size=300)


def ask(name: str, sync: str | None, body: bytes) -> tuple[int, dict[str, object]]:
    function, _ = FUNCTIONS[name]
    params = {} if sync is None else {"sync": sync, "run": sync, "decision": "approve"}
    answer = function.build().get_user_function()(
        func.HttpRequest("POST", "/api/whatever", body=body, route_params=params)
    )
    assert answer.mimetype == "application/json"
    return answer.status_code, json.loads(answer.get_body())


@pytest.fixture
def live(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    make_tables(deployment.sql)
    add_customers(deployment.sql, range(3))
    add_orders(deployment.sql, range(3))
    deployment.run("customers")
    deployment.run("orders")
    for name, value in deployment.environment.items():
        monkeypatch.setenv(name, value)
    return deployment


def test_whatever_is_asked_is_answered_with_one_message_and_changes_nothing(live):
    marks = {name: live.read(f"syncs/{name}/mark.json") for name in ("customers", "orders")}
    types = live.read("types.json")
    asked = []

    @settings(
        max_examples=REQUESTS * len(FUNCTIONS),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(name=st.sampled_from(sorted(FUNCTIONS)), sync=syncs | st.none(), body=bodies)
    def every(name: str, sync: str | None, body: bytes) -> None:
        status, said = ask(name, sync, body)
        asked.append(status)
        if status in (200, 202):  # by chance it was right; releases are undone below
            assert "error" not in said
            return
        assert 400 <= status < 500, (status, said)
        assert list(said) == ["error"]
        message = said["error"]
        assert isinstance(message, str) and 5 < len(message) < 2000
        assert "Traceback" not in message and 'File "' not in message

    every()
    assert len(asked) >= REQUESTS * len(FUNCTIONS) // 2
    assert sum(400 <= status < 500 for status in asked) > len(asked) // 2
    assert live.read("types.json") == types
    for name, mark in marks.items():
        now = json.loads(live.read(f"syncs/{name}/mark.json"))
        assert {**now, "released": []} == {**json.loads(mark), "released": []}
    assert live.sql.execute("SELECT COUNT(*) FROM retention.orders").fetchval() == 3
    assert live.workspace.stats()["operations"] == 6


@pytest.mark.parametrize(
    "name",
    sorted(FUNCTIONS.keys() - {"go_live", "qa", "pause", "resume", "reconcile", "canary", "status"}),
)  # these have no name
@pytest.mark.parametrize("text", INJECTIONS)
def test_a_name_from_outside_reaches_neither_sql_server_nor_a_blob(live, name, text):
    before = set(live.blobs(""))
    assert ask(name, text, b"{}")[0] == 404
    if name == "accept":
        assert ask(name, "orders", json.dumps({"column": text}).encode())[0] == 404
    if name == "replay":
        status, said = ask(name, "orders", json.dumps({"keys": [text], "reason": text}).encode())
        assert (status, said["letters"], said["delivered"]) == (200, 0, 0)
    after = {blob for blob in live.blobs("") if "/runs/" not in blob}
    assert after <= before
    assert live.sql.execute("SELECT COUNT(*) FROM shop.orders").fetchval() == 3
