"""SQL Server and Customer.io compared, at rest: what is lost, what is there twice, what is said wrongly.

What a row should be at Customer.io is said here anew, in plain words, and not by the product's own mapping.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from local.customerio.control import Event
from local.faults.stage import Stage
from shared.deadletters import DeadLetters
from shared.mapping import DIGEST_BYTES, event_digest
from shared.syncs import find

_TOLD = 20
_DAY_BYTES = 4  # before each id of a ledger's journal


@dataclass(slots=True)
class Verdict:
    """The counts of a scenario, and in `told` the first of what is wrong.

    `lost`: a row of the view that is neither at Customer.io, as it is, nor a dead letter.
    `duplicated`: events that are stored once too often.
    `misreported`: what a ledger, a dead letter or a run's record says and is not so, or holds back and is so.
    `resent_same_ulid`: events that came again and that Customer.io dropped by their ULID, as it should be.
    """

    lost: int = 0
    duplicated: int = 0
    misreported: int = 0
    resent_same_ulid: int = 0
    runs: int = 0
    kills: int = 0
    faults: int = 0
    told: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.duplicated or self.misreported)

    def counts(self) -> dict[str, int]:
        """The counts as .faults/results.json has them."""
        names = ("lost", "duplicated", "misreported", "resent_same_ulid", "runs", "kills")
        return {name: getattr(self, name) for name in names}

    def lose(self, what: str) -> None:
        self.lost += 1
        self._tell("lost", what)

    def duplicate(self, what: str) -> None:
        self.duplicated += 1
        self._tell("duplicated", what)

    def misreport(self, what: str) -> None:
        self.misreported += 1
        self._tell("misreported", what)

    def _tell(self, name: str, what: str) -> None:
        if len(self.told) < _TOLD:
            self.told.append(f"{name}: {what}")


def judge(stage: Stage) -> Verdict:
    """Compare everything of a healed stage."""
    stats = stage.workspace.stats()
    verdict = Verdict(
        resent_same_ulid=stats["duplicate_events_dropped"], runs=stage.runs, kills=stage.kills, faults=stage.struck
    )
    for what in stage.unexpected:
        verdict.misreport(what)
    _Comparison(stage, verdict, stats).all()
    return verdict


class _Comparison:
    def __init__(self, stage: Stage, verdict: Verdict, stats: dict[str, Any]) -> None:
        self._stage = stage
        self._verdict = verdict
        self._accepted = stats["accepted"]
        self._people = stage.workspace.people()
        self._events: defaultdict[str, list[Event]] = defaultdict(list)
        for event in stage.workspace.events():
            self._events[str(event["attributes"]["event_id"])].append(event)
        self._letters = {
            sync: {letter.key for letter in DeadLetters(stage.container, find(sync), "").letters()}
            for sync in stage.syncs
        }
        self._ledgers = {sync: self._ledger(sync) for sync in stage.syncs if sync != "customers"}
        self._merged: dict[str, str] = {}
        self._removed: set[str] = set()

    def all(self) -> None:
        if "merges" in self._stage.syncs:
            self._merges()
        if "removals" in self._stage.syncs:
            self._removals()
        if "customers" in self._stage.syncs:
            self._customers()
        if "orders" in self._stage.syncs:
            self._orders()
        self._records()

    def _rows(self, columns: str, view: str) -> list[Any]:
        return list(self._stage.sql.execute(f"SELECT {columns} FROM retention.{view}").fetchall())

    def _ledger(self, sync: str) -> set[bytes]:
        found: set[bytes] = set()
        prefix = f"syncs/{sync}/ledger/"
        for name in self._stage.container.list_blob_names(name_starts_with=prefix):
            content = self._stage.container.download_blob(name).readall()
            skip = 0 if name.startswith(f"{prefix}days/") else _DAY_BYTES
            size = skip + DIGEST_BYTES
            found.update(content[at + skip : at + size] for at in range(0, len(content), size))
        return found

    def _merges(self) -> None:
        for number, primary, secondary in self._rows("merge_id, primary_customer_id, secondary_customer_id", "merges"):
            key = str(number)
            ledgered = event_digest("merges", f"{key}\0{primary}\0id\0{secondary}") in self._ledgers["merges"]
            there = str(secondary) in self._people
            if key in self._letters["merges"]:
                if not there or ledgered:
                    self._verdict.misreport(f"merge {key} has a dead letter and was done")
                continue
            self._merged[str(secondary)] = str(primary)
            if not ledgered:
                self._verdict.lose(f"merge {key} is neither ledgered nor a dead letter")
            elif there:
                self._verdict.misreport(f"merge {key} is ledgered, but its secondary is there")

    def _removals(self) -> None:
        for number, customer, action in self._rows("removal_id, customer_id, action", "removals"):
            key = str(number)
            self._removed.add(str(customer))
            if event_digest("removals", f"{key}\0{action}\0{customer}") not in self._ledgers["removals"]:
                self._verdict.lose(f"removal {key} is not ledgered")
            elif str(customer) in self._people:
                self._verdict.misreport(f"removal {key} is ledgered, but the person is there")

    def _customers(self) -> None:
        letters, doomed = self._letters["customers"], self._stage.doomed
        known = set()
        for customer, email, tier, revision in self._rows("customer_id, email, tier, revision", "customers"):
            key = str(customer)
            known.add(key)
            if key in self._merged or key in self._removed:
                continue
            held = self._people.get(key, {})
            there = held == {"email": email, "tier": tier, "revision": revision}
            if there and key in letters:
                self._verdict.misreport(f"customer {key} has a dead letter and is there as in SQL")
            elif key in letters and not doomed.revision(customer, revision):
                self._verdict.misreport(f"customer {key} has a dead letter, but nothing is wrong with the row")
            elif not there and key not in letters:
                self._verdict.lose(f"customer {key} is {held} and should be revision {revision}, {tier}")
        for key in self._people.keys() - known:
            self._verdict.misreport(f"customer {key} is not in SQL")

    def _orders(self) -> None:
        letters, ledger = self._letters["orders"], self._ledgers["orders"]
        known = set()
        rows = self._rows("event_id, customer_id, DATEDIFF_BIG(second, '1970-01-01', event_time), total", "orders")
        for number, customer, at, total in rows:
            key = str(number)
            known.add(key)
            stored = self._events.get(key, [])
            for _ in stored[1:]:
                self._verdict.duplicate(f"order {key}")
            ledgered = event_digest("orders", key) in ledger
            if bool(stored) != ledgered and str(customer) not in self._removed:
                self._verdict.misreport(f"order {key} is {'stored' if stored else 'ledgered'} only")
            if stored and key in letters:
                self._verdict.misreport(f"order {key} has a dead letter and is stored")
            elif key in letters and not self._stage.doomed.event(number):
                self._verdict.misreport(f"order {key} has a dead letter, but nothing is wrong with the row")
            elif not stored and key not in letters and str(customer) not in self._removed:
                self._verdict.lose(f"order {key} is neither stored nor a dead letter")
            whose = {str(customer), self._merged.get(str(customer))}
            for event in stored[:1]:
                same = (event["timestamp"], event["attributes"]["total"]) == (at, float(total))
                if not same or event["person"] not in whose:
                    self._verdict.lose(f"order {key} is not what it is in SQL")
        for key in self._events.keys() - known:
            self._verdict.misreport(f"order {key} is stored, but not in SQL")

    def _records(self) -> None:
        """Of runs that ended by themselves: what they say they sent has a fate, and is no more than what arrived."""
        accepted: Counter[str] = Counter()
        for sync in self._stage.syncs:
            for name in self._stage.container.list_blob_names(name_starts_with=f"syncs/{sync}/runs/"):
                record = json.loads(self._stage.container.download_blob(name).readall())
                accepted[sync] += record["accepted"]
                fates = record["accepted"] + record["rejected"]
                if record["outcome"] in ("ok", "budget") and record["operations"] != fates:
                    self._verdict.misreport(f"run {record['run']} sent {record['operations']}, but knows {fates} fates")
        if accepted.total() > self._accepted:
            self._verdict.misreport(f"runs say {accepted.total()} accepted, Customer.io says {self._accepted}")
