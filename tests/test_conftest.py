"""What the tests themselves watch for."""

import logging

import pytest

from tests.conftest import _Leaks


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("run of orders ended", False),
        ("the person jane.doe+x@example.com was refused", True),
        ("Server=db;PWD=x", True),
        ("planted", True),
    ],
)
def test_a_line_that_holds_an_address_or_a_secret_is_found(text, leaks):
    handler = _Leaks()
    handler.emit(logging.LogRecord("tidemark", logging.INFO, "x.py", 1, text, None, None))
    assert bool(handler.found) is leaks
