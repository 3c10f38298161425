"""What a store answered to have stored is looked for: by a listing, then by HEAD for a while."""

import asyncio

import pytest

from agent.application.sync.upload import CONFIRM_SECONDS, Confirmation
from agent.domain.errors import StoreError
from agent.ports import StoredObject
from tests.support.clock import ManualClock
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import MemoryStore

KEY = "systems/mac/uploads/20260101_000000_mac/reflection.duckdb"
PREFIX = KEY.removesuffix("reflection.duckdb")


class Lagging(MemoryStore):
    """A store whose listing shows nothing yet."""

    async def list(self, prefix, *, start_after=""):
        for item in ():
            yield item


async def placed(store, data=b"as it was put"):
    async def body():
        yield data

    return await store.put(KEY, body(), metadata={}, part_bytes=5 * 2**20, progress=lambda _: None)


def confirming(store, clock=None):
    return Confirmation(store, clock or ManualClock(), lambda: None)


async def test_one_listing_confirms_everything_and_tells_the_etags():
    store = FaultyStore(MemoryStore())
    put = await placed(store)
    confirmed = await confirming(store).objects(PREFIX, [put])
    assert confirmed[KEY].etag == put.etag
    assert (store.keys("list"), store.keys("head")) == ([PREFIX], [])


async def test_what_a_listing_lacks_is_asked_for_by_head():
    store = FaultyStore(Lagging())
    put = await placed(store)
    assert (await confirming(store).objects(PREFIX, [put]))[KEY].etag == put.etag
    assert store.keys("head") == [KEY]


async def test_an_object_may_take_ten_seconds_to_appear():
    store, clock = MemoryStore(), ManualClock()
    put = await placed(store)
    kept = store.objects.pop(KEY)
    work = asyncio.create_task(confirming(store, clock).objects(PREFIX, [put]))
    await clock.until_asleep()
    await clock.advance(CONFIRM_SECONDS - 1)
    store.objects[KEY] = kept
    await clock.advance(1)
    assert (await work)[KEY].etag == put.etag


@pytest.mark.parametrize(
    ("there", "why"), [(None, "missing"), (b"shorter", "7 bytes"), (b"as it was Put", "its ETag is")]
)
async def test_what_is_not_there_or_is_something_else_after_ten_seconds_is_a_transient_error(there, why):
    store, clock = MemoryStore(), ManualClock()
    put = await placed(store)
    del store.objects[KEY]
    if there is not None:
        store.objects[KEY] = there, {}
    work = asyncio.create_task(confirming(store, clock).objects(PREFIX, [put]))
    await clock.until_asleep()
    while not work.done():
        await clock.advance(1)
    with pytest.raises(StoreError, match=why) as failure:
        await work
    assert failure.value.transient
    assert KEY in failure.value.message


async def test_an_etag_of_another_form_shows_nothing_and_the_listing_s_is_kept():
    store = MemoryStore()
    put = await placed(store)
    as_parts = StoredObject(KEY, put.size, etag=f"{'0' * 32}-2")
    assert (await confirming(store).objects(PREFIX, [as_parts]))[KEY].etag == put.etag
