"""Files and locks: fsync on file systems without it, atomic writes, private files, and locks."""

import errno
import os

import pytest

from agent.adapters import fs
from agent.entrypoints.hook import note


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_fsync_is_not_an_error(number, monkeypatch):
    def unsupported(_descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", unsupported)
    fs.sync(0)


def test_a_disk_error_in_fsync_is_raised(monkeypatch):
    def failing(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        fs.sync(0)


def test_a_closed_descriptor_in_fsync_is_an_error(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    os.close(descriptor)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        fs.sync(descriptor)


def test_the_hook_writes_its_note_without_fsync(tmp_path, monkeypatch):
    def unsupported(_descriptor):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("os.fsync", unsupported)
    note.write_note(str(tmp_path / "state"), "a-note", b"{}")
    assert [path.read_bytes() for path in (tmp_path / "state" / "spool").iterdir()] == [b"{}"]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_completely_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    fs.write_atomically(path, b"old", mode=0o644)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"old", 0o644)

    def refuse():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fs.write_atomically(path, b"new", check=refuse)

    def failing(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", failing)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            fs.write_atomically(path, b"new")
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["kept"])
    fs.write_atomically(path, b"new", like=path.stat())
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o644)
    fs.write_atomically(path, b"newer")
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_sole_writer_replaces_the_draft_of_a_killed_one(tmp_path):
    (tmp_path / ".kept.draft").write_bytes(b"ha")
    fs.write_atomically(tmp_path / "kept", b"complete", sole_writer=True)
    assert names(tmp_path) == ["kept"]


def test_only_one_of_two_creators_succeeds(tmp_path):
    assert fs.create_atomically(tmp_path / "id", b"first")
    assert not fs.create_atomically(tmp_path / "id", b"second")
    assert ((tmp_path / "id").read_bytes(), names(tmp_path)) == (b"first", ["id"])


def test_only_a_regular_private_file_of_this_user_is_read(tmp_path, monkeypatch):
    path = tmp_path / "token"
    fs.write_atomically(path, b"secret")
    assert fs.read_own(path, 6, private=True) == b"secret"
    (tmp_path / "link").symlink_to(path)
    os.mkfifo(tmp_path / "pipe")
    for name, limit, reason in (
        ("link", 6, "not a regular file"),
        ("pipe", 6, "not a regular file"),
        (".", 6, "not a regular file"),
        ("token", 5, "larger than 5 bytes"),
    ):
        with pytest.raises(ValueError, match=reason):
            fs.read_own(tmp_path / name, limit)
    path.chmod(0o640)
    assert fs.read_own(path, 6) == b"secret"
    with pytest.raises(ValueError, match="mode 0640"):
        fs.read_own(path, 6, private=True)
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ValueError, match="belongs to user"):
        fs.read_own(path, 6)
    with pytest.raises(FileNotFoundError):
        fs.read_own(tmp_path / "none", 6)


def test_a_lock_excludes_others_until_its_descriptor_is_closed(tmp_path):
    path = tmp_path / "lock"
    first, second = fs.open_lock_file(path), fs.open_lock_file(path)
    assert fs.try_lock(first, shared=True)
    assert fs.try_lock(second, shared=True)
    assert not fs.try_lock(second)
    os.close(first)
    assert fs.try_lock(second)
    os.close(second)
    with fs.locked(path):
        third = fs.open_lock_file(path)
        assert not fs.try_lock(third)
    assert fs.try_lock(third)
    os.close(third)
