"""Whether an operation of a Track v2 batch, or an App API request, is acceptable.

The vendor's OpenAPI descriptions (PyPI: arcade-customerio-track-api and -api, installed without their dependencies)
decide first; then come the rules that Customer.io documents in prose only: ULIDs, sizes, whole-second timestamps,
reserved names. Both are strict where the real service may be lenient: what passes here is meant to pass there.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson

MAX_BODY_BYTES = 499_999  # "must be smaller than 500kb"
MAX_OPERATION_BYTES = 32_000
MAX_IDENTIFIER_BYTES = 150
MAX_ATTRIBUTE_NAME_BYTES = 150
MAX_ATTRIBUTE_VALUE_BYTES = 1_000
MAX_ATTRIBUTES = 300
MAX_EVENT_NAME_BYTES = 100
LAST_TIMESTAMP = 4_102_444_800  # 2100-01-01: anything later is milliseconds taken for seconds

_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
_EVENTS = {"event", "page", "screen"}
# Settable although the prefix is reserved.
_SUBSCRIPTIONS = "cio_subscription_preferences"

Operation = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Violation:
    """One reason to refuse: `field` is a dotted path in the operation (or body), as in the vendor's error lists."""

    field: str
    message: str
    reason: str = "invalid"

    def as_error(self, batch_index: int | None = None) -> dict[str, Any]:
        """The vendor's shape of an error; without batch_index it concerns the request as a whole."""
        error: dict[str, Any] = {"reason": self.reason, "field": self.field, "message": self.message}
        return error if batch_index is None else {"batch_index": batch_index, **error}


@functools.cache
def description(package: str) -> dict[str, Any]:
    """The OpenAPI description inside an installed wheel. The package is not imported: its dependencies are absent."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise RuntimeError(f"{package} is not installed: pip install --no-deps {package.replace('_', '-')}")
    described: dict[str, Any] = json.loads((Path(spec.origin).parent / "moar" / "openapi.json").read_text())
    return described


class Described:
    """One App API request as described: its query parameters and its body."""

    def __init__(self, path: str, method: str) -> None:
        of_path = description("arcade_customerio_api")["paths"][path]
        request = of_path[method.lower()]
        parameters = [*of_path.get("parameters", []), *request.get("parameters", [])]
        self._query = {one["name"]: one for one in parameters if one["in"] == "query"}
        self._validators = {name: _compiled(one["schema"]) for name, one in self._query.items()}
        body = request.get("requestBody")
        self._body = _compiled(body["content"]["application/json"]["schema"]) if body else None

    def violations(self, query: Mapping[str, str], content: Any) -> list[Violation]:
        """Everything wrong with a request's query and parsed body (None when it has none)."""
        found = [Violation(name, "unknown parameter") for name in query.keys() - self._query.keys()]
        for name, described in self._query.items():
            if name not in query:
                found += [Violation(name, "is required", "required")] if described.get("required") else []
            elif not self._validators[name].is_valid(_typed(query[name], described["schema"].get("type"))):
                found.append(Violation(name, "is not as described"))
        if self._body is not None:
            found += [_violation(error) for error in self._body.iter_errors(content)]
        return found


def _typed(value: str, of_type: str | None) -> Any:
    """A query parameter's text as the type that its schema wants, where it is one."""
    if of_type == "integer" and value.isdecimal():
        return int(value)
    return value == "true" if of_type == "boolean" and value in ("true", "false") else value


def _compiled(schema: dict[str, Any]) -> Any:
    """A validator for a schema of OpenAPI 3.0, which is close to draft 4 (where 1.0 is no integer)."""
    return jsonschema_rs.Draft4Validator(schema, validate_formats=True, ignore_unknown_formats=True)


def _violation(error: jsonschema_rs.ValidationError) -> Violation:
    path = list(map(str, error.instance_path))
    if isinstance(error.kind, jsonschema_rs.ValidationErrorKind.Required):
        return Violation(".".join([*path, error.kind.property]), "is required", "required")
    return Violation(".".join(path), error.message)


@dataclass(frozen=True, slots=True)
class _Kind:
    """One (type, action) of operation: its compiled validator and the keys that the description knows."""

    validator: Any
    keys: frozenset[str]


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    """All properties of a variant, through its allOf parts."""
    found: dict[str, Any] = {}
    for part in schema.get("allOf", []):
        found |= _properties(part)
    found |= schema.get("properties", {})
    return found


def _kinds() -> dict[tuple[str, str], _Kind]:
    batch = description("arcade_customerio_track_api")["paths"]["/api/v2/batch"]["post"]["requestBody"]["content"]
    groups = batch["application/json"]["schema"]["properties"]["batch"]["items"]["anyOf"]
    kinds: dict[tuple[str, str], _Kind] = {}
    for variant in [variant for group in groups for variant in group.get("anyOf", [group])]:
        properties = _properties(variant)
        action = properties["action"]["enum"][0]
        if action == "screen" and "url" in properties["attributes"].get("properties", {}):
            # The description gives the page view the action of the screen view: a slip, going by everything else in it.
            action = properties["action"]["enum"][0] = "page"
        keys = set(properties)
        if action == "identify" and "person" in properties["type"]["enum"]:
            keys.add("timestamp")  # the prose's name; the description has `_timestamp`. Both are taken.
        kinds[properties["type"]["enum"][0], action] = _Kind(_compiled(variant), frozenset(keys))
    return kinds


_KINDS = _kinds()


def violations(operation: Any) -> list[Violation]:
    """Everything wrong with one operation as parsed from JSON; empty when it is acceptable."""
    if type(operation) is not dict:
        return [Violation("", "an operation must be an object")]
    of_type, action = operation.get("type"), operation.get("action")
    kind = _KINDS.get((of_type, action)) if type(of_type) is str and type(action) is str else None
    if kind is None:
        field = "action" if of_type in {"person", "object", "delivery"} else "type"
        return [Violation(field, f"unknown operation: type {of_type!r:.40}, action {action!r:.40}")]
    found: list[Violation] = []
    if not kind.validator.is_valid(operation):
        found += [_violation(error) for error in kind.validator.iter_errors(operation)]
    if not operation.keys() <= kind.keys:
        found += [Violation(key, "unknown key") for key in operation.keys() - kind.keys]
    if len(orjson.dumps(operation)) > MAX_OPERATION_BYTES:
        found.append(Violation("", f"an operation must be at most {MAX_OPERATION_BYTES} bytes", "too_large"))
    for key in ("identifiers", "primary", "secondary"):
        if key in operation and of_type == "person":
            found += _identifier_violations(key, operation[key])
    for key in ("timestamp", "_timestamp"):
        if key in operation:
            found += _timestamp_violations(key, operation[key])
    attributes = operation.get("attributes")
    if of_type == "person" and action in _EVENTS:
        found += _event_violations(operation)
    elif action == "identify" and type(attributes) is dict:
        found += _attribute_violations(attributes, person=of_type == "person")
    return found


def longer_than(text: str, limit: int) -> bool:
    """Whether text takes more than limit bytes of UTF-8, encoding only where the answer is not plain."""
    return len(text) > limit or (4 * len(text) > limit and len(text.encode()) > limit)


def _identifier_violations(key: str, identifiers: Any) -> list[Violation]:
    if type(identifiers) is not dict or len(identifiers) != 1:
        return [Violation(key, "exactly one of id, email or cio_id")]
    name, value = next(iter(identifiers.items()))
    if type(value) is not str or not value.strip():
        return [Violation(f"{key}.{name}", "must be text and not blank", "required")]
    if longer_than(value, MAX_IDENTIFIER_BYTES):
        return [Violation(f"{key}.{name}", f"must be at most {MAX_IDENTIFIER_BYTES} bytes", "too_large")]
    return []


def _timestamp_violations(field: str, value: Any) -> list[Violation]:
    if type(value) is not int:
        return [Violation(field, "must be whole unix seconds")]
    if not 0 <= value <= LAST_TIMESTAMP:
        return [Violation(field, "must be unix seconds between 1970 and 2100; is it in milliseconds?")]
    return []


def _event_violations(operation: Operation) -> list[Violation]:
    found = []
    name, ulid = operation.get("name"), operation.get("id")
    if type(name) is str and (not name.strip() or longer_than(name, MAX_EVENT_NAME_BYTES)):
        found.append(Violation("name", f"must be 1 to {MAX_EVENT_NAME_BYTES} bytes"))
    if "id" in operation and (type(ulid) is not str or not _ULID.fullmatch(ulid.upper())):
        found.append(Violation("id", "must be a ULID"))
    return found


def _attribute_violations(attributes: dict[str, Any], *, person: bool) -> list[Violation]:
    found = []
    if len(attributes) > MAX_ATTRIBUTES:
        found.append(Violation("attributes", f"at most {MAX_ATTRIBUTES} attributes", "too_many"))
    for name, value in attributes.items():
        field = f"attributes.{name}"
        if not name:
            found.append(Violation(field, "an attribute needs a name"))
        elif longer_than(name, MAX_ATTRIBUTE_NAME_BYTES):
            found.append(Violation(field[:80], f"name over {MAX_ATTRIBUTE_NAME_BYTES} bytes", "too_large"))
        elif person and (name[0] == "_" or name[:4] == "cio_" or name == "anonymous_id") and not _settable(name):
            found.append(Violation(field, "the name is reserved", "reserved"))
        kind = type(value)
        if kind is str:
            if longer_than(value, MAX_ATTRIBUTE_VALUE_BYTES):
                found.append(Violation(field, f"value over {MAX_ATTRIBUTE_VALUE_BYTES} bytes", "too_large"))
        elif kind in (dict, list) and len(orjson.dumps(value)) > MAX_ATTRIBUTE_VALUE_BYTES:
            found.append(Violation(field, f"value over {MAX_ATTRIBUTE_VALUE_BYTES} bytes", "too_large"))
    if person:
        for name in attributes.keys() & {"id", "email", "phone"}:
            field, value = f"attributes.{name}", attributes[name]
            if value is None:
                continue
            if type(value) is not str:
                found.append(Violation(field, "must be text"))
            elif name != "phone" and not value.strip():
                found.append(Violation(field, "an identifier must not be blank", "required"))
            elif name != "phone" and longer_than(value, MAX_IDENTIFIER_BYTES):
                found.append(Violation(field, f"over {MAX_IDENTIFIER_BYTES} bytes", "too_large"))
        if attributes.get("created_at") is not None:
            found += _timestamp_violations("attributes.created_at", attributes["created_at"])
    return found


def _settable(name: str) -> bool:
    return name == "_update" or name == _SUBSCRIPTIONS or name.startswith(_SUBSCRIPTIONS + ".")
