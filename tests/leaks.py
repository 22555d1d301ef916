"""The watch over what goes out of the product: log lines, metrics, exceptions and HTTP answers.

None of them may hold an address, something that looks like a secret, or the word `planted`, which is in every secret of
the tests' services and in what a test puts into a row to be found.

Exceptions and answers are seen by sys.monitoring, which Python has from 3.12 on: each that the product makes, caught or
not, without a patch of the product. On 3.11 they are not watched.
"""

import logging
import math
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import CodeType
from typing import Any

import azure.functions as func
from opentelemetry import metrics
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    PeriodicExportingMetricReader,
)

from shared.errors import TidemarkError
from shared.telemetry import METRICS

NEVER = re.compile(r"[\w.+-]+@[\w-]+\.\w+|planted|(?i:pwd|password|accountkey|authorization)\s*[=:](?!\.{3})")
MONITORING = sys.version_info >= (3, 12)

_REPOSITORY = Path(__file__).resolve().parent.parent
_PRODUCT = (str(_REPOSITORY / "shared"), str(_REPOSITORY / "function_app.py"))
_DIMENSIONS = {one.name: {"sync", *one.dimensions} for one in METRICS}
_TOOL = 4  # debuggers, coverage, profilers and hypothesis have others

Point = tuple[str, Mapping[str, Any], float]
"""Of a metric: its name, the attributes, and the count, or the sum of its values."""


class Watch:
    """Keeps what must not go out in `found`, and the metrics' points since `begin` in `points`. One a process."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.points: list[Point] = []
        self._responses = True
        self._logs = _Logs(self)
        metrics.set_meter_provider(
            MeterProvider([PeriodicExportingMetricReader(_Points(self), math.inf)], shutdown_on_exit=False)
        )
        if sys.version_info >= (3, 12):
            monitoring = sys.monitoring
            monitoring.use_tool_id(_TOOL, "tidemark leaks")
            monitoring.register_callback(_TOOL, monitoring.events.RAISE, self._raised)
            monitoring.register_callback(_TOOL, monitoring.events.PY_RETURN, self._returned)
            monitoring.set_events(_TOOL, monitoring.events.RAISE | monitoring.events.PY_RETURN)

    def begin(self, *, responses: bool = True) -> None:
        """Forget what was before. Without `responses` HTTP answers may hold anything."""
        logging.getLogger().removeHandler(self._logs)
        logging.getLogger().addHandler(self._logs)  # whatever has become of it in another test
        self.found.clear()
        self.points.clear()
        self._responses = responses

    def close(self) -> None:
        logging.getLogger().removeHandler(self._logs)
        if sys.version_info >= (3, 12):
            sys.monitoring.set_events(_TOOL, 0)
            sys.monitoring.free_tool_id(_TOOL)

    def look(self, where: str, text: str) -> None:
        """Keep a text that must not go out."""
        if NEVER.search(text):
            self.found.append(f"{where}: {text}")

    def look_at_metric(self, name: str, told: Mapping[str, Any]) -> None:
        """Keep a point that has other dimensions than the table of metrics, or in one of them what is no code's word."""
        words = all(re.fullmatch("[a-z_-]{1,40}", str(value)) for value in told.values())
        if name.startswith("tidemark") and (told.keys() != _DIMENSIONS.get(name) or not words):
            self.found.append(f"metric {name}: {told}")
        self.look(f"metric {name}", str(told))

    def _raised(self, code: CodeType, _: int, error: BaseException) -> None:
        if isinstance(error, TidemarkError) and code.co_filename.startswith(_PRODUCT):
            self.look(code.co_qualname, _as_logged(error))

    def _returned(self, code: CodeType, _: int, answer: object) -> object:
        if not isinstance(answer, func.HttpResponse) or not code.co_filename.startswith(_PRODUCT):
            return sys.monitoring.DISABLE  # this place is not asked again, or it would cost
        if self._responses:
            self.look(f"answer of {code.co_qualname}", f"{dict(answer.headers)} {answer.get_body().decode()}")
        return None


def _as_logged(error: BaseException | None) -> str:
    """An exception with its notes and causes, as the host logs it, without the lines of source code."""
    told = traceback.TracebackException.from_exception(error, lookup_lines=False) if error else None
    lines = []
    while told is not None:
        lines += told.format_exception_only()
        told = told.__cause__ or (None if told.__suppress_context__ else told.__context__)
    return "".join(lines)


class _Logs(logging.Handler):
    def __init__(self, watch: Watch) -> None:
        super().__init__(logging.DEBUG)
        self._watch = watch

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text += _as_logged(record.exc_info[1])
        if not record.name.startswith(("local", "azure.core.pipeline")):
            self._watch.look(record.name, text)


class _Points(MetricExporter):
    """Takes what Azure Monitor's exporter would, with its temporality: at each flush what is new."""

    def __init__(self, watch: Watch) -> None:
        new = AggregationTemporality.DELTA
        super().__init__(preferred_temporality={Counter: new, Histogram: new})
        self._watch = watch

    def export(self, metrics_data: MetricsData, timeout_millis: float = 0, **_: Any) -> MetricExportResult:
        for resource in metrics_data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        told = dict(point.attributes or {})
                        self._watch.look_at_metric(metric.name, told)
                        amount = point.sum if hasattr(point, "sum") else point.value
                        self._watch.points.append((metric.name, told, amount))
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **_: Any) -> None:
        pass
