"""Tasks that never lose a cancellation, and blocking calls in daemon threads.

Tasks: a cancellation of the caller takes effect whenever it arrives. If it were lost, a loop that continues after
errors would never end.

Threads: a dead network mount or name server can block a system call forever. In the event loop's executor, a blocked
thread would prevent the loop and the process from ending; a separate daemon thread does not. Starting a thread takes
about 50 microseconds.
"""

import asyncio
import contextlib
import functools
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")


async def finish_cleanup(task: "asyncio.Task[Any]", seconds: float) -> None:
    """Wait for a cleanup task without passing on a cancellation; cancel the task after `seconds`.

    Before Python 3.12, `asyncio.wait_for` drops a cancellation that arrives while the task ends.
    """
    done = False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.shield(task)
            done = True
    if not done:
        task.cancel()


def mark_retrieved(task: "asyncio.Task[Any]") -> None:
    """Retrieve a task's exception, so that asyncio does not log it as never retrieved if its waiters were cancelled."""
    if not task.cancelled():
        task.exception()


def result_of(task: "asyncio.Task[T] | None") -> T | None:
    """Return a task's result; None if there is no task, or it is running, cancelled or failed."""
    if task is None or not task.done() or task.cancelled() or task.exception() is not None:
        return None
    return task.result()


class ConcurrentTasks:
    """A group of tasks that end with the block. If one fails, the others are cancelled and its error is raised.

    Before Python 3.13, `asyncio.TaskGroup` drops a cancellation of the caller that arrives while a task fails.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: list[asyncio.Task[Any]] = []
        self._first: BaseException | None = None

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task that ends with the block."""
        task = asyncio.create_task(work, name=self._name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return task

    def check(self) -> None:
        """Raise the error of the first failed task, if any. For a block that keeps starting tasks."""
        if self._first is not None:
            raise self._first from self._first.__cause__

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            if unfinished := [task for task in self._tasks if not task.done()]:
                for task in unfinished:
                    task.cancel()
                await asyncio.wait(unfinished)
        if error is None:
            self.check()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and task.exception() is not None and self._first is None:
            self._first = task.exception()


async def gather_all(work: Sequence[Coroutine[Any, Any, T]], name: str) -> list[T]:
    """Run coroutines concurrently, in tasks of that name, and return their results in order.

    If one fails, the others are cancelled, and the first error is raised.
    """
    async with ConcurrentTasks(name) as tasks:
        started = [tasks.start(each) for each in work]
    return [task.result() for task in started]


class SharingExecutor(ThreadPoolExecutor):
    """An executor whose threads share the work if the operating system does not start another one."""

    def _adjust_thread_count(self) -> None:
        """Start a thread for new work if all are busy. Raises RuntimeError if there is none at all."""
        try:
            super()._adjust_thread_count()
        except RuntimeError:
            if not self._threads:
                raise


async def in_daemon_thread(work: Callable[[], T], *, name: str = "daemon") -> T:
    """Run `work` in a new daemon thread; return its result or raise its error.

    After a cancellation the thread continues, and its result is discarded. If no thread can be started, the work is
    done by the event loop's executor.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type] # None only if T allows it
        else:
            done.set_exception(error)

    def run() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised where the future is awaited
            failure = error
        # If the loop was closed meanwhile, nothing awaits the result.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failure)

    try:
        threading.Thread(target=run, name=name, daemon=True).start()
    except RuntimeError:
        return await asyncio.to_thread(work)
    return await done


class DaemonResolverLoop(asyncio.SelectorEventLoop):
    """An event loop that resolves each host name in a daemon thread of its own.

    asyncio's loops use the default executor: names that are not resolved would then keep all other blocking calls
    waiting, and the loop from ending.
    """

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the name in the base class
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        resolve = functools.partial(socket.getaddrinfo, host, port, family, type, proto, flags)
        return await in_daemon_thread(resolve, name="getaddrinfo")
