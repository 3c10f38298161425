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

    `outdated`: `service install` would write another file (a newer template), or the program that it starts is gone.
    `edited`: the file was changed since it was installed. `path`: where the file is, or would be; None on a platform
    without services. `detail`: the problem, or the state, on one line; `cure`: the command that solves the problem.
    `manager`: systemd or launchd; "" on a platform without services.
    """

    installed: bool
    enabled: bool
    running: bool
    outdated: bool
    path: Path | None
    detail: str
    cure: str = ""
    edited: bool = False
    manager: str = ""
    pid: int | None = None
    since: datetime | None = None
    last_exit: str = ""
    linger: str = ""

    def document(self) -> dict[str, object]:
        """Return the keys of `service status --json`."""
        return {"keeper" if key == "manager" else key: value for key, value in asdict(self).items()}


def service_manager(home: Path, runner: Runner, platform: str = "") -> ServiceManager:
    """Return the manager of a platform, by default of this one. Raises AkoshaError where there is none."""
    platform = platform or sys.platform
    if platform == "linux":
        from agent.entrypoints.service.systemd import Systemd  # noqa: PLC0415 - one of two

        return Systemd(home, runner)
    if platform == "darwin":
        from agent.entrypoints.service.launchd import Launchd  # noqa: PLC0415

        return Launchd(home, runner)
    raise AkoshaError(
        f"there is no service for {platform}: systemd (Linux) and launchd (macOS) are known",
        hint="any supervisor can run `akosha-agent run`: docs/guides/service.md says what it must know",
    )


def service_status(home: Path, environ: Mapping[str, str]) -> ServiceStatus:
    """Return the status. Raises nothing; runs systemctl and loginctl, or launchctl: blocks for some 50 ms."""
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
            cure=error.hint,
        )
    return status_of(manager)


def status_of(manager: ServiceManager) -> ServiceStatus:
    """Return the status by this manager. Raises nothing."""
    now, problem = ServiceState(enabled=False, loaded=False, running=False), None
    file_state, text = FileState.EDITED, ""
    try:
        file_state, text = service_file.read(manager.file)
        now = manager.state()
    except AkoshaError as error:
        problem = error
    installed = file_state is not FileState.ABSENT
    gone, outdated = _outdated(manager, text) if file_state is FileState.UNCHANGED else ("", False)
    if problem is not None:
        detail, cure = problem.message, problem.hint
    elif not installed:
        detail, cure = "not installed", "akosha-agent service install"
    elif outdated:
        detail = gone or "its file was written by another version"
        cure = "akosha-agent service install, with the options it was given"
    elif not now.running and now.last_exit == _WRONG_SETTINGS:
        detail, cure = "not running: a setting is wrong", "akosha-agent service logs says which; then service start"
    elif not now.running:
        detail = f"not running: {now.text}" if now.text else "not running"
        cure = "akosha-agent service logs says why; then akosha-agent service start"
    elif not now.enabled:
        detail, cure = "it does not start by itself", "akosha-agent service install"
    else:
        detail, cure = now.text, ""
    return ServiceStatus(
        installed=installed,
        enabled=now.enabled,
        running=now.running,
        outdated=outdated,
        path=manager.file,
        detail=detail,
        cure=cure,
        edited=file_state is FileState.EDITED,
        manager=manager.name,
        pid=now.pid,
        since=now.since,
        last_exit=now.last_exit,
        linger=now.linger,
    )


def _outdated(manager: ServiceManager, text: str) -> tuple[str, bool]:
    spec = manager.parse(text)
    if spec is None:
        return "", True
    if not Path(spec.words[0]).exists():
        return f"what it starts is gone: {spec.words[0]}", True
    try:
        return "", manager.render(spec) != text
    except AkoshaError:
        return "", False
