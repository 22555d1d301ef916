"""The Customer.io client: every operation's fate is known, and nothing is sent that would be refused as a whole."""

import base64
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import orjson
import pytest

from local.customerio.control import CustomerioStandin, Workspace
from shared.customerio import BATCH_BYTES, CustomerIo, Group, Rejection, Unknown
from shared.errors import ConfigurationFault, CredentialFault, DeliveryUnavailable
from shared.mapping import event_digest, event_ulid
from shared.settings import Settings
from tests.conftest import bare_settings


def settings_of(workspace: Workspace, **changes: object) -> Settings:
    return bare_settings(
        customerio_region=workspace.region,
        customerio_site_id=workspace.site_id,
        customerio_api_key=workspace.api_key,
        state_container="tidemark",
        **{"customerio_track_url": workspace.url, "customerio_requests_per_second": 1000, **changes},
    )


@pytest.fixture
def client(workspace: Workspace) -> Iterator[CustomerIo]:
    with CustomerIo(settings_of(workspace)) as client:
        yield client


def event(number: int, **changes: object) -> bytes:
    now = int(time.time())
    operation = {
        "type": "person",
        "identifiers": {"id": str(number)},
        "action": "event",
        "name": "Order Placed",
        "id": event_ulid(event_digest("orders", str(number)), now),
        "timestamp": now,
        "attributes": {"event_id": str(number), "total": 29.99},
    }
    return orjson.dumps({**operation, **changes})


def group(*operations: bytes) -> Group:
    return Group("whoever", operations)


def events(count: int) -> list[Group]:
    return [group(event(number)) for number in range(count)]


def test_what_is_accepted_is_known_to_be(client, workspace):
    assert client.send(events(3)).wait() == [(None,)] * 3
    assert [e["attributes"] for e in workspace.events()] == [{"event_id": str(i), "total": 29.99} for i in range(3)]


def test_no_batch_is_larger_than_the_limit_and_each_is_nearly_full(client, workspace):
    operations = [group(event(number, attributes={"text": "x" * 900})) for number in range(3000)]
    assert set(client.send(operations).wait()) == {(None,)}
    stats = workspace.stats()
    assert BATCH_BYTES - 2000 < stats["max_body_bytes"] < BATCH_BYTES
    size = sum(len(one.payloads[0]) + 1 for one in operations)
    assert stats["batches"] == -(-size // (BATCH_BYTES - 2000))


def test_operations_of_one_group_are_never_parted(client, workspace):
    identify = orjson.dumps(
        {"type": "person", "identifiers": {"id": "7"}, "action": "identify", "attributes": {"a": "y" * 900}}
    )
    groups = [group(identify, event(number, attributes={"t": "x" * 700})) for number in range(1000)]
    assert set(client.send(groups).wait()) == {(None, None)}
    assert workspace.stats()["operations"] == 2000


def test_a_207_rejects_the_listed_operations_and_accepts_the_others(client, workspace):
    fates = client.send([*events(2), group(event(2, id="no ulid")), *events(5)[3:]]).wait()
    assert fates == [(None,), (None,), (Rejection("invalid", "id"),), (None,), (None,)]
    assert workspace.stats()["events_stored"] == 4


def test_a_400_is_halved_until_the_guilty_operation_stands_alone(client, workspace):
    operations = events(100)
    operations[42] = group(b"{not json")
    fates = client.send(operations).wait()
    assert [number for number, (fate,) in enumerate(fates) if fate] == [42]
    assert workspace.stats()["events_stored"] == 99
    assert client.requests <= 16


def test_a_400_for_one_of_a_group_leaves_the_other_accepted(client, workspace):
    fates = client.send([group(event(1), b"{not json"), group(event(2))]).wait()
    assert [tuple(fate is None for fate in group) for group in fates] == [(True, False), (True,)]


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"status": 429}, {"reset": "before"}])
def test_a_passing_failure_is_tried_again(client, workspace, fault):
    workspace.add_fault(**fault, times=2)
    assert client.send(events(3)).wait() == [(None,)] * 3
    assert workspace.stats()["events_stored"] == 3


def test_an_answer_lost_after_acceptance_is_asked_for_again_under_the_same_ulids(client, workspace):
    workspace.add_fault(reset="after", times=1)
    assert client.send(events(3)).wait() == [(None,)] * 3
    stats = workspace.stats()
    assert (stats["events_stored"], stats["duplicate_events_dropped"]) == (3, 3)


def test_retry_after_is_honoured(client, workspace):
    workspace.add_fault(status=429, retry_after=2, times=1)
    started = time.monotonic()
    assert client.send(events(1)).wait() == [(None,)]
    assert time.monotonic() - started >= 2


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_stop_everything_and_name_the_settings(client, workspace, status):
    workspace.add_fault(status=status)
    (fate,) = client.send(events(1)).wait()[0]
    assert isinstance(fate, Unknown)
    assert isinstance(client.failure, CredentialFault)
    for name in ("CUSTOMERIO_SITE_ID", "CUSTOMERIO_API_KEY", "CUSTOMERIO_REGION"):
        assert name in str(client.failure)
    requests = client.requests
    assert isinstance(client.send(events(1)).wait()[0][0], Unknown)
    assert client.requests == requests


def test_the_fate_of_the_other_batches_is_known_when_one_is_given_up(workspace):
    with CustomerIo(settings_of(workspace, customerio_batches_in_flight=1)) as client:
        operations = [group(event(number, attributes={"t": "x" * 900})) for number in range(900)]
        workspace.add_fault(status=401, every=2, times=1)
        fates = [fate for (fate,) in client.send(operations).wait()]
        accepted = fates.count(None)
        assert 0 < accepted < 900
        assert workspace.stats()["events_stored"] == accepted


def test_the_workspace_is_told_by_the_region_probe(client, workspace):
    assert client.workspace() == str(workspace.environment_id)


def test_an_account_of_another_region_is_refused(workspace):
    workspace.configure(region="eu")
    with (
        CustomerIo(settings_of(workspace)) as client,
        pytest.raises(ConfigurationFault, match="CUSTOMERIO_REGION is us"),
    ):
        client.workspace()


def test_a_host_that_is_not_there_is_named_in_the_failure(workspace):
    settings = settings_of(workspace, customerio_track_url="http://127.0.0.1:1")
    with CustomerIo(settings, attempts=2) as client, pytest.raises(DeliveryUnavailable, match=r"127\.0\.0\.1:1"):
        client.workspace()


def test_no_more_requests_a_second_are_sent_than_the_setting_allows(workspace):
    with CustomerIo(settings_of(workspace, customerio_requests_per_second=5)) as client:
        for number in range(12):
            client.send([group(event(number))]).wait()
    assert workspace.stats()["max_requests_in_a_second"] <= 6


def test_several_batches_are_in_flight_at_once(workspace):
    workspace.configure(latency_seconds=0.3)
    with CustomerIo(settings_of(workspace, customerio_batches_in_flight=4)) as client:
        sending = [client.send([group(event(number))]) for number in range(8)]
        assert all(one.wait() == [(None,)] for one in sending)
    assert workspace.stats()["max_in_flight"] == 4


def test_us_and_eu_have_their_own_hosts(customerio: CustomerioStandin):
    from shared.customerio import TRACK_URLS

    assert TRACK_URLS == {"us": "https://track.customer.io", "eu": "https://track-eu.customer.io"}


def test_a_retry_after_that_is_a_date_is_honoured(client, workspace):
    workspace.add_fault(status=429, retry_after=formatdate(time.time() + 3, usegmt=True), times=1)
    started = time.monotonic()
    assert client.send(events(1)).wait() == [(None,)]
    assert time.monotonic() - started > 1.5  # the first pause would otherwise be a second at most


def test_a_413_is_halved(client, workspace):
    workspace.add_fault(status=413, times=1)
    assert client.send(events(4)).wait() == [(None,)] * 4
    assert workspace.stats()["events_stored"] == 4
    assert client.requests == 3


@pytest.mark.parametrize("error", [{}, {"batch_index": 2}, {"batch_index": -1}, {"batch_index": "0"}])
def test_a_207_that_names_no_operation_of_the_batch_is_asked_again_in_halves(client, workspace, error):
    workspace.add_fault(extra_errors=[{"reason": "invalid", **error}], times=1)
    assert client.send(events(2)).wait() == [(None,)] * 2
    assert client.requests == 3
    assert workspace.stats()["duplicate_events_stored"] == 0


def test_no_message_about_refused_credentials_holds_them(client, workspace):
    workspace.add_fault(status=401)
    client.send(events(1)).wait()
    key = workspace.api_key
    header = base64.b64encode(f"{workspace.site_id}:{key}".encode()).decode()
    assert isinstance(client.failure, CredentialFault)
    assert key not in str(client.failure) and header not in str(client.failure)


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"errors": {}}', b'{"errors": ["x"]}'])
def test_a_207_that_cannot_be_read_is_taken_for_nothing(body):
    """The stand-in has no such answer, so a server of two lines gives it."""

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(207)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = bare_settings(customerio_track_url=f"http://127.0.0.1:{server.server_port}")
        with CustomerIo(settings) as client:
            fates = client.send(events(4)).wait()
            assert all(isinstance(fate, Unknown) for (fate,) in fates)
            assert isinstance(client.failure, DeliveryUnavailable)
        server.shutdown()
