"""Which operations Customer.io refuses for good in a scenario: a small share, by their content alone.

By content, because a refusal is one: the same operation is refused at every try, by whichever process, and so a dead
letter is either right or wrong. What is refused at random could be there since an earlier try whose answer was lost.
"""

from dataclasses import dataclass
from typing import Any
from zlib import crc32


@dataclass(frozen=True, slots=True)
class Doomed:
    """Of all events and all revisions of people, `percent` are doomed; `seed` says which."""

    seed: int
    percent: float = 0.0

    def event(self, event_id: object) -> bool:
        """Whether the event with this id is."""
        return self._one(f"event {event_id}")

    def revision(self, customer_id: object, revision: object) -> bool:
        """Whether this revision of a person is."""
        return self._one(f"person {customer_id} {revision}")

    def operation(self, operation: dict[str, Any]) -> bool:
        """Whether an operation of a batch is. Merges, removals and identifies without a revision never are."""
        attributes = operation.get("attributes") or {}
        if operation["action"] == "event":
            return self.event(attributes["event_id"])
        if operation["action"] == "identify" and "revision" in attributes:
            return self.revision(operation["identifiers"]["id"], attributes["revision"])
        return False

    def _one(self, text: str) -> bool:
        return crc32(f"{self.seed} {text}".encode()) % 10_000 < 100 * self.percent
