"""The agent's own directory: who holds it, who we are, and where ledger, staging and spool lie. Mode 0700.

    agent.lock       held by the one process that runs
    identity.json    agent id and system id, made at the first start
    identity.lock    held for the moment in which an identity is looked up or made
    system-id        the akosha_system_id that `run` had last
    ledger.sqlite  staging/  spool/

Synchronous, and quick on a local disk; callers on an event loop put it into a thread.
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
from agent.adapters.state_directory.lock import Holder, Lock, is_stopped, unusable
from agent.domain.errors import StateError
from agent.domain.identity import Identity
from agent.domain.naming import check_system_id

__all__ = ["Holder", "StateDirectory", "is_stopped"]

_PRIVATE = 0o700
_SYSTEM_ID = "system-id"
_OTHERS = 0o077

_log = structlog.get_logger()


class StateDirectory:
    """The state directory at `path`; nothing is made or read before `prepare`. `now` is the wall time, aware."""

    def __init__(self, path: Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.path = path
        self._lock = Lock(path, now)

    @property
    def ledger_file(self) -> Path:
        return self.path / "ledger.sqlite"

    @property
    def staging(self) -> Path:
        """Where copies of databases lie for the time of an upload; emptied at every start."""
        return self.path / "staging"

    @property
    def spool(self) -> Path:
        """Where other processes of this user leave notes."""
        return self.path / "spool"

    def prepare(self, data_dir: Path | None = None) -> None:
        """Create what is missing, for this user alone; mend modes that let others in, with a warning.

        Raises StateError where the directory, or one in it, is somebody else's or no directory, and where it and
        `data_dir` lie within each other: what is written here would be a change there, and what is swept here must
        never be a user's file.
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

    def lock(self, command: str, *, patient: bool = True) -> AbstractContextManager[None]:
        """Hold the directory for as long as the block runs; `command` tells others who does.

        Programs started meanwhile do not inherit it. Entering raises AlreadyRunning where another process holds the
        directory, StateError where it cannot be locked at all. `patient`: after up to 0.3 s of asking; else at once.
        """
        return self._lock.held(command, patient=patient)

    def holder(self) -> Holder | None:
        """Return who holds the directory now, or None. Creates nothing, and keeps nobody from taking it."""
        return self._lock.holder()

    def identity(self, host_name: str, system_id_setting: str) -> Identity:
        """Return who this agent is, made and kept at the first call ever.

        The system id is the setting, sanitised; without one, the host name as it was at the first start. Raises
        NamingError where neither can be made into one, StateError where what was kept is damaged.
        """
        return IdentityFile(self.path).identity(host_name, system_id_setting)

    def remember_setting(self, system_id: str) -> None:
        """Keep the `akosha_system_id` that the agent runs with ("": the default). Raises StateError.

        Programs that name no system id take this one (`agent.api`): they may not see the agent's settings.
        """
        if self.remembered_setting() == system_id:
            return
        try:
            fs.write_atomically(self.path / _SYSTEM_ID, f"{system_id}\n".encode())
        except OSError as error:
            raise unusable(self.path, error) from error

    def remembered_setting(self) -> str | None:
        """Return the `akosha_system_id` that an agent ran with here last; None where none did, or it is damaged."""
        try:
            text = (self.path / _SYSTEM_ID).read_text().strip()
            return text and check_system_id(text)
        except (OSError, ValueError):  # a NamingError is a ValueError
            return None

    def rename(self, system_id: str) -> None:
        """Keep another default system id from now on. Raises StateError."""
        IdentityFile(self.path).rename(system_id)

    def _check_apart(self, data_dir: Path) -> None:
        state, data = self.path.resolve(), data_dir.resolve()
        if state.is_relative_to(data) or data.is_relative_to(state):
            raise StateError(
                f"the state directory {self.path} and the data directory {data_dir} lie within each other",
                hint="set akosha_agent_state_dir, or --state-dir, to a place of its own",
            )


def _make_private(directory: Path, seen: os.stat_result) -> None:
    """Check that a directory is one, and ours; close it to others. Raises StateError."""
    if not stat.S_ISDIR(seen.st_mode):
        raise StateError(f"{directory} is not a directory", hint="move it away: the agent makes its own there")
    if seen.st_uid != os.geteuid():
        raise StateError(
            f"{directory} belongs to user {seen.st_uid}, not to user {os.geteuid()} who runs this",
            hint="run as its owner, or set akosha_agent_state_dir to a directory of your own",
        )
    mode = stat.S_IMODE(seen.st_mode)
    if mode & _OTHERS:
        directory.chmod(_PRIVATE)
        _log.warning("state_directory_closed", path=str(directory), mode_was=f"{mode:04o}", mode=f"{_PRIVATE:04o}")
