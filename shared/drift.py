"""Drift: the type that a column first had is the type it keeps.

    types.json   {sync: {"kind": ..., "columns": {column: type}, "disguised": {column: what it holds},
                         "unsure": {text column: what its first values may be}}}

Customer.io takes any value for any attribute, and segments and campaign triggers that stood on the old type then
match nobody, silently. So the types are recorded when a view is first read, over all syncs, and a column whose type is
another now is not sent until a person has looked; nothing else stops. Where it is a column that the contract names (an
id, a time, the cursor) the whole sync stops.

A text column that holds nothing but dates, numbers or flags is treated alike: no condition on these would match a text.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import orjson

from shared.errors import NotThere, StateFault, ViewFault
from shared.mapping import PERSON, Mapper
from shared.settings import Settings
from shared.source import Page
from shared.state import Document, State
from shared.syncs import Kind, Sync
from shared.view import Form, View, contract_columns, quote

_NAME = "types.json"
_SAMPLE = 20
_FLAGS = ({"true", "false"}, {"0", "1"}, {"y", "n"}, {"yes", "no"})
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?)?(Z|[+-]\d\d:?\d\d)?")
# neither leading zeros nor more digits than a number has: such texts are codes
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,14})(\.\d+)?")
_CURSOR = "(cursor)"
_PERSON_IDS = frozenset({"customer_id", "primary_customer_id", "secondary_customer_id"})
_ZONED = "timestamp with a zone"

_TYPES = {
    Form.TEXT: "text",
    Form.WHOLE: "number",
    Form.LONG: "number",
    Form.DECIMAL: "number",
    Form.NUMBER: "number",
    Form.SINGLE: "number",
    Form.FLAG: "true/false",
    Form.WALL_TIME: "timestamp",
    Form.INSTANT: "timestamp",
}
_CONDITIONS = {
    "text": "equals, contains",
    "number": "is greater or less than",
    "true/false": "is true, is false",
    "timestamp": "is a timestamp, within the past X days",
    "nested": "on what is inside",
}
_CONVERSIONS = {"flags": "bit", "dates": "datetime2", "numbers": "decimal(18,2)"}


@dataclass
class _Types:
    """What is recorded of one sync."""

    kind: Kind
    columns: dict[str, str] = field(default_factory=dict)
    disguised: dict[str, str] = field(default_factory=dict)
    unsure: dict[str, "_Look"] = field(default_factory=dict)


@dataclass
class _Look:
    """What the first values of a text column may be in disguise; 20 of them decide."""

    seen: int = 0
    flags: list[str] | None = field(default_factory=list)  # those seen, while they are a pair of flags
    dates: bool = True
    numbers: bool = True

    def add(self, values: list[str]) -> None:
        self.seen += len(values)
        self.dates = self.dates and all(map(_DATE.fullmatch, values))
        self.numbers = self.numbers and all(map(_NUMBER.fullmatch, values))
        if self.flags is not None:
            seen = {*self.flags, *(value.lower() for value in values)}
            self.flags = sorted(seen) if any(seen <= pair for pair in _FLAGS) else None

    def verdict(self) -> str | None:
        """What the column is; "" for a text, None as long as that is open."""
        if not (self.dates or self.numbers or self.flags is not None):
            return ""
        if self.seen < _SAMPLE:
            return None
        if self.flags is not None and len(self.flags) == 2:
            return "flags"
        return "dates" if self.dates else "numbers" if self.numbers else ""


_Registry = dict[str, _Types]


def types_of(view: View, settings: Settings) -> dict[str, str]:
    """The type of each column of a view, and of its cursor: what drifts when it changes.

    Decimals and integers are one type, as they are for Customer.io. Of the contract's own columns those are told apart
    that SQL Server orders or writes differently: ids, and times with and without a zone.
    """
    ids = set(contract_columns(view.sync.kind))
    types = {}
    for one in view.fields:
        if one.name.lower() in ids and view.field_type(one) == "uniqueidentifier":
            types[one.name] = "uniqueidentifier"
        elif one.name.lower() in ids and one.form is Form.INSTANT:  # without a zone it would be another moment
            types[one.name] = _ZONED
        elif one.form is Form.TEXT and one.name in settings.json_columns:
            types[one.name] = "nested"
        else:
            types[one.name] = _TYPES[one.form]
    zoned = view.cursor.type == "datetimeoffset"
    types[_CURSOR] = "row version" if view.by_row_version else _ZONED if zoned else "timestamp"
    return types


class Drift:
    """Watches one view. `withheld` are the columns that are not sent, and why.

    Raises ViewFault where a column of the contract has another type, and StateFault where the record is damaged, or
    gone though the view was read before (`first` False). `trial`: nothing is recorded, because the sync is not live,
    and its view may still change.
    """

    def __init__(self, state: State, view: View, settings: Settings, *, first: bool, trial: bool = False) -> None:
        self._document = Document(state.container, _NAME)
        self._trial = trial
        self._view = view
        self._settings = settings
        self._sync = view.sync
        self._types = types_of(view, settings)
        registry = _parse(self._document.read())
        if view.sync.name not in registry and not first:
            raise StateFault(
                f"{_NAME} knows no types of {view.sync.name}, which was read before. Nothing was sent. Restore an"
                " earlier version of that blob."
            )
        known = registry.get(view.sync.name, _Types(view.sync.kind))
        self._notes: list[str] = []
        self.withheld: dict[str, str] = {}
        self.without: set[str] = set()
        self.columns = self._types.keys()
        self._new = [name for name in self._types if name not in known.columns]
        self._unsure = {name: look for name, look in known.unsure.items() if self._types.get(name) == "text"}
        self._unsure |= {name: _Look() for name in self._new if _may_be_disguised(self._sync.kind, name, self._types)}
        self._recorded = not self._new and not known.disguised
        self._compare(known)
        for name, what in known.disguised.items():
            if self._types.get(name) == "text":
                self._new.remove(name)
                self._unsure.pop(name, None)
                self.withheld[name] = self._say_disguised(name, what)
        self._refuse_other_types(registry)
        self._refuse_other_ids(registry)

    def _compare(self, known: _Types) -> None:
        contract = {*contract_columns(self._sync.kind), _CURSOR}
        for name, was in known.columns.items():
            now = self._types.get(name)
            if now == was:
                continue
            if name.lower() in contract and now is not None:
                raise ViewFault(self._say_contract(name, was, now))
            accept = self._how_to_accept(name)
            conditions = f"{_subject(self._sync, name)} ({_CONDITIONS.get(was, 'any')})"
            self.without.add(name)
            if now is None:
                self._notes.append(
                    f"Column {name} of {self._view.name} is gone, and Customer.io keeps the last values: bring it back;"
                    f" or re-check the conditions on {conditions} and {accept}."
                )
            else:
                self.withheld[name] = (
                    f"Column {name} of {self._view.name} was {was} and is {now} now: it is not sent. Convert it back in"
                    f" the view; or, if it is meant, re-check the conditions on {conditions} and {accept}."
                )

    def look(self, page: Page) -> bool:
        """See a page before it is mapped, and record the types of new columns. Whether `withheld` grew."""
        found = {}
        looked = bool(self._unsure)
        for name, values in _texts(self._view, page, self._unsure):
            self._unsure[name].add(values)
            if (what := self._unsure[name].verdict()) is not None:
                del self._unsure[name]
                if what:
                    found[name] = what
        self.withheld.update({name: self._say_disguised(name, what) for name, what in found.items()})
        self._new = [name for name in self._new if name not in found]
        if (looked or not self._recorded) and not self._trial:
            self._record(found)
        return bool(found)

    def settle(self) -> None:
        """Record the types though there was no page: an empty view has types too."""
        if not self._recorded:
            self._record({})

    def mapper(self) -> Mapper:
        """The mapper of what is sent: without the columns that are withheld now."""
        return Mapper(self._view, self._settings, {name.lower() for name in self.withheld})

    def notes(self) -> Iterator[str]:
        """What a person should know, and do."""
        yield from self.withheld.values()
        yield from self._notes

    def _record(self, disguised: dict[str, str]) -> None:
        told: list[str] = []

        def change(registry: _Registry) -> None:
            self._refuse_other_types(registry)
            known = registry.setdefault(self._sync.name, _Types(self._sync.kind))
            told[:] = [
                f"Column {name} of {self._view.name} is new ({self._types[name]}) and is sent from now on, with each"
                " row that changes."
                for name in self._new
                if known.columns
            ]
            known.columns.update({name: self._types[name] for name in self._new})
            for name in disguised:
                known.columns.pop(name, None)
            kept = {name: what for name, what in known.disguised.items() if name in self.withheld}
            known.disguised = {**kept, **disguised}
            known.unsure = self._unsure

        _change(self._document, change)
        self._recorded = True
        self._new = []
        self._notes += told

    def _refuse_other_types(self, registry: _Registry) -> None:
        """A new column whose attribute another sync sends with another type is not sent."""
        for name in list(self._new):
            if (attribute := _attribute(self._sync.kind, name)) is None:
                continue
            for other, column, of_type in _senders(registry, attribute):
                if other != self._sync.name and of_type != self._types[name]:
                    self._new.remove(name)
                    self.withheld[name] = (
                        f"Column {name} of {self._view.name} is {self._types[name]}, but the attribute {attribute} is"
                        f" {of_type} in {column} of {other}: it is not sent from here. Give it one type in both views;"
                        f" or {self._how_to_accept(name)}."
                    )
                    break

    def _refuse_other_ids(self, registry: _Registry) -> None:
        """Raise ViewFault where a person's id is a uniqueidentifier here and a text there: their cases may differ."""
        for name in self._new:
            for other, types in registry.items():
                for column, of_type in types.columns.items():
                    ids = {name.lower(), column.lower()} <= _PERSON_IDS
                    if ids and {self._types[name], of_type} == {"uniqueidentifier", "text"}:
                        raise ViewFault(
                            f"Column {name} of {self._view.name} is {self._types[name]}, but {column} of {other} is"
                            f" {of_type}: a uniqueidentifier is sent in lower case, and an id that differs in case is"
                            " another person. Nothing was sent. Give both views one type."
                        )

    def _how_to_accept(self, column: str) -> str:
        return f'POST /api/syncs/{self._sync.name}/accept with {{"column": "{column}"}}'

    def _say_contract(self, name: str, was: str, now: str) -> str:
        if name == _CURSOR:
            return (
                f"The cursor {self._view.cursor.name} of {self._view.feed} was {was} and is {now} now, so the mark of"
                f" {self._sync.name} cannot be compared with it. Nothing was sent. Convert it back in the view, or set"
                " STATE_CONTAINER to a new container to start afresh."
            )
        return (
            f"Column {name} of {self._view.name} was {was} and is {now} now. Every row depends on it, so"
            f" {self._sync.name} sends nothing. Convert it back in the view; or, if every value is still the same id or"
            f" moment, {self._how_to_accept(name)}."
        )

    def _say_disguised(self, name: str, what: str) -> str:
        return (
            f"Column {name} of {self._view.name} is text but holds only {what}, which no condition on {what} would"
            f" match: it is not sent. Convert it in the view: CAST({quote(name)} AS {_CONVERSIONS[what]}); or, if text"
            f" is meant, {self._how_to_accept(name)}."
        )


def accept(state: State, view: View, settings: Settings, column: str) -> str | None:
    """Record that a column's type of now is meant, for every sync that sends its attribute.

    Returns the type; None where the column is gone, and meant to be. Raises NotThere where nothing is to accept.
    """
    types = types_of(view, settings)
    now = types.get(column)
    sync = view.sync

    def change(registry: _Registry) -> None:
        known = registry.setdefault(sync.name, _Types(sync.kind))
        if column == _CURSOR or column not in {*known.columns, *known.disguised, *types}:
            raise NotThere(f"There is no column {column} in {view.name}, nor was there one.")
        if now is not None and known.columns.get(column) == now:
            raise NotThere(f"Column {column} of {view.name} is {now}, as it was: there is nothing to accept.")
        known.disguised.pop(column, None)
        known.unsure.pop(column, None)
        known.columns.pop(column, None)
        if now is not None:
            known.columns[column] = now
            if (attribute := _attribute(sync.kind, column)) is not None:
                for other, name, _ in list(_senders(registry, attribute)):
                    registry[other].columns[name] = now

    _change(Document(state.container, _NAME), change)
    return now


def _senders(registry: _Registry, attribute: str) -> Iterator[tuple[str, str, str]]:
    """The syncs that send an attribute, each with the column and its type."""
    for sync, types in registry.items():
        for column, of_type in types.columns.items():
            if _attribute(types.kind, column) == attribute:
                yield sync, column, of_type


def _may_be_disguised(kind: Kind, name: str, types: dict[str, str]) -> bool:
    """Whether a text column should rather be something else when it looks like it. An id may look like anything."""
    return types[name] == "text" and name.lower() not in contract_columns(kind) and not name.lower().endswith("_id")


def _texts(view: View, page: Page, names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """The values of some columns of a page, without NULLs."""
    wanted = set(names)
    return [
        (one.name, [str(row[index]).strip() for row in page.rows if row[index] is not None])
        for index, one in enumerate(view.fields, start=2)  # a row starts with cursor and key
        if one.name in wanted
    ]


def _attribute(kind: Kind, column: str) -> str | None:
    """The attribute of a person that a column sets, if any."""
    if column.lower().startswith(PERSON):
        return column[len(PERSON) :]
    return column if kind is Kind.PROFILE and column not in (_CURSOR, "customer_id") else None


def _subject(sync: Sync, column: str) -> str:
    attribute = _attribute(sync.kind, column)
    return f"the attribute {attribute}" if attribute else f"the property {column}"


def _parse(text: bytes | None) -> _Registry:
    try:
        stored = orjson.loads(text or b"{}")
        return {
            sync: _Types(
                Kind(one["kind"]),
                dict(one["columns"]),
                dict(one["disguised"]),
                {name: _Look(**look) for name, look in one["unsure"].items()},
            )
            for sync, one in stored.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StateFault(
            f"{_NAME} is damaged. Nothing was sent. Restore an earlier version of that blob; do not delete it."
        ) from None


def _change(document: Document, change: Callable[[_Registry], None]) -> None:
    def rewrite(text: bytes | None) -> bytes:
        registry = _parse(text)
        change(registry)
        return orjson.dumps(registry, option=orjson.OPT_INDENT_2)

    document.change(rewrite)
