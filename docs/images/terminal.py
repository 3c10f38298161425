#!/usr/bin/env python3
"""Makes terminal.svg: real commands on a scratch home, while the demo's writer has the databases open.

python docs/images/terminal.py
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from agent.entrypoints.demo.processes import environment

PICTURE = Path(__file__).with_name("terminal.svg")
SHOWN_HOME = "/home/me"
COMMANDS = (
    "akosha-agent sync",
    "akosha-agent status",
    "akosha-agent verify --deep",
    "akosha-agent restore --to ~/restored",
)


def run(commands: tuple[str, ...], home: Path) -> Text:
    """Run the commands with a scratch home; return them and what they print."""
    data = home / ".claude" / "data"
    data.mkdir(parents=True)
    settings = {"SESSION_BUDDY_AKOSHA_CLOUD_ENDPOINT": (home / "nas").as_uri(), "AKOSHA_SYSTEM_ID": "laptop"}
    variables = environment(home, settings)
    shown = Text()
    writer_command = [sys.executable, "-m", "agent.entrypoints.demo.writer", str(data)]
    with subprocess.Popen(writer_command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:  # noqa: S603
        assert writer.stdin is not None
        assert writer.stdout is not None
        for order in ("commit 100", "graph 4"):
            writer.stdin.write(f"{order}\n")
            writer.stdin.flush()
            writer.stdout.readline()
        for command in commands:
            words = [sys.executable, "-m", "agent", *shlex.split(command)[1:]]
            words = [word.replace("~", str(home)) for word in words]
            done = subprocess.run(words, env=variables, cwd=home, capture_output=True, text=True, check=True)  # noqa: S603
            shown.append("$ ", "green").append(f"{command}\n", "bold")
            shown.append(done.stdout.replace(str(home), SHOWN_HOME)).append("\n")
        writer.communicate("close\n")
    shown.rstrip()
    return shown


def svg(text: Text) -> str:
    """Return the picture of a terminal with this text. It loads nothing from the internet."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=92, file=nowhere, highlight=False)
        console.print(text)
    drawn = console.export_svg(title="akosha-agent", theme=MONOKAI, unique_id="terminal")
    return re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        PICTURE.write_text(svg(run(COMMANDS, Path(scratch).resolve())), encoding="utf-8")
