"""The client of Customer.io's App API, the read side: what is really there.

Facts (Customer.io's App API documentation and published API description): a key of its own as Bearer token, 10 requests
a second, 429 above. What the Track API accepted shows up here some seconds later; attribute values read back as text.
"""

import json
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

import httpx
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from pyrate_limiter import Duration, Limiter, Rate

from shared.errors import ConfigurationFault, CredentialFault, DeliveryUnavailable
from shared.patience import TIMEOUT, TryAgain, may_pass, retry_after, retrying
from shared.settings import Settings

log = logging.getLogger("tidemark")

# httpx tells of every request with its whole URL, and in one of ours that holds a customer's address
logging.getLogger("httpx").setLevel(logging.WARNING)

APP_URLS = {"us": "https://api.customer.io", "eu": "https://api-eu.customer.io"}

REQUESTS_PER_SECOND = 10
"""Customer.io's limit on the App API, for all that read a workspace together."""

_PAGE = 100  # the most ids, and the most lines of the activity log, that one request may ask for

MEMBERS = 30_000
"""The most members of a segment that one request may ask for (Customer.io's App API documentation)."""


@dataclass(frozen=True, slots=True)
class Holder:
    """A person who has the address that was asked for. One without an `id` is known by the address only."""

    id: str | None
    cio_id: str | None


ChangeType = Literal["failed_attribute_change", "skipped_update"]
"""The lines of the activity log about changes that were not made: failed, or older than what was there."""


@dataclass(frozen=True, slots=True)
class FailedChange:
    """A change of a person's attribute that Customer.io accepted and then did not make.

    `person` is the id, `at` the unix time in seconds. `wanted` is a customer's data: to compare with, and not to tell.
    """

    person: str | None
    attribute: str
    wanted: object = field(repr=False)
    at: int


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as the activity log has it: `ulid` where that is the line's id, `event_id` where it has the property.

    `event_id` is a text, `person` the id, `at` unix seconds. What a line of an event looks like inside is not
    documented, so each may be missing.
    """

    name: str
    ulid: str
    event_id: str | None
    person: str | None = None
    at: int | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A message that was made for a person, by a campaign or by something else, at a unix time in seconds.

    `failed`: it was not delivered.
    """

    id: str
    campaign: int | None
    created: int
    failed: bool


@dataclass(frozen=True, slots=True)
class FailedEvent:
    """An event that Customer.io accepted and then did not take: of whom, its name and its property `event_id`."""

    person: str
    name: str
    event_id: str


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment. While its `state` is another than finished, Customer.io is still finding out who is in it.

    States: finished, build, build_queued, events, events_queued; types: dynamic, manual (the published description).
    """

    id: int
    name: str
    state: str
    type: str


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign: what starts it is an event's name, or people's entering one of the segments (their ids)."""

    id: int
    name: str
    state: str
    event_name: str | None
    segments: tuple[int, ...]

    @property
    def running(self) -> bool:
        """Whether it starts for people now."""
        return self.state == "running"

    def told(self) -> dict[str, Any]:
        """What a plan shows of it."""
        return {"id": self.id, "name": self.name, "event_name": self.event_name, "segments": list(self.segments)}


class AppApi:
    """Reads one workspace. A context manager; its methods may be called from any thread.

    What fails in passing is tried up to `attempts` times, for some ten seconds by default; `Retry-After` is honoured.
    Constructing makes no request; it raises ConfigurationFault where the key is not set. Every method raises
    CredentialFault, ConfigurationFault (an answer that the App API does not give) and DeliveryUnavailable.
    """

    def __init__(self, settings: Settings, attempts: int = 5) -> None:
        if settings.customerio_app_api_key is None:
            raise ConfigurationFault(
                "CUSTOMERIO_APP_API_KEY is missing: set it to an App API key of the workspace"
                " (another key than the Track API's), so that what is really there can be looked up."
            )
        self._attempts = attempts
        key = settings.customerio_app_api_key.get_secret_value()
        self._http = httpx.Client(
            base_url=settings.customerio_app_url or APP_URLS[settings.customerio_region],
            # as bytes: a key that was pasted with a character beyond ASCII is for Customer.io to refuse
            headers={b"Authorization": b"Bearer " + key.encode(), b"User-Agent": b"tidemark"},
            timeout=TIMEOUT,
        )
        self._limiter = Limiter(Rate(REQUESTS_PER_SECOND, Duration.SECOND))

    def __enter__(self) -> "AppApi":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._limiter.close()  # or its thread outlives it
        self._http.close()

    def existing(self, ids: Collection[str]) -> set[str]:
        """Those of the ids, case-exact, for which Customer.io shows a person. One request for each 100."""
        found = {_holder(person).id for person in self._people(ids)}
        return {one for one in set(ids) if one in found}

    def attributes(self, ids: Collection[str]) -> dict[str, dict[str, str]]:
        """The attributes of those of the ids for which Customer.io shows a person, as it shows them: as text.

        One request for each 100. What they are is customers' data: to compare with, and to show to who has asked.
        """
        return {
            person: {name: as_text(value) for name, value in _inner(one, "attributes").items() if value is not None}
            for one in self._people(ids)
            if (person := _holder(one).id) is not None and person in ids
        }

    def _people(self, ids: Collection[str]) -> Iterator[dict[str, Any]]:
        asked = list(set(ids))
        for first in range(0, len(asked), _PAGE):
            answer = self._ask("POST", "/v1/customers/attributes", json={"ids": asked[first : first + _PAGE]})
            yield from (_inner(one, "customer") for one in _listed(answer, "customers"))

    def events(self, person: str) -> Iterator[StoredEvent]:
        """The events of one person (an id), read by pages of 100, the last that came first. None of nobody.

        The activity log is sure to reach back 30 days; what is older may be there or not (the published description).
        """
        path = f"/v1/customers/{quote(person, safe='')}/activities"
        for one in self._pages(path, "activities", also=(404,), type="event"):
            yield _stored_event(one)

    def latest_events(self, name: str) -> list[StoredEvent]:
        """The latest 100 events of a name, whoever sent them. One request."""
        answer = self._ask("GET", "/v1/activities", params={"type": "event", "name": name, "limit": str(_PAGE)})
        return [_stored_event(one) for one in _listed(answer, "activities")]

    def messages(self, person: str, since: int) -> list[Message]:
        """The messages that were made for one person (an id) since a unix time in seconds. None of nobody."""
        path = f"/v1/customers/{quote(person, safe='')}/messages"
        return [
            Message(
                str(one.get("id")),
                one.get("campaign_id"),
                int(one.get("created") or 0),
                bool(one.get("failure_message")),
            )
            for one in self._pages(path, "messages", also=(404,), start_ts=str(since))
        ]

    def holders(self, email: str) -> list[Holder]:
        """The people who have an address (in any case of letters): none, one, or several in some workspaces."""
        answer = self._ask("GET", "/v1/customers", also=(400,), params={"email": email})
        if answer.status_code == 200:
            return [_holder(person) for person in _listed(answer, "results")]
        # The description wants what it takes for an email address: one with an umlaut is none, and may be refused. A
        # person can have it all the same, and is found as the one whom the address identifies. Nobody is what only a
        # 404 says: a merge, which cannot be taken back, goes by it.
        path = f"/v1/customers/{quote(email, safe='')}/attributes"
        answer = self._ask("GET", path, also=(404,), params={"id_type": "email"})
        if answer.status_code == 404:
            return []
        return [_holder(_inner(_inner(_read(answer, "customer"), "customer"), "identifiers"))]

    def campaigns(self) -> list[Campaign]:
        """All campaigns of the workspace."""
        answer = self._ask("GET", "/v1/campaigns")
        return [
            Campaign(
                int(one.get("id") or 0),
                str(one.get("name") or ""),
                str(one.get("state") or ""),
                _text(one, "event_name"),
                tuple(one.get("trigger_segment_ids") or ()),
            )
            for one in _listed(answer, "campaigns")
        ]

    def segments(self) -> list[Segment]:
        """All segments of the workspace."""
        answer = self._ask("GET", "/v1/segments")
        return [
            Segment(
                int(one.get("id") or 0),
                str(one.get("name") or ""),
                str(one.get("state") or ""),
                str(one.get("type") or ""),
            )
            for one in _listed(answer, "segments")
        ]

    def count(self, segment: int) -> int:
        """How many people are in a segment."""
        answer = self._ask("GET", f"/v1/segments/{segment:d}/customer_count")
        if not isinstance(count := _read(answer, "count")["count"], int):
            raise _not_the_app_api(answer.status_code)
        return count

    def members(self, segment: int) -> Iterator[list[str]]:
        """The ids of the people in a segment, "" for who has none: pages of 30,000, a request each."""
        for answer in self._answers(f"/v1/segments/{segment:d}/membership", MEMBERS):
            ids = _read(answer, "ids")["ids"] or []
            if not isinstance(ids, list):
                raise _not_the_app_api(answer.status_code)
            yield ["" if one is None else str(one) for one in ids]

    def used_by(self, segment: int) -> list[int]:
        """The ids of the campaigns that use a segment, running or not."""
        answer = self._ask("GET", f"/v1/segments/{segment:d}/used_by")
        return [int(one) for one in _inner(_read(answer, "used_by"), "used_by").get("campaigns") or ()]

    def left_early(self, campaign: int, since: int, until: int) -> int:
        """How many of the journeys that began in that time (unix seconds) have ended early, as far as is counted yet.

        Which of two counts takes in who left by the campaign's goal is not documented, nor how soon it does.
        """
        path, params = f"/v1/campaigns/{campaign}/journey_metrics", {"start": since, "end": until, "res": "hours"}
        metrics = _inner(_read(self._ask("GET", path, params=params), "journey_metric"), "journey_metric")
        return max(sum(metrics.get(name) or ()) for name in ("converted", "exited_early"))

    def failed_changes(self, since: int, of_type: ChangeType = "failed_attribute_change") -> Iterator[FailedChange]:
        """The changes of attributes that failed at or after a unix time in seconds, newest first, read by pages of 100.

        The activity log reaches back 30 days. The shape of its lines is documented for changes that succeed only, so a
        line of another shape is left out, and a warning says so. One of `skipped_update` may name the value alone.
        """
        odd = False
        for activity, at in self._failures(of_type, since):
            changes = {
                name: change["to"] if isinstance(change, dict) and "to" in change else change
                for name, change in _inner(activity, "data").items()
                if of_type == "skipped_update" or (isinstance(change, dict) and "to" in change)
            }
            if at is not None and changes:
                yield from (FailedChange(_person(activity), name, to, at) for name, to in changes.items())
            else:
                odd = odd or _warn_of_shape(of_type)

    def failed_events(self, since: int) -> Iterator[FailedEvent]:
        """The events that failed at or after a unix time in seconds, as `failed_changes` has changes.

        Lines that do not name person, event and event_id are left out, and a warning says so.
        """
        odd = False
        for activity, at in self._failures("failed_event", since):
            person, name = _person(activity), _text(activity, "name")
            event_id = _inner(activity, "data").get("event_id")
            if at is not None and person and name and event_id is not None:
                yield FailedEvent(person, name, as_text(event_id))
            else:
                odd = odd or _warn_of_shape("failed_event")

    def _failures(self, of_type: str, since: int) -> Iterator[tuple[dict[str, Any], int | None]]:
        """Lines of the activity log and their times, None where that is in another shape."""
        for activity in self._pages("/v1/activities", "activities", type=of_type):
            at = activity.get("timestamp")
            if isinstance(at, int) and at < since:
                return
            yield activity, at if isinstance(at, int) else None

    def _pages(
        self, path: str, name: str, limit: int = _PAGE, also: Collection[int] = (), **params: str
    ) -> Iterator[dict[str, Any]]:
        """The objects that the answers list under a name, page after page; none after a status of `also`."""
        for answer in self._answers(path, limit, also, **params):
            yield from _listed(answer, name)

    def _answers(self, path: str, limit: int, also: Collection[int] = (), **params: str) -> Iterator[httpx.Response]:
        start: str | None = None
        while True:
            more = {"start": start} if start else {}
            answer = self._ask("GET", path, also, params={"limit": str(limit), **params, **more})
            if answer.status_code in also:
                return
            yield answer
            before, start = start, _text(answer.json(), "next")
            if start in (None, before):  # a page that names itself as the next would be read for ever
                return

    def _ask(self, method: str, path: str, also: Collection[int] = (), **content: Any) -> httpx.Response:
        """The answer to a request: 200, or a status of `also`."""
        try:
            return retrying(self._attempts)(self._request, method, path, also, content)
        except TryAgain as error:
            raise DeliveryUnavailable(str(error)) from None

    def _request(self, method: str, path: str, also: Collection[int], content: dict[str, Any]) -> httpx.Response:
        # No message names the path: it may hold an address.
        self._limiter.try_acquire("app")
        try:
            # nor may a trace: Azure Monitor's distribution makes one of every request that httpx sends, with its URL
            with suppress_http_instrumentation():
                answer = self._http.request(method, path, **content)
        except httpx.RequestError as error:
            raise TryAgain(
                f"Customer.io's App API at {self._http.base_url} gives no answer ({type(error).__name__})."
                " The next pass asks again."
            ) from None
        status = answer.status_code
        if status == 200 or status in also:
            return answer
        if status in (401, 403):
            raise CredentialFault(
                f"Customer.io's App API refuses the key ({status}). Correct CUSTOMERIO_APP_API_KEY (an App API key,"
                " which is another than the Track API's), and check that CUSTOMERIO_REGION is the account's."
            )
        if may_pass(status):
            raise TryAgain(
                f"Customer.io's App API keeps answering {status}. The next pass asks again.", retry_after(answer)
            )
        raise _not_the_app_api(status)


def _person(activity: dict[str, Any]) -> str | None:
    return _text(_inner(activity, "customer_identifiers"), "id") or _text(activity, "customer_id")


def _warn_of_shape(of_type: str) -> bool:
    log.warning(
        "Customer.io's activity log has failures (%s) in a shape that is not known. They are left out: look at them in"
        " Customer.io.",
        of_type,
    )
    return True


def _not_the_app_api(status: int) -> ConfigurationFault:
    return ConfigurationFault(
        f"Customer.io's App API answers {status} with what it never should."
        " Check CUSTOMERIO_REGION and CUSTOMERIO_APP_URL."
    )


def _read(answer: httpx.Response, name: str) -> dict[str, Any]:
    """The object that an answer consists of, which must have this key."""
    try:
        content = answer.json()
    except ValueError:
        content = None
    # Nothing found and nothing understood are two things: to take one for the other would lose a merge.
    if not isinstance(content, dict) or name not in content:
        raise _not_the_app_api(answer.status_code)
    return content


def _listed(answer: httpx.Response, name: str) -> list[dict[str, Any]]:
    """The objects that an answer lists under a name; null is an empty list."""
    items = _read(answer, name)[name]
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise _not_the_app_api(answer.status_code)
    return items


def _inner(outer: dict[str, Any], name: str) -> dict[str, Any]:
    inner = outer.get(name)
    return inner if isinstance(inner, dict) else {}


def _text(outer: dict[str, Any], name: str) -> str | None:
    """What is there as text; None for nothing and for blank."""
    value = outer.get(name)
    return None if value is None or value == "" else str(value)


def _stored_event(one: dict[str, Any]) -> StoredEvent:
    event_id, at = _inner(one, "data").get("event_id"), one.get("timestamp")
    return StoredEvent(
        str(one.get("name") or ""),
        str(one.get("id") or "").upper(),
        None if event_id is None else as_text(event_id),
        _person(one),
        at if isinstance(at, int) else None,
    )


def as_text(value: Any) -> str:
    """A value as the App API shows it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _holder(identifiers: dict[str, Any]) -> Holder:
    holder = Holder(_text(identifiers, "id"), _text(identifiers, "cio_id"))
    if holder == Holder(None, None):
        raise _not_the_app_api(200)
    return holder
