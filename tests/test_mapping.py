"""Rows become operations that Customer.io takes, or dead letters with column and reason; never an exception."""

import json
from datetime import datetime

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ViewFault
from shared.mapping import Mapped, Mapper, event_digest, event_ulid
from shared.settings import Settings
from shared.source import Page
from shared.syncs import Kind, Sync
from shared.view import Column, Position, Survey, View
from tests.conftest import bare_settings

NOW = 1_795_500_000  # 2026-11-24
CUSTOMERS = Sync("customers", Kind.PROFILE)
ORDERS = Sync("orders", Kind.EVENT)
ORDER_COLUMNS = (
    Column("row_version", "timestamp"),
    Column("customer_id", "int"),
    Column("event_name", "nvarchar", 100),
    Column("event_time", "datetime2"),
    Column("event_id", "int"),
)
CUSTOMER_COLUMNS = (Column("row_version", "timestamp"), Column("customer_id", "nvarchar", 100))


def view_of(sync: Sync, *columns: Column, zone: str = "UTC") -> tuple[View, Settings]:
    settings = bare_settings(sql_time_zone=zone)
    survey = Survey({sync.view: columns}, "0x00", "0x00", datetime(2026, 1, 1), "server", "shop", False)
    return View(sync, survey, settings), settings


def map_customers(columns: list[Column], rows: list[tuple], zone: str = "UTC") -> Mapped:
    view, settings = view_of(CUSTOMERS, *CUSTOMER_COLUMNS, *columns, zone=zone)
    page = Page([(b"\0" * 8, row[0], *row) for row in rows], Position("0x00", None), NOW, NOW)
    return Mapper(view, settings).map(page)


def map_orders(columns: list[Column], rows: list[tuple], zone: str = "UTC") -> Mapped:
    view, settings = view_of(ORDERS, *ORDER_COLUMNS, *columns, zone=zone)
    page = Page([(b"\0" * 8, row[3], *row) for row in rows], Position("0x00", None), NOW, NOW)
    return Mapper(view, settings).map(page)


def sent(mapped: Mapped) -> list[dict]:
    return [json.loads(payload) for operation in mapped.operations for payload in operation.payloads]


def test_a_customer_becomes_an_identify_stamped_with_the_time_of_reading():
    mapped = map_customers(
        [Column("email", "nvarchar", 320), Column("orders_count", "int"), Column("is_subscriber", "bit")],
        [("00042", "jane@example.com", 3, True)],
    )
    assert sent(mapped) == [
        {
            "type": "person",
            "identifiers": {"id": "00042"},
            "action": "identify",
            "timestamp": NOW,
            "attributes": {"email": "jane@example.com", "orders_count": 3, "is_subscriber": True},
        }
    ]


def test_an_order_becomes_an_event_under_its_own_id_and_time():
    mapped = map_orders(
        [Column("total", "decimal", None, 12, 2)], [(42, "Order Placed", NOW - 60, 9001, 29.990000000000002)]
    )
    assert sent(mapped) == [
        {
            "type": "person",
            "identifiers": {"id": "42"},
            "action": "event",
            "name": "Order Placed",
            "id": event_ulid(event_digest("orders", "9001"), NOW - 60),
            "timestamp": NOW - 60,
            "attributes": {"event_id": 9001, "total": 29.99, "late_minutes": 1},
        }
    ]


def test_the_ulid_depends_on_sync_event_id_and_event_time_alone():
    digest = event_digest("orders", "9001")
    assert event_ulid(digest, NOW) == event_ulid(digest, NOW)
    assert event_ulid(digest, NOW) != event_ulid(digest, NOW + 1)
    assert event_ulid(digest, NOW)[10:] == event_ulid(digest, NOW + 1)[10:]
    assert event_ulid(digest, NOW) != event_ulid(event_digest("refunds", "9001"), NOW)


def test_a_person_column_becomes_an_identify_right_before_the_event_in_one_group():
    columns = [Column("total", "int"), Column("person.email", "nvarchar", 320), Column("person.Tier", "nvarchar", 10)]
    mapped = map_orders(columns, [(42, "Order Placed", NOW, 1, 5, "jane@example.com", None)])
    (operation,) = mapped.operations
    identify, event = map(json.loads, operation.payloads)
    assert identify["action"] == "identify" and identify["identifiers"] == {"id": "42"}
    assert identify["attributes"] == {"email": "jane@example.com"}
    assert identify["timestamp"] == NOW
    assert event["attributes"] == {"event_id": 1, "total": 5, "late_minutes": 0}


@pytest.mark.parametrize(("age", "actions"), [(72 * 3600, ["identify", "event"]), (72 * 3600 + 1, ["event"])])
def test_the_persons_state_of_now_does_not_go_with_an_event_that_starts_nothing(age, actions):
    mapped = map_orders(
        [Column("person.email", "nvarchar", 320)], [(42, "Order Placed", NOW - age, 1, "a@example.com")]
    )
    assert [operation["action"] for operation in sent(mapped)] == actions


def test_null_leaves_an_attribute_alone():
    mapped = map_customers(
        [Column("email", "nvarchar", 320), Column("ltv", "money")], [("1", None, None), ("2", "a@b.c", 1.5)]
    )
    assert [operation["attributes"] for operation in sent(mapped)] == [{}, {"email": "a@b.c", "ltv": 1.5}]


@pytest.mark.parametrize(
    ("column", "value", "as_sent"),
    [
        (Column("x", "bit"), False, False),
        (Column("x", "tinyint"), 255, 255),
        (Column("x", "bigint"), 2**53, 2**53),
        (Column("x", "bigint"), 2**53 + 1, str(2**53 + 1)),
        (Column("x", "bigint"), -(2**63), str(-(2**63))),
        (Column("x", "decimal", None, 18, 0), 10**17, str(10**17)),
        (Column("x", "decimal", None, 38, 0), "123", 123),
        (
            Column("x", "decimal", None, 38, 0),
            "12345678901234567890123456789012345678",
            "12345678901234567890123456789012345678",
        ),
        (Column("x", "decimal", None, 10, 2), 0.07000000000000001, 0.07),
        (Column("x", "money"), 1234.5678000000001, 1234.5678),
        (Column("x", "float"), 0.1, 0.1),
        (Column("x", "datetimeoffset"), NOW, NOW),
        (Column("x", "datetime2"), NOW, NOW),
        (Column("x", "nvarchar", 10), "", ""),
        (Column("x", "nvarchar", -1), "ünï😀", "ünï😀"),
        (
            Column("x", "uniqueidentifier"),
            "6f9619ff-8b86-d011-b42d-00c04fc964ff",
            "6f9619ff-8b86-d011-b42d-00c04fc964ff",
        ),
        (Column("x", "time"), "13:05:00", "13:05:00"),
    ],
)
def test_a_value_is_sent_in_the_form_of_its_type(column, value, as_sent):
    (operation,) = sent(map_customers([column], [("1", value)]))
    assert operation["attributes"] == {"x": as_sent}
    assert type(operation["attributes"]["x"]) is type(as_sent)


@pytest.mark.parametrize(
    ("clock", "unix"),
    [
        ("2026-01-15T12:00", "2026-01-15T11:00"),  # winter
        ("2026-07-15T12:00", "2026-07-15T10:00"),  # summer
        ("2026-10-25T02:30", "2026-10-25T00:30"),  # comes twice that night: the first
        ("1965-07-15T00:00", "1965-07-14T23:00"),  # before 1970, no summer time
    ],
)
def test_a_time_without_a_zone_is_in_the_zone_of_the_setting(clock, unix):
    def seconds(text: str) -> int:
        return int((datetime.fromisoformat(text) - datetime(1970, 1, 1)).total_seconds())

    columns = [Column("at", "datetime2"), Column("instant", "datetimeoffset")]
    mapped = map_customers(columns, [("1", seconds(clock), seconds(clock))], zone="Europe/Berlin")
    assert sent(mapped)[0]["attributes"] == {"at": seconds(unix), "instant": seconds(clock)}


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ((None, "n", NOW, 1, None), "customer_id", "NULL"),
        ((1, "n", NOW, None, None), "event_id", "NULL"),
        ((1, None, NOW, 1, None), "event_name", "NULL"),
        ((1, " ", NOW, 1, None), "event_name", "empty"),
        ((1, "n", None, 1, None), "event_time", "NULL"),
        ((1, "n", -1, 1, None), "event_time", "1970"),
        ((1, "n", NOW + 301, 1, None), "event_time", "future"),
        ((1, "n" * 101, NOW, 1, None), "event_name", "100 bytes"),
        ((1, "n", NOW, 1, "é" * 501), "note", "1000 bytes"),
        ((1, "n", NOW, 1, "x\ud800"), None, "Unicode"),
    ],
)
def test_a_bad_row_is_set_aside_with_column_and_reason_and_the_others_go_on(row, field, reason):
    good = (7, "Order Placed", NOW, 7, "é" * 500)
    mapped = map_orders([Column("note", "nvarchar", -1)], [good, row, (*good[:3], 8, None)])
    assert [operation.row for operation in mapped.operations] == [0, 2]
    assert list(mapped.bad) == [1]
    assert mapped.bad[1][0] == field
    assert reason in mapped.bad[1][1]


def test_the_limits_of_an_identify_are_checked_for_each_row():
    columns = [Column(f"a{number}", "int") for number in range(301)]
    full, too_many = ("1", *range(300), None), ("2", *range(301))
    mapped = map_customers(columns, [full, too_many])
    assert [operation.row for operation in mapped.operations] == [0]
    assert mapped.bad == {1: (None, "more than 300 attributes")}


def test_an_operation_of_more_than_32_kb_is_set_aside():
    columns = [Column(f"a{number}", "nvarchar", 1000) for number in range(40)]
    mapped = map_customers(columns, [("1", *["x" * 1000] * 40), ("2", *["x" * 10] * 40)])
    assert [operation.row for operation in mapped.operations] == [1]
    assert "32000 bytes" in mapped.bad[0][1]


def test_every_event_says_how_late_it_is_and_one_from_the_past_of_a_first_pass_that_it_is_backfill():
    view, settings = view_of(ORDERS, *ORDER_COLUMNS)
    rows = [(b"", n, 42, "Order Placed", NOW - n, n) for n in (0, 59, 60, 3601)]
    mapped = Mapper(view, settings).map(Page(rows, Position("0x00", None), NOW, NOW), NOW - 60)
    assert [(event["attributes"]["late_minutes"], event["attributes"].get("backfill")) for event in sent(mapped)] == [
        (0, None),
        (0, None),
        (1, None),
        (60, True),
    ]


def test_a_name_that_is_too_long_concerns_only_the_rows_that_have_a_value():
    mapped = map_customers([Column("ä" * 76, "int")], [("1", 1), ("2", None)])
    assert [operation.row for operation in mapped.operations] == [1]
    assert mapped.bad[0] == ("ä" * 76, "the column's name is longer than 150 bytes")


def test_an_id_of_150_bytes_passes_and_a_longer_one_does_not():
    mapped = map_customers([], [("x" * 150,), ("é" * 76,), ("y",)])
    assert [operation.row for operation in mapped.operations] == [0, 2]
    assert mapped.bad == {1: ("customer_id", "longer than 150 bytes")}


def test_an_id_that_stands_twice_in_the_view_is_set_aside_both_times_and_ids_are_case_exact():
    mapped = map_customers([Column("n", "int")], [("a", 1), ("b", 2), ("a", 3), ("A", 4)])
    assert [operation.row for operation in mapped.operations] == [1, 3]
    assert {field for field, _ in mapped.bad.values()} == {"customer_id"}
    assert list(mapped.bad) == [0, 2]


def test_a_changed_person_who_is_no_longer_in_the_view_is_counted_and_not_sent():
    view, settings = view_of(CUSTOMERS, *CUSTOMER_COLUMNS, Column("n", "int"))
    rows = [(b"\0" * 8, "gone", None, None), (b"\0" * 8, None, None, None), (b"\0" * 8, "1", "1", 5)]
    mapped = Mapper(view, settings).map(Page(rows, Position("0x00", None), NOW, NOW))
    assert mapped.vanished == 1
    assert list(mapped.bad) == [1]
    assert [operation.row for operation in mapped.operations] == [2]


def test_of_unsubscribed_only_true_is_ever_sent():
    mapped = map_customers([Column("unsubscribed", "bit")], [("1", True), ("2", False), ("3", None)])
    assert [operation["attributes"] for operation in sent(mapped)] == [{"unsubscribed": True}, {}, {}]


def test_an_email_is_trimmed_and_a_blank_one_is_none():
    columns = [Column("email", "nvarchar", 320)]
    mapped = map_customers(columns, [("1", " a@example.com "), ("2", ""), ("3", "  ")])
    assert [operation["attributes"] for operation in sent(mapped)] == [{"email": "a@example.com"}, {}, {}]


@pytest.mark.parametrize("column", [Column("unsubscribed", "int"), Column("Unsubscribed", "bit")])
def test_unsubscribed_must_be_a_bit_because_any_value_but_true_resubscribes(column):
    with pytest.raises(ViewFault, match="must have this name and be a bit"):
        map_customers([column], [])


def test_a_real_has_seven_digits():
    mapped = map_customers([Column("x", "real")], [("1", 0.10000000149011612)])
    assert sent(mapped)[0]["attributes"] == {"x": 0.1}


@pytest.mark.parametrize("name", ["id", "cio_id", "anonymous_id", "_update", "cio_subscription_preferences", "a.b"])
def test_a_name_that_customerio_reserves_is_a_fault_of_the_view(name):
    with pytest.raises(ViewFault, match=rf"Column {name} of retention\.customers"):
        map_customers([Column(name, "int")], [])
    if "." not in name:
        with pytest.raises(ViewFault, match=rf"Column person\.{name} of retention\.orders"):
            map_orders([Column(f"person.{name}", "int")], [])


@pytest.mark.parametrize("name", ["recipient", "from_address", "reply_to", "late_minutes", "backfill"])
def test_an_event_property_that_means_something_else_already_is_a_fault_of_the_view(name):
    with pytest.raises(ViewFault, match=rf"Column {name} of retention\.orders.*Rename"):
        map_orders([Column(name, "nvarchar", 10)], [])


anything = st.one_of(st.none(), st.text(st.characters(codec=None), max_size=400), st.text(max_size=1200))
numbers = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))
floats = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False))


@given(
    st.lists(
        st.tuples(numbers, anything, numbers, numbers, anything, floats, numbers, st.sampled_from([True, False, None])),
        min_size=1,
        max_size=8,
    )
)
def test_whatever_a_row_holds_becomes_a_valid_operation_or_a_dead_letter(rows):
    columns = [
        Column("text", "nvarchar", -1),
        Column("number", "decimal", None, 38, 4),
        Column("long", "bigint"),
        Column("person.flag", "bit"),
    ]
    mapped = map_orders(columns, rows)
    assert sorted([operation.row for operation in mapped.operations] + list(mapped.bad)) == list(range(len(rows)))
    for operation in mapped.operations:
        for payload in operation.payloads:
            assert len(payload) <= 32_000
            assert orjson.loads(payload)["identifiers"]["id"]


def test_the_time_of_an_event_without_a_zone_is_in_the_zone_of_the_setting():
    mapped = map_orders([], [(42, "Order Placed", NOW, 9001)], zone="Europe/Berlin")
    (event,) = sent(mapped)
    assert event["timestamp"] == NOW - 3600
    assert event["id"] == event_ulid(event_digest("orders", "9001"), NOW - 3600)
    assert mapped.operations[0].day == (NOW - 3600) // 86_400
