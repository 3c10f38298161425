"""Examines NATS servers for `doctor`: login, JetStream, the stream, and the user's permissions.

No event is published: the server reports the permissions on request. If that does not show whether the stream gets the
system's results, a message is published that the stream refuses to store.
"""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from nats.errors import Error as NatsPyError
from nats.js.api import AccountInfo, Header

from agent.adapters.nats import credentials
from agent.adapters.nats.client import Client
from agent.adapters.nats.connection import connect
from agent.adapters.nats.credentials import LoginSecrets
from agent.adapters.nats.errors import Denied, NoJetStream, NoJetStreamInAccount, preserve_cancellation, translated
from agent.adapters.nats.options import NatsOptions, Server
from agent.adapters.nats.stream import STREAM, Stream
from agent.adapters.nats.stream_settings import Lack, cure
from agent.domain.errors import BusError
from agent.domain.naming import request_subject, session_subject, subject_matches

USER_INFO_SUBJECT = "$SYS.REQ.USER.INFO"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """Permissions as subject patterns. `allow` None: everything except what `deny` lists."""

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()

    def permit(self, subject: str) -> bool:
        allowed = self.allow is None or any(subject_matches(pattern, subject) for pattern in self.allow)
        return allowed and not any(subject_matches(pattern, subject) for pattern in self.deny)


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsFacts:
    """Facts about one server. `refused`: the error of the connection; then nothing else is known.

    `jetstream`, `stream`: the error, None if they work. `has_stream` is false if the stream does not exist yet, None if
    the user may not examine it, and it can be reached nevertheless or this is unknown.
    `lacks`: what the stream lacks, and `cure` the commands. `publish`, `subscribe`: None if the server does not report
    them.
    """

    location: str
    version: str = ""
    refused: BusError | None = None
    jetstream: BusError | None = None
    has_stream: bool | None = False
    stream: BusError | None = None
    lacks: tuple[str, ...] = ()
    cure: str = ""
    publish: Rights | None = None
    subscribe: Rights | None = None


async def examine(options: NatsOptions, system: str) -> list[NatsFacts]:
    """Examine all servers in parallel, for the agent of a system. Raises SettingsError if a file is invalid."""
    context, secrets = await asyncio.to_thread(credentials.load, options)
    return await asyncio.gather(*(_examine_server(url, options, context, secrets, system) for url in options.servers))


async def _examine_server(
    url: str, options: NatsOptions, context: ssl.SSLContext, secrets: LoginSecrets, system: str
) -> NatsFacts:
    location = Server.of(url).location
    try:
        client = await connect(url, options, context, secrets)
    except BusError as error:
        return NatsFacts(location=location, refused=error)
    try:
        with translated(f"examining NATS at {location}"):
            return await _examine_connected(location, client, options, system)
    except BusError as error:
        return NatsFacts(location=location, refused=error)
    finally:
        await client.drop_idle_connections()


def _version(client: Client) -> str:
    """Return the version that the server reports; nats-py formats it as `<nats server v2.15.1>`."""
    return str(client.connected_server_version).removeprefix("<nats server v").removesuffix(">")


async def _examine_connected(location: str, client: Client, options: NatsOptions, system: str) -> NatsFacts:
    seconds = options.patience.connect
    publish, subscribe = await _rights(client, seconds)
    if client.inbox_denied:
        error = BusError(
            f"the agent cannot receive answers: {client.inbox_denied}",
            hint=f"allow this user to subscribe to {options.inbox_prefix}.>",
        )
        return NatsFacts(location=location, version=_version(client), jetstream=error)
    jetstream: BusError | None = None
    stream: BusError | None = None
    has_stream: bool | None = False
    lacks: list[Lack] | None = None
    try:
        with translated("examining the stream"):
            lacks = await Stream(options.limits).examine(client, seconds)
        has_stream = lacks is not None
        if not has_stream:
            with translated("asking JetStream for the account"):
                account = await client.jetstream(timeout=seconds).account_info()
            stream = _space_error(account, options.limits.max_bytes)
    except (NoJetStream, NoJetStreamInAccount) as error:
        if await _reaches_stream(client, system, seconds):
            has_stream = None
        else:
            jetstream = error
    except Denied:
        has_stream = None
    except BusError as error:
        stream = error
    if has_stream is None:
        stream = await _refusal_of_results(client, system, seconds)
    return NatsFacts(
        location=location,
        version=_version(client),
        jetstream=jetstream,
        has_stream=has_stream,
        stream=stream,
        lacks=tuple(lack.found for lack in lacks or ()),
        cure=cure(STREAM, lacks) if lacks else "",
        publish=publish,
        subscribe=subscribe,
    )


async def _reaches_stream(client: Client, system: str, seconds: float) -> bool:
    """Return whether the stream answers a direct get: through imports of this account, or as the hub of a leaf node."""
    try:
        with translated("reading the newest event"):
            await client.request(f"$JS.API.DIRECT.GET.{STREAM}.{session_subject(system)}", timeout=seconds)
    except BusError:
        return False
    return True


async def _refusal_of_results(client: Client, system: str, seconds: float) -> BusError | None:
    """Return an error if no stream answers on the system's subjects, else None. Permissions are reported elsewhere.

    The message is for a stream that does not exist, so that none stores it, and on a subject that no program uses.
    """
    headers = {Header.EXPECTED_STREAM.value: "none"}
    try:
        with translated("publishing a result"):
            await client.request(request_subject(system, "doctor"), timeout=seconds, headers=headers)
    except Denied:
        return None
    except BusError as error:
        hint = f"import akosha.sync.{system}.> from the account that has the stream {STREAM}, or create it"
        return BusError(f"no stream stores results: {error.message}", hint=hint)
    return None


def _space_error(account: AccountInfo, max_bytes: int) -> BusError | None:
    """Return an error if the account's limits do not allow a new stream of this size, else None."""
    tier = (account.tiers or {}).get("R1")
    limits, streams = (tier.limits, tier.streams) if tier is not None else (account.limits, account.streams)
    cannot = f"the stream {STREAM} cannot be created"
    if 0 < limits.max_streams <= streams:
        return BusError(
            f"{cannot}: the account has {streams} of {limits.max_streams} streams",
            hint="ask the server's operator to raise max_streams of the account, or remove a stream",
        )
    storage_limits = (limit for limit in (limits.max_storage, limits.storage_max_stream_bytes) if limit > 0)
    limit = min(storage_limits, default=max_bytes)
    if limit < max_bytes:
        return BusError(
            f"{cannot}: it needs {max_bytes} bytes on disk, and the account has {limit}",
            hint="ask the server's operator to raise the account's storage, or create a smaller stream of that name",
        )
    return None


async def _rights(client: Client, seconds: float) -> tuple[Rights | None, Rights | None]:
    try:
        with preserve_cancellation():
            answer = await client.request(USER_INFO_SUBJECT, b"", timeout=min(seconds, 2.0))
        permissions = orjson.loads(answer.data)["data"].get("permissions") or {}
        return _side_rights(permissions.get("publish")), _side_rights(permissions.get("subscribe"))
    except (NatsPyError, OSError, TimeoutError, ValueError, KeyError, TypeError, AttributeError):
        return None, None  # an older server, or a user who may not ask


def _side_rights(permissions: dict[str, Sequence[str]] | None) -> Rights:
    allow = (permissions or {}).get("allow")
    return Rights(
        allow=None if allow is None else tuple(map(str, allow)),
        deny=tuple(map(str, (permissions or {}).get("deny") or ())),
    )
