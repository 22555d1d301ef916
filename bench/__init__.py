"""Measurements on one machine. Nothing in here ships.

A number of one machine says little about another, so goals are set for ratios and differences within one run.
"""

from typing import NamedTuple


class Figure(NamedTuple):
    """A measured number; `at_most` is the goal that it is held to, where it has one."""

    name: str
    value: float
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the goal is met, if there is one."""
        return self.at_most is None or self.value <= self.at_most
