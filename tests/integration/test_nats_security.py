"""Login and TLS for NATS: no secret is sent to an untrusted server or shown in a text."""

import asyncio
import itertools
import traceback
from types import SimpleNamespace
from urllib.parse import quote

import pytest
import trustme
from structlog.testing import capture_logs

from agent.adapters.nats import Login, NatsOptions, Tls
from agent.adapters.nats.credentials import read
from agent.adapters.system_clock import SystemClock
from agent.bootstrap.buses import nats_options, run_buses, single_sync_buses
from agent.domain.errors import BusError, SettingsError
from agent.domain.identity import Identity
from agent.settings import Settings
from tests.support.nats_bus import SECONDS, RecordingHandler, ended, opened_buses, options, recording_server
from tests.support.servers.nats import running_nats
from tests.support.servers.nats_credentials import (
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
from tests.support.servers.s3 import Authority

pytest_plugins = ["tests.support.servers.fixtures"]

# nats-py 2.16 passes a deprecated `timeout` to aiohttp.
websocket = pytest.mark.filterwarnings("ignore:parameter 'timeout':DeprecationWarning")

NUMBERS = itertools.count(1)
KEY, STRANGER = NKey(), NKey()
OPERATOR, OTHER_OPERATOR = Operator(), Operator()
CREDENTIALS, EXPIRED, FOREIGN = OPERATOR.credentials(), OPERATOR.credentials(expires=-10), OTHER_OPERATOR.credentials()


def secrets_of(credentials: str) -> list[str]:
    """Return the JWT and the seed."""
    return [line for line in credentials.splitlines() if len(line) > 50]


IDENTITY = Identity("agent-1", "laptop")

SECRETS = [
    "canary", PASSWORD, TOKEN, quote(PASSWORD, safe=""), quote(TOKEN, safe=""), KEY.seed, STRANGER.seed,
    *secrets_of(CREDENTIALS), *secrets_of(EXPIRED), *secrets_of(FOREIGN),
]  # fmt: skip


def assert_no_secret(*texts: str) -> None:
    for text in texts:
        assert not [secret for secret in SECRETS if secret in text], text


async def assert_accepted(*urls: str, **how: object) -> None:
    """Assert that the server accepts the login and delivers an event, and that no text shows a secret."""
    inbox = RecordingHandler()
    with capture_logs() as logs:
        async with opened_buses(*urls, **how) as buses:
            await buses.volatile.subscribe("akosha.session.>", inbox)
            event = ended(next(NUMBERS))
            await buses.durable.publish(event)
            assert await inbox.wait_for_count(1) == [event.id]
            detail = buses.durable.state.detail
    assert_no_secret(detail, str(logs), repr(options(*urls, **how)))


async def refusal(*urls: str, **how: object) -> str:
    """Assert that the bus is not ready and that no text shows a secret. Return the detail of its state."""
    with capture_logs() as logs:
        async with opened_buses(*urls, ready=False, **how) as buses:
            await buses._connection.first_attempt(SECONDS)
            assert not buses.durable.state.ready
            with pytest.raises(BusError) as failure:
                await buses.durable.publish(ended(1))
            detail = buses.durable.state.detail
    tracebacks = "".join(traceback.format_exception(failure.value)) + "".join(
        traceback.format_exception(buses._connection.last_error)
    )
    assert_no_secret(detail, tracebacks, failure.value.hint, str(logs), repr(options(*urls, **how)))
    return detail


def tls_url(server) -> str:
    return server.url.replace("nats://", "tls://")


@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_a_private_ca_is_accepted(tmp_path, authority, scheme):
    with running_nats(tmp_path, config=tls_config(authority)) as server:
        await assert_accepted(f"{scheme}://127.0.0.1:{server.port}", tls=Tls(ca_file=authority.ca))


@pytest.mark.parametrize("ca", ["another", "the system's"])
async def test_a_server_with_an_untrusted_ca_is_refused_with_a_hint_and_gets_no_secret(tmp_path, authority, ca):
    tls = Tls(ca_file=Authority(tmp_path).ca) if ca == "another" else Tls()
    config = f"{tls_config(authority)}\n{token_config()}"
    with running_nats(tmp_path / "nats", config=config) as server:
        detail = await refusal(tls_url(server), tls=tls, login=Login(token=TOKEN))
    assert "certificate verify failed" in detail.lower()
    assert "akosha_agent_nats_ca_file" in detail


async def test_a_certificate_of_another_host_is_refused(tmp_path):
    theirs, elsewhere = trustme.CA(), SimpleNamespace(chain=tmp_path / "chain.pem", key=tmp_path / "key.pem")
    theirs.cert_pem.write_to_path(tmp_path / "ca.pem")
    certificate = theirs.issue_cert("elsewhere.example.org")
    certificate.cert_chain_pems[0].write_to_path(elsewhere.chain)
    certificate.private_key_pem.write_to_path(elsewhere.key)
    with running_nats(tmp_path / "nats", config=tls_config(elsewhere)) as server:
        detail = await refusal(tls_url(server), tls=Tls(ca_file=tmp_path / "ca.pem"))
    assert "IP address mismatch" in detail


async def test_a_server_without_the_requested_tls_is_refused(tmp_path, authority):
    with running_nats(tmp_path, config=token_config()) as server:
        detail = await refusal(tls_url(server), tls=Tls(ca_file=authority.ca), login=Login(token=TOKEN))
    assert "speaks TLS" in detail


@pytest.mark.parametrize("first", [False, True], ids=["after-greeting", "first"])
@pytest.mark.parametrize("required", ["", '"tls_required": false,', '"tls_available": true,'])
async def test_with_tls_requested_no_secret_is_sent_in_plain_text_for_any_greeting(authority, required, first):
    greeting = b'INFO {%b"server_id":"x","version":"2.10.0","headers":true,"max_payload":1048576}\r\n'
    async with recording_server(greeting % required.encode()) as (address, received):
        tls = Tls(ca_file=authority.ca, first=first)
        url = f"tls://{quote(TOKEN, safe='')}@{address}"
        await refusal(url, tls=tls, patience={"connect": 0.1})
        await refusal(f"tls://{address}", tls=tls, login=Login(user=USER, password=PASSWORD), patience={"connect": 0.1})
    assert received.startswith(b"\x16\x03"), "the client must start a TLS handshake"
    for secret in (b"CONNECT", b"canary", TOKEN.encode(), PASSWORD.encode(), USER.encode()):
        assert secret not in received


@websocket
async def test_a_secure_websocket_sends_no_secret_to_an_insecure_server(authority):
    async with recording_server(b"HTTP/1.1 101 Switching Protocols\r\n\r\n") as (address, received):
        tls, login = Tls(ca_file=authority.ca), Login(token=TOKEN)
        await refusal(f"wss://{address}", tls=tls, login=login, patience={"connect": 0.1})
    assert received.startswith(b"\x16\x03")
    assert TOKEN.encode() not in received


async def test_the_tls_handshake_comes_first_if_configured(tmp_path, authority):
    with running_nats(tmp_path, config=tls_config(authority, handshake_first=True)) as server:
        await assert_accepted(tls_url(server), tls=Tls(ca_file=authority.ca, first=True))
        await refusal(tls_url(server), tls=Tls(ca_file=authority.ca), patience={"connect": 0.2})


async def test_a_client_certificate_is_presented_to_a_server_that_requires_it(tmp_path, authority):
    client = ClientCertificate(tmp_path)
    ours = Tls(ca_file=authority.ca, certificate_file=client.chain, key_file=client.key)
    with running_nats(tmp_path / "nats", config=tls_config(authority, clients=client)) as server:
        await assert_accepted(tls_url(server), tls=ours)
        assert "cannot be reached" in await refusal(tls_url(server), tls=Tls(ca_file=authority.ca))


@websocket
async def test_a_websocket_carries_events(tmp_path):
    with running_nats(tmp_path, websocket=PLAIN_WEBSOCKET) as server:
        await assert_accepted(server.websocket_url)


@websocket
async def test_a_secure_websocket_carries_events_and_a_wrong_ca_is_refused(tmp_path, authority):
    with running_nats(tmp_path / "nats", websocket=tls_config(authority)) as server:
        await assert_accepted(server.websocket_url, tls=Tls(ca_file=authority.ca))
        detail = await refusal(server.websocket_url, tls=Tls(ca_file=Authority(tmp_path).ca))
    assert "akosha_agent_nats_ca_file" in detail


@websocket
async def test_a_token_is_accepted_over_a_websocket(tmp_path):
    with running_nats(tmp_path, websocket=PLAIN_WEBSOCKET, config=token_config()) as server:
        await assert_accepted(server.websocket_url, login=Login(token=TOKEN))
        await assert_accepted(server.websocket_url.replace("://", f"://{quote(TOKEN, safe='')}@"))
        assert "akosha_agent_nats" in await refusal(server.websocket_url, login=Login(token="canary-guess"))


def file_with(folder, name: str, text: str):
    path = folder / name
    path.write_text(text)
    path.chmod(0o600)
    return path


LOGINS = {
    "password": (password_config(), lambda _: Login(user=USER, password=PASSWORD)),
    "token": (token_config(), lambda _: Login(token=TOKEN)),
    "seed": (nkey_config(KEY), lambda _: Login(nkey_seed=KEY.seed)),
    "nkey-file": (nkey_config(KEY), lambda folder: Login(nkey_file=file_with(folder, "nk", f"{KEY.seed}\n"))),
    "credentials": (OPERATOR.config, lambda folder: Login(credentials_file=file_with(folder, "creds", CREDENTIALS))),
}
WRONG = {
    "password": [
        lambda _: Login(user=USER, password="canary-guess"),
        lambda _: Login(user="nobody", password=PASSWORD),
    ],
    "token": [lambda _: Login(token="canary-guess")],
    "seed": [lambda _: Login(nkey_seed=STRANGER.seed)],
    "nkey-file": [lambda folder: Login(nkey_file=file_with(folder, "nk", STRANGER.seed))],
    "credentials": [
        lambda folder: Login(credentials_file=file_with(folder, "creds", EXPIRED)),
        lambda folder: Login(credentials_file=file_with(folder, "creds", FOREIGN)),
    ],
}
NAMES = {"password": "_user", "token": "_token", "nkey-file": "_nkey_file", "credentials": "_credentials_file"}


@pytest.mark.parametrize("login_kind", LOGINS)
async def test_a_correct_secret_is_accepted_and_a_wrong_one_is_reported_but_not_shown(tmp_path, login_kind):
    config, correct = LOGINS[login_kind]
    with running_nats(tmp_path / "nats", config=config) as server:
        await assert_accepted(server.url, login=correct(tmp_path))
        for wrong in [*WRONG[login_kind], lambda _: Login()]:
            detail = await refusal(server.url, login=wrong(tmp_path))
            assert "authorization violation" in detail.lower()
            assert "akosha_agent_nats_user" in detail
            assert NAMES.get(login_kind, "") in detail


@pytest.mark.parametrize(
    ("config", "correct", "wrong"),
    [
        (password_config(), f"{USER}:{quote(PASSWORD, safe='')}", f"{USER}:canary-guess"),
        (token_config(), quote(TOKEN, safe=""), "canary-guess"),
    ],
    ids=["password", "token"],
)
async def test_a_secret_in_the_url_is_percent_decoded_and_not_shown(tmp_path, config, correct, wrong):
    with running_nats(tmp_path, config=config) as server:
        await assert_accepted(f"nats://{correct}@127.0.0.1:{server.port}")
        detail = await refusal(f"nats://{wrong}@127.0.0.1:{server.port}")
        assert f"nats://127.0.0.1:{server.port}" in detail


async def test_a_secret_in_a_url_is_sent_only_to_the_server_of_that_url(tmp_path, monkeypatch):
    monkeypatch.setattr("random.sample", lambda servers, _: list(servers))
    async with recording_server(b'INFO {"server_id":"x","max_payload":1048576}\r\n') as (address, received):
        with running_nats(tmp_path, config=token_config()) as server:
            good = f"nats://{quote(TOKEN, safe='')}@127.0.0.1:{server.port}"
            await assert_accepted(f"nats://{address}", good, patience={"connect": 0.1})
    assert received.startswith(b"CONNECT")
    assert TOKEN.encode() not in received


async def test_servers_advertised_in_the_greeting_get_no_secret():
    async with recording_server() as (elsewhere, received):
        greeting = b'INFO {"server_id":"x","max_payload":1048576,"connect_urls":["%b"]}\r\n' % elsewhere.encode()
        async with recording_server(greeting, then=b"-ERR 'Authorization Violation'\r\n") as (address, secret):
            login = Login(token=TOKEN)
            await refusal(f"nats://{address}", login=login, patience={"connect": 0.2})
        assert TOKEN.encode() in secret
    assert not received


def settings_with(**fields: object) -> Settings:
    return Settings(cloud_endpoint="file:///bucket", agent_nats_url="nats://127.0.0.1:9", **fields)


PRIVATE = {
    "agent_nats_credentials_file": CREDENTIALS,
    "agent_nats_nkey_file": KEY.seed,
}


@pytest.mark.parametrize("key", PRIVATE)
@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
async def test_a_secret_file_that_others_can_open_is_refused_at_the_start_with_a_hint(tmp_path, key, mode):
    file = file_with(tmp_path, "secret file", PRIVATE[key])
    file.chmod(mode)
    settings = settings_with(**{key: file})
    for use in (nats_options(settings, "test").check, lambda: single_sync_buses(settings, IDENTITY, SystemClock())):
        with pytest.raises(SettingsError) as failure:
            use()
        assert f"akosha_{key}" in str(failure.value)
        assert failure.value.hint == f"chmod 600 '{file}'"
    with pytest.raises(SettingsError, match="other users can open") as failure:
        await run_buses(settings, IDENTITY, SystemClock())
    assert_no_secret("".join(traceback.format_exception(failure.value)))


async def test_a_certificates_key_that_others_can_open_is_refused_at_the_start(tmp_path):
    client = ClientCertificate(tmp_path)
    client.key.chmod(0o644)
    settings = settings_with(agent_nats_certificate_file=client.chain, agent_nats_key_file=client.key)
    with pytest.raises(SettingsError, match="akosha_agent_nats_key_file") as failure:
        await run_buses(settings, IDENTITY, SystemClock())
    assert failure.value.hint.startswith("chmod 600")


async def test_a_secret_file_that_becomes_readable_for_others_is_no_longer_used(tmp_path):
    file = file_with(tmp_path, "creds", CREDENTIALS)
    settings = settings_with(agent_nats_credentials_file=file)
    with running_nats(tmp_path / "nats", config=OPERATOR.config) as server:
        how = {"login": Login(credentials_file=file), "check": nats_options(settings, "test").check}
        async with opened_buses(server.url, **how) as buses:
            file.chmod(0o644)
            lost = buses._connection.client().lost
            server.restart()
            async with asyncio.timeout(SECONDS):
                await lost.wait()
                while "chmod" not in buses.durable.state.detail:
                    assert not buses.durable.state.ready
                    await asyncio.sleep(0)
            file.chmod(0o600)
            async with asyncio.timeout(SECONDS):
                await buses.durable.wait_until_ready()


INVALID = {
    "credentials": lambda folder: Login(credentials_file=file_with(folder, "creds", CREDENTIALS[:200])),
    "public-key": lambda _: Login(nkey_seed=KEY.public),
    "key-file": lambda folder: Login(nkey_file=file_with(folder, "nk", KEY.seed[:-1])),
    "creds-with-a-bad-seed": lambda folder: Login(
        credentials_file=file_with(folder, "creds", CREDENTIALS.replace(secrets_of(CREDENTIALS)[1], KEY.seed[:-4]))
    ),
}


@pytest.mark.parametrize("what", INVALID)
async def test_an_invalid_secret_is_reported_with_its_setting_only(tmp_path, what):
    login = INVALID[what](tmp_path)
    with pytest.raises(SettingsError) as failure:
        read(login)
    assert str(failure.value).startswith("akosha_agent_nats_")
    text = "".join(traceback.format_exception(failure.value))
    assert KEY.seed[:20] not in text
    assert secrets_of(CREDENTIALS)[0][:100] not in text
    assert_no_secret(text, await refusal("nats://127.0.0.1:9", login=login))


@pytest.mark.parametrize("login_kind", LOGINS)
def test_no_representation_shows_a_secret(tmp_path, login_kind):
    login = LOGINS[login_kind][1](tmp_path)
    url = f"nats://{USER}:{quote(PASSWORD, safe='')}@example.org"
    made = NatsOptions(servers=(url,), name="test", login=login)
    assert_no_secret(repr(login), repr(made), str(made), made.location, repr(read(login)))


async def ready(buses) -> None:
    async with asyncio.timeout(SECONDS):
        await buses.durable.wait_until_ready()


def users(server) -> set[str]:
    """Return the users that are connected."""
    return {one["authorized_user"] for one in server.monitor("/connz?auth=1")["connections"]}


async def test_expired_credentials_are_read_again_from_the_file(tmp_path):
    file = tmp_path / "agent.creds"
    file.write_text(OPERATOR.credentials(expires=3))
    with running_nats(tmp_path / "nats", config=OPERATOR.config) as server:
        async with opened_buses(server.url, login=Login(credentials_file=file)) as buses:
            lost = buses._connection.client().lost
            file.write_text(EXPIRED)
            async with asyncio.timeout(SECONDS):
                await lost.wait()
                while "check akosha_agent_nats_user" not in buses._connection.last_error.hint:
                    await asyncio.sleep(0)
            file.write_text(CREDENTIALS)
            await ready(buses)
            await buses.durable.publish(ended(next(NUMBERS)))


async def test_a_reset_client_reads_the_credentials_again_even_if_they_are_valid(tmp_path):
    file = tmp_path / "agent.creds"
    file.write_text(CREDENTIALS)
    inbox = RecordingHandler()
    with running_nats(tmp_path / "nats", config=OPERATOR.config) as server:
        async with opened_buses(server.url, login=Login(credentials_file=file)) as buses:
            await buses.durable.consume("akosha.session.>", inbox, durable="d")
            before, old = users(server), buses._connection.client()
            file.write_text(OPERATOR.credentials())
            await buses.durable.reset_client()
            async with asyncio.timeout(SECONDS):
                while not buses._connection.is_up or buses._connection.client() is old:
                    await asyncio.sleep(0)
            await ready(buses)
            assert users(server) & before == set()
            await buses.durable.reset_client()
            await buses.durable.reset_client()
            await ready(buses)
            event = ended(next(NUMBERS))
            await buses.durable.publish(event)
            assert await inbox.wait_for_event(event.id)


async def test_a_replaced_ca_is_trusted_from_the_next_attempt(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old, new, ca = Authority(tmp_path / "old"), Authority(tmp_path / "new"), tmp_path / "ca.pem"
    ca.write_bytes(old.ca.read_bytes())
    with running_nats(tmp_path / "nats", config=tls_config(old)) as server:
        async with opened_buses(tls_url(server), tls=Tls(ca_file=ca)) as buses:
            server.stop()
            server.config = tls_config(new)
            server.start()
            async with asyncio.timeout(SECONDS):
                while "certificate verify failed" not in buses._connection.last_error.message.lower():
                    await asyncio.sleep(0)
            ca.write_bytes(new.ca.read_bytes())
            await ready(buses)
            await buses.durable.publish(ended(next(NUMBERS)))


async def test_a_replaced_client_certificate_is_used_from_the_next_attempt(tmp_path, authority):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old, new = ClientCertificate(tmp_path / "old"), ClientCertificate(tmp_path / "new")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    chain.write_bytes(old.chain.read_bytes())
    key.write_bytes(old.key.read_bytes())
    tls = Tls(ca_file=authority.ca, certificate_file=chain, key_file=key)
    with running_nats(tmp_path / "nats", config=tls_config(authority, clients=old)) as server:
        async with opened_buses(tls_url(server), tls=tls) as buses:
            lost = buses._connection.client().lost
            server.stop()
            await lost.wait()
            server.config = tls_config(authority, clients=new)
            server.start()
            chain.write_bytes(new.chain.read_bytes())
            key.write_bytes(new.key.read_bytes())
            await ready(buses)
            await buses.durable.publish(ended(next(NUMBERS)))
