"""`demo`: a demonstration on a scratch database."""

from typing import Annotated

import typer

from agent.entrypoints.cli.command import CommandGroup
from agent.entrypoints.demo.run import run_demo

app = CommandGroup()


@app.command()
def demo(
    keep: Annotated[bool, typer.Option("--keep", help="Keep the scratch directory for inspection.")] = False,
) -> int:
    """Demonstrate the agent with a scratch database and a local directory as the bucket."""
    return run_demo(keep=keep)
