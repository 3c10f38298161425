"""Results as an async generator."""

import re
from collections.abc import AsyncGenerator, Collection

import structlog

from agent.adapters.nats import Login, NatsOptions, Tls
from agent.adapters.nats.bus import NatsBus
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import NamingError
from agent.domain.events import SyncFailed, SyncSkipped, SyncSucceeded
from agent.domain.naming import results_pattern
from agent.events_client.address import options_of
from agent.events_client.handover import Handover, Result
from agent.events_client.logs import log_by_default

EVERY = "*"
"""In place of a system id: all systems."""

CLASSES: dict[str, type[Result]] = {"succeeded": SyncSucceeded, "skipped": SyncSkipped, "failed": SyncFailed}

_DURABLE = re.compile(r"[A-Za-z0-9_-]{1,100}")

_log = structlog.get_logger()


def results(
    server: str | NatsOptions,
    *,
    durable: str | None = None,
    system: str = EVERY,
    outcomes: Collection[str] = frozenset(CLASSES),
    login: Login | None = None,
    tls: Tls | None = None,
) -> AsyncGenerator[Result, None]:
    """Yield the results of a system, or of all (`"*"`), that have one of the outcomes; never ends.

    `server` is an address (several with commas) or NatsOptions. While NATS is not available, at the start or later,
    this waits for it without a limit, and logs that once.

    With a `durable` name, the server keeps the position: the first time it starts with the oldest result, later with
    those not acked. Programs that use the same name at once share the results. Without a name, it starts with results
    that are published after the first iteration.

    A result is acked when the next one is requested, that is when the body of the loop has run. Meanwhile the server is
    notified that it is in progress, so a body may take long, unless it blocks the event loop for longer than the ack
    wait. A body that raises, breaks or is cancelled leaves its result unacked, and it is delivered again for the same
    durable name. To leave the loop early, close the generator at once:

        async with contextlib.aclosing(results(url, durable="one")) as found:
            async for result in found:
                break

    Delivery is at least once. Within one run, a result that was acked is not yielded again (the last 10,000 are
    remembered); after a restart, the consumer drops a known `system_id` and `id`.

    Raises NamingError for an invalid system, durable name or outcome, SettingsError for an invalid address: at once,
    before the first iteration.
    """
    wanted = {outcome: CLASSES.get(outcome) for outcome in outcomes}
    classes = [found for found in wanted.values() if found is not None]
    if not classes or len(classes) < len(wanted):
        raise NamingError(f"{sorted(wanted)} are no outcomes", hint=f"some of {', '.join(CLASSES)}, in a set")
    last = next(iter(wanted)) if len(wanted) == 1 and system != EVERY else "*"
    pattern = results_pattern(system, last)
    if durable is not None and not _DURABLE.fullmatch(durable):
        raise NamingError(f"{durable!r} is no durable name", hint="1 to 100 letters, digits, - or _")
    return _consume(options_of(server, login, tls), pattern, durable, classes)


async def _consume(
    options: NatsOptions, pattern: str, durable: str | None, classes: Collection[type[Result]]
) -> AsyncGenerator[Result, None]:
    log_by_default()
    handover = Handover(classes, progress_interval_seconds=options.patience.ack_wait / 3)
    bus = NatsBus.begin(options, CloudEventsCodec(), clock=SystemClock())
    availability = _Availability(bus)
    try:
        await bus.first_attempt()
        await bus.subscribe(pattern, handover.handle, durable=durable)
        availability.begin()
        while True:
            turn = await handover.next()
            yield turn.result
            handover.finish(turn)
    finally:
        availability.closed = True
        await bus.aclose()


class _Availability:
    """Logs once that NATS is not available, and that it is available again."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus, self._waiting, self.closed = bus, False, False

    def begin(self) -> None:
        """Check now, and at each change of the bus."""
        self._check()
        self._bus.on_change(self._check)

    def _check(self) -> None:
        state = self._bus.state
        if self.closed or state.ready != self._waiting:
            return
        self._waiting = not state.ready
        if self._waiting:
            _log.warning("nats_waiting", reason=state.detail)
        else:
            _log.info("nats_recovered", nats=state.detail)
