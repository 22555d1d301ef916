"""Findings: what a check has found and a person is to look at, until the same check finds it no more.

Each check keeps its latest findings in one blob, `findings/<check>.json`, and replaces them when it looks again: what
is over goes by itself. A finding names ids of people to who asks for the check's own report. The status page, the log
and the metrics are told what is wrong and how many, and never who.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from azure.core.exceptions import ResourceNotFoundError

from shared import telemetry
from shared.errors import StateFault
from shared.state import Document, State, storage_errors

MOST_PEOPLE = 1_000
"""Of so many people a finding keeps the ids; `count` tells how many there are."""

_FOLDER = "findings/"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be: `about` what (a sync, a segment, a column), `what` it is, what to `do`.

    `people` are ids, `count` is how many people or rows it concerns. Neither text holds a value from a row.
    """

    about: str
    what: str
    do: str
    count: int = 0
    people: Sequence[str] = ()

    def told(self) -> dict[str, Any]:
        """What everybody may see of it."""
        return {"about": self.about, "what": self.what, "do": self.do, "count": self.count}


@dataclass(frozen=True, slots=True)
class Noted:
    """What a check has found, and when it looked (ISO 8601, UTC)."""

    check: str
    at: str
    findings: Sequence[Finding]


def note(state: State, check: str, found: Sequence[Finding], sync: str = "all") -> Noted:
    """Replace what `check` had found before, and tell the metrics how many there are. Raises StateUnavailable."""
    kept = [Finding(one.about, one.what, one.do, one.count, tuple(one.people)[:MOST_PEOPLE]) for one in found]
    noted = Noted(check, datetime.now(UTC).isoformat(timespec="seconds"), kept)
    _write(state, noted)
    telemetry.found(check, sync, len(kept))
    return noted


def last(state: State, check: str) -> Noted | None:
    """What a check found when it last looked; None where it never did. Raises StateUnavailable, StateFault."""
    return _read(state, _name(check))


def everything(state: State) -> list[Noted]:
    """What all checks found when they last looked, by the names of the checks. Raises StateUnavailable, StateFault."""
    with storage_errors():
        names = sorted(blob.name for blob in state.container.list_blobs(_FOLDER))
    return [noted for name in names if (noted := _read(state, name))]


def forget(state: State, people: Collection[str]) -> None:
    """Keep nothing of these people, who were removed. Raises StateUnavailable, StateFault."""
    for noted in everything(state):
        found = [_without(one, people) for one in noted.findings]
        if found != list(noted.findings):
            _write(state, replace(noted, findings=[one for one in found if one.count]))


def _without(finding: Finding, people: Collection[str]) -> Finding:
    kept = [one for one in finding.people if one not in people]
    gone = len(finding.people) - len(kept)
    return replace(finding, people=kept, count=max(0, finding.count - gone)) if gone else finding


def _write(state: State, noted: Noted) -> None:
    Document(state.container, _name(noted.check)).change(lambda _: json.dumps(asdict(noted), indent=1).encode())


def _name(check: str) -> str:
    return f"{_FOLDER}{check}.json"


def _read(state: State, name: str) -> Noted | None:
    with storage_errors():
        try:
            text = state.container.download_blob(name).readall()
        except ResourceNotFoundError:
            return None
    try:
        stored = json.loads(text)
        return Noted(stored["check"], stored["at"], [Finding(**one) for one in stored["findings"]])
    except (ValueError, KeyError, TypeError):
        raise StateFault(f"{name} is damaged. Delete that blob: its check writes it anew.") from None
