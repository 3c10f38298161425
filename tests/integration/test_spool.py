"""The spool on a real directory: notes are read in order, and invalid ones are set aside once."""

import asyncio
import errno
import os
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.adapters.spool import KEPT_REJECTED, MAX_NOTE_BYTES, SpoolDirectory, is_note
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import StateError, WireError
from agent.domain.events import SessionEnded, SyncAsked

AT = datetime(2025, 6, 1, 12, 0, tzinfo=UTC)
CODEC = CloudEventsCodec()


def asked(number: int, seconds: float = 0.0) -> SyncAsked:
    return SyncAsked(id=f"r-{number}", time=AT + timedelta(seconds=seconds), system_id="mac")


@pytest.fixture
def directory(tmp_path) -> Path:
    path = tmp_path / "spool"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def spool(directory):
    return SpoolDirectory(directory, CODEC)


async def test_a_written_note_is_read_until_it_is_removed(spool, directory):
    ended = SessionEnded(id="e-1", time=AT, system_id="mac", session_id="s", reason="clear")
    note = await spool.write(ended)
    assert await spool.waiting() == [(note, ended)]
    assert await spool.waiting() == [(note, ended)], "reading removes nothing"
    await spool.remove(note)
    assert await spool.waiting() == []
    await spool.remove(note)
    assert list(directory.iterdir()) == []


async def test_notes_of_several_writers_are_read_oldest_first(directory):
    writers = [SpoolDirectory(directory, CODEC) for _ in range(3)]
    for number, seconds in enumerate([5, 0.25, 3, 0.1, 0, 4]):
        await writers[number % 3].write(asked(number, seconds))
    notes = await writers[0].waiting()
    assert [event.id for _, event in notes] == ["r-4", "r-3", "r-1", "r-2", "r-5", "r-0"]
    assert [name for name, _ in notes] == sorted(name for name, _ in notes)


async def test_notes_with_the_same_time_keep_the_order_of_their_writer(spool):
    await asyncio.gather(*(spool.write(asked(0)) for _ in range(20)))
    for number in range(1, 11):
        await spool.write(asked(number))
    ids = [event.id for _, event in await spool.waiting()]
    assert len(ids) == 30
    assert ids[20:] == [f"r-{number}" for number in range(1, 11)]


async def test_a_note_is_private(spool, directory):
    old = os.umask(0)
    try:
        note = await spool.write(asked(1))
    finally:
        os.umask(old)
    assert (directory / note).stat().st_mode & 0o777 == 0o600
    assert is_note(note)


async def test_the_first_writer_creates_the_directory(tmp_path):
    spool = SpoolDirectory(tmp_path / "state" / "spool", CODEC)
    assert await spool.waiting() == []
    await spool.write(asked(1))
    assert (tmp_path / "state" / "spool").stat().st_mode & 0o777 == 0o700
    assert [event.id for _, event in await spool.waiting()] == ["r-1"]


async def test_a_reader_never_sees_a_partial_note(spool, directory):
    """Another process writes and this one reads as fast as possible. No note is rejected."""
    program = (
        "import asyncio, sys; from datetime import datetime, UTC; from pathlib import Path\n"
        "from agent.adapters.spool import SpoolDirectory; from agent.adapters.wire import CloudEventsCodec\n"
        "from agent.domain.events import SyncAsked\n"
        "async def main():\n"
        "    spool = SpoolDirectory(Path(sys.argv[1]), CloudEventsCodec())\n"
        "    for number in range(60):\n"
        "        event = SyncAsked(id=f'r-{number}', time=datetime.now(UTC), system_id='mac', reason='x' * 20000)\n"
        "        await spool.write(event)\n"
        "asyncio.run(main())\n"
    )
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(directory))
    seen = []
    try:
        async with asyncio.timeout(60):
            while len(seen) < 60:
                for name, event in await spool.waiting():
                    seen.append(event.id)
                    await spool.remove(name)
            assert await writer.wait() == 0
    finally:
        if writer.returncode is None:
            writer.kill()
            await writer.wait()
    assert seen == [f"r-{number}" for number in range(60)]
    assert not (directory / "rejected").exists()


def plant_garbage(path: Path) -> None:
    path.write_bytes(b"\x00\xffgarbage")


def plant_empty(path: Path) -> None:
    path.touch()


def plant_large(path: Path) -> None:
    path.write_bytes(CODEC.encode(asked(7)) + b" " * MAX_NOTE_BYTES)


def plant_link(path: Path) -> None:
    target = path.parent.parent / "outside"
    target.write_bytes(CODEC.encode(asked(7)))
    path.symlink_to(target)


def plant_broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def plant_directory(path: Path) -> None:
    path.mkdir()
    (path / "inner").touch()


def plant_pipe(path: Path) -> None:
    os.mkfifo(path)


def plant_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        previous = Path.cwd()
        os.chdir(path.parent)  # the path of a socket is limited to about 100 bytes
        try:
            listener.bind(path.name)
        finally:
            os.chdir(previous)


def plant_foreign_event(path: Path) -> None:
    path.write_bytes(CODEC.encode(asked(7)).replace(b"akosha.sync.asked.v1", b"akosha.sync.asked.v9"))


INVALID_NOTES = [
    plant_garbage, plant_empty, plant_large, plant_link, plant_broken_link, plant_directory, plant_pipe, plant_socket,
    plant_foreign_event,
]  # fmt: skip


@pytest.mark.parametrize("plant", INVALID_NOTES, ids=lambda plant: plant.__name__.removeprefix("plant_"))
async def test_an_invalid_note_is_set_aside_and_logged_once(spool, directory, plant):
    good = await spool.write(asked(1))
    plant(directory / "00-bad.json")
    with capture_logs() as logs:
        for _ in range(3):
            assert [(name, event.id) for name, event in await spool.waiting()] == [(good, "r-1")]
    assert [(line["event"], line["note"]) for line in logs] == [("note_rejected", "00-bad.json")]
    assert logs[0]["reason"]
    assert [path.name for path in (directory / "rejected").iterdir()] == ["00-bad.json"]


async def test_a_symlink_is_not_followed_and_its_target_stays(spool, directory, tmp_path):
    plant_link(directory / "00-bad.json")
    assert await spool.waiting() == []
    assert (tmp_path / "outside").read_bytes() == CODEC.encode(asked(7))


async def test_a_note_of_another_user_is_set_aside(spool, directory, monkeypatch):
    await spool.write(asked(1))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with capture_logs() as logs:
        assert await spool.waiting() == []
    assert logs[0]["reason"] == f"it belongs to user {os.getuid()}"


async def test_only_the_newest_rejected_notes_are_kept(spool, directory):
    for number in range(KEPT_REJECTED + 5):
        (plant_directory if number % 2 else plant_garbage)(directory / f"{number:03d}.json")
        assert await spool.waiting() == []
    kept = sorted(path.name for path in (directory / "rejected").iterdir())
    assert kept == [f"{number:03d}.json" for number in range(5, KEPT_REJECTED + 5)]


async def test_an_invalid_note_that_cannot_be_moved_is_logged_once_and_skipped(spool, directory):
    (directory / "rejected").write_text("a file where the directory should be")
    plant_garbage(directory / "00-bad.json")
    good = await spool.write(asked(1))
    with capture_logs() as logs:
        for _ in range(3):
            assert [name for name, _ in await spool.waiting()] == [good]
    assert [line["event"] for line in logs] == ["note_rejected", "note_not_moved"]
    (directory / "00-bad.json").unlink()
    await spool.waiting()
    (directory / "00-bad.json").write_bytes(CODEC.encode(asked(9)))
    assert [event.id for _, event in await spool.waiting()] == ["r-9", "r-1"], "a later note with that name is read"


async def test_a_draft_is_not_a_note_and_an_old_draft_is_deleted(spool, directory):
    note = await spool.write(asked(1))
    fresh, stale = directory / f".{note}.draft", directory / ".old.json.draft"
    fresh.write_bytes(b"{")
    stale.write_bytes(b"{")
    an_age_ago = time.time() - 7200
    os.utime(stale, (an_age_ago, an_age_ago))
    assert [name for name, _ in await spool.waiting()] == [note]
    assert sorted(path.name for path in directory.iterdir()) == sorted([note, fresh.name])
    assert not is_note(fresh.name)
    assert not is_note("rejected")


async def test_a_note_deleted_during_reading_is_not_an_error(spool, directory, monkeypatch):
    await spool.write(asked(1))
    keep = await spool.write(asked(2))
    read = SpoolDirectory._read

    def delete_and_read(self, name):
        if name != keep:
            (directory / name).unlink()
        return read(self, name)

    monkeypatch.setattr(SpoolDirectory, "_read", delete_and_read)
    with capture_logs() as logs:
        assert [name for name, _ in await spool.waiting()] == [keep]
    assert logs == []


@pytest.mark.parametrize(("code", "kept"), [(errno.EIO, True), (errno.EMFILE, True), (errno.EACCES, False)])
async def test_a_transient_read_error_keeps_the_note(spool, directory, monkeypatch, code, kept):
    note = await spool.write(asked(1))
    really_open = os.open

    def failing(path, flags, *args):
        if Path(path).name == note:
            raise OSError(code, os.strerror(code))
        return really_open(path, flags, *args)

    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(os, "open", failing)
        assert await spool.waiting() == []
    assert [line["event"] for line in logs] == ["note_unreadable" if kept else "note_rejected"]
    assert [name for name, _ in await spool.waiting()] == ([note] if kept else [])


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ESTALE])
async def test_a_directory_that_is_temporarily_unusable_is_a_transient_error(spool, directory, monkeypatch, code):
    note = await spool.write(asked(1))

    def failing(self, *_args, **_how):
        raise OSError(code, os.strerror(code), str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", failing)
        patched.setattr(Path, "unlink", failing)
        for entry in (spool.waiting(), spool.remove(note)):
            with pytest.raises(StateError, match=os.strerror(code)) as reported:
                await entry
            assert reported.value.transient
    assert [name for name, _ in await spool.waiting()] == [note]


async def test_a_note_that_is_too_large_is_refused_by_the_writer(spool, directory):
    with pytest.raises(WireError, match="is larger than the 65536 allowed"):
        await spool.write(SyncAsked(id="r", time=AT, system_id="mac", reason="x" * MAX_NOTE_BYTES))
    assert list(directory.iterdir()) == []


async def test_a_full_disk_leaves_no_note_and_is_an_error_with_a_hint(spool, directory, tmp_path):
    """A file-size limit of 1 KiB simulates the full disk: the kernel refuses a write in the middle."""
    program = (
        "import asyncio, resource, signal, sys; from datetime import datetime, UTC; from pathlib import Path\n"
        "from agent.adapters.spool import SpoolDirectory; from agent.adapters.wire import CloudEventsCodec\n"
        "from agent.domain.errors import StateError; from agent.domain.events import SyncAsked\n"
        "spool = SpoolDirectory(Path(sys.argv[1]), CloudEventsCodec())\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))\n"
        "event = SyncAsked(id='r', time=datetime.now(UTC), system_id='mac', reason='x' * 5000)\n"
        "try:\n"
        "    asyncio.run(spool.write(event))\n"
        "except StateError as error:\n"
        "    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(directory)], capture_output=True, text=True, timeout=60, check=True
    )
    assert "cannot be used: File too large" in run.stdout
    assert "free space on its disk" in run.stdout
    assert list(directory.iterdir()) == []


async def test_a_spool_that_is_not_a_directory_is_a_transient_error(tmp_path):
    (tmp_path / "spool").write_text("")
    spool = SpoolDirectory(tmp_path / "spool", CODEC)
    with pytest.raises(StateError, match="cannot be used: Not a directory") as reported:
        await spool.waiting()
    assert reported.value.transient, "the user may move the file away, so the agent continues"
    with pytest.raises(StateError, match="cannot be used"):
        await spool.write(asked(1))


@pytest.mark.parametrize("name", ["../ledger.sqlite", "../x.json", ".hidden.json", "note.txt", "a/b.json"])
async def test_only_notes_can_be_removed(spool, directory, name):
    (directory.parent / "x.json").write_text("mine")
    with pytest.raises(StateError, match="not the name of a note"):
        await spool.remove(name)
    assert (directory.parent / "x.json").exists()
