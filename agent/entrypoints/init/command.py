"""The command `init`. Nothing is stored before the test of the destination has passed, except with `--force`."""

import os
import socket
import sys
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from agent.bootstrap.home import Home
from agent.bootstrap.stores import location_of
from agent.domain.errors import AkoshaError, SettingsError
from agent.domain.naming import sanitise_system_id
from agent.domain.plain_text import printable
from agent.domain.routing import CLOUD, HTTP
from agent.entrypoints import logs
from agent.entrypoints.cli.command import FAILED, CommandGroup
from agent.entrypoints.cli.options import DataDir, StateDir
from agent.entrypoints.doctor import output
from agent.entrypoints.init import dialogue
from agent.entrypoints.init.check import failed, find_databases, has_databases, try_destination
from agent.entrypoints.init.destination import ADDRESSES, KEYS, Destination, Kind, from_address
from agent.entrypoints.init.integrations import Installation, Wishes, install_service, wanted_installations
from agent.entrypoints.service import environment as env
from agent.entrypoints.shutdown import run_to_end
from agent.entrypoints.stored_settings import (
    Draft,
    draft,
    not_stored,
    notice_of_earlier_settings,
    overriding_variable,
    service_like,
    set_in_shell_only,
    shell_settings,
)
from agent.settings import Settings, load
from agent.settings.aws_config import aws_endpoint
from agent.settings.endpoints import ALL_HOSTS
from agent.settings.model import FIELDS, S3_KEYS
from agent.settings.own_files import config_file, config_home, credentials_file

KEEP_UPLOADING = "Everything is uploaded; for later changes: akosha-agent service install, or akosha-agent run"

INTERRUPTED = 130
"""128 + SIGINT, as for other commands."""

T = TypeVar("T")
Changes = dict[str, str | None]

app = CommandGroup()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flags:
    """The answers that were given as options; None: ask, or with `yes` take the default."""

    to: str | None
    bucket: str
    region: str
    system_id: str | None
    directories: Changes
    keys_from_stdin: bool
    allow_plaintext: bool
    yes: bool
    force: bool


@app.command()
def init(
    to: Annotated[
        str | None, typer.Option("--to", metavar="ADDRESS", help=f"Where memories go: {ADDRESSES}.", show_default=False)
    ] = None,
    bucket: Annotated[str, typer.Option("--bucket", help="The bucket at that address.", show_default=False)] = "",
    region: Annotated[str, typer.Option("--region", help="The bucket's region.", show_default=False)] = "",
    system_id: Annotated[
        str | None, typer.Option("--system-id", help="The name of this machine in the target.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    state_dir: StateDir = None,
    keys_from_stdin: Annotated[
        bool,
        typer.Option(
            "--keys-from-stdin",
            help="Read the access key ID and the secret access key, or the Akosha token, as lines of standard input.",
        ),
    ] = False,
    allow_plaintext: Annotated[
        bool, typer.Option("--allow-plaintext", help="Allow http:// to the host of --to, on a network that you trust.")
    ] = False,
    service: Annotated[
        bool | None, typer.Option("--service/--no-service", help="Run the agent as a service.", show_default=False)
    ] = None,
    hook: Annotated[
        bool | None,
        typer.Option("--hook/--no-hook", help="Install the session-end hook of Claude Code.", show_default=False),
    ] = None,
    mcp: Annotated[
        bool | None, typer.Option("--mcp/--no-mcp", help="Add the MCP server to Claude Code.", show_default=False)
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing: install only what a flag names, and keep all other defaults.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Store the settings even if the test fails.")] = False,
) -> int:
    """Set the agent up: choose where memories go, test that, store it, and sync for the first time.

    Asks what the options do not answer. Keys come from a prompt, from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or
    from standard input. A second run shows what is set, and changes only what is asked for. Nothing is stored before
    the test has passed.
    """
    if not yes and not sys.stdin.isatty():
        raise SettingsError(
            "init asks questions, but standard input is not a terminal", hint="akosha-agent init --yes --to ADDRESS"
        )
    flags = _Flags(
        to=to, bucket=bucket, region=region, system_id=system_id, keys_from_stdin=keys_from_stdin,
        directories=_directories(data_dir, state_dir), allow_plaintext=allow_plaintext,
        yes=yes, force=force,
    )  # fmt: skip
    logs.configure(logs.NOTHING, "auto")
    try:
        with ExitStack() as undo:
            accepted = _accepted(flags, undo)
            if accepted is None:
                return FAILED
            installations = wanted_installations(
                accepted.loaded.settings,
                changed=bool(accepted.files),
                flags=Wishes(service=service, hook=hook, mcp=mcp, ask=not yes),
            )
            accepted.write()
            undo.pop_all()
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("\nakosha-agent: stopped; nothing was stored", err=True)
        return INTERRUPTED
    try:
        return _apply(accepted, installations)
    except (typer.Abort, KeyboardInterrupt):
        done = "stopped; the settings are stored. The rest is done by: akosha-agent init"
        typer.echo(f"\nakosha-agent: {done}", err=True)
        return INTERRUPTED


def _accepted(flags: _Flags, undo: ExitStack) -> Draft | None:
    """Ask until a destination passes the test; return the settings, or None if the user gives up.

    `undo` removes what the test has created for them.
    """
    known = _draft(flags.directories)
    if flags.system_id is not None:
        _draft({**flags.directories, "system_id": flags.system_id})  # a wrong one could not be answered again
    output.show([("databases", finding) for finding in _run(find_databases(known))], conclusion=False)
    _show_present(known)
    while True:
        try:
            found = _draft(_answers(flags, known))
            findings = _run(try_destination(found, undo))
        except SettingsError as error:
            if flags.yes:
                raise
            typer.echo(f"akosha-agent: {error}", err=True)
        else:
            output.show([("target", finding) for finding in findings], conclusion=False)
            if not failed(findings) or flags.force:
                return found
            undo.close()
            typer.echo("akosha-agent: the test failed; nothing was stored (--force stores it anyway)", err=True)
        if flags.yes or not dialogue.confirm("Answer the questions again?", default=True):
            return None
        # These were wrong, or are for the earlier address.
        flags = replace(flags, to=None, bucket="", region="", keys_from_stdin=False, allow_plaintext=False)


def _answers(flags: _Flags, known: Draft) -> Changes:
    """Return the changes that the options and the answers ask for. Raises SettingsError."""
    destination = _destination(flags, known.loaded.settings)
    changes: Changes = dict(flags.directories)
    if destination is not None:
        destination = _with_aws_configuration(destination)
        changes |= _destination_settings(destination)
        changes |= _plaintext(flags, destination, known.loaded.settings)
    changes |= _secrets(flags, destination, known)
    return changes | _system_id(flags, known.loaded.settings)


def _destination(flags: _Flags, settings: Settings) -> Destination | None:
    """Return the destination that is asked for; None to keep the present one."""
    cwd, home = Path.cwd(), Path.home()
    if flags.to is not None:
        destination = from_address(flags.to, flags.bucket, flags.region, cwd, home)
        if destination.kind is Kind.AKOSHA:
            typer.echo(dialogue.AKOSHA_NEEDS)
        return destination
    if flags.bucket or flags.region:
        raise SettingsError("--bucket and --region need --to", hint=f"--to {ADDRESSES}")
    is_set = _is_set(settings)
    if flags.yes:
        if not is_set:
            raise SettingsError("--yes needs --to: where memories go is not set", hint=f"--to {ADDRESSES}")
        return None
    if is_set and not dialogue.confirm("Send memories elsewhere?", default=False):
        return None
    return dialogue.ask_destination(cwd, home)


def _with_aws_configuration(destination: Destination) -> Destination:
    """Return a bucket of AWS with the endpoint and region of this shell's variables, which the service does not see."""
    if destination.kind is not Kind.BUCKET or "cloud_endpoint" in destination.settings:
        return destination
    home, given = Path.home(), dict[str, str]()
    of_shell, of_service = (aws_endpoint(one, home) for one in (os.environ, service_like(os.environ)))
    if of_shell is not None and (of_service is None or of_service.url.value != of_shell.url.value):
        given["cloud_endpoint"] = of_shell.url.value
    if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
        given["cloud_region"] = region
    return replace(destination, settings={**given, **destination.settings})


def _destination_settings(destination: Destination) -> Changes:
    """Return the settings of a destination, and None for those that it does not have.

    A key that another source sets, such as a file of Session-Buddy, gets the default as its value instead.
    """
    home, own = Path.home(), {file(os.environ, Path.home()).path: b"" for file in (config_file, credentials_file)}
    rest: Changes = {key: str(FIELDS[key].default) for key in KEYS if key not in destination.settings}
    with suppress(SettingsError):  # they may be valid only together with the agent's own files
        others = load(environ=service_like(os.environ), cwd=home, home=home, drafts=own).settings
        rest = {key: None if getattr(others, key) == default else default for key, default in rest.items()}
    return {**destination.settings, **rest}


def _plaintext(flags: _Flags, destination: Destination, settings: Settings) -> Changes:
    host, allowed = destination.unencrypted_host, settings.agent_allow_plaintext
    if not host or allowed == ALL_HOSTS or host in allowed.split(","):
        return {}
    question = f"http:// sends your memories unencrypted to {host}. Allow that for this host?"
    if flags.allow_plaintext or (not flags.yes and dialogue.confirm(question, default=False)):
        return {"agent_allow_plaintext": f"{allowed},{host}".lstrip(",")}
    raise SettingsError(f"http:// to {host} is not allowed", hint="use https://, or --allow-plaintext")


def _secrets(flags: _Flags, destination: Destination | None, known: Draft) -> Changes:
    """Return the keys of a bucket, or the token of an Akosha server, if the user gives any."""
    settings = known.loaded.settings
    stored = Kind.AKOSHA if not settings.cloud_configured else Kind.DIRECTORY if settings.directory else Kind.BUCKET
    kind = destination.kind if destination else stored
    if kind is Kind.DIRECTORY:
        return {}
    names = ("http_token",) if kind is Kind.AKOSHA else S3_KEYS[:2]
    replaced: Changes = {} if kind is Kind.AKOSHA else {S3_KEYS[2]: None}  # a session token belongs to its keys
    if flags.keys_from_stdin:
        lines = {key: sys.stdin.readline().strip() for key in names}
        if empty := [key for key, line in lines.items() if not line]:
            raise SettingsError(f"standard input has no line for {empty[0]}", hint=f"write {' and '.join(names)}")
        return {**lines, **replaced}
    in_shell: Changes = {key: os.environ.get(overriding_variable(key, os.environ), "") for key in names}
    expires = kind is Kind.BUCKET and "AWS_SESSION_TOKEN" in os.environ
    if all(in_shell.values()) and not expires:
        if in_shell == _stored(known, names):
            return {}
        variables = " and ".join(overriding_variable(key, os.environ) for key in names)
        question = f"Store the value of {variables}, which the service does not see, in credentials.yaml?"
        return in_shell | replaced if flags.yes or dialogue.confirm(question, default=True) else {}
    if kind is Kind.AKOSHA:
        return _token(flags, destination, settings)
    if flags.yes or destination is None:
        return {}
    otherwise = "the stored one" if known.s3_credentials else "the AWS configuration in ~/.aws"
    access_key = dialogue.ask(f"Access key ID (empty: {otherwise})", str, default="")
    if not access_key:
        return {}
    secret = dialogue.ask_secret("Secret access key (not shown)", required=True)
    return {S3_KEYS[0]: access_key, S3_KEYS[1]: secret, **replaced}


def _token(flags: _Flags, destination: Destination | None, settings: Settings) -> Changes:
    """Ask for the token of an Akosha server. A stored token is not sent to another server than before."""
    if destination is None:
        return {}
    is_new = destination.settings["http_endpoint"] != settings.http_endpoint
    has_token = bool(settings.http_token.get_secret_value()) and not is_new
    question = f"Token of the server (not shown; empty: {'the stored one' if has_token else 'none'})"
    token = "" if flags.yes else dialogue.ask_secret(question)
    return {"http_token": token} if token else {"http_token": None} if is_new else {}


def _stored(known: Draft, names: Sequence[str]) -> Changes:
    keys = known.s3_credentials
    s3 = dict(zip(S3_KEYS, (keys.access_key_id, keys.secret_access_key), strict=False)) if keys else {}
    held = {"http_token": known.loaded.settings.http_token.get_secret_value(), **s3}
    return {name: held.get(name) for name in names}


def _system_id(flags: _Flags, settings: Settings) -> Changes:
    """Return the system ID if it is given. It is asked for before the first start only, which stores the default."""
    if flags.system_id is not None:
        return {"system_id": flags.system_id}
    is_new = not settings.system_id and not (settings.agent_state_dir / "identity.json").exists()
    if flags.yes:
        return {}
    if not is_new:
        typer.echo("this machine has a name already (akosha-agent status); --system-id NAME changes it")
        return {}
    default = sanitise_system_id(socket.gethostname())
    chosen = dialogue.ask("Name of this machine", _system_id_of, default=default)
    return {} if chosen == default else {"system_id": chosen}


def _system_id_of(answer: str) -> str:
    """Return the answer if it is a system ID. Raises ValueError, AkoshaError."""
    if (possible := sanitise_system_id(answer)) != answer:
        raise ValueError(f"may have letters, digits, - and _ only; for example {possible}")
    return answer


def _apply(accepted: Draft, installations: Sequence[Installation]) -> int:
    """Install what is wanted, sync, and show the status. Raises typer.Abort if Ctrl-C stops the sync."""
    written_at = Home.of(accepted.loaded.settings).clock.now()
    for name in accepted.files:
        typer.echo(f"stored in {name}")
    for warning in accepted.warnings:
        typer.echo(printable(f"warning: {warning}"), err=True)
    settings, problems = accepted.loaded.settings, 0
    for _, name in set_in_shell_only(settings, shell_settings(os.environ, Path.home()), os.environ):
        typer.echo(f"warning: {name} is set in this shell, whose commands use it instead", err=True)
    if install_service not in installations and (missing := _missing_variables(accepted)):
        typer.echo(f"warning: {missing}", err=True)
    for install in installations:
        try:
            install()
        except AkoshaError as error:
            typer.echo(f"akosha-agent: {logs.redacted(str(error))}", err=True)
            problems += 1
    if accepted.files and (notice := notice_of_earlier_settings(written_at, settings)):
        typer.echo(notice)
        return FAILED if problems else 0
    if has_databases(_run(find_databases(accepted))):
        typer.echo("\nSync")
        code = run_to_end(_sync(settings))
        if code > FAILED:
            raise typer.Abort
        problems += code
    else:
        typer.echo("\nThere are no databases yet: the agent syncs when Session-Buddy has created them.")
    typer.echo()
    run_to_end(_show_status(settings))
    return FAILED if problems else 0


def _missing_variables(accepted: Draft) -> str:
    """Return a notice of the variables of this shell that the test used and a service lacks; "" if there are none."""
    file = env.environment_file(config_home(os.environ, Path.home())) if sys.platform != "darwin" else None
    names = env.missing_variables(os.environ, env.read_environment(file) if file else ())
    names = not_stored(names, accepted.loaded.settings, has_keys=accepted.s3_credentials is not None)
    return env.notice_of_missing(names, file) if names else ""


async def _sync(settings: Settings) -> int:
    from agent.entrypoints.cli.sync import sync_shown  # noqa: PLC0415 - the dialogue does not need it
    from agent.entrypoints.sync_client import SyncClient  # noqa: PLC0415

    return await sync_shown(await SyncClient.prepare(settings))


async def _show_status(settings: Settings) -> int:
    """Print the status. If nothing is missing but an agent, its first line says so, and how to start one."""
    from agent.entrypoints.cli.status import lines_of  # noqa: PLC0415 - the dialogue does not need them
    from agent.entrypoints.status_verdict import Severity  # noqa: PLC0415
    from agent.entrypoints.status_view import gather_status  # noqa: PLC0415
    from agent.entrypoints.text_lines import Line, Style, print_lines  # noqa: PLC0415

    document = await gather_status(settings)
    lines = lines_of(document, settings)
    with_agent = document.judged(agent_runs=True).verdict
    if document.running is None and with_agent is not None and with_agent.severity is Severity.SAFE:
        lines[0] = Line(KEEP_UPLOADING, Style.GOOD)
    print_lines(lines)
    return 0


def _show_present(known: Draft) -> None:
    """Print the settings files of others, and where memories go now."""
    settings, origins = known.loaded.settings, known.loaded.origins
    own = {file(os.environ, Path.home()).name for file in (config_file, credentials_file)}
    for name in known.loaded.files:
        if name not in own:
            typer.echo(printable(f"settings are also read from {name}"))
    if settings.cloud_configured:
        location = location_of(CLOUD, settings.cloud_endpoint, settings.cloud_bucket, settings.cloud_region)
        origin = origins["cloud_bucket" if settings.cloud_bucket else "cloud_endpoint"]
        typer.echo(printable(f"memories go to {location} ({origin})"))
    elif _is_set(settings):
        typer.echo(f"memories go to {settings.http_endpoint} ({origins['http_endpoint']})")


def _is_set(settings: Settings) -> bool:
    return settings.cloud_configured or settings.force_method == HTTP


def _directories(data_dir: Path | None, state_dir: Path | None) -> Changes:
    of_shell, of_service = (shell_settings(one, Path.home()) for one in (os.environ, service_like(os.environ)))
    if data_dir is None and of_shell and of_service and of_shell.agent_data_dir != of_service.agent_data_dir:
        data_dir = of_shell.agent_data_dir  # of a variable of this shell, such as Session-Buddy's
    given = {"agent_data_dir": data_dir, "agent_state_dir": state_dir}
    return {key: str(path) for key, path in given.items() if path is not None}


def _draft(changes: Mapping[str, str | None]) -> Draft:
    found = draft(changes, os.environ, Path.home(), Path.cwd())
    logs.hide(*logs.known_secrets(found.loaded.settings, os.environ))
    if found.s3_credentials is not None:
        logs.hide(found.s3_credentials.secret_access_key)
    return found


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end and return its result. Raises typer.Abort after Ctrl-C."""
    results: list[T] = []

    async def working() -> int:
        results.append(await work)
        return 0

    if run_to_end(working()):
        raise typer.Abort
    return results[0]
