"""The answers to HTTP requests: JSON, one clear message, never a stack trace."""

import json
import re
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

import azure.functions as func
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared import audit, canary, findings, pages, passes, pileup, plan, qa, readiness, reconcile, replay, work
from shared import status as overview
from shared.deadletters import DeadLetters
from shared.errors import CarryOn, NotThere, TidemarkError, TryLater, WrongRequest
from shared.pause import Pause
from shared.resync import Asked, no_such_run
from shared.settings import load
from shared.state import State
from shared.syncs import CATALOGUE, Sync, find


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


# within what every type of SQL Server's can hold
Moment = Annotated[AwareDatetime, Field(ge=datetime(1970, 1, 1, tzinfo=UTC), lt=datetime(2079, 1, 1, tzinfo=UTC))]
Ids = list[Annotated[str, Field(min_length=1, max_length=4000)] | int]


class Resync(_Body):
    """The body of a resync: whose rows, which, or all; a sample of so many people; and rows that the gate holds too."""

    customer_ids: Ids | None = Field(None, min_length=1, max_length=10_000)
    since: Moment | None = None
    until: Moment | None = None
    all: bool = False
    sample: int | None = Field(None, ge=1, le=10_000)
    held: bool = False
    dry_run: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [self.customer_ids is not None, self.since is not None or self.until is not None, self.all]
        if sum(ways) > 1 or not any([*ways, self.sample]):
            raise ValueError("give one of customer_ids, since and/or until, all; or a sample of people")
        if self.customer_ids and self.sample:
            raise ValueError("a sample is of all people, or of those in a period: leave out customer_ids")
        if self.since and self.until and self.since >= self.until:
            raise ValueError("since must be before until")
        return self


class GoLive(_Body):
    """The body of going live: the syncs, by default all; and the event time before which events are held back."""

    syncs: list[str] | None = Field(None, min_length=1, max_length=100)
    since: Moment | None = None


class Qa(_Body):
    """The body of a QA sync: how many people, spread over which columns' values, or who; and events that could fire."""

    size: int | None = Field(None, ge=50, le=200)
    strata: list[Annotated[str, Field(min_length=1, max_length=128)]] | None = Field(None, min_length=1, max_length=20)
    customer_ids: Ids | None = Field(None, min_length=1, max_length=200)
    include_young: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.customer_ids is not None and (self.size is not None or self.strata is not None):
            raise ValueError("give customer_ids, or size and strata by which people are picked")
        return self


class Reconciliation(_Body):
    """The body of a reconciliation: which segments, all by default; and whether who differs is to be sent again."""

    segments: list[Annotated[str, Field(min_length=1, max_length=128)]] | None = Field(
        None, min_length=1, max_length=100
    )
    repair: bool = False


class Canary(_Body):
    """The body of a canary: which journey."""

    journey: Literal["order", "cart"] = "order"


class Stop(_Body):
    """The body of a pause: one sync, or all; and why."""

    sync: str | None = None
    reason: str = Field(min_length=1, max_length=400)


class Resume(_Body):
    """The body of a resume: the sync, or all; nothing goes on before it is confirmed."""

    sync: str | None = None
    confirm: bool = False


class Release(_Body):
    """The body of a release: the reason, as the message of the stop gives it."""

    reason: str = Field(min_length=1, max_length=400)


class Accept(_Body):
    """The body of an acceptance: the column whose type of now is meant."""

    column: str = Field(min_length=1, max_length=128)


class Replay(_Body):
    """The body of a replay: which letters, all by default, and whether events may go that could start a campaign."""

    keys: list[str] | None = Field(None, min_length=1, max_length=10_000)
    reason: str | None = Field(None, min_length=1, max_length=400)
    confirm: bool = False


def resync(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/syncs/{sync}/resync: plan to send rows again; 202 with the run and where its plan will be.

    A dry run also shows the first operations as they would be sent, to who asked and nowhere else.
    """

    def act() -> func.HttpResponse:
        sync = _sync(request)
        body = Resync.model_validate_json(request.get_body() or b"{}")
        asked_for = body.model_dump(mode="json", exclude_defaults=True)
        settings = load()
        with closing(State(settings)) as state:
            shown = plan.check(state, settings, sync, asked_for, show=body.dry_run)
        more = {"operations": shown} if body.dry_run else {}
        return _accepted(work.ask("resync", asked_for, sync.name), **more)

    return _answer(act)


def go_live(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/go-live: plan to send everything for the first time; 202 as for a resync."""

    def act() -> func.HttpResponse:
        body = GoLive.model_validate_json(request.get_body() or b"{}")
        for name in body.syncs or ():
            find(name)
        return _accepted(work.ask("go-live", body.model_dump(mode="json", exclude_defaults=True)))

    return _answer(act)


def qa_sync(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/qa: plan to send some people, and to compare what Customer.io has of them then; 202 as for a resync."""

    def act() -> func.HttpResponse:
        body = Qa.model_validate_json(request.get_body() or b"{}")
        asked_for = body.model_dump(mode="json", exclude_defaults=True)
        qa.check(load(), asked_for)
        return _accepted(work.ask("qa", asked_for))

    return _answer(act)


def report(request: func.HttpRequest) -> func.HttpResponse:
    """GET /api/runs/{run}/report: what a QA sync has found, as JSON or as a page (pages.is_wanted).

    It holds customers' data, for who has asked and nobody else: it is kept nowhere, and nobody is to cache it.
    """

    def act() -> func.HttpResponse:
        told = work.report(_run(request))
        return qa.page(told) if pages.is_wanted(request) else _json(200, told, {"Cache-Control": "no-store"})

    return _answer(act)


def run(request: func.HttpRequest) -> func.HttpResponse:
    """GET /api/runs/{run}: its plan, and how far it is."""
    return _answer(lambda: _json(200, work.status(_run(request))))


def decide(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/runs/{run}/approve, /cancel or /retry; the run as it is then."""
    decisions = {"approve": work.approve, "cancel": work.cancel, "retry": work.retry}

    def act() -> func.HttpResponse:
        decision = decisions.get(request.route_params.get("decision") or "")
        if decision is None:
            raise NotThere("A run can be told to approve, cancel or retry.")
        return _json(200, work.status(decision(_run(request)).run))

    return _answer(act)


def pause(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/pause: timers, slices and running passes stop before their next batch."""

    def act() -> func.HttpResponse:
        body = Stop.model_validate_json(request.get_body())
        sync = find(body.sync) if body.sync is not None else None
        with closing(State(load())) as state:
            state.create()
            switch = Pause(state)
            switch.begin(sync, body.reason)
            return _json(200, {"paused": _paused(switch)})

    return _answer(act)


def resume(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/resume: what has piled up; with {"confirm": true} it goes on."""

    def act() -> func.HttpResponse:
        body = Resume.model_validate_json(request.get_body() or b"{}")
        sync = find(body.sync) if body.sync is not None else None
        settings = load()
        with closing(State(settings)) as state:
            state.create()
            switch = Pause(state)
            waiting = pileup.count(state, settings, [sync] if sync else CATALOGUE)
            if body.confirm:
                switch.end(sync)
            stops = _paused(switch)
        if body.confirm:
            work.go_on_after_pause()
        answer: dict[str, Any] = {"paused": stops, "waiting": waiting}
        if not body.confirm:
            answer["next"] = 'Nothing goes on yet: POST /api/resume with {"confirm": true} lets it.'
        return _json(200, answer)

    return _answer(act)


def release(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/syncs/{sync}/release: from now on rows may fail for this reason, or this surge may pass."""

    def act() -> func.HttpResponse:
        sync = _sync(request)
        body = Release.model_validate_json(request.get_body())
        passes.release(sync, body.reason)
        return _json(200, {"sync": sync.name, "released": body.reason})

    return _answer(act)


def accept(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/syncs/{sync}/accept: a column's type of now is the one that is meant."""

    def act() -> func.HttpResponse:
        sync = _sync(request)
        body = Accept.model_validate_json(request.get_body())
        return _json(200, {"sync": sync.name, "column": body.column, "type": passes.accept(sync, body.column)})

    return _answer(act)


def dead_letters(request: func.HttpRequest) -> func.HttpResponse:
    """GET /api/dead-letters/{sync}: what could not be delivered, counted by reason, with keys."""

    def act() -> func.HttpResponse:
        sync = _sync(request)
        settings = load()
        with closing(State(settings)) as state:
            return _json(200, DeadLetters(state.container, sync, "", settings.dead_letter_days).summary())

    return _answer(act)


def replay_dead_letters(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/dead-letters/{sync}/replay: read their rows again, and send them as they are now."""

    def act() -> func.HttpResponse:
        sync = _sync(request)
        body = Replay.model_validate_json(request.get_body() or b"{}")
        return _json(200, asdict(replay.replay(sync, body.keys, body.reason, confirmed=body.confirm)))

    return _answer(act)


def audit_report(request: func.HttpRequest) -> func.HttpResponse:
    """GET /api/audits/{sync}: what the audits of a sync have found, with the ids of whom it concerns."""

    def act() -> func.HttpResponse:
        sync = _sync(request)
        with closing(State(load())) as state:
            noted = findings.last(state, audit.check(sync))
        if noted is None:
            raise NotThere(f"Nothing that {sync.name} has sent was audited yet.")
        return _json(200, asdict(noted))

    return _answer(act)


def reconciliation(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/reconciliation: compare segments with their views; 202 as for a resync."""

    def act() -> func.HttpResponse:
        body = Reconciliation.model_validate_json(request.get_body() or b"{}")
        asked_for = body.model_dump(mode="json", exclude_defaults=True)
        settings = load()
        with closing(State(settings)) as state:
            reconcile.check(state, settings, asked_for)
        return _accepted(work.ask("reconciliation", asked_for, "customers"))

    return _answer(act)


def status(request: func.HttpRequest) -> func.HttpResponse:
    """GET /api/status: how everything is, as JSON or as a page (pages.is_wanted); 200 whatever that is."""

    def act() -> func.HttpResponse:
        settings = load()
        with closing(State(settings)) as state:
            told = overview.gather(state, settings)
        return overview.page(told) if pages.is_wanted(request) else _json(200, told, {"Cache-Control": "no-store"})

    return _answer(act)


def run_canary(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/canary: send an event to the test person, and follow it; 202 with the run and where it is told."""

    def act() -> func.HttpResponse:
        body = Canary.model_validate_json(request.get_body() or b"{}")
        canary.check(load(), body.journey)
        return _accepted(work.ask("canary", body.model_dump()))

    return _answer(act)


def ready(request: func.HttpRequest) -> func.HttpResponse:
    """GET /api/readiness: what is set up and what is not, as JSON or as a page; 200 whatever is found."""
    told = readiness.check()
    if pages.is_wanted(request):
        return pages.render("readiness.html", report=told)
    return _json(200, told, {"Cache-Control": "no-store"})


def _answer(act: Callable[[], func.HttpResponse]) -> func.HttpResponse:
    try:
        return act()
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        lines = [f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in problems]
        return _json(422, {"error": "; ".join(lines[:20])})
    except NotThere as error:
        return _json(404, {"error": str(error)})
    except WrongRequest as error:
        return _json(422, {"error": str(error)})
    except TidemarkError as error:
        status = 409 if isinstance(error, CarryOn) else 503 if isinstance(error, TryLater) else 500
        return _json(status, {"error": str(error)})


def _sync(request: func.HttpRequest) -> Sync:
    return find(request.route_params.get("sync"))


def _run(request: func.HttpRequest) -> str:
    run = request.route_params.get("run") or ""
    if not re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{26}", run):
        raise no_such_run()
    return run


def _accepted(asked: Asked, **more: Any) -> func.HttpResponse:
    url = f"/api/runs/{asked.run}"
    return _json(202, {"run": asked.run, "state": asked.state, "url": url, **more}, {"Location": url})


def _paused(switch: Pause) -> dict[str, Any]:
    return {name: stop._asdict() for name, stop in switch.stops().items()}


def _json(status: int, content: dict[str, Any], headers: dict[str, str] | None = None) -> func.HttpResponse:
    return func.HttpResponse(json.dumps(content), status_code=status, headers=headers, mimetype="application/json")
