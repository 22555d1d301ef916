"""The Customer.io stand-in against the vendor's description and the documented behaviour."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import orjson
import pytest

from local.customerio.contract import description
from local.customerio.control import CustomerioStandin, Workspace

ULID = "01HT8K3Z7Q9V5C2M4N6P8R0S1T"
NOW = int(time.time())


@pytest.fixture
def workspace(customerio: CustomerioStandin) -> Workspace:
    return customerio.create_workspace(lag_seconds=0)


@pytest.fixture
def track(workspace: Workspace) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=workspace.url, auth=(workspace.site_id, workspace.api_key), trust_env=False) as client:
        yield client


@pytest.fixture
def app(workspace: Workspace) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {workspace.app_api_key}"}
    with httpx.Client(base_url=workspace.url, headers=headers, trust_env=False) as client:
        yield client


def identify(person: str = "42", *, timestamp: int | None = None, **attributes: Any) -> dict[str, Any]:
    operation = {"type": "person", "identifiers": {"id": person}, "action": "identify", "attributes": attributes}
    return operation if timestamp is None else {**operation, "timestamp": timestamp}


def event(person: str = "42", ulid: str = ULID, **changes: Any) -> dict[str, Any]:
    operation = {"type": "person", "identifiers": {"id": person}, "action": "event", "name": "Order Placed"}
    return {**operation, "id": ulid, "timestamp": NOW, "attributes": {"event_id": "9"}, **changes}


def action(name: str, person: str = "42") -> dict[str, Any]:
    return {"type": "person", "identifiers": {"id": person}, "action": name}


def merge(primary: str, secondary: str) -> dict[str, Any]:
    return {"type": "person", "action": "merge", "primary": {"id": primary}, "secondary": {"id": secondary}}


def send(track: httpx.Client, *operations: Any) -> httpx.Response:
    return track.post("/api/v2/batch", json={"batch": operations})


def accept(track: httpx.Client, *operations: Any) -> None:
    response = send(track, *operations)
    assert (response.status_code, response.json()) == (200, {})


# Credentials and the request as a whole


@pytest.mark.parametrize(("region", "host"), [("us", "track.customer.io"), ("eu", "track-eu.customer.io")])
def test_the_region_probe_names_the_workspace(customerio: CustomerioStandin, region: str, host: str) -> None:
    workspace = customerio.create_workspace(region=region)
    probe = httpx.get(
        f"{workspace.url}/api/v1/accounts/region", auth=(workspace.site_id, workspace.api_key), trust_env=False
    )
    assert probe.json() == {
        "url": f"https://{host}",
        "region": region,
        "environment_id": workspace.environment_id,
    }


def test_wrong_credentials_are_refused_on_both_apis(workspace: Workspace) -> None:
    with httpx.Client(base_url=workspace.url, trust_env=False) as client:
        for auth in (None, ("x", workspace.api_key), (workspace.site_id, "x"), (workspace.app_api_key, "")):
            assert client.get("/api/v1/accounts/region", auth=auth).status_code == 401
            assert client.post("/api/v2/batch", auth=auth, json={"batch": [identify()]}).status_code == 401
        for key in ("", f"Bearer {workspace.api_key}", f"Basic {workspace.app_api_key}"):
            assert client.get("/v1/segments", headers={"authorization": key}).status_code == 401
    assert workspace.people() == {}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[",
        b"[]",
        b"{}",
        b'{"batch":{}}',
        b'{"batch":[]}',
        b'{"batch":null}',
        b'{"batch":[{"type":"person"}],"strict":true}',
        b'{"batch":[{"type":"person","identifiers":{"id":"1"},"action":"identify","attributes":{"a":NaN}}]}',
        b'{"batch":[{"type":"person","identifiers":{"id":"\xff"},"action":"identify"}]}',
    ],
)
def test_a_body_that_is_malformed_as_a_whole_answers_400_without_indices(track: httpx.Client, body: bytes) -> None:
    response = track.post("/api/v2/batch", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert all(error.keys() == {"reason", "field", "message"} for error in response.json()["errors"])


def test_a_body_must_say_that_it_is_json(track: httpx.Client) -> None:
    body = orjson.dumps({"batch": [identify()]})
    assert track.post("/api/v2/batch", content=body, headers={"content-type": "text/plain"}).status_code == 400
    header = {"content-type": "application/json; charset=utf-8"}
    assert track.post("/api/v2/batch", content=body, headers=header).status_code == 200


def test_a_body_of_500_000_bytes_is_too_large_and_one_byte_less_is_not(
    workspace: Workspace, track: httpx.Client
) -> None:
    body = orjson.dumps({"batch": [identify()]})
    header = {"content-type": "application/json"}
    assert track.post("/api/v2/batch", content=body.ljust(500_000), headers=header).status_code == 413
    assert workspace.people() == {}
    assert track.post("/api/v2/batch", content=body.ljust(499_999), headers=header).status_code == 200
    assert workspace.stats()["max_body_bytes"] == 500_000


# Single operations


@pytest.mark.parametrize(
    ("operation", "field"),
    [
        ("text", ""),
        ({**identify(), "type": "people"}, "type"),
        ({**identify(), "action": "upsert"}, "action"),
        ({**identify(), "name": "x"}, "name"),
        ({**event(), "Timestamp": NOW}, "Timestamp"),
        ({"type": "person", "action": "identify", "attributes": {}}, "identifiers"),
        ({**identify(), "identifiers": {}}, "identifiers"),
        ({**identify(), "identifiers": {"id": "1", "email": "a@example.com"}}, "identifiers"),
        ({**identify(), "identifiers": {"id": "1", "customer_id": "1"}}, "identifiers"),
        ({**identify(), "identifiers": {"id": 1}}, "identifiers.id"),
        (identify(""), "identifiers.id"),
        (identify("é" * 76), "identifiers.id"),
        ({**identify(), "attributes": []}, "attributes"),
        ({**identify(), "timestamp": "1772013598"}, "timestamp"),
        ({**identify(), "timestamp": 1772013598.0}, "timestamp"),
        ({**identify(), "timestamp": True}, "timestamp"),
        ({**identify(), "timestamp": NOW * 1000}, "timestamp"),
        ({**event(), "timestamp": f"{NOW}"}, "timestamp"),
        ({**event(), "timestamp": NOW + 0.5}, "timestamp"),
        ({**event(), "timestamp": NOW * 1000}, "timestamp"),
        (event(ulid="9001"), "id"),
        (event(ulid="81HT8K3Z7Q9V5C2M4N6P8R0S1T"), "id"),
        (event(ulid="01HT8K3Z7Q9V5C2M4N6P8R0S1U"), "id"),
        ({**event(), "id": None}, "id"),
        ({**event(), "name": None}, "name"),
        ({**event(), "name": "é" * 51}, "name"),
        ({**event(), "attributes": {"recipient": "no address"}}, "attributes.recipient"),
        (identify(**{"é" * 76: 1}), f"attributes.{'é' * 69}"),
        (identify(note="é" * 501), "attributes.note"),
        (identify(lines=["x" * 500, "x" * 500]), "attributes.lines"),
        (identify(**{f"a{number}": 1 for number in range(301)}), "attributes"),
        (identify(email=7), "attributes.email"),
        (identify(email=""), "attributes.email"),
        (identify(email=" "), "attributes.email"),
        (identify(email="é" * 76), "attributes.email"),
        (identify(created_at="2024-01-01"), "attributes.created_at"),
        (identify(created_at=NOW * 1000), "attributes.created_at"),
        (identify(cio_id="a1"), "attributes.cio_id"),
        (identify(_score=1), "attributes._score"),
        (identify(anonymous_id="1"), "attributes.anonymous_id"),
        (identify(_update="yes"), "attributes._update"),
        ({**event(), "attributes": {"text": "x" * 32_000}}, ""),
        ({**merge("1", "2"), "secondary": {"id": 2}}, "secondary"),
        ({**action("delete"), "attributes": {}}, "attributes"),
        ({"type": "object", "action": "identify", "identifiers": {"object_id": "1"}}, "identifiers"),
    ],
)
def test_a_bad_operation_is_refused_alone(
    workspace: Workspace, track: httpx.Client, operation: Any, field: str
) -> None:
    response = send(track, identify("before"), operation, identify("after"))
    assert response.status_code == 207
    errors = response.json()["errors"]
    assert {error["batch_index"] for error in errors} == {1}
    assert field in {error["field"] for error in errors}
    assert workspace.people().keys() == {"before", "after"}
    stats = workspace.stats()
    assert (stats["operations"], stats["accepted"], stats["rejected"]) == (3, 2, 1)


@pytest.mark.parametrize(
    "operation",
    [
        identify("é" * 75),
        identify(**{"é" * 75: 1}),
        identify(note="é" * 500),
        identify(**{f"a{number}": 1 for number in range(300)}),
        identify(email=None, phone="", unsubscribed="no"),
        identify(email="jane@example.com", phone="1", created_at=NOW, unsubscribed=True, timestamp=NOW),
        {**identify(), "_timestamp": NOW},
        {**event(), "name": "é" * 50},
        {key: value for key, value in event().items() if key not in ("id", "timestamp", "attributes")},
        event(ulid=ULID.lower()),
        {**event(), "attributes": {"lines": ["x" * 20_000]}},
        {**event(), "action": "page"},
        {"type": "object", "action": "identify", "identifiers": {"object_type_id": "1", "object_id": "cart-77"}},
        merge("1", "2"),
        action("delete"),
        action("suppress"),
        action("unsuppress"),
        {
            **action("add_relationships"),
            "cio_relationships": [{"identifiers": {"object_type_id": "1", "object_id": "cart-77"}}],
        },
    ],
)
def test_what_is_within_the_limits_is_accepted(track: httpx.Client, operation: dict[str, Any]) -> None:
    accept(track, operation)


def test_an_entity_is_one_operation_and_has_no_207(workspace: Workspace, track: httpx.Client) -> None:
    assert track.post("/api/v2/entity", json=identify("1")).status_code == 200
    response = track.post("/api/v2/entity", json=identify("2", email=7))
    assert response.status_code == 400
    assert "batch_index" not in response.json()["errors"][0]
    assert workspace.people().keys() == {"1"}


# People


def test_values_are_kept_with_their_types(workspace: Workspace, track: httpx.Client) -> None:
    attributes = {"text": "1", "whole": 1, "decimal": 1.0, "yes": True, "list": ["1", 1], "nested": {"a": 1}}
    accept(track, identify(**attributes))
    assert orjson.dumps(workspace.people()["42"]) == orjson.dumps(attributes)


def test_an_omitted_attribute_stays_and_a_null_removes(workspace: Workspace, track: httpx.Client) -> None:
    accept(track, identify(a=1, b=2, c=3), identify(b=None, c=4))
    assert workspace.people() == {"42": {"a": 1, "c": 4}}


def test_a_change_of_type_alone_is_a_change(workspace: Workspace, track: httpx.Client) -> None:
    accept(track, identify(yes=1), identify(yes=True))
    assert workspace.people()["42"]["yes"] is True


def test_an_older_identify_never_overwrites_a_newer_value(workspace: Workspace, track: httpx.Client) -> None:
    accept(track, identify(timestamp=200, a="new", gone=1), identify(timestamp=200, gone=None))
    accept(track, identify(timestamp=100, a="old", gone=0, b="only here"), identify(timestamp=200, same="x"))
    assert workspace.people()["42"] == {"a": "new", "b": "only here", "same": "x"}


def test_dots_in_a_name_mean_nesting(workspace: Workspace, track: httpx.Client) -> None:
    accept(track, identify(**{"address.city": "Ulm", "address.zip": "89073"}), identify(**{"address.city": "Bonn"}))
    assert workspace.people()["42"] == {"address": {"city": "Bonn", "zip": "89073"}}


def test_update_only_never_creates(workspace: Workspace, track: httpx.Client) -> None:
    accept(track, identify("1", a=1), identify("1", a=2, _update=True), identify("2", a=2, _update=True))
    assert workspace.people() == {"1": {"a": 2}}


def test_ids_are_case_exact_and_addresses_are_not(workspace: Workspace, track: httpx.Client) -> None:
    accept(track, identify("a", email="Jane@Example.com"), identify("A"))
    accept(track, {**identify(x=1), "identifiers": {"email": "jane@example.COM"}})
    assert workspace.people() == {"a": {"email": "Jane@Example.com", "x": 1}, "A": {}}


@pytest.mark.parametrize("allowed", [False, True])
def test_an_address_changes_by_id_only_where_the_workspace_allows(
    workspace: Workspace, track: httpx.Client, allowed: bool
) -> None:
    workspace.configure(email_updates_allowed=allowed)
    accept(track, identify(email="old@example.com"), identify(email="new@example.com", a=1))
    assert workspace.people()["42"] == {"email": "new@example.com" if allowed else "old@example.com", "a": 1}
    assert workspace.stats()["activities_by_type"].get("failed_attribute_change", 0) == (0 if allowed else 1)


def test_an_address_of_somebody_else_is_not_taken_over_by_a_known_person(
    workspace: Workspace, track: httpx.Client, app: httpx.Client
) -> None:
    accept(track, identify("1", email="one@example.com"), identify("2"), identify("2", email="ONE@example.com", a=1))
    assert workspace.people() == {"1": {"email": "one@example.com"}, "2": {"a": 1}}
    failures = app.get("/v1/activities", params={"type": "failed_attribute_change"}).json()["activities"]
    assert [failure["customer_id"] for failure in failures] == ["2"]


def test_a_new_id_with_somebodys_address_gives_that_person_the_id(workspace: Workspace, track: httpx.Client) -> None:
    accept(track, identify("1", email="one@example.com", a=1), identify("2", email="one@example.com", b=2))
    assert workspace.people() == {"2": {"email": "one@example.com", "a": 1, "b": 2}}


def test_a_null_address_frees_it_for_another_person(workspace: Workspace, track: httpx.Client) -> None:
    accept(track, identify("1", email="one@example.com"), identify("1", email=None))
    accept(track, identify("2", email="one@example.com"))
    assert workspace.people() == {"1": {}, "2": {"email": "one@example.com"}}


def test_delete_forgets_and_a_later_identify_begins_anew(workspace: Workspace, track: httpx.Client) -> None:
    accept(track, identify(timestamp=NOW, unsubscribed=True, email="a@example.com"), action("delete"), action("delete"))
    assert workspace.people() == {}
    accept(track, identify(timestamp=NOW - 10, a=1))
    assert workspace.people() == {"42": {"a": 1}}


def test_a_suppressed_person_is_ignored_until_unsuppressed(workspace: Workspace, track: httpx.Client) -> None:
    accept(track, identify(email="a@example.com"), action("suppress"), identify(a=1), event())
    accept(track, {**identify(), "identifiers": {"email": "A@example.com"}})
    assert workspace.people() == {}
    assert workspace.stats()["events_stored"] == 0
    accept(track, action("unsuppress"), identify(a=2))
    assert workspace.people() == {"42": {"a": 2}}


def test_merge_moves_recent_events_and_fills_gaps(workspace: Workspace, track: httpx.Client, app: httpx.Client) -> None:
    old = event("2", ULID[:-1] + "0", timestamp=NOW - 40 * 86_400)
    accept(track, identify("1", a=1), identify("2", a=2, b=2, email="two@example.com"), event("2"), old)
    accept(track, merge("1", "2"))
    assert workspace.people() == {"1": {"a": 1, "b": 2, "email": "two@example.com"}}
    events = app.get("/v1/customers/1/activities", params={"type": "event"}).json()["activities"]
    assert [one["timestamp"] for one in events] == [NOW]


def test_merge_does_nothing_where_the_primary_is_unknown(workspace: Workspace, track: httpx.Client) -> None:
    accept(track, identify("2", a=2), merge("1", "2"), merge("2", "1"))
    assert workspace.people() == {"2": {"a": 2}}


def test_a_shuffled_workspace_promises_no_order(workspace: Workspace, track: httpx.Client) -> None:
    workspace.configure(shuffle_seed=1)
    accept(track, *(event(ulid=f"{number:026d}", attributes={"n": number}) for number in range(100)))
    order = [one["attributes"]["n"] for one in workspace.events()]
    assert sorted(order) == list(range(100)) != order


# Events


def test_a_repeated_ulid_is_dropped_and_counted_whoever_it_is_for(workspace: Workspace, track: httpx.Client) -> None:
    accept(track, event("1"), event("1"))
    accept(track, event("2", name="Other"), event("2", ULID.lower()))
    stats = workspace.stats()
    assert (stats["events_stored"], stats["duplicate_events_dropped"]) == (1, 3)
    assert workspace.people().keys() == {"1"}  # an event creates its person; a dropped one does not


def test_the_same_source_event_under_two_ulids_is_stored_twice_and_counted(
    workspace: Workspace, track: httpx.Client
) -> None:
    accept(track, event(), event(ulid=ULID[:-1] + "0"), event(ulid=ULID[:-1] + "1", name="Refunded"))
    stats = workspace.stats()
    assert (stats["events_stored"], stats["duplicate_events_stored"]) == (3, 1)


def test_events_are_listed_as_they_were_sent_page_by_page(workspace: Workspace, track: httpx.Client) -> None:
    for start in range(0, 25_000, 2_500):
        accept(track, *(event(ulid=f"{number:026d}", attributes={}) for number in range(start, start + 2_500)))
    events = list(workspace.events())
    assert [one["ulid"] for one in events] == [f"{number:026d}" for number in range(25_000)]
    assert events[0] == {
        "person": "42",
        "name": "Order Placed",
        "ulid": f"{0:026d}",
        "timestamp": NOW,
        "attributes": {},
    }


# The App API


def described(path: str, method: str, answer: httpx.Response) -> Any:
    """The answer's content, once it is as the vendor's description has it."""
    of_path = description("arcade_customerio_api")["paths"][path]
    schema = of_path[method]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer.status_code == 200, answer.text
    jsonschema_rs.Draft4Validator(_in_json_schema(schema), ignore_unknown_formats=True).validate(answer.json())
    return answer.json()


def _in_json_schema(schema: Any) -> Any:
    """OpenAPI 3.0's `nullable` in JSON Schema's words; alternatives may overlap (those of an activity's data do)."""
    if isinstance(schema, list):
        return [_in_json_schema(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {"anyOf" if key == "oneOf" else key: _in_json_schema(value) for key, value in schema.items()}
    if schema.get("nullable") is True and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    return schema


def test_attributes_read_back_as_text(track: httpx.Client, app: httpx.Client) -> None:
    accept(track, identify(timestamp=NOW, email="a@example.com", n=3, f=29.9, yes=True, list=[1], unsubscribed=True))
    answer = app.get("/v1/customers/42/attributes")
    customer = described("/v1/customers/{customer_id}/attributes", "get", answer)["customer"]
    cio_id = customer["identifiers"]["cio_id"]
    assert customer["identifiers"] == {"id": "42", "email": "a@example.com", "cio_id": cio_id}
    assert customer["attributes"] == {
        "id": "42",
        "cio_id": cio_id,
        "email": "a@example.com",
        "n": "3",
        "f": "29.9",
        "yes": "true",
        "list": "[1]",
        "unsubscribed": "true",
    }
    assert customer["timestamps"]["n"] == NOW
    assert customer["unsubscribed"] is True
    for value, kind in ((cio_id, "cio_id"), (f"cio_{cio_id}", "cio_id"), ("A@example.com", "email")):
        assert app.get(f"/v1/customers/{value}/attributes", params={"id_type": kind}).json()["customer"] == customer


def test_an_id_in_a_path_is_percent_encoded(track: httpx.Client, app: httpx.Client) -> None:
    accept(track, identify("a/b c?d"))
    assert app.get("/v1/customers/a%2Fb%20c%3Fd/attributes").json()["customer"]["id"] == "a/b c?d"
    assert app.get("/v1/customers/a/attributes").status_code == 404


def test_up_to_a_hundred_people_are_read_at_once(track: httpx.Client, app: httpx.Client) -> None:
    accept(track, *(identify(str(number)) for number in range(100)))
    ids = [str(number) for number in range(1, 101)]
    answer = app.post("/v1/customers/attributes", json={"ids": ids})
    customers = described("/v1/customers/attributes", "post", answer)["customers"]
    assert [one["customer"]["id"] for one in customers] == ids[:-1]
    for content in ({"ids": []}, {"ids": [*ids, "101"]}, {"ids": [1]}, {}, None):
        assert app.post("/v1/customers/attributes", json=content).status_code == 400


def test_people_are_found_by_address(track: httpx.Client, app: httpx.Client) -> None:
    accept(track, identify(email="a@example.com"))
    answer = app.get("/v1/customers", params={"email": "A@example.com"})
    assert [one["id"] for one in described("/v1/customers", "get", answer)["results"]] == ["42"]
    assert app.get("/v1/customers", params={"email": "b@example.com"}).json() == {"results": []}
    assert app.get("/v1/customers").status_code == 400


def test_activities_come_newest_first_by_pages(track: httpx.Client, app: httpx.Client) -> None:
    accept(track, *(event(ulid=f"{number:026d}", attributes={"n": number}) for number in range(25)), identify(a=1))
    seen: list[int] = []
    params: dict[str, Any] = {"type": "event", "name": "Order Placed", "limit": 10}
    while True:
        answer = app.get("/v1/customers/42/activities", params=params)
        page = described("/v1/customers/{customer_id}/activities", "get", answer)
        seen += [one["data"]["n"] for one in page["activities"]]
        if not page["next"]:
            break
        params["start"] = page["next"]
    assert seen == list(reversed(range(25)))
    newest = described("/v1/activities", "get", app.get("/v1/activities", params={"limit": 1}))["activities"][0]
    assert (newest["type"], newest["data"]) == ("attribute_change", {"a": {"from": "", "to": "1"}})


@pytest.mark.parametrize("query", ["limit=101", "limit=x", "type=nonsense", "start=x", "page=2"])
def test_a_query_that_is_not_described_is_refused(app: httpx.Client, query: str) -> None:
    assert app.get(f"/v1/activities?{query}").status_code == 400


def test_reads_lag_behind_writes(workspace: Workspace, track: httpx.Client, app: httpx.Client) -> None:
    accept(track, identify(a=1))
    workspace.configure(lag_seconds=1)
    accept(track, identify(a=2), event())
    sent = time.monotonic()
    assert workspace.people()["42"]["a"] == 2
    assert app.get("/v1/customers/42/attributes").json()["customer"]["attributes"]["a"] == "1"
    assert time.monotonic() - sent < 1
    time.sleep(1)
    assert app.get("/v1/customers/42/attributes").json()["customer"]["attributes"]["a"] == "2"


def test_the_eleventh_read_within_a_second_is_too_many(app: httpx.Client) -> None:
    assert [app.get("/v1/segments").status_code for _ in range(12)] == [200] * 10 + [429] * 2
    time.sleep(1)
    assert app.get("/v1/segments").status_code == 200


@pytest.mark.parametrize(
    ("condition", "members"),
    [
        ({"attr": "n", "op": "eq", "value": 1}, ["whole", "decimal"]),
        ({"attr": "n", "op": "eq", "value": "1"}, ["text"]),
        ({"attr": "n", "op": "gt", "value": 0}, ["whole", "decimal", "time"]),
        ({"attr": "n", "op": "lt", "value": 2}, ["whole", "decimal"]),
        ({"attr": "n", "op": "exists"}, ["whole", "decimal", "text", "yes", "time", "date"]),
        ({"attr": "n", "op": "not_exists"}, ["nothing"]),
        ({"attr": "n", "op": "is_timestamp"}, ["whole", "time"]),
        ({"attr": "n", "op": "within_past_days", "value": 2}, ["time"]),
        ({"attr": "id", "op": "eq", "value": "date"}, ["date"]),
    ],
)
def test_segments_are_faithful_to_types(
    workspace: Workspace, track: httpx.Client, app: httpx.Client, condition: dict[str, Any], members: list[str]
) -> None:
    yesterday = NOW - 86_400
    values = {"whole": 1, "decimal": 1.0, "text": "1", "yes": True, "time": yesterday, "date": "2026-01-01"}
    accept(track, *(identify(person, n=value) for person, value in values.items()), identify("nothing"))
    number = workspace.add_segment("some", condition)
    path = "/v1/segments/{segment_id}"
    count = described(f"{path}/customer_count", "get", app.get(f"/v1/segments/{number}/customer_count"))
    assert count == {"segment_id": number, "count": len(members)}
    found: list[str] = []
    params: dict[str, Any] = {"limit": 2}
    while params.get("start") != "":
        page = described(f"{path}/membership", "get", app.get(f"/v1/segments/{number}/membership", params=params))
        found += page["ids"]
        params["start"] = page["next"]
    assert found == members


def test_campaigns_tell_what_could_fire(workspace: Workspace, app: httpx.Client) -> None:
    segment = workspace.add_segment("vip", {"attr": "ltv", "op": "gt", "value": 100}, state="build")
    by_event = workspace.add_campaign("Thanks", event_name="Order Placed")
    by_segment = workspace.add_campaign("Welcome, vip", trigger_segment_ids=[segment], state="draft")
    segments = described("/v1/segments", "get", app.get("/v1/segments"))["segments"]
    assert [(one["id"], one["state"]) for one in segments] == [(segment, "build")]
    campaigns = described("/v1/campaigns", "get", app.get("/v1/campaigns"))["campaigns"]
    assert [(one["id"], one["state"]) for one in campaigns] == [(by_event, "running"), (by_segment, "draft")]
    used = described("/v1/segments/{segment_id}/used_by", "get", app.get(f"/v1/segments/{segment}/used_by"))
    assert used["used_by"]["campaigns"] == [by_segment]
    assert app.get("/v1/segments/99/used_by").status_code == 404


# Campaigns that act


def messages(app: httpx.Client, person: str = "42", **params: Any) -> list[int]:
    """The campaigns of a person's messages, the newest first."""
    answer = app.get(f"/v1/customers/{person}/messages", params=params)
    found = described("/v1/customers/{customer_id}/messages", "get", answer)["messages"]
    assert len({one["id"] for one in found}) == len(found)
    return [one["campaign_id"] for one in found]


def test_a_campaign_sends_a_message_for_each_event_that_is_stored_and_young(
    workspace: Workspace, track: httpx.Client, app: httpx.Client
) -> None:
    thanks = workspace.add_campaign("Thanks", event_name="Order Placed", delays=[0])
    workspace.add_campaign("Stopped", event_name="Order Placed", delays=[0], state="stopped")
    twice = workspace.add_campaign("Twice", event_name="Refund Issued", delays=[0], copies=2)
    assert app.get("/v1/customers/42/messages").status_code == 404
    accept(track, identify(email="jane@example.com"))
    accept(track, event())
    accept(track, event())
    accept(track, event(ulid="01HT8K3Z7Q9V5C2M4N6P8R0S1V", timestamp=NOW - 73 * 3600))
    assert messages(app) == [thanks]
    accept(track, event(ulid="01HT8K3Z7Q9V5C2M4N6P8R0S1W", name="Refund Issued"))
    assert sorted(messages(app)) == [thanks, twice, twice]
    assert len(messages(app, limit=2)) == 2
    assert messages(app, start_ts=NOW + 3600) == []
    workspace.add_campaign("Failing", event_name="Cart Updated", delays=[0], failure="mailbox full")
    accept(track, event(ulid="01HT8K3Z7Q9V5C2M4N6P8R0S1X", name="Cart Updated"))
    newest = app.get("/v1/customers/42/messages").json()["messages"][0]
    assert (newest["failure_message"], "delivered" in newest["metrics"]) == ("mailbox full", False)
    workspace.configure(lag_seconds=60)
    assert messages(app) == []


def test_a_message_needs_an_address_a_consent_and_the_filter(
    workspace: Workspace, track: httpx.Client, app: httpx.Client
) -> None:
    only = [{"attr": "vip", "op": "eq", "value": True}]
    workspace.add_campaign("Thanks", event_name="Order Placed", delays=[0], filter=only)
    people: list[dict[str, Any]] = [
        {"vip": True},
        {"vip": True, "email": "a@example.com", "unsubscribed": True},
        {"email": "b@example.com"},
        {"vip": True, "email": "c@example.com"},
    ]
    for number, attributes in enumerate(people):
        accept(track, identify(str(number), **attributes))
        accept(track, event(str(number), ulid=ULID[:-1] + str(number), attributes={}))
    assert [len(messages(app, str(number))) for number in range(4)] == [0, 0, 0, 1]


def test_an_exit_event_ends_a_journey_and_journey_metrics_tell_so(
    workspace: Workspace, track: httpx.Client, app: httpx.Client
) -> None:
    cart = workspace.add_campaign("Cart", event_name="Cart Abandoned", delays=[0, 1], exit_event="Order Placed")
    for number, buys in enumerate((True, False)):
        accept(track, identify(str(number), email=f"{number}@example.com"))
        accept(track, event(str(number), ulid=ULID[:-1] + str(number), name="Cart Abandoned", attributes={}))
        if buys:
            accept(track, event(str(number), ulid=ULID[:-2] + f"9{number}", attributes={}))
    time.sleep(1.2)
    assert [len(messages(app, str(number))) for number in range(2)] == [1, 2]
    path, params = f"/v1/campaigns/{cart}/journey_metrics", {"start": NOW - 3600, "end": NOW + 3600, "res": "hours"}
    answer = described("/v1/campaigns/{campaign_id}/journey_metrics", "get", app.get(path, params=params))
    told = {name: sum(counts) for name, counts in answer["journey_metric"].items()}
    assert (told["started"], told["messaged"], told["converted"], told["finished"]) == (2, 2, 1, 1)
    assert app.get(path, params={**params, "end": 0}).status_code == 400
    assert app.get("/v1/campaigns/99/journey_metrics", params=params).status_code == 404


def test_a_repeated_event_is_shown_again_where_the_workspace_does_not_deduplicate(
    workspace: Workspace, track: httpx.Client, app: httpx.Client
) -> None:
    workspace.configure(deduplicates=False)
    for _ in range(2):
        accept(track, event())
    answer = app.get("/v1/customers/42/activities", params={"type": "event"})
    assert len(answer.json()["activities"]) == 2
    assert workspace.stats()["duplicate_events_stored"] == 1


# Faults


def test_a_status_fault_ends_after_its_times(workspace: Workspace, track: httpx.Client) -> None:
    workspace.add_fault(status=429, retry_after=2, times=2)
    workspace.add_fault(status=500)
    answers = [send(track, identify()) for _ in range(4)]
    assert [one.status_code for one in answers] == [429, 429, 500, 200]
    assert [one.headers.get("retry-after") for one in answers] == ["2", "2", None, None]
    stats = workspace.stats()
    assert stats["requests_by_status"] == {"429": 2, "500": 1, "200": 1}
    assert (stats["requests"], stats["accepted"]) == (4, 1)


@pytest.mark.parametrize(("reset", "people"), [("before", 0), ("after", 1)])
def test_a_reset_leaves_the_client_without_an_answer(
    workspace: Workspace, track: httpx.Client, reset: str, people: int
) -> None:
    workspace.add_fault(reset=reset)
    with pytest.raises(httpx.TransportError):
        send(track, identify())
    assert len(workspace.people()) == people
    accept(track, identify())
    assert workspace.stats()["requests_by_status"] == {f"reset_{reset}": 1, "200": 1}


def test_an_accepted_failure_lies(workspace: Workspace, track: httpx.Client) -> None:
    workspace.add_fault(status=503, accepted=True)
    assert send(track, identify()).status_code == 503
    assert workspace.people() == {"42": {}}


def test_a_share_of_the_operations_is_rejected(workspace: Workspace, track: httpx.Client) -> None:
    workspace.add_fault(reject_share=0.1, seed=1)
    answers = [send(track, *(identify(f"{batch}-{one}") for one in range(100))) for batch in range(5)]
    rejected = sum(len(answer.json().get("errors", [])) for answer in answers)
    assert 20 < rejected < 90
    assert len(workspace.people()) == 500 - rejected
    workspace.clear_faults()
    accept(track, identify())


@pytest.mark.parametrize("wanted", [ULID, "9"])
def test_a_poisoned_event_makes_every_batch_malformed_that_holds_it(
    workspace: Workspace, track: httpx.Client, wanted: str
) -> None:
    workspace.add_fault(status=400, when_event_id=wanted)
    for batch in ([identify(), event()], [event()], [event()]):
        answer = send(track, *batch)
        assert answer.status_code == 400
        assert "batch_index" not in answer.json()["errors"][0]
    accept(track, identify(), event(ulid=ULID[:-1] + "0", attributes={}))


def test_a_condition_of_a_fault_bears_operations_that_are_no_good(workspace: Workspace, track: httpx.Client) -> None:
    workspace.add_fault(status=400, when_event_id="9", when_person_id="42")
    assert send(track, {**identify(), "identifiers": "42"}, {**event(), "attributes": ["9"]}, 7).status_code == 207


def test_a_fault_can_come_every_so_often_or_at_random(workspace: Workspace, track: httpx.Client) -> None:
    workspace.add_fault(status=500, every=3, when_person_id="42")
    answers = [send(track, identify(person)).status_code for person in ("42", "1", "42", "42", "42", "42", "42")]
    assert answers == [200, 200, 200, 500, 200, 200, 500]
    workspace.clear_faults()
    workspace.add_fault(status=500, share=0.5, seed=1)
    assert 10 < sum(send(track, identify()).status_code == 500 for _ in range(40)) < 30


def test_the_region_probe_has_faults_of_its_own(workspace: Workspace, track: httpx.Client) -> None:
    workspace.add_fault(status=401, path="region")
    accept(track, identify())
    assert track.get("/api/v1/accounts/region").status_code == 401
    assert track.get("/api/v1/accounts/region").status_code == 200


def test_strange_errors_can_be_added(workspace: Workspace, track: httpx.Client) -> None:
    error = {"batch_index": 7, "reason": "invalid", "field": "", "message": "?"}
    workspace.add_fault(extra_errors=[error])
    answer = send(track, identify())
    assert (answer.status_code, answer.json()) == (207, {"errors": [error]})
    assert workspace.people() == {"42": {}}


@pytest.mark.parametrize(("fate", "lines"), [("twice", ["event", "event"]), ("failed", ["failed_event"])])
def test_an_accepted_event_can_show_twice_or_fail(
    workspace: Workspace, track: httpx.Client, app: httpx.Client, fate: str, lines: list[str]
) -> None:
    workspace.add_fault(when_event_id="9", events=fate)
    accept(track, identify(), event(), event(ulid=ULID[:-1] + "V", attributes={"event_id": "10"}))
    activities = app.get("/v1/activities", params={"limit": 100}).json()["activities"]
    assert [one["type"] for one in activities if one["data"].get("event_id") == "9"] == lines
    assert [one["type"] for one in activities if one["data"].get("event_id") == "10"] == ["event"]


@pytest.mark.parametrize("fault", [{}, {"times": 1}, {"statu": 500}, {"reset": "never"}, {"events": "thrice"}])
def test_a_fault_that_is_none_is_refused(workspace: Workspace, fault: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"fault|reset|events"):
        workspace.add_fault(**fault)


def test_slow_answers_overlap_and_are_counted_in_flight(workspace: Workspace, track: httpx.Client) -> None:
    workspace.configure(latency_seconds=0.2)
    workspace.add_fault(delay_seconds=0.2)
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        assert all(answer.status_code == 200 for answer in pool.map(lambda _: send(track, identify()), range(4)))
    assert 0.4 <= time.monotonic() - began < 0.8
    assert workspace.stats()["max_in_flight"] == 4


# The process


def test_workspaces_know_nothing_of_each_other(customerio: CustomerioStandin, track: httpx.Client) -> None:
    accept(track, identify(), event())
    other = customerio.create_workspace()
    assert (other.people(), list(other.events()), other.stats()["requests"]) == ({}, [], 0)
    with pytest.raises(ValueError, match="environment_id is taken"):
        customerio.create_workspace(environment_id=other.environment_id)
    with pytest.raises(ValueError, match="unknown setting lag"):
        customerio.create_workspace(lag=1)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_at_once_and_quietly(by: signal.Signals) -> None:
    command = [sys.executable, "-m", "local.customerio", "--port", "0"]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        port = orjson.loads(process.stdout.readline())["port"]
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"http://127.0.0.1:{port}/v1/segments").status_code == 401  # and stays connected
            os.kill(process.pid, by)
            assert process.wait(timeout=2) == 0
        assert process.stderr.read() == b""


def test_a_full_batch_is_no_bottleneck(track: httpx.Client) -> None:
    body = orjson.dumps({"batch": [identify(f"{number}", n=number) for number in range(4_500)]})
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        answer = track.post("/api/v2/batch", content=body, headers={"content-type": "application/json"})
        seconds.append(time.perf_counter() - began)
        assert answer.status_code == 200
    assert min(seconds) < 0.5  # 0.05 where it is alone; the machine may be busy


def test_a_small_answer_does_not_wait_for_an_acknowledgement(track: httpx.Client) -> None:
    seconds = []
    for _ in range(11):
        began = time.perf_counter()
        accept(track, identify())
        seconds.append(time.perf_counter() - began)
    assert sorted(seconds)[5] < 0.03  # 0.001; with Nagle's algorithm on, 0.044
