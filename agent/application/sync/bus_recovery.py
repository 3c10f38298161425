"""Follows the bus: which one is in use, what it has lost, and what may have stayed behind on the other.

The ledger's notes for people: `bus` (where events flow), `bus_since`, and `stream` (how far the stream had come when
the agent last published to it).
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
"""Before the next try after a transient error: doubling."""

_log = structlog.get_logger()


class BusRecovery:
    """Reacts to changes of the bus. Results of the last `max_age` are published again to a new stream.

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
        self._losses = self._answered = 0
        self._switching = False
        bus.on_change(self._changed)
        recorder.on_published(self._note_mark)
        recorder.on_outbox_flushed(self._signal.set)

    async def run(self) -> None:
        """Follow the bus until cancelled. After a transient error it tries again in 1 s, doubling to 60; at once when
        the bus changes.

        Raises AkoshaError that is not transient.
        """
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                await self._follow()
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
        """Have the outbox tried at once: what waits for the bus must not wait for this loop, too."""
        self._note_mark()
        self._recorder.flush_soon()
        self._signal.set()

    def _note_mark(self) -> None:
        """Remember how far the stream has come, and whether it has lost events since.

        Called at each change of the bus and after each result that is published: a loss between two passes of the loop
        is seen also where the connection, and with it the newer mark, was lost before the loop came to it.
        """
        mark = self._bus.stream
        if mark is None:
            return
        if self._seen is not None and mark.has_lost(self._seen):
            self._losses += 1
        self._seen = mark

    async def _follow(self) -> None:
        self._switching = await self._report_state() or self._switching
        await self._reconcile()
        if self._switching:
            await self._switched()
            self._switching = False

    async def _report_state(self) -> bool:
        """Say which bus is in use, where that has changed; return whether events go another way than before."""
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
        """Publish the results of the last days again to a stream that is new, or has lost events."""
        self._note_mark()
        mark, losses = self._seen, self._losses
        if mark is None:
            return
        noted = _mark((await self._ledger.notes()).get(STREAM, ""))
        if losses != self._answered or noted is None or mark.has_lost(noted):
            again = await self._recorder.republish_since(self._clock.now() - self._max_age)
            self._answered = losses
            if again:
                _log.info("results_republished", count=again, reason="the stream is new, or has lost events")
        if mark != noted:
            await self._ledger.note(STREAM, f"{mark.sequence} {mark.created}")
        self._recorder.flush_soon()


def _mark(text: str) -> StreamMark | None:
    sequence, _, created = text.partition(" ")
    return StreamMark(created, int(sequence)) if sequence.isdigit() and created else None
