"""What the control API does with a request whose client has left before the answer began."""

from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from agent.entrypoints.control_api.app import ControlApp


@pytest.mark.parametrize(
    "transport", [None, SimpleNamespace(is_closing=lambda: True)], ids=["closed", "closing, after a stop of the agent"]
)
async def test_a_client_that_has_left_is_no_error_of_the_agents(monkeypatch, transport):
    def route(_):
        raise ConnectionResetError("Cannot write to closing transport")

    front = ControlApp([])
    monkeypatch.setattr(front, "_route", route)
    with capture_logs() as logs, pytest.raises(ConnectionResetError):
        await front.answer(SimpleNamespace(path="/v1/events", transport=transport))
    assert logs == []
