"""`doctor`: takes all looks at once, prints what was found, and ends with what it is worth."""

import json
from collections.abc import Sequence
from pathlib import Path

import typer

from agent.domain.errors import SettingsError
from agent.entrypoints import logs
from agent.entrypoints.cli.command import read_settings, verbose
from agent.entrypoints.doctor.context import CheckContext
from agent.entrypoints.doctor.findings import Finding, examine, exit_code
from agent.entrypoints.doctor.registry import ALL, Entry, checks
from agent.entrypoints.doctor.screen import document, show

SECONDS = 20.0
"""For all checks together: each has as long, for they are made side by side."""


def ground_of(data_dir: Path | None, state_dir: Path | None, settings_file: Path | None) -> CheckContext:
    """Read the settings; where they are wrong, what is left without them.

    What would be logged is among the findings: nothing is, without `-v`.
    """
    logs.configure("WARNING" if verbose() else logs.NOTHING, "auto")
    try:
        loaded = read_settings(data_dir, state_dir, settings_file, cwd=Path.cwd(), quiet=True)
    except SettingsError as trouble:
        return CheckContext.despite(trouble, data_dir, state_dir)
    return CheckContext.of(loaded)


async def look_around(
    ground: CheckContext, entries: Sequence[Entry] = ALL, *, seconds: float = SECONDS
) -> list[tuple[str, Finding]]:
    """Make the checks; return (group, finding) in their order."""
    try:
        return await examine(checks(ground, entries), seconds=seconds)
    finally:
        await ground.examination.aclose()


async def diagnose(ground: CheckContext, *, as_json: bool) -> int:
    """Print what was found. Returns 0 (well), 1 (warnings) or 2 (errors)."""
    found = await look_around(ground)
    if as_json:
        typer.echo(json.dumps(document(found), indent=2, ensure_ascii=False))
    else:
        show(found)
    return exit_code([finding for _, finding in found])
