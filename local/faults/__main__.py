"""python -m local.faults [--seed N] [--short] [--only NAME]: play scenarios, print a table, write .faults/results.json.

Ends with status 1 where anything was lost, duplicated or misreported. The seed gives the data, the faults and the
moments of the kills anew; how the processes of a machine meet is not the seed's to say.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields, replace

from local import services
from local.customerio.control import CustomerioStandin
from local.faults.scenarios import SCENARIOS, Scenario
from local.faults.stage import House
from local.faults.verdict import Verdict

_RESULTS = services.REPOSITORY / ".faults" / "results.json"
_AT_ONCE = 4  # most of a pass's time, with faults, is waiting


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m local.faults", description=__doc__)
    parser.add_argument("--seed", type=int, help="what a former run has printed; default: another each time")
    parser.add_argument("--short", action="store_true", help="the part that `make test` plays")
    parser.add_argument("--only", action="append", help="the scenarios whose name has this text; may come again")
    arguments = parser.parse_args()
    seed = random.randrange(10**9) if arguments.seed is None else arguments.seed
    chosen = [
        scenario
        for scenario in SCENARIOS
        if (scenario.short or not arguments.short) and any(name in scenario.name for name in arguments.only or [""])
    ]
    if not chosen:
        parser.error(f"no such scenario; there are: {', '.join(one.name for one in SCENARIOS)}")
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    with house() as running:
        verdicts = play(running, chosen, seed, short=arguments.short)
    totals = total(verdicts.values())
    tell(verdicts, totals)
    _RESULTS.parent.mkdir(exist_ok=True)
    scenarios = {name: verdict.counts() for name, verdict in verdicts.items()}
    _RESULTS.write_text(json.dumps({"seed": seed, "totals": totals.counts(), "scenarios": scenarios}, indent=1) + "\n")
    print(f"seed {seed}, {time.monotonic() - began:.0f} s, {_RESULTS.relative_to(services.REPOSITORY)}")
    return 0 if totals.good else 1


@contextmanager
def house() -> Iterator[House]:
    """The services, running."""
    with ExitStack() as resources:
        azurite = resources.enter_context(services.azurite(in_memory=True))
        sql_server = resources.enter_context(services.sql_server())
        customerio = CustomerioStandin(resources.enter_context(services.customer_io()).url)
        resources.enter_context(closing(customerio))
        yield House(sql_server, customerio, azurite)


def play(running: House, scenarios: Sequence[Scenario], seed: int, *, short: bool) -> dict[str, Verdict]:
    """The verdicts by name, each told as soon as it is there. Raises what a scenario raises."""

    def one(scenario: Scenario) -> Verdict:
        began = time.monotonic()
        if short:
            verdict = scenario.run(running, seed, short=True)
        else:
            # which goes with all that the scenario has written: it is kept in memory
            with services.azurite(in_memory=True) as own:
                verdict = scenario.run(replace(running, azurite=own), seed)
        state = "ok" if verdict.good else "FAILED"
        print(f"{time.monotonic() - began:4.0f} s  {state:6}  {scenario.name}", flush=True)
        return verdict

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return dict(zip([one.name for one in scenarios], pool.map(one, scenarios), strict=True))


def total(verdicts: Iterable[Verdict]) -> Verdict:
    """The sum of all."""
    totals = Verdict()
    for verdict in verdicts:
        for one in fields(Verdict):
            setattr(totals, one.name, getattr(totals, one.name) + getattr(verdict, one.name))
    return totals


def tell(verdicts: dict[str, Verdict], totals: Verdict) -> None:
    """The table, and what is wrong."""
    width = max(map(len, verdicts))
    columns = [*totals.counts(), "faults"]
    print("\n" + " ".join([" " * width, *columns]))
    for name, verdict in [*verdicts.items(), ("all", totals)]:
        cells = [f"{getattr(verdict, column):>{len(column)}}" for column in columns]
        print(" ".join([f"{name:{width}}", *cells]))
    for name, verdict in verdicts.items():
        for line in verdict.told:
            print(f"{name}: {line}")


if __name__ == "__main__":
    sys.exit(main())
