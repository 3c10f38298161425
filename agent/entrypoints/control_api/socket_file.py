"""The Unix socket in the state directory: for this user alone, from its first moment."""

import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agent.adapters.unix_http import CONTROL_SOCKET, socket_address

_DRAFT = "control.new"


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
        path, draft = directory / CONTROL_SOCKET, directory / _DRAFT
        draft.unlink(missing_ok=True)
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Nobody can connect before it listens, and by then its mode keeps others out.
            with socket_address(draft) as address:
                listening.bind(address)
            draft.chmod(0o600)
            listening.listen(backlog)
            listening.setblocking(False)
            inode = draft.stat().st_ino
            draft.rename(path)
        except BaseException:
            listening.close()
            draft.unlink(missing_ok=True)
            raise
        return cls(path, listening, inode)

    def remove(self) -> None:
        """Take the file away, if it is still ours."""
        with suppress(OSError):  # the state directory may be gone: then the file is, too
            if self.path.lstat().st_ino == self.inode:
                self.path.unlink()
