"""Checks of the targets (bucket or directory, and the Akosha server) and of their clocks."""

import os
import secrets
import shlex
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

from agent.adapters.akosha import AkoshaSink
from agent.adapters.directory_store import DirectoryStore
from agent.adapters.s3 import S3Store
from agent.adapters.s3.credential_sources import STORED
from agent.application.monitoring.status import DELIVERED_TO_AKOSHA
from agent.application.sync.delivery_probe import ProbeState
from agent.bootstrap.stores import MEBIBYTE
from agent.domain.errors import NotPermitted, SinkError, StateError, StoreError
from agent.domain.memories import CONFIRMED, EMBEDDING_HINT, NO_EMBEDDING
from agent.domain.naming import uploads_prefix
from agent.domain.routing import HTTP
from agent.entrypoints.doctor.context import CONNECT_SECONDS, DoctorContext, in_thread
from agent.entrypoints.doctor.findings import Finding, Level, error, from_error, note, ok, skipped, warning
from agent.entrypoints.formatting import local_time

CREDENTIALS, BUCKET, LEFTOVERS, CLOCK, AKOSHA = "credentials", "bucket", "leftovers", "clock", "Akosha"
DIRECTORY, DISK = "directory", "target disk"
AKOSHA_MEMORIES = "memories in Akosha"

NO_CLOUD = "no bucket is configured"
SET_UP = f"{NO_CLOUD} (akosha-agent init sets one up)"
CHECK_ADDRESS = "check akosha_cloud_bucket and akosha_cloud_endpoint"
SET_KEYS = (
    "akosha-agent config set cloud_access_key_id - cloud_secret_access_key -, or set AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or run aws configure"
)
OTHER_DISK = "mount the other disk or the NAS first, or choose a directory there: akosha-agent init"
START_AKOSHA = "start Akosha, or set akosha_http_endpoint"
LIFECYCLE = (
    "the next upload continues or removes them; a lifecycle rule that aborts incomplete uploads removes them, too"
)
SET_CLOCK = "synchronise the clock: sudo timedatectl set-ntp true (macOS: sudo sntp -sS time.apple.com)"

PROBE_NAME = ".probe"
UNFINISHED_AGE = timedelta(days=1)
"""No upload takes a day: an older unfinished one was left by a process that was killed."""
WARN_SECONDS, REFUSED_SECONDS = 60.0, 300.0
"""Akosha refuses a request if the client's clock is more than five minutes ahead of its own."""

OWN_FILE = "credentials.yaml of akosha-agent"
_CREDENTIAL_SOURCES = {
    "env": "the environment (AWS_ACCESS_KEY_ID)",
    STORED: OWN_FILE,
    "shared-credentials-file": "~/.aws/credentials",
    "config-file": "~/.aws/config",
    "assume-role": "an assumed role",
    "assume-role-with-web-identity": "a role assumed with a web identity",
    "sso": "AWS SSO",
    "login": "aws login",
    "custom-process": "the credential_process of ~/.aws/config",
    "boto-config": "a boto configuration file",
    "container-role": "the role of this container",
    "iam-role": "the role of this instance",
}


async def credentials(context: DoctorContext) -> list[Finding]:
    if not context.settings.cloud_configured:
        return [skipped(CREDENTIALS, NO_CLOUD)]
    store = context.store()
    if not isinstance(store, S3Store):
        return [skipped(CREDENTIALS, "not needed for a directory")]
    found = await store.credentials()
    if found is None:
        return [error(CREDENTIALS, "none found in credentials.yaml or by the AWS credential chain", hint=SET_KEYS)]
    ending = f", key ending in {found.key_end}" if found.key_end else ""
    return [ok(CREDENTIALS, f"from {_CREDENTIAL_SOURCES.get(found.source, found.source)}{ending}")]


async def bucket(context: DoctorContext) -> list[Finding]:
    """Put, read, list and delete a small object. Delete permission is optional.

    The finding is named `directory` for a directory.
    """
    if not context.settings.cloud_configured:
        return [skipped(BUCKET, SET_UP)]
    s = context.settings
    directory = s.directory / s.cloud_bucket if s.directory is not None else None
    store = context.store()
    location, name = store.location, DIRECTORY if directory is not None else BUCKET
    try:
        key = await _probe_key(context)
        if directory is not None and await in_thread(
            lambda: not directory.exists() and os.access(directory.parent, os.W_OK | os.X_OK)
        ):
            return [ok(name, f"{location} does not exist yet: the first upload creates it")]
        if not await _round_trips(context, key):
            hint = "check for proxies that change responses, and that no other program writes to that key"
            return [error(name, f"{location}: the object read differs from the object written", hint=hint)]
    except StoreError as problem:
        if not problem.transient and isinstance(store, S3Store) and await store.credentials() is None:
            return [skipped(name, "there are no credentials")]  # that check reports the error
        return [from_error(name, problem, hint=CHECK_ADDRESS)]
    try:
        await context.store().delete([key])
    except NotPermitted:
        return [ok(name, f"{location}: put, get and list work; delete is not permitted, and not needed")]
    except StoreError as problem:
        return [from_error(name, problem, hint=CHECK_ADDRESS)]
    return [ok(name, f"{location}: put, get, list and delete work")]


async def target_disk(context: DoctorContext) -> list[Finding]:
    """Note if a directory target is on the disk of the databases, which would lose both. It may be the only disk."""
    settings = context.settings
    if settings.directory is None:
        return [skipped(DISK, "the target is not a directory")]
    directory, data = settings.directory / settings.cloud_bucket, settings.agent_data_dir
    if await in_thread(lambda: is_below(directory, data)):
        return [error(DISK, f"{directory} is in the data directory, {data}", hint=OTHER_DISK)]
    if await in_thread(lambda: _device(directory) == _device(data)):
        text = f"{directory} is on the same disk as the databases: if it fails, both are lost"
        return [note(DISK, text, hint=OTHER_DISK)]
    return [ok(DISK, "not that of the databases")]


def is_below(directory: Path, data: Path) -> bool:
    """Return whether a directory is the data directory or in it. Follows symbolic links. Blocks."""
    return directory.resolve().is_relative_to(data.resolve())


def _device(path: Path) -> int | None:
    """Return the device of a path, or of its nearest parent that exists."""
    existing = next((one for one in (path, *path.parents) if one.exists()), None)
    return None if existing is None else existing.stat().st_dev


async def leftovers(context: DoctorContext) -> list[Finding]:
    """Report unfinished uploads: left by killed processes, or possibly in progress."""
    if not context.settings.cloud_configured:
        return [skipped(LEFTOVERS, NO_CLOUD)]
    store, prefix = context.store(), uploads_prefix((await context.identity()).system_id)
    try:
        if isinstance(store, DirectoryStore):
            left, young = await store.count_unfinished(prefix), 0
        else:
            unfinished = await store.unfinished(prefix)
            left = sum(context.home.clock.now() - upload.started > UNFINISHED_AGE for upload in unfinished)
            young = len(unfinished) - left
    except NotPermitted:
        return [
            ok(LEFTOVERS, "not permitted to list unfinished uploads (s3:ListBucketMultipartUploads), and not needed")
        ]
    if left:
        return [warning(LEFTOVERS, f"{left} unfinished uploads take up space", hint=LIFECYCLE)]
    return [ok(LEFTOVERS, f"none; {young} may be in progress" if young else "none")]


async def clock(context: DoctorContext) -> list[Finding]:
    """Compare this machine's clock with the clocks of the servers that answer."""
    found: list[Finding] = []
    settings = context.settings
    if settings.cloud_configured and isinstance(store := context.store(), S3Store):
        with suppress(StoreError):  # reported by the check of the bucket
            prefix = uploads_prefix((await context.identity()).system_id)
            date = await store.server_date(prefix)
            found += _compared("the bucket's", _seconds_ahead(context, date))
    if HTTP in settings.route:
        sink = _sink(context)
        try:
            with suppress(SinkError):  # reported by the check of Akosha
                date = await sink.server_date(context.step_seconds)
                found += _compared("Akosha's", _seconds_ahead(context, date))
        finally:
            await sink.aclose()
    return found or [skipped(CLOCK, "no server reports its time")]


async def akosha(context: DoctorContext) -> list[Finding]:
    """Check the Akosha server. Unreachable is an error if http is the first method, a warning if it is the fallback."""
    settings = context.settings
    if HTTP not in settings.route:
        return [skipped(AKOSHA, "not used, because of akosha_force_method or akosha_enable_fallback")]
    sink = _sink(context)
    try:
        healthy = await sink.is_available()
        await sink.connect()
    except SinkError as problem:
        first = settings.route[0] == HTTP
        hint = (
            START_AKOSHA if first else f"{START_AKOSHA}; without an Akosha server, set akosha_enable_fallback to false"
        )
        if not settings.target_chosen:
            hint = "akosha-agent init chooses where memories go; or start Akosha there"
        finding = from_error(AKOSHA, problem, hint=hint, level=Level.ERROR if first else Level.WARNING)
    else:
        version = sink.health_version if healthy else ""
        finding = ok(AKOSHA, f"{sink.location} accepts memories, version {version or 'unknown'}")
    finally:
        await sink.aclose()
    return [finding, *await _delivered_memories(context)]


def _sink(context: DoctorContext) -> AkoshaSink:
    return AkoshaSink(
        endpoint=context.settings.http_endpoint,
        token=context.settings.http_token.get_secret_value(),
        timeout_seconds=CONNECT_SECONDS,
    )


async def _delivered_memories(context: DoctorContext) -> list[Finding]:
    """Report how many memories were delivered, when the server last confirmed them, and how many wait."""
    try:
        if not await context.home.has_ledger():
            return []
        target = context.home.targets(await context.identity())[HTTP]
        ledger = await context.home.read_ledger()
        try:
            probe, counts = ProbeState.from_notes(await ledger.notes(), target), await ledger.memories().counts(target)
        finally:
            await ledger.aclose()
    except StateError:
        return []  # reported by the check of the ledger
    found = []
    if counts.delivered:
        checked = (
            f"{CONFIRMED} (checked at {local_time(probe.answered)})"
            if probe and probe.answered
            else "not checked yet whether the server still has them"
        )
        text = f"{counts.delivered:,} memories delivered, {checked}; akosha-agent sync checks now"
        found.append(ok(AKOSHA_MEMORIES, text, detail=DELIVERED_TO_AKOSHA))
    if waiting := counts.waiting.get(NO_EMBEDDING, 0):
        found.append(warning(AKOSHA_MEMORIES, f"{waiting:,} memories wait for an embedding", hint=EMBEDDING_HINT))
    return found


async def _probe_key(context: DoctorContext) -> str:
    """Return the key of the probe object: outside of `uploads/`, so that neither Akosha nor the agent reads it.

    Raises StoreError if the store cannot be reached, another machine owns the system ID, or the directory's disk is not
    mounted.
    """
    store, settings = context.store(), context.settings
    if not await store.is_available():
        hint = "check the network, akosha_cloud_endpoint, and HTTPS_PROXY if you use a proxy"
        if settings.directory is not None:
            path = shlex.quote(str(settings.directory / settings.cloud_bucket))
            hint = f"mount it; if it never had uploads: mkdir -p {path}; or set akosha_cloud_endpoint"
        raise StoreError(f"{store.location} cannot be reached", hint=hint, transient=True)
    async with context.home.ownership(await context.identity(), store) as ownership:
        return f"systems/{await ownership.system_id()}/{PROBE_NAME}"


async def _round_trips(context: DoctorContext, key: str) -> bool:
    """Put the probe object, read and list it; return whether the read object is the same. Raises StoreError."""
    store = context.store()
    sent = f"akosha-agent doctor was here: {secrets.token_hex(16)}\n".encode()
    await store.put(key, _pieces(sent), metadata={}, part_bytes=5 * MEBIBYTE, progress=lambda _: None)
    async with aclosing(store.get(key)) as pieces:
        received = b"".join([piece async for piece in pieces])
    async for _item in store.list(key):
        break
    return received == sent


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _seconds_ahead(context: DoctorContext, date: str) -> float | None:
    """Return how far the server's clock is ahead of this machine's, by its Date header; None without one."""
    try:
        server = parsedate_to_datetime(date)
    except (ValueError, OverflowError):  # OverflowError: a year or an offset out of range
        return None
    server = server if server.tzinfo else server.replace(tzinfo=UTC)
    return (server - context.home.clock.now()).total_seconds()


def _compared(whose: str, ahead: float | None) -> list[Finding]:
    if ahead is None:
        return []
    off = abs(ahead)
    if off < WARN_SECONDS:
        return [ok(CLOCK, f"within {max(off, 1):.0f} s of {whose}")]
    report = error if off >= REFUSED_SECONDS else warning
    direction = "behind" if ahead > 0 else "ahead of"
    return [report(CLOCK, f"this machine's clock is {off:.0f} s {direction} {whose}", hint=SET_CLOCK)]
