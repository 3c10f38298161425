"""Failures of the NATS connection: each one is followed by a new connection, and the old one is not leaked."""

import asyncio
import gc
import shutil

import pytest
from nats.errors import NoRespondersError

from agent.adapters.nats import Login
from agent.domain.errors import StateError
from tests.support.nats_bus import SECONDS, RecordingHandler, ended, opened_bus, recording_server, sockets, until
from tests.support.servers.nats import connected, running_nats
from tests.support.servers.nats_credentials import PLAIN_WEBSOCKET, NKey, Operator, nkey_config

pytest_plugins = ["tests.support.servers.fixtures"]

KEY = NKey()
websocket = pytest.mark.filterwarnings("ignore:parameter 'timeout':DeprecationWarning")


@pytest.mark.parametrize("text", ["", "garbage", KEY.seed[:-4]], ids=["empty", "garbage", "cut"])
async def test_an_invalid_nkey_file_is_reported_until_it_is_corrected(tmp_path, text):
    file = tmp_path / "agent.nk"
    file.write_text(text)
    with running_nats(tmp_path / "nats", config=nkey_config(KEY)) as server:
        async with opened_bus(server.url, ready=False, login=Login(nkey_file=file)) as bus:
            await bus._connection.first_attempt(SECONDS)
            assert not (bus._connection._task.done() and bus._connection._task.exception())
            assert "agent_nats_nkey_file" in bus.state.detail
            file.write_text(KEY.seed)
            async with asyncio.timeout(SECONDS):
                await bus.wait_until_ready()


OPERATOR = Operator()
GOOD = OPERATOR.credentials()
SEED_FIRST = GOOD[GOOD.index("-----BEGIN USER") :]


@pytest.mark.parametrize(
    "text",
    ["", "garbage", GOOD[:200], SEED_FIRST],
    ids=["empty", "garbage", "cut", "without-jwt"],
)
async def test_an_invalid_credentials_file_is_reported_until_it_is_corrected(tmp_path, text):
    file = tmp_path / "agent.creds"
    file.write_text(text)
    with running_nats(tmp_path / "nats", config=OPERATOR.config) as server:
        async with opened_bus(server.url, ready=False, login=Login(credentials_file=file)) as bus:
            await bus._connection.first_attempt(SECONDS)
            assert not (bus._connection._task.done() and bus._connection._task.exception())
            assert "agent_nats_credentials_file" in bus.state.detail
            file.write_text(GOOD)
            async with asyncio.timeout(SECONDS):
                await bus.wait_until_ready()


@pytest.mark.parametrize(
    "greeting",
    [b"INFO []\r\n", b"INFO 5\r\n", b'INFO {"max_payload": "x"}\r\n', b'INFO {"nonce": 5}\r\n'],
)
async def test_an_invalid_greeting_is_a_connection_failure(greeting):
    async with recording_server(greeting, then=b"PONG\r\n") as (address, _):
        login = Login(nkey_seed=KEY.seed)
        async with opened_bus(f"nats://{address}", ready=False, patience={"connect": 0.2}, login=login) as bus:
            await bus._connection.first_attempt(SECONDS)
            assert not (bus._connection._task.done() and bus._connection._task.exception())
            assert not bus.state.ready
            assert ": connecting" not in bus.state.detail


async def test_a_subscription_stopped_while_it_starts_does_not_stop_others(fresh_nats):
    async with opened_bus(fresh_nats.url, patience={"connect": 0.3, "ping": 0.2, "ping_timeout": 2}) as bus:
        fresh_nats.pause()
        beginning = asyncio.create_task(bus.subscribe("akosha.progress.*", RecordingHandler()))
        await until(lambda: bus._connection.client()._pongs)
        await bus._subscriptions[0].stop()
        fresh_nats.resume()
        await beginning
        inbox = RecordingHandler()
        await bus.subscribe("akosha.session.>", inbox, durable="d")
        async with opened_bus(fresh_nats.url) as other:
            await other.publish(ended(1))
        assert await inbox.wait_for_count(1) == ["e-1"]


async def test_an_ephemeral_subscription_gets_a_nacked_event_again_after_a_reconnection(fresh_nats):
    async def nak(message) -> None:
        await message.nak(2)

    inbox = RecordingHandler(nak)
    async with opened_bus(fresh_nats.url) as bus:
        await bus.subscribe("akosha.session.>", inbox)
        await bus.publish(ended(1))
        assert await inbox.wait_for_count(1) == ["e-1"]
        lost = bus._connection.client().lost
        fresh_nats.restart()
        await lost.wait()
        assert await inbox.wait_for_count(2) == ["e-1", "e-1"]


async def test_a_subscription_continues_after_the_stream_is_restored_from_a_backup(fresh_nats, tmp_path):
    inbox = RecordingHandler()
    async with opened_bus(fresh_nats.url) as bus:
        subscription = await bus.subscribe("akosha.session.>", inbox)
        await bus.publish(ended(1))
        await until(lambda: subscription.consumer.seen == 1)
        lost = bus._connection.client().lost
        fresh_nats.stop()
        await lost.wait()
        shutil.copytree(fresh_nats.store, tmp_path / "backup")
        fresh_nats.start()
        await bus.wait_until_ready()
        for number in range(2, 6):
            await bus.publish(ended(number))
        await until(lambda: subscription.consumer.seen == 5)
        lost = bus._connection.client().lost
        fresh_nats.kill()
        await lost.wait()
        fresh_nats.wipe()
        shutil.copytree(tmp_path / "backup", fresh_nats.store)
        fresh_nats.start()
        await bus.wait_until_ready()
        await bus.publish(ended(6))
        assert await inbox.wait_for_event("e-6")


async def test_requests_are_answered_after_a_reply_that_is_too_long(fresh_nats):
    answers = [b"x" * 2**21, b"fine"]

    async def answer(question: bytes) -> bytes:
        return answers.pop(0)

    async with opened_bus(fresh_nats.url) as bus, connected(fresh_nats.url) as other:
        await bus.respond("akosha.agent.mac.status", answer)
        await other.publish("akosha.agent.mac.status", b"?", reply="nobody")
        await other.flush()
        await until(lambda: len(answers) == 1)
        assert (await other.request("akosha.agent.mac.status", b"?", timeout=60)).data == b"fine"


async def test_a_stopped_responder_gets_no_request(fresh_nats):
    async with opened_bus(fresh_nats.url) as bus, connected(fresh_nats.url) as other:
        answering = await bus.respond("akosha.agent.mac.status", lambda question: asyncio.sleep(0, b""))
        await answering.stop()
        await bus._connection.client().flush()
        with pytest.raises(NoRespondersError):
            await other.request("akosha.agent.mac.status", b"?", timeout=60)


async def test_closing_the_bus_ends_a_waiting_publish_with_an_error():
    async with opened_bus("nats://127.0.0.1:9", wait_for_connection=True, ready=False) as bus:
        publishing = asyncio.create_task(bus.publish(ended(1)))
        await asyncio.sleep(0)
    try:
        with pytest.raises(StateError, match="closed"):
            async with asyncio.timeout(60):
                await publishing
    finally:
        publishing.cancel()


@websocket
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_websocket_to_a_server_that_hangs_leaves_no_socket(tmp_path):
    with running_nats(tmp_path, websocket=PLAIN_WEBSOCKET) as server:
        before = sockets()
        async with opened_bus(server.websocket_url, patience={"ping": 0.1, "ping_timeout": 0.1}) as bus:
            client = bus._connection.client()
            server.pause()
            await client.lost.wait()
        assert sockets() <= before
    gc.collect()  # aiohttp warns about the broken connection here, not in the next test


async def test_a_server_that_hangs_leaves_no_task(fresh_nats):
    before = asyncio.all_tasks()
    async with opened_bus(fresh_nats.url, patience={"ping": 0.1, "ping_timeout": 0.1}) as bus:
        client = bus._connection.client()
        fresh_nats.pause()
        for _ in range(10):
            await client._send_command(b"PUB x 1048576\r\n" + bytes(2**20) + b"\r\n")
        await client.lost.wait()
    await until(lambda: asyncio.all_tasks() <= before)
