"""Publishes a SyncRequested for every trigger.

`trigger` and `trigger_session_end` first compare the files with the ledger, and publish nothing if nothing is due.
`submit`, for requests of people and programs, publishes without comparing; the attempt compares.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import structlog

from agent.application.sync.attempt import skip_reason
from agent.application.sync.request_log import RequestLog
from agent.application.sync.results import ResultRecorder
from agent.domain.databases import Survey
from agent.domain.delivery_state import TargetRecord, active_methods, due
from agent.domain.errors import SnapshotError
from agent.domain.events import MethodError, SyncAsked, SyncRequested, request_event_id
from agent.domain.identity import Identity
from agent.domain.routing import AUTO, CLOUD, CLOUD_HINT, RETRY, SESSION_END, STARTUP, URGENT, SyncPolicy, open_route
from agent.ports import Clock, Ledger, SnapshotTaker, SyncMethod

_log = structlog.get_logger()


@dataclass(slots=True)
class Publisher:
    """Decides whether a trigger needs a request, and publishes it."""

    policy: SyncPolicy
    identity: Identity
    requests: RequestLog
    ledger: Ledger
    recorder: ResultRecorder
    clock: Clock
    taker: SnapshotTaker
    methods: Mapping[str, SyncMethod]

    _survey_error: str = field(default="", init=False)
    _reported: Survey = field(default_factory=dict, init=False)

    async def submit(self, ask: SyncAsked, *, caused_by: tuple[str, ...] = ()) -> SyncRequested | None:
        """Publish the request for a SyncAsked, or record at once a result with the reason for its refusal.

        The request also answers the session ends `caused_by`; a refusal does not.
        """
        route = self.policy.route_of(ask.method, enable_fallback=ask.enable_fallback)
        usable = self._usable_route(route, await self.records(), ask.reason)
        if not self.policy.enabled:
            await self.refuse(ask, "sync is disabled", "set akosha_sync_enabled to true")
            return None
        if not usable:
            await self.refuse(ask, *self._no_route(route))
            return None
        return await self._publish(replace(self._request(ask.reason, usable, ask), caused_by=caused_by))

    async def trigger(self, reason: str) -> SyncRequested | None:
        """Publish a request of the agent itself if the first reachable target lacks something that is due.

        A retry goes only to targets that failed: after a delivery by the fallback, to the first target alone, and to
        the fallback only while the first target fails.
        """
        route = await self._route_of_trigger(reason)
        return await self._publish(self._request(reason, route, None)) if route else None

    async def trigger_session_end(self, caused_by: tuple[str, ...]) -> SyncRequested | None:
        """Publish a request for ended sessions, or record at once a result with the reason. Both have `caused_by`."""
        route = await self._route_of_trigger(SESSION_END) if self.policy.on_session_end else ()
        request = replace(self._request(SESSION_END, route, None), caused_by=caused_by)
        if route:
            return await self._publish(request)
        planned, records = self.policy.route, await self.records()
        usable = self._usable_route(planned, records, SESSION_END)
        if not self.policy.on_session_end:
            await self._skip(request, "akosha_upload_on_session_end is false")
        elif not self.policy.enabled:
            await self._skip(request, "akosha_sync_enabled is false")
        elif not usable:
            await self._refuse(request, AUTO, *self._no_route(planned))
        elif not (survey := await self.survey()) and self._survey_error:
            await self._refuse(request, AUTO, self._survey_error, "")
        else:
            await self._skip(request, skip_reason(records[usable[0]], survey))
        return None

    async def republish(self, request: SyncRequested) -> None:
        """Publish a request again: it may be on a bus that is no longer used."""
        await self.requests.issue(request)

    async def _route_of_trigger(self, reason: str) -> tuple[str, ...]:
        """Return the route of a request for this reason; empty if nothing is due, or if sync is disabled."""
        records = await self.records()
        route = self._usable_route(self.policy.route, records, reason)
        if reason == RETRY:
            failing = active_methods(self.policy.route, records)
            route = tuple(m for m in route if m in failing and records[m].failures) or route
        if not route:
            return ()
        survey = await self.survey()
        # At a start, databases with problems are tried too: settings may have changed since.
        lacking = due(records[route[0]], survey, self.clock.now(), urgent=reason in URGENT or reason == STARTUP)
        if not lacking:
            return ()
        if not self.policy.enabled:
            seen = {name: survey[name] for name in lacking}
            if seen != self._reported:
                _log.info("change_ignored", databases=sorted(lacking), reason="akosha_sync_enabled is false")
            self._reported = seen
            return ()
        return route

    async def records(self) -> dict[str, TargetRecord]:
        """Return the ledger's record of each method's target."""
        return {name: await self.ledger.record(method.target) for name, method in self.methods.items()}

    async def survey(self) -> Survey:
        """Return the databases in the data directory. If it cannot be read: none, and a warning for each new error."""
        try:
            survey = await self.taker.survey()
        except SnapshotError as error:
            if self._survey_error != str(error):
                _log.warning("data_directory_unreadable", error=str(error))
            self._survey_error = str(error)
            return {}
        self._survey_error = ""
        return survey

    def _usable_route(
        self, route: tuple[str, ...], records: Mapping[str, TargetRecord], reason: str
    ) -> tuple[str, ...]:
        now = self.clock.now()
        backing_off = [name for name, record in records.items() if record.backing_off(now)]
        return open_route(route, available=records, backing_off=backing_off, reason=reason)

    def _request(self, reason: str, route: tuple[str, ...], ask: SyncAsked | None) -> SyncRequested:
        request_id = ask.id if ask else str(uuid.uuid4())
        return SyncRequested(
            id=request_event_id(request_id, route[0] if route else AUTO),
            time=self.clock.now(),
            system_id=self.identity.system_id,
            request_id=request_id,
            agent_id=self.identity.agent_id,
            reason=reason,
            route=route,
            upload_reflections=ask.upload_reflections if ask else True,
            upload_knowledge_graph=ask.upload_knowledge_graph if ask else True,
            take_over=ask.take_over if ask else False,
            new_target=ask.new_target if ask else False,
        )

    async def _publish(self, request: SyncRequested) -> SyncRequested:
        request = await self.requests.issue(request)
        # Retries are logged at debug level: an unavailable target is retried for hours.
        (_log.debug if request.reason == RETRY else _log.info)(
            "sync_requested",
            request_id=request.request_id,
            reason=request.reason,
            route=list(request.route),
            system_id=request.system_id,
        )
        return request

    def _no_route(self, route: tuple[str, ...]) -> tuple[str, str]:
        hint = CLOUD_HINT if CLOUD in route else f"choose {' or '.join(self.methods)}, or auto"
        return f"no target is set for {' or '.join(route)}", hint

    async def refuse(self, ask: SyncAsked, problem: str, hint: str) -> None:
        """Record a failed result for a refused SyncAsked, so that a waiting client gets the reason."""
        await self._refuse(self._request(ask.reason, (), ask), ask.method, problem, hint)

    async def _refuse(self, request: SyncRequested, method: str, problem: str, hint: str) -> None:
        error = MethodError(method=method, error=f"{problem} ({hint})" if hint else problem)
        await self.recorder.refused(request, error)
        self.recorder.flush_soon()

    async def _skip(self, request: SyncRequested, reason: str) -> None:
        await self.recorder.skipped(None, request, method=AUTO, reason=reason)
        self.recorder.flush_soon()
