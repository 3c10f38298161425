"""A put: in one request where the body fits into one part, else in parts, a bounded number at a time; then checked."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import cast

import structlog

from agent.adapters.s3 import checks
from agent.adapters.s3.answers import Answer, described, etag_of
from agent.adapters.s3.connection import Connection
from agent.adapters.s3.errors import code_of
from agent.adapters.s3.multipart import Multipart
from agent.adapters.s3.part import Pacing, Part, PartBody, content_md5, parts
from agent.domain.errors import NoSuchObject, StoreError
from agent.ports import Progress, StoredObject
from agent.ports.concurrency import SideBySide

log = structlog.get_logger()


class Sending:
    """Puts of one store. Remembers, for its lifetime, when the store's ETags turn out to be of a form of its own."""

    def __init__(self, connection: Connection, concurrency: int, rate_limiter: Pacing | None = None) -> None:
        self._connection = connection
        self._concurrency = concurrency
        self._rate_limiter = rate_limiter
        self._etags_tell = True
        self.live: set[str] = set()

    async def put(
        self, key: str, body: AsyncIterable[bytes], metadata: Mapping[str, str], part_bytes: int, progress: Progress
    ) -> tuple[int, str]:
        """Send the body; return its size and the ETag that the store answered."""
        async with aclosing(cast("AsyncGenerator[Part]", parts(body, part_bytes))) as stream:
            # Room for a part is taken before it is filled: `concurrency` parts are in memory, and no more.
            first = await anext(stream)
            second = await anext(stream, None)
            if second is None:
                return await self._whole(key, first, metadata, progress)
            async with Multipart(self._connection, key, metadata, self.live, self._rate_limiter) as upload:
                waiting = [first, second]
                del first, second
                size = await self._parts(upload, waiting, stream, progress)
                return size, await self._complete(upload, size, part_bytes)

    async def _whole(self, key: str, part: Part, metadata: Mapping[str, str], progress: Progress) -> tuple[int, str]:
        md5 = await asyncio.to_thread(part.md5)
        answer = await self._connection.call(
            "put_object",
            key,
            Body=PartBody(part.chunks, part.size, progress, self._rate_limiter) if part.size else b"",
            ContentLength=part.size,
            ContentMD5=content_md5(md5),
            Metadata=dict(metadata),
        )
        async with self._removed_if_damaged(key):
            if not checks.check_part(answer, md5, self._connection.place, key):
                await self._check_size(key, part.size)
        return part.size, etag_of(answer)

    async def _parts(
        self, upload: Multipart, waiting: list[Part], stream: AsyncGenerator[Part], progress: Progress
    ) -> int:
        room = asyncio.Semaphore(self._concurrency)
        size = number = 0

        async def send(number: int, part: Part) -> None:
            try:
                await upload.send(number, part, progress)
            finally:
                room.release()

        async with SideBySide("s3-part") as parts_under_way:
            while True:
                await room.acquire()
                parts_under_way.check()
                part = waiting.pop(0) if waiting else await anext(stream, None)
                if part is None:
                    break
                number += 1
                size += part.size
                parts_under_way.start(send(number, part))
                del part
        return size

    async def _complete(self, upload: Multipart, size: int, part_bytes: int) -> str:
        md5s = [upload.md5s[number] for number in sorted(upload.md5s)]
        try:
            answer = await upload.complete()
        except StoreError as error:
            if code_of(error) != "NoSuchUpload" or not await self._is_there(upload, size, md5s):
                raise
            return checks.multipart_etag(md5s)
        async with self._removed_if_damaged(upload.key):
            stored = await self._check_size(upload.key, size)
            if self._etags_tell and upload.etags_are_md5 and checks.in_another_form(answer, md5s):
                # Damaged, or a store that counts otherwise: the bytes themselves tell, once.
                await checks.read_back(self._connection, upload.key, md5s, part_bytes)
                log.info("etags_of_another_form", store=str(self._connection.place))
                self._etags_tell = False
        return stored.etag

    async def _is_there(self, upload: Multipart, size: int, md5s: list[bytes]) -> bool:
        """Say whether a try to complete whose answer was lost has made this very object."""
        try:
            found, answer = await self._head(upload.key)
        except StoreError:
            return False
        if etag_of(answer) != checks.multipart_etag(md5s) or found.size != size:
            return False
        upload.believe()
        return True

    async def _check_size(self, key: str, size: int) -> StoredObject:
        place = self._connection.place
        try:
            found, _ = await self._head(key)
        except NoSuchObject as error:
            raise checks.damaged(place, key, "nothing is there") from error
        checks.check_size(found.size, size, place, key)
        return found

    async def _head(self, key: str) -> tuple[StoredObject, Answer]:
        return await self._connection.ask(lambda answer: (described(key, answer), answer), "head_object", key)

    @asynccontextmanager
    async def _removed_if_damaged(self, key: str) -> AsyncIterator[None]:
        try:
            yield
        except StoreError:
            # May be refused; without a manifest it is no upload, and the next attempt replaces it.
            with suppress(StoreError):
                await self._connection.call("delete_object", key)
            raise
