"""When a pass looks like an upstream reload."""

import pytest

from shared.surge import count_empty, emptied, is_mass


@pytest.mark.parametrize(
    ("changed", "people", "mass"),
    [(1000, 10_000, True), (999, 1000, False), (1000, 20_000, False), (1001, 20_000, True), (0, 0, False)],
)
def test_more_than_the_share_of_people_and_a_thousand_are_a_mass(changed, people, mass):
    assert is_mass(changed, people, 5) is mass


def test_empty_is_null_zero_false_and_blank():
    rows = [("0x1", 1, None, 0.0, False, ""), ("0x2", 2, "a", 1, True, "b")]
    assert count_empty(["a", "b", "c", "d"], rows) == {"a": 1, "b": 1, "c": 1, "d": 1}


@pytest.mark.parametrize(
    ("rows", "empty", "found"),
    [
        (500, {"email": 110, "ltv": 450}, None),
        (500, {"email": 111, "ltv": 0}, "email"),
        (499, {"email": 499}, None),  # too few to judge by
        (500, {"new": 500}, None),  # nobody knows how often it was empty
    ],
)
def test_an_attribute_is_emptied_when_it_is_empty_more_often_than_in_the_first_pass(rows, empty, found):
    assert emptied(empty, rows, {"email": 200, "ltv": 9000}, 10_000, 20) == found


def test_without_a_first_pass_nothing_is_judged():
    assert emptied({"email": 1000}, 1000, {}, 0, 20) is None
