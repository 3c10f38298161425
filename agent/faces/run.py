"""`run`: the agent until it is told to stop, and an orderly end within ten seconds."""

import asyncio
import os
import signal

import structlog

from agent.domain.errors import AkoshaError
from agent.settings import Settings
from agent.wiring import Home, build

STOP_SECONDS = 10.0

_log = structlog.get_logger()


async def run_until_stopped(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT. Returns 0; raises what took the agent down."""
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    with home.lock("run"):
        agent = await build(home, identity)
        try:
            async with agent:
                running = asyncio.create_task(agent.run(), name="agent")
                stopping = asyncio.create_task(stop.wait(), name="stop")
                await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
                _log.info("agent_stops", asked=stop.is_set())
                loop.call_later(STOP_SECONDS, _give_up_waiting)
                for task in (running, stopping):
                    task.cancel()
                ended, _ = await asyncio.gather(running, stopping, return_exceptions=True)
                if isinstance(ended, Exception):
                    raise ended
        except* AkoshaError as group:
            raise _first(group) from group
    _log.info("agent_stopped")
    return 0


def _first(group: BaseExceptionGroup[AkoshaError]) -> AkoshaError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, AkoshaError)
    return error


def _give_up_waiting() -> None:
    """Something does not let go: the ledger says what was under way, so ending hard loses nothing."""
    _log.error("agent_ends_hard", why=f"it did not come to an end within {STOP_SECONDS:g} s")
    os._exit(1)
