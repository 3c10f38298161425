"""Add the agent's hook to Claude Code's settings file, and remove it: one atomic change of one file, with a backup.

`install` records in the state directory (`claude-hook.json`) which containers and files it created; `uninstall` removes
only those. A backup is never restored, because the file may have been edited since.
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
from agent.domain.parsing import parse_json
from agent.entrypoints.hook.claude_settings import CONTAINERS, ClaudeSettings
from agent.entrypoints.hook.hook_command import HookCommand

RECORD = "claude-hook.json"

_FILE, _DIRECTORY = "file", "folder"


class Outcome(StrEnum):
    """What happened to the settings file."""

    INSTALLED = "installed"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Change:
    """What was done, and the backup of the previous file, if one was made and kept.

    `deleted`: the file was removed, because `install` had created it and nothing else is in it.
    """

    outcome: Outcome
    backup: Path | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class _Record:
    """What `install` created: containers in the settings (`hooks`, `SessionEnd`), the file, its directory; backups."""

    made: frozenset[str] = CONTAINERS
    backups: tuple[str, ...] = ()


def install(path: Path, command: HookCommand, state_dir: Path) -> Change:
    """Add the agent's hook to the settings file, or update it. The file is created if it does not exist.

    Raises SettingsError if the file cannot be edited, StateError if it or the state directory cannot be written.
    """
    settings = ClaudeSettings.read(path)
    document, installed = copy.deepcopy(settings.document), settings.commands
    made = settings.insert(command)
    if settings.document == document:
        return Change(Outcome.UNCHANGED)
    text, directory = settings.render(), path.resolve().parent
    with _translated(path):
        if installed:
            recorded_in = _installed_from(installed, state_dir)
            record = _read_record(recorded_in, path)
        else:
            if settings.data is None:
                made |= {_FILE} if directory.exists() else {_FILE, _DIRECTORY}
                directory.mkdir(parents=True, exist_ok=True)
            recorded_in, record = state_dir, _Record(made)
        backup = _back_up(path) if settings.data is not None else None
        if backup:
            record = replace(record, backups=(*record.backups, str(backup)))
        _update_records(state_dir, path, record)  # before the change: `uninstall` depends on the record
        _replace(settings, text)
        if recorded_in != state_dir:
            _update_records(recorded_in, path, None)
    return Change(Outcome.UPDATED if installed else Outcome.INSTALLED, backup)


def uninstall(path: Path, state_dir: Path) -> Change:
    """Remove the agent's hook from the settings file, and what `install` created for it. Raises as `install` does."""
    settings = ClaudeSettings.read(path)
    installed = settings.commands
    if not installed:
        return Change(Outcome.UNCHANGED)
    installed_from = _installed_from(installed, state_dir)
    record = _read_record(installed_from, path)
    settings.remove(record.made)
    text, target = settings.render(), path.resolve()
    backup: Path | None = None
    deleted = _FILE in record.made and not settings.document
    with _translated(path):
        redundant = [old for old in map(Path, record.backups) if _has_no_other_change(old, text, record)]
        if deleted:
            _check_unchanged(settings)
            target.unlink()
        else:
            backup = None if redundant else _back_up(path)
            _replace(settings, text)
        for old in redundant:
            old.unlink()
        if _DIRECTORY in record.made:
            with suppress(OSError):  # another program has created files in it
                target.parent.rmdir()
        _update_records(installed_from, path, None)
    return Change(Outcome.REMOVED, backup, deleted)


def _installed_from(commands: list[HookCommand], default: Path) -> Path:
    """Return the state directory that the hook was installed with."""
    return next((command.state_dir for command in commands if command.state_dir), default)


def _has_no_other_change(backup: Path, text: bytes, record: _Record) -> bool:
    """Return whether a backup differs from `text` at most by the agent's hook."""
    try:
        saved = ClaudeSettings.read(backup)
        if saved.render() != saved.data:  # a layout that only the backup has
            return False
        saved.remove(record.made)
        return saved.render() == text
    except SettingsError:
        return False


def _replace(settings: ClaudeSettings, text: bytes) -> None:
    """Replace atomically the file that the path resolves to; its mode and owner are kept."""
    target = settings.path.resolve()
    like = None if settings.data is None else target.stat()
    fs.write_atomically(target, text, like=like, check=lambda: _check_unchanged(settings))


def _check_unchanged(settings: ClaudeSettings) -> None:
    """Raise StateError if another program has written the file since it was read."""
    try:
        current = settings.path.read_bytes()
    except FileNotFoundError:
        current = None
    if current != settings.data:
        raise StateError(f"another program has just changed {settings.path}", hint="run the command again")


def _back_up(path: Path) -> Path:
    """Copy the file to a new name next to it, with its mode and owner; return the path of the copy."""
    target = path.resolve()
    name = f"{target.name}.backup-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        backup = target.with_name(name + suffix)
        try:
            fs.write_new(backup, target.read_bytes(), like=target.stat())
        except FileExistsError:
            continue
        return backup
    raise StateError(f"{target.parent} already has 99 backups with the present time", hint="remove some of them")


def _read_record(state_dir: Path, path: Path) -> _Record:
    """Return the record of an installation. Without one, only empty containers may be removed."""
    record = _read_records(state_dir).get(str(path.resolve()))
    if not isinstance(record, dict):
        return _Record()
    made, backups = record.get("made"), record.get("backups")
    return _Record(
        frozenset(map(str, made)) if isinstance(made, list) else CONTAINERS,
        tuple(map(str, backups)) if isinstance(backups, list) else (),
    )


def _read_records(state_dir: Path) -> dict[str, object]:
    try:
        records: object = parse_json((state_dir / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return records if isinstance(records, dict) else {}


def _update_records(state_dir: Path, path: Path, record: _Record | None) -> None:
    """Write or remove (None) the record of one settings file. Without any record, the file of records is removed."""
    records, key = _read_records(state_dir), str(path.resolve())
    if record is None and key not in records:
        return
    records.pop(key, None)
    if record is not None:
        records[key] = {"made": sorted(record.made), "backups": record.backups}
    if not records:
        (state_dir / RECORD).unlink(missing_ok=True)
        return
    fs.write_atomically(state_dir / RECORD, (json.dumps(records, indent=2) + "\n").encode())


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(
            f"{error.filename or path} cannot be written: {error.strerror or error}",
            hint=f"check the owner and mode of {path.parent}, and the free space on its disk",
        ) from error
