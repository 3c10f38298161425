"""How a command ends when it is told to: what it does is cancelled, cleans up, and has ten seconds for it."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress

import structlog

from agent.domain.errors import AkoshaError

STOP_SECONDS = 10.0
STDIN = 0
ECHO_SECONDS = 1.0
"""`timeout`, `uv run` and their like pass on what the terminal has told us already: a signal so soon after the first
is the same one."""

_log = structlog.get_logger()


def run_to_end(work: Coroutine[None, None, int], *, stopped: int | None = None) -> int:
    """Run a command and return its exit code.

    SIGTERM and Ctrl-C cancel it; then the code is `stopped`, or 128 + the signal's number. Another signal a while
    later, or ten seconds that were not enough, end the process hard: the ledger says what was under way, so that loses
    nothing.
    """
    return asyncio.run(_run(work, stopped))


def on_hangup(reload: Callable[[], None]) -> None:
    """Call `reload`, on the running loop, at each SIGHUP. One that says that the terminal has gone is as SIGTERM."""
    terminal = os.isatty(STDIN)

    def told() -> None:
        if terminal and not os.isatty(STDIN):
            signal.raise_signal(signal.SIGTERM)
        else:
            reload()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, told)


async def _run(work: Coroutine[None, None, int], stopped: int | None) -> int:
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(work, name="command")
    told: list[signal.Signals] = []
    insists_from = 0.0

    def end(name: signal.Signals) -> None:
        nonlocal insists_from
        if told:
            if loop.time() >= insists_from:
                _end_hard("it was told to stop twice")
            return
        told.append(name)
        insists_from = loop.time() + ECHO_SECONDS
        _log.info("stopping", signal=name.name)
        task.cancel()
        loop.call_later(STOP_SECONDS, _end_hard, f"it did not come to an end within {STOP_SECONDS:g} s")

    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, end, name)
    try:
        return await task
    except asyncio.CancelledError:
        if not told:
            raise
        return 128 + told[0] if stopped is None else stopped


def _end_hard(why: str) -> None:
    if _log.is_enabled_for(logging.ERROR):
        _log.error("ends_hard", why=why)
    else:
        with suppress(OSError):
            sys.stderr.write(f"akosha-agent: ends at once: {why}\n")
            sys.stderr.flush()
    os._exit(1)


def first_of(group: BaseExceptionGroup[AkoshaError]) -> AkoshaError:
    """Return the first error in a group, however deep: the others followed from it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, AkoshaError)
    return error
