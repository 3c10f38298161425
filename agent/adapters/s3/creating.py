"""Creates an object in a bucket unless it exists: of several agents that try at the same moment, at most one succeeds.

A create uses `If-None-Match: *`. Some S3-compatible stores ignore it (rclone) or refuse it with 501 or 400. Each create
tests the store with an object beside the key, `{key}.candidate`: the same conditional put twice. If the second one is
refused, the store has the condition. If it is accepted, the agents elect one of them (Lamport's fast mutual exclusion,
which needs nothing but objects that can be read as soon as they are put):

1. Put the candidate: its bytes name this agent.
2. If `{key}.closed` exists, the election is contended. Else put it.
3. Read the candidate. If another agent has replaced it, the election is contended. Else this agent has won.
4. The winner looks for the object once more, puts it, and then deletes the other two.

At most one agent wins while the object does not exist. Let A and B win, and B be the one that put the candidate last.
A has read its own candidate in step 3, so B put its candidate after that. A had put `{key}.closed` by then, and deletes
it only when the object exists. So B either finds `{key}.closed` in step 2, or the object in step 4.
"""

import asyncio
from contextlib import suppress

from agent.adapters.s3.connection import Connection
from agent.adapters.s3.errors import status_of
from agent.adapters.s3.part import Part, PartBody, content_md5
from agent.adapters.s3.reading import read
from agent.domain.errors import NoSuchObject, StoreError
from agent.ports import Creation, ignore_progress

_UNSUPPORTED = frozenset({400, 501})
_EXISTS, _CONFLICT = 412, 409


class ObjectCreator:
    """Creates objects in one bucket; see `ObjectStore.create`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def create(self, key: str, data: bytes, *, replace: bool) -> Creation:
        """Put the object. Raises StoreError."""
        if replace:
            await self._put(key, data)
            await self._end_election(key)
            return Creation.UNPROVEN
        if await self._exists(key):
            return Creation.EXISTS
        if not await self._has_condition(_candidate(key), data):
            return await self._elect(key, data)
        created = await self._put_new(key, data)
        await self._end_election(key)
        return Creation.CREATED if created else Creation.EXISTS

    async def _has_condition(self, candidate: str, data: bytes) -> bool:
        """Return whether the store has conditional puts. If not, the candidate was put."""
        try:
            for _ in range(2):
                if not await self._put_new(candidate, data):
                    return True
        except StoreError as error:
            if status_of(error) not in _UNSUPPORTED:
                raise
            await self._put(candidate, data)
        return False

    async def _elect(self, key: str, data: bytes) -> Creation:
        """Put the object if this agent wins. It has put the candidate."""
        if await self._exists(_closed(key)):
            return Creation.CONTENDED
        await self._put(_closed(key), data)
        if await self._read(_candidate(key)) != data:
            return Creation.CONTENDED
        exists = await self._exists(key)
        if not exists:
            await self._put(key, data)
        await self._end_election(key)
        return Creation.EXISTS if exists else Creation.CREATED

    async def _end_election(self, key: str) -> None:
        """Delete the objects of an election. What is left makes the next one contended, and nothing else."""
        for other in (_closed(key), _candidate(key)):
            with suppress(StoreError):
                await self._connection.call("delete_object", other)

    async def _exists(self, key: str) -> bool:
        try:
            await self._connection.call("head_object", key)
        except NoSuchObject:
            return False
        return True

    async def _read(self, key: str) -> bytes | None:
        try:
            return b"".join([piece async for piece in read(self._connection, key)])
        except NoSuchObject:
            return None

    async def _put_new(self, key: str, data: bytes) -> bool:
        """Put the object unless the key exists; return False if it exists. Raises StoreError."""
        try:
            await self._put(key, data, IfNoneMatch="*")
        except StoreError as error:
            if status_of(error) == _EXISTS:
                return False
            if status_of(error) == _CONFLICT:  # another create of this key is in progress
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
            Body=PartBody(part.chunks, part.size, ignore_progress),
            ContentLength=part.size,
            ContentMD5=content_md5(md5),
            StorageClass=None,
            **condition,
        )


def _candidate(key: str) -> str:
    return f"{key}.candidate"


def _closed(key: str) -> str:
    return f"{key}.closed"
