"""INSERT, UPDATE, DELETE and DDL, compiled to plans that the engine runs."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sqlglot import exp

from . import wire
from .convert import Value, cast, literal, quote
from .dialect import (
    Catalog,
    ColumnInfo,
    Compiler,
    Output,
    Scope,
    Source,
    TableInfo,
    parse,
    table_name,
)
from .errors import SqlError, cannot
from .sqltypes import SqlType, from_node, unify

_VARIABLES = re.compile(r"getvariable\('(ms_\w+)'\)")
_NEXT_VERSION = "ms.rv(nextval('ms.row_version'))"


@dataclass(slots=True)
class Plan:
    """One statement, ready to run.

    sql: DuckDB's text (DDL may need several, in `steps`). columns: of its result, if any. parameters: the numbers of
    those that it uses. row_version: it assigns row versions. bulk: the same INSERT, fed with a list per parameter.
    command: as DONE tells it. inferred: types that parameters of unknown type turned out to need.
    """

    kind: str
    sql: str
    columns: list[wire.Column] = field(default_factory=list)
    parameters: list[int] = field(default_factory=list)
    variables: frozenset[str] = frozenset()
    row_version: bool = False
    identity: str | None = None
    bulk: str | None = None
    command: int = 0
    steps: list[str] = field(default_factory=list)
    inferred: dict[int, SqlType] = field(default_factory=dict)


def compile_statement(
    node: exp.Expr, catalog: Catalog, params: dict[str, tuple[int, SqlType]], text: str, identity_insert: bool
) -> Plan:
    """The plan of one statement. Raises SqlError with SQL Server's number where there is one."""
    c = Compiler(catalog, params)
    match node:
        case exp.Select() | exp.SetOperation() | exp.Subquery():
            plan = _query(c, node)
        case exp.Insert():
            plan = _insert(c, node, identity_insert)
        case exp.Update():
            plan = _update(c, node)
        case exp.Delete():
            plan = _delete(c, node)
        case exp.TruncateTable():
            plan = Plan("write", f"DELETE FROM {c.table(node.expressions[0]).sql}")
        case exp.Create():
            plan = _create(c, node, text)
        case exp.Alter():
            plan = _alter(c, node, text)
        case exp.Drop():
            plan = _drop(c, node)
        case _:
            raise cannot(f"run {type(node).__name__.upper()} ({text[:60]})")
    plan.parameters = sorted(c.used)
    plan.inferred = c.inferred
    plan.command = {exp.Insert: 0xC3, exp.Delete: 0xC4, exp.Update: 0xC5}.get(type(node), 0)
    names = set(_VARIABLES.findall(plan.sql))
    if c.clock:
        names |= {"ms_now", "ms_dbts", "ms_min_active"}
    plan.variables = frozenset(names)
    return plan


def _query(c: Compiler, node: exp.Expr) -> Plan:
    sql, outputs = c.query(node)
    columns = [wire.column(o.name, o.type) for o in outputs]
    names = [f"c{i}" for i in range(len(columns))]
    items = ", ".join(column.select.format(name) for name, column in zip(names, columns, strict=True))
    return Plan("query", f"SELECT {items} FROM ({sql}) AS q({', '.join(names)})", columns)


def _returning(c: Compiler, node: exp.Expr, table: TableInfo, prefix: str) -> tuple[str, list[wire.Column]]:
    """OUTPUT inserted.x as DuckDB's RETURNING."""
    clause = node.args.get("returning")
    if not clause:
        return "", []
    if clause.args.get("into"):
        raise cannot("OUTPUT INTO a table")
    scope = Scope(sources=[Source("inserted", [Output(i.name, i.type) for i in table.columns], table, prefix)])
    columns, items = [], []
    for projection in clause.expressions:
        for sql, output in c.projection(projection, scope):
            columns.append(wire.column(output.name, output.type))
            items.append(columns[-1].select.format(sql))
    return f" RETURNING {', '.join(items)}", columns


def _default(c: Compiler, column: ColumnInfo) -> Value:
    if column.default is None:
        return Value("NULL", SqlType("null"))
    node = parse(f"SELECT {column.default}")[0].expressions[0]
    return c.value(node, Scope())


def _insert(c: Compiler, node: exp.Insert, identity_insert: bool) -> Plan:
    target = node.this
    names = [i.name for i in target.expressions] if isinstance(target, exp.Schema) else []
    table = c.table(target.this if isinstance(target, exp.Schema) else target)
    if table.kind != "BASE TABLE":
        raise cannot("insert into a view")
    by_name = {col.name.lower(): col for col in table.columns}
    for name in names:
        if name.lower() not in by_name:
            raise SqlError(207, f"Invalid column name '{name}'.")
    free = [col for col in table.columns if not (col.sequence or col.computed or col.type.name == "timestamp")]
    columns = [by_name[n.lower()] for n in names] or free
    for col in columns:
        if col.type.name == "timestamp":
            raise SqlError(273, "Cannot insert an explicit value into a timestamp column. Use INSERT with a "
                                "column list to exclude the timestamp column, or insert a DEFAULT into the "
                                "timestamp column.")  # fmt: skip
        if col.sequence and not identity_insert:
            raise SqlError(
                544,
                f"Cannot insert explicit value for identity column in table '{table.name}' when IDENTITY_INSERT "
                f"is set to OFF.",
            )
    scope = Scope()
    prefix = c.with_clause(node, scope)
    inner = [f"c{i}" for i in range(len(columns))]
    bulk_source, plain = None, None
    if node.args.get("default"):
        columns, inner, types, plain = [], [], [], []
        source_sql = ""
    elif isinstance(node.expression, exp.Values):
        if len(node.expression.expressions) > 1_000:
            raise SqlError(
                10738,
                "The number of row value expressions in the INSERT statement exceeds the maximum "
                "allowed number of 1000 row values.",
                15,
            )
        rows = []
        for row in node.expression.expressions:
            if len(row.expressions) != len(columns):
                number, what = (110, "fewer") if len(row.expressions) < len(columns) else (109, "more")
                raise SqlError(
                    number,
                    f"There are {what} columns in the INSERT statement than values specified in the VALUES clause.",
                    15,
                )
            rows.append([
                _default(c, col) if _is_default(e) else c.adopt(c.value(e, scope), col.type)
                for e, col in zip(row.expressions, columns, strict=True)
            ])  # fmt: skip
        types = [unify([row[i].type for row in rows]) for i in range(len(columns))]
        lines = ["(" + ", ".join(cast(v, t).sql for v, t in zip(row, types, strict=True)) + ")" for row in rows]
        source_sql = f"(VALUES {', '.join(lines)}) AS s({', '.join(inner)})"
        if len(rows) == 1:
            plain = rows[0]  # DuckDB plans a row of its own a good deal faster than one of a VALUES list.
        single = node.expression.expressions[0].expressions
        if len(rows) == 1 and all(isinstance(e, exp.Parameter) and isinstance(e.this, exp.Var) for e in single):
            numbers = [c.params[e.name.lower()][0] for e in single]
            lists = ", ".join(
                f"unnest(CAST($p{n} AS {t.duck}[])) AS {name}" for n, t, name in zip(numbers, types, inner, strict=True)
            )
            bulk_source = f"(SELECT {lists}) AS s"
    else:
        sql, outputs = c.query(node.expression, scope)
        if len(outputs) != len(columns):
            raise SqlError(
                120 if len(outputs) < len(columns) else 121,
                "The select list for the INSERT statement does not match the number of its columns.",
                15,
            )
        types = [o.type for o in outputs]
        source_sql = f"({sql}) AS s({', '.join(inner)})"
    given = [Value(f"s.{n}", t) for n, t in zip(inner, types, strict=True)]

    def assigned(sources: list[Value]) -> dict[str, str]:
        return {col.name: cast(v, col.type, column=col.name).sql for col, v in zip(columns, sources, strict=True)}

    values = assigned(given)
    identity = None
    for col in table.columns:
        if col.name in values or col.computed:
            continue
        if col.sequence:
            identity = col.sequence
            values[col.name] = f"CAST(nextval({literal(col.sequence)}) AS {col.type.duck})"
        elif col.type.name == "timestamp":
            values[col.name] = _NEXT_VERSION
        else:
            values[col.name] = cast(_default(c, col), col.type, column=col.name).sql
    returning, outputs_ = _returning(c, node, table, "")
    head = f"{prefix}INSERT INTO {table.sql} ({', '.join(map(quote, values))}) SELECT "
    row_version = any(col.type.name == "timestamp" for col in table.columns)
    listed = ", ".join(values.values())
    bulk = f"{head}{listed} FROM {bulk_source}" if bulk_source and not returning else None
    body = f"{listed} FROM {source_sql}" if plain is None else ", ".join((values | assigned(plain)).values())
    return Plan("write", head + body + returning, outputs_, row_version=row_version, identity=identity, bulk=bulk)


def _is_default(e: exp.Expr) -> bool:
    return isinstance(e, exp.Column) and e.name.upper() == "DEFAULT" and not e.this.args.get("quoted")


def _target(c: Compiler, node: exp.Expr, named: exp.Table) -> tuple[TableInfo, str, str, Scope]:
    """The table that an UPDATE or DELETE changes: table, its alias, the FROM clause, and the scope."""
    scope = Scope()
    prefix = c.with_clause(node, scope)
    if node.args.get("from_"):
        source = c.from_clause(node, scope)
    else:
        source = f" FROM {c.source(named, scope)}" + "".join(c.join(j, scope) for j in named.args.get("joins") or [])
    return *_find(c, node, named, scope), prefix + "\0" + source, scope


def _find(c: Compiler, node: exp.Expr, named: exp.Table, scope: Scope) -> tuple[TableInfo, str]:
    tables = node.args.get("tables")
    wanted = tables[0] if tables else named
    matches = [s for s in scope.sources if s.alias.lower() == (wanted.alias or wanted.name).lower()]
    if not matches:
        matches = [s for s in scope.sources if s.table and s.table.name.lower() == wanted.name.lower()]
    if not matches and node.args.get("from_"):
        # UPDATE t ... FROM other: the target joins in without being named.
        c.source(wanted, scope)
        raise cannot("update a table that its FROM clause does not name")
    if not matches or matches[0].table is None:
        raise cannot("change anything but a table")
    if matches[0].table.kind != "BASE TABLE":
        raise cannot("change a view")
    return matches[0].table, matches[0].alias


def _update(c: Compiler, node: exp.Update) -> Plan:
    table, alias, parts, scope = _target(c, node, node.this)
    prefix, source = parts.split("\0")
    by_name = {col.name.lower(): col for col in table.columns}
    names, values = [], []
    for assignment in node.expressions:
        if not isinstance(assignment, exp.EQ) or not isinstance(assignment.left, exp.Column):
            raise cannot(f"assign {assignment.sql('tsql')[:60]}")
        col = by_name.get(assignment.left.name.lower())
        if col is None:
            raise SqlError(207, f"Invalid column name '{assignment.left.name}'.")
        if col.type.name == "timestamp":
            raise SqlError(272, "Cannot update a timestamp column.")
        if col.sequence:
            raise SqlError(8102, f"Cannot update identity column '{col.name}'.")
        value = (
            _default(c, col) if _is_default(assignment.right) else c.adopt(c.value(assignment.right, scope), col.type)
        )
        names.append(col.name)
        values.append(cast(value, col.type, column=col.name).sql)
    where = f" WHERE {c.predicate(node.args['where'].this, scope)}" if node.args.get("where") else ""
    versions = [col.name for col in table.columns if col.type.name == "timestamp"]
    bump = [f"{quote(v)} = {_NEXT_VERSION}" for v in versions]
    joined = len(scope.sources) > 1 or prefix
    if joined:
        picked = ", ".join(f"{v} AS v{i}" for i, v in enumerate(values))
        once = f" QUALIFY row_number() OVER (PARTITION BY {quote(alias)}.rowid) = 1"
        inner = f"{prefix}SELECT {quote(alias)}.rowid AS row_id, {picked}{source}{where}{once}"
        sets = ", ".join([*(f"{quote(n)} = s.v{i}" for i, n in enumerate(names)), *bump])
        sql = f"UPDATE {table.sql} AS t SET {sets} FROM ({inner}) AS s WHERE t.rowid = s.row_id"
        returning, columns = _returning(c, node, table, "t.")
    else:
        sets = ", ".join([*(f"{quote(n)} = {v}" for n, v in zip(names, values, strict=True)), *bump])
        sql = f"UPDATE {table.sql} AS {quote(alias)} SET {sets}{where}"
        returning, columns = _returning(c, node, table, "")
    return Plan("write", sql + returning, columns, row_version=bool(versions))


def _delete(c: Compiler, node: exp.Delete) -> Plan:
    table, alias, parts, scope = _target(c, node, node.this)
    prefix, source = parts.split("\0")
    where = f" WHERE {c.predicate(node.args['where'].this, scope)}" if node.args.get("where") else ""
    if not where and len(scope.sources) == 1 and not prefix:
        return Plan("write", f"DELETE FROM {table.sql}")
    rows = f"{prefix}SELECT {quote(alias)}.rowid{source}{where}"
    return Plan("write", f"DELETE FROM {table.sql} WHERE rowid IN ({rows})")


# ---- DDL


def _remember(schema: str, name: str, kind: str, columns: list[ColumnInfo], definition: str, clock: bool) -> list[str]:
    def text(value: str | None) -> str:
        return "NULL" if value is None else literal(value)

    def number(value: int | None) -> str:
        return "NULL" if value is None else str(value)

    rows = ", ".join(
        f"({literal(schema)}, {literal(name)}, {literal(c.name)}, {i}, {literal(c.type.name)}, "
        f"{number(c.type.length)}, "
        f"{number(c.type.precision)}, {number(c.type.scale)}, {c.nullable}, {text(c.default)}, "
        f"{text(c.sequence)}, {text(c.computed)})"
        for i, c in enumerate(columns, 1)
    )
    return [
        f"DELETE FROM ms.objects WHERE schema_name = {literal(schema)} AND name = {literal(name)}",
        f"DELETE FROM ms.columns WHERE schema_name = {literal(schema)} AND table_name = {literal(name)}",
        f"INSERT INTO ms.objects VALUES (nextval('ms.object_id'), {literal(schema)}, {literal(name)}, '{kind}', "
        f"{literal(definition)}, {clock})",
        f"INSERT INTO ms.columns VALUES {rows}",
    ]


def _create(c: Compiler, node: exp.Create, text: str) -> Plan:
    kind = (node.kind or "").upper()
    if kind == "SCHEMA":
        return Plan("ddl", "", steps=[f"CREATE SCHEMA {quote(node.this.db or node.this.name)}"])
    if kind.endswith("INDEX"):
        return _create_index(c, node)
    if kind == "VIEW":
        return _create_view(c, node.this, node.expression, text, replace=bool(node.args.get("replace")))
    if kind == "TABLE" and isinstance(node.this, exp.Schema):
        return _create_table(c, node)
    raise cannot(f"create a {kind.lower()}")


def _create_index(c: Compiler, node: exp.Create) -> Plan:
    index = node.this
    table = c.table(index.args["table"])
    known = {col.name.lower() for col in table.columns}
    columns = [o.this.name for o in index.args["params"].args["columns"]]
    for name in columns:
        if name.lower() not in known:
            raise SqlError(1911, f"Column name '{name}' does not exist in the target table or view.")
    if not node.args.get("unique"):
        return Plan("ddl", "")  # DuckDB scans fast enough, and an index would turn updates into deletes and inserts.
    if index.args["params"].args.get("where"):
        return Plan("ddl", "")  # A filtered unique index is not enforced.
    return Plan(
        "ddl", "", steps=[f"CREATE UNIQUE INDEX {quote(index.name)} ON {table.sql} ({', '.join(map(quote, columns))})"]
    )


def _create_view(c: Compiler, target: exp.Expr, query: exp.Expr, text: str, *, replace: bool) -> Plan:
    names: list[str] = []
    if isinstance(target, exp.Schema):
        names, target = [e.name for e in target.expressions], target.this
    if not isinstance(target, exp.Table):
        raise cannot("name a view this way")
    schema, name = table_name(target, c.catalog)
    existing = c.catalog.table(schema, name)
    if existing and not replace:
        raise SqlError(2714, f"There is already an object named '{name}' in the database.", state=3)
    if query.args.get("order") and not query.args.get("limit"):
        raise SqlError(1033, "The ORDER BY clause is invalid in views, inline functions, derived tables, "
                             "subqueries, and common table expressions, unless TOP, OFFSET or FOR XML is also "
                             "specified.", 15)  # fmt: skip
    sql, outputs = c.query(query)
    if c.used:
        raise SqlError(156, "A view takes no parameters.", 15)
    names = names or [o.name for o in outputs]
    if not all(names):
        raise SqlError(
            4511,
            f"Create View or Function failed because no column name was specified for column {names.index('') + 1}.",
        )
    lowered = [n.lower() for n in names]
    for n in names:
        if lowered.count(n.lower()) > 1:
            raise SqlError(
                4506,
                f"Column names in each view or function must be unique. Column name '{n}' in view or function "
                f"'{name}' is specified more than once.",
            )
    columns = [ColumnInfo(n, o.type) for n, o in zip(names, outputs, strict=True)]
    full = f"{quote(schema)}.{quote(name)}"
    steps = [
        f"CREATE OR REPLACE VIEW {full} AS SELECT * FROM ({sql}) AS q({', '.join(map(quote, names))})",
        *_remember(schema, name, "VIEW", columns, text, c.clock),
    ]
    c.clock = False
    return Plan("ddl", "", steps=steps)


def _column(
    c: Compiler, node: exp.ColumnDef, schema: str, table: str, others: list[ColumnInfo]
) -> tuple[ColumnInfo, str, list[str]]:
    """A column's facts, its DuckDB definition, and statements that must come first."""
    name, nullable, default, sequence, extra, steps = node.name, True, None, None, "", []
    computed = next((k.kind for k in node.constraints if isinstance(k.kind, exp.ComputedColumnConstraint)), None)
    if computed:
        scope = Scope(sources=[Source(table, [Output(o.name, o.type) for o in others], None, "")])
        value = c.value(computed.this, scope)
        sql_text = computed.this.sql("tsql")
        return (
            ColumnInfo(name, value.type, computed=sql_text),
            f"{quote(name)} {value.type.duck} GENERATED ALWAYS AS ({value.sql})",
            [],
        )
    if node.kind is None:
        raise SqlError(173, f"The definition for column '{name}' must include a data type.", 15)
    t = from_node(node.kind)
    for constraint in node.constraints:
        kind = constraint.kind
        match kind:
            case exp.NotNullColumnConstraint():
                nullable = bool(kind.args.get("allow_null"))
            case exp.PrimaryKeyColumnConstraint():
                nullable, extra = False, extra + " PRIMARY KEY"
            case exp.UniqueColumnConstraint():
                extra += " UNIQUE"
            case exp.DefaultColumnConstraint():
                default = kind.this.sql("tsql")
                _default(c, ColumnInfo(name, t, default=default))
            case exp.GeneratedAsIdentityColumnConstraint():
                start, step = kind.args.get("start"), kind.args.get("increment")
                sequence = f"ms.{quote(f'id {schema}.{table}.{name}')}"
                steps.append(
                    f"CREATE OR REPLACE SEQUENCE {sequence} START {start.name if start else 1} INCREMENT "
                    f"{step.name if step else 1}"
                )
                nullable = False
            case exp.CheckColumnConstraint():
                scope = Scope(
                    sources=[Source(table, [*(Output(o.name, o.type) for o in others), Output(name, t)], None, "")]
                )
                extra += f" CHECK ({c.predicate(kind.this, scope)})"
            case exp.Reference() | exp.CollateColumnConstraint():
                pass  # Foreign keys are not enforced.
            case _:
                raise cannot(f"keep the constraint {constraint.sql('tsql')[:60]}")
    if t.name == "timestamp":
        nullable = False
    null = "" if nullable else " NOT NULL"
    return ColumnInfo(name, t, nullable, default, sequence), f"{quote(name)} {t.duck}{null}{extra}", steps


def _create_table(c: Compiler, node: exp.Create) -> Plan:
    schema, name = table_name(node.this.this, c.catalog)
    if c.catalog.table(schema, name):
        raise SqlError(2714, f"There is already an object named '{name}' in the database.", state=6)
    columns: list[ColumnInfo] = []
    pieces: list[str] = []
    steps: list[str] = []
    later: list[exp.Expr] = []
    for item in node.this.expressions:
        if isinstance(item, exp.ColumnDef):
            info, sql, before = _column(c, item, schema, name, columns)
            columns.append(info)
            pieces.append(sql)
            steps += before
        else:
            later += item.expressions if isinstance(item, exp.Constraint) else [item]
    keys: set[str] = set()
    for item in later:
        match item:
            case exp.PrimaryKey():
                names = [o.this.name if isinstance(o, exp.Ordered) else o.name for o in item.expressions]
                keys |= {n.lower() for n in names}
                pieces.append(f"PRIMARY KEY ({', '.join(map(quote, names))})")
            case exp.UniqueColumnConstraint():
                names = [e.this.name if isinstance(e, exp.Ordered) else e.name for e in item.this.expressions]
                pieces.append(f"UNIQUE ({', '.join(map(quote, names))})")
            case exp.CheckColumnConstraint():
                scope = Scope(sources=[Source(name, [Output(o.name, o.type) for o in columns], None, "")])
                pieces.append(f"CHECK ({c.predicate(item.this, scope)})")
            case exp.ForeignKey():
                pass  # Parsed and not enforced.
            case _:
                raise cannot(f"keep the constraint {item.sql('tsql')[:60]}")
    columns = [k._replace(nullable=False) if k.name.lower() in keys else k for k in columns]
    create = f"CREATE TABLE {quote(schema)}.{quote(name)} ({', '.join(pieces)})"
    c.clock = False
    return Plan("ddl", "", steps=[*steps, create, *_remember(schema, name, "BASE TABLE", columns, "", False)])


def _alter(c: Compiler, node: exp.Alter, text: str) -> Plan:
    if node.kind == "VIEW":
        return _create_view(c, node.this, node.args["actions"][0], text, replace=True)
    table = c.table(node.this)
    columns, steps = list(table.columns), []
    for action in node.args["actions"]:
        if isinstance(action, exp.ColumnDef):
            info, sql, before = _column(c, action, table.schema, table.name, columns)
            bare = sql.replace(" NOT NULL", "")
            if info.sequence or " PRIMARY KEY" in bare or " UNIQUE" in bare or " CHECK" in bare:
                raise cannot("add a column with IDENTITY or a key to a table")
            steps += [*before, f"ALTER TABLE {table.sql} ADD COLUMN {bare}"]
            if info.type.name == "timestamp":
                steps.append(f"UPDATE {table.sql} SET {quote(info.name)} = {_NEXT_VERSION}")
            elif info.default is not None and not info.nullable:
                steps.append(f"UPDATE {table.sql} SET {quote(info.name)} = {cast(_default(c, info), info.type).sql}")
            columns.append(info)
        elif isinstance(action, exp.Drop) and action.args.get("kind") == "COLUMN":
            names = [t.name.lower() for t in action.args["tables"]]
            steps += [f"ALTER TABLE {table.sql} DROP COLUMN {quote(n)}" for n in names]
            columns = [k for k in columns if k.name.lower() not in names]
        elif isinstance(action, exp.AddConstraint):
            for constraint in action.expressions:
                for item in constraint.expressions if isinstance(constraint, exp.Constraint) else [constraint]:
                    if isinstance(item, exp.PrimaryKey):
                        names = [o.this.name if isinstance(o, exp.Ordered) else o.name for o in item.expressions]
                        steps.append(f"ALTER TABLE {table.sql} ADD PRIMARY KEY ({', '.join(map(quote, names))})")
                    elif not isinstance(item, exp.ForeignKey):
                        raise cannot(f"add the constraint {item.sql('tsql')[:60]}")
        elif isinstance(action, exp.AlterColumn) and action.args.get("dtype"):
            t = from_node(action.args["dtype"])
            at = next((i for i, k in enumerate(columns) if k.name.lower() == action.name.lower()), None)
            if at is None:
                raise SqlError(
                    4924,
                    f"ALTER TABLE ALTER COLUMN failed because column '{action.name}' does not exist in table "
                    f"'{table.name}'.",
                )
            value = cast(Value(quote(columns[at].name), columns[at].type), t, column=columns[at].name).sql
            nullable = action.args.get("allow_null") is not False
            steps += [
                f"ALTER TABLE {table.sql} ALTER COLUMN {quote(columns[at].name)} TYPE {t.duck} USING {value}",
                f"ALTER TABLE {table.sql} ALTER COLUMN {quote(columns[at].name)} {'DROP' if nullable else 'SET'} "
                f"NOT NULL",
            ]
            columns[at] = columns[at]._replace(type=t, nullable=nullable)
        else:
            raise cannot(f"alter a table by {action.sql('tsql')[:60]}")
    c.clock = False
    return Plan("ddl", "", steps=[*steps, *_remember(table.schema, table.name, table.kind, columns, "", False)])


def _drop(c: Compiler, node: exp.Drop) -> Plan:
    kind, steps = str(node.args["kind"]).upper(), []
    if kind == "INDEX":
        return Plan("ddl", "", steps=[f"DROP INDEX IF EXISTS {quote(t.name)}" for t in node.args["tables"]])
    for target in node.args["tables"]:
        if kind == "SCHEMA":
            exists = "IF EXISTS " if node.args.get("exists") else ""
            steps.append(f"DROP SCHEMA {exists}{quote(target.db or target.name)}")
            continue
        if kind not in ("TABLE", "VIEW"):
            raise cannot(f"drop a {kind.lower()}")
        schema, name = table_name(target, c.catalog)
        table = c.catalog.table(schema, name)
        if table is None or (table.kind == "VIEW") != (kind == "VIEW"):
            if node.args.get("exists"):
                continue
            raise SqlError(
                3701,
                f"Cannot drop the {kind.lower()} '{name}', because it does not exist or you do not have permission.",
                11,
                5,
            )
        steps += [
            f"DROP {kind} {table.sql}",
            f"DELETE FROM ms.objects WHERE schema_name = {literal(table.schema)} AND name = {literal(table.name)}",
            f"DELETE FROM ms.columns WHERE schema_name = {literal(table.schema)} AND table_name = "
            f"{literal(table.name)}",
        ]
    return Plan("ddl", "", steps=steps)
