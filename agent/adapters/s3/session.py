"""The client's HTTP session. It follows no redirect, limits responses, and closing it closes all connections.

Imported when the client is built, because it loads the library. It differs from aiobotocore's session:

- Redirects are reported as errors. S3 answers a request for the wrong region with 301 and no address. aiohttp would
  follow a redirect with an address to any host, turn a POST into a GET, and fail on a body that it has already sent.
- A listing, an error or another response that is read at once is limited: an endless one would take all memory.
- A copy within the store has no time limit: the store answers when it has copied all bytes. The caller cancels it.
- The connect timeout covers everything from the name lookup to the TLS handshake; aiobotocore's excludes the lookup.
- Through a proxy, the store's certificate is verified; aiobotocore does not verify it.
- aiohttp's clean-up of closed TLS connections is enabled. A TLS connection that is closed in the middle of a body stays
  open until the other side has received the rest, or for 30 s. aiohttp closes such connections with the session only
  if this clean-up is on, which it is not by default on recent Python versions.
"""

import asyncio
from functools import partial
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession
from aiohttp import ClientTimeout, ConnectionTimeoutError
from botocore.exceptions import ConnectTimeoutError, HTTPClientError

from agent.adapters.s3.responses import InvalidResponse

CLEANUP_SECONDS = 600
"""Interval of aiohttp's clean-up of closed TLS connections; long, because the clean-up wakes an idle process."""


MAX_RESPONSE_BYTES = 16 * 2**20
"""Maximum size of a response that is not an object. A page of a listing has 4 MB at most."""


class _Session:
    def __init__(self, session: Any) -> None:
        self._session = session

    async def request(self, *arguments: Any, **options: Any) -> Any:
        if "x-amz-copy-source" in options["headers"]:
            options["timeout"] = ClientTimeout(sock_connect=self._session.timeout.sock_connect)
        response = await self._session.request(*arguments, allow_redirects=False, **options)
        response.read = partial(_read, response)  # aiobotocore reads objects piece by piece, all others with this
        return response


async def _read(response: Any) -> bytes:
    body = bytearray()
    try:
        async for piece in response.content.iter_any():
            body += piece
            if len(body) > MAX_RESPONSE_BYTES:
                raise InvalidResponse(f"a response of more than {MAX_RESPONSE_BYTES // 2**20} MiB")
        await response.wait_for_close()  # until the request is sent, if the server has answered early
    except BaseException:
        response.close()
        raise
    return bytes(body)


class DirectSession(AIOHTTPSession):  # type: ignore[misc] # the library has no types
    """The session with which aiobotocore sends its requests."""

    def _create_connector(self, proxy_url: str | None) -> Any:  # noqa: ARG002 - the library's signature
        # Pass None: with the proxy's address, aiobotocore disables certificate verification.
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
            connector._cleanup_closed_disabled = False  # noqa: SLF001 - the public option has no effect on these versions
            connector._cleanup_closed_period = CLEANUP_SECONDS  # noqa: SLF001
            connector._cleanup_closed()  # noqa: SLF001
        return connector

    async def send(self, request: Any) -> Any:
        try:
            return await super().send(request)
        except ConnectTimeoutError as error:
            # botocore does not retry this type: three attempts would triple the time limit. The caller retries.
            raise ConnectionTimeoutError(f"Connection timeout to host {request.url}") from error
        except HTTPClientError as error:
            if isinstance(cause := error.kwargs.get("error"), InvalidResponse):
                raise cause from error
            raise

    async def _get_session(self, proxy_url: str | None) -> _Session:
        return _Session(await super()._get_session(proxy_url))

    def drop_idle_connections(self) -> None:
        """Close the idle connections in the pool. Connections in use are not affected."""
        for session in self._sessions.values():
            for idle in list(session.connector._conns.values()):  # noqa: SLF001 - the public way closes all connections
                for protocol, _since in idle:
                    if protocol.transport is not None:
                        protocol.transport.abort()
