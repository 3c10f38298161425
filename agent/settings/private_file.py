"""A file that a secret stands in: it is there, and nobody else can open it. The settings name it and do not read it."""

import os
import shlex
import stat
from pathlib import Path

from agent.domain.errors import SettingsError
from agent.settings.model import PREFIX

_OTHERS = 0o077


def check_private(path: Path, key: str) -> None:
    """Check the file that a key of the tree names: a regular one, readable for us, closed to group and others.

    Raises SettingsError, with the key and the path. Symbolic links are followed; what they lead to counts.
    """
    name = f"{PREFIX}{key}"
    try:
        # A named pipe would keep a plain open waiting for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise SettingsError(f"{name}: there is no file {path}", hint=f"set {name} to the path of one") from error
    except PermissionError as error:
        raise SettingsError(
            f"{name}: no permission to read {path}", hint=f"it must be of the user who runs this: chown, {_cure(path)}"
        ) from error
    except OSError as error:
        raise SettingsError(
            f"{name}: {path} cannot be opened: {error.strerror}", hint=f"set {name} to the path of a file"
        ) from error
    try:
        mode = os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(mode):
        raise SettingsError(f"{name}: {path} is not a regular file", hint=f"set {name} to the path of one")
    if mode & _OTHERS:
        raise SettingsError(f"{name}: others can open {path} (mode {stat.S_IMODE(mode):04o})", hint=_cure(path))


def _cure(path: Path) -> str:
    return f"chmod 600 {shlex.quote(str(path))}"
