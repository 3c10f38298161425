"""Akosha's answers to pushed memories, and the sink's handling of them."""

import json
from dataclasses import replace

import pytest

from agent.adapters.akosha import AkoshaSink
from agent.domain.errors import SinkError
from agent.domain.memories import memory_id
from tests.interop.real import running_akosha
from tests.support.memories import memory, seen


@pytest.fixture
async def sink(akosha):
    sink = AkoshaSink(endpoint=akosha.url)
    yield sink
    await sink.aclose()


@pytest.fixture
def pack(sink, system_id):
    """Return a function that packs memory `number` for the system of the test."""
    return lambda number, **options: sink.pack(memory(number, **options), system_id)


def altered(packed, **parts):
    """Return the memory with replaced fields, which `pack` never creates; None removes a field."""
    body = {name: value for name, value in (json.loads(packed.body) | parts).items() if value is not None}
    return replace(packed, body=json.dumps(body).encode())


async def test_stored_rows_equal_the_sent_memories(sink, pack, akosha, system_id):
    result = await sink.store([pack(1), pack(2, kind="reflection"), pack(3, kind="entity")])
    assert (result.stored, result.known, result.refused) == (3, 0, {})
    rows = {row.memory_id: row for row in akosha.rows(system_id)}
    for number, kind in ((1, "conversation"), (2, "reflection"), (3, "entity")):
        one = memory(number, kind=kind)
        row = rows.pop(memory_id(system_id, one.row))
        assert (row.text, row.timestamp) == (one.text, "2026-03-01 11:00:00.123456")
        assert {name: row.metadata[name] for name in ("source", "original_id", "type")} == {
            "source": system_id,
            "original_id": one.row.id,
            "type": kind,
        }
        assert row.square == pytest.approx(sum(number**2 for number in json.loads(one.embedding)), rel=1e-5)
    assert rows == {}


async def test_a_repeated_batch_is_known_and_changes_nothing(sink, pack, akosha, system_id):
    batch = [pack(number) for number in range(3)]
    await sink.store(batch)
    before = akosha.rows(system_id)
    result = await sink.store(batch)
    assert (result.stored, result.known, result.refused) == (0, 3, {})
    assert akosha.rows(system_id) == before


async def test_each_memory_of_a_mixed_batch_has_its_own_result(sink, pack, akosha, system_id):
    await sink.store([pack(1)])
    batch = [pack(0), pack(1), pack(2, embedded=False), pack(3), altered(pack(4), embedding=[0.5] * 3), pack(5)]
    result = await sink.store(batch)
    assert (result.stored, result.known, sorted(result.refused)) == (3, 1, [2, 4])
    assert result.refused[2] == "Embedding is required: must be a 384-dimensional vector"
    assert len(akosha.rows(system_id)) == 4


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"embedding": None}, "Embedding is required"),
        ({"embedding": [0.25] * 383}, "Cannot cast list with length 383 to array with length 384"),
        ({"embedding": "near"}, "embedding"),
        ({"embedding": ["x"] * 384}, "embedding"),
        ({"text": ""}, "Missing required field"),
        ({"metadata": {"source": "x", "created_at": "yesterday"}}, "Invalid isoformat string"),
        ({"metadata": {"source": "x", "created_at": 5}}, "fromisoformat"),
        ({"metadata": {"source": 7}}, "valid string"),
    ],
    ids=repr,
)
async def test_an_invalid_memory_is_refused_with_a_reason_and_the_others_are_stored(sink, pack, parts, reason):
    result = await sink.store([pack(0), altered(pack(1), **parts), pack(2)])
    assert (result.stored, result.known, list(result.refused)) == (2, 0, [1])
    assert reason in result.refused[1]
    single = await sink.store([altered(pack(1), **parts)])
    assert reason in single.refused[0]


async def test_a_created_at_of_null_is_refused(sink, pack, system_id):
    packed = altered(pack(1), metadata={"source": system_id, "created_at": None})
    assert b'"created_at": null' in packed.body
    result = await sink.store([packed, pack(2)])
    assert (result.stored, list(result.refused)) == (1, [0])
    assert "fromisoformat" in result.refused[0]


async def test_a_memory_without_a_time_is_stored(sink, pack):
    assert (await sink.store([pack(1, created_at=None)])).stored == 1


async def test_an_id_that_is_not_a_string_is_refused(sink, pack, akosha, system_id):
    """`pack` never creates such an ID. The server's error names an ID that was not sent, and the sink reports that."""
    with pytest.raises(SinkError, match="names a memory that was not sent") as raised:
        await sink.store([pack(0), altered(pack(1), memory_id=17)])
    assert raised.value.transient
    assert len(akosha.rows(system_id)) == 1


async def test_a_batch_of_more_than_1000_memories_is_an_error(sink, pack, akosha, system_id):
    packed = pack(1, embedded=False)  # small, so that only the number is refused
    with pytest.raises(SinkError, match="Batch size exceeds maximum of 1000 memories") as raised:
        await sink.store([packed] * 1001)
    assert (raised.value.transient, "update Akosha" in raised.value.hint) == (False, True)
    assert akosha.rows(system_id) == []


async def test_an_element_that_is_not_an_object_is_refused_alone(sink, pack, akosha, system_id):
    """The server refuses a call with an element that is not an object; the sink still stores the others."""
    invalid = replace(pack(3), body=b'"not an object"')
    result = await sink.store([*(pack(number) for number in range(3)), invalid, pack(4)])
    assert (result.stored, result.known, list(result.refused)) == (4, 0, [3])
    assert "valid dictionary" in result.refused[3]
    assert len(akosha.rows(system_id)) == 4


@pytest.mark.parametrize("size", [4 * 2**20, 30_000_000])
async def test_a_memory_above_the_request_limit_is_refused_alone(sink, pack, akosha, system_id, size):
    """The server accepts 4 MiB and answers before it reads more; the sink still stores the others."""
    result = await sink.store([pack(0), pack(1, text="x" * size), pack(2)])
    assert (result.stored, result.known, result.refused) == (2, 0, {1: "larger than the server accepts"})
    assert len(akosha.rows(system_id)) == 2


@pytest.mark.parametrize(
    "text",
    ["\ud83d half a character", "a\0b", '記憶 ☂ \U0001f9e0 "x" \\ \t \r\n', "x" * 3_000_000, "\u2028\x85 lines", " "],
    ids=["surrogate", "nul", "unicode", "long", "separators", "blank"],
)
async def test_unusual_texts_are_stored(sink, pack, akosha, system_id, text):
    result = await sink.store([pack(1, text=text), pack(2)])
    assert (result.stored, result.refused) == (2, {})
    stored = {row.text for row in akosha.rows(system_id)}
    assert text.encode(errors="backslashreplace").decode() in stored


async def test_the_sink_reads_the_capabilities_and_versions_of_akosha(sink, akosha):
    assert await sink.is_available()
    capabilities = await sink.connect()
    assert capabilities.kinds == capabilities.need_embedding == {"conversation", "reflection", "entity"}
    assert "0.9.5" in capabilities.version
    assert sink.health_version == "0.9.5"


async def test_a_token_is_accepted(akosha, pack):
    sink = AkoshaSink(endpoint=akosha.url, token="not-required")
    try:
        assert await sink.is_available()
        assert (await sink.store([pack(1)])).stored == 1
    finally:
        await sink.aclose()


async def test_the_sink_opens_a_new_session_with_a_restarted_server(persistent_akosha, system_id):
    """The server answers 404 to the old session. The memories that it kept are known, and the new one is stored."""
    sink = AkoshaSink(endpoint=persistent_akosha.url)
    try:
        capabilities = await sink.connect()
        first = [sink.pack(memory(number), system_id) for number in range(3)]
        await sink.store(first)
        persistent_akosha.kill()
        assert not await sink.is_available()
        with pytest.raises(SinkError) as raised:
            await sink.store(first)
        assert raised.value.transient
        persistent_akosha.start()
        assert await sink.is_available()
        result = await sink.store([*first, sink.pack(memory(9), system_id)])
        assert (result.stored, result.known) == (1, 3)
        assert await sink.connect() == capabilities
        assert len(persistent_akosha.rows(system_id)) == 4
    finally:
        await sink.aclose()


async def test_a_changed_row_is_stored_next_to_its_earlier_state(sink, pack, akosha, system_id):
    await sink.store([pack(1)])
    result = await sink.store([pack(1, state=2)])
    assert (result.stored, result.known) == (1, 0)
    ids = {row.memory_id for row in akosha.rows(system_id)}
    assert ids == {memory_id(system_id, seen(1)), memory_id(system_id, seen(1, state=2))}


async def test_the_akosha_command_answers_the_same_and_loses_its_rows_at_a_restart(akosha_python, tmp_path, system_id):
    """Akosha 0.11 stores pushed memories only in memory."""
    with running_akosha(tmp_path, plain=True) as server:
        sink = AkoshaSink(endpoint=server.url)
        try:
            batch = [sink.pack(memory(number), system_id) for number in range(3)]
            assert (await sink.store(batch)).stored == 3
            assert (await sink.store(batch)).known == 3
            server.restart()
            assert (await sink.store(batch)).stored == 3
        finally:
            await sink.aclose()
