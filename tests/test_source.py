"""What a view's statements and positions are, as far as no server is needed to see it."""

from datetime import datetime

import pytest

from shared.errors import ViewFault
from shared.syncs import Kind, Sync
from shared.view import Column, Position, Survey, View
from tests.conftest import bare_settings

ORDERS = Sync("orders", Kind.EVENT)


def view_of(zone: str, now: str, key: str = "int", cursor: str = "datetime2") -> tuple[View, Survey]:
    settings = bare_settings(sql_time_zone=zone)
    columns = (
        Column("customer_id", "int"),
        Column("event_name", "nvarchar", 100),
        Column("event_time", "datetime2"),
        Column("event_id", key, 20),
        Column("updated_at", cursor),
    )
    survey = Survey({"orders": columns}, "0x00", "0x00", datetime.fromisoformat(now), "server", "shop", False)
    return View(ORDERS, survey, settings), survey


@pytest.mark.parametrize(
    ("now", "mark", "start"),
    [
        # summer time ended at 01:00 UTC: the clock shows 02:45 again, an hour after the mark was made at 02:45
        ("2026-10-25T01:45:30", "2026-10-25T02:45:00", "2026-10-25T01:45:00.000000"),
        ("2026-10-25T05:00:00", "2026-10-25T02:45:00", "2026-10-25T01:45:00.000000"),
        # neither before it, nor for a mark that was made after it, nor in spring
        ("2026-10-25T00:50:00", "2026-10-25T02:45:00", None),
        ("2026-10-25T05:00:00", "2026-10-25T03:10:00", None),
        ("2026-03-29T01:30:00", "2026-03-29T01:45:00", None),
    ],
)
def test_after_the_clock_was_put_back_a_pass_starts_earlier_by_as_much(now, mark, start):
    view, survey = view_of("Europe/Berlin", now)
    assert view.before_clock_change(mark, survey) == start


def test_a_zone_without_summer_time_never_starts_earlier():
    view, survey = view_of("UTC", "2026-10-25T01:45:30")
    assert view.before_clock_change("2026-10-25T02:45:00", survey) is None


def test_a_varchar_key_is_compared_as_nvarchar_because_collate_would_change_its_code_page():
    view, _ = view_of("UTC", "2026-01-01T00:00:00", key="varchar")
    statement, parameters = view.changed(Position("2026-01-01T00:00:00", "a"), None)
    exact = "CAST({} AS nvarchar(20)) COLLATE Latin1_General_100_BIN2"
    assert f"{exact.format('v.[event_id]')} > {exact.format('?')}" in statement
    assert statement.endswith("ORDER BY v.[updated_at], " + exact.format("v.[event_id]"))
    assert parameters == ["2026-01-01T00:00:00", "2026-01-01T00:00:00", "a"]


def test_a_whole_number_key_is_compared_as_it_is_so_that_its_index_serves():
    view, _ = view_of("UTC", "2026-01-01T00:00:00")
    statement, _ = view.changed(Position("2026-01-01T00:00:00", "7"), None)
    assert "v.[event_id] > CAST(? AS int)" in statement
    assert "COLLATE" not in statement


@pytest.mark.parametrize("cursor", ["date", "time", "nvarchar", "bigint"])
def test_a_cursor_that_is_no_moment_is_refused(cursor):
    with pytest.raises(ViewFault, match=rf"updated_at of retention\.orders is {cursor}"):
        view_of("UTC", "2026-01-01T00:00:00", cursor=cursor)
