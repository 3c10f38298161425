"""Our hook into Claude Code's settings file, and out of it again: one atomic change of one file, with a backup.

What installing had to make around the hook is noted in the state directory (`claude-hook.json`), so that uninstalling
takes away that, and nothing that was there before.
"""

import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from agent.domain.errors import SettingsError, StateError
from agent.durability import sync_to_disk
from agent.entrypoints.hook.claude_settings import ALL_MADE, FILE, Found, inserted, is_empty, look, read, withdrawn
from agent.entrypoints.hook.command_line import HookCommand

RECORD = "claude-hook.json"

_FOLDER = "folder"
_NEW_MODE = 0o600
_EMPTY = "{}\n"


class Outcome(StrEnum):
    """What became of the settings file."""

    INSTALLED = "installed"
    UPDATED = "updated"
    UNCHANGED = "unchanged"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class Change:
    """What was done, and the backup of what was there before, where one was made and kept."""

    outcome: Outcome
    backup: Path | None = None


@dataclass(frozen=True, slots=True)
class _Record:
    """What installing made: of the settings (`hooks`, `SessionEnd`), the file itself, its folder; its backups."""

    made: frozenset[str] = ALL_MADE
    gap: str = ""
    backups: tuple[str, ...] = ()


def install(path: Path, command: HookCommand, state_dir: Path) -> Change:
    """Put our command into the settings file, made where there is none; one of ours in it is brought up to date.

    Raises SettingsError where the file is not understood, StateError where it or the state directory cannot be written.
    """
    before = read(path)
    new = inserted(_EMPTY if before is None else before, command, path)
    if new.text == before:
        return Change(Outcome.UNCHANGED)
    there = look(path)
    folder = path.resolve().parent
    with _translated(path):
        backup = None if before is None else _back_up(path)
        if there.installed:
            earlier = _home_of(there, state_dir)
            record = _read_record(earlier, path)
        else:
            made = set(new.made)
            if before is None:
                made |= {FILE} | (set() if folder.exists() else {_FOLDER})
                folder.mkdir(parents=True, exist_ok=True)
            earlier, record = state_dir, _Record(frozenset(made), new.gap)
        if backup:
            record = replace(record, backups=(*record.backups, str(backup)))
        _write_record(state_dir, path, record)  # before the change: without it, uninstalling would not know
        _replace(path, new.text, before)
        if earlier != state_dir:
            _forget(earlier, path)
    return Change(Outcome.UPDATED if there.installed else Outcome.INSTALLED, backup)


def uninstall(path: Path, state_dir: Path) -> Change:
    """Take our command out of the settings file, and with it all that installing made. Raises as `install`."""
    before, found = read(path), look(path)
    if before is None or not found.installed:
        return Change(Outcome.UNCHANGED)
    known = _home_of(found, state_dir)
    record = _read_record(known, path)
    text = withdrawn(before, path, record.made, record.gap)
    target = path.resolve()
    backup: Path | None = None
    with _translated(path):
        needless = [copy for copy in map(Path, record.backups) if _holds(copy, text, path, record)]
        if FILE in record.made and is_empty(text):
            _unchanged(path, before)
            target.unlink()
        else:
            backup = None if needless else _back_up(path)
            _replace(path, text, before)
        for copy in needless:  # all that they hold is as it was again
            copy.unlink()
        if _FOLDER in record.made:
            with suppress(OSError):  # others have put something there
                target.parent.rmdir()
        _forget(known, path)
    return Change(Outcome.REMOVED, backup)


def _home_of(found: Found, otherwise: Path) -> Path:
    """Return the state directory that the command found was installed with."""
    return next((command.state_dir for command in found.commands if command.state_dir), otherwise)


def _replace(path: Path, text: str, before: str | None) -> None:
    """Put a text in place of the file that `path` leads to, whole or not at all; its mode and owner stay."""
    target = path.resolve()
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _NEW_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if before is not None:
                seen = target.stat()
                if (seen.st_uid, seen.st_gid) != (os.geteuid(), os.getegid()):
                    with suppress(PermissionError):
                        os.fchown(descriptor, seen.st_uid, seen.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(seen.st_mode))
            file.write(text.encode())
            file.flush()
            sync_to_disk(descriptor)
        _unchanged(path, before)
        draft.rename(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_to_disk(folder)
    finally:
        os.close(folder)


def _unchanged(path: Path, before: str | None) -> None:
    """Raise StateError where somebody has written the file since we read it."""
    try:
        now = path.read_bytes()
    except FileNotFoundError:
        now = None
    if now != (None if before is None else before.encode()):
        raise StateError(f"{path} was changed by another program just now", hint="run the command again")


def _back_up(path: Path) -> Path:
    """Copy the file beside itself, with its mode; return the copy."""
    target = path.resolve()
    data, mode = target.read_bytes(), stat.S_IMODE(target.stat().st_mode)
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for number in range(1, 100):
        copy = target.with_name(f"{target.name}.backup-{stamp}{f'-{number}' if number > 1 else ''}")
        try:
            descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _NEW_MODE)
        except FileExistsError:
            continue
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)
                file.write(data)
                file.flush()
                sync_to_disk(descriptor)
        except BaseException:
            copy.unlink()
            raise
        return copy
    raise StateError(f"{target.parent} is full of backups of this second", hint="remove some")


def _holds(copy: Path, text: str, path: Path, record: _Record) -> bool:
    """Say whether a backup holds this text and nothing else but a hook of ours."""
    try:
        kept = read(copy)
        return kept is not None and withdrawn(kept, path, record.made, record.gap) == text
    except SettingsError:
        return False


def _write_record(state_dir: Path, path: Path, record: _Record) -> None:
    kept = _records(state_dir)
    kept[str(path.resolve())] = {"made": sorted(record.made), "gap": record.gap, "backups": record.backups}
    _write_records(state_dir, kept)


def _read_record(state_dir: Path, path: Path) -> _Record:
    """Return what is known of an installation. Of one that nothing is known of, what is empty goes, and no more."""
    kept = _records(state_dir).get(str(path.resolve()))
    if not isinstance(kept, dict):
        return _Record()
    made, gap, backups = kept.get("made"), kept.get("gap"), kept.get("backups")
    names = frozenset(str(name) for name in made) if isinstance(made, list) else ALL_MADE
    blank = gap if isinstance(gap, str) and not gap.strip(" \t\r\n") else ""
    return _Record(names, blank, tuple(map(str, backups)) if isinstance(backups, list) else ())


def _forget(state_dir: Path, path: Path) -> None:
    kept = _records(state_dir)
    if kept.pop(str(path.resolve()), None) is None:
        return
    if kept:
        _write_records(state_dir, kept)
    else:
        (state_dir / RECORD).unlink(missing_ok=True)


def _records(state_dir: Path) -> dict[str, object]:
    try:
        kept: object = json.loads((state_dir / RECORD).read_bytes())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _write_records(state_dir: Path, kept: dict[str, object]) -> None:
    draft = state_dir / f".{RECORD}.{secrets.token_hex(4)}.draft"
    try:
        draft.write_text(json.dumps(kept, indent=2) + "\n")
        draft.chmod(_NEW_MODE)
        draft.rename(state_dir / RECORD)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeEncodeError as error:
        raise SettingsError("the command's paths are not UTF-8", hint="choose another --state-dir") from error
    except OSError as error:
        place = error.filename or path
        raise StateError(
            f"{place} cannot be written: {error.strerror or error}",
            hint=f"see to the owner and mode of {path.parent}, and leave room on its disk",
        ) from error
