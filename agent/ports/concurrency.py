"""Tasks that end well, and blocking work on threads that nobody has to wait for.

Tasks: a cancellation of the caller is never lost, at whatever moment it arrives: a loop that survives errors would not
end.

Threads: a network mount that has gone away, or a name server, can hold a system call without limit. In the loop's own
executor such a thread would keep the loop, and the process, from ending; a daemon thread of its own does not. Starting
one costs some 50 microseconds.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

T = TypeVar("T")


async def finish_cleanup(task: "asyncio.Task[Any]", seconds: float) -> None:
    """Wait for a clean-up that a cancellation must not stop, but no longer than `seconds`; then it is cancelled.

    `asyncio.wait_for` is not used: before Python 3.12 it drops a cancellation that arrives as the task ends.
    """
    done = False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.shield(task)
            done = True
    if not done:
        task.cancel()


def mark_retrieved(task: "asyncio.Task[Any]") -> None:
    """Retrieve a task's exception: one whose waiters have all been cancelled is not reported as overlooked."""
    if not task.cancelled():
        task.exception()


def result_of(task: "asyncio.Task[T] | None") -> T | None:
    """Return a task's result; None without a task, while it runs, and where it was cancelled or failed."""
    if task is None or not task.done() or task.cancelled() or task.exception() is not None:
        return None
    return task.result()


class ConcurrentTasks:
    """Tasks of one name, all ended when the block ends. Where one fails, the others are cancelled and its error raised.

    Not `asyncio.TaskGroup`: before Python 3.13 it drops a cancellation of the caller that arrives as a task fails.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: list[asyncio.Task[Any]] = []
        self._first: BaseException | None = None

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Start a task."""
        task = asyncio.create_task(work, name=self._name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return task

    def check(self) -> None:
        """Raise the error of the first task that failed, if one has: for a block that goes on starting tasks."""
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
    """Do all of it side by side, in tasks of that name; return what each came to, in order.

    Where one fails the others are cancelled, and its error, the first, is raised.
    """
    async with ConcurrentTasks(name) as tasks:
        started = [tasks.start(each) for each in work]
    return [task.result() for task in started]


P = ParamSpec("P")


class DaemonExecutor(ThreadPoolExecutor):
    """A loop's default executor (name look-ups, for one) with daemon threads: nobody waits for one that hangs."""

    def __init__(self, name: str) -> None:
        super().__init__(max_workers=1)  # never used: each call has a thread of its own
        self._name = name

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As the base class says, on a daemon thread of its own."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
                future.set_exception(error)

        threading.Thread(target=run, name=self._name, daemon=True).start()
        return future


async def in_daemon_thread(work: Callable[[], T], *, name: str = "off-loop") -> T:
    """Return what `work` returns, raise what it raises. Cancelled, it goes on without anybody listening."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type] # None only where T is
        else:
            done.set_exception(error)

    def run() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            failure = error
        # A loop that has closed in the meantime has nobody waiting.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await done
