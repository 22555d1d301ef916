"""The control API under /_standin/: workspaces, faults, settings, segments, and what is really held. No credentials."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from local.customerio.faults import Fault
from local.customerio.people import Activity, Person, matches
from local.customerio.track import json
from local.customerio.workspace import Workspace, Workspaces

EVENTS_A_PAGE = 20_000

Endpoint = Callable[[Workspace, Request, Any], Response]


class Standin:
    """The endpoints; the path names the workspace. Bad input answers 400 with `{"error"}`."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces

    def routes(self) -> list[Route]:
        one = "/_standin/workspaces/{environment_id:int}"
        return [
            Route("/_standin/workspaces", self._create, methods=["POST"]),
            self._route(one, "PATCH", _configure),
            self._route(f"{one}/people", "GET", _people),
            self._route(f"{one}/events", "GET", _events),
            self._route(f"{one}/stats", "GET", lambda workspace, *_: json(workspace.stats())),
            self._route(f"{one}/faults", "POST", _add_fault),
            self._route(f"{one}/faults", "DELETE", _clear_faults),
            self._route(f"{one}/segments", "POST", _add_segment),
            self._route(f"{one}/campaigns", "POST", _add_campaign),
        ]

    async def _create(self, request: Request) -> Response:
        body = await request.body()
        try:
            settings = self._workspaces.create(orjson.loads(body) if body else {}).settings
        except (TypeError, ValueError) as error:
            return json({"error": str(error)}, 400)
        shared = ("site_id", "api_key", "app_api_key", "environment_id", "region")
        return json({name: getattr(settings, name) for name in shared}, 201)

    def _route(self, path: str, method: str, endpoint: Endpoint) -> Route:
        async def answer(request: Request) -> Response:
            body = await request.body()
            workspace = self._workspaces.by_environment(request.path_params["environment_id"])
            if workspace is None:
                return json({"error": "no such workspace"}, 404)
            try:
                return endpoint(workspace, request, orjson.loads(body) if body else {})
            except (KeyError, TypeError, ValueError) as error:
                return json({"error": str(error)}, 400)

        return Route(path, answer, methods=[method])


def _configure(workspace: Workspace, request: Request, changes: Any) -> Response:
    workspace.configure(changes)
    return json({})


def _key(person: Person) -> str:
    """What people are listed under: the id, or for those without one `email:` or `cio_id:` and that."""
    return person.id or (f"email:{person.email}" if person.email else f"cio_id:{person.cio_id}")


def _people(workspace: Workspace, request: Request, _: Any) -> Response:
    return json({_key(person): person.attributes for person in workspace.held})


def _events(workspace: Workspace, request: Request, _: Any) -> Response:
    start = int(request.query_params.get("start", 0))
    limit = int(request.query_params.get("limit", EVENTS_A_PAGE))
    events = workspace.held.activities  # events alone: the held store keeps no other log
    following = start + limit if start + limit < len(events) else None
    return json({"events": [_event(one) for one in events[start : start + limit]], "next": following})


def _event(event: Activity) -> dict[str, Any]:
    return {
        "person": _key(event.person) if event.person else None,
        "name": event.name,
        "ulid": event.ulid,
        "timestamp": event.timestamp,
        "attributes": event.data,
    }


def _add_fault(workspace: Workspace, request: Request, spec: Any) -> Response:
    workspace.faults.append(Fault(spec))
    return json({}, 201)


def _clear_faults(workspace: Workspace, request: Request, _: Any) -> Response:
    workspace.faults.clear()
    return json({})


def _add_segment(workspace: Workspace, request: Request, segment: Any) -> Response:
    matches(Person("a0"), segment["conditions"], 0)  # raises for a condition that is none
    number, now = len(workspace.segments) + 1, int(time.time())
    workspace.segments.append(
        {
            "id": number,
            "deduplicate_id": f"{number}:{now}",
            "name": segment["name"],
            "state": segment.get("state", "finished"),
            "progress": None,
            "type": "dynamic",
            "tags": None,
            "created_at": now,
            "updated_at": now,
            "conditions": segment["conditions"],
        }
    )
    return json({"id": number}, 201)


def _add_campaign(workspace: Workspace, request: Request, campaign: Any) -> Response:
    number, now = len(workspace.campaigns) + 1, int(time.time())
    triggers = ("event_name", "trigger_segment_ids", "filter_segment_ids")
    state = campaign.get("state", "running")
    workspace.campaigns.append(
        {
            "id": number,
            "deduplicate_id": f"{number}:{now}",
            "name": campaign["name"],
            "type": "event" if "event_name" in campaign else "segment",
            "created": now,
            "updated": now,
            "active": state == "running",
            "state": state,
            "actions": [{"type": "email", "id": one} for one, _ in enumerate(campaign.get("delays", []), 1)],
            "first_started": now,
            "tags": [],
            **{key: campaign[key] for key in triggers if key in campaign},
        }
    )
    workspace.journeys.add(number, campaign)
    return json({"id": number}, 201)
