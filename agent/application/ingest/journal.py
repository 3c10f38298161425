"""Events about uploads that were ingested: kept in the ledger, then published until the bus confirms them."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import structlog

from agent.application.ingest.cursor import Cursor
from agent.domain.errors import BusError, WireError
from agent.domain.events import LONGEST_TEXT, MOST_NAMED, IngestCompleted, IngestFailed, ingest_event_id
from agent.domain.identity import Identity
from agent.domain.memories import Tally
from agent.domain.plain_text import shorten
from agent.ports import Clock, EventBus, Ledger

_log = structlog.get_logger()


class IngestJournal:
    """Keeps the positions of systems and the events about their uploads, and publishes those. `bus` None: no bus.

    Positions are kept for each pair of bucket and Akosha (`endpoints`): every system starts over on another one. Each
    system is written by one task at a time.
    """

    def __init__(
        self, ledger: Ledger, bus: EventBus | None, identity: Identity, clock: Clock, *, endpoints: tuple[str, str]
    ) -> None:
        self._ledger, self._bus, self._agent_id, self._clock = ledger, bus, identity.agent_id, clock
        self._notes = f"react:{hashlib.sha256(chr(10).join(endpoints).encode()).hexdigest()[:12]}:"

    async def position(self, system_id: str) -> Cursor:
        """Return how far the system has come. One that cannot be read is lost: the system starts over."""
        kept = (await self._ledger.notes()).get(f"{self._notes}{system_id}")
        try:
            return Cursor.decode(kept) if kept else Cursor()
        except WireError as error:
            _log.warning(
                "cursor_lost", system_id=system_id, reason=error.message, next_step="its uploads are checked again"
            )
            return Cursor()

    async def keep(self, system_id: str, position: Cursor) -> None:
        await self._ledger.note(f"{self._notes}{system_id}", position.encode())

    async def systems(self) -> list[str]:
        """Return the systems that have a position."""
        return [key.removeprefix(self._notes) for key in await self._ledger.notes() if key.startswith(self._notes)]

    def completed(self, system_id: str, upload: str, source: str, tally: Tally, seconds: float) -> IngestCompleted:
        return IngestCompleted(
            id=ingest_event_id(upload, self._agent_id, "completed"),
            time=self._clock.now(),
            system_id=system_id,
            upload_id=upload,
            source=source,
            stored=tally.stored,
            known=tally.known,
            kept_back=_few({**tally.waiting, **tally.refused}),
            duration_seconds=round(seconds, 3),
        )

    def failed(self, system_id: str, upload: str, error: str, retry_at: datetime | None) -> IngestFailed:
        """Return the event of an upload that is given up or, with `retry_at`, was tried for the first time."""
        return IngestFailed(
            id=ingest_event_id(upload, self._agent_id, "delayed" if retry_at else "failed"),
            time=self._clock.now(),
            system_id=system_id,
            upload_id=upload,
            error=shorten(error, 5 * LONGEST_TEXT),
            retry_at=retry_at,
        )

    async def is_written(self, upload: str) -> bool:
        """Say whether an upload was taken or given up."""
        ids = [ingest_event_id(upload, self._agent_id, outcome) for outcome in ("completed", "failed")]
        return any([await self._ledger.find_event(each) is not None for each in ids])

    async def write(self, position: Cursor, event: IngestCompleted | IngestFailed) -> Cursor:
        """Keep the event and the position it belongs to; return that, with the event to be published.

        The event first: a kill in between has the upload looked at again, and the event keeps its id.
        """
        await self._ledger.add_to_history(event)
        if self._bus is not None and event.id not in position.unpublished:
            position = replace(position, unpublished=(*position.unpublished, event.id))
        await self.keep(event.system_id, position)
        return position

    async def publish(self, system_id: str, position: Cursor) -> Cursor:
        """Publish what is not published, oldest first; return the position without what the bus has confirmed."""
        left = list(position.unpublished)
        try:
            while left and self._bus is not None:
                event = await self._ledger.find_event(left[0])
                if event is not None:
                    await self._bus.publish(event)
                del left[0]
        except BusError as error:
            _log.debug("ingest_outbox_blocked", system_id=system_id, count=len(left), error=str(error))
        except WireError as error:  # it would block all others
            _log.error("result_rejected", id=left.pop(0), reason=str(error))
        if tuple(left) != position.unpublished:
            position = replace(position, unpublished=tuple(left))
            await self.keep(system_id, position)
        return position


def _few(reasons: Mapping[str, int]) -> dict[str, int]:
    """Return how many are kept back, by the most frequent reasons: a server may have a reason for each row."""
    ordered = sorted(reasons.items(), key=lambda each: -each[1])
    few: dict[str, int] = {}
    for reason, count in ordered[:MOST_NAMED]:
        name = shorten(reason, LONGEST_TEXT)
        few[name] = few.get(name, 0) + count
    rest = sum(count for _, count in ordered[MOST_NAMED:])
    return {**few, "other reasons": rest} if rest else few
