"""The App API's client: what is really there, without an address in a message or a log."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from local.customerio.control import Workspace
from shared.appapi import APP_URLS, AppApi, FailedChange, FailedEvent, Holder, Segment, StoredEvent
from shared.errors import ConfigurationFault, CredentialFault, DeliveryUnavailable
from shared.settings import Settings
from tests.conftest import bare_settings

KEY = "the-app-api-key"


def settings_of(workspace: Workspace, **changes: object) -> Settings:
    return bare_settings(
        customerio_region=workspace.region,
        **{"customerio_app_url": workspace.url, "customerio_app_api_key": workspace.app_api_key, **changes},
    )


@pytest.fixture
def app(workspace: Workspace) -> Iterator[AppApi]:
    with AppApi(settings_of(workspace)) as app:
        yield app


def identify(workspace: Workspace, *people: tuple[dict[str, str], dict[str, Any]]) -> None:
    """Let the Track API take identifies, in this order."""
    batch = [
        {"type": "person", "identifiers": who, "action": "identify", "attributes": attributes}
        for who, attributes in people
    ]
    credentials = (workspace.site_id, workspace.api_key)
    answer = httpx.post(f"{workspace.url}/api/v2/batch", auth=credentials, json={"batch": batch}, trust_env=False)
    assert (answer.status_code, answer.json()) == (200, {})


def requests_of(workspace: Workspace) -> dict[str, int]:
    return workspace.stats()["app_requests_by_status"]


@dataclass
class Scripted:
    """A server that gives the answers it is told to, for what the stand-in never answers; the last one for good."""

    url: str
    answers: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def will_answer(self, *answers: int | bytes | tuple[int, dict[str, str]]) -> None:
        """Statuses, bodies, or statuses with headers. Status 0: the connection ends without an answer."""
        for one in answers:
            if isinstance(one, bytes):
                self.answers.append((200, {}, one))
            else:
                status, headers = one if isinstance(one, tuple) else (one, {})
                self.answers.append((status, headers, b'{"customers": [], "results": [], "activities": []}'))

    def client(self, **options: int) -> AppApi:
        return AppApi(bare_settings(customerio_app_url=self.url, customerio_app_api_key=KEY), **options)


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            script.asked.append(self.path)
            status, headers, body = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        script = Scripted(f"http://127.0.0.1:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield script
        server.shutdown()


def activity(**changes: object) -> dict[str, Any]:
    line = {
        "type": "failed_attribute_change",
        "timestamp": 1000,
        "customer_id": "1",
        "customer_identifiers": {"id": "1", "email": "a@example.com", "cio_id": "a1"},
        "name": "email",
        "data": {"email": {"from": "a@example.com", "to": "b@example.com"}},
    }
    return {**line, **changes}


def page(*lines: object, next: object = "") -> bytes:
    return json.dumps({"activities": lines, "next": next}).encode()


# Which ids are there


def test_of_many_ids_those_that_exist_are_found(app, workspace):
    identify(workspace, *(({"id": str(number)}, {"a": 1}) for number in range(0, 250, 2)))
    assert app.existing([str(number) for number in range(250)]) == {str(number) for number in range(0, 250, 2)}
    assert requests_of(workspace) == {"200": 3}


def test_ids_are_compared_case_exact(app, workspace):
    identify(workspace, ({"id": "Ab"}, {}), ({"id": "ÄÖ"}, {}))
    assert app.existing({"Ab", "ab", "AB", "ÄÖ", "äö"}) == {"Ab", "ÄÖ"}


def test_an_id_that_was_not_asked_for_is_not_told(scripted):
    scripted.will_answer(b'{"customers": [{"customer": {"id": "AB"}}, {"customer": {"id": "ab"}}]}')
    with scripted.client() as app:
        assert app.existing(["ab"]) == {"ab"}


def test_no_ids_need_no_request(app, workspace):
    assert app.existing([]) == set()
    assert requests_of(workspace) == {}


# What they have


def test_of_many_people_the_attributes_are_read_as_text(app, workspace):
    identify(workspace, *(({"id": str(number)}, {"a": number, "b": True}) for number in range(0, 250, 2)))
    identify(workspace, ({"id": "0"}, {"a": 1.5, "b": "x", "c": {"d": [1]}}))
    found = app.attributes([str(number) for number in range(250)])
    assert found.keys() == {str(number) for number in range(0, 250, 2)}
    assert (found["8"]["a"], found["8"]["b"], found["0"]["a"]) == ("8", "true", "1.5")
    assert json.loads(found["0"]["c"]) == {"d": [1]}
    assert requests_of(workspace) == {"200": 3}


def test_attributes_of_an_id_that_was_not_asked_for_are_not_told(scripted):
    people = [{"customer": {"id": one, "attributes": {"a": 7, "b": None, "c": "x"}}} for one in ("AB", "ab", "")]
    people[2]["customer"]["cio_id"] = "a1"
    scripted.will_answer(json.dumps({"customers": people}).encode())
    with scripted.client() as app:
        assert app.attributes(["ab"]) == {"ab": {"a": "7", "c": "x"}}


# What they did


def test_the_events_of_a_person_are_read_through_all_pages(app, workspace):
    batch = [
        {
            "type": "person",
            "identifiers": {"id": "a/b"},
            "action": "event",
            "name": "Paid",
            "attributes": {"event_id": one},
        }
        for one in range(230)
    ]
    batch.append({"type": "person", "identifiers": {"id": "c"}, "action": "event", "name": "Paid"})
    credentials = (workspace.site_id, workspace.api_key)
    httpx.post(f"{workspace.url}/api/v2/batch", auth=credentials, json={"batch": batch}, trust_env=False)
    events = list(app.events("a/b"))
    assert [(one.name, one.event_id) for one in events] == [("Paid", str(one)) for one in reversed(range(230))]
    assert requests_of(workspace) == {"200": 3}
    assert [one.event_id for one in app.events("c")] == [None]


def test_nobody_has_no_events(app):
    assert list(app.events("nobody")) == []


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ({"id": "01ht8k3z7q9v5c2m4n6p8r0s1t"}, StoredEvent("Paid", "01HT8K3Z7Q9V5C2M4N6P8R0S1T", None, "1", 1000)),
        ({"data": {"event_id": "9"}}, StoredEvent("Paid", "", "9", "1", 1000)),
        ({"data": "event_id"}, StoredEvent("Paid", "", None, "1", 1000)),
        ({"data": {"event_id": None}, "id": None}, StoredEvent("Paid", "", None, "1", 1000)),
    ],
)
def test_an_event_is_known_by_its_ulid_or_by_its_event_id(scripted, line, event):
    scripted.will_answer(page(activity(type="event", **{"name": "Paid", "data": None, **line}), next=""))
    with scripted.client() as app:
        assert list(app.events("1")) == [event]


def test_a_page_of_events_that_names_itself_as_the_next_ends_the_reading(scripted):
    scripted.will_answer(page(activity(name="Paid"), next="x"))
    with scripted.client() as app:
        assert len(list(app.events("1"))) == 2


# Who has an address


def test_the_holder_of_an_address_is_found_whatever_its_case(app, workspace):
    identify(workspace, ({"id": "42"}, {"email": "jane@example.com"}))
    (holder,) = app.holders("Jane@Example.com")
    assert holder.id == "42" and holder.cio_id
    assert app.holders("john@example.com") == []


def test_a_profile_without_an_id_is_told_as_one(app, workspace):
    identify(workspace, ({"email": "guest@example.com"}, {"a": 1}))
    (holder,) = app.holders("guest@example.com")
    assert holder.id is None and holder.cio_id


@pytest.mark.parametrize(
    ("email", "requests"),
    [
        ("a+b@example.com", {"200": 1}),
        ("100%25@example.com", {"200": 1}),
        ("a%2Bb@example.com", {"200": 1}),
        ("o'n&=#?/x@example.com", {"200": 1}),
        # what the description takes for no address is looked up in the other way
        ("jörg+100%@exämple.com", {"400": 1, "200": 1}),
        ("jörg/../x?y#z;@example.com", {"400": 1, "200": 1}),
        ("dots..and blanks @example.com", {"400": 1, "200": 1}),
    ],
)
def test_odd_characters_of_an_address_arrive_as_they_are(app, workspace, email, requests):
    identify(workspace, ({"id": "1"}, {"email": "ab@example.com"}), ({"id": "2"}, {"email": email}))
    assert [holder.id for holder in app.holders(email)] == ["2"]
    assert requests_of(workspace) == requests


@pytest.mark.parametrize("email", ["", "x", "..", "jörg@example.com", "a@b@c"])
def test_what_is_no_address_of_anybody_is_held_by_nobody(app, workspace, email):
    assert app.holders(email) == []


def test_several_holders_of_one_address_are_all_told(scripted):
    people = [{"id": "1", "cio_id": "a1", "email": "x"}, {"id": "", "cio_id": "a2"}, {"id": None, "cio_id": "a3"}]
    scripted.will_answer(json.dumps({"results": people}).encode())
    with scripted.client() as app:
        assert app.holders("a@example.com") == [Holder("1", "a1"), Holder(None, "a2"), Holder(None, "a3")]


# Which changes failed


def test_a_change_of_an_address_that_was_not_made_is_found(app, workspace):
    before = int(time.time())
    identify(workspace, ({"id": "1"}, {"email": "a@example.com"}), ({"id": "1"}, {"email": "b@example.com", "a": 1}))
    (change,) = app.failed_changes(before)
    assert (change.person, change.attribute, change.wanted) == ("1", "email", "b@example.com")
    assert before <= change.at <= time.time()
    assert "example.com" not in repr(change)


def test_failed_changes_come_newest_first_through_all_pages(app, workspace):
    wanted = [f"{number}@example.com" for number in range(230)]
    identify(workspace, *(({"id": "1"}, {"email": email}) for email in ["a@example.com", *wanted]))
    assert [change.wanted for change in app.failed_changes(0)] == wanted[::-1]
    assert requests_of(workspace) == {"200": 3}


def test_failed_changes_are_read_no_further_back_than_asked(app, workspace):
    identify(workspace, *(({"id": "1"}, {"email": f"{number}@example.com"}) for number in range(230)))
    time.sleep(1.1)  # the log's times are whole seconds
    since = int(time.time())
    identify(workspace, ({"id": "1"}, {"email": "new@example.com"}))
    assert [change.wanted for change in app.failed_changes(since)] == ["new@example.com"]
    assert requests_of(workspace) == {"200": 1}
    assert list(app.failed_changes(since + 3600)) == []


def test_a_change_in_the_very_second_that_was_asked_for_counts(scripted):
    scripted.will_answer(page(activity(timestamp=1000), activity(timestamp=999), activity(timestamp=1000), next="x"))
    with scripted.client() as app:
        assert list(app.failed_changes(1000)) == [FailedChange("1", "email", "b@example.com", 1000)]
    assert len(scripted.asked) == 1


@pytest.mark.parametrize(
    "odd",
    [
        {"data": None},
        {"data": {}},
        {"data": "email"},
        {"data": {"email": "b@example.com"}},
        {"data": {"email": {"from": "a@example.com"}}},
        {"timestamp": None},
        {"timestamp": "1000"},
    ],
)
def test_a_failed_change_of_another_shape_is_left_out_and_a_warning_says_so_once(scripted, caplog, odd):
    scripted.will_answer(page(activity(**odd), activity(), activity(**odd)))
    with scripted.client() as app:
        assert [change.person for change in app.failed_changes(0)] == ["1"]
    (warning,) = caplog.records
    assert "failed_attribute_change" in warning.getMessage() and "example.com" not in caplog.text


@pytest.mark.parametrize(
    ("who", "person"),
    [
        ({"customer_identifiers": {"id": "7"}, "customer_id": "8"}, "7"),
        ({"customer_identifiers": None, "customer_id": "8"}, "8"),
        ({"customer_identifiers": {"id": ""}, "customer_id": ""}, None),
        ({"customer_identifiers": None, "customer_id": None}, None),
    ],
)
def test_the_person_of_a_failed_change_is_told_by_id(scripted, who, person):
    scripted.will_answer(page(activity(**who)))
    with scripted.client() as app:
        assert [change.person for change in app.failed_changes(0)] == [person]


def test_a_page_that_names_itself_as_the_next_ends_the_reading(scripted):
    scripted.will_answer(page(activity(), next="x"), page(activity(), next="x"))
    with scripted.client() as app:
        assert len(list(app.failed_changes(0))) == 2
    assert [path.partition("&start=")[2] for path in scripted.asked] == ["", "x"]


def test_an_empty_log_may_be_told_as_null(scripted):
    scripted.will_answer(b'{"activities": null, "next": null}')
    with scripted.client() as app:
        assert list(app.failed_changes(0)) == []


def test_an_update_that_was_skipped_is_told_with_what_it_wanted(app, workspace):
    identify(workspace, ({"id": "1"}, {"tier": "gold", "a": 1}))
    body = {"type": "person", "identifiers": {"id": "1"}, "action": "identify", "timestamp": 1000}
    httpx.post(
        f"{workspace.url}/api/v2/entity",
        auth=(workspace.site_id, workspace.api_key),
        json={**body, "attributes": {"tier": "silver"}},
        trust_env=False,
    )
    (change,) = app.failed_changes(0, "skipped_update")
    assert (change.person, change.attribute, change.wanted) == ("1", "tier", "silver")
    assert list(app.failed_changes(0)) == []


FAILED_EVENT = {"type": "failed_event", "name": "Order Placed", "data": {"event_id": 9, "total": 1.5}}


def test_an_event_that_failed_is_told_by_its_event_id_as_text(scripted):
    scripted.will_answer(page(activity(**FAILED_EVENT), activity(**FAILED_EVENT, timestamp=999)))
    with scripted.client() as app:
        assert list(app.failed_events(1000)) == [FailedEvent("1", "Order Placed", "9")]


@pytest.mark.parametrize(
    "odd",
    [
        {"data": None},
        {"data": {"total": 1}},
        {"name": ""},
        {"customer_id": None, "customer_identifiers": None},
        {"timestamp": "1000"},
    ],
)
def test_a_failed_event_of_another_shape_is_left_out_and_a_warning_says_so_once(scripted, caplog, odd):
    line = activity(**{**FAILED_EVENT, **odd})
    scripted.will_answer(page(line, activity(**FAILED_EVENT), line))
    with scripted.client() as app:
        assert [event.person for event in app.failed_events(0)] == ["1"]
    (warning,) = caplog.records
    assert "failed_event" in warning.getMessage()


# Patience


def test_no_more_than_ten_requests_a_second_are_made(scripted):
    scripted.will_answer(200)
    started = time.monotonic()
    with scripted.client() as app:
        for _ in range(21):
            app.existing(["1"])
    assert time.monotonic() - started >= 1.9


def test_a_429_because_others_read_too_is_waited_out(app, workspace):
    headers = {"Authorization": f"Bearer {workspace.app_api_key}"}
    with httpx.Client(base_url=workspace.url, headers=headers, trust_env=False) as another:
        assert {another.get("/v1/segments").status_code for _ in range(10)} == {200}
    identify(workspace, ({"id": "1"}, {}))
    assert app.existing(["1", "2"]) == {"1"}
    assert requests_of(workspace)["429"] >= 1


@pytest.mark.parametrize("status", [408, 429, 500, 503, 0])
def test_a_passing_failure_is_tried_again(scripted, status):
    scripted.will_answer(status, status, b'{"results": [{"id": "1", "cio_id": "a1"}]}')
    with scripted.client() as app:
        assert app.holders("a@example.com") == [Holder("1", "a1")]
    assert len(scripted.asked) == 3


@pytest.mark.parametrize("after", [lambda: "2", lambda: formatdate(time.time() + 3, usegmt=True)])
def test_retry_after_is_honoured(scripted, after):
    scripted.will_answer((429, {"Retry-After": after()}), 200)
    started = time.monotonic()
    with scripted.client() as app:
        app.holders("a@example.com")
    assert time.monotonic() - started > 1.5  # the first pause would otherwise be a second at most


@pytest.mark.parametrize("status", [408, 429, 500, 0])
def test_patience_ends_after_the_attempts(scripted, status):
    scripted.will_answer(status)
    with (
        scripted.client(attempts=2) as app,
        pytest.raises(DeliveryUnavailable, match="The next pass asks again") as told,
    ):
        app.holders("jane@example.com")
    assert len(scripted.asked) == 2
    assert "jane" not in str(told.value) and KEY not in str(told.value)


def test_a_host_that_is_not_there_is_named_in_the_failure(workspace):
    settings = settings_of(workspace, customerio_app_url="http://127.0.0.1:1")
    with AppApi(settings, attempts=1) as app, pytest.raises(DeliveryUnavailable, match=r"127\.0\.0\.1:1"):
        app.existing(["1"])


# What a person must mend


def test_without_a_key_nothing_is_constructed():
    with pytest.raises(ConfigurationFault, match=r"^CUSTOMERIO_APP_API_KEY is missing: "):
        AppApi(bare_settings())


@pytest.mark.parametrize("key", ["wrong", "wr\N{NO-BREAK SPACE}ong…"])
def test_a_wrong_key_is_refused_and_the_settings_are_named(workspace, key):
    with AppApi(settings_of(workspace, customerio_app_api_key=key)) as app, pytest.raises(CredentialFault) as told:
        app.holders("jane@example.com")
    for name in ("401", "CUSTOMERIO_APP_API_KEY", "CUSTOMERIO_REGION", "Track API"):
        assert name in str(told.value)
    assert key not in str(told.value) and "jane" not in str(told.value)


def test_the_key_of_the_track_api_is_another(workspace):
    settings = settings_of(workspace, customerio_app_api_key=workspace.api_key)
    with AppApi(settings) as app, pytest.raises(CredentialFault):
        app.existing(["1"])


def test_a_key_that_may_not_read_is_told_like_a_wrong_one(scripted):
    scripted.will_answer(403)
    with scripted.client() as app, pytest.raises(CredentialFault, match="403"):
        list(app.failed_changes(0))


UNREADABLE = [
    b"",
    b"<html>",
    b"[]",
    b"{}",
    b'{"results": {}, "customers": {}, "activities": {}}',
    b'{"results": 7, "customers": 7, "activities": 7}',
    b'{"results": "x", "customers": "x", "activities": "x"}',
    b'{"results": ["x"], "customers": ["x"], "activities": ["x"]}',
    b'{"results": [{}], "customers": [{"customer": {}}], "activities": [null]}',
]


@pytest.mark.parametrize("answer", [302, 404, 405, *UNREADABLE])
def test_an_answer_that_the_app_api_does_not_give_names_the_settings_and_never_means_nobody(scripted, answer):
    scripted.will_answer(answer)
    with scripted.client() as app:
        for ask in (
            lambda: app.holders("jane@example.com"),
            lambda: app.existing(["1"]),
            lambda: [*app.failed_changes(0)],
            lambda: app.attributes(["1"]),
            *([] if answer == 404 else [lambda: [*app.events("1")]]),  # there it says that nobody is there
        ):
            with pytest.raises(ConfigurationFault, match="CUSTOMERIO_REGION and CUSTOMERIO_APP_URL") as told:
                ask()
            assert "jane" not in str(told.value)


def test_an_address_that_is_refused_is_looked_up_in_another_way_and_only_a_404_says_that_it_is_nobodys(scripted):
    scripted.will_answer(400, 404, 400)
    with scripted.client() as app:
        assert app.holders("jane@example.com") == []
        for ask in (
            lambda: app.holders("jane@example.com"),
            lambda: app.existing(["1"]),
            lambda: [*app.failed_changes(0)],
        ):
            with pytest.raises(ConfigurationFault, match="400"):
                ask()


@pytest.mark.parametrize("answer", [*UNREADABLE, b'{"customer": null}', b'{"customer": {"identifiers": {"id": ""}}}'])
def test_an_unreadable_person_is_not_taken_for_nobody(scripted, answer):
    scripted.will_answer(400, answer)
    with scripted.client() as app, pytest.raises(ConfigurationFault):
        app.holders("jörg@example.com")


def test_no_address_and_no_key_is_logged(app, workspace, caplog):
    caplog.set_level(logging.DEBUG)
    identify(workspace, ({"id": "1"}, {"email": "jane@example.com"}), ({"id": "1"}, {"email": "jörg@example.com"}))
    caplog.clear()
    assert app.holders("jane@example.com") and not app.holders("jörg@example.com")
    assert app.existing(["1"]) and list(app.failed_changes(0))
    for said in ("jane", "rg@", "example", "%40", workspace.app_api_key):
        assert said not in caplog.text


def test_us_and_eu_have_their_own_hosts():
    assert APP_URLS == {"us": "https://api.customer.io", "eu": "https://api-eu.customer.io"}


# Segments


def test_the_members_of_a_segment_are_read_page_after_page(scripted):
    scripted.will_answer(
        json.dumps({"segment_id": 7, "ids": ["1", "", "x"], "next": "MDAwMQ"}).encode(),
        json.dumps({"segment_id": 7, "ids": ["2"], "next": ""}).encode(),
    )
    with scripted.client() as app:
        assert list(app.members(7)) == [["1", "", "x"], ["2"]]
    path = "/v1/segments/7/membership?limit=30000"
    assert scripted.asked == [path, f"{path}&start=MDAwMQ"]


def test_segments_are_told_with_their_states_sizes_and_campaigns(app, workspace):
    first = workspace.add_segment("All", {"attr": "id", "op": "exists"})
    second = workspace.add_segment("Built", {"attr": "vip", "op": "exists"}, state="build")
    campaign = workspace.add_campaign("Hello", trigger_segment_ids=[first], state="draft")
    identify(workspace, ({"id": "1"}, {"a": 1}), ({"id": "2"}, {"a": 1}))
    assert app.segments() == [
        Segment(first, "All", "finished", "dynamic"),
        Segment(second, "Built", "build", "dynamic"),
    ]
    assert app.count(first) == 2
    assert list(app.members(first)) == [["1", "2"]]
    assert (app.used_by(first), app.used_by(second)) == ([campaign], [])


@pytest.mark.parametrize("method", ["count", "members", "used_by"])
def test_what_is_no_segments_answer_is_not_taken_for_an_empty_segment(scripted, method):
    scripted.will_answer(b'{"count": null, "ids": 7, "next": ""}')
    with scripted.client() as app, pytest.raises(ConfigurationFault, match="CUSTOMERIO_APP_URL"):
        list(getattr(app, method)(7))
