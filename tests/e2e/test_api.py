"""The documented Python API with its real process: with open databases, with a running agent, and when it fails."""

import asyncio
import contextlib
import http.server
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from unittest.mock import patch

import pytest

from agent.api import (
    AkoshaSyncConfig,
    CloudSyncMethod,
    CloudUploadError,
    HTTPSyncError,
    HttpSyncMethod,
    HybridAkoshaSync,
    HybridSyncError,
)
from agent.bootstrap.home import Home
from agent.domain.errors import AkoshaError
from agent.settings import load, variable
from tests.support import upload_contents
from tests.support.machine import TIMEOUT, Machine
from tests.support.processes import children
from tests.support.servers.akosha import Akosha
from tests.support.session_buddy import REFLECTION, Checker, create

ROOT = Path(__file__).parents[2]
HEAVY = {"pydantic", "structlog", "yaml", "duckdb", "aiobotocore", "sqlite3", "orjson", "httpx2", "typer", "rich"}

HOST = """
    '''A program that syncs while it has a database open and commits continuously, like Session-Buddy.'''
    import asyncio, json, sys, threading
    from pathlib import Path
    from agent.api import AkoshaSyncConfig, HybridAkoshaSync
    from tests.support.session_buddy import _REFLECTION_TABLES, _commit, _opened

    data, state, bucket = map(Path, sys.argv[1:])
    file = data / "reflection.duckdb"
    committed, stop = 0, threading.Event()

    def say(**what):
        print(json.dumps(what), flush=True)

    def write(base):
        global committed
        while not stop.is_set():
            base.execute("BEGIN")
            _commit(base, committed, payload=200, embeddings=True)
            base.execute("COMMIT")
            committed += 1
            stop.wait(0.002)

    async def sync():
        config = AkoshaSyncConfig(cloud_endpoint=bucket.as_uri(), system_id="laptop", max_retries=0)
        while committed < 20:
            await asyncio.sleep(0.001)
        before = committed
        result = await HybridAkoshaSync(config, data_dir=data, state_dir=state).sync_memories()
        return {"before": before, "after": committed, "result": result}

    with _opened(file, _REFLECTION_TABLES) as base:
        say(event="open")
        sys.stdin.readline()
        writing = threading.Thread(target=write, args=[base], daemon=True)
        writing.start()
        try:
            done = asyncio.run(sync())
            heavy = [name for name in sys.modules if name.startswith("agent.adapters")]
            say(event="synced", heavy=heavy, **done)
            sys.stdin.readline()
        finally:
            stop.set()
            writing.join()
        file.read_bytes()
        say(event="read")
        sys.stdin.readline()
"""
INTRUDER = """
    '''Another process that repeatedly tries to open the database read-write, until its stdin is closed.'''
    import sys, threading
    import duckdb

    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    refused = admitted = 0
    while not ended.wait(0.03):
        try:
            duckdb.connect(sys.argv[1]).close()
            admitted += 1
        except duckdb.IOException as error:
            assert "lock" in str(error), error
            refused += 1
            if refused == 1:
                print("refused", flush=True)
    print(refused, admitted)
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine on which this process is the program that syncs."""
    machine = Machine(tmp_path)
    monkeypatch.chdir(machine.home)
    with patch.dict(os.environ, machine.environ, clear=True):
        yield machine


def hybrid(machine, **fields):
    given = {"cloud_endpoint": machine.bucket.as_uri(), "system_id": "laptop", "max_retries": 0} | fields
    return HybridAkoshaSync(AkoshaSyncConfig(**given), data_dir=machine.data, state_dir=machine.state)


def agents_children(pid=None):
    """Return the agent's processes that this process or `pid` started, without the servers of other tests."""
    return children("agent.", pid, recursive=True)


@contextlib.contextmanager
def python(tmp_path, name, text, *arguments):
    file = tmp_path / f"{name}.py"
    file.write_text(textwrap.dedent(text))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, file, *map(str, arguments)], env=environ, **pipes)
    end = threading.Timer(TIMEOUT, process.kill)
    end.start()
    with process:
        try:
            yield process
        finally:
            end.cancel()
            process.kill()


# ------------------------------------------------------------------------------------- with the databases open


@pytest.mark.long
def test_a_program_keeps_its_database_lock_while_it_syncs(machine, tmp_path):
    """And the upload has what was committed. Reading the file in the program drops its lock, so the check can fail."""
    file = machine.data / REFLECTION
    with python(tmp_path, "host", HOST, machine.data, machine.state, machine.bucket) as host:

        def reported(event):
            line = json.loads(host.stdout.readline())
            assert line["event"] == event
            return line

        def send_line():
            host.stdin.write("\n")
            host.stdin.flush()

        reported("open")
        with python(tmp_path, "intruder", INTRUDER, file) as intruder:
            assert intruder.stdout.readline() == "refused\n"
            send_line()
            synced = reported("synced")
            out, _ = intruder.communicate(timeout=TIMEOUT)
        refused, admitted = map(int, out.split())
        send_line()
        reported("read")
        without_lock = "import sys, duckdb; duckdb.connect(sys.argv[1]).close()"
        again = subprocess.run([sys.executable, "-c", without_lock, file], capture_output=True, timeout=TIMEOUT)
        send_line()
    assert admitted == 0
    assert refused > 5
    assert again.returncode == 0, again.stderr
    assert synced["heavy"] == []
    (manifest,) = machine.manifests
    assert manifest["upload_id"] == synced["result"]["upload_id"]
    with Checker() as checker:
        finding = checker.check(upload_contents.unpack(manifest, machine.object, tmp_path / "arrived") / REFLECTION)
    assert finding.problems == ()
    assert synced["before"] <= finding.last + 1 <= synced["after"] + 1


def test_importing_the_api_imports_no_heavy_package():
    code = "import sys, agent.api; print(*{name.partition('.')[0] for name in sys.modules})"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=plain, capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    assert set(done.stdout.split()) & HEAVY == set()


# ---------------------------------------------------------------------------------------------------- what it does


async def test_the_result_has_the_documented_fields(machine, capfd, caplog):
    """Nothing is printed, log lines go to `logging`, a loop in a thread works, and an unwanted database is left out."""
    caplog.set_level(logging.INFO, "agent.api")
    machine.write(commits=3, entities=2)
    made = hybrid(machine)
    result = await made.sync_memories(upload_knowledge_graph=False)
    (manifest,) = machine.manifests
    assert (result["method"], result["success"], result["error"]) == ("cloud", True, None)
    assert (result["triggered_by"], result["upload_id"]) == ("manual", manifest["upload_id"])
    assert result["files_uploaded"][-1].endswith(f"{result['upload_id']}/manifest.json")
    assert result["bytes_transferred"] > 0
    assert {part["database"] for part in manifest["parts"]} == {"reflection"}
    rest = await asyncio.to_thread(asyncio.run, made.sync_memories())
    assert [key for key in rest["files_uploaded"] if key.endswith("/knowledge_graph.duckdb")]
    again = await made.sync_memories(force_method="cloud")
    assert (again["success"], again["files_uploaded"], again["upload_id"]) == (True, [], None)
    assert capfd.readouterr() == ("", "")
    assert [line.message for line in caplog.records if line.message.startswith("sync_succeeded ")]
    assert agents_children() == []


async def test_an_unreachable_bucket_falls_back_to_akosha(machine):
    create(machine.data, commits=3, entities=1, embeddings=True)
    with Akosha() as akosha:
        os.environ["SESSION_BUDDY_AKOSHA_HTTP_ENDPOINT"] = akosha.url
        made = hybrid(machine, cloud_endpoint=(machine.bucket / "unmounted" / "bucket").as_uri())
        assert [method.is_available() for method in made.methods] == [False, True]
        result = await made.sync_memories()
        again = await made.sync_memories(force_method="http")
    assert (result["method"], result["success"]) == ("http", True)
    assert result["upload_id"] == result["request_id"]
    assert result["memories"] == len(akosha.rows("laptop")) == 6
    assert (again["success"], again["files_uploaded"]) == (True, [])


async def test_a_running_agent_does_the_sync_with_its_own_settings(machine, tmp_path):
    machine.set(agent_upload_on_change=False)
    machine.write(commits=1, entities=1)
    with machine.run() as agent:
        agent.logged("sync_succeeded")  # the sync at start: it would upload the next change too
        machine.write(commits=2)
        result = await hybrid(machine, cloud_endpoint=(tmp_path / "elsewhere").as_uri()).sync_memories()
        assert agent.logged("sync_succeeded", request_id=result["request_id"], upload_id=result["upload_id"])
    assert [manifest["upload_id"] for manifest in machine.manifests[1:]] == [result["upload_id"]]
    assert not (tmp_path / "elsewhere").exists()


async def test_an_empty_system_id_means_that_of_the_agent(machine):
    """While the agent runs and after it has ended: the bucket has one system, and nothing is uploaded twice."""
    os.environ.pop(variable("system_id"))
    machine.set(system_id="desk", agent_upload_on_change=False)
    made = hybrid(machine, system_id="")
    with machine.run() as agent:
        machine.write(commits=1, entities=1)
        result = await made.sync_memories()
        # The sync at start may have uploaded them already.
        ends = ("sync_succeeded", "sync_skipped")
        agent.log.wait(lambda line: line.get("request_id") == result["request_id"] and line["event"] in ends)
    assert [manifest["upload_id"][-5:] for manifest in machine.manifests] == ["_desk"]
    assert (await made.sync_memories())["outcome"] == "skipped"
    machine.write(commits=2)
    assert (await made.sync_memories())["upload_id"].endswith("_desk")
    assert [path.name for path in (machine.bucket / "systems").iterdir()] == ["desk"]


# ---------------------------------------------------------------------------------------------------------- errors


async def test_a_forced_method_raises_its_own_error_with_a_hint(machine):
    os.environ["SESSION_BUDDY_AKOSHA_SYNC_ENABLED"] = "false"
    with pytest.raises(CloudUploadError, match="sync is disabled") as caught:
        await hybrid(machine).sync_memories(force_method="cloud")
    assert (caught.value.method, caught.value.hint) == ("cloud", "set akosha_sync_enabled to true")
    assert isinstance(caught.value.original, AkoshaError)


async def test_if_all_methods_fail_the_error_has_the_error_of_each(machine):
    machine.write(commits=1, entities=1)
    machine.bucket.mkdir()
    (machine.bucket / "systems").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        os.environ["SESSION_BUDDY_AKOSHA_HTTP_ENDPOINT"] = f"http://127.0.0.1:{port}/mcp"
    with pytest.raises(HybridSyncError) as caught:
        await hybrid(machine).sync_memories()
    cloud, web = caught.value.errors
    assert (cloud["method"], web["method"]) == ("cloud", "http")
    assert "systems" in cloud["error"]
    assert web["error"] == f"not available: 127.0.0.1:{port}: connection refused"
    failed, _ = caught.value.__cause__.exceptions
    assert isinstance(failed, CloudUploadError)
    assert failed.hint
    assert str(failed) == cloud["error"] == f"{failed.message} ({failed.hint})"


async def test_an_invalid_config_raises_the_message_of_the_settings(machine):
    method = HttpSyncMethod(AkoshaSyncConfig(chunk_size_mb=500), data_dir=machine.data, state_dir=machine.state)
    with pytest.raises(HTTPSyncError, match=r"akosha_chunk_size_mb is 500 .* from 1 to 100"):
        await method.sync()
    assert not method.is_available()


@contextlib.contextmanager
def locked_state(machine):
    """Lock the state directory in this process: a sync leaves a note in the spool and waits. Yields the spool."""
    directories = {"agent_data_dir": str(machine.data), "agent_state_dir": str(machine.state)}
    home = Home.of(load(command_line=directories, environ={}, cwd=machine.home, home=machine.home).settings)
    home.prepare()
    with home.lock("run"):
        yield home.state.spool


@contextlib.asynccontextmanager
async def waiting_sync(machine):
    """A sync that waits for the lock of the state directory: its task and its process."""
    with locked_state(machine) as spool:
        syncing = asyncio.create_task(hybrid(machine).sync_memories(force_method="cloud"))
        async with asyncio.timeout(TIMEOUT):
            while not list(spool.glob("*.json")):
                assert not syncing.done(), syncing.exception()
                await asyncio.sleep(0.01)
        (process,) = agents_children()
        yield syncing, process
    assert agents_children() == []


async def test_a_cancelled_sync_withdraws_its_request_and_ends_its_process(machine):
    async with waiting_sync(machine) as (syncing, _):
        syncing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await syncing
        assert agents_children() == []
        assert list((machine.state / "spool").iterdir()) == []


async def test_a_sync_cancelled_while_its_process_starts_leaves_no_process(machine):
    syncing = asyncio.create_task(hybrid(machine).sync_memories(force_method="cloud"))
    await asyncio.sleep(0)
    syncing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await syncing
    assert agents_children() == []


async def test_a_sync_cancelled_twice_does_not_wait_for_its_process(machine):
    async with waiting_sync(machine) as (syncing, process):
        process.suspend()
        syncing.cancel()
        await asyncio.sleep(0)
        syncing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await syncing


async def test_a_killed_process_raises_an_error_that_names_the_signal(machine):
    async with waiting_sync(machine) as (syncing, process):
        process.send_signal(signal.SIGKILL)
        with pytest.raises(CloudUploadError, match="was killed by SIGKILL") as caught:
            await syncing
        assert caught.value.transient


@pytest.mark.long
def test_the_sync_of_a_killed_program_completes(machine, tmp_path):
    code = f"""
        import asyncio
        from agent.api import AkoshaSyncConfig, HybridAkoshaSync
        config = AkoshaSyncConfig(cloud_endpoint={machine.bucket.as_uri()!r})
        directories = {{"data_dir": {str(machine.data)!r}, "state_dir": {str(machine.state)!r}}}
        asyncio.run(HybridAkoshaSync(config, **directories).sync_memories())
    """
    machine.write(commits=1, entities=1)
    with locked_state(machine) as spool, python(tmp_path, "host", code) as host:
        while not list(spool.glob("*.json")):
            time.sleep(0.01)
        (process,) = agents_children(host.pid)
        host.kill()
    process.wait(TIMEOUT)
    assert len(machine.manifests) == 1


async def test_a_process_that_fails_at_start_raises_an_error_with_its_last_line(machine, tmp_path, monkeypatch):
    package = tmp_path / "broken" / "structlog"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('this is broken')")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    with pytest.raises(CloudUploadError, match=r"exited with status 1 without a result: .*this is broken"):
        await hybrid(machine).sync_memories(force_method="cloud")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(CloudUploadError, match="cannot be started: No such file"):
        await hybrid(machine).sync_memories(force_method="cloud")


# ----------------------------------------------------------------------------------------------------- is available


@pytest.mark.parametrize(
    ("status", "location", "available"), [(200, "", True), (404, "", False), (500, "", False), (302, "/else", False)]
)
def test_akosha_is_available_if_its_health_check_answers_200(machine, monkeypatch, status, location, available):
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status if self.path == "/health" else 200)
            self.send_header("Location", location)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # not used for loopback addresses
        endpoint = f"http://127.0.0.1:{server.server_port}/mcp"
        os.environ["SESSION_BUDDY_AKOSHA_HTTP_ENDPOINT"] = ""
        assert HttpSyncMethod(AkoshaSyncConfig(cloud_endpoint=endpoint)).is_available() is available
        server.shutdown()
        serving.join()
    assert asked == ["/health"]


async def test_a_silent_server_counts_as_available_and_a_closed_port_does_not(machine):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        os.environ["SESSION_BUDDY_AKOSHA_HTTP_ENDPOINT"] = f"http://127.0.0.1:{port}/mcp"
        store = AkoshaSyncConfig(cloud_bucket="memories", cloud_endpoint=f"http://127.0.0.1:{port}")
        assert CloudSyncMethod(store).is_available()
        started = asyncio.get_running_loop().time()
        assert HttpSyncMethod(store).is_available()
        assert asyncio.get_running_loop().time() - started < 1.5  # one second, and a margin for a slow machine
    assert not CloudSyncMethod(store).is_available()
    assert not HttpSyncMethod(store).is_available()
