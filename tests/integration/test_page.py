"""The page over real sockets with a fake agent: who gets in, what is served, and when its port is open."""

import asyncio
import hashlib
import hmac
import json
import os
import socket
import stat
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from ipaddress import IPv4Address
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
from structlog.testing import capture_logs

from agent.bootstrap import home
from agent.domain.errors import NoSuchObject, SettingsError, StateError
from agent.entrypoints.control_api import page_access, tcp_peer
from agent.entrypoints.page.files import read_files
from agent.entrypoints.page.sessions import SESSION_LIFE, TOKEN_SECONDS
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.control_api import JSON, SECONDS, FakeAgentService, ServedAgent, serve_agent

TOKEN = "a-token-of-the-settings-0123456789"
NONCE = "0123456789abcdef" * 2
OTHER_UID = 65_534
SESSION_SECONDS = SESSION_LIFE.total_seconds()
DATA = ("/v1/status", "/v1/events", "/v1/history", "/v1/plots", "/v1/uploads", "/metrics", "/healthz", "/readyz")
CHANGES = ("/v1/sync", "/v1/verify", "/v1/events")

OTHER_USER = """
import encodings.idna, http.client, json, os, sys  # the other user cannot read the files of modules
os.setuid(int(sys.argv[1]))
address, port, token, session = sys.argv[2:]
connection = http.client.HTTPConnection(address, port)
connection.request("POST", "/v1/page/session", json.dumps({"token": token}), {"Content-Type": "application/json"})
response = connection.getresponse()
print(response.status, response.read().decode())
connection = http.client.HTTPConnection(address, port)
connection.request("GET", "/v1/status", headers={"Authorization": "Bearer " + session})
response = connection.getresponse()
print(response.status, response.read().decode())
"""


@pytest.fixture
def agent_service():
    return FakeAgentService()


@pytest.fixture
def clock(monkeypatch):
    """The clock of the agent that is served, in a test that uses it before `agent`."""
    clock = ManualClock()
    monkeypatch.setattr(home, "SystemClock", lambda: clock)
    return clock


@pytest.fixture
async def agent(agent_service, tmp_path):
    async with serve_agent(agent_service, tmp_path / "state") as agent:
        yield agent


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Page(ServedAgent):
    """The page in a browser. `token` is the one of its address, `session` the one that it was exchanged for."""

    token = session = ""

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.base)
        return parts.hostname, parts.port

    @property
    def bearing(self) -> dict:
        return JSON | {"Authorization": f"Bearer {self.session}"}

    async def exchange(self, **headers: str):
        return await self.request("POST", "/v1/page/session", {"token": self.token}, headers=JSON | headers)

    async def prove(self, session: str, **changed: str):
        asked = {"id": hashlib.sha256(session.encode()).hexdigest()[:16], "nonce": NONCE, **changed}
        return await self.request("POST", "/v1/page/proof", asked, headers=JSON)

    async def start(self) -> "Page":
        started = await self.exchange()
        assert started.status == 200, started.body
        self.session = started.json["session"]
        return self

    async def read(self, path: str):
        return await self.request("GET", path, headers=self.bearing)


@asynccontextmanager
async def opened(agent, *, started: bool = True):
    """Open the page as `akosha-agent open` does, in a browser of its own."""
    response = await agent.request("POST", "/v1/page")
    assert response.status == 200, response.body
    address = urlsplit(response.json["url"])
    assert IPv4Address(address.hostname).is_loopback
    assert (address.path, address.query) == ("/", "")
    async with aiohttp.ClientSession() as client:
        page = Page(agent.state, agent.settings, client, f"http://{address.netloc}")
        page.token = address.fragment.removeprefix("token=")
        yield await page.start() if started else page


async def port_closed() -> None:
    """Wait until the port of the page is closed."""
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "page-port"))


def listening() -> set[tuple[str, int]]:
    """Return the TCP addresses at which this process listens."""
    found = set()
    for file in Path("/dev/fd").iterdir():
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(file.name)).st_mode):
                with socket.socket(fileno=os.dup(int(file.name))) as one:
                    if one.family == socket.AF_INET and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                        found.add(one.getsockname())
    return found


def is_open(address: tuple[str, int]) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(address) == 0


# ------------------------------------------------------------------------------------------------ tokens and sessions


async def test_before_the_page_is_opened_nothing_listens(agent_service, tmp_path):
    before = listening()
    async with serve_agent(agent_service, tmp_path / "state") as agent:
        assert listening() == before
        assert [path.name for path in agent.state.iterdir()] == ["control.sock"]
        async with opened(agent, started=False) as page:
            assert listening() - before == {page.address}


async def test_sessions_that_ended_while_no_agent_ran_open_no_port_and_leave_no_file(clock, agent_service, tmp_path):
    before = listening()
    async with serve_agent(agent_service, tmp_path / "state") as agent, opened(agent):
        pass
    assert (agent.state / "page.json").exists()
    await clock.advance(SESSION_SECONDS)
    async with serve_agent(agent_service, tmp_path / "state"):
        assert listening() == before
        assert not (agent.state / "page.json").exists()


async def test_the_token_of_the_address_starts_a_session_with_which_everything_can_be_read(agent):
    async with opened(agent) as page:
        for path in DATA:
            if path != "/v1/events":
                assert (path, (await page.read(path)).status) == (path, 200)
        async with page.follow(**page.bearing):
            pass


async def test_with_a_session_a_sync_and_a_verification_are_requested(agent, agent_service):
    async with opened(agent) as page:
        sync = await page.request("POST", "/v1/sync", {"id": "by-page"}, headers=page.bearing)
        verify = await page.request("POST", "/v1/verify", headers=page.bearing)
    assert (sync.status, verify.status, verify.json) == (202, 202, {"accepted": True})
    assert (list(agent_service.asked), agent_service.verifications) == (["by-page"], 1)


@pytest.mark.parametrize("token", ["", "x", "x" * 43, None])
async def test_a_wrong_token_starts_no_session(agent, token):
    async with opened(agent, started=False) as page:
        body = {} if token is None else {"token": token}
        response = await page.request("POST", "/v1/page/session", body)
        assert response.status == (400 if token is None else 401)
        assert "session" not in response.json
        await page.start()  # the right one is still valid


async def test_a_replayed_token_starts_no_session_and_the_first_one_stays(agent):
    async with opened(agent) as page:
        again = await page.exchange()
        assert (again.status, again.json["hint"]) == (401, "akosha-agent open")
        assert (await page.read("/v1/status")).status == 200


async def test_an_expired_token_starts_no_session(clock, agent):
    async with opened(agent), opened(agent, started=False) as page:
        await clock.advance(TOKEN_SECONDS)
        assert (await page.exchange()).status == 401


@pytest.mark.parametrize("header", [None, "Bearer ", "Bearer x", "Basic {}", "{}", "Bearer {}x"])
async def test_without_a_session_nothing_is_read_and_nothing_is_triggered(agent, agent_service, header):
    async with opened(agent) as page:
        headers = {} if header is None else {"Authorization": header.format(page.session)}
        for path in DATA:
            problem = await page.problem(401, "GET", path, headers=headers)
            assert (problem["hint"], values.SYSTEM in str(problem)) == ("akosha-agent open", False)
        for path in CHANGES:
            await page.problem(401, "POST", path, {}, headers=JSON | headers)
    assert agent_service.triggered == []


async def test_a_session_ends_12_hours_after_its_last_use_and_the_port_is_closed_after_the_last_one(clock, agent):
    """Connections that are open then are closed, too."""
    with capture_logs() as logs:
        async with opened(agent) as page, opened(agent) as other:
            async with page.follow(**page.bearing) as stream:
                await clock.advance(SESSION_SECONDS / 2)
                assert (await other.read("/v1/status")).status == 200
                await clock.advance(SESSION_SECONDS / 2)
                assert [(await one.read("/v1/status")).status for one in (page, other)] == [401, 200]
                await clock.advance(SESSION_SECONDS)
                await port_closed()
                with pytest.raises(aiohttp.ClientError):
                    await stream.end()
            assert not is_open(page.address)
    assert [line["event"] for line in logs] == ["page_port_open", "page_port_closed"]
    assert page.token not in str(logs)
    assert not (agent.state / "page.json").exists()
    async with opened(agent) as page:
        assert (await page.read("/v1/status")).status == 200


async def test_after_its_session_has_ended_a_stream_sends_nothing_while_another_session_is_valid(
    clock, agent, agent_service
):
    async with opened(agent) as page, opened(agent) as other, page.follow(**page.bearing) as stream:
        await clock.advance(SESSION_SECONDS / 2)
        assert (await other.read("/v1/status")).status == 200
        await clock.advance(SESSION_SECONDS / 2)
        agent_service.add_event(values.skipped())
        with pytest.raises(aiohttp.ClientError):
            await stream.end()
        assert (await other.read("/v1/status")).status == 200


async def test_an_address_that_is_never_used_closes_the_port_when_its_token_ends(clock, agent):
    async with opened(agent, started=False) as page:
        await clock.advance(TOKEN_SECONDS)
        await port_closed()
        assert not is_open(page.address)


async def test_an_open_page_is_served_at_its_port_again_after_a_restart(agent_service, tmp_path):
    async with serve_agent(agent_service, tmp_path / "state") as agent:
        async with opened(agent) as page, opened(agent) as other:
            assert page.base == other.base
        file = agent.state / "page.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert page.session not in file.read_text()
    assert not is_open(page.address)
    async with serve_agent(agent_service, tmp_path / "state") as again, aiohttp.ClientSession() as client:
        for session in (page.session, other.session):
            browser = Page(again.state, again.settings, client, page.base)
            browser.session = session
            assert (await browser.read("/v1/status")).status == 200
        assert (await page_of_another_token(browser, page.token)).status == 401


async def page_of_another_token(page, token: str):
    page.token = token
    return await page.exchange()


async def test_if_another_program_has_the_port_after_a_restart_the_sessions_end_and_the_page_is_opened_at_another_one(
    agent_service, tmp_path
):
    async with serve_agent(agent_service, tmp_path / "state") as agent, opened(agent) as page:
        pass
    with socket.create_server(page.address), capture_logs() as logs:
        async with serve_agent(agent_service, tmp_path / "state") as agent, opened(agent) as other:
            assert other.base != page.base
            assert (await other.read("/v1/status")).status == 200
            other.session = page.session
            assert (await other.read("/v1/status")).status == 401
    assert "page_port_unavailable" in [line["event"] for line in logs]


# ---------------------------------------------------------------------------------------------------- other web sites


ATTACKS = {
    "rebinding": {"Host": "evil.example:{port}"},
    "another name": {"Host": "localhost:{port}"},
    "another address": {"Host": "127.0.0.1:{port}"},
    "origin": {"Origin": "http://evil.example"},
    "another port": {"Origin": "http://127.0.0.1:1"},
    "null": {"Origin": "null"},
    "fetch": {"Sec-Fetch-Site": "cross-site"},
    "same site": {"Sec-Fetch-Site": "same-site"},
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_another_site_reads_and_triggers_nothing(agent, agent_service, attack):
    """Not even with the token or the session, which it cannot know."""
    async with opened(agent, started=False) as page:
        headers = {name: value.format(port=page.address[1]) for name, value in ATTACKS[attack].items()}
        assert (await page.exchange(**headers)).status == 403
        await page.start()
        for path in ("/", "/page.js", "/nothing", *DATA):
            response = await page.request("GET", path, headers=page.bearing | headers)
            assert (path, response.status, values.SYSTEM.encode() in response.body) == (path, 403, False)
        for path in CHANGES:
            await page.problem(403, "POST", path, {}, headers=page.bearing | headers)
    assert agent_service.triggered == []


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
async def test_a_form_of_another_site_starts_no_session_and_triggers_nothing(agent, agent_service, kind):
    """As an old browser sends it: without Origin and Sec-Fetch-Site. It cannot send a header with the session."""
    async with opened(agent, started=False) as page:
        form = {"Content-Type": kind}
        assert (await page.request("POST", "/v1/page/session", {"token": page.token}, headers=form)).status == 415
        for path in CHANGES:
            assert (await page.request("POST", path, {}, headers=form)).status == 401
        preflight = await page.request("OPTIONS", "/v1/page/session", headers={"Origin": page.base})
        assert not [name for name in preflight.headers if name.lower().startswith("access-control")]
    assert agent_service.triggered == []


async def test_the_page_is_not_opened_over_a_port(agent_service, tmp_path, port):
    state = tmp_path / "state"
    async with (
        serve_agent(agent_service, state, agent_http_port=port, agent_http_token=TOKEN) as agent,
        opened(agent) as page,
    ):
        for secret in (page.session, TOKEN):
            headers = JSON | {"Authorization": f"Bearer {secret}"}
            problem = await page.problem(403, "POST", "/v1/page", headers=headers)
            assert problem["hint"] == "akosha-agent open"


async def test_the_page_is_not_at_the_port_of_the_settings_and_its_session_is_of_no_use_there(
    agent_service, tmp_path, port
):
    """Nor is the token of the port of any use at the page's address. What was readable without a token stays so."""
    state = tmp_path / "state"
    async with (
        serve_agent(agent_service, state, agent_http_port=port, agent_http_token=TOKEN) as agent,
        opened(agent) as page,
    ):
        token = {"Authorization": f"Bearer {TOKEN}"}
        assert (await page.request("GET", "/v1/status", headers=token)).status == 401
        page.base = f"http://127.0.0.1:{port}"
        assert (await page.request("GET", "/v1/status")).status == 200
        for path in ("/v1/history", "/v1/plots", "/v1/uploads"):
            for headers, status in (({}, 401), (page.bearing, 401), (token, 200)):
                assert (await page.request("GET", path, headers=headers)).status == status
        for path in ("/", "/page.js"):
            assert (await page.request("GET", path)).status == 404
        for response in (await page.exchange(), await page.prove(page.session)):
            assert (response.status, response.json["hint"]) == (403, "akosha-agent open")


async def test_where_other_loopback_addresses_do_not_exist_the_page_is_at_127_0_0_1(agent, monkeypatch):
    monkeypatch.setattr(page_access, "random_address", lambda: "192.0.2.1")  # an address of no machine
    async with opened(agent) as page:
        assert page.address[0] == "127.0.0.1"
        assert (await page.read("/v1/status")).status == 200


async def test_each_time_that_the_page_is_opened_its_address_is_a_new_one(clock, agent):
    """No server was at it before, and so no service worker of one is in the browser."""
    addresses = set()
    for _ in range(3):
        async with opened(agent, started=False) as page:
            addresses.add(page.address[0])
        await clock.advance(TOKEN_SECONDS)
        await port_closed()
    assert len(addresses) == 3
    assert not addresses & {"127.0.0.1", "127.0.0.53", "127.0.1.1"}
    assert not [address for address in addresses if address.endswith((".0", ".255"))]


# ------------------------------------------------------------------------------------------------------- other users


async def test_another_users_process_gets_no_session_and_cannot_use_one(agent, monkeypatch):
    """The token stays valid for the user's own browser."""
    async with opened(agent) as page, opened(agent, started=False) as stolen, aiohttp.ClientSession() as thief:
        stolen.client, own = thief, stolen.client
        monkeypatch.setattr(tcp_peer, "_uid_from_kernel", lambda *_: os.geteuid() + 1)
        with capture_logs() as logs:
            assert (await stolen.exchange()).status == 403
            assert (await stolen.prove(page.session)).status == 403
            stolen.session = page.session
            for path in ("/v1/status", "/v1/history"):
                assert (await stolen.read(path)).status == 403
        assert [line["event"] for line in logs] == ["page_peer_refused"]
        monkeypatch.undo()
        stolen.client = own
        await stolen.start()


async def test_a_client_that_closes_while_its_user_is_checked_is_disconnected_without_a_warning(agent, monkeypatch):
    async with opened(agent) as page, opened(agent, started=False) as closing:
        monkeypatch.setattr(tcp_peer, "_uid_from_kernel", lambda *_: None)
        with capture_logs() as logs, pytest.raises(aiohttp.ClientError):
            await closing.exchange()
        assert logs == []
        assert (await page.read("/v1/status")).status == 200


async def test_the_agent_proves_that_it_knows_a_session_which_is_not_sent(clock, agent):
    """Not to another address: a server there could pass the proof on."""
    async with opened(agent) as page, opened(agent) as other:
        proof = await page.prove(page.session)
        key, text = hashlib.sha256(page.session.encode()).digest(), f"akosha-agent page {urlsplit(page.base).netloc} "
        assert proof.json == {"proof": hmac.digest(key, (text + NONCE).encode(), "sha256").hex()}
        assert (await page.prove(page.session, nonce="f" * 32)).json != proof.json
        assert (await page.prove("unknown")).status == 401
        for wrong in ({"id": ""}, {"id": "a" * 64}, {"nonce": ""}, {"nonce": "x" * 32}):
            assert (await page.prove(page.session, **wrong)).status == 400
        await clock.advance(SESSION_SECONDS / 2)
        assert (await other.read("/v1/status")).status == 200
        await clock.advance(SESSION_SECONDS / 2)
        assert [(await one.prove(one.session)).status for one in (page, other)] == [401, 200]


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root can become another user")
async def test_a_process_of_a_real_other_user_is_refused(agent):
    async with opened(agent) as page, opened(agent, started=False) as unused:
        arguments = map(str, (OTHER_UID, *page.address, unused.token, page.session))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", OTHER_USER, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        first, second = out.decode().splitlines()
        assert (first[:3], second[:3], "session" in first, values.SYSTEM in second) == ("403", "403", False, False)


# ------------------------------------------------------------------------------------------------------ static files


async def test_the_files_are_served_with_a_policy_that_forbids_other_hosts_and_inline_code(agent):
    files = read_files()
    assert {"/", "/page.css", "/page.js", "/icon.svg"} <= files.keys()
    async with opened(agent, started=False) as page:
        for path, file in files.items():
            response = await page.request("GET", path)
            assert (path, response.status, response.body) == (path, 200, file.body)
            assert response.headers["Content-Type"] == file.content_type
            policy = response.headers["Content-Security-Policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            expected = {
                "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
                "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin",
            }  # fmt: skip
            assert expected.items() <= response.headers.items()
            assert "Service-Worker-Allowed" not in response.headers
        for path in ("/nothing.js", "/__init__.py", "/..%2f__init__.py", "/static/page.js", "/page.js?a=b"):
            assert (await page.request("GET", path)).status in (400, 404)


# -------------------------------------------------------------------------------------------------------------- data


async def test_a_history_is_read_page_by_page(agent, agent_service):
    for number in range(5):
        agent_service.add_event(values.failed(f"r{number}"))
        agent_service.add_event(values.skipped(f"r{number}"))
        agent_service.add_event(values.request(f"r{number}"))
    async with opened(agent) as page:
        first = (await page.read("/v1/history?limit=3&outcome=failed")).json
        second = (await page.read(f"/v1/history?limit=3&outcome=failed&before={first['next']}")).json
        everything = (await page.read("/v1/history")).json
    assert [entry["request_id"] for entry in first["entries"]] == ["r4", "r3", "r2"]
    assert [entry["request_id"] for entry in second["entries"]] == ["r1", "r0"]
    assert (second["next"], everything["next"], len(everything["entries"])) == (None, None, 10)


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=x", "before=-1", "outcome=good", "outcome=", "a=b"])
async def test_an_invalid_query_of_a_history_is_refused(agent, query):
    assert (await agent.problem(400, "GET", f"/v1/history?{query}"))["hint"]


async def test_plots_have_the_successes_and_failures_of_30_days(agent, agent_service):
    now = datetime.now(UTC)
    done = replace(values.succeeded(values.manifest(1, reflection=1)), database_bytes=77)
    for days, event in ((31, done), (29, done), (3, values.failed()), (2, values.skipped())):
        agent_service.add_event(replace(event, time=now - timedelta(days=days)))
    plots = (await agent.request("GET", "/v1/plots")).json
    assert [(point["success"], point["database_bytes"]) for point in plots["results"]] == [(True, 77), (False, 0)]


async def test_uploads_that_cannot_be_read_are_an_error_in_the_document(agent):
    """The fake agent has no bucket."""
    document = (await agent.request("GET", "/v1/uploads")).json
    assert document["uploads"] == []
    assert "akosha_cloud_bucket" in document["error"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(SettingsError("it is off", hint="on"), 409), (NoSuchObject("none"), 409), (StateError("the disk is gone"), 503)],
)
async def test_a_verification_that_is_not_possible_is_refused_with_the_reason(agent, agent_service, error, status):
    agent_service.error = error
    problem = await agent.problem(HTTPStatus(status), "POST", "/v1/verify")
    assert (problem["detail"], problem["hint"]) == (error.message, error.hint)


# ------------------------------------------------------------------------------------------------------- many pages


async def test_fifty_pages_get_each_event_and_share_the_reading_of_the_status(agent_service, tmp_path):
    calls, asked = 0, asyncio.Event()
    described = agent_service.status

    async def status():
        nonlocal calls
        calls += 1
        asked.set()
        return await described()

    agent_service.status = status
    async with serve_agent(agent_service, tmp_path / "state") as agent:
        async with asyncio.timeout(SECONDS), opened(agent) as page:
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector, headers=page.bearing) as client:
                pages = [await client.get(page.base + "/v1/events") for _ in range(50)]
                await agent_service.wait_for_readers(50)
                agent_service.gate.clear()
                asking = [asyncio.create_task(client.get(page.base + "/v1/status")) for _ in range(50)]
                await asked.wait()
                agent_service.add_event(values.skipped())
                for response in pages:
                    while b"akosha.sync.skipped" not in await response.content.readline():
                        pass
                agent_service.gate.set()
                answers = [json.loads(await (await one).read()) for one in asking]
        await agent_service.wait_for_readers(0)
    assert len({json.dumps(answer) for answer in answers}) == 1
    assert calls < 10
