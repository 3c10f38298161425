"""The service on Linux: a unit of systemd's user manager."""

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from agent.domain.errors import AkoshaError
from agent.entrypoints.service.manager import Runner, ServiceSpec, ServiceState
from agent.entrypoints.service.service_file import template, with_digest
from agent.settings.own_files import config_home

UNIT = "akosha-agent.service"
LINGER = "loginctl enable-linger"

_PROPERTIES = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "MainPID",
    "ExecMainStartTimestamp",
    "ExecMainCode",
    "ExecMainStatus",
    "Result",
    "NRestarts",
    "StatusText",
)
_CLD_EXITED = "1"
_HINT = (
    "a user's systemd needs a login session: log in locally or by ssh, or use `sudo machinectl shell USER@` instead of "
    "su; on a machine without logins, `sudo loginctl enable-linger USER` starts it; in a container without systemd, "
    "run akosha-agent run"
)


class Systemd:
    """A ServiceManager for systemd. `home`: the user's home directory. An absolute XDG_CONFIG_HOME is respected."""

    name = "systemd"

    def __init__(self, home: Path, runner: Runner) -> None:
        self.root = config_home(runner.environ, home, "linux")
        self.file = self.root / "systemd" / "user" / UNIT
        self._runner = runner
        runtime = Path(f"/run/user/{os.geteuid()}")
        if "XDG_RUNTIME_DIR" not in runner.environ and runtime.is_dir():
            # It is not set after su and in cron jobs, where the user manager may run nevertheless.
            runner.environ["XDG_RUNTIME_DIR"] = str(runtime)

    def render(self, spec: ServiceSpec) -> str:
        command = " ".join(_quoted(word, first=not number) for number, word in enumerate(spec.words))
        text = template(f"systemd/{UNIT}")
        return with_digest(re.sub(r"(?m)^ExecStart=.*$", lambda _: f"ExecStart={command}", text), before="[Unit]\n")

    def parse(self, text: str) -> ServiceSpec | None:
        found = re.search(r"^ExecStart=(.+)$", text, re.MULTILINE)
        try:
            words = shlex.split(found[1]) if found else []
        except ValueError:
            return None
        if not words:
            return None
        first, *others = (word.replace("%%", "%") for word in words)
        return ServiceSpec((first, *(word.replace("$$", "$") for word in others)))

    def redacted(self, text: str) -> str:
        return text

    def file_mode(self, spec: ServiceSpec) -> int:
        del spec
        return 0o644

    def state(self) -> ServiceState:
        ran = self._runner.query("systemctl", "--user", "show", UNIT, f"--property={','.join(_PROPERTIES)}")
        if ran.code:
            raise AkoshaError(f"this user's systemd cannot be reached: {ran.err or ran.out}", hint=_HINT)
        shown = dict(line.partition("=")[::2] for line in ran.out.splitlines())
        pid = int(shown.get("MainPID") or 0)
        return ServiceState(
            enabled=shown.get("UnitFileState", "").startswith("enabled"),
            loaded=shown.get("LoadState") == "loaded",
            running=pid > 0,
            pid=pid or None,
            since=_time(shown.get("ExecMainStartTimestamp", "")) if pid else None,
            last_exit="" if pid else _last_exit(shown),
            text=" ".join(_texts(shown)),
            linger=self._lingers(),
        )

    def enable(self, before: ServiceState | None, *, changed: bool, start: bool) -> None:
        if before is not None and (changed or not before.loaded):
            self._systemctl("daemon-reload")
        if before is None:
            self._offline("enable", UNIT)
            return
        if not before.enabled:
            self._systemctl("enable", UNIT)
        if not start:
            return
        if before.running and changed:
            self._systemctl("restart", UNIT)
        elif not before.running:
            self._start(before)

    def disable(self, before: ServiceState | None) -> None:
        if before is None:
            self._offline("disable", UNIT)
        else:
            self._systemctl("disable", "--now", UNIT)

    def after_removal(self, before: ServiceState | None) -> None:
        if before is not None:
            self._systemctl("daemon-reload")
            self._systemctl("reset-failed", UNIT, ignore_failure=True)  # fails unless the unit is in the failed state

    def start(self) -> None:
        self._start(self.state())

    def stop(self) -> None:
        self._systemctl("stop", UNIT)

    def restart(self) -> None:
        self._reset(self.state())
        self._systemctl("restart", UNIT)

    def show_log(self, lines: int, *, follow: bool, file: Path | None) -> NoReturn:
        if file is not None:
            self._runner.replace_process("tail", "-n", str(lines), *(("-F",) if follow else ()), str(file))
        followed = ("--follow",) if follow else ()
        self._runner.replace_process("journalctl", f"--user-unit={UNIT}", f"--lines={lines}", "--no-pager", *followed)

    def enable_linger(self) -> None:
        self._runner.execute("loginctl", "enable-linger")

    def advice(self, state: ServiceState | None) -> Iterator[str]:
        if state is None or not state.linger.startswith("yes"):
            yield f"The service stops when you log out and starts when you log in. To keep it running: {LINGER}"
        yield f"To customise the unit: systemctl --user edit {UNIT.removesuffix('.service')}"

    def _start(self, before: ServiceState) -> None:
        self._reset(before)
        self._systemctl("start", UNIT)

    def _reset(self, before: ServiceState) -> None:
        if before.text.startswith("failed"):
            self._systemctl(
                "reset-failed", UNIT, ignore_failure=True
            )  # otherwise systemd's start limit may refuse the start

    def _lingers(self) -> str:
        try:
            ran = self._runner.query("loginctl", "show-user", str(os.geteuid()), "--property=Linger", "--value")
        except AkoshaError:
            return ""
        if ran.code or ran.out not in {"yes", "no"}:
            return ""
        return (
            "yes: it also runs while you are logged out"
            if ran.out == "yes"
            else f"no: it stops when you log out; {LINGER}"
        )

    def _offline(self, *words: str) -> None:
        """Run systemctl without a user manager: it edits the links below ~/.config, and the next manager reads them."""
        self._runner.execute("env", "SYSTEMD_OFFLINE=1", "systemctl", "--user", *words)

    def _systemctl(self, *words: str, ignore_failure: bool = False) -> None:
        self._runner.execute("systemctl", "--user", *words, ignore_failure=ignore_failure)


def _quoted(word: str, *, first: bool) -> str:
    # systemd expands % everywhere, and $ in all words except the program's path. That path must not contain quotes.
    if any(ord(letter) < ord(" ") for letter in word) or (first and set(word) & set("\"'\\")):
        raise AkoshaError(
            f"a systemd unit cannot contain {word!r}",
            hint="choose a path without quotes and control characters",
        )
    escaped = word.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"')
    if not first:
        escaped = escaped.replace("$", "$$")
    return escaped if re.fullmatch(r"[\w@%+=:,./$-]+", escaped, re.ASCII) else f'"{escaped}"'


def _texts(shown: Mapping[str, str]) -> Iterator[str]:
    yield f"{shown.get('ActiveState', 'unknown')} ({shown.get('SubState', '')})"
    if shown.get("NRestarts", "0") not in {"", "0"}:
        yield f"restarted {shown['NRestarts']} times"
    if shown.get("StatusText"):
        yield f"status: {shown['StatusText']}"


def _last_exit(shown: Mapping[str, str]) -> str:
    if not shown.get("ExecMainStartTimestamp"):
        return ""
    status = shown.get("ExecMainStatus", "")
    ended = status if shown.get("ExecMainCode") == _CLD_EXITED else f"signal {status}"
    result = shown.get("Result", "success")
    return ended if result in {"success", "exit-code", "signal"} else f"{ended}, {result}"


def _time(text: str) -> datetime | None:
    # "Sat 2026-11-21 18:36:15 UTC": `Runner.query` sets TZ
    try:
        return datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)
    except ValueError:
        return None
