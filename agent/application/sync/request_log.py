"""The requests that this process issued. The agent refuses all others: any client of the bus can publish one.

The bus delivers no request to a later process, so a request of an earlier one is a copy that somebody else published.
"""

from collections import OrderedDict

import structlog

from agent.domain.errors import StateError
from agent.domain.events import SyncRequested
from agent.domain.identity import Identity
from agent.ports import Ledger, VolatileBus

REMEMBERED = 1000
"""Number of requests kept in memory. An older one that still arrives is refused; a rescan finds what it was for."""

ALWAYS_LOGGED = 10
"""So many forged requests are warnings, and every thousandth: anyone can publish any number of them."""

_log = structlog.get_logger()


class RequestLog:
    """Publishes requests on the bus, and recognises them when they are received."""

    def __init__(self, identity: Identity, bus: VolatileBus, ledger: Ledger) -> None:
        self._identity, self._bus, self._ledger = identity, bus, ledger
        self._issued: OrderedDict[str, SyncRequested] = OrderedDict()
        self._others: set[str] = set()
        self._forged = 0

    async def issue(self, request: SyncRequested) -> SyncRequested:
        """Publish a request, record it in the history, and return it.

        If a request with the same ID was issued before, that one is published again and returned: the stream keeps the
        first of two events with one ID, and a subscriber must recognise it. Raises the bus's errors, StateError.
        """
        issued_before = self._issued.get(request.id) or await self._ledger.find_event(request.id)
        # With another system ID it is a different request: see SystemIdTaken.
        if isinstance(issued_before, SyncRequested) and (issued_before.agent_id, issued_before.system_id) == (
            request.agent_id,
            request.system_id,
        ):
            request = issued_before
        self._issued[request.id] = request  # first: it may be received before `publish` returns
        while len(self._issued) > REMEMBERED:
            self._issued.popitem(last=False)
        await self._bus.publish(request)
        try:
            await self._ledger.add_to_history(request)
        except StateError as error:
            if not error.transient:
                raise
            _log.warning("request_not_recorded", request_id=request.request_id, error=str(error))
        return request

    def is_ours(self, request: SyncRequested) -> bool:
        """Return whether this process issued the request. Log it if not."""
        if request.agent_id != self._identity.agent_id:
            self._log_foreign(request)
            return False
        if self._issued.get(request.id) != request:
            self._forged += 1
            log = _log.warning if self._forged <= ALWAYS_LOGGED or self._forged % 1000 == 0 else _log.debug
            reason = "it has this agent's ID, but this process did not issue it"
            log("request_refused", id=request.id, request_id=request.request_id, reason=reason, so_far=self._forged)
            return False
        return True

    def _log_foreign(self, request: SyncRequested) -> None:
        """Warn once for each other agent: a system may have several agents."""
        log = _log.debug
        if request.agent_id not in self._others and len(self._others) < REMEMBERED:
            self._others.add(request.agent_id)
            log = _log.warning
        reason = f"another agent issued it: {request.agent_id}"
        log("request_refused", id=request.id, request_id=request.request_id, reason=reason)
