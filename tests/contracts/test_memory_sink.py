"""What every MemorySink keeps. Over an Akosha server (the stand-in), and over the fake that other tests use."""

import asyncio
from datetime import datetime

import pytest

from agent.adapters.akosha import AkoshaSink
from agent.domain.memories import memory_id
from tests.support.memories import CREATED, embedding, memory, seen
from tests.support.servers.akosha import Akosha
from tests.support.sink import MemorySink
from tests.support.values import SYSTEM


@pytest.fixture(scope="module")
def akosha():
    with Akosha() as running:
        yield running


@pytest.fixture(params=["akosha", "fake"])
async def sink(request):
    if request.param == "fake":
        made = MemorySink()
    else:
        server = request.getfixturevalue("akosha")
        server.forget()
        made = AkoshaSink(endpoint=server.url, timeout_seconds=10)
    yield made
    await made.aclose()


def packed(sink, *memories, system=SYSTEM):
    return [sink.pack(one, system) for one in memories]


async def test_it_is_available_and_says_what_it_takes(sink):
    assert await sink.is_available()
    offer = await sink.connect()
    assert offer.kinds == offer.need_embedding == {"conversation", "reflection", "entity"}
    assert offer == await sink.connect()


async def test_what_was_stored_is_known_the_next_time(sink):
    batch = packed(sink, memory(1), memory(2, kind="reflection"), memory(3, kind="entity"))
    first, again = await sink.store(batch), await sink.store(batch)
    assert (first.stored, first.known, first.refused) == (3, 0, {})
    assert (again.stored, again.known, again.refused) == (0, 3, {})


async def test_what_is_refused_is_named_by_its_position_and_stops_nothing_else(sink):
    batch = packed(sink, memory(1, embedded=False), memory(2), memory(3, embedded=False), memory(4))
    await sink.store(batch[3:])
    receipt = await sink.store(batch)
    assert (receipt.stored, receipt.known) == (1, 1)
    assert set(receipt.refused) == {0, 2}
    assert all("Embedding is required" in why for why in receipt.refused.values())


async def test_the_same_memory_twice_in_a_batch_is_stored_once(sink):
    receipt = await sink.store(packed(sink, memory(1), memory(1)))
    assert (receipt.stored, receipt.known, receipt.refused) == (1, 1, {})


async def test_two_systems_with_equal_ids_do_not_collide_nor_do_two_states_of_a_row(sink):
    batch = packed(sink, memory(1), memory(1, state=1)) + packed(sink, memory(1), system="other")
    assert len({one.memory_id for one in batch}) == 3
    assert (await sink.store(batch)).stored == 3


async def test_an_empty_batch_is_a_receipt_of_nothing(sink):
    receipt = await sink.store([])
    assert (receipt.stored, receipt.known, receipt.refused) == (0, 0, {})


async def test_a_memory_is_packed_under_its_id_and_its_bytes_are_counted(sink):
    one = sink.pack(memory(1), SYSTEM)
    assert one.memory_id == memory_id(SYSTEM, seen(1))
    assert one.row == seen(1)
    before = sink.bytes_sent
    await sink.store([one])
    assert sink.bytes_sent - before >= len(one.body) > len(embedding())


async def test_batches_may_be_on_their_way_at_once(sink):
    batches = [packed(sink, *(memory(f"{n}-{i}") for i in range(20))) for n in range(4)]
    receipts = await asyncio.gather(*(sink.store(batch) for batch in batches))
    assert [receipt.stored for receipt in receipts] == [20] * 4


async def test_closing_twice_is_closing(sink):
    await sink.store(packed(sink, memory(1)))
    await sink.aclose()
    await sink.aclose()


async def test_what_arrives_is_what_was_packed(akosha):
    akosha.forget()
    sink = AkoshaSink(endpoint=akosha.url)
    try:
        await sink.store(packed(sink, memory(1, kind="reflection", source="not this")))
    finally:
        await sink.aclose()
    [row] = akosha.rows(SYSTEM)
    assert row.text == memory(1, kind="reflection").text
    assert row.timestamp == datetime.fromisoformat(CREATED)
    assert (row.metadata["type"], row.metadata["original_id"]) == ("reflection", "reflection-1")
    assert row.embedding.tolist() == pytest.approx(eval(embedding("reflection-1")), abs=1e-6)
