"""The protocol of sd_notify(3): datagrams to the socket that NOTIFY_SOCKET names.

Nothing that goes wrong reaches the caller: an agent that cannot say how it is works all the same. A supervisor that
does not read is left without signs of life at once; for what it must know it is given half a second. Without that
variable, everything is silent.
"""

import os
import socket
import time
from collections.abc import MutableMapping

import structlog

SOCKET, WATCHDOG_MICROSECONDS, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"

_PATIENCE_SECONDS = 0.5

_MOST_STATUS = 1000
"""Characters of a status line; systemd shows one line, and a datagram has a limit."""

_log = structlog.get_logger()


class SystemdSupervisor:
    """`agent.ports.Supervisor` by sd_notify; says nothing where `address` is empty."""

    def __init__(self, address: str = "", *, watchdog_seconds: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_seconds = watchdog_seconds if address else None
        self._failed = False

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> "SystemdSupervisor":
        """Read the settings of the supervisor from the environment and remove them: children must not notify it."""
        address = environ.pop(SOCKET, "")
        microseconds, pid = environ.pop(WATCHDOG_MICROSECONDS, ""), environ.pop(WATCHDOG_PID, "")
        if not address.startswith(("/", "@")) or len(address) < 2:  # noqa: PLR2004 - a name after its sign
            return cls()
        watchdog_seconds = None
        if microseconds.isdecimal() and int(microseconds) and pid in ("", str(os.getpid())):
            watchdog_seconds = int(microseconds) / 1e6 / 2
        return cls(address, watchdog_seconds=watchdog_seconds)

    @property
    def watchdog_seconds(self) -> float | None:
        return self._watchdog_seconds

    def ready(self) -> None:
        self._tell("READY=1", f"MAINPID={os.getpid()}", patience=_PATIENCE_SECONDS)

    def reloading(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("RELOADING=1", f"MONOTONIC_USEC={now}", patience=_PATIENCE_SECONDS)

    def status(self, text: str) -> None:
        self._tell(f"STATUS={' '.join(text.split())[:_MOST_STATUS]}")

    def keep_alive(self) -> None:
        self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        self._tell("STOPPING=1", "STATUS=stopping", patience=_PATIENCE_SECONDS)

    def _tell(self, *assignments: str, patience: float = 0.0) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as to:
                to.settimeout(patience)
                to.sendto("\n".join(assignments).encode(errors="replace"), self._address)
        except (OSError, ValueError) as error:
            if not self._failed:  # logged once: a supervisor that does not listen now will not later
                _log.warning("supervisor_not_notified", message=assignments[0], error=str(error))
            self._failed = True
        else:
            self._failed = False
