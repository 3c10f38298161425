"""How the service stands: installed, enabled, running. For `service status`, and for others who want to know."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agent.domain.errors import AkoshaError
from agent.entrypoints.service import sealed_file
from agent.entrypoints.service.manager import Course, ServiceManager
from agent.entrypoints.service.runner import Runner
from agent.entrypoints.service.sealed_file import Seal

_WRONG_SETTINGS = "2"


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """How the service of this user stands.

    `outdated`: its file is not what `service install` would write now (a newer template), or what it starts is gone.
    `edited`: somebody else has changed the file. `path`: where the file is, or would be; None on a platform without.
    `detail`: one line for people: what is wrong, or how it is; `cure`: the command that mends it.
    `keeper`: systemd or launchd; "" on a platform without.
    """

    installed: bool
    enabled: bool
    running: bool
    outdated: bool
    path: Path | None
    detail: str
    cure: str = ""
    edited: bool = False
    keeper: str = ""
    pid: int | None = None
    since: datetime | None = None
    last_exit: str = ""
    linger: str = ""


def keeper_of(home: Path, runner: Runner, platform: str = "") -> ServiceManager:
    """Return the keeper of a platform, by default of this one. Raises AkoshaError where there is none."""
    platform = platform or sys.platform
    if platform == "linux":
        from agent.entrypoints.service.systemd import Systemd  # noqa: PLC0415 - one of two

        return Systemd(home, runner)
    if platform == "darwin":
        from agent.entrypoints.service.launchd import Launchd  # noqa: PLC0415

        return Launchd(home, runner)
    raise AkoshaError(
        f"there is no service for {platform}: systemd (Linux) and launchd (macOS) are known",
        hint="any supervisor can run `akosha-agent run`: deploy/README.md says what it must know",
    )


def look(home: Path, environ: Mapping[str, str]) -> ServiceStatus:
    """Look how the service stands. Never raises; runs systemctl and loginctl, or launchctl: some 50 ms, blocking."""
    try:
        keeper = keeper_of(home, Runner(environ, say=lambda _: None))
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
    return standing_of(keeper)


def standing_of(keeper: ServiceManager) -> ServiceStatus:
    """Return how the service of this keeper stands. Never raises."""
    course, trouble = None, None
    state, text = Seal.BROKEN, ""
    try:
        state, text = sealed_file.read(keeper.file)
        course = keeper.course()
    except AkoshaError as error:
        trouble = error
    installed = state is not Seal.ABSENT
    gone, outdated = _outdated(keeper, text) if state is Seal.WHOLE else ("", False)
    now = course or Course(enabled=False, loaded=False, running=False)
    if trouble is not None:
        detail, cure = trouble.message, trouble.hint
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
        path=keeper.file,
        detail=detail,
        cure=cure,
        edited=state is Seal.BROKEN,
        keeper=keeper.name,
        pid=now.pid,
        since=now.since,
        last_exit=now.last_exit,
        linger=now.remark,
    )


def _outdated(keeper: ServiceManager, text: str) -> tuple[str, bool]:
    order = keeper.order_in(text)
    if order is None:
        return "", True
    if not Path(order.words[0]).exists():
        return f"what it starts is gone: {order.words[0]}", True
    try:
        return "", keeper.render(order) != text
    except AkoshaError:
        return "", False
