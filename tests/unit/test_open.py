"""The address that `open` gets from the running agent, and the errors that say what to do without one."""

import json
from datetime import timedelta
from types import SimpleNamespace

import pytest

from agent.adapters.unix_http import Response
from agent.domain.errors import AgentUnavailable
from agent.entrypoints.cli import open as command
from agent.entrypoints.status_document import STARTING
from tests.support.clock import ManualClock

URL = "http://127.0.0.1:4711/#token=t"
PROBLEM = {"detail": "no port of this machine can be opened: denied", "hint": "run akosha-agent open again later"}


class Home(SimpleNamespace):
    @staticmethod
    def is_suspended(_pid: int) -> bool:
        return False


def home(tmp_path, command: str | None = "run", *, started: bool = False) -> Home:
    clock = ManualClock()
    since = clock.now() - (timedelta(0) if started else STARTING)
    holder = None if command is None else SimpleNamespace(pid=4711, command=command, since=since)
    return Home(holder=lambda: holder, state=SimpleNamespace(path=tmp_path), clock=clock)


@pytest.fixture
def answer(monkeypatch):
    """Sets what the agent answers: a status and a body, or an error."""
    monkeypatch.setattr(command, "is_own_socket", lambda _path: True)

    def answers(status: int | Exception, body: object = None):
        def request(_path, method, target, **_limits):
            assert (method, target) == ("POST", "/v1/page")
            if isinstance(status, Exception):
                raise status
            return Response(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())

        monkeypatch.setattr(command, "request", request)

    return answers


def test_the_address_is_the_agents(tmp_path, answer):
    answer(200, {"url": URL, "expires_at": "2026-03-01T12:01:00+00:00"})
    assert command.page_url(home(tmp_path)) == URL


@pytest.mark.parametrize("holder", [None, "sync"])
def test_without_a_running_agent_the_error_names_the_commands_that_start_one(tmp_path, holder):
    with pytest.raises(AgentUnavailable, match="no agent is running") as caught:
        command.page_url(home(tmp_path, holder))
    assert caught.value.hint == "akosha-agent service install, or akosha-agent run"


@pytest.mark.parametrize(
    ("status", "body", "message", "hint"),
    [
        (404, {"detail": "there is no route"}, "of an earlier version", "akosha-agent service restart"),
        (503, PROBLEM, PROBLEM["detail"], PROBLEM["hint"]),
        (200, b"<html>", "responds with 200", ""),
        (500, [], "responds with 500", ""),
        (BrokenPipeError("x"), None, "closes its connections", "run akosha-agent open again in a few seconds"),
        (ConnectionResetError("x"), None, "closes its connections", "run akosha-agent open again in a few seconds"),
        (TimeoutError("x"), None, "does not answer", "akosha-agent service restart"),
        (ConnectionRefusedError("refused"), None, "refused", "akosha-agent service restart"),
    ],
    ids=["earlier version", "refused", "not JSON", "no problem", "broken pipe", "reset", "silent", "gone"],
)
def test_an_agent_that_does_not_open_the_page_is_an_error_with_its_cure(tmp_path, answer, status, body, message, hint):
    answer(status, body)
    with pytest.raises(AgentUnavailable) as caught:
        command.page_url(home(tmp_path))
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_an_agent_that_has_just_started_is_not_to_be_ended(tmp_path):
    """It holds the lock before it has a socket."""
    with pytest.raises(AgentUnavailable, match="no control socket") as caught:
        command.page_url(home(tmp_path, started=True))
    assert caught.value.hint == "it has just started: try again in a few seconds"


@pytest.mark.parametrize(
    ("system", "variables", "display"),
    [
        ("linux", {}, False),
        ("linux", {"DISPLAY": ""}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("linux", {"BROWSER": "firefox"}, True),
        ("darwin", {}, True),
    ],
)
def test_a_browser_needs_a_display_on_linux(monkeypatch, system, variables, display):
    monkeypatch.setattr(command, "_SYSTEM", system)
    monkeypatch.setattr(command.os, "environ", variables)
    assert command.has_display() == display
