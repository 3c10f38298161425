"""A bit that flips between hashing and sending, in any file that an upload is made from, is never in an upload."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.adapters.duckdb import DuckdbSnapshotTaker
from agent.adapters.patches import ZstdPatcher
from tests.integration.test_patched_uploads import MAIN, PatchRig
from tests.support import session_buddy
from tests.support.files import flip_bit


@pytest.fixture
def rig(tmp_path, monkeypatch):
    return PatchRig(tmp_path, monkeypatch)


def flip_after(monkeypatch, owner, method, path_of):
    """Flip a bit of a file once, after the first call; `path_of` gets the result and the arguments."""
    original, done = getattr(owner, method), []

    async def flipping(self, *arguments, **named):
        result = await original(self, *arguments, **named)
        path = path_of(result, *arguments)
        if not done and path is not None:
            done.append(path)
            flip_bit(path)
        return result

    monkeypatch.setattr(owner, method, flipping)
    return done


def staged(name: str):
    def path_of(snapshot, database) -> Path | None:
        return snapshot.folder / name if database == "reflection" else None

    return path_of


async def test_a_flipped_bit_in_the_staged_copy_is_not_sent(rig, monkeypatch):
    """The copy is a hard link of the mirror's file: the next attempt reads the original."""
    flipped = flip_after(monkeypatch, DuckdbSnapshotTaker, "copy", staged(MAIN))
    with capture_logs() as logs:
        manifest = await rig.upload()
    assert flipped
    assert rig.names(manifest) == [MAIN]
    (error,) = (line["error"] for line in logs if line["event"] == "sync_retry_scheduled")
    assert f"{MAIN} changed between hashing and sending" in error


async def test_a_flipped_bit_in_the_staged_copy_is_not_patched(rig, monkeypatch):
    await rig.upload()
    flipped = flip_after(monkeypatch, DuckdbSnapshotTaker, "copy", staged(MAIN))
    manifest = await rig.synced()
    assert flipped
    assert not await rig.deep_problems(manifest)


async def test_a_flipped_bit_in_the_staged_wal_is_not_sent(rig, monkeypatch):
    await rig.upload()
    flipped = flip_after(monkeypatch, DuckdbSnapshotTaker, "copy", staged(f"{MAIN}.wal"))
    with session_buddy.Writer(rig.data, "--paused") as writer:
        writer.run("commit 2")
        assert (await rig.sync()).success
    assert flipped
    assert [part.name for part in rig.manifests[-1].of("reflection")] == [MAIN, f"{MAIN}.wal"]
    rig.assert_complete()


async def test_a_flipped_bit_in_the_patch_is_not_sent(rig, monkeypatch):
    await rig.upload()
    flipped = flip_after(monkeypatch, ZstdPatcher, "make", lambda _result, _reference, _file, patch: patch)
    manifest = await rig.synced()
    assert flipped
    assert not await rig.deep_problems(manifest)


async def test_a_file_of_the_mirror_that_changes_while_a_patch_is_made_from_it_is_not_its_reference(rig, monkeypatch):
    await rig.upload()
    original = ZstdPatcher.make

    async def make(self, reference, *arguments, **named):
        flip_bit(reference)
        return await original(self, reference, *arguments, **named)

    monkeypatch.setattr(ZstdPatcher, "make", make)
    manifest = await rig.synced()
    assert rig.names(manifest) == [MAIN]
    assert not await rig.deep_problems(manifest)
