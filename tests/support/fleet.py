"""A fleet for tests: systems in a bucket and on a stream, and one hostile system, which owns what it writes.

The events of each system are published by a program without the agent's code: the hostile ones could not be encoded.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from agent.adapters.wire import CloudEventsCodec
from agent.domain import naming
from agent.domain.events import NO_CHANGE, Event, IngestCompleted, IngestFailed, SyncFailed, SyncSkipped, SyncSucceeded
from agent.domain.identity import Machine, Owner
from agent.domain.manifest import Manifest
from tests.support import values

ESCAPE = "\x1b]0;owned\x07\x1b[2J\u202e"
HOSTILE = "hostile"
LONG_NAME = "x" * 100
FUTURE = "9998-01-01T00:00:00+00:00"

Publish = Callable[[str, bytes], Awaitable[object]]
Put = Callable[[str, bytes], Awaitable[object]]


def upload(system_id: str, at: datetime, **fields: object) -> Manifest:
    """Return the manifest of a small upload of a system."""
    upload_id = naming.upload_id(at, system_id)
    made = replace(values.manifest(), system_id=system_id, upload_id=upload_id, uploaded_at=at, agent_version="1.2.3")
    return replace(made, **fields)


def owner(system_id: str, at: datetime) -> Owner:
    return Owner.new(system_id, Machine("a" * 64, f"host-of-{system_id}"[:60]), "1" * 32, at)


def succeeded(manifest: Manifest, **fields: object) -> SyncSucceeded:
    event = replace(values.succeeded(manifest), system_id=manifest.system_id)
    return replace(event, **fields)


def failed(system_id: str, at: datetime, number: int = 1, error: str = "403") -> SyncFailed:
    event = replace(values.failed(f"{system_id}-{number}", time=at), system_id=system_id)
    return replace(event, errors=tuple(replace(one, error=error) for one in event.errors))


def skipped(system_id: str, at: datetime, why: str = NO_CHANGE) -> SyncSkipped:
    return replace(values.skipped(f"{system_id}-s", time=at), system_id=system_id, why=why)


def ingested(manifest: Manifest) -> IngestCompleted:
    return IngestCompleted(
        id=f"{manifest.upload_id}.i", time=manifest.uploaded_at, system_id=manifest.system_id,
        upload_id=manifest.upload_id, source="memories", stored=1, known=0, kept_back={},
    )  # fmt: skip


def ingest_failed(manifest: Manifest, error: str) -> IngestFailed:
    return IngestFailed(
        id=f"{manifest.upload_id}.f", time=manifest.uploaded_at, system_id=manifest.system_id,
        upload_id=manifest.upload_id, error=error,
    )  # fmt: skip


async def fill_bucket(put: Put, systems: Sequence[str], now: datetime) -> None:
    """Put an upload of each system, an hour old, with its owner.json; and what the hostile system puts."""
    for system_id in systems:
        manifest = upload(system_id, now - timedelta(hours=1))
        await put(manifest.key, manifest.encode())
        await put(naming.owner_key(system_id), owner(system_id, now - timedelta(days=30)).encode())
    ahead = upload(HOSTILE, now + timedelta(days=3650))
    ours = upload(HOSTILE, now - timedelta(hours=2), agent_version=ESCAPE, incomplete={ESCAPE: ESCAPE})
    unfinished = naming.upload_id(now, HOSTILE)
    await put(naming.owner_key(HOSTILE), json.dumps({"version": 1, "host": ESCAPE}).encode())
    await put(ahead.key, b'{"system_id": ' + b"[" * 5000)
    await put(ours.key, ours.encode())
    await put(f"{naming.uploads_prefix(HOSTILE)}{unfinished}/reflection.duckdb", b"x")
    await put(f"systems/{HOSTILE}.evil/uploads/x/manifest.json", b"{}")
    await put("systems/stray", b"")


async def fill_stream(publish: Publish, systems: Sequence[str], now: datetime) -> None:
    """Publish the result and the ingestion of each system's upload; and what the hostile system publishes."""
    codec = CloudEventsCodec()

    async def send(event: Event) -> None:
        await publish(event.subject, codec.encode(event))

    for system_id in systems:
        manifest = upload(system_id, now - timedelta(hours=1))
        await send(succeeded(manifest))
        await send(ingested(manifest))
    for subject, data in hostile_messages(systems[0], now).items():
        await publish(subject, data)


def hostile_messages(victim: str, now: datetime) -> Mapping[str, bytes]:
    """Return subject -> message: what a program with the right to publish anything sends; none is a valid event."""
    codec = CloudEventsCodec()
    foreign = codec.encode(failed(victim, now))
    forged = json.loads(codec.encode(succeeded(upload(HOSTILE, now))))
    return {
        f"akosha.sync.{HOSTILE}.failed": foreign,  # the event of another system
        f"akosha.sync.{HOSTILE}.succeeded": json.dumps(forged | {"time": FUTURE, "source": ESCAPE}).encode(),
        f"akosha.sync.{HOSTILE}.skipped": b"\xff" * 70_000,
        f"akosha.ingest.{HOSTILE}.completed": b"[" * 5000,
        "akosha.sync.\x1b[2J.succeeded": b"{}",
        f"akosha.sync.{LONG_NAME}x.failed": b"{}",
        "akosha.archive.evil!.verified": b"{}",
    }
