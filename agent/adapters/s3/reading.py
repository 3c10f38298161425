"""Reads of a bucket: the bytes of one object, listings of objects and of unfinished uploads, the time of the store."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from agent.adapters.s3.answers import Answer, Entry, Paging, next_objects, next_uploads, objects_in, uploads_in
from agent.adapters.s3.connection import Connection
from agent.adapters.s3.errors import code_of
from agent.domain.errors import StoreError
from agent.ports import StoredObject

READ_BYTES = 256 * 1024
MAX_UNFINISHED = 1000

_NO_UPLOADS = frozenset({"NotImplemented", "MethodNotAllowed", "501", "405", "NoSuchUpload"})
"""Error codes of stores that do not list uploads, or (rclone) have none to list."""

T = TypeVar("T")


async def read(connection: Connection, key: str) -> AsyncGenerator[bytes, None]:
    """Yield the object's bytes, all that its length announced. Raises NoSuchObject, StoreError."""
    async with aclosing(connection.stream("get_object", key, READ_BYTES)) as pieces:
        async for piece in pieces:
            yield piece


async def list_objects(connection: Connection, prefix: str, start_after: str) -> AsyncIterator[StoredObject]:
    """Yield the objects under `prefix`, in key order, without metadata. Raises StoreError, also where it has no end."""
    first = {"StartAfter": start_after} if start_after else {}
    async with aclosing(_pages(connection, "list_objects_v2", objects_in, next_objects, prefix, first)) as pages:
        async for page in pages:
            for item in page:
                # Not every relative of S3 knows StartAfter.
                if item.key > start_after and item.key.startswith(prefix):
                    yield item


async def list_uploads(connection: Connection, prefix: str) -> AsyncGenerator[Entry, None]:
    """Yield the uploads in parts under `prefix`; none where the store does not list them.

    Raises NotPermitted, and StoreError as `list_objects` does.
    """
    try:
        async with aclosing(
            _pages(connection, "list_multipart_uploads", uploads_in, next_uploads, prefix, {})
        ) as pages:
            async for page in pages:
                for entry in page:
                    if entry.key.startswith(prefix):
                        yield entry
    except StoreError as error:
        if code_of(error) not in _NO_UPLOADS:
            raise


async def _pages(
    connection: Connection,
    operation: str,
    items_in: Callable[[Answer], list[T]],
    next_page: Callable[[Answer], dict[str, str]],
    prefix: str,
    parameters: dict[str, str],
) -> AsyncGenerator[list[T], None]:
    """Yield the pages of a listing. `next_page` reads the parameters of the next page out of a response."""
    paging = Paging(next_page)

    def read_page(answer: Answer) -> tuple[list[T], bool]:
        found = items_in(answer)
        return found, paging.has_next(answer, len(found))

    more = True
    while more:
        found, more = await connection.ask(read_page, operation, Prefix=prefix, **parameters)
        parameters = paging.more
        yield found


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An upload in parts that was neither completed nor aborted."""

    key: str
    begun: datetime


async def server_date(connection: Connection, prefix: str) -> str:
    """Return the Date header of an answer, also of a refusal; "" where it has none. Raises StoreError."""
    try:
        answer: Mapping[str, Any] = await connection.call("list_objects_v2", Prefix=prefix, MaxKeys=1)
    except StoreError as error:
        refusal = getattr(error.__cause__, "response", None)
        if not isinstance(refusal, dict):
            raise
        answer = refusal
    return str(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))


async def unfinished(connection: Connection, prefix: str) -> list[Unfinished]:
    """Return the uploads in parts under `prefix` that are not finished; of many, the first thousand.

    None at all where the store does not list them. Raises NotPermitted, StoreError.
    """
    found: list[Unfinished] = []
    async with aclosing(list_uploads(connection, prefix)) as uploads:
        async for entry in uploads:
            if entry.begun is not None:
                found.append(Unfinished(entry.key, entry.begun))
            if len(found) == MAX_UNFINISHED:
                break
    return found
