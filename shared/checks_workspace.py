"""Checks of the Customer.io workspace: credentials, who and what is there already, and the canary."""

import time
from collections.abc import Iterator

from ulid import ULID

from shared import findings
from shared.appapi import StoredEvent
from shared.checks import Look, Note, NotLookedAt, failed, number, ok, over_views, warning
from shared.ledger import Ledger
from shared.mapping import SECONDS_PER_DAY, event_digest
from shared.people import People
from shared.qa import address_clashes
from shared.state import Mark
from shared.syncs import Kind
from shared.view import EVERYTHING, View

PEOPLE = 50
"""So many people are looked up by their address, one request each."""

NAMES = 20
"""Of so many event names in a view the activity log is asked, one request each."""

CANARY_SEGMENT = "canary_repeat_recent"

_USUAL_RATE = 100
"""Requests a second; Customer.io's documentation allows 1,000, and throttles who exceeds it for long."""

_ON_THEIR_WAY = 5.0
"""Seconds after which an event that a pass has just sent is in the ledger, too."""


def track_api(look: Look) -> Iterator[Note]:
    """The Track API takes the credentials, and the account is in the region that the settings name."""
    look.identity["workspace"] = look.client.workspace()
    region = look.settings.customerio_region
    yield ok(f"Customer.io takes the credentials: workspace {look.identity['workspace']}, region {region}.")


def app_api(look: Look) -> Iterator[Note]:
    """The App API takes its key."""
    yield ok(f"The App API takes the key, and shows {number(len(look.app.campaigns()), 'campaign')}.")


def rate(look: Look) -> Iterator[Note]:
    """No pass sends more requests a second than is usual."""
    most = look.settings.customerio_requests_per_second
    if most > _USUAL_RATE:
        yield warning(
            f"CUSTOMERIO_REQUESTS_PER_SECOND is {most:,}. Each pass and each slice may send so many, several at once.",
            f"Stay at {_USUAL_RATE}, unless Customer.io has agreed to more.",
        )
    else:
        yield ok(f"A pass sends at most {number(most, 'request')} a second.")


def other_sources(look: Look) -> Iterator[Note]:
    """Nobody else sends events of our names: each of the latest in the activity log is one that the ledger knows."""
    return over_views(look, _other_sources, Kind.EVENT)


def _other_sources(look: Look, view: View) -> Iterator[Note]:
    names = sorted(str(name) for (name,) in look.rows(view.event_names(EVERYTHING)) if name is not None)
    mark = look.state.peek(view.sync)
    for name in names[:NAMES]:
        look.may_begin()
        lines = look.app.latest_events(name)
        foreign = _foreign(look, view, mark, lines)
        if foreign and mark is not None:
            time.sleep(_ON_THEIR_WAY)
            foreign = _foreign(look, view, look.state.peek(view.sync), foreign)
        if foreign and mark is not None and all(one.event_id is None for one in lines):
            yield warning(
                f"{name}: the activity log does not show event_id, so nobody knows who has sent them.",
                "Look at some of these events in Customer.io: those of Tidemark have event_id and late_minutes.",
            )
        elif foreign:
            yield failed(
                f"{name}: {len(foreign):,} of the latest {len(lines):,} were sent by another source.",
                "Switch that source off, or let the view give the event another name: people would get both.",
            )
        else:
            yield ok(f"{name}: none of the latest {len(lines):,} is from elsewhere.")
    if len(names) > NAMES:
        yield warning(
            f"{view.name} has {len(names):,} event names, of which {NAMES} were looked at.",
            "An event's name says what happened: leave numbers and products to its properties.",
        )


def _foreign(look: Look, view: View, mark: Mark | None, lines: list[StoredEvent]) -> list[StoredEvent]:
    """The lines that are not ours: each event of ours has event_id, and is in the ledger."""
    lines = [one for one in lines if one.person is None or one.person != look.settings.canary_customer_id]
    if mark is None:  # nothing was sent yet
        return lines
    ledger = Ledger(look.state.container, view.sync, str(ULID()), mark.ledgered)
    ours = [(line, line.event_id, line.at) for line in lines if line.event_id is not None and line.at is not None]
    unsent = ledger.unsent([(at // SECONDS_PER_DAY, event_digest(view.sync.name, key)) for _, key, at in ours])
    known = {id(line) for (line, _, _), new in zip(ours, unsent, strict=True) if not new}
    return [line for line in lines if id(line) not in known]


def people_there(look: Look) -> Iterator[Note]:
    """Of a sample of customers nobody's address belongs to another id in the workspace."""
    view = next((one for one in look.views if one.sync.kind is Kind.PROFILE and one.has("email")), None)
    if view is None:
        raise NotLookedAt("there is no view of customers with an email.")
    rows = look.row(view.count_all())[0]
    ids = [str(one) for (one,) in look.rows(view.sample(EVERYTHING, max(1, rows // PEOPLE)))[:PEOPLE]]
    page = look.source.named(view, ids) if ids else None
    column = next(index for index, one in enumerate(view.fields, start=2) if one.name.lower() == "email")
    emails = {str(row[1]): str(row[column] or "").strip() or None for row in (page.rows if page else ())}
    if not look.state.is_new():  # who was merged or removed has no address of an own any more
        people = People(look.state)
        people.refresh()
        gone = people.removed(emails) | people.primaries(emails).keys()
        emails = {person: email for person, email in emails.items() if person not in gone}
    clashes: dict[str, str] = {}
    guests = 0
    for person, email in emails.items():
        look.may_begin()
        theirs, without_id = address_clashes(look.app, {person: email})
        clashes |= theirs
        guests += without_id
    there = len(look.app.existing(emails))
    seen = f"Of {number(len(emails), 'customer')} {there:,} are in the workspace under their id"
    if clashes:
        pairs = ", ".join(f"{person} ({other} has it)" for person, other in list(clashes.items())[:10])
        yield failed(
            f"{seen}, and the addresses of {len(clashes):,} belong to another id: {pairs}.",
            "Find out whether these are the right ids and the right workspace: sent, an id fails to get its address,"
            " or takes over the other's profile.",
        )
    else:
        yield ok(f"{seen}, and nobody's address belongs to another id.")
    if guests:
        yield warning(
            f"The addresses of {guests:,} belong to profiles without an id, which these customers will take over.",
            "This is well where somebody has signed up by address alone; look at some of them.",
        )


def canary_segment(look: Look) -> Iterator[Note]:
    """SEGMENTS names the canary segment, and Customer.io has it."""
    number_of = look.settings.segments.get(CANARY_SEGMENT)
    if number_of is None:
        yield warning(
            f"SEGMENTS has no {CANARY_SEGMENT}.",
            f"Make the segment in Customer.io, and add {CANARY_SEGMENT}=<its id> to SEGMENTS.",
        )
        return
    segment = next((one for one in look.app.segments() if one.id == number_of), None)
    if segment is None:
        yield failed(
            f"SEGMENTS says {CANARY_SEGMENT}={number_of}, and Customer.io has no such segment.",
            "Correct the id: it stands in the address of the segment's page.",
        )
    elif segment.state != "finished":
        yield warning(f"The segment {number_of} is not built yet ({segment.state}).", "Look again in a while.")
    else:
        yield ok(f"The segment {number_of} is there and built.")


def canary_trigger(look: Look) -> Iterator[Note]:
    """The canary person and campaign are set, the campaign runs, and the latest canary found nothing."""
    given = look.settings
    missing = {"CANARY_CUSTOMER_ID": given.canary_customer_id, "CANARY_CAMPAIGN": given.canary_campaign}
    if unset := [name for name, value in missing.items() if value is None]:
        yield warning(f"{' and '.join(unset)} not set.", "Make a test person and a campaign for it, and set both.")
        return
    campaign = next((one for one in look.app.campaigns() if one.id == given.canary_campaign), None)
    if campaign is None or not campaign.running:
        what = "is not there" if campaign is None else f"is {campaign.state}"
        yield failed(f"The campaign {given.canary_campaign} of CANARY_CAMPAIGN {what}.", "Start it, or correct the id.")
    noted = findings.last(look.state, "canary")
    if noted is None:
        yield warning("The canary was never sent.", "Send it, and look here again.")
    elif noted.findings:
        yield failed(
            f"The canary of {noted.at[:16]} UTC found: {' '.join(one.what for one in noted.findings)}",
            " ".join(dict.fromkeys(one.do for one in noted.findings)),
        )
    else:
        yield ok(f"The canary of {noted.at[:16]} UTC found nothing wrong.")
