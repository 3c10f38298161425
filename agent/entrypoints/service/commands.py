"""The commands of `akosha-agent service`."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from agent.domain.errors import AkoshaError, SettingsError
from agent.entrypoints.cli.command import FAILED, CommandGroup, Options
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.results import when
from agent.entrypoints.service import environment as env, install as installer, sealed_file
from agent.entrypoints.service.manager import InstallOrder, ServiceManager
from agent.entrypoints.service.other_agent import check_alone
from agent.entrypoints.service.program import program
from agent.entrypoints.service.runner import Runner
from agent.entrypoints.service.status import ServiceStatus, keeper_of, look
from agent.settings import Settings, load

app = CommandGroup(
    help="The agent as a service of this user: systemd on Linux, launchd on macOS.", no_args_is_help=True
)

DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be written and run; change nothing.")]


@app.command()
def install(
    options: Options,
    no_start: Annotated[bool, typer.Option("--no-start", help="Do not start it: it starts at the next login.")] = False,
    linger: Annotated[
        bool,
        typer.Option("--linger", help="Linux: have it run while you are logged out, too (loginctl enable-linger)."),
    ] = False,
    with_environment: Annotated[
        bool,
        typer.Option(
            "--with-environment", help="macOS: write this shell's AWS_* and akosha variables into the agent's file."
        ),
    ] = False,
    dry_run: DryRun = False,
) -> None:
    """Install the service, or bring it up to date: started now and at every login, with the options given here."""
    home = Path.home()
    keeper, runner = _keeper(home, dry=dry_run)
    installer.check_owner(home)
    if linger and keeper.name != "systemd":
        raise AkoshaError("launchd cannot run it while you are logged out", hint="--linger is for Linux")
    words = _words(options)
    carried = env.carried(os.environ) if with_environment else {}
    file = _environment_file(keeper)
    if with_environment:
        _check_carried(carried, file)
    order = InstallOrder((*program(home, os.environ), "run", *words), carried)
    service_environ = installer.service_environment(home, order, env.read_environment(file) if file else {})
    found, warnings = _settings(home, order, service_environ)
    if not (no_start or dry_run):
        _check_alone(keeper, found)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if missing := env.left_behind(os.environ, service_environ):
        cure = f"put them into {file}" if file else "put them into ~/.aws or a settings file, or --with-environment"
        typer.echo(f"warning: this shell has {', '.join(missing)}; the service will not: {cure}", err=True)
    installer.install(keeper, runner, order, environment=file, start=not no_start, linger=linger, say=typer.echo)


@app.command()
def uninstall(dry_run: DryRun = False) -> None:
    """Stop the service and remove it. Settings, state and ledger stay."""
    home = Path.home()
    keeper, runner = _keeper(home, dry=dry_run)
    installer.check_owner(home)
    installer.uninstall(keeper, runner, environment=_environment_file(keeper), say=typer.echo)


@app.command()
def start(dry_run: DryRun = False) -> None:
    """Start it, if it does not run."""
    _installed(dry=dry_run, alone=not dry_run).start()


@app.command()
def stop(dry_run: DryRun = False) -> None:
    """Stop it, until it is started or you log in again."""
    _installed(dry=dry_run).stop()


@app.command()
def restart(dry_run: DryRun = False) -> None:
    """Stop it, if it runs, and start it. For new settings, SIGHUP is enough: systemctl --user reload akosha-agent."""
    _installed(dry=dry_run, alone=not dry_run).restart()


@app.command()
def status(as_json: AsJson = False) -> int:
    """Show whether it is installed, enabled and running. Exit 0: it runs; 1: it does not."""
    standing: ServiceStatus = look(Path.home(), os.environ)
    if as_json:
        typer.echo(json.dumps(asdict(standing), indent=2, default=str))
    else:
        pid = f", pid {standing.pid}" if standing.pid else ""
        since = f" since {when(standing.since)}" if standing.since else ""
        edited = " (changed by somebody else)" if standing.edited else ""
        typer.echo(f"installed  {f'{standing.path}{edited}' if standing.installed else 'no'}")
        typer.echo(f"enabled    {_yes(standing.enabled)}")
        typer.echo(f"running    {_yes(standing.running)}{pid}{since}")
        if standing.last_exit:
            typer.echo(f"last exit  {standing.last_exit}")
        if standing.linger:
            typer.echo(f"linger     {standing.linger}")
        if standing.detail:
            typer.echo(f"state      {standing.detail}")
        if standing.cure:
            typer.echo(f"hint       {standing.cure}")
    return 0 if standing.running else FAILED


@app.command()
def logs(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing lines as they come.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 50,
) -> None:
    """Show what the service logged."""
    keeper = _installed(dry=False)
    keeper.show_log(lines, follow=follow, file=_log_file(keeper))


def _keeper(home: Path, *, dry: bool) -> tuple[ServiceManager, Runner]:

    runner = Runner(os.environ, dry=dry, say=typer.echo)
    return keeper_of(home, runner), runner


def _installed(*, dry: bool, alone: bool = False) -> ServiceManager:
    """Return who keeps the service. Raises AkoshaError where it is not installed, or (`alone`) has a rival."""
    keeper, _ = _keeper(Path.home(), dry=dry)
    if not os.path.lexists(keeper.file):
        raise AkoshaError(
            f"the service is not installed: there is no {keeper.file}", hint="akosha-agent service install"
        )
    if alone:
        _check_alone(keeper, _installed_settings(keeper))
    return keeper


def _environment_file(keeper: ServiceManager) -> Path | None:

    return env.environment_file(keeper.root) if keeper.name == "systemd" else None


def _words(options: Options) -> list[str]:
    """Return the options that the service is started with."""
    words = []
    given = {"--data-dir": options.data_dir, "--state-dir": options.state_dir, "--settings": options.settings_file}
    for option, path in given.items():
        if path is not None:
            words += [option, os.path.abspath(path.expanduser())]  # noqa: PTH100 - links are kept as they are named
    return words


def _check_carried(carried: dict[str, str], file: Path | None) -> None:
    if file is not None:
        raise AkoshaError("--with-environment is for macOS", hint=f"put the variables into {file}")
    if "AWS_SESSION_TOKEN" in carried:
        raise AkoshaError(
            "AWS_SESSION_TOKEN is set: these credentials end within hours",
            hint="give the service lasting ones, or a profile in ~/.aws/config that gets new ones by itself",
        )


def _settings(home: Path, order: InstallOrder, environ: dict[str, str]) -> tuple[Settings, tuple[str, ...]]:
    """Load the settings as the service will, and what the user should hear of them. Raises SettingsError."""
    options = dict(zip(order.words, order.words[1:], strict=False))
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


def _check_alone(keeper: ServiceManager, settings: Settings | None) -> None:

    if settings is not None:
        check_alone(keeper, settings)


def _log_file(keeper: ServiceManager) -> Path | None:
    """Return the file that the service logs to by its settings."""
    settings = _installed_settings(keeper)
    return settings.agent_log_file if settings else None


def _installed_settings(keeper: ServiceManager) -> Settings | None:
    """Return the settings of the service as it is installed; None where they are wrong, or not to be found."""
    order = keeper.order_in(sealed_file.read(keeper.file)[1])
    if order is None:
        return None
    home, file = Path.home(), _environment_file(keeper)
    environ = installer.service_environment(home, order, env.read_environment(file) if file else {})
    try:
        return _settings(home, order, environ)[0]
    except SettingsError:
        return None


def _yes(value: bool) -> str:
    return "yes" if value else "no"
