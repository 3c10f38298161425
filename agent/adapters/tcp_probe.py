"""Find the proxy for a host, and check whether a host accepts TCP connections. Sends no data.

Several adapters share this module; the import contracts allow it.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from agent.domain.reachability import is_unreachable

STAGGER_SECONDS = 0.25
"""If an address does not respond within this time, the probe tries the next one in parallel."""

Address = tuple[Any, ...]
"""One entry of the result of `getaddrinfo`."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, without its credentials. `variable` is the environment variable that names it."""

    variable: str
    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def proxy_for(host: str, *schemes: str) -> Proxy | None:
    """Return the proxy for a host from the environment or the system settings; the first scheme that has one counts."""
    found = proxy_address(host, *schemes)
    if found is None:
        return None
    scheme, address = found
    parts = urlsplit(address)
    if not parts.hostname:
        return None
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
    variable = next((name for name in names if os.environ.get(name)), "the system's proxy settings")
    return Proxy(variable, parts.scheme or "http", parts.hostname, parts.port or 80)


def proxy_address(host: str, *schemes: str) -> tuple[str, str] | None:
    """Return the scheme of the proxy for a host, and its URL, which may have a user and a password."""
    proxies = {} if proxy_bypass(host) else getproxies()
    scheme = next((scheme for scheme in schemes if proxies.get(scheme)), None)
    if scheme is None:
        return None
    address = proxies[scheme]
    return scheme, address if "//" in address else f"http://{address}"


async def may_be_reached(host: str, port: int, *, seconds: float) -> bool:
    """Return False only if the host does not exist or all its addresses refuse the connection. Never raises.

    Returns True if a connection succeeds, and if the result is unknown after `seconds`.
    """
    try:
        async with asyncio.timeout(seconds):
            addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return await _any_of(iter(addresses))
    except OSError as error:  # includes TimeoutError
        return not is_unreachable(error)
    except UnicodeError:  # not a valid host name: the sync attempt reports it
        return True


async def _any_of(addresses: Iterator[Address]) -> bool:
    trying: set[asyncio.Task[None]] = set()
    all_refuse = True
    try:
        while True:
            if (address := next(addresses, None)) is not None:
                trying.add(asyncio.create_task(_connect(address), name="reach"))
            elif not trying:
                return not all_refuse
            pause = None if address is None else STAGGER_SECONDS
            done, trying = await asyncio.wait(trying, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (error := task.exception()) is None:
                    return True
                all_refuse &= is_unreachable(error)
    finally:
        for task in trying:
            task.cancel()
        if trying:
            await asyncio.wait(trying)


async def _connect(address: Address) -> None:
    family, kind, protocol, _name, socket_address = address
    with contextlib.closing(socket.socket(family, kind, protocol)) as connection:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, socket_address)
