"""What is to be on the disk goes through one function, which knows file systems without fsync."""

import errno
import os

import pytest

from agent.durability import sync_to_disk
from agent.entrypoints.hook import note


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_knows_no_fsync_is_no_error(number, monkeypatch):
    def unknown(_descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", unknown)
    sync_to_disk(0)


def test_a_disk_that_fails_is_one(monkeypatch):
    def failing(_descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", failing)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_to_disk(0)


def test_a_descriptor_that_is_not_open_is_one(tmp_path):
    descriptor = os.open(tmp_path, os.O_RDONLY)
    os.close(descriptor)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        sync_to_disk(descriptor)


def test_the_note_of_the_hook_is_kept_without_fsync(tmp_path, monkeypatch):
    def unknown(_descriptor):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("os.fsync", unknown)
    note.write_note(str(tmp_path / "state"), "a-note", b"{}")
    assert [path.read_bytes() for path in (tmp_path / "state" / "spool").iterdir()] == [b"{}"]
