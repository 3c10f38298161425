"""memories.json: it is the JSON that Akosha reads, memories survive a round trip, and invalid files are refused."""

import asyncio
import errno
import gzip
import hashlib
import json
import os
from contextlib import aclosing
from dataclasses import replace

import psutil
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from agent.adapters import memories_file
from agent.adapters.memories_file import JsonMemoriesFile
from agent.domain.errors import SnapshotError, StagedCopyChanged, StagingFull, StateError, WireError
from agent.domain.memories import KINDS, Memory, RowState, memory_id
from tests.support.memories import CREATED, embedding, memory

SYSTEM = "laptop"


@pytest.fixture(params=["gzip", "none"])
def file(tmp_path, request) -> JsonMemoriesFile:
    return JsonMemoriesFile(tmp_path / "staging", request.param)


async def stored(file: JsonMemoriesFile, memories):
    """Write memories. Return the stored bytes and the result of `finish`."""
    async with file.write(SYSTEM) as draft:
        for item in memories:
            await draft.add(item)
        summary = await draft.finish()
        return b"".join([piece async for piece in draft.stream()]), summary


async def written(file: JsonMemoriesFile, memories, path=None):
    """Write memories, and the uncompressed bytes to `path`. Return these bytes and the result of `finish`."""
    data, summary = await stored(file, memories)
    assert summary.stored_size == len(data)
    if summary.compression == "gzip":
        data = gzip.decompress(data)
    if path is not None:
        path.write_bytes(data)
    return data, summary


async def read(path, system=SYSTEM) -> list[Memory]:
    source = JsonMemoriesFile(path.parent).open(path, system)
    found = []
    async with aclosing(source.pages()) as pages:
        async for page in pages:
            found += [item async for item in source.read(page)]
    return found


async def test_the_file_is_the_json_that_akosha_ingests(file):
    one, other = memory(1, project="akosha"), memory(2, kind="entity", embedded=False, created_at=None)
    data, summary = await written(file, [one, other])
    assert (summary.raw_size, summary.sha256, summary.count) == (len(data), hashlib.sha256(data).hexdigest(), 2)
    first, second = json.loads(data)["conversations"]
    assert first == {
        "id": memory_id(SYSTEM, one.row),
        "content": one.text,
        "timestamp": CREATED,
        "source": SYSTEM,
        "metadata": {
            **one.metadata,
            "type": "conversation",
            "original_id": one.row.id,
            "database": "reflection",
            "digest": one.row.digest,
        },
        "embedding": json.loads(one.embedding),
    }
    assert second["metadata"]["type"] == "entity"
    assert {"embedding", "timestamp"}.isdisjoint(second), "Akosha's ingestion accepts missing keys; null is an error"
    assert len(data.splitlines()) == 4


async def test_an_empty_memories_file_is_valid(file, tmp_path):
    data, summary = await written(file, [], tmp_path / "m.json")
    assert json.loads(data) == {"conversations": []}
    assert summary.count == 0
    assert await read(tmp_path / "m.json") == []


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30) | st.sampled_from(
    ['","embedding":[1]}', "\n]}\n", "\u2028\x00\x85", "\\"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
some_memories = st.builds(
    lambda kind, row, digest, text, seed, at, metadata: Memory(
        row=RowState(database="knowledge_graph_ö x", kind=kind, id=row, digest=digest, embedded=seed is not None),
        text=text,
        embedding=None if seed is None else embedding(seed),
        created_at=at,
        metadata=metadata,
    ),
    st.sampled_from(KINDS),
    texts,
    st.text("0123456789abcdef", min_size=32, max_size=32),
    texts,
    st.none() | st.integers(0, 3),
    st.none() | st.sampled_from([CREATED, "1969-12-31T23:59:59-09:30"]),
    st.dictionaries(texts | st.just("embedding"), json_values, max_size=3),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(memories=st.lists(some_memories, max_size=6, unique_by=lambda item: item.row), page=st.integers(1, 4))
def test_memories_are_read_as_they_were_written(memories, page, tmp_path, monkeypatch):
    monkeypatch.setattr(memories_file, "PAGE_ROWS", page)
    monkeypatch.setattr(memories_file, "_MOST_WAITING", page)

    async def round_trip():
        data, summary = await written(JsonMemoriesFile(tmp_path), memories, tmp_path / "m.json")
        assert (await read(tmp_path / "m.json"), summary.count) == (memories, len(memories))
        assert [item["id"] for item in json.loads(data)["conversations"]] == [
            memory_id(SYSTEM, item.row) for item in memories
        ]

    asyncio.run(round_trip())


async def test_the_same_memories_give_the_same_bytes(file, monkeypatch):
    """Also if they are written at other moments: an object that an earlier attempt has sent is not sent again."""
    memories = [memory(number) for number in range(5)]
    first = await stored(file, memories)
    monkeypatch.setattr(memories_file, "_MOST_WAITING", 2)
    monkeypatch.setattr("time.time", lambda: 1.0)
    assert await stored(file, memories) == first


async def test_compressed_memories_are_small_and_their_digest_is_that_of_the_json(tmp_path):
    memories = [memory(number, text="the same words " * 20) for number in range(300)]
    plain, gzipped = [await stored(JsonMemoriesFile(tmp_path, each), memories) for each in ("none", "gzip")]
    assert gzip.decompress(gzipped[0]) == plain[0]
    assert (gzipped[1].raw_size, gzipped[1].sha256) == (plain[1].raw_size, plain[1].sha256)
    assert len(gzipped[0]) < len(plain[0]) / 2


async def test_a_draft_has_no_name_so_that_none_can_be_left(file, tmp_path):
    async with file.write(SYSTEM) as draft:
        await draft.add(memory())
        await draft.finish()
        assert list((tmp_path / "staging").iterdir()) == []
        assert [piece async for piece in draft.stream()]


async def test_a_cancelled_draft_is_closed(file):
    open_before, started = psutil.Process().num_fds(), asyncio.Event()

    async def write():
        async with file.write(SYSTEM) as draft:
            started.set()
            while True:
                await draft.add(memory(text="x" * memories_file.PIECE_BYTES))

    task = asyncio.create_task(write())
    await started.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert psutil.Process().num_fds() == open_before


@pytest.mark.parametrize(
    "bad",
    [memory(weight=float("nan")), memory(half="\ud800"), memory(digest="x"), replace(memory(), embedding="[½]")],
    ids=["not a number", "half a character", "a reserved name", "an embedding with other characters"],
)
async def test_an_invalid_memory_is_refused_by_name(file, bad):
    async with file.write(SYSTEM) as draft:
        await draft.add(bad)
        with pytest.raises(SnapshotError, match=f"reflection: the conversation {bad.row.id} cannot be written"):
            await draft.flush()


async def test_a_full_disk_is_an_error_without_a_path(file, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    async with file.write(SYSTEM) as draft:
        monkeypatch.setattr(memories_file.os, "write", full)
        with pytest.raises(StagingFull, match="no room for the memories") as caught:
            await draft.finish()
        monkeypatch.undo()
    assert "/" not in caught.value.message
    assert "akosha_agent_state_dir" in caught.value.hint


async def test_a_folder_that_cannot_be_written_to_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotError, match="cannot be written"):
        async with JsonMemoriesFile(tmp_path / "file").write(SYSTEM):
            pass


async def test_a_draft_on_a_broken_disk_cannot_be_streamed(file, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    async with file.write(SYSTEM) as draft:
        await draft.finish()
        monkeypatch.setattr(memories_file.os, "pread", broken)
        with pytest.raises(StateError, match="cannot be read: Input/output error"):
            _ = [piece async for piece in draft.stream()]


async def test_a_full_disk_makes_room_before_it_is_an_error(tmp_path, monkeypatch):
    write, freed = os.write, []

    def full(*arguments):
        if not freed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*arguments)

    def make_room():
        freed.append(not freed)
        return freed[-1]

    monkeypatch.setattr(memories_file.os, "write", full)
    async with JsonMemoriesFile(tmp_path, "none", make_room).write(SYSTEM) as draft:
        written = await draft.finish()
        assert len(b"".join([piece async for piece in draft.stream()])) == written.stored_size
    assert freed == [True]


async def test_a_draft_whose_bytes_changed_is_not_streamed(file):
    async with file.write(SYSTEM) as draft:
        written = await draft.finish()
        byte = os.pread(draft._file, 1, written.stored_size // 2)[0]
        os.pwrite(draft._file, bytes([byte ^ 1]), written.stored_size // 2)
        with pytest.raises(StagedCopyChanged, match=r"memories\.json changed"):
            _ = [piece async for piece in draft.stream()]


async def test_a_missing_memories_file_cannot_be_read(tmp_path):
    with pytest.raises(SnapshotError, match=r"m\.json cannot be read: No such file"):
        await read(tmp_path / "m.json")


GOOD = json.loads(
    json.dumps(
        {
            "id": memory_id(SYSTEM, memory().row),
            "content": "text",
            "timestamp": CREATED,
            "source": SYSTEM,
            "metadata": {
                "type": "conversation",
                "original_id": memory().row.id,
                "database": "reflection",
                "digest": memory().row.digest,
            },
            "embedding": json.loads(embedding()),
        }
    )
)


def one(entry: object = GOOD) -> bytes:
    line = entry if isinstance(entry, bytes) else json.dumps(entry, separators=(",", ":")).encode()
    return b'{"conversations":[\n' + line + b"\n]}\n"


def without(name: str) -> dict:
    return {key: value for key, value in GOOD.items() if key != name}


def other(**changes: object) -> dict:
    kept = {key: value for key, value in {**GOOD, **changes}.items() if key != "embedding"}
    return kept | {"embedding": changes.get("embedding", GOOD["embedding"])}


def about(**changes: object) -> dict:
    return other(metadata=GOOD["metadata"] | changes)


INVALID = {
    b"": "line 1: it is incomplete",
    b"{}\n": 'line 1: it is not {"conversations":[',
    one()[:-3]: "line 3: it is incomplete",
    one()[:-1]: "line 3: it is incomplete",
    one() + b"x": "line 3: it is not the last line",
    one().replace(b"\n]}", b",\n]}"): "line 3: there is a comma before it",
    one().replace(b"\n]}", b"\n" + one().split(b"\n")[1] + b"\n]}"): "line 3: there is no comma before it",
    one(b"{"): "line 2: it is not JSON",
    one(b"\xff"): "line 2: it is not JSON",
    one(b"[" * 100_000): "line 2: it is not JSON",
    one(b"5"): "it is not an object",
    one(about(x=float("nan"))): "it is not JSON",
    one(about(x="\ud800")): "it is not JSON",
    one(without("id")): "its id is missing",
    one(without("content")): "its content is missing",
    one(without("metadata")): "its metadata is missing",
    one(without("source")): "its source is missing",
    one(other(content="")): "its content is missing, empty",
    one(other(content=5)): "its content is missing, empty or not str",
    one(other(source="desktop")): "source 'desktop' is not laptop",
    one(other(id="desktop:conversation-1:00000000")): "is not that of conversation",
    one(other(id=GOOD["id"] + "0")): "is not that of conversation",
    one(about(digest="0" * 32)): "is not that of conversation",
    one(about(original_id="another")): "is not that of conversation 'another' of laptop",
    one(about(digest="X")): "'X' is not a digest",
    one(about(type="dream")): "'dream' is not a kind of memory",
    one(about(database="../../x")): "is not the name of a database",
    one(other(timestamp="2026-03-01T12:00:00")): "is not a time with an offset",
    one(other(timestamp="noon")): "is not a time with an offset",
    one(other(timestamp=None)): "its timestamp is missing",
    one(other(embedding=None)): "not an array at the end of the entry",
    one(other(embedding=[])): "not 384 numbers",
    one(other(embedding=[0.5] * 383)): "not 384 numbers",
    one(other(embedding=[0.5] * 383 + [True])): "not 384 numbers",
    one(other(embedding=[0.5] * 383 + [float("inf")])): "its embedding is not JSON",
    one(other(embedding=[10**400] * 384)): "its embedding is not JSON",
    one(other(embedding=["1"] * 384)): "not 384 numbers",
    one(GOOD | {"more": 1}): "not an array at the end of the entry",
}


@pytest.mark.parametrize(("data", "reason"), INVALID.items(), ids=INVALID.values())
async def test_an_invalid_memories_file_is_refused_with_the_line(tmp_path, data, reason):
    (tmp_path / "m.json").write_bytes(data)
    with pytest.raises(WireError, match=r"memories\.json, line ") as caught:
        await read(tmp_path / "m.json")
    assert reason in caught.value.message


async def test_a_valid_file_with_unknown_fields_is_accepted(tmp_path):
    (tmp_path / "m.json").write_bytes(one({"future": {}, **GOOD}))
    (found,) = await read(tmp_path / "m.json")
    assert (found.text, found.row) == ("text", memory().row)


async def test_memories_of_another_system_are_refused(file, tmp_path):
    await written(file, [memory()], tmp_path / "m.json")
    with pytest.raises(WireError, match="is not that of conversation"):
        await read(tmp_path / "m.json", "laptop-2")


async def test_a_line_has_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(memories_file, "MAX_LINE_BYTES", len(one().split(b"\n")[1]) - 1)
    (tmp_path / "m.json").write_bytes(one())
    with pytest.raises(WireError, match="line 2: it has more than"):
        await read(tmp_path / "m.json")


@pytest.mark.parametrize("cut", range(0, 2000, 97))
async def test_a_truncated_memories_file_is_refused(file, tmp_path, cut):
    data, _ = await written(file, [memory(), memory(2, embedded=False)])
    (tmp_path / "m.json").write_bytes(data[: cut * len(data) // 2000])
    with pytest.raises(WireError):
        await read(tmp_path / "m.json")


async def test_pages_and_pieces_are_limited_in_bytes(tmp_path, monkeypatch):
    """Memory is bounded by pages and pieces, not by the file: 60 rows of 20 kB in pages and pieces of 64 kB."""
    monkeypatch.setattr(memories_file, "PAGE_BYTES", 2**16)
    monkeypatch.setattr(memories_file, "PIECE_BYTES", 2**16)
    flushed: list[int] = []
    append = memories_file.Draft._append
    monkeypatch.setattr(
        memories_file.Draft, "_append", lambda self, rows: (flushed.append(len(rows)), append(self, rows))
    )
    await written(JsonMemoriesFile(tmp_path), [memory(n, text="x" * 20_000) for n in range(60)], tmp_path / "m.json")
    assert max(flushed) <= 4
    source = JsonMemoriesFile(tmp_path).open(tmp_path / "m.json", SYSTEM)
    assert max([len(page) async for page in source.pages()]) <= 4
