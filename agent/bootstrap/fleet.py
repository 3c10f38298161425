"""Builds the fleet: its bucket, its NATS reader, and the cursors of this machine's `react`."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from agent.adapters.directory_store import DirectoryStore
from agent.application.fleet.bucket import FleetBucket
from agent.application.fleet.events import FleetEvents
from agent.application.fleet.fleet import Fleet
from agent.application.ingest.journal import finished_uploads
from agent.bootstrap.buses import check_nats_options, nats_options
from agent.bootstrap.home import Home
from agent.bootstrap.stores import object_store
from agent.domain.errors import SettingsError
from agent.ports import EventReader
from agent.settings import Settings


@asynccontextmanager
async def open_fleet(settings: Settings, *, overdue: timedelta) -> AsyncIterator[Fleet]:
    """Open the sources of the fleet until the block ends. Nothing is written, here or there.

    Raises SettingsError if neither a bucket nor NATS is set, or for invalid files. An unreachable source is no error.
    """
    if not (settings.cloud_configured or settings.over_nats):
        raise SettingsError(
            "neither a bucket nor a NATS server is set",
            hint="set akosha_cloud_endpoint and akosha_cloud_bucket, or akosha_agent_nats_url",
        )
    home = Home.of(settings)
    async with AsyncExitStack() as stack:
        bucket: FleetBucket | None = None
        events: FleetEvents | None = None
        if settings.cloud_configured:
            store = object_store(settings)
            stack.push_async_callback(store.aclose)
            bucket = FleetBucket(
                store, home.clock, check=store.check_root if isinstance(store, DirectoryStore) else None
            )
        if settings.over_nats:
            reader = await _reader(settings, home)
            stack.push_async_callback(reader.aclose)
            events = FleetEvents(reader)
        endpoints = bucket.location if bucket else "", settings.http_endpoint

        async def cursors() -> Mapping[str, str]:
            if not await home.has_ledger():
                return {}
            ledger = await home.read_ledger()
            try:
                return finished_uploads(await ledger.notes(), endpoints)
            finally:
                await ledger.aclose()

        yield Fleet(bucket=bucket, events=events, cursors=cursors, clock=home.clock, overdue=overdue)


async def _reader(settings: Settings, home: Home) -> EventReader:
    from agent.adapters.nats.event_reader import NatsEventReader  # noqa: PLC0415 - loaded only if NATS is used

    options = await asyncio.to_thread(check_nats_options, nats_options(settings, "akosha-agent fleet"))
    return await NatsEventReader.open(options, home.codec, clock=home.clock)
