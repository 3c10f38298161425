"""Takes the requests for one method off the bus and processes each one until it has an outcome.

request -> refused (not ours) | queue -> ignored (has an outcome) | attempt -> Done     recorder
                                                                             RetryAt  attempt counted, stays queued
                                                                             Forward  published for the next method
                                                                             GiveUp   SyncFailed

The queue ends with the process. At its start the next agent finds what is owed, and the attempts, in the ledger.
"""

import asyncio
import random
import re
import shlex
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from urllib.parse import unquote

import structlog

from agent.application.signal import Signal
from agent.application.status_warnings import clear_warning, set_warning
from agent.application.sync.ownership_decision import used_directory_hint
from agent.application.sync.request_log import RequestLog
from agent.application.sync.results import ResultRecorder
from agent.application.sync.stall import ProgressReporter, sync_with_restarts
from agent.domain.databases import Survey
from agent.domain.delivery_state import TargetRecord
from agent.domain.errors import AkoshaError, NotOwner, SinkError, SnapshotError, StoreError, SyncError
from agent.domain.events import Event, SyncRequested
from agent.domain.progress import Activity
from agent.domain.routing import (
    CLOUD,
    DEFAULT_HTTP_ENDPOINT,
    HTTP,
    URGENT,
    Forward,
    GiveUp,
    RetryAt,
    RetryRules,
    SyncPolicy,
    next_step,
    target_backoff,
)
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Delivered, Ledger, Meter, NoMeter, SyncMethod, Unchanged, VolatileBus
from agent.ports.dispatch import end_task

_START_AKOSHA = "start Akosha there, or set akosha_http_endpoint"

_COUNTS = re.compile(r"[\d,]+ (?=wait|were refused)")
"""Counts in messages; they differ between messages about the same condition."""

REFUSED_HINT = "renew the credentials; the next attempt reads them again"

UNEXPECTED_HINT = "the log has the traceback as unexpected_error; update akosha-agent, or report it"

FAULT_SECONDS = 30.0
"""Delay before the next attempt of a request after an unexpected error."""

MAX_QUEUED = 1000
"""Requests that wait; the newest one replaces the oldest. The next rescan publishes a dropped request of a person or
program again, and finds what another one was for."""

_log = structlog.get_logger()


@dataclass(slots=True)
class _Queued:
    """A request, and the time (monotonic) of its next attempt."""

    request: SyncRequested
    not_before: float


class SyncSubscriber:
    """The subscriber of one method: `handle` receives requests, `start` processes them until `stop`.

    Requests are processed in order, one at a time. While one waits for its next attempt, the later ones wait too,
    except urgent ones.

    All subscribers of an agent share `sync_lock`, so that one sync runs at a time, and `unreachable`, the methods whose
    target could not be reached when it was last needed. `survey` raises SnapshotError if the data directory cannot be
    read.
    """

    def __init__(
        self,
        method: SyncMethod,
        *,
        bus: VolatileBus,
        requests: RequestLog,
        ledger: Ledger,
        recorder: ResultRecorder,
        clock: Clock,
        rules: RetryRules,
        policy: SyncPolicy,
        survey: Callable[[], Awaitable[Survey]],
        sync_lock: asyncio.Lock,
        after_outcome: Callable[[], None],
        errors: asyncio.Queue[Exception],
        unreachable: set[str] | None = None,
        jitter: Callable[[], float] = random.random,
        meter: Meter | None = None,
    ) -> None:
        self.method = method
        self._meter = meter or NoMeter()
        self._unreachable = set() if unreachable is None else unreachable
        self._policy, self._survey = policy, survey
        self._rules, self._jitter = rules, jitter
        self._bus, self._requests, self._ledger, self._recorder, self._clock = bus, requests, ledger, recorder, clock
        self._sync_lock, self._after_outcome, self._errors = sync_lock, after_outcome, errors
        self._report: ProgressReporter | None = None
        self._queue: dict[str, _Queued] = {}
        self._current = ""
        self._signal = Signal(clock, f"sync-{method.name}")
        self._worker: asyncio.Task[None] | None = None

    @property
    def activity(self) -> Activity | None:
        """The progress of the attempt that is running; None if none is."""
        return self._report.activity() if self._report else None

    def start(self) -> None:
        """Start the task that processes the queued requests."""
        self._worker = asyncio.create_task(self._run(), name=f"sync-{self.method.name}")

    async def stop(self) -> None:
        """Cancel a running sync and wait for its cleanup. The requests in the queue are dropped."""
        if self._worker is not None:
            await end_task(self._worker)

    def has(self, request_id: str) -> bool:
        """Return whether a request is in the queue, or has the attempt that is running."""
        return request_id in self._queue

    async def handle(self, event: Event) -> None:
        """Queue a request that this agent issued. A request that is in the queue is not queued again."""
        if not isinstance(event, SyncRequested) or not self._requests.is_ours(event):
            return
        if event.request_id not in self._queue:
            if len(self._queue) >= MAX_QUEUED:
                oldest = next(each for each in self._queue if each != self._current)
                _log.warning("request_dropped", request_id=oldest, method=self.method.name, limit=MAX_QUEUED)
                del self._queue[oldest]
            self._queue[event.request_id] = _Queued(event, self._clock.monotonic())
        self._signal.set()

    async def _run(self) -> None:
        while True:
            queued, now = self._next(), self._clock.monotonic()
            if queued is None:
                await self._signal.wait(None)
            elif queued.not_before > now:
                await self._signal.wait(queued.not_before - now)
            else:
                await self._process(queued)
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise asyncio.CancelledError  # the cleanup of the sync has failed with another error

    def _next(self) -> _Queued | None:
        """Return the request whose turn is next: the oldest, or an urgent one that is due before it."""
        waiting = list(self._queue.values())
        candidates = waiting[:1] + [one for one in waiting[1:] if one.request.reason in URGENT]
        return min(candidates, key=lambda one: one.not_before, default=None)

    async def _process(self, queued: _Queued) -> None:
        """Process a request; remove it from the queue unless another attempt follows.

        An exception that is not a SyncError (for example, the ledger cannot be written) is not an outcome. It goes to
        `errors`, whose owner decides, and another attempt follows.
        """
        request, delay = queued.request, None
        self._current = request.request_id
        try:
            async with self._sync_lock:
                if await self._ledger.outcome(request.request_id) is None:
                    delay = await self._perform(request)
        except Exception as error:  # noqa: BLE001 - passed on to the agent
            self._errors.put_nowait(error)
            delay = FAULT_SECONDS
        finally:
            self._current = ""
            if delay is None:
                self._queue.pop(request.request_id, None)
            else:
                queued.not_before = self._clock.monotonic() + delay
            self._recorder.flush_soon()
            self._after_outcome()

    async def _perform(self, request: SyncRequested) -> float | None:
        """Make one attempt. Return the seconds until the next one, None if the request has an outcome."""
        target = self.method.target
        log = _log.bind(request_id=request.request_id, method=self.method.name, system_id=request.system_id)
        try:
            outcome = await self._attempt(request)
        except SyncError as error:
            record = await self._ledger.record(target)
            attempts = _attempts_before(record, request)
            await self._update_warnings(error, repeated=bool(record.failures or record.attempts))
            step = next_step(request, error, attempts=attempts, rules=self._rules, jitter=self._jitter())
            log_failure = log.debug if _is_known(request, record, error) else log.warning
            match step:
                case RetryAt():
                    retry_at = self._clock.now() + timedelta(seconds=step.delay)
                    log_failure(
                        "sync_retry_scheduled",
                        attempt=step.attempts,
                        delay_seconds=round(step.delay, 2),
                        error=str(error),
                    )
                    await self._ledger.count_attempt(
                        target, request, attempts=step.attempts, retry_at=retry_at, error=str(error)
                    )
                    self._meter.retried(self.method.name)
                    return step.delay
                case Forward():
                    log_failure("sync_forwarded", to=step.request.route[0], error=str(error))
                    await self._give_up(request, record, error, None)
                    await self._requests.issue(step.request)
                case GiveUp():
                    log_failure("sync_failed", errors=[f"{e.method}: {e.error}" for e in step.errors])
                    await self._give_up(request, record, error, step)
            return None
        for code in (self._unexpected_code, self._refused_code):
            await clear_warning(self._ledger, code)
        if isinstance(outcome, Delivered):
            # Added here, so that a method written by others need not do it.
            result = replace(outcome.result, caused_by=request.caused_by, errors=request.errors)
            await self._recorder.delivered(target, replace(outcome, result=result))
        elif (outcome_before := await self._ledger.outcome(request.request_id)) is not None:
            self._meter.outcome(outcome_before)  # an upload that was finished before a crash, and has been adopted
        else:
            await self._recorder.skipped(
                target, request, method=self.method.name, reason=self._reason_of_skip(request, outcome.reason)
            )
        return None

    @property
    def _unexpected_code(self) -> str:
        return f"unexpected_error_{self.method.name}"

    @property
    def _refused_code(self) -> str:
        return f"credentials_refused_{self.method.name}"

    async def _update_warnings(self, error: SyncError, *, repeated: bool) -> None:
        """Update status warnings: the credentials were refused, or an unexpected error repeats.

        `repeated`: an earlier attempt failed too. A single unexpected error causes no warning.
        """
        cause = error.original if isinstance(error.original, AkoshaError) else error
        if isinstance(cause, StoreError | SinkError) and not (cause.credentials_refused or error.transient):
            await clear_warning(self._ledger, self._refused_code)  # the target has accepted the credentials
        if cause.credentials_refused:
            message = f"{self.method.name}: an attempt had no usable credentials: {error.message}"
            hint = error.hint or REFUSED_HINT
            await set_warning(
                self._ledger, StatusWarning(code=self._refused_code, message=message, hint=hint), self._clock
            )
        if cause.unexpected and repeated:
            message = f"{self.method.name}: an unexpected error repeats: {error.message}"
            hint = error.hint or UNEXPECTED_HINT  # an unexpected answer of a server has its own hint and no traceback
            warning = StatusWarning(code=self._unexpected_code, message=message, hint=hint)
            await set_warning(self._ledger, warning, self._clock)

    def _reason_of_skip(self, request: SyncRequested, reason: str) -> str:
        """Return why there was nothing to deliver, after the errors of the methods that failed before."""
        if not request.errors:
            return reason
        return "; ".join([*(f"{e.method}: {e.error}" for e in request.errors), f"{self.method.name}: {reason}"])

    async def _attempt(self, request: SyncRequested) -> Delivered | Unchanged:
        if not await self.method.is_available():
            self._unreachable.add(self.method.name)
            await self._check_data_directory()
            record = await self._ledger.record(self.method.target)
            message, hint = _unreachable(record, self._policy)
            raise SyncError(
                message,
                self.method.name,
                hint=hint,
                # After a failed attempt the server may be restarting: retry, unless another method can deliver.
                transient=bool(_attempts_before(record, request)) and len(request.route) == 1,
            )
        self._unreachable.discard(self.method.name)
        try:
            async with ProgressReporter(self._bus, self._clock, request, self.method.name).open() as self._report:
                return await sync_with_restarts(self.method, request, self._report)
        except SyncError as error:
            if isinstance(error.original, NotOwner):  # a mistyped data directory has another default system ID
                await self._check_data_directory()
            raise
        finally:
            self._report = None

    async def _check_data_directory(self) -> None:
        """Raise SyncError if the data directory cannot be read: no target would help."""
        try:
            await self._survey()
        except SnapshotError as error:
            raise SyncError(error.message, self.method.name, error, hint=error.hint, forwardable=False) from error

    async def _give_up(
        self, request: SyncRequested, record: TargetRecord, error: SyncError, step: GiveUp | None
    ) -> None:
        """Record the failure. Back off from the target, unless a database caused it: its problem has a retry time."""
        failures, retry_at = 0 if request.reason in URGENT else record.failures, None
        if step is None or step.blames_target:
            failures += 1
            retry_at = self._clock.now() + target_backoff(failures)
        target = self.method.target
        if step is None:  # the next method decides the outcome
            await self._ledger.give_up(target, error=str(error), failures=failures, retry_at=retry_at, result=None)
            return
        waiting = (entry.problem for entry in record.databases.values() if entry.problem)
        times = [at for at in (retry_at, *(problem.retry_at for problem in waiting)) if at is not None]
        await self._recorder.failed(
            target,
            request,
            step.errors,
            error=str(error),
            failures=failures,
            retry_at=retry_at,
            next_retry=min(times, default=None),
        )


def _unreachable(record: TargetRecord, policy: SyncPolicy) -> tuple[str, str]:
    """Return message and hint for a target that cannot be reached. They depend on nothing that changes meanwhile.

    Only for a directory without uploads is the hint to make it: an empty one hides that its disk is not mounted.
    """
    target = record.target
    message = f"{target.endpoint or 'the store'} cannot be reached"
    if target.method == CLOUD and target.endpoint.startswith("file:"):
        path = "/".join(filter(None, (unquote(target.endpoint.removeprefix("file://")).rstrip("/"), target.bucket)))
        if record.newest_upload_id:
            return message, used_directory_hint(path)
        return message, f"is the disk mounted? To make the directory: mkdir -p {shlex.quote(path)}"
    if target.method == CLOUD:
        return message, "check the network, akosha_cloud_endpoint and akosha_cloud_bucket"
    if target.method != HTTP:
        return message, ""
    is_default = target.endpoint == DEFAULT_HTTP_ENDPOINT
    message = f"no Akosha server at {target.endpoint}" if is_default else message
    if not policy.cloud_configured:
        if is_default:  # perhaps nobody has chosen a target
            return message, "akosha-agent init chooses where memories go; or start Akosha there"
        return message, f"{_START_AKOSHA}, akosha_cloud_bucket or akosha_cloud_endpoint"
    hints = [] if is_default and HTTP in policy.route[1:] else [_START_AKOSHA]
    if HTTP in policy.route[1:]:
        hints.append("akosha_enable_fallback: false switches the fallback to Akosha off")
    return message, "; ".join(hints)


def _is_known(request: SyncRequested, record: TargetRecord, error: SyncError) -> bool:
    """Return whether a request that is not urgent failed as before: an agent that is offline for days warns once."""
    before = bool(record.failures) or not error.forwardable  # otherwise the recorded error is of this request
    return request.reason not in URGENT and before and _COUNTS.sub("", record.error) == _COUNTS.sub("", str(error))


def _attempts_before(record: TargetRecord, request: SyncRequested) -> int:
    """Return the attempts so far: 0 for a new urgent request; otherwise the record's, which survives restarts."""
    if request.reason in URGENT and record.attempt_request != request.request_id:
        return 0
    return record.attempts
