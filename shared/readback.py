"""What Customer.io has accepted and not applied: changes of an address. 2xx says nothing about them.

Facts (Customer.io's documentation): a person's address can be changed by id only where the workspace allows "updates to
email using ID", and no two people have one address. Either way the call is answered with 200, and only a line in the
activity log tells.
"""

from shared.appapi import AppApi, FailedChange
from shared.settings import Settings

_MOST = 20
"""Findings that are spelled out; each may cost a request."""


def failed_addresses(settings: Settings, since: int) -> list[str]:
    """Findings about the addresses that were not taken since then (unix seconds), each with its repair.

    They name ids and no address. Raises what AppApi raises.
    """
    with AppApi(settings) as app:
        failed: dict[str, FailedChange] = {}
        for change in app.failed_changes(since):  # the newest first
            if change.attribute == "email" and change.person and isinstance(change.wanted, str):
                failed.setdefault(change.person, change)
        owners = {person: _owner(app, str(change.wanted), person) for person, change in list(failed.items())[:_MOST]}
    findings = []
    forbidden = []
    for person, owner in owners.items():
        if owner is None:
            forbidden.append(person)
        elif owners.get(owner) == person:
            if person < owner:
                findings.append(
                    f"Customers {person} and {owner} have exchanged their addresses, and at Customer.io each still has"
                    f" the old one, because no two people can have one address at a time. Nothing was cleared. The way"
                    f" out, with a pass of customers after each step: give {person} an address that nobody has; touch"
                    f" the row of {owner}, who then gets the new one; give {person} the right one again."
                )
        else:
            findings.append(
                f"The new address of customer {person} belongs to {owner} at Customer.io, so {person} keeps the old"
                f" one. If both are one person, merge them; else give {owner} another address in the view first."
            )
    if forbidden:
        findings.append(
            f"{len(forbidden)} changes of an address were not taken, of customers {', '.join(forbidden)}: turn on"
            " 'Allow updates to email using ID' in the settings of the workspace, then touch these rows."
        )
    if len(failed) > _MOST:
        findings.append(f"{len(failed) - _MOST} more changes of an address were not taken.")
    return findings


def _owner(app: AppApi, email: str, person: str) -> str | None:
    """Who else has the address."""
    for holder in app.holders(email):
        if holder.id != person:
            return holder.id or f"cio_{holder.cio_id}"
    return None
