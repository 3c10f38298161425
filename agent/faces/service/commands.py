"""The commands of `akosha-agent service`. Light: what a command needs is imported by it."""

import typer

service = typer.Typer(
    help="The agent as a service of this user: systemd on Linux, launchd on macOS.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@service.callback()
def _commands() -> None:
    pass
