"""`demo`: the product at work on a scratch database."""

from typing import Annotated

import typer

from agent.entrypoints.cli.command import CommandGroup
from agent.entrypoints.demo.run import run_demo

app = CommandGroup()


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep the scratch directory for inspection.")] = False,
) -> int:
    """Show how it works: a scratch database, the agent, a directory as the cloud."""
    return run_demo(keep=keep)
