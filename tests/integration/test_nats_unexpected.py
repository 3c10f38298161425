"""Any exception of nats-py and any answer of a server becomes a BusError, and the bus continues."""

import asyncio
from contextlib import suppress

import pytest
from nats.aio.client import Client as NatsPy
from nats.aio.subscription import Subscription
from nats.js.client import JetStreamContext
from nats.js.manager import JetStreamManager
from structlog.testing import capture_logs

from agent.adapters.nats import consumer as consumer_module
from agent.adapters.nats.errors import translated
from agent.adapters.nats.server_facts import examine
from agent.domain.errors import BusError, StateError
from tests.support.nats_bus import (
    SECONDS,
    RecordingHandler,
    ended,
    opened_buses,
    options,
    progress,
    pub,
    publish_until_accepted,
    recording_server,
    send_lines,
    until,
)

pytest_plugins = ["tests.support.servers.fixtures"]

CALLS = {
    "connect": (NatsPy, "connect"),
    "flush": (NatsPy, "flush"),
    "close": (NatsPy, "close"),
    "subscribe": (NatsPy, "subscribe"),
    "publish": (NatsPy, "publish"),
    "request": (NatsPy, "request"),
    "put": (JetStreamContext, "publish"),
    "unsubscribe": (Subscription, "unsubscribe"),
    "stream info": (JetStreamManager, "stream_info"),
    "add stream": (JetStreamManager, "add_stream"),
    "consumer info": (JetStreamManager, "consumer_info"),
    "add consumer": (JetStreamManager, "add_consumer"),
    "delete consumer": (JetStreamManager, "delete_consumer"),
}


class Odd(Exception):  # noqa: N818 - deliberately unconventional
    """An exception that no library raises."""


@pytest.mark.parametrize(
    ("call", "error"),
    [
        *((call, Odd("canary")) for call in CALLS),
        ("put", AssertionError()),
        ("flush", IndexError()),
        ("request", KeyError()),
    ],
    ids=str,
)
async def test_the_bus_survives_any_exception_of_the_library(fresh_nats, monkeypatch, call, error):
    """The call fails three times from the first connection on, and once on the next connection."""
    cls, name = CALLS[call]
    original, left = getattr(cls, name), 3

    async def raising(*args, **kwargs):
        nonlocal left
        if left:
            left -= 1
            raise error
        return await original(*args, **kwargs)

    async def refuse(event) -> None:
        raise ValueError(event.id)

    monkeypatch.setattr(cls, name, raising)
    monkeypatch.setattr(consumer_module, "FIRST_PAUSE_SECONDS", 0.01)
    kept, ephemeral = RecordingHandler(refuse), RecordingHandler()
    patience = {"ack_wait": 0.3, "ping": 0.05}
    async with opened_buses(fresh_nats.url, ready=False, patience=patience) as buses:
        await buses.durable.consume("akosha.session.>", kept, durable="d")
        await buses.volatile.subscribe("akosha.progress.*", ephemeral)
        await publish_until_accepted(buses.durable, ended(1))
        await send_lines(fresh_nats, pub(b"akosha.session.mac.ended", b"junk"))
        assert await kept.wait_for_event("e-1")
        left = 1
        await buses.durable.reset_client()
        await publish_until_accepted(buses.durable, ended(2))
        assert await kept.wait_for_event("e-2")
        await publish_until_accepted(buses.volatile, progress(3))
        async with asyncio.timeout(SECONDS):
            await buses.durable.wait_until_ready()
        assert not buses._connection._task.done()


@pytest.mark.parametrize(
    ("call", "operations"), [("put", ["publishing"]), ("publish", ["publishing", "looking"])], ids=["put", "publish"]
)
async def test_an_unknown_error_of_publishing_is_described_and_logged_once(fresh_nats, monkeypatch, call, operations):
    class Strange(Exception):  # noqa: N818
        pass

    Strange.__name__ = f"Strange{call}"

    async def raising(*_args, **_kwargs):
        raise Strange("it may quote a secret")

    async with opened_buses(fresh_nats.url) as buses:
        with capture_logs() as logs:
            with monkeypatch.context() as broken:
                broken.setattr(*CALLS[call], raising)
                for _ in range(3):
                    with pytest.raises(BusError) as caught:
                        await buses.durable.publish(ended(1))
            assert (caught.value.transient, caught.value.unexpected) == (True, f"Strange{call} in {operations[-1]}")
            assert "secret" not in str(caught.value)
            assert isinstance(caught.value.__cause__, Strange)
        assert [line["operation"] for line in logs if line["event"] == "unexpected_error"] == operations
        await publish_until_accepted(buses.durable, ended(2))


async def test_base_exceptions_and_errors_of_the_agent_are_not_translated():
    for error in (KeyboardInterrupt(), SystemExit(1), asyncio.CancelledError(), StateError("x"), BusError("y")):
        with pytest.raises(type(error)) as caught, translated("anything"):
            raise error
        assert caught.value is error


async def test_a_connection_whose_flusher_has_ended_is_replaced(fresh_nats):
    """Pings do not detect this, because nats-py answers them itself."""
    async with opened_buses(fresh_nats.url, patience={"ping": 0.05}) as buses:
        client = buses._connection.client()
        client._flusher_task.cancel()
        async with asyncio.timeout(SECONDS):
            await client.lost.wait()
        await until(lambda: buses._connection.is_up and buses._connection.client() is not client)
        await publish_until_accepted(buses.durable, ended(1))


INFO = b'INFO {"server_id":"x","version":"2.10.0","headers":true,"max_payload":%b}\r\n'
GOOD = INFO % b"1048576"
INVALID_SERVERS = {
    "nothing": (b"", b""),
    "http": (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", b""),
    "ssh": (b"SSH-2.0-OpenSSH_9.6\r\n", b""),
    "binary": (bytes(range(256)) * 8, b""),
    "a line without an end": (b"INFO " + b"x" * 200_000, b""),
    "no JSON": (b"INFO {nonsense\r\n", b""),
    "another JSON": (b"INFO [1, 2]\r\n", b"PONG\r\n"),
    "odd types": (b'INFO {"server_id":5,"version":[],"headers":"no","max_payload":{},"nonce":7}\r\n', b"PONG\r\n"),
    "a version that is none": (b'INFO {"version":"new","headers":true,"max_payload":1048576}\r\n', b"PONG\r\n"),
    "no limit": (INFO % b'"x"', b"PONG\r\n"),
    "a negative limit": (INFO % b"-1", b"PONG\r\n"),
    "an error": (GOOD, b"-ERR 'Go Away'\r\n"),
    "garbage after the greeting": (GOOD, b"PONG\r\n\x00\xff garbage\r\n"),
    "a message for nobody": (GOOD, b"PONG\r\nMSG _INBOX.x 99 5\r\nhello\r\n"),
    "a message of a negative size": (GOOD, b"PONG\r\nMSG a 1 -5\r\n\r\n"),
    "headers that are none": (GOOD, b"PONG\r\nHMSG a 1 4 8\r\nXXXXYYYY\r\n"),
    "silence": (GOOD, b"PONG\r\n"),
}


@pytest.mark.parametrize("login", [False, True], ids=["anonymous", "nkey"])
@pytest.mark.parametrize("what", INVALID_SERVERS)
async def test_a_server_that_does_not_speak_nats_is_a_transient_error(what, login):
    greeting, then = INVALID_SERVERS[what]
    async with recording_server(greeting, then=then) as (address, _):
        how = {"patience": {"connect": 0.2, "ping": 0.1, "ping_timeout": 0.1}}
        async with opened_buses(f"nats://{address}", ready=False, **how) as buses:
            await buses._connection.first_attempt(SECONDS)
            for _ in range(3):
                with pytest.raises(BusError) as caught:
                    await buses.durable.publish(ended(1))
                assert caught.value.transient
            assert not buses.durable.state.ready
            assert not buses._connection._task.done()
        if login:
            (facts,) = await examine(options(f"nats://{address}", **how), "laptop")
            assert facts.refused or facts.jetstream or facts.stream


async def test_a_server_that_closes_each_connection_at_once_is_a_bus_error_and_retried():
    count = 0

    async def close(_reader, writer) -> None:
        nonlocal count
        count += 1
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    try:
        async with opened_buses(f"nats://{host}:{port}", ready=False) as buses:
            await until(lambda: count > 5)
            with pytest.raises(BusError):
                await buses.durable.publish(ended(1))
            assert not buses._connection._task.done()
    finally:
        server.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await server.wait_closed()
