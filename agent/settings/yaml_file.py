"""Reads a settings file, and expands `${VAR}` and `${VAR:-default}`."""

import os
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from agent.domain.errors import SettingsError

MAX_BYTES = 256 * 1024

FileIdentity = tuple[int, int]
"""Device and inode: two paths with the same identity are the same file."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_CREDENTIAL = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|KEY", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SettingsFile:
    """The values of a file: None for YAML's null, an empty mapping for a mapping.

    A list has scalars, and mappings of scalars and lists of scalars. What is nested deeper is empty.

    `mode`: its permission bits. `owner`: the user who owns it.
    """

    identity: FileIdentity
    mode: int
    owner: int
    values: Mapping[str, object] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Expansion:
    """A text with expanded variables. `used`: the variables in it. `unset`: those not set and without a default."""

    text: str = field(repr=False)
    used: tuple[str, ...]
    unset: tuple[str, ...]

    @property
    def credentials(self) -> tuple[str, ...]:
        """The used variables whose names suggest that they contain a credential."""
        return tuple(name for name in self.used if _CREDENTIAL.search(name))


def expand(text: str, environ: Mapping[str, str]) -> Expansion:
    """Expand variables as a shell does: `:-` applies to unset and empty variables. Values are not expanded again."""
    found = [(match[1], match[2]) for match in _VARIABLE.finditer(text)]
    return Expansion(
        text=_VARIABLE.sub(lambda match: environ.get(match[1]) or match[2] or "", text),
        used=tuple(name for name, _ in found),
        unset=tuple(name for name, default in found if default is None and name not in environ),
    )


def identity_of(path: Path) -> FileIdentity | None:
    """Return the identity of the file at a path, None if it does not exist."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def read_settings_file(path: Path, *, name: str, wanted: Callable[[str], bool]) -> SettingsFile | None:
    """Return the wanted top-level values of a file, None if it does not exist.

    Raises SettingsError, with `name`, if the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        # A named pipe would block a plain open.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise SettingsError(f"{name} is not a regular file", hint="settings files are YAML files")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(name, error) from error
    finally:
        os.close(descriptor)
    return parse_settings_file(data, name=name, wanted=wanted, status=found)


def parse_settings_file(
    data: bytes, *, name: str, wanted: Callable[[str], bool], status: os.stat_result | None = None
) -> SettingsFile:
    """Return the wanted top-level values of a file's bytes. Without its status, this user owns it and nobody opens it.

    Raises SettingsError as `read_settings_file` does.
    """
    if len(data) > MAX_BYTES:
        raise SettingsError(f"{name} is larger than {MAX_BYTES:,} bytes", hint="settings files are short YAML files")
    from agent.settings.yaml_values import top_level  # noqa: PLC0415 - importing yaml takes 10 ms, as long as Python's start

    values = top_level(data, name, wanted)
    if status is None:
        return SettingsFile((0, 0), 0, os.geteuid(), values)
    return SettingsFile((status.st_dev, status.st_ino), stat.S_IMODE(status.st_mode), status.st_uid, values)


def _unreadable(name: str, error: Exception) -> SettingsError:
    reason = error.strerror if isinstance(error, OSError) else "not a path"
    return SettingsError(f"{name} cannot be read: {reason}", hint="make it readable, or remove it")
