"""How many operations Customer.io has accepted, by day."""

import json

from shared.errors import StateFault
from shared.state import Document, State

History = dict[str, dict[str, dict[str, int]]]
"""By sync, by the event's name ("" where there is none), by day (UTC, YYYY-MM-DD)."""


def history(state: State) -> History:
    """What was accepted on which day. Raises StateUnavailable, StateFault."""
    text = Document(state.container, "volume.json").read()
    try:
        return dict(json.loads(text or b"{}"))
    except (ValueError, TypeError):
        raise StateFault("volume.json is damaged. Restore an earlier version of that blob.") from None
