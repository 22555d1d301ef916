"""When a pass looks like an upstream reload."""

import pytest

from shared.surge import Emptied, count_empty, is_mass


@pytest.mark.parametrize(
    ("changed", "people", "mass"),
    [(1000, 10_000, True), (999, 1000, False), (1000, 20_000, False), (1001, 20_000, True), (0, 0, False)],
)
def test_more_than_the_share_of_people_and_a_thousand_are_a_mass(changed, people, mass):
    assert is_mass(changed, people, 5) is mass


def test_empty_is_null_zero_false_and_blank():
    rows = [("0x1", 1, None, 0.0, False, ""), ("0x2", 2, "a", 1, True, "b")]
    assert count_empty(["a", "b", "c", "d"], rows) == {"a": 1, "b": 1, "c": 1, "d": 1}


def rows(count: int, empty: int) -> list[tuple[object, ...]]:
    return [("0x1", number, None if number < empty else "x@example.com", 1) for number in range(count)]


@pytest.mark.parametrize(
    ("pages", "found"),
    [
        ([rows(500, 110)], None),
        ([rows(500, 111)], ("email", 111, 500)),
        ([rows(499, 499)], None),  # too few to judge by
        ([rows(100, 0), rows(399, 111), rows(1, 0)], ("email", 111, 500)),
        ([rows(500, 0), rows(400, 400)], None),
    ],
)
def test_an_attribute_is_emptied_when_it_is_empty_more_often_than_in_the_first_pass(pages, found):
    emptied = Emptied(["email", "ltv"], {"email": 200, "ltv": 9000}, 10_000, 20)
    said = [emptied.add(page) for page in pages]
    assert said == [None] * (len(pages) - 1) + [found]


def test_what_is_released_is_not_judged_nor_is_anything_without_a_first_pass():
    assert Emptied(["email", "ltv"], {"email": 0}, 1000, 20, ["emptied: email"]).add(rows(500, 500)) is None
    assert Emptied(["email", "ltv"], {}, 0, 20).add(rows(500, 500)) is None
    assert Emptied(["email", "ltv"], {"ltv": 0}, 1000, 20).add(rows(500, 500)) is None  # email is new


def test_people_who_have_vanished_have_emptied_nothing():
    vanished = [("0x1", number, None, None) for number in range(500)]
    assert Emptied(["email", "ltv"], {"email": 0, "ltv": 0}, 1000, 20).add(vanished) is None
