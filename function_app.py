"""The triggers of Tidemark: a timer for each sync of the catalogue, what a person asks for, and what queues bring."""

import azure.functions as func

from shared.syncs import CATALOGUE, Sync

app = func.FunctionApp()


def register(sync: Sync) -> None:
    """Give a sync its timer. The schedule is the app setting <SYNC>_SCHEDULE."""

    @app.function_name(sync.name)
    @app.timer_trigger(arg_name="timer", schedule=f"%{sync.schedule_setting}%")
    def handler(timer: func.TimerRequest) -> None:
        # imported here, because every cold start pays for what is imported above
        from shared import passes

        passes.run(sync)


for each in CATALOGUE:
    register(each)


@app.function_name("comparison")
@app.timer_trigger(arg_name="timer", schedule="%COMPARISON_SCHEDULE%")
def comparison(timer: func.TimerRequest) -> None:
    """Ask for the nightly comparison of everybody with what was last sent."""
    from shared import comparison

    comparison.nightly()


@app.function_name("make_plan")
@app.queue_trigger(arg_name="message", queue_name="%STATE_CONTAINER%-plans", connection="AzureWebJobsStorage")
def make_plan(message: func.QueueMessage) -> None:
    """Make the plan of a run that was asked for."""
    from shared import work

    work.make_plan(message.get_body().decode())


@app.function_name("give_up_plan")
@app.queue_trigger(arg_name="message", queue_name="%STATE_CONTAINER%-plans-poison", connection="AzureWebJobsStorage")
def give_up_plan(message: func.QueueMessage) -> None:
    """Say that a plan could not be made."""
    from shared import work

    work.give_up_plan(message.get_body().decode())


@app.function_name("deliver_slice")
@app.queue_trigger(arg_name="message", queue_name="%STATE_CONTAINER%-slices", connection="AzureWebJobsStorage")
def deliver_slice(message: func.QueueMessage) -> None:
    """Deliver one slice of a run."""
    from shared import work

    work.deliver_slice(message.get_body().decode())


@app.function_name("give_up_slice")
@app.queue_trigger(arg_name="message", queue_name="%STATE_CONTAINER%-slices-poison", connection="AzureWebJobsStorage")
def give_up_slice(message: func.QueueMessage) -> None:
    """Show a slice that failed again and again as given up, and let the others go on."""
    from shared import work

    work.give_up_slice(message.get_body().decode())


@app.function_name("resync")
@app.route("syncs/{sync}/resync", methods=["POST"], auth_level=func.AuthLevel.FUNCTION)
def resync(req: func.HttpRequest) -> func.HttpResponse:
    """Plan to send rows of a sync again."""
    from shared import http

    return http.resync(req)


@app.function_name("go_live")
@app.route("go-live", methods=["POST"], auth_level=func.AuthLevel.FUNCTION)
def go_live(req: func.HttpRequest) -> func.HttpResponse:
    """Plan to send everything for the first time, and to go on from there."""
    from shared import http

    return http.go_live(req)


@app.function_name("qa")
@app.route("qa", methods=["POST"], auth_level=func.AuthLevel.FUNCTION)
def qa(req: func.HttpRequest) -> func.HttpResponse:
    """Plan to send some people, and to compare what arrives."""
    from shared import http

    return http.qa_sync(req)


@app.function_name("report")
@app.route("runs/{run}/report", methods=["GET"], auth_level=func.AuthLevel.FUNCTION)
def report(req: func.HttpRequest) -> func.HttpResponse:
    """Show what a QA sync has found."""
    from shared import http

    return http.report(req)


@app.function_name("run")
@app.route("runs/{run}", methods=["GET"], auth_level=func.AuthLevel.FUNCTION)
def run(req: func.HttpRequest) -> func.HttpResponse:
    """Show a run: its plan, and how far it is."""
    from shared import http

    return http.run(req)


@app.function_name("decide")
@app.route("runs/{run}/{decision}", methods=["POST"], auth_level=func.AuthLevel.FUNCTION)
def decide(req: func.HttpRequest) -> func.HttpResponse:
    """Approve a run, cancel it, or retry what it has given up."""
    from shared import http

    return http.decide(req)


@app.function_name("pause")
@app.route("pause", methods=["POST"], auth_level=func.AuthLevel.FUNCTION)
def pause(req: func.HttpRequest) -> func.HttpResponse:
    """Stop everything, or one sync, before its next batch."""
    from shared import http

    return http.pause(req)


@app.function_name("resume")
@app.route("resume", methods=["POST"], auth_level=func.AuthLevel.FUNCTION)
def resume(req: func.HttpRequest) -> func.HttpResponse:
    """Show what has piled up since a pause; and go on, where that is confirmed."""
    from shared import http

    return http.resume(req)


@app.function_name("release")
@app.route("syncs/{sync}/release", methods=["POST"], auth_level=func.AuthLevel.FUNCTION)
def release(req: func.HttpRequest) -> func.HttpResponse:
    """Let rows that fail for one reason be set aside, however many they are."""
    from shared import http

    return http.release(req)


@app.function_name("accept")
@app.route("syncs/{sync}/accept", methods=["POST"], auth_level=func.AuthLevel.FUNCTION)
def accept(req: func.HttpRequest) -> func.HttpResponse:
    """Take a column's type of now for the one that is meant."""
    from shared import http

    return http.accept(req)


@app.function_name("dead_letters")
@app.route("dead-letters/{sync}", methods=["GET"], auth_level=func.AuthLevel.FUNCTION)
def dead_letters(req: func.HttpRequest) -> func.HttpResponse:
    """Tell what could not be delivered, by reason."""
    from shared import http

    return http.dead_letters(req)


@app.function_name("replay")
@app.route("dead-letters/{sync}/replay", methods=["POST"], auth_level=func.AuthLevel.FUNCTION)
def replay(req: func.HttpRequest) -> func.HttpResponse:
    """Read dead letters again from their view, and send them as they are now."""
    from shared import http

    return http.replay_dead_letters(req)


@app.function_name("night")
@app.timer_trigger(arg_name="timer", schedule="%NIGHT_SCHEDULE%")
def night(timer: func.TimerRequest) -> None:
    """Judge the day before: volume, freshness, and what the views hold."""
    from shared import night

    night.run()


@app.function_name("audit")
@app.queue_trigger(arg_name="message", queue_name="%STATE_CONTAINER%-audits", connection="AzureWebJobsStorage")
def audit(message: func.QueueMessage) -> None:
    """Read back some of what a run has sent."""
    from shared import audit

    audit.carry_out(message.get_body().decode())


@app.function_name("give_up_audit")
@app.queue_trigger(arg_name="message", queue_name="%STATE_CONTAINER%-audits-poison", connection="AzureWebJobsStorage")
def give_up_audit(message: func.QueueMessage) -> None:
    """Say that an audit failed again and again, and drop it."""
    from shared import audit

    audit.give_up(message.get_body().decode())


@app.function_name("audit_report")
@app.route("audits/{sync}", methods=["GET"], auth_level=func.AuthLevel.FUNCTION)
def audit_report(req: func.HttpRequest) -> func.HttpResponse:
    """Show what the audits of a sync have found."""
    from shared import http

    return http.audit_report(req)


@app.function_name("reconciliation")
@app.timer_trigger(arg_name="timer", schedule="%RECONCILIATION_SCHEDULE%")
def reconciliation(timer: func.TimerRequest) -> None:
    """Ask for the daily comparison of segments with their views."""
    from shared import reconcile

    reconcile.daily()


@app.function_name("reconcile")
@app.route("reconciliation", methods=["POST"], auth_level=func.AuthLevel.FUNCTION)
def reconcile(req: func.HttpRequest) -> func.HttpResponse:
    """Compare segments with their views now; and plan to send who differs, where that is asked for."""
    from shared import http

    return http.reconciliation(req)


@app.function_name("canary")
@app.route("canary", methods=["POST"], auth_level=func.AuthLevel.FUNCTION)
def canary(req: func.HttpRequest) -> func.HttpResponse:
    """Send an event to the test person, and follow what comes of it."""
    from shared import http

    return http.run_canary(req)


@app.function_name("readiness")
@app.route("readiness", methods=["GET"], auth_level=func.AuthLevel.FUNCTION)
def readiness(req: func.HttpRequest) -> func.HttpResponse:
    """Tell whether all is set up as it must be."""
    from shared import http

    return http.ready(req)


@app.function_name("status")
@app.route("status", methods=["GET"], auth_level=func.AuthLevel.FUNCTION)
def status(req: func.HttpRequest) -> func.HttpResponse:
    """Show how everything is."""
    from shared import http

    return http.status(req)
