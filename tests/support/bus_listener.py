"""A durable consumer of results that uses plain nats-py, on its own thread, for blocking tests.

It survives restarts of the server: it reconnects, and creates its consumer again if it is gone.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator

import nats
from nats.errors import Error as NatsPyError
from nats.js.api import ConsumerConfig, DeliverPolicy

TIMEOUT = 180.0
FETCH_SECONDS = 2.0


async def _ignore(_error: Exception) -> None:
    """Ignore connection errors: tests stop the server."""


class ResultListener:
    """Receives events on `pattern` under a durable name. `received` are the documents, `raw` their bytes, in order."""

    def __init__(self, url: str, durable: str = "listener", pattern: str = "akosha.sync.*.*") -> None:
        self.received: list[dict] = []
        self.raw: list[bytes] = []
        self._url, self._durable, self._pattern = url, durable, pattern
        self._changed, self._stopping = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), name="listener")

    def ids(self, kind: str = "succeeded") -> list[str]:
        """Return the ids of the received events of a kind, in order, including duplicates."""
        with self._changed:
            return [event["id"] for event in self.received if event["type"] == f"akosha.sync.{kind}.v1"]

    def wait(self, wanted: Callable[[], object]) -> None:
        """Wait until `wanted` is true; it is called after each event."""
        assert self.wait_for(wanted, TIMEOUT), self.ids()

    def wait_for(self, wanted: Callable[[], object], seconds: float) -> bool:
        """Return whether `wanted` becomes true within a time; it is called after each event."""
        with self._changed:
            return bool(self._changed.wait_for(wanted, seconds))

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()

    def _take(self, document: object, raw: bytes) -> None:
        if isinstance(document, dict) and "type" in document:
            with self._changed:
                self.received.append(document)
                self.raw.append(raw)
                self._changed.notify_all()

    async def _listen(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(NatsPyError, OSError, TimeoutError):
                await self._connected()

    async def _connected(self) -> None:
        client = nats.NATS()
        try:
            await asyncio.wait_for(
                client.connect(self._url, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0.05,
                               connect_timeout=1, error_cb=_ignore),
                2,
            )  # fmt: skip
            js = client.jetstream(timeout=1)
            config = ConsumerConfig(
                name=self._durable, durable_name=self._durable, filter_subject=self._pattern,
                deliver_policy=DeliverPolicy.ALL, ack_wait=2,
            )  # fmt: skip
            await js.add_consumer("AKOSHA_SYNC", config)
            subscription = await js.pull_subscribe_bind(durable=self._durable, stream="AKOSHA_SYNC")
            while not self._stopping.is_set():
                with contextlib.suppress(nats.errors.TimeoutError):
                    (message,) = await subscription.fetch(1, timeout=FETCH_SECONDS if not self.received else 0.3)
                    with contextlib.suppress(ValueError, RecursionError):  # not JSON: not an event
                        self._take(json.loads(message.data), message.data)
                    await message.ack_sync()
                await client.flush(1)
        finally:
            with contextlib.suppress(NatsPyError, OSError, TimeoutError):
                await asyncio.wait_for(client.close(), 1)


@contextlib.contextmanager
def listening(url: str, **how: str) -> Iterator[ResultListener]:
    listener = ResultListener(url, **how)
    listener.start()
    try:
        yield listener
    finally:
        listener.stop()
