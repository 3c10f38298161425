"""Unpacking an object into a file: its content may differ in any way from its manifest."""

import gzip
import hashlib
import tracemalloc

import pytest

from agent.adapters import gunzip
from agent.adapters.gunzip import Unpacker
from agent.adapters.gzip_members import GzipMembers, Uncompressed
from agent.domain.errors import WireError


async def unpack(tmp_path, stored, raw, *, chunk_size=7, compression="gzip", **declared):
    async def chunks():
        for start in range(0, len(stored), chunk_size):
            yield stored[start : start + chunk_size]

    path = tmp_path / f"landed-{len(list(tmp_path.iterdir()))}"
    declared = {"stored_size": len(stored), "raw_size": len(raw), "sha256": hashlib.sha256(raw).hexdigest(), **declared}
    await Unpacker(tmp_path).unpack(chunks(), path, compression=compression, **declared)
    return path.read_bytes()


@pytest.mark.parametrize("compressor", [GzipMembers(member_bytes=100), Uncompressed()])
@pytest.mark.parametrize("size", [0, 1, 100, 250])
async def test_stored_bytes_are_restored_for_any_chunk_size(tmp_path, compressor, size):
    raw = bytes(range(250))[:size]
    (tmp_path / "raw").write_bytes(raw)
    stored = b"".join([chunk_size async for chunk_size in compressor.stream(tmp_path / "raw")])
    for chunk_size in (1, 3, 10_000):
        assert await unpack(tmp_path, stored, raw, chunk_size=chunk_size, compression=compressor.compression) == raw


@pytest.mark.parametrize(
    ("stored", "transient"),
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
async def test_an_object_that_differs_from_its_manifest_is_refused(tmp_path, stored, transient):
    with pytest.raises(WireError) as caught:
        await unpack(tmp_path, stored, b"abc")
    assert caught.value.transient is transient


async def test_a_wrong_checksum_is_distinguished_from_other_bytes_than_gzip(tmp_path):
    stored = bytearray(gzip.compress(b"abc"))
    stored[-5] ^= 1  # in the CRC
    with pytest.raises(WireError, match="is damaged: it is gzip with a wrong checksum"):
        await unpack(tmp_path, bytes(stored), b"abc")
    with pytest.raises(WireError, match="is not valid gzip: "):
        await unpack(tmp_path, b"rubbish" * 9, b"abc")


async def test_an_object_larger_than_declared_is_a_permanent_error(tmp_path):
    with pytest.raises(WireError) as caught:
        await unpack(tmp_path, b"abcdefghij" * 10, b"abc", compression="none", stored_size=3)
    assert not caught.value.transient


async def test_a_gzip_bomb_uses_neither_memory_nor_disk(tmp_path):
    bomb = gzip.compress(bytes(64 * 2**20), compresslevel=1)
    tracemalloc.start()
    with pytest.raises(WireError, match="unpacks to more"):
        await unpack(tmp_path, bomb, bytes(2**20), chunk_size=2**20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12 * 2**20
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2**20


async def test_a_folder_is_deleted_after_use_and_leftovers_by_the_next_sweep(tmp_path):
    unpacker = Unpacker(tmp_path)
    async with unpacker.folder(10) as folder:
        (folder / "file").write_bytes(b"x")
        assert folder.stat().st_mode & 0o077 == 0
    (tmp_path / "ingest-left").mkdir()
    await unpacker.sweep()
    assert list(tmp_path.iterdir()) == []


async def test_a_folder_that_could_not_be_removed_is_removed_before_the_next_is_created(tmp_path, monkeypatch):
    unpacker = Unpacker(tmp_path)
    async with unpacker.folder(10) as left:
        monkeypatch.setattr(gunzip.shutil, "rmtree", lambda *_, **__: None)  # as if no descriptor were free
    assert left.exists()
    monkeypatch.undo()
    async with unpacker.folder(10) as folder:
        assert list(tmp_path.iterdir()) == [folder]
