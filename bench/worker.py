"""python -m bench.worker SYNC: one pass as a process of its own, its settings from the environment.

Prints what it came to: {"operations", "already_sent", "seconds", "peak_mb"}. `peak_mb` is the most memory that this
process had resident (VmHWM, MiB); the kernel's ru_maxrss would count that of the parent, which it was forked from.
"""

import json
import re
import sys
import time
from pathlib import Path

from local import driver

driver.register()

from shared import passes  # noqa: E402
from shared.syncs import find  # noqa: E402


def main() -> None:
    began = time.monotonic()
    run = passes.run(find(sys.argv[1]))
    seconds = time.monotonic() - began
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak and run.outcome == "ok", run.message
    told = {"operations": run.operations, "already_sent": run.already_sent}
    print(json.dumps({**told, "seconds": seconds, "peak_mb": int(peak[1]) / 1024}))


if __name__ == "__main__":
    main()
