"""The host's side of the app's process: starts it, invokes its functions, collects what they answer and log."""

import base64
import json
import os
import secrets
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlencode

from local import driver
from local.host import app
from local.host.app import AppFault, Function
from local.services import REPOSITORY, Child

Runtime = Literal["library", "direct"]


@dataclass(frozen=True, slots=True)
class Log:
    """One log record; `invocation` is None for what belongs to none."""

    invocation: str | None
    level: str
    logger: str
    message: str


@dataclass(frozen=True, slots=True)
class HttpResult:
    """What an HTTP function answered; the headers' names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Invocation:
    """How one invocation went: `error` is None, or the exception as `Type: text`, with its stack."""

    function: str
    id: str
    seconds: float
    error: str | None
    stack: str
    http: HttpResult | None
    outputs: Mapping[str, list[str]]
    logs: list[Log]

    @property
    def ok(self) -> bool:
        return self.error is None


@dataclass(slots=True)
class _Pending:
    function: str
    started: datetime
    future: "Future[Invocation]"
    logs: list[Log] = field(default_factory=list)


class Host:
    """The function app of a directory in a process of its own; every method may be called from any thread.

    `settings` are the app settings; they are laid over this process's environment. Raises AppFault when the app cannot
    be indexed or when the real host would refuse it. An invocation that fails is an Invocation that says so; when the
    process itself ends, what is under way raises ServiceFault.
    """

    def __init__(
        self,
        app_dir: Path = REPOSITORY,
        settings: Mapping[str, str] | None = None,
        *,
        runtime: Runtime | None = None,
        on_log: Callable[[Log], None] | None = None,
    ) -> None:
        self.app_dir = app_dir.resolve()
        self.host_json = app.read_host_json(self.app_dir)
        driver.register()
        self.settings = {**os.environ, **(settings or {})}
        self.runtime: Runtime = runtime or ("library" if find_spec("azure_functions_runtime") else "direct")
        self.logs: deque[Log] = deque(maxlen=10_000)
        self._on_log = on_log
        self._pending: dict[str, _Pending] = {}
        self._lock = threading.Lock()
        self._indexed: Future[list[Function]] = Future()
        self._peak_kb = 0
        command = [sys.executable, "-m", "local.host.worker", str(self.app_dir), self.runtime]
        self._child = Child(command, name="the function app", env=self.settings, stdin=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, name="functions-host", daemon=True)
        self._reader.start()
        try:
            self._functions = {function.name: function for function in self._indexed.result(60)}
            app.check(list(self._functions.values()), self.settings)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> "Host":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process that runs the functions."""
        return self._child.pid

    @property
    def peak_mb(self) -> float:
        """The most memory that the process had resident so far (VmHWM), in MiB."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            status = ""
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                self._peak_kb = int(line.split()[1])
        return self._peak_kb / 1024

    def functions(self) -> dict[str, Function]:
        return dict(self._functions)

    def wait(self) -> None:
        """Blocks until the process ends."""
        self._reader.join()

    def kill(self) -> None:
        """kill -9: what is under way raises ServiceFault. A new Host starts afresh."""
        self._child.kill()
        self._reader.join()

    def stop(self) -> None:
        """Ends the process; an invocation under way is cut off."""
        self.peak_mb  # noqa: B018 - remembered, since it can be asked for afterwards
        self._child.process.terminate()
        self._reader.join(5)
        self._child.stop()

    def invoke_timer(self, name: str, *, past_due: bool = False, timeout: float | None = None) -> Invocation:
        """Runs a timer function now and waits for its end; TimeoutError after `timeout` seconds leaves it running."""
        return self.begin_timer(name, past_due=past_due).result(timeout)

    def begin_timer(self, name: str, *, past_due: bool = False) -> "Future[Invocation]":
        """Starts a timer function and does not wait."""
        now = datetime.now(UTC).isoformat()
        status = {"Last": now, "Next": now, "LastUpdated": now}
        return self._begin(name, "timer", {"IsPastDue": past_due, "ScheduleStatus": status, "Schedule": {}})

    def invoke_http(
        self,
        name: str,
        method: str = "GET",
        *,
        body: bytes = b"",
        query: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        url: str | None = None,
        timeout: float | None = None,
    ) -> Invocation:
        """Calls an HTTP function past the routing; `params` are the route's. Its answer is the invocation's `http`."""
        given = {
            "method": method,
            "url": url or f"http://127.0.0.1/api/{name}?{urlencode(query or {})}".rstrip("?"),
            "headers": dict(headers or {}),
            "query": dict(query or {}),
            "params": dict(params or {}),
            "body": base64.b64encode(body).decode(),
        }
        return self._begin(name, "http", given).result(timeout)

    def invoke_queue(
        self,
        name: str,
        body: str,
        *,
        message_id: str | None = None,
        dequeue_count: int = 1,
        pop_receipt: str = "",
        inserted: datetime | None = None,
        expires: datetime | None = None,
        timeout: float | None = None,
    ) -> Invocation:
        """Hands a message to a queue function, past the queue."""
        given = {
            "body": body,
            "Id": message_id or str(uuid.uuid4()),
            "DequeueCount": dequeue_count,
            "PopReceipt": pop_receipt,
            "InsertionTime": (inserted or datetime.now(UTC)).isoformat(),
            "ExpirationTime": (expires or datetime(9999, 12, 31, tzinfo=UTC)).isoformat(),
            "NextVisibleTime": datetime.now(UTC).isoformat(),
        }
        return self._begin(name, "queue", given).result(timeout)

    def _begin(self, name: str, kind: str, trigger: Mapping[str, Any]) -> "Future[Invocation]":
        function = self._functions.get(name)
        if function is None or function.kind != kind:
            raise KeyError(f"the app has no {kind} function {name!r}: {', '.join(sorted(self._functions))}")
        pending = _Pending(name, datetime.now(UTC), Future())
        call_id = str(uuid.uuid4())
        trace_parent = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
        call = {"id": call_id, "function": name, "trigger": trigger, "trace_parent": trace_parent}
        line = json.dumps(call).encode() + b"\n"
        stdin = self._child.process.stdin
        assert stdin is not None
        with self._lock:
            self._pending[call_id] = pending
            try:
                stdin.write(line)
                stdin.flush()
            except (BrokenPipeError, ValueError):
                del self._pending[call_id]
                raise self._child.fault("has ended") from None
        if not self._reader.is_alive():
            self._fail_pending()
        return pending.future

    def _read(self) -> None:
        assert self._child.process.stdout is not None
        try:
            for line in self._child.process.stdout:
                self._take(json.loads(line))
        finally:
            self._child.kill()
            if not self._indexed.done():
                self._indexed.set_exception(self._child.fault("ended while starting"))
            self._fail_pending()

    def _fail_pending(self) -> None:
        with self._lock:
            cut_off, self._pending = list(self._pending.values()), {}
        for pending in cut_off:
            pending.future.set_exception(self._child.fault(f"ended in the middle of {pending.function}"))

    def _take(self, message: dict[str, Any]) -> None:
        if log := message.get("log"):
            record = Log(**log)
            self.logs.append(record)
            if pending := self._pending.get(record.invocation or ""):
                pending.logs.append(record)
            if self._on_log:
                self._on_log(record)
        elif done := message.get("done"):
            with self._lock:
                pending = self._pending.pop(done)
            pending.future.set_result(self._invocation(done, pending, message))
        elif "index" in message:
            self._indexed.set_result([Function(f["name"], tuple(f["bindings"])) for f in message["index"]])
        else:
            self._indexed.set_exception(AppFault(f"{message['fault']}\n{message['stack']}".rstrip()))

    @staticmethod
    def _invocation(call_id: str, pending: _Pending, message: Mapping[str, Any]) -> Invocation:
        answer = message["result"]
        return Invocation(
            function=pending.function,
            id=call_id,
            seconds=(datetime.now(UTC) - pending.started).total_seconds(),
            error=message["error"],
            stack=message["stack"],
            http=answer and _http_result(answer),
            outputs=message["outputs"],
            logs=pending.logs,
        )


def _http_result(answer: Mapping[str, Any]) -> HttpResult:
    headers = {name.lower(): value for name, value in answer["headers"].items()}
    return HttpResult(answer["status"], headers, base64.b64decode(answer["body"]))
