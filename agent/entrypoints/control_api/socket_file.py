"""The Unix socket in the state directory: for this user alone, from its first moment."""

import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SOCKET = "control.sock"
_DRAFT = "control.new"
LONGEST_ADDRESS = 107 if sys.platform == "linux" else 103
"""Bytes of a path that `sun_path` has room for."""


@dataclass(frozen=True, slots=True)
class SocketFile:
    """A listening socket, and the file by which it is found."""

    path: Path
    listening: socket.socket
    inode: int

    @classmethod
    def open(cls, directory: Path, *, backlog: int) -> "SocketFile":
        """Listen at `control.sock` in the directory, in place of one that a killed agent has left.

        The caller holds the directory's lock. Raises OSError.
        """
        path, draft = directory / SOCKET, directory / _DRAFT
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            draft.unlink(missing_ok=True)
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                # Nobody can connect before it listens, and then it is closed to others already.
                listening.bind(_reachable(draft, descriptor))
                draft.chmod(0o600)
                listening.listen(backlog)
                listening.setblocking(False)
                inode = draft.stat().st_ino
                draft.rename(path)
            except BaseException:
                listening.close()
                draft.unlink(missing_ok=True)
                raise
        finally:
            os.close(descriptor)
        return cls(path, listening, inode)

    def remove(self) -> None:
        """Take the file away, if it is still ours."""
        with suppress(OSError):  # the state directory may be gone: then the file is, too
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()


def _reachable(path: Path, directory: int) -> str:
    """Return an address for a path: itself, or where that is too long a way through its directory's descriptor.

    Raises OSError where there is none.
    """
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        return str(path)
    if sys.platform == "linux":
        return f"/proc/self/fd/{directory}/{path.name}"
    raise OSError(f"the path {path} is longer than the {LONGEST_ADDRESS} bytes that a socket's may have")
