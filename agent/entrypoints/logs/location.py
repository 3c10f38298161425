"""The location of the log file, and the directories in which it is not allowed."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Self

from agent.domain.errors import SettingsError
from agent.settings import Settings

KEY = "akosha_agent_log_file"
ENDING = ".log"
MEBIBYTE = 2**20

_EMPTIED = ("spool", "staging")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLocation:
    """A log file, the size at which it is rotated, and the directories in which it must not be."""

    file: Path
    max_bytes: int
    data_dir: Path
    state_dir: Path

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return the location from the settings, None if none is set."""
        if settings.agent_log_file is None:
            return None
        return cls(
            file=settings.agent_log_file,
            max_bytes=settings.agent_log_file_mb * MEBIBYTE,
            data_dir=settings.agent_data_dir,
            state_dir=settings.agent_state_dir,
        )

    def prepare(self) -> Path:
        """Create missing directories, accessible only to this user; return the resolved path of the file.

        Raises SettingsError if the file is in the data directory, where each line would trigger a sync, or in a
        directory that the agent empties, if it may be one of the agent's own files, or if it is not a regular file. A
        directory that cannot be created is reported when the file is opened.
        """
        file = Path(os.path.realpath(self.file))
        if _within(file, self.data_dir):
            raise SettingsError(
                f"{KEY}: {self.file} is in the data directory {self.data_dir}, where each line would trigger a sync",
                hint=f"choose a file elsewhere, for example {self.state_dir / 'agent.log'}",
            )
        if any(_within(file, self.state_dir / name) for name in _EMPTIED):
            raise SettingsError(
                f"{KEY}: {self.file} is in a directory that the agent empties",
                hint=f"choose a file elsewhere, for example {self.state_dir / 'agent.log'}",
            )
        if _within(file, self.state_dir) and file.suffix != ENDING:
            raise SettingsError(
                f"{KEY}: {self.file} may be one of the agent's own files",
                hint=f"in the state directory its name must end in {ENDING}",
            )
        try:
            if not S_ISREG(file.stat().st_mode):
                raise SettingsError(f"{KEY}: {self.file} is not a regular file", hint="choose a regular file")
        except OSError:
            _make(file.parent)
        return file


def _within(file: Path, directory: Path) -> bool:
    """Return whether the file is in or below the directory, also if names are case-insensitive."""
    if file.is_relative_to(os.path.realpath(directory)):
        return True
    try:
        wanted = directory.stat()
    except OSError:
        return False
    return any(os.path.samestat(seen, wanted) for seen in _stats(file.parents))


def _stats(directories: Iterable[Path]) -> Iterator[os.stat_result]:
    for directory in directories:
        try:
            yield directory.stat()
        except OSError:
            continue


def _make(directory: Path) -> None:
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    try:
        for one in reversed(missing):
            one.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return
