"""`run`: the agent until it is told to stop."""

import asyncio
from typing import NoReturn

import structlog

from agent.domain.errors import AkoshaError
from agent.settings import Settings
from agent.wiring import Home, build

_log = structlog.get_logger()


async def run_until_stopped(settings: Settings) -> NoReturn:
    """Run until cancelled. Raises what took the agent down."""
    home = Home.of(settings)
    identity = await asyncio.to_thread(home.prepare)
    with home.lock("run"):
        try:
            async with await build(home, identity) as agent:
                await agent.run()
        except* AkoshaError as group:
            raise _first(group) from group
        finally:
            _log.info("agent_stopped", system_id=identity.system_id)
    raise AssertionError("the agent runs until it is cancelled, or fails")


def _first(group: BaseExceptionGroup[AkoshaError]) -> AkoshaError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, AkoshaError)
    return error
