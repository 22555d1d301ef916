"""The answers to HTTP requests: JSON, one clear message, never a stack trace."""

import json
from collections.abc import Callable
from typing import Any

import azure.functions as func
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared import passes
from shared.errors import CarryOn, TidemarkError, TryLater
from shared.syncs import CATALOGUE


class Release(BaseModel):
    """The body of a release: the reason, as the flood's message gives it."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    reason: str = Field(min_length=1, max_length=400)


def release(request: func.HttpRequest) -> func.HttpResponse:
    """POST /api/syncs/{sync}/release: from now on, rows may fail for this reason in any number."""

    def act() -> dict[str, Any]:
        body = Release.model_validate_json(request.get_body())
        sync = next((sync for sync in CATALOGUE if sync.name == request.route_params.get("sync")), None)
        if sync is None:
            raise LookupError("There is no such sync. The syncs are: " + ", ".join(s.name for s in CATALOGUE) + ".")
        passes.release(sync, body.reason)
        return {"sync": sync.name, "released": body.reason}

    return _answer(act)


def _answer(act: Callable[[], dict[str, Any]]) -> func.HttpResponse:
    try:
        return _json(200, act())
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        lines = [f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in problems]
        return _json(422, {"error": "; ".join(lines)})
    except LookupError as error:
        return _json(404, {"error": str(error)})
    except TidemarkError as error:
        status = 409 if isinstance(error, CarryOn) else 503 if isinstance(error, TryLater) else 500
        return _json(status, {"error": str(error)})


def _json(status: int, content: dict[str, Any]) -> func.HttpResponse:
    return func.HttpResponse(json.dumps(content), status_code=status, mimetype="application/json")
