"""The commands of `akosha-agent hook`. Light: what a command needs is imported by it."""

import typer

hook = typer.Typer(
    help="What a coding assistant runs when a session ends: it tells the agent, and costs nothing.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@hook.callback()
def _commands() -> None:
    pass
