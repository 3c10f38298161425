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
    """Yield the results of a system, or of all (`"*"`), that have one of the outcomes; for ever.

    `server` is an address (several with commas) or NatsOptions. NATS is waited for, also in the middle, for as long as
    it takes; that is told once.

    With a `durable` name, the server keeps the place: the first time it begins with the oldest result that there is,
    later with what was not acked. Programs that use the same name at once share the results among them. Without a
    name, it begins with what is told from the first asking on.

    A result is acked when the next one is asked for: when the body of the loop has run. While it runs, the server is
    told that it does, so a body may take its time, unless it blocks the event loop for longer than the ack wait. One
    that raises, breaks or is cancelled leaves its result unacked, and that comes again for the same durable name. To
    leave the loop early, let go of the generator at once:

        async with contextlib.aclosing(results(url, durable="one")) as found:
            async for result in found:
                break

    Delivery is at least once. Within one run, what the loop is through with does not come again (the last 10,000 are
    remembered); over restarts, dropping a known `system_id` and `id` is the consumer's business.

    Raises NamingError for a system, durable name or outcome that cannot be, SettingsError for such an address: at
    once, before the first asking.
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
    handover = Handover(classes, still_here_seconds=options.patience.ack_wait / 3)
    bus = NatsBus.begin(options, CloudEventsCodec(), clock=SystemClock())
    outlook = _Outlook(bus)
    try:
        await bus.first_try()
        await bus.subscribe(pattern, handover.handle, durable=durable)
        outlook.begin()
        while True:
            turn = await handover.next()
            yield turn.result
            handover.finish(turn)
    finally:
        outlook.closed = True
        await bus.aclose()


class _Outlook:
    """Tells once that NATS is being waited for, and that it has come."""

    def __init__(self, bus: NatsBus) -> None:
        self._bus, self._waiting, self.closed = bus, False, False

    def begin(self) -> None:
        """Look now, and whenever something has changed."""
        self._look()
        self._bus.on_change(self._look)

    def _look(self) -> None:
        state = self._bus.state
        if self.closed or state.ready != self._waiting:
            return
        self._waiting = not state.ready
        if self._waiting:
            _log.warning("nats_waiting", reason=state.detail)
        else:
            _log.info("nats_recovered", nats=state.detail)
