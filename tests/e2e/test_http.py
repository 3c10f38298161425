"""The target that a command uses, with and without a bucket, Akosha, or both."""

import re
import signal
import socket
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import session_buddy
from tests.support.machine import NO_AKOSHA, Machine
from tests.support.servers.akosha import Akosha

UNREACHABLE = {"cloud_endpoint": "http://127.0.0.1:9", "cloud_bucket": "memories"}
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.fixture
def akosha():
    with Akosha() as server:
        yield server


@pytest.fixture
def machine(tmp_path, akosha):
    machine = Machine(tmp_path, http_endpoint=akosha.url)
    machine.environ |= KEYS
    machine.write(commits=4, entities=0)
    machine.set(http_missing_embedding="zero")
    return machine


def test_without_a_bucket_memories_go_to_akosha_and_are_counted(machine, akosha):
    machine.set(cloud_endpoint=None)
    result = machine.sync()
    assert (result["method"], result["memories"], result["upload_id"]) == ("http", 8, result["request_id"])
    assert len(akosha.rows("laptop")) == 8
    assert machine.sync()["outcome"] == "skipped"
    (counts,) = machine.call("memories", "--json").json
    assert (counts["method"], counts["delivered"], counts["memories"]) == ("http", 8, [])
    status = machine.status()
    assert (status["pending"], status["targets"][0]["memories"]["delivered"]) == ([], 8)
    assert status["targets"][0]["confirmed_at"]
    for command in ("status", "memories", "doctor"):
        out = machine.call(command).out
        assert "the server still has what was delivered" in out, command
        assert "its search tools do not read them" in out, command
    akosha.forget()
    assert machine.sync()["memories"] == len(akosha.rows()) == 8
    akosha.forget()
    done = machine.call("memories", "--send-again")
    assert (done.code, "sends 8 memories" in done.out) == (0, True)
    assert machine.sync()["memories"] == len(akosha.rows()) == 8


def test_a_slow_health_check_does_not_prevent_the_push(machine, akosha):
    machine.set(cloud_endpoint=None)
    akosha.health_answers = False
    result = machine.sync()
    assert (result["method"], result["memories"]) == ("http", 8)
    assert len(akosha.rows("laptop")) == 8


def test_with_a_bucket_akosha_gets_no_request(machine, akosha):
    assert machine.sync()["method"] == "cloud"
    assert akosha.requests == []
    assert [target["method"] for target in machine.status()["targets"]] == ["cloud"]
    assert machine.sync("--method", "http")["memories"] == 8


def test_after_a_fallback_to_akosha_the_bucket_is_still_owed(machine, akosha):
    machine.set(**UNREACHABLE)
    result = machine.sync()
    assert (result["method"], result["success"], result["memories"]) == ("http", True, 8)
    status = machine.status()
    assert status["pending"] == ["knowledge_graph", "reflection"]
    cloud, http = status["targets"]
    assert (cloud["method"], cloud["failures"], http["failures"]) == ("cloud", 1, 0)
    assert "127.0.0.1:9" in cloud["error"]
    assert len(akosha.rows()) == 8


def test_without_fallback_a_failing_bucket_fails_the_sync(machine, akosha):
    machine.set(**UNREACHABLE, enable_fallback="false")
    assert machine.sync(code=1)["method"] == "cloud"
    machine.set(enable_fallback="true")
    assert machine.sync("--no-fallback", code=1)["method"] == "cloud"
    assert akosha.requests == []


def test_if_both_targets_fail_both_errors_are_reported(machine):
    machine.set(**UNREACHABLE, http_endpoint=NO_AKOSHA)
    error = machine.sync(code=1)["error"]
    assert "cloud: " in error
    assert "http: " in error


def test_an_offline_agent_logs_one_failure_and_syncs_when_akosha_returns(machine, akosha):
    machine.set(cloud_endpoint=None, agent_rescan_seconds=1)
    akosha.stop()
    with machine.run() as agent:
        agent.logged("sync_failed")
        machine.write(commits=6)
        akosha.start()
        agent.logged("sync_succeeded", method="http")
    assert len([line for line in agent.log.seen if line["event"] == "sync_failed"]) == 1
    assert len([line for line in agent.log.seen if line["level"] == "warning"]) == 1
    assert len(akosha.rows()) == 12


def test_an_invalid_response_of_akosha_is_one_error_line_and_run_continues(machine, akosha):
    machine.set(cloud_endpoint=None, max_retries=0, agent_rescan_seconds=1)
    akosha.interfere = lambda _tool, _arguments: {"status": ["completed"], "errors": {}}
    command = machine.call("sync")
    assert command.code == 1
    assert "does not say what was stored" in command.err
    assert "Traceback" not in command.err
    with machine.run() as agent:
        assert "does not say" in machine.sync(code=1)["error"]
        akosha.interfere = None
        machine.sync()
        agent.logged("sync_succeeded", method="http")
    assert len(akosha.rows()) == 8


def test_a_new_token_in_the_settings_is_used_after_sighup(machine, akosha):
    akosha.token = "the-right-one"
    settings = machine.home / ".claude" / "settings" / "local.yaml"
    settings.parent.mkdir(parents=True)
    settings.write_text("akosha_http_token: the-one-before\n")
    machine.set(cloud_endpoint=None, agent_upload_on_change=False)
    with machine.run() as agent:
        refused = machine.sync(code=1)["error"]
        assert "401" in refused
        assert "akosha_http_token" in refused
        assert "kill -HUP" in refused
        settings.write_text("akosha_http_token: the-right-one\n")
        agent.process.send_signal(signal.SIGHUP)
        agent.logged("settings_changed", keys=["akosha_http_token"])
        agent.logged("agent_started", 2)
        assert machine.sync()["success"]
    assert len(akosha.rows()) == 8


@contextmanager
def s3_on(port: int):
    """An S3 server with a bucket `memories`, on a port that was closed before."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: object) -> None: ...

    server = make_server(
        "127.0.0.1", port, DomainDispatcherApplication(create_backend_app), threaded=True, request_handler=Quiet
    )
    thread = threading.Thread(target=server.serve_forever, name="s3")
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket("memories", "us-east-1")
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@pytest.mark.long
def test_a_recovered_bucket_gets_everything_and_akosha_gets_nothing_more(machine, akosha):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    machine.set(cloud_endpoint=f"http://127.0.0.1:{port}", cloud_bucket="memories", agent_rescan_seconds=0.5)
    with machine.run() as agent:
        agent.logged("sync_succeeded", method="http", memories=8)
        session_buddy.create(machine.home / "more", commits=6)
        (machine.home / "more" / session_buddy.REFLECTION).replace(machine.data / session_buddy.REFLECTION)
        agent.logged("sync_succeeded", 2, method="http")  # the bucket backs off, so Akosha is used at once
        asked = len(akosha.calls)
        with s3_on(port):
            agent.logged("target_recovered", method="cloud")
            agent.logged("sync_succeeded", method="cloud", files=3)
            machine.write(commits=7)
            agent.logged("sync_succeeded", 2, method="cloud")
    assert len(akosha.calls) == asked


@pytest.mark.long
def test_the_token_is_in_no_file_and_no_command_line(machine, akosha):
    token = "canary-token"
    machine.secrets = (token,)
    machine.set(cloud_endpoint=None, http_token=token, log_level="DEBUG")
    machine.constants = {"agent.bootstrap.methods:BATCH_SIZE": 4}
    akosha.token = token
    arguments: list[str] = []

    def collect_command_lines(_tool, _arguments):
        """Collect the command lines of all processes on this machine during the push."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                arguments.append(path.read_bytes().decode(errors="replace"))
            except OSError:
                continue

    akosha.interfere = collect_command_lines
    assert machine.sync()["memories"] == 8
    assert [line for line in arguments if "adapters.duckdb" in line]
    akosha.token = "another"
    machine.write(commits=6)
    machine.sync(code=1)
    files = [path for path in machine.state.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if token.encode() in path.read_bytes()]
    assert token not in str(arguments)


def test_waiting_memories_are_shown_with_the_first_words_of_a_copy(machine, akosha):
    machine.set(cloud_endpoint=None, http_missing_embedding="wait")
    machine.sync(code=1)
    done = machine.call("memories")
    assert re.search(r'\n  8 wait: no embedding\n.*\n    \w+  "[^"]', done.out), done.out
    assert "and 5 more: akosha-agent memories --all lists them" in done.out
    assert done.out.count("\n    ") == 4
    assert machine.call("memories", "--all").out.count("\n    reflection  ") == 8
    assert not (machine.state / "reading").exists()
