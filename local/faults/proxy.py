"""A small HTTP proxy on this machine: forwards everything as it is, and now and then does what networks do.

One stands before Azurite and one before the Customer.io stand-in. Both see the requests of one deployment only, so a
fault can name the n-th of them: that is how a process is killed at an exact moment of a pass.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import orjson

from local.faults.doomed import Doomed


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came: `head` is the request line and the headers with the blank line after them."""

    method: str
    path: str
    head: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it goes back, head and body."""

    status: int
    head: bytes
    body: bytes

    @classmethod
    def of(cls, status: int, body: bytes = b"", *headers: str) -> Answer:
        """An answer of our own."""
        lines = [f"HTTP/1.1 {status} Fault", f"content-length: {len(body)}", *headers]
        return cls(status, "\r\n".join([*lines, "", ""]).encode(), body)


@dataclass(frozen=True, slots=True)
class Fault:
    """What a request meets. `status` 0 resets the connection; `code` is blob storage's name of the error.

    `forwarded`: the request reaches the service first, and only its answer is lost. `then` is called before the client
    learns anything.
    """

    status: int = 0
    code: str = ""
    forwarded: bool = False
    then: Callable[[], None] | None = None


class Faults:
    """Faults by share, from a seed: each request meets one of `kinds` with this probability."""

    def __init__(self, seed: int, share: float, kinds: Sequence[Fault]) -> None:
        self._random = random.Random(seed)
        self._share = share
        self._kinds = kinds

    def __call__(self, request: Request) -> Fault | None:
        # drawn for every request, so that one seed gives one sequence
        strikes, kind = self._random.random() < self._share, self._random.choice(self._kinds)
        return kind if strikes else None


class Proxy:
    """Forwards to 127.0.0.1:`upstream` from a port of its own; a context manager.

    `decide` says which fault a request meets, `at(n, fault)` which one the n-th from now on does. Both may be set at
    any time, from any thread. `struck` counts the faults.
    """

    def __init__(self, upstream: int) -> None:
        self.decide: Callable[[Request], Fault | None] | None = None
        self.struck = 0
        self.requests = 0
        self._appointed: tuple[int, Fault] | None = None
        self._upstream = upstream
        self._ready = threading.Event()
        self._stop: Callable[[], object] = lambda: None
        self._open: set[asyncio.Task[None] | None] = set()  # asyncio itself does not keep what it runs
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._thread.join()

    def at(self, number: int, fault: Fault) -> None:
        """The `number`-th request from now on meets this fault, whatever `decide` says."""
        self._appointed = (self.requests + number, fault)

    def forget(self) -> None:
        """What was to happen to the n-th request will not."""
        self._appointed = None

    def clear(self) -> None:
        """No more faults."""
        self.decide = None
        self.forget()

    def _run(self) -> None:
        asyncio.run(self._listen())  # it also ends the connections that are still open

    async def _listen(self) -> None:
        stopped, loop = asyncio.Event(), asyncio.get_running_loop()
        self._stop = lambda: loop.call_soon_threadsafe(stopped.set)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await stopped.wait()
        server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = _Upstream(self._upstream)
        self._open.add(asyncio.current_task())
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
                body = await reader.readexactly(_length(head))
                answer = await self._answer(Request(method, path, head, body), upstream)
                if answer is None:
                    _reset(writer)
                    return
                writer.write(answer.head + answer.body)
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass  # one of the two sides has gone
        finally:
            self._open.discard(asyncio.current_task())
            upstream.close()
            with suppress(OSError):
                writer.close()

    async def _answer(self, request: Request, upstream: _Upstream) -> Answer | None:
        self.requests += 1
        appointed = self._appointed
        if appointed is not None and self.requests == appointed[0]:
            fault: Fault | None = appointed[1]
        else:
            fault = self.decide(request) if self.decide else None
        if fault is None:
            return await self.exchange(request, upstream)
        self.struck += 1
        if fault.forwarded:
            await self.exchange(request, upstream)
        if fault.then:
            fault.then()
        if not fault.status:
            return None
        headers = [f"x-ms-error-code: {fault.code}"] if fault.code else []
        return Answer.of(fault.status, b"", *headers)

    async def exchange(self, request: Request, upstream: _Upstream) -> Answer:
        """What the service answers."""
        return await upstream.exchange(request)


class CustomerioProxy(Proxy):
    """Refuses for good the operations that are doomed, as Customer.io would: see doomed.

    `whole`: a batch with a doomed operation is refused as a whole (400); else a 207 names it and the others arrive.
    """

    def __init__(self, upstream: int, doomed: Doomed) -> None:
        super().__init__(upstream)
        self.doomed = doomed
        self.whole = False
        self.refused = 0

    async def exchange(self, request: Request, upstream: _Upstream) -> Answer:
        """What Customer.io answers to the operations that are not doomed, with the errors of those that are."""
        if request.method != "POST" or not request.path.endswith("/batch"):
            return await upstream.exchange(request)
        batch: list[dict[str, Any]] = orjson.loads(request.body)["batch"]
        doomed = [index for index, operation in enumerate(batch) if self.doomed.operation(operation)]
        if not doomed:
            return await upstream.exchange(request)
        self.refused += len(doomed)
        errors = [{"batch_index": index, "reason": "invalid", "field": "", "message": "doomed"} for index in doomed]
        if self.whole:
            return Answer.of(400, orjson.dumps({"errors": [{**errors[0], "batch_index": 0}]}))
        left = [index for index in range(len(batch)) if index not in set(doomed)]
        if left:
            body = orjson.dumps({"batch": [batch[index] for index in left]})
            head = re.sub(rb"(?i)content-length: *\d+", b"content-length: %d" % len(body), request.head)
            answer = await upstream.exchange(Request(request.method, request.path, head, body))
            if answer.status not in (200, 207):
                return answer
            for error in orjson.loads(answer.body).get("errors", ()):
                errors.append({**error, "batch_index": left[error["batch_index"]]})
        return Answer.of(207, orjson.dumps({"errors": errors}))


class _Upstream:
    """A connection to the service, opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def close(self) -> None:
        if self._streams:
            with suppress(OSError):
                self._streams[1].close()
            self._streams = None

    async def exchange(self, request: Request) -> Answer:
        if self._streams and self._streams[0].at_eof():
            self.close()  # the service has ended an idle connection
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        reader, writer = self._streams
        writer.write(request.head + request.body)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if request.method == "HEAD" or status in (204, 304):
            body = b""
        elif re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head):
            body = await _chunks(reader)
        else:
            body = await reader.readexactly(_length(head))
        if re.search(rb"(?i)\r\nconnection: *close", head):
            self.close()
        return Answer(status, head, body)


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body, chunks and all, as it goes on."""
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(size + 2)
        if not size:
            return body


def _length(head: bytes) -> int:
    found = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(found[1]) if found else 0


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST, not FIN: the client cannot know what became of its request."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
