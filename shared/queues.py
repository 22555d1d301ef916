"""The storage queues that bring work to functions: plans to make, slices to deliver, and what is to be audited.

Their names begin with the state container's, so that two deployments on one account do not take each other's work.
"""

import json
import secrets
from contextlib import suppress
from functools import partial
from typing import Any, Literal

from azure.core.exceptions import ResourceExistsError, ResourceNotFoundError
from azure.storage.queue import QueueClient

from shared.settings import Settings
from shared.state import managed_identity, storage_errors

Queue = Literal["plans", "slices", "audits"]


class Queues:
    """Sends messages. Raises StateUnavailable, and ConfigurationFault where the storage refuses access."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def send(self, queue: Queue, message: dict[str, Any], delay: int = 0) -> None:
        """Send one message, to be seen after `delay` seconds. It never expires."""
        with storage_errors(), self._client(queue) as client:
            send = partial(client.send_message, json.dumps(message), visibility_timeout=delay or None, time_to_live=-1)
            try:
                send()
            except ResourceNotFoundError:
                with suppress(ResourceExistsError):
                    client.create_queue()
                send()

    def probe(self) -> None:
        """Make a queue, send a message, take it, and delete both. A queue of its own: the others start functions."""
        with (
            storage_errors(),
            self._client(f"probe-{secrets.token_hex(4)}", retry_total=1, initial_backoff=1) as client,
        ):
            client.create_queue()
            try:
                client.send_message("probe")
                client.delete_message(next(iter(client.receive_messages(max_messages=1))))
            finally:
                client.delete_queue()

    def _client(self, queue: str, **retries: Any) -> QueueClient:
        name = f"{self._settings.state_container}-{queue}"
        if self._settings.azure_web_jobs_storage:
            text = self._settings.azure_web_jobs_storage.get_secret_value()
            return QueueClient.from_connection_string(text, name, **retries)
        account = f"https://{self._settings.storage_account_name}.queue.core.windows.net"
        return QueueClient(account, name, credential=managed_identity(self._settings), **retries)
