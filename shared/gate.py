"""The gate: whether an event may be sent now, by its event time alone. Pure.

What it holds is counted by reason and not ledgered: it can still go, by an approved resync.
"""

from dataclasses import dataclass

CAN_TRIGGER_SECONDS = 72 * 3600
"""An event older than this starts no campaign at Customer.io (its documentation)."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The rule of one sync. `start` and `now` are unix seconds, `max_age` is seconds; None is no such rule.

    `silent`: nothing may go that can start a campaign.
    """

    start: int | None
    max_age: int | None
    silent: bool = False

    def holds(self, event_time: int, now: int) -> str | None:
        """Why an event of this time is held back, or None: it may go."""
        if self.start is not None and event_time < self.start:
            return "before_start"
        if self.max_age is not None and now - event_time > self.max_age:
            return "too_old"
        if self.silent and now - event_time <= CAN_TRIGGER_SECONDS:
            return "could_fire"
        return None
