"""The commands, their arguments and options: what `--help` prints."""

import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import typer

from agent.entrypoints.cli import command as common
from agent.entrypoints.cli.app import COMMANDS, app
from docs.generator.markdown import code, codes, page, table

PROGRAM = "akosha-agent"
COMMON = ("data_dir", "state_dir", "settings_file", "verbose")
INTRODUCTION = f"""\
`{PROGRAM} COMMAND --help` prints the same text. Exit codes: 0 if the command succeeded or had nothing to do, 1 if it
failed, 2 for a usage error or an invalid setting. A command with other exit codes lists them below. Results go to
standard output, messages to standard error."""


def text() -> str:
    """Return the page."""
    root = typer.main.get_command(app)
    context = typer.Context(root, info_name=PROGRAM)
    overview = table(("command", "summary"), [(_link(name), summary) for name, (_, summary) in COMMANDS.items()])
    blocks = [INTRODUCTION, overview, f"## {PROGRAM}", _help(root), _parameters(root, context)]
    blocks += ["## Common options", "Most commands accept these.", _common_options()]
    for name, (module, _) in COMMANDS.items():
        command = typer.main.get_command(import_module(f"agent.entrypoints.{module}").app)
        blocks += _command(command, typer.Context(command, info_name=name, parent=context), level=2)
    return page("Command line", "the commands in agent/entrypoints", *blocks)


def _command(command: Any, context: typer.Context, level: int) -> Iterator[str]:
    yield f"{'#' * level} {context.command_path}"
    yield _help(command)
    yield f"```text\n{' '.join((context.command_path, *command.collect_usage_pieces(context)))}\n```"
    if own := _parameters(command, context):
        yield own
    shared = [parameter for parameter in command.params if parameter.name in COMMON]
    if shared:
        yield f"Common options: {codes(max(parameter.opts, key=len) for parameter in shared)}."
    for name, inner in getattr(command, "commands", {}).items():
        yield from _command(inner, typer.Context(inner, info_name=name, parent=context), level + 1)


def _parameters(command: Any, context: typer.Context) -> str:
    own = [parameter for parameter in command.params if parameter.name not in (*COMMON, "help")]
    arguments = [one for one in own if one.param_type_name == "argument"]
    rows = [(code(name.removesuffix(" <str>")), meaning) for name, meaning in _records(arguments, context)]
    rows += [(code(name), meaning) for name, meaning in _records([one for one in own if one not in arguments], context)]
    return table(("argument or option", "meaning"), rows) if rows else ""


def _records(parameters: list[Any], context: typer.Context) -> list[tuple[str, str]]:
    return [record for parameter in parameters if (record := parameter.get_help_record(context))]


def _common_options() -> str:
    def function(settings: common.Options) -> None:
        """Take the common options."""

    group = common.CommandGroup()
    group.command()(function)
    command = typer.main.get_command(group)
    context = typer.Context(command, info_name=PROGRAM)
    records = _records(command.params, context)
    return table(("option", "meaning"), [(code(name), meaning) for name, meaning in records])


def _help(command: Any) -> str:
    return inspect.cleandoc(command.help or "").replace("\b\n", "")


def _link(name: str) -> str:
    return f"[`{PROGRAM} {name}`](#{PROGRAM}-{name})"
