"""The canary: an event of a test person is followed to the message that it starts, and nothing more may come of it.

    order   Order Placed, until the activity log shows it once and CANARY_CAMPAIGN has made its one message; then the
            very same event twice more, which must change nothing
    cart    Cart Abandoned, until CANARY_CART_CAMPAIGN has made its first message; then Order Placed, after which that
            campaign must make no other

It reaches the person of CANARY_CUSTOMER_ID only, who must not be a customer, so it needs no approval. Its plan is what
it has seen, step by step. What is needed to do the same again after a worker has died is recorded before anything is
sent: the same event has the same ULID then.

Facts (Customer.io's App API description): messages of a person name their campaign; no line of the activity log, and
nothing else of one person, tells that they left a journey. Journey metrics count who did, by campaign and hour.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import orjson

from shared import findings
from shared.appapi import AppApi, Message
from shared.customerio import Barred, CustomerIo, Group, Rejection
from shared.errors import DeliveryUnavailable, Refused, WrongRequest
from shared.findings import Finding
from shared.mapping import event, event_digest, event_ulid, identify
from shared.pause import Pause
from shared.people import People, admit
from shared.resync import Asked, Planned, Runs, Stage, now
from shared.settings import Settings, setting_name
from shared.source import Source
from shared.state import Identity, State
from shared.syncs import Sync, find
from shared.view import Survey, View

CHECKS = {"order": "canary", "cart": "canary_cart"}
"""Under which name each journey's findings are kept."""

MARK = "tidemark_canary"
"""The attribute that tells the test person from customers: the campaigns' filter."""

_CUSTOMERS = find("customers")
_POLL_SECONDS = 3.0
_WAITS = 5  # more than there are waits in a run, so that all of them fit into the time of one function
_DAY = 86_400
_LINES = 100  # of the activity log: what is looked for is among the latest


@dataclass(frozen=True, slots=True)
class _Event:
    """An event as the reference view of its sync has it, but for its ids."""

    sync: Sync
    name: str
    properties: Mapping[str, Any]


_ORDER = _Event(
    find("orders"), "Order Placed", {"order_number": 1, "items": 1, "total": 29.99, "currency": "EUR", "canary": True}
)
_CART = _Event(
    find("carts"),
    "Cart Abandoned",
    {"items": 1, "total": 29.99, "currency": "EUR", "product_count": 1, "skus": "CANARY", "canary": True},
)
_TRIGGERS = {"order": (_ORDER, "canary_campaign"), "cart": (_CART, "canary_cart_campaign")}


class _Unwell(Exception):
    """Something else was seen than should be."""

    def __init__(self, what: str, do: str) -> None:
        super().__init__()
        self.what = what
        self.do = do


def check(settings: Settings, journey: str) -> None:
    """Find out at once what can be wrong with a request. Raises Refused, WrongRequest, and what a pass raises."""
    with Source(settings) as source:
        _check(settings, journey, source)


_NEEDED = {
    "canary_customer_id": "the id of a test person who is nobody's customer",
    "customerio_app_api_key": "an App API key of the workspace, to look at what has come of an event",
    "canary_cart_campaign": "the id of the campaign that Cart Abandoned starts and Order Placed ends",
}


def _check(settings: Settings, journey: str, source: Source) -> Survey:
    for name, meaning in _NEEDED.items():
        if getattr(settings, name) is None and (journey == "cart" or name != "canary_cart_campaign"):
            raise Refused(f"The canary needs {setting_name(name)}, which is missing: {meaning}. Set it.")
    survey = source.survey(_CUSTOMERS)
    view = View(_CUSTOMERS, survey, settings)
    person = settings.canary_customer_id or ""
    if view.is_person(person) and source.named(view, [person]) is not None:
        raise WrongRequest(
            f"CANARY_CUSTOMER_ID is the id of a customer: {view.name} has a row for it. Nothing was sent. Set it to an"
            " id that no customer has or will have."
        )
    return survey


def plan(state: State, settings: Settings, asked: Asked) -> Planned:
    """Carry out the run. It is refused, with the reason, where something else was seen than should be.

    Raises as `check` does; Refused where the run is canceled; Paused; and what a pass raises.
    """
    journey = asked.request["journey"]
    runs = Runs(state)
    with ExitStack() as stack:
        source = stack.enter_context(Source(settings))
        survey = _check(settings, journey, source)
        for other in runs.planning():
            if other.kind == "canary" and other.run < asked.run:  # each would take the other's messages for its own
                raise Refused(
                    f"Another canary, run {other.run}, is at work. Wait for it, or cancel it; then ask again."
                )
        client = stack.enter_context(CustomerIo(settings, People(state).barred))
        app = stack.enter_context(AppApi(settings))
        admit(state, Identity(client.workspace(), survey.server, survey.database))
        canary = _Canary(settings, asked, runs, Pause(state), source, client, app, *_TRIGGERS[journey])
        found = []
        try:
            canary.order() if journey == "order" else canary.cart()
        except _Unwell as unwell:
            found = [Finding(f"canary {journey}", unwell.what, unwell.do, 1, (canary.person,))]
    findings.note(state, CHECKS[journey], found)
    refused = " ".join(f"{one.what} {one.do}" for one in found)
    return Planned(canary.told, [], needs_approval=False, private=canary.private, refused=refused)


@dataclass(slots=True)
class _Canary:
    """One run. `private` is what a worker that takes it up again must know."""

    settings: Settings
    asked: Asked
    runs: Runs
    pause: Pause
    source: Source
    client: CustomerIo
    app: AppApi
    trigger: _Event
    setting: str
    private: dict[str, Any] = field(init=False)
    told: dict[str, Any] = field(init=False)
    patience: float = field(init=False)
    person: str = field(init=False)
    campaign: int | None = field(init=False)

    def __post_init__(self) -> None:
        self.person = self.settings.canary_customer_id or ""
        self.campaign = getattr(self.settings, self.setting)
        self.patience = min(self.settings.qa_wait_seconds, self.settings.time_budget_seconds / _WAITS)
        self.private = dict(self.asked.private)
        self.told = {"campaign": self.campaign, "waits_seconds": self.patience, "steps": []}
        if self.campaign is None:
            self.told["note"] = f"{setting_name(self.setting)} is not set, so only the event was looked for."

    def order(self) -> None:
        """An order, and the same order twice more."""
        self._begin()
        self._send(_ORDER)
        self._wait_for(_ORDER, "Order Placed is shown")
        for nth in ("second", "third"):
            self._send(_ORDER, f"Order Placed sent the {nth} time, with the same ULID")
        self._watch(_ORDER, "nothing has changed by the repetitions")

    def cart(self) -> None:
        """A cart, and the order that ends its journey."""
        self._begin()
        self._send(_CART)
        self._wait_for(_CART, "Cart Abandoned is shown, and the person is in the journey")
        before = self.private.setdefault("left", self._left())
        self._send(_ORDER)
        self._wait_for(_ORDER, "Order Placed is shown")
        self._watch(_ORDER, "no other message of the journey has come")
        left = self._left() > before
        self._note(
            "the campaign's journey metrics show that the person left early"
            if left
            else "the campaign's journey metrics do not show yet that the person left early: that no other message came"
            " is what is taken for it",
            left=left,
        )

    # What is sent.

    def _begin(self) -> None:
        """The campaign can start, what it has sent so far is known, and the person is there."""
        if self.campaign is not None:
            self._look_at_campaign(self.campaign)
        if "known" not in self.private:
            self.private["known"] = [one.id for one in self._all_messages()]
        self._post(_CUSTOMERS, identify(self.person, self.source.now(), {MARK: True}), "the person is identified")
        deadline = time.monotonic() + self.patience
        while self.app.attributes([self.person]).get(self.person, {}).get(MARK) != "true":
            if not self._may_wait(deadline):
                raise _Unwell(
                    f"Customer.io does not show the person of CANARY_CUSTOMER_ID with {MARK} within"
                    f" {self.patience:.0f} seconds.",
                    "See whether this person is suppressed at Customer.io; or raise QA_WAIT_SECONDS.",
                )
        self._note("the person is shown")

    def _look_at_campaign(self, campaign: int) -> None:
        name = setting_name(self.setting)
        found = next((one for one in self.app.campaigns() if one.id == campaign), None)
        if found is None:
            raise _Unwell(f"The workspace has no campaign {campaign}.", f"Correct {name}.")
        if found.event_name != self.trigger.name:
            raise _Unwell(
                f"Campaign {campaign} does not start on the event {self.trigger.name}.",
                f"Correct its trigger, or {name}.",
            )
        if not found.running:
            raise _Unwell(f"Campaign {campaign} is not running: its state is {found.state}.", "Start it.")

    def _send(self, one: _Event, step: str = "") -> None:
        times = self.private.setdefault("times", {})
        moment = times.setdefault(one.sync.name, self.source.now())
        event_id = self._event_id(one)
        own = {"orders": {"order_id": event_id, "placed_at": moment}, "carts": {"cart_id": event_id}}[one.sync.name]
        properties = {**one.properties, **own, "event_id": event_id, "late_minutes": 0}
        operation = event(self.person, one.name, self._digest(one), moment, properties)
        self._post(one.sync, operation, step or f"{one.name} sent", ulid=operation["id"])

    def _post(self, sync: Sync, operation: dict[str, Any], step: str, **more: Any) -> None:
        """Send one operation, unless the run was canceled, or the sync is paused."""
        self._record()
        self.pause.check(sync)
        ((fate,),) = self.client.send([Group(self.person, (orjson.dumps(operation),))]).wait()
        match fate:
            case None:
                self._note(step, **more)
            case Rejection(reason, name):
                raise _Unwell(
                    f"Customer.io refuses the canary's {operation['action']} ({reason}, {name or 'no field named'}).",
                    "See whether CANARY_CUSTOMER_ID is a valid id.",
                )
            case Barred():
                raise _Unwell(
                    f"The person of CANARY_CUSTOMER_ID was {fate.value}, by retention.removals or retention.merges.",
                    "Set it to another id.",
                )
            case _:
                raise self.client.failure or DeliveryUnavailable("Customer.io does not answer.")

    # What is seen.

    def _wait_for(self, one: _Event, step: str) -> None:
        """Until the event is there once, and the campaign's message once."""
        begun, deadline = time.monotonic(), time.monotonic() + self.patience
        while True:
            events, messages = self._look(one)
            if events and (messages or self.campaign is None):
                break
            if not self._may_wait(deadline):
                raise self._missing(one, events)
        self._note(step, events=events, messages=messages, seconds=round(time.monotonic() - begun, 1))

    def _watch(self, one: _Event, step: str) -> None:
        """As long as patience lasts, there is nothing more."""
        deadline = time.monotonic() + self.patience
        events, messages = self._look(one)
        while self._may_wait(deadline):
            events, messages = self._look(one)
        self._note(step, events=events, messages=messages, seconds=self.patience)

    def _look(self, one: _Event) -> tuple[int, int]:
        """How often the event is shown, and how many messages have come. Raises _Unwell where either is too often."""
        moment = self.private["times"][one.sync.name]
        ulid, event_id = event_ulid(self._digest(one), moment), self._event_id(one)
        events = sum(
            line.ulid == ulid
            or (line.name, line.event_id) == (one.name, event_id)
            or (line.name, line.event_id, line.at) == (one.name, None, moment)  # it has nothing better to tell
            for line in islice(self.app.events(self.person), _LINES)
        )
        new = [message for message in self._all_messages() if message.id not in self.private["known"]]
        if events > 1:
            raise _Unwell(
                f"The activity log shows the canary's {one.name} {events} times, though it was sent under one ULID.",
                "Customer.io's deduplication does not work as documented: ask its support, and until they have answered"
                " pause the event syncs (POST /api/pause), since what is sent again after a failure is not dropped.",
            )
        if len(new) > 1:
            raise self._too_many(new)
        if any(message.failed for message in new):
            raise _Unwell(
                f"Campaign {self.campaign} has made its message, and it could not be delivered.",
                "Look at it in Customer.io, under the person's deliveries.",
            )
        return events, len(new)

    def _too_many(self, messages: list[Message]) -> _Unwell:
        what = f"Campaign {self.campaign} has made {len(messages)} messages for the canary, and should have made one."
        if self.trigger is _ORDER:
            return _Unwell(what, "It must have one message only; if it has, it is started twice by one event.")
        if messages[-1].created > self.private["times"].get("orders", messages[-1].created):
            return _Unwell(
                f"{what} The last came although Order Placed was sent.",
                "Make Order Placed its conversion goal, and let people exit when they achieve the goal.",
            )
        return _Unwell(what, "No order was sent before: let its second message wait for two minutes or more.")

    def _missing(self, one: _Event, events: int) -> _Unwell:
        waited = f"within {self.patience:.0f} seconds"
        if not events:
            return _Unwell(
                f"Customer.io has accepted the canary's {one.name}, and its activity log does not show it {waited}.",
                "Look in the activity log for failed_event; or raise QA_WAIT_SECONDS.",
            )
        return _Unwell(
            f"The activity log shows the canary's {one.name}, and campaign {self.campaign} has made no message"
            f" {waited}.",
            f"See whether its filter lets the person in ({MARK} is true, backfill is not true), its frequency lets them"
            " in every time, its first message has no delay and is sent automatically, and the person has an address"
            " and is subscribed.",
        )

    def _all_messages(self) -> list[Message]:
        """The campaign's, of the last day, the oldest first."""
        if self.campaign is None:
            return []
        made = self.app.messages(self.person, self.source.now() - _DAY)
        return sorted((one for one in made if one.campaign == self.campaign), key=lambda one: one.created)

    def _may_wait(self, deadline: float) -> bool:
        """Wait a while, and not beyond the deadline; False once it is over. Raises Refused where it was canceled."""
        left = deadline - time.monotonic()
        if left > 0:
            time.sleep(min(_POLL_SECONDS, left))
        self._record()
        return left > 0

    def _left(self) -> int:
        """How many people have left the campaign early, of those who entered it about when this one did."""
        entered = self.private["times"]["carts"]
        return self.app.left_early(self.campaign or 0, entered - 300, entered + 3600)

    def _event_id(self, one: _Event) -> str:
        return f"canary-{self.asked.run}-{one.sync.name}"

    def _digest(self, one: _Event) -> bytes:
        return event_digest("canary", self._event_id(one))

    def _note(self, step: str, **more: Any) -> None:
        self.told["steps"].append({"at": now(), "step": step, **more})
        self._record()

    def _record(self) -> None:
        """Let who asks for the run see how far it is. Raises Refused where it was canceled."""
        self.runs.change(self.asked.run, [Stage.PLANNING], plan=self.told, private=self.private)
