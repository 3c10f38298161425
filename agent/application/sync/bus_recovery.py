"""Tracks the buses: records which one is in use, finds what it has lost, and republishes lost results.

Ledger notes: `bus` (the bus in use), `bus_since`, `stream` (the stream's creation time and last sequence when the agent
last published to it), `missing_result` (the day of the last republishing because a result was missing), and
`old_consumers` (the consumers of earlier versions are removed).

A stream that the server does not permit to examine has lost events if its newest event on the subject of the agent's
newest result is older than that result, or absent.
"""

from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta

import structlog

from agent.application.signal import Signal
from agent.application.status_warnings import clear_warning, set_warning
from agent.application.sync.results import ResultRecorder
from agent.domain.errors import AkoshaError, BusError
from agent.domain.status_warning import StatusWarning
from agent.ports import Bus, BusState, Clock, DurableBus, Ledger, StreamMark

BUS, BUS_SINCE, STREAM, MISSING, OLD_CONSUMERS = "bus", "bus_since", "stream", "missing_result", "old_consumers"

STREAM_UNAVAILABLE = "stream_unavailable"
"""Code of the status warning that results wait although NATS is connected."""

FIRST_WAIT_SECONDS = 1.0
LAST_WAIT_SECONDS = 60.0
"""Delays before the next try after a transient error, doubling from the first to the last."""

CHECK_SECONDS = 3600.0
"""How often a connected stream is examined and read while nothing changes: it may have been replaced."""

READS = 10
"""How often a stream that seems to work, but cannot be read, is read on one connection: for 6 minutes.

It may be electing a leader, or never answer direct gets.
"""

_log = structlog.get_logger()


class BusRecovery:
    """Reacts to changes of the buses, which may be one. A new stream gets the results of the last `max_age` again.

    `catch_up` is awaited after each new connection of the durable bus, the first included: it reads what the volatile
    bus did not deliver meanwhile. `switched` is awaited after each later change of the volatile bus. `old_consumers`
    are removed once.
    """

    def __init__(
        self,
        *,
        bus: Bus,
        results_bus: DurableBus,
        ledger: Ledger,
        recorder: ResultRecorder,
        clock: Clock,
        max_age: timedelta,
        catch_up: Callable[[], Awaitable[None]],
        switched: Callable[[], Awaitable[None]],
        old_consumers: Collection[str] = (),
    ) -> None:
        self._bus, self._results_bus = bus, results_bus
        self._ledger, self._recorder, self._clock = ledger, recorder, clock
        self._max_age, self._catch_up, self._switched, self._old_consumers = max_age, catch_up, switched, old_consumers
        self._signal = Signal(clock, "bus")
        self._reported: BusState | None = None
        self._seen: StreamMark | None = None
        self._losses = self._recovered_losses = 0
        self._switching = self._catching_up = False
        self._reads = 0
        bus.on_change(self._changed)
        results_bus.on_change(self._changed)
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
                await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        """Wait until the bus changes, or until the stream has to be examined or read again."""
        if not self._is_connected:
            await self._signal.wait(None)
        elif self._catching_up and self._results_bus.state.ready:
            await self._signal.wait(min(FIRST_WAIT_SECONDS * 2.0 ** (self._reads - 1), LAST_WAIT_SECONDS))
        elif not await self._signal.wait(CHECK_SECONDS if self._results_bus.state.ready else LAST_WAIT_SECONDS):
            self._results_bus.check_connection()
            self._catching_up, self._reads = True, 0

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
        mark = self._results_bus.stream
        if mark is None:
            return
        if self._seen is not None and mark.has_lost(self._seen):
            self._losses += 1
        self._seen = mark

    async def _update(self) -> None:
        await self._report_state()
        await self._reconcile()
        if self._catching_up and self._is_connected:
            await self._read_stream()
        if self._switching:
            await self._switched()
            self._switching = False
        await self._report_stream()

    async def _read_stream(self) -> None:
        """Read what the stream got meanwhile, and find out whether it lost results."""
        self._reads += 1
        unread = False
        for step in (self._catch_up, self._find_loss, self._remove_old_consumers):
            try:
                await step()
            except BusError as error:  # prevents neither the other steps nor a rescan
                _log.debug("stream_unread", reason=str(error))
                unread = unread or (error.transient and self._reads < READS)
        self._catching_up = unread or not self._results_bus.state.ready

    async def _find_loss(self) -> None:
        """Republish the results if the newest one is missing in a stream that cannot be examined.

        A missing result causes that once a day: it may have been deleted by the limits of the stream. A later event is
        one that is stored without having been confirmed, or one of another agent with the same system ID.
        """
        mark, newest, now = self._results_bus.stream, await self._ledger.newest_confirmed(), self._clock.now()
        if (mark is not None and mark.created) or newest is None or newest.time < now - self._max_age:
            return
        stored = await self._results_bus.newest(newest.subject)
        found = stored is not None and stored.event is not None and stored.event.time >= newest.time
        if found or (await self._ledger.notes()).get(MISSING) == str(now.date()):
            return
        await self._ledger.note(MISSING, str(now.date()))
        self._losses += 1
        await self._reconcile()

    async def _report_state(self) -> None:
        """Log and record a change of the volatile bus: events now take another connection or bus than before."""
        state, before = self._bus.state, self._reported
        if state == before:
            return
        self._reported = state
        if before is None or (state.name, state.ready, state.since) != (before.name, before.ready, before.since):
            self._catching_up, self._reads = True, 0
            self._switching = before is not None
        if before is None or (state.name, state.ready) != (before.name, before.ready):
            log = _log.info if state.ready else _log.warning
            log("bus_in_use" if state.ready else "bus_unavailable", bus=state.name, detail=state.detail)
        await self._ledger.note(BUS, f"{state.name}: {state.detail}" if state.ready else f"waiting: {state.detail}")
        await self._ledger.note(BUS_SINCE, state.since.isoformat())

    async def _report_stream(self) -> None:
        """Set or clear the status warning that the volatile bus is connected, but the stream cannot store results."""
        stream = self._results_bus.state
        if stream.ready:
            await clear_warning(self._ledger, STREAM_UNAVAILABLE)
        elif self._is_connected:
            self._catching_up, self._reads = True, 0  # it may be another stream when it is available again
            message = f"results wait, because the stream cannot store them: {stream.detail}"
            await set_warning(self._ledger, StatusWarning(code=STREAM_UNAVAILABLE, message=message), self._clock)

    @property
    def _is_connected(self) -> bool:
        """Whether the buses have a connection, which they share. The bus without a server has none."""
        bus = self._bus.state
        return bus.ready and bus.name == self._results_bus.state.name != "memory"

    async def _remove_old_consumers(self) -> None:
        """Remove the consumers that earlier versions of this agent made, once."""
        if not self._old_consumers or not self._results_bus.state.ready:
            return
        if OLD_CONSUMERS not in await self._ledger.notes():
            for durable in self._old_consumers:
                await self._results_bus.remove_consumer(durable)
            await self._ledger.note(OLD_CONSUMERS, "removed")

    async def _reconcile(self) -> None:
        """Republish the results of the last days to a stream that is new or has lost events."""
        self._note_mark()
        mark, losses = self._seen, self._losses
        noted = _mark((await self._ledger.notes()).get(STREAM, ""))
        lost = losses != self._recovered_losses
        if lost or (mark is not None and (noted is None or mark.has_lost(noted))):
            count = await self._recorder.republish_since(self._clock.now() - self._max_age)
            self._recovered_losses = losses
            if count:
                _log.info("results_republished", count=count, reason="the stream is new or has lost events")
                self._recorder.flush_soon()
        if mark is not None and mark != noted:
            await self._ledger.note(STREAM, f"{mark.sequence} {mark.created}")


def _mark(text: str) -> StreamMark | None:
    sequence, _, created = text.partition(" ")
    return StreamMark(created, int(sequence)) if sequence.isdigit() else None
