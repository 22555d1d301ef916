"""The triggers of Tidemark: one timer for each sync of the catalogue, and what a person may ask for over HTTP."""

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
