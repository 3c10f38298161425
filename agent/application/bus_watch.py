"""Follows the bus: which one is in use, what it has lost, and what may have stayed behind on the other.

The ledger's notes for people: `bus` (where events flow), `bus_since`, and `stream` (how far the stream had come when we
last told it something).
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog

from agent.application.recorder import Recorder
from agent.application.wake import Wake
from agent.ports import BusState, Clock, EventBus, Ledger, StreamMark

BUS, BUS_SINCE, STREAM = "bus", "bus_since", "stream"

_log = structlog.get_logger()


class BusWatch:
    """Owner of what has to be done when the bus changes. `kept`: how long results are told again to a new stream.

    `switched` is awaited after each change of bus.
    """

    def __init__(
        self,
        *,
        bus: EventBus,
        ledger: Ledger,
        recorder: Recorder,
        clock: Clock,
        kept: timedelta,
        switched: Callable[[], Awaitable[None]],
    ) -> None:
        self._bus, self._ledger, self._recorder, self._clock = bus, ledger, recorder, clock
        self._kept, self._switched = kept, switched
        self._bell = Wake(clock, "bus")
        self._shown: BusState | None = None
        bus.on_change(self._bell.ring)
        recorder.on_told(self._bell.ring)

    async def run(self) -> None:
        """Follow it, for ever."""
        while True:
            changed = await self._show()
            await self._reconcile()
            if changed:
                await self._switched()
            await self._bell.wait(None)

    async def _show(self) -> bool:
        """Say which bus is in use, where that has changed; return whether events go another way than before."""
        state, before = self._bus.state, self._shown
        if state == before:
            return False
        self._shown = state
        switched = before is None or (state.name, state.ready) != (before.name, before.ready)
        if switched:
            tell = _log.info if state.ready else _log.warning
            tell("bus_in_use" if state.ready else "bus_waits", bus=state.name, detail=state.detail)
        await self._ledger.note(BUS, f"{state.name}: {state.detail}" if state.ready else f"waiting: {state.detail}")
        await self._ledger.note(BUS_SINCE, state.since.isoformat())
        return switched and before is not None

    async def _reconcile(self) -> None:
        """A stream that has lost what it was told, or never heard of us, is told the results of the last days."""
        mark = self._bus.stream
        if mark is None:
            return
        noted = _mark((await self._ledger.notes()).get(STREAM, ""))
        if noted is None or mark.has_lost(noted):
            again = await self._ledger.tell_again(self._clock.now() - self._kept)
            if again:
                _log.info("results_told_again", count=again, why="the stream is new, or has lost events")
        if mark != noted:
            await self._ledger.note(STREAM, f"{mark.sequence} {mark.created}")
        self._recorder.flush_soon()


def _mark(text: str) -> StreamMark | None:
    sequence, _, created = text.partition(" ")
    return StreamMark(created, int(sequence)) if sequence.isdigit() and created else None
