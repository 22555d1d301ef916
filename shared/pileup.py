"""What has piled up while nothing was sent: shown before a pause ends."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from shared.errors import ViewFault
from shared.gate import CAN_TRIGGER_SECONDS
from shared.settings import Settings
from shared.source import Source
from shared.state import State
from shared.syncs import Kind, Sync
from shared.view import View


def count(state: State, settings: Settings, syncs: Iterable[Sync]) -> list[dict[str, Any]]:
    """Of each sync that is live, how many rows wait to be read; of events, how many could still start a campaign.

    By updated_at the rows of the lookback are among them, of which passes will recognise most. Raises as a pass does.
    """
    told = []
    with Source(settings) as source:
        for sync in syncs:
            mark = state.peek(sync)
            if mark is None or not mark.live:
                continue
            try:
                view = View(sync, source.survey(sync), settings)
            except ViewFault as error:
                told.append({"sync": sync.name, "error": str(error)})
                continue
            one: dict[str, Any] = {"sync": sync.name, "rows": source.count(view.count_changed(mark.position, None))}
            if sync.kind is Kind.EVENT:
                since = datetime.fromtimestamp(source.now() - CAN_TRIGGER_SECONDS, UTC).replace(tzinfo=None)
                one["could_start_campaigns"] = source.count(view.count_young(mark.position, view.moment_at(since)))
            told.append(one)
    return told
