"""Detects sleep and network changes by asking the kernel every few seconds; sends no packets.

Sleep: the time since boot minus the time that the machine was awake. Network: the source address that the kernel would
use for an external host; connecting a datagram socket determines it without sending a packet.
"""

import errno
import socket
import sys
import time
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime

from agent.ports import Clock, NetworkChange

POLL_SECONDS = 5.0
ASLEEP_SECONDS = 2.0
"""A shorter sleep does not break connections."""

AHEAD_SECONDS = 30.0
"""A forward jump of the wall clock that counts as sleep: the only sign that a virtual machine was suspended.

If a person sets the clock, the agent checks its connections needlessly, nothing more.
"""

PROBE_ADDRESSES = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of documentation networks (RFC 5737, RFC 3849), at which no host exists."""

_DISCARD_PORT = 9
_NO_FAMILY = frozenset({errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})

SourceAddresses = tuple[str, ...]
"""One source address per address family; "" if the kernel has no route."""

_EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


def seconds_asleep() -> float:
    """Return the seconds that the machine has slept since boot; 0 if its clocks do not show it."""
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC_RAW) - time.clock_gettime(time.CLOCK_UPTIME_RAW)
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    return 0.0


def source_addresses() -> SourceAddresses | None:
    """Return the source addresses for external hosts; None if they cannot be determined now."""
    found: list[str] = []
    for family, host in PROBE_ADDRESSES.items():
        try:
            probe = socket.socket(family, socket.SOCK_DGRAM)
        except OSError as error:
            if error.errno not in _NO_FAMILY:
                return None  # no file descriptor is left, for example: this is not about the network
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
    """`agent.ports.NetworkMonitor` on the kernel's clocks and routes, polled every `poll_seconds`."""

    def __init__(
        self,
        clock: Clock,
        *,
        poll_seconds: float = POLL_SECONDS,
        seconds_asleep: Callable[[], float] = seconds_asleep,
        source_addresses: Callable[[], SourceAddresses | None] = source_addresses,
    ) -> None:
        self._clock, self._poll_seconds = clock, poll_seconds
        self._seconds_asleep, self._source_addresses = seconds_asleep, source_addresses

    async def changes(self) -> AsyncGenerator[NetworkChange, None]:
        """Implement the port. A lost network is reported when it is back: until then, nothing can be done."""
        asleep, ahead, addresses = self._seconds_asleep(), self._ahead(), self._source_addresses()
        while True:
            await self._clock.sleep(self._poll_seconds)
            asleep_before, asleep = asleep, self._seconds_asleep()
            ahead_before, ahead = ahead, self._ahead()
            if asleep - asleep_before > ASLEEP_SECONDS or ahead - ahead_before > AHEAD_SECONDS:
                yield NetworkChange.WOKE
            now = self._source_addresses()
            if now is None or now == addresses:
                continue
            before, addresses = addresses, now
            if before is not None and any(now):
                yield NetworkChange.MOVED

    def _ahead(self) -> float:
        """Return the wall clock minus the monotonic clock: the difference changes if the wall clock jumps."""
        return (self._clock.now() - _EPOCH).total_seconds() - self._clock.monotonic()
