"""The command `init`. Nothing is stored before the test of the destination has passed, except with `--force`."""

import os
import sys
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from agent.bootstrap.home import Home
from agent.bootstrap.stores import location_of
from agent.domain.errors import AkoshaError, SettingsError
from agent.domain.routing import CLOUD
from agent.entrypoints import logs
from agent.entrypoints.cli.command import FAILED, CommandGroup
from agent.entrypoints.cli.options import DataDir, StateDir
from agent.entrypoints.doctor import output
from agent.entrypoints.init import dialogue
from agent.entrypoints.init.answers import ANSWER, HTTP_TOKEN, Answers, Flags, answers, given_directories
from agent.entrypoints.init.check import (
    failed,
    find_databases,
    has_databases,
    only_credentials_refused,
    try_destination,
    with_advice,
)
from agent.entrypoints.init.destination import ADDRESSES
from agent.entrypoints.init.integrations import Installation, Wishes, install_service, wanted_installations
from agent.entrypoints.service import environment as env
from agent.entrypoints.service.status import service_status
from agent.entrypoints.shutdown import run_to_end
from agent.entrypoints.stored_settings import (
    Draft,
    draft,
    not_stored,
    notice_of_earlier_settings,
    set_in_shell_only,
    shell_settings,
)
from agent.settings import Settings
from agent.settings.own_files import config_file, config_home, credentials_file

KEEP_UPLOADING = "Everything is uploaded; for later changes: akosha-agent service install, or akosha-agent run"

INTERRUPTED = 130
"""128 + SIGINT, as for other commands."""

T = TypeVar("T")

app = CommandGroup()


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
    flags = Flags(
        to=to, bucket=bucket, region=region, system_id=system_id, keys_from_stdin=keys_from_stdin,
        directories=given_directories(data_dir, state_dir), allow_plaintext=allow_plaintext,
        yes=yes, force=force,
    )  # fmt: skip
    logs.configure(logs.NOTHING, "auto")
    try:
        known = _draft(flags.directories, {"agent_data_dir": "--data-dir", "agent_state_dir": "--state-dir"})
        databases = _run(find_databases(known))
        output.show([("databases", finding) for finding in databases], conclusion=False)
        _show_present(known)
        with ExitStack() as undo:
            accepted = _accepted(flags, known, undo)
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
        dialogue.say("\nakosha-agent: stopped; nothing was stored", err=True)
        return INTERRUPTED
    try:
        return _apply(accepted, installations, syncs=has_databases(databases))
    except (typer.Abort, KeyboardInterrupt):
        done = "stopped; the settings are stored. The rest is done by: akosha-agent init"
        dialogue.say(f"\nakosha-agent: {done}", err=True)
        return INTERRUPTED


def _accepted(flags: Flags, known: Draft, undo: ExitStack) -> Draft | None:
    """Ask until a destination passes the test; return the settings, or None if the user gives up.

    `undo` removes what the test has created for them.
    """
    earlier: Answers | None = None
    while True:
        question = "Answer the questions again?"
        try:
            given = answers(flags, known, earlier)
            found = _draft(given.changes, given.origins)
            findings = with_advice(_run(try_destination(found, undo)), given.origin_of_keys)
        except SettingsError as error:
            if flags.yes:
                raise
            dialogue.say(f"akosha-agent: {error}", err=True)
            earlier = None
        else:
            output.show([("target", finding) for finding in findings], conclusion=False)
            if not failed(findings) or flags.force:
                return found
            undo.close()
            dialogue.say("akosha-agent: the test failed; nothing was stored (--force stores it anyway)", err=True)
            earlier = given if given.origin_of_keys == ANSWER and only_credentials_refused(findings) else None
            if earlier is not None:
                question = f"Type the {'token' if given.changes.get(HTTP_TOKEN) else 'keys'} again?"
        if flags.yes or not dialogue.confirm(question, default=True):
            return None
        flags = flags.without_address()


def _apply(accepted: Draft, installations: Sequence[Installation], *, syncs: bool) -> int:
    """Install what is wanted, sync if `syncs`, and show the status. Raises typer.Abort if Ctrl-C stops the sync."""
    written_at = Home.of(accepted.loaded.settings).clock.now()
    for name in accepted.files:
        dialogue.say(f"stored in {name}")
    for warning in accepted.warnings:
        dialogue.say(f"warning: {warning}", err=True)
    settings, problems = accepted.loaded.settings, 0
    for _, name in set_in_shell_only(settings, shell_settings(os.environ, Path.home()), os.environ):
        dialogue.say(f"warning: {name} is set in this shell, whose commands use it instead", err=True)
    has_service = service_status(Path.home(), os.environ).installed  # one that is installed now warns by itself
    if has_service and install_service not in installations and (missing := _missing_variables(accepted)):
        dialogue.say(f"warning: {missing}", err=True)
    for install in installations:
        try:
            install()
        except AkoshaError as error:
            dialogue.say(f"akosha-agent: {logs.redacted(str(error))}", err=True)
            problems += 1
    if accepted.files and (notice := notice_of_earlier_settings(written_at, settings)):
        dialogue.say(notice)
        return FAILED if problems else 0
    if syncs:
        typer.echo("\nSync")
        code = run_to_end(_sync(settings))
        if code > FAILED:
            raise typer.Abort
        problems += code
    else:
        dialogue.say("\nThere are no databases yet: the agent syncs when Session-Buddy has created them.")
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
            dialogue.say(f"settings are also read from {name}")
    if settings.cloud_configured:
        location = location_of(CLOUD, settings.cloud_endpoint, settings.cloud_bucket, settings.cloud_region)
        origin = origins["cloud_bucket" if settings.cloud_bucket else "cloud_endpoint"]
        dialogue.say(f"memories go to {location} ({origin})")
    elif settings.target_chosen:
        dialogue.say(f"memories go to {settings.http_endpoint} ({origins['http_endpoint']})")


def _draft(changes: Mapping[str, str | None], origins: Mapping[str, str]) -> Draft:
    found = draft(changes, os.environ, Path.home(), Path.cwd(), origins)
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
