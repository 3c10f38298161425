"""Stops a command on a signal: its task is cancelled and may clean up for ten seconds."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress

import structlog

from agent.domain.errors import AkoshaError
from agent.ports.concurrency import DaemonResolverLoop, SharingExecutor

STOP_SECONDS = 10.0
STDIN = 0
ECHO_SECONDS = 1.0
"""Programs like `timeout` and `uv run` forward a signal that the terminal has already sent to this process: a second
signal so soon after the first is the same one."""

_log = structlog.get_logger()


def run_to_end(work: Coroutine[None, None, int], *, stopped: int | None = None) -> int:
    """Run a command and return its exit code.

    SIGTERM and Ctrl-C cancel the command; the code is then `stopped` (None: 128 + the signal's number). A second
    signal, or a clean-up of more than ten seconds, ends the process at once. No data is lost: the ledger records what
    was in progress.
    """
    _watch_children_without_threads()
    try:
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            return runner.run(_run(work, stopped))
    finally:
        if sys.version_info < (3, 12):
            # The watcher belongs to the closed loop. None: the next loop gets a new one.
            asyncio.set_child_watcher(None)  # type: ignore[arg-type]
        asyncio.set_event_loop(None)


def _new_loop() -> asyncio.AbstractEventLoop:
    loop = DaemonResolverLoop()
    asyncio.set_event_loop(loop)  # before Python 3.12, this attaches the watcher of child processes
    return loop


def _watch_children_without_threads() -> None:
    """Make asyncio wait for child processes as it does from Python 3.12 on: without a thread for each of them."""
    if sys.version_info < (3, 12) and sys.platform == "linux":
        with suppress(OSError):  # before Linux 5.3
            os.close(os.pidfd_open(os.getpid()))
            asyncio.set_child_watcher(asyncio.PidfdChildWatcher())


def on_hangup(reload: Callable[[], None]) -> None:
    """Call `reload`, on the running loop, at each SIGHUP. A SIGHUP because the terminal was closed acts as SIGTERM."""
    terminal = os.isatty(STDIN)

    def handle() -> None:
        if terminal and not os.isatty(STDIN):
            signal.raise_signal(signal.SIGTERM)
        else:
            reload()

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, handle)


async def _run(work: Coroutine[None, None, int], stopped: int | None) -> int:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(SharingExecutor(thread_name_prefix="asyncio"))
    task = asyncio.create_task(work, name="command")
    received: signal.Signals | None = None
    second_from = 0.0

    def stop(number: signal.Signals) -> None:
        nonlocal received, second_from
        if received is not None:
            if loop.time() >= second_from:
                _exit_at_once("a second signal")
            return
        received, second_from = number, loop.time() + ECHO_SECONDS
        _log.info("stopping", signal=number.name)
        task.cancel()
        loop.call_later(STOP_SECONDS, _exit_at_once, f"the clean-up took more than {STOP_SECONDS:g} s")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if received is None:
            raise
        return 128 + received if stopped is None else stopped


def _exit_at_once(reason: str) -> None:
    if _log.is_enabled_for(logging.ERROR):
        _log.error("forced_exit", reason=reason)
    else:
        with suppress(OSError):
            sys.stderr.write(f"akosha-agent: forced exit: {reason}\n")
            sys.stderr.flush()
    os._exit(1)


def first_of(group: BaseExceptionGroup[AkoshaError]) -> AkoshaError:
    """Return the first error in a (nested) group: it caused the others."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, AkoshaError)
    return error
