"""The App API, read side: people, activities, messages, segments, campaigns. It lags; values are text."""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from local.customerio.campaigns import Message
from local.customerio.contract import Described
from local.customerio.people import Activity, Person, matches
from local.customerio.track import json
from local.customerio.workspace import Workspace, Workspaces

Endpoint = Callable[[Workspace, Request, Any], Response]


def _error(status: int, detail: str) -> Response:
    return json({"errors": [{"detail": detail, "status": str(status)}]}, status)


class App:
    """The endpoints over all workspaces; the Bearer key chooses."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces

    def routes(self) -> list[Route]:
        return [
            self._route("/v1/customers", _people_by_email),
            self._route("/v1/customers/attributes", _people_by_ids, "POST"),
            self._route("/v1/customers/{customer_id:path}/attributes", _attributes),
            self._route("/v1/customers/{customer_id:path}/activities", _activities_of_person),
            self._route("/v1/customers/{customer_id:path}/messages", _messages_of_person),
            self._route("/v1/activities", _activities),
            self._route("/v1/segments", _segments),
            self._route("/v1/segments/{segment_id:int}", _segment),
            self._route("/v1/segments/{segment_id:int}/customer_count", _customer_count),
            self._route("/v1/segments/{segment_id:int}/membership", _membership),
            self._route("/v1/segments/{segment_id:int}/used_by", _used_by),
            self._route("/v1/campaigns", _campaigns),
            self._route("/v1/campaigns/{campaign_id:int}/journey_metrics", _journey_metrics),
        ]

    def _route(self, path: str, endpoint: Endpoint, method: str = "GET") -> Route:
        described = Described(re.sub(r":\w+}", "}", path), method)

        async def answer(request: Request) -> Response:
            body = await request.body()
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            workspace = self._workspaces.by_app_key(key) if scheme.lower() == "bearer" else None
            if workspace is None:
                return _error(401, "unauthorized")
            if not workspace.may_read():
                response = _error(429, "too many requests")
            else:
                try:
                    content = orjson.loads(body) if body else None
                    found = described.violations(request.query_params, content)
                    response = _error(400, str(found[0])) if found else endpoint(workspace, request, content)
                except ValueError as error:  # malformed JSON, a `start` that was never given out
                    response = _error(400, str(error))
            workspace.app_requests_by_status[str(response.status_code)] += 1
            return response

        return Route(path, answer, methods=[method])


def _text(value: Any) -> str:
    """A stored value as the App API shows it."""
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _customer(person: Person) -> dict[str, Any]:
    attributes = {name: _text(value) for name, value in person.attributes.items()}
    timestamps = {name: int(at) for name, at in person.stamps.items() if name == "id" or name in attributes}
    return {
        "id": person.id or "",
        "identifiers": person.identifiers,
        "attributes": {**attributes, "id": person.id or "", "cio_id": person.cio_id},
        "timestamps": timestamps,
        "unsubscribed": person.attributes.get("unsubscribed") is True,
        "devices": [],
    }


def _find(workspace: Workspace, request: Request, customer_id: str) -> Person | None:
    return workspace.shown.find(request.query_params.get("id_type", "id"), customer_id)


def _attributes(workspace: Workspace, request: Request, _: Any) -> Response:
    person = _find(workspace, request, request.path_params["customer_id"])
    return json({"customer": _customer(person)}) if person else _error(404, "not found")


def _people_by_ids(workspace: Workspace, request: Request, content: Any) -> Response:
    people = [person for one in content["ids"] if (person := workspace.shown.find("id", one))]
    return json({"customers": [{"customer": _customer(person)} for person in people]})


def _people_by_email(workspace: Workspace, request: Request, _: Any) -> Response:
    person = workspace.shown.find("email", request.query_params["email"])
    return json({"results": [person.identifiers] if person else []})


def _activities_of_person(workspace: Workspace, request: Request, _: Any) -> Response:
    person = _find(workspace, request, request.path_params["customer_id"])
    return _page_of_activities(workspace, person.activities, request) if person else _error(404, "not found")


def _activities(workspace: Workspace, request: Request, _: Any) -> Response:
    if (customer_id := request.query_params.get("customer_id")) is None:
        return _page_of_activities(workspace, workspace.shown.activities, request)
    person = _find(workspace, request, customer_id)
    return _page_of_activities(workspace, person.activities if person else [], request)


def _page_of_activities(workspace: Workspace, activities: Sequence[Activity], request: Request) -> Response:
    """Newest first. `activities` ascend by sequence; `start` is the one below which to go on."""
    wanted_type, wanted_name = request.query_params.get("type"), request.query_params.get("name")
    limit = _limit(request, default=10)
    start = request.query_params.get("start")
    end = bisect_left(activities, int(start), key=lambda one: one.sequence) if start else len(activities)
    found: list[Activity] = []
    for activity in map(activities.__getitem__, range(end - 1, -1, -1)):
        if wanted_type and activity.type != wanted_type:
            continue
        if wanted_name and activity.name != wanted_name and wanted_name not in activity.data:
            continue
        if len(found) == limit:
            return json({"activities": [_activity(workspace, one) for one in found], "next": str(found[-1].sequence)})
        found.append(activity)
    return json({"activities": [_activity(workspace, one) for one in found], "next": ""})


def _activity(workspace: Workspace, activity: Activity) -> dict[str, Any]:
    person = activity.person
    data = activity.data
    if activity.type == "attribute_change":
        data = {name: {side: _text(value or "") for side, value in change.items()} for name, change in data.items()}
    if activity.type == "event" and workspace.settings.bare_events:
        data = {}
    return {
        "id": f"{activity.sequence:026d}",
        "type": activity.type,
        "timestamp": activity.timestamp,
        "customer_id": person.id if person else None,
        "customer_identifiers": person.identifiers if person else None,
        "name": activity.name or "",
        "data": data,
    }


def _limit(request: Request, default: int) -> int:
    return max(1, int(request.query_params.get("limit", default)))


def _described(segment: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in segment.items() if key != "conditions"}


def _segments(workspace: Workspace, request: Request, _: Any) -> Response:
    return json({"segments": [_described(segment) for segment in workspace.segments]})


def _segment_of(workspace: Workspace, request: Request) -> dict[str, Any] | None:
    wanted = request.path_params["segment_id"]
    return next((segment for segment in workspace.segments if segment["id"] == wanted), None)


def _members(workspace: Workspace, segment: dict[str, Any]) -> list[Person]:
    now = time.time()
    return [person for person in workspace.shown if matches(person, segment["conditions"], now)]


def _segment(workspace: Workspace, request: Request, _: Any) -> Response:
    segment = _segment_of(workspace, request)
    return json({"segment": _described(segment)}) if segment else _error(404, "not found")


def _customer_count(workspace: Workspace, request: Request, _: Any) -> Response:
    if (segment := _segment_of(workspace, request)) is None:
        return _error(404, "not found")
    return json({"segment_id": segment["id"], "count": len(_members(workspace, segment))})


def _membership(workspace: Workspace, request: Request, _: Any) -> Response:
    if (segment := _segment_of(workspace, request)) is None:
        return _error(404, "not found")
    limit = _limit(request, default=1_000)
    after = request.query_params.get("start", "")
    # A cio_id never changes and grows, so it is a stable cursor while people come and go.
    rest = sorted((one for one in _members(workspace, segment) if one.cio_id > after), key=lambda one: one.cio_id)
    page = rest[:limit]
    return json(
        {
            "segment_id": segment["id"],
            "ids": [person.id or "" for person in page],
            "identifiers": [person.identifiers for person in page],
            "next": page[-1].cio_id if len(rest) > limit else "",
        }
    )


def _used_by(workspace: Workspace, request: Request, _: Any) -> Response:
    if (segment := _segment_of(workspace, request)) is None:
        return _error(404, "not found")
    campaigns = [one["id"] for one in workspace.campaigns if segment["id"] in one.get("trigger_segment_ids", [])]
    used_by = {"campaigns": campaigns, "sent_newsletters": [], "draft_newsletters": []}
    return json({"segment_id": segment["id"], "used_by": used_by})


def _campaigns(workspace: Workspace, request: Request, _: Any) -> Response:
    return json({"campaigns": workspace.campaigns})


def _messages_of_person(workspace: Workspace, request: Request, _: Any) -> Response:
    if (person := _find(workspace, request, request.path_params["customer_id"])) is None:
        return _error(404, "not found")
    query = request.query_params
    first, last = int(query.get("start_ts", 0)), int(query.get("end_ts", 2**40))
    made = workspace.journeys.messages(person.cio_id, time.time() - workspace.settings.lag_seconds)
    found = [_message(one) for one in made if first <= int(one.created) <= last]
    start, limit = int(query.get("start", 0)), _limit(request, default=50)
    following = str(start + limit) if start + limit < len(found) else ""
    return json({"messages": found[start : start + limit], "next": following})


def _message(message: Message) -> dict[str, Any]:
    created = int(message.created)
    return {
        "id": message.id,
        "deduplicate_id": f"{message.id}:{created}",
        "customer_id": message.person.id or "",
        "campaign_id": message.campaign,
        "action_id": message.action,
        "recipient": message.person.email,
        "subject": "A message",
        "metrics": {"sent": created} if message.failure else {"sent": created, "delivered": created},
        "created": created,
        "failure_message": message.failure,
        "newsletter_id": None,
        "content_id": None,
        "broadcast_id": None,
        "type": "email",
        "forgotten": False,
    }


_RESOLUTIONS = {"hour": 3600, "dail": 86_400, "days": 86_400, "week": 7 * 86_400, "mont": 30 * 86_400}


def _journey_metrics(workspace: Workspace, request: Request, _: Any) -> Response:
    """Of the journeys that began in each increment, how many have come so far by now."""
    campaign = request.path_params["campaign_id"]
    if all(one["id"] != campaign for one in workspace.campaigns):
        return _error(404, "not found")
    start, end = int(request.query_params["start"]), int(request.query_params["end"])
    if start > end:
        return _error(400, "start is after end")
    seconds = _RESOLUTIONS[request.query_params["res"][:4]]
    names = ("started", "activated", "exited_early", "finished", "converted", "never_activated", "messaged")
    told = {name: [0] * ((end - start) // seconds + 1) for name in names}
    now = time.time() - workspace.settings.lag_seconds
    for journey in workspace.journeys.of(campaign):
        if not start <= journey.entered <= min(end, now):
            continue
        at = int(journey.entered - start) // seconds
        converted = journey.left is not None and journey.left <= now
        finished = not converted and journey.entered + max(journey.campaign["delays"]) <= now
        told["started"][at] += 1
        told["activated"][at] += 1
        told["messaged"][at] += any(True for _ in journey.messages(now))
        told["converted"][at] += converted
        told["finished"][at] += finished
    return json({"journey_metric": told})
