"""Checks of what Tidemark runs on (settings, storage, clocks), and of what people have done: QA, going live, alerts."""

import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import pyodbc
from ulid import ULID

from shared import qa as qa_sync
from shared.checks import Look, Note, failed, number, ok, warning
from shared.queues import Queues
from shared.resync import Runs, Stage
from shared.settings import is_disabled
from shared.source import with_driver
from shared.state import Identity, storage_errors
from shared.syncs import CATALOGUE

_WARN_SECONDS = 30
_FAIL_SECONDS = 300
"""So far clocks may differ: an event that is five minutes in the future is set aside."""


def settings(look: Look) -> Iterator[Note]:
    """All required settings are there and right."""
    given = look.settings
    yield ok(f"All required settings are there. The state is in the container {given.state_container}.")
    if given.first_pass == "all":
        yield warning(
            "FIRST_PASS is all, so a sync that is not live sends everything without approval.",
            "Leave FIRST_PASS out of every deployment.",
        )
    if off := [sync.name for sync in CATALOGUE if is_disabled(sync.name)]:
        yield ok(f"Switched off: {', '.join(off)}.")


def driver(look: Look) -> Iterator[Note]:
    """The ODBC driver that the connection string names, or the newest, is installed."""
    text = with_driver(look.settings.sql_connection_string.get_secret_value())
    there = pyodbc.drivers()
    named = re.search(r"(?i)(?:^|;)\s*driver\s*=\s*(?:\{([^}]*)\}|([^;]*))", text)
    name = next((name for name in there if named and name.lower() in (named[1] or named[2] or "").lower()), None)
    if name is None:
        yield failed(
            f"SQL_CONNECTION_STRING names a driver that is not installed. Installed: {', '.join(there) or 'none'}.",
            "Leave Driver out of SQL_CONNECTION_STRING: the newest that is installed is taken then.",
        )
    elif (version := re.fullmatch(r"ODBC Driver (\d+) for SQL Server", name)) is None or int(version[1]) < 18:
        yield warning(
            f"{name} is in use.", "Use Microsoft's ODBC Driver 18: leave Driver out of SQL_CONNECTION_STRING."
        )
    else:
        yield ok(f"{name} is installed.")


def blobs(look: Look) -> Iterator[Note]:
    """A blob of the state container can be written, read and deleted. The container is made where it is missing."""
    look.state.create()

    def note_clock(answer: Any) -> None:
        if date := answer.http_response.headers.get("Date"):
            look.clocks["blob storage"] = parsedate_to_datetime(date).timestamp() + 0.5 - time.time()

    with storage_errors():
        blob = look.state.container.get_blob_client(f"probe-{ULID()}")
        blob.upload_blob(b"probe", raw_response_hook=note_clock)
        try:
            same = blob.download_blob().readall() == b"probe"
        finally:
            blob.delete_blob()
    if same:
        yield ok("A blob was written, read and deleted.")
    else:
        yield failed("A blob that was written reads differently.", "Check the storage account.")


def queue(look: Look) -> Iterator[Note]:
    """A queue can be made, written, read and deleted."""
    Queues(look.settings).probe()
    yield ok("A queue was made, a message sent and taken, and both deleted.")


def identity(look: Look) -> Iterator[Note]:
    """Workspace, server and database are those that the state belongs to."""
    stored = look.state.identity()
    found = Identity(**look.identity)
    if stored is None:
        yield ok(f"The state belongs to nobody yet. Going live, or a QA sync, ties it to {_words(found)}.")
        return
    look.state.check(stored, found)
    yield ok(f"The state belongs to {_words(found)}, and the settings lead there.")


def _words(one: Identity) -> str:
    return f"the workspace {one.workspace}, the server {one.server} and its database {one.database}"


def clocks(look: Look) -> Iterator[Note]:
    """The clocks of this machine, SQL Server and the blob storage agree."""
    for name, ahead in look.clocks.items():
        seconds = round(abs(ahead))
        seen = f"The clock of {name} is {seconds} seconds {'ahead of' if ahead > 0 else 'behind'} this machine's."
        if seconds < _WARN_SECONDS:
            yield ok(seen)
            continue
        do = "Set the clock of SQL Server's machine by a time service: what is sent carries its time."
        yield (failed if seconds >= _FAIL_SECONDS else warning)(seen, do)


def qa(look: Look) -> Iterator[Note]:
    """The latest QA sync came to its end and found no difference."""
    runs = Runs(look.state)
    asked = runs.latest("qa")
    if asked is None:
        yield warning("There was no QA sync yet.", "POST /api/qa sends some people and compares what arrives.")
        return
    found = qa_sync.summary(runs, asked)
    if asked.state is not Stage.DONE or not found:
        state = "expired" if asked.expired else asked.state
        yield warning(f"The latest QA sync, run {asked.run}, is {state}.", "See it through, or ask for a new one.")
        return
    people = found["compared"]["people"]
    compared = f"The QA sync of {asked.finished[:10]} compared {number(people, 'person', 'people')}"
    if found["differences"]:
        yield failed(
            f"{compared} and found {number(found['differences'], 'difference')}.",
            f"Read GET /api/runs/{asked.run}/report, mend what it names, and ask for a new QA sync.",
        )
    elif not people:
        yield warning(f"{compared}.", "Ask for a QA sync that picks somebody.")
    else:
        yield ok(f"{compared} and found no difference.")


def backfill(look: Look) -> Iterator[Note]:
    """Going live was approved, for every sync that is not switched off; what is older was sent, or declined."""
    marks = {sync.name: look.state.peek(sync) for sync in CATALOGUE if not is_disabled(sync.name)}
    live = [name for name, mark in marks.items() if mark is not None and mark.live]
    waiting = [name for name in marks if name not in live]
    run = Runs(look.state).latest("go-live")
    if run is not None and run.state is Stage.AWAITING and not run.expired:
        yield warning(
            f"The plan of run {run.run} waits for approval until {run.expires[:16]} UTC.",
            f"Read GET /api/runs/{run.run}, then approve or cancel it.",
        )
    elif run is not None and run.state in (Stage.RUNNING, Stage.PLANNING):
        yield warning(
            f"Going live (run {run.run}) is {run.state}.", f"Look at GET /api/runs/{run.run} until it is done."
        )
    if waiting:
        yield warning(
            f"Not live: {', '.join(waiting)}.",
            "POST /api/go-live makes the plan, which a person approves; or switch a sync off.",
        )
    if live:
        since = run.request.get("since") if run is not None and run.state is Stage.DONE else None
        older = f" Events before {since[:10]} were declined." if since else ""
        yield ok(f"Live: {', '.join(live)}.{older}")


def alerts(look: Look) -> Iterator[Note]:
    """The deployment has set the action group that its alerts call."""
    group = look.settings.alert_action_group
    if group is None:
        yield warning(
            "ALERT_ACTION_GROUP is not set, so nobody is told when a sync stops.",
            "Deploy the alerts; the deployment sets ALERT_ACTION_GROUP.",
        )
    elif not re.fullmatch(r"(?i)/subscriptions/[^/]+/resourceGroups/[^/]+/providers/[^/]+/actionGroups/[^/]+", group):
        yield warning(
            "ALERT_ACTION_GROUP is not the resource id of an action group.",
            "It begins with /subscriptions/ and ends with /actionGroups/ and the name; the deployment sets it.",
        )
    else:
        yield ok(f"The alerts call the action group {group.rsplit('/', 1)[-1]}.")
