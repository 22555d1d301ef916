"""python -m bench.sink [--delay SECONDS]: takes every batch, answers 200 after a while, and looks at nothing.

Prints {"port": N} when it is ready. It stands for a Customer.io that is somewhere else: what it does costs this machine
next to nothing.
"""

import argparse
import asyncio
import json
import socket

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.sink", description=__doc__)
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before a batch is answered")
    delay = parser.parse_args().delay
    taken = {"requests": 0, "operations": 0}

    async def batch(request: Request) -> Response:
        body = await request.body()
        taken["requests"] += 1
        taken["operations"] += body.count(b'"identifiers"')
        await asyncio.sleep(delay)
        return JSONResponse({})

    async def region(_: Request) -> Response:
        return JSONResponse({"region": "us", "environment_id": 1})

    async def count(_: Request) -> Response:
        return JSONResponse(taken)

    routes = [
        Route("/api/v2/batch", batch, methods=["POST"]),
        Route("/api/v1/accounts/region", region),
        Route("/taken", count),
    ]
    # of a socket that says TCP asyncio holds no small answers back for 40 ms
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
        server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="error", access_log=False))
        server.run(sockets=[listener])


if __name__ == "__main__":
    main()
