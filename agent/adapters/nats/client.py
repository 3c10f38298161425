"""One connection to one NATS server, from the handshake to its end.

It never reconnects: for another connection, make another client.

nats-py can reconnect by itself, but gives up after a number of tries, waits without jitter, keeps what was published
meanwhile in a buffer that may be lost, and may hang in its own clean-up. A client of its own for each connection has
one state only: it works, or it is thrown away.
"""

import asyncio
from contextlib import suppress
from typing import Any

import structlog
from nats.aio.client import Client as NatsPy
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError

CLOSE_SECONDS = 2.0
HANDSHAKE_CLOSE_SECONDS = 0.1
"""Where there is no connection yet, there is nothing to take leave of; after a TLS handshake that failed, nats-py's
`close` never returns.
"""

_log = structlog.get_logger()


class Client(NatsPy):
    """nats-py's client with manners of its own: see each method. `lost` is set when the connection is."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = asyncio.Event()
        self.lost_reason = ""
        self.refused = ""
        """The newest thing that the server did not permit."""

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """TLS was asked for: then there is TLS, whatever the greeting says, before any secret is sent.

        nats-py would go on in plain text where the server (or somebody in between) does not demand it. Servers that
        the greeting recommends are left aside: we go to those that were configured.
        """
        info.pop("connect_urls", None)
        if initial_connection and self._current_server and self._current_server.uri.scheme == "tls":
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    async def _process_op_err(self, e: Exception) -> None:
        """Report the loss at once: nats-py calls back only after a clean-up in which it may hang."""
        self.mark_lost(str(e) or type(e).__name__)
        await super()._process_op_err(e)

    async def _read_loop(self) -> None:
        """A connection that nobody reads is lost, whatever its reader died of: nats-py would count it as connected."""
        try:
            await super()._read_loop()
        finally:
            self.mark_lost("nothing is read from it any more")

    async def _flusher(self) -> None:
        """A connection that nobody writes is lost, too: nats-py would answer our pings to it by itself."""
        try:
            await super()._flusher()
        finally:
            self.mark_lost("nothing is written to it any more")

    async def _process_pong(self) -> None:
        """An answer to a ping that nobody waits for any more (cancelled, timed out) must not end the reader."""
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
        else:
            await super()._process_pong()

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        """Anybody may send headers that are none: the message is looked at without them."""
        try:
            return await super()._process_headers(headers)
        except (ValueError, IndexError):
            return None

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Any:
        """A subject that is no text must not end the reader; as some other text, it is refused further on."""
        subject, reply = (name.decode(errors="replace").encode() for name in (subject, reply))
        message: Msg = super()._build_message(sid, subject, reply, data, headers)
        return message

    def mark_lost(self, why: str) -> None:
        """Mark the connection as lost: calls that wait for an answer over it fail at once."""
        self.lost_reason = self.lost_reason or why.removeprefix("nats: ")
        self.lost.set()
        for answer in list(self._resp_map.values()):
            if not answer.done():
                answer.set_exception(ConnectionClosedError())
                answer.exception()  # nobody may be waiting any more

    async def on_error(self, error: Exception) -> None:
        text = str(error).removeprefix("nats: ")
        if "permissions violation" in text.lower():
            self.refused = text
        _log.debug("nats_client_error", error=text or repr(error))

    async def on_close(self) -> None:
        self.mark_lost(str(self.last_error or "the server closed the connection"))

    async def confirm_sent(self) -> None:
        """Return when the server has received all that was sent.

        nats-py's ping overtakes what it has in its buffer: once the first was answered, that is on its way, and the
        second comes after it.
        """
        for _ in range(2):
            await self.flush()

    async def drop_idle_connections(self) -> None:
        """Close the connection; where that does not come to an end in time, break it. Never raises."""
        closing = asyncio.create_task(self.close(), name="nats-close")
        try:
            await asyncio.wait({closing}, timeout=CLOSE_SECONDS if self.is_connected else HANDSHAKE_CLOSE_SECONDS)
        finally:
            closing.cancel()
            left = self._break()
        await asyncio.wait({closing, *left}, timeout=CLOSE_SECONDS)
        if closing.done() and not closing.cancelled() and (error := closing.exception()):
            _log.debug("nats_client_error", error=repr(error))

    def _break(self) -> set[asyncio.Task[Any]]:
        """nats-py cannot abort: to a peer that takes nothing any more, its sockets and tasks would never end.

        Returns the tasks that come to an end now.
        """
        left: set[asyncio.Task[Any]] = set()
        writer = getattr(self._transport, "_io_writer", None)
        if isinstance(writer, asyncio.StreamWriter):
            with suppress(RuntimeError, OSError):
                writer.transport.abort()
        session = getattr(self._transport, "_client", None)  # of a web socket
        if session is not None:
            left.add(asyncio.create_task(session.close(), name="nats-close-websocket"))
        for subscription in list(self._subs.values()):
            task = getattr(subscription, "_wait_for_msgs_task", None)
            if isinstance(task, asyncio.Task):
                task.cancel()
                left.add(task)
        return left
