"""How much the control API bears of those who ask. Times in seconds, sizes in bytes."""

import resource
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`head_seconds` is also how long a connection may stay open between two requests.

    `heartbeat_seconds`: between signs of life in an event stream. `stalled_seconds`: how long a reader of events may
    take nothing of what waits for it; that is looked at with each heartbeat. `ending_seconds`: what requests at work
    get at the end.
    """

    head_seconds: float = 10.0
    body_seconds: float = 10.0
    heartbeat_seconds: float = 15.0
    stalled_seconds: float = 60.0
    ending_seconds: float = 0.3
    body_bytes: int = 64 * 1024
    line_bytes: int = 8 * 1024
    readers: int = 1000
    connections: int = 1100

    def fitting(self) -> int:
        """Return how many connections there may be in this process: at most half of its descriptors."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return self.connections if soft == resource.RLIM_INFINITY else max(min(self.connections, soft // 2), 1)
