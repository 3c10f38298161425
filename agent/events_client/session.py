"""Publishes the end of a session to the agent of a system."""

import asyncio
import uuid

from agent.adapters.nats import Login, NatsOptions, Tls
from agent.adapters.nats.bus import NatsBuses
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import BusError
from agent.domain.events import SessionEnded
from agent.domain.naming import check_system_id
from agent.events_client.address import options_of
from agent.events_client.logs import log_by_default

RETRY_SECONDS = 0.2
"""Delay of a retry after the connection was lost. The stream drops a second event with the same ID."""


async def publish_session_ended(
    server: str | NatsOptions,
    *,
    system_id: str,
    session_id: str = "",
    reason: str = "",
    id: str | None = None,  # noqa: A002 - the event's attribute
    timeout: float = 5.0,  # noqa: ASYNC109 - the caller's limit for NATS
    login: Login | None = None,
    tls: Tls | None = None,
) -> str:
    """Publish that a session has ended; return the event's ID once the stream has confirmed it.

    The agent of that system then syncs what its target lacks; if it is not running, at its next start. Raises BusError
    if the stream has not confirmed the event within `timeout` seconds; it may have arrived nevertheless. It is safe to
    publish it again with the same `id`. Raises NamingError, WireError and SettingsError for invalid arguments.
    """
    check_system_id(system_id)
    options = options_of(server, login, tls)
    log_by_default()
    clock = SystemClock()
    event = SessionEnded(
        id=id or str(uuid.uuid4()), time=clock.now(), system_id=system_id, session_id=session_id, reason=reason
    )
    buses = NatsBuses(options, CloudEventsCodec(), clock=clock, wait_for_connection=True)
    failure = ""
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    await buses.durable.publish(event)
                    return event.id
                except BusError as error:
                    if not error.transient:
                        raise
                    failure = str(error)
                await clock.sleep(RETRY_SECONDS)
    except TimeoutError as error:
        raise BusError(
            f"the session's end was not confirmed within {timeout:g} s: {failure or buses.durable.state.detail}",
            hint=f"publish it again with the id {event.id}",
            transient=True,
        ) from error
    finally:
        await buses.aclose()
