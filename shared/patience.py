"""How long Customer.io is waited for: what it asks for by Retry-After, else exponential back-off with jitter."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

TIMEOUT = httpx.Timeout(30.0, connect=10.0)
"""Of one request, in seconds."""

_LONGEST_PAUSE = 30.0  # seconds
_LONGEST_ASKED_FOR = 120.0  # seconds

_backoff = wait_exponential_jitter(multiplier=0.5, max=_LONGEST_PAUSE, jitter=0.5)


class TryAgain(Exception):
    """No answer, or one that may be another next time. `after` is what Retry-After asked for, in seconds."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


def retrying(attempts: int, sleep: Callable[[float], None] = time.sleep) -> Retrying:
    """Calls a function until it raises TryAgain no more; after so many attempts its last one goes through."""
    return Retrying(
        retry=retry_if_exception_type(TryAgain),
        wait=_pause,
        stop=stop_after_attempt(attempts),
        sleep=sleep,
        reraise=True,
    )


def may_pass(status: int) -> bool:
    """Whether an answer with this HTTP status may be another next time."""
    return status in (408, 425, 429) or status >= 500


def _pause(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, TryAgain) and error.after is not None:
        return error.after
    return _backoff(state)


def retry_after(answer: httpx.Response) -> float | None:
    """Seconds from a Retry-After header, which holds seconds or a date (RFC 9110); at most two minutes."""
    value = answer.headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), _LONGEST_ASKED_FOR)
