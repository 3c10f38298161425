"""`ObjectStore` on S3-compatible services. Most methods need only the Put, Get and List permissions."""

import builtins
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Collection, Mapping
from datetime import datetime

from agent.adapters.s3 import multipart, reading
from agent.adapters.s3.bucket_address import BucketAddress
from agent.adapters.s3.client import BUILD_SECONDS, Credentials, Limits
from agent.adapters.s3.connection import Connection
from agent.adapters.s3.creating import ObjectCreator
from agent.adapters.s3.object_options import ObjectOptions
from agent.adapters.s3.reading import Unfinished
from agent.adapters.s3.responses import object_of
from agent.adapters.s3.writing import (
    CONCURRENT_DELETES,
    SINGLE_COPY_BYTES,
    ObjectCopier,
    ObjectDeleter,
    ObjectWriter,
)
from agent.adapters.tcp_probe import may_be_reached
from agent.ports import Creation, OpenPut, Progress, PutJournal, RateLimiter, StoredObject, ignore_progress
from agent.settings.own_files import S3Credentials

AVAILABLE_SECONDS = 0.9


class S3Store:
    """A bucket. Credentials come from the agent's `credentials.yaml` and the standard AWS chain.

    Sending and copying have no time limit: the caller watches `progress` and cancels, which takes effect at once.

    Args:
        bucket: the bucket's name.
        endpoint: URL of the service; empty is AWS.
        region: `auto` derives it from the endpoint or the AWS chain.
        part_concurrency: maximum number of parts in memory and in transit.
        connect_timeout: seconds for one connection, including the name lookup.
        read_timeout: seconds for a response after the request is sent, except to a copy.
        build_seconds: seconds for finding credentials, at the first call and at each refresh.
        verify: file of a CA to trust; None uses AWS_CA_BUNDLE, else the default CAs.
        single_copy_bytes: larger objects are copied in parts.
        object_options: options of all objects that the store creates.
        rate_limiter: limits the rate of request bodies, including retries.
        credentials: used instead of all other sources: keys that are tested before they are stored.
    """

    def __init__(
        self,
        *,
        bucket: str,
        endpoint: str,
        region: str,
        part_concurrency: int = 3,
        connect_timeout: float = 10.0,
        read_timeout: float = 60.0,
        build_seconds: float = BUILD_SECONDS,
        verify: str | bool | None = None,
        single_copy_bytes: int = SINGLE_COPY_BYTES,
        object_options: ObjectOptions = ObjectOptions(),  # noqa: B008 - frozen
        rate_limiter: RateLimiter | None = None,
        credentials: S3Credentials | None = None,
    ) -> None:
        self._address = BucketAddress(bucket, endpoint, region)
        limits = Limits(
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            connections=part_concurrency + CONCURRENT_DELETES,
            build_seconds=build_seconds,
        )
        self._connection = Connection(self._address, limits, verify, object_options, credentials)
        self._writer = ObjectWriter(self._connection, part_concurrency, rate_limiter)
        self._creator = ObjectCreator(self._connection)
        self._deleter = ObjectDeleter(self._connection)
        self._copier = ObjectCopier(self._connection, single_copy_bytes, self._writer.active)

    @property
    def location(self) -> str:
        return str(self._address)

    async def is_available(self) -> bool:
        """Return False only if the endpoint, or its proxy, definitely does not accept connections. Sends nothing."""
        host, port = self._address.tcp_address
        return await may_be_reached(host, port, seconds=AVAILABLE_SECONDS)

    async def put(
        self,
        key: str,
        body: AsyncIterable[bytes],
        *,
        metadata: Mapping[str, str],
        part_bytes: int,
        progress: Progress,
        kept: Progress = ignore_progress,
        journal: PutJournal | None = None,
    ) -> StoredObject:
        size, etag = await self._writer.put(key, body, metadata, part_bytes, progress, kept, journal)
        return StoredObject(key, size, dict(metadata), etag=etag)

    async def create(self, key: str, data: bytes, *, replace: bool = False) -> Creation:
        return await self._creator.create(key, data, replace=replace)

    async def copy(
        self, source: str, key: str, *, expected: StoredObject, progress: Progress = ignore_progress
    ) -> StoredObject:
        return await self._copier.copy(source, key, expected, progress)

    async def head(self, key: str) -> StoredObject:
        return await self._connection.call_and_read(lambda response: object_of(key, response), "head_object", key)

    async def inspect(self, key: str, *, progress: Progress = ignore_progress) -> StoredObject:  # noqa: ARG002
        """Return `head(key)`: its ETag was computed from the bytes when they were written."""
        return await self.head(key)

    async def get(self, key: str) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(reading.read(self._connection, key)) as pieces:
            async for piece in pieces:
                yield piece

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[StoredObject]:
        async for item in reading.list_objects(self._connection, prefix, start_after):
            yield item

    async def folders(self, prefix: str, *, start: str = "") -> AsyncGenerator[str, None]:
        async with contextlib.aclosing(reading.list_folders(self._connection, prefix, start)) as names:
            async for name in names:
                yield name

    async def delete(self, keys: Collection[str]) -> None:
        await self._deleter.delete(keys)

    async def discard(self, put: OpenPut) -> None:
        await multipart.abort(self._connection, put.key, put.put_id)

    async def sweep(self, prefix: str, *, started_before: datetime | None = None, spared: Collection[str] = ()) -> int:
        return await multipart.sweep(self._connection, prefix, {*spared, *self._writer.active}, started_before)

    async def separate_copies(self, prefix: str, *, progress: Progress = ignore_progress) -> None:
        """Do nothing: the service keeps several copies of each object."""

    async def unfinished(self, prefix: str) -> builtins.list[Unfinished]:
        """Return the multipart uploads that `sweep` would abort, and those in progress. Raises NotPermitted."""
        return await reading.unfinished(self._connection, prefix)

    async def server_date(self, prefix: str) -> str:
        """Return the Date header of a response, "" if it has none. Raises StoreError if there is no response."""
        return await reading.server_date(self._connection, prefix)

    async def credentials(self) -> Credentials | None:
        """Return the source of the AWS chain's credentials, None if there are none. Raises StoreError."""
        return await self._connection.credentials()

    async def drop_idle_connections(self) -> None:
        self._connection.drop_idle_connections()

    async def reset_client(self) -> None:
        """Discard the client: the next call finds the credentials again."""
        await self._connection.reset()

    async def aclose(self) -> None:
        await self._connection.aclose()
