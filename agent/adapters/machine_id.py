"""The operating system's machine ID; if there is none, a random ID that is kept in the state directory."""

import platform
import re
import secrets
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agent.adapters.fs import create_atomically
from agent.domain.errors import StateError

FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
OWN = "machine-id"
"""The file in the state directory."""

_ID = re.compile(r"[0-9a-f]{32}")
_IOREG = ("/usr/sbin/ioreg", "-rd1", "-c", "IOPlatformExpertDevice")
_UUID = re.compile(r'"IOPlatformUUID" = "([0-9A-Fa-f-]{36})"')
_IOREG_SECONDS = 5.0


def machine_id(state_dir: Path, *, files: Sequence[Path] = FILES) -> str:
    """Return the machine's ID. Blocks. Raises StateError if a random ID cannot be read or written.

    Before the first start, the state directory does not exist and is not created: each call returns another random ID.
    No system ID can have been claimed with it yet.
    """
    for path in files:
        with suppress(OSError, UnicodeDecodeError):
            if _ID.fullmatch(text := path.read_text().strip()) and text.strip("0"):
                return text
    return _of_macos() or _own(state_dir / OWN)


def _of_macos() -> str:
    if platform.system() != "Darwin":
        return ""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(_IOREG, capture_output=True, text=True, timeout=_IOREG_SECONDS, check=True)  # noqa: S603
        if found := _UUID.search(done.stdout):
            return found[1].lower()
    return ""


def _own(path: Path) -> str:
    """Return the random ID in the state directory; create it once. If several processes create it, one of them wins."""
    if not path.parent.exists():
        return secrets.token_hex(16)
    try:
        for _ in range(2):
            with suppress(FileNotFoundError):
                if _ID.fullmatch(text := path.read_text().strip()):
                    return text
                path.unlink()
            create_atomically(path, f"{secrets.token_hex(16)}\n".encode())
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(
            f"{path} cannot be created or read: {getattr(error, 'strerror', '') or type(error).__name__}",
            hint="make the state directory writable for this user, or set akosha_agent_state_dir",
        ) from error
