"""python -m local.sqlserver [--port 0] [--password P]: prints {"port": N, "password": P} when it listens."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys

from .server import Server


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="local.sqlserver", description="A stand-in for SQL Server, for development and tests."
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--password", default="Tidemark-1", help="of the login sa")
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
    for number in (signal.SIGTERM, signal.SIGINT):
        # Nothing is kept, so nothing needs an orderly end, and a thread inside DuckDB must not delay it.
        signal.signal(number, lambda *_: os._exit(0))
    server = Server(arguments.password, arguments.port)
    print(json.dumps({"port": server.port, "password": arguments.password}), flush=True)
    server.serve()


if __name__ == "__main__":
    main()
