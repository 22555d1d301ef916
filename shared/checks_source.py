"""Checks of SQL Server: the login and what it may do, and the views under the contract, by counting and no more."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from shared.checks import Look, Note, failed, number, ok, over_views, warning
from shared.errors import ConfigurationFault, ViewFault
from shared.mapping import PERSON
from shared.settings import is_disabled
from shared.syncs import CATALOGUE, Kind
from shared.view import SCHEMA, Form, Tally, View

_FUTURE_SECONDS = 300
_OPEN_SECONDS = 3.0
"""For so long a transaction is watched."""

_SERVER = """\
SELECT CONVERT(nvarchar(128), SERVERPROPERTY('ServerName')), DB_NAME(),
 CONVERT(nvarchar(128), SERVERPROPERTY('ProductVersion')), CONVERT(varchar(33), SYSUTCDATETIME(), 126)"""


def sql_server(look: Look) -> Iterator[Note]:
    """SQL Server lets the login in."""
    server, database, version, now = look.row((_SERVER, []))
    look.clocks["SQL Server"] = datetime.fromisoformat(now).replace(tzinfo=UTC).timestamp() - time.time()
    look.identity |= {"server": server, "database": database}
    yield ok(f"{server} (version {version}) answers, in the database {database}.")


# --- permissions ------------------------------------------------------------------------------------------------------

_BEYOND = {
    "SCHEMA": ("INSERT", "UPDATE", "DELETE", "ALTER"),
    "DATABASE": ("SELECT", "INSERT", "UPDATE", "DELETE", "EXECUTE", "ALTER", "CONTROL"),
    "OBJECT": ("SELECT", "INSERT", "UPDATE", "DELETE"),
}
"""What the login is not to have: on the schema, on the database, and on single tables and views elsewhere."""


def permissions(look: Look) -> Iterator[Note]:
    """The login may SELECT from the schema retention, and nothing more.

    HAS_PERMS_BY_NAME tells effective permissions, those through roles too; INFORMATION_SCHEMA shows only objects on
    which the login has some (both Microsoft's documentation).
    """
    asked = [("SCHEMA", "SELECT"), *((kind, one) for kind in ("SCHEMA", "DATABASE") for one in _BEYOND[kind])]
    names = {"SCHEMA": f"'{SCHEMA}'", "DATABASE": "DB_NAME()"}
    text = ", ".join(f"HAS_PERMS_BY_NAME({names[kind]}, '{kind}', '{one}')" for kind, one in asked)
    may_read, *more = look.row((f"SELECT {text}", []))
    if not may_read:
        yield failed(
            f"The login has no SELECT on the schema {SCHEMA}.",
            f"GRANT SELECT ON SCHEMA::{SCHEMA} to the user of the login or managed identity.",
        )
    beyond = [
        f"{one} on the {'schema ' + SCHEMA if kind == 'SCHEMA' else 'database'}"
        for (kind, one), has in zip(asked[1:], more, strict=True)
        if has
    ]
    if beyond:
        found = ", ".join(beyond)
    else:
        name = "'[' + t.TABLE_SCHEMA + '].[' + t.TABLE_NAME + ']'"
        counts = ", ".join(
            f"SUM(CASE WHEN HAS_PERMS_BY_NAME({name}, 'OBJECT', '{one}') = 1 THEN 1 ELSE 0 END)"
            for one in _BEYOND["OBJECT"]
        )
        where = "t.TABLE_SCHEMA NOT IN (?, 'sys', 'INFORMATION_SCHEMA')"
        objects = look.row((f"SELECT {counts} FROM INFORMATION_SCHEMA.TABLES AS t WHERE {where}", [SCHEMA]))
        counted = [(one, count) for one, count in zip(_BEYOND["OBJECT"], objects, strict=True) if count]
        found = ", ".join(f"{one} on {number(count, 'object')} elsewhere" for one, count in counted)
    if found:
        yield warning(
            f"The login may do more than it needs: {found}.",
            f"Give it a user of its own, in no role, with SELECT on the schema {SCHEMA} and nothing else.",
        )
    elif may_read:
        yield ok(f"The login may SELECT from the schema {SCHEMA}, and nothing more was found.")


# --- views ------------------------------------------------------------------------------------------------------------


def views(look: Look) -> Iterator[Note]:
    """Each sync that is not switched off has its view, with the columns and types of the contract."""
    for sync in CATALOGUE:
        if is_disabled(sync.name):
            continue
        look.may_begin()
        try:
            survey = look.source.survey(sync)
            look.views.append(View(sync, survey, look.settings))
            look.surveys[sync.name] = survey
        except (ViewFault, ConfigurationFault) as error:
            do = f"Mend the view; where there is to be no such sync, set AzureWebJobs.{sync.name}.Disabled to 1."
            yield failed(str(error), do)
    if look.views:
        yield ok(f"In order: {', '.join(view.name for view in look.views)}.")


def _tally(look: Look, view: View) -> Tally:
    if view.name not in look.tallies:
        look.tallies[view.name] = Tally(*look.row(view.tally()))
    return look.tallies[view.name]


def keys(look: Look) -> Iterator[Note]:
    """Each row has a key and a person, and no key stands twice: one row per customer, one per event."""
    return over_views(look, _keys)


def _keys(look: Look, view: View) -> Iterator[Note]:
    found, key = _tally(look, view), view.sync.key
    if missing := found.rows - found.keyed:
        yield warning(
            f"{view.name}: {number(missing, 'row')} of {found.rows:,} without {key}, to be set aside.",
            "Give each row its key, or leave it out of the view.",
        )
    if missing := found.rows - found.of_person:
        yield warning(
            f"{view.name}: {number(missing, 'row')} of {found.rows:,} without a person's id, to be set aside.",
            "Leave rows of nobody out of the view.",
        )
    if twice := found.keyed - found.keys:
        yield failed(
            f"{view.name}: {number(twice, 'row')} of {found.rows:,} with a {key} that another row has.",
            "Make the view give one row for each key: a join may multiply its rows.",
        )
    if alike := found.keys - found.alike:
        yield warning(
            f"{view.name}: {alike:,} of its {key} differ from another only in the case of letters, or in trailing"
            " blanks: SQL Server takes them for one, Customer.io for two.",
            "Find out which is right, and write it in one way.",
        )
    yield ok(f"{view.name}: {number(found.rows, 'row')}, {number(found.keys, 'key')}.")


def cursors(look: Look) -> Iterator[Note]:
    """Each row has a cursor, and no open transaction holds the bound of row_version."""
    yield from over_views(look, _without_cursor)
    for view in [one for one in look.views if one.by_row_version]:
        before = look.surveys[view.sync.name]
        if before.bound > before.last:
            continue
        time.sleep(_OPEN_SECONDS)
        look.may_begin()
        survey = look.source.survey(view.sync)
        if survey.bound == before.bound and survey.bound <= survey.last:
            yield warning(
                f"A transaction that writes has been open for {_OPEN_SECONDS:.0f} seconds at least: what was written"
                " after it began is not read until it ends (MIN_ACTIVE_ROWVERSION stands still).",
                "Look again. Where it stays: DBCC OPENTRAN in SQL Server shows it.",
            )
        break  # the bound is the whole database's


def _without_cursor(look: Look, view: View) -> Iterator[Note]:
    if without := look.row(view.without_cursor())[0]:
        yield warning(
            f"{view.feed}: {number(without, 'row')} where {view.cursor.name} is NULL, which no pass reads.",
            f"Let the view give a {view.strategy} for each row.",
        )
    else:
        yield ok(f"{view.name} is read by {view.strategy}.")


# --- what the rows hold -----------------------------------------------------------------------------------------------


def event_times(look: Look) -> Iterator[Note]:
    """Each event has a time, and not all are at midnight."""
    return over_views(look, _event_times, Kind.EVENT)


def _event_times(look: Look, view: View) -> Iterator[Note]:
    found = _tally(look, view)
    if missing := found.rows - found.timed:
        yield warning(
            f"{view.name}: {number(missing, 'row')} of {found.rows:,} without event_time, to be set aside.",
            "Leave events that have not happened out of the view.",
        )
    if found.timed > 1 and found.midnight == found.timed:
        yield warning(
            f"{view.name}: all {found.timed:,} events are at midnight.",
            "Take a column with the time of day: by a mere date, events seem up to a day old and have no order.",
        )
    elif found.timed:
        yield ok(f"{view.name}: {number(found.timed, 'event')} with a time.")
    else:
        yield ok(f"{view.name}: no events.")


def time_zone(look: Look) -> Iterator[Note]:
    """The newest event is not in the future by SQL Server's clock, as it is where SQL_TIME_ZONE is wrong."""
    return over_views(look, _time_zone, Kind.EVENT)


def _time_zone(look: Look, view: View) -> Iterator[Note]:
    if (newest := _tally(look, view).newest) is None:
        return
    ahead = view.moment_of(newest) - (time.time() + look.clocks["SQL Server"])
    if ahead <= _FUTURE_SECONDS:
        yield ok(f"{view.name}: the newest event is {_span(-ahead)} old.")
        return
    zone = look.settings.sql_time_zone
    seen = f"{view.name}: the newest event is {_span(ahead)} in the future by SQL Server's clock"
    do = "Correct event_time; what is more than five minutes in the future is set aside."
    if alike := zones_ahead(ahead, zone):
        seen += f", as where SQL_TIME_ZONE is {zone} and the times are those of {' or '.join(alike)}"
        do = "Find out whose wall clock event_time shows, and set SQL_TIME_ZONE to that zone."
    yield failed(f"{seen}.", do)


def zones_ahead(seconds: float, zone: str) -> list[str]:
    """Well-known zones whose wall clocks are ahead of a zone's by so much now, or by up to half an hour more.

    By more, because the newest event is some minutes old. Offsets are whole or half hours.
    """
    now = datetime.now(UTC)
    steps = -(-seconds // 1800)
    wanted = timedelta(seconds=steps * 1800)

    def offset(name: str) -> timedelta:
        return now.astimezone(ZoneInfo(name)).utcoffset() or timedelta(0)

    return [one for one in _ZONES if offset(one) - offset(zone) == wanted][:3]


_ZONES = (
    "Europe/Berlin", "Europe/London", "Europe/Athens", "Europe/Moscow", "Asia/Dubai", "Asia/Karachi", "Asia/Kolkata",
    "Asia/Dhaka", "Asia/Bangkok", "Asia/Shanghai", "Asia/Tokyo", "Australia/Adelaide", "Australia/Brisbane",
    "Australia/Sydney", "Pacific/Auckland", "America/New_York", "America/Chicago", "America/Denver",
    "America/Los_Angeles", "America/Sao_Paulo", "UTC",
)  # fmt: skip


def _span(seconds: float) -> str:
    minutes = round(max(0.0, seconds) / 60)
    if minutes < 120:
        return number(minutes, "minute")
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes < 2 * 1440 else number(minutes // 1440, "day")


def emails(look: Look) -> Iterator[Note]:
    """Most customers have an email, nearly all of these look like addresses, and no two customers share one."""
    return over_views(look, _emails, Kind.PROFILE)


def _emails(look: Look, view: View) -> Iterator[Note]:
    if not view.has("email"):
        yield warning(f"{view.name} has no column email, so nobody gets one.", "Add it, unless it comes another way.")
        return
    rows, there, shaped, different = (count or 0 for count in look.row(view.emails()))
    seen = f"{view.name}: {shaped:,} of {number(rows, 'customer')} ({_percent(shaped, rows)}) have a valid email"
    if 2 * shaped < rows:
        yield warning(f"{seen}, which is less than half.", "Check where the view takes email from.")
    else:
        yield ok(f"{seen}.")
    if 100 * (there - shaped) > there:
        yield warning(
            f"{there - shaped:,} of {there:,} emails ({_percent(there - shaped, there)}) are no addresses.",
            "They are left out when people are sent. Check where the view takes email from.",
        )
    if there > different:
        yield warning(
            f"{number(there - different, 'customer')} with an email that another customer has.",
            "Customer.io gives an address to one person: let the view give it to one (docs/identity.md).",
        )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def flags(look: Look) -> Iterator[Note]:
    """No bit column that becomes a person's attribute is NULL: NULL would leave an old true as it is."""
    return over_views(look, _flags)


def _flags(look: Look, view: View) -> Iterator[Note]:
    cleared = look.settings.clear_when_null
    names = [one.name for one in view.fields if one.form is Form.FLAG]
    if view.sync.kind is Kind.PROFILE:
        names = [name for name in names if name not in cleared]
    else:
        names = [one for one in names if one.lower().startswith(PERSON) and one[len(PERSON) :] not in cleared]
    if not names:
        return
    counts = zip(names, look.row(view.nulls(names)), strict=True)
    if found := [f"{name} ({number(count, 'row')})" for name, count in counts if count]:
        yield warning(
            f"{view.name}: flags that are NULL: {', '.join(found)}.",
            "NULL leaves what Customer.io has, so a true stays true: give 0 in the view (ISNULL), or name it in"
            " CLEAR_WHEN_NULL.",
        )
    else:
        yield ok(f"{view.name}: {number(len(names), 'flag')}, none of them NULL.")
