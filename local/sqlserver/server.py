"""The TDS server: a listening socket, and per connection one thread that reads packets and one that runs requests."""

from __future__ import annotations

import logging
import queue
import re
import socket
import struct
import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from . import wire
from .describe import data_types, undeclared_parameters
from .engine import Engine, Outcome, Parameters, Session
from .errors import Cancelled, SqlError, cannot, translate
from .faults import Faults, struck
from .sqltypes import SqlType, make
from .wire import DONE, DONE_ATTENTION, DONE_ERROR, DONE_IN_PROC, DONE_MORE, DONE_PROC, Link, Reader

log = logging.getLogger("local.sqlserver")
_PROCEDURES = {10: "sp_executesql", 11: "sp_prepare", 12: "sp_execute", 13: "sp_prepexec", 15: "sp_unprepare"}
_NO_METADATA = 2
BULK = 1_000  # executions of one prepared INSERT that are run as one


class Server:
    """Listens on a loopback port until closed."""

    def __init__(self, password: str, port: int = 0) -> None:
        self.faults = Faults()
        self.engine, self.password = Engine(self.faults.clocks, self.faults.permissions), password
        self.socket = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port: int = self.socket.getsockname()[1]

    def serve(self) -> None:
        while True:
            try:
                sock, _ = self.socket.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=Connection(self, sock).run, daemon=True).start()

    def close(self) -> None:
        self.socket.close()


class Connection:
    """One client, from prelogin to its going."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server, self.link = server, Link(sock)
        self.session: Session | None = None
        self.requests: queue.Queue[tuple[int, int, bytes] | None] = queue.Queue()
        self.prepared: dict[int, tuple[str, Parameters]] = {}
        self.handles = 0
        self.descriptor = 0

    def run(self) -> None:
        try:
            if self._login():
                reader = threading.Thread(target=self._read, daemon=True)
                reader.start()
                while (message := self.requests.get()) is not None:
                    self._answer(*message)
        except OSError:
            pass  # The client went away while we wrote.
        except Exception:
            log.exception("connection failed")
        finally:
            if self.session:
                self.session.close()
            self.link.close()

    def _read(self) -> None:
        """Takes messages off the wire while a request runs, so that ATTENTION and a lost client stop it."""
        assert self.session is not None
        while True:
            message = self.link.receive()
            if message is None or message[0] == wire.ATTENTION:
                self.session.cancel()
            self.requests.put(message)
            if message is None:
                return

    # ---- login

    def _login(self) -> bool:
        message = self.link.receive()
        if message is None or message[0] != wire.PRELOGIN:
            return False
        # VERSION 16.0.1000, ENCRYPTION not supported, INSTOPT, THREADID, MARS off, end.
        options = [(0, bytes([16, 0, 0x03, 0xE8, 0, 0])), (1, b"\x02"), (2, b"\0"), (3, b""), (4, b"\0")]
        offset, head, body = 5 * len(options) + 1, b"", b""
        for token, data in options:
            head += struct.pack(">BHH", token, offset + len(body), len(data))
            body += data
        self.link.finish(head + b"\xff" + body)
        message = self.link.receive()
        if message is None or message[0] != wire.LOGIN:
            return False
        login = message[2]

        def text(at: int, mask: bool = False) -> str:
            start, length = struct.unpack_from("<HH", login, at)
            raw = login[start : start + 2 * length]
            if mask:
                raw = bytes(((b ^ 0xA5) << 4 | (b ^ 0xA5) >> 4) & 0xFF for b in raw)
            return raw.decode("utf-16-le")

        user, password, database = text(40), text(44, mask=True), text(68) or "master"
        size = min(max(struct.unpack_from("<I", login, 8)[0] or 4096, 512), 32_767)
        try:
            if user.lower() != "sa" or password != self.server.password:
                raise SqlError(18456, f"Login failed for user '{user}'.", 14)
            if fault := self.server.faults.find(database, "login"):
                raise fault.failure()
            self.session = self.server.engine.open(database)
        except SqlError as e:
            more = wire.error(SqlError(18456, f"Login failed for user '{user}'.", 14)) if e.number == 4060 else b""
            self.link.finish(wire.error(e) + more + wire.done(DONE, DONE_ERROR))
            return False
        name = self.session.database
        self.link.write(wire.env_change(1, wire.text8(name), wire.text8("master")))
        self.link.write(wire.env_change(7, wire.bytes8(wire.COLLATION), wire.bytes8(b"")))
        self.link.write(wire.login_ack())
        self.link.write(wire.env_change(4, wire.text8(str(size)), wire.text8("4096")))
        if login[27] & 0x10:
            # The only extension that we acknowledge is 10, UTF8_SUPPORT.
            self.link.write(b"\xae\x0a\x01\x00\x00\x00\x01\xff")
        self.link.finish(wire.done(DONE))
        self.link.size = size
        return True

    # ---- requests

    def _answer(self, kind: int, status: int, data: bytes) -> None:
        assert self.session is not None
        if kind == wire.ATTENTION:
            self.session.cancelled.clear()
            self.link.finish(wire.done(DONE, DONE_ATTENTION))
            return
        if status & 0x18:
            self._reset()
        try:
            r = Reader(data)
            r.at = int.from_bytes(data[:4], "little")  # ALL_HEADERS
            if kind == wire.SQL_BATCH:
                text = data[r.at :].decode("utf-16-le", "surrogatepass")
                self._tokens(self.server.faults.command(text) or self._batch(text), DONE)
            elif kind == wire.RPC:
                self._calls(r)
            elif kind == wire.TRANSACTION:
                self._transaction(r)
            else:
                raise cannot(f"answer a request of type {kind}")
            self.link.finish()
        except Cancelled:
            self.link.finish(wire.done(DONE, DONE_ERROR))
        except OSError:
            with suppress(OSError):
                self.link.flush()  # A fault may cut an answer in its middle.
            raise
        except Exception as e:
            self.link.finish(self._error(e) + wire.done(DONE, DONE_ERROR))

    def _batch(
        self, sql: str, parameters: Parameters | None = None, values: dict[int, Any] | None = None
    ) -> Iterable[Outcome]:
        """What a batch gives, or what the fault leaves of it that it meets."""
        assert self.session is not None
        outcomes = self.session.batch(sql, parameters, values)
        fault = self.server.faults.find(self.session.database, "statement", sql)
        return struck(fault, outcomes) if fault else outcomes

    def _error(self, e: Exception) -> bytes:
        known = translate(e)
        if not isinstance(e, SqlError):
            log.warning("request failed", exc_info=e)
        return wire.error(known if isinstance(known, SqlError) else cannot("go on"))

    def _reset(self) -> None:
        assert self.session is not None
        self.session.rollback()
        self.session.count_rows, self.session.identity_insert = True, False
        self.prepared.clear()

    def _tokens(self, outcomes: Iterable[Outcome], token: int, *, metadata: bool = True) -> None:
        """Writes a batch's outcomes; inside a procedure (token DONEINPROC) the caller writes the last DONE."""
        assert self.session is not None
        pending: tuple[int | None, int] | None = (
            None  # count and command of a DONE that waits to know whether it is the last
        )
        try:
            for outcome in outcomes:
                if pending:
                    self.link.write(wire.done(token, DONE_MORE, *pending))
                    pending = None
                count = outcome.count
                if outcome.columns is not None:
                    self.link.write(wire.metadata(outcome.columns) if metadata else b"\x81\xff\xff")
                    count = 0
                    for chunk in outcome.chunks or ():
                        count += len(chunk)
                        self.link.write(wire.rows(outcome.columns, chunk))
                if outcome.transaction:
                    self.link.write(self._transaction_change(outcome.transaction))
                if outcome.database:
                    self.link.write(wire.env_change(1, wire.text8(outcome.database), wire.text8("")))
                pending = count if self.session.count_rows else None, outcome.command
        except Exception:
            if pending:
                self.link.write(wire.done(token, DONE_MORE, *pending))
            raise
        if pending or token == DONE:
            self.link.write(wire.done(token, DONE_MORE if token == DONE_IN_PROC else 0, *(pending or (None, 0))))

    def _transaction_change(self, kind: int) -> bytes:
        if kind == 8:
            self.descriptor += 1
            return wire.env_change(8, wire.bytes8(self.descriptor.to_bytes(8, "little")), b"\0")
        return wire.env_change(kind, b"\0", wire.bytes8(self.descriptor.to_bytes(8, "little")))

    def _transaction(self, r: Reader) -> None:
        assert self.session is not None
        request, status = r.u16(), 0
        if request == 5:
            r.u8()
            outcomes = [self.session.begin()]
        elif request in (7, 8):
            r.take(2 * (r.u8() // 2))
            flags = r.u8() if r.more() else 0
            outcomes = []
            if self.session.transaction:
                self.session.transaction.level = 1
                try:
                    outcomes.append(self.session.commit() if request == 7 else self.session.rollback())
                except SqlError as e:
                    # A commit that fails has rolled back; the client must learn both.
                    self.link.write(self._error(e))
                    status = DONE_ERROR
                    outcomes.append(Outcome(transaction=10))
            if flags & 1:
                outcomes.append(self.session.begin())
        else:
            raise cannot(f"answer transaction request {request}")
        for outcome in outcomes:
            if outcome.transaction:
                self.link.write(self._transaction_change(outcome.transaction))
        self.link.write(wire.done(DONE, status))

    # ---- procedures

    def _calls(self, r: Reader) -> None:
        """The remote procedure calls of one message; runs of one prepared INSERT are taken together."""
        run: list[tuple[int, dict[int, Any]]] = []
        while r.more():
            name, options, values = self._read_call(r)
            last = not r.more()
            if name == "sp_execute" and (not last or run) and (bulk := self._bulk(values)):
                if run and run[0][0] != bulk[0]:
                    self._run_bulk(run, last=False)
                    run = []
                run.append(bulk)
                if len(run) >= BULK or last:
                    self._run_bulk(run, last=last)
                    run = []
                continue
            if run:
                self._run_bulk(run, last=False)
                run = []
            self._call(name, options, values, last)

    def _read_call(self, r: Reader) -> tuple[str, int, list[tuple[str, int, SqlType, Any]]]:
        length = r.u16()
        name = (
            _PROCEDURES.get(number := r.u16(), f"procedure {number}")
            if length == 0xFFFF
            else r.take(2 * length).decode("utf-16-le")
        )
        options, values = r.u16(), []
        while r.more():
            if r.data[r.at] in (0x80, 0xFE, 0xFF):
                r.at += 1
                break
            values.append(wire.read_parameter(r))
        return name.lower().replace("[", "").replace("]", "").removeprefix("sys."), options, values

    def _bulk(self, values: list[tuple[str, int, SqlType, Any]]) -> tuple[int, dict[int, Any]] | None:
        handle = values[0][3]
        if handle not in self.prepared or not re.match(r"\s*insert\b", self.prepared[handle][0], re.I):
            return None
        return handle, {i: v[3] for i, v in enumerate(values[1:], 1)}

    def _run_bulk(self, run: list[tuple[int, dict[int, Any]]], *, last: bool) -> None:
        """Many executions of one INSERT as one; where that fails, one by one, so that each has its own fate."""
        assert self.session is not None
        handle, failed = run[0][0], False
        sql, parameters = self.prepared[handle]
        try:
            done = self.session.insert_many(sql, parameters, [values for _, values in run])
        except SqlError:
            done = False
        for i, (_, values) in enumerate(run):
            more = 0 if last and i == len(run) - 1 else DONE_MORE
            if done:
                self.link.write(
                    wire.done(DONE_IN_PROC, DONE_MORE, 1, 0xC3) + wire.RETURN_STATUS + wire.done(DONE_PROC, more)
                )
                continue
            try:
                self._tokens(self.session.batch(sql, parameters, values), DONE_IN_PROC, metadata=False)
                failed = False
            except SqlError as e:
                failed = True
                self.link.write(self._error(e))
            self.link.write(wire.RETURN_STATUS + wire.done(DONE_PROC, more | (DONE_ERROR if failed else 0)))

    def _call(self, name: str, options: int, values: list[tuple[str, int, SqlType, Any]], last: bool) -> None:
        assert self.session is not None
        status, handle = 0 if last else DONE_MORE, None
        metadata = not options & _NO_METADATA
        try:
            if name == "sp_executesql":
                sql, parameters, numbered = self._declared(values)
                self._tokens(self._batch(sql, parameters, numbered), DONE_IN_PROC, metadata=metadata)
            elif name in ("sp_prepexec", "sp_prepare"):
                self.handles += 1
                handle = self.handles
                if (old := values[0][3]) is not None:
                    self.prepared.pop(old, None)
                sql, parameters, numbered = self._declared([values[2], values[1], *values[3:]])
                self.prepared[handle] = sql, parameters
                if name == "sp_prepexec":
                    self._tokens(self._batch(sql, parameters, numbered), DONE_IN_PROC, metadata=metadata)
            elif name == "sp_execute":
                if values[0][3] not in self.prepared:
                    raise SqlError(8179, f"Could not find prepared statement with handle {values[0][3]}.")
                sql, parameters = self.prepared[values[0][3]]
                numbered = {i: v[3] for i, v in enumerate(values[1:], 1)}
                self._tokens(self._batch(sql, parameters, numbered), DONE_IN_PROC, metadata=metadata)
            elif name == "sp_unprepare":
                self.prepared.pop(values[0][3], None)
            elif name == "sp_describe_undeclared_parameters":
                self._tokens(undeclared_parameters(self.session, values[0][3]), DONE_IN_PROC)
            elif name == "sp_datatype_info_100":
                self._tokens(data_types(values[0][3]), DONE_IN_PROC)
            elif name == "sp_reset_connection":
                self._reset()
            else:
                raise SqlError(2812, f"Could not find stored procedure '{name}'.", state=62)
        except SqlError as e:
            self.link.write(self._error(e))
            status |= DONE_ERROR
        self.link.write(wire.RETURN_STATUS)
        if handle is not None:
            self.link.write(wire.return_handle(0, handle))
        self.link.write(wire.done(DONE_PROC, status))

    def _declared(self, values: list[tuple[str, int, SqlType, Any]]) -> tuple[str, Parameters, dict[int, Any]]:
        """Statement, declared parameters and values of sp_executesql's argument order."""
        sql = values[0][3]
        declared = declarations(values[1][3] or "" if len(values) > 1 else "")
        numbered: dict[int, Any] = {}
        for i, (name, _, _, value) in enumerate(values[2:], 1):
            number = declared[name.lstrip("@").lower()][0] if name and name.lstrip("@").lower() in declared else i
            numbered[number] = value
        if len(numbered) > 2_100:
            raise SqlError(
                8003,
                "The incoming request has too many parameters. The server supports a maximum of 2100 parameters. "
                "Reduce the number of parameters and resend the request.",
            )
        return sql, declared, numbered


def declarations(text: str) -> Parameters:
    """'@P1 nvarchar(50),@P2 int' as types by name, numbered from 1."""
    out: Parameters = {}
    for name, kind, args in re.findall(r"@(\w+)\s+(\w+)\s*(?:\(([^)]*)\))?", text):
        numbers = [-1 if a.strip().lower() == "max" else int(a) for a in args.split(",")] if args else []
        out[name.lower()] = (len(out) + 1, make(kind.lower(), *numbers))
    return out
