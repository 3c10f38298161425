"""The service managers' common protocol, and the runner of the platform's commands."""

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NoReturn, Protocol

from agent.domain.errors import AkoshaError

QUERY_SECONDS = 20.0
EXECUTE_SECONDS = 180.0
"""Limits for commands. A start command returns once the agent has reported that it is ready."""


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """The service's command, as a list of words, and the variables that its file adds to the environment."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServiceState:
    """The state of the service.

    `enabled`: it starts at login. `loaded`: the manager has loaded its file. `last_exit`: its last exit status, or the
    signal that ended it; "" if it has not ended yet. `linger`: whether it runs while the user is logged out, in words.
    """

    enabled: bool
    loaded: bool
    running: bool
    pid: int | None = None
    since: datetime | None = None
    last_exit: str = ""
    text: str = ""
    linger: str = ""


class ServiceManager(Protocol):
    """systemd or launchd. Methods that run its commands raise AkoshaError if they fail or it cannot be reached."""

    name: str
    file: Path
    """The unit or property list of the service."""
    root: Path
    """`uninstall` removes directories below this one that are empty then."""

    def render(self, spec: ServiceSpec) -> str:
        """Return the text of the file, including a line with its digest."""
        ...

    def parse(self, text: str) -> ServiceSpec | None:
        """Return the spec of a rendered text; None if it has none."""
        ...

    def redacted(self, text: str) -> str:
        """Return the text with values masked that may be secret."""
        ...

    def file_mode(self, spec: ServiceSpec) -> int:
        """Return the mode of the file."""
        ...

    def state(self) -> ServiceState:
        """Return the current state."""
        ...

    def enable(self, before: ServiceState | None, *, changed: bool, start: bool) -> None:
        """Enable the service after its file was written, and start it if `start`.

        `before`: the previous state; None if the manager cannot be reached (then `start` is False). `changed`: whether
        the file has changed.
        """
        ...

    def disable(self, before: ServiceState | None) -> None:
        """Stop and disable the service before its file is removed."""
        ...

    def after_removal(self, before: ServiceState | None) -> None:
        """Make the manager forget the service after its file was removed."""
        ...

    def start(self) -> None:
        """Start the service if it is not running."""
        ...

    def stop(self) -> None:
        """Stop the service and wait until it has ended. It stays stopped until it is started or the user logs in."""
        ...

    def restart(self) -> None:
        """Stop the service if it is running, and start it."""
        ...

    def show_log(self, lines: int, *, follow: bool, file: Path | None) -> None:
        """Replace this process by a command that shows the log. `file`: the log file in the settings, if any."""
        ...

    def enable_linger(self) -> None:
        """Keep the service running while the user is logged out. Raises AkoshaError if the platform cannot."""
        ...

    def advice(self, state: ServiceState | None) -> Iterable[str]:
        """Return notes for the user, shown after the installation."""
        ...


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The exit status of a command, and its stripped output."""

    code: int
    out: str
    err: str


class Runner:
    """Runs the platform's commands with `environ`. `dry_run`: commands that change something are only reported."""

    def __init__(self, environ: Mapping[str, str], *, dry_run: bool = False, say: Callable[[str], None]) -> None:
        self.environ = dict(environ)
        self.dry_run = dry_run
        self._say = say

    def query(self, *words: str) -> CommandResult:
        """Run a read-only command. Raises AkoshaError if it cannot be run or does not end in time."""
        # English and UTC: the output is parsed.
        return self._run(words, self.environ | {"LC_ALL": "C", "TZ": "UTC"}, QUERY_SECONDS)

    def execute(self, *words: str, ignore_failure: bool = False) -> None:
        """Report a command and, unless `dry_run`, run it. Raises AkoshaError if it fails, unless `ignore_failure`."""
        self._say(f"  $ {' '.join(words)}")
        if self.dry_run:
            return
        ran = self._run(words, self.environ, EXECUTE_SECONDS)
        if ran.code and not ignore_failure:
            problem = ran.err or ran.out or f"exit status {ran.code}"
            raise AkoshaError(f"{' '.join(words)}: {problem}", hint="akosha-agent service logs shows the reason")

    def replace_process(self, *words: str) -> NoReturn:
        """Replace this process by a command. Raises AkoshaError if it cannot be run."""
        try:
            os.execvpe(words[0], list(words), self.environ)  # noqa: S606 - fixed words, no shell
        except OSError as error:
            raise _not_found(words[0], error) from error

    def _run(self, words: tuple[str, ...], environ: dict[str, str], seconds: float) -> CommandResult:
        try:
            done = subprocess.run(  # noqa: S603 - fixed words, no shell
                words,
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except OSError as error:
            raise _not_found(words[0], error) from error
        except subprocess.TimeoutExpired as error:
            raise AkoshaError(f"{' '.join(words)} did not end within {seconds:g} s") from error
        return CommandResult(done.returncode, done.stdout.strip(), done.stderr.strip())


def _not_found(name: str, error: OSError) -> AkoshaError:
    return AkoshaError(
        f"{name} cannot be run: {error.strerror}",
        hint="without it, run akosha-agent run under another supervisor (docs/guides/service.md)",
    )
