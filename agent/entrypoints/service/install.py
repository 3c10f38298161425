"""`service install` and `service uninstall`: write or remove the files, then call the service manager."""

import stat
from collections.abc import Callable
from pathlib import Path

from agent.bootstrap.home import RUN, Home
from agent.domain.errors import AkoshaError, StateError
from agent.entrypoints.service import service_file
from agent.entrypoints.service.environment import ENVIRONMENT_TEMPLATE, PRIVATE, is_as_installed, is_open_to_others
from agent.entrypoints.service.manager import Runner, ServiceManager, ServiceSpec, ServiceState
from agent.entrypoints.service.service_file import FileState
from agent.settings import Settings

Say = Callable[[str], None]


def install(
    manager: ServiceManager,
    runner: Runner,
    spec: ServiceSpec,
    *,
    environment: Path | None,
    start: bool,
    linger: bool,
    say: Say,
) -> None:
    """Write the service's file if it must change, enable the service and, with `start`, start it.

    `environment`: the file for credentials, created if missing. Raises AkoshaError. If `start` is set and the service
    manager cannot be reached, raises before writing anything; a dry run does the same.
    """
    text = manager.render(spec)
    file_state, old = service_file.read(manager.file)
    restrict_mode = environment is not None and is_open_to_others(environment)
    before = _state(manager, required=start or linger, say=say)
    changed = text != old
    if environment is not None:
        _prepare_environment(environment, runner, restrict_mode=restrict_mode, say=say)
    if file_state is FileState.EDITED:
        say(f"edited since it was installed: {manager.file}")
        backup = "the first free .bak name" if runner.dry_run else service_file.set_aside(manager.file)
        say(f"  kept as {backup}; put your own changes into a drop-in")
    if changed or _mode(manager.file) != manager.file_mode(spec):
        say(f"{'writes' if file_state is FileState.ABSENT else 'replaces'} {manager.file}")
        if runner.dry_run:
            say("\n" + manager.redacted(text))
        else:
            service_file.write(manager.file, text, manager.file_mode(spec))
    else:
        say(f"up to date: {manager.file}")
    manager.enable(before, changed=changed, start=start)
    if linger:
        manager.enable_linger()
    if before is not None and before.running and changed and not start:
        say("The running service uses the old file until: akosha-agent service restart")
    after = None if runner.dry_run or before is None else manager.state()
    if after is not None and after.running:
        say(f"The service is running (pid {after.pid}).")
    for line in manager.advice(after):
        say(line)


def uninstall(manager: ServiceManager, runner: Runner, *, environment: Path | None, say: Say) -> None:
    """Stop the service and remove the files that `install` wrote. Keep edited files. Raises AkoshaError."""
    file_state, _ = service_file.read(manager.file)
    unchanged = environment is not None and is_as_installed(_text(environment))
    if file_state is FileState.ABSENT and not unchanged:
        say(f"not installed: {manager.file} does not exist")
        return
    before = _state(manager, required=False, say=say)
    if file_state is not FileState.ABSENT:
        manager.disable(before)
    if file_state is FileState.EDITED:
        backup = "the first free .bak name" if runner.dry_run else service_file.set_aside(manager.file)
        say(f"edited since it was installed: {manager.file} is kept as {backup}")
    elif file_state is FileState.UNCHANGED:
        say(f"removes {manager.file}")
        if not runner.dry_run:
            service_file.remove(manager.file, up_to=manager.root)
    if file_state is not FileState.ABSENT:
        manager.after_removal(before)
    if environment is not None and unchanged:
        say(f"removes {environment}")
        if not runner.dry_run:
            service_file.remove(environment, up_to=manager.root)
    elif environment is not None and environment.exists():
        say(f"keeps {environment}, which was edited")
    drop_ins = manager.file.with_name(f"{manager.file.name}.d")
    if drop_ins.exists():
        say(f"keeps {drop_ins}, which you created")
    say("Settings, ledger and logs are kept.")


def check_no_other_agent(manager: ServiceManager, settings: Settings) -> None:
    """Raise AkoshaError if an agent other than the service holds the state directory. A single sync is no conflict."""
    try:
        holder = Home.of(settings).holder()
    except StateError:
        return  # the agent reports it itself, and retries
    if holder is None or holder.command != RUN:
        return
    try:
        if holder.pid == manager.state().pid:
            return
    except AkoshaError:
        pass  # the service's state is unknown: treat the holder as another agent
    raise AkoshaError(
        f"the state directory {settings.agent_state_dir} is in use by {holder}, which is not the service",
        hint=f"stop it first (Ctrl-C in its terminal, or kill {holder.pid}); "
        "service install --no-start only installs the service",
    )


def _state(manager: ServiceManager, *, required: bool, say: Say) -> ServiceState | None:
    try:
        return manager.state()
    except AkoshaError as error:
        if required:
            raise AkoshaError(
                error.message, hint=f"{error.hint}; --no-start only writes the file, for the next login"
            ) from error
        say(f"note: {error.message}")
        return None


def _prepare_environment(path: Path, runner: Runner, *, restrict_mode: bool, say: Say) -> None:
    if restrict_mode:
        say(f"restricts {path} to mode 0600")
        if not runner.dry_run:
            try:
                path.chmod(PRIVATE)
            except OSError as error:
                raise AkoshaError(f"the mode of {path} cannot be changed to 0600: {error.strerror}") from error
    elif not path.exists():
        say(f"writes {path} (mode 0600, for credentials)")
        if not runner.dry_run:
            service_file.write(path, ENVIRONMENT_TEMPLATE, PRIVATE)


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
