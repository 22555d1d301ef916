"""The catalogue of syncs. An event sync more is its view in SQL Server and one line here."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a row of the view becomes at Customer.io."""

    PROFILE = "profile"
    EVENT = "event"


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
        return "customer_id" if self.kind is Kind.PROFILE else "event_id"


CATALOGUE = (
    Sync("customers", Kind.PROFILE),
    Sync("orders", Kind.EVENT),
)
