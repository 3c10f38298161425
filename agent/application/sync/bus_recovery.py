"""Tracks the bus: records which one is in use, and republishes results that it has lost.

Ledger notes: `bus` (the bus in use), `bus_since`, and `stream` (the stream's creation time and last sequence when the
agent last published to it).
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import structlog

from agent.application.signal import Signal
from agent.application.sync.results import ResultRecorder
from agent.domain.errors import AkoshaError
from agent.ports import BusState, Clock, EventBus, Ledger, StreamMark

BUS, BUS_SINCE, STREAM = "bus", "bus_since", "stream"

FIRST_WAIT_SECONDS = 1.0
LAST_WAIT_SECONDS = 60.0
"""Delays before the next try after a transient error, doubling from the first to the last."""

_log = structlog.get_logger()


class BusRecovery:
    """Reacts to changes of the bus. A new stream gets the results of the last `max_age` again.

    `switched` is awaited after each change of bus.
    """

    def __init__(
        self,
        *,
        bus: EventBus,
        ledger: Ledger,
        recorder: ResultRecorder,
        clock: Clock,
        max_age: timedelta,
        switched: Callable[[], Awaitable[None]],
    ) -> None:
        self._bus, self._ledger, self._recorder, self._clock = bus, ledger, recorder, clock
        self._max_age, self._switched = max_age, switched
        self._signal = Signal(clock, "bus")
        self._reported: BusState | None = None
        self._seen: StreamMark | None = None
        self._losses = self._recovered_losses = 0
        self._switching = False
        bus.on_change(self._changed)
        recorder.on_published(self._note_mark)
        recorder.on_outbox_flushed(self._signal.set)

    async def run(self) -> None:
        """Track the bus until cancelled. Raises AkoshaError if it is not transient.

        After a transient error the loop tries again in 1 s, doubling to 60 s, or as soon as the bus changes.
        """
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                await self._update()
            except AkoshaError as error:
                if not error.transient:
                    raise
                _log.warning("bus_recovery_interrupted", error=str(error), delay_seconds=wait)
                changed = await self._signal.wait(wait)
                wait = FIRST_WAIT_SECONDS if changed else min(wait * 2, LAST_WAIT_SECONDS)
            else:
                wait = FIRST_WAIT_SECONDS
                await self._signal.wait(None)

    def _changed(self) -> None:
        """Flush the outbox at once: results that wait for the bus must not also wait for this loop."""
        self._note_mark()
        self._recorder.flush_soon()
        self._signal.set()

    def _note_mark(self) -> None:
        """Remember the stream's mark, and count a loss if the stream has lost events since the previous mark.

        Called at each change of the bus and after each published result. A loss between two passes of the loop is
        noticed even if the connection, and with it the newer mark, is gone before the next pass.
        """
        mark = self._bus.stream
        if mark is None:
            return
        if self._seen is not None and mark.has_lost(self._seen):
            self._losses += 1
        self._seen = mark

    async def _update(self) -> None:
        self._switching = await self._report_state() or self._switching
        await self._reconcile()
        if self._switching:
            await self._switched()
            self._switching = False

    async def _report_state(self) -> bool:
        """Log and record a change of the bus. Return whether events now take another bus than before."""
        state, before = self._bus.state, self._reported
        if state == before:
            return False
        self._reported = state
        switched = before is None or (state.name, state.ready) != (before.name, before.ready)
        if switched:
            log = _log.info if state.ready else _log.warning
            log("bus_in_use" if state.ready else "bus_unavailable", bus=state.name, detail=state.detail)
        await self._ledger.note(BUS, f"{state.name}: {state.detail}" if state.ready else f"waiting: {state.detail}")
        await self._ledger.note(BUS_SINCE, state.since.isoformat())
        return switched and before is not None

    async def _reconcile(self) -> None:
        """Republish the results of the last days to a stream that is new or has lost events."""
        self._note_mark()
        mark, losses = self._seen, self._losses
        if mark is None:
            return
        noted = _mark((await self._ledger.notes()).get(STREAM, ""))
        if losses != self._recovered_losses or noted is None or mark.has_lost(noted):
            count = await self._recorder.republish_since(self._clock.now() - self._max_age)
            self._recovered_losses = losses
            if count:
                _log.info("results_republished", count=count, reason="the stream is new or has lost events")
        if mark != noted:
            await self._ledger.note(STREAM, f"{mark.sequence} {mark.created}")
        self._recorder.flush_soon()


def _mark(text: str) -> StreamMark | None:
    sequence, _, created = text.partition(" ")
    return StreamMark(created, int(sequence)) if sequence.isdigit() and created else None
