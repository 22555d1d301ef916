"""The shop's real input: CDNOW's histories, moved to today."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from local import cdnow

FILE = """\
 customer_id  date number_of_cds  dollar_value
 00001 19970101  1   11.77
 00002 19970112  1   12.00
 00002 19970112  1   12.00
 00002 19980630  3    0.00
 00003 19980630 12  129.50
"""
NOW = datetime(2026, 3, 10, 15, 30, 0, 250_000, tzinfo=UTC)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "CDNOW_master.txt"
    path.write_text(FILE, encoding="ascii")
    return path


def test_every_line_is_an_order_and_its_number_is_the_id(file: Path) -> None:
    orders = cdnow.histories(file, NOW)
    assert [(order.order_id, order.customer_id, order.items, order.total) for order in orders] == [
        (1, 1, 1, Decimal("11.77")),
        (2, 2, 1, Decimal("12.00")),
        (3, 2, 1, Decimal("12.00")),
        (4, 2, 3, Decimal("0.00")),
        (5, 3, 12, Decimal("129.50")),
    ]


def test_days_move_together_so_that_the_last_order_is_made_today(file: Path) -> None:
    days = [order.paid_at.date() for order in cdnow.histories(file, NOW)]
    today = NOW.date()
    assert days[3:] == [today, today]
    assert days[0] == today - timedelta(days=545)  # 1997-01-01 to 1998-06-30
    assert days[1] == days[2] == today - timedelta(days=534)


def test_times_of_day_are_the_same_at_every_loading_of_a_day(file: Path) -> None:
    first = cdnow.histories(file, NOW)
    again = cdnow.histories(file, NOW + timedelta(hours=2))
    assert [order.paid_at for order in first[:3]] == [order.paid_at for order in again[:3]]
    assert first[1].paid_at != first[2].paid_at


@pytest.mark.parametrize(
    "now", [NOW, NOW.replace(hour=0, minute=0, second=0, microsecond=0), NOW.replace(hour=0, minute=0, second=1)]
)
def test_no_order_is_later_than_the_loading(file: Path, now: datetime) -> None:
    latest = max(order.paid_at for order in cdnow.histories(file, now))
    assert latest.date() == now.date()
    assert latest <= now.replace(tzinfo=None)


def test_the_day_is_that_of_utc_whatever_the_zone_of_now(file: Path) -> None:
    auckland = datetime(2026, 3, 11, 4, 30, tzinfo=ZoneInfo("Pacific/Auckland"))  # the 10th, 15:30 in UTC
    assert cdnow.histories(file, auckland) == cdnow.histories(file, NOW)


def test_times_of_day_spread_over_the_day(tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    lines = [" 00001 19970101  1   10.00"] * 2_400 + [" 00001 19970102  1   10.00"]
    path.write_text("\n".join(["header", *lines]), encoding="ascii")
    hours = Counter(order.paid_at.hour for order in cdnow.histories(path, NOW)[:2_400])
    assert set(hours) == set(range(24))
    assert max(hours.values()) < 150


def test_go_on_a_line_of_its_own_ends_a_batch_and_nothing_else_does() -> None:
    script = "CREATE SCHEMA a;\nGO\n\n-- GO on\n-- let it GO\nSELECT 'GO';\n  go  \nGO\nSELECT 2\n"
    assert list(cdnow.batches(script)) == ["CREATE SCHEMA a;", "-- GO on\n-- let it GO\nSELECT 'GO';", "SELECT 2"]
