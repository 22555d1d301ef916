"""The scripts of `sql/` beside the views: what the managed identity may do, and which indexes there are.

The stand-in has no users, so grants.sql is held to its words here, and to its effect where TEST_SQL_SERVER names a real
server. It forgets indexes that are not unique, but knows whether their table and columns are there.
"""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pyodbc
import pytest

from local import cdnow, services
from shared.errors import StateFault
from shared.source import _SURVEY
from tests.conftest import Deployment
from tests.test_passes import add_customers, add_orders, event_ids, make_tables
from tests.test_resync import Worker, go_live

SQL = Path(__file__).resolve().parent.parent / "sql"
SCRIPTS = {path.name: re.sub(r"--.*", "", path.read_text()) for path in SQL.glob("*.sql")}
INDEXES = re.findall(
    r"CREATE INDEX (\w+)\s+ON (\w+\.\w+) \(([^)]+)\)(?:\s+INCLUDE \(([^)]+)\))?",
    SCRIPTS["01_shop.sql"] + SCRIPTS["indexes.sql"],
)
real = pytest.mark.skipif("TEST_SQL_SERVER" not in os.environ, reason="the stand-in has no users and no permissions")


@pytest.fixture(scope="module")
def shop(sql_server: services.SqlServer) -> Iterator[pyodbc.Connection]:
    """The reference shop."""
    name = f"tidemark_{uuid.uuid4().hex[:12]}"
    with closing(pyodbc.connect(sql_server.create_database(name), autocommit=True)) as connection:
        cdnow.create_schema(connection)
        yield connection
    sql_server.drop_database(name)


def test_the_numbered_scripts_run_by_themselves_and_the_others_are_for_a_person():
    assert {name for name in SCRIPTS if not name[0].isdigit()} == {"grants.sql", "indexes.sql"}


def test_the_identity_gets_select_on_the_schema_and_nothing_more():
    batches = [" ".join(batch.split()) for batch in cdnow.batches(SCRIPTS["grants.sql"])]
    assert batches == [
        "IF DATABASE_PRINCIPAL_ID(N'$(identity)') IS NULL CREATE USER [$(identity)] FROM EXTERNAL PROVIDER;",
        "GRANT SELECT ON SCHEMA::retention TO [$(identity)];",
    ]


@real
def test_with_these_rights_a_pass_can_ask_what_it_asks_and_no_table_can_be_read(shop):
    shop.execute("CREATE USER reader WITHOUT LOGIN")
    shop.execute(list(cdnow.batches(SCRIPTS["grants.sql"]))[1].replace("$(identity)", "reader"))
    shop.execute("EXECUTE AS USER = 'reader'")
    try:
        assert shop.execute(_SURVEY, "retention", "customers", "customer_changes").fetchall()
        for view in ("customers", "customer_changes", "orders", "refunds", "carts", "merges", "removals"):
            shop.execute(f"SELECT * FROM retention.{view}").fetchall()
        with pytest.raises(pyodbc.Error, match="229"):
            shop.execute("SELECT * FROM shop.customers").fetchall()
    finally:
        shop.execute("REVERT")


def test_the_indexes_are_of_tables_and_columns_that_are_there(shop):
    for batch in cdnow.batches(SCRIPTS["indexes.sql"]):
        shop.execute(batch)
    for name, table, columns, included in INDEXES:
        there = {row[0] for row in shop.execute(f"SELECT * FROM {table} WHERE 1 = 0").description}
        assert {one.strip() for one in f"{columns},{included}".split(",") if one.strip()} <= there, name


def test_no_index_stands_twice():
    assert len({name for name, *_ in INDEXES}) == len(INDEXES)
    assert len({(table, columns) for _, table, columns, _ in INDEXES}) == len(INDEXES)


def views() -> Iterator[tuple[str, str, str]]:
    """View, table and column of what passes, slices and people's rows are looked for by, where it is one column."""
    for name, script in SCRIPTS.items():
        for view, body in re.findall(r"CREATE VIEW retention\.(\w+) AS(.*?)\nGO", script, re.S):
            tables = {alias: table for table, alias in re.findall(r"(?:FROM|JOIN) (shop\.\w+) AS (\w+)", body)}
            if "AS event_time" in body and view != "carts":
                alias, column = re.search(r"(\w+)\.(\w+) AS event_time", body).groups()
                yield f"{name} event_time", tables[alias], column
            if "row_version" in body:
                for alias, column in set(re.findall(r"(\w+)\.(row_version)\b", body)):
                    yield f"{name} row_version", tables[alias], column


@pytest.mark.parametrize(("what", "table", "column"), sorted(views()))
def test_every_cursor_and_event_time_of_the_reference_views_has_an_index(what, table, column):
    table = {"shop.paid_orders": "shop.orders"}.get(table, table)
    assert column in [columns.split(",")[0] for _, of, columns, _ in INDEXES if of == table], what


def test_a_sync_gets_a_rowversion_later_by_going_live_again_and_no_event_goes_twice(deployment, monkeypatch):
    # as docs/sql.md says
    _deploy(deployment, monkeypatch)
    deployment.sql.execute("ALTER TABLE shop.orders ADD row_version rowversion")
    deployment.sql.execute("DROP VIEW retention.orders")
    deployment.sql.execute(
        "CREATE VIEW retention.orders AS SELECT customer_id, 'Order Placed' AS event_name, paid_at AS event_time,"
        " order_id AS event_id, total, row_version FROM shop.orders"
    )
    with pytest.raises(StateFault, match="was made by updated_at"):
        deployment.run("orders")
    for blob in ("types.json", "syncs/orders/mark.json", "syncs/customers/mark.json"):
        deployment.container.delete_blob(blob)
    add_orders(deployment.sql, range(20, 25), customers=10)
    assert go_live(Worker(deployment))["progress"]["already_sent"] == 20
    add_orders(deployment.sql, range(25, 30), customers=10)
    assert deployment.run("orders").accepted == 5
    assert sorted(event_ids(deployment)) == list(range(30))


def _deploy(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shop by `updated_at` that is live, with 20 orders sent."""
    make_tables(deployment.sql, "updated_at")
    for name, value in {**deployment.environment, "FIRST_PASS": "approved"}.items():
        monkeypatch.setenv(name, value)
    deployment.environment["FIRST_PASS"] = "approved"
    add_customers(deployment.sql, range(10))
    add_orders(deployment.sql, range(20), customers=10)
    go_live(Worker(deployment))
