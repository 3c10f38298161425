"""To tell the agent of a machine that a session has ended there."""

import asyncio
import uuid

from agent.adapters.nats import Login, NatsOptions, Tls
from agent.adapters.nats.bus import NatsBus
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from agent.domain.errors import BusError
from agent.domain.events import SessionEnded
from agent.domain.naming import check_system_id
from agent.events_client.address import options_of
from agent.events_client.logs import log_by_default

AGAIN_SECONDS = 0.2
"""Before the next try, where NATS was lost in the middle: the id makes one of the two."""


async def publish_session_ended(
    server: str | NatsOptions,
    *,
    system_id: str,
    session_id: str = "",
    reason: str = "",
    id: str | None = None,  # noqa: A002 - the event's own word for it
    timeout: float = 5.0,  # noqa: ASYNC109 - how long NATS is waited for is what the caller must say
    login: Login | None = None,
    tls: Tls | None = None,
) -> str:
    """Publish that a session has ended; return the event's id once the stream has it.

    The agent of that system, now or when it runs next, then syncs what its target lacks. Raises BusError where the
    stream has not confirmed it within `timeout` seconds: it may have arrived all the same. With the same `id` it may be
    published again, and counts once. Raises NamingError, WireError and SettingsError for what cannot be published.
    """
    check_system_id(system_id)
    options = options_of(server, login, tls)
    log_by_default()
    clock = SystemClock()
    event = SessionEnded(
        id=id or str(uuid.uuid4()), time=clock.now(), system_id=system_id, session_id=session_id, reason=reason
    )
    bus = NatsBus.begin(options, CloudEventsCodec(), clock=clock, patient=True)
    why = ""
    try:
        async with asyncio.timeout(timeout):
            while True:
                try:
                    await bus.publish(event)
                    return event.id
                except BusError as error:
                    if not error.transient:
                        raise
                    why = str(error)
                await clock.sleep(AGAIN_SECONDS)
    except TimeoutError as error:
        raise BusError(
            f"the session's end was not confirmed within {timeout:g} s: {why or bus.state.detail}",
            hint=f"publish it again, with the id {event.id}",
            transient=True,
        ) from error
    finally:
        await bus.aclose()
