"""What keeps the agent at work: the agent itself, the service, the hook; and the versions of everything."""

import platform
import re
import shlex
from importlib import metadata

from agent import __version__
from agent.bootstrap.doctor import aside
from agent.entrypoints.doctor.context import CheckContext
from agent.entrypoints.doctor.findings import Finding, Level, error, ok, skipped, warning
from agent.entrypoints.hook.claude_settings import settings_file
from agent.entrypoints.hook.command_line import HookCommand
from agent.entrypoints.hook.status import TOO_OLD, installed_hook, runs_args
from agent.entrypoints.service import look as look_at_service
from agent.settings.sources import COMMAND_LINE

AGENT, SERVICE, HOOK, VERSIONS = "agent", "service", "session-end hook", "versions"
WARNINGS = "warnings"

START = "akosha-agent service install (or, where it is installed, service start); by hand: akosha-agent run"
RESTART = "akosha-agent service restart"
INSTALL_HOOK = "akosha-agent hook install"
SHOWN = ("duckdb", "botocore", "aioboto3", "nats-py", "watchfiles", "httpx2", "pydantic")
"""Libraries whose versions matter when something is wrong."""

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_LEAST, _BELOW = re.compile(r">=\s*([0-9.]+)"), re.compile(r"<\s*([0-9.]+)")


async def agent(ground: CheckContext) -> list[Finding]:
    """Does one run here, does it answer, is all well with it, and is it of this version?"""
    holder = await ground.examination.holder()
    if holder is None:
        return [warning(AGENT, "none runs here: nothing is uploaded by itself", cure=START)]
    if holder.command != "run":
        return [ok(AGENT, f"{holder} is at work; an agent may start when it is done")]
    try:
        health = await ground.examination.health()
    except OSError as why:
        if await ground.examination.is_stopped(holder):
            return [error(AGENT, f"{holder} does not answer: it is stopped", cure=f"kill -CONT {holder.pid}")]
        text = f"{holder} does not answer at its control socket: {why.strerror or why}"
        return [error(AGENT, text, cure=f"{RESTART}, or end process {holder.pid} and start it again")]
    if health is None:
        text = f"{holder} has no control socket: an earlier version, or a path too long for one"
        return [warning(AGENT, text, cure=f"{RESTART}; or set akosha_agent_state_dir to a shorter path")]
    if health.trouble:
        return [error(AGENT, f"{holder} says: {health.trouble}", cure=f"akosha-agent status says more; then {RESTART}")]
    if health.version != __version__:
        text = f"{holder} is of version {health.version or 'unknown'}, this is {__version__}"
        return [warning(AGENT, text, cure=RESTART)]
    return [ok(AGENT, f"{holder} runs and answers, version {health.version}")]


async def warnings(ground: CheckContext) -> list[Finding]:
    """Report each lasting condition: notes that wait for an agent, and what the agent has recorded."""
    found = await ground.examination.warnings()
    if not found:
        return [ok(WARNINGS, "none is recorded, and no note waits for an agent")]
    return [warning(WARNINGS, one.message, cure=one.hint or "akosha-agent status", detail=one.code) for one in found]


async def service(ground: CheckContext) -> list[Finding]:
    """Not installed is a warning: an agent may be run in other ways. An agent that runs by hand stands in for it."""
    standing = await aside(lambda: look_at_service(ground.home, ground.environ))
    cure = standing.cure or "akosha-agent service install"
    if standing.path is None or not standing.keeper:
        return [skipped(SERVICE, standing.detail)]
    if not standing.installed:
        return [warning(SERVICE, standing.detail, cure=cure)]
    told = f"{standing.keeper}: {standing.detail}" if standing.detail else standing.keeper
    if standing.cure:
        by_hand = await ground.examination.holder() is not None
        level = Level.WARNING if standing.running or by_hand else Level.ERROR
        return [Finding(name=SERVICE, level=level, found=told, cure=cure, detail=standing.last_exit)]
    remark = " (its file was edited by hand)" if standing.edited else ""
    return [ok(SERVICE, f"{told}{remark}", detail=standing.linger)]


async def hook(ground: CheckContext) -> list[Finding]:
    found = await aside(lambda: installed_hook(settings_file(ground.environ, ground.home)))
    if found.error:
        cure = f"correct {found.path}, then {_install_hook(ground)}"
        return [error(HOOK, found.error, cure=cure)]
    if not found.commands:
        text = f"not in {found.path}: a session's end is noticed by the files alone"
        return [warning(HOOK, text, cure=_install_hook(ground))]
    if found.hooks_disabled:
        cure = "take disableAllHooks out of it"
        return [warning(HOOK, f"{found.path} has Claude Code run no hooks (disableAllHooks)", cure=cure)]
    return await aside(lambda: [_judged(command, ground) for command in found.commands])


def _install_hook(ground: CheckContext) -> str:
    """Return the command, with the state directory where the settings alone do not name it."""
    given = ground.origins.get("agent_state_dir") == COMMAND_LINE
    return f"{INSTALL_HOOK} --state-dir {shlex.quote(str(ground.settings.agent_state_dir))}" if given else INSTALL_HOOK


def _judged(command: HookCommand, ground: CheckContext) -> Finding:
    state = ground.settings.agent_state_dir
    if command.missing:
        return error(HOOK, f"there is no program {command.program[0]} (any more)", cure=_install_hook(ground))
    theirs = command.state_dir
    if theirs is None or theirs.resolve() != state.resolve():
        text = f"it leaves its notes in {theirs or 'the default state directory'}, the agent looks in {state}"
        return error(HOOK, text, cure=_install_hook(ground))
    if command.with_args and runs_args(ground.environ) is False:
        return error(HOOK, TOO_OLD, cure=_install_hook(ground))
    return ok(HOOK, f"installed: {command}")


async def versions(_ground: CheckContext) -> list[Finding]:
    """Everything that a report should name; what is older than this agent needs, or missing, is an error."""
    return await aside(_versions)


def _versions() -> list[Finding]:
    found = {name: _version(name) for name in SHOWN}
    told = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    system = f"Python {platform.python_version()}, {platform.platform()}"
    wrong = []
    for name, least, below in _needed():
        version = _version(name)
        if not version:
            wrong.append(f"{name} is missing")
        elif _numbers(version) < _numbers(least):
            wrong.append(f"{name} {version} is older than {least}")
        elif below and _numbers(version) >= _numbers(below):
            wrong.append(f"{name} {version} is not older than {below}")
    if wrong:
        cure = (
            "install akosha-agent again: uv tool upgrade akosha-agent, pipx reinstall akosha-agent, or pip install -U"
        )
        return [
            error(VERSIONS, f"akosha-agent {__version__}: {', '.join(wrong)}", cure=cure, detail=f"{system}; {told}")
        ]
    return [ok(VERSIONS, f"akosha-agent {__version__}, {system}", detail=told)]


def _needed() -> list[tuple[str, str, str]]:
    """Return name, least version and the first that is too new ("": none) of what every installation needs.

    Nothing where it runs from its sources.
    """
    try:
        needed = metadata.requires("akosha-agent") or []
    except metadata.PackageNotFoundError:
        return []
    found = []
    for line in needed:
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
        numbers.pop()  # 2.0 is 2
    return tuple(numbers)
