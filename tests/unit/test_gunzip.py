"""What an object may be on its way to becoming a file, whatever its manifest tells."""

import gzip
import hashlib
import tracemalloc

import pytest

from agent.adapters.gunzip import Unpacker
from agent.adapters.gzip_members import GzipMembers, Uncompressed
from agent.domain.errors import WireError


async def unpack(tmp_path, stored, raw, *, piece=7, compression="gzip", **reported):
    async def pieces():
        for start in range(0, len(stored), piece):
            yield stored[start : start + piece]

    path = tmp_path / f"landed-{len(list(tmp_path.iterdir()))}"
    reported = {"stored_size": len(stored), "raw_size": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), **reported}
    await Unpacker(tmp_path).unpack(pieces(), path, compression=compression, **reported)
    return path.read_bytes()


@pytest.mark.parametrize("compressor", [GzipMembers(member_bytes=100), Uncompressed()])
@pytest.mark.parametrize("size", [0, 1, 100, 250])
async def test_what_was_stored_comes_back_whatever_the_pieces(tmp_path, compressor, size):
    raw = bytes(range(250))[:size]
    (tmp_path / "raw").write_bytes(raw)
    stored = b"".join([piece async for piece in compressor.stream(tmp_path / "raw")])
    for piece in (1, 3, 10_000):
        assert await unpack(tmp_path, stored, raw, piece=piece, compression=compressor.compression) == raw


@pytest.mark.parametrize(
    ("stored", "may_get_better"),
    [
        (gzip.compress(b"abc")[:-1], True),
        (gzip.compress(b"abc") + b"rubbish", True),
        (b"rubbish", True),
        (gzip.compress(b"abd"), True),
        (gzip.compress(b"ab"), True),
        (gzip.compress(b"abc") * 2, False),
    ],
    ids=["cut", "rubbish-behind", "rubbish", "other-bytes", "too-short", "too-long"],
)
async def test_what_is_not_as_reported_is_refused(tmp_path, stored, may_get_better):
    with pytest.raises(WireError) as caught:
        await unpack(tmp_path, stored, b"abc")
    assert caught.value.transient is may_get_better


async def test_an_object_that_is_larger_than_reported_is_read_no_further(tmp_path):
    with pytest.raises(WireError) as caught:
        await unpack(tmp_path, b"abcdefghij" * 10, b"abc", compression="none", stored_size=3)
    assert not caught.value.transient


async def test_a_bomb_takes_neither_memory_nor_disk(tmp_path):
    bomb = gzip.compress(bytes(64 * 2**20))
    tracemalloc.start()
    with pytest.raises(WireError, match="unpacks to more"):
        await unpack(tmp_path, bomb, bytes(2**20), piece=2**20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 2**20
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2**20


async def test_a_folder_is_gone_after_use_and_what_a_killed_process_left_at_the_next_sweep(tmp_path):
    unpacker = Unpacker(tmp_path)
    async with unpacker.folder(10) as folder:
        (folder / "file").write_bytes(b"x")
        assert folder.stat().st_mode & 0o077 == 0
    (tmp_path / "ingest-left").mkdir()
    await unpacker.sweep()
    assert list(tmp_path.iterdir()) == []
