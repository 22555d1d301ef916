"""Merges and removals: what must be so before Customer.io is told. Both cannot be taken back.

Facts (Customer.io's documentation): a merge whose primary does not exist does nothing; an identify that comes after a
deletion makes the person anew; what is sent to a suppressed person is ignored.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from shared import audit, findings
from shared.appapi import AppApi
from shared.deadletters import DeadLetters
from shared.mapping import Bad, Operation
from shared.people import People
from shared.settings import Settings
from shared.source import Page
from shared.state import State
from shared.syncs import CATALOGUE
from shared.view import View, position_of

_PATIENCE = 30.0
"""Seconds for which a primary is looked for: what was written some seconds ago is not there yet for who reads."""

_PAUSE = 3.0


@dataclass(frozen=True, slots=True)
class Merges:
    """What of a page's merges is to be sent, what cannot be ({row: column, reason}), and what is so already (rows)."""

    ready: list[Operation]
    refused: Bad
    done: list[Operation]


def check_merges(operations: Sequence[Operation], people: People, app: AppApi) -> Merges:
    """Ask Customer.io whether the primaries exist, and whose the addresses are; nobody who was removed is merged.

    An address is merged only where its profile has no id: somebody else than Tidemark made it. Raises what AppApi does.
    """
    people.refresh()
    refused: Bad = {}
    for operation in operations:
        kind, who = operation.secondary or ("", "")
        if people.removed([operation.person]):
            refused[operation.row] = ("primary_customer_id", "was removed")
        elif kind == "id" and people.removed([who]):
            refused[operation.row] = ("secondary_customer_id", "was removed")
    left = [operation for operation in operations if operation.row not in refused]
    missing = _missing({operation.person for operation in left}, app)
    done = []
    for operation in left:
        kind, who = operation.secondary or ("", "")
        if operation.person in missing:
            refused[operation.row] = ("primary_customer_id", "not at Customer.io: nothing can be merged into it")
        elif kind == "email":
            ids = {holder.id for holder in app.holders(who)}
            if not ids:
                refused[operation.row] = ("secondary_email", "nobody at Customer.io has this address")
            elif ids == {operation.person}:
                done.append(operation)
            elif ids != {None}:
                refused[operation.row] = (
                    "secondary_email",
                    "the profile of this address has an id: merge it by secondary_customer_id",
                )
    rest = {operation.row for operation in done} | refused.keys()
    return Merges([operation for operation in operations if operation.row not in rest], refused, done)


def record_merges(operations: Iterable[Operation], people: People) -> None:
    """Record who is merged into whom."""
    people.merge({who: one.person for one in operations for who in secondary_ids([one])})


def secondary_ids(operations: Iterable[Operation]) -> list[str]:
    """Whom these merges merge, where that has an id."""
    return [one.secondary[1] for one in operations if one.secondary and one.secondary[0] == "id"]


def _missing(primaries: set[str], app: AppApi) -> set[str]:
    deadline = time.monotonic() + _PATIENCE
    while missing := primaries - app.existing(primaries):
        if time.monotonic() >= deadline:
            break
        time.sleep(_PAUSE)
    return missing


def record_removals(operations: Iterable[Operation], people: People) -> None:
    """Record who is removed and who is restored. They name nobody twice."""
    operations = list(operations)
    if removed := [one.person for one in operations if one.action != "restore"]:
        people.remove(removed)
    if restored := [one.person for one in operations if one.action == "restore"]:
        people.restore(restored)


def purge_removed(operations: Iterable[Operation], people: People, state: State, run: str, settings: Settings) -> None:
    """Drop the dead letters of who is removed, in all syncs, and what checks have found of them."""
    if removed := {one.person for one in operations if one.action != "restore"}:
        hashes = {people.hash_of(person) for person in removed}
        for sync in CATALOGUE:
            DeadLetters(state.container, sync, run, settings.dead_letter_days).purge(hashes)
        audit.forget(state, removed)
        findings.forget(state, removed)


def to_repeat(before: Sequence[Operation], people: People) -> list[Operation]:
    """Of the merges and removals that an earlier pass has sent, those that may have to be sent once more.

    An identify that was on its way at that time may have come afterwards, and have made the person anew.
    """
    deleted = people.removed([one.person for one in before if one.action == "delete"])
    return [one for one in before if one.person in deleted or (one.secondary and one.secondary[0] == "id")]


def nobody_twice(pages: Iterable[Page], view: View) -> Iterator[Page]:
    """Cut pages so that none names one person twice: Customer.io promises no order within a batch."""
    person = next(index for index, field in enumerate(view.fields, start=2) if field.name.lower() == "customer_id")
    for page in pages:
        rows: list[tuple[object, ...]] = []
        met: set[object] = set()
        for row in page.rows:
            if row[person] in met:
                yield replace(page, rows=rows, last=position_of(rows[-1]))
                rows, met = [], set()
            rows.append(row)
            met.add(row[person])
        yield replace(page, rows=rows, last=page.last)
