"""python -m bench [NAME...]: take measurements, print a table, write .bench/results.json.

Ends with status 1 where a goal is missed. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence

from bench import Figure, comparison, fanout, imports, ledger, limit
from local import services
from local.faults.__main__ import house
from local.faults.stage import House

_RESULTS = services.REPOSITORY / ".bench" / "results.json"
_MEASUREMENTS: dict[str, Callable[[House], Sequence[Figure]]] = {
    "ledger": ledger.measure,
    "fanout": fanout.measure,
    "comparison": comparison.measure,
    "imports": imports.measure,
    "limit": limit.measure,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(_MEASUREMENTS)}; default: all")
    names = parser.parse_args().names or list(_MEASUREMENTS)
    if unknown := set(names) - _MEASUREMENTS.keys():
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are: {', '.join(_MEASUREMENTS)}")
    load = os.getloadavg()[0]
    began = time.monotonic()
    measured = {}
    for name in names:
        with house() as running:
            measured[name] = _MEASUREMENTS[name](running)
        tell(name, measured[name])
    results = {
        "measured": {name: {one.name: one.value for one in figures} for name, figures in measured.items()},
        "machine": {
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "system": platform.platform(),
            "python": platform.python_version(),
            "load_before": round(load, 2),
        },
    }
    _RESULTS.parent.mkdir(exist_ok=True)
    _RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{time.monotonic() - began:.0f} s, {_RESULTS.relative_to(services.REPOSITORY)}")
    return 0 if all(one.met for figures in measured.values() for one in figures) else 1


def tell(name: str, figures: Sequence[Figure]) -> None:
    """A table of one measurement."""
    width = max(len(one.name) for one in figures)
    print(f"\n{name}")
    for one in figures:
        goal = "" if one.at_most is None else f"  at most {one.at_most:g}{'' if one.met else ': MISSED'}"
        print(f"  {one.name:{width}}  {one.value:>12,.7g}{goal}".rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
