"""Tests a destination with the checks of `doctor`, before anything is stored."""

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from agent.domain.errors import SettingsError
from agent.entrypoints.doctor import delivery_checks, machine_checks, settings_checks
from agent.entrypoints.doctor.context import DoctorContext
from agent.entrypoints.doctor.findings import Check, Finding, Level
from agent.entrypoints.doctor.run import CHECKS, examine
from agent.entrypoints.init.answers import ANSWER
from agent.entrypoints.stored_settings import Draft

_DATABASES = {machine_checks.DATA, machine_checks.DATABASES, settings_checks.BUILT_IN}
_BUCKET = {delivery_checks.CREDENTIALS, delivery_checks.BUCKET, delivery_checks.DISK, delivery_checks.CLOCK}
_AKOSHA = {delivery_checks.AKOSHA, delivery_checks.CLOCK}


async def find_databases(draft: Draft) -> list[Finding]:
    """Return what is known about the databases, and about Session-Buddy's own sync."""
    found = await _run(draft, _DATABASES)
    return [one for one in found if one.name != settings_checks.BUILT_IN or one.level is Level.WARNING]


async def try_destination(draft: Draft, undo: ExitStack) -> list[Finding]:
    """Put, read, list and delete an object, or connect to the server; compare the clocks.

    A directory that does not exist is created; `undo` then removes it, unless there is a file in it. Raises
    SettingsError for the data directory, or a directory in it.
    """
    settings = draft.loaded.settings
    if not settings.cloud_configured:
        return await _run(draft, _AKOSHA)
    if settings.directory is not None:
        directory = settings.directory / settings.cloud_bucket
        if delivery_checks.is_below(directory, settings.agent_data_dir):
            raise SettingsError(
                f"{directory} is in the data directory, {settings.agent_data_dir}, and would be lost with it",
                hint="choose a directory on another disk",
            )
        with suppress(OSError):  # it exists; another error is reported by the check
            directory.mkdir()
            undo.callback(_remove_empty, directory)
    return await _run(draft, _BUCKET)


def has_databases(found: Sequence[Finding]) -> bool:
    """Return whether the data directory has a database."""
    return any(finding.name.startswith("database ") for finding in found)


def only_credentials_refused(found: Sequence[Finding]) -> bool:
    """Return whether the test has failed only because the target refused the keys or the token."""
    return failed(found) and all(one.credentials_refused for one in found if one.level is Level.ERROR)


def with_advice(found: Sequence[Finding], origin: str) -> list[Finding]:
    """Return the findings with advice on keys or a token: where they come from, and what to do if they are refused.

    `origin` is where the user has given them, "" if they come from elsewhere, such as ~/.aws. They are not stored yet.
    """
    advised = []
    for one in found:
        if one.credentials_refused:
            advised.append(replace(one, hint=_advice(one, origin)))
        elif one.name == delivery_checks.CREDENTIALS and one.level is Level.ERROR:
            advised.append(replace(one, hint="type them, or use --keys-from-stdin, or run aws configure"))
        elif one.name == delivery_checks.CREDENTIALS and origin:
            advised.append(replace(one, found=one.found.replace(delivery_checks.OWN_FILE, origin)))
        else:
            advised.append(one)
    return advised


def _advice(finding: Finding, origin: str) -> str:
    is_token = finding.name == delivery_checks.AKOSHA
    if origin == ANSWER:
        return "type the token again" if is_token else "type both again: they may not belong together"
    if origin:
        return f"{'the token was sent as you gave it' if is_token else 'both were sent as you gave them'} ({origin})"
    return "give the server's token: type it, or use --keys-from-stdin" if is_token else finding.hint


def failed(found: Sequence[Finding]) -> bool:
    """Return whether a finding is an error."""
    return any(finding.level is Level.ERROR for finding in found)


def _remove_empty(directory: Path) -> None:
    for path, _, _ in os.walk(directory, topdown=False):
        with suppress(OSError):
            Path(path).rmdir()


async def _run(draft: Draft, names: set[str]) -> list[Finding]:
    checks: list[Check] = [check for check in CHECKS if check.name in names]
    context = DoctorContext(
        settings=draft.loaded.settings, origins=draft.loaded.origins, s3_credentials=draft.s3_credentials
    )
    return [finding for _, finding in await examine(context, checks) if finding.level is not Level.SKIPPED]
