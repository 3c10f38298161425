"""An endpoint that is not a store: each command prints one clear error, and `run` keeps running."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.machine import Machine
from tests.support.servers.s3 import aws_environment

PAGE = b"<html><body>Log in</body></html>"
ANSWERS = {
    "portal": (302, {"Location": "http://portal.example/login"}, b""),
    "page": (200, {"Content-Type": "text/html"}, PAGE),
    "nothing": (204, {}, b""),
    "moved": (301, {"Content-Type": "application/xml"}, b"<Error><Code>PermanentRedirect</Code></Error>"),
}


@pytest.fixture(params=ANSWERS)
def machine(tmp_path, request):
    status, headers, body = ANSWERS[request.param]

    class Odd(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer  # noqa: N815 - the names that http.server calls

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    machine = Machine(tmp_path)
    machine.environ |= aws_environment()
    machine.set(cloud_endpoint=f"http://127.0.0.1:{server.server_port}", cloud_bucket="memories", enable_fallback=True)
    machine.write(commits=2)
    yield machine
    server.shutdown()
    server.server_close()


def test_run_falls_back_and_each_command_prints_one_error(machine, tmp_path):
    with machine.run() as agent:
        agent.logged("sync_forwarded", to="http")
        agent.logged("sync_failed")
        assert agent.stop() == 0
    commands = [("sync",), ("uploads", "list"), ("verify",), ("restore", "--to", str(tmp_path / "back")), ("prune",)]
    react = ("react", "--once", "--state-dir", str(tmp_path / "react"))
    for words in [*commands, react]:
        done = machine.call(*words, directories=words is not react)
        text = done.out + done.err
        assert done.code == 1, (words, text)
        assert "Traceback" not in text, words
        assert "127.0.0.1" in text, (words, text)
        assert "RecursionError" not in text, words
