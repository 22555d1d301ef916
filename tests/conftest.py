"""The real parts that the tests drive: SQL Server (or its stand-in), Azurite, the Customer.io stand-in.

Each service runs once a session; each test has a database, a workspace and a state container of its own. Every secret
of theirs holds the word `planted`, and over all tests nothing that goes out may: see tests/leaks.py.
"""

import base64
import os
import re
import secrets
import uuid
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from local import driver

driver.register()  # before pyodbc looks for drivers

import pyodbc  # noqa: E402
from azure.storage.blob import BlobLeaseClient, ContainerClient  # noqa: E402

from local import services  # noqa: E402
from local.customerio.control import CustomerioStandin, Workspace  # noqa: E402
from shared import passes  # noqa: E402
from shared.deadletters import DeadLetters  # noqa: E402
from shared.run import Run  # noqa: E402
from shared.settings import Settings  # noqa: E402
from shared.syncs import CATALOGUE, Sync  # noqa: E402
from tests.leaks import Watch  # noqa: E402

SYNCS = {sync.name: sync for sync in CATALOGUE}


def bare_settings(**changes: Any) -> Settings:
    """Settings with no deployment behind them."""
    needed = {
        "sql_connection_string": "Server=none",
        "customerio_region": "us",
        "customerio_site_id": "x",
        "state_container": "tidemark",
        "customerio_api_key": "x",
    }
    return Settings(**{**needed, **changes})


@pytest.fixture(scope="session")
def watch() -> Iterator[Watch]:
    """The watch over everything that the product says in this process."""
    with closing(Watch()) as watch:
        yield watch


@pytest.fixture(autouse=True)
def nothing_leaks(watch: Watch, request: pytest.FixtureRequest) -> Iterator[None]:
    """No test of all makes the product tell a customer's data or a secret, in whatever way."""
    watch.begin(responses=request.node.get_closest_marker("shows_people") is None)
    yield
    assert watch.found == []


def planted(size: int = 20) -> str:
    """A secret that is seen wherever it turns up."""
    return f"planted-{secrets.token_hex(size)}"


@pytest.fixture(scope="session")
def azurite() -> Iterator[str]:
    """The connection string of a blob and queue service."""
    key = base64.b64encode(base64.b64decode("planted/") + secrets.token_bytes(58)).decode()
    with services.azurite(in_memory=True, key=key) as connection_string:
        yield connection_string


@pytest.fixture(scope="session")
def customerio() -> Iterator[CustomerioStandin]:
    with services.customer_io() as running, closing(CustomerioStandin(running.url)) as standin:
        yield standin


@dataclass(frozen=True)
class RealSqlServer:
    """The server that TEST_SQL_SERVER names; every test's database is made there and dropped again."""

    text: str

    def connection_string(self, database: str = "master") -> str:
        return (
            re.sub(r"(?i)(^|;)\s*(database|initial catalog)\s*=[^;]*", "", self.text).rstrip(";")
            + f";Database={database}"
        )

    def create_database(self, name: str) -> str:
        self._execute(f"CREATE DATABASE [{name}]")
        return self.connection_string(name)

    def drop_database(self, name: str) -> None:
        self._execute(f"ALTER DATABASE [{name}] SET SINGLE_USER WITH ROLLBACK IMMEDIATE; DROP DATABASE [{name}]")

    def _execute(self, statement: str) -> None:
        with closing(pyodbc.connect(self.connection_string(), autocommit=True)) as connection:
            connection.execute(statement)


@pytest.fixture(scope="session")
def sql_server() -> Iterator[services.SqlServer | RealSqlServer]:
    if text := os.environ.get("TEST_SQL_SERVER"):
        yield RealSqlServer(text)
    else:
        with services.sql_server(planted()) as server:
            yield server


@pytest.fixture
def database(sql_server: services.SqlServer | RealSqlServer) -> Iterator[str]:
    """The connection string of an empty database with the schemas `shop` and `retention`."""
    name = f"tidemark_{uuid.uuid4().hex[:12]}"
    text = sql_server.create_database(name)
    with closing(pyodbc.connect(text, autocommit=True)) as connection:
        connection.execute("CREATE SCHEMA retention")
        connection.execute("CREATE SCHEMA shop")
    yield text
    with suppress(pyodbc.Error):
        sql_server.drop_database(name)


@pytest.fixture
def sql(database: str) -> Iterator[pyodbc.Connection]:
    """A connection to the test's database, each statement its own transaction."""
    with closing(pyodbc.connect(database, autocommit=True)) as connection:
        yield connection


@pytest.fixture
def workspace(customerio: CustomerioStandin) -> Workspace:
    keys = {name: planted() for name in ("site_id", "api_key", "app_api_key")}
    return customerio.create_workspace(region="us", lag_seconds=0, **keys)


@pytest.fixture
def container(azurite: str) -> Iterator[ContainerClient]:
    """A state container of the test's own, which does not exist yet."""
    with ContainerClient.from_connection_string(azurite, f"state-{uuid.uuid4().hex[:16]}") as client:
        yield client


@pytest.fixture
def environment(database: str, workspace: Workspace, azurite: str, container: ContainerClient) -> dict[str, str]:
    """The app settings of a deployment against this test's own database, workspace and container."""
    return {
        "SQL_CONNECTION_STRING": database,
        "CUSTOMERIO_REGION": workspace.region,
        "CUSTOMERIO_SITE_ID": workspace.site_id,
        "CUSTOMERIO_API_KEY": workspace.api_key,
        "CUSTOMERIO_APP_API_KEY": workspace.app_api_key,
        "CUSTOMERIO_TRACK_URL": workspace.url,
        "CUSTOMERIO_APP_URL": workspace.url,
        "CUSTOMERIO_REQUESTS_PER_SECOND": "1000",
        "AzureWebJobsStorage": azurite,
        "STATE_CONTAINER": container.container_name,
        "FIRST_PASS": "all",
        "PAGE_SIZE": "1000",
    }


@dataclass
class Deployment:
    """Tidemark as deployed for one test."""

    sql: pyodbc.Connection
    workspace: Workspace
    container: ContainerClient
    environment: dict[str, str]
    syncs: dict[str, Sync] = field(default_factory=lambda: dict(SYNCS))

    def settings(self, **changes: Any) -> Settings:
        values = {
            name: None if value is None else str(value) for name, value in {**self.environment, **changes}.items()
        }
        by_field = {name.lower() if name.isupper() else name: value for name, value in values.items()}
        return Settings(**by_field)  # type: ignore[arg-type]

    def run(self, sync: str, **changes: Any) -> Run:
        """One pass, in this process."""
        return passes.run(self.syncs[sync], self.settings(**changes))

    def break_lease(self, sync: str) -> None:
        """Take the lease from a process that the test has seen dead, instead of waiting for its minute to end."""
        blob = self.container.get_blob_client(f"syncs/{sync}/mark.json")
        if blob.exists():
            with suppress(Exception):
                BlobLeaseClient(blob).break_lease(0)

    def blobs(self, prefix: str) -> list[str]:
        return [blob.name for blob in self.container.list_blobs(prefix)]

    def read(self, name: str) -> bytes:
        return self.container.download_blob(name).readall()

    def dead_letters(self, sync: str) -> list[dict[str, Any]]:
        return [asdict(letter) for letter in DeadLetters(self.container, self.syncs[sync], "").letters()]


@pytest.fixture
def deployment(
    sql: pyodbc.Connection, workspace: Workspace, container: ContainerClient, environment: dict[str, str]
) -> Deployment:
    return Deployment(sql, workspace, container, environment)
