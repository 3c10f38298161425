"""Runs the hook of session ends, and waits for its child."""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any


def run_hook(words: Sequence[object], *, data: bytes = b"", to_the_end: bool = True, **how: Any) -> Any:
    """Run the hook with `data` on its standard input; return the completed process.

    Its child, which writes the note, may outlive it on a busy machine: return when the child has ended, too, unless
    `to_the_end` is False. `data` is complete before the hook starts, as Claude Code's is, so that a busy test process
    does not delay the hook.
    """
    reading, writing = os.pipe()
    try:
        with tempfile.TemporaryFile() as stdin:
            stdin.write(data)
            stdin.seek(0)
            streams = {"stdin": stdin, "capture_output": True, "pass_fds": (writing,)}
            done = subprocess.run([str(word) for word in words], **streams | how)
        os.close(writing)
        if to_the_end:
            os.read(reading, 1)  # EOF: no process of the hook is left
    finally:
        os.close(reading)
    return done
