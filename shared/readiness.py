"""Readiness: whether all is set up as it must be, looked at and not asked for. Each item is one check.

No failing check hides another: what it raises becomes its item, and only what cannot be looked at without it is
skipped. Nothing is written but probes, which are deleted again; queries count, and none runs longer than its timeout.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from shared import checks_deployment as deployment
from shared import checks_source as source
from shared import checks_workspace as workspace
from shared.checks import Check, Look, Note, Outcome, Patience, cut_short
from shared.settings import Settings

OVER_HTTP = Patience(query=20, begin=100)
"""Azure's load balancer waits 230 seconds. The last check to begin may meet a database that wakes up for 90 of them."""

CHECKS = (
    Check("settings", deployment.settings),
    Check("driver", deployment.driver, ("settings",)),
    Check("blobs", deployment.blobs, ("settings",)),
    Check("queue", deployment.queue, ("blobs",)),
    Check("sql_server", source.sql_server, ("driver",)),
    Check("track_api", workspace.track_api, ("settings",)),
    Check("app_api", workspace.app_api, ("settings",)),
    Check("rate", workspace.rate, ("settings",)),
    Check("identity", deployment.identity, ("blobs", "sql_server", "track_api")),
    Check("clocks", deployment.clocks, ("blobs", "sql_server")),
    Check("permissions", source.permissions, ("sql_server",)),
    Check("views", source.views, ("sql_server",)),
    Check("keys", source.keys, ("sql_server",)),
    Check("cursors", source.cursors, ("sql_server",)),
    Check("event_times", source.event_times, ("sql_server",)),
    Check("time_zone", source.time_zone, ("sql_server",)),
    Check("emails", source.emails, ("sql_server",)),
    Check("flags", source.flags, ("sql_server",)),
    Check("other_sources", workspace.other_sources, ("blobs", "sql_server", "app_api")),
    Check("people_there", workspace.people_there, ("blobs", "sql_server", "app_api")),
    Check("canary_segment", workspace.canary_segment, ("app_api",)),
    Check("canary_trigger", workspace.canary_trigger, ("blobs", "app_api")),
    Check("qa", deployment.qa, ("blobs",)),
    Check("backfill", deployment.backfill, ("blobs",)),
    Check("alerts", deployment.alerts, ("settings",)),
)


@dataclass(frozen=True, slots=True)
class Item:
    """One item: its state (an Outcome), what was seen, and what to do where it is not ok."""

    name: str
    state: str
    seen: str
    do: str


def check(
    settings: Settings | None = None, patience: Patience = OVER_HTTP, checks: Sequence[Check] = CHECKS
) -> dict[str, Any]:
    """The report: {"at", "ready", "counts", "items"}; `ready` where nothing has failed or was skipped.

    Without `settings` they are read from the environment, and what is wrong with them is the first item. Never raises.
    """
    items: dict[str, Item] = {}
    with Look(settings, patience) as look:
        for one in checks:
            missing = [name for name in one.needs if items[name].state in (Outcome.FAILED, Outcome.SKIPPED)]
            items[one.name] = _skipped(one, missing) if missing else _item(one, look)
    counts = Counter(item.state for item in items.values())
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "ready": not counts[Outcome.FAILED] and not counts[Outcome.SKIPPED],
        "counts": {str(state): counts[state] for state in Outcome},
        "items": [asdict(item) for item in items.values()],
    }


def _skipped(one: Check, missing: list[str]) -> Item:
    return Item(one.name, str(Outcome.SKIPPED), f"Not looked at: it needs {', '.join(missing)}.", "Mend these first.")


def _item(one: Check, look: Look) -> Item:
    notes: list[Note] = []
    try:
        look.may_begin()
        for note in one.look(look):  # one by one: what was seen before it raised stays
            notes.append(note)
    except Exception as error:
        notes.append(cut_short(error))
    state = max((note.outcome for note in notes), key=list(Outcome).index, default=Outcome.OK)
    notes.sort(key=lambda note: -list(Outcome).index(note.outcome))  # what is wrong comes first
    actions = dict.fromkeys(note.do for note in notes if note.do)
    return Item(one.name, str(state), " ".join(note.seen for note in notes), " ".join(actions))
