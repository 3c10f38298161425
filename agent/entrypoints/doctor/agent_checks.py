"""Checks of the running agent, its warnings, the service, the hook, and all versions."""

import platform
import re
import shlex
from importlib import metadata

from agent import __version__
from agent.adapters.unix_http import agent_health
from agent.application.monitoring.status import VerifyStatus
from agent.application.status_warnings import warnings_in
from agent.bootstrap.home import RUN
from agent.domain.plain_text import problem_list
from agent.domain.routing import CLOUD
from agent.domain.status_warning import StatusWarning
from agent.entrypoints.doctor.context import DoctorContext, in_thread
from agent.entrypoints.doctor.findings import Finding, Level, error, ok, skipped, warning
from agent.entrypoints.hook.claude_settings import settings_file
from agent.entrypoints.hook.hook_command import HookCommand
from agent.entrypoints.hook.status import TOO_OLD, UNINSTALL, installed_hook, runs_args
from agent.entrypoints.installation import REINSTALL
from agent.entrypoints.service.status import service_status
from agent.settings.sources import COMMAND_LINE

AGENT, SERVICE, HOOK, VERSIONS = "agent", "service", "session-end hook", "versions"
WARNINGS = "warnings"

START = "akosha-agent service install (if it is installed: akosha-agent service start), or akosha-agent run"
RESTART = "akosha-agent service restart"
SHOWN = ("duckdb", "botocore", "aiobotocore", "nats-py", "watchfiles", "httpx2", "pydantic")
"""Libraries whose versions are reported."""

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_LEAST, _BELOW = re.compile(r">=\s*([0-9.]+)"), re.compile(r"<\s*([0-9.]+)")


async def agent(context: DoctorContext) -> list[Finding]:
    """Check whether an agent is running and answers, its health, and its version."""
    home = context.home
    holder = await in_thread(home.holder)
    if holder is None:
        return [warning(AGENT, "not running: nothing is uploaded automatically", hint=START)]
    if holder.command != RUN:
        return [ok(AGENT, f"{holder} is running; an agent can start when it has ended")]
    try:
        path = home.state.path.absolute()
        health = await in_thread(lambda: agent_health(path, context.step_seconds))
    except OSError as problem:
        if await in_thread(lambda: home.is_suspended(holder.pid)):
            return [error(AGENT, f"{holder} does not answer: it is suspended", hint=f"kill -CONT {holder.pid}")]
        text = f"{holder} does not answer on its control socket: {problem.strerror or problem}"
        return [error(AGENT, text, hint=f"{RESTART}, or kill process {holder.pid} and start it again")]
    if health is None:
        text = f"{holder} has no control socket: its version is too old, or the path of the socket is too long"
        return [warning(AGENT, text, hint=f"{RESTART}; or set akosha_agent_state_dir to a shorter path")]
    if health.trouble:
        return [error(AGENT, f"{holder} is stuck: {health.trouble}", hint=f"see akosha-agent status; then {RESTART}")]
    if health.version != __version__:
        text = f"{holder} has version {health.version or 'unknown'}, this command has {__version__}"
        return [warning(AGENT, text, hint=RESTART)]
    return [ok(AGENT, f"{holder} is running and answers, version {health.version}")]


async def warnings(context: DoctorContext) -> list[Finding]:
    """Report notes that wait for an agent, the warnings recorded in the ledger, and a damaged newest upload."""
    home = context.home
    found = await home.waiting_notes()
    if await home.has_ledger():
        ledger = await home.read_ledger()
        try:
            notes = await ledger.notes()
            cloud = home.targets(await in_thread(home.prepare)).get(CLOUD)
            newest = (await ledger.record(cloud)).newest_upload_id if cloud else None
        finally:
            await ledger.aclose()
        found = (*found, *warnings_in(notes))
        last = VerifyStatus.from_notes(notes, cloud) if cloud else None
        if last and not last.whole:
            problems = problem_list(last.problems)
            text = f"the last check found upload {last.upload_id} damaged: {problems}"
            hint = "akosha-agent sync sends it again"
            if newest not in (None, last.upload_id):
                hint = f"akosha-agent verify examines the upload after it, {newest}"
            found = (*found, StatusWarning(code="verified", message=text, hint=hint))
    if not found:
        return [ok(WARNINGS, "none recorded, and no notes wait for an agent")]
    return [warning(WARNINGS, one.message, hint=one.hint or "akosha-agent status", detail=one.code) for one in found]


async def service(context: DoctorContext) -> list[Finding]:
    """Check the service. It is a warning if it is not installed, or does not run but an agent does; else an error."""
    status = await in_thread(lambda: service_status(context.user_home, context.environ))
    hint = status.hint or "akosha-agent service install"
    if status.path is None or not status.manager:
        return [skipped(SERVICE, status.detail)]
    if not status.installed:
        return [warning(SERVICE, status.detail, hint=hint)]
    text = f"{status.manager}: {status.detail}" if status.detail else status.manager
    if status.hint:
        runs = status.running or await in_thread(context.home.holder) is not None
        level = Level.WARNING if runs else Level.ERROR
        return [Finding(name=SERVICE, level=level, found=text, hint=hint, detail=status.last_exit)]
    edited = " (its file was edited by hand)" if status.edited else ""
    return [ok(SERVICE, f"{text}{edited}", detail=status.linger)]


async def hook(context: DoctorContext) -> list[Finding]:
    """Check that the hook or the plugin notifies the agent of this state directory."""
    file = settings_file(context.environ, context.user_home)
    installed = await in_thread(lambda: installed_hook(file, context.environ, context.user_home))
    if installed.error:
        return [error(HOOK, installed.error, hint=f"correct {installed.path}, then {_install_hook(context)}")]
    plugin = installed.plugin
    if not installed.commands and plugin is None:
        text = f"not installed in {installed.path}: the agent is not notified when a session ends"
        return [warning(HOOK, text, hint=_install_hook(context))]
    if installed.hooks_disabled:
        text = f"hooks are disabled in {installed.path} (disableAllHooks)"
        return [warning(HOOK, text, hint="remove disableAllHooks from that file")]
    if plugin is not None:
        problem = await in_thread(lambda: plugin.problem(context.settings.agent_state_dir))
        if problem is None:
            detail = f"{UNINSTALL} removes it from there" if installed.commands else ""
            return [ok(HOOK, f"installed by the plugin {plugin.id}{installed.twice}", detail=detail)]
        if not installed.commands:
            return [error(HOOK, problem[0], hint=problem[1])]
    return await in_thread(lambda: [_hook_command(command, context) for command in installed.commands])


def _install_hook(context: DoctorContext) -> str:
    """Return the install command, with the state directory if it was given on the command line."""
    given = context.origins.get("agent_state_dir") == COMMAND_LINE
    state = f" --state-dir {shlex.quote(str(context.settings.agent_state_dir))}" if given else ""
    return f"akosha-agent hook install{state}"


def _hook_command(command: HookCommand, context: DoctorContext) -> Finding:
    state, hint = context.settings.agent_state_dir, _install_hook(context)
    if command.missing:
        return error(HOOK, f"{command.missing} does not exist or cannot be executed", hint=hint)
    written_to = command.state_dir
    if written_to is None or written_to.resolve() != state.resolve():
        text = f"it writes its notes to {written_to or 'the default state directory'}, but the agent reads {state}"
        return error(HOOK, text, hint=hint)
    if command.with_args and runs_args(context.environ) is False:
        return error(HOOK, TOO_OLD, hint=hint)
    return ok(HOOK, f"installed: {command}")


async def versions(_context: DoctorContext) -> list[Finding]:
    """Report all versions. A missing library, or one with an unsupported version, is an error."""
    return await in_thread(_versions)


def _versions() -> list[Finding]:
    shown = ", ".join(f"{name} {_version(name) or 'missing'}" for name in SHOWN)
    system = f"Python {platform.python_version()}, {platform.platform()}"
    problems = []
    for name, least, below in _required():
        version = _version(name)
        if not version:
            problems.append(f"{name} is missing")
        elif _numbers(version) < _numbers(least):
            problems.append(f"{name} {version} is older than {least}")
        elif below and _numbers(version) >= _numbers(below):
            problems.append(f"{name} {version} is not older than {below}")
    if not problems:
        return [ok(VERSIONS, f"akosha-agent {__version__}, {system}", detail=shown)]
    text = f"akosha-agent {__version__}: {', '.join(problems)}"
    return [error(VERSIONS, text, hint=REINSTALL, detail=f"{system}; {shown}")]


def _required() -> list[tuple[str, str, str]]:
    """Return name, lowest version and first unsupported version ("" if none) of each required library.

    Empty if the agent runs from its sources.
    """
    try:
        required = metadata.requires("akosha-agent") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in required:
        name, least, below = _NAME.match(line), _LEAST.search(line), _BELOW.search(line)
        if ";" not in line and name and least:
            found.append((name[0], least[1], below[1] if below else ""))
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.findall(r"\d+", version.partition("+")[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()  # 2.0 equals 2
    return tuple(numbers)
