"""Did the machine sleep, is it in another network? A look every few seconds at what the kernel knows; nothing is sent.

Sleep: the time that passed while the machine ran, against the time that passed. Network: the address that the kernel
would send from, to a place outside; a datagram socket that is connected asks that question and sends no packet.
"""

import errno
import socket
import sys
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime

from agent.ports import Clock, NetworkChange

LOOK_SECONDS = 5.0
ASLEEP_SECONDS = 2.0
"""A shorter sleep harms no connection."""

AHEAD_SECONDS = 30.0
"""So far the wall clock must run ahead at once: a virtual machine that was halted tells it in no other way. Somebody
who sets the clock causes a look around, no more.
"""

OUTSIDE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Places in networks for documentation: nobody is there."""

_DISCARD_PORT = 9
_NO_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})

Whence = tuple[str, ...]
"""The source addresses, one a family; "" where the kernel knows no way out."""


def slept() -> float:
    """Return how many seconds the machine has slept since it was started, as far as its clocks tell."""
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC_RAW) - time.clock_gettime(time.CLOCK_UPTIME_RAW)
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return 0.0


def whence() -> Whence | None:
    """Return where the machine would send from. None where that cannot be found out now."""
    found: list[str] = []
    for family, host in OUTSIDE.items():
        try:
            probe = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as error:
            if error.errno not in _NO_FAMILY:
                return None  # no descriptor is left, say: that says nothing of the network
            found.append("")
            continue
        with probe:
            try:
                probe.connect((host, _DISCARD_PORT))
                found.append(str(probe.getsockname()[0]))
            except OSError:
                found.append("")
    return tuple(found)


class MachineNetworkMonitor:
    """`agent.ports.Surroundings` on the kernel's clocks and routes, by a look every `look_seconds`."""

    def __init__(
        self,
        clock: Clock,
        *,
        look_seconds: float = LOOK_SECONDS,
        slept: Callable[[], float] = slept,
        whence: Callable[[], Whence | None] = whence,
    ) -> None:
        self._clock, self._look_seconds, self._slept, self._whence = clock, look_seconds, slept, whence

    async def changes(self) -> AsyncGenerator[NetworkChange, None]:
        """As the port says. A lost network is reported when there is one again: before, nothing can be done."""
        slept, ahead, whence = self._slept(), self._ahead(), self._whence()
        while True:
            await self._clock.sleep(self._look_seconds)
            slept_before, slept = slept, self._slept()
            ahead_before, ahead = ahead, self._ahead()
            if slept - slept_before > ASLEEP_SECONDS or ahead - ahead_before > AHEAD_SECONDS:
                yield NetworkChange.WOKE
            now = self._whence()
            if now is None or now == whence:
                continue
            known, whence = whence, now
            if known is not None and any(now):
                yield NetworkChange.MOVED

    def _ahead(self) -> float:
        """Return how far the wall clock is ahead of the time that the machine ran: what changes it is a jump."""
        return (self._clock.now() - _EPOCH).total_seconds() - self._clock.monotonic()


_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
