"""Requests on their way out, and which of those that come in are ours: the bus is open to others, a sync is not."""

from collections import OrderedDict

import structlog

from agent.domain.errors import StateError
from agent.domain.events import SyncRequested
from agent.domain.identity import Identity
from agent.ports import EventBus, Ledger

REMEMBERED = 1000
"""How many of the newest requests are known without asking the ledger."""

_log = structlog.get_logger()


class RequestLog:
    """Issues requests on the bus, and recognises them when they come back."""

    def __init__(self, identity: Identity, bus: EventBus, ledger: Ledger) -> None:
        self._identity, self._bus, self._ledger = identity, bus, ledger
        self._issued: OrderedDict[str, SyncRequested] = OrderedDict()
        self._others: set[str] = set()

    async def issue(self, request: SyncRequested) -> SyncRequested:
        """Publish a request, and keep it in the history; one of its id that was issued before goes out again as it was.

        A bus takes no second one of an id, and brings the first: that must be known here. Returns the one that went
        out. Raises what the bus raises, StateError.
        """
        before = self._issued.get(request.id) or await self._ledger.find_event(request.id)
        # Under another system id it is another request: see SystemIdTaken.
        if isinstance(before, SyncRequested) and (before.agent_id, before.system_id) == (
            request.agent_id,
            request.system_id,
        ):
            request = before
        self._issued[request.id] = request  # first: it may come back before publishing returns
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

    async def is_ours(self, request: SyncRequested) -> bool:
        """Say whether this agent issued the request, in this process or an earlier one; log one that it did not."""
        if request.agent_id != self._identity.agent_id:
            self._log_foreign(request)
            return False
        known = self._issued.get(request.id) or await self._ledger.find_event(request.id)
        if known != request:
            why = "it bears this agent's id, but was not issued by it"
            _log.warning("request_refused", id=request.id, request_id=request.request_id, reason=why)
            return False
        return True

    def _log_foreign(self, request: SyncRequested) -> None:
        """Warn once for each other agent: several agents of one system are nothing unusual."""
        log = _log.debug
        if request.agent_id not in self._others and len(self._others) < REMEMBERED:
            self._others.add(request.agent_id)
            log = _log.warning
        why = f"it was issued by another agent, {request.agent_id}"
        log("request_refused", id=request.id, request_id=request.request_id, reason=why)
