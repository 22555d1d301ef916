"""The answers to HTTP requests: JSON, one clear message, never a stack trace."""

import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

import azure.functions as func
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared import passes, replay
from shared.deadletters import DeadLetters
from shared.errors import CarryOn, NotThere, TidemarkError, TryLater
from shared.settings import load
from shared.state import State
from shared.syncs import Sync, find


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


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


def release(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/syncs/{sync}/release: from now on rows may fail for this reason, or this surge may pass."""

    def act(sync: Sync) -> dict[str, Any]:
        body = Release.model_validate_json(request.get_body())
        passes.release(sync, body.reason)
        return {"sync": sync.name, "released": body.reason}

    return _answer(request, act)


def accept(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/syncs/{sync}/accept: a column's type of now is the one that is meant."""

    def act(sync: Sync) -> dict[str, Any]:
        body = Accept.model_validate_json(request.get_body())
        return {"sync": sync.name, "column": body.column, "type": passes.accept(sync, body.column)}

    return _answer(request, act)


def dead_letters(request: func.HttpRequest) -> func.HttpResponse:
    """GET /api/dead-letters/{sync}: what could not be delivered, counted by reason, with keys."""

    def act(sync: Sync) -> dict[str, Any]:
        settings = load()
        with closing(State(settings)) as state:
            return DeadLetters(state.container, sync, "", settings.dead_letter_days).summary()

    return _answer(request, act)


def replay_dead_letters(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/dead-letters/{sync}/replay: read their rows again, and send them as they are now."""

    def act(sync: Sync) -> dict[str, Any]:
        body = Replay.model_validate_json(request.get_body() or b"{}")
        return asdict(replay.replay(sync, body.keys, body.reason, confirmed=body.confirm))

    return _answer(request, act)


def _answer(request: func.HttpRequest, act: Callable[[Sync], dict[str, Any]]) -> func.HttpResponse:
    try:
        return _json(200, act(find(request.route_params.get("sync"))))
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        lines = [f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in problems]
        return _json(422, {"error": "; ".join(lines)})
    except NotThere as error:
        return _json(404, {"error": str(error)})
    except TidemarkError as error:
        status = 409 if isinstance(error, CarryOn) else 503 if isinstance(error, TryLater) else 500
        return _json(status, {"error": str(error)})


def _json(status: int, content: dict[str, Any]) -> func.HttpResponse:
    return func.HttpResponse(json.dumps(content), status_code=status, mimetype="application/json")
