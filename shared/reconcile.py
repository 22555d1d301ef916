"""Segments of Customer.io against their views."""

import json
from typing import Any

from shared.errors import StateFault
from shared.state import Document, State


def last(state: State) -> dict[str, Any] | None:
    """What the last reconciliation found, without ids; None before the first. Raises StateUnavailable, StateFault."""
    text = Document(state.container, "reconciliation.json").read()
    try:
        return None if text is None else dict(json.loads(text))
    except (ValueError, TypeError):
        raise StateFault("reconciliation.json is damaged. Delete that blob: the next one writes it anew.") from None
