"""What a bucket holds: one object's bytes, a listing."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from agent.adapters.s3.answers import Answer, Paging, next_objects, objects_in
from agent.adapters.s3.connection import Connection
from agent.ports import StoredObject

READ_BYTES = 256 * 1024


async def read(connection: Connection, key: str) -> AsyncGenerator[bytes, None]:
    """Yield the object's bytes, all that its length announced. Raises NoSuchObject, StoreError."""
    async with aclosing(connection.stream("get_object", key, READ_BYTES)) as pieces:
        async for piece in pieces:
            yield piece


async def listing(connection: Connection, prefix: str, start_after: str) -> AsyncIterator[StoredObject]:
    """Yield what lies under `prefix`, in key order, without metadata. Raises StoreError, also where it has no end."""
    more: dict[str, Any] = {"StartAfter": start_after} if start_after else {}
    paging = Paging(next_objects)

    def page(answer: Answer) -> tuple[list[StoredObject], bool]:
        found = objects_in(answer)
        return found, paging.has_next(answer, len(found))

    goes_on = True
    while goes_on:
        found, goes_on = await connection.ask(page, "list_objects_v2", Prefix=prefix, **more)
        more = paging.more
        for item in found:
            # Not every relative of S3 knows StartAfter.
            if item.key > start_after and item.key.startswith(prefix):
                yield item
