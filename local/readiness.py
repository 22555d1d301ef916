"""`make readiness`: the report of readiness for one's own settings, as text; exit code 1 where something has failed.

The settings are the environment's, and beneath it `Values` of local.settings.json where there is such a file.
"""

import json
import os
import sys
from pathlib import Path

from local import driver

SETTINGS = Path("local.settings.json")


def main() -> int:
    driver.register()
    from shared import readiness  # after the driver is registered
    from shared.checks import Outcome, Patience

    if SETTINGS.exists():
        for name, value in json.loads(SETTINGS.read_text()).get("Values", {}).items():
            os.environ.setdefault(name, value)
    report = readiness.check(patience=Patience(query=300, begin=3600))
    for item in report["items"]:
        print(f"{item['state']:<8} {item['name']:<15} {item['seen']}")
        if item["do"]:
            print(f"{'':<25}-> {item['do']}")
    print(", ".join(f"{count} {state}" for state, count in report["counts"].items() if count))
    return 1 if report["counts"][Outcome.FAILED] else 0


if __name__ == "__main__":
    sys.exit(main())
