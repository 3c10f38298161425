"""The control API handles a client that disconnects before the response starts."""

from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from agent.entrypoints.control_api.problems import problem_middleware


@pytest.mark.parametrize(
    "transport", [None, SimpleNamespace(is_closing=lambda: True)], ids=["closed", "closing, after a stop of the agent"]
)
async def test_a_disconnected_client_is_not_logged_as_an_error(transport):
    async def handler(_):
        raise ConnectionResetError("Cannot write to closing transport")

    with capture_logs() as logs, pytest.raises(ConnectionResetError):
        await problem_middleware(SimpleNamespace(path="/v1/events", transport=transport), handler)
    assert logs == []
