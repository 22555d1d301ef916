"""Campaigns that act: who is in which journey, and which messages were made. Worked out when somebody looks.

A campaign acts where it has an `event_name` and `delays`, one message for each, so many seconds after its event:
- `filter`: conditions (see people.matches) that the person must meet when the event comes
- `exit_event`: who does this event after having entered leaves, and is sent nothing that was not due before
- `copies`: a fault, so many messages in the place of each; `failure`: why none of them can be delivered
It is started by each stored event of this name that is younger than 72 hours, if its state is `running`; people without
an address, and those who are unsubscribed, are sent nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from local.customerio.people import Activity, Person, matches

CAN_TRIGGER_SECONDS = 72 * 3600  # "events whose timestamp lies in the past 72 hours"


@dataclass(frozen=True, slots=True)
class Message:
    """One delivery. `id` is unique in the workspace, `created` is unix seconds."""

    id: str
    campaign: int
    action: int
    person: Person
    created: float
    failure: str | None


@dataclass(slots=True, eq=False)
class Journey:
    """A person's way through a campaign, from `entered` on (unix seconds); `left` by the exit event."""

    number: int
    campaign: dict[str, Any]
    person: Person
    entered: float
    left: float | None = None

    def messages(self, now: float) -> Iterator[Message]:
        """What was made until now."""
        if not self.person.email or self.person.attributes.get("unsubscribed") is True:
            return
        for action, delay in enumerate(self.campaign["delays"], 1):
            due = self.entered + delay
            if due <= now and (self.left is None or due < self.left):
                for copy in range(self.campaign.get("copies", 1)):
                    identity = f"journey{self.number}-action{action}-{copy}"
                    failure = self.campaign.get("failure")
                    yield Message(identity, self.campaign["id"], action, self.person, due, failure)


@dataclass(slots=True)
class Journeys:
    """All journeys of a workspace."""

    _campaigns: list[dict[str, Any]] = field(default_factory=list)
    _journeys: list[Journey] = field(default_factory=list)

    def add(self, number: int, campaign: dict[str, Any]) -> None:
        """Let a campaign act, if it says how."""
        if campaign.get("delays") and campaign.get("event_name"):
            matches(Person("a0"), campaign.get("filter", []), 0)  # raises for a condition that is none
            self._campaigns.append({**campaign, "id": number})

    def take(self, event: Activity, received: float) -> None:
        """What an event that was stored ends and begins."""
        if (person := event.person) is None:
            return
        for journey in self._journeys:
            if journey.person is person and journey.left is None and journey.campaign.get("exit_event") == event.name:
                journey.left = received
        for campaign in self._campaigns:
            if (
                campaign["event_name"] == event.name
                and campaign.get("state", "running") == "running"
                and event.timestamp >= received - CAN_TRIGGER_SECONDS
                and matches(person, campaign.get("filter", []), received)
            ):
                self._journeys.append(Journey(len(self._journeys) + 1, campaign, person, received))

    def of(self, campaign: int) -> list[Journey]:
        """The journeys of one campaign."""
        return [one for one in self._journeys if one.campaign["id"] == campaign]

    def messages(self, cio_id: str, now: float) -> list[Message]:
        """What was made for a person until now, the newest first."""
        made = [one for each in self._journeys if each.person.cio_id == cio_id for one in each.messages(now)]
        return sorted(made, key=lambda one: one.created, reverse=True)
