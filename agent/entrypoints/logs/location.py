"""Where a log file may lie: in no directory where it would be taken for something else."""

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

_OURS = ("spool", "staging")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLocation:
    """A log file, the size at which it is set aside, and the directories that it must keep out of."""

    file: Path
    bytes_each: int
    data_dir: Path
    state_dir: Path

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """Return the place that the settings name, None where they name none."""
        if settings.agent_log_file is None:
            return None
        return cls(
            file=settings.agent_log_file,
            bytes_each=settings.agent_log_file_mb * MEBIBYTE,
            data_dir=settings.agent_data_dir,
            state_dir=settings.agent_state_dir,
        )

    def prepared(self) -> Path:
        """Make the directories that are missing, for this user alone; return the file, symbolic links followed.

        Raises SettingsError where the file would be seen as a change (each line, for ever), swept away, or taken for a
        file of the agent's own, and where what is there is no file. A directory that cannot be made is no error here:
        whoever opens the file says why.
        """
        file = Path(os.path.realpath(self.file))
        if _within(file, self.data_dir):
            raise SettingsError(
                f"{KEY}: {self.file} lies in the data directory {self.data_dir}: each line would be a change there",
                hint=f"let it name a file elsewhere, such as {self.state_dir / 'agent.log'}",
            )
        if any(_within(file, self.state_dir / name) for name in _OURS):
            raise SettingsError(
                f"{KEY}: {self.file} lies where the agent keeps files for a short time only",
                hint=f"let it name a file elsewhere, such as {self.state_dir / 'agent.log'}",
            )
        if _within(file, self.state_dir) and file.suffix != ENDING:
            raise SettingsError(
                f"{KEY}: {self.file} may be a file of the agent's own",
                hint=f"in the state directory its name must end in {ENDING}",
            )
        try:
            if not S_ISREG(file.stat().st_mode):
                raise SettingsError(f"{KEY}: {self.file} is not a file", hint="let it name one")
        except OSError:
            _make(file.parent)
        return file


def _within(file: Path, directory: Path) -> bool:
    """Say whether the file lies in or below the directory, also where a name's case does not matter."""
    if file.is_relative_to(os.path.realpath(directory)):
        return True
    try:
        wanted = directory.stat()
    except OSError:
        return False
    return any(os.path.samestat(seen, wanted) for seen in _seen(file.parents))


def _seen(directories: Iterable[Path]) -> Iterator[os.stat_result]:
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
