"""The mark: only who holds the lease, and has read the mark as it stands, can write it."""

import asyncio
import re
import time
from dataclasses import replace

import pytest
from azure.storage.blob import BlobLeaseClient, ContainerClient

from local.faults.proxy import Answer, Proxy, Request
from shared.errors import Busy, ConfigurationFault, StateFault, StateUnavailable
from shared.state import Claim, Identity, Mark, State
from shared.view import Column, Position, Survey, View
from tests.conftest import SYNCS, Deployment

ORDERS = SYNCS["orders"]
MARK = Mark(Identity("workspace", "server", "database"), "row_version")
NAME = "syncs/orders/mark.json"


@pytest.fixture
def state(deployment: Deployment):
    state = State(deployment.settings())
    state.create()
    state.remember(MARK.identity)
    state.begin(ORDERS, MARK)
    yield state
    state.close()


def stored(container: ContainerClient) -> Mark:
    return Mark.from_json(container.download_blob(NAME).readall(), NAME)


def position(number: int) -> Position:
    return Position(f"0x{number:016X}", None)


def test_a_pass_that_lost_its_lease_cannot_write_the_mark_that_the_next_one_has_moved(state, deployment):
    with state.claim(ORDERS) as first:
        first.save(replace(first.mark, position=position(1)))
        with pytest.raises(Busy):
            state.claim(ORDERS)
        deployment.break_lease("orders")
        with state.claim(ORDERS) as second:
            second.save(replace(second.mark, position=position(3)))
            with pytest.raises(
                StateUnavailable, match=r"lease of .* was lost, or the mark was written by another pass"
            ):
                first.save(replace(first.mark, position=position(2)))
        with pytest.raises(StateUnavailable, match=r"lease of .* was lost, or the mark was written by another pass"):
            first.save(replace(first.mark, position=position(2)))  # now nobody holds the lease
    assert stored(deployment.container).position == position(3)


def test_a_mark_that_was_changed_under_the_lease_is_not_overwritten(state, deployment):
    blob = deployment.container.get_blob_client(NAME)
    etag = blob.get_blob_properties().etag
    lease = BlobLeaseClient(blob)
    lease.acquire(60)
    with Claim(blob, lease, MARK, etag) as claim:
        other = Mark(MARK.identity, MARK.strategy, position(7))
        blob.upload_blob(other.to_json(), overwrite=True, lease=lease)
        with pytest.raises(StateUnavailable, match="written by another pass"):
            claim.save(replace(claim.mark, position=position(2)))
    assert stored(deployment.container) == other


def test_a_write_whose_answer_was_lost_is_recognised_as_ones_own(state, deployment):
    blob = deployment.container.get_blob_client(NAME)
    etag = blob.get_blob_properties().etag
    lease = BlobLeaseClient(blob)
    lease.acquire(60)
    with Claim(blob, lease, MARK, etag) as claim:
        blob.upload_blob(Mark(MARK.identity, MARK.strategy, position(1)).to_json(), overwrite=True, lease=lease)
        claim.save(replace(claim.mark, position=position(1)))
        claim.save(replace(claim.mark, position=position(2)))
    assert stored(deployment.container).position == position(2)


def test_a_mark_is_read_as_it_was_written():
    mark = Mark(
        identity=MARK.identity,
        strategy="updated_at",
        position=Position("2026-01-01T00:00:00.1234567", "é"),
        walking="0x01",
        ledgered=7,
        recent=b"\x00" * 16,
    )
    assert Mark.from_json(mark.to_json(), NAME) == mark


@pytest.mark.parametrize("part", ["workspace", "server", "database"])
def test_state_of_another_workspace_server_or_database_is_refused(state, part):
    found = Identity(**{"workspace": "workspace", "server": "server", "database": "database", part: "another"})
    with pytest.raises(StateFault, match="now leads to another"):
        state.remember(found)


def test_a_read_only_replica_is_refused_for_row_version_and_taken_for_updated_at(deployment):
    def view(cursor: Column) -> View:
        columns = [Column("customer_id", "int"), cursor]
        survey = Survey({"customers": columns}, "0x00", "0x00", None, "server", "shop", True)  # type: ignore[arg-type]
        return View(SYNCS["customers"], survey, deployment.settings())

    with pytest.raises(ConfigurationFault, match="read-only replica of shop"):
        view(Column("row_version", "timestamp"))
    assert view(Column("updated_at", "datetime2")).strategy == "updated_at"


class Mute(Proxy):
    """Never answers the first request to renew a lease, and counts those that it has let through."""

    asked = renewed = 0

    async def exchange(self, request: Request, upstream) -> Answer:
        if b"x-ms-lease-action: renew" in request.head:
            self.asked += 1
            if self.asked == 1:
                await asyncio.sleep(600)
            self.renewed += 1
        return await super().exchange(request, upstream)


@pytest.mark.slow
def test_a_renewal_that_is_never_answered_is_asked_for_again_while_the_lease_lasts(state, deployment):
    port = int(re.search(r"BlobEndpoint=http://127.0.0.1:(\d+)", deployment.environment["AzureWebJobsStorage"])[1])
    with Mute(port) as proxy:
        text = deployment.environment["AzureWebJobsStorage"].replace(f":{port}/", f":{proxy.port}/")
        with State(deployment.settings(AzureWebJobsStorage=text)).claim(ORDERS) as claim:
            deadline = time.monotonic() + 40
            while not proxy.renewed and time.monotonic() < deadline:
                time.sleep(0.2)
            claim.check()
            assert (proxy.asked, proxy.renewed) == (2, 1)
