"""`doctor`: runs all checks, prints their findings, and exits with the worst level."""

import json
from collections.abc import Sequence

import typer

from agent.domain.errors import SettingsError
from agent.domain.plain_text import printable_json
from agent.entrypoints import logs
from agent.entrypoints.cli.command import CommandGroup, LogMode, Options
from agent.entrypoints.cli.options import AsJson
from agent.entrypoints.doctor import (
    agent_checks,
    delivery_checks,
    machine_checks,
    nats_checks,
    output,
    settings_checks,
    webhook_checks,
)
from agent.entrypoints.doctor.context import DoctorContext
from agent.entrypoints.doctor.findings import Check, Finding, exit_code, run_checks

SECONDS = 20.0
"""Time limit of each check, and of all: they run concurrently."""

SETTINGS, MACHINE, DELIVERY, AGENT = "settings", "this machine", "delivery", "agent"

_MOUNT = "if its disk or network share hangs, mount it again, or set another directory"
_NETWORK = "check the network, and the address in the settings"
_SYSTEMCTL = "check systemctl --user status (macOS: launchctl list)"

CHECKS = (  # in output order
    Check(SETTINGS, settings_checks.NAME, settings_checks.sources, _MOUNT),
    Check(SETTINGS, settings_checks.BUILT_IN, settings_checks.built_in_sync, _MOUNT),
    Check(MACHINE, machine_checks.DATA, machine_checks.data_directory, _MOUNT),
    Check(MACHINE, machine_checks.DATABASES, machine_checks.databases, _MOUNT),
    Check(MACHINE, machine_checks.STATE, machine_checks.state_directory, _MOUNT),
    Check(MACHINE, machine_checks.SPACE, machine_checks.free_space, _MOUNT),
    Check(MACHINE, machine_checks.LEDGER, machine_checks.ledger, _MOUNT),
    Check(MACHINE, machine_checks.INOTIFY, machine_checks.inotify, _MOUNT),
    Check(DELIVERY, delivery_checks.CREDENTIALS, delivery_checks.credentials, _NETWORK, needs_settings=True),
    Check(DELIVERY, delivery_checks.BUCKET, delivery_checks.bucket, _NETWORK, needs_settings=True),
    Check(DELIVERY, delivery_checks.DISK, delivery_checks.target_disk, _MOUNT, needs_settings=True),
    Check(DELIVERY, delivery_checks.LEFTOVERS, delivery_checks.leftovers, _NETWORK, needs_settings=True),
    Check(DELIVERY, delivery_checks.AKOSHA, delivery_checks.akosha, _NETWORK, needs_settings=True),
    Check(DELIVERY, delivery_checks.CLOCK, delivery_checks.clock, _NETWORK, needs_settings=True),
    Check(DELIVERY, nats_checks.NATS, nats_checks.nats, _NETWORK, needs_settings=True),
    Check(DELIVERY, webhook_checks.WEBHOOKS, webhook_checks.webhooks, _NETWORK, needs_settings=True),
    Check(AGENT, agent_checks.AGENT, agent_checks.agent, agent_checks.RESTART),
    Check(AGENT, agent_checks.WARNINGS, agent_checks.warnings, _MOUNT),
    Check(AGENT, agent_checks.SERVICE, agent_checks.service, _SYSTEMCTL),
    Check(AGENT, agent_checks.HOOK, agent_checks.hook, _MOUNT),
    Check(AGENT, agent_checks.VERSIONS, agent_checks.versions, _MOUNT),
)


app = CommandGroup()


@app.command()
async def doctor(options: Options, as_json: AsJson = False) -> int:
    """Check settings, directories, servers and services, and show how to fix each problem.

    Exits with 0 (no problems; notes do not count), 1 (warnings) or 2 (errors).
    """
    return await diagnose(read_context(options), as_json=as_json)


def read_context(options: Options) -> DoctorContext:
    """Return the context with the settings, or with the error if they are invalid.

    Without `-v`, nothing is logged: the findings report the same problems.
    """
    logs.configure("WARNING" if options.verbose else logs.NOTHING, "auto")
    try:
        loaded = options.read(LogMode.NOTHING)
    except SettingsError as problem:
        return DoctorContext.without_settings(problem, options.data_dir, options.state_dir)
    return DoctorContext(settings=loaded.settings, origins=loaded.origins, warnings=loaded.warnings)


async def examine(
    context: DoctorContext, checks: Sequence[Check] = CHECKS, *, seconds: float = SECONDS
) -> list[tuple[str, Finding]]:
    """Run the checks and close the context; return (group, finding) in the order of the checks."""
    try:
        return await run_checks(context, checks, seconds=seconds)
    finally:
        await context.aclose()


async def diagnose(context: DoctorContext, *, as_json: bool) -> int:
    """Print the findings. Returns 0 (no problems), 1 (warnings) or 2 (errors)."""
    found = await examine(context)
    if as_json:
        typer.echo(printable_json(json.dumps(output.document(found), indent=2, ensure_ascii=False)))
    else:
        output.show(found)
    return exit_code([finding for _, finding in found])
