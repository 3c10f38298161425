"""Uploaded objects are confirmed by a listing, then by HEAD requests for up to 10 s."""

import asyncio

import pytest

from agent.application.sync.confirmation import CONFIRM_SECONDS, Confirmation
from agent.domain.errors import StoreError
from agent.ports import StoredObject
from tests.support.clock import ManualClock
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import MemoryStore

KEY = "systems/mac/uploads/20260101_000000_mac/reflection.duckdb"
PREFIX = KEY.removesuffix("reflection.duckdb")


class Lagging(MemoryStore):
    """A store with a listing that shows nothing yet."""

    async def list(self, prefix, *, start_after=""):
        for item in ():
            yield item


async def put_object(store, data=b"as it was put"):
    async def body():
        yield data

    return await store.put(KEY, body(), metadata={}, part_bytes=5 * 2**20, progress=lambda _: None)


def confirming(store, clock=None):
    return Confirmation(store, clock or ManualClock(), lambda: None)


async def test_one_listing_confirms_all_objects_and_returns_their_etags():
    store = FaultyStore(MemoryStore())
    put = await put_object(store)
    confirmed = await confirming(store).objects(PREFIX, [put])
    assert confirmed[KEY].etag == put.etag
    assert (store.keys("list"), store.keys("head")) == ([PREFIX], [])


async def test_objects_missing_from_the_listing_are_confirmed_by_head():
    store = FaultyStore(Lagging())
    put = await put_object(store)
    assert (await confirming(store).objects(PREFIX, [put]))[KEY].etag == put.etag
    assert store.keys("head") == [KEY]


async def test_an_object_may_take_ten_seconds_to_appear():
    store, clock = MemoryStore(), ManualClock()
    put = await put_object(store)
    kept = store.objects.pop(KEY)
    work = asyncio.create_task(confirming(store, clock).objects(PREFIX, [put]))
    await clock.until_asleep()
    await clock.advance(CONFIRM_SECONDS - 1)
    store.objects[KEY] = kept
    await clock.advance(1)
    assert (await work)[KEY].etag == put.etag


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "missing"), (b"shorter", "7 bytes"), (b"as it was Put", "its ETag is")]
)
async def test_a_missing_or_different_object_after_ten_seconds_is_a_transient_error(content, reason):
    store, clock = MemoryStore(), ManualClock()
    put = await put_object(store)
    del store.objects[KEY]
    if content is not None:
        store.objects[KEY] = content, {}
    work = asyncio.create_task(confirming(store, clock).objects(PREFIX, [put]))
    await clock.until_asleep()
    while not work.done():
        await clock.advance(1)
    with pytest.raises(StoreError, match=reason) as failure:
        await work
    assert failure.value.transient
    assert KEY in failure.value.message


async def test_an_etag_of_another_form_is_accepted_and_the_listed_one_returned():
    store = MemoryStore()
    put = await put_object(store)
    as_parts = StoredObject(KEY, put.size, etag=f"{'0' * 32}-2")
    assert (await confirming(store).objects(PREFIX, [as_parts]))[KEY].etag == put.etag
