"""Kill -9 at random moments of the first pass: every order is at Customer.io once, people complete, nothing lost."""

import os
import random
import subprocess
import sys
import time

from local import services
from tests.conftest import Deployment
from tests.test_passes import add_customers, add_orders, make_tables

KILLS = 14
PASS = "import sys; from shared import passes, syncs; passes.run(next(s for s in syncs.CATALOGUE if s.name == sys.argv[1]))"


def start(deployment: Deployment, sync: str) -> subprocess.Popen[bytes]:
    """One pass as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", PASS, sync],
        cwd=services.REPOSITORY,
        env={**os.environ, **deployment.environment, "PAGE_SIZE": "100", "CUSTOMERIO_BATCHES_IN_FLIGHT": "1"},
        stderr=subprocess.PIPE,
    )


def test_a_first_pass_that_is_killed_again_and_again_sends_every_order_once(deployment):
    seed = random.randrange(10**9)
    print(f"seed {seed}")  # shown when the test fails
    moments = random.Random(seed)
    make_tables(deployment.sql)
    add_customers(deployment.sql, range(3000))
    add_orders(deployment.sql, range(6000), customers=3000)
    deployment.workspace.configure(latency_seconds=0.1)
    kills = {"customers": 0, "orders": 0}
    longest = 2.0
    progress = set()
    while any(kills[sync] < KILLS // 2 for sync in kills):
        sync = min(kills, key=lambda name: kills[name])
        process = start(deployment, sync)
        try:
            # most of a pass's time is the import: the moments lie behind it
            process.wait(moments.uniform(0.4, longest))
        except subprocess.TimeoutExpired:
            process.kill()
            kills[sync] += 1
            progress.add((sync, deployment.workspace.stats()["operations"]))
        else:
            error = process.stderr.read().decode() if process.stderr else ""
            assert process.returncode == 0, error
            longest = max(1.0, longest - 0.1)
        process.communicate()
        deployment.break_lease(sync)
    for sync in kills:
        deadline = time.monotonic() + 60
        while deployment.run(sync).outcome != "ok":
            assert time.monotonic() < deadline
    assert len(progress) > KILLS // 2, "the kills did not lie within passes"
    people = deployment.workspace.people()
    assert len(people) == 3000
    assert all(people[str(n)] == {"email": f"c{n}@example.com", "tier": "gold"} for n in range(3000))
    ids = [event["attributes"]["event_id"] for event in deployment.workspace.events()]
    assert sorted(ids) == list(range(6000))
    assert deployment.workspace.stats()["duplicate_events_stored"] == 0
    for sync in kills:
        assert deployment.run(sync).operations == 0
