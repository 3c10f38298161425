"""Control API: HTTP on a Unix socket in the state directory, and on loopback ports, if one is set or a page is open."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from agent.application.monitoring.agent_service import AgentService
from agent.entrypoints.control_api import connection
from agent.entrypoints.control_api.connection import Limits
from agent.entrypoints.control_api.server import ControlServer
from agent.settings import Settings

__all__ = ["Limits", "serve"]


@asynccontextmanager
async def serve(
    agent_service: AgentService,
    settings: Settings,
    *,
    state_dir: Path,
    metrics: Callable[[], Awaitable[tuple[bytes, str]]],
    limits: Limits | None = None,
) -> AsyncIterator[None]:
    """Serve `agent_service` on `{state_dir}/control.sock` and on the port of the settings while the block runs.

    Serve the page while a token or a session of it is valid, at an address and port of its own.

    The caller must hold the state directory's lock. `metrics` returns the metrics and their content type. If the socket
    or port cannot be opened, that is logged with a hint (`control_socket_unavailable`, `control_port_unavailable`), and
    the block runs without it. At its end, within a second, the socket is removed, event streams end cleanly, and no
    task is left.
    """
    limits = limits or connection.DEFAULT_LIMITS
    async with ControlServer(agent_service, settings, state_dir=state_dir, metrics=metrics, limits=limits):
        yield
