"""The machine's id as its operating system keeps it; where it keeps none, a random one in the state directory."""

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
    """Return the machine's id. Blocks. Raises StateError where one has to be kept and cannot be.

    Before the first start there is no state directory to keep one in, and nothing is made: the id is a new one each
    time. No claim can have been made with it.
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
        said = subprocess.run(_IOREG, capture_output=True, text=True, timeout=_IOREG_SECONDS, check=True)  # noqa: S603
        if found := _UUID.search(said.stdout):
            return found[1].lower()
    return ""


def _own(path: Path) -> str:
    """Return the random id kept in the state directory, made once; of processes that make it together, one wins."""
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
            f"{path} cannot be made or read: {getattr(error, 'strerror', '') or type(error).__name__}",
            hint="make the state directory writable for this user, or set akosha_agent_state_dir",
        ) from error
