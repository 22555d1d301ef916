"""A QA sync: some people of all kinds are sent, read back and compared, before everybody is sent, or at any later time.

    plan       pick people; whose ids and addresses are at Customer.io already; which of their events would go
    deliver    slices as those of a resync: first the people, then those of their events that can start nothing
    verify     the last slice: wait until Customer.io shows what it was sent, and note what differs
    report     asked for by a person: what differs is read anew, since no value of a row is kept

A sync that is not live gets a mark that says so: its ledger is not an orphan then, and its passes still send nothing.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import azure.functions as func
import orjson

from shared import pages
from shared import plan as planning
from shared.appapi import AppApi
from shared.customerio import CustomerIo
from shared.errors import Busy, Refused, ViewFault, WrongRequest
from shared.gate import CAN_TRIGGER_SECONDS, Gate
from shared.people import admit
from shared.plan import Count
from shared.resync import Asked, Planned, Runs, SliceLease, Stage
from shared.run import account_digest
from shared.settings import Settings, is_disabled
from shared.source import Source
from shared.state import Identity, Mark, State
from shared.stored import KINDS, Findings, compare
from shared.syncs import CATALOGUE, Kind, Sync, find
from shared.view import EVERYTHING, STRATA, View, Within

SIZE = 100
"""People that are picked where nobody says how many."""

_LIFECYCLE = ("orders_count", "last_order_at", "subscription_status", "refund_flag", "vip_tier")
_CUSTOMERS = find("customers")
_POLL_SECONDS = 3.0


# --- the plan ---------------------------------------------------------------------------------------------------------


def check(settings: Settings, request: Mapping[str, Any]) -> None:
    """Find out at once what can be wrong with a request. Raises Refused, WrongRequest, and what a pass raises."""
    if settings.customerio_app_api_key is None:
        raise Refused(
            "A QA sync reads back what was sent, and for that CUSTOMERIO_APP_API_KEY is missing: set it to an App API"
            " key of the workspace (another key than the Track API's)."
        )
    with Source(settings) as source:
        view = View(_CUSTOMERS, source.survey(_CUSTOMERS), settings)
        if request.get("customer_ids"):
            planning.select(view, request, source)
        columns = {one.name.lower() for one in view.fields}
        for number, name in enumerate(request.get("strata") or ()):
            if name.lower() not in columns:
                raise WrongRequest(f"strata.{number}: {view.name} has no column {name}.")


def plan(state: State, settings: Settings, request: Mapping[str, Any]) -> Planned:
    """Whom and what a QA sync would send. Raises as `check` does, and what a pass raises.

    People whose address is another id's at Customer.io are left out, and where they are more than one in a hundred the
    run is refused: sent, an id that is new would take over the other's profile.
    """
    check(settings, request)
    told: dict[str, Any] = {}
    with Source(settings) as source, CustomerIo(settings) as client, AppApi(settings) as app:
        survey = source.survey(_CUSTOMERS)
        identity = Identity(client.workspace(), survey.server, survey.database)
        admit(state, identity)
        view = View(_CUSTOMERS, survey, settings)
        picked, told["strata"] = _pick(view, source, request, settings, survey.now)
        counted = Count(state, settings, source, view, _mark(state, settings, view), Gate(None, None))
        emails = {
            one.person: orjson.loads(one.payloads[0])["attributes"].get("email")
            for one in counted.sendable(Within(people=picked))
        }
        if not counted.rows:
            raise Refused(f"Nobody was picked: {view.name} has no rows, or none of these customer_ids.")
        new = sorted(emails.keys() - app.existing(emails))
        taken, guests = address_clashes(app, emails)
        people = [one for one in picked if one not in taken]
        addresses = sum(email is not None for email in emails.values())
        told |= {
            "people": len(people),
            "not_at_customerio": [one for one in new if one not in taken],
            "addresses": addresses,
            "address_of_another_id": [{"customer_id": one, "belongs_to": to} for one, to in taken.items()],
            "address_of_a_profile_without_id": guests,
        }
        syncs = [_told(counted)]
        slices = [_slice(0, _CUSTOMERS, people)]
        silent = not request.get("include_young")
        names: set[str] = set()
        left: list[str] = []
        for sync in CATALOGUE:
            if sync.kind is not Kind.EVENT or is_disabled(sync.name):
                continue
            try:
                events = View(sync, source.survey(sync), settings)
            except ViewFault:
                left.append(f"{sync.name}: there is no view retention.{sync.view}, or it breaks the contract.")
                continue
            mark = _mark(state, settings, events)
            counted = Count(state, settings, source, events, mark, Gate(mark.start, sync.max_age, silent))
            counted.all(Within(people=people))
            syncs.append(_told(counted))
            slices.append(_slice(1, sync, people))
            if counted.young:
                names |= {str(name) for (name,) in source.rows(events.event_names(Within(people=people)))}
        slices.append({**_slice(2, _CUSTOMERS, people), "verify": True})
        backfill_before = source.now() - CAN_TRIGGER_SECONDS
    young = sum(one.get("young_to_send", 0) for one in syncs)
    why = planning.why_approve(settings, young, len(people))
    if told["not_at_customerio"]:
        why.insert(0, "some of the people are not at Customer.io yet")
    told |= {
        "syncs": syncs,
        "rows": sum(one["rows"] for one in syncs),
        "young_to_send": young,
        "slices": len(slices),
        "left_out": left,
        "needs_approval": why,
    }
    told |= planning.campaigns(settings, Kind.PROFILE, sorted(names))
    refused = ""
    if len(taken) * 100 > addresses:
        pairs = ", ".join(f"{one} ({to} has it)" for one, to in taken.items())
        refused = (
            f"{len(taken)} of {addresses} addresses belong to another id at Customer.io, which is more than 1 %: are"
            " these the right ids, and is it the right workspace? Sent, such an id fails to get its address, or takes"
            f" over the other's profile. Nothing was sent. These are: {pairs}."
        )
    private = {"people": people, "identity": asdict(identity), "backfill_before": backfill_before}
    return Planned(told, slices, bool(why), private, refused)


def _mark(state: State, settings: Settings, view: View) -> Mark:
    return state.peek(view.sync) or _not_live(Identity("", "", ""), view, settings)


def _told(count: Count) -> dict[str, Any]:
    told = {
        "sync": count.view.sync.name,
        "rows": count.rows,
        "to_send": count.to_send,
        "cannot_be_sent": count.bad,
        "held": dict(count.held),
    }
    if count.view.sync.kind is Kind.EVENT:
        young = {"young_to_send": count.young, "young_left_out": count.held["could_fire"]}
        told |= {"already_sent": count.already, **young}
    return told


def _slice(phase: int, sync: Sync, people: Sequence[str]) -> dict[str, Any]:
    return {"phase": phase, "sync": sync.name, "within": asdict(Within(people=people))}


def _pick(
    view: View, source: Source, request: Mapping[str, Any], settings: Settings, now: datetime
) -> tuple[list[str], list[dict[str, Any]]]:
    """The ids of the people, and for which stratum how many of them were picked: the same each time."""
    if ids := request.get("customer_ids"):
        return list(dict.fromkeys(_as_key(view, one) for one in ids)), []
    size = request.get("size") or SIZE
    names = request.get("strata") or [
        one.name for one in view.fields if one.name in (settings.qa_strata or frozenset(_LIFECYCLE))
    ]
    strata: dict[tuple[str, str], list[str]] = {}
    for name in names:
        found: dict[str, list[str]] = {}
        for person, value in source.rows(view.strata(name, size, now)):
            found.setdefault(str(value), []).append(str(person))
        if len(found) > STRATA:
            raise WrongRequest(f"strata: {name} of {view.name} has more than {STRATA} different values. Leave it out.")
        strata |= {(name, value): people for value, people in found.items()}
    picked: dict[str, tuple[str, str]] = {}
    turns = {stratum: _spread(people, -(-size // len(strata))) for stratum, people in strata.items()}
    while turns and len(picked) < size:
        for stratum, people in list(turns.items()):
            person = next((one for one in people if one not in picked), None)
            if person is None:
                del turns[stratum]
            elif len(picked) < size:
                picked[person] = stratum
    if len(picked) < size:
        step = max(1, source.count(view.count_all()) // (2 * size))
        for (person,) in source.rows(view.sample(EVERYTHING, step)):
            if len(picked) < size:
                picked.setdefault(str(person), ("", ""))
    counts = Counter(picked.values())
    told = [
        {"column": name, "value": value, "people": count} for (name, value), count in sorted(counts.items()) if name
    ]
    return list(picked), told


def _spread(people: Sequence[str], first: int) -> Iterator[str]:
    """All of them, beginning with so many that lie evenly among them."""
    chosen = [people[number * len(people) // first] for number in range(first)] if len(people) > first else people
    yield from chosen
    met = set(chosen)
    yield from (one for one in people if one not in met)


def _as_key(view: View, asked: str | int) -> str:
    """An id as the view's rows have it."""
    match view.people_are()[1]:
        case "uniqueidentifier":
            return str(asked).lower()
        case "tinyint" | "smallint" | "int" | "bigint" | "decimal" | "numeric":
            return str(int(asked))
    return str(asked)


def address_clashes(app: AppApi, emails: Mapping[str, str | None]) -> tuple[dict[str, str], int]:
    """Of these people those whose address is another id's, {id: the other}; and how many are a profile's without id."""
    others_have, guests = {}, 0
    for person, email in emails.items():
        holders = [holder.id for holder in app.holders(email)] if email else []
        if others := [one for one in holders if one is not None and one != person]:
            others_have[person] = others[0]
        elif None in holders:
            guests += 1
    return others_have, guests


# --- before the first slice of a sync ---------------------------------------------------------------------------------


def begin(state: State, settings: Settings, asked: Asked, view: View) -> Mark:
    """The mark of a sync; one that is not live where there is none, so that its ledger has a mark beside it."""
    if (mark := state.peek(view.sync)) is not None:
        return mark
    identity = Identity(**asked.private["identity"])
    state.remember(identity)
    mark = _not_live(identity, view, settings)
    try:
        state.begin(view.sync, mark)
    except Busy:  # it has gone live meanwhile
        return state.live(view.sync)
    return mark


def _not_live(identity: Identity, view: View, settings: Settings) -> Mark:
    return Mark(identity, view.strategy, account=account_digest(settings), live=False)


# --- reading back -----------------------------------------------------------------------------------------------------


def verify(
    state: State,
    settings: Settings,
    people: Sequence[str],
    lease: SliceLease,
    may_go_on: Callable[[], None],
) -> bool:
    """Compare until nothing differs, or QA_WAIT_SECONDS are over. Whether it came to its end; else time was up."""
    counts = lease.report.counts
    deadline = time.monotonic() + settings.time_budget_seconds
    since = datetime.fromisoformat(counts.setdefault("since", datetime.now(UTC).isoformat()))
    lease.save()
    found: dict[str, Findings] = {}
    open_ = list(people)
    with Source(settings) as source, AppApi(settings) as app:
        while True:
            may_go_on()
            waited = datetime.now(UTC) - since
            found |= compare(state, settings, source, app, open_)
            open_ = [person for person, findings in found.items() if not findings.settled]
            if not open_ or waited > timedelta(seconds=settings.qa_wait_seconds):
                break
            if time.monotonic() > deadline:
                return False
            lease.check()
            time.sleep(_POLL_SECONDS)
    counts["found"] = _noted(found)
    return True


def _noted(found: Mapping[str, Findings]) -> dict[str, Any]:
    """What is kept of a comparison: ids, names, kinds and numbers."""
    each = found.values()
    return {
        "differences": [[one.customer_id, one.attribute, one.kind] for some in each for one in some.differences],
        "events": [[one.customer_id, one.sync, one.event_id, one.kind] for some in each for one in some.events],
        "compared": {
            "people": len(found),
            "attributes": sum(some.attributes for some in each),
            "events": sum(some.events_compared for some in each),
        },
        "events_not_visible": sum(some.not_visible for some in each),
    }


# --- the report -------------------------------------------------------------------------------------------------------


def summary(runs: Runs, asked: Asked) -> dict[str, Any]:
    """What the last slice has found, in numbers; {} while that is not known."""
    found = _found(runs, asked)
    if found is None:
        return {}
    kinds = Counter(one[-1] for one in [*found["differences"], *found["events"]])
    return {
        "compared": found["compared"],
        "differences": sum(count for kind, count in kinds.items() if kind != "kept"),
        "kinds": dict(kinds),
        "events_not_visible": found["events_not_visible"],
        "report": f"GET /api/runs/{asked.run}/report, or ?format=html",
    }


def report(state: State, settings: Settings, asked: Asked) -> dict[str, Any]:
    """What differs, with values: those people in whom something was found are read anew, here and at Customer.io.

    Raises Refused for a run of another kind, or one that has not compared yet; and what a pass and AppApi raise.
    """
    if asked.kind != "qa":
        raise Refused("Only a QA sync has a report.")
    found = _found(Runs(state), asked)
    if found is None:
        raise Refused(f"There is no report yet: the run is {asked.state}. {asked.message}".strip())
    people = list(dict.fromkeys(one[0] for one in [*found["differences"], *found["events"]]))
    with Source(settings) as source, AppApi(settings) as app:
        again = compare(state, settings, source, app, people).values()
    differences = [one for some in again for one in some.differences]
    events = [one for some in again for one in some.events]
    still = {(one.customer_id, one.attribute) for one in differences}
    still_events = {(one.customer_id, one.sync, one.event_id) for one in events}
    return {
        "run": asked.run,
        "created": asked.created,
        "finished": asked.finished,
        "read_again": datetime.now(UTC).isoformat(timespec="seconds"),
        "compared": found["compared"],
        "differences": [asdict(one) for one in differences if one.kind != "kept"],
        "events": [asdict(one) for one in events],
        "kept": [asdict(one) for one in differences if one.kind == "kept"],
        "settled_since": [
            *[one for one in found["differences"] if (one[0], one[1]) not in still],
            *[one for one in found["events"] if (one[0], one[1], one[2]) not in still_events],
        ],
        "events_not_visible": found["events_not_visible"],
        "left_out": asked.plan["address_of_another_id"],
        "kinds": KINDS,
    }


def _found(runs: Runs, asked: Asked) -> dict[str, Any] | None:
    if asked.state not in (Stage.DONE, Stage.RUNNING, Stage.CANCELED):
        return None
    noted: dict[str, Any] | None = runs.report(asked.run, len(runs.slices(asked.run)) - 1).counts.get("found")
    return noted


def page(told: Mapping[str, Any]) -> func.HttpResponse:
    """A report as a page. What was in SQL Server and what was sent is written as in JSON: "7" is a text, 7 a number."""
    return pages.render("qa.html", told=told, exactly=lambda value: json.dumps(value, ensure_ascii=False))
