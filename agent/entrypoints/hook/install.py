"""Add the agent's hook to Claude Code's settings file, and remove it: one atomic change of one file, with a backup.

What `install` had to make around the hook is recorded in the state directory (`claude-hook.json`): `uninstall` removes
that, and nothing that was there before. A backup is never put back: the file may have been edited since.
"""

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from agent.adapters import fs
from agent.domain.errors import SettingsError, StateError
from agent.entrypoints.hook.claude_settings import CONTAINERS, ClaudeSettings
from agent.entrypoints.hook.command_line import HookCommand

RECORD = "claude-hook.json"

_FILE, _FOLDER = "file", "folder"


class Outcome(StrEnum):
    """What became of the settings file."""

    INSTALLED = "installed"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Change:
    """What was done, and the backup of the file as it was before, where one was made and kept."""

    outcome: Outcome
    backup: Path | None = None


@dataclass(frozen=True, slots=True)
class _Record:
    """What `install` made: containers in the settings (`hooks`, `SessionEnd`), the file itself, its folder; backups."""

    made: frozenset[str] = CONTAINERS
    backups: tuple[str, ...] = ()


def install(path: Path, command: HookCommand, state_dir: Path) -> Change:
    """Add the command to the settings file, which is made where there is none; update the agent's hook that is there.

    Raises SettingsError where the file cannot be edited, StateError where it or the state directory cannot be written.
    """
    settings = ClaudeSettings.read(path)
    document, installed = copy.deepcopy(settings.document), settings.commands
    made = settings.insert(command)
    if settings.document == document:
        return Change(Outcome.UNCHANGED)
    text, folder = settings.render(), path.resolve().parent
    with _translated(path):
        if installed:
            earlier = _installed_from(installed, state_dir)
            record = _read_record(earlier, path)
        else:
            if settings.data is None:
                made |= {_FILE} if folder.exists() else {_FILE, _FOLDER}
                folder.mkdir(parents=True, exist_ok=True)
            earlier, record = state_dir, _Record(made)
        backup = _back_up(path) if settings.data is not None else None
        if backup:
            record = replace(record, backups=(*record.backups, str(backup)))
        _update_records(state_dir, path, record)  # before the change: without it, `uninstall` would not know
        _replace(settings, text)
        if earlier != state_dir:
            _update_records(earlier, path, None)
    return Change(Outcome.UPDATED if installed else Outcome.INSTALLED, backup)


def uninstall(path: Path, state_dir: Path) -> Change:
    """Remove the agent's hook from the settings file, and what `install` made around it. Raises as `install` does."""
    settings = ClaudeSettings.read(path)
    installed = settings.commands
    if not installed:
        return Change(Outcome.UNCHANGED)
    installed_from = _installed_from(installed, state_dir)
    record = _read_record(installed_from, path)
    settings.remove(record.made)
    text, target = settings.render(), path.resolve()
    backup: Path | None = None
    with _translated(path):
        needless = [old for old in map(Path, record.backups) if _holds(old, text, record)]
        if _FILE in record.made and not settings.document:
            _check_unchanged(settings)
            target.unlink()
        else:
            backup = None if needless else _back_up(path)
            _replace(settings, text)
        for old in needless:
            old.unlink()
        if _FOLDER in record.made:
            with suppress(OSError):  # another program has put something there
                target.parent.rmdir()
        _update_records(installed_from, path, None)
    return Change(Outcome.REMOVED, backup)


def _installed_from(commands: list[HookCommand], otherwise: Path) -> Path:
    """Return the state directory that the command was installed with."""
    return next((command.state_dir for command in commands if command.state_dir), otherwise)


def _holds(backup: Path, text: bytes, record: _Record) -> bool:
    """Say whether a backup holds this text and nothing else but a hook of the agent."""
    try:
        kept = ClaudeSettings.read(backup)
        if kept.render() != kept.data:  # a layout that only the backup has
            return False
        kept.remove(record.made)
        return kept.render() == text
    except SettingsError:
        return False


def _replace(settings: ClaudeSettings, text: bytes) -> None:
    """Replace the file that the path leads to, whole or not at all; its mode and owner stay."""
    target = settings.path.resolve()
    like = None if settings.data is None else target.stat()
    fs.write_atomically(target, text, like=like, check=lambda: _check_unchanged(settings))


def _check_unchanged(settings: ClaudeSettings) -> None:
    """Raise StateError where another program has written the file since it was read."""
    try:
        now = settings.path.read_bytes()
    except FileNotFoundError:
        now = None
    if now != settings.data:
        raise StateError(f"{settings.path} was changed by another program just now", hint="run the command again")


def _back_up(path: Path) -> Path:
    """Copy the file beside itself, with its mode and owner; return the copy."""
    target = path.resolve()
    name = f"{target.name}.backup-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        backup = target.with_name(name + suffix)
        try:
            fs.write_new(backup, target.read_bytes(), like=target.stat())
        except FileExistsError:
            continue
        return backup
    raise StateError(f"{target.parent} has 99 backups of this second", hint="remove some")


def _read_record(state_dir: Path, path: Path) -> _Record:
    """Return the record of an installation. Without one, containers that are empty are removed, and no more."""
    kept = _read_records(state_dir).get(str(path.resolve()))
    if not isinstance(kept, dict):
        return _Record()
    made, backups = kept.get("made"), kept.get("backups")
    return _Record(
        frozenset(map(str, made)) if isinstance(made, list) else CONTAINERS,
        tuple(map(str, backups)) if isinstance(backups, list) else (),
    )


def _read_records(state_dir: Path) -> dict[str, object]:
    try:
        kept: object = json.loads((state_dir / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _update_records(state_dir: Path, path: Path, record: _Record | None) -> None:
    """Write the record of one settings file; None removes it, and the last one removed removes the file of records."""
    kept, key = _read_records(state_dir), str(path.resolve())
    if record is None and key not in kept:
        return
    kept.pop(key, None)
    if record is not None:
        kept[key] = {"made": sorted(record.made), "backups": record.backups}
    if not kept:
        (state_dir / RECORD).unlink(missing_ok=True)
        return
    fs.write_atomically(state_dir / RECORD, (json.dumps(kept, indent=2) + "\n").encode())


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(
            f"{error.filename or path} cannot be written: {error.strerror or error}",
            hint=f"check the owner and mode of {path.parent}, and leave room on its disk",
        ) from error
