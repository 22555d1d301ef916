"""The small Functions host: that it drives an app as the real one would, and finds what the real one would refuse."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
import pytest
from azure.storage.queue import QueueClient

from local.host import AppFault, Host, Runtime
from local.host.app import cron
from local.services import Child, ServiceFault, azurite, functions_host

HOST_JSON = {
    "version": "2.0",
    "extensionBundle": {"id": "Microsoft.Azure.Functions.ExtensionBundle", "version": "[4.*, 5.0.0)"},
    "extensions": {"queues": {"messageEncoding": "none", "batchSize": 1, "maxDequeueCount": 2}},
}

APP = """
import json, logging, os, threading, time
import azure.functions as func

app = func.FunctionApp()
STARTED = time.monotonic()

@app.timer_trigger(arg_name="timer", schedule="%TICK_SCHEDULE%")
def tick(timer: func.TimerRequest, context: func.Context) -> None:
    logging.getLogger("tiny").info("past due: %s", timer.past_due)
    print("not a line of the protocol")
    with open(os.environ["TICKS"], "a") as ticks:
        ticks.write(context.function_name + "\\n")

@app.timer_trigger(arg_name="timer", schedule="0 0 5 * * *")
def broken(timer: func.TimerRequest) -> None:
    raise ValueError("no such luck")

@app.timer_trigger(arg_name="timer", schedule="0 0 6 * * *")
def slow(timer: func.TimerRequest) -> None:
    time.sleep(60)

@app.timer_trigger(arg_name="timer", schedule="0 0 7 * * *")
def traced(timer: func.TimerRequest, context: func.Context) -> None:
    logging.warning("trace %s", context.trace_context.trace_parent)

@app.route(route="echo/{name}", methods=["POST"], auth_level=func.AuthLevel.ANONYMOUS)
def echo(req: func.HttpRequest) -> func.HttpResponse:
    found = {"name": req.route_params["name"], "q": req.params.get("q"), "body": req.get_body().decode()}
    answer = json.dumps(found)
    return func.HttpResponse(answer, status_code=201, mimetype="application/json", headers={"X-Tiny": "yes"})

@app.route(route="hidden")
def hidden(req: func.HttpRequest) -> func.HttpResponse:
    return func.HttpResponse("found")

@app.route(route="enqueue", methods=["POST"])
@app.queue_output(arg_name="out", queue_name="work", connection="AzureWebJobsStorage")
def enqueue(req: func.HttpRequest, out: func.Out[str]) -> func.HttpResponse:
    out.set(req.get_body().decode())
    return func.HttpResponse(status_code=202)

@app.queue_trigger(arg_name="message", queue_name="work", connection="AzureWebJobsStorage")
def work(message: func.QueueMessage) -> None:
    text = message.get_body().decode()
    with open(os.environ["TICKS"], "a") as ticks:
        ticks.write(f"{text} {message.dequeue_count}\\n")
    if text == "bad":
        raise RuntimeError("cannot work on that")
"""


@pytest.fixture(params=["library", "direct"])
def runtime(request: pytest.FixtureRequest) -> Runtime:
    if request.param == "library":
        pytest.importorskip("azure_functions_runtime", reason="the worker library is for Python 3.13")
    return request.param


@pytest.fixture
def write_app(tmp_path: Path) -> Callable[..., Path]:
    def write(source: str = APP, host_json: Mapping[str, object] | None = None) -> Path:
        (tmp_path / "function_app.py").write_text(source)
        (tmp_path / "host.json").write_text(json.dumps(HOST_JSON if host_json is None else host_json))
        return tmp_path

    return write


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, str]:
    # Nothing listens there: only the tests that need storage have one.
    storage = "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=YQ==;QueueEndpoint=http://127.0.0.1:9/a;"
    return {
        "TICK_SCHEDULE": "0 0 4 * * *",
        "TICKS": str(tmp_path / "ticks"),
        "AzureWebJobsStorage": storage,
        "AzureWebJobs.slow.Disabled": "1",
        "AzureWebJobs.hidden.Disabled": "true",
    }


@pytest.fixture
def host(write_app: Callable[..., Path], settings: dict[str, str], runtime: Runtime) -> Iterator[Host]:
    with Host(write_app(), settings, runtime=runtime) as running:
        yield running


def test_an_app_is_indexed_with_its_triggers(host: Host) -> None:
    functions = host.functions()
    kinds = {name: function.kind for name, function in functions.items()}
    assert kinds == {
        **dict.fromkeys(("tick", "broken", "slow", "traced"), "timer"),
        **dict.fromkeys(("echo", "enqueue", "hidden"), "http"),
        "work": "queue",
    }
    assert functions["tick"].trigger["schedule"] == "%TICK_SCHEDULE%"
    assert functions["slow"].disabled(host.settings) and not functions["tick"].disabled(host.settings)


def test_a_timer_runs_on_demand_and_its_logs_belong_to_its_invocation(host: Host, settings: dict[str, str]) -> None:
    first, second = host.invoke_timer("tick"), host.invoke_timer("tick", past_due=True)
    assert first.ok and second.ok and first.id != second.id
    assert [log.message for log in first.logs if log.logger == "tiny"] == ["past due: False"]
    assert [log.message for log in second.logs if log.logger == "tiny"] == ["past due: True"]
    assert Path(settings["TICKS"]).read_text() == "tick\ntick\n"


def test_a_failure_is_reported_with_the_exceptions_text_and_stack(host: Host) -> None:
    invocation = host.invoke_timer("broken")
    assert not invocation.ok
    assert invocation.error == "ValueError: no such luck"
    assert "function_app.py" in invocation.stack


def test_the_next_invocation_is_untouched_by_one_that_failed(host: Host) -> None:
    host.invoke_timer("broken")
    assert host.invoke_timer("tick").ok


def test_an_invocation_has_a_trace_parent_of_its_own(host: Host) -> None:
    traces = {log.message for _ in range(2) for log in host.invoke_timer("traced").logs if "trace 00-" in log.message}
    assert len(traces) == 2


def test_an_http_function_gets_the_request_and_gives_its_response(host: Host) -> None:
    invocation = host.invoke_http("echo", "POST", body=b"hello", query={"q": "1"}, params={"name": "jo"})
    assert invocation.http is not None
    assert invocation.http.status == 201
    assert invocation.http.json() == {"name": "jo", "q": "1", "body": "hello"}
    assert invocation.http.headers["x-tiny"] == "yes"
    assert invocation.http.headers["content-type"].startswith("application/json")


def test_a_queue_output_is_part_of_the_invocation(host: Host) -> None:
    invocation = host.invoke_http("enqueue", "POST", body=b"later")
    assert invocation.outputs == {"out": ["later"]}


def test_a_queue_function_gets_the_message(host: Host, settings: dict[str, str]) -> None:
    assert host.invoke_queue("work", "good", dequeue_count=3).ok
    assert host.invoke_queue("work", "bad").error == "RuntimeError: cannot work on that"
    assert Path(settings["TICKS"]).read_text() == "good 3\nbad 1\n"


def test_a_function_of_another_kind_or_name_is_refused(host: Host) -> None:
    with pytest.raises(KeyError, match="no timer function 'echo'"):
        host.invoke_timer("echo")


def test_killing_the_process_in_the_middle_fails_what_is_under_way(host: Host) -> None:
    future = host.begin_timer("slow")
    host.kill()
    with pytest.raises(ServiceFault, match="ended in the middle of slow"):
        future.result(5)
    with pytest.raises(ServiceFault, match="has ended"):
        host.invoke_timer("tick")


def test_invocations_run_side_by_side(host: Host) -> None:
    future = host.begin_timer("slow")
    assert host.invoke_timer("tick", timeout=10).ok
    assert not future.done()


def test_peak_memory_is_that_of_the_apps_process_and_can_be_asked_for_when_it_has_ended(host: Host) -> None:
    host.stop()
    assert 10 < host.peak_mb < 1000


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import not_there_at_all", "not_there_at_all"),
        ("x = 1", "FunctionApp|function app"),
        ("raise KeyError('at import')", "at import"),
    ],
)
def test_an_app_that_cannot_be_indexed_says_why(
    source: str, message: str, write_app: Callable[..., Path], runtime: Runtime
) -> None:
    with pytest.raises(AppFault, match=message):
        Host(write_app(source), runtime=runtime)


def test_the_worker_library_refuses_a_parameter_that_no_binding_gives(write_app: Callable[..., Path]) -> None:
    pytest.importorskip("azure_functions_runtime", reason="the worker library is for Python 3.13")
    with pytest.raises(AppFault, match="cannot load the tick function"):
        Host(write_app(APP.replace("def tick(timer:", "def tick(clock:")), {"TICK_SCHEDULE": "0 0 4 * * *"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TICK_SCHEDULE": None}, "tick: the app setting TICK_SCHEDULE .* is not set"),
        ({"TICK_SCHEDULE": "0 4 * * *"}, "tick: '0 4 [*] [*] [*]' is not a schedule of six fields"),
        ({"TICK_SCHEDULE": "0 99 4 * * *"}, "tick: '0 99 4 [*] [*] [*]' is not a schedule"),
        ({"TICK_SCHEDULE": "00:05:00"}, "not a schedule of six fields"),
        ({"AzureWebJobsStorage": None}, "work: the app setting AzureWebJobsStorage"),
    ],
)
def test_what_the_real_host_would_refuse_in_the_settings_is_found_at_start(
    change: dict[str, str | None], message: str, write_app: Callable[..., Path], settings: dict[str, str]
) -> None:
    changed = {name: value for name, value in {**settings, **change}.items() if value is not None}
    with pytest.raises(AppFault, match=message):
        Host(write_app(), changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "3.0"}, "version"),
        ({"extensionBundle": {}}, "extensionBundle.id"),
        ({"functionTimeout": "30m"}, "functionTimeout"),
        ({"extensions": {"queues": {"batchSize": 33}}}, "batchSize"),
        ({"extensions": {"queues": {"messageEncoding": "utf8"}}}, "messageEncoding"),
        ({"extensions": {"queues": {"batchsize": 1}}}, "batchsize"),
        ({"functionTimeOut": "00:30:00"}, "functionTimeOut"),
    ],
)
def test_a_host_json_that_the_real_host_would_refuse_is_found_at_start(
    change: dict[str, object], message: str, write_app: Callable[..., Path], settings: dict[str, str]
) -> None:
    with pytest.raises(AppFault, match=message):
        Host(write_app(host_json={**HOST_JSON, **change}), settings)


def test_two_functions_with_one_route_are_found_at_start(
    write_app: Callable[..., Path], settings: dict[str, str]
) -> None:
    with pytest.raises(AppFault, match="the route POST enqueue is"):
        Host(write_app(APP.replace("echo/{name}", "enqueue")), settings)


@pytest.mark.parametrize(
    ("text", "following"),
    [
        ("0 */5 * * * *", "2026-02-27T10:35:00"),
        ("30 0 0 1 * *", "2026-03-01T00:00:30"),
        ("0 0 9 * * MON-FRI", "2026-03-02T09:00:00"),
        ("0 0 0 13 * FRI", "2026-03-13T00:00:00"),  # both must match, unlike in a crontab
    ],
)
def test_schedules_are_read_as_ncrontab(text: str, following: str) -> None:
    start = datetime(2026, 2, 27, 10, 33, 1, tzinfo=UTC)
    assert cron(text, start).get_next(datetime).isoformat() == following + "+00:00"


@pytest.mark.parametrize("text", ["@daily", "0 0 L * * *", "0 0 4 ? * *", "", "0 0 4 * * MON#1", "H 0 4 * * *"])
def test_what_only_other_crons_understand_is_no_schedule(text: str) -> None:
    with pytest.raises(AppFault):
        cron(text, datetime(2026, 1, 1, tzinfo=UTC))


def _eventually(condition: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not come about in time"
        time.sleep(0.05)


def test_the_running_host_answers_routes_fires_timers_and_works_off_queues(
    write_app: Callable[..., Path], settings: dict[str, str]
) -> None:
    ticks = Path(settings["TICKS"])

    def lines() -> list[str]:
        return ticks.read_text().splitlines() if ticks.exists() else []

    with azurite() as storage:
        running = {**settings, "TICK_SCHEDULE": "* * * * * *", "AzureWebJobsStorage": storage}
        with functions_host(running, app_dir=write_app()) as host, httpx.Client(base_url=host.url) as client:
            answer = client.post("/api/echo/jo?q=2", content=b"hi")
            assert (answer.status_code, answer.headers["x-tiny"]) == (201, "yes")
            assert answer.json() == {"name": "jo", "q": "2", "body": "hi"}
            assert client.get("/api/echo/jo").status_code == 405
            assert client.get("/api/hidden").status_code == 404

            _eventually(lambda: lines().count("tick") >= 2)

            assert client.post("/api/enqueue", content=b"good").status_code == 202
            assert client.post("/api/enqueue", content=b"bad").status_code == 202
            _eventually(lambda: {"good 1", "bad 1", "bad 2"} <= set(lines()))
            with QueueClient.from_connection_string(storage, "work-poison") as poison:
                _eventually(lambda: _peek(poison) == ["bad"])
            with QueueClient.from_connection_string(storage, "work") as queue:
                _eventually(lambda: queue.get_queue_properties().approximate_message_count == 0)
            assert lines().count("good 1") == 1 and "bad 3" not in lines()

            assert client.post("/admin/functions/broken").status_code == 202
            assert {f["name"]: f["isDisabled"] for f in client.get("/admin/functions").json()}["slow"]


def _peek(queue: QueueClient) -> list[str]:
    from azure.core.exceptions import ResourceNotFoundError

    try:
        return [message.content for message in queue.peek_messages(5)]
    except ResourceNotFoundError:
        return []


def test_a_host_that_cannot_start_says_so_in_the_services_message(write_app: Callable[..., Path]) -> None:
    with pytest.raises(ServiceFault, match="TICK_SCHEDULE"), functions_host({}, app_dir=write_app()):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_host_ends_at_once_when_told_to(
    number: signal.Signals, write_app: Callable[..., Path], settings: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "local.host", "--app", str(write_app()), "--port", "0"]
    with Child(command, name="the host", env={**os.environ, **settings}) as child:
        child.read_ready()
        child.process.send_signal(number)
        assert child.process.wait(5) == 0
        assert "Traceback" not in child.stderr_tail()


def test_the_host_ends_when_the_apps_process_does(write_app: Callable[..., Path], settings: dict[str, str]) -> None:
    command = [sys.executable, "-m", "local.host", "--app", str(write_app()), "--port", "0"]
    with Child(command, name="the host", env={**os.environ, **settings}) as child:
        child.read_ready()
        (worker,) = psutil.Process(child.pid).children()
        worker.kill()
        assert child.process.wait(5) == 1
        assert child.stderr_tail().endswith("the process of the function app has ended")


def test_services_die_with_their_parent_even_when_it_is_killed() -> None:
    script = (
        "import time\nfrom local.services import Child\n"
        "child = Child(['sleep', '60'], name='sleep')\ntime.sleep(0.2)  # setpriv\n"
        "print(child.pid, flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
    _eventually(lambda: not _alive(pid))


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_service_that_dies_at_start_is_reported_with_what_it_said() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no port for me')"]
    said = r"the thing ended while starting \(exit code 1\):\nno port for me"
    with Child(command, name="the thing") as child, pytest.raises(ServiceFault, match=said):
        child.read_ready()
