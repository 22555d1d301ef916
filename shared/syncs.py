"""The catalogue of syncs. An event sync more is its view in SQL Server and one line here."""

from dataclasses import dataclass
from enum import StrEnum

from shared.errors import NotThere


class Kind(StrEnum):
    """What a row of the view becomes at Customer.io."""

    PROFILE = "profile"
    EVENT = "event"
    MERGE = "merge"
    REMOVAL = "removal"


@dataclass(frozen=True, slots=True)
class Sync:
    """One view, one kind, one schedule, one mark."""

    name: str
    kind: Kind
    max_age: int | None = None
    """Seconds after which an event is of no use any more, and held."""
    after: str | None = None
    """The sync that must have nothing left to read before this one sends."""

    @property
    def view(self) -> str:
        """The view's name in the schema `retention`."""
        return self.name

    @property
    def schedule_setting(self) -> str:
        """The app setting that holds the timer's NCRONTAB expression."""
        return f"{self.name.upper()}_SCHEDULE"

    @property
    def key(self) -> str:
        """The column that tells the rows of the view apart."""
        return _KEYS[self.kind]


_KEYS = {
    Kind.PROFILE: "customer_id",
    Kind.EVENT: "event_id",
    Kind.MERGE: "merge_id",
    Kind.REMOVAL: "removal_id",
}

CATALOGUE = (
    Sync("customers", Kind.PROFILE),
    Sync("orders", Kind.EVENT),
    Sync("refunds", Kind.EVENT),
    Sync("subscriptions", Kind.EVENT),
    Sync("back_in_stock", Kind.EVENT),
    # a reminder is of no use after two hours, and of harm after an order that Customer.io does not know of yet
    Sync("carts", Kind.EVENT, max_age=2 * 3600, after="orders"),
    # a merge into somebody whom Customer.io does not know yet does nothing
    Sync("merges", Kind.MERGE, after="customers"),
    Sync("removals", Kind.REMOVAL),
)

SCHEDULES = {sync.schedule_setting: f"When `{sync.name}` runs" for sync in CATALOGUE} | {
    "COMPARISON_SCHEDULE": "When customers are compared with what was last sent, at night for one",
    "RECONCILIATION_SCHEDULE": "When segments are compared with their views",
    "NIGHT_SCHEDULE": "When volume, freshness and the views' contents of the day are judged",
}
"""The app settings that hold the timers' NCRONTAB expressions, six fields, UTC; and what each is for."""


def find(name: str | None) -> Sync:
    """The sync of that name. Raises NotThere."""
    for sync in CATALOGUE:
        if sync.name == name:
            return sync
    raise NotThere("There is no such sync. The syncs are: " + ", ".join(sync.name for sync in CATALOGUE) + ".")
