"""`python -m local.host [--app DIR] [--port N] [--settings FILE]`: runs a function app until it is told to stop.

Prints one JSON line when ready: {"port": N}. The app settings are the environment's; with --settings, the `Values` of a
local.settings.json come first and the environment wins.
"""

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path

import uvicorn

from local.host import AppFault, Host, Log
from local.host.triggers import application
from local.services import REPOSITORY, ServiceFault


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m local.host", description="A small Azure Functions host.")
    parser.add_argument("--app", type=Path, default=REPOSITORY, help="the function app's directory (this repository)")
    parser.add_argument("--port", type=int, default=0, help="of the HTTP routes; 0: a free one")
    parser.add_argument("--settings", type=Path, help="a local.settings.json")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("azure").setLevel(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))  # until uvicorn takes over
    values: dict[str, str] = {}
    if options.settings:
        values = {**json.loads(options.settings.read_text())["Values"], **os.environ}
    try:
        # of a socket that says TCP asyncio holds no small answers back for 40 ms
        listener = socket.socket(proto=socket.IPPROTO_TCP)
        with Host(options.app, values, on_log=_print) as host, listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", options.port))
            server = uvicorn.Server(uvicorn.Config(application(host), log_level="warning", timeout_graceful_shutdown=1))
            threading.Thread(target=_end_with, args=(host,), daemon=True).start()
            asyncio.run(_serve(server, listener))
    except (AppFault, ServiceFault, OSError, ValueError) as fault:
        print(f"{fault}", file=sys.stderr)
        return 1
    return 0


async def _serve(server: uvicorn.Server, listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    serving = loop.create_task(server.serve([listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        for number in (signal.SIGTERM, signal.SIGINT):
            # At once: what the functions are doing is cut off, as when an instance is recycled.
            loop.add_signal_handler(number, os._exit, 0)
        print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
    await serving


def _end_with(host: Host) -> None:
    host.wait()
    print("the process of the function app has ended", file=sys.stderr)
    os._exit(1)


def _print(record: Log) -> None:
    level = logging.getLevelNamesMapping().get(record.level, logging.INFO)
    if record.logger.startswith("azure.") and level < logging.WARNING:
        return  # the libraries' own news of every request
    logging.getLogger("app").log(level, "%s", record.message)


if __name__ == "__main__":
    sys.exit(main())
