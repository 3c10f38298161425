"""What `init` offers besides the settings: the service, the session-end hook, and the MCP server of an assistant."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import typer

from agent.domain.errors import AkoshaError
from agent.entrypoints.cli.command import Options
from agent.entrypoints.hook import commands as hook_commands
from agent.entrypoints.hook.claude_settings import settings_file
from agent.entrypoints.hook.plugin import Plugin
from agent.entrypoints.hook.status import installed_hook
from agent.entrypoints.init.dialogue import confirm, say
from agent.entrypoints.service import commands as service_commands
from agent.entrypoints.service.program import NAME, program
from agent.entrypoints.service.status import service_status
from agent.settings import Settings

MCP_ADD_SECONDS = 60.0
"""Limit for `claude mcp add`."""

MCP_GET_SECONDS = 15.0
"""Limit for `claude mcp get`, for which the dialogue waits. It starts the server that it finds."""

MCP_ADD = f"claude mcp add --scope user {NAME} -- {NAME} mcp"

Installation = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What to install: as an option says, or else as the user answers; without `ask`, nothing."""

    service: bool | None
    hook: bool | None
    mcp: bool | None
    ask: bool

    def wants(self, flag: bool | None, question: str, is_offered: Callable[[], bool]) -> bool:
        """Return the option's answer, or that of the user to a question that applies."""
        return flag if flag is not None else self.ask and is_offered() and confirm(question, default=True)


def wanted_installations(settings: Settings, *, changed: bool, flags: Wishes) -> list[Installation]:
    """Ask what to install, and return it as functions, which raise AkoshaError. Nothing is installed yet.

    A service that runs is restarted if settings have changed. A plugin of Claude Code has the hook and the MCP server.
    """
    status, wanted = service_status(Path.home(), os.environ), list[Installation]()
    if flags.ask and None in (flags.service, flags.hook, flags.mcp) and (reason := _why_not_permanent()):
        say(f"service, hook and MCP server are not offered: {reason}")
        flags = replace(flags, ask=False)
    question = "Run the agent as a service, from now on and at every login?"
    if flags.wants(flags.service, question, lambda: status.reachable and bool(status.manager) and not status.installed):
        wanted.append(install_service)
    elif flags.service is None and flags.ask and status.manager and not status.reachable:
        say(f"the service is not offered: {status.manager} cannot be reached (akosha-agent service status)")
    if status.running and changed:
        wanted.append(service_commands.restart)
    question = "Install the hook that starts a sync when a session of Claude Code ends?"
    found = installed_hook(settings_file(os.environ, Path.home()), os.environ, Path.home())
    plugin = found.plugin
    if flags.wants(flags.hook, question, lambda: not found.commands and plugin is None):
        wanted.append(lambda: hook_commands.install(settings))
    question = "Add the agent's MCP server to Claude Code?"
    if flags.wants(flags.mcp, question, lambda: plugin is None and _claude_path() is not None and _lacks_mcp()):
        wanted.append(_install_mcp if plugin is None else lambda: _name_plugin(plugin))
    return wanted


def _name_plugin(plugin: Plugin) -> None:
    say(f"the MCP server is not added: the plugin {plugin.id} of Claude Code has it")


def _why_not_permanent() -> str:
    """Return why this installation cannot be started later, as by uvx; "" if it can."""
    try:
        program(Path.home(), os.environ)
    except AkoshaError as error:
        return str(error)
    return ""


def install_service() -> None:
    """Install the service. It warns about what this shell has and the service lacks."""
    service_commands.install(Options())


def _install_mcp() -> None:
    """Add the MCP server to Claude Code for all projects; without Claude Code, print what other assistants need."""
    words = (*program(Path.home(), os.environ), "mcp")
    if _claude_path() is None:
        command, *arguments = words
        document = {"mcpServers": {NAME: {"command": command, "args": arguments}}}
        typer.echo(f"Claude Code is not installed. Add this to the settings of your assistant:\n{json.dumps(document)}")
        return
    done = _claude("mcp", "add", "--scope", "user", NAME, "--", *words, seconds=MCP_ADD_SECONDS)
    if done.returncode:
        reason = (done.stderr or done.stdout).strip()
        raise AkoshaError(
            f"Claude Code did not add the MCP server: {reason}",
            hint=MCP_ADD,
        )
    typer.echo(f"added the MCP server {NAME} to Claude Code, for all projects")


def _lacks_mcp() -> bool:
    """Return whether Claude Code does not know the MCP server. Starts Claude Code; if that fails, prints the reason."""
    try:
        return _claude("mcp", "get", NAME, seconds=MCP_GET_SECONDS).returncode != 0
    except AkoshaError as error:
        say(f"akosha-agent: {error}", err=True)
        return False


def _claude_path() -> str | None:
    return shutil.which("claude")


def _claude(*words: str, seconds: float) -> "subprocess.CompletedProcess[str]":
    program_path = _claude_path()
    assert program_path is not None
    try:
        return subprocess.run(  # noqa: S603 - the user's own program, by its path
            [program_path, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it did not end within {seconds:g} s"
        raise AkoshaError(f"Claude Code cannot be run: {reason}", hint=f"later: {MCP_ADD}") from error
