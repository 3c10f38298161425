"""The connection to NATS: one that works or none, for as long as the bus is open. A dead one is noticed and replaced.

    connect (every server, in random order) -> prepare -> up ---- lost, or silent to a ping ----> down -> pause -> ...

The pause doubles with each failure in a row, up to the longest, give or take a quarter: many agents must not come
back in step. An attempt to connect goes to one server and takes bounded time; what it left half done is undone.
"""

import asyncio
import json
import random
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import structlog
from nats.errors import AuthorizationError, Error as NatsPyError

from agent.adapters.nats import credentials
from agent.adapters.nats.client import CLOSE_SECONDS, Client
from agent.adapters.nats.credentials import Proof
from agent.adapters.nats.errors import guarded, translated, unexpected
from agent.adapters.nats.options import NatsOptions, Server
from agent.domain.errors import BusError, SettingsError, StateError
from agent.domain.plain_text import MASK
from agent.ports import Clock

NEVER_SECONDS = 10.0**9
"""nats-py's own pings are switched off: `Link` looks after the connection."""


async def connect(url: str, options: NatsOptions, context: ssl.SSLContext, proof: Proof) -> Client:
    """Connect to one server, in one attempt of bounded time. Raises BusError, transient: what is wrong and the cure."""
    server, client = Server.of(url), Client()
    failed: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def on_message(error: Exception) -> None:
        if not failed.done():
            failed.set_result(error)
        await client.on_error(error)

    async def begin() -> None:
        await client.connect(**_parameters(server, options, context, proof, client, on_message))

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
    on_message: Callable[[Exception], Any],
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
        "reconnect_time_wait": NEVER_SECONDS,  # one attempt: nats-py would make another, after this
        "connect_timeout": options.patience.connect,
        "ping_interval": NEVER_SECONDS,
        "error_cb": on_message,
        "closed_cb": client.on_close,
        "tls": context,
        "tls_handshake_first": options.tls.first and server.scheme in ("nats", "tls"),
        "user": user,
        "password": password,
        "token": token,
        "user_credentials": proof.credentials,
        "nkeys_seed_str": proof.seed,
    }


def _secrets(server: Server, options: NatsOptions, proof: Proof) -> Iterator[str]:
    """Yield the secrets that the server is sent."""
    yield from (options.login.password, options.login.token, proof.seed or "")
    yield server.password or ("" if server.password is not None else server.user or "")
    yield from (line for line in str(proof.credentials or "").splitlines() if not line.startswith("-"))


def _refused(server: Server, error: Exception, secrets: Iterable[str]) -> BusError:
    """Return why the connection failed, in the server's or the system's words, without secrets it may repeat."""
    text = str(error).removeprefix("nats: ").strip("'\" ") or type(error).__name__
    for secret in filter(None, secrets):
        text = text.replace(json.dumps(secret)[1:-1], MASK).replace(secret, MASK)
    hint = "akosha_agent_nats_url names the server; it is tried again for as long as it takes"
    if isinstance(error, AuthorizationError) or "authorization" in text.lower() or "authentication" in text.lower():
        hint = "check akosha_agent_nats_user, _token, _credentials_file or _nkey_file: the server does not know us"
    elif isinstance(error, ssl.SSLError):
        hint = "check akosha_agent_nats_ca_file and _certificate_file, and that the server speaks TLS"
    elif not isinstance(error, (NatsPyError, OSError)):
        what = f"NATS at {server.location} cannot be reached: what it says makes no sense"
        return unexpected(error, "connecting", what, hint="is that a NATS server?")
    return BusError(f"NATS at {server.location} cannot be reached: {text}", hint=hint, transient=True)


Prepare = Callable[[Client], Awaitable[None]]

NEVER = 10**9
"""`flush` has a limit of its own in seconds; ours is around it."""

ALIVE_SECONDS = 3.0
"""How long the answer to a ping is waited for where there is reason to think that there will be none."""

_log = structlog.get_logger()


class NatsConnection:
    """Keeps a connection to one of the servers. `prepare` makes it fit for use, or raises BusError.

    `changed` is called when the link goes up or down, or first learns why it is down.
    """

    def __init__(self, options: NatsOptions, clock: Clock, *, prepare: Prepare, changed: Callable[[], None]) -> None:
        self._options, self._clock, self._prepare, self._changed = options, clock, prepare, changed
        self._client: Client | None = None
        self._connection_changed, self._suspected, self._tried = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._doubted, self._patience = asyncio.Event(), options.patience.ping_timeout
        self._limit: asyncio.Timeout | None = None
        self._closed, self._renewals = False, 0
        self.trouble: BusError = BusError(f"NATS at {options.location} is being connected to", transient=True)

    def start(self) -> None:
        """Begin to connect, in the background."""
        self._task = asyncio.create_task(self._run(), name="nats-link")

    async def tried(self, seconds: float) -> None:
        """Return when the first attempt has come to an end, either way; after so many seconds at the latest."""
        timer = asyncio.create_task(self._clock.sleep(seconds), name="nats-first-try-timer")
        tried = asyncio.create_task(self._tried.wait(), name="nats-first-try")
        try:
            await asyncio.wait({timer, tried}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            tried.cancel()

    @property
    def is_up(self) -> bool:
        return self._client is not None and not self._client.lost.is_set()

    def client(self) -> Client:
        """Return the living connection. Raises BusError, transient, that says why there is none."""
        if self._client is None or self._client.lost.is_set():
            raise BusError(self.trouble.message, hint=self.trouble.hint, transient=True)
        return self._client

    async def wait(self) -> Client:
        """Return the living connection, once there is one. Raises StateError when the link is closed first."""
        while not self.is_up:
            if self._closed:
                raise StateError("the event bus is closed")
            await self._connection_changed.wait()
        return self.client()

    async def wait_beyond(self, client: Client) -> None:
        """Return when this connection is no longer the living one."""
        while self.is_up and self._client is client:
            await self._connection_changed.wait()

    def suspect(self, client: Client) -> None:
        """Something that needed an answer got none: look at once whether the connection lives."""
        if client is self._client:
            self._suspected.set()

    def check_connection(self) -> None:
        """Ping at once, and wait but shortly for the answer; where there is no connection, try again at once."""
        self._doubted.set()
        self._suspected.set()
        self._patience = min(ALIVE_SECONDS, self._options.patience.ping_timeout)
        if self._limit is not None and not self._limit.expired():
            end = asyncio.get_running_loop().time() + self._patience
            self._limit.reschedule(min(self._limit.when() or end, end))

    def renew(self) -> None:
        """Replace the connection, or the attempt to make one: files are read again. Returns at once."""
        self._renewals += 1
        self._doubted.set()
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
                if renewals != self._renewals:  # the files were read before
                    await client.drop_idle_connections()
                    continue
            except BusError as error:
                self._down(error)
                failures += 1
            else:
                failures = 0
                await self._use(client)
            if await self._rested(self._pause(failures)):
                failures = 0

    async def _rested(self, seconds: float) -> bool:
        """Wait before the next attempt; True, and at once, where the surroundings have changed since the last."""
        bells = {
            asyncio.create_task(self._clock.sleep(seconds), name="nats-pause"),
            asyncio.create_task(self._doubted.wait(), name="nats-doubted"),
        }
        try:
            await asyncio.wait(bells, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for bell in bells:
                bell.cancel()
        doubted = self._doubted.is_set()
        self._doubted.clear()
        return doubted

    async def _connect(self) -> Client:
        """Return a connection that is fit for use. Raises BusError: of the last server tried."""
        try:
            context, proof = await asyncio.to_thread(self._look_at_files)
        except SettingsError as error:
            raise BusError(error.message, hint=error.hint, transient=True) from error
        trouble: BusError | None = None
        for url in random.sample(self._options.servers, len(self._options.servers)):
            try:
                client = await connect(url, self._options, context, proof)
            except BusError as error:
                trouble = error
                continue
            try:
                await self._prepare(client)
            except BusError as error:
                trouble = error
                await client.drop_idle_connections()
            except BaseException:
                await client.drop_idle_connections()
                raise
            else:
                return client
        raise trouble or BusError("there is no NATS server to connect to", transient=True)

    def _look_at_files(self) -> tuple[ssl.SSLContext, Proof]:
        self._options.check()
        return self._options.tls.context(), credentials.read(self._options.login)

    async def _use(self, client: Client) -> None:
        """Keep the connection up until it is lost, or does not answer."""
        self._client = client
        self._announce()
        why = "it was closed on this side"
        try:
            why = await self._watched(client)
        finally:
            client.mark_lost(why)
            self._down(BusError(f"NATS at {self._options.location} was lost: {why}", transient=True))
            await client.drop_idle_connections()

    async def _watched(self, client: Client) -> str:
        """Return why the connection was lost."""
        patience = self._options.patience
        while True:
            bells = {
                asyncio.create_task(client.lost.wait(), name="nats-lost"),
                asyncio.create_task(self._suspected.wait(), name="nats-suspected"),
                asyncio.create_task(self._clock.sleep(patience.ping), name="nats-ping-timer"),
            }
            try:
                await asyncio.wait(bells, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for bell in bells:
                    bell.cancel()
            self._suspected.clear()
            limit, self._patience = self._patience, patience.ping_timeout
            try:
                if not client.lost.is_set():
                    async with asyncio.timeout(limit) as self._limit:
                        with translated("pinging", client):
                            await client.flush(NEVER)
                    self._doubted.clear()
            except TimeoutError:
                return f"no answer to a ping in {min(limit, self._patience):g} s"
            except BusError as error:
                return error.message
            finally:
                self._limit = None
            if client.lost.is_set() or not client.is_connected:
                return client.lost_reason or "the connection was closed"

    def _down(self, trouble: BusError) -> None:
        """Remember why. The listener hears of the first time only: attempts go on, and their reasons vary."""
        news = self._client is not None or not self._tried.is_set()
        self._client, self.trouble = None, trouble
        if news:
            self._announce()
        else:
            _log.debug("nats_unreachable", reason=str(trouble))

    def _announce(self) -> None:
        self._tried.set()
        turned, self._connection_changed = self._connection_changed, asyncio.Event()
        turned.set()
        self._changed()

    def _pause(self, failures: int) -> float:
        patience = self._options.patience
        pause = min(patience.reconnect * 2.0 ** min(max(failures - 1, 0), 20), patience.reconnect_max)
        return pause * random.uniform(0.75, 1.25)  # noqa: S311 - to spread, not to hide
