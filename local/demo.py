"""The demo: real purchase histories go from SQL Server through the timer functions into Customer.io, each order once.

`python -m local.demo` tells a short story, holds each of its claims against SQL Server and Customer.io's own store, and
writes `.demo/report.json`. `--serve` does the set-up and the first pass, and then keeps everything running.
Every service is a stand-in on this machine, on a free port, and ends with the demo.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import pyodbc
from azure.storage.blob import ContainerClient

from local import cdnow, services
from local.customerio.control import CustomerioStandin, Event, Workspace
from local.host import Host
from shared.syncs import CATALOGUE

ROOT = services.REPOSITORY
REPORT = ROOT / ".demo" / "report.json"
NEW_ORDERS = 25
ON_A_TERMINAL = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"

# A run's record, as state keeps it: the counts are whole numbers.
Run = dict[str, Any]


class Disagreement(Exception):
    """Customer.io, SQL Server and the run records do not tell the same story."""


class Store:
    """What Customer.io holds: people's attributes by id, the events, and how often each event is stored."""

    def __init__(self, workspace: Workspace) -> None:
        self.people = workspace.people()
        self.events: list[Event] = list(workspace.events())
        # An event's name stands for its sync, and its property event_id is the source's id of it.
        self.stored = Counter((event["name"], str(event["attributes"]["event_id"])) for event in self.events)

    @property
    def duplicates(self) -> int:
        """How many events are stored that should not be, since the same one was there already."""
        return self.stored.total() - len(self.stored)


class Workshop:
    """The services that the story plays in, and what can be asked of them."""

    def __init__(self, sql: services.SqlServer, customerio: CustomerioStandin, azurite: str) -> None:
        self.database = sql.create_database("shop")
        self.workspace = customerio.create_workspace()
        self.settings = example_settings() | {
            "SQL_CONNECTION_STRING": self.database,
            "CUSTOMERIO_REGION": "us",
            "CUSTOMERIO_SITE_ID": self.workspace.site_id,
            "CUSTOMERIO_API_KEY": self.workspace.api_key,
            "CUSTOMERIO_TRACK_URL": customerio.url,
            "CUSTOMERIO_APP_URL": customerio.url,
            "AzureWebJobsStorage": azurite,
            "STATE_CONTAINER": "tidemark",
            "FIRST_PASS": "all",
        }
        self.state = ContainerClient.from_connection_string(azurite, "tidemark")

    def query(self, statement: str, *parameters: object) -> Any:
        """The rows that a statement selects from the shop."""
        with closing(pyodbc.connect(self.database)) as connection:
            return connection.execute(statement, *parameters).fetchall()

    def count(self, view: str) -> int:
        """How many rows a view of SQL Server has."""
        return int(self.query(f"SELECT COUNT(*) FROM {view}")[0][0])

    def store(self) -> Store:
        """Everything that Customer.io holds now."""
        return Store(self.workspace)

    def sent(self) -> int:
        """How many operations have reached Customer.io so far."""
        return int(self.workspace.stats()["operations"])

    def runs(self) -> set[str]:
        """The names of the records of all runs that have ended; the first of them makes the container."""
        if not self.state.exists():
            return set()
        prefixes = [f"syncs/{sync.name}/runs/" for sync in CATALOGUE]
        return {name for prefix in prefixes for name in self.state.list_blob_names(name_starts_with=prefix)}

    def run(self, name: str) -> Run:
        """The record of a run."""
        run: Run = json.loads(self.state.download_blob(name).readall())
        return run


def example_settings() -> dict[str, str]:
    """The app settings that the repository proposes, but for the ways to a storage account in Azure."""
    values: dict[str, str] = json.loads((ROOT / "local.settings.example.json").read_text(encoding="utf-8"))["Values"]
    return {name: value for name, value in values.items() if not name.startswith("AzureWebJobsStorage__")}


@contextmanager
def workshop() -> Iterator[Workshop]:
    """All services but the Functions host, started and, whatever happens, stopped."""
    with services.sql_server() as sql, services.customer_io() as customerio, services.azurite() as azurite:
        yield Workshop(sql, CustomerioStandin(customerio.url), azurite)


def tell(text: str = "") -> None:
    print(text, flush=True)


@contextmanager
def progress(now: Callable[[], str]) -> Iterator[None]:
    """Shows what `now` says while the block works: in place on a terminal, else as a line now and then."""
    done = threading.Event()
    shown = False

    def show() -> None:
        nonlocal shown
        while not done.wait(0.5 if ON_A_TERMINAL else 5):
            shown = True
            print(f"\r   {now()}\033[K" if ON_A_TERMINAL else f"   ... {now()}\n", end="", flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if shown and ON_A_TERMINAL:
            print("\r\033[K", end="", flush=True)


def fill_the_shop(shop: Workshop, histories: Path) -> None:
    tell("1. The shop: CDNOW's purchase histories in SQL Server, moved so that the last order is today")
    begun = time.monotonic()
    with progress(lambda: f"loading, {time.monotonic() - begun:.0f} s"):
        loaded = cdnow.load(shop.database, histories, datetime.now(UTC))
    tell(
        f"   {loaded.people:,} people and {loaded.orders:,} orders,"
        f" {loaded.first:%Y-%m-%d} to {loaded.last:%Y-%m-%d}, loaded in {time.monotonic() - begun:.1f} s"
    )


def one_pass(shop: Workshop, host: Host) -> dict[str, Run]:
    """Let each timer fire once, one after the other; the records of their runs by sync."""
    return {sync.name: one_run(shop, host, sync.name) for sync in CATALOGUE}


def one_run(shop: Workshop, host: Host, sync: str) -> Run:
    """Let one timer fire. Raises Disagreement when it fails, or leaves no record of a run that ended well."""
    before, sent = shop.runs(), shop.sent()
    with progress(lambda: f"{sync}: {shop.sent() - sent:,} operations at Customer.io"):
        invocation = host.invoke_timer(sync)
    if not invocation.ok:
        raise Disagreement(f"the function {sync} failed: {invocation.error}")
    records = [shop.run(name) for name in shop.runs() - before]
    if [(run["sync"], run["outcome"]) for run in records] != [(sync, "ok")]:
        raise Disagreement(f"the function {sync} should leave the record of one good run, but left {records}")
    tell("   " + summary(records[0]))
    return records[0]


def summary(run: Run) -> str:
    """A run in a line."""
    counts = {
        "operations sent": run["operations"],
        "rejected": run["rejected"],
        "set aside": run["dead_letters"],
        "sent before": run["already_sent"],
    }
    line = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count or what == "operations sent")
    return f"{run['sync']:<10} {run['rows']:>7,} rows read in {run['seconds']:.1f} s, {line}"


def total(passed: dict[str, Run], count: str) -> Any:
    """A count summed over the syncs of a pass."""
    return sum(run[count] for run in passed.values())


def expect(what: str, found: object, expected: object) -> None:
    """Raises Disagreement when the demo would otherwise claim something that is not so."""
    if found != expected:
        raise Disagreement(f"{what}: expected {expected}, found {found}")


def tell_first_pass(shop: Workshop, host: Host) -> dict[str, Run]:
    tell("2. The first pass: everything goes to Customer.io, once")
    passed = one_pass(shop, host)
    expect("dead letters of the first pass", total(passed, "dead_letters"), 0)
    return passed


def tell_second_pass(shop: Workshop, host: Host) -> tuple[dict[str, Run], Store]:
    tell("3. A second pass: nothing changed, so nothing is sent")
    sent = shop.sent()
    passed = one_pass(shop, host)
    expect("operations of the second pass", total(passed, "operations"), 0)
    expect("operations that reached Customer.io meanwhile", shop.sent() - sent, 0)
    store = shop.store()
    people, events = shop.count("retention.customers"), shop.count("retention.orders")
    expect("people at Customer.io", len(store.people), people)
    expect("events at Customer.io", len(store.events), events)
    expect("events stored twice", store.duplicates, 0)
    tell(f"   Customer.io holds {people:,} people and {events:,} events, as SQL Server does, and no event twice")
    return passed, store


def tell_third_pass(shop: Workshop, host: Host, before: Store) -> dict[str, Run]:
    with closing(pyodbc.connect(shop.database)) as connection:
        orders = cdnow.new_orders(connection, NEW_ORDERS, datetime.now(UTC))
    bought = shop.query("SELECT customer_id, order_id FROM shop.orders WHERE order_id >= ?", orders[0])
    buyers = {str(customer_id) for customer_id, _ in bought}
    newcomers = buyers - before.people.keys()
    tell(f"4. {len(orders)} new orders by {len(buyers)} people arrive, {len(newcomers)} of them brand-new")
    passed = one_pass(shop, host)
    after = shop.store()
    new = after.stored - before.stored
    moved = {person for person, attributes in after.people.items() if attributes != before.people.get(person)}
    expect("the new events at Customer.io", sorted(int(event_id) for _, event_id in new), orders)
    expect("events stored twice", after.duplicates, 0)
    expect("the people that changed at Customer.io", moved, buyers)
    expect("operations of the customers pass", passed["customers"]["operations"], len(buyers))
    tell("   (two operations an order: the state of its person now, and right behind it the event)")
    tell(f"   Customer.io got exactly those {new.total()} events, and {len(moved)} people changed: exactly the buyers")
    # Somebody with a past is more telling than the newcomer.
    person = max(buyers - newcomers or buyers, key=lambda buyer: (after.people[buyer]["orders_count"], buyer))
    tell_of_a_person(after, person)
    return passed


def tell_of_a_person(store: Store, person: str) -> None:
    tell(f"5. What Customer.io now holds for person {person}")
    for name, value in sorted(store.people[person].items()):
        kind = {bool: "true/false", int: "number", float: "number", str: "text"}.get(type(value), "?")
        shown = f"{value}  = {moment(value)}" if name.endswith("_at") else json.dumps(value)
        tell(f"   {name:<24} {kind:<10}  {shown}")
    theirs = [event for event in store.events if event["person"] == person]
    theirs.sort(key=lambda event: event["timestamp"])
    tell(f"   and {len(theirs)} events, the latest of them:")
    for event in theirs[-3:]:
        order = event["attributes"]
        tell(
            f"   {moment(event['timestamp'])}  {event['name']}  {event['ulid']}"
            f"  order {order['order_id']}, number {order['order_number']}: {order['total']:.2f} {order['currency']}"
        )


def moment(timestamp: int) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%SZ}"


def demo(histories: Path, report: Path) -> None:
    """The whole story; writes the report when all of it held. Raises Disagreement where it did not."""
    begun = time.monotonic()
    report.unlink(missing_ok=True)
    tell("Tidemark: SQL Server -> Azure Functions -> Customer.io, all of it on this machine")
    with workshop() as shop:
        fill_the_shop(shop, histories)
        with Host(ROOT, shop.settings) as host:
            first = tell_first_pass(shop, host)
            second, store = tell_second_pass(shop, host)
            third = tell_third_pass(shop, host, store)
            peak = round(host.peak_mb, 1)
    figures = {
        "people_at_customerio": len(store.people),
        "events_at_customerio": len(store.events),
        "duplicate_events": store.duplicates,
        "first_pass_operations": total(first, "operations"),
        "second_pass_operations": total(second, "operations"),
        "third_pass_operations": total(third, "operations"),
        "dead_letters": sum(total(passed, "dead_letters") for passed in (first, second, third)),
        "rows_per_second": round(total(first, "rows") / total(first, "seconds")),
        "peak_mb": peak,
        "seconds": round(time.monotonic() - begun, 1),
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    tell(
        f"Done in {figures['seconds']} s: {figures['rows_per_second']:,} rows a second in the first pass,"
        f" at most {peak:.0f} MB in the Functions process. The figures are in {report}"
    )


def serve(histories: Path) -> None:
    """Set-up and first pass, then everything keeps running and each run that sent something is told, until Ctrl-C."""
    with workshop() as shop:
        fill_the_shop(shop, histories)
        with Host(ROOT, shop.settings) as host:
            tell_first_pass(shop, host)
        often = {sync.schedule_setting: "*/5 * * * * *" for sync in CATALOGUE}
        with services.functions_host(shop.settings | often) as functions:
            workspace, url = shop.workspace, shop.workspace.url
            tell(f"""3. Everything runs now; the timers fire every 5 seconds. Ctrl-C ends it.
   Customer.io  {url}    Functions  {functions.url}
   SQL Server   {shop.database}
   Storage      {shop.settings["AzureWebJobsStorage"]}
   New orders:  {sys.executable} -m local.cdnow '{shop.database}' 25
   A person:    curl -s -H 'Authorization: Bearer {workspace.app_api_key}' {url}/v1/customers/42/attributes
   Its events:  curl -s -H 'Authorization: Bearer {workspace.app_api_key}' {url}/v1/customers/42/activities
   All counts:  curl -s {url}/_standin/workspaces/{workspace.environment_id}/stats""")
            told = shop.runs()
            while True:
                time.sleep(2)
                ended = shop.runs()
                for run in map(shop.run, sorted(ended - told)):
                    if run["operations"] or run["outcome"] != "ok":
                        tell(
                            f"   {datetime.now(UTC):%H:%M:%SZ}  {summary(run)}  {run['outcome']} {run['message'] or ''}"
                        )
                told = ended


def main() -> int:
    options = argparse.ArgumentParser(prog="python -m local.demo", description="Tidemark's demo.")
    options.add_argument("--serve", action="store_true", help="keep everything running after the first pass")
    options.add_argument("--histories", type=Path, default=cdnow.HISTORIES, help="purchase histories in CDNOW's format")
    options.add_argument("--report", type=Path, default=REPORT, help="where to write the figures")
    chosen = options.parse_args()
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()
        raise KeyboardInterrupt  # so that the services are stopped on the way out

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        if chosen.serve:
            serve(chosen.histories)
        else:
            demo(chosen.histories, chosen.report)
    except (Exception, KeyboardInterrupt) as fault:
        if stopping.is_set():  # whatever came of it: pyodbc makes an error of its own of an interrupt
            tell("\nStopped, and all services with it.")
            sys.stdout.flush()
            # at once: a thread of the host that was cut off must not hold up the interpreter's end
            os._exit(0 if chosen.serve else 130)
        what = "does not hold" if isinstance(fault, Disagreement) else f"failed: {type(fault).__name__}"
        tell(f"\nThe demo {what}: {fault}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
