"""The control API over real sockets with a fake agent. Every response is validated against the OpenAPI document."""

import asyncio
import json
import os
import resource
import socket
import stat
import time
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from jsonschema import Draft202012Validator, ValidationError
from structlog.testing import capture_logs

from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import BusError, StateError
from agent.domain.events import IngestFailed, SyncAsked
from agent.entrypoints.control_api import Limits
from agent.entrypoints.control_api.auth import load_or_create_token
from agent.entrypoints.control_api.server import ControlSocket
from agent.entrypoints.formatting import json_value
from agent.entrypoints.result_document import ResultDocument
from agent.entrypoints.status_document import StatusDocument
from agent.settings import Settings
from tests.support import values
from tests.support.control_api import (
    JSON,
    NOON,
    SECONDS,
    SYSTEM,
    FakeAgentService,
    ServedAgent,
    check_response,
    ended,
    make_private,
    progress,
    serve_agent,
    wait_until_clients_left,
)
from tests.support.machine import Machine

CODEC = CloudEventsCodec()
EVENT = {"Content-Type": "application/cloudevents+json"}
INVALID_REQUESTS = "cut bytes deep nan array unknown method null number text space newline long id-number"
TOKEN = "a-token-of-the-settings-0123456789"


@pytest.fixture
def agent_service():
    return FakeAgentService()


@pytest.fixture
async def agent(agent_service, tmp_path):
    async with serve_agent(agent_service, tmp_path / "state") as agent:
        yield agent


# ---------------------------------------------------------------------------------------------------------- requests


async def test_the_status_is_the_document_of_the_command(agent, agent_service):
    response = await agent.request("GET", "/v1/status")
    expected = StatusDocument.of(await agent_service.status(), agent.settings, running=None, problem="").to_dict()
    assert (response.status, response.json) == (200, json.loads(json.dumps(expected, default=json_value)))


async def test_a_sync_is_requested_once_per_id(agent, agent_service):
    response = await agent.request("POST", "/v1/sync", {"id": "mine", "method": "http", "enable_fallback": False})
    assert (response.status, response.json) == (202, {"request_id": "mine", "accepted": True})
    asked = agent_service.asked["mine"]
    assert (asked.system_id, asked.reason, asked.method, asked.enable_fallback) == (SYSTEM, "manual", "http", False)
    assert (asked.upload_reflections, asked.upload_knowledge_graph) == (True, True)
    again = await agent.request("POST", "/v1/sync", {"id": "mine"})
    assert (again.status, again.json, list(agent_service.asked)) == (202, response.json, ["mine"])


async def test_requests_of_one_connection_leave_nothing_behind(agent):
    """They have the same task: what each of them adds to it stays until the connection is closed."""

    def callbacks() -> int:
        tasks = [task for task in asyncio.all_tasks() if "RequestHandler.start" in str(task.get_coro())]
        assert len(tasks) == 1
        return len(tasks[0]._callbacks)

    await agent.request("GET", "/healthz")
    before = callbacks()
    for _ in range(100):
        async with agent.client.get(agent.base + "/healthz") as response:
            await response.read()
    assert callbacks() == before


async def test_without_an_id_or_a_body_a_sync_gets_an_id_of_its_own(agent, agent_service):
    first, second = await agent.request("POST", "/v1/sync", {}), await agent.request("POST", "/v1/sync")
    assert list(agent_service.asked) == [first.json["request_id"], second.json["request_id"]]
    assert len(agent_service.asked) == 2


async def test_a_refused_sync_is_a_conflict_with_the_error_of_the_refusal(agent, agent_service):
    agent_service.refusing = True
    problem = await agent.problem(409, "POST", "/v1/sync", {"id": "mine"})
    expected = ResultDocument.of(agent_service.outcomes["mine"]).to_dict()
    assert (problem["detail"], problem["hint"]) == (expected["error"], expected["hint"])


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(values.succeeded(values.manifest(1)), id="succeeded"),
        pytest.param(values.skipped(), id="skipped"),
        pytest.param(values.failed(), id="failed"),
    ],
)
async def test_the_result_of_a_request_is_the_documented_one(agent, agent_service, result):
    path, key = f"/v1/sync/{result.request_id}", "/v1/sync/{request_id}"
    await agent.problem(404, "GET", path)
    agent_service.outcomes[result.request_id] = result
    response = await agent.request("GET", path)
    assert (response.status, response.json) == (200, json.loads(json.dumps(ResultDocument.of(result).to_dict())))
    check_response(ServedAgent.document, key, "GET", 200, "application/json", response.json)
    assert (await agent.request("HEAD", path)).status == 200


@pytest.mark.parametrize("name", ["none", "%00", "..%2f..", "{request_id}", "x" * 3000, "%F0%9F%90%98", "a b"])
async def test_an_unknown_request_has_no_result(agent, name):
    path = f"/v1/sync/{name}"
    problem = await agent.problem(404, "GET", path)
    check_response(ServedAgent.document, "/v1/sync/{request_id}", "GET", 404, "application/problem+json", problem)
    assert len(problem["detail"]) < 600


@pytest.mark.parametrize("headers", [JSON, EVENT, {"Content-Type": "application/json; charset=utf-8"}])
async def test_an_event_is_accepted_and_recognized_when_it_comes_again(agent, agent_service, headers):
    event = CODEC.encode(ended())
    first = await agent.request("POST", "/v1/events", event, headers=headers)
    again = await agent.request("POST", "/v1/events", event, headers=headers)
    assert (first.status, first.json) == (202, {"id": "session-0", "new": True})
    assert (again.status, again.json) == (202, {"id": "session-0", "new": False})
    assert agent_service.accepted == [ended(), ended()]


async def test_a_sync_can_be_requested_as_an_event(agent, agent_service):
    asked = SyncAsked(id="by-event", time=NOON, system_id=SYSTEM)
    assert (await agent.request("POST", "/v1/events", CODEC.encode(asked), headers=EVENT)).status == 202
    assert agent_service.accepted == [asked]


async def test_an_event_of_a_client_that_disconnects_at_once_is_accepted(agent, agent_service):
    body = CODEC.encode(ended())
    head = b"POST /v1/events HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as hook:
        hook.connect(str(agent.path))
        hook.sendall(head % len(body) + body)
    await agent_service.wait_for(lambda: agent_service.accepted)
    assert agent_service.accepted == [ended()]


async def test_the_metrics_are_returned_unchanged(agent):
    response = await agent.request("GET", "/metrics")
    assert (response.status, response.body) == (200, b"akosha_up 1\n")
    assert response.headers["Content-Type"] == "text/plain; version=1.0.0; charset=utf-8"


async def test_health_and_readiness_are_those_of_the_agent(agent, agent_service):
    assert (await agent.request("GET", "/healthz")).json == {"status": "ok"}
    assert (await agent.request("GET", "/readyz")).json == {"status": "ok"}
    agent_service.is_ready = False
    assert (await agent.request("GET", "/healthz")).status == 200
    unready = await agent.request("GET", "/readyz")
    assert (unready.status, unready.json) == (503, {"status": "starting", "trouble": {}})
    agent_service.is_ready, agent_service.stuck = True, {"watcher": "it has not looked for 9 min"}
    for path in ("/healthz", "/readyz"):
        stuck = await agent.request("GET", path)
        assert (stuck.status, stuck.json) == (503, {"status": "stuck", "trouble": agent_service.stuck})


async def test_head_is_get_without_a_body(agent):
    for path in ("/v1/status", "/v1/events", "/metrics", "/healthz", "/readyz", "/openapi.json"):
        response = await agent.request("HEAD", path)
        assert (path, response.status, response.body) == (path, 200, b"")
    get = await agent.request("GET", "/v1/status")
    head = await agent.request("HEAD", "/v1/status")
    assert head.headers["Content-Length"] == get.headers["Content-Length"]


# --------------------------------------------------------------------------------------------------- invalid requests


@pytest.mark.parametrize("path", ["/v1", "/v1/status/", "//v1/status", "/v1%2fstatus/", "/v1/sync/x"])
async def test_an_unknown_path_is_not_found(agent, path):
    assert (await agent.request("GET", path)).status == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/sync", "POST"),
        ("POST", "/v1/sync/x", "GET, HEAD"),
        ("POST", "/v1/status", "GET, HEAD"),
        ("DELETE", "/v1/events", "GET, HEAD, POST"),
        ("OPTIONS", "/v1/events", "GET, HEAD, POST"),
        ("PATCH", "/healthz", "GET, HEAD"),
    ],
)
async def test_a_method_that_is_not_allowed_is_answered_with_those_that_are(agent, method, path, allowed):
    response = await agent.request(method, path)
    assert (response.status, response.headers["Allow"]) == (405, allowed)
    assert not [name for name in response.headers if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 60_000, "not JSON"),
        (b'{"id": NaN}', "not JSON"),
        (b"[]", "not a JSON object"),
        ({"methods": "cloud"}, "methods: "),
        ({"method": "carrier-pigeon"}, "method: "),
        ({"method": None}, "method: "),
        ({"enable_fallback": 1}, "enable_fallback: "),
        ({"enable_fallback": "true"}, "enable_fallback: "),
        ({"id": "a b"}, "id: "),
        ({"id": "a\n"}, "id: "),
        ({"id": "x" * 129}, "id: "),
        ({"id": 1}, "id: "),
    ],
    ids=INVALID_REQUESTS.split(),
)
async def test_an_invalid_sync_request_is_answered_with_the_reason(agent, agent_service, body, what):
    assert what in (await agent.problem(400, "POST", "/v1/sync", body))["detail"]
    assert not agent_service.asked


@pytest.mark.parametrize(
    "event",
    [
        b"",
        b"{}",
        CODEC.encode(progress()),
        CODEC.encode(IngestFailed(id="i", time=NOON, system_id=SYSTEM, upload_id="u", error="e")),
        CODEC.encode(ended()).replace(SYSTEM.encode(), b"another"),
        CODEC.encode(ended()).replace(b"1.0", b"2.0"),
    ],
    ids=["nothing", "empty", "progress", "ingest", "another-system", "another-version"],
)
async def test_an_event_that_is_not_for_the_agent_is_refused_with_the_reason(agent, agent_service, event):
    assert (await agent.problem(400, "POST", "/v1/events", event, headers=EVENT))["detail"]
    assert not agent_service.accepted


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/sync", {"Content-Type": "text/plain"}),
        ("/v1/sync", {"Content-Type": "application/x-www-form-urlencoded"}),
        ("/v1/sync", EVENT),
        ("/v1/events", {"Content-Type": "text/plain"}),
        ("/v1/events", EVENT | {"Content-Encoding": "gzip"}),
    ],
    ids=["text", "form", "event", "event-text", "gzip"],
)
async def test_only_json_is_accepted(agent, agent_service, path, headers):
    await agent.problem(415, "POST", path, b"{}", headers=headers)
    assert not agent_service.asked
    assert not agent_service.accepted


async def chunks(size: int):
    for _ in range(size // 1024):
        yield b" " * 1024


async def test_a_body_of_64_kib_is_read_and_a_larger_one_is_refused(agent):
    fits = b"{" + b" " * (64 * 1024 - 2) + b"}"
    assert (await agent.request("POST", "/v1/sync", fits)).status == 202
    assert "65536" in (await agent.problem(413, "POST", "/v1/sync", fits + b" "))["detail"]
    async with agent.client.post(agent.base + "/v1/sync", data=chunks(80 * 1024), headers=JSON) as response:
        assert response.status == 413
    assert (await agent.request("GET", "/healthz")).status == 200


async def test_a_client_that_expects_100_continue_gets_it(agent, agent_service):
    assert (await agent.request("POST", "/v1/sync", {"id": "patient"}, expect100=True)).status == 202
    assert list(agent_service.asked) == ["patient"]


@pytest.mark.parametrize(
    "query", ["status?verbose=1", "events?afetr=1", "events?after=-1", "events?after=", "events?after=1e3",
              "events?after=9999999999999999999", "events?after=\u0661"],
)  # fmt: skip
async def test_an_invalid_query_is_a_bad_request(agent, query):
    assert (await agent.problem(400, "GET", f"/v1/{query}"))["detail"]


@pytest.mark.parametrize("error", [StateError("the disk is gone", hint="mount it"), BusError("the bus is gone")])
async def test_an_unavailable_ledger_or_bus_is_a_503_with_a_hint(agent, agent_service, error):
    agent_service.error = error
    problem = await agent.problem(503, "POST", "/v1/sync", {})
    assert (problem["detail"], problem["hint"]) == (error.message, error.hint)


@pytest.mark.parametrize("error", [RuntimeError("sesame"), ConnectionResetError("sesame"), TimeoutError("sesame")])
async def test_an_internal_error_is_logged_and_answered_without_details(agent, agent_service, error):
    agent_service.error = error
    with capture_logs() as logs:
        response = await agent.request("GET", "/v1/status")
    assert response.status == 500
    assert b"sesame" not in response.body
    [line] = logs
    assert (line["event"], line["log_level"], line["exc_info"]) == ("control_failed", "error", True)
    agent_service.error = None
    assert (await agent.request("GET", "/v1/status")).status == 200


# ----------------------------------------------------------------------------------------------------- event stream


async def test_a_reader_gets_events_from_now_on_and_progress_without_a_position(agent, agent_service):
    agent_service.add_event(ended(1))
    async with agent.follow() as stream:
        await agent_service.wait_for_readers(1)
        agent_service.add_event(progress(1))
        agent_service.add_event(ended(2))
        passing, entry = await stream.messages(2)
    assert (passing["event"], json.loads(passing["data"])["id"], "id" in passing) == (
        "akosha.sync.progress.v1", "p1", False,
    )  # fmt: skip
    assert (entry["id"], entry["event"], json.loads(entry["data"])["id"]) == (
        "2",
        "akosha.session.ended.v1",
        "session-2",
    )
    assert CODEC.decode(entry["data"].encode()) == ended(2)
    await agent_service.wait_for_readers(0)


async def test_a_reader_that_disconnects_before_its_first_event_continues_without_a_gap(agent, agent_service):
    """The first message is the position at which the stream starts."""
    agent_service.add_event(ended(), count=5)
    async with agent.follow() as stream, asyncio.timeout(SECONDS):
        begins = [await stream._next() for _ in range(2)]
    assert begins == [{"retry": "1000"}, {"id": "5"}]
    await agent_service.wait_for_readers(0)
    agent_service.add_event(ended(), count=2)
    async with agent.follow(**{"Last-Event-ID": "5"}) as stream:
        assert await stream.ids(2) == [6, 7]


async def test_an_event_during_the_start_of_a_stream_is_in_it(agent, agent_service):
    async with agent.follow() as stream:
        agent_service.add_event(ended())
        assert await stream.ids(1) == [1]


async def test_a_reader_that_reconnects_continues_without_gap_or_duplicate(agent, agent_service):
    agent_service.add_event(ended(), count=5)
    async with agent.follow("?after=0") as stream:
        seen = await stream.ids(3)
    await agent_service.wait_for_readers(0)
    agent_service.add_event(ended(), count=2)
    async with agent.follow("?after=0", **{"Last-Event-ID": str(seen[-1])}) as stream:
        seen += await stream.ids(4)
        agent_service.add_event(ended())
        seen += await stream.ids(1)
    assert seen == list(range(1, 9))


async def test_readers_get_heartbeats_and_timers_run_only_while_there_are_readers(agent_service, tmp_path):
    async with serve_agent(agent_service, tmp_path / "state", limits=Limits(heartbeat_seconds=0.05)) as agent:
        assert timers() == []
        async with agent.follow() as stream:
            await stream.heartbeat()
            agent_service.add_event(ended())
            assert await stream.ids(1) == [1]
            await stream.heartbeat()
        await agent_service.wait_for_readers(0)
    assert timers() == []


async def test_an_idle_server_has_no_timer_and_no_task(agent_service, tmp_path):
    before = asyncio.all_tasks()
    async with serve_agent(agent_service, tmp_path / "state") as agent:
        await agent.request("GET", "/healthz")
        await agent.client.close()
        await wait_until_clients_left(agent)
        assert timers() == []
        assert asyncio.all_tasks() <= before


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def timers() -> list:
    return [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]


async def test_a_stalled_reader_is_disconnected_and_the_others_continue(agent_service, tmp_path):
    limits = Limits(heartbeat_seconds=0.05, stalled_seconds=0.2)
    async with serve_agent(agent_service, tmp_path / "state", limits=limits) as agent:
        with socket.socket(socket.AF_UNIX) as stalled:
            stalled.connect(str(agent.path))
            stalled.sendall(b"GET /v1/events?after=0 HTTP/1.1\r\nHost: h\r\n\r\n")
            await agent_service.wait_for_readers(1)
            async with agent.follow() as stream:
                await agent_service.wait_for_readers(2)
                with capture_logs() as logs:
                    agent_service.add_event(
                        replace(ended(), reason="x" * 20_000), count=100
                    )  # more than a socket buffers
                    assert await stream.ids(100) == list(range(1, 101))
                    await agent_service.wait_for_readers(1)
                agent_service.add_event(ended())
                assert await stream.ids(1) == [101]
    assert [line["event"] for line in logs] == ["control_reader_stalled"]


async def test_too_many_readers_get_a_503(agent_service, tmp_path):
    async with serve_agent(agent_service, tmp_path / "state", limits=Limits(readers=1)) as agent:
        async with agent.follow():
            await agent_service.wait_for_readers(1)
            assert "too many event readers" in (await agent.problem(503, "GET", "/v1/events"))["detail"]
        await agent_service.wait_for_readers(0)
        async with agent.follow():
            await agent_service.wait_for_readers(1)


async def test_a_failing_ledger_breaks_the_stream_so_that_readers_reconnect(agent, agent_service):
    agent_service.error = StateError("the disk is gone")
    with capture_logs() as logs, pytest.raises(aiohttp.ClientError):
        async with agent.follow() as stream:
            await stream.end()
    [line] = logs
    assert (line["event"], line["error"]) == ("control_events_broken", "the disk is gone")


async def test_a_shutdown_ends_event_streams_cleanly_within_a_second(agent_service, tmp_path):
    server = serve_agent(agent_service, tmp_path / "state")
    served = await server.__aenter__()
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(served.path))) as client:
        others = ServedAgent(served.state, served.settings, client)
        async with others.follow("?after=0") as stream:
            agent_service.add_event(ended())
            assert await stream.ids(1) == [1]
            _, idle = await asyncio.open_unix_connection(served.path)
            agent_service.gate.clear()
            stuck = asyncio.create_task(client.get(others.base + "/v1/status"))
            reading = asyncio.create_task(stream.end())
            await wait_until_clients_left(served)
            started = time.monotonic()
            await server.__aexit__(None, None, None)
            took = time.monotonic() - started
            await reading
            with pytest.raises(aiohttp.ClientError):
                await stuck
            idle.close()
    assert took < 1
    assert not served.path.exists()


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if wanted < 3000:
        pytest.skip(f"this process is limited to {wanted} file descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_500_readers_at_once_get_every_event(agent_service, tmp_path, many_descriptors):
    async def read(reader, count: int) -> list[bytes]:
        found = []
        while len(found) < count:
            line = await reader.readline()
            assert line
            if line.startswith(b"id: "):
                found.append(line[4:].strip())
        return found

    async with serve_agent(agent_service, tmp_path / "state") as agent, asyncio.timeout(SECONDS):
        connections = [await asyncio.open_unix_connection(agent.path) for _ in range(500)]
        for _, writer in connections:
            writer.write(b"GET /v1/events HTTP/1.1\r\nHost: h\r\n\r\n")
        await agent_service.wait_for_readers(500)
        agent_service.add_event(ended(1))
        agent_service.add_event(ended(2))
        received = await asyncio.gather(*(read(reader, 3) for reader, _ in connections))
        assert received == [[b"0", b"1", b"2"]] * 500  # the start position and both events
        assert (await agent.request("GET", "/healthz")).status == 200
        for _, writer in connections:
            writer.close()
        await agent_service.wait_for_readers(0)


# ------------------------------------------------------------------------------------------------- the Unix socket


async def test_the_socket_is_private_and_removed_at_the_end(agent_service, tmp_path):
    old = os.umask(0)
    try:
        async with serve_agent(agent_service, tmp_path / "state") as agent:
            mode = agent.path.lstat().st_mode
            assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
            assert names(agent.state) == ["control.sock"]
    finally:
        os.umask(old)
    assert names(tmp_path / "state") == []


async def test_the_socket_is_private_before_it_listens(tmp_path, monkeypatch):
    seen = []

    def listen(self, backlog):
        [name] = names(tmp_path)
        seen.append((name, stat.S_IMODE((tmp_path / name).lstat().st_mode)))
        return real(self, backlog)

    real = socket.socket.listen
    monkeypatch.setattr(socket.socket, "listen", listen)
    file = ControlSocket.open(tmp_path, backlog=1)
    file.listening.close()
    assert seen == [("control.new", 0o600)]


async def test_agents_with_two_state_directories_do_not_interfere(tmp_path):
    first, second = FakeAgentService(), FakeAgentService()
    first_state, second_state = tmp_path / "a" / "state", tmp_path / "b" / "state"
    async with serve_agent(first, first_state) as one, serve_agent(second, second_state, alone=False) as other:
        await one.request("POST", "/v1/sync", {"id": "one"})
        await other.request("POST", "/v1/sync", {"id": "other"})
    assert (list(first.asked), list(second.asked)) == (["one"], ["other"])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux can reach a socket through a descriptor")
async def test_a_path_longer_than_an_address_is_reached_through_the_directory(agent_service, tmp_path):
    state = tmp_path / ("d" * 100) / ("e" * 100)
    async with serve_agent(agent_service, state) as agent:
        assert stat.S_IMODE(agent.path.lstat().st_mode) == 0o600
        assert (await agent.request("GET", "/healthz")).status == 200
    assert names(state) == []


async def test_without_a_socket_the_agent_runs(agent_service, tmp_path):
    make_private(tmp_path / "state" / "control.sock")
    with capture_logs() as logs:
        async with serve_agent(agent_service, tmp_path / "state"):
            pass
    [line] = logs
    assert (line["event"], line["log_level"], "control.sock" in line["error"]) == (
        "control_socket_unavailable", "warning", True,
    )  # fmt: skip
    assert line["hint"]
    assert names(tmp_path / "state") == ["control.sock"]


async def test_the_socket_of_a_successor_is_left_alone(agent_service, tmp_path):
    async with serve_agent(agent_service, tmp_path / "state") as agent:
        agent.path.unlink()
        agent.path.write_text("another's")
    assert agent.path.read_text() == "another's"


# ------------------------------------------------------------------------------------------------- the loopback port


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
async def exposed(agent_service, tmp_path, port):
    async with serve_agent(
        agent_service, tmp_path / "state", over="tcp", agent_http_port=port, agent_http_token=TOKEN
    ) as agent:
        yield agent


def bearing(token: str, **more: str) -> dict:
    return JSON | {"Authorization": f"Bearer {token}"} | more


async def test_over_the_port_changes_need_a_token_and_reading_does_not(exposed, agent_service):
    assert (await exposed.request("GET", "/v1/status")).status == 200
    assert (await exposed.request("POST", "/v1/sync", {"id": "known"}, headers=bearing(TOKEN))).status == 202
    body = CODEC.encode(ended())
    assert (await exposed.request("POST", "/v1/events", body, headers=bearing(TOKEN))).status == 202
    assert (list(agent_service.asked), agent_service.accepted) == (["known"], [ended()])


@pytest.mark.parametrize(
    "headers",
    [
        JSON,
        bearing(""),
        bearing("another-token"),
        bearing(TOKEN[:-1]),
        bearing(TOKEN + "x"),
        JSON | {"Authorization": f"Basic {TOKEN}"},
        JSON | {"Authorization": TOKEN},
        bearing("t\u00f6ken"),
    ],
    ids=["none", "empty", "another", "shorter", "longer", "basic", "bare", "not-ascii"],
)
async def test_over_the_port_nothing_changes_without_the_token(exposed, agent_service, headers):
    for path, body in (("/v1/sync", b"{}"), ("/v1/events", CODEC.encode(ended()))):
        response = await exposed.request("POST", path, body, headers=headers)
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, 'Bearer realm="akosha-agent"')
        assert TOKEN.encode() not in response.body
    assert not agent_service.asked
    assert not agent_service.accepted


@pytest.mark.parametrize("host", ["127.0.0.1:{}", "localhost:{}", "LocalHost:{}", "[::1]:{}"])
async def test_the_names_of_the_loopback_address_are_accepted_as_host(exposed, port, host):
    address = host.format(port)
    assert (await exposed.request("GET", "/healthz", headers={"Host": address})).status == 200
    origin = {"Host": address, "Origin": f"http://{address.lower()}"}
    assert (await exposed.request("GET", "/healthz", headers=origin)).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example:{}", "127.0.0.1", "localhost", "127.0.0.1:1", "127.0.0.1:{}.evil.example"]
)
async def test_another_host_is_refused_even_for_reading(exposed, agent_service, port, host):
    """With DNS rebinding, a web page's name resolves to this machine, so the browser treats the API as same-origin."""
    problem = await exposed.problem(403, "GET", "/v1/status", headers={"Host": host.format(port)})
    assert "Host" in problem["detail"]
    headers = bearing(TOKEN, Host=host.format(port))
    assert (await exposed.request("POST", "/v1/sync", {}, headers=headers)).status == 403
    assert not agent_service.asked


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{}", "http://127.0.0.1:1", ""])
async def test_another_origin_is_refused_even_for_reading(exposed, agent_service, port, origin):
    problem = await exposed.problem(403, "GET", "/v1/events", headers={"Origin": origin.format(port)})
    assert "Origin" in problem["detail"]
    headers = bearing(TOKEN, Origin=origin.format(port))
    assert (await exposed.request("POST", "/v1/sync", {}, headers=headers)).status == 403
    assert not agent_service.asked


@pytest.mark.parametrize("site", ["cross-site", "same-site", ""])
@pytest.mark.parametrize("path", ["/v1/status", "/v1/events", "/healthz", "/nothing"])
async def test_an_image_or_script_of_a_web_page_is_refused(exposed, path, site):
    """A browser sends no Origin for these, but says where the request comes from."""
    problem = await exposed.problem(403, "GET", path, headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"})
    assert "Sec-Fetch-Site" in problem["detail"]


async def test_an_address_that_the_user_enters_in_a_browser_is_answered_for_that_site_only(exposed):
    response = await exposed.request("GET", "/healthz", headers={"Sec-Fetch-Site": "none"})
    assert response.status == 200
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert not [name for name in response.headers if name.lower().startswith("access-control-")]


async def test_a_web_pages_websocket_is_refused(exposed):
    """Browsers let every page open one to any address."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    headers = upgrade | {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Origin": "http://evil.example"}
    await exposed.problem(403, "GET", "/v1/events", headers=headers)


async def test_over_the_port_host_is_checked_before_the_path(exposed):
    assert (await exposed.request("GET", "/nothing", headers={"Host": "evil.example"})).status == 403
    assert (await exposed.request("GET", "/nothing")).status == 404


async def test_without_a_token_in_the_settings_a_private_one_is_created_once(agent_service, tmp_path, port):
    tokens = []
    old = os.umask(0)
    try:
        for _ in range(2):
            async with serve_agent(agent_service, tmp_path / "state", over="tcp", agent_http_port=port) as agent:
                file = agent.state / "http-token"
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
                tokens.append(file.read_text().strip())
                response = await agent.request("POST", "/v1/sync", {}, headers=bearing(tokens[-1]))
                assert response.status == 202
                assert (await agent.request("POST", "/v1/sync", {}, headers=bearing(TOKEN))).status == 401
    finally:
        os.umask(old)
    assert tokens[0] == tokens[1]
    assert len(tokens[0]) >= 43


@pytest.mark.parametrize("damage", ["exposed", "empty", "short", "link", "directory"])
def test_a_token_that_is_invalid_or_not_private_is_replaced(tmp_path, damage):
    file = tmp_path / "http-token"
    (tmp_path / "elsewhere").write_text("e" * 43)
    file.write_text({"empty": "", "short": "abc"}.get(damage, "k" * 43))
    file.chmod(0o644 if damage == "exposed" else 0o600)
    if damage in ("link", "directory"):
        file.unlink()
        file.symlink_to("elsewhere") if damage == "link" else file.mkdir()
    if damage == "directory":
        with pytest.raises(OSError, match="http-token"):
            load_or_create_token(tmp_path)
        return
    with capture_logs() as logs:
        token = load_or_create_token(tmp_path)
    assert token not in ("k" * 43, "e" * 43)
    assert (file.read_text().strip(), stat.S_IMODE(file.lstat().st_mode)) == (token, 0o600)
    assert [line["event"] for line in logs] == ["http_token_replaced"]
    assert token not in str(logs)
    assert load_or_create_token(tmp_path) == token


async def test_a_port_in_use_is_logged_with_a_hint_and_the_agent_runs_without_it(agent_service, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other, capture_logs() as logs:
        taken = other.getsockname()[1]
        async with serve_agent(
            agent_service, tmp_path / "state", agent_http_port=taken, agent_http_token=TOKEN
        ) as agent:
            assert (await agent.request("GET", "/healthz")).status == 200
    [line] = [line for line in logs if line["log_level"] == "error"]
    assert (line["event"], line["port"], "akosha_agent_http_port" in line["hint"]) == (
        "control_port_unavailable", taken, True,
    )  # fmt: skip
    assert agent_service.port_problem.message == f"port {taken} for HTTP is not open: {line['error']}"
    assert agent_service.port_problem.hint.startswith(line["hint"])
    async with serve_agent(agent_service, tmp_path / "state", agent_http_port=taken, agent_http_token=TOKEN):
        assert agent_service.port_problem is None, "the port is free now"


# ------------------------------------------------------------------------------------------------------ the document


async def test_the_openapi_document_is_valid_and_has_every_route_that_is_served(agent, agent_service):
    from openapi_spec_validator import validate

    agent_service.outcomes["r1"] = values.skipped()
    document = (await agent.request("GET", "/openapi.json")).json
    validate(document)
    asked = {(path, method.upper()) for path, methods in document["paths"].items() for method in methods}
    assert asked == {
        ("/v1/status", "GET"), ("/v1/sync", "POST"), ("/v1/sync/{request_id}", "GET"), ("/v1/events", "POST"),
        ("/v1/events", "GET"), ("/metrics", "GET"), ("/healthz", "GET"), ("/readyz", "GET"), ("/openapi.json", "GET"),
        ("/v1/history", "GET"), ("/v1/plots", "GET"), ("/v1/uploads", "GET"), ("/v1/verify", "POST"),
        ("/v1/page", "POST"), ("/v1/page/session", "POST"), ("/v1/page/proof", "POST"),
    }  # fmt: skip
    for path, method in asked:
        response = await agent.request("HEAD" if method == "GET" else method, path.replace("{request_id}", "r1"))
        assert response.status not in (404, 405)


@pytest.mark.parametrize("event", [ended(), progress(), SyncAsked(id="a", time=NOON, system_id=SYSTEM)])
async def test_events_match_their_schemas_in_the_openapi_document(agent, event):
    await agent.request("GET", "/healthz")
    schemas = json.loads(ServedAgent.document)["components"]["schemas"]
    schema = {"components": {"schemas": schemas}, "$ref": f"#/components/schemas/{type(event).__name__}"}
    Draft202012Validator(schema).validate(json.loads(CODEC.encode(event)))
    with pytest.raises(ValidationError):
        Draft202012Validator(schema).validate({**json.loads(CODEC.encode(event)), "type": "another"})


# -------------------------------------------------------------------------------------------------- a running agent


async def test_a_running_agent_syncs_on_request_and_sends_the_result(tmp_path):
    machine = Machine(tmp_path)
    machine.write(commits=3)
    with machine.run():
        connector = aiohttp.UnixConnector(str(machine.state / "control.sock"))
        async with aiohttp.ClientSession(connector=connector) as client, asyncio.timeout(SECONDS):
            agent = ServedAgent(machine.state, Settings(), client)
            async with agent.follow("?after=0") as stream:
                assert (await agent.request("POST", "/v1/sync", {"id": "mine"})).status == 202
                data = {}
                while data.get("request_id") != "mine" or "success" not in data:
                    [message] = await stream.messages(1)
                    data = json.loads(message["data"])["data"]
                assert data["success"] is True
            result = (await agent.request("GET", "/v1/sync/mine")).json
            assert {name: result[name] for name in ("success", "upload_id", "triggered_by")} == {
                name: data[name] for name in ("success", "upload_id", "triggered_by")
            }
            status = await agent.request("GET", "/v1/status")
            assert (status.json["pending"], status.json["running"]["command"]) == ([], "run")
            assert (await agent.request("GET", "/readyz")).json == {"status": "ok"}
            assert b"akosha" in (await agent.request("GET", "/metrics")).body
    assert not (machine.state / "control.sock").exists()
