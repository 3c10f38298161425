"""`open`: the page of a running agent, its data, and its way through a restart."""

import http.client
import json
from urllib.parse import urlsplit

import pytest

from tests.support.machine import Machine

SCRIPT = """#!/bin/sh
printf '%s' "$1" >"$HOME/opened"
"""


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


class Browser:
    """The page at an address that `open` has printed."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url.strip())
        self.netloc, self.token = address.netloc, address.fragment.removeprefix("token=")
        status, document = self.request("POST", "/v1/page/session", {"token": self.token})
        assert status == 200, document
        self.session = document["session"]

    def request(self, method: str, path: str, body: object = None) -> tuple[int, dict]:
        connection = http.client.HTTPConnection(self.netloc, timeout=60)
        headers = {"Authorization": f"Bearer {getattr(self, 'session', '')}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        document = json.loads(response.read())
        connection.close()
        return response.status, document

    def read(self, path: str) -> dict:
        status, document = self.request("GET", path)
        assert status == 200, document
        return document


def test_the_page_of_a_running_agent_shows_and_verifies_its_uploads_and_comes_back_after_a_restart(machine):
    machine.write(commits=3, entities=2)
    with machine.run() as agent, machine.follow() as events:
        events.reported("succeeded")
        done = machine.call("open", "--print")
        assert (done.code, done.err) == (0, "")
        page = Browser(done.out)
        assert page.read("/v1/status")["verdict"]["severity"] == "safe"
        listed = page.read("/v1/uploads")
        (upload,) = listed["uploads"]
        assert (listed["total"], listed["error"]) == (1, "")
        assert [one["name"] for one in upload["databases"]] == ["knowledge_graph", "reflection"]
        (point,) = page.read("/v1/plots")["results"]
        size = sum(path.stat().st_size for path in machine.data.glob("*.duckdb*"))
        assert point["database_bytes"] == sum(one["bytes"] for one in upload["databases"]) == size
        assert page.request("POST", "/v1/verify") == (202, {"accepted": True})
        agent.logged("upload_verified", upload_id=upload["upload_id"])
        verified, synced = page.read("/v1/history")["entries"]
        assert (verified["type"], synced["outcome"]) == ("akosha.archive.verified.v1", "succeeded")
    with machine.run() as agent:
        agent.logged("page_port_open")
        assert len(page.read("/v1/history")["entries"]) >= 2
        assert page.request("POST", "/v1/page/session", {"token": page.token})[0] == 401
    restored = machine.home / "restored-memories"
    assert machine.call("restore", upload["upload_id"], "--to", str(restored)).code == 0
    assert (restored / "reflection.duckdb").exists()


def test_open_starts_the_browser_of_the_environment(machine):
    browser = machine.home / "browser"
    browser.write_text(SCRIPT)
    browser.chmod(0o755)
    with machine.run():
        for name in ("DISPLAY", "WAYLAND_DISPLAY"):
            machine.environ.pop(name, None)
        printed = machine.call("open")
        assert (printed.code, printed.out.startswith("http://127.")) == (0, True)
        machine.environ["BROWSER"] = f"{browser} %s"
        done = machine.call("open")
        assert (done.code, done.err, "token" in done.out) == (0, "", False)
    assert (machine.home / "opened").read_text().startswith("http://127.")


def test_without_a_running_agent_the_page_is_not_opened(machine):
    done = machine.call("open", "--print")
    assert (done.code, done.out) == (1, "")
    assert "akosha-agent run" in done.err
