"""Downloads of patched files: which layer an error names."""

from contextlib import asynccontextmanager

import pytest

from agent.application.sync.download import Downloader, DownloadError
from agent.domain.errors import PatchError, UnreadableObject, WireError
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import MemoryStore
from tests.support.values import patched_part

PART = patched_part([0, 1, 2], second=20)


class Unpacker:
    async def unpack(self, pieces, path, **_recorded):
        path.write_bytes(b"".join([piece async for piece in pieces]))


class FailingPatcher:
    def __init__(self, error) -> None:
        self.error = error

    async def apply(self, *_arguments, **_expected):
        raise self.error


@asynccontextmanager
async def no_limit():
    yield lambda: None


@pytest.mark.parametrize(
    ("error", "layer", "problem"),
    [
        (PatchError(".layer-01 is not a patch of this file: it is cut", number=1), 1, "is not a patch of this file: "),
        (WireError("the patches make another file"), 2, "the patches make another file"),
    ],
)
async def test_the_error_names_the_patch_that_does_not_fit(tmp_path, error, layer, problem):
    store = MemoryStore()
    store.objects = {item.key: (b"x", item.metadata) for item in PART.objects}
    downloader = Downloader(store=store, unpacker=Unpacker(), patcher=FailingPatcher(error), stall_limit=no_limit)
    with pytest.raises(DownloadError) as refused:
        await downloader.download(PART, tmp_path / "reflection.duckdb")
    assert refused.value.key == PART.layers[layer].key
    assert refused.value.problem.startswith(problem)
    assert list(tmp_path.iterdir()) == []


async def test_an_object_that_its_disk_cannot_read_is_named(tmp_path):
    store = FaultyStore(MemoryStore())
    store.fail("get", UnreadableObject("cannot read it: Input/output error", transient=True))
    downloader = Downloader(store=store, unpacker=Unpacker(), patcher=FailingPatcher(None), stall_limit=no_limit)
    with pytest.raises(DownloadError) as refused:
        await downloader.download(PART, tmp_path / "reflection.duckdb")
    assert refused.value.key == PART.layers[0].key
    assert refused.value.problem.startswith("cannot be read")
