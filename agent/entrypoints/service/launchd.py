"""The service as macOS's launchd keeps it: an agent of the logged-in user."""

import os
import plistlib
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn
from xml.parsers.expat import ExpatError

from agent.domain.errors import AkoshaError
from agent.domain.plain_text import MASK
from agent.entrypoints.service.manager import Course, InstallOrder
from agent.entrypoints.service.runner import Runner
from agent.entrypoints.service.sealed_file import seal
from agent.entrypoints.service.templates import template

LABEL = "org.akosha.agent"
GONE_SECONDS = 30.0
LOOK_SECONDS = 0.1

_PATH = ("/opt/homebrew/bin", "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
_FIELD = re.compile(r"^\t(state|pid|last exit code) = (.*)$", re.MULTILINE)
_CURE = (
    "launchd keeps a user's agents while that user is logged in at the screen: log in there once, then "
    "akosha-agent service start; without a screen, start akosha-agent run"
)


class Launchd:
    """A Keeper. `home` is the user's."""

    name = "launchd"

    def __init__(self, home: Path, runner: Runner) -> None:
        self.root = home / "Library" / "LaunchAgents"
        self.file = self.root / f"{LABEL}.plist"
        self.log = home / "Library" / "Logs" / "akosha-agent.log"
        self._home = home
        self._runner = runner
        self._domain = f"gui/{os.getuid()}"
        self._target = f"{self._domain}/{LABEL}"

    def render(self, order: InstallOrder) -> str:
        document = plistlib.loads(template(f"launchd/{LABEL}.plist").encode())
        places = (str(Path(order.words[0]).parent), str(self._home / ".local" / "bin"), *_PATH)
        document |= {
            "ProgramArguments": list(order.words),
            "EnvironmentVariables": {"PATH": ":".join(dict.fromkeys(places)), **order.environment},
            "WorkingDirectory": str(self._home),
            "StandardErrorPath": str(self.log),
        }
        try:
            text = plistlib.dumps(document, sort_keys=False).decode()
        except ValueError as error:
            raise AkoshaError(f"a launchd agent cannot have that in it: {error}") from error
        return seal(text, before="<plist ", opening="<!-- ", closing=" -->")

    def order_in(self, text: str) -> InstallOrder | None:
        document = _parsed(text)
        words, environment = document.get("ProgramArguments"), document.get("EnvironmentVariables", {})
        if not isinstance(words, list) or not words or not isinstance(environment, dict):
            return None
        carried = {str(name): str(value) for name, value in environment.items() if name != "PATH"}
        return InstallOrder(tuple(str(word) for word in words), carried)

    def shown(self, text: str) -> str:
        order = self.order_in(text)
        if order is None or not order.environment:
            return text
        return self.render(InstallOrder(order.words, dict.fromkeys(order.environment, MASK)))

    def mode(self, order: InstallOrder) -> int:
        return 0o600 if order.environment else 0o644

    def course(self) -> Course:
        ran = self._runner.ask("launchctl", "print", self._target)
        if ran.code:
            domain = self._runner.ask("launchctl", "print", self._domain)
            if domain.code:
                raise AkoshaError(f"launchd has no {self._domain}: {domain.err or domain.out}", hint=_CURE)
        shown = dict(reversed(_FIELD.findall(ran.out))) if not ran.code else {}  # of a field twice, the first
        pid = int(shown["pid"]) if shown.get("pid", "").isdecimal() else None
        last = shown.get("last exit code", "")
        return Course(
            enabled=self.file.exists() and not self._disabled(),
            loaded=not ran.code,
            running=pid is not None,
            pid=pid,
            since=None if pid is None else self._since(pid),
            last_exit="" if last.startswith("(never") else last,
            text=shown.get("state", "") if not ran.code else "not loaded",
            remark="no: launchd runs it while you are logged in",
        )

    def take_up(self, before: Course | None, *, changed: bool, start: bool) -> None:
        if before is None or not start:
            return  # what lies in LaunchAgents is started at the next login
        if not before.enabled:
            self._launchctl("enable", self._target)
        if before.loaded and changed:
            self._bootout()
        if changed or not before.loaded:
            self._launchctl("bootstrap", self._domain, str(self.file))
        elif not before.running:
            self._launchctl("kickstart", self._target)

    def let_go(self, before: Course | None) -> None:
        if before is not None and before.loaded:
            self._bootout()

    def let_gone(self, before: Course | None) -> None:
        """It keeps no memory of what is gone."""

    def start(self) -> None:
        before = self.course()
        if not before.enabled:
            self._launchctl("enable", self._target)
        if not before.loaded:
            self._launchctl("bootstrap", self._domain, str(self.file))
        elif not before.running:
            self._launchctl("kickstart", self._target)

    def stop(self) -> None:
        # It exits with 0, which launchd takes for its end. bootout would have it forgotten.
        if self.course().running:
            self._launchctl("kill", "SIGTERM", self._target)
            self._until(lambda: not self.course().running, "it did not end")

    def restart(self) -> None:
        if self.course().loaded:
            self._launchctl("kickstart", "-k", self._target)
        else:
            self.start()

    def show_log(self, lines: int, *, follow: bool, file: Path | None) -> NoReturn:
        self._runner.become("tail", "-n", str(lines), *(("-F",) if follow else ()), str(file or self.log))

    def linger(self) -> None:
        raise AkoshaError("launchd cannot run it while you are logged out", hint="--linger is for Linux")

    def advice(self, course: Course | None) -> Iterator[str]:
        del course
        yield "It runs while you are logged in. Where macOS keeps a directory to itself (Desktop, Documents, iCloud,"
        yield "other disks), allow Full Disk Access to the Python that runs it: deploy/README.md"
        yield f"Its log is {self.log}"

    def _bootout(self) -> None:
        self._launchctl("bootout", self._target)
        # It returns before the process has ended; a bootstrap meanwhile fails with "5: Input/output error".
        self._until(lambda: self._runner.ask("launchctl", "print", self._target).code != 0, "it is still there")

    def _until(self, done: Callable[[], bool], why: str) -> None:
        if self._runner.dry:
            return
        deadline = time.monotonic() + GONE_SECONDS
        while not done():
            if time.monotonic() > deadline:
                raise AkoshaError(f"{why} after {GONE_SECONDS:g} s", hint=f"see launchctl print {self._target}")
            time.sleep(LOOK_SECONDS)  # launchd tells nobody

    def _disabled(self) -> bool:
        ran = self._runner.ask("launchctl", "print-disabled", self._domain)
        return re.search(rf'"{re.escape(LABEL)}" => (disabled|true)', ran.out) is not None

    def _since(self, pid: int) -> datetime | None:
        ran = self._runner.ask("ps", "-o", "lstart=", "-p", str(pid))
        try:
            return datetime.strptime(ran.out, "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC)
        except ValueError:
            return None

    def _launchctl(self, *words: str) -> None:
        self._runner.do("launchctl", *words)


def _parsed(text: str) -> dict[str, object]:
    try:
        document = plistlib.loads(text.encode())
    except (ValueError, ExpatError):
        return {}
    return document if isinstance(document, dict) else {}
