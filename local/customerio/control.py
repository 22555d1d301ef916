"""Driving the stand-in from tests and the demo: start it, make workspaces, cause faults, see what it really holds.

with services.customer_io() as running:
    workspace = CustomerioStandin(running.url).create_workspace(region="eu", lag_seconds=0)
    workspace.add_fault(status=429, retry_after=1, times=3)
    ...
    assert workspace.stats()["duplicate_events_stored"] == 0
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypedDict

import httpx


class Event(TypedDict):
    """An event as it is held; `person` is the id (`email:...` or `cio_id:...` for people without one)."""

    person: str | None
    name: str
    ulid: str | None
    timestamp: int
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace of its own: credentials for the product, and a view from behind for the test."""

    url: str
    site_id: str
    api_key: str
    app_api_key: str
    environment_id: int
    region: str
    _http: httpx.Client = field(repr=False)

    def _call(self, method: str, path: str, content: Any = None, **params: Any) -> Any:
        response = self._http.request(
            method, f"/_standin/workspaces/{self.environment_id}{path}", json=content, params=params
        )
        if response.status_code == httpx.codes.BAD_REQUEST:
            raise ValueError(response.json()["error"])
        return response.raise_for_status().json()

    def people(self) -> dict[str, dict[str, Any]]:
        """Attributes by id, with the types that they were sent with, as accepted (no lag)."""
        people: dict[str, dict[str, Any]] = self._call("GET", "/people")
        return people

    def events(self) -> Iterator[Event]:
        """Every stored event in the order of arrival, read by pages."""
        start: int | None = 0
        while start is not None:
            page = self._call("GET", "/events", start=start)
            yield from page["events"]
            start = page["next"]

    def stats(self) -> dict[str, Any]:
        """Counts since the workspace was made; the names are in workspace.py."""
        stats: dict[str, Any] = self._call("GET", "/stats")
        return stats

    def configure(self, **settings: Any) -> None:
        """Change lag_seconds, latency_seconds, email_updates_allowed, deduplicates, bare_events, shuffle_seed, region
        or a key."""
        self._call("PATCH", "", settings)

    def add_fault(self, **fault: Any) -> None:
        """Queue a fault for the next matching Track requests; see faults.py. Raises ValueError for one that is none."""
        self._call("POST", "/faults", fault)

    def clear_faults(self) -> None:
        """Forget all faults."""
        self._call("DELETE", "/faults")

    def add_segment(self, name: str, *conditions: dict[str, Any], state: str = "finished") -> int:
        """Define a segment: `{"attr", "op", "value"}` conditions that must all hold (see people.matches); its id."""
        number: int = self._call("POST", "/segments", {"name": name, "conditions": conditions, "state": state})["id"]
        return number

    def add_campaign(self, name: str, **campaign: Any) -> int:
        """Define a campaign: state ("running"), event_name or trigger_segment_ids, and how it acts (campaigns.py)."""
        number: int = self._call("POST", "/campaigns", {"name": name, **campaign})["id"]
        return number


class CustomerioStandin:
    """The stand-in at an address, http://127.0.0.1:PORT; Track and App API are both there."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.Client(base_url=url, timeout=60, trust_env=False)

    def create_workspace(self, **settings: Any) -> Workspace:
        """A new, empty workspace. Settings: those of `Workspace.configure`, and environment_id."""
        response = self._http.post("/_standin/workspaces", json=settings)
        if response.status_code == httpx.codes.BAD_REQUEST:
            raise ValueError(response.json()["error"])
        return Workspace(self.url, **response.raise_for_status().json(), _http=self._http)

    def close(self) -> None:
        self._http.close()
