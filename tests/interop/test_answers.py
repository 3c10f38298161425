"""Each answer that Akosha gives to what is pushed, and what our sink makes of it."""

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
    """Pack memory number n as the test's own system."""
    return lambda number, **how: sink.pack(memory(number, **how), system_id)


def altered(packed, **parts):
    """The same with other parts, as they would never leave our own packing; None takes one away."""
    body = {name: value for name, value in (json.loads(packed.body) | parts).items() if value is not None}
    return replace(packed, body=json.dumps(body).encode())


async def test_what_is_stored_is_what_was_sent(sink, pack, akosha, system_id):
    receipt = await sink.store([pack(1), pack(2, kind="reflection"), pack(3, kind="entity")])
    assert (receipt.stored, receipt.known, receipt.refused) == (3, 0, {})
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


async def test_the_same_again_is_known_and_changes_nothing(sink, pack, akosha, system_id):
    batch = [pack(number) for number in range(3)]
    await sink.store(batch)
    before = akosha.rows(system_id)
    receipt = await sink.store(batch)
    assert (receipt.stored, receipt.known, receipt.refused) == (0, 3, {})
    assert akosha.rows(system_id) == before


async def test_in_a_mixed_batch_each_has_its_own_fate(sink, pack, akosha, system_id):
    await sink.store([pack(1)])
    batch = [pack(0), pack(1), pack(2, embedded=False), pack(3), altered(pack(4), embedding=[0.5] * 3), pack(5)]
    receipt = await sink.store(batch)
    assert (receipt.stored, receipt.known, sorted(receipt.refused)) == (3, 1, [2, 4])
    assert receipt.refused[2] == "Embedding is required: must be a 384-dimensional vector"
    assert len(akosha.rows(system_id)) == 4


@pytest.mark.parametrize(
    ("parts", "why"),
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
async def test_a_memory_that_cannot_be_taken_is_refused_with_the_reason_and_stops_no_other(sink, pack, parts, why):
    receipt = await sink.store([pack(0), altered(pack(1), **parts), pack(2)])
    assert (receipt.stored, receipt.known, list(receipt.refused)) == (2, 0, [1])
    assert why in receipt.refused[1]
    alone = await sink.store([altered(pack(1), **parts)])
    assert why in alone.refused[0]


async def test_a_created_at_of_null_is_refused(sink, pack, system_id):
    packed = altered(pack(1), metadata={"source": system_id, "created_at": None})
    assert b'"created_at": null' in packed.body
    receipt = await sink.store([packed, pack(2)])
    assert (receipt.stored, list(receipt.refused)) == (1, [0])
    assert "fromisoformat" in receipt.refused[0]


async def test_a_memory_without_a_time_is_taken(sink, pack):
    assert (await sink.store([pack(1, created_at=None)])).stored == 1


async def test_an_id_that_is_no_string_is_refused(sink, pack, akosha, system_id):
    """Such an id never leaves our packing; what the server says to it names an id that was not sent, and says so."""
    with pytest.raises(SinkError, match="names a memory that was not sent") as raised:
        await sink.store([pack(0), altered(pack(1), memory_id=17)])
    assert raised.value.transient
    assert len(akosha.rows(system_id)) == 1


async def test_more_than_a_thousand_at_once_is_an_error(sink, pack, akosha, system_id):
    packed = pack(1, embedded=False)  # small: it is the number that is refused
    with pytest.raises(SinkError, match="Batch size exceeds maximum of 1000 memories") as raised:
        await sink.store([packed] * 1001)
    assert (raised.value.transient, "update Akosha" in raised.value.hint) == (False, True)
    assert akosha.rows(system_id) == []


async def test_what_the_tool_would_not_look_at_is_refused_alone(sink, pack, akosha, system_id):
    """One element that is no object makes the server refuse the whole call; the others arrive all the same."""
    odd = replace(pack(3), body=b'"no object"')
    receipt = await sink.store([*(pack(number) for number in range(3)), odd, pack(4)])
    assert (receipt.stored, receipt.known, list(receipt.refused)) == (4, 0, [3])
    assert "valid dictionary" in receipt.refused[3]
    assert len(akosha.rows(system_id)) == 4


@pytest.mark.parametrize("size", [4 * 2**20, 30_000_000])
async def test_a_memory_larger_than_a_request_may_be_is_refused_alone(sink, pack, akosha, system_id, size):
    """The server takes 4 MiB, and says so before it has read more; the others arrive all the same."""
    receipt = await sink.store([pack(0), pack(1, text="x" * size), pack(2)])
    assert (receipt.stored, receipt.known, receipt.refused) == (2, 0, {1: "larger than the server accepts"})
    assert len(akosha.rows(system_id)) == 2


@pytest.mark.parametrize(
    "text",
    ["\ud83d half a character", "a\0b", '記憶 ☂ \U0001f9e0 "x" \\ \t \r\n', "x" * 3_000_000, "\u2028\x85 lines", " "],
    ids=["surrogate", "nul", "unicode", "long", "separators", "blank"],
)
async def test_whatever_text_a_memory_has_it_arrives(sink, pack, akosha, system_id, text):
    receipt = await sink.store([pack(1, text=text), pack(2)])
    assert (receipt.stored, receipt.refused) == (2, {})
    stored = {row.text for row in akosha.rows(system_id)}
    assert text.encode(errors="backslashreplace").decode() in stored


async def test_it_offers_what_0_11_has_and_its_health_tells_its_version(sink, akosha):
    assert await sink.is_available()
    offer = await sink.connect()
    assert offer.kinds == offer.need_embedding == {"conversation", "reflection", "entity"}
    assert "0.9.5" in offer.version
    assert sink.health_version == "0.9.5"


async def test_a_token_is_accepted(akosha, pack):
    sink = AkoshaSink(endpoint=akosha.url, token="nobody-asks-for-it")
    try:
        assert await sink.is_available()
        assert (await sink.store([pack(1)])).stored == 1
    finally:
        await sink.aclose()


async def test_a_restarted_server_gets_a_new_session_and_what_is_new(kept_akosha, system_id):
    """The session of before gets 404; what it kept is known, what it lacks is stored."""
    sink = AkoshaSink(endpoint=kept_akosha.url)
    try:
        offer = await sink.connect()
        first = [sink.pack(memory(number), system_id) for number in range(3)]
        await sink.store(first)
        kept_akosha.kill()
        assert not await sink.is_available()
        with pytest.raises(SinkError) as raised:
            await sink.store(first)
        assert raised.value.transient
        kept_akosha.start()
        assert await sink.is_available()
        receipt = await sink.store([*first, sink.pack(memory(9), system_id)])
        assert (receipt.stored, receipt.known) == (1, 3)
        assert await sink.connect() == offer
        assert len(kept_akosha.rows(system_id)) == 4
    finally:
        await sink.aclose()


async def test_a_row_that_changes_is_another_memory_beside_the_one_before(sink, pack, akosha, system_id):
    await sink.store([pack(1)])
    receipt = await sink.store([pack(1, state=2)])
    assert (receipt.stored, receipt.known) == (1, 0)
    ids = {row.memory_id for row in akosha.rows(system_id)}
    assert ids == {memory_id(system_id, seen(1)), memory_id(system_id, seen(1, state=2))}


async def test_the_command_that_people_run_answers_alike_and_forgets_at_a_restart(akosha_python, tmp_path, system_id):
    """Today's Akosha keeps what is pushed in memory alone."""
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
