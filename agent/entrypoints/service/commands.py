"""The commands of `akosha-agent service`."""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from agent.domain.errors import AkoshaError, SettingsError
from agent.entrypoints.cli.command import FAILED, CommandGroup, Options
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.formatting import json_value, local_time
from agent.entrypoints.installation import check_owner
from agent.entrypoints.service import environment as env, install as installer, service_file
from agent.entrypoints.service.manager import Runner, ServiceManager, ServiceSpec
from agent.entrypoints.service.program import program
from agent.entrypoints.service.status import service_manager, service_status
from agent.entrypoints.stored_settings import not_stored, set_in_shell_only, variables_of
from agent.settings import Settings, load
from agent.settings.model import S3_KEYS
from agent.settings.own_files import is_secret, s3_credentials

app = CommandGroup(
    help="Run the agent as a service of this user: systemd on Linux, launchd on macOS.", no_args_is_help=True
)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be written and run; change nothing.")]


@app.command()
def install(
    options: Options,
    no_start: Annotated[
        bool, typer.Option("--no-start", help="Do not start it now; it starts at the next login.")
    ] = False,
    linger: Annotated[
        bool,
        typer.Option("--linger", help="Linux: keep it running while you are logged out (loginctl enable-linger)."),
    ] = False,
    with_environment: Annotated[
        bool,
        typer.Option(
            "--with-environment", help="macOS: write this shell's AWS_* and akosha variables into the service's file."
        ),
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Install or update the service. It starts now and at every login, with the options given here."""
    home = Path.home()
    manager, runner = _manager(home, dry_run=dry_run)
    check_owner(home)
    if linger and manager.name != "systemd":
        raise AkoshaError("launchd cannot run the service while you are logged out", hint="--linger is for Linux")
    words = _words(options)
    variables = env.agent_variables(os.environ) if with_environment else {}
    file = _environment_file(manager)
    if with_environment:
        _check_variables(variables, file)
    spec = ServiceSpec((*program(home, os.environ), "run", *words), variables)
    service_environ = _service_environment(home, manager, spec)
    found, warnings = _settings(home, spec, service_environ)
    if not no_start:
        installer.check_no_other_agent(manager, found)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    for line in _missing(found, service_environ, home, spec, file):
        typer.echo(f"warning: {line}", err=True)
    installer.install(manager, runner, spec, environment=file, start=not no_start, linger=linger, say=typer.echo)


@app.command()
def uninstall(dry_run: DryRun = False) -> None:
    """Stop and remove the service. Settings, state and ledger are kept."""
    home = Path.home()
    manager, runner = _manager(home, dry_run=dry_run)
    check_owner(home)
    installer.uninstall(manager, runner, environment=_environment_file(manager), say=typer.echo)


@app.command()
def start(dry_run: DryRun = False) -> None:
    """Start the service if it is not running."""
    _installed(dry_run=dry_run, alone=not dry_run).start()


@app.command()
def stop(dry_run: DryRun = False) -> None:
    """Stop the service until it is started again or you log in."""
    _installed(dry_run=dry_run).stop()


@app.command()
def restart(dry_run: DryRun = False) -> None:
    """Restart the service. To reload settings only, use: systemctl --user reload akosha-agent."""
    _installed(dry_run=dry_run, alone=not dry_run).restart()


@app.command()
def status(as_json: AsJson = False) -> int:
    """Show whether the service is installed, enabled and running. Exits with 0 if it runs, else 1."""
    found = service_status(Path.home(), os.environ)
    if as_json:
        typer.echo(json.dumps(found.document(), indent=2, default=json_value))
    else:
        pid = f", pid {found.pid}" if found.pid else ""
        since = f" since {local_time(found.since)}" if found.since else ""
        edited = " (edited since it was installed)" if found.edited else ""
        typer.echo(f"installed  {f'{found.path}{edited}' if found.installed else 'no'}")
        enabled, running = (_yes(value) if found.reachable else "unknown" for value in (found.enabled, found.running))
        typer.echo(f"enabled    {enabled}")
        typer.echo(f"running    {running}{pid}{since}")
        if found.last_exit:
            typer.echo(f"last exit  {found.last_exit}")
        if found.linger:
            typer.echo(f"linger     {found.linger}")
        if found.detail:
            typer.echo(f"state      {found.detail}")
        if found.hint:
            typer.echo(f"hint       {found.hint}")
    return 0 if found.running else FAILED


@app.command()
def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Show new lines as they are logged.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Number of lines to show.")] = 50,
) -> None:
    """Show the service's log."""
    manager = _installed(dry_run=False)
    manager.show_log(lines, follow=follow, file=_log_file(manager))


def _manager(home: Path, *, dry_run: bool) -> tuple[ServiceManager, Runner]:
    runner = Runner(os.environ, dry_run=dry_run, say=typer.echo)
    return service_manager(home, runner), runner


def _installed(*, dry_run: bool, alone: bool = False) -> ServiceManager:
    """Return the service's manager. Raises AkoshaError if it is not installed; with `alone`, if another agent runs."""
    manager, _ = _manager(Path.home(), dry_run=dry_run)
    if not os.path.lexists(manager.file):
        raise AkoshaError(
            f"the service is not installed: {manager.file} does not exist", hint="akosha-agent service install"
        )
    if alone and (settings := _installed_settings(manager)):
        installer.check_no_other_agent(manager, settings)
    return manager


def _environment_file(manager: ServiceManager) -> Path | None:
    return env.environment_file(manager.root) if manager.name == "systemd" else None


def _words(options: Options) -> list[str]:
    """Return the command line options for the service."""
    words = []
    given = {"--data-dir": options.data_dir, "--state-dir": options.state_dir, "--settings": options.settings_file}
    for option, path in given.items():
        if path is not None:
            words += [option, os.path.abspath(path.expanduser())]  # noqa: PTH100 - keeps symbolic links
    return words


def _check_variables(variables: dict[str, str], file: Path | None) -> None:
    if file is not None:
        raise AkoshaError("--with-environment is for macOS", hint=f"put the variables into {file}")
    if "AWS_SESSION_TOKEN" in variables:
        raise AkoshaError(
            "AWS_SESSION_TOKEN is set: these credentials expire within hours",
            hint="use long-term credentials, or a profile in ~/.aws/config that renews them",
        )


def _settings(home: Path, spec: ServiceSpec, environ: dict[str, str]) -> tuple[Settings, tuple[str, ...]]:
    """Load the settings as the service will load them. Return them and their warnings. Raises SettingsError."""
    options = dict(zip(spec.words, spec.words[1:], strict=False))
    given = {"agent_data_dir": options.get("--data-dir"), "agent_state_dir": options.get("--state-dir")}
    file = options.get("--settings")
    loaded = load(
        command_line={key: value for key, value in given.items() if value is not None},
        settings_file=Path(file) if file else None,
        environ=environ,
        cwd=home,
        home=home,
    )
    return loaded.settings, loaded.warnings


def _service_environment(home: Path, manager: ServiceManager, spec: ServiceSpec) -> dict[str, str]:
    """Return the variables of the service that the agent reads."""
    file = _environment_file(manager)
    found = {"HOME": str(home), **spec.environment, **(env.read_environment(file) if file else {})}
    # systemd finds the unit below XDG_CONFIG_HOME only if its own environment has that, which the service inherits.
    inherited = os.environ.get("XDG_CONFIG_HOME", "")
    return {"XDG_CONFIG_HOME": inherited, **found} if inherited and manager.name == "systemd" else found


def _missing(
    settings: Settings, environ: dict[str, str], home: Path, spec: ServiceSpec, file: Path | None
) -> Iterator[str]:
    """Yield a line for each setting that the service has otherwise than this shell, and one for other variables."""
    missing = env.missing_variables(os.environ, environ)
    try:
        of_shell = _settings(home, spec, dict(os.environ))[0]
    except SettingsError:
        of_shell = None
    for key, name in set_in_shell_only(settings, of_shell, os.environ):
        if name in missing:
            value = os.environ[name]
            shown = "-" if is_secret(key, value) else shlex.quote(value)
            yield f"{name} is set in this shell only: akosha-agent config set {key} {shown}"
    missing = not_stored(missing, settings, has_keys=s3_credentials(environ, home) is not None)
    names = [name for name in (variables_of(key)[0] for key in S3_KEYS[:2]) if name in missing]
    if len(names) == len(S3_KEYS[:2]) and "AWS_SESSION_TOKEN" not in missing:
        missing = [name for name in missing if name not in names]
        yield (
            f"{' and '.join(names)} are set in this shell only: akosha-agent config set "
            f"{' '.join(f'{key} -' for key in S3_KEYS[:2])}"
        )
    if missing:
        yield env.notice_of_missing(missing, file)


def _log_file(manager: ServiceManager) -> Path | None:
    """Return the log file in the service's settings."""
    settings = _installed_settings(manager)
    return settings.agent_log_file if settings else None


def _installed_settings(manager: ServiceManager) -> Settings | None:
    """Return the settings of the installed service; None if they are invalid or cannot be found."""
    spec = manager.parse(service_file.read(manager.file)[1])
    if spec is None:
        return None
    home = Path.home()
    try:
        return _settings(home, spec, _service_environment(home, manager, spec))[0]
    except SettingsError:
        return None


def _yes(value: bool) -> str:
    return "yes" if value else "no"
