"""python -m local.faults.worker SYNC [--ahead SECONDS]: one pass as a process, its settings from the environment.

Prints {"ready": 1} when everything is imported, so that a kill falls into the pass, and at the end what the pass came
to: {"outcome", "message", "operations"}. `--ahead` moves this process's clock, as a clock jump of its machine does.
"""

import argparse
import json
import time

from local import driver

driver.register()

from shared import passes  # noqa: E402
from shared.errors import TidemarkError  # noqa: E402
from shared.syncs import find  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.faults.worker", description=__doc__)
    parser.add_argument("sync")
    parser.add_argument("--ahead", type=int, default=0, help="seconds by which this process's clock is ahead")
    arguments = parser.parse_args()
    if arguments.ahead:
        _move_clock(arguments.ahead)
    print(json.dumps({"ready": 1}), flush=True)
    try:
        run = passes.run(find(arguments.sync))
        told = {"outcome": run.outcome, "message": run.message, "operations": run.operations}
    except TidemarkError as error:
        told = {"outcome": "failed", "message": str(error), "operations": 0}
    print(json.dumps(told), flush=True)


def _move_clock(seconds: int) -> None:
    """Only the clock of `time`: blob storage refuses a request whose date is wrong, and that is another fault."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + seconds
    time.time_ns = lambda: now_ns() + seconds * 10**9


if __name__ == "__main__":
    main()
