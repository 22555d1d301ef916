"""Counts what is asked of blob storage."""

import logging
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def blob_calls() -> Iterator[Counter[str]]:
    """Counts the requests to blob storage, as the Azure SDK logs them: by method and kind of blob, or as `not 2xx`.

    To count takes time, so nothing is timed beside it.
    """
    calls: Counter[str] = Counter()
    asked: dict[int | None, str] = {}  # by thread: a request's answer is logged by its own

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = record.getMessage()
            if request := re.match(r"Request URL: '(\S+)'\nRequest method: '(\w+)'", text):
                kind = re.search(r"/ledger/(\w+)", request[1])
                block = " block" if "journals" in request[1] and "comp=" in request[1] else ""
                asked[record.thread] = f"{request[2]} {kind[1] if kind else 'other'}{block}"
            elif text.startswith("Response status: "):
                calls[asked[record.thread] if text.startswith("Response status: 2") else "not 2xx"] += 1

    logger = logging.getLogger("azure.core.pipeline.policies.http_logging_policy")
    handler = Counting()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield calls
    finally:
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
        logger.removeHandler(handler)
