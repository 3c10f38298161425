"""The stored form of a staged file: gzip members in order, of bounded size, equal for equal input."""

import asyncio
import contextlib
import gzip
import os
import random
import shutil
import subprocess
import threading
import zlib

import pytest

from agent.adapters import gzip_members
from agent.adapters.block_checksums import BLOCK_BYTES, Digests
from agent.adapters.gzip_members import PIECE_BYTES, GzipMembers, Uncompressed
from agent.domain.errors import StagedCopyChanged, StateError

MEMBER = 64 * 1024


async def collect(compressor, path):
    return b"".join([piece async for piece in compressor.stream(path)])


def data_of(size, seed=1):
    rng = random.Random(seed)
    return (b"conversation " * 40 + rng.randbytes(520)) * (size // 1040) + rng.randbytes(size % 1040)


@pytest.fixture(params=["isal", "zlib"])
def engine(request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setattr(gzip_members, "_fastest_deflater", lambda: gzip_members._zlib_deflater)
    else:
        pytest.importorskip("isal", reason="no igzip on this platform")
    return request.param


@pytest.mark.parametrize("size", [0, 1, MEMBER - 1, MEMBER, MEMBER + 1, 7 * MEMBER + 13])
async def test_the_output_unpacks_to_the_staged_file(tmp_path, engine, size):
    raw = data_of(size)
    staged = tmp_path / "reflection.duckdb"
    staged.write_bytes(raw)
    stored = await collect(GzipMembers(member_bytes=MEMBER), staged)
    assert gzip.decompress(stored) == raw


@pytest.mark.parametrize("size", [0, 3 * MEMBER + 5])
async def test_the_gzip_command_accepts_the_output(tmp_path, size):
    staged = tmp_path / "reflection.duckdb"
    staged.write_bytes(data_of(size))
    packed = tmp_path / "packed.gz"
    packed.write_bytes(await collect(GzipMembers(member_bytes=MEMBER), staged))
    command = shutil.which("gzip")
    assert command, "gzip is part of every system that the agent runs on"
    assert subprocess.run([command, "-t", packed], check=False).returncode == 0
    assert subprocess.run([command, "-dc", packed], check=True, capture_output=True).stdout == staged.read_bytes()


async def test_each_member_is_independent_and_has_one_range_of_the_file(tmp_path):
    raw = data_of(3 * MEMBER + 100)
    staged = tmp_path / "file"
    staged.write_bytes(raw)
    rest = await collect(GzipMembers(member_bytes=MEMBER), staged)
    members = []
    while rest:
        reader = zlib.decompressobj(31)
        members.append(reader.decompress(rest))
        rest = reader.unused_data
    assert members == [raw[at : at + MEMBER] for at in range(0, len(raw), MEMBER)]


async def test_equal_input_gives_equal_output_for_any_number_of_threads(tmp_path, engine):
    staged = tmp_path / "file"
    staged.write_bytes(data_of(9 * MEMBER))
    copy = tmp_path / "other name"
    shutil.copyfile(staged, copy)
    one = await collect(GzipMembers(member_bytes=MEMBER, threads=1), staged)
    assert one == await collect(GzipMembers(member_bytes=MEMBER, threads=3), copy)


async def test_pieces_are_of_bounded_size(tmp_path):
    staged = tmp_path / "file"
    staged.write_bytes(random.Random(3).randbytes(3 * 2**20))
    for compressor in (GzipMembers(), Uncompressed()):
        assert max([len(piece) async for piece in compressor.stream(staged)]) <= 2 * PIECE_BYTES


async def test_at_most_one_member_more_than_threads_is_started(tmp_path, monkeypatch):
    """A consumer that reads nothing stops the work."""
    staged = tmp_path / "file"
    staged.write_bytes(data_of(40 * MEMBER))
    started = []
    compressor = GzipMembers(member_bytes=MEMBER, threads=2)
    original = compressor._member
    monkeypatch.setattr(compressor, "_member", lambda p, o, *args: (started.append(o), original(p, o, *args))[1])
    pieces = compressor.stream(staged)
    await anext(pieces)
    await pieces.aclose()
    # Threads start in any order; the third member waits for a free one.
    assert sorted(started) in ([0, MEMBER], [0, MEMBER, 2 * MEMBER])


async def test_closing_the_stream_ends_its_threads(tmp_path):
    staged = tmp_path / "file"
    staged.write_bytes(data_of(4 * 2**20))
    pieces = GzipMembers(member_bytes=2**20).stream(staged)
    await anext(pieces)
    await pieces.aclose()
    for thread in threading.enumerate():
        if thread.name.startswith("gzip"):
            await asyncio.to_thread(thread.join, 5)
            assert not thread.is_alive()


async def test_cancelling_the_consumer_ends_the_work(tmp_path):
    staged = tmp_path / "file"
    staged.write_bytes(data_of(4 * 2**20))
    first = asyncio.Event()

    async def consume():
        async with contextlib.aclosing(GzipMembers(member_bytes=2**20).stream(staged)) as pieces:
            async for _ in pieces:
                first.set()
                await asyncio.Event().wait()

    task = asyncio.create_task(consume())
    await first.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_uncompressed_output_is_the_file_itself(tmp_path):
    staged = tmp_path / "file"
    staged.write_bytes(data_of(3 * 2**20 + 7))
    assert await collect(Uncompressed(), staged) == staged.read_bytes()
    staged.write_bytes(b"")
    assert await collect(Uncompressed(), staged) == b""


def test_each_compressor_names_its_compression():
    assert (GzipMembers().compression, Uncompressed().compression) == ("gzip", "none")


@pytest.mark.parametrize("compressor", [GzipMembers(), Uncompressed()])
async def test_a_missing_staged_copy_is_an_error(tmp_path, compressor):
    with pytest.raises(StateError, match=r"the staged copy missing cannot be read: No such file"):
        await collect(compressor, tmp_path / "missing")


@pytest.mark.parametrize("compressor", [GzipMembers(member_bytes=MEMBER), Uncompressed()])
async def test_a_copy_truncated_while_it_is_read_is_an_error(tmp_path, compressor):
    staged = tmp_path / "file"
    staged.write_bytes(data_of(64 * MEMBER))
    pieces = compressor.stream(staged)
    await anext(pieces)
    staged.write_bytes(b"short")
    with pytest.raises(StateError, match="became shorter"):
        _ = [piece async for piece in pieces]


@pytest.mark.parametrize("size", [0, 1, 3 * PIECE_BYTES + 7, 5 * 2**20])
@pytest.mark.parametrize("compressor", [GzipMembers(member_bytes=2**20), Uncompressed()], ids=["gzip", "none"])
async def test_the_raw_bytes_of_the_pieces_are_those_of_the_file(tmp_path, compressor, size):
    staged = tmp_path / "staged"
    staged.write_bytes(os.urandom(size))
    counts = []
    async for _piece in compressor.stream(staged, read=counts.append):
        assert sum(counts) <= size
    assert sum(counts) == size


@pytest.mark.parametrize("compressor", [GzipMembers(member_bytes=2 * BLOCK_BYTES), Uncompressed()])
@pytest.mark.parametrize("change", ["flip", "grow", "grow by blocks", "shrink by a block"])
async def test_no_byte_of_a_block_that_changed_is_sent(tmp_path, compressor, change):
    raw = data_of(3 * BLOCK_BYTES + 77)
    digests = Digests()
    digests.update(memoryview(raw))
    changed = {
        "flip": raw[: 2 * BLOCK_BYTES] + bytes([raw[2 * BLOCK_BYTES] ^ 1]) + raw[2 * BLOCK_BYTES + 1 :],
        "grow": raw + b"x",
        "grow by blocks": raw + bytes(2 * BLOCK_BYTES),
        "shrink by a block": raw[: -BLOCK_BYTES - 77],
    }
    staged = tmp_path / "reflection.duckdb"
    staged.write_bytes(raw)
    whole = [piece async for piece in compressor.stream(staged, checksums=digests.checksums)]
    staged.write_bytes(changed[change])
    sent = []

    async def send() -> None:
        async for piece in compressor.stream(staged, checksums=digests.checksums):
            sent.append(piece)  # noqa: PERF401 - kept when the stream fails

    with pytest.raises(StagedCopyChanged, match=r"staged copy of reflection\.duckdb changed"):
        await send()
    assert sent == whole[: len(sent)]
    assert len(sent) < len(whole)
