"""The status of the service: installed, enabled, running. For `service status` and `doctor`."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from agent.domain.errors import AkoshaError
from agent.entrypoints.service import service_file
from agent.entrypoints.service.manager import Runner, ServiceManager, ServiceState
from agent.entrypoints.service.service_file import FileState

_WRONG_SETTINGS = "2"


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The status of this user's service.

    `outdated`: `service install` would write another file (a newer template), or the service's program is missing.
    `edited`: the file was changed since it was installed. `path`: the file's path, even if it does not exist; None on a
    platform without services. `detail`: the problem, or the state, on one line. `hint`: the command that fixes the
    problem. `manager`: systemd or launchd; "" on a platform without services. `reachable`: whether the manager answers;
    otherwise `enabled` and `running` are False because they are unknown.
    """

    installed: bool
    enabled: bool
    running: bool
    outdated: bool
    path: Path | None
    detail: str
    hint: str = ""
    edited: bool = False
    manager: str = ""
    pid: int | None = None
    since: datetime | None = None
    last_exit: str = ""
    linger: str = ""
    reachable: bool = True

    def document(self) -> dict[str, object]:
        """Return the document of `service status --json`."""
        names = {"manager": "keeper", "hint": "cure"}
        return {names.get(name, name): value for name, value in asdict(self).items()}


def service_manager(home: Path, runner: Runner, platform: str = "") -> ServiceManager:
    """Return the manager of a platform, by default of this one. Raises AkoshaError if it is not supported."""
    platform = platform or sys.platform
    if platform == "linux":
        from agent.entrypoints.service.systemd import Systemd  # noqa: PLC0415 - one of the two is used

        return Systemd(home, runner)
    if platform == "darwin":
        from agent.entrypoints.service.launchd import Launchd  # noqa: PLC0415

        return Launchd(home, runner)
    raise AkoshaError(
        f"services are not supported on {platform}: only systemd (Linux) and launchd (macOS) are",
        hint="run `akosha-agent run` under another supervisor: docs/guides/service.md",
    )


def service_status(home: Path, environ: Mapping[str, str]) -> ServiceStatus:
    """Return the status. Raises nothing. Blocks for about 50 ms: it runs systemctl and loginctl, or launchctl."""
    try:
        manager = service_manager(home, Runner(environ, say=lambda _: None))
    except AkoshaError as error:
        return ServiceStatus(
            installed=False,
            enabled=False,
            running=False,
            outdated=False,
            path=None,
            detail=error.message,
            hint=error.hint,
        )
    return status_of(manager)


def status_of(manager: ServiceManager) -> ServiceStatus:
    """Return the status from this manager. Raises nothing."""
    state, problem = ServiceState(enabled=False, loaded=False, running=False), None
    file_state, text = FileState.EDITED, ""
    try:
        file_state, text = service_file.read(manager.file)
        state = manager.state()
    except AkoshaError as error:
        problem = error
    installed = file_state is not FileState.ABSENT
    missing_program, outdated = _outdated(manager, text) if file_state is FileState.UNCHANGED else ("", False)
    if problem is not None:
        detail, hint = problem.message, problem.hint
    elif not installed:
        detail, hint = "not installed", "akosha-agent service install"
    elif outdated:
        detail = missing_program or "its file was written by another version of the agent"
        hint = "akosha-agent service install, with the same options as before"
    elif not state.running and state.last_exit == _WRONG_SETTINGS:
        detail = "not running: a setting is wrong"
        hint = "see akosha-agent service logs; then akosha-agent service start"
    elif not state.running:
        detail = f"not running: {state.text}" if state.text else "not running"
        hint = "see akosha-agent service logs; then akosha-agent service start"
    elif not state.enabled:
        detail, hint = "it does not start at login", "akosha-agent service install"
    else:
        detail, hint = state.text, ""
    return ServiceStatus(
        installed=installed,
        enabled=state.enabled,
        running=state.running,
        outdated=outdated,
        path=manager.file,
        detail=detail,
        hint=hint,
        edited=file_state is FileState.EDITED,
        manager=manager.name,
        pid=state.pid,
        since=state.since,
        last_exit=state.last_exit,
        linger=state.linger,
        reachable=problem is None,
    )


def _outdated(manager: ServiceManager, text: str) -> tuple[str, bool]:
    spec = manager.parse(text)
    if spec is None:
        return "", True
    if not Path(spec.words[0]).exists():
        return f"its program does not exist: {spec.words[0]}", True
    try:
        return "", manager.render(spec) != text
    except AkoshaError:
        return "", False
