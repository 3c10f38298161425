"""`service install` and `service uninstall`: the files, then what the platform must be told."""

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from agent.domain.errors import AkoshaError
from agent.entrypoints.service import sealed_file
from agent.entrypoints.service.environment import EMPTY, PRIVATE, must_close
from agent.entrypoints.service.manager import Course, InstallOrder, ServiceManager
from agent.entrypoints.service.runner import Runner
from agent.entrypoints.service.sealed_file import Seal

Say = Callable[[str], None]


def check_owner(home: Path) -> None:
    """Raise AkoshaError if the home is another user's: sudo would make files there that the user cannot change."""
    try:
        owner = home.stat().st_uid
    except OSError as error:
        raise AkoshaError(f"the home directory {home} cannot be looked at: {error.strerror}") from error
    if owner != os.geteuid():
        raise AkoshaError(f"{home} is not the home of the user who runs this", hint="run it as yourself, without sudo")


def install(
    keeper: ServiceManager,
    runner: Runner,
    order: InstallOrder,
    *,
    environment: Path | None,
    start: bool,
    linger: bool,
    say: Say,
) -> None:
    """Write the service's file where it is not as it must be, enable it, and (`start`) have it running.

    `environment`: the file for credentials; an empty one is made where there is none. Raises AkoshaError; with `start`,
    before anything is written where the platform cannot be reached (a dry run says that, and goes on).
    """
    text = keeper.render(order)
    state, old = sealed_file.read(keeper.file)
    close = environment is not None and must_close(environment)
    before = _course(keeper, needed=(start or linger) and not runner.dry, say=say)
    changed = text != old
    if environment is not None:
        _prepare(environment, runner, close=close, say=say)
    if state is Seal.BROKEN:
        say(f"changed by somebody else: {keeper.file}")
        aside = "the first free .bak beside it" if runner.dry else sealed_file.set_aside(keeper.file)
        say(f"  is kept as {aside}; changes of your own survive in a drop-in")
    if changed or _mode(keeper.file) != keeper.mode(order):
        say(f"{'writes' if state is Seal.ABSENT else 'writes anew, as it is to be another now:'} {keeper.file}")
        if runner.dry:
            say("\n" + keeper.shown(text))
        else:
            sealed_file.place(keeper.file, text, keeper.mode(order))
    else:
        say(f"is as it must be: {keeper.file}")
    keeper.take_up(before, changed=changed, start=start)
    if linger:
        keeper.linger()
    if before is not None and before.running and changed and not start:
        say("It runs on as before until: akosha-agent service restart")
    after = None if runner.dry or before is None else keeper.course()
    if after is not None and after.running:
        say(f"It runs (pid {after.pid}).")
    for line in keeper.advice(after):
        say(line)


def uninstall(keeper: ServiceManager, runner: Runner, *, environment: Path | None, say: Say) -> None:
    """Stop the service and remove what `install` wrote; what others wrote is kept. Raises AkoshaError."""
    state, _ = sealed_file.read(keeper.file)
    untouched = environment is not None and _text(environment) == EMPTY
    if state is Seal.ABSENT and not untouched:
        say(f"not installed: there is no {keeper.file}")
        return
    before = _course(keeper, needed=False, say=say)
    if state is not Seal.ABSENT:
        keeper.let_go(before)
    if state is Seal.BROKEN:
        aside = "the first free .bak beside it" if runner.dry else sealed_file.set_aside(keeper.file)
        say(f"changed by somebody else: {keeper.file} is kept as {aside}")
    elif state is Seal.WHOLE:
        say(f"removes {keeper.file}")
        if not runner.dry:
            sealed_file.remove(keeper.file, up_to=keeper.root)
    if state is not Seal.ABSENT:
        keeper.let_gone(before)
    if environment is not None and untouched:
        say(f"removes {environment}")
        if not runner.dry:
            sealed_file.remove(environment, up_to=keeper.root)
    elif environment is not None and environment.exists():
        say(f"stays, as it was changed: {environment}")
    own = keeper.file.with_name(f"{keeper.file.name}.d")
    if own.exists():
        say(f"stays, as it is yours: {own}")
    say("Settings, ledger and logs stay.")


def _course(keeper: ServiceManager, *, needed: bool, say: Say) -> Course | None:
    try:
        return keeper.course()
    except AkoshaError as error:
        if needed:
            raise AkoshaError(
                error.message, hint=f"{error.hint}; --no-start writes the file all the same, for the next login"
            ) from error
        say(f"note: {error.message}")
        return None


def _prepare(path: Path, runner: Runner, *, close: bool, say: Say) -> None:
    if close:
        say(f"closes to others (mode 0600): {path}")
        if not runner.dry:
            try:
                path.chmod(PRIVATE)
            except OSError as error:
                raise AkoshaError(f"{path} cannot be closed to others: {error.strerror}") from error
    elif not path.exists():
        say(f"writes {path} (empty, mode 0600, for credentials)")
        if not runner.dry:
            sealed_file.place(path, EMPTY, PRIVATE)


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return 0


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def service_environment(home: Path, order: InstallOrder, file: Mapping[str, str]) -> dict[str, str]:
    """Return what the agent will have in its environment, as far as it goes by it."""
    return {"HOME": str(home), **order.environment, **file}
