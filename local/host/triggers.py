"""What calls the functions while the host runs: timers by cron, HTTP routes, storage queues."""

import asyncio
import base64
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from azure.core.exceptions import AzureError, ResourceExistsError, ResourceNotFoundError
from azure.storage.queue import QueueClient, QueueMessage
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from local.host import app
from local.host.app import AppFault, Function
from local.host.client import Host, Invocation

log = logging.getLogger("local.host")

_VISIBILITY_SECONDS = 600  # renewed at half of it, as the real host does


def application(host: Host) -> Starlette:
    """The whole host as an ASGI application: its routes answer, and its life runs the timers and the queues.

    Raises AppFault when a route is written in a way that this host does not know.
    """
    enabled = [function for function in host.functions().values() if not function.disabled(host.settings)]
    prefix = host.host_json.get("extensions", {}).get("http", {}).get("routePrefix", "api").strip("/")
    routes = [_http_route(host, function, prefix) for function in enabled if function.kind == "http"]

    @contextlib.asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        loops = [_timer(host, function) for function in enabled if function.kind == "timer"]
        loops += [_queue(host, function) for function in enabled if function.kind == "queue"]
        tasks = [asyncio.create_task(loop) for loop in loops]
        for task in tasks:
            task.add_done_callback(_report_end)
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    return Starlette(routes=[*routes, *_admin(host)], lifespan=life)


def _report_end(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and (error := task.exception()):
        log.error("a trigger has stopped: %s", error)


def _report(invocation: Invocation) -> Invocation:
    if invocation.ok:
        log.info("%s succeeded in %.2f s", invocation.function, invocation.seconds)
    else:
        log.error("%s failed after %.2f s: %s", invocation.function, invocation.seconds, invocation.error)
    return invocation


# --- timers


async def _timer(host: Host, function: Function) -> None:
    """Runs one timer at its moments; those that pass while it runs become one late run, as on the real host."""
    schedule = app.resolve(str(function.trigger["schedule"]), host.settings)
    due: datetime = app.cron(schedule, datetime.now(UTC)).get_next(datetime)
    if function.trigger.get("runOnStartup"):
        due = datetime.now(UTC)
    while True:
        await asyncio.sleep(max(0.0, (due - datetime.now(UTC)).total_seconds()))
        late = (datetime.now(UTC) - due).total_seconds() > 1
        _report(await asyncio.wrap_future(host.begin_timer(function.name, past_due=late)))
        following: datetime = app.cron(schedule, due).get_next(datetime)
        # A moment missed while it ran is made up for once; the others are skipped.
        due = following if following > datetime.now(UTC) else _last_before_now(schedule, following)


def _last_before_now(schedule: str, missed: datetime) -> datetime:
    now = datetime.now(UTC)
    last: datetime = app.cron(schedule, now).get_prev(datetime)
    return max(missed, last)


# --- HTTP


def _http_route(host: Host, function: Function, prefix: str) -> Route:
    methods = [str(method).upper() for method in function.trigger.get("methods") or ("GET", "POST")]

    async def endpoint(request: Request) -> Response:
        body = await request.body()
        call = asyncio.to_thread(
            host.invoke_http,
            function.name,
            request.method,
            body=body,
            query=dict(request.query_params),
            params={name: str(value) for name, value in request.path_params.items()},
            headers=dict(request.headers),
            url=str(request.url),
        )
        invocation = _report(await _delivered(host, function, await call))
        if invocation.http is None:
            return Response(status_code=500)
        return Response(invocation.http.body, invocation.http.status, headers=dict(invocation.http.headers))

    path = "/" + "/".join(part for part in (prefix, _starlette_path(app.route(function))) if part)
    return Route(path, endpoint, methods=methods)


def _starlette_path(route: str) -> str:
    """`{id}`, `{id:int}` and `{*rest}` in starlette's way. Raises AppFault for other constraints and optional parts."""

    def part(match: re.Match[str]) -> str:
        catch_all, name, constraint = match["all"], match["name"], match["constraint"] or ""
        if match["optional"] or constraint not in ("", ":int", ":guid"):
            raise AppFault(f"this small host knows no {match[0]} in a route")
        converter = ":path" if catch_all else {":guid": ":uuid"}.get(constraint, constraint)
        return f"{{{name}{converter}}}"

    return re.sub(r"\{(?P<all>\*?)(?P<name>\w+)(?P<constraint>:[^}?]+)?(?P<optional>\??)\}", part, route)


def _admin(host: Host) -> list[Route]:
    """The two of the real host's administration routes that are handy: what is there, and run a timer now."""

    async def functions(_: Request) -> Response:
        return JSONResponse(
            [
                {"name": f.name, "bindings": f.bindings, "isDisabled": f.disabled(host.settings)}
                for f in host.functions().values()
            ]
        )

    async def run(request: Request) -> Response:
        function = host.functions().get(request.path_params["name"])
        if function is None or function.kind != "timer":
            return PlainTextResponse("no timer function of that name", 404)
        host.begin_timer(function.name).add_done_callback(lambda future: _report(future.result()))
        return Response(status_code=202)

    return [Route("/admin/functions", functions), Route("/admin/functions/{name}", run, methods=["POST"])]


# --- queues


async def _queue(host: Host, function: Function) -> None:
    """Takes messages from a queue, a batch at a time: deleted after success, tried again after failure, then poison."""
    settings = host.host_json.get("extensions", {}).get("queues", {})
    batch = int(settings.get("batchSize", 16))
    pause, longest = 0.1, min(2.0, _seconds(str(settings.get("maxPollingInterval", "00:00:02"))))
    with _client(host, function.trigger) as client:
        while True:
            try:
                messages = await asyncio.to_thread(_receive, client, batch)
                await asyncio.gather(*(_handle(host, function, client, message, settings) for message in messages))
            except AzureError as error:  # a message whose end could not be told becomes visible again
                log.warning("%s: the queue does not answer: %s", function.name, error)
                messages = []
            pause = 0.1 if messages else min(pause * 2, longest)
            await asyncio.sleep(0 if messages else pause)


def _client(host: Host, binding: Mapping[str, Any], suffix: str = "") -> QueueClient:
    name = app.queue_name(binding, host.settings) + suffix
    return QueueClient.from_connection_string(app.connection(binding, host.settings), name)


def _receive(client: QueueClient, batch: int) -> list[QueueMessage]:
    try:
        return list(client.receive_messages(max_messages=batch, visibility_timeout=_VISIBILITY_SECONDS))
    except ResourceNotFoundError:
        return []  # a queue comes into being with its first message


async def _handle(
    host: Host, function: Function, client: QueueClient, message: QueueMessage, settings: Mapping[str, Any]
) -> None:
    most = int(settings.get("maxDequeueCount", 5))
    count = int(message.dequeue_count or 1)
    try:
        body = message.content
        if settings.get("messageEncoding", "base64") == "base64":
            body = base64.b64decode(body, validate=True).decode()
    except ValueError:
        log.error("%s: message %s is not base64: poison", function.name, message.id)
        await asyncio.to_thread(_poison, host, function, client, message)
        return
    if count <= most:
        renewal = asyncio.create_task(_renew(client, message))
        try:
            call = asyncio.to_thread(
                host.invoke_queue,
                function.name,
                body,
                message_id=message.id,
                dequeue_count=count,
                pop_receipt=message.pop_receipt or "",
                inserted=message.inserted_on,
                expires=message.expires_on,
            )
            invocation = _report(await _delivered(host, function, await call))
        finally:
            renewal.cancel()
        if invocation.ok:
            await asyncio.to_thread(client.delete_message, message)
            return
    if count >= most:
        log.error("%s: message %s has failed %d times: poison", function.name, message.id, count)
        await asyncio.to_thread(_poison, host, function, client, message)
    else:
        again = int(_seconds(str(settings.get("visibilityTimeout", "00:00:00"))))
        await asyncio.to_thread(client.update_message, message, visibility_timeout=again)


async def _renew(client: QueueClient, message: QueueMessage) -> None:
    while True:
        await asyncio.sleep(_VISIBILITY_SECONDS / 2)
        renewed = await asyncio.to_thread(client.update_message, message, visibility_timeout=_VISIBILITY_SECONDS)
        message.pop_receipt = renewed.pop_receipt


def _poison(host: Host, function: Function, client: QueueClient, message: QueueMessage) -> None:
    with _client(host, function.trigger, "-poison") as poison:
        with contextlib.suppress(ResourceExistsError):
            poison.create_queue()
        poison.send_message(message.content, time_to_live=-1)
    client.delete_message(message)


async def _delivered(host: Host, function: Function, invocation: Invocation) -> Invocation:
    """Puts what a function's queue outputs hold into their queues; the invocation again."""
    for name, messages in invocation.outputs.items():
        binding = next(binding for binding in function.bindings if binding["name"] == name)
        await asyncio.to_thread(_send, host, binding, messages)
    return invocation


def _send(host: Host, binding: Mapping[str, Any], messages: list[str]) -> None:
    if str(binding["type"]).lower() != "queue":
        raise AppFault(f"this small host knows no {binding['type']} output")
    base64_encoded = host.host_json.get("extensions", {}).get("queues", {}).get("messageEncoding", "base64") == "base64"
    with _client(host, binding) as client:
        with contextlib.suppress(ResourceExistsError):
            client.create_queue()
        for message in messages:
            client.send_message(base64.b64encode(message.encode()).decode() if base64_encoded else message)


def _seconds(text: str) -> float:
    hours, minutes, seconds = text.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
