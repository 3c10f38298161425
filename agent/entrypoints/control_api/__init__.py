"""The control API: HTTP on a Unix socket in the state directory, and on a loopback port where one is set."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from agent.application.monitoring.agent_service import AgentService
from agent.entrypoints.control_api.limits import Limits
from agent.settings import Settings

__all__ = ["Limits", "serving"]


@asynccontextmanager
async def serving(
    agent_service: AgentService,
    settings: Settings,
    *,
    state_dir: Path,
    metrics: Callable[[], Awaitable[tuple[bytes, str]]],
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> AsyncIterator[None]:
    """Serve the desk on `{state_dir}/control.sock` and the port of the settings for as long as the block runs.

    The caller holds the state directory's lock. `metrics` returns the metrics and their content type. What cannot be
    opened is logged with its cure (`control_socket_unavailable`, `control_port_unavailable`); the block runs all the
    same. At its end the socket is gone, readers have had a clean end, and no task is left, within a second.
    """
    from agent.entrypoints.control_api.server import Server  # noqa: PLC0415 - aiohttp's server: what only `run` needs

    async with Server(agent_service, settings, state_dir=state_dir, metrics=metrics, limits=limits):
        yield
