"""Starts the stand-ins as child processes and stops them: Azurite, SQL Server, Customer.io, the Functions host.

Every service is a context manager. Its process is in a group of its own, so that a Ctrl-C reaches the parent alone,
which then stops its children in order; and the kernel kills it when the parent dies, however that happens.

Start services from a thread that lives as long as they should: the kernel takes the end of the *thread* that started a
child for the parent's death.
"""

import base64
import contextlib
import json
import os
import secrets
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from local import driver

REPOSITORY = Path(__file__).resolve().parent.parent
_NO_GC = Path(__file__).parent / "azurite/no-gc.cjs"
_AZURITE = REPOSITORY / ".tools/azurite/node_modules/azurite/dist/src/azurite.js"
_START_SECONDS = 60.0


class ServiceFault(RuntimeError):
    """A service did not start, or ended before its time. The message holds the end of what it said on stderr."""


class Child:
    """A child process that ends with its parent. Its stderr goes to a file without a name, kept for messages."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        env: Mapping[str, str] | None = None,
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
    ) -> None:
        self.name = name
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            cwd=REPOSITORY,
            env=None if env is None else dict(env),
            stdin=stdin,
            stdout=stdout,
            stderr=self._stderr,
            process_group=0,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def read_ready(self, timeout: float = _START_SECONDS) -> dict[str, int]:
        """The one JSON line that a stand-in prints when it is ready. Raises ServiceFault when there is none in time."""
        assert self.process.stdout is not None
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            deadline = time.monotonic() + timeout
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self.fault(f"was not ready after {timeout:.0f} s")
                chunk = os.read(self.process.stdout.fileno(), 65536)
                if not chunk:
                    self.process.wait()
                    raise self.fault("ended while starting")
                line += chunk
        ready: dict[str, int] = json.loads(line)
        return ready

    def fault(self, what: str) -> ServiceFault:
        code = self.process.poll()
        ended = "" if code is None else f" (exit code {code})"
        return ServiceFault(f"{self.name} {what}{ended}:\n{self.stderr_tail()}".rstrip(":\n"))

    def stderr_tail(self, size: int = 4000) -> str:
        """The last `size` bytes that the process wrote to stderr."""
        if self._stderr.closed:
            return ""
        end = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), size, max(0, end - size)).decode(errors="replace").strip()

    def kill(self) -> None:
        """kill -9, at once; what the process did not finish stays undone."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Asks the process to end, and kills it when it does not within five seconds."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            if self.process.poll() is None:
                self.kill()
        for stream in (self.process.stdin, self.process.stdout, self._stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextlib.contextmanager
def azurite(*, folder: Path | None = None, in_memory: bool = False, key: str | None = None) -> Iterator[str]:
    """Microsoft's storage emulator on free ports; yields the connection string of its blobs and queues.

    Its data is in `folder`, or in a temporary one that goes with it. `key` is the account's, 64 bytes in base64; left
    out, it is made up anew each time.
    """
    if not _AZURITE.exists():
        raise ServiceFault(f"Azurite is not installed in {_AZURITE.parents[4]}: run `make setup`")
    account, key = "tidemark", key or base64.b64encode(secrets.token_bytes(64)).decode()
    blob, queue, table = _free_ports(3)
    with tempfile.TemporaryDirectory(prefix="azurite-", ignore_cleanup_errors=True) as temporary:
        command = ["node", "--require", str(_NO_GC), str(_AZURITE)]
        command += ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
        command += ["--blobPort", str(blob), "--queuePort", str(queue), "--tablePort", str(table)]
        command += ["--inMemoryPersistence"] if in_memory else ["--location", str(folder or temporary)]
        environment = {**os.environ, "AZURITE_ACCOUNTS": f"{account}:{key}"}
        with Child(command, name="Azurite", env=environment, stdout=subprocess.DEVNULL) as child:
            for port in (blob, queue):
                _await_port(child, port)
            try:
                yield (
                    f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};"
                    f"BlobEndpoint=http://127.0.0.1:{blob}/{account};QueueEndpoint=http://127.0.0.1:{queue}/{account};"
                )
            finally:
                if folder is None:  # nothing to keep: asked to end, it would wait for its idle connections
                    child.kill()


@dataclass(frozen=True, slots=True)
class SqlServer:
    """A SQL Server at 127.0.0.1:port, user sa."""

    port: int
    password: str
    pid: int

    def connection_string(self, database: str = "master") -> str:
        """The ODBC connection string of one database."""
        return (
            f"Driver={{{driver.NAME}}};Server=127.0.0.1,{self.port};Database={database};"
            f"UID=sa;PWD={self.password};Encrypt=no"
        )

    def create_database(self, name: str) -> str:
        """Creates an empty database; returns its connection string."""
        self._execute(f"CREATE DATABASE [{name}]")
        return self.connection_string(name)

    def drop_database(self, name: str) -> None:
        self._execute(f"DROP DATABASE [{name}]")

    def _execute(self, statement: str) -> None:
        import pyodbc  # after driver.register(), which sql_server() has called

        with contextlib.closing(pyodbc.connect(self.connection_string(), autocommit=True)) as connection:
            connection.execute(statement)


@contextlib.contextmanager
def sql_server(password: str | None = None) -> Iterator[SqlServer]:
    """The SQL Server stand-in on a free port; registers Microsoft's driver here too.

    Without `password` one is made up anew.
    """
    driver.register()
    password = password or secrets.token_urlsafe(12)
    command = [sys.executable, "-m", "local.sqlserver", "--port", "0", f"--password={password}"]
    with Child(command, name="the SQL Server stand-in") as child:
        yield SqlServer(child.read_ready()["port"], password, child.pid)


@dataclass(frozen=True, slots=True)
class CustomerIo:
    """A Customer.io: its Track and App API, and the control API of the stand-in, at one address."""

    url: str
    pid: int


@contextlib.contextmanager
def customer_io() -> Iterator[CustomerIo]:
    """The Customer.io stand-in on a free port."""
    with Child([sys.executable, "-m", "local.customerio", "--port", "0"], name="the Customer.io stand-in") as child:
        yield CustomerIo(f"http://127.0.0.1:{child.read_ready()['port']}", child.pid)


@dataclass(frozen=True, slots=True)
class FunctionsHost:
    """The Functions host with everything running: timers by cron, HTTP routes under url, queue triggers."""

    url: str
    pid: int


@contextlib.contextmanager
def functions_host(
    settings: Mapping[str, str], *, app_dir: Path = REPOSITORY, port: int = 0
) -> Iterator[FunctionsHost]:
    """`python -m local.host`: drives the app in `app_dir` with these app settings until the block ends."""
    driver.register()
    command = [sys.executable, "-m", "local.host", "--app", str(app_dir), "--port", str(port)]
    with Child(command, name="the Functions host", env={**os.environ, **settings}) as child:
        yield FunctionsHost(f"http://127.0.0.1:{child.read_ready()['port']}", child.pid)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]


def _await_port(child: Child, port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if child.process.poll() is not None:
            raise child.fault("ended while starting")
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise child.fault(f"was not ready after {_START_SECONDS:.0f} s")
