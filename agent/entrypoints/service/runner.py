"""Runs the platform's own commands: looks at what is, does what must be done, or only says what it would do."""

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from agent.domain.errors import AkoshaError

ASK_SECONDS = 20.0
DO_SECONDS = 180.0
"""Starting takes until the agent says that it works."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a command: its exit status, and what it printed, without the last newline."""

    code: int
    out: str
    err: str


class Runner:
    """Commands with `environ` as their environment. `dry`: what would change something is said, and not done."""

    def __init__(self, environ: Mapping[str, str], *, dry: bool = False, say: Callable[[str], None]) -> None:
        self.environ = dict(environ)
        self.dry = dry
        self._say = say

    def ask(self, *words: str) -> Ran:
        """Run what changes nothing. Raises AkoshaError if it cannot be run or does not come to an end."""
        # English, and UTC: the answers are read here.
        return self._run(words, self.environ | {"LC_ALL": "C", "TZ": "UTC"}, ASK_SECONDS)

    def do(self, *words: str, forgiving: bool = False) -> None:
        """Say what is run, and (unless `dry`) run it. Raises AkoshaError if it fails; not if that is forgiven."""
        self._say(f"  $ {' '.join(words)}")
        if self.dry:
            return
        ran = self._run(words, self.environ, DO_SECONDS)
        if ran.code and not forgiving:
            said = ran.err or ran.out or f"exit status {ran.code}"
            raise AkoshaError(f"{' '.join(words)}: {said}", hint="akosha-agent service logs shows what the agent says")

    def become(self, *words: str) -> NoReturn:
        """Be this command from now on. Raises AkoshaError if there is none of that name."""
        try:
            os.execvpe(words[0], list(words), self.environ)  # noqa: S606 - fixed words, no shell
        except OSError as error:
            raise _not_there(words[0], error) from error

    def _run(self, words: tuple[str, ...], environ: dict[str, str], seconds: float) -> Ran:
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
            raise _not_there(words[0], error) from error
        except subprocess.TimeoutExpired as error:
            raise AkoshaError(f"{' '.join(words)} did not come to an end within {seconds:g} s") from error
        return Ran(done.returncode, done.stdout.strip(), done.stderr.strip())


def _not_there(name: str, error: OSError) -> AkoshaError:
    return AkoshaError(
        f"{name} cannot be run: {error.strerror}", hint="without it, start akosha-agent run by hand (deploy/README.md)"
    )
