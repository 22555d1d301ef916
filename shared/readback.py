"""What Customer.io has accepted and not applied, as its activity log tells: 2xx says nothing about it.

Facts (Customer.io's documentation): a person's address can be changed by id only where the workspace allows "updates to
email using ID", and no two people have one address. An update that is older than what is there is skipped. In each case
the call is answered with 200, and only a line in the activity log tells.
"""

from collections.abc import Mapping
from itertools import islice

from shared.appapi import AppApi, ChangeType, FailedChange

_LINES = 500
"""Lines of each type that are read; each 100 cost a request."""

_OWNERS = 20
"""Addresses whose owners are looked up; each costs a request, or two."""

FAILED: ChangeType = "failed_attribute_change"
SKIPPED: ChangeType = "skipped_update"

Changes = Mapping[tuple[str, str], tuple[ChangeType, FailedChange]]
"""The latest change that was not made, by (person, attribute), and why it was not."""


def changes_not_made(app: AppApi, since: int) -> Changes:
    """The changes of attributes that were not made at or after `since` (unix seconds). Raises what AppApi raises."""
    found: dict[tuple[str, str], tuple[ChangeType, FailedChange]] = {}
    for of_type in (FAILED, SKIPPED):
        for change in islice(app.failed_changes(since, of_type), _LINES):
            if change.person is not None:
                found.setdefault((change.person, change.attribute), (of_type, change))  # the newest comes first
    return found


def why_addresses_failed(app: AppApi, wanted: Mapping[str, str]) -> dict[str, str]:
    """Why these people did not get these addresses, {person: address}: a kind of audit.KINDS for each, some 20 at most.

    Raises what AppApi raises.
    """
    owners = {person: _owner(app, email, person) for person, email in islice(wanted.items(), _OWNERS)}
    return {
        person: "email_forbidden"
        if owner is None
        else "email_swapped"
        if owners.get(owner) == person
        else "email_taken"
        for person, owner in owners.items()
    }


def _owner(app: AppApi, email: str, person: str) -> str | None:
    """Who else has the address."""
    for holder in app.holders(email):
        if holder.id != person:
            return holder.id or f"cio_{holder.cio_id}"
    return None
