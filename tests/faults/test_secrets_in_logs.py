"""Canaries in every secret setting, and servers that repeat what they receive: no secret is shown.

The commands run in this process, with every library at DEBUG. S3 refuses or sends invalid responses; Akosha and NATS
refuse. Then all output, the log file and all files of the state directory are searched.
"""

import json
import logging
import re
import socketserver
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from agent.domain import plain_text
from agent.domain.plain_text import MASK
from agent.entrypoints.cli.app import app
from agent.entrypoints.logs import pipeline
from agent.settings.sources import variable
from tests.support.logging_state import logging_restored
from tests.support.session_buddy import create

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "c4n4ry+aws/secret=key",
    "AWS_SESSION_TOKEN": "c4n4ry//session+token==",
    "http_token": "c4n4ry-akosha-token",
    "agent_http_token": "c4n4ry-control-token-0123456789abcdef",
    "agent_nats_password": "c4n4ry nats p@ss/word",
}
LOUD = ("", "aiobotocore", "aiohttp", "asyncio", "botocore", "hpack", "httpcore2", "httpx2", "nats", "urllib3")


class Echo(BaseHTTPRequestHandler):
    """Refuses requests, and repeats everything it receives. The response at `/garbage` is neither XML nor JSON."""

    protocol_version = "HTTP/1.1"
    received_lines: ClassVar[list[str]] = []

    def do_any(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
        received = "\n".join(f"{name}: {value}" for name, value in self.headers.items())
        self.received_lines.append(f"{self.path}\n{received}")
        if self.path.startswith("/garbage"):
            code, body = 200, f"<html \0 {received}"
        elif self.path.startswith("/mcp"):
            code, body = 401, json.dumps({"error": {"code": -32001, "message": received}})
        else:
            message = received.replace("<", "")
            code, body = 403, f"<Error><Code>SignatureDoesNotMatch</Code><Message>{message}</Message></Error>"
        data = body.encode()
        self.send_response(code, "Refused")
        self.send_header("Content-Type", "application/json" if code == 401 else "application/xml")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.close_connection = True

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any  # noqa: N815 - names that http.server calls

    def log_message(self, *_):
        pass


class Nats(socketserver.StreamRequestHandler):
    """Reads CONNECT, refuses the login, and repeats it."""

    received_lines: ClassVar[list[str]] = []

    def handle(self):
        self.wfile.write(b'INFO {"server_id":"X","version":"2.11.0","max_payload":1048576,"auth_required":true}\r\n')
        received = self.rfile.readline().decode()
        self.received_lines.append(received)
        self.wfile.write(f"-ERR 'Authorization Violation for {received.strip()}'\r\n".encode())


@contextmanager
def serving(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def loud(monkeypatch):
    """Every library logs at DEBUG."""
    monkeypatch.setattr(pipeline, "LIBRARIES", ())
    monkeypatch.setattr(pipeline, "MUTE", ())
    with logging_restored(*LOUD):
        for name in LOUD:
            logging.getLogger(name).setLevel(logging.DEBUG)
        yield


@pytest.fixture
def run_command(tmp_path, monkeypatch, loud):
    """A machine whose servers all refuse; yields a function that runs a command."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAACCESSKEYID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    create(tmp_path / "data", commits=1)
    socketserver.ThreadingTCPServer.daemon_threads = True
    with (
        serving(ThreadingHTTPServer(("127.0.0.1", 0), Echo)) as http,
        serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Nats)) as nats,
    ):
        plain = {
            "cloud_bucket": "bucket",
            "cloud_endpoint": f"http://127.0.0.1:{http}",
            "http_endpoint": f"http://127.0.0.1:{http}/mcp",
            "system_id": "laptop",
            "max_retries": "0",
            "agent_data_dir": str(tmp_path / "data"),
            "agent_state_dir": str(tmp_path / "state"),
            "agent_log_level": "DEBUG",
            "agent_log_file": str(tmp_path / "state" / "agent.log"),
            "agent_nats_url": f"nats://127.0.0.1:{nats}",
            "agent_nats_user": "agent-user",
        }
        for key, value in {**plain, **SECRETS}.items():
            monkeypatch.setenv(key if key.isupper() else variable(key), value)
        yield lambda *words: CliRunner().invoke(app, words)


def shown(result):
    """Return all output of a command and the error that it raised."""
    return f"{result.stdout}\n{result.stderr}\n{result.exception!r}"


def state_files(tmp_path: Path) -> str:
    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert files
    return "\n".join(path.read_bytes().decode("latin-1") for path in files)


def leaks(text: str) -> list[str]:
    forms = {form for secret in SECRETS.values() for form in plain_text._forms(secret)}
    found = [form for form in forms if form in text]
    return found + re.findall(r"Signature=[0-9a-f]{8,}", text) + re.findall(r"Credential=\w+", text)


@pytest.mark.long
def test_secrets_repeated_by_refusing_servers_are_not_shown(run_command, tmp_path):
    Echo.received_lines.clear()
    Nats.received_lines.clear()
    synced = run_command("sync", "--json", "-v")
    received = "\n".join(Echo.received_lines)
    assert "AWS4-HMAC-SHA256" in received  # the servers received the secrets
    assert SECRETS["AWS_SESSION_TOKEN"] in received
    assert f"Bearer {SECRETS['http_token']}" in received
    assert any(json.dumps(SECRETS["agent_nats_password"])[1:-1] in line for line in Nats.received_lines)
    assert json.loads(synced.stdout)["success"] is False
    assert "botocore" in synced.stderr
    assert MASK in synced.stderr
    commands = ("status",), ("events", "--json"), ("config", "--json"), ("doctor",), ("memories",), ("react", "--once")
    outputs = [shown(synced), *(shown(run_command(*words)) for words in commands), state_files(tmp_path)]
    assert [leaks(text) for text in outputs] == [[]] * len(outputs)
    assert "botocore" in (tmp_path / "state" / "agent.log").read_text()


def test_secrets_in_an_invalid_response_are_not_shown(run_command, tmp_path, monkeypatch):
    monkeypatch.setenv(variable("cloud_bucket"), "garbage")
    for key in ("agent_nats_url", "agent_nats_user", "agent_nats_password"):
        monkeypatch.delenv(variable(key))
    synced = run_command("sync", "--json", "-v")
    assert json.loads(synced.stdout)["success"] is False
    assert "garbage" in synced.stderr
    outputs = [shown(synced), shown(run_command("status")), state_files(tmp_path)]
    assert [leaks(text) for text in outputs] == [[], [], []]


def test_invalid_settings_are_reported_without_their_secrets(run_command, tmp_path, monkeypatch):
    monkeypatch.setenv(variable("http_token"), "c4n4ry with blanks")
    monkeypatch.setenv(variable("agent_nats_url"), "http://agent-user:c4n4ry@nats.lan")
    monkeypatch.setenv(variable("max_retries"), "many")
    result = run_command("run")
    assert result.exit_code == 2
    assert "akosha_max_retries" in result.stderr
    assert "c4n4ry" not in shown(result)
    assert not (tmp_path / "state").exists()
