"""Results as an async generator."""

import re
from collections.abc import AsyncGenerator, Collection

import structlog

from agent.adapters.nats import Login, NatsOptions, Tls
from agent.adapters.nats.bus import NatsBuses
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import NamingError
from agent.domain.events import SyncFailed, SyncSkipped, SyncSucceeded
from agent.domain.naming import results_pattern
from agent.events_client.address import options_of
from agent.events_client.handover import Handover, Result
from agent.events_client.logs import log_by_default
from agent.ports import Bus

EVERY = "*"
"""The `system` argument for all systems."""

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
    """Yield the results of one system, or of all (`"*"`), with one of the outcomes. Never ends.

    `server` is an address (several separated by commas) or NatsOptions. While NATS is not available, at the start or
    later, the generator waits for it without a time limit, and logs that once.

    With a `durable` name, the server keeps the position: the first run starts with the oldest result, later runs with
    the first unacked one. Programs that use the same name concurrently share the results. Without a name, the generator
    yields only results published while it runs and is connected, and a body that is too slow misses some.

    With a name, a result is acked when the loop requests the next one, that is after the body has run. Until then the
    server is notified that it is in progress, so the body may take long, unless it blocks the event loop for longer
    than the ack wait. If the body raises, breaks or is cancelled, its result is not acked, and is delivered again to
    the same durable name. To leave the loop early, close the generator at once:

        async with contextlib.aclosing(results(url, durable="one")) as found:
            async for result in found:
                break

    Delivery under a name is at least once. Within one run, an acked result is not yielded again (the last 10,000 IDs
    are remembered). After a restart, the program must itself ignore results whose `system_id` and `id` it knows.

    Raises NamingError for an invalid system, durable name or outcome, and SettingsError for an invalid address, both
    at the call, before the first iteration.
    """
    wanted = {outcome: CLASSES.get(outcome) for outcome in outcomes}
    classes = [found for found in wanted.values() if found is not None]
    if not classes or len(classes) < len(wanted):
        raise NamingError(f"{sorted(wanted)} are not valid outcomes", hint=f"pass a set of {', '.join(CLASSES)}")
    last = next(iter(wanted)) if len(wanted) == 1 and system != EVERY else "*"
    pattern = results_pattern(system, last)
    if durable is not None and not _DURABLE.fullmatch(durable):
        raise NamingError(f"{durable!r} is not a valid durable name", hint="use 1 to 100 letters, digits, - or _")
    return _consume(options_of(server, login, tls), pattern, durable, classes)


async def _consume(
    options: NatsOptions, pattern: str, durable: str | None, classes: Collection[type[Result]]
) -> AsyncGenerator[Result, None]:
    log_by_default()
    handover = Handover(classes)
    buses = NatsBuses(options, CloudEventsCodec(), clock=SystemClock())
    availability = _Availability(buses.volatile if durable is None else buses.durable)
    try:
        await buses.first_attempt()
        availability.begin()
        if durable is None:
            await buses.volatile.subscribe(pattern, handover.handle)
        else:
            await buses.durable.consume(pattern, handover.handle, durable=durable)
        while True:
            pending = await handover.next()
            yield pending.result
            handover.finish(pending)
    finally:
        availability.closed = True
        await buses.aclose()


class _Availability:
    """Logs once when NATS becomes unavailable, and once when it is available again."""

    def __init__(self, bus: Bus) -> None:
        self._bus, self._waiting, self.closed = bus, False, False

    def begin(self) -> None:
        """Check now and at each change of the bus."""
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
