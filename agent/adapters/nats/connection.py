"""Keeps a connection to NATS while the bus is open; detects a dead connection and replaces it.

    connect (every server, in random order) -> prepare -> up ---- lost, or a ping timed out ----> down -> pause -> ...

The pause is a random part of a limit that doubles with each consecutive failure up to `reconnect_max`, so that many
agents do not reconnect at the same moment. An attempt connects to one server and has a time limit; a failed attempt is
cleaned up.
"""

import asyncio
import json
import random
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import structlog
from nats.errors import AuthorizationError, Error as NatsPyError

from agent.adapters.nats import credentials
from agent.adapters.nats.client import CLOSE_SECONDS, Client
from agent.adapters.nats.credentials import LoginSecrets
from agent.adapters.nats.errors import guarded, translated, unexpected
from agent.adapters.nats.options import NatsOptions, Server
from agent.domain.errors import BusError, SettingsError, StateError
from agent.domain.plain_text import MASK

NEVER_SECONDS = 10**9
"""Disables a timer of nats-py that cannot be switched off; `NatsConnection` has its own."""

Prepare = Callable[[Client], Awaitable[None]]

SHORT_PING_TIMEOUT_SECONDS = 3.0
"""Ping timeout after sleep or a network change, when the connection is probably dead."""

_log = structlog.get_logger()


async def connect(url: str, options: NatsOptions, context: ssl.SSLContext, secrets: LoginSecrets) -> Client:
    """Connect to one server, in one attempt with a time limit. Raises a transient BusError with a hint."""
    server, client = Server.of(url), Client()
    failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def on_error(error: Exception) -> None:
        if not failed.done():
            failed.set_result(error)
        await client.on_error(error)

    async def open_connection() -> None:
        await client.connect(**_parameters(server, options, context, secrets, client, on_error))

    to_mask = tuple(_values_to_mask(server, options, secrets))
    attempt = asyncio.create_task(open_connection(), name="nats-connect")
    try:
        with guarded(lambda error: _connect_error(server, error, to_mask)):
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
        await _abort(attempt, client)
        raise


async def _abort(attempt: asyncio.Task[None], client: Client) -> None:
    attempt.cancel()
    await asyncio.wait({attempt}, timeout=CLOSE_SECONDS)
    if attempt.done() and not attempt.cancelled():
        attempt.exception()
    await client.drop_idle_connections()


def _parameters(
    server: Server,
    options: NatsOptions,
    context: ssl.SSLContext,
    secrets: LoginSecrets,
    client: Client,
    on_error: Callable[[Exception], Any],
) -> dict[str, Any]:
    login = options.login
    user, password, token = login.user or None, login.password or None, login.token or None
    if server.user is not None and server.password is not None:
        user, password = server.user, server.password
    elif server.user is not None:
        token = server.user
    return {
        "servers": [server.location],
        "name": options.name,
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": NEVER_SECONDS,  # one attempt only: nats-py would make another one after this time
        "connect_timeout": options.patience.connect,
        "ping_interval": NEVER_SECONDS,  # `NatsConnection` pings
        "error_cb": on_error,
        "closed_cb": client.on_close,
        "inbox_prefix": options.inbox_prefix,
        "tls": context,
        "tls_handshake_first": options.tls.first and server.scheme in ("nats", "tls"),
        "user": user,
        "password": password,
        "token": token,
        "user_credentials": secrets.credentials,
        "nkeys_seed_str": secrets.seed,
    }


def _values_to_mask(server: Server, options: NatsOptions, secrets: LoginSecrets) -> Iterator[str]:
    """Yield the secrets that are sent to the server."""
    yield from (options.login.password, options.login.token, secrets.seed or "")
    yield server.password or ("" if server.password is not None else server.user or "")
    yield from (line for line in str(secrets.credentials or "").splitlines() if not line.startswith("-"))


def _connect_error(server: Server, error: Exception, to_mask: Iterable[str]) -> BusError:
    """Return the error for a failed connection, with the text of the server or the system; its secrets are masked."""
    text = str(error).removeprefix("nats: ").strip("'\" ") or type(error).__name__
    for secret in filter(None, to_mask):
        text = text.replace(json.dumps(secret)[1:-1], MASK).replace(secret, MASK)
    hint = "check akosha_agent_nats_url, and that the server is running"
    if isinstance(error, AuthorizationError) or "authorization" in text.lower() or "authentication" in text.lower():
        hint = "check akosha_agent_nats_user, _token, _credentials_file or _nkey_file: the server refused the login"
    elif isinstance(error, ssl.SSLError):
        hint = "check akosha_agent_nats_ca_file and _certificate_file, and that the server speaks TLS"
    elif not isinstance(error, (NatsPyError, OSError)):
        message = f"NATS at {server.location} cannot be reached: its answer is not valid NATS"
        return unexpected(error, "connecting", message, hint="check that akosha_agent_nats_url names a NATS server.")
    return BusError(f"NATS at {server.location} cannot be reached: {text}", hint=hint, transient=True)


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    """Return when the event is set, or after `seconds`."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class NatsConnection:
    """Keeps a connection to one of the servers. `prepare` runs on each new connection; if it raises, the attempt fails.

    `changed` is called when the connection goes up or down, and after the first failed attempt.
    """

    def __init__(self, options: NatsOptions, *, prepare: Prepare, changed: Callable[[], None]) -> None:
        self._options, self._prepare, self._changed = options, prepare, changed
        self._client: Client | None = None
        self._connection_changed, self._suspected, self._attempted = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._skip_pause, self._ping_timeout = asyncio.Event(), options.patience.ping_timeout
        self._ping_deadline: asyncio.Timeout | None = None
        self._closed, self._renewals = False, 0
        self.last_error: BusError = BusError(f"NATS at {options.location}: connecting", transient=True)

    def start(self) -> None:
        """Start to connect in the background."""
        self._task = asyncio.create_task(self._run(), name="nats-connection")

    async def first_attempt(self, seconds: float) -> None:
        """Return after the first attempt, whether it succeeded or not, or after `seconds`."""
        await _wait_for(self._attempted, seconds)

    @property
    def is_up(self) -> bool:
        return self._client is not None and not self._client.lost.is_set()

    def client(self) -> Client:
        """Return the connection. Raises the last error, as a transient BusError, if there is none."""
        if self._client is None or self._client.lost.is_set():
            raise BusError(self.last_error.message, hint=self.last_error.hint, transient=True)
        return self._client

    async def wait(self) -> Client:
        """Wait for a connection and return it. Raises StateError if the bus is closed first."""
        while not self.is_up:
            if self._closed:
                raise StateError("the event bus is closed")
            await self._connection_changed.wait()
        return self.client()

    async def wait_until_lost(self, client: Client) -> None:
        """Return when this connection is lost or replaced."""
        while self.is_up and self._client is client:
            await self._connection_changed.wait()

    def suspect(self, client: Client) -> None:
        """Ping now, because a request on this connection was not answered."""
        if client is self._client:
            self._suspected.set()

    def check_connection(self) -> None:
        """Ping now, with a short timeout; without a connection, try to connect now."""
        self._skip_pause.set()
        self._suspected.set()
        self._ping_timeout = min(SHORT_PING_TIMEOUT_SECONDS, self._options.patience.ping_timeout)
        if self._ping_deadline is not None and not self._ping_deadline.expired():
            end = asyncio.get_running_loop().time() + self._ping_timeout
            self._ping_deadline.reschedule(min(self._ping_deadline.when() or end, end))

    def renew(self) -> None:
        """Replace the connection, or the current attempt, and read the files again. Returns at once."""
        self._renewals += 1
        self._skip_pause.set()
        if self._client is not None:
            self._client.mark_lost("credentials and certificates are read again")

    async def aclose(self) -> None:
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._connection_changed.set()

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                renewals = self._renewals
                with translated("connecting"):
                    client = await self._connect()
                if renewals != self._renewals:  # this attempt read the files before `renew` was called
                    await client.drop_idle_connections()
                    continue
            except BusError as error:
                self._down(error)
                failures += 1
            else:
                failures = 0
                await self._use(client)
            if await self._wait_before_retry(self._pause(failures)):
                failures = 0

    async def _wait_before_retry(self, seconds: float) -> bool:
        """Wait before the next attempt. Return True at once if the network or the files have changed meanwhile."""
        await _wait_for(self._skip_pause, seconds)
        skipped = self._skip_pause.is_set()
        self._skip_pause.clear()
        return skipped

    async def _connect(self) -> Client:
        """Return a prepared connection. Raises the BusError of the last server that was tried."""
        try:
            context, secrets = await asyncio.to_thread(credentials.load, self._options)
        except SettingsError as error:
            raise BusError(error.message, hint=error.hint, transient=True) from error
        last_error: BusError | None = None
        for url in random.sample(self._options.servers, len(self._options.servers)):
            try:
                client = await connect(url, self._options, context, secrets)
            except BusError as error:
                last_error = error
                continue
            try:
                await self._prepare(client)
            except BusError as error:
                last_error = error
                await client.drop_idle_connections()
            except BaseException:
                await client.drop_idle_connections()
                raise
            else:
                return client
        raise last_error or BusError("no NATS server is configured", transient=True)

    async def _use(self, client: Client) -> None:
        """Use the connection until it is lost or does not answer a ping."""
        self._client = client
        client.on_lost.append(self._suspected.set)
        self._notify()
        reason = "the agent closed it"
        try:
            reason = await self._watch(client)
        finally:
            client.mark_lost(reason)
            location = self._options.location
            self._down(BusError(f"NATS at {location}: the connection was lost: {reason}", transient=True))
            await client.drop_idle_connections()

    async def _watch(self, client: Client) -> str:
        """Ping regularly and return the reason when the connection is lost."""
        patience = self._options.patience
        while True:
            if not client.lost.is_set():
                await _wait_for(self._suspected, patience.ping)
            self._suspected.clear()
            limit, self._ping_timeout = self._ping_timeout, patience.ping_timeout
            try:
                if not client.lost.is_set():
                    async with asyncio.timeout(limit) as self._ping_deadline:
                        with translated("pinging"):
                            await client.flush(NEVER_SECONDS)  # the timeout is the surrounding one
                    self._skip_pause.clear()
            except TimeoutError:
                return f"no answer to a ping in {min(limit, self._ping_timeout):g} s"
            except BusError as error:
                return error.message
            finally:
                self._ping_deadline = None
            if client.lost.is_set() or not client.is_connected:
                return client.lost_reason or "the connection was closed"

    def _down(self, error: BusError) -> None:
        """Keep the error. Notify the listener of the first failure only: attempts continue, and their errors vary."""
        first = self._client is not None or not self._attempted.is_set()
        self._client, self.last_error = None, error
        if first:
            self._notify()
        else:
            _log.debug("nats_unreachable", reason=str(error))

    def _notify(self) -> None:
        self._attempted.set()
        changed, self._connection_changed = self._connection_changed, asyncio.Event()
        changed.set()
        self._changed()

    def _pause(self, failures: int) -> float:
        patience = self._options.patience
        limit = min(patience.reconnect * 2.0 ** min(max(failures - 1, 0), 20), patience.reconnect_max)
        return limit * random.uniform(0.1, 1.0)  # noqa: S311 - jitter, not a secret
