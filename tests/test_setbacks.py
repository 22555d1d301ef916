"""What goes wrong beside a pass, one setback a test, and what is left of it: rows that are refused, corrected or come too
late, people who are removed or merged meanwhile, views that break and are mended, passes that run out of time.

A reviewer has found each of these once. The stories happen in the club of test_retention.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager

import pytest

from shared import passes
from shared.errors import StopRun, TidemarkError, ViewFault
from shared.people import People
from shared.run import Run
from shared.state import State
from tests.conftest import Deployment
from tests.test_passes import bulk
from tests.test_promises import until
from tests.test_retention import Club, ago, ask, club, events, stop, track

__all__ = ["ask", "club"]  # fixtures


def reasons(deployment: Deployment, sync: str) -> dict[str, str]:
    """Why each row was set aside, by its key."""
    return {letter["key"]: letter["reason"] for letter in deployment.dead_letters(sync)}


@contextmanager
def at_the_door(deployment: Deployment, sync: str, person: str) -> Iterator[None]:
    """A pass whose batch, with an operation on this person, has passed the last check and waits at Customer.io's door."""
    stats = deployment.workspace.stats
    deployment.workspace.add_fault(delay_seconds=2, times=1, when_person_id=person)
    before = stats()["requests"]
    pass_under_way = threading.Thread(target=lambda: deployment.run(sync))
    pass_under_way.start()
    until(lambda: stats()["requests"] == before + 2)  # the first is the question for the workspace
    yield
    assert pass_under_way.is_alive(), "the batch was to arrive afterwards"
    pass_under_way.join()


def ended(deployment: Deployment, sync: str) -> Run:
    """A pass that is feared to hang: it must not hang the tests."""
    done: Future[Run] = Future()

    def work() -> None:
        try:
            done.set_result(deployment.run(sync))
        except TidemarkError as error:
            done.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return done.result(20)


def until_done(one_pass: Callable[[], Run], most: int) -> list[Run]:
    """Passes, one after another, up to the one that comes to the end of its view."""
    runs = [one_pass()]
    while runs[-1].outcome == "budget":
        assert len(runs) < most, [(run.rows, run.operations) for run in runs]
        runs.append(one_pass())
    assert runs[-1].outcome == "ok"
    return runs


# Removals -----------------------------------------------------------------------------------------------------------


def test_a_removal_that_customerio_refuses_is_a_dead_letter_and_its_person_is_held_all_the_same(deployment, club):
    club.person("a", plan_name="gold")
    club.live()
    club.remove(1, "a")
    deployment.workspace.add_fault(status=400, when_person_id="a")
    run = deployment.run("removals")
    assert (run.rejected, run.dead_letters) == (1, 1)
    assert "Customer.io" in reasons(deployment, "removals")["1"]
    club.live("removals")  # an idle pass forgets nothing
    assert list(reasons(deployment, "removals")) == ["1"]
    deployment.workspace.clear_faults()
    club.touch()
    assert deployment.run("customers").held == {"removed": 1}
    club.sql.execute("UPDATE shop.farewells SET action = 'delete'")
    club.live("removals")
    assert deployment.workspace.people() == {}
    assert reasons(deployment, "removals") == {}


def test_a_wrong_row_about_somebody_who_was_removed_is_a_dead_letter_until_it_is_corrected(deployment, club):
    club.person("a", plan_name="gold")
    club.live()
    club.remove(1, "a")
    club.live("removals")
    club.remove(2, "a", "Restore")
    run = deployment.run("removals")
    assert (run.dead_letters, run.held) == (1, {})
    assert reasons(deployment, "removals") == {"2": "neither delete nor suppress nor restore"}
    club.sql.execute("UPDATE shop.farewells SET action = 'restore' WHERE removal_id = 2")
    club.live("removals")
    assert reasons(deployment, "removals") == {}
    club.touch()
    club.live("customers")
    assert set(deployment.workspace.people()) == {"a"}


def test_a_removal_that_is_corrected_in_place_is_done_as_it_says_now(deployment, club):
    for person in ("a", "b", "c"):
        club.person(person, plan_name="gold")
    club.live()
    club.remove(1, "a", "restore")
    club.live("removals")
    club.sql.execute("UPDATE shop.farewells SET action = 'delete'")
    club.live("removals")
    assert set(deployment.workspace.people()) == {"b", "c"}
    club.sql.execute("UPDATE shop.farewells SET customer_id = 'b'")
    club.live("removals")
    assert set(deployment.workspace.people()) == {"c"}


def test_one_removal_id_for_two_people_removes_both(deployment, club):
    club.sql.execute("CREATE TABLE shop.byes (removal_id int, customer_id varchar(40), row_version rowversion)")
    club.view(
        "removals",
        "SELECT removal_id, customer_id, CAST('delete' AS varchar(9)) AS action, SYSUTCDATETIME() AS removed_at,"
        " row_version FROM shop.byes",
    )
    club.person("a", plan_name="gold")
    club.person("b", plan_name="gold")
    club.live()
    club.sql.execute("INSERT INTO shop.byes (removal_id, customer_id) VALUES (1, 'a'), (1, 'b')")
    club.live("removals")
    assert deployment.workspace.people() == {}


def test_removals_are_never_replayed_and_the_answer_says_what_to_do(deployment, club, ask):
    club.person("a", plan_name="gold")
    club.live()
    club.remove(1, "a", "Delete")
    club.live("removals")
    club.view(
        "removals", "SELECT removal_id, customer_id, 'delete' AS action, removed_at, row_version FROM shop.farewells"
    )
    status, answer = ask("replay", "removals")
    assert (status, "Correct the row" in answer["error"]) == (409, True), answer
    assert set(deployment.workspace.people()) == {"a"}
    assert list(reasons(deployment, "removals")) == ["1"]


def test_a_dead_letter_of_somebody_who_is_removed_meanwhile_is_not_written(deployment, club):
    club.live()
    club.sale("bad", "x", remark='{"a": 1}')
    club.sale("good", "y")
    with at_the_door(deployment, "orders", "y"):
        club.remove(1, "x")
        club.live("removals")
    assert [event["event_id"] for event in events(deployment)] == ["good"]
    assert deployment.dead_letters("orders") == []


def test_ids_that_are_text_here_and_uniqueidentifiers_there_stop_the_sync(deployment, club):
    club.sql.execute(
        "CREATE TABLE shop.members (customer_id uniqueidentifier, plan_name varchar(9), row_version rowversion)"
    )
    club.view("customers", "SELECT * FROM shop.members")
    club.sql.execute("INSERT INTO shop.members (customer_id, plan_name) VALUES (NEWID(), 'gold')")
    club.live("customers")
    club.sql.execute(
        "INSERT INTO shop.farewells (removal_id, customer_id, action)"
        " SELECT 1, CAST(customer_id AS varchar(36)), 'delete' FROM shop.members"
    )
    message = stop(deployment, "removals")
    assert all(said in message for said in ("customer_id", "retention.removals", "customers", "lower case")), message
    club.view(
        "removals",
        "SELECT removal_id, CAST(customer_id AS uniqueidentifier) AS customer_id, action, removed_at, row_version"
        " FROM shop.farewells",
    )
    club.live("removals")
    assert deployment.workspace.people() == {}


# Merges -------------------------------------------------------------------------------------------------------------


def test_a_merge_into_somebody_who_was_removed_is_set_aside_and_never_recorded(deployment, club):
    club.person("a", plan_name="gold")
    club.person("b", plan_name="gold")
    club.live()
    club.remove(1, "b")
    club.live("removals")
    club.live("removals")
    track(deployment, action="identify", identifiers={"id": "b"}, attributes={"source": "the site itself"})
    club.merge(1, "b", "a")
    club.live("customers", "merges")
    (letter,) = deployment.dead_letters("merges")
    assert (letter["key"], letter["field"], letter["reason"]) == ("1", "primary_customer_id", "was removed")
    club.sale("s1", "a")
    club.live("orders")
    assert [event["person"] for event in events(deployment)] == ["a"]


def test_somebody_who_was_removed_is_merged_into_nobody(deployment, club):
    club.person("p", plan_name="gold")
    club.person("s", plan_name="gold", email="forget.me@example.com")
    club.live()
    club.remove(1, "s")
    deployment.workspace.add_fault(status=401, times=1, when_person_id="s")
    with pytest.raises(StopRun):  # recorded, and not yet told
        deployment.run("removals")
    club.merge(1, "p", "s")
    club.live("customers", "merges")
    (letter,) = deployment.dead_letters("merges")
    assert (letter["field"], letter["reason"]) == ("secondary_customer_id", "was removed")
    club.live("removals")
    assert deployment.workspace.people() == {"p": {"plan_name": "gold"}}


def test_a_merge_that_was_recorded_and_not_sent_is_set_aside_once_its_primary_was_removed(deployment, club):
    club.person("p", plan_name="gold")
    club.person("s", plan_name="gold")
    club.live()
    club.merge(1, "p", "s")
    with closing(State(deployment.settings())) as state:
        People(state).merge({"s": "p"})  # as a pass does that is killed before it sends
        club.remove(1, "p")
        club.live("removals", "customers", "merges")
        people = People(state)
        people.refresh()
        assert people.primaries(["s"]) == {}
    assert reasons(deployment, "merges") == {"1": "was removed"}
    assert "p" not in deployment.workspace.people()


def test_merges_in_a_circle_by_way_of_somebody_removed_hang_nobody(deployment, club):
    club.person("a", plan_name="gold")
    club.person("b", plan_name="gold")
    club.live()
    club.remove(1, "a")
    club.live("removals")
    club.live("removals")
    club.merge(1, "b", "a")
    club.live("customers", "merges")
    track(deployment, action="identify", identifiers={"id": "a"}, attributes={"source": "the site itself"})
    club.merge(2, "a", "b")
    club.live("customers", "merges")
    club.remove(2, "a", "restore")
    club.live("removals")
    assert list(reasons(deployment, "merges")) == ["1", "2"]
    club.sale("s1", "a")
    club.sale("s2", "b")
    assert ended(deployment, "orders").outcome == "ok"
    assert [event["person"] for event in events(deployment)] == ["a", "b"]


def test_a_circle_in_the_record_hangs_nobody(deployment, club):
    club.live()
    with closing(State(deployment.settings())) as state:
        People(state).merge({"a": "b", "b": "a"})
    club.sale("s1", "a")
    club.sale("s2", "c")
    assert ended(deployment, "orders").outcome == "ok"
    assert [event["person"] for event in events(deployment) if event["event_id"] == "s2"] == ["c"]


def test_a_merge_that_is_refused_does_not_stand_in_the_way_of_the_right_one(deployment, club):
    for person in ("a", "b", "p"):
        club.person(person, plan_name="gold")
    club.live()
    club.remove(1, "b")
    club.live("removals")
    club.merge(1, "b", "a")
    club.live("customers", "merges")
    assert reasons(deployment, "merges") == {"1": "was removed"}
    club.merge(2, "p", "a")
    club.live("customers", "merges")
    assert list(reasons(deployment, "merges")) == ["1"]
    assert set(deployment.workspace.people()) == {"p"}


def test_merges_that_are_checked_in_another_workspace_are_a_flood_and_none_is_sent(deployment, club, customerio):
    other = customerio.create_workspace(region="us", lag_seconds=0)
    for workspace in (deployment.workspace, other):
        track(
            Deployment(deployment.sql, workspace, deployment.container, {}),
            action="identify",
            identifiers={"id": "p"},
            attributes={"plan_name": "gold"},
        )
    track(deployment, action="identify", identifiers={"email": "1@example.com"}, attributes={"source": "newsletter"})
    club.live()
    bulk(
        club.sql,
        "INSERT INTO shop.unions (merge_id, primary_customer_id, secondary_email) VALUES (?, 'p', ?)",
        [(number, f"{number}@example.com") for number in range(1, 51)],
    )
    club.live("customers")
    message = stop(deployment, "merges", CUSTOMERIO_APP_API_KEY=other.app_api_key)
    assert "nobody at Customer.io has this address" in message
    assert deployment.dead_letters("merges") == []
    club.sql.execute("DELETE FROM shop.unions WHERE merge_id > 1")
    assert deployment.run("merges").accepted == 1
    assert deployment.workspace.people()["p"]["source"] == "newsletter"


def test_a_merge_of_an_address_that_nobody_has_is_set_aside_until_somebody_has_it(deployment, club, ask):
    club.person("p", plan_name="gold")
    club.live()
    club.merge(1, "p", None, "form@example.com")
    club.live("customers")
    run = deployment.run("merges")
    assert (run.operations, run.dead_letters) == (0, 1)
    assert reasons(deployment, "merges") == {"1": "nobody at Customer.io has this address"}
    track(deployment, action="identify", identifiers={"email": "form@example.com"}, attributes={"source": "newsletter"})
    assert ask("replay", "merges")[1]["delivered"] == 1
    assert deployment.workspace.people()["p"]["source"] == "newsletter"


def test_a_merge_of_an_address_that_is_the_primarys_own_is_done_already(deployment, club):
    club.person("p", plan_name="gold", email="ann@example.com")
    club.live()
    club.merge(1, "p", None, "ann@example.com")
    club.live("customers")
    run = deployment.run("merges")
    assert (run.outcome, run.operations, run.dead_letters) == ("ok", 0, 0)
    assert deployment.workspace.people() == {"p": {"plan_name": "gold", "email": "ann@example.com"}}


def test_a_merge_that_an_identify_overtakes_is_sent_again_one_pass_later(deployment, club):
    club.person("p", plan_name="gold")
    club.person("s", plan_name="gold")
    club.live()
    club.merge(1, "p", "s")
    club.live("customers")
    club.sql.execute("UPDATE shop.people SET plan_name = 'silver' WHERE customer_id = 's'")
    with at_the_door(deployment, "customers", "s"):
        club.live("merges")
        assert set(deployment.workspace.people()) == {"p"}
    assert set(deployment.workspace.people()) == {"p", "s"}
    assert deployment.run("merges").repeated == 1
    assert set(deployment.workspace.people()) == {"p"}
    assert deployment.run("merges").operations == 0


@pytest.mark.parametrize("sync", ["merges", "removals"])
def test_by_updated_at_too_nothing_is_sent_more_than_once_again(deployment, club, sync):
    """A row is read again and again as long as it is younger than the lookback."""
    for person in ("a", "b", "c"):
        club.person(person, plan_name="gold")
    columns = {
        "merges": "merge_id, primary_customer_id, secondary_customer_id, merged_at, merged_at AS updated_at FROM shop.unions",
        "removals": "removal_id, customer_id, action, removed_at, removed_at AS updated_at FROM shop.farewells",
    }
    club.people("plan_name")
    club.view("customers", "SELECT customer_id, plan_name, joined AS updated_at FROM shop.people")
    club.view(sync, f"SELECT {columns[sync]}")
    club.live("customers", sync)
    club.merge(1, "a", "b")
    club.remove(1, "c")
    sent = []
    for _ in range(8):  # a time that was rounded up to the next second is not read by the first of them
        club.live("customers")
        sent.append(deployment.run(sync, LOOKBACK_SECONDS=86_400).operations)
    assert [count for count in sent if count] == [1, 1]
    assert sent[-1] == 0


def test_a_merge_that_is_corrected_in_place_is_done_as_it_says_now(deployment, club):
    for person in ("p", "s", "t"):
        club.person(person, plan_name="gold")
    club.live()
    club.merge(1, "p", "s")
    for _ in range(2):  # the second sends it once more
        club.live("customers", "merges")
    club.sql.execute("UPDATE shop.unions SET secondary_customer_id = 't'")
    club.live("customers", "merges")
    assert set(deployment.workspace.people()) == {"p"}
    assert deployment.dead_letters("merges") == []


def test_who_was_merged_removed_and_restored_is_the_primary_as_before(deployment, club):
    club.person("p", plan_name="gold")
    club.person("s", plan_name="gold")
    club.live()
    club.merge(1, "p", "s")
    club.live("customers", "merges")
    club.remove(1, "s")
    club.live("removals")
    club.remove(2, "s", "restore")
    club.live("removals")
    club.sale("s1", "s")
    club.live("orders")
    assert [event["person"] for event in events(deployment)] == ["p"]
    assert set(deployment.workspace.people()) == {"p"}


def test_a_dead_letter_of_somebody_who_is_merged_leaves_the_list_with_a_replay(deployment, club, ask):
    club.people("plan_name, note")
    club.person("p", plan_name="gold")
    club.person("s", plan_name="gold", note='{"a": 1}')
    club.live()
    track(deployment, action="identify", identifiers={"id": "s"}, attributes={"source": "the site itself"})
    club.merge(1, "p", "s")
    club.live("customers", "merges")
    assert list(reasons(deployment, "customers")) == ["s"]
    club.people("plan_name, CAST(REPLACE(note, '{', '') AS varchar(400)) AS note")
    status, answer = ask("replay", "customers")
    assert (status, answer["delivered"]) == (200, 1), answer
    assert deployment.dead_letters("customers") == []
    assert set(deployment.workspace.people()) == {"p"}


# Views that break and are mended ------------------------------------------------------------------------------------

BROKEN = "plan_name, CAST(points AS varchar(20)) AS points"
SOUND = "plan_name, points"


def test_what_is_made_good_after_a_column_was_left_out_is_finished_in_whatever_many_short_passes(deployment, club):
    club.people(SOUND)
    club.crowd(150)
    club.live("customers")
    club.people(BROKEN)
    club.sql.execute("UPDATE shop.people SET points = points + 1000")
    club.live("customers")
    club.people(SOUND)
    deployment.workspace.configure(latency_seconds=0.15)
    short = {"PAGE_SIZE": 10, "TIME_BUDGET_SECONDS": 1, "CUSTOMERIO_BATCHES_IN_FLIGHT": 1}
    runs = until_done(lambda: deployment.run("customers", **short), most=8)
    assert len(runs) > 1, "the time was to be too short"
    assert sum(run.operations for run in runs) == 150
    assert all(person["points"] > 1000 for person in deployment.workspace.people().values())


def test_removals_are_finished_in_whatever_many_short_passes(deployment, club):
    club.live()
    rows = [(number, f"p{number}") for number in range(1, 61)]
    bulk(club.sql, "INSERT INTO shop.farewells (removal_id, customer_id, action) VALUES (?, ?, 'delete')", rows)
    deployment.workspace.configure(latency_seconds=0.15)
    runs = until_done(lambda: deployment.run("removals", PAGE_SIZE=10, TIME_BUDGET_SECONDS=1), most=8)
    assert len(runs) > 1, "the time was to be too short"
    assert sum(run.accepted - run.repeated for run in runs) == 60


def test_a_type_that_changes_half_way_through_the_first_pass_is_made_good_for_everybody(deployment, club):
    club.people(SOUND)
    club.crowd(150)
    deployment.workspace.configure(latency_seconds=0.15)
    short = {"PAGE_SIZE": 10, "TIME_BUDGET_SECONDS": 1, "CUSTOMERIO_BATCHES_IN_FLIGHT": 1}
    assert deployment.run("customers", **short).outcome == "budget"
    deployment.workspace.configure(latency_seconds=0)
    club.people(BROKEN)
    club.live("customers")
    club.live("customers")
    people = deployment.workspace.people()
    assert len(people) == 150 and 0 < sum("points" in person for person in people.values()) < 150
    club.people(SOUND)
    club.live("customers")
    assert all("points" in person for person in deployment.workspace.people().values())
    assert deployment.run("customers").operations == 0


def left_out_for_all(club: Club) -> None:
    """In two passes, neither of them a surge, everybody has changed while a column was left out."""
    club.people(SOUND)
    club.crowd(1100)
    club.live("customers")
    club.people(BROKEN)
    for half in (0, 1):
        club.sql.execute("UPDATE shop.people SET plan_name = 'silver' WHERE points % 2 = ?", half)
        assert club.deployment.run("customers").accepted == 550


def test_to_mend_a_view_is_no_surge(deployment, club):
    left_out_for_all(club)
    club.people(SOUND)
    assert deployment.run("customers", PAGE_SIZE=5000).accepted == 1100
    assert deployment.run("customers").operations == 0


def test_a_reload_beside_the_mending_of_a_view_is_a_surge(deployment, club):
    left_out_for_all(club)
    club.people(SOUND)
    club.sql.execute("UPDATE shop.people SET plan_name = 'bronze'")
    assert "1,100" in stop(deployment, "customers", PAGE_SIZE=5000)


def test_a_column_that_is_meant_to_be_gone_sends_nobody_again(deployment, club, ask):
    left_out_for_all(club)
    club.people("plan_name")
    assert "points" in deployment.run("customers").message
    assert ask("accept", "customers", column="points") == (200, {"sync": "customers", "column": "points", "type": None})
    run = deployment.run("customers", PAGE_SIZE=5000)
    assert (run.outcome, run.operations, run.message) == ("ok", 0, "")


def test_profiles_are_not_replayed_while_a_column_is_left_out(deployment, club, ask):
    club.people(SOUND)
    club.crowd(3)
    deployment.workspace.add_fault(status=400, when_person_id="p2")
    club.live("customers")
    deployment.workspace.clear_faults()
    club.people(BROKEN)
    status, answer = ask("replay", "customers")
    assert (status, "points" in answer["error"]) == (409, True), answer
    assert "p2" not in deployment.workspace.people()
    assert list(reasons(deployment, "customers")) == ["p2"]
    club.people(SOUND)
    assert ask("replay", "customers")[0] == 200
    assert deployment.workspace.people()["p2"] == {"plan_name": "gold", "points": 2}
    assert deployment.dead_letters("customers") == []


def test_a_key_of_removals_may_change_its_type_where_that_is_accepted(deployment, club):
    columns = "customer_id, action, removed_at, removed_at AS updated_at FROM shop.farewells"
    for person in ("a", "b", "c"):
        club.person(person, plan_name="gold")
    club.view("removals", f"SELECT CONCAT('r-', removal_id) AS removal_id, {columns}")
    club.live("customers", "removals")
    same = ago(days=1)
    for number, person in enumerate(("a", "b")):
        club.add("farewells", removal_id=number, customer_id=person, action="delete", removed_at=same)
        club.live("removals")  # so that the mark, and where the pass before it began, stand between rows
    club.view("removals", f"SELECT removal_id, {columns}")
    club.add("farewells", removal_id=2, customer_id="c", action="delete", removed_at=same)
    assert "removal_id" in stop(deployment, "removals")
    assert passes.accept(deployment.syncs["removals"], "removal_id", deployment.settings()) == "number"
    club.live("removals")
    assert deployment.workspace.people() == {}


@pytest.mark.parametrize("mending", [False, True])
def test_a_key_of_customers_may_change_its_type_where_that_is_accepted(deployment, club, mending):
    """As texts, 100 and 101 come before 99; as numbers, after it."""

    def view(key: str, points: str = "points") -> None:
        columns = f"{key} AS customer_id, plan_name, {points} AS points, joined AS updated_at"
        club.view("customers", f"SELECT {columns} FROM shop.people")

    def change(points: int) -> None:
        club.sql.execute("UPDATE shop.people SET plan_name = 'silver', joined = ? WHERE points = ?", same, points)

    text, same, soon = "CAST(points AS varchar(20))", ago(minutes=5), {"LOOKBACK_SECONDS": 60}
    view(text)
    club.crowd(101)
    club.sql.execute("UPDATE shop.people SET joined = ?", ago(days=1))
    club.live("customers")
    change(100)
    assert deployment.run("customers", **soon).accepted == 1  # so that the mark stands between rows
    if mending:
        view(text, "CAST(points AS varchar(9))")
        change(101)
        assert deployment.run("customers", **soon).accepted == 1  # and so does where a column was first left out
    view("points")
    change(99)
    assert "customer_id" in stop(deployment, "customers", **soon)
    assert passes.accept(deployment.syncs["customers"], "customer_id", deployment.settings()) == "number"
    assert deployment.run("customers", **soon).outcome == "ok"
    silver = {person for person, one in deployment.workspace.people().items() if one["plan_name"] == "silver"}
    assert silver == ({"99", "100", "101"} if mending else {"99", "100"})


@pytest.mark.parametrize("size", [100, 499])
def test_an_attribute_that_is_emptied_is_noticed_over_small_pages(deployment, club, size):
    club.crowd(700)
    club.live("customers")
    club.people("email, CAST(NULL AS varchar(1500)) AS plan_name")
    club.touch()
    with pytest.raises(ViewFault, match=r"^plan_name is NULL"):
        deployment.run("customers", PAGE_SIZE=size, CLEAR_WHEN_NULL="plan_name")
    assert sum("plan_name" in person for person in deployment.workspace.people().values()) >= 200


def test_a_flood_is_noticed_over_several_short_passes_and_ends_when_the_view_is_mended(deployment, club):
    club.live("orders")
    sales = [(f"s{number}", ago(minutes=5)) for number in range(90)]
    for start in (0, 30):
        bulk(club.sql, "INSERT INTO shop.sales (event_id, at) VALUES (?, ?)", sales[start : start + 30])
        if start == 0:
            assert deployment.run("orders").dead_letters == 30
    assert "customer_id: NULL or empty" in stop(deployment, "orders")
    bulk(club.sql, "INSERT INTO shop.sales (event_id, at) VALUES (?, ?)", sales[60:])
    stop(deployment, "orders")
    assert len(deployment.dead_letters("orders")) == 30
    club.sql.execute("UPDATE shop.sales SET customer_id = 'a'")
    assert deployment.run("orders").accepted == 90
    assert deployment.dead_letters("orders") == []
    bulk(club.sql, "INSERT INTO shop.sales (event_id, at) VALUES (?, ?)", [("late", ago(minutes=5))])
    run = deployment.run("orders")  # one bad row is no flood any more
    assert (run.outcome, run.dead_letters) == ("ok", 1)


def test_a_text_in_disguise_is_found_though_its_view_was_empty_and_values_trickle_in(deployment, club):
    club.live("orders")
    said = []
    for number in range(6):
        for sale in range(number * 5, number * 5 + 5):
            club.sale(f"s{sale}", "a", remark="true" if sale % 2 else "false")
        said.append("remark" in deployment.run("orders").message)
    assert said == [False, False, False, True, True, True]
    assert ["remark" in event for event in events(deployment)] == [True] * 15 + [False] * 15


def test_a_text_in_disguise_is_found_with_the_smallest_pages(deployment, club):
    club.people("plan_name, note")
    club.crowd(60)
    club.sql.execute("UPDATE shop.people SET note = CASE WHEN points % 2 = 0 THEN 'yes' ELSE 'no' END")
    run = deployment.run("customers", PAGE_SIZE=10)
    assert (run.outcome, run.accepted) == ("ok", 60)
    assert "note" in run.message
    assert "note" not in deployment.workspace.people()["p60"]
