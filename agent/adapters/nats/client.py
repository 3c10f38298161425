"""One connection to one NATS server, from the handshake to its end.

A client never reconnects: each connection has its own client, which is discarded when the connection is lost.

nats-py can reconnect by itself, but it gives up after a number of attempts, waits without jitter, keeps what was
published meanwhile in a buffer that may be lost, and may hang in its own clean-up.
"""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from nats.aio.client import Client as NatsPy
from nats.aio.msg import Msg
from nats.errors import ConnectionClosedError, Error as NatsPyError

CLOSE_SECONDS = 2.0
HANDSHAKE_CLOSE_SECONDS = 0.1
"""Before the connection is up, there is nothing to flush, and after a failed TLS handshake nats-py's `close` hangs."""

_DENIED = re.compile(r'permissions violation for (publish|subscription) to "([^"]*)"', re.IGNORECASE)

_log = structlog.get_logger()


class PermissionDenied(NatsPyError):  # noqa: N818 - the name is the state
    """The server does not permit the user to publish or subscribe to a subject."""


def _token(reply: str) -> str:
    """Return the last token of a reply subject, which identifies the request."""
    return reply.rpartition(".")[2]


class Client(NatsPy):
    """nats-py's client with fixes, one in each overridden method. `lost` is set when the connection is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = asyncio.Event()
        self.lost_reason = ""
        self.inbox_denied = ""
        """The server's message if it does not permit to receive answers: each request raises PermissionDenied."""
        self.on_denied: Callable[[str, str, str], None] = lambda _kind, _subject, _text: None
        """Called with `publish` or `subscription`, the subject in lower case, and the server's message.

        Not called for a request that is denied: it raises PermissionDenied.
        """
        self.on_lost: list[Callable[[], None]] = []
        self._requested: dict[str, str] = {}

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Require TLS if the URL has the scheme tls, whatever the server's INFO says.

        nats-py would continue in plain text, and send the credentials, if the server (or a man in the middle) does not
        require TLS. `connect_urls` is ignored: the agent connects to the configured servers only.
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
        """Mark the connection as lost when the reader ends for any reason: nats-py would report it as connected."""
        try:
            await super()._read_loop()
        finally:
            self.mark_lost("the client stopped reading")

    async def _flusher(self) -> None:
        """Mark the connection as lost when the writer ends: nats-py would resolve pings that were never sent."""
        try:
            await super()._flusher()
        finally:
            self.mark_lost("the client stopped writing")

    async def _process_pong(self) -> None:
        """Ignore the answer to a ping that was cancelled or timed out: it would end nats-py's reader."""
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
        else:
            await super()._process_pong()

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        """Ignore malformed headers, which any client may send: the message is processed without them."""
        try:
            return await super()._process_headers(headers)
        except (ValueError, IndexError):
            return None

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Any:
        """Replace invalid UTF-8 in the subject, which would end nats-py's reader; the message is refused later."""
        subject, reply = (name.decode(errors="replace").encode() for name in (subject, reply))
        message: Msg = super()._build_message(sid, subject, reply, data, headers)
        return message

    async def _init_request_sub(self) -> None:
        """After an error, subscribe at the next request: nats-py would believe that answers can be received."""
        try:
            await super()._init_request_sub()
        except BaseException:
            self._resp_sub_prefix = None
            raise

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Remember the subject of a request until its answer, to fail it at once if the server denies it."""
        token = _token(reply)
        if (answer := self._resp_map.get(token)) is not None:
            if self.inbox_denied:
                self._fail([answer], PermissionDenied(self.inbox_denied))
                return
            self._requested[token] = subject.lower()
            answer.add_done_callback(lambda _: self._requested.pop(token, None))
        await super().publish(subject, payload, reply, headers)

    def failure_of(self, reply: str) -> "asyncio.Future[None]":
        """Return a future that fails when the connection is lost, or the server denies the request with this reply.

        Cancel it when the request is answered. `reply` is unique: its last token identifies the request. A request that
        nats-py makes has such a future of its own.
        """
        token = _token(reply)
        self._resp_map[token] = failure = asyncio.get_running_loop().create_future()
        failure.add_done_callback(lambda _: self._resp_map.pop(token, None))
        if self.lost.is_set():
            self._fail([failure], ConnectionClosedError())
        return failure

    def mark_lost(self, reason: str) -> None:
        """Mark the connection as lost: pending requests and pings fail at once."""
        if self.lost.is_set():
            return
        self.lost_reason = reason.removeprefix("nats: ")
        self.lost.set()
        self._fail(list(self._resp_map.values()), ConnectionClosedError())
        self._fail(self._pongs, ConnectionClosedError())
        for listener in self.on_lost:
            listener()

    @staticmethod
    def _fail(answers: "list[asyncio.Future[Any]]", error: Exception) -> None:
        """Raise the error in requests or pings that wait for their answer."""
        for answer in answers:
            if not answer.done():
                answer.set_exception(error)
                answer.exception()  # retrieved, so that asyncio does not report it if the caller was cancelled

    async def on_error(self, error: Exception) -> None:
        text = str(error).removeprefix("nats: ")
        _log.debug("nats_client_error", error=text or repr(error))
        found = _DENIED.search(text)
        if found is None:
            return
        kind, subject = found[1].lower(), found[2].lower()
        denied = [token for token, requested in self._requested.items() if requested == subject and kind == "publish"]
        if denied:
            self._fail([self._resp_map[token] for token in denied if token in self._resp_map], PermissionDenied(text))
            return
        if kind == "subscription" and subject.startswith(self._inbox_prefix.decode().lower()):
            self.inbox_denied = text
            self._fail(list(self._resp_map.values()), PermissionDenied(text))
        self.on_denied(kind, subject, text)

    async def on_close(self) -> None:
        self.mark_lost(str(self.last_error or "the server closed the connection"))

    async def confirm_sent(self) -> None:
        """Return when the server has received everything that was sent.

        nats-py sends a ping before the contents of its buffer. When the first ping is answered, the buffer has been
        written; the second ping follows it.
        """
        for _ in range(2):
            await self.flush()

    async def drop_idle_connections(self) -> None:
        """Close the connection; abort it if closing takes too long. Never raises."""
        closing = asyncio.create_task(self.close(), name="nats-close")
        try:
            await asyncio.wait({closing}, timeout=CLOSE_SECONDS if self.is_connected else HANDSHAKE_CLOSE_SECONDS)
        finally:
            closing.cancel()
            ending = self._abort()
        await asyncio.wait({closing, *ending}, timeout=CLOSE_SECONDS)
        if closing.done() and not closing.cancelled() and (error := closing.exception()):
            _log.debug("nats_client_error", error=repr(error))

    def _abort(self) -> set[asyncio.Task[Any]]:
        """Abort the socket and return the tasks that are ending.

        nats-py has no abort: if the peer stops reading, its sockets and tasks never end.
        """
        ending: set[asyncio.Task[Any]] = set()
        writer = getattr(self._transport, "_io_writer", None)
        if isinstance(writer, asyncio.StreamWriter):
            with suppress(RuntimeError, OSError):
                writer.transport.abort()
        session = getattr(self._transport, "_client", None)  # of a web socket
        if session is not None:
            ending.add(asyncio.create_task(session.close(), name="nats-close-websocket"))
        for subscription in list(self._subs.values()):
            task = getattr(subscription, "_wait_for_msgs_task", None)
            if isinstance(task, asyncio.Task):
                task.cancel()
                ending.add(task)
        return ending
