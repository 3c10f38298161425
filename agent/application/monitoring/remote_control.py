"""Remote control over the bus, if enabled: other machines can read the status and request a sync.

    akosha.agent.{system}.status    any text     -> {"system_id", "agent_id", "version", "bus", "pending", "targets"}
    akosha.agent.{system}.sync      {"method": "auto", "enable_fallback": true}, or empty
                                                 -> {"accepted": true, "request_id"}; the result is sent as an event

Answers contain no path, address or setting: clients need not be trusted with those.
"""

import json
import uuid
from collections.abc import Awaitable, Callable, Mapping

import structlog

from agent import __version__
from agent.application.monitoring.agent_service import AgentService
from agent.application.monitoring.status import TargetStatus
from agent.domain import naming
from agent.domain.errors import AkoshaError, WireError
from agent.domain.events import SyncAsked
from agent.domain.parsing import parse_json
from agent.domain.routing import AUTO, CLOUD, HTTP, REMOTE
from agent.ports import BusState, Clock, Ledger, Responder

STATUS, SYNC = "status", "sync"
MAX_REQUEST_BYTES = 64 * 1024

Answer = Callable[[bytes], Awaitable[bytes]]

_log = structlog.get_logger()


class RemoteControl:
    """Answers the two requests. An invalid request gets an answer with an `error`."""

    def __init__(
        self,
        *,
        responder: Responder,
        agent_service: AgentService,
        ledger: Ledger,
        clock: Clock,
        bus_state: Callable[[], BusState],
    ) -> None:
        self._responder, self._agent_service, self._identity = responder, agent_service, agent_service.identity
        self._ledger, self._clock, self._bus_state = ledger, clock, bus_state

    async def start(self) -> None:
        """Subscribe. Requests are answered until the bus is closed."""
        for name, answer in ((STATUS, self._status), (SYNC, self._sync)):
            subject = naming.control_subject(self._identity.system_id, name)
            await self._responder.respond(subject, self._with_errors(answer))

    def _with_errors(self, answer: Answer) -> Answer:
        async def answer_or_error(request: bytes) -> bytes:
            try:
                return await answer(request)
            except WireError as error:
                return _json({"accepted": False, "error": error.message})
            except AkoshaError as error:
                _log.warning("question_failed", error=str(error))
                return _json({"accepted": False, "error": "the agent cannot answer now; see its log"})

        return answer_or_error

    async def _status(self, _request: bytes) -> bytes:
        status, state = await self._agent_service.brief_status(), self._bus_state()
        return _json(
            {
                "system_id": self._identity.system_id,
                "agent_id": self._identity.agent_id,
                "version": __version__,
                "time": self._clock.now().isoformat(),
                "bus": {"name": state.name, "since": state.since.isoformat()},
                "pending": sorted(status.pending),
                "targets": {target.method: _target_document(target) for target in status.targets},
            }
        )

    async def _sync(self, request: bytes) -> bytes:
        method, enable_fallback = _options(request)
        ask = SyncAsked(
            id=str(uuid.uuid4()),
            time=self._clock.now(),
            system_id=self._identity.system_id,
            reason=REMOTE,
            method=method,
            enable_fallback=enable_fallback,
        )
        _log.info("remote_sync_requested", request_id=ask.id, method=method, system_id=ask.system_id)
        if await self._agent_service.request_sync(ask) is None:
            refused = await self._ledger.outcome(ask.id)
            return _json({"accepted": False, "request_id": ask.id, "error": refused.error if refused else "refused"})
        return _json({"accepted": True, "request_id": ask.id})


def _target_document(target: TargetStatus) -> Mapping[str, object]:
    return {
        "newest_upload_id": target.newest_upload_id,
        "last_success": target.last_success.isoformat() if target.last_success else None,
        "failures": target.failures,
        "next_try": target.next_try.isoformat() if target.next_try else None,
    }


def _options(request: bytes) -> tuple[str, bool]:
    """Return (method, enable_fallback) of a sync request. Raises WireError."""
    if len(request) > MAX_REQUEST_BYTES:
        raise WireError(f"the request has {len(request)} bytes; the limit is {MAX_REQUEST_BYTES}")
    try:
        options = parse_json(request or b"{}")
    except ValueError as error:
        raise WireError("the request is not JSON") from error
    if not isinstance(options, dict):
        raise WireError("the request is not a JSON object")
    method, enable_fallback = options.get("method", AUTO), options.get("enable_fallback", True)
    if method not in (AUTO, CLOUD, HTTP) or not isinstance(enable_fallback, bool):
        raise WireError("method must be auto, cloud or http; enable_fallback must be true or false")
    return method, enable_fallback


def _json(document: Mapping[str, object]) -> bytes:
    return json.dumps(document).encode()
