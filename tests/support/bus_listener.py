"""A durable consumer of results that is none of ours: nats-py as it is, on a thread of its own, for blocking tests.

It survives what happens to the server: it connects anew, and makes its durable again where that is gone.
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


async def _mute(_error: Exception) -> None:
    """A server that is away is nothing to be told of here."""


class Ear:
    """Hears events on `pattern` under a durable name. `heard` are the documents, `raw` their bytes, in order."""

    def __init__(self, url: str, durable: str = "ear", pattern: str = "akosha.sync.*.*") -> None:
        self.heard: list[dict] = []
        self.raw: list[bytes] = []
        self._url, self._durable, self._pattern = url, durable, pattern
        self._news, self._over = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), name="ear")

    def ids(self, kind: str = "succeeded") -> list[str]:
        """The ids of what was heard of a kind, in order and as often as heard."""
        with self._news:
            return [event["id"] for event in self.heard if event["type"] == f"akosha.sync.{kind}.v1"]

    def wait(self, wanted: Callable[[], object]) -> None:
        """Return when what was heard is as wanted."""
        with self._news:
            assert self._news.wait_for(wanted, TIMEOUT), [event["id"] for event in self.heard]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()

    def _take(self, document: object, raw: bytes) -> None:
        if isinstance(document, dict) and "type" in document:
            with self._news:
                self.heard.append(document)
                self.raw.append(raw)
                self._news.notify_all()

    async def _listen(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(NatsPyError, OSError, TimeoutError):
                await self._connected()

    async def _connected(self) -> None:
        client = nats.NATS()
        try:
            await asyncio.wait_for(
                client.connect(self._url, allow_reconnect=False, max_reconnect_attempts=1, reconnect_time_wait=0.05,
                               connect_timeout=1, error_cb=_mute),
                2,
            )  # fmt: skip
            js = client.jetstream(timeout=1)
            config = ConsumerConfig(
                name=self._durable, durable_name=self._durable, filter_subject=self._pattern,
                deliver_policy=DeliverPolicy.ALL, ack_wait=2,
            )  # fmt: skip
            await js.add_consumer("AKOSHA_SYNC", config)
            place = await js.pull_subscribe_bind(durable=self._durable, stream="AKOSHA_SYNC")
            while not self._over.is_set():
                with contextlib.suppress(nats.errors.TimeoutError):
                    (message,) = await place.fetch(1, timeout=FETCH_SECONDS if not self.heard else 0.3)
                    with contextlib.suppress(ValueError, RecursionError):  # what is no JSON is no event
                        self._take(json.loads(message.data), message.data)
                    await message.ack_sync()
                await client.flush(1)
        finally:
            with contextlib.suppress(NatsPyError, OSError, TimeoutError):
                await asyncio.wait_for(client.close(), 1)


@contextlib.contextmanager
def listening(url: str, **how: str) -> Iterator[Ear]:
    listener = Ear(url, **how)
    listener.start()
    try:
        yield listener
    finally:
        listener.stop()
