"""The demo as a person runs it, on a small shop: `python -m local.demo` in a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parent.parent
PEOPLE, ORDERS = 60, 180


@pytest.fixture
def histories(tmp_path: Path) -> Path:
    """A shop in CDNOW's format: sixty people with three orders each, every second one's last of them on the last day."""
    # who has not bought for two days is there to be told of at any hour
    days = ((10, 20, 29), (10, 20, 31))
    lines = [f" {person:05} 199801{day} 2  29.99" for person in range(1, PEOPLE + 1) for day in days[person % 2]]
    path = tmp_path / "histories.txt"
    path.write_text("\n".join([" customer_id  date number_of_cds  dollar_value", *lines]), encoding="ascii")
    return path


@contextmanager
def demo(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "local.demo", *map(str, arguments)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """What the process prints up to and including the line that holds `text`."""
    assert process.stdout is not None
    told = ""
    for line in process.stdout:
        told += line
        if text in line:
            return told
    raise AssertionError(f"the demo ended without saying {text!r}:\n{told}")


def are_gone(processes: Sequence[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=5)
    return not alive


def test_the_demo_tells_a_story_that_holds_and_reports_its_figures(histories: Path, tmp_path: Path) -> None:
    report = tmp_path / "made" / "report.json"
    with demo("--histories", histories, "--report", report) as process:
        story, _ = process.communicate(timeout=120)
        assert process.returncode == 0, story
    for claim in (
        f"{PEOPLE} people and {ORDERS} orders",
        "POST /api/go-live",
        "/approve",
        "nothing is sent",
        "25 new orders",
        "exactly the buyers",
        "refund_flag false -> true",
        "subscription_status active -> paused",
        "Cart Abandoned for person",
        "true -> false",
        "nothing brings the person back",
        f"{ORDERS + 26} orders have a new row version, and no event is sent a second time",
    ):
        assert claim in story
    figures = json.loads(report.read_text())
    assert figures["people_at_customerio"] == PEOPLE
    assert figures["events_by_name"]["Order Placed"] == ORDERS
    assert figures["events_by_name"]["Refund Issued"] == figures["derived_refunds"] > 0
    assert figures["events_by_name"]["Subscription Started"] == figures["derived_subscriptions"] > 0
    assert figures["events_at_customerio"] == sum(figures["events_by_name"].values())
    assert figures["duplicate_events"] == figures["dead_letters"] == figures["second_pass_operations"] == 0
    assert figures["going_live_operations"] >= PEOPLE + figures["events_at_customerio"]
    assert figures["third_pass_operations"] >= 25
    assert figures["rewritten_orders"] == ORDERS + 26
    assert figures["rewritten_orders_operations"] == 0
    assert figures["rows_per_second"] > 0
    assert figures["peak_mb"] > 10
    assert figures["seconds"] > 1


def test_a_demo_that_fails_says_why_and_leaves_nothing_running(tmp_path: Path) -> None:
    with demo("--histories", tmp_path / "nowhere.txt") as process:
        read_until(process, "1. The shop")
        services = psutil.Process(process.pid).children(recursive=True)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 1
    assert "The demo failed: FileNotFoundError" in rest
    assert "nowhere.txt" in rest
    assert "Traceback" not in rest
    assert are_gone(services)


def test_a_demo_that_is_ended_leaves_nothing_running(histories: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    with demo("--histories", histories, "--report", report) as process:
        read_until(process, "2. Going live")
        services = psutil.Process(process.pid).children(recursive=True)
        assert len(services) >= 4
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 130
    assert "Stopped" in rest
    assert "Traceback" not in rest
    assert not report.exists()
    assert are_gone(services)


def test_what_is_served_can_be_played_with_until_ctrl_c(histories: Path) -> None:
    with demo("--serve", "--histories", histories) as process:
        told = read_until(process, "All counts:")
        services = psutil.Process(process.pid).children(recursive=True)
        (order,) = [line.split("New orders:")[1] for line in told.splitlines() if "New orders:" in line]
        placed = subprocess.run(order, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        assert placed.stdout.startswith(f"orders {ORDERS + 1} ")
        read_until(process, " 25 rows read")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode == 0
    assert "Stopped" in rest
    assert "Traceback" not in rest
    assert are_gone(services)
