"""Measurements on one machine. Nothing in here ships.

A number of one machine says little about another, so goals are set for ratios and differences within one run.
"""

import uuid
from typing import NamedTuple

from local.faults.stage import House


class Figure(NamedTuple):
    """A measured number; `at_most` is the goal that it is held to, where it has one."""

    name: str
    value: float
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the goal is met, if there is one."""
        return self.at_most is None or self.value <= self.at_most


def environment(house: House, connection_string: str, url: str, **changes: str) -> dict[str, str]:
    """The app settings of a deployment with a state container of its own, against a Customer.io at `url`."""
    return {
        "SQL_CONNECTION_STRING": connection_string,
        "CUSTOMERIO_REGION": "us",
        "CUSTOMERIO_SITE_ID": "bench",
        "CUSTOMERIO_API_KEY": "bench",
        "CUSTOMERIO_TRACK_URL": url,
        "CUSTOMERIO_REQUESTS_PER_SECOND": "1000",
        "AzureWebJobsStorage": house.azurite,
        "STATE_CONTAINER": f"bench-{uuid.uuid4().hex[:12]}",
        **changes,
    }
