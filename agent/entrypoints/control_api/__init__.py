"""Control API: HTTP on a Unix socket in the state directory, and on a loopback port where one is set."""

import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.application.monitoring.agent_service import AgentService
from agent.settings import Settings

__all__ = ["Limits", "serve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the control API. Times in seconds, sizes in bytes.

    `head_seconds` is also how long a connection may be idle between two requests. `stalled_seconds` is how long a
    reader of events may accept nothing of what is sent to it. `shutdown_seconds` is what requests in progress get at
    the end.
    """

    head_seconds: float = 10.0
    body_seconds: float = 10.0
    heartbeat_seconds: float = 15.0
    stalled_seconds: float = 60.0
    shutdown_seconds: float = 0.3
    body_bytes: int = 64 * 1024
    line_bytes: int = 8 * 1024
    readers: int = 1000
    connections: int = 1100

    def max_connections(self) -> int:
        """Return the connection limit of this process: at most half of its file descriptors."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return self.connections if soft == resource.RLIM_INFINITY else max(min(self.connections, soft // 2), 1)


@asynccontextmanager
async def serve(
    agent_service: AgentService,
    settings: Settings,
    *,
    state_dir: Path,
    metrics: Callable[[], Awaitable[tuple[bytes, str]]],
    limits: Limits = Limits(),
) -> AsyncIterator[None]:
    """Serve `agent_service` on `{state_dir}/control.sock` and on the port of the settings while the block runs.

    The caller holds the state directory's lock. `metrics` returns the metrics and their content type. A socket or port
    that cannot be opened is logged with its cure (`control_socket_unavailable`, `control_port_unavailable`), and the
    block runs without it. At its end the socket is removed, event streams end cleanly, and no task is left, within a
    second.
    """
    from agent.entrypoints.control_api.server import ControlServer  # noqa: PLC0415 - loads aiohttp, which only `run` needs

    async with ControlServer(agent_service, settings, state_dir=state_dir, metrics=metrics, limits=limits):
        yield
