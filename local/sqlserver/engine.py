"""Databases and sessions: transactions, row versions, and the running of plans on DuckDB.

Every database is a DuckDB in memory. A session's transaction reaches DuckDB with its first write; until then each of
its statements reads what is committed. DuckDB gives up a transaction that meets another's change, where a SQL Server's
writer would have waited: so a session keeps a log of its writes, rolls back, waits, and plays the log again.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
from sqlglot import exp

from . import wire
from .dialect import ColumnInfo, Compiler, TableInfo, parse
from .errors import Cancelled, SqlError, cannot, is_conflict, translate
from .sqltypes import SqlType
from .statements import Plan, compile_statement

LOCK_TIMEOUT = 30.0  # seconds that a writer waits for another before 1222
REPLAY_LIMIT = 50_000  # statements of a transaction that are kept for playing again
CACHED = 20_000  # characters of a statement that is worth remembering
CHUNK = 2_048  # rows fetched and encoded at a time

_SHIMS = Path(__file__).with_name("shims.sql").read_text()

Parameters = dict[str, tuple[int, SqlType]]


@dataclass(slots=True)
class Outcome:
    """What a statement gave: columns and chunks of rows, a count, or neither. transaction: 8, 9 or 10 of ENVCHANGE."""

    columns: list[wire.Column] | None = None
    chunks: Iterator[list[tuple[Any, ...]]] | None = None
    count: int | None = None
    command: int = 0
    transaction: int | None = None
    database: str | None = None


class Database:
    """One database. `latch` is held while a statement writes, so that the row versions it assigns are known."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root = duckdb.connect(":memory:", config={"threads": 2, "default_collation": "NOCASE"})
        self.root.execute(_SHIMS.replace("{database}", name.replace("'", "''")))
        self.versions = self.root.cursor()
        self.latch = threading.Lock()
        self.lock = threading.Lock()
        self.ended = threading.Condition()
        self.active: dict[int, int] = {}  # session -> the lowest row version its open transaction may have assigned
        self.plans: dict[Any, Plan] = {}

    def last_version(self) -> int:
        """@@DBTS: the last row version assigned, by whichever transaction."""
        with self.lock:
            row = self.versions.execute(
                "SELECT coalesce(last_value, 2000) FROM duckdb_sequences() WHERE sequence_name = 'row_version' "
                "AND schema_name = 'ms'"
            ).fetchone()
        return int(row[0]) if row else 2000

    def min_active(self) -> tuple[int, int]:
        """MIN_ACTIVE_ROWVERSION() and @@DBTS; the counter is read first, so that the bound is never too high."""
        last = self.last_version()
        return min([last + 1, *list(self.active.values())]), last

    def transaction_ended(self) -> None:
        with self.ended:
            self.ended.notify_all()


class Engine:
    """The databases by name, and the sessions' numbers."""

    def __init__(self, clocks: Mapping[str, int], permissions: Mapping[str, Sequence[str]]) -> None:
        """By database: by how many seconds its clock is ahead, and what the login may do, where that is not all."""
        self.clocks, self.permissions = clocks, permissions
        self.databases = {"master": Database("master")}
        self.lock = threading.Lock()
        self.sessions = 50

    def open(self, name: str) -> Session:
        """A session in a database; 4060 when there is none of that name."""
        database = self.databases.get(name.lower())
        if database is None:
            raise SqlError(4060, f'Cannot open database "{name}" requested by the login. The login failed.', 11)
        with self.lock:
            self.sessions += 1
            return Session(self, database, self.sessions)

    def create(self, name: str, *, quiet: bool = False) -> None:
        with self.lock:
            if name.lower() in self.databases:
                if quiet:
                    return
                raise SqlError(1801, f"Database '{name}' already exists. Choose a different database name.", state=3)
            self.databases[name.lower()] = Database(name)

    def drop(self, name: str, *, quiet: bool) -> None:
        with self.lock:
            if name.lower() == "master":
                raise SqlError(3708, "Cannot drop the database 'master' because it is a system database.")
            if self.databases.pop(name.lower(), None) is None and not quiet:
                raise SqlError(
                    3701,
                    f"Cannot drop the database '{name}', because it does not exist or you do not have permission.",
                    11,
                )


@dataclass(slots=True)
class Transaction:
    """An open transaction. `live`: DuckDB has it too; else its log must be played before the next statement."""

    log: list[tuple[Plan, dict[str, Any]]] = field(default_factory=list)
    live: bool = False
    level: int = 1
    ddl: bool = False


class Session:
    """One connection's state. All but `cancel` is called by one thread."""

    def __init__(self, engine: Engine, database: Database, number: int) -> None:
        self.engine, self.number = engine, number
        self.cancelled = threading.Event()
        self.lock_timeout = LOCK_TIMEOUT
        self.count_rows = True
        self.row_count = 0
        self.sequence: str | None = None
        self.identity_insert = False
        self.transaction: Transaction | None = None
        self._use(database)

    def _use(self, database: Database) -> None:
        self.db, self.con = database, database.root.cursor()

    @property
    def database(self) -> str:
        return self.db.name

    def cancel(self) -> None:
        """Stops the running statement, from another thread."""
        self.cancelled.set()
        with suppress(duckdb.Error):  # closed at the same moment
            self.con.interrupt()
        self.db.transaction_ended()

    def close(self) -> None:
        self.rollback()
        self.con.close()

    # ---- the catalogue, as this session sees it

    def table(self, schema: str, name: str) -> TableInfo | None:
        found = self.con.execute(
            "SELECT schema_name, name, kind, clock FROM ms.objects WHERE schema_name = ? AND name = ?", [schema, name]
        ).fetchone()
        if not found:
            return None
        columns = self.con.execute(
            'SELECT name, type, length, "precision", scale, nullable, default_sql, sequence, computed FROM ms.columns '
            "WHERE schema_name = ? AND table_name = ? ORDER BY position",
            [schema, name],
        ).fetchall()
        return TableInfo(
            found[0], found[1], found[2],
            tuple(ColumnInfo(c[0], SqlType(*c[1:5]), *c[5:]) for c in columns), bool(found[3]),
        )  # fmt: skip

    # ---- batches

    def batch(
        self, sql: str, parameters: Parameters | None = None, values: dict[int, Any] | None = None
    ) -> Iterator[Outcome]:
        """Runs a batch's statements one by one. Raises SqlError or Cancelled, and the rest is not run."""
        if command := self._command(sql):
            yield from command
            return
        for index, node in enumerate(_parsed(sql)):
            yield from self._statement(node, sql, index, parameters or {}, values or {})

    def plan(self, node: exp.Expr, sql: str, index: int, parameters: Parameters) -> Plan:
        """The compiled statement, from the database's cache where nothing uncommitted can matter."""
        if self.transaction and (self.transaction.log or self.transaction.live):
            self._enter()
        private = self.transaction is not None and self.transaction.ddl
        key = (sql, index, tuple((n, t) for n, (_, t) in parameters.items()), self.identity_insert)
        plan = None if private else self.db.plans.get(key)
        if plan is None:
            try:
                plan = compile_statement(node, self, parameters, sql, self.identity_insert)
            except duckdb.Error as e:
                raise translate(e) from None
            if not private and plan.kind != "ddl" and len(sql) < CACHED:
                if len(self.db.plans) > 2_000:
                    self.db.plans.clear()
                self.db.plans[key] = plan
        return plan

    def _statement(
        self, node: exp.Expr, sql: str, index: int, parameters: Parameters, values: dict[int, Any]
    ) -> Iterator[Outcome]:
        match node:
            case exp.Set() | exp.Command() | exp.Use():
                command = self._command(node.sql("tsql"))
                if command is None:
                    raise cannot(f"run {node.sql('tsql')[:80]}")
                yield from command
            case exp.Transaction():
                yield self.begin()
            case exp.Commit():
                yield self.commit()
            case exp.Rollback():
                if self.transaction is None:
                    raise SqlError(3903, "The ROLLBACK TRANSACTION request has no corresponding BEGIN TRANSACTION.")
                yield self.rollback()
            case exp.Create() if node.kind == "DATABASE":
                self.engine.create(node.this.name)
                yield Outcome()
            case exp.Drop() if node.args["kind"] == "DATABASE":
                for target in node.args["tables"]:
                    self.engine.drop(target.name, quiet=bool(node.args.get("exists")))
                yield Outcome()
            case exp.IfBlock():
                branch = node.args["true"] if self._condition(node.this, parameters, values) else node.args.get("false")
                block = branch.expressions if isinstance(branch, exp.Block) else [branch] if branch else []
                for i, inner in enumerate(block):
                    yield from self._statement(
                        inner, f"{sql}\0{branch is node.args['true']}", index * 1000 + i, parameters, values
                    )
            case exp.ExecuteSql() if len(node.expressions) == 1 and isinstance(
                node.expressions[0], exp.Literal | exp.National
            ):
                yield from self.batch(node.expressions[0].name)
            case _:
                yield self.run(self.plan(node, sql, index, parameters), values)

    def _condition(self, node: exp.Expr, parameters: Parameters, values: dict[int, Any]) -> bool:
        c = Compiler(self, parameters)
        from .dialect import Scope

        text = c.predicate(node, Scope())
        plan = Plan("query", f"SELECT coalesce({text}, false)", parameters=sorted(c.used))
        outcome = self.run(plan, values)
        return any(row[0] for chunk in outcome.chunks or () for row in chunk)

    def _command(self, sql: str) -> Iterator[Outcome] | None:
        """Statements that sqlglot does not read, by their first words; None when it is none of these."""
        text = sql.strip().rstrip(";").strip()
        if delay := re.fullmatch(r"waitfor\s+delay\s+'(\d+):(\d+):(\d+(?:\.\d+)?)'", text, re.I):
            return self._wait(int(delay[1]) * 3600 + int(delay[2]) * 60 + float(delay[3]))
        if ";" in text or "\n" in text:
            return None
        if use := re.fullmatch(r"use\s+\[?([^\]]+?)\]?", text, re.I):
            return self._change_database(use[1])
        if timeout := re.fullmatch(r"set\s+lock_timeout\s*=?\s*(-?\d+)", text, re.I):
            self.lock_timeout = LOCK_TIMEOUT if int(timeout[1]) < 0 else int(timeout[1]) / 1000
        elif insert := re.fullmatch(r"set\s+identity_insert\s+\S+\s+(on|off)", text, re.I):
            self.identity_insert = insert[1].lower() == "on"
        elif nocount := re.fullmatch(r"set\s+nocount\s*=?\s*(on|off)", text, re.I):
            self.count_rows = nocount[1].lower() == "off"
        elif level := re.fullmatch(r"set\s+transaction\s+isolation\s+level\s+(.+)", text, re.I):
            if level[1].lower() in ("serializable", "repeatable read", "snapshot"):
                raise cannot(f"isolate transactions by {level[1].upper()}")
        elif re.match(r"set\s+implicit_transactions\s*=?\s*on", text, re.I):
            raise cannot("begin transactions implicitly; use the driver's autocommit")
        elif re.match(r"(set\s+[a-z_, ]+\s*=?\s*\S+$|print\b|grant\b|deny\b|alter\s+database\b)", text, re.I):
            pass  # Options, messages and permissions: taken, and without effect.
        elif schema := re.fullmatch(r"create\s+schema\s+\[?(\w+)\]?\s+authorization\s+\S+", text, re.I):
            return self.batch(f"CREATE SCHEMA [{schema[1]}]")
        elif executed := re.fullmatch(r"exec(?:ute)?\s*\(\s*N?'((?:[^']|'')*)'\s*\)", text, re.I):
            return self.batch(executed[1].replace("''", "'"))
        else:
            return None
        return iter([Outcome()])

    def _wait(self, seconds: float) -> Iterator[Outcome]:
        if self.cancelled.wait(seconds):
            raise Cancelled
        yield Outcome()

    def _change_database(self, name: str) -> Iterator[Outcome]:
        database = self.engine.databases.get(name.lower())
        if database is None:
            raise SqlError(911, f"Database '{name}' does not exist. Make sure that the name is entered correctly.")
        if database is not self.db:
            if self.transaction:
                raise cannot("change the database within a transaction")
            self.con.close()
            self._use(database)
        yield Outcome(database=database.name)

    # ---- running

    def run(self, plan: Plan, values: dict[int, Any]) -> Outcome:
        """Runs a plan with the parameters' values by number."""
        if self.cancelled.is_set():
            raise Cancelled
        arguments = {f"p{n}": values[n] for n in plan.parameters}
        if plan.kind == "query":
            return self._read(plan, arguments)
        if plan.kind == "ddl" and not plan.steps:
            return Outcome()
        rows, count = self._write(plan, arguments)
        if plan.kind == "ddl":
            return Outcome()
        self.row_count = count
        if plan.columns:
            return Outcome(plan.columns, iter([rows] if rows else []), command=plan.command)
        return Outcome(count=count, command=plan.command)

    def insert_many(self, sql: str, parameters: Parameters, rows: list[dict[int, Any]]) -> bool:
        """Runs an INSERT for many sets of values at once; False, and nothing done, when it is not of that kind."""
        nodes = _parsed(sql)
        plan = self.plan(nodes[0], sql, 0, parameters) if len(nodes) == 1 else None
        if plan is None or plan.bulk is None:
            return False
        lists = {n: [row[n] for row in rows] for n in plan.parameters}
        self.run(replace(plan, sql=plan.bulk), lists)
        self.row_count = 1
        return True

    def _read(self, plan: Plan, arguments: dict[str, Any]) -> Outcome:
        try:
            if self.transaction and (self.transaction.live or self.transaction.log):
                self._enter()
            self._set_variables(plan)
            result = self.con.execute(plan.sql, arguments or None)
            first = result.fetchmany(CHUNK)
        except duckdb.Error as e:
            self._lose()
            raise translate(e) from None
        return Outcome(plan.columns, self._chunks(first), command=0xC1)

    def _chunks(self, first: list[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
        chunk, total = first, 0
        while chunk:
            yield chunk
            total += len(chunk)
            if self.cancelled.is_set():
                raise Cancelled
            if len(chunk) < CHUNK:
                break
            try:
                chunk = self.con.fetchmany(CHUNK)
            except duckdb.Error as e:
                self._lose()
                raise translate(e) from None
        self.row_count = total

    def _write(self, plan: Plan, arguments: dict[str, Any]) -> tuple[list[tuple[Any, ...]], int]:
        """Runs a statement that writes, waiting for other writers of its rows: 1222 when they take too long."""
        deadline, pause = time.monotonic() + self.lock_timeout, 0.0
        while True:
            try:
                with self.db.latch:
                    return self._attempt(plan, arguments)
            except duckdb.Error as e:
                self._lose()
                if not is_conflict(e):
                    raise translate(e) from None
            if time.monotonic() > deadline:
                raise SqlError(1222, "Lock request time out period exceeded.", state=51)
            if pause:
                with self.db.ended:
                    self.db.ended.wait(pause)
            pause = min(0.25, pause * 2 or 0.005)
            if self.cancelled.is_set():
                raise Cancelled

    def _attempt(self, plan: Plan, arguments: dict[str, Any]) -> tuple[list[tuple[Any, ...]], int]:
        if self.transaction:
            self._enter()
        else:
            self.con.execute("BEGIN")
        fresh = plan.row_version and self.number not in self.db.active
        if fresh:
            self.db.active[self.number] = self.db.last_version() + 1
        self._set_variables(plan)
        rows = self._execute(plan, arguments)
        count = len(rows) if plan.columns else int(rows[0][0]) if rows and plan.kind == "write" else 0
        if self.transaction is None:
            self.con.execute("COMMIT")
            if plan.kind == "ddl":
                self.db.plans.clear()
            self._finished()
        else:
            self.transaction.log.append((plan, arguments))
            self.transaction.ddl |= plan.kind == "ddl"
            if fresh and count == 0:
                self.db.active.pop(self.number, None)
        return rows, count

    def _execute(self, plan: Plan, arguments: dict[str, Any]) -> list[tuple[Any, ...]]:
        if plan.kind == "ddl":
            for step in plan.steps:
                self.con.execute(step)
            return []
        if plan.identity:
            self.sequence = plan.identity
        return self.con.execute(plan.sql, arguments or None).fetchall()

    def _enter(self) -> None:
        """Sees to it that DuckDB has the session's transaction, with all that it wrote so far."""
        transaction = self.transaction
        if transaction is None or transaction.live:
            return
        if len(transaction.log) > REPLAY_LIMIT:
            self.rollback()
            raise cannot(
                f"go on with a transaction of more than {REPLAY_LIMIT} statements after an error; it is rolled back"
            )
        self.con.execute("BEGIN")
        transaction.live = True
        for plan, arguments in transaction.log:
            self._set_variables(plan)
            self._execute(plan, arguments)

    def _lose(self) -> None:
        """DuckDB's transaction is of no use after an error: it is over, or will be played again."""
        with suppress(duckdb.Error):  # There may be none.
            self.con.execute("ROLLBACK")
        if self.transaction:
            self.transaction.live = False
            if not self.transaction.log:
                self.db.active.pop(self.number, None)
        else:
            self._finished()

    def _finished(self) -> None:
        self.db.active.pop(self.number, None)
        self.db.transaction_ended()

    def _set_variables(self, plan: Plan) -> None:
        if not plan.variables:
            return
        values: dict[str, str] = {}
        if plan.variables & {"ms_now"}:
            now = wire.utc_now() + timedelta(seconds=self.engine.clocks.get(self.db.name.lower(), 0))
            values["ms_now"] = f"TIMESTAMP '{now.isoformat(sep=' ')}'"
        if plan.variables & {"ms_min_active", "ms_dbts"}:
            bound, last = self.db.min_active()
            values["ms_min_active"], values["ms_dbts"] = f"unhex('{bound:016X}')", f"unhex('{last:016X}')"
        if "ms_permissions" in plan.variables:
            granted = self.engine.permissions.get(self.db.name.lower())
            listed = ", ".join("'" + one.replace("'", "''") + "'" for one in granted or ())
            values["ms_permissions"] = "NULL" if granted is None else f"CAST([{listed}] AS VARCHAR[])"
        if "ms_identity" in plan.variables:
            values["ms_identity"] = f"currval('{self.sequence}')" if self.sequence else "NULL"
        values["ms_trancount"] = str(self.transaction.level if self.transaction else 0)
        values["ms_rowcount"], values["ms_spid"] = str(self.row_count), str(self.number)
        for name in plan.variables & values.keys():
            self.con.execute(f"SET VARIABLE {name} = {values[name]}")

    # ---- transactions

    def begin(self) -> Outcome:
        if self.transaction:
            self.transaction.level += 1
            return Outcome()
        self.transaction = Transaction()
        return Outcome(transaction=8)

    def commit(self) -> Outcome:
        """Commits; a key that another transaction committed first is 2627, as its INSERT would have been."""
        transaction = self.transaction
        if transaction is None:
            raise SqlError(3902, "The COMMIT TRANSACTION request has no corresponding BEGIN TRANSACTION.")
        if transaction.level > 1:
            transaction.level -= 1
            return Outcome()
        try:
            if transaction.log:
                with self.db.latch:
                    self._enter()
                    self.con.execute("COMMIT")
            elif transaction.live:
                self.con.execute("COMMIT")
        except duckdb.Error as e:
            self.rollback()
            raise translate(e) from None
        self.transaction = None
        if transaction.ddl:
            self.db.plans.clear()
        self._finished()
        return Outcome(transaction=9)

    def rollback(self) -> Outcome:
        if self.transaction:
            self.transaction.log.clear()
        self._lose()
        self.transaction = None
        self._finished()
        return Outcome(transaction=10)


_PARSED: dict[str, list[exp.Expr]] = {}


def _parsed(sql: str) -> list[exp.Expr]:
    nodes = _PARSED.get(sql)
    if nodes is None:
        nodes = parse(sql)
        if len(sql) < CACHED:
            if len(_PARSED) > 2_000:
                _PARSED.clear()
            _PARSED[sql] = nodes
    return nodes
