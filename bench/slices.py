"""python -m bench.slices RUN: takes slices from the queue and delivers them, until the run is done.

Prints {"ready": 1} when everything is imported. Settings come from the environment.
"""

import os
import sys
import time
from contextlib import closing

from local import driver

driver.register()

from azure.core.exceptions import ResourceNotFoundError  # noqa: E402
from azure.storage.queue import QueueClient  # noqa: E402

from shared import work  # noqa: E402
from shared.resync import Runs, Stage  # noqa: E402
from shared.settings import load  # noqa: E402
from shared.state import State  # noqa: E402


def main() -> None:
    run = sys.argv[1]
    name = f"{os.environ['STATE_CONTAINER']}-slices"
    text = os.environ["AzureWebJobsStorage"]  # noqa: SIM112
    with QueueClient.from_connection_string(text, name) as client, closing(State(load())) as state:
        print('{"ready": 1}', flush=True)
        runs = Runs(state)
        while runs.read(run).state in (Stage.AWAITING, Stage.RUNNING):
            try:
                message = next(iter(client.receive_messages(max_messages=1, visibility_timeout=600)), None)
            except ResourceNotFoundError:
                message = None
            if message is None:
                time.sleep(0.1)
            else:
                work.deliver_slice(message.content)
                client.delete_message(message)


if __name__ == "__main__":
    main()
