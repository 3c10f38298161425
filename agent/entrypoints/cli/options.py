"""Options that several commands share. Separate from `command`, whose imports `akosha-agent --help` does not need."""

from pathlib import Path
from typing import Annotated

import typer

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Directory of the memory databases. Default: Session-Buddy's data_dir, else ~/.claude/data",
        show_default=False,
        readable=False,  # the agent reports an unreadable directory and waits until it is readable
    ),
]
StateDir = Annotated[
    Path | None,
    typer.Option("--state-dir", help="Directory for the agent's ledger and staged copies.", show_default=False),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", help="Settings file (YAML); overrides all other settings files.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log to standard error.")]
System = Annotated[
    str | None,
    typer.Option(
        "--system",
        metavar="SYSTEM",
        help="Use the uploads of this system ID instead of this machine's.",
        show_default=False,
    ),
]
