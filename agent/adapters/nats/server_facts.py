"""A look at a NATS server: does it let us in, does JetStream keep our events, may we say and hear what we need to?

Nothing is published on a subject that anybody acts on: the server tells a user's permissions when it is asked.
"""

import asyncio
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

import orjson
from nats.errors import Error as NatsPyError
from nats.js.api import AccountInfo

from agent.adapters.nats import credentials
from agent.adapters.nats.client import Client
from agent.adapters.nats.connection import connect
from agent.adapters.nats.credentials import Proof
from agent.adapters.nats.errors import kept_cancellable, translated
from agent.adapters.nats.options import NatsOptions, Server
from agent.adapters.nats.stream import STREAM, Stream
from agent.domain.errors import BusError
from agent.domain.naming import subject_matches

WHO_AM_I = "$SYS.REQ.USER.INFO"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What a user may do, as patterns; `allow` None: all but what is denied."""

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()

    def permit(self, subject: str) -> bool:
        allowed = self.allow is None or any(subject_matches(pattern, subject) for pattern in self.allow)
        return allowed and not any(subject_matches(pattern, subject) for pattern in self.deny)


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsFacts:
    """Of one server. `refused`: why it does not let us in; then nothing else is known.

    `jetstream`, `stream`: what is wrong with them, None where nothing is; `has_stream` is false where it will be made.
    `publish`, `subscribe`: None where the server does not tell them.
    """

    location: str
    version: str = ""
    refused: BusError | None = None
    jetstream: BusError | None = None
    has_stream: bool = False
    stream: BusError | None = None
    publish: Rights | None = None
    subscribe: Rights | None = None


async def examine(options: NatsOptions) -> list[NatsFacts]:
    """Look at each of the servers, all at once. Raises SettingsError for invalid files."""
    context, proof = await asyncio.to_thread(_look_at_files, options)
    return await asyncio.gather(*(_one(url, options, context, proof) for url in options.servers))


def _look_at_files(options: NatsOptions) -> tuple[ssl.SSLContext, Proof]:
    options.check()
    return options.tls.context(), credentials.read(options.login)


async def _one(url: str, options: NatsOptions, context: ssl.SSLContext, proof: Proof) -> NatsFacts:
    location = Server.of(url).location
    try:
        client = await connect(url, options, context, proof)
    except BusError as error:
        return NatsFacts(location=location, refused=error)
    try:
        with translated(f"looking at NATS at {location}", client):
            return await _inside(location, client, options)
    except BusError as error:
        return NatsFacts(location=location, refused=error)
    finally:
        await client.drop_idle_connections()


def _version(client: Client) -> str:
    """Return the server's version as it reports it; the library's text of it is `<nats server v2.15.1>`."""
    return str(client.connected_server_version).removeprefix("<nats server v").removesuffix(">")


async def _inside(location: str, client: Client, options: NatsOptions) -> NatsFacts:
    seconds = options.patience.connect
    client.refused = ""
    publish, subscribe = await _rights(client, seconds)
    if publish is None and "subscription" in client.refused.lower():
        deaf = BusError(f"no answer comes to us: {client.refused}", hint="allow this user to subscribe to _INBOX.>")
        return NatsFacts(location=location, version=_version(client), jetstream=deaf)
    jetstream: BusError | None = None
    stream: BusError | None = None
    there = False
    try:
        with translated("asking for JetStream", client):
            account = await client.jetstream(timeout=seconds).account_info()
    except BusError as error:
        jetstream = error
    else:
        try:
            with translated("looking at the stream", client):
                there = await Stream(options.limits).fits(client, seconds)
                stream = None if there else _no_room(account, options.limits.max_bytes)
        except BusError as error:
            stream = error
    return NatsFacts(
        location=location,
        version=_version(client),
        jetstream=jetstream,
        has_stream=there,
        stream=stream,
        publish=publish,
        subscribe=subscribe,
    )


def _no_room(account: AccountInfo, max_bytes: int) -> BusError | None:
    """Return why the account has no room for a new stream of this size; None where it has, as far as it tells."""
    tier = (account.tiers or {}).get("R1")
    limits, streams = (tier.limits, tier.streams) if tier is not None else (account.limits, account.streams)
    cannot = f"the stream {STREAM} cannot be made"
    if 0 < limits.max_streams <= streams:
        return BusError(
            f"{cannot}: the account has {streams} of {limits.max_streams} streams",
            hint="have the server's operator raise max_streams of the account, or remove a stream",
        )
    most = min((most for most in (limits.max_storage, limits.storage_max_stream_bytes) if most > 0), default=max_bytes)
    if most < max_bytes:
        return BusError(
            f"{cannot}: it takes {max_bytes} bytes on disk, and the account has {most}",
            hint="have the server's operator raise the storage of the account, or make a smaller stream of that name",
        )
    return None


async def _rights(client: Client, seconds: float) -> tuple[Rights | None, Rights | None]:
    try:
        with kept_cancellable():
            answer = await client.request(WHO_AM_I, b"", timeout=min(seconds, 2.0))
        permissions = orjson.loads(answer.data)["data"].get("permissions") or {}
        return _side(permissions.get("publish")), _side(permissions.get("subscribe"))
    except (NatsPyError, OSError, TimeoutError, ValueError, KeyError, TypeError, AttributeError):
        return None, None  # an older server, or one that does not let this user ask


def _side(permissions: dict[str, Sequence[str]] | None) -> Rights:
    allow = (permissions or {}).get("allow")
    return Rights(
        allow=None if allow is None else tuple(map(str, allow)),
        deny=tuple(map(str, (permissions or {}).get("deny") or ())),
    )
