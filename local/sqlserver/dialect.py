"""T-SQL to DuckDB: one walk over sqlglot's syntax tree that knows the T-SQL type of every expression.

sqlglot parses; the rendering is ours, because a value's T-SQL type decides what DuckDB must be told: integer division,
`+` on text, comparison by collation, padding, the rounding of datetime, and what goes over the wire. A node that is not
known here is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

from sqlglot import ErrorLevel, exp
from sqlglot.dialects.tsql import TSQL
from sqlglot.errors import ParseError, TokenError
from sqlglot.parsers.tsql import TSQLParser
from sqlglot.tokenizer_core import TokenType

from . import convert
from .convert import Value, cast, literal, quote
from .errors import SqlError, cannot
from .sqltypes import (
    BINARY,
    EXACT,
    FLOATS,
    INTEGERS,
    NUMBERS,
    TEXT,
    WIDE,
    SqlType,
    decimal,
    from_node,
    make,
    unify,
)

INT, BIGINT, FLOAT, BIT = SqlType("int"), SqlType("bigint"), SqlType("float"), SqlType("bit")
SYSNAME = SqlType("nvarchar", 128)
NOW = "CAST(getvariable('ms_now') AS TIMESTAMP)"


class Dialect(TSQL):
    """T-SQL without sqlglot's ideas of functions: they stay calls by name, and REAL, NTEXT and NUMERIC stay apart."""

    class Tokenizer(TSQL.Tokenizer):
        KEYWORDS: ClassVar[dict[str, TokenType]] = {
            **TSQL.Tokenizer.KEYWORDS,
            "FLOAT": TokenType.DOUBLE,
            "NTEXT": TokenType.LONGTEXT,
            "NUMERIC": TokenType.BIGDECIMAL,
        }

    class Parser(TSQLParser):
        FUNCTIONS: ClassVar[dict[str, Callable[..., exp.Expr]]] = {}
        FUNCTION_PARSERS: ClassVar[dict[str, Callable[..., exp.Expr | None]]] = {
            name: TSQLParser.FUNCTION_PARSERS[name]
            for name in ("CAST", "TRY_CAST", "CONVERT", "TRY_CONVERT", "STRING_AGG", "TRIM")
        }


class ColumnInfo(NamedTuple):
    """A column of a table or view."""

    name: str
    type: SqlType
    nullable: bool = True
    default: str | None = None
    sequence: str | None = None
    computed: str | None = None


@dataclass(frozen=True, slots=True)
class TableInfo:
    """What the engine remembers of a table or view; clock: the view reads the time, so the session must set it."""

    schema: str
    name: str
    kind: str
    columns: tuple[ColumnInfo, ...]
    clock: bool = False

    @property
    def sql(self) -> str:
        return f"{quote(self.schema)}.{quote(self.name)}"


class Catalog(Protocol):
    """Where the compiler looks names up."""

    @property
    def database(self) -> str: ...

    def table(self, schema: str, name: str) -> TableInfo | None: ...


class Output(NamedTuple):
    """A column of a SELECT."""

    name: str
    type: SqlType


@dataclass(slots=True)
class Source:
    """A table in a FROM clause: what its columns are called outside and in DuckDB."""

    alias: str
    columns: list[Output]
    table: TableInfo | None = None
    prefix: str | None = None  # how DuckDB qualifies its columns; the alias unless told

    def column(self, name: str) -> str:
        prefix = quote(self.alias) + "." if self.prefix is None else self.prefix
        return prefix + quote(name)


@dataclass(slots=True)
class Scope:
    """The names that an expression sees."""

    parent: Scope | None = None
    sources: list[Source] = field(default_factory=list)
    ctes: dict[str, list[Output]] = field(default_factory=dict)
    aliases: dict[str, SqlType] = field(default_factory=dict)

    def cte(self, name: str) -> list[Output] | None:
        scope: Scope | None = self
        while scope:
            if name in scope.ctes:
                return scope.ctes[name]
            scope = scope.parent
        return None


INFORMATION_SCHEMA = {
    "columns": [
        *[Output(n, SYSNAME) for n in ("TABLE_CATALOG", "TABLE_SCHEMA", "TABLE_NAME", "COLUMN_NAME")],
        Output("ORDINAL_POSITION", INT), Output("COLUMN_DEFAULT", SqlType("nvarchar", 4000)),
        Output("IS_NULLABLE", SqlType("varchar", 3)), Output("DATA_TYPE", SYSNAME),
        Output("CHARACTER_MAXIMUM_LENGTH", INT), Output("CHARACTER_OCTET_LENGTH", INT),
        Output("NUMERIC_PRECISION", SqlType("tinyint")), Output("NUMERIC_PRECISION_RADIX", SqlType("smallint")),
        Output("NUMERIC_SCALE", INT), Output("DATETIME_PRECISION", SqlType("smallint")),
        Output("COLLATION_NAME", SYSNAME),
    ],
    "tables": [
        *[Output(n, SYSNAME) for n in ("TABLE_CATALOG", "TABLE_SCHEMA", "TABLE_NAME")],
        Output("TABLE_TYPE", SqlType("varchar", 10)),
    ],
    "views": [
        *[Output(n, SYSNAME) for n in ("TABLE_CATALOG", "TABLE_SCHEMA", "TABLE_NAME")],
        Output("VIEW_DEFINITION", SqlType("nvarchar", 4000)),
        Output("CHECK_OPTION", SqlType("varchar", 7)), Output("IS_UPDATABLE", SqlType("varchar", 2)),
    ],
    "schemata": [Output("CATALOG_NAME", SYSNAME), Output("SCHEMA_NAME", SYSNAME)],
}  # fmt: skip

_COMPARE = {exp.EQ: "=", exp.NEQ: "<>", exp.GT: ">", exp.GTE: ">=", exp.LT: "<", exp.LTE: "<="}
_ARITHMETIC = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*", exp.Div: "/", exp.Mod: "%"}
_BITWISE = {exp.BitwiseAnd: "&", exp.BitwiseOr: "|", exp.BitwiseXor: "^"}
_UNITS = {
    "yy": "year", "yyyy": "year", "qq": "quarter", "q": "quarter", "mm": "month", "m": "month", "dy": "dayofyear",
    "y": "dayofyear", "dd": "day", "d": "day", "wk": "week", "ww": "week", "dw": "weekday", "w": "weekday",
    "hh": "hour",
    "mi": "minute", "n": "minute", "ss": "second", "s": "second", "ms": "millisecond", "mcs": "microsecond",
    "ns": "nanosecond", "iso_week": "iso_week", "isowk": "iso_week", "isoww": "iso_week",
}  # fmt: skip
_DIFF_UNITS = frozenset(
    ["year", "quarter", "month", "week", "day", "hour", "minute", "second", "millisecond", "microsecond", "nanosecond"]
)
_AGGREGATES = frozenset(["count", "count_big", "sum", "avg", "min", "max", "stdev", "stdevp", "var", "varp"])
_RANKING = frozenset(
    [
        "row_number",
        "rank",
        "dense_rank",
        "ntile",
        "lag",
        "lead",
        "first_value",
        "last_value",
        "percent_rank",
        "cume_dist",
    ]
)


def parse(sql: str) -> list[exp.Expr]:
    """The statements of a batch; 102 when sqlglot cannot read it."""
    # sqlglot takes CLUSTERED on table constraints only; it changes nothing here.
    if re.match(r"\s*(create|alter)\s+table\b", sql, re.I):
        sql = re.sub(r"\b(primary\s+key|unique)\s+(?:non)?clustered\b", r"\1", sql, flags=re.I)
    try:
        parser = Dialect().parser(error_level=ErrorLevel.RAISE)
        return [s for s in parser.parse(Dialect().tokenize(sql), sql) if s is not None]
    except (ParseError, TokenError) as e:
        raise SqlError(102, f"Incorrect syntax (as far as the stand-in can read T-SQL): {_plain(e)}", 15) from None


def _plain(error: Exception) -> str:
    """sqlglot's message without the codes that underline on a terminal."""
    return re.sub(r"\x1b[^m]*m", "", str(error))[:300]


def unit_of(node: exp.Expr) -> str:
    name = node.name.lower()
    return _UNITS.get(name, name)


def table_name(node: exp.Table, catalog: Catalog) -> tuple[str, str]:
    """Schema and name of a table reference; another database than the current one is refused."""
    if node.catalog and node.catalog.lower() != catalog.database.lower():
        raise cannot("read across databases")
    if not isinstance(node.this, exp.Identifier):
        raise cannot(f"use {node.sql('tsql')} as a table")
    if node.this.args.get("temporary") or node.name.startswith("#"):
        raise cannot("keep temporary tables")
    return node.db or "dbo", node.name


def _listed(values: list[str]) -> str:
    """The values of an IN. Parameters that are all converted alike are converted in one place: DuckDB plans it once."""
    shapes = {re.sub(r"\$p\d+", "u.v", value) for value in values}
    parameters = [found[0] for value in values if len(found := re.findall(r"\$p\d+", value)) == 1]
    if len(values) < 3 or len(shapes) > 1 or len(parameters) < len(values):
        return ", ".join(values)
    return f"SELECT {shapes.pop()} FROM (SELECT unnest([{', '.join(parameters)}]) AS v) AS u"


class Compiler:
    """Compiles one statement. `inferred` collects the types that parameters of unknown type turned out to need."""

    def __init__(self, catalog: Catalog, params: dict[str, tuple[int, SqlType]]) -> None:
        self.catalog, self.params = catalog, params
        self.inferred: dict[int, SqlType] = {}
        self.used: set[int] = set()
        self.clock = False

    # ---- queries

    def query(self, node: exp.Expr, scope: Scope | None = None) -> tuple[str, list[Output]]:
        """A SELECT, UNION or parenthesised query: DuckDB's text and the columns."""
        scope = Scope(scope)
        prefix = self.with_clause(node, scope)
        if isinstance(node, exp.Subquery):
            if any(node.args.get(k) for k in ("joins", "pivots", "sample")):
                raise cannot("join a parenthesised query")
            inner, columns = self.query(node.this, scope)
            body = f"({inner})"
        elif isinstance(node, exp.SetOperation):
            body, columns = self.set_operation(node, scope)
        elif isinstance(node, exp.Select):
            return self.select(node, scope, prefix)
        elif isinstance(node, exp.Values):
            body, columns = self.values(node, scope)
        else:
            raise cannot(f"run {type(node).__name__} as a query")
        scope.aliases = {c.name.lower(): c.type for c in columns}
        return prefix + body + self.tail(node, scope), columns

    def with_clause(self, node: exp.Expr, scope: Scope) -> str:
        clause = node.args.get("with_")
        if not clause:
            return ""
        parts, recursive = [], False
        for cte in clause.expressions:
            name, names = cte.alias, [c.name for c in cte.args["alias"].columns] if cte.args.get("alias") else []
            own = any(t.name.lower() == name.lower() and not t.db for t in cte.this.find_all(exp.Table))
            if own and isinstance(cte.this, exp.Union):
                recursive = True
                _, first = self.query(cte.this.left, scope)
                scope.ctes[name.lower()] = [
                    Output(n, c.type) for n, c in zip(names or [c.name for c in first], first, strict=True)
                ]
            sql, columns = self.query(cte.this, scope)
            names = names or [c.name for c in columns]
            scope.ctes[name.lower()] = [Output(n, c.type) for n, c in zip(names, columns, strict=True)]
            parts.append(f"{quote(name)}({', '.join(map(quote, names))}) AS ({sql})")
        return f"WITH {'RECURSIVE ' if recursive else ''}{', '.join(parts)} "

    def set_operation(self, node: exp.SetOperation, scope: Scope) -> tuple[str, list[Output]]:
        left, a = self.query(node.left, scope)
        right, b = self.query(node.right, scope)
        if len(a) != len(b):
            raise SqlError(205, "All queries combined using a UNION, INTERSECT or EXCEPT operator must have an "
                                "equal number of expressions in their target lists.")  # fmt: skip
        columns = [Output(x.name, unify([x.type, y.type])) for x, y in zip(a, b, strict=True)]
        word = {exp.Union: "UNION", exp.Except: "EXCEPT", exp.Intersect: "INTERSECT"}[type(node)]
        word += "" if node.args.get("distinct") else " ALL"
        return f"{self.side(left, a, columns)} {word} {self.side(right, b, columns)}", columns

    def side(self, sql: str, have: list[Output], want: list[Output]) -> str:
        names = [f"c{i}" for i in range(len(have))]
        items = ", ".join(
            f"{cast(Value(n, h.type), w.type).sql} AS {quote(w.name or n)}"
            for n, h, w in zip(names, have, want, strict=True)
        )
        return f"(SELECT {items} FROM ({sql}) AS u({', '.join(names)}))"

    def values(self, node: exp.Values, scope: Scope) -> tuple[str, list[Output]]:
        rows = [[self.value(e, scope) for e in row.expressions] for row in node.expressions]
        types = [unify([row[i].type for row in rows]) for i in range(len(rows[0]))]
        text = ", ".join("(" + ", ".join(cast(v, t).sql for v, t in zip(row, types, strict=True)) + ")" for row in rows)
        return f"VALUES {text}", [Output(f"col{i}", t) for i, t in enumerate(types)]

    def select(self, node: exp.Select, scope: Scope, prefix: str) -> tuple[str, list[Output]]:
        for key in ("into", "for_", "pivots", "qualify", "windows", "hint", "laterals", "connect"):
            if node.args.get(key):
                raise cannot(f"run SELECT with {key.strip('_').upper()}")
        source = self.from_clause(node, scope)
        where = f" WHERE {self.predicate(node.args['where'].this, scope)}" if node.args.get("where") else ""
        items: list[tuple[str, Output]] = []
        for projection in node.expressions:
            items += self.projection(projection, scope)
        grouped: list[str] = []
        if group := node.args.get("group"):
            if any(group.args.get(k) for k in ("rollup", "cube", "grouping_sets", "totals")):
                raise cannot("group by ROLLUP, CUBE or GROUPING SETS")
            for by in (self.value(e, scope) for e in group.expressions):
                plain = [i for i, (sql, _) in enumerate(items) if sql == by.sql]
                elsewhere = any(by.sql in sql for i, (sql, _) in enumerate(items) if i not in plain)
                if by.type.name in TEXT and not elsewhere and not (node.args.get("having") or node.args.get("order")):
                    # trailing blanks make no group of their own; one of its values stands for a group
                    for i in plain:
                        items[i] = (f"min({by.sql})", items[i][1])
                    grouped.append(f"rtrim({by.sql})")
                else:
                    grouped.append(by.sql)
        distinct = "DISTINCT " if node.args.get("distinct") else ""
        listed = ", ".join(f"{sql} AS {quote(o.name or f'_c{i}')}" for i, (sql, o) in enumerate(items))
        body = f"SELECT {distinct}{listed}{source}{where}"
        if grouped:
            body += " GROUP BY " + ", ".join(grouped)
        if node.args.get("having"):
            body += f" HAVING {self.predicate(node.args['having'].this, scope)}"
        columns = [o for _, o in items]
        scope.aliases = {o.name.lower(): o.type for o in columns if o.name}
        return prefix + body + self.tail(node, scope), columns

    def tail(self, node: exp.Expr, scope: Scope) -> str:
        """ORDER BY, TOP, OFFSET and FETCH."""
        out = ""
        if order := node.args.get("order"):
            out += " ORDER BY " + ", ".join(self.ordered(o, scope, top=True) for o in order.expressions)
        if limit := node.args.get("limit"):
            options = limit.args.get("limit_options")
            if options and (options.args.get("percent") or options.args.get("with_ties")):
                raise cannot("run TOP with PERCENT or WITH TIES")
            count = limit.args.get("count") or limit.args.get("expression")
            out += f" LIMIT {cast(self.adopt(self.value(count, scope), BIGINT), BIGINT).sql}"
        if offset := node.args.get("offset"):
            out += f" OFFSET {cast(self.adopt(self.value(offset.expression, scope), BIGINT), BIGINT).sql}"
        return out

    def ordered(self, node: exp.Expr, scope: Scope, *, top: bool = False) -> str:
        inner = node.this if isinstance(node, exp.Ordered) else node
        direction = " DESC NULLS LAST" if node.args.get("desc") else " ASC NULLS FIRST"
        bare = inner.this if isinstance(inner, exp.Collate) else inner
        if top and isinstance(bare, exp.Column) and not bare.table and bare.name.lower() in scope.aliases:
            value = Value(quote(bare.name), scope.aliases[bare.name.lower()])
            return (
                convert.sort_key(
                    value._replace(exact=self.is_exact(inner)) if isinstance(inner, exp.Collate) else value
                )
                + direction
            )
        if top and isinstance(inner, exp.Literal) and not inner.is_string:
            return inner.name + direction
        return convert.sort_key(self.value(inner, scope)) + direction

    def projection(self, node: exp.Expr, scope: Scope) -> list[tuple[str, Output]]:
        if isinstance(node, exp.Star):
            return [pair for s in scope.sources for pair in self.expand(s)]
        if isinstance(node, exp.Column) and isinstance(node.this, exp.Star):
            for s in scope.sources:
                if s.alias.lower() == node.table.lower():
                    return self.expand(s)
            raise SqlError(
                107,
                f"The column prefix '{node.table}' does not match with a table name or alias name used in the query.",
                15,
            )
        inner = node.this if isinstance(node, exp.Alias) else node
        name = node.alias if isinstance(node, exp.Alias) else node.name if isinstance(node, exp.Column) else ""
        value = self.value(inner, scope)
        return [(value.sql, Output(name, value.type))]

    def expand(self, source: Source) -> list[tuple[str, Output]]:
        return [(source.column(c.name), c) for c in source.columns]

    # ---- FROM

    def from_clause(self, node: exp.Expr, scope: Scope) -> str:
        clause = node.args.get("from_")
        if not clause:
            return ""
        text = self.source(clause.this, scope)
        for join in [*(clause.this.args.get("joins") or []), *(node.args.get("joins") or [])]:
            text += self.join(join, scope)
        return f" FROM {text}"

    def join(self, join: exp.Join, scope: Scope) -> str:
        if join.args.get("using") or join.args.get("method"):
            raise cannot("run this kind of join")
        if isinstance(join.this, exp.Lateral):
            word = "INNER" if join.this.args.get("cross_apply") else "LEFT"
            lateral = join.this
            if not isinstance(lateral.this, exp.Subquery):
                raise cannot("APPLY anything but a query")
            sql, columns = self.query(lateral.this.this, scope)
            return f" {word} JOIN LATERAL {self.derived(sql, columns, lateral.args.get('alias'), scope)} ON TRUE"
        text = self.source(join.this, scope)
        for nested in join.this.args.get("joins") or []:
            text += self.join(nested, scope)
        if on := join.args.get("on"):
            side = (join.side or "INNER").upper()
            return f" {side} JOIN {text} ON {self.predicate(on, scope)}"
        return f" CROSS JOIN {text}"

    def source(self, node: exp.Expr, scope: Scope) -> str:
        if isinstance(node, exp.Subquery):
            if isinstance(node.this, exp.Table):
                raise cannot("parenthesise joins")
            sql, columns = self.query(node.this, Scope(scope.parent, ctes=scope.ctes))
            return self.derived(sql, columns, node.args.get("alias"), scope)
        if isinstance(node, exp.Values):
            sql, columns = self.values(node, scope)
            return self.derived(sql, columns, node.args.get("alias"), scope)
        if not isinstance(node, exp.Table):
            raise cannot(f"read from {type(node).__name__}")
        for key in ("pivots", "sample", "version", "when"):
            if node.args.get(key):
                raise cannot(f"read a table with {key.upper()}")
        alias = node.alias or node.name
        if not node.db and (known := scope.cte(node.name.lower())) is not None:
            scope.sources.append(Source(alias, known))
            return f"{quote(node.name)} AS {quote(alias)}"
        schema, name = table_name(node, self.catalog)
        if schema.lower() == "information_schema" and name.lower() in INFORMATION_SCHEMA:
            scope.sources.append(Source(alias, INFORMATION_SCHEMA[name.lower()]))
            return f"ms.info_{name.lower()} AS {quote(alias)}"
        table = self.table(node)
        self.clock |= table.clock
        scope.sources.append(Source(alias, [Output(c.name, c.type) for c in table.columns], table))
        return f"{table.sql} AS {quote(alias)}"

    def table(self, node: exp.Table) -> TableInfo:
        schema, name = table_name(node, self.catalog)
        table = self.catalog.table(schema, name)
        if table is None:
            shown = f"{node.db}.{name}" if node.db else name
            raise SqlError(208, f"Invalid object name '{shown}'.")
        return table

    def derived(self, sql: str, columns: list[Output], alias: exp.TableAlias | None, scope: Scope) -> str:
        if alias is None or not alias.name:
            raise SqlError(102, "Incorrect syntax near ')': a derived table needs an alias.", 15)
        names = [c.name for c in alias.columns] or [c.name for c in columns]
        if len(names) != len(columns):
            raise SqlError(
                8158, f"'{alias.name}' has a different number of columns than were specified in the column list."
            )
        if not all(names):
            raise SqlError(8155, f"No column name was specified for column {names.index('') + 1} of '{alias.name}'.")
        lowered = [n.lower() for n in names]
        for n in names:
            if lowered.count(n.lower()) > 1:
                raise SqlError(8156, f"The column '{n}' was specified multiple times for '{alias.name}'.")
        scope.sources.append(Source(alias.name, [Output(n, c.type) for n, c in zip(names, columns, strict=True)]))
        return f"({sql}) AS {quote(alias.name)}({', '.join(map(quote, names))})"

    # ---- predicates

    def predicate(self, node: exp.Expr, scope: Scope) -> str:
        match node:
            case exp.And() | exp.Or():
                word = "AND" if isinstance(node, exp.And) else "OR"
                return f"({self.predicate(node.left, scope)} {word} {self.predicate(node.right, scope)})"
            case exp.Not():
                return f"(NOT {self.predicate(node.this, scope)})"
            case exp.Paren():
                return f"({self.predicate(node.this, scope)})"
            case exp.Is():
                if not isinstance(node.expression, exp.Null):
                    raise cannot("compare with IS anything but NULL")
                return f"({self.value(node.this, scope).sql} IS NULL)"
            case exp.Exists():
                sql, _ = self.query(node.this, scope)
                return f"EXISTS ({sql})"
            case exp.In():
                return self.membership(node, scope)
            case exp.Between():
                value = self.value(node.this, scope)
                low = self.compare(value, ">=", self.value(node.args["low"], scope))
                return f"({low} AND {self.compare(value, '<=', self.value(node.args['high'], scope))})"
            case exp.Escape():
                return self.like(node.this, scope, node.expression.name)
            case exp.Like():
                return self.like(node, scope, "")
            case exp.EQ() | exp.NEQ() | exp.GT() | exp.GTE() | exp.LT() | exp.LTE():
                if isinstance(node.right, exp.Any | exp.All):
                    raise cannot("compare with ANY or ALL")
                return self.compare(self.value(node.left, scope), _COMPARE[type(node)], self.value(node.right, scope))
        raise SqlError(
            4145,
            f"An expression of non-boolean type specified in a context where a condition is expected, near "
            f"'{node.sql('tsql')[:60]}'.",
            15,
        )

    def compare(self, a: Value, op: str, b: Value) -> str:
        a, b = self.settle(a, b)
        a, b = convert.comparable(a, b)
        return f"({a.sql} {op} {b.sql})"

    def settle(self, a: Value, b: Value) -> tuple[Value, Value]:
        """Gives a parameter of unknown type the type of the other side."""
        return self.adopt(a, b.type), self.adopt(b, a.type)

    def adopt(self, value: Value, t: SqlType) -> Value:
        if value.type.name != "unknown" or value.parameter is None or t.name in ("unknown", "null"):
            return value
        self.inferred.setdefault(value.parameter, t)
        return Value(f"CAST($p{value.parameter} AS {t.duck})", t)

    def membership(self, node: exp.In, scope: Scope) -> str:
        value = self.value(node.this, scope)
        if query := node.args.get("query"):
            sql, columns = self.query(query.this if isinstance(query, exp.Subquery) else query, scope)
            if len(columns) != 1:
                raise SqlError(
                    116,
                    "Only one expression can be specified in the select list when the subquery is not "
                    "introduced with EXISTS.",
                )
            a, b = convert.comparable(self.adopt(value, columns[0].type), Value("q.c0", columns[0].type))
            return f"({a.sql} IN (SELECT {b.sql} FROM ({sql}) AS q(c0)))"
        pairs = [convert.comparable(*self.settle(value, self.value(e, scope))) for e in node.expressions]
        if len({a.sql for a, _ in pairs}) == 1:
            return f"({pairs[0][0].sql} IN ({_listed([b.sql for _, b in pairs])}))"
        return "(" + " OR ".join(f"{a.sql} = {b.sql}" for a, b in pairs) + ")"

    def like(self, node: exp.Expr, scope: Scope, escape: str) -> str:
        value, pattern = self.value(node.this, scope), self.value(node.expression, scope)
        exact = value.exact or pattern.exact
        text = make("nvarchar", -1)
        subject = cast(value, text).sql
        if isinstance(node.expression, exp.Literal | exp.National):
            regex = convert.like_to_regex(node.expression.name, escape)
            return f"regexp_full_match({subject}, {literal(regex)}, '{'s' if exact else 'si'}')"
        if escape:
            raise cannot("run LIKE with ESCAPE on a pattern that is not a literal")
        return f"({subject} {'LIKE' if exact else 'ILIKE'} {cast(self.adopt(pattern, text), text).sql})"

    # ---- values

    def value(self, node: exp.Expr, scope: Scope) -> Value:
        match node:
            case exp.Column():
                return self.column(node, scope)
            case exp.Literal():
                return self.literal(node)
            case exp.National():
                return Value(literal(node.name), SqlType("nvarchar", max(1, len(node.name))))
            case exp.HexString():
                digits = node.name if len(node.name) % 2 == 0 else "0" + node.name
                return Value(f"unhex('{digits}')", SqlType("varbinary", max(1, len(digits) // 2)))
            case exp.Null():
                return Value("NULL", SqlType("null"))
            case exp.Paren():
                inner = self.value(node.this, scope)
                return inner._replace(sql=f"({inner.sql})")
            case exp.Parameter():
                return self.parameter(node)
            case exp.Neg():
                inner = self.value(node.this, scope)
                return Value(f"(-{inner.sql})", inner.type)
            case exp.BitwiseNot():
                inner = self.value(node.this, scope)
                return Value(f"(~{inner.sql})", inner.type)
            case exp.Add() | exp.Sub() | exp.Mul() | exp.Div() | exp.Mod():
                return self.arithmetic(
                    _ARITHMETIC[type(node)], self.value(node.left, scope), self.value(node.right, scope)
                )
            case exp.BitwiseAnd() | exp.BitwiseOr() | exp.BitwiseXor():
                a, b = self.value(node.left, scope), self.value(node.right, scope)
                t = unify([a.type, b.type])
                a, b = cast(a, t), cast(b, t)
                op = _BITWISE[type(node)]
                return Value(f"xor({a.sql}, {b.sql})" if op == "^" else f"({a.sql} {op} {b.sql})", t)
            case exp.Collate():
                inner = self.value(node.this, scope)
                return inner._replace(exact=self.is_exact(node))
            case exp.Cast() | exp.TryCast():
                target = from_node(node.to, 30)
                return self.cast(self.value(node.this, scope), target, 0, isinstance(node, exp.TryCast))
            case exp.Convert():
                style = node.args.get("style")
                number = int(style.name) if isinstance(style, exp.Literal) else 0
                if style is not None and not isinstance(style, exp.Literal):
                    raise cannot("take a style that is not a number")
                target = from_node(node.this, 30)
                return self.cast(self.value(node.expression, scope), target, number, bool(node.args.get("safe")))
            case exp.Case():
                return self.case(node, scope)
            case exp.Subquery() | exp.Select():
                sql, columns = self.query(node.this if isinstance(node, exp.Subquery) else node, scope)
                if len(columns) != 1:
                    raise SqlError(
                        116,
                        "Only one expression can be specified in the select list when the subquery is not "
                        "introduced with EXISTS.",
                    )
                return Value(f"({sql})", columns[0].type)
            case exp.CurrentTimestamp():
                return self.function("getdate", [], scope)
            case exp.Trim():
                inner = self.text(node.this, scope)
                chars = f", {self.text(node.expression, scope).sql}" if node.expression else ", ' '"
                word = {"LEADING": "ltrim", "TRAILING": "rtrim"}.get((node.args.get("position") or "").upper(), "trim")
                return Value(f"{word}({inner.sql}{chars})", convert.variable(inner.type), inner.exact)
            case exp.GroupConcat():
                return self.string_agg(node, scope)
            case exp.Window():
                return self.window(node, scope)
            case exp.AtTimeZone():
                return self.at_time_zone(node, scope)
            case exp.Anonymous():
                return self.function(node.name.lower(), node.expressions, scope)
            case exp.Dot():
                raise cannot(f"call {node.sql('tsql')}")
            case exp.Exists() | exp.EQ() | exp.And() | exp.Or() | exp.Not() | exp.Is() | exp.In():
                raise SqlError(102, "Incorrect syntax: a condition stands where a value is expected.", 15)
        raise cannot(f"compute {type(node).__name__} ({node.sql('tsql')[:60]})")

    def is_exact(self, node: exp.Collate) -> bool:
        name = node.expression.name.lower()
        if name.endswith(("_bin2", "_bin")):
            return True
        if name in ("database_default", "catalog_default") or "_ci_" in name:
            return False
        raise cannot(f"compare by the collation {node.expression.name}")

    def column(self, node: exp.Column, scope: Scope) -> Value:
        name, table = node.name.lower(), node.table.lower()
        schema = node.db.lower()
        level: Scope | None = scope
        while level:
            found, matched = [], False
            for s in level.sources:
                same = s.alias.lower() == table and (not schema or s.table is None or s.table.schema.lower() == schema)
                if table and not same:
                    continue
                matched = True
                found += [(s, c) for c in s.columns if c.name.lower() == name]
            if len(found) > 1:
                raise SqlError(209, f"Ambiguous column name '{node.name}'.")
            if found:
                s, c = found[0]
                return Value(s.column(c.name), c.type)
            if table and matched:
                raise SqlError(207, f"Invalid column name '{node.name}'.")
            level = level.parent
        if table:
            raise SqlError(4104, f'The multi-part identifier "{node.table}.{node.name}" could not be bound.')
        raise SqlError(207, f"Invalid column name '{node.name}'.")

    def literal(self, node: exp.Literal) -> Value:
        if node.is_string:
            return Value(literal(node.name), SqlType("varchar", max(1, len(node.name))))
        text = node.name
        if "e" in text.lower():
            return Value(f"CAST({text} AS DOUBLE)", FLOAT)
        if "." in text:
            whole, fraction = text.split(".")
            digits = max(1, len(whole.lstrip("0")) + len(fraction))
            return Value(
                f"CAST({text} AS DECIMAL({digits},{len(fraction)}))", SqlType("numeric", None, digits, len(fraction))
            )
        if int(text) < 2**31:
            return Value(f"CAST({text} AS INTEGER)", INT)
        return Value(f"CAST({text} AS DECIMAL({len(text)},0))", SqlType("numeric", None, len(text), 0))

    def parameter(self, node: exp.Parameter) -> Value:
        if isinstance(node.this, exp.Parameter):
            return self.global_variable(node.this.name.lower())
        name = node.name.lower()
        if name not in self.params:
            raise SqlError(137, f'Must declare the scalar variable "@{node.name}".', 15)
        number, t = self.params[name]
        self.used.add(number)
        if t.name == "unknown":
            return Value(f"CAST($p{number} AS VARCHAR)", t, parameter=number)
        return Value(f"CAST($p{number} AS {t.duck})", t)

    def global_variable(self, name: str) -> Value:
        known = {
            "dbts": ("CAST(getvariable('ms_dbts') AS BLOB)", SqlType("varbinary", 8)),
            "trancount": ("CAST(getvariable('ms_trancount') AS INTEGER)", INT),
            "rowcount": ("CAST(getvariable('ms_rowcount') AS INTEGER)", INT),
            "identity": ("CAST(getvariable('ms_identity') AS DECIMAL(38,0))", SqlType("numeric", None, 38, 0)),
            "spid": ("CAST(getvariable('ms_spid') AS SMALLINT)", SqlType("smallint")),
            "version": (
                "'Microsoft SQL Server 2022 (the Tidemark stand-in, not the real one) - 16.0.1000.6'",
                SqlType("nvarchar", 300),
            ),
            "servername": ("'STANDIN'", SYSNAME),
        }
        if name not in known:
            raise cannot(f"tell @@{name.upper()}")
        self.clock = True
        return Value(*known[name])

    def cast(self, value: Value, target: SqlType, style: int, safe: bool) -> Value:
        return cast(self.adopt(value, target), target, style=style, safe=safe)

    def arithmetic(self, op: str, a: Value, b: Value) -> Value:
        a, b = self.settle(a, b)
        if (
            op == "+"
            and (a.type.name in TEXT or b.type.name in TEXT)
            and ({a.type.name, b.type.name} <= TEXT | {"null", "unknown"})
        ):
            wide = "n" if {a.type.name, b.type.name} & WIDE else ""
            length = a.type.size + b.type.size
            most = 4000 if wide else 8000
            longest = -1 if -1 in (a.type.length, b.type.length) else min(length, most)
            kind = "char" if a.type.name in ("char", "nchar") and b.type.name in ("char", "nchar") else "varchar"
            return Value(f"({a.sql} || {b.sql})", SqlType(wide + kind, longest), a.exact or b.exact)
        if op == "+" and a.type.name in BINARY and b.type.name in BINARY:
            return Value(f"({a.sql} || {b.sql})", SqlType("varbinary", min(8000, a.type.size + b.type.size)))
        t = unify([a.type, b.type])
        if t.name in ("datetime", "smalldatetime") and op in "+-":
            raise cannot("add numbers to a datetime; use DATEADD")
        if t.name not in NUMBERS and t.name != "null":
            raise SqlError(402, f"The data types {a.type.name} and {b.type.name} are incompatible in the operator.")
        if t.name in FLOATS:
            x, y = cast(a, t).sql, cast(b, t).sql
            call = {"/": f"ms.divide({x}, {y})", "%": f"ms.modulo({x}, {y})"}.get(op, f"({x} {op} {y})")
            return Value(f"CAST({call} AS {t.duck})", t)
        if t.name in INTEGERS or t.name in ("bit", "null"):
            t = INT if t.name in ("bit", "null") else t
            x, y = cast(a, t).sql, cast(b, t).sql
            call = {"/": f"ms.int_divide({x}, {y})", "%": f"ms.modulo({x}, {y})"}.get(op, f"({x} {op} {y})")
            return Value(f"CAST({call} AS {t.duck})", t)
        return self.exact_arithmetic(op, a, b, t)

    def exact_arithmetic(self, op: str, a: Value, b: Value, t: SqlType) -> Value:
        """decimal and money; https://learn.microsoft.com/sql/t-sql/data-types/precision-scale-and-length-transact-sql"""
        a, b = (v if v.type.name in EXACT else cast(v, decimal(*v.type.digits)) for v in (a, b))
        (p1, s1), (p2, s2) = a.type.digits, b.type.digits
        if t.name not in ("money", "smallmoney"):
            if op in "+-":
                t = decimal(max(s1, s2) + max(p1 - s1, p2 - s2) + 1, max(s1, s2))
            elif op == "*":
                t = decimal(p1 + p2 + 1, s1 + s2)
            elif op == "/":
                scale = max(6, s1 + p2 + 1)
                t = decimal(p1 - s1 + s2 + scale, scale)
            else:
                t = decimal(min(p1 - s1, p2 - s2) + max(s1, s2), max(s1, s2))
        if op == "/":
            # DuckDB divides decimals as doubles: exact to some 15 digits.
            return Value(f"CAST(ms.divide({a.sql}, {b.sql}) AS {t.duck})", t)
        if op == "%":
            return Value(f"CAST(ms.modulo({a.sql}, {b.sql}) AS {t.duck})", t)
        if op == "*" and p1 + p2 > 38:
            return Value(f"CAST(CAST({a.sql} AS DOUBLE) * CAST({b.sql} AS DOUBLE) AS {t.duck})", t)
        return Value(f"CAST(({a.sql} {op} {b.sql}) AS {t.duck})", t)

    def case(self, node: exp.Case, scope: Scope) -> Value:
        subject = self.value(node.this, scope) if node.this else None
        conditions, results = [], []
        for branch in node.args["ifs"]:
            if subject:
                conditions.append(self.compare(subject, "=", self.value(branch.this, scope)))
            else:
                conditions.append(self.predicate(branch.this, scope))
            results.append(self.value(branch.args["true"], scope))
        default = node.args.get("default")
        results.append(self.value(default, scope) if default else Value("NULL", SqlType("null")))
        return self.choice(conditions, results)

    def choice(self, conditions: list[str], results: list[Value]) -> Value:
        t = unify([r.type for r in results])
        results = [cast(self.adopt(r, t), t) for r in results]
        whens = " ".join(f"WHEN {c} THEN {r.sql}" for c, r in zip(conditions, results, strict=False))
        return Value(f"(CASE {whens} ELSE {results[-1].sql} END)", t, any(r.exact for r in results))

    def string_agg(self, node: exp.GroupConcat, scope: Scope) -> Value:
        inner, order = node.this, ""
        if isinstance(inner, exp.Order):
            order = " ORDER BY " + ", ".join(self.ordered(o, scope) for o in inner.expressions)
            inner = inner.this
        value = cast(self.value(inner, scope), make("nvarchar", -1))
        separator = self.text(node.args["separator"], scope).sql
        return Value(f"string_agg({value.sql}, {separator}{order})", make("nvarchar", 4000))

    def aggregate(self, name: str, args: list[exp.Expr], scope: Scope) -> tuple[str, SqlType]:
        """An aggregate's call, and the type that its result (after OVER, if there is one) is cast to."""
        distinct = ""
        if len(args) != 1:
            raise SqlError(174, f"The {name} function requires 1 argument(s).", 15)
        arg = args[0]
        if isinstance(arg, exp.Distinct):
            distinct, arg = "DISTINCT ", arg.expressions[0]
        if name in ("count", "count_big"):
            inner = "*" if isinstance(arg, exp.Star) else convert.sort_key(self.value(arg, scope))
            return f"count({distinct}{inner})", INT if name == "count" else BIGINT
        value = self.value(arg, scope)
        t = value.type
        if name in ("min", "max"):
            if t.name == "bit":
                raise SqlError(8117, f"Operand data type bit is invalid for {name} operator.")
            if value.exact:
                return f"decode({name}(encode({value.sql})))", t
            return f"{name}({value.sql})", t
        if t.name not in NUMBERS or t.name == "bit":
            raise SqlError(8117, f"Operand data type {t.name} is invalid for {name} operator.")
        if t.name in INTEGERS:
            result = BIGINT if t.name == "bigint" else INT
            return (f"sum({distinct}{value.sql})" if name == "sum" else f"avg({distinct}{value.sql})"), result
        if t.name in MONEY_TYPES:
            return f"{name}({distinct}{value.sql})", SqlType("money")
        if t.name in FLOATS:
            return f"{name}({distinct}CAST({value.sql} AS DOUBLE))", FLOAT
        scale = t.digits[1] if name == "sum" else max(6, t.digits[1])
        return f"{name}({distinct}{value.sql})", decimal(38, scale)

    def finish_aggregate(self, name: str, call: str, t: SqlType) -> Value:
        if name == "avg" and t.name in INTEGERS:
            return Value(f"CAST(trunc({call}) AS {t.duck})", t)
        if name in ("min", "max"):
            return Value(call, t)
        return Value(f"CAST({call} AS {t.duck})", t)

    def window(self, node: exp.Window, scope: Scope) -> Value:
        if node.args.get("alias") or not isinstance(node.this, exp.Anonymous):
            raise cannot(f"run the window {node.sql('tsql')[:60]}")
        name, args = node.this.name.lower(), node.this.expressions
        over = []
        if partition := node.args.get("partition_by"):
            over.append("PARTITION BY " + ", ".join(convert.sort_key(self.value(e, scope)) for e in partition))
        if order := node.args.get("order"):
            over.append("ORDER BY " + ", ".join(self.ordered(o, scope) for o in order.expressions))
        if spec := node.args.get("spec"):

            def bound(key: str) -> str:
                edge = spec.args.get(key) or "CURRENT ROW"
                text = edge if isinstance(edge, str) else edge.name
                return f"{text} {spec.args.get(key + '_side') or ''}"

            over.append(f"{spec.args['kind']} BETWEEN {bound('start')} AND {bound('end')}")
        clause = f" OVER ({' '.join(over)})"
        if name in _AGGREGATES:
            call, t = self.aggregate(name, args, scope)
            return self.finish_aggregate(name, call + clause, t)
        if name not in _RANKING:
            raise cannot(f"run {name.upper()} as a window function")
        values = [self.value(a, scope) for a in args]
        t = BIGINT if not values or name == "ntile" else values[0].type
        if name in ("percent_rank", "cume_dist"):
            t = FLOAT
        inner = ", ".join(cast(v, t).sql if i == 2 else v.sql for i, v in enumerate(values))
        return Value(f"CAST({name}({inner}){clause} AS {t.duck})", t)

    def at_time_zone(self, node: exp.AtTimeZone, scope: Scope) -> Value:
        zone = node.args["zone"].name.lower()
        if zone not in ("utc", "coordinated universal time"):
            raise cannot("compute with any time zone but UTC")
        value = self.value(node.this, scope)
        target = make("datetimeoffset", value.type.scale if value.type.scale is not None else 7)
        if value.type.name == "datetimeoffset":
            return Value(f"ms.at(({value.sql}).utc, 0)", target)
        return cast(value, target)

    # ---- functions

    def text(self, node: exp.Expr, scope: Scope) -> Value:
        """An argument as text; what is no text converts as CAST would."""
        value = self.value(node, scope)
        if value.type.name in TEXT:
            return value
        return cast(
            self.adopt(value, make("nvarchar", 4000)),
            make("nvarchar", 4000) if value.type.name == "unknown" else make("varchar", 60),
        )

    def moment(self, node: exp.Expr, scope: Scope) -> Value:
        """An argument as a DuckDB TIMESTAMP (UTC of a datetimeoffset), for date arithmetic."""
        value = self.value(node, scope)
        if value.type.name == "datetimeoffset":
            return Value(f"({value.sql}).utc", make("datetime2"))
        if value.type.name in ("datetime", "datetime2", "smalldatetime"):
            return value
        return cast(self.adopt(value, make("datetime2")), make("datetime2"))

    def function(self, name: str, args: list[exp.Expr], scope: Scope) -> Value:
        if name in _AGGREGATES:
            return self.finish_aggregate(name, *self.aggregate(name, args, scope))
        handler = FUNCTIONS.get(name)
        if handler is None:
            raise SqlError(195, f"'{name}' is not a built-in function name that the stand-in knows.", 15)
        try:
            return handler(self, args, scope)
        except IndexError:
            raise SqlError(174, f"The {name} function was given too few arguments.", 15) from None


MONEY_TYPES = ("money", "smallmoney")
Handler = Callable[[Compiler, list[exp.Expr], Scope], Value]


def _texts(template: str, result: Callable[[Value], SqlType] | SqlType | None = None) -> Handler:
    """A function of text (the first argument) and integers; the result is the first argument's type, unpadded."""

    def call(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
        first = c.text(args[0], scope)
        rest = [
            v.sql if (v := c.value(a, scope)).type.name in TEXT else cast(c.adopt(v, INT), BIGINT).sql for a in args[1:]
        ]
        t = result if isinstance(result, SqlType) else result(first) if result else convert.variable(first.type)
        return Value(template.format(first.sql, *rest), t, first.exact)

    return call


def _number(template: str, result: SqlType | None = None) -> Handler:
    def call(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
        values = [c.value(a, scope) for a in args]
        first = values[0] if values[0].type.name in NUMBERS else cast(values[0], FLOAT)
        t = result or first.type
        sql = template.format(first.sql, *(v.sql for v in values[1:]))
        return Value(f"CAST({sql} AS {t.duck})", t)

    return call


def _whole(template: str) -> Handler:
    def call(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
        value = c.value(args[0], scope)
        t = decimal(value.type.digits[0], 0) if value.type.name in ("decimal", "numeric") else value.type
        return Value(f"CAST({template.format(value.sql)} AS {t.duck})", t)

    return call


def _clock(sql: str, t: SqlType) -> Handler:
    def call(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
        c.clock = True
        return Value(sql, t)

    return call


def _coalesce(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    values = [c.value(a, scope) for a in args]
    t = unify([v.type for v in values])
    inner = ", ".join(cast(c.adopt(v, t), t).sql for v in values)
    return Value(f"coalesce({inner})", t, any(v.exact for v in values))


def _isnull(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    a, b = c.settle(c.value(args[0], scope), c.value(args[1], scope))
    t = b.type if a.type.name in ("null", "unknown") else a.type
    return Value(f"coalesce({cast(a, t).sql}, {cast(b, t).sql})", t, a.exact)


def _nullif(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    a, b = c.value(args[0], scope), c.value(args[1], scope)
    return Value(f"(CASE WHEN {c.compare(a, '=', b)} THEN NULL ELSE {a.sql} END)", a.type, a.exact)


def _iif(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    return c.choice([c.predicate(args[0], scope)], [c.value(args[1], scope), c.value(args[2], scope)])


def _concat(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    values = [c.text(a, scope) for a in args]
    wide = any(v.type.name in WIDE for v in values)
    length = (
        -1
        if any(v.type.length == -1 for v in values)
        else min(4000 if wide else 8000, sum(v.type.size for v in values))
    )
    inner = " || ".join(f"coalesce({v.sql}, '')" for v in values)
    return Value(f"({inner})", SqlType("nvarchar" if wide else "varchar", length))


def _left(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    value = c.text(args[0], scope)
    count = cast(c.value(args[1], scope), INT).sql
    return Value(f"left({value.sql}, {count})", convert.variable(value.type), value.exact)


def _right(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    value = c.text(args[0], scope)
    return Value(
        f"right({value.sql}, {cast(c.value(args[1], scope), INT).sql})", convert.variable(value.type), value.exact
    )


def _substring(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    value = c.value(args[0], scope)
    start, count = cast(c.value(args[1], scope), INT).sql, cast(c.value(args[2], scope), INT).sql
    if value.type.name in BINARY:
        return Value(
            f"unhex(substr(hex({value.sql}), 2 * {start} - 1, 2 * {count}))", SqlType("varbinary", value.type.length)
        )
    value = c.text(args[0], scope)
    # A start below 1 counts off the length, as in T-SQL; DuckDB would count from the end.
    return Value(
        f"substr({value.sql}, greatest({start}, 1), greatest(0, {count} + least({start} - 1, 0)))",
        convert.variable(value.type),
        value.exact,
    )


def _datalength(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    value = c.value(args[0], scope)
    if value.type.name in BINARY:
        return Value(f"CAST(octet_length({value.sql}) AS INTEGER)", INT)
    return Value(f"CAST(length({c.text(args[0], scope).sql}) * {2 if value.type.name in WIDE else 1} AS INTEGER)", INT)


def _round(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    value = c.value(args[0], scope)
    value = value if value.type.name in NUMBERS else cast(value, FLOAT)
    word = "round"
    if len(args) > 2 and args[2].name != "0":
        if args[1].name != "0":
            raise cannot("truncate with ROUND to digits")
        return Value(f"CAST(trunc({value.sql}) AS {value.type.duck})", value.type)
    return Value(
        f"CAST({word}({value.sql}, {cast(c.value(args[1], scope), INT).sql}) AS {value.type.duck})", value.type
    )


def _dateadd(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    unit, value = unit_of(args[0]), c.value(args[2], scope)
    count = f"CAST(trunc({cast(c.adopt(c.value(args[1], scope), INT), BIGINT).sql}) AS BIGINT)"
    steps = {
        "year": "to_years(CAST({} AS INTEGER))", "quarter": "to_months(CAST(3 * {} AS INTEGER))", "month":
            "to_months(CAST({} AS INTEGER))",
        "day": "to_days(CAST({} AS INTEGER))", "dayofyear": "to_days(CAST({} AS INTEGER))", "weekday":
            "to_days(CAST({} AS INTEGER))",
        "week": "to_days(CAST(7 * {} AS INTEGER))", "hour": "to_hours({})", "minute": "to_minutes({})",
        "second": "to_seconds({})",
        "millisecond": "to_milliseconds({})", "microsecond": "to_microseconds({})", "nanosecond":
            "to_microseconds({} // 1000)",
    }  # fmt: skip
    if unit not in steps:
        raise SqlError(155, f"'{args[0].name}' is not a recognized dateadd option.", 15)
    step = steps[unit].format(count)
    if value.type.name == "datetimeoffset":
        return Value(f"ms.at(({value.sql}).utc + {step}, ({value.sql}).m)", value.type)
    if value.type.name in ("date", "time"):
        return Value(f"CAST({value.sql} + {step} AS {value.type.duck})", value.type)
    if value.type.name not in ("datetime2", "smalldatetime", "datetime"):
        value = cast(c.adopt(value, SqlType("datetime")), SqlType("datetime"))
    if value.type.name == "datetime":
        return Value(f"ms.datetime({value.sql} + {step})", value.type)
    return Value(f"({value.sql} + {step})", value.type)


def _datediff(result: SqlType) -> Handler:
    def call(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
        unit = unit_of(args[0])
        a, b = c.moment(args[1], scope).sql, c.moment(args[2], scope).sql
        if unit == "week":
            # Weeks turn on Sunday whatever DATEFIRST says: https://learn.microsoft.com/sql/t-sql/functions/datediff-transact-sql
            a, b = f"({a} + INTERVAL 1 DAY)", f"({b} + INTERVAL 1 DAY)"
        unit = {"dayofyear": "day", "weekday": "day"}.get(unit, unit)
        if unit not in _DIFF_UNITS:
            raise SqlError(155, f"'{args[0].name}' is not a recognized datediff option.", 15)
        sql = f"date_diff('{unit}', {a}, {b})" if unit != "nanosecond" else f"1000 * date_diff('microsecond', {a}, {b})"
        if result.name == "int":
            sql = f"ms.datediff_int({sql})"
        return Value(f"CAST({sql} AS {result.duck})", result)

    return call


def _datepart(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    unit = unit_of(args[0])
    value = c.value(args[1], scope)
    moment = f"ms.local({value.sql})" if value.type.name == "datetimeoffset" else c.moment(args[1], scope).sql
    if unit == "weekday":
        return Value(f"CAST(dayofweek({moment}) + 1 AS INTEGER)", INT)
    if unit == "week":
        raise cannot("number weeks by DATEFIRST; use iso_week")
    seconds = {"millisecond": " % 1000", "microsecond": " % 1000000"}.get(unit, "")
    part = {"iso_week": "week", "dayofyear": "doy"}.get(unit, unit)
    return Value(f"CAST(date_part('{part}', {moment}){seconds} AS INTEGER)", INT)


def _part(unit: str) -> Handler:
    return lambda c, args, scope: _datepart(c, [exp.column(unit), args[0]], scope)


def _eomonth(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    months = f" + to_months({cast(c.value(args[1], scope), INT).sql})" if len(args) > 1 else ""
    return Value(f"last_day({c.moment(args[0], scope).sql}{months})", SqlType("date"))


def _switchoffset(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    value = cast(c.value(args[0], scope), make("datetimeoffset"))
    t = value.type
    return Value(f"ms.at(({value.sql}).utc, {_minutes(c, args[1], scope)})", t)


def _todatetimeoffset(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    value, minutes = c.value(args[0], scope), _minutes(c, args[1], scope)
    t = make(
        "datetimeoffset", value.type.scale if value.type.name == "datetime2" and value.type.scale is not None else 7
    )
    return Value(f"ms.at({cast(value, make('datetime2')).sql} - to_minutes({minutes}), {minutes})", t)


def _minutes(c: Compiler, node: exp.Expr, scope: Scope) -> str:
    value = c.value(node, scope)
    return f"ms.parse_offset({value.sql})" if value.type.name in TEXT else cast(value, INT).sql


def _hashbytes(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    algorithm = args[0].name.upper()
    known = {"MD5": ("md5", 16), "SHA1": ("sha1", 20), "SHA2_256": ("sha256", 32)}
    if algorithm not in known:
        raise cannot(f"hash by {algorithm}")
    function, _ = known[algorithm]
    value = c.value(args[1], scope)
    raw = value if value.type.name in BINARY else cast(value, make("varbinary", 8000))
    return Value(f"unhex({function}({raw.sql}))", SqlType("varbinary", 8000))


def _charindex(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    start = cast(c.value(args[2], scope), INT).sql if len(args) > 2 else "1"
    return Value(
        f"CAST(ms.char_index({c.text(args[0], scope).sql}, {c.text(args[1], scope).sql}, greatest({start}, 1)) "
        f"AS INTEGER)",
        INT,
    )


def _replace(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    value, old, new = (c.text(a, scope) for a in args)
    t = SqlType(
        "nvarchar" if value.type.name in WIDE else "varchar",
        -1 if value.type.length == -1 else 4000 if value.type.name in WIDE else 8000,
    )
    # By the default collation, REPLACE ignores case as comparisons do; the pattern is quoted by \Q...\E.
    return Value(
        f"regexp_replace({value.sql}, '\\Q' || {old.sql} || '\\E', replace({new.sql}, '\\', '\\\\'), "
        f"'{'g' if value.exact else 'gi'}')",
        t,
    )


def _server_property(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    known = {"servername": "STANDIN", "machinename": "STANDIN", "productversion": "16.0.1000.6", "edition":
        "Developer Edition (64-bit)",
             "engineedition": "3", "productlevel": "RTM", "collation": "SQL_Latin1_General_CP1_CI_AS"}  # fmt: skip
    text = known.get(args[0].name.lower())
    return Value(literal(text) if text else "NULL", SqlType("sql_variant"))


def _database_property(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    known = {
        "updateability": "READ_WRITE",
        "status": "ONLINE",
        "collation": "SQL_Latin1_General_CP1_CI_AS",
        "recovery": "SIMPLE",
    }
    text = known.get(args[1].name.lower())
    return Value(literal(text) if text else "NULL", SqlType("sql_variant"))


def _db_name(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    if args:
        raise cannot("name databases by number")
    return Value(literal(c.catalog.database), SYSNAME)


def _has_perms(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    securable, kind, permission = (c.text(arg, scope).sql for arg in args)
    return Value(f"ms.has_perms(getvariable('ms_permissions'), {securable}, {kind}, {permission})", INT)


def _object_id(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    parts = [p.strip('[]"') for p in args[0].name.split(".")]
    schema, name = (parts[-2] if len(parts) > 1 else "dbo"), parts[-1]
    kinds = {"U": " AND kind = 'BASE TABLE'", "V": " AND kind = 'VIEW'"}
    only = kinds[args[1].name.upper()] if len(args) > 1 and args[1].name.upper() in kinds else ""
    return Value(
        f"(SELECT min(object_id) FROM ms.objects WHERE schema_name = {literal(schema)} AND name = "
        f"{literal(name)}{only})",
        INT,
    )


def _schema_id(c: Compiler, args: list[exp.Expr], scope: Scope) -> Value:
    return Value(
        f"(SELECT min(CAST(oid AS INTEGER)) FROM duckdb_schemas() WHERE schema_name = {literal(args[0].name)} "
        f"AND NOT internal)",
        INT,
    )


FUNCTIONS: dict[str, Handler] = {
    "coalesce": _coalesce, "isnull": _isnull, "nullif": _nullif, "iif": _iif,
    "lower": _texts("lower({0})"), "upper": _texts("upper({0})"), "ltrim": _texts("ltrim({0}, ' ')"),
    "rtrim": _texts("rtrim({0}, ' ')"), "reverse": _texts("reverse({0})"),
    "replicate": _texts("repeat({0}, {1})", SqlType("nvarchar", 4000)), "unicode": _texts("unicode({0})", INT),
    "char": _number("chr({0})", SqlType("char", 1)), "nchar": _number("chr({0})", SqlType("nchar", 1)),
    "len": _texts("CAST(length(rtrim({0}, ' ')) AS INTEGER)", INT), "datalength": _datalength, "left": _left,
    "right": _right,
    "substring": _substring, "replace": _replace, "charindex": _charindex, "concat": _concat,
    "abs": _number("abs({0})"), "floor": _whole("floor({0})"), "ceiling": _whole("ceil({0})"),
    "round": _round, "power": _number("pow({0}, {1})"), "sqrt": _number("sqrt({0})", FLOAT),
    "sysutcdatetime": _clock(NOW, make("datetime2")), "sysdatetime": _clock(NOW, make("datetime2")),
    "getutcdate": _clock(f"ms.datetime({NOW})", SqlType("datetime")), "getdate": _clock(f"ms.datetime({NOW})",
    SqlType("datetime")),
    "sysdatetimeoffset": _clock(f"ms.at({NOW}, 0)", make("datetimeoffset")),
    "min_active_rowversion": _clock("CAST(getvariable('ms_min_active') AS BLOB)", SqlType("varbinary", 8)),
    "scope_identity": _clock("CAST(getvariable('ms_identity') AS DECIMAL(38,0))", SqlType("numeric", None, 38, 0)),
    "dateadd": _dateadd, "datediff": _datediff(INT), "datediff_big": _datediff(BIGINT), "datepart": _datepart,
    "year": _part("year"), "month": _part("month"), "day": _part("day"), "eomonth": _eomonth,
    "switchoffset": _switchoffset, "todatetimeoffset": _todatetimeoffset,
    "newid": lambda c, args, scope: Value("uuid()", SqlType("uniqueidentifier")),
    "hashbytes": _hashbytes, "db_name": _db_name, "serverproperty": _server_property,
    "databasepropertyex": _database_property, "has_perms_by_name": _has_perms,
    "object_id": _object_id, "schema_id": _schema_id,
    "suser_sname": lambda c, args, scope: Value("'sa'", SYSNAME), "user_name": lambda c, args, scope: Value("'dbo'",
    SYSNAME),
}  # fmt: skip
