"""Failures of the NATS connection: each one is followed by a new connection, and the old one is not leaked."""

import asyncio
import gc
import shutil

import pytest
from nats.errors import NoRespondersError

from agent.adapters.nats import Login
from agent.domain.errors import StateError
from tests.support.nats_bus import SECONDS, RecordingHandler, ended, opened_buses, recording_server, sockets, until
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
        async with opened_buses(server.url, ready=False, login=Login(nkey_file=file)) as buses:
            await buses._connection.first_attempt(SECONDS)
            assert not (buses._connection._task.done() and buses._connection._task.exception())
            assert "agent_nats_nkey_file" in buses.durable.state.detail
            file.write_text(KEY.seed)
            async with asyncio.timeout(SECONDS):
                await buses.durable.wait_until_ready()


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
        async with opened_buses(server.url, ready=False, login=Login(credentials_file=file)) as buses:
            await buses._connection.first_attempt(SECONDS)
            assert not (buses._connection._task.done() and buses._connection._task.exception())
            assert "agent_nats_credentials_file" in buses.durable.state.detail
            file.write_text(GOOD)
            async with asyncio.timeout(SECONDS):
                await buses.durable.wait_until_ready()


@pytest.mark.parametrize(
    "greeting",
    [b"INFO []\r\n", b"INFO 5\r\n", b'INFO {"max_payload": "x"}\r\n', b'INFO {"nonce": 5}\r\n'],
)
async def test_an_invalid_greeting_is_a_connection_failure(greeting):
    async with recording_server(greeting, then=b"PONG\r\n") as (address, _):
        login = Login(nkey_seed=KEY.seed)
        async with opened_buses(f"nats://{address}", ready=False, patience={"connect": 0.2}, login=login) as buses:
            await buses._connection.first_attempt(SECONDS)
            assert not (buses._connection._task.done() and buses._connection._task.exception())
            assert not buses.durable.state.ready
            assert ": connecting" not in buses.durable.state.detail


async def test_a_subscription_stopped_while_it_starts_does_not_stop_others(fresh_nats):
    async with opened_buses(fresh_nats.url, patience={"connect": 0.3, "ping": 0.2, "ping_timeout": 2}) as buses:
        fresh_nats.pause()
        beginning = asyncio.create_task(buses.volatile.subscribe("akosha.progress.*", RecordingHandler()))
        await until(lambda: buses._connection.client()._pongs)
        beginning.cancel()
        await asyncio.wait({beginning})
        fresh_nats.resume()
        inbox = RecordingHandler()
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        async with opened_buses(fresh_nats.url) as other:
            await other.durable.publish(ended(1))
        assert await inbox.wait_for_count(1) == ["e-1"]


async def test_a_consumer_continues_after_the_stream_is_restored_from_a_backup(fresh_nats, tmp_path):
    inbox = RecordingHandler()
    async with opened_buses(fresh_nats.url, patience={"ack_wait": 1}) as buses:
        await buses.durable.consume("akosha.session.>", inbox, durable="d")
        await buses.durable.publish(ended(1))
        await inbox.wait_for_count(1)
        lost = buses._connection.client().lost
        fresh_nats.stop()
        await lost.wait()
        shutil.copytree(fresh_nats.store, tmp_path / "backup")
        fresh_nats.start()
        await buses.durable.wait_until_ready()
        for number in range(2, 6):
            await buses.durable.publish(ended(number))
        await inbox.wait_for_count(5)
        lost = buses._connection.client().lost
        fresh_nats.kill()
        await lost.wait()
        fresh_nats.wipe()
        shutil.copytree(tmp_path / "backup", fresh_nats.store)
        fresh_nats.start()
        await buses.durable.wait_until_ready()
        await buses.durable.publish(ended(6))
        assert await inbox.wait_for_event("e-6")


async def test_requests_are_answered_after_a_reply_that_is_too_long(fresh_nats):
    answers = [b"x" * 2**21, b"fine"]

    async def answer(question: bytes) -> bytes:
        return answers.pop(0)

    async with opened_buses(fresh_nats.url) as buses, connected(fresh_nats.url) as other:
        await buses.volatile.respond("akosha.agent.mac.status", answer)
        await other.publish("akosha.agent.mac.status", b"?", reply="nobody")
        await other.flush()
        await until(lambda: len(answers) == 1)
        assert (await other.request("akosha.agent.mac.status", b"?", timeout=60)).data == b"fine"


async def test_a_stopped_responder_gets_no_request(fresh_nats):
    async with opened_buses(fresh_nats.url) as buses, connected(fresh_nats.url) as other:
        answering = await buses.volatile.respond("akosha.agent.mac.status", lambda question: asyncio.sleep(0, b""))
        await answering.stop()
        await buses._connection.client().flush()
        with pytest.raises(NoRespondersError):
            await other.request("akosha.agent.mac.status", b"?", timeout=60)


async def test_closing_the_bus_ends_a_waiting_publish_with_an_error():
    async with opened_buses("nats://127.0.0.1:9", wait_for_connection=True, ready=False) as buses:
        publishing = asyncio.create_task(buses.durable.publish(ended(1)))
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
        async with opened_buses(server.websocket_url, patience={"ping": 0.1, "ping_timeout": 0.1}) as buses:
            client = buses._connection.client()
            server.pause()
            await client.lost.wait()
        assert sockets() <= before
    gc.collect()  # aiohttp warns about the broken connection here, not in the next test


async def test_a_server_that_hangs_leaves_no_task(fresh_nats):
    before = asyncio.all_tasks()
    async with opened_buses(fresh_nats.url, patience={"ping": 0.1, "ping_timeout": 0.1}) as buses:
        client = buses._connection.client()
        fresh_nats.pause()
        for _ in range(10):
            await client._send_command(b"PUB x 1048576\r\n" + bytes(2**20) + b"\r\n")
        await client.lost.wait()
    await until(lambda: asyncio.all_tasks() <= before)
