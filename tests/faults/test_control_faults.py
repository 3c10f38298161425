"""The control API with misbehaving clients: other users, and slow, large, invalid or too many requests."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest
from structlog.testing import capture_logs

from agent.entrypoints.control_api import Limits
from agent.entrypoints.control_api.connection import SPARE_CONNECTIONS
from tests.support.control_api import JSON, SECONDS, FakeAgentService, serve_agent, wait_until_clients_left
from tests.support.waiting import until

SHORT = Limits(head_seconds=0.2, body_seconds=0.2)
OTHER_UID = 65_534
POST = b"POST /v1/sync HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"

OTHER_USER = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.connect(sys.argv[1])
    os.setuid(int(sys.argv[2]))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.settimeout(60)
        try:
            stranger.connect(sys.argv[1])
            stranger.sendall(b"GET /v1/status HTTP/1.1\\r\\nHost: h\\r\\n\\r\\n")
            print(stranger.recv(100))
        except OSError as error:
            print(type(error).__name__)
    listener.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: h\\r\\n\\r\\n")
    print(listener.recv(15))
"""

KILLED = """
import socket, sys
with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[1])
    listener.listen()
    print("open", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def agent_service():
    return FakeAgentService()


@pytest.fixture
def tcp_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@asynccontextmanager
async def connected(agent):
    reader, writer = await asyncio.open_unix_connection(agent.path)
    try:
        async with asyncio.timeout(SECONDS):
            yield reader, writer
    finally:
        writer.close()


async def read_problem(reader) -> tuple[int, dict]:
    """The status and the problem document of the next response."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    return int(head[0].split()[1]), json.loads(await reader.readexactly(int(fields["content-length"])))


async def run(program: str, *arguments: object) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, *map(str, arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


@pytest.fixture
def public_directory():
    """A directory that every user can reach."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="this system does not report the peer's user")
async def test_another_users_process_is_refused_even_if_the_modes_allow_it(agent_service, public_directory):
    """It receives nothing. A connection from before the change of user is served."""
    async with serve_agent(agent_service, public_directory / "state") as agent:
        agent.state.chmod(0o777)
        agent.path.chmod(0o777)
        with capture_logs() as logs:
            for _ in range(2):
                other, own = await run(OTHER_USER, agent.path, OTHER_UID)
                assert other in ("b''", "ConnectionResetError", "BrokenPipeError")
                assert own == "b'HTTP/1.1 200 OK'"
        assert (await agent.request("GET", "/healthz")).status == 200
    assert [(line["event"], line["uid"]) for line in logs] == [("control_peer_refused", OTHER_UID)]


async def test_another_users_process_cannot_reach_the_socket(agent_service, public_directory):
    async with serve_agent(agent_service, public_directory / "state") as agent:
        other, _ = await run(OTHER_USER, agent.path, OTHER_UID)
        assert other == "PermissionError"


async def test_a_stale_socket_of_a_killed_agent_is_replaced(agent_service, tmp_path):
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, state / "control.sock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "open\n"
        process.send_signal(signal.SIGKILL)
    (state / "control.new").touch()  # left by a kill before the rename
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(state / "control.sock"))
    async with serve_agent(agent_service, state) as agent:
        assert (await agent.request("GET", "/healthz")).status == 200
    assert list(state.iterdir()) == []


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HT", b"GET /healthz HTTP/1.1\r\nHost: h\r\n"])
async def test_a_connection_without_a_request_is_closed_in_time(agent_service, tmp_path, sent):
    async with (
        serve_agent(agent_service, tmp_path / "state", limits=SHORT) as agent,
        connected(agent) as (reader, writer),
    ):
        writer.write(sent)
        assert await reader.read() == b""


async def test_a_head_sent_byte_by_byte_does_not_extend_the_timeout(agent_service, tmp_path):
    async def drip(writer):
        with suppress(ConnectionError):
            for byte in b"GET /healthz HTTP/1.1\r\nX-Long: " + b"x" * 8000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.01)

    async with serve_agent(agent_service, tmp_path / "state", limits=SHORT) as agent:
        for after_a_request in (False, True):
            async with connected(agent) as (reader, writer):
                if after_a_request:
                    writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
                    assert await read_problem(reader) == (200, {"status": "ok"})
                dripping = asyncio.create_task(drip(writer))
                with suppress(ConnectionError):
                    assert await reader.read() == b""
                await dripping


async def test_a_late_body_gets_a_408_and_the_connection_is_closed(agent_service, tmp_path):
    async with (
        serve_agent(agent_service, tmp_path / "state", limits=SHORT) as agent,
        connected(agent) as (reader, writer),
    ):
        writer.write(POST + b"Content-Length: 9\r\n\r\n{")
        status, problem = await read_problem(reader)
        assert (status, problem["detail"]) == (408, "the body was not received within 0.2 s")
        assert await reader.read() == b""
    assert not agent_service.asked


async def test_an_incomplete_body_changes_nothing(agent_service, tmp_path):
    async with serve_agent(agent_service, tmp_path / "state") as agent:
        async with connected(agent) as (_, writer):
            writer.write(POST + b"Content-Length: 9\r\n\r\n{}")
        with capture_logs() as logs:
            await wait_until_clients_left(agent)
            assert (await agent.request("GET", "/healthz")).status == 200
    assert (agent_service.asked, logs) == ({}, [])


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET /healthz HTTP/9.9\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/sync HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}", 400),
        (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 431),
        (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
    ],
    ids=["tls", "hello", "version", "header", "length", "smuggling", "chunks", "long-line", "long-header"],
)  # fmt: skip
async def test_an_invalid_request_gets_a_problem_and_is_not_logged(agent_service, tmp_path, sent, status):
    async with serve_agent(agent_service, tmp_path / "state") as agent:
        with capture_logs() as logs:
            async with connected(agent) as (reader, writer):
                writer.write(sent)
                got, problem = await read_problem(reader)
                assert (got, problem["status"], bool(problem["detail"])) == (status, status, True)
                assert await reader.read() == b""
    assert (logs, agent_service.asked) == ([], {})


async def test_a_client_that_sends_too_large_a_body_gets_a_413(agent_service, tmp_path):
    """If the server closed at once, a reset would discard the response."""

    def send_and_read(path) -> bytes:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(SECONDS)
            client.connect(str(path))
            size = 4 * 1024 * 1024
            client.sendall(POST + b"Content-Length: %d\r\n\r\n" % size + b" " * size)
            return client.recv(12)

    async with serve_agent(agent_service, tmp_path / "state") as agent:
        assert await asyncio.to_thread(send_and_read, agent.path) == b"HTTP/1.1 413"


async def test_a_declared_body_that_is_too_large_is_refused_before_it_is_sent(agent_service, tmp_path):
    async with serve_agent(agent_service, tmp_path / "state") as agent, connected(agent) as (reader, writer):
        writer.write(POST + b"Content-Length: 999999\r\n\r\n")
        got, _ = await read_problem(reader)
        assert got == 413


async def test_too_many_connections_get_a_503_until_others_close(agent_service, tmp_path):
    few = Limits(connections=2)
    async with (
        serve_agent(agent_service, tmp_path / "state", limits=few) as agent,
        connected(agent),
        connected(agent) as (_, second),
    ):
        async with connected(agent) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            status, problem = await read_problem(reader)
            assert (status, "connections" in problem["detail"]) == (503, True)
            assert await reader.read() == b""
        second.close()
        await second.wait_closed()
        async with connected(agent) as (reader, writer):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
            assert await read_problem(reader) == (200, {"status": "ok"})


async def test_connections_to_the_port_do_not_use_up_those_of_the_unix_socket(agent_service, tmp_path, tcp_port):
    few = Limits(connections=4)
    async with serve_agent(agent_service, tmp_path / "state", limits=few, agent_http_port=tcp_port) as agent:
        with ExitStack() as stack:
            for _ in range(4 + SPARE_CONNECTIONS):
                stack.enter_context(socket.create_connection(("127.0.0.1", tcp_port)))
            refused = stack.enter_context(socket.create_connection(("127.0.0.1", tcp_port)))
            refused.settimeout(SECONDS)
            with suppress(ConnectionResetError):
                assert await asyncio.to_thread(refused.recv, 1) == b""
            async with connected(agent) as (reader, writer):
                writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n")
                assert await read_problem(reader) == (200, {"status": "ok"})


async def test_a_client_that_does_not_read_the_response_is_disconnected(agent_service, tmp_path):
    tasks = []

    async def large_metrics() -> tuple[bytes, str]:
        tasks.append(asyncio.current_task())
        return b"x" * 2**24, "text/plain"  # more than a socket buffers

    limits = Limits(stalled_seconds=0.2)
    async with serve_agent(agent_service, tmp_path / "state", limits=limits, metrics=large_metrics) as agent:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(agent.path))
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n")
            await until(lambda: tasks)
            done, _ = await asyncio.wait(tasks, timeout=SECONDS)
            assert done


async def test_pipelined_requests_are_answered_in_order(agent_service, tmp_path):
    async with serve_agent(agent_service, tmp_path / "state") as agent, connected(agent) as (reader, writer):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\nGET /nothing HTTP/1.1\r\nHost: h\r\n\r\n")
        assert [(await read_problem(reader))[0] for _ in range(2)] == [200, 404]


async def test_a_client_that_disconnects_leaves_no_connection(agent_service, tmp_path):
    async with serve_agent(agent_service, tmp_path / "state") as agent:
        agent_service.gate.clear()
        with capture_logs() as logs:
            for _ in range(20):
                async with connected(agent) as (_, writer):
                    writer.write(b"GET /v1/status HTTP/1.1\r\nHost: h\r\n\r\n")
                    await writer.drain()
            await wait_until_clients_left(agent)
            agent_service.gate.set()
            assert (await agent.request("GET", "/v1/status")).status == 200
        assert logs == []


async def test_a_change_is_completed_after_its_client_disconnects(agent_service, tmp_path):
    async with serve_agent(agent_service, tmp_path / "state") as agent:
        agent_service.gate.clear()
        timeout = aiohttp.ClientTimeout(total=0.2)
        with pytest.raises(TimeoutError):
            await agent.client.post(agent.base + "/v1/sync", data=b'{"id": "left"}', headers=JSON, timeout=timeout)
        agent_service.gate.set()
        await agent.request("GET", "/v1/status")
        assert list(agent_service.asked) == ["left"]
