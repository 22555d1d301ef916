"""python -m bench.slices RUN: takes slices from the queue and delivers them, until the run is done.

Prints {"ready": 1} when everything is imported. Settings come from the environment.
"""

import os
import sys
import time

from local import driver

driver.register()

from azure.core.exceptions import ResourceNotFoundError  # noqa: E402
from azure.storage.queue import QueueClient  # noqa: E402

from shared import work  # noqa: E402
from shared.resync import Stage  # noqa: E402


def main() -> None:
    run = sys.argv[1]
    name = f"{os.environ['STATE_CONTAINER']}-slices"
    with QueueClient.from_connection_string(os.environ["AzureWebJobsStorage"], name) as client:  # noqa: SIM112
        print('{"ready": 1}', flush=True)
        while work.status(run)["state"] in (Stage.AWAITING, Stage.RUNNING):
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
