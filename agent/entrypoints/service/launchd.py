"""The service on macOS: a launchd agent of the logged-in user."""

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
from agent.entrypoints.service.manager import Runner, ServiceSpec, ServiceState
from agent.entrypoints.service.service_file import template, with_digest

LABEL = "org.akosha.agent"
END_SECONDS = 30.0
POLL_SECONDS = 0.1

_PATH = ("/opt/homebrew/bin", "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
_FIELD = re.compile(r"^\t(state|pid|last exit code) = (.*)$", re.MULTILINE)
_HINT = (
    "launchd runs a user's agents only while the user is logged in at the screen: log in there once, then "
    "akosha-agent service start; on a machine without a screen, run akosha-agent run"
)


class Launchd:
    """A ServiceManager for launchd. `home`: the user's home directory."""

    name = "launchd"

    def __init__(self, home: Path, runner: Runner) -> None:
        self.root = home / "Library" / "LaunchAgents"
        self.file = self.root / f"{LABEL}.plist"
        self.log = home / "Library" / "Logs" / "akosha-agent.log"
        self._home = home
        self._runner = runner
        self._domain = f"gui/{os.getuid()}"
        self._target = f"{self._domain}/{LABEL}"

    def render(self, spec: ServiceSpec) -> str:
        document = plistlib.loads(template(f"launchd/{LABEL}.plist").encode())
        path = (str(Path(spec.words[0]).parent), str(self._home / ".local" / "bin"), *_PATH)
        document |= {
            "ProgramArguments": list(spec.words),
            "EnvironmentVariables": {"PATH": ":".join(dict.fromkeys(path)), **spec.environment},
            "WorkingDirectory": str(self._home),
            "StandardErrorPath": str(self.log),
        }
        try:
            text = plistlib.dumps(document, sort_keys=False).decode()
        except ValueError as error:
            raise AkoshaError(f"a launchd agent cannot contain these options or variables: {error}") from error
        return with_digest(text, before="<plist ", opening="<!-- ", closing=" -->")

    def parse(self, text: str) -> ServiceSpec | None:
        document = _parsed(text)
        words, environment = document.get("ProgramArguments"), document.get("EnvironmentVariables", {})
        if not isinstance(words, list) or not words or not isinstance(environment, dict):
            return None
        agent_variables = {str(name): str(value) for name, value in environment.items() if name != "PATH"}
        return ServiceSpec(tuple(str(word) for word in words), agent_variables)

    def redacted(self, text: str) -> str:
        spec = self.parse(text)
        if spec is None or not spec.environment:
            return text
        return self.render(ServiceSpec(spec.words, dict.fromkeys(spec.environment, MASK)))

    def file_mode(self, spec: ServiceSpec) -> int:
        return 0o600 if spec.environment else 0o644

    def state(self) -> ServiceState:
        ran = self._runner.query("launchctl", "print", self._target)
        if ran.code:
            domain = self._runner.query("launchctl", "print", self._domain)
            if domain.code:
                raise AkoshaError(f"launchd has no {self._domain}: {domain.err or domain.out}", hint=_HINT)
        shown = dict(reversed(_FIELD.findall(ran.out))) if not ran.code else {}  # of duplicate keys, the first counts
        pid = int(shown["pid"]) if shown.get("pid", "").isdecimal() else None
        last = shown.get("last exit code", "")
        return ServiceState(
            enabled=self.file.exists() and not self._disabled(),
            loaded=not ran.code,
            running=pid is not None,
            pid=pid,
            since=None if pid is None else self._since(pid),
            last_exit="" if last.startswith("(never") else last,
            text=shown.get("state", "") if not ran.code else "not loaded",
            linger="no: launchd runs it while you are logged in",
        )

    def enable(self, before: ServiceState | None, *, changed: bool, start: bool) -> None:
        if before is None or not start:
            return  # launchd starts what is in LaunchAgents at the next login
        if not before.enabled:
            self._launchctl("enable", self._target)
        if before.loaded and changed:
            self._bootout()
        if changed or not before.loaded:
            self._launchctl("bootstrap", self._domain, str(self.file))
        elif not before.running:
            self._launchctl("kickstart", self._target)

    def disable(self, before: ServiceState | None) -> None:
        if before is not None and before.loaded:
            self._bootout()

    def after_removal(self, before: ServiceState | None) -> None:
        """Do nothing: launchd no longer knows the service after bootout."""

    def start(self) -> None:
        before = self.state()
        if not before.enabled:
            self._launchctl("enable", self._target)
        if not before.loaded:
            self._launchctl("bootstrap", self._domain, str(self.file))
        elif not before.running:
            self._launchctl("kickstart", self._target)

    def stop(self) -> None:
        # Not bootout, which would unload the service. The agent exits with 0, so launchd does not restart it.
        if self.state().running:
            self._launchctl("kill", "SIGTERM", self._target)
            self._until(lambda: not self.state().running, "the service was still running")

    def restart(self) -> None:
        if self.state().loaded:
            self._launchctl("kickstart", "-k", self._target)
        else:
            self.start()

    def show_log(self, lines: int, *, follow: bool, file: Path | None) -> NoReturn:
        self._runner.replace_process("tail", "-n", str(lines), *(("-F",) if follow else ()), str(file or self.log))

    def enable_linger(self) -> None:
        raise AkoshaError("launchd cannot run the service while you are logged out", hint="--linger is for Linux")

    def advice(self, state: ServiceState | None) -> Iterator[str]:
        del state
        yield "The service runs while you are logged in. For directories that macOS protects (Desktop, Documents,"
        yield "iCloud, other disks), give Full Disk Access to the Python that runs it: docs/guides/service.md"
        yield f"Log: {self.log}"

    def _bootout(self) -> None:
        self._launchctl("bootout", self._target)
        # bootout returns before the process has ended; until then, bootstrap fails with "5: Input/output error".
        self._until(
            lambda: self._runner.query("launchctl", "print", self._target).code != 0, "the service was still loaded"
        )

    def _until(self, done: Callable[[], bool], problem: str) -> None:
        if self._runner.dry_run:
            return
        deadline = time.monotonic() + END_SECONDS
        while not done():
            if time.monotonic() > deadline:
                raise AkoshaError(f"{problem} after {END_SECONDS:g} s", hint=f"see launchctl print {self._target}")
            time.sleep(POLL_SECONDS)  # launchd has no notification

    def _disabled(self) -> bool:
        ran = self._runner.query("launchctl", "print-disabled", self._domain)
        return re.search(rf'"{re.escape(LABEL)}" => (disabled|true)', ran.out) is not None

    def _since(self, pid: int) -> datetime | None:
        ran = self._runner.query("ps", "-o", "lstart=", "-p", str(pid))
        try:
            return datetime.strptime(ran.out, "%a %b %d %H:%M:%S %Y").replace(tzinfo=UTC)
        except ValueError:
            return None

    def _launchctl(self, *words: str) -> None:
        self._runner.execute("launchctl", *words)


def _parsed(text: str) -> dict[str, object]:
    try:
        document = plistlib.loads(text.encode())
    except (ValueError, ExpatError):
        return {}
    return document if isinstance(document, dict) else {}
