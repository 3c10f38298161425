"""The contract of `MemorySink`, tested with a stand-in for an Akosha server and with the fake of other tests."""

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


async def test_a_sink_is_available_and_returns_its_capabilities(sink):
    assert await sink.is_available()
    capabilities = await sink.connect()
    assert capabilities.kinds == capabilities.need_embedding == {"conversation", "reflection", "entity"}
    assert capabilities == await sink.connect()


async def test_stored_memories_are_known_when_they_are_sent_again(sink):
    batch = packed(sink, memory(1), memory(2, kind="reflection"), memory(3, kind="entity"))
    first, second = await sink.store(batch), await sink.store(batch)
    assert (first.stored, first.known, first.refused) == (3, 0, {})
    assert (second.stored, second.known, second.refused) == (0, 3, {})


async def test_a_refused_memory_is_reported_by_position_and_the_others_are_stored(sink):
    batch = packed(sink, memory(1, embedded=False), memory(2), memory(3, embedded=False), memory(4))
    await sink.store(batch[3:])
    result = await sink.store(batch)
    assert (result.stored, result.known) == (1, 1)
    assert set(result.refused) == {0, 2}
    assert all("Embedding is required" in reason for reason in result.refused.values())


async def test_the_same_memory_twice_in_a_batch_is_stored_once(sink):
    result = await sink.store(packed(sink, memory(1), memory(1)))
    assert (result.stored, result.known, result.refused) == (1, 1, {})


async def test_memories_of_two_systems_and_two_states_of_a_row_have_different_ids(sink):
    batch = packed(sink, memory(1), memory(1, state=1)) + packed(sink, memory(1), system="other")
    assert len({one.memory_id for one in batch}) == 3
    assert (await sink.store(batch)).stored == 3


async def test_storing_an_empty_batch_stores_nothing(sink):
    result = await sink.store([])
    assert (result.stored, result.known, result.refused) == (0, 0, {})


async def test_a_memory_is_packed_under_its_id_and_its_bytes_are_counted(sink):
    one = sink.pack(memory(1), SYSTEM)
    assert one.memory_id == memory_id(SYSTEM, seen(1))
    assert one.row == seen(1)
    before = sink.bytes_sent
    await sink.store([one])
    assert sink.bytes_sent - before >= len(one.body) > len(embedding())


async def test_batches_may_be_stored_concurrently(sink):
    batches = [packed(sink, *(memory(f"{n}-{i}") for i in range(20))) for n in range(4)]
    results = await asyncio.gather(*(sink.store(batch) for batch in batches))
    assert [result.stored for result in results] == [20] * 4


async def test_closing_a_sink_twice_is_not_an_error(sink):
    await sink.store(packed(sink, memory(1)))
    await sink.aclose()
    await sink.aclose()


async def test_the_server_receives_the_packed_memory(akosha):
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
