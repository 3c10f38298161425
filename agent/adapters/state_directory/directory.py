"""The agent's state directory: its lock, the agent's identity, and the paths of ledger, staging and spool. Mode 0700.

    agent.lock       locked by the one process that runs
    identity.json    agent ID and system ID, created at the first start
    identity.lock    locked while the identity is read or created
    system-id        the last akosha_system_id that `run` used
    ledger.sqlite  staging/  mirror/  spool/

All calls block, briefly on a local disk. Callers on an event loop use a thread.
"""

import os
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import structlog

from agent.adapters import fs
from agent.adapters.state_directory.identity_file import IdentityFile
from agent.adapters.state_directory.lock import Holder, Lock, unusable
from agent.domain.errors import StateError
from agent.domain.identity import Identity
from agent.domain.naming import check_system_id

_PRIVATE = 0o700
_SYSTEM_ID = "system-id"
_OTHERS = 0o077

_log = structlog.get_logger()


class StateDirectory:
    """The state directory at `path`. The constructor does no I/O. `now` returns the wall time, timezone-aware."""

    def __init__(self, path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.path = path
        self._lock = Lock(path, now)

    @property
    def ledger_file(self) -> Path:
        return self.path / "ledger.sqlite"

    @property
    def staging(self) -> Path:
        """Directory for copies of databases during an upload; emptied at every start."""
        return self.path / "staging"

    @property
    def mirror(self) -> Path:
        """Directory for main files as they were last copied; created by the first snapshot."""
        return self.path / "mirror"

    @property
    def spool(self) -> Path:
        """Directory for notes from other processes of this user."""
        return self.path / "spool"

    def prepare(self, data_dir: Path | None = None) -> None:
        """Create missing directories, private to this user; restrict modes that others can use, with a warning.

        Raises StateError if one of the directories belongs to another user or is not a directory. Also raises it if
        this directory and `data_dir` overlap: the agent's writes would count as changes to the data, and clean-up here
        could remove the user's files.
        """
        if data_dir is not None:
            self._check_apart(data_dir)
        try:
            self.path.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
            _make_private(self.path, self.path.stat())
            for inner in (self.staging, self.spool):
                if not inner.is_symlink():
                    inner.mkdir(mode=_PRIVATE, exist_ok=True)
                _make_private(inner, inner.lstat())
        except OSError as error:
            raise unusable(self.path, error) from error

    def lock(self, command: str, *, retry: bool = True) -> AbstractContextManager[None]:
        """Hold the directory's lock within the block. `command` is shown to other processes.

        Child processes do not inherit the lock. Raises AlreadyRunning if another process holds it, with `retry` only
        after 0.3 s. Raises StateError if the directory cannot be locked.
        """
        return self._lock.hold(command, retry=retry)

    def holder(self) -> Holder | None:
        """Return the process that holds the lock, or None. Creates nothing and does not block other processes."""
        return self._lock.holder()

    def identity(self, host_name: str, system_id_setting: str) -> Identity:
        """Return the identity of this agent; the first call creates and stores it.

        The system ID is the sanitised setting, or without one the host name at the first start. Raises NamingError if
        it cannot be sanitised, StateError if the stored identity is damaged.
        """
        return IdentityFile(self.path).identity(host_name, system_id_setting)

    def remember_setting(self, system_id: str) -> None:
        """Store the `akosha_system_id` that the agent runs with ("" is the default). Raises StateError.

        Programs that use `agent.api` without a system ID use this one, because they may not see the agent's settings.
        """
        if self.remembered_setting() == system_id:
            return
        try:
            fs.write_atomically(self.path / _SYSTEM_ID, f"{system_id}\n".encode())
        except OSError as error:
            raise unusable(self.path, error) from error

    def remembered_setting(self) -> str | None:
        """Return the last `akosha_system_id` that an agent ran with here; None if there is none, or it is damaged."""
        try:
            text = (self.path / _SYSTEM_ID).read_text().strip()
            return text and check_system_id(text)
        except (OSError, ValueError):  # includes NamingError
            return None

    def rename(self, system_id: str) -> None:
        """Store another default system ID. Raises StateError."""
        IdentityFile(self.path).rename(system_id)

    def _check_apart(self, data_dir: Path) -> None:
        state, data = self.path.resolve(), data_dir.resolve()
        if state.is_relative_to(data) or data.is_relative_to(state):
            raise StateError(
                f"the state directory {self.path} and the data directory {data_dir} overlap",
                hint="set akosha_agent_state_dir, or --state-dir, to a separate directory",
            )


def _make_private(directory: Path, status: os.stat_result) -> None:
    """Check that this user owns the directory, and remove other users' permissions. Raises StateError."""
    if not stat.S_ISDIR(status.st_mode):
        raise StateError(f"{directory} is not a directory", hint="move it away: the agent creates a directory there")
    if status.st_uid != os.geteuid():
        raise StateError(
            f"{directory} belongs to user {status.st_uid}, but this process runs as user {os.geteuid()}",
            hint="run as its owner, or set akosha_agent_state_dir to a directory that this user owns",
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & _OTHERS:
        directory.chmod(_PRIVATE)
        _log.warning(
            "state_directory_made_private", path=str(directory), mode_was=f"{mode:04o}", mode=f"{_PRIVATE:04o}"
        )
