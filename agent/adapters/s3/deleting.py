"""Deleting: few keys one by one, which every store knows; many by the thousand."""

import asyncio
import itertools
from collections.abc import Collection, Sequence

import structlog

from agent.adapters.s3.connection import Connection
from agent.adapters.s3.errors import refused_keys
from agent.domain.errors import NotPermitted, StoreError
from agent.ports.concurrency import all_of

AT_ONCE = 8
"""Single deletions on their way at a time; so many keys, or fewer, are not worth a batch."""

BATCH = 1000
"""What S3 takes in one request."""

log = structlog.get_logger()


class Deleting:
    """Deletes keys of one bucket. A store that has once refused a batch is given single keys from then on."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._singly = False

    async def delete(self, keys: Collection[str]) -> None:
        """Delete them in their order, batch by batch; raises what stopped it: NotPermitted, StoreError."""
        rest = iter(keys)
        while batch := [*itertools.islice(rest, BATCH)]:
            if self._singly or len(batch) <= AT_ONCE:
                await self._one_by_one(batch)
                continue
            try:
                await self._together(batch)
            except _Unheard as error:
                await self._one_by_one(batch)
                self._singly = True
                log.info("deleting_singly", location=str(self._connection.place), why=str(error.__cause__))

    async def _together(self, keys: Sequence[str]) -> None:
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        try:
            answer = await self._connection.call("delete_objects", Delete=wanted)
        except NotPermitted:
            raise
        except StoreError as error:
            if error.transient:
                raise
            raise _Unheard from error
        if refusals := [error for error in answer.get("Errors") or () if error.get("Code") != "NoSuchKey"]:
            raise refused_keys(refusals, self._connection.place, "delete_objects")

    async def _one_by_one(self, keys: Sequence[str]) -> None:
        room = asyncio.Semaphore(AT_ONCE)

        async def delete_one(key: str) -> None:
            async with room:
                await self._connection.call("delete_object", key)

        await all_of([delete_one(key) for key in keys], "s3-delete")


class _Unheard(Exception):  # noqa: N818 - a turn of events between two methods here
    """The store does not take batches."""
