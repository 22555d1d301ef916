"""Faults on request: what a workspace's next Track requests meet instead of a plain answer.

A fault is a dict: conditions and effects together. Conditions, all of which must hold:
- `path`: "batch" (the default; /api/v2/entity too), "region" or "any"
- `when_event_id`: the request holds an event with this ULID or this `attributes.event_id`
- `when_person_id`: the request holds an operation on this id
- `every`: n, each n-th matching request; `share`: 0..1, that part of them at random (`seed`)
- `times`: it ends after so many; default 1, or without end beside every, share, reject_share and the when_ conditions
Effects:
- `status`: answer so without accepting (`accepted`: true accepts all the same); `retry_after`: seconds, a header
- `delay_seconds`: answer later; alone, or before another effect
- `reset`: "before" or "after" accepting: the connection drops, the client sees no answer
- `reject_share`: 0..1 of the operations are refused at random (`seed`), as in a 207
- `extra_errors`: a list of error objects added to the answer's, which is then a 207; they may be strange
- `events`: "twice": events are accepted, and shown twice each; "failed": they are accepted, and a `failed_event` of the
  activity log is all that comes of them. With `when_event_id` that event alone

The first fault of the queue whose conditions hold applies, and only that one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from local.customerio.contract import Operation

_CONDITIONS = {"path", "when_event_id", "when_person_id", "every", "share", "seed", "times"}
_EFFECTS = {"status", "accepted", "retry_after", "delay_seconds", "reset", "reject_share", "extra_errors", "events"}
_ENDLESS = {"every", "share", "reject_share", "when_event_id", "when_person_id"}


@dataclass(slots=True)
class Fault:
    """One fault in the queue. Raises ValueError for a key that does not exist or a fault without effect."""

    spec: dict[str, Any]
    remaining: float = field(init=False)
    seen: int = 0
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        if unknown := self.spec.keys() - _CONDITIONS - _EFFECTS:
            raise ValueError(f"unknown in a fault: {', '.join(sorted(unknown))}")
        if not self.spec.keys() & _EFFECTS:
            raise ValueError("a fault needs an effect")
        if self.spec.get("reset") not in (None, "before", "after"):
            raise ValueError("reset is before or after")
        if self.spec.get("events") not in (None, "twice", "failed"):
            raise ValueError("events is twice or failed")
        self.remaining = self.spec.get("times", float("inf") if self.spec.keys() & _ENDLESS else 1)
        self.random = random.Random(self.spec.get("seed", 0))

    def strikes(self, path: str, operations: list[Operation]) -> bool:
        """Whether this request meets the fault; counts the request when the fixed conditions hold."""
        spec = self.spec
        if self.remaining <= 0 or spec.get("path", "batch") not in (path, "any"):
            return False
        if (event_id := spec.get("when_event_id")) is not None and not any(
            event_id in (op.get("id"), _part(op, "attributes").get("event_id")) for op in operations
        ):
            return False
        if (person_id := spec.get("when_person_id")) is not None and not any(
            _part(op, "identifiers").get("id") == person_id for op in operations
        ):
            return False
        self.seen += 1
        if self.seen % spec.get("every", 1) or ("share" in spec and self.random.random() >= spec["share"]):
            return False
        self.remaining -= 1
        return True

    def rejects(self) -> bool:
        """Whether the next operation is refused under `reject_share`."""
        share: float = self.spec.get("reject_share", 0)
        return self.random.random() < share

    def spoil(self, operations: list[Operation]) -> None:
        """Tell the store what is to become of accepted events under `events`."""
        wanted = self.spec.get("when_event_id")
        for operation in operations if "events" in self.spec else ():
            ids = (operation.get("id"), _part(operation, "attributes").get("event_id"))
            if operation["action"] == "event" and (wanted is None or wanted in ids):
                operation["standin"] = self.spec["events"]


def _part(operation: Operation, key: str) -> dict[str, Any]:
    """An object inside an operation that nobody has validated yet."""
    part = operation.get(key)
    return part if isinstance(part, dict) else {}
