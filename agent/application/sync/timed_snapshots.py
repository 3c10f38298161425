"""Times the taking of snapshots, for a Meter."""

from agent.domain.databases import Survey
from agent.ports import Clock, Meter, Snapshot, SnapshotTaker


class TimedSnapshots:
    """A SnapshotTaker that tells a meter how long another one took. What could not be copied is not told of."""

    def __init__(self, taker: SnapshotTaker, meter: Meter, clock: Clock) -> None:
        self._taker, self._meter, self._clock = taker, meter, clock

    async def free_bytes(self) -> int | None:
        return await self._taker.free_bytes()

    async def survey(self) -> Survey:
        return await self._taker.survey()

    async def take(self, database: str) -> Snapshot:
        started = self._clock.monotonic()
        snapshot = await self._taker.take(database)
        size = sum(file.size for file in snapshot.files)
        self._meter.snapshot(database, self._clock.monotonic() - started, size)
        return snapshot

    async def discard(self, snapshot: Snapshot) -> None:
        await self._taker.discard(snapshot)

    async def sweep(self) -> None:
        await self._taker.sweep()
