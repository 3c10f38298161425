"""Creating a small object where nothing is: by `If-None-Match: *`, which some relatives of S3 refuse, or ignore.

rclone ignores it, others answer 501 or 400. What a store does is found out, not looked up: after a create that it
accepted, the same request must be refused.
"""

import asyncio

from agent.adapters.s3.connection import Connection
from agent.adapters.s3.errors import status_of
from agent.adapters.s3.part import Part, PartBody, content_md5
from agent.domain.errors import NoSuchObject, StoreError
from agent.ports import Creation, untold

_EXISTS, _CONFLICT = 412, 409
_UNSUPPORTED = frozenset({400, 501})


class Creating:
    """Creates objects in one bucket, as `ObjectStore.create` says."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, key: str, data: bytes, *, replace: bool) -> Creation:
        """Put the object. Raises StoreError."""
        if replace:
            await self._put(key, data)
            return Creation.UNPROVEN
        if await self._is_there(key):
            return Creation.EXISTS
        try:
            if not await self._put_new(key, data):
                return Creation.EXISTS
        except StoreError as error:
            if status_of(error) not in _UNSUPPORTED:
                raise
            await self._put(key, data)
            return Creation.UNPROVEN
        try:
            proven = not await self._put_new(key, data)
        except StoreError:
            proven = False
        return Creation.CREATED if proven else Creation.UNPROVEN

    async def _is_there(self, key: str) -> bool:
        try:
            await self._connection.call("head_object", key)
        except NoSuchObject:
            return False
        return True

    async def _put_new(self, key: str, data: bytes) -> bool:
        """Put it if nothing is there; False where something is. Raises StoreError."""
        try:
            await self._put(key, data, IfNoneMatch="*")
        except StoreError as error:
            if status_of(error) == _EXISTS:
                return False
            if status_of(error) == _CONFLICT:  # another create of this key is under way
                raise StoreError(error.message, hint=error.hint, transient=True) from error.__cause__
            raise
        return True

    async def _put(self, key: str, data: bytes, **condition: str) -> None:
        part = Part()
        part.append(data)
        md5 = await asyncio.to_thread(part.md5)
        await self._connection.call(
            "put_object",
            key,
            Body=PartBody(part.chunks, part.size, untold),
            ContentLength=part.size,
            ContentMD5=content_md5(md5),
            StorageClass=None,
            **condition,
        )
