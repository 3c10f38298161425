"""One connection to one NATS server, from the handshake to its end. Never reconnects: whoever wants another makes one.

nats-py can reconnect by itself, but gives up after a number of tries, waits without jitter, keeps what was published
meanwhile in a buffer that may be lost, and may hang in its own clean-up. A client of its own for each connection has
one state only: it works, or it is thrown away.
"""

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from nats.aio.client import Client as NatsPy
from nats.errors import AuthorizationError, Error as NatsPyError

from agent.adapters.nats_bus.options import NatsOptions, Server
from agent.domain.errors import BusError

CLOSE_SECONDS = 2.0
NEVER_SECONDS = 10.0**9
"""nats-py's own pings are switched off: `Link` looks after the connection."""

_log = structlog.get_logger()


class Client(NatsPy):
    """nats-py's client with three manners of its own: see each method. `lost` is set when the connection is."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = asyncio.Event()
        self.why_lost = ""
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
        """Told at once: nats-py calls back only after a clean-up in which it may hang."""
        self.give_up(str(e) or type(e).__name__)
        await super()._process_op_err(e)

    def give_up(self, why: str) -> None:
        """The connection is of no use any more."""
        self.why_lost = self.why_lost or why.removeprefix("nats: ")
        self.lost.set()

    async def hear_error(self, error: Exception) -> None:
        text = str(error).removeprefix("nats: ")
        if "permissions violation" in text.lower():
            self.refused = text
        _log.debug("nats_says", error=text or repr(error))

    async def hear_close(self) -> None:
        self.give_up(str(self.last_error or "the server closed the connection"))

    async def settle(self) -> None:
        """Return when the server has heard all that was sent. nats-py's ping overtakes what it has in its buffer: once
        the first was answered, that is on its way, and the second comes after it.
        """
        for _ in range(2):
            await self.flush()

    async def let_go(self) -> None:
        """Close the connection; where that does not come to an end in time, break it. Never raises."""
        closing = asyncio.create_task(self.close(), name="nats-close")
        try:
            await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
        finally:
            closing.cancel()
            self._break()
        await asyncio.wait({closing}, timeout=CLOSE_SECONDS)
        if closing.done() and not closing.cancelled() and (error := closing.exception()):
            _log.debug("nats_says", error=repr(error))

    def _break(self) -> None:
        """nats-py cannot abort: to a peer that takes nothing any more, its socket would stay open for ever."""
        writer = getattr(self._transport, "_io_writer", None)
        if isinstance(writer, asyncio.StreamWriter):
            with suppress(RuntimeError, OSError):
                writer.transport.abort()


async def connect(url: str, options: NatsOptions, context: ssl.SSLContext) -> Client:
    """Connect to one server, in one attempt of bounded time. Raises BusError, transient: what is wrong and the cure."""
    server, client = Server.of(url), Client()
    failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def hear(error: Exception) -> None:
        if not failed.done():
            failed.set_result(error)
        await client.hear_error(error)

    async def begin() -> None:
        await client.connect(**_parameters(server, options, context, client, hear))

    attempt = asyncio.create_task(begin(), name="nats-connect")
    try:
        ends: set[asyncio.Future[Any]] = {attempt, failed}
        await asyncio.wait(ends, timeout=options.patience.connect, return_when=asyncio.FIRST_COMPLETED)
        if attempt.done() and not failed.done():
            attempt.result()
            return client
        error = failed.result() if failed.done() else TimeoutError(f"no answer in {options.patience.connect:g} s")
    except (NatsPyError, OSError, ValueError) as raised:
        error = raised
    except BaseException:
        await _undone(attempt, client)
        raise
    await _undone(attempt, client)
    raise _refused(server, error) from error


async def _undone(attempt: asyncio.Task[None], client: Client) -> None:
    attempt.cancel()
    await asyncio.wait({attempt}, timeout=CLOSE_SECONDS)
    if attempt.done() and not attempt.cancelled():
        attempt.exception()
    await client.let_go()


def _parameters(
    server: Server, options: NatsOptions, context: ssl.SSLContext, client: Client, hear: Callable[[Exception], Any]
) -> dict[str, Any]:
    login = options.login
    user, password, token = login.user or None, login.password or None, login.token or None
    if server.user is not None and server.password is not None:
        user, password = server.user, server.password
    elif server.user is not None:
        token = server.user
    return {
        "servers": [server.place],
        "name": options.name,
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": NEVER_SECONDS,  # one attempt: nats-py would make another, after this
        "connect_timeout": options.patience.connect,
        "ping_interval": NEVER_SECONDS,
        "error_cb": hear,
        "closed_cb": client.hear_close,
        "tls": context,
        "tls_handshake_first": options.tls.first and server.scheme in ("nats", "tls"),
        "user": user,
        "password": password,
        "token": token,
        "user_credentials": login.credentials_file,
        "nkeys_seed": None if login.nkey_file is None else str(login.nkey_file),
        "nkeys_seed_str": login.nkey_seed or None,
    }


def _refused(server: Server, error: Exception) -> BusError:
    """Say what keeps us out. The text of nats-py holds no secret: it is the server's, or the system's."""
    text = str(error).removeprefix("nats: ").strip("'\" ") or type(error).__name__
    hint = "akosha_agent_nats_url names the server; the agent keeps trying"
    if isinstance(error, AuthorizationError) or "authorization" in text.lower() or "authentication" in text.lower():
        hint = "check akosha_agent_nats_user, _token, _credentials_file or _nkey_file: the server does not know us"
    elif isinstance(error, ssl.SSLError):
        hint = "check akosha_agent_nats_ca_file and _certificate_file, and that the server speaks TLS"
    return BusError(f"NATS at {server.place} cannot be reached: {text}", hint=hint, transient=True)
