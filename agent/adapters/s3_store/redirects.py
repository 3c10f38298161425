"""An HTTP session that follows no redirect. Imported when the client is made: it loads the library.

S3 answers a request for the wrong region with 301 and no address: an error to be told, like any other. aiohttp would
follow what has an address, wherever it leads, turn a POST into a GET, and fail on a body that it has sent already.
"""

from functools import partial
from typing import Any

from aiobotocore.httpsession import AIOHTTPSession


class _Direct:
    def __init__(self, session: Any) -> None:
        self.request = partial(session.request, allow_redirects=False)


class DirectSession(AIOHTTPSession):  # type: ignore[misc] # the library has no types
    """What aiobotocore sends its requests with."""

    async def _get_session(self, proxy_url: str | None) -> _Direct:
        return _Direct(await super()._get_session(proxy_url))
