"""The Track API: the region probe, /api/v2/batch and /api/v2/entity.

Answers, the first that fits: 401 for wrong credentials; 413 for a body of 500,000 bytes or more; 400 for a request that
is malformed as a whole (no JSON, `batch` missing, empty or no list, an unknown key beside it, another content type);
207 with the errors of the operations that are no good, all others accepted; 200 and `{}`. An entity has no 207.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import socket
import struct
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from local.customerio.contract import MAX_BODY_BYTES, Operation, Violation, violations
from local.customerio.faults import Fault
from local.customerio.workspace import Workspace, Workspaces


def json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(orjson.dumps(content), status, headers, "application/json")


_UNAUTHORIZED = {"meta": {"error": "Unauthorized request"}}
_BODIES_OF_FAULTS: dict[int, dict[str, Any]] = {  # 413, 429 and 5xx have no documented body
    400: {"errors": [Violation("batch", "refused by a fault").as_error()]},
    401: _UNAUTHORIZED,
    403: _UNAUTHORIZED,
}


class _Malformed(Exception):
    """The request as a whole is no good: answer 400."""

    def __init__(self, *found: Violation) -> None:
        self.errors = [violation.as_error() for violation in found]


class Track:
    """The endpoints over all workspaces; the credentials choose."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces

    def routes(self) -> list[Route]:
        return [
            Route("/api/v1/accounts/region", self.region, methods=["GET"]),
            Route("/api/v2/batch", self.batch, methods=["POST"]),
            Route("/api/v2/entity", self.entity, methods=["POST"]),
        ]

    async def region(self, request: Request) -> Response:
        return await self._answer(request, "region")

    async def batch(self, request: Request) -> Response:
        return await self._answer(request, "batch")

    async def entity(self, request: Request) -> Response:
        return await self._answer(request, "entity")

    async def _answer(self, request: Request, endpoint: str) -> Response:
        body = await request.body()
        workspace = self._workspace(request)
        if workspace is None:
            return json(_UNAUTHORIZED, 401)
        workspace.begin()
        outcome = "error"
        try:
            if workspace.settings.latency_seconds:
                await asyncio.sleep(workspace.settings.latency_seconds)
            response = await _Exchange(workspace, request, body, endpoint).response()
            outcome = str(response.status_code) if response else f"reset_{request.state.reset}"
        finally:
            workspace.end(outcome)
        return response or await _drop_connection(request)

    def _workspace(self, request: Request) -> Workspace | None:
        scheme, _, encoded = request.headers.get("authorization", "").partition(" ")
        try:
            site_id, colon, api_key = base64.b64decode(encoded, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return self._workspaces.by_track_key(site_id, api_key) if scheme.lower() == "basic" and colon else None


class _Exchange:
    """One Track request of a known workspace, up to its response."""

    def __init__(self, workspace: Workspace, request: Request, body: bytes, endpoint: str) -> None:
        self.workspace = workspace
        self.request = request
        self.body = body
        self.endpoint = endpoint

    async def response(self) -> Response | None:
        """The answer, or None where the connection is to be dropped (request.state.reset says when)."""
        operations: list[Any] = []
        refusal: Response | None = None
        if self.endpoint != "region":
            self.workspace.max_body_bytes = max(self.workspace.max_body_bytes, len(self.body))
            try:
                operations = self._operations()
            except _Malformed as malformed:
                refusal = json({"errors": malformed.errors}, 400)
            if len(self.body) > MAX_BODY_BYTES:
                refusal = Response(status_code=413)
        path = "region" if self.endpoint == "region" else "batch"
        fault = self.workspace.fault(path, [one for one in operations if isinstance(one, dict)])
        spec = fault.spec if fault else {}
        if delay := spec.get("delay_seconds"):
            await asyncio.sleep(delay)
        if spec.get("reset") == "before":
            self.request.state.reset = "before"
            return None
        if status := spec.get("status"):
            if spec.get("accepted") and refusal is None:
                self._take(operations, None)
            headers = {"retry-after": str(spec["retry_after"])} if "retry_after" in spec else None
            body = _BODIES_OF_FAULTS.get(status)
            return json(body, status, headers) if body else Response(None, status, headers)
        if refusal is not None:
            return refusal
        response = self._region() if self.endpoint == "region" else self._take(operations, fault)
        if spec.get("reset") == "after":
            self.request.state.reset = "after"
            return None
        return response

    def _region(self) -> Response:
        settings = self.workspace.settings
        url = "https://track.customer.io" if settings.region == "us" else "https://track-eu.customer.io"
        return json({"url": url, "region": settings.region, "environment_id": settings.environment_id})

    def _operations(self) -> list[Any]:
        content_type = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            raise _Malformed(Violation("content-type", "must be application/json"))
        try:
            content = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise _Malformed(Violation("body", f"malformed JSON: {error}")) from None
        if self.endpoint == "entity":
            return [content]
        if type(content) is not dict or "batch" not in content:
            raise _Malformed(Violation("batch", "is required", "required"))
        if unknown := content.keys() - {"batch"}:
            raise _Malformed(*(Violation(key, "unknown key") for key in sorted(unknown)))
        if type(content["batch"]) is not list or not content["batch"]:
            raise _Malformed(Violation("batch", "must be a list that is not empty"))
        batch: list[Any] = content["batch"]
        return batch

    def _take(self, operations: list[Any], fault: Fault | None) -> Response:
        workspace, spec = self.workspace, fault.spec if fault else {}
        accepted: list[Operation] = []
        errors: list[dict[str, Any]] = []
        for index, operation in enumerate(operations):
            found = violations(operation)
            if fault and not found and "reject_share" in spec and fault.rejects():
                found = [Violation("", "refused by a fault")]
            if found:
                errors += [violation.as_error(index) for violation in found]
                workspace.counts["rejected"] += 1
                workspace.rejections.append({"operation": operation, "errors": [one.as_error() for one in found]})
            else:
                accepted.append(operation)
        workspace.counts["batches"] += self.endpoint == "batch"
        workspace.counts["operations"] += len(operations)
        if fault:
            fault.spoil(accepted)
        workspace.accept(accepted)
        errors += spec.get("extra_errors", [])
        if not errors:
            return json({})
        if self.endpoint == "entity":
            return json({"errors": [{k: v for k, v in error.items() if k != "batch_index"} for error in errors]}, 400)
        return json({"errors": errors}, 207)


async def _drop_connection(request: Request) -> Response:
    """Reset the TCP connection (RST, not FIN), so that the client cannot know what became of its request."""
    transport = request.state.transport
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
    while (await request.receive())["type"] != "http.disconnect":
        pass  # until the server has noticed, it would try to answer
    return Response(status_code=204)
