"""The options that many commands share. `command` is apart: `akosha-agent --help` does without what that imports."""

from pathlib import Path
from typing import Annotated

import typer

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Where the memory databases are. Default: Session-Buddy's data_dir, else ~/.claude/data",
        show_default=False,
        readable=False,  # the agent reports a directory that it may not read, and waits until it may
    ),
]
StateDir = Annotated[
    Path | None, typer.Option("--state-dir", help="Where the agent keeps its ledger and copies.", show_default=False)
]
SettingsFile = Annotated[
    Path | None, typer.Option("--settings", help="A settings file (YAML), before all other files.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log to standard error what is done.")]
System = Annotated[
    str | None,
    typer.Option("--system", metavar="SYSTEM", help="Another machine's uploads, by its system id.", show_default=False),
]
