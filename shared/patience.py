"""How long Customer.io is waited for: what it asks for by Retry-After, else exponential back-off with jitter."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
from tenacity import RetryCallState, wait_exponential_jitter

_LONGEST_PAUSE = 30.0  # seconds
_LONGEST_ASKED_FOR = 120.0  # seconds

_backoff = wait_exponential_jitter(multiplier=0.5, max=_LONGEST_PAUSE, jitter=0.5)


class TryAgain(Exception):
    """No answer, or one that may be another next time. `after` is what Retry-After asked for, in seconds."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


def pause(state: RetryCallState) -> float:
    """Seconds until the next try: a wait strategy for tenacity."""
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
