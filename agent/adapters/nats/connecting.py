"""One attempt to connect to one server, of bounded time; what was half done is undone, what is wrong is said."""

import asyncio
import json
import ssl
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from nats.errors import AuthorizationError, Error as NatsPyError

from agent.adapters.nats.client import CLOSE_SECONDS, Client
from agent.adapters.nats.credentials import Proof
from agent.adapters.nats.errors import guarded, unexpected
from agent.adapters.nats.options import NatsOptions, Server
from agent.domain.errors import BusError
from agent.domain.plain_text import MASK

NEVER_SECONDS = 10.0**9
"""nats-py's own pings are switched off: `Link` looks after the connection."""


async def connect(url: str, options: NatsOptions, context: ssl.SSLContext, proof: Proof) -> Client:
    """Connect to one server, in one attempt of bounded time. Raises BusError, transient: what is wrong and the cure."""
    server, client = Server.of(url), Client()
    failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def hear(error: Exception) -> None:
        if not failed.done():
            failed.set_result(error)
        await client.hear_error(error)

    async def begin() -> None:
        await client.connect(**_parameters(server, options, context, proof, client, hear))

    secrets = tuple(_secrets(server, options, proof))
    attempt = asyncio.create_task(begin(), name="nats-connect")
    try:
        with guarded(lambda error: _refused(server, error, secrets)):
            ends: set[asyncio.Future[Any]] = {attempt, failed}
            await asyncio.wait(ends, timeout=options.patience.connect, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise failed.result()
            if attempt.cancelled():
                raise ConnectionError("the NATS client gave up")
            if not attempt.done():
                raise TimeoutError(f"no answer in {options.patience.connect:g} s")
            attempt.result()
            return client
    except BaseException:
        await _undone(attempt, client)
        raise


async def _undone(attempt: asyncio.Task[None], client: Client) -> None:
    attempt.cancel()
    await asyncio.wait({attempt}, timeout=CLOSE_SECONDS)
    if attempt.done() and not attempt.cancelled():
        attempt.exception()
    await client.drop_idle_connections()


def _parameters(
    server: Server,
    options: NatsOptions,
    context: ssl.SSLContext,
    proof: Proof,
    client: Client,
    hear: Callable[[Exception], Any],
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
        "user_credentials": proof.credentials,
        "nkeys_seed_str": proof.seed,
    }


def _secrets(server: Server, options: NatsOptions, proof: Proof) -> Iterator[str]:
    """Yield what the server is told to let us in."""
    yield from (options.login.password, options.login.token, proof.seed or "")
    yield server.password or ("" if server.password is not None else server.user or "")
    yield from (line for line in str(proof.credentials or "").splitlines() if not line.startswith("-"))


def _refused(server: Server, error: Exception, secrets: Iterable[str]) -> BusError:
    """Say what keeps us out. The text is the server's, or the system's; a server may repeat what it was told."""
    text = str(error).removeprefix("nats: ").strip("'\" ") or type(error).__name__
    for secret in filter(None, secrets):
        text = text.replace(json.dumps(secret)[1:-1], MASK).replace(secret, MASK)
    hint = "akosha_agent_nats_url names the server; it is tried again for as long as it takes"
    if isinstance(error, AuthorizationError) or "authorization" in text.lower() or "authentication" in text.lower():
        hint = "check akosha_agent_nats_user, _token, _credentials_file or _nkey_file: the server does not know us"
    elif isinstance(error, ssl.SSLError):
        hint = "check akosha_agent_nats_ca_file and _certificate_file, and that the server speaks TLS"
    elif not isinstance(error, (NatsPyError, OSError)):
        what = f"NATS at {server.place} cannot be reached: what it says makes no sense"
        return unexpected(error, "connecting", what, hint="is that a NATS server?")
    return BusError(f"NATS at {server.place} cannot be reached: {text}", hint=hint, transient=True)
