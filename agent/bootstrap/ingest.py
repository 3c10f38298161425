"""Builds the ingest service of the Akosha side."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, tzinfo

from agent.adapters.allocator import give_back_large_blocks
from agent.adapters.duckdb import DuckdbMemoryReader
from agent.adapters.gunzip import Unpacker
from agent.adapters.local_zone import zone_named
from agent.adapters.memories_file import JsonMemoriesFile
from agent.adapters.patches import ZstdPatcher
from agent.adapters.wire import CloudEventsCodec
from agent.application.ingest.service import IngestService
from agent.application.ingest.upload_ingester import UploadIngester
from agent.bootstrap.buses import agent_nats_options, check_nats_options
from agent.bootstrap.home import Home
from agent.bootstrap.methods import memory_push
from agent.bootstrap.stores import object_store
from agent.domain.identity import Identity
from agent.ports import Clock, ConsumerBus
from agent.settings import Settings


@asynccontextmanager
async def open_ingest_service(home: Home, identity: Identity, systems: Collection[str]) -> AsyncIterator[IngestService]:
    """Open an IngestService until the block ends. The caller holds the state directory's lock.

    Raises SettingsError, StateError.
    """
    s = home.settings
    give_back_large_blocks()
    async with AsyncExitStack() as stack:
        ledger = await home.open_ledger()
        stack.push_async_callback(ledger.aclose)
        store = object_store(s)
        stack.push_async_callback(store.aclose)
        push = memory_push(s, ledger, home.clock)
        stack.push_async_callback(push.sink.aclose)
        bus = await _bus(s, identity, home.clock)
        if bus is not None:
            stack.push_async_callback(bus.aclose)
        yield IngestService(
            identity=identity,
            ingest=UploadIngester(
                store=store,
                unpacker=Unpacker(home.state.staging),
                patcher=ZstdPatcher(),
                push=push,
                reader=DuckdbMemoryReader(),
                memories_file=JsonMemoriesFile(home.state.staging),
                zone=_zone,
                endpoint=s.http_endpoint,
                bucket=s.cloud_bucket or s.cloud_endpoint,
                standstill_seconds=s.upload_timeout_seconds,
            ),
            ledger=ledger,
            bus=bus,
            clock=home.clock,
            systems=systems,
            rescan_seconds=s.agent_rescan_seconds,
        )


def _zone(name: str) -> tzinfo:
    """Return the time zone of a manifest, UTC if the agent that wrote it did not know its own."""
    return zone_named(name) if name else UTC


async def _bus(settings: Settings, identity: Identity, clock: Clock) -> ConsumerBus | None:
    """Return the bus for results, which may be unreachable. Raises SettingsError for invalid files."""
    if not settings.over_nats:
        return None
    from agent.adapters.nats.bus import NatsBuses  # noqa: PLC0415 - loaded only if NATS is used

    options = await asyncio.to_thread(check_nats_options, agent_nats_options(settings, identity, "react"))
    return NatsBuses(options, CloudEventsCodec(), clock=clock).durable
