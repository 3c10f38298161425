"""Is a process stopped, so that it cannot answer? The kernel says so; nothing is sent to the process."""

import subprocess
from pathlib import Path

_STOPPED = "Tt"
_PS_SECONDS = 2.0


def is_stopped(pid: int) -> bool:
    """Say whether a process is stopped (SIGSTOP, Ctrl-Z, a debugger). False where there is none. Blocks for moments."""
    try:
        # Its second field is the program's name in parentheses, which may hold anything.
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        state = _state_by_ps(pid)
    return state[:1] in tuple(_STOPPED)


def _state_by_ps(pid: int) -> str:
    """Where there is no /proc (macOS)."""
    try:
        done = subprocess.run(  # noqa: S603 - a fixed program, a number
            ["/bin/ps", "-o", "state=", "-p", str(int(pid))],
            capture_output=True,
            text=True,
            timeout=_PS_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
