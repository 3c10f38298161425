"""What keeps the agent running: one for systemd, one for launchd."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class InstallOrder:
    """What is to be kept running: the command, in words, and what it has in its environment besides."""

    words: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Course:
    """How the service is doing.

    `enabled`: it starts by itself. `loaded`: the keeper knows of it. `last_exit`: its exit status, or what ended it; ""
    where it never ended. `remark`: one line on whether it goes on while nobody is logged in.
    """

    enabled: bool
    loaded: bool
    running: bool
    pid: int | None = None
    since: datetime | None = None
    last_exit: str = ""
    text: str = ""
    remark: str = ""


class ServiceManager(Protocol):
    """All methods that reach for the platform raise AkoshaError, where it cannot be reached too."""

    name: str
    file: Path
    """The file that tells it about the agent."""
    root: Path
    """The directory below which `uninstall` removes directories that it leaves empty."""

    def render(self, order: InstallOrder) -> str:
        """Return the file's text, sealed."""
        ...

    def order_in(self, text: str) -> InstallOrder | None:
        """Return the order that a text of `render`'s was made from; None: it is not to be found."""
        ...

    def shown(self, text: str) -> str:
        """Return the text as it may be printed: what may be secret is masked."""
        ...

    def mode(self, order: InstallOrder) -> int:
        """Return the file's mode."""
        ...

    def course(self) -> Course:
        """Look how it is doing."""
        ...

    def take_up(self, before: Course | None, *, changed: bool, start: bool) -> None:
        """After the file was written: enable it, and have it running if `start` or if it was.

        `before`: how it was doing before; None: unknown, as the platform cannot be reached (then `start` is false).
        `changed`: the file is another than before.
        """
        ...

    def let_go(self, before: Course | None) -> None:
        """Before the file is removed: stop it, have it forgotten."""
        ...

    def let_gone(self, before: Course | None) -> None:
        """After the file was removed."""
        ...

    def start(self) -> None:
        """Have it running; if it runs already, nothing happens."""
        ...

    def stop(self) -> None:
        """End it, until it is started or the user logs in again. Returns when it has ended."""
        ...

    def restart(self) -> None:
        """End it, if it runs, and start it."""
        ...

    def show_log(self, lines: int, *, follow: bool, file: Path | None) -> None:
        """Become the command that shows the log. `file`: where the settings have the agent log to."""
        ...

    def linger(self) -> None:
        """Have it run while the user is not logged in. Raises AkoshaError where the platform has no such thing."""
        ...

    def advice(self, course: Course | None) -> Iterable[str]:
        """Say what who has just installed it should know."""
        ...
