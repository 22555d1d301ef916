"""The demo: real purchase histories go from SQL Server through the timer functions into Customer.io, each event once.

`python -m local.demo` tells a short story: all goes live, by a plan that is approved; then nothing goes, then what
changes (orders, a late refund, a paused subscription, carts), and a job that rewrites every order sends nothing. It
holds each of its claims against SQL Server and Customer.io's own store, and writes `.demo/report.json`. `--serve` does
the set-up, goes live and keeps everything running; with `--not-live`, going live is left to you. Every service is a
stand-in on this machine, on a free port, and ends with the demo.
"""

import argparse
import json
import os
import re
import signal
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import psutil
import pyodbc
from azure.storage.blob import ContainerClient

from local import cdnow, services
from local.customerio.control import CustomerioStandin, Event, Workspace
from local.host import Host
from shared import surge
from shared.syncs import CATALOGUE, Kind

ROOT = services.REPOSITORY
REPORT = ROOT / ".demo" / "report.json"
NEW_ORDERS = 25
CART_SECONDS = 8  # what is left of a cart's hour when the demo writes it: the carts pass must be quicker
NEVER = "0 0 0 1 1 *"  # but once a year: the story lets the timers fire
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
        self.by_name = dict(sorted(Counter(event["name"] for event in self.events).items()))

    @property
    def duplicates(self) -> int:
        """How many events are stored that should not be, since the same one was there already."""
        return self.stored.total() - len(self.stored)

    def events_since(self, before: "Store") -> list[Event]:
        """What was stored after `before` was read: events are kept in the order of their arrival."""
        return self.events[len(before.events) :]

    def arrived_since(self, before: "Store") -> list[tuple[str, str | None]]:
        """The name and the person of each of these events."""
        return sorted((event["name"], event["person"]) for event in self.events_since(before))

    def moved_since(self, before: "Store") -> set[str]:
        """Who is new, or has other attributes than in `before`."""
        return {person for person, attributes in self.people.items() if attributes != before.people.get(person)}


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
            "CUSTOMERIO_APP_API_KEY": self.workspace.app_api_key,
            "CUSTOMERIO_TRACK_URL": customerio.url,
            "CUSTOMERIO_APP_URL": customerio.url,
            "AzureWebJobsStorage": azurite,
            "STATE_CONTAINER": "tidemark",
            "FIRST_PASS": "approved",
            # the demo writes carts an hour after they were touched
            "LOOKBACK_SECONDS": "7200",
        }
        self.state = ContainerClient.from_connection_string(azurite, "tidemark")

    def connection(self) -> closing[pyodbc.Connection]:
        """A connection to the shop, closed after use."""
        return closing(pyodbc.connect(self.database))

    def query(self, statement: str, *parameters: object) -> Any:
        """The rows that a statement selects from the shop."""
        with self.connection() as connection:
            return connection.execute(statement, *parameters).fetchall()

    def people(self) -> int:
        """How many people SQL Server has for Customer.io."""
        return int(self.query("SELECT COUNT(*) FROM retention.customers")[0][0])

    def events(self) -> dict[str, int]:
        """How many events of each name SQL Server has for Customer.io."""
        views = [f"retention.{sync.view}" for sync in CATALOGUE if sync.kind is Kind.EVENT]
        rows = [
            row for view in views for row in self.query(f"SELECT event_name, COUNT(*) FROM {view} GROUP BY event_name")
        ]
        return dict(sorted((name, int(count)) for name, count in rows))

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


def fill_the_shop(shop: Workshop, histories: Path) -> cdnow.Loaded:
    tell("1. The shop: CDNOW's purchase histories in SQL Server, moved so that the last order is today")
    begun = time.monotonic()
    with progress(lambda: f"loading, {time.monotonic() - begun:.0f} s"):
        loaded = cdnow.load(shop.database, histories, datetime.now(UTC))
    tell(
        f"   {loaded.people:,} people and {loaded.orders:,} orders,"
        f" {loaded.first:%Y-%m-%d} to {loaded.last:%Y-%m-%d}, loaded in {time.monotonic() - begun:.1f} s"
    )
    tell("   CDNOW's are the people, and the days, pieces and amounts of their orders. Made up around them, by a hash:")
    tell(f"   {loaded.refunds:,} refunds, {loaded.subscriptions:,} subscriptions, products, addresses, times of day")
    return loaded


def one_pass(shop: Workshop, host: Host) -> dict[str, Run]:
    """Let each timer fire once, one after the other; the records of their runs by sync."""
    passed = {sync.name: one_run(shop, host, sync.name) for sync in CATALOGUE}
    if quiet := [sync for sync, run in passed.items() if not run["rows"]]:
        tell(f"   nothing to read in {', '.join(quiet)}")
    return passed


def one_run(shop: Workshop, host: Host, sync: str) -> Run:
    """Let one timer fire, and tell what it read.

    Raises Disagreement when it fails, or leaves no record of a run that ended well.
    """
    before, sent = shop.runs(), shop.sent()
    with progress(lambda: f"{sync}: {shop.sent() - sent:,} operations at Customer.io"):
        invocation = host.invoke_timer(sync)
    if not invocation.ok:
        raise Disagreement(f"the function {sync} failed: {invocation.error}")
    records = [shop.run(name) for name in shop.runs() - before]
    if [(run["sync"], run["outcome"]) for run in records] != [(sync, "ok")]:
        raise Disagreement(f"the function {sync} should leave the record of one good run, but left {records}")
    if records[0]["rows"]:
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
    return f"{run['sync']:<13} {run['rows']:>7,} rows read in {run['seconds']:.1f} s, {line}"


def total(passed: dict[str, Run], count: str) -> Any:
    """A count summed over the syncs of a pass."""
    return sum(run[count] for run in passed.values())


def expect(what: str, found: object, expected: object) -> None:
    """Raises Disagreement when the demo would otherwise claim something that is not so."""
    if found != expected:
        raise Disagreement(f"{what}: expected {expected}, found {found}")


def tell_going_live(shop: Workshop, functions: services.FunctionsHost) -> Run:
    """Ask for the plan, show it, approve it, and wait until all is sent; returns what was done.

    Raises Disagreement where the plan is not carried out to its end.
    """
    tell("2. Going live: a plan, its approval, and everything goes to Customer.io, once")
    with httpx.Client(base_url=functions.url, timeout=60) as http:
        asked = http.post("/api/go-live", json={}).raise_for_status().json()
        tell(f"   POST /api/go-live, and GET {asked['url']} shows the plan:")
        told = await_state(http, asked["url"], "planning", lambda _: "planning")
        expect(f"the state of the run ({told['message']})", told["state"], "awaiting_approval")
        for sync in told["plan"]["syncs"]:
            young = sync.get("young_to_send", 0)
            reach = f", of which {young:,} could start a campaign: they are marked as backfill" if young else ""
            tell(f"   {sync['sync']:<13} {sync['rows']:>7,} rows{reach}")
        plan = told["plan"]
        tell(f"   {plan['people']:,} people, {plan['requests']:,} requests, {plan['slices']} slices")
        tell(f"   POST {asked['url']}/approve")
        http.post(f"{asked['url']}/approve").raise_for_status()
        told = await_state(http, asked["url"], "running", lambda run: f"{run['progress']['percent']} %")
        expect("the state of the run", told["state"], "done")
    done: Run = told["progress"]
    expect("dead letters of going live", done["dead_letters"], 0)
    tell(f"   done: {done['rows']:,} rows read in {done['seconds']:.1f} s, {done['operations']:,} operations sent")
    tell("   (two operations for an event of the last 72 hours: its person's state now, and right behind it the event)")
    return done


def await_state(http: httpx.Client, url: str, state: str, say: Callable[[Run], str]) -> Run:
    """The run once it is in another state than this one; `say` tells how far it is meanwhile."""
    told: Run = http.get(url).json()
    with progress(lambda: say(told)):
        while told["state"] == state:
            time.sleep(0.5)
            told = http.get(url).json()
    return told


def peak_mb(functions: services.FunctionsHost) -> float:
    """The most memory that the functions' process had resident so far, in MiB."""
    (app,) = psutil.Process(functions.pid).children()
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{app.pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def timers(shop: Workshop, schedule: str) -> dict[str, str]:
    """The settings of the shop, and this schedule for all timers."""
    return shop.settings | {sync.schedule_setting: schedule for sync in CATALOGUE}


def tell_second_pass(shop: Workshop, host: Host) -> tuple[dict[str, Run], Store]:
    tell("3. A pass of each sync: nothing changed, so nothing is sent")
    sent = shop.sent()
    passed = one_pass(shop, host)
    expect("operations of these passes", total(passed, "operations"), 0)
    expect("operations that reached Customer.io meanwhile", shop.sent() - sent, 0)
    store = shop.store()
    expect("people at Customer.io", len(store.people), shop.people())
    expect("events at Customer.io by name", store.by_name, shop.events())
    expect("events stored twice", store.duplicates, 0)
    tell(
        f"   Customer.io holds {len(store.people):,} people and {len(store.events):,} events, as SQL Server does,"
        " and no event twice:"
    )
    for name, count in store.by_name.items():
        tell(f"   {name:<24} {count:>7,}")
    return passed, store


def tell_third_pass(shop: Workshop, host: Host, before: Store) -> tuple[dict[str, Run], Store]:
    with shop.connection() as connection:
        orders = cdnow.new_orders(connection, NEW_ORDERS, datetime.now(UTC))
    bought = shop.query("SELECT customer_id FROM shop.orders WHERE order_id >= ?", orders[0])
    buyers = {str(customer_id) for (customer_id,) in bought}
    newcomers = buyers - before.people.keys()
    tell(f"4. {len(orders)} new orders by {len(buyers)} people arrive, {len(newcomers)} of them brand-new")
    tell("   (made up, as all that happens from here on)")
    passed = one_pass(shop, host)
    after = shop.store()
    new = [(event["name"], event["attributes"]["event_id"]) for event in after.events_since(before)]
    expect("the new events at Customer.io", sorted(new), [("Order Placed", order) for order in orders])
    expect("events stored twice", after.duplicates, 0)
    expect("the people that changed at Customer.io", after.moved_since(before), buyers)
    expect("operations of the customers pass", passed["customers"]["operations"], len(buyers))
    tell(f"   Customer.io got exactly those {len(new)} events, and {len(buyers)} people changed: exactly the buyers")
    return passed, after


def tell_refund_and_pause(shop: Workshop, host: Host, before: Store) -> tuple[dict[str, Run], Store, str]:
    """Also returns whose order was refunded."""
    tell("5. A refund is recorded nine days late, and a subscription is paused")
    with shop.connection() as connection:
        customer, refunded_at, recorded_at = cdnow.late_refund(connection, datetime.now(UTC))
        subscriber = cdnow.pause(connection, datetime.now(UTC))
    passed = one_pass(shop, host)
    after = shop.store()
    refunded, paused = str(customer), str(subscriber)
    expect("the people that changed at Customer.io", after.moved_since(before), {refunded, paused})
    expected = [("Refund Issued", refunded), ("Subscription Paused", paused)]
    expect("the new events at Customer.io", after.arrived_since(before), expected)
    refund, pause = sorted(after.events_since(before), key=lambda event: event["name"])

    expect("the time of the refund's event", refund["timestamp"], unix(recorded_at))
    expect("its refunded_at", refund["attributes"]["refunded_at"], unix(refunded_at))
    was, has = before.people[refunded], after.people[refunded]
    expect("the refund flag", (was["refund_flag"], has["refund_flag"]), (False, True))
    expect("the lifetime value after a refund of 10", has["ltv"], round(was["ltv"] - 10, 2))
    tell(f"   Refund Issued for person {refunded}, dated when it was recorded, so that the apology starts now:")
    tell(f"   timestamp {moment(refund['timestamp'])}, refunded_at {moment(unix(refunded_at))}")
    tell(f"   refund_flag false -> true, ltv {was['ltv']:.2f} -> {has['ltv']:.2f}")

    was, has = before.people[paused], after.people[paused]
    expect("the plan of the pause's event", pause["attributes"]["plan"], "Monthly")
    expect("the status", (was["subscription_status"], has["subscription_status"]), ("active", "paused"))
    tell(f"   Subscription Paused for person {paused}, plan Monthly: subscription_status active -> paused")
    return passed, after, refunded


def tell_carts(shop: Workshop, host: Host, before: Store, buyer: str) -> tuple[dict[str, Run], Store, str]:
    """The buyer has a cart and orders, somebody else has a cart and does not. Also returns who that is."""
    touched_at = datetime.now(UTC) + timedelta(seconds=CART_SECONDS - 3600)
    with shop.connection() as connection:
        forgetful = str(cdnow.leave_carts(connection, int(buyer), touched_at))
    tell(f"6. Two carts were last touched almost an hour ago; person {buyer} now orders, person {forgetful} does not")
    updated = one_run(shop, host, "carts")
    with_carts = shop.store()
    expected = sorted(("Cart Updated", person) for person in (buyer, forgetful))
    expect("the events of the carts", with_carts.arrived_since(before), expected)
    with shop.connection() as connection:
        cdnow.order_by(connection, int(buyer), datetime.now(UTC))
    with progress(lambda: "waiting until nobody has touched the carts for an hour"):
        while shop.query("SELECT 1 FROM shop.carts WHERE abandoned_at > SYSUTCDATETIME()"):
            time.sleep(0.2)
    passed = one_pass(shop, host)
    after = shop.store()
    expected = [("Cart Abandoned", forgetful), ("Order Placed", buyer)]
    expect("the events after the hour", after.arrived_since(with_carts), expected)
    expect("abandoned carts in SQL Server", shop.events().get("Cart Abandoned"), after.by_name["Cart Abandoned"])
    was, has = before.people[buyer], after.people[buyer]
    expect("the refund flag", (was["refund_flag"], has["refund_flag"]), (True, False))
    tell(f"   Cart Abandoned for person {forgetful} alone, once the hour was over: no row of a cart was touched for it")
    tell(f"   Order Placed for person {buyer}, whose refund_flag it turned off: true -> false")
    return passed | {"carts, before the hour": updated}, after, forgetful


def tell_removal(shop: Workshop, host: Host, before: Store, person: str) -> tuple[dict[str, Run], Store]:
    tell(f"7. Person {person} asks to be forgotten; but the shop goes on to change their row")
    with shop.connection() as connection:
        cdnow.forget(connection, int(person), datetime.now(UTC))
        connection.execute("UPDATE shop.customers SET do_not_discount = 1 WHERE customer_id = ?", int(person))
        connection.commit()
    removed, held = one_run(shop, host, "removals"), one_run(shop, host, "customers")
    again = one_run(shop, host, "removals")
    after = shop.store()
    expect("the people who are gone from Customer.io", before.people.keys() - after.people.keys(), {person})
    expect("operations of the customers pass", (held["operations"], held["held"]), (0, {"removed": 1}))
    expect("deletions that the next pass sends once more", again["repeated"], 1)
    tell("   Customer.io has deleted the person; the changed row is held back, and nothing brings the person back.")
    tell("   (the deletion goes once more one pass later, should anything have been on its way)")
    return {"removals": removed, "customers": held, "removals, again": again}, after


def tell_rewritten_orders(shop: Workshop, host: Host, before: Store) -> tuple[dict[str, Run], Store]:
    rewrite = "UPDATE shop.orders SET status = status"
    tell(f"8. A nightly job rewrites every order without a change: {rewrite}")
    with progress(lambda: "rewriting"), shop.connection() as connection:
        connection.execute(rewrite)
        connection.commit()
    sent = shop.sent()
    run = one_run(shop, host, "orders")
    orders = shop.events()["Order Placed"]
    expect("orders that were read again", run["rows"], orders)
    expect("orders that are known to be sent", run["already_sent"], orders)
    expect("operations that reached Customer.io", shop.sent() - sent, 0)
    after = shop.store()
    expect("the new events at Customer.io", after.arrived_since(before), [])
    expect("events stored twice", after.duplicates, 0)
    tell(f"   {orders:,} orders have a new row version, and no event is sent a second time")
    if len(after.people) < surge.LEAST:
        return {"orders": run}, after
    sent = shop.sent()
    invocation = host.invoke_timer("customers")
    expect("a customers pass that would touch everybody goes through", invocation.ok, False)
    expect("operations that reached Customer.io", shop.sent() - sent, 0)
    tell("   The pass of customers would touch everybody, so it stops before it sends, and says:")
    for line in textwrap.wrap(str(invocation.error), 108):
        tell(f"     {line}")
    return {"orders": run}, after


def tell_of_a_person(store: Store, person: str) -> None:
    tell(f"9. What Customer.io now holds for person {person}")
    for name, value in sorted(store.people[person].items()):
        kind = {bool: "true/false", int: "number", float: "number", str: "text"}.get(type(value), "?")
        shown = f"{value}  = {moment(value)}" if name.endswith("_at") else json.dumps(value)
        tell(f"   {name:<24} {kind:<10}  {shown}")
    theirs = [event for event in store.events if event["person"] == person]
    theirs.sort(key=lambda event: event["timestamp"])
    tell(f"   and {len(theirs)} events, the latest of them:")
    for event in theirs[-4:]:
        amount = next((event["attributes"][name] for name in ("total", "amount") if name in event["attributes"]), 0)
        tell(
            f"   {moment(event['timestamp'])}  {event['name']:<14} {event['ulid']}"
            f"  {amount:.2f} {event['attributes']['currency']}"
        )


def unix(zoneless: datetime) -> int:
    """The unix seconds of a datetime2 of the shop, which is UTC."""
    return int(zoneless.replace(tzinfo=UTC).timestamp())


def moment(timestamp: int) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%SZ}"


def demo(histories: Path, report: Path) -> None:
    """The whole story; writes the report when all of it held. Raises Disagreement where it did not."""
    begun = time.monotonic()
    report.unlink(missing_ok=True)
    tell("Tidemark: SQL Server -> Azure Functions -> Customer.io, all of it on this machine")
    with workshop() as shop:
        loaded = fill_the_shop(shop, histories)
        with services.functions_host(timers(shop, NEVER)) as functions:
            first = tell_going_live(shop, functions)
            peak = peak_mb(functions)
        with Host(ROOT, shop.settings) as host:
            second, store = tell_second_pass(shop, host)
            third, grown = tell_third_pass(shop, host, store)
            late, moved, refunded = tell_refund_and_pause(shop, host, grown)
            carts, latest, forgetful = tell_carts(shop, host, moved, refunded)
            removed, latest = tell_removal(shop, host, latest, forgetful)
            rewritten, latest = tell_rewritten_orders(shop, host, latest)
            tell_of_a_person(latest, refunded)
            peak = round(max(peak, host.peak_mb), 1)
    dead_letters = sum(total(passed, "dead_letters") for passed in (second, third, late, carts, removed, rewritten))
    expect("dead letters of the whole story", dead_letters, 0)
    figures = {
        "people_at_customerio": len(store.people),
        "events_at_customerio": len(store.events),
        "events_by_name": store.by_name,
        "duplicate_events": latest.duplicates,
        "derived_refunds": loaded.refunds,
        "derived_subscriptions": loaded.subscriptions,
        "going_live_operations": first["operations"],
        "second_pass_operations": total(second, "operations"),
        "third_pass_operations": total(third, "operations"),
        "rewritten_orders": total(rewritten, "rows"),
        "rewritten_orders_operations": total(rewritten, "operations"),
        "dead_letters": dead_letters,
        "rows_per_second": round(first["rows_per_second"]),
        "peak_mb": peak,
        "seconds": round(time.monotonic() - begun, 1),
    }
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    tell(
        f"Done in {figures['seconds']} s: {figures['rows_per_second']:,} rows a second when it went live,"
        f" at most {peak:.0f} MB in the Functions process. The figures are in {report}"
    )


def serve(histories: Path, *, live: bool) -> None:
    """Set-up and going live, then everything keeps running and each run that sent something is told, until Ctrl-C."""
    with workshop() as shop:
        fill_the_shop(shop, histories)
        with services.functions_host(timers(shop, "*/5 * * * * *")) as functions:
            if live:
                tell_going_live(shop, functions)
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
    options.add_argument("--serve", action="store_true", help="go live, and keep everything running")
    options.add_argument("--not-live", action="store_true", help="with --serve: leave it to you to go live")
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
            serve(chosen.histories, live=not chosen.not_live)
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
