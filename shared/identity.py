"""Merges and removals: what must be so before Customer.io is told. Both cannot be taken back.

Facts (Customer.io's documentation): a merge whose primary does not exist does nothing; an identify that comes after a
deletion makes the person anew; what is sent to a suppressed person is ignored.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from shared.appapi import AppApi
from shared.deadletters import DeadLetters
from shared.mapping import Bad, Operation
from shared.people import People
from shared.settings import Settings
from shared.source import Page, View, position_of
from shared.state import State
from shared.syncs import CATALOGUE

_PATIENCE = 30.0
"""Seconds for which a primary is looked for: what was written some seconds ago is not there yet for who reads."""

_PAUSE = 3.0


def prepare_merges(operations: Sequence[Operation], people: People, app: AppApi) -> Bad:
    """Make sure that the primaries exist, and record the merges. Returns those that cannot be: {row: column, reason}.

    An address is merged only where its profile has no id: somebody else than Tidemark made it.
    Raises what AppApi raises.
    """
    refused: Bad = {}
    missing = _missing({operation.person for operation in operations}, app)
    for operation in operations:
        kind, who = operation.secondary or ("id", "")
        if operation.person in missing:
            refused[operation.row] = ("primary_customer_id", "not at Customer.io: nothing can be merged into it")
        elif kind == "email" and any(
            holder.id is not None and holder.id != operation.person for holder in app.holders(who)
        ):
            refused[operation.row] = (
                "secondary_email",
                "the profile of this address has an id: merge it by secondary_customer_id",
            )
    people.merge(
        {
            operation.secondary[1]: operation.person
            for operation in operations
            if operation.row not in refused and operation.secondary and operation.secondary[0] == "id"
        }
    )
    return refused


def _missing(primaries: set[str], app: AppApi) -> set[str]:
    deadline = time.monotonic() + _PATIENCE
    while missing := primaries - app.existing(primaries):
        if time.monotonic() >= deadline:
            break
        time.sleep(_PAUSE)
    return missing


def prepare_removals(
    operations: Sequence[Operation], people: People, state: State, run: str, settings: Settings
) -> None:
    """Record who is removed and who is restored, and drop what is kept of the removed. A page names nobody twice."""
    removed = [operation.person for operation in operations if operation.action != "restore"]
    if removed:
        people.remove(removed)
        hashes = {people.hash_of(person) for person in removed}
        for sync in CATALOGUE:
            DeadLetters(state.container, sync, run, settings.dead_letter_days).purge(hashes)
    if restored := [operation.person for operation in operations if operation.action == "restore"]:
        people.restore(restored)


def deletions_to_repeat(before: Sequence[Operation], people: People) -> list[Operation]:
    """Of removals that an earlier pass has sent, the deletions that still hold.

    They go once more: an identify that was on its way while the first one was sent may have come after it.
    """
    deleted = [operation for operation in before if operation.action == "delete"]
    removed = people.removed([operation.person for operation in deleted])
    return [operation for operation in deleted if operation.person in removed]


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
