"""The HTTP session under the client: it follows no redirect, and closing it closes every connection.

Imported when the client is made, because it loads the library.

S3 answers a request for the wrong region with 301 and no address: an error to be reported, like any other. aiohttp
would follow what has an address, wherever it leads, turn a POST into a GET, and fail on a body that it has sent
already.

The limit for a connection is one for all of it, from the look-up of the name to the TLS handshake; aiobotocore's own
leaves the look-up out.

Through a proxy, the store's certificate is checked like any other; aiobotocore checks none there.

A TLS connection that is given up in the middle of a body stays open until the other side has taken the rest, or for
30 s. aiohttp keeps book of those, and ends them with the session, where it is configured to (by default, on no recent
Python).
"""

import asyncio
from functools import partial
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession
from aiohttp import ConnectionTimeoutError
from botocore.exceptions import ConnectTimeoutError

BOOK_SECONDS = 600
"""How often that book is cleared; rarely, because it wakes an idle process."""


class _Direct:
    def __init__(self, session: Any) -> None:
        self.request = partial(session.request, allow_redirects=False)


class DirectSession(AIOHTTPSession):  # type: ignore[misc] # the library has no types
    """What aiobotocore sends its requests with."""

    def _create_connector(self, proxy_url: str | None) -> Any:  # noqa: ARG002 - the library's signature
        # Without the proxy's address: given one, the library makes a connector that trusts every certificate.
        connector = super()._create_connector(None)
        connect, limit = connector._create_connection, self._timeout.sock_connect  # noqa: SLF001 - no public way

        async def within_limit(request: Any, *arguments: Any) -> Any:
            try:
                async with asyncio.timeout(limit):
                    return await connect(request, *arguments)
            except TimeoutError as error:
                raise ConnectionTimeoutError(f"Connection timeout to host {request.url}") from error

        connector._create_connection = within_limit  # noqa: SLF001
        if hasattr(connector, "_cleanup_closed"):
            connector._cleanup_closed_disabled = False  # noqa: SLF001 - the public switch is ignored where it would serve
            connector._cleanup_closed_period = BOOK_SECONDS  # noqa: SLF001
            connector._cleanup_closed()  # noqa: SLF001
        return connector

    async def send(self, request: Any) -> Any:
        try:
            return await super().send(request)
        except ConnectTimeoutError as error:
            # Under its own name, which botocore does not try again: three limits are no limit. The caller tries again.
            raise ConnectionTimeoutError(f"Connection timeout to host {request.url}") from error

    async def _get_session(self, proxy_url: str | None) -> _Direct:
        return _Direct(await super()._get_session(proxy_url))

    def drop_idle_connections(self) -> None:
        """Break the connections in the pool. Those in use go on; of those that are broken none is used again."""
        for session in self._sessions.values():
            for waiting in list(session.connector._conns.values()):  # noqa: SLF001 - it can only close all, used ones too
                for protocol, _since in waiting:
                    if protocol.transport is not None:
                        protocol.transport.abort()
