"""`python -m local.customerio [--port 0]`: serve on 127.0.0.1 until SIGTERM or SIGINT; say {"port": N} when ready."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import socket
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from local.customerio.app import App
from local.customerio.standin import Standin
from local.customerio.track import Track
from local.customerio.workspace import Workspaces


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 whose requests know their connection, so that a fault can reset it."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["transport"] = self.transport


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets
        print(json.dumps({"port": sockets[0].getsockname()[1]}), flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        os._exit(0)  # everything is in memory: there is nothing to wait for


def main() -> None:
    """Serve until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m local.customerio", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    port = parser.parse_args().port
    gc.set_threshold(100_000, 50)  # everything stays: looking for garbage in it often costs a third of the time
    workspaces = Workspaces()
    routes = [*Track(workspaces).routes(), *App(workspaces).routes(), *Standin(workspaces).routes()]
    # asyncio turns Nagle's algorithm off only where it sees the protocol named; without, answers may wait for 40 ms.
    listening = socket.socket(proto=socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    config = uvicorn.Config(
        Starlette(routes=routes), http=_Protocol, ws="none", lifespan="off", log_level="warning", access_log=False
    )
    asyncio.run(_Server(config).serve(sockets=[listening]))


if __name__ == "__main__":
    main()
