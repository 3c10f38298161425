"""The nats-server of other tests: it can be killed, paused and wiped, and accepts only valid logins."""

import asyncio
import socket
import ssl

import pytest
from nats.errors import Error, NoServersError
from nats.js.errors import ServiceUnavailableError

from tests.support.servers.nats import NatsServer, connected, running_nats
from tests.support.servers.nats_credentials import (
    NO_JETSTREAM,
    PASSWORD,
    PLAIN_WEBSOCKET,
    TOKEN,
    USER,
    ClientCertificate,
    NKey,
    Operator,
    nkey_config,
    password_config,
    tls_config,
    token_config,
)

pytest_plugins = ["tests.support.servers.fixtures"]

# nats-py 2.16 passes a deprecated `timeout` to aiohttp.
websocket = pytest.mark.filterwarnings("ignore:parameter 'timeout':DeprecationWarning")


async def store_one(url, **options):
    """Store a message in JetStream and return the number of stored messages."""
    async with connected(url, **options) as client:
        stream = client.jetstream()
        await stream.add_stream(name="kept", subjects=["kept.>"])
        await stream.publish("kept.one", b"x")
        return (await stream.stream_info("kept")).state.messages


async def refusal(url, **options):
    with pytest.raises((Error, OSError)) as failure:
        await store_one(url, **options)
    return failure.value


@pytest.fixture
def trusting(authority):
    return ssl.create_default_context(cafile=authority.ca)


@pytest.mark.parametrize("end", [NatsServer.kill, NatsServer.stop])
async def test_a_restarted_server_keeps_its_port_and_messages(fresh_nats, end):
    before = fresh_nats.url
    assert await store_one(before) == 1
    end(fresh_nats)
    fresh_nats.start()
    assert fresh_nats.url == before
    assert await store_one(before) == 2


async def test_a_wiped_server_has_no_messages(fresh_nats):
    assert await store_one(fresh_nats.url) == 1
    fresh_nats.restart(wipe=True)
    assert await store_one(fresh_nats.url) == 1


async def test_a_killed_server_refuses_connections_and_keeps_its_port_reserved(fresh_nats):
    fresh_nats.kill()
    assert isinstance(await refusal(fresh_nats.url, reconnect_time_wait=0), NoServersError)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", fresh_nats.port))


async def test_a_paused_server_answers_after_it_resumes(fresh_nats):
    async with connected(fresh_nats.url) as client:
        fresh_nats.pause()
        # Not `flush` with a timeout: a late reply would end the read loop of nats-py permanently.
        flushed = asyncio.create_task(client.flush())
        assert not (await asyncio.wait([flushed], timeout=0.05))[0]
        fresh_nats.resume()
        await flushed


def test_a_paused_server_ends_with_its_context(tmp_path):
    with running_nats(tmp_path, jetstream=False) as server:
        process = server._process
        server.pause()
    assert process.returncode == -9


def test_a_server_that_cannot_start_reports_the_reason(tmp_path):
    with pytest.raises(AssertionError, match="unknown field"), running_nats(tmp_path, config="nonsense: 1"):
        pass


async def test_the_monitor_and_the_log_show_connections(tmp_path):
    with running_nats(tmp_path, config="debug: true") as server:
        async with connected(server.url, name="somebody"):
            assert [one["name"] for one in server.monitor("/connz")["connections"]] == ["somebody"]
        server.logged('somebody" - Client connection closed')


@pytest.fixture
async def killed_server(nats_server):
    nats_server.revive()
    await store_one(nats_server.url)
    nats_server.kill()


def test_a_fresh_server_is_running_and_empty(killed_server, fresh_nats):
    assert fresh_nats.monitor("/jsz")["streams"] == 0


async def test_tls(tmp_path, authority, trusting):
    with running_nats(tmp_path, config=tls_config(authority)) as server:
        assert await store_one(server.url, tls=trusting) == 1
        assert isinstance(await refusal(server.url), ssl.SSLCertVerificationError)


async def test_tls_with_client_certificates(tmp_path, authority, trusting):
    client = ClientCertificate(tmp_path)
    with running_nats(tmp_path, config=tls_config(authority, clients=client)) as server:
        assert isinstance(await refusal(server.url, tls=trusting), OSError)
        trusting.load_cert_chain(client.chain, client.key)
        assert await store_one(server.url, tls=trusting) == 1


async def test_tls_with_handshake_first(tmp_path, authority, trusting):
    with running_nats(tmp_path, config=tls_config(authority, handshake_first=True)) as server:
        assert await store_one(server.url, tls=trusting, tls_handshake_first=True) == 1


@websocket
async def test_a_websocket_keeps_its_port(tmp_path):
    with running_nats(tmp_path, websocket=PLAIN_WEBSOCKET) as server:
        before = server.websocket_url
        assert await store_one(before) == 1
        server.restart()
        assert server.websocket_url == before
        assert await store_one(before) == 2


@websocket
async def test_a_websocket_over_tls(tmp_path, authority, trusting):
    with running_nats(tmp_path, websocket=tls_config(authority)) as server:
        assert server.websocket_url.startswith("wss://")
        assert await store_one(server.websocket_url, tls=trusting) == 1


KEY = NKey()


@pytest.mark.parametrize(
    ("config", "correct", "wrong"),
    [
        (password_config(), {"user": USER, "password": PASSWORD}, {"user": USER, "password": "guess"}),
        (token_config(), {"token": TOKEN}, {"token": "guess"}),
        (nkey_config(KEY), {"nkeys_seed_str": KEY.seed}, {"nkeys_seed_str": NKey().seed}),
    ],
    ids=["password", "token", "nkey"],
)
async def test_only_the_correct_secret_is_accepted(tmp_path, config, correct, wrong):
    with running_nats(tmp_path, config=config) as server:
        assert await store_one(server.url, **correct) == 1
        for refused in (wrong, {}):
            assert "Authorization Violation" in str(await refusal(server.url, **refused))


async def test_only_credentials_signed_by_the_account_are_accepted(tmp_path):
    operator, file = Operator(), tmp_path / "user.creds"
    with running_nats(tmp_path, config=operator.config) as server:
        file.write_text(operator.credentials())
        assert await store_one(server.url, user_credentials=file) == 1
        for refused in (operator.credentials(expires=-10), Operator().credentials()):
            file.write_text(refused)
            assert "Authorization Violation" in str(await refusal(server.url, user_credentials=file))


@pytest.mark.parametrize("by", ["password", "nkey", "credentials"])
async def test_a_user_without_permission_for_jetstream(tmp_path, by):
    operator, file = Operator(), tmp_path / "user.creds"
    file.write_text(operator.credentials(permissions=NO_JETSTREAM))
    config, secret = {
        "password": (password_config(permissions=NO_JETSTREAM), {"user": USER, "password": PASSWORD}),
        "nkey": (nkey_config(KEY, permissions=NO_JETSTREAM), {"nkeys_seed_str": KEY.seed}),
        "credentials": (operator.config, {"user_credentials": file}),
    }[by]
    reported = asyncio.Queue()
    with running_nats(tmp_path, config=config) as server:
        async with connected(server.url, error_cb=reported.put, **secret) as client:
            await client.publish("anything.else")
            await client.publish("$JS.API.INFO")
            # nats-py converts the server's message to lower case.
            assert str(await reported.get()) == 'nats: permissions violation for publish to "$js.api.info"'


async def test_without_jetstream(tmp_path):
    with running_nats(tmp_path, jetstream=False) as server:
        assert isinstance(await refusal(server.url), ServiceUnavailableError)


async def test_an_account_without_jetstream(tmp_path):
    operator, file = Operator(jetstream=False), tmp_path / "user.creds"
    file.write_text(operator.credentials())
    with running_nats(tmp_path, config=operator.config) as server:
        assert isinstance(await refusal(server.url, user_credentials=file), ServiceUnavailableError)


async def test_a_full_jetstream(tmp_path):
    with running_nats(tmp_path, limits="max_file_store: 64KB") as server:
        assert await store_one(server.url) == 1
        async with connected(server.url) as client:
            # The message that exceeds the limit is stored, and no later one.
            await client.jetstream().publish("kept.much", bytes(100_000))
            with pytest.raises(ServiceUnavailableError) as failure:
                await client.jetstream().publish("kept.more", b"x")
    assert failure.value.description == "insufficient resources"
