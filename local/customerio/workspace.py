"""One workspace of the stand-in: credentials, settings, what it holds, what is shown of it yet, faults and counts."""

from __future__ import annotations

import itertools
import random
import secrets
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Literal

from local.customerio.campaigns import Journeys
from local.customerio.contract import Operation
from local.customerio.faults import Fault
from local.customerio.people import Store

APP_REQUESTS_PER_SECOND = 10
REMEMBERED_REJECTIONS = 50


# one after another, so that no two workspaces of a process share one
_environments = itertools.count(100_000 + secrets.randbelow(800_000))


@dataclass(slots=True)
class Settings:
    """What a test may choose; see `Workspace` in control.py. Seconds everywhere."""

    region: Literal["us", "eu"] = "us"
    lag_seconds: float = 1.0
    latency_seconds: float = 0.0
    email_updates_allowed: bool = False
    deduplicates: bool = True
    bare_events: bool = False
    shuffle_seed: int | None = None
    site_id: str = field(default_factory=lambda: secrets.token_hex(10))
    api_key: str = field(default_factory=lambda: secrets.token_hex(10))
    app_api_key: str = field(default_factory=lambda: secrets.token_hex(16))
    environment_id: int = field(default_factory=_environments.__next__)


class Workspace:
    """`held` is what was accepted, `shown` what the App API reads: the same, `lag_seconds` later."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.held = Store(keeps_log=False, email_updates_allowed=settings.email_updates_allowed)
        self._shown = Store(keeps_log=True, email_updates_allowed=settings.email_updates_allowed)
        self._unshown: deque[tuple[float, list[Operation]]] = deque()
        self._shuffle = random.Random(settings.shuffle_seed)
        self._app_requests: deque[float] = deque()
        self._track_requests: deque[float] = deque()
        self.faults: list[Fault] = []
        self.segments: list[dict[str, Any]] = []
        self.campaigns: list[dict[str, Any]] = []
        self.journeys = Journeys()
        self.counts: Counter[str] = Counter()
        self.requests_by_status: Counter[str] = Counter()
        self.app_requests_by_status: Counter[str] = Counter()
        self.operations_by_action: Counter[str] = Counter()
        self.rejections: deque[dict[str, Any]] = deque(maxlen=REMEMBERED_REJECTIONS)
        self.in_flight = 0
        self.max_in_flight = 0
        self.max_body_bytes = 0
        self.max_requests_in_a_second = 0

    def configure(self, changes: dict[str, Any]) -> None:
        """Change settings. Raises ValueError for a name that does not exist."""
        for name, value in changes.items():
            if name not in Settings.__dataclass_fields__:
                raise ValueError(f"unknown setting {name!r}")
            setattr(self.settings, name, value)
        for store in (self.held, self._shown):
            store.email_updates_allowed = self.settings.email_updates_allowed
            store.deduplicates = self.settings.deduplicates
        if "shuffle_seed" in changes:
            self._shuffle.seed(changes["shuffle_seed"])

    def accept(self, operations: list[Operation]) -> None:
        """Take acceptable operations: held at once, shown after the lag."""
        now = time.time()
        if self.settings.shuffle_seed is not None:
            # Nobody promises an order of processing: whatever depends on one must break here.
            operations = self._shuffle.sample(operations, len(operations))
        self.counts["accepted"] += len(operations)
        for operation in operations:
            self.operations_by_action[operation["action"]] += 1
            stored = len(self.held.activities)  # of events alone
            self.held.apply(operation, now)
            for event in self.held.activities[stored:]:
                self.journeys.take(event, now)
        self._unshown.append((now, operations))
        self._show(now)

    @property
    def shown(self) -> Store:
        """What the App API sees now."""
        self._show(time.time())
        return self._shown

    def _show(self, now: float) -> None:
        while self._unshown and self._unshown[0][0] + self.settings.lag_seconds <= now:
            received, operations = self._unshown.popleft()
            for operation in operations:
                self._shown.apply(operation, received)

    def begin(self) -> None:
        """Count a Track request that has come in."""
        self.counts["requests"] += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.max_requests_in_a_second = max(self.max_requests_in_a_second, _within_a_second(self._track_requests))

    def end(self, status: str) -> None:
        """Count how a Track request ended: a status, or `reset_before` and `reset_after`."""
        self.in_flight -= 1
        self.requests_by_status[status] += 1

    def may_read(self) -> bool:
        """Whether the App API's rate limit lets one more request through; one that is refused does not count."""
        if _within_a_second(self._app_requests) > APP_REQUESTS_PER_SECOND:
            self._app_requests.pop()
            return False
        return True

    def fault(self, path: str, operations: list[Operation]) -> Fault | None:
        """The fault that this request meets, if any; one that is used up leaves the queue."""
        fault = next((fault for fault in self.faults if fault.strikes(path, operations)), None)
        self.faults = [fault for fault in self.faults if fault.remaining > 0]
        return fault

    def stats(self) -> dict[str, Any]:
        """Counts since the workspace was made. Requests are Track's alone; nothing of /_standin/ is counted."""
        held = self.held
        return {
            **{name: self.counts[name] for name in ("requests", "batches", "operations", "accepted", "rejected")},
            "identifies": held.identifies,
            "events_stored": len(held.activities),
            "people": len(held),
            "duplicate_events_dropped": held.duplicate_events_dropped,
            "duplicate_events_stored": held.duplicate_events_stored,
            "ignored_suppressed": held.ignored_suppressed,
            "max_body_bytes": self.max_body_bytes,
            "max_in_flight": self.max_in_flight,
            "max_requests_in_a_second": self.max_requests_in_a_second,
            "activities_by_type": dict(held.activities_by_type),
            "requests_by_status": dict(self.requests_by_status),
            "operations_by_action": dict(self.operations_by_action),
            "app_requests_by_status": dict(self.app_requests_by_status),
            "rejections": list(self.rejections),
        }


def _within_a_second(moments: deque[float]) -> int:
    """Note this moment; how many fell within the past second, this one included."""
    now = time.monotonic()
    moments.append(now)
    while moments[0] <= now - 1:
        moments.popleft()
    return len(moments)


class Workspaces:
    """All workspaces of the process, found by what a request carries."""

    def __init__(self) -> None:
        self._all: list[Workspace] = []

    def create(self, settings: dict[str, Any]) -> Workspace:
        """A new workspace. Raises ValueError for an unknown setting or an environment_id that exists."""
        if unknown := settings.keys() - Settings.__dataclass_fields__.keys():
            raise ValueError(f"unknown setting {', '.join(sorted(unknown))}")
        workspace = Workspace(Settings(**settings))
        if self.by_environment(workspace.settings.environment_id):
            raise ValueError("environment_id is taken")
        self._all.append(workspace)
        return workspace

    def by_environment(self, environment_id: int) -> Workspace | None:
        return next((one for one in self._all if one.settings.environment_id == environment_id), None)

    def by_track_key(self, site_id: str, api_key: str) -> Workspace | None:
        wanted = (site_id, api_key)
        return next((one for one in self._all if (one.settings.site_id, one.settings.api_key) == wanted), None)

    def by_app_key(self, app_api_key: str) -> Workspace | None:
        return next((one for one in self._all if one.settings.app_api_key == app_api_key), None)
