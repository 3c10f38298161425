"""The routing slip of a request, and the next step after each attempt, which the subscriber carries out.

Fallback is a forwarded event: the same request, on the next method's subject, with the error appended.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta

from agent.domain.errors import SyncError
from agent.domain.events import MethodError, SyncRequested, request_event_id

CLOUD = "cloud"
HTTP = "http"
AUTO = "auto"

DEFAULT_HTTP_ENDPOINT = "http://localhost:8682/mcp"
CLOUD_HINT = "set akosha_cloud_bucket, or akosha_cloud_endpoint to file:///a/directory"

MANUAL = "manual"
SESSION_END = "session_end"
FILE_CHANGE = "file_change"
STARTUP = "startup"
RETRY = "retry"
REMOTE = "remote"

URGENT = frozenset({MANUAL, SESSION_END, REMOTE})
"""Requested by a person or a session's end: resets a target's back-off, unlike a file change."""

ASKED = frozenset({MANUAL, REMOTE})
"""Requested by a person: the agent checks that the target still has what was delivered."""

FIRST_TARGET_BACKOFF = timedelta(seconds=30)
LAST_TARGET_BACKOFF = timedelta(minutes=15)


def plan_route(*, force_method: str, cloud_configured: bool, enable_fallback: bool) -> tuple[str, ...]:
    """Return the methods to try, in order, according to the settings."""
    if force_method != AUTO:
        return (force_method,)
    if not cloud_configured:
        return (HTTP,)
    return (CLOUD, HTTP) if enable_fallback else (CLOUD,)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPolicy:
    """The settings that decide whether a sync is done, and by which methods."""

    enabled: bool = True
    on_session_end: bool = True
    force_method: str = AUTO
    cloud_configured: bool = False
    enable_fallback: bool = True

    @property
    def route(self) -> tuple[str, ...]:
        """The methods of an automatic sync, in order."""
        return self.route_of(AUTO, enable_fallback=True)

    def route_of(self, method: str, *, enable_fallback: bool) -> tuple[str, ...]:
        """Return the methods of a requested sync, in order; with `auto` the settings decide."""
        return plan_route(
            force_method=method if method != AUTO else self.force_method,
            cloud_configured=self.cloud_configured,
            enable_fallback=enable_fallback and self.enable_fallback,
        )


def open_route(
    route: tuple[str, ...], *, available: Collection[str], backing_off: Collection[str], reason: str
) -> tuple[str, ...]:
    """Return the methods of the route to request now. If empty, no request is published: the retry timer will do it.

    Methods that this agent does not have are left out; so are those whose target is backing off, unless the reason is
    urgent.
    """
    return tuple(m for m in route if m in available and (reason in URGENT or m not in backing_off))


@dataclass(frozen=True, slots=True)
class RetryRules:
    """`max_retries` after the first attempt; `backoff_seconds` before the first retry, doubled for each further one."""

    max_retries: int
    backoff_seconds: float


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Repeat the request after `delay` seconds; `attempts` counts the attempts so far."""

    attempts: int
    delay: float


@dataclass(frozen=True, slots=True)
class Forward:
    """Publish `request`, the same request for the next method, with the error appended."""

    request: SyncRequested


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No method is left; the databases stay owed. `blames_target`: the target backs off."""

    errors: tuple[MethodError, ...]
    blames_target: bool


Step = RetryAt | Forward | GiveUp


def next_step(request: SyncRequested, error: SyncError, *, attempts: int, rules: RetryRules, jitter: float) -> Step:
    """Return the step after a failed attempt; `attempts` counts those before it, `jitter` is in [0, 1)."""
    if error.transient and attempts < rules.max_retries:
        delay = rules.backoff_seconds * 2**attempts * (0.9 + 0.2 * jitter)
        retry_after = min(error.retry_after or 0.0, LAST_TARGET_BACKOFF.total_seconds())
        return RetryAt(attempts=attempts + 1, delay=max(delay, retry_after))
    errors = (*request.errors, MethodError(method=request.route[0], error=str(error)))
    rest = request.route[1:]
    if rest and error.forwardable:
        forwarded = replace(request, id=request_event_id(request.request_id, rest[0]), route=rest, errors=errors)
        return Forward(request=forwarded)
    return GiveUp(errors=errors, blames_target=error.forwardable)


def target_backoff(failures: int) -> timedelta:
    """Return how long a target backs off after `failures` consecutive failed requests: 30 s, doubling up to 15 min."""
    doublings = min(max(failures, 1) - 1, 10)
    return min(FIRST_TARGET_BACKOFF * (1 << doublings), LAST_TARGET_BACKOFF)
