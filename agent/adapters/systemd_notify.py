"""The protocol of sd_notify(3): datagrams to the socket in NOTIFY_SOCKET. Does nothing if that variable is not set.

Errors are logged and never raised: the agent works without a supervisor. If the supervisor does not read its socket,
status and watchdog messages are dropped at once; READY, RELOADING and STOPPING wait for half a second.
"""

import os
import socket
import time
from collections.abc import MutableMapping

import structlog

SOCKET, WATCHDOG_MICROSECONDS, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"

_SEND_SECONDS = 0.5

_MAX_STATUS = 1000
"""Maximum characters of the status: systemd shows one line, and a datagram has a limit."""

_log = structlog.get_logger()


class SystemdSupervisor:
    """`agent.ports.Supervisor` by sd_notify; does nothing if `address` is empty."""

    def __init__(self, address: str = "", *, keep_alive_seconds: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._keep_alive_seconds = keep_alive_seconds if address else None
        self._failed = False

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> "SystemdSupervisor":
        """Read the supervisor's variables and remove them from the environment: child processes must not notify it."""
        address = environ.pop(SOCKET, "")
        microseconds, pid = environ.pop(WATCHDOG_MICROSECONDS, ""), environ.pop(WATCHDOG_PID, "")
        if not address.startswith(("/", "@")) or len(address) < 2:  # noqa: PLR2004 - a name after the first character
            return cls()
        keep_alive_seconds = None
        if microseconds.isdecimal() and int(microseconds) and pid in ("", str(os.getpid())):
            keep_alive_seconds = int(microseconds) / 1e6 / 2
        return cls(address, keep_alive_seconds=keep_alive_seconds)

    @property
    def keep_alive_seconds(self) -> float | None:
        return self._keep_alive_seconds

    def ready(self) -> None:
        self._notify("READY=1", f"MAINPID={os.getpid()}", timeout=_SEND_SECONDS)

    def reloading(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._notify("RELOADING=1", f"MONOTONIC_USEC={now}", timeout=_SEND_SECONDS)

    def status(self, text: str) -> None:
        self._notify(f"STATUS={' '.join(text.split())[:_MAX_STATUS]}")

    def keep_alive(self) -> None:
        self._notify("WATCHDOG=1")

    def stopping(self) -> None:
        self._notify("STOPPING=1", "STATUS=stopping", timeout=_SEND_SECONDS)

    def _notify(self, *assignments: str, timeout: float = 0.0) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | getattr(socket, "SOCK_CLOEXEC", 0)) as client:
                client.settimeout(timeout)
                client.sendto("\n".join(assignments).encode(errors="replace"), self._address)
        except (OSError, ValueError) as error:
            if not self._failed:  # log once, not for each message
                _log.warning("supervisor_not_notified", message=assignments[0], error=str(error))
            self._failed = True
        else:
            self._failed = False
