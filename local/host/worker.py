"""The process that holds the app: JSON lines in on stdin, JSON lines out on what was stdout.

In:  {"id": "...", "function": "orders", "trigger": {...}, "trace_parent": "00-..."}
Out: {"index": [{"name", "bindings"}]} or {"fault": "...", "stack": "..."} once;
     {"log": {"invocation", "level", "logger", "message"}};
     {"done": "...", "error": null | "...", "stack": "...", "result": ..., "outputs": {name: [text, ...]}}
"""

import asyncio
import base64
import contextvars
import functools
import importlib
import inspect
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TextIO

from local.host.protocol import Message, request

_invocation: contextvars.ContextVar[str | None] = contextvars.ContextVar("invocation", default=None)

Json = dict[str, Any]


class Worker(Protocol):
    """Two ways to run an app: the library's, and by hand."""

    async def index(self, app_dir: Path) -> list[Json]: ...
    async def invoke(self, call: Json) -> Json: ...


class WorkerFault(RuntimeError):
    """The worker library refused the app."""

    def __init__(self, message: str, stack: str) -> None:
        super().__init__(message)
        self.stack = stack


class LibraryWorker:
    """The app in `azure-functions-runtime`, driven as the host drives it."""

    def __init__(self) -> None:
        self._library = importlib.import_module("azure_functions_runtime")
        self._bindings: dict[str, list[Json]] = {}
        self._ids: dict[str, str] = {}

    async def index(self, app_dir: Path) -> list[Json]:
        self._library.start_threadpool_executor()
        started = await self._library.worker_init_request(
            request(worker_init_request=Message(capabilities={}, function_app_directory=str(app_dir)))
        )
        if started.result.status != "success":
            raise WorkerFault(started.result.exception.message, started.result.exception.stack_trace)
        metadata = (await self._library.functions_metadata_request(request())).function_metadata_results
        if metadata is None:
            raise WorkerFault(f"no function_app.py with functions in {app_dir}", "")
        for function in metadata:
            self._ids[function.name] = function.function_id
            self._bindings[function.name] = [json.loads(binding) for binding in function.raw_bindings]
            load = Message(function_id=function.function_id)
            await self._library.function_load_request(request(function_load_request=load))
        return [{"name": name, "bindings": bindings} for name, bindings in self._bindings.items()]

    async def invoke(self, call: Json) -> Json:
        name = call["function"]
        trigger = next(b for b in self._bindings[name] if b["type"].lower().endswith("trigger"))
        data, metadata = _encode(trigger["type"].lower(), call["trigger"])
        invocation = Message(
            invocation_id=call["id"],
            function_id=self._ids[name],
            input_data=[Message(name=trigger["name"], data=data)],
            trigger_metadata=metadata,
            trace_context=Message(trace_parent=call["trace_parent"], trace_state="", attributes={}),
            retry_context=Message(retry_count=0, max_retry_count=0, exception=None),
        )
        response = await self._library.invocation_request(request(invocation_request=invocation))
        if response.result.status != "success":
            fault = response.result.exception
            return {"error": fault.message, "stack": fault.stack_trace}
        outputs = {binding.name: _texts(binding.data) for binding in response.output_data}
        return_type = next((b["type"] for b in self._bindings[name] if b["name"] == "$return"), None)
        if return_type == "http":
            return {"result": _http_result(response.return_value), "outputs": outputs}
        if response.return_value is not None:
            outputs["$return"] = _texts(response.return_value)
        return {"result": None, "outputs": outputs}


def _encode(kind: str, trigger: Json) -> tuple[Message, dict[str, Message]]:
    """Trigger data and trigger metadata as the host sends them, all metadata as JSON text."""
    match kind:
        case "timertrigger":
            return Message(json=json.dumps(trigger)), {}
        case "queuetrigger":
            metadata = {key: Message(json=json.dumps(value)) for key, value in trigger.items() if key != "body"}
            return Message(string=trigger["body"]), metadata
        case "httptrigger":
            body = base64.b64decode(trigger["body"])
            http = Message(
                **{key: trigger[key] for key in ("method", "url", "headers", "params", "query")},
                body=Message(bytes=body) if body else Message(),
            )
            return Message(http=http), {}
    raise NotImplementedError(f"this small host knows no {kind}")


def _http_result(data: Message | None) -> Json:
    if data is None:
        return {"status": 204, "headers": {}, "body": ""}
    if data.WhichOneof("data") == "string":
        return {"status": 200, "headers": {"content-type": "text/plain; charset=utf-8"}, "body": _b64(data.string)}
    http = data.http
    return {"status": int(http.status_code), "headers": dict(http.headers), "body": _b64(http.body.bytes)}


def _texts(data: Message) -> list[str]:
    """The queue messages of an output binding."""
    value = getattr(data, data.WhichOneof("data") or "", None)
    if data.WhichOneof("data") == "json":
        value = json.loads(value or "null")
        return [
            item if isinstance(item, str) else item["body"] for item in (value if isinstance(value, list) else [value])
        ]
    return [value.decode() if isinstance(value, bytes) else str(value)]


def _b64(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


class DirectWorker:
    """The app's functions, called directly: for the Pythons that have no worker library."""

    def __init__(self) -> None:
        self._functions: dict[str, Any] = {}

    async def index(self, app_dir: Path) -> list[Json]:
        from azure.functions import FunctionRegister

        try:
            module = importlib.import_module("function_app")
            apps = [value for value in vars(module).values() if isinstance(value, FunctionRegister)]
            functions = apps[0].get_functions() if len(apps) == 1 else []
        except Exception as error:
            raise WorkerFault(f"{type(error).__name__}: {error}", traceback.format_exc()) from error
        if len(apps) != 1:
            raise WorkerFault(f"function_app.py in {app_dir} must hold one FunctionApp, not {len(apps)}", "")
        self._functions = {str(function.get_function_name()): function for function in functions}
        return [
            {"name": name, "bindings": [json.loads(binding) for binding in function.get_raw_bindings()]}
            for name, function in self._functions.items()
        ]

    async def invoke(self, call: Json) -> Json:
        function = self._functions[call["function"]]
        handler = function.get_user_function()
        arguments, outputs = self._arguments(function, handler, call)
        run = functools.partial(handler, **arguments)
        token = _invocation.set(call["id"])
        try:
            if inspect.iscoroutinefunction(handler):
                result = await run()
            else:
                context = contextvars.copy_context()
                result = await asyncio.get_running_loop().run_in_executor(None, context.run, run)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "stack": traceback.format_exc()}
        finally:
            _invocation.reset(token)
        sent = {name: _messages(out.get()) for name, out in outputs.items() if out.get() is not None}
        if function.is_http_function():
            return {"result": self._http(result), "outputs": sent}
        if result is not None:
            if not any(binding.name == "$return" for binding in function.get_bindings()):
                name = call["function"]
                return {"error": f"RuntimeError: {name} without a $return binding returned a value", "stack": ""}
            sent["$return"] = _messages(result)
        return {"result": None, "outputs": sent}

    def _arguments(self, function: Any, handler: Any, call: Json) -> tuple[Json, dict[str, "_Out"]]:
        from azure.functions import HttpRequest
        from azure.functions.queue import QueueMessage
        from azure.functions.timer import TimerRequest

        trigger, given = function.get_trigger(), call["trigger"]
        value: object
        match trigger.type.lower():
            case "timertrigger":
                value = TimerRequest(past_due=given["IsPastDue"], schedule_status=given["ScheduleStatus"])
            case "queuetrigger":
                value = QueueMessage(  # type: ignore[no-untyped-call]
                    id=given["Id"],
                    body=given["body"],
                    dequeue_count=given["DequeueCount"],
                    pop_receipt=given["PopReceipt"],
                )
            case "httptrigger":
                value = HttpRequest(
                    method=given["method"],
                    url=given["url"],
                    headers=given["headers"],
                    params=given["query"],
                    route_params=given["params"],
                    body=base64.b64decode(given["body"]),
                )
            case other:
                raise NotImplementedError(f"this small host knows no {other}")
        outputs = {str(b.name): _Out() for b in function.get_bindings() if b.direction == 1 and b.name != "$return"}
        arguments: Json = {trigger.name: value, **outputs}
        if "context" in inspect.signature(handler).parameters:
            arguments["context"] = Message(
                invocation_id=call["id"],
                function_name=call["function"],
                function_directory=str(Path.cwd()),
                thread_local_storage=threading.local(),
                trace_context=Message(trace_parent=call["trace_parent"], trace_state="", attributes={}),
                retry_context=Message(retry_count=0, max_retry_count=0, exception=None),
            )
        return arguments, outputs

    @staticmethod
    def _http(result: Any) -> Json:
        if result is None:
            return _http_result(None)
        if isinstance(result, str):
            return _http_result(Message(string=result))
        headers = {"content-type": f"{result.mimetype}; charset={result.charset}", **dict(result.headers)}
        return {"status": result.status_code, "headers": headers, "body": _b64(result.get_body() or b"")}


class _Out:
    """`azure.functions.Out` for direct calls."""

    def __init__(self) -> None:
        self._value: Any = None

    def set(self, value: Any) -> None:
        self._value = value

    def get(self) -> Any:
        return self._value


def _messages(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else [str(value)]


class _LogLines(logging.Handler):
    """Sends every record to the host, with the invocation that it belongs to."""

    def __init__(self, send: Any, invocation: Any) -> None:
        super().__init__()
        self._send, self._invocation = send, invocation

    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        log = {
            "invocation": self._invocation(),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        self._send({"log": log})


def _level() -> int:
    """The default level of host.json, which is what the real host lets through."""
    try:
        levels = json.loads(Path("host.json").read_text()).get("logging", {}).get("logLevel", {})
    except (OSError, ValueError):
        levels = {}
    names = {"Trace": "DEBUG", "Information": "INFO", "None": "CRITICAL"}
    default = str(levels.get("default", "Information"))
    return int(logging.getLevelNamesMapping()[names.get(default, default.upper())])


def _lines(stdin: TextIO) -> Iterator[Json]:
    for line in stdin:
        yield json.loads(line)


async def _serve(worker: Worker, app_dir: Path, send: Any) -> None:
    try:
        index = await worker.index(app_dir)
    except WorkerFault as fault:
        send({"fault": str(fault), "stack": fault.stack})
        return
    send({"index": index})
    loop, closed, running = asyncio.get_running_loop(), asyncio.Event(), set[asyncio.Task[None]]()

    async def answer(call: Json) -> None:
        done = await worker.invoke(call)
        send({"error": None, "stack": "", "result": None, "outputs": {}, **done, "done": call["id"]})

    def begin(call: Json) -> None:
        task = loop.create_task(answer(call))
        running.add(task)
        task.add_done_callback(running.discard)

    def read() -> None:
        for call in _lines(sys.stdin):
            loop.call_soon_threadsafe(begin, call)
        loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=read, daemon=True).start()
    await closed.wait()


def main() -> None:
    app_dir, runtime = Path(sys.argv[1]), sys.argv[2]
    # What the app prints goes to stderr: stdout is the line to the host.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lock = threading.Lock()

    def send(message: Json) -> None:
        line = json.dumps(message, default=str)
        with lock:
            out.write(line + "\n")

    # The app sees its own directory and the packages, as once it is published, and not the repository around it.
    os.chdir(app_dir)
    sys.path[0] = str(app_dir)
    worker: Worker = LibraryWorker() if runtime == "library" else DirectWorker()
    invocation = _invocation.get
    if runtime == "library":
        invocation = importlib.import_module("azure_functions_runtime.utils.executor").invocation_id_cv.get
    handler = _LogLines(send, invocation)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=_level(), handlers=[handler])
    asyncio.run(_serve(worker, app_dir, send))
    os._exit(0)  # the host has gone: whatever still runs is cut off, as an instance's recycling does


if __name__ == "__main__":
    main()
