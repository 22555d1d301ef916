"""What a function app says about itself, and the checks that the worker library leaves to the real host.

The library finds wrong parameters, annotations, names and modules. It looks at neither host.json, nor cron texts, nor
`%SETTINGS%`, nor queue names, nor routes.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from croniter import croniter

Settings = Mapping[str, str]


class AppFault(RuntimeError):
    """The app cannot be indexed, or the real host would refuse it. The message has one line for each fault."""


@dataclass(frozen=True, slots=True)
class Function:
    """One function as the worker indexed it; bindings are dicts in function.json's terms."""

    name: str
    bindings: tuple[Mapping[str, Any], ...]

    @property
    def trigger(self) -> Mapping[str, Any]:
        return next(binding for binding in self.bindings if str(binding["type"]).lower().endswith("trigger"))

    @property
    def kind(self) -> str:
        """`timer`, `http`, `queue`, or what else stands before Trigger."""
        return str(self.trigger["type"]).lower().removesuffix("trigger")

    def disabled(self, settings: Settings) -> bool:
        return settings.get(f"AzureWebJobs.{self.name}.Disabled", "").lower() in ("1", "true")


def resolve(text: str, settings: Settings) -> str:
    """The text with each `%NAME%` replaced by that app setting. Raises AppFault for one that is not set."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in settings:
            raise AppFault(f"the app setting {match[1]} (used as {match[0]}) is not set")
        return settings[match[1]]

    return re.sub(r"%([^%]+)%", value, text)


# Each field of an NCRONTAB is a list of numbers, ranges and steps; months and days of the week may go by name. What
# croniter adds to that (L, #, ?, random and @daily) the real host does not understand.
_NUMBERS = re.compile(r"(\*|\d+(-\d+)?)(/\d+)?(,(\*|\d+(-\d+)?)(/\d+)?)*")
_NAMES = re.compile(r"(\*|\w+(-\w+)?)(/\d+)?(,(\*|\w+(-\w+)?)(/\d+)?)*")


def cron(text: str, start: datetime) -> croniter:
    """The moments after `start` (UTC) of a six-field NCRONTAB: second, minute, hour, day, month, day of the week.

    Raises AppFault for anything else. A day and a day of the week must both match, as NCRONTAB has it.
    https://learn.microsoft.com/azure/azure-functions/functions-bindings-timer#ncrontab-expressions
    """
    fields = text.split()
    shapes = (_NUMBERS, _NUMBERS, _NUMBERS, _NUMBERS, _NAMES, _NAMES)
    if len(fields) != len(shapes) or not all(
        shape.fullmatch(field) for shape, field in zip(shapes, fields, strict=True)
    ):
        raise AppFault(f"{text!r} is not a schedule of six fields (second minute hour day month day-of-week)")
    try:
        return croniter(text, start, second_at_beginning=True, day_or=False)
    except ValueError as error:
        raise AppFault(f"{text!r} is not a schedule: {error}") from None


def read_host_json(app_dir: Path) -> dict[str, Any]:
    """host.json of the app. Raises AppFault when it is missing, is not JSON or is refused by the real host."""
    path = app_dir / "host.json"
    try:
        host = json.loads(path.read_text())
    except FileNotFoundError:
        raise AppFault(f"there is no host.json in {app_dir}") from None
    except ValueError as error:
        raise AppFault(f"host.json is not JSON: {error}") from None
    faults = list(_host_json_faults(host))
    if faults:
        raise AppFault("\n".join(f"host.json: {fault}" for fault in faults))
    assert isinstance(host, dict)
    return host


# Name -> the values that are allowed. https://learn.microsoft.com/azure/azure-functions/functions-bindings-storage-queue
_QUEUES: dict[str, range | tuple[str, ...] | re.Pattern[str]] = {
    "batchSize": range(1, 33),
    "newBatchThreshold": range(0, 1001),
    "maxDequeueCount": range(1, 1001),
    "messageEncoding": ("base64", "none"),
    "maxPollingInterval": re.compile(r"\d{2}:\d{2}:\d{2}(\.\d+)?"),
    "visibilityTimeout": re.compile(r"\d{2}:\d{2}:\d{2}(\.\d+)?"),
}
# fmt: off
_TOP = {
    "version", "aggregator", "concurrency", "customHandler", "extensionBundle", "extensions", "functions",
    "functionTimeout", "healthMonitor", "logging", "managedDependency", "singleton", "telemetryMode",
    "watchDirectories",
}
# fmt: on


def _host_json_faults(host: object) -> Sequence[str]:
    if not isinstance(host, dict):
        return ["is not an object"]
    faults = [f"{name!r} is not known to the host" for name in sorted(set(host) - _TOP)]
    if host.get("version") != "2.0":
        faults.append('"version" must be "2.0"')
    bundle = host.get("extensionBundle", {})
    if bundle.get("id") != "Microsoft.Azure.Functions.ExtensionBundle":
        faults.append("extensionBundle.id must be Microsoft.Azure.Functions.ExtensionBundle: triggers need it")
    if not re.fullmatch(r"[\[(]\d+(\.[\d*]+)*, *\d+(\.[\d*]+)*[\])]", str(bundle.get("version"))):
        faults.append(f"extensionBundle.version {bundle.get('version')!r} is not a range such as [4.*, 5.0.0)")
    if not re.fullmatch(r"-1|\d{2}:\d{2}:\d{2}", str(host.get("functionTimeout", "00:30:00"))):
        faults.append(f"functionTimeout {host['functionTimeout']!r} is neither hh:mm:ss nor -1")
    for name, value in host.get("extensions", {}).get("queues", {}).items():
        allowed = _QUEUES.get(name)
        if allowed is None:
            faults.append(f"extensions.queues.{name} is not known to the host")
        elif isinstance(allowed, re.Pattern):
            if not allowed.fullmatch(str(value)):
                faults.append(f"extensions.queues.{name} {value!r} is not hh:mm:ss")
        elif value not in allowed:
            faults.append(f"extensions.queues.{name} {value!r} is not allowed")
    return faults


def check(functions: Sequence[Function], settings: Settings) -> None:
    """Raises AppFault with a line for each fault that the real host would find in the functions' triggers."""
    faults: list[str] = []
    routes: dict[tuple[str, str], str] = {}
    for function in functions:
        trigger = function.trigger
        try:
            match function.kind:
                case "timer":
                    cron(resolve(str(trigger["schedule"]), settings), datetime(2026, 1, 1))  # noqa: DTZ001 - only parsed
                case "queue":
                    _check_queue(trigger, settings)
                case "http":
                    for method in trigger.get("methods") or ("GET", "POST"):
                        key = (str(method).upper(), route(function))
                        if other := routes.get(key):
                            raise AppFault(f"the route {key[0]} {key[1]} is {other}'s already")
                        routes[key] = function.name
                case other:
                    raise AppFault(f"this small host knows no {other} trigger")
        except AppFault as fault:
            faults.append(f"{function.name}: {fault}")
    if faults:
        raise AppFault("\n".join(faults))


def route(function: Function) -> str:
    """The route of an HTTP function without the prefix, e.g. `resync/{id}`."""
    return str(function.trigger.get("route") or function.name).strip("/")


def connection(binding: Mapping[str, Any], settings: Settings) -> str:
    """The connection string that a binding names. Raises AppFault when it is not set; this host knows no identities."""
    name = str(binding.get("connection") or "AzureWebJobsStorage")
    for candidate in (name, f"AzureWebJobs{name}"):
        if settings.get(candidate):
            return settings[candidate]
    raise AppFault(f"the app setting {name}, a storage connection string, is not set")


# https://learn.microsoft.com/rest/api/storageservices/naming-queues-and-metadata; -poison must fit behind it
_QUEUE_NAME = re.compile(r"(?=.{3,56}$)[a-z0-9]+(-[a-z0-9]+)*")


def queue_name(binding: Mapping[str, Any], settings: Settings) -> str:
    """The queue that a binding names, its settings resolved. Raises AppFault when it is not a queue's name."""
    name = resolve(str(binding["queueName"]), settings)
    if not _QUEUE_NAME.fullmatch(name):
        raise AppFault(f"{name!r} is not a name for a storage queue")
    return name


def _check_queue(trigger: Mapping[str, Any], settings: Settings) -> None:
    queue_name(trigger, settings)
    connection(trigger, settings)
