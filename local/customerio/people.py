"""What a workspace holds: people, their attributes with types, events and the activity log.

A store is deterministic: the same operations at the same times give the same people, `cio_id` included. The workspace
relies on that to show the App API an older copy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from local.customerio.contract import Operation

MERGED_EVENTS_SECONDS = 30 * 86_400  # merge moves "about the last 30 days" of events

IdentifierKind = Literal["id", "email", "cio_id"]


@dataclass(slots=True, eq=False)
class Person:
    """A profile. `stamps` holds, per attribute (removed ones too), the unix time of the update that decided it."""

    cio_id: str
    id: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    stamps: dict[str, float] = field(default_factory=dict)
    activities: list[Activity] = field(default_factory=list)

    @property
    def email(self) -> str | None:
        """The address as it was last written."""
        return self.attributes.get("email")

    @property
    def identifiers(self) -> dict[str, str | None]:
        """The three identifiers in the App API's shape."""
        return {"cio_id": self.cio_id, "email": self.email, "id": self.id}


@dataclass(slots=True, eq=False)
class Activity:
    """A line of the activity log; an event when type is `event`, then with its ULID and the attributes as `data`."""

    sequence: int
    type: str
    timestamp: int
    person: Person | None
    name: str | None
    data: dict[str, Any]
    ulid: str | None = None


class Store:
    """People and events of one workspace, changed only by `apply`.

    Without `keeps_log` only events are kept of the activities; the others are just counted.
    """

    def __init__(self, *, keeps_log: bool, email_updates_allowed: bool = False) -> None:
        self.keeps_log = keeps_log
        self.email_updates_allowed = email_updates_allowed
        self.deduplicates = True
        self.activities: list[Activity] = []
        self.activities_by_type: Counter[str] = Counter()
        self.identifies = 0
        self.duplicate_events_dropped = 0
        self.duplicate_events_stored = 0
        self.ignored_suppressed = 0
        self._created = 0
        self._people: dict[str, Person] = {}  # by cio_id
        self._by_id: dict[str, Person] = {}
        self._by_email: dict[str, Person] = {}  # by lower-case address
        self._suppressed: dict[tuple[str, str], frozenset[tuple[str, str]]] = {}
        self._ulids: set[str] = set()
        self._event_ids: set[tuple[str, str]] = set()

    def __len__(self) -> int:
        return len(self._people)

    def __iter__(self) -> Iterator[Person]:
        return iter(self._people.values())

    def find(self, kind: IdentifierKind | str, value: str) -> Person | None:
        """The person with this identifier. Ids are case-sensitive, addresses are not; `cio_` may precede a cio_id."""
        if kind == "id":
            return self._by_id.get(value)
        if kind == "email":
            return self._by_email.get(value.lower())
        return self._people.get(value.removeprefix("cio_"))

    def apply(self, operation: Operation, received: float) -> None:
        """Apply one accepted operation at the unix time `received`. What cannot be applied is an activity only."""
        if operation["type"] != "person":
            return
        action = operation["action"]
        if action == "identify":
            self._identify(operation, received)
        elif action == "event":
            self._event(operation, received)
        elif action == "merge":
            self._merge(operation, received)
        elif action == "delete":
            self._delete(self.find(*_identifier(operation)), received)
        elif action == "suppress":
            self._suppress(operation, received)
        elif action == "unsuppress":
            for key in self._suppressed.get(_key(*_identifier(operation)), frozenset()):
                self._suppressed.pop(key, None)

    def _person(self, operation: Operation, received: float, *, create: bool = True) -> Person | None:
        """The person an operation is about, created when unknown, or None when that is not to be."""
        kind, value = _identifier(operation)
        if (person := self.find(kind, value)) is not None:
            return person
        if self._suppressed and _key(kind, value) in self._suppressed:
            self.ignored_suppressed += 1
            return None
        if not create or kind == "cio_id":
            return None
        self._created += 1
        person = Person(f"a{self._created:07x}")
        self._people[person.cio_id] = person
        if kind == "id":
            person.id, person.stamps["id"] = value, received
            self._by_id[value] = person
        else:
            person.attributes["email"], person.stamps["email"] = value, received
            self._by_email[value.lower()] = person
        self._log("profile_create", received, person)
        return person

    def _identify(self, operation: Operation, received: float) -> None:
        self.identifies += 1
        attributes: dict[str, Any] = operation.get("attributes", {})
        kind, value = _identifier(operation)
        person = self.find(kind, value)
        if person is None:
            if kind == "id" and not attributes.get("_update") and (email := attributes.get("email")):
                self._take_over(value, email, received)
            person = self._person(operation, received, create=not attributes.get("_update"))
        if person is None:
            self._log("skipped_update", received, None, data=operation["identifiers"])
            return
        stamp: float = operation["timestamp"] if "timestamp" in operation else operation.get("_timestamp", received)
        stamps = person.stamps
        changes: dict[str, Any] = {}
        for name, to in attributes.items():
            if name == "_update":
                continue
            if stamp < stamps.get(name, 0):
                self._log("skipped_update", received, person, name, {name: to})
                continue
            before = self._read(person, name)
            if name in ("email", "id") and before != to and not self._reidentify(person, name, to):
                self._log("failed_attribute_change", received, person, name, {name: {"from": before, "to": to}})
                continue
            stamps[name] = stamp
            if before != to or type(before) is not type(to):
                self._write(person, name, to)
                changes[name] = {"from": before, "to": to} if self.keeps_log else None
        if changes:
            self._log("attribute_change", received, person, data=changes)

    def _take_over(self, new_id: str, email: str, received: float) -> None:
        """A new id with an address that is somebody's already: that person gets the id."""
        if (owner := self._by_email.get(email.lower())) is None or ("id", new_id) in self._suppressed:
            return
        change = {"id": {"from": owner.id, "to": new_id}}
        if owner.id is not None:
            del self._by_id[owner.id]
        owner.id, owner.stamps["id"] = new_id, received
        self._by_id[new_id] = owner
        self._log("attribute_change", received, owner, data=change)

    def _reidentify(self, person: Person, name: str, to: str | None) -> bool:
        """Move the indices to a new email or id; False where Customer.io would log an Attribute Update Failure."""
        if name == "id":
            if to is None or person.id is not None or to in self._by_id or ("id", to) in self._suppressed:
                return False
            person.id = to
            self._by_id[to] = person
            return True
        before = person.email
        if to is not None and before is not None and to.lower() != before.lower() and not self.email_updates_allowed:
            return False
        if to is not None:
            if self._by_email.get(to.lower(), person) is not person or ("email", to.lower()) in self._suppressed:
                return False
            self._by_email[to.lower()] = person
        if before is not None and (to is None or before.lower() != to.lower()):
            del self._by_email[before.lower()]
        return True

    @staticmethod
    def _read(person: Person, name: str) -> Any:
        if "." not in name:
            return person.id if name == "id" else person.attributes.get(name)
        holder: Any = person.attributes
        for part in name.split("."):
            holder = holder.get(part) if isinstance(holder, dict) else None
        return holder

    @staticmethod
    def _write(person: Person, name: str, value: Any) -> None:
        """Set, or with None remove, an attribute; dots in its name mean nesting."""
        if name == "id":
            return
        *parents, leaf = name.split(".") if "." in name else [name]
        holder = person.attributes
        for parent in parents:
            inner = holder.get(parent)
            holder[parent] = holder = dict(inner) if isinstance(inner, dict) else {}
        if value is None:
            holder.pop(leaf, None)
        else:
            holder[leaf] = value

    def _event(self, operation: Operation, received: float) -> None:
        ulid = operation.get("id")
        if ulid is not None:
            ulid = ulid.upper()
            if ulid in self._ulids and self.deduplicates:
                self.duplicate_events_dropped += 1
                return
        person = self._person(operation, received)
        if person is None:
            if _identifier(operation)[0] == "cio_id":
                self._log("failed_event", received, None, operation["name"], operation["identifiers"])
            return
        if ulid is not None:
            self._ulids.add(ulid)
        name, attributes = operation["name"], operation.get("attributes", {})
        if operation.get("standin") == "failed":
            self._log("failed_event", received, person, name, attributes)
            return
        if (event_id := attributes.get("event_id")) is not None:
            if (name, key := str(event_id)) in self._event_ids:
                self.duplicate_events_stored += 1
            self._event_ids.add((name, key))
        for _ in range(2 if operation.get("standin") == "twice" else 1):
            self._log("event", operation.get("timestamp", received), person, name, attributes, ulid)

    def _merge(self, operation: Operation, received: float) -> None:
        primary = self.find(*_identifier(operation, "primary"))
        secondary = self.find(*_identifier(operation, "secondary"))
        if primary is None or secondary is None or primary is secondary:
            self._log("skipped_update", received, primary, "merge", {"secondary": operation["secondary"]})
            return
        self._forget(secondary)
        for name, value in secondary.attributes.items():
            if primary.attributes.get(name) is None:
                primary.attributes[name] = value
                primary.stamps[name] = secondary.stamps.get(name, received)
        if primary.email is not None:
            self._by_email[primary.email.lower()] = primary
        for activity in secondary.activities:
            if activity.type == "event" and activity.timestamp > received - MERGED_EVENTS_SECONDS:
                activity.person = primary
                primary.activities.append(activity)
        primary.activities.sort(key=lambda one: one.sequence)  # as everywhere: the App API pages by it
        self._log("profile_merge", received, primary, data={"secondary": secondary.identifiers})

    def _delete(self, person: Person | None, received: float) -> None:
        if person is not None:
            self._forget(person)
            self._log("profile_delete", received, person)

    def _suppress(self, operation: Operation, received: float) -> None:
        kind, value = _identifier(operation)
        person = self.find(kind, value)
        keys = {_key(kind, value)}
        if person is not None:
            keys |= {_key(kind, value) for kind, value in person.identifiers.items() if value is not None}
        self._suppressed |= dict.fromkeys(keys, frozenset(keys))
        self._delete(person, received)

    def _forget(self, person: Person) -> None:
        del self._people[person.cio_id]
        if person.id is not None:
            del self._by_id[person.id]
        if person.email is not None:
            del self._by_email[person.email.lower()]

    def _log(
        self,
        of_type: str,
        at: float,
        person: Person | None,
        name: str | None = None,
        data: dict[str, Any] | None = None,
        ulid: str | None = None,
    ) -> None:
        self.activities_by_type[of_type] += 1
        if not self.keeps_log and of_type != "event":
            return
        activity = Activity(len(self.activities), of_type, int(at), person, name, data or {}, ulid)
        self.activities.append(activity)
        if person is not None:
            person.activities.append(activity)


def _identifier(operation: Operation, key: str = "identifiers") -> tuple[str, str]:
    kind, value = next(iter(operation[key].items()))
    return kind, value


def _key(kind: str, value: str) -> tuple[str, str]:
    """An identifier as it is compared."""
    return kind, value.lower() if kind == "email" else value.removeprefix("cio_") if kind == "cio_id" else value


def matches(person: Person, conditions: Iterable[dict[str, Any]], now: float) -> bool:
    """Whether a person meets all conditions `{"attr", "op", "value"}` of a segment.

    Types count as they do at Customer.io: text never equals, exceeds or precedes a number, and only whole numbers are
    timestamps. ops: eq, exists, not_exists, gt, lt (numbers), is_timestamp, within_past_days (value: days).
    """
    return all(_holds(person, condition, now) for condition in conditions)


def _holds(person: Person, condition: dict[str, Any], now: float) -> bool:
    stored: Any = person.id if condition["attr"] == "id" else person.attributes.get(condition["attr"])
    op: str = condition["op"]
    value: Any = condition.get("value")
    is_number = type(stored) in (int, float)
    if op == "eq":
        same_type = type(stored) is type(value) or (is_number and type(value) in (int, float))
        return same_type and bool(stored == value)
    if op in ("exists", "not_exists"):
        return (stored is not None) == (op == "exists")
    if op in ("gt", "lt"):
        return is_number and bool(stored > value if op == "gt" else stored < value)
    if op == "is_timestamp":
        return type(stored) is int
    if op == "within_past_days":
        return type(stored) is int and bool(now - value * 86_400 <= stored <= now)
    raise ValueError(f"unknown condition op {op!r}")
