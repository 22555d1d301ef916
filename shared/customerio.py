"""The client of Customer.io's Track API v2: batches go out, and each operation's fate comes back.

Facts (Customer.io's Track API documentation): HTTP Basic with site id and API key; `POST /api/v2/batch` takes less than
500 kB; 200 accepts all, 207 lists what failed for good by `batch_index`, 400 refuses the request as a whole.
2xx means accepted, not yet applied.
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

import httpx
from pyrate_limiter import Duration, Limiter, Rate
from tenacity import sleep_using_event

from shared.errors import ConfigurationFault, CredentialFault, DeliveryUnavailable, TidemarkError
from shared.patience import TIMEOUT, TryAgain, may_pass, retry_after, retrying
from shared.settings import Settings

TRACK_URLS = {"us": "https://track.customer.io", "eu": "https://track-eu.customer.io"}

BATCH_BYTES = 475_000
"""The most bytes of a request's body: the limit is 500 kB, and the vendor's own client keeps this margin."""

_HEAD, _TAIL = b'{"batch":[', b"]}"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why Customer.io will never take an operation. `reason` quotes no value."""

    reason: str
    field: str | None = None


class Unknown:
    """The fate of an operation of which nobody knows whether it arrived: it is not accounted, and goes again."""


UNKNOWN = Unknown()


class Barred(Enum):
    """The fate of an operation that was not sent, because of what was recorded of its person meanwhile."""

    REMOVED = "removed"
    MERGED = "merged"


Fate = Rejection | Unknown | Barred | None
"""None: accepted."""

Guard = Callable[[Sequence[str]], Mapping[str, Barred]]
"""Says of people, by their ids, who must be sent nothing any more. Asked right before every try of every batch."""


class Group(NamedTuple):
    """Operations on one person, as JSON, that must go in one batch and in this order. `person` is the id."""

    person: str
    payloads: tuple[bytes, ...]


class _Held(Exception):
    """Some of a batch's people are barred."""

    def __init__(self, people: Mapping[str, Barred]) -> None:
        super().__init__()
        self.people = people


class CustomerIo:
    """Sends batches to one workspace, several at once, at most so many requests a second.

    `requests` counts the HTTP requests, `throttled` those that were answered 429; what fails in passing is tried up to
    `attempts` times, for about a minute by default. `guard` may be called from several threads at once. A context
    manager; its own methods may be called from one thread at a time.
    """

    def __init__(self, settings: Settings, guard: Guard | None = None, attempts: int = 8) -> None:
        self._guard = guard
        self._attempts = attempts
        self._region = settings.customerio_region
        self._http = httpx.Client(
            base_url=settings.customerio_track_url or TRACK_URLS[self._region],
            auth=(settings.customerio_site_id, settings.customerio_api_key.get_secret_value()),
            timeout=TIMEOUT,
            limits=httpx.Limits(max_connections=settings.customerio_batches_in_flight),
            headers={"Content-Type": "application/json", "User-Agent": "tidemark"},
        )
        self._limiter = Limiter(Rate(settings.customerio_requests_per_second, Duration.SECOND))
        self._pool = ThreadPoolExecutor(settings.customerio_batches_in_flight, "customerio")
        self._failure: TidemarkError | None = None
        self._given_up = threading.Event()  # also wakes the batches that pause before another try
        self._count = threading.Lock()
        self.requests = 0
        self.throttled = 0

    def __enter__(self) -> "CustomerIo":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up what is still to be sent, and end."""
        self._give_up(DeliveryUnavailable("The pass has ended."))
        self._pool.shutdown(cancel_futures=True)
        self._limiter.close()  # or its thread outlives it
        self._http.close()

    def workspace(self) -> str:
        """The id of the workspace that the credentials belong to.

        Raises CredentialFault, DeliveryUnavailable, or ConfigurationFault where the account lives in another region.
        """
        try:
            answer = self._retrying("GET", "/api/v1/accounts/region")
        except TryAgain as error:
            raise DeliveryUnavailable(str(error)) from None
        try:
            about = answer.json() if answer.status_code == 200 else {}
        except ValueError:
            about = {}
        if not isinstance(about, dict) or "environment_id" not in about:
            raise ConfigurationFault(
                f"Customer.io answers {answer.status_code} when asked for the account's region, and no environment_id."
                " Check CUSTOMERIO_REGION and CUSTOMERIO_TRACK_URL."
            )
        if about.get("region", self._region) != self._region:
            raise ConfigurationFault(
                f"CUSTOMERIO_REGION is {self._region}, but the account of CUSTOMERIO_SITE_ID is in {about['region']}."
            )
        return str(about["environment_id"])

    def send(self, groups: Sequence[Group]) -> "Sending":
        """Start to send operations, in batches; wait for their fates when they are needed."""
        return Sending(
            self,
            [(batch, self._pool.submit(copy_context().run, self._deliver, batch)) for batch in _batches(groups)],
        )

    @property
    def failure(self) -> TidemarkError | None:
        """What made the client stop sending, if anything did."""
        return self._failure

    def _give_up(self, failure: TidemarkError) -> None:
        self._failure = self._failure or failure
        self._given_up.set()

    def _deliver(self, groups: Sequence[Group]) -> list[tuple[Fate, ...]]:
        """Send one batch; where Customer.io does not say which operation is at fault, halve it until it does."""
        unknown: list[tuple[Fate, ...]] = [(UNKNOWN,) * len(group.payloads) for group in groups]
        if self._failure:
            return unknown
        try:
            answer = self._retrying("POST", "/api/v2/batch", groups)
        except _Held as held:
            rest = [group for group in groups if group.person not in held.people]
            others = iter(self._deliver(rest) if rest else ())
            return [
                (held.people[group.person],) * len(group.payloads) if group.person in held.people else next(others)
                for group in groups
            ]
        except TryAgain as error:
            self._give_up(DeliveryUnavailable(str(error)))
            return unknown
        except TidemarkError as error:
            self._give_up(error)
            return unknown
        operations = sum(len(group.payloads) for group in groups)
        if answer.status_code == 200:
            return [(None,) * len(group.payloads) for group in groups]
        errors = _errors(answer)
        indexes = [error.get("batch_index") for error in errors or ()]
        if (
            answer.status_code == 207
            and errors is not None
            and all(isinstance(i, int) and 0 <= i < operations for i in indexes)
        ):
            rejections = {error["batch_index"]: _rejection(error) for error in reversed(errors)}
            fates = iter([rejections.get(index) for index in range(operations)])
            return [tuple(next(fates) for _ in group.payloads) for group in groups]
        if operations == 1 and answer.status_code == 413:
            self._give_up(
                DeliveryUnavailable(
                    "Customer.io finds even a single operation too large (413), which no row of ours is."
                    " Nothing is lost: the next pass goes on from the mark."
                )
            )
            return unknown
        if operations == 1 and errors is None and answer.status_code == 207:
            self._give_up(
                DeliveryUnavailable(
                    "Customer.io answers 207 and does not say what failed."
                    " Nothing is lost: the next pass goes on from the mark."
                )
            )
            return unknown
        if operations == 1:
            return [(_rejection(errors[0]) if errors else Rejection(f"refused with {answer.status_code}"),)]
        if len(groups) == 1:
            person, parts = groups[0]
            return [tuple(fate for part in parts for fate in self._deliver([Group(person, (part,))])[0])]
        middle = len(groups) // 2
        return self._deliver(groups[:middle]) + self._deliver(groups[middle:])

    def _retrying(self, method: str, path: str, groups: Sequence[Group] = ()) -> httpx.Response:
        """The answer to a request: 200, 207, 400 or 413. Raises TryAgain when patience ends, _Held, or a StopRun."""
        sleep = sleep_using_event(self._given_up)
        return retrying(self._attempts, sleep)(self._request, method, path, groups)

    def _request(self, method: str, path: str, groups: Sequence[Group]) -> httpx.Response:
        if self._failure:
            raise TryAgain("Customer.io was given up by another batch of this pass.")
        body = _HEAD + b",".join(part for group in groups for part in group.payloads) + _TAIL if groups else None
        self._limiter.try_acquire("track")
        if self._guard and groups:
            barred = self._guard([group.person for group in groups])
            if any(group.person in barred for group in groups):
                raise _Held(barred)
        with self._count:
            self.requests += 1
        try:
            answer = self._http.request(method, path, content=body)
        except httpx.RequestError as error:
            raise TryAgain(
                f"Customer.io at {self._http.base_url} gives no answer ({type(error).__name__})."
                " Nothing is lost: the next pass goes on from the mark."
            ) from None
        status = answer.status_code
        if status == 429:
            with self._count:
                self.throttled += 1
        if status in (200, 207, 400, 413):
            return answer
        if status in (401, 403):
            raise CredentialFault(
                f"Customer.io refuses the credentials ({status}). Correct CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY"
                " (the Track API key), and check that CUSTOMERIO_REGION is the account's."
            )
        if may_pass(status):
            raise TryAgain(
                f"Customer.io keeps answering {status}. Nothing is lost: the next pass goes on from the mark.",
                retry_after(answer),
            )
        raise ConfigurationFault(
            f"Customer.io answers {status} to {path}, which it never should."
            " Check CUSTOMERIO_REGION and CUSTOMERIO_TRACK_URL."
        )


class Sending:
    """Batches on their way."""

    def __init__(
        self, client: CustomerIo, batches: list[tuple[Sequence[Group], "Future[list[tuple[Fate, ...]]]"]]
    ) -> None:
        self._client = client
        self._batches = batches

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return len(self._batches)

    def wait(self) -> list[tuple[Fate, ...]]:
        """The fates of each group's operations, in the order given. What failed is UNKNOWN; see CustomerIo.failure."""
        return [fates for _, sent in self._batches for fates in sent.result()]


def _batches(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Cut groups into batches whose bodies stay below BATCH_BYTES."""
    batch: list[Group] = []
    size = 0
    for group in groups:
        length = sum(map(len, group.payloads)) + len(group.payloads)  # with a comma each
        if batch and size + length > BATCH_BYTES - len(_HEAD) - len(_TAIL):
            yield batch
            batch, size = [], 0
        batch.append(group)
        size += length
    if batch:
        yield batch


def _errors(answer: httpx.Response) -> list[dict[str, Any]] | None:
    """The errors that an answer lists; None where it cannot be read."""
    try:
        errors = answer.json()["errors"]
    except (ValueError, KeyError, TypeError):
        return None
    return errors if isinstance(errors, list) and all(isinstance(error, dict) for error in errors) else None


def _rejection(error: dict[str, Any]) -> Rejection:
    # The message is left out, and so is whatever does not look like a code or a field's path: it may quote the value.
    reason, field = str(error.get("reason")), str(error.get("field"))
    return Rejection(
        reason if re.fullmatch(r"[a-z_]{1,40}", reason) else "rejected",
        field if error.get("field") and re.fullmatch(r"[\w.\[\]-]{1,200}", field) else None,
    )
