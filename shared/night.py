"""The night: what of the day before is worth a look. Each check goes on without the others."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta

from shared import census, findings, freshness, volume
from shared.errors import TidemarkError
from shared.findings import Finding
from shared.run import unforeseen
from shared.settings import Settings, is_disabled, load
from shared.state import State
from shared.syncs import CATALOGUE

log = logging.getLogger("tidemark")


def run(settings: Settings | None = None) -> None:
    """Judge volume, freshness and census of the live syncs; see findings. Raises what a check raises, after the others.

    A sync that is switched off (AzureWebJobs.<sync>.Disabled) is left out.
    """
    settings = settings or load()
    today = datetime.now(UTC).date()
    yesterday = today - timedelta(days=1)
    with closing(State(settings)) as state:
        wanted = [sync for sync in CATALOGUE if not is_disabled(sync.name)]
        live = {sync: mark for sync in wanted if (mark := state.peek(sync)) is not None and mark.live}
        if not live:
            log.info("night: nothing is live, so there is nothing to judge.")
            return

        def volumes() -> list[Finding]:
            known = volume.fold(state, {sync.name: mark.volume for sync, mark in live.items()}, today)
            return volume.find({sync.name: known[sync.name] for sync in live}, yesterday)

        def latencies() -> list[Finding]:
            judged = [freshness.judge(sync.name, mark.freshness, str(yesterday)) for sync, mark in live.items()]
            return [one for one in judged if one is not None]

        checks: dict[str, Callable[[], Sequence[Finding]]] = {
            "volume": volumes,
            "freshness": latencies,
            "census": lambda: census.take(state, settings, live, str(today)),
        }
        told: dict[str, object] = {"day": str(yesterday), "syncs": len(live)}
        failure: Exception | None = None
        for name, check in checks.items():
            try:
                told[name] = len(findings.note(state, name, check()).findings)
            except Exception as error:
                failed = error if isinstance(error, TidemarkError) else unforeseen(error)
                told[name], failure = str(failed), failure or failed
        log.log(logging.ERROR if failure else logging.INFO, "night %s", json.dumps(told))
        if failure is not None:
            raise failure from None
