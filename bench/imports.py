"""What a cold start pays for importing function_app.py, against what no Python function app can do without.

Each import is a process of its own; the two take turns, so that what else the machine does meets both.
"""

import statistics
import subprocess
import sys
from collections.abc import Sequence

from bench import Figure
from local.faults.stage import House
from local.services import REPOSITORY

_ROUNDS = 15
_APP = "import function_app"
_BARE = "import azure.functions, pydantic_settings"


def measure(house: House) -> Sequence[Figure]:
    """Medians of importing the app and the two libraries alone, and their ratio."""
    seconds: dict[str, list[float]] = {_APP: [], _BARE: []}
    for code in (_APP, _BARE):
        _import(code)  # compiles, and brings the files into memory
    for _ in range(_ROUNDS):
        for code, taken in seconds.items():
            taken.append(_import(code))
    app, bare = (statistics.median(taken) for taken in seconds.values())
    return (
        Figure("function_app.py, s", app),
        Figure("azure.functions and pydantic_settings, s", bare),
        Figure("ratio", app / bare, at_most=1.25),
    )


def _import(code: str) -> float:
    timed = f"import time; began = time.perf_counter(); {code}; print(time.perf_counter() - began)"
    return float(subprocess.check_output([sys.executable, "-c", timed], cwd=REPOSITORY))
