"""The page: CPU of the agent for a view, its CPU and memory while a page is open, and what 50 pages add to a sync.

A view is what a browser requests when it opens the page. Like the page's script, an open page follows the events.
After 250 ms it reads the status, the history and the plots; 2 s after progress, and every 30 s, only the status.
The pages are simulated in a process of their own.

    python -m tests.bench.page PORT SESSION COUNT     simulates open pages until standard input ends
"""

import asyncio
import http.client
import json
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agent.adapters.sqlite_ledger.history import History
from agent.adapters.wire import CloudEventsCodec
from agent.entrypoints.page.files import read_files
from tests.bench.databases import Databases
from tests.bench.idle import PSS_BARS, START_SECONDS, scheduling
from tests.bench.memory import idle_pss, wait_for_uploads
from tests.bench.report import Line, mebibytes, seconds
from tests.support import values
from tests.support.machine import Machine, Running

VIEW_BAR, SYNC_BAR, IDLE_BAR = 0.05, 1.05, 0.1
PAGES = 50
RESULTS = 5000
VIEWS = 20
DATA = ("/v1/status", "/v1/history", "/v1/plots")

SETTLE_SECONDS, PROGRESS_SECONDS = 0.25, 2.0
STATUS_SECONDS = 30.0


class Page:
    """The page in a browser, with one connection that stays open."""

    def __init__(self, machine: Machine) -> None:
        done = machine.call("open", "--print")
        address, _, token = done.out.strip().partition("/#token=")
        self.netloc = address.removeprefix("http://")
        self._connection = http.client.HTTPConnection(self.netloc)
        self.headers: dict[str, str] = {}
        body = json.dumps({"token": token})
        started = json.loads(self.request("POST", "/v1/page/session", body, {"Content-Type": "application/json"}))
        self.session = started["session"]
        self.headers = {"Authorization": f"Bearer {self.session}"}

    def request(self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None) -> bytes:
        self._connection.request(method, path, body, self.headers | (headers or {}))
        response = self._connection.getresponse()
        content = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(f"{path}: {response.status} {content[:200]!r}")
        return content

    def view(self) -> None:
        for path in (*read_files(), *DATA):
            self.request("GET", path)


def lines(folder: Path, databases: Databases, size: int, rounds: int, idle_seconds: float) -> list[Line]:
    """Measure views, an idle page, and syncs of `size` MiB without and with open pages, in turns."""
    machine = Machine(
        folder / "machine", agent_upload_on_change="false", enable_deduplication="false", agent_verify_hours=0
    )
    databases.copy_to(size, machine.data)
    with machine.run() as agent:
        wait_for_uploads(agent, 1)
    add_results(machine.state / "ledger.sqlite")
    with machine.run() as agent:
        agent.logged("watch_mode", 2)
        time.sleep(START_SECONDS)
        views = [_seconds_of_view(machine, agent) for _ in range(VIEWS + 1)]
        with open_pages(machine, 1):
            time.sleep(STATUS_SECONDS / 10)
            before, started = scheduling(agent.pid).seconds, time.monotonic()
            time.sleep(idle_seconds)
            idle = 100 * (scheduling(agent.pid).seconds - before) / (time.monotonic() - started)
            pss, pss_bar = idle_pss(agent.pid), PSS_BARS["before"]
        alone, watched = list[float](), list[float]()
        for _ in range(rounds):
            alone.append(_sync(machine))
            with open_pages(machine, PAGES):
                watched.append(_sync(machine))
    first, *others = views
    view, ratio = statistics.median(others), statistics.median(watched) / statistics.median(alone)
    return [
        Line("first view of the page after a start", f"{first * 1000:.0f} ms of CPU"),
        Line(
            f"view of the page, median of {VIEWS}",
            f"{view * 1000:.1f} ms of CPU",
            view / VIEW_BAR,
            f"at most {VIEW_BAR * 1000:.0f} ms",
            view <= VIEW_BAR,
        ),
        Line(
            f"idle with one open page for {idle_seconds:.0f} s: processor",
            f"{idle:.3f} %",
            idle / IDLE_BAR,
            f"under {IDLE_BAR} % of a core",
            idle < IDLE_BAR,
        ),
        Line(
            "idle with one open page: PSS", mebibytes(pss), pss / pss_bar, f"under {mebibytes(pss_bar)}", pss < pss_bar
        ),
        Line(f"sync of {size} MiB without a page", seconds(alone)),
        Line(
            f"sync of {size} MiB with {PAGES} open pages",
            seconds(watched),
            ratio,
            f"at most {SYNC_BAR} x without",
            ratio <= SYNC_BAR,
        ),
    ]


def add_results(ledger: Path) -> None:
    """Add results of the last month to the history of a ledger that no agent has open."""
    start = datetime.now(UTC) - timedelta(days=29)
    results = [values.succeeded(values.manifest(0, reflection=1)), values.failed(), values.skipped()]
    with closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        history = History(connection, CloudEventsCodec())
        for number in range(RESULTS):
            at = start + timedelta(minutes=8 * number)
            history.add(replace(results[number % 3], id=f"bench-{number}", time=at), published_at=at)
        connection.execute("COMMIT")


@contextmanager
def open_pages(machine: Machine, count: int) -> Iterator[None]:
    """Simulate open pages in another process. Raises RuntimeError if one of them gets an error."""
    page = Page(machine)
    words = [sys.executable, "-m", "tests.bench.page", page.netloc, page.session, str(count)]
    process = subprocess.Popen(
        words, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if process.stdout.readline() != "open\n":
        raise RuntimeError("the pages could not be opened")
    yield
    process.communicate()
    if process.returncode:
        raise RuntimeError("an open page got an error")


def _seconds_of_view(machine: Machine, agent: Running) -> float:
    before = scheduling(agent.pid).seconds
    page = Page(machine)
    page.view()
    return scheduling(agent.pid).seconds - before


def _sync(machine: Machine) -> float:
    for file in machine.data.iterdir():
        file.touch()  # without deduplication, it is sent again
    result = machine.sync()
    if result["outcome"] != "succeeded":
        raise RuntimeError(f"the sync did not succeed: {result}")
    return float(result["duration_seconds"])


class _OpenPage:
    """One simulated page: a connection for the events, and one for everything else."""

    def __init__(self, netloc: str, session: str) -> None:
        self._address, self._head = netloc.split(":"), f"Host: {netloc}\r\nAuthorization: Bearer {session}\r\n\r\n"
        self._due: set[str] = set()
        self._changed = asyncio.Event()
        self.followed = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._read())

    async def _follow(self) -> None:
        reader, writer = await self._send("/v1/events")
        self.followed.set()
        while line := await reader.readline():
            if line.startswith(b"event: "):
                self._due |= {"/v1/status"} if b"progress" in line else {*DATA}
                self._changed.set()
        writer.close()
        raise RuntimeError("the event stream has ended")

    async def _read(self) -> None:
        connection = None
        while True:
            try:
                async with asyncio.timeout(STATUS_SECONDS):
                    await self._changed.wait()
                await asyncio.sleep(SETTLE_SECONDS if DATA[-1] in self._due else PROGRESS_SECONDS)
            except TimeoutError:
                self._due.add("/v1/status")
            self._changed.clear()
            due, self._due = self._due, set()
            for path in sorted(due):
                connection = await self._get(path, connection)

    async def _get(
        self, path: str, connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Read a document over the connection; over a new one if the agent has closed that."""
        if connection is None or connection[0].at_eof():
            connection = await self._send(path)
        else:
            connection[1].write(f"GET {path} HTTP/1.1\r\n{self._head}".encode())
            await self._response(connection[0])
        length = self._length
        await connection[0].readexactly(length)
        return connection

    async def _send(self, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*self._address)
        writer.write(f"GET {path} HTTP/1.1\r\n{self._head}".encode())
        await self._response(reader)
        return reader, writer

    async def _response(self, reader: asyncio.StreamReader) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if not head.startswith("HTTP/1.1 200 "):
            raise RuntimeError(head)
        fields = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
        self._length = int(fields.get("content-length", 0))


async def simulate(netloc: str, session: str, count: int) -> None:
    """Simulate open pages until standard input ends."""
    pages = [_OpenPage(netloc, session) for _ in range(count)]
    running = [asyncio.create_task(page.run()) for page in pages]
    ready = asyncio.gather(*(page.followed.wait() for page in pages))
    await asyncio.wait({ready, *running}, return_when=asyncio.FIRST_COMPLETED)
    print("open", flush=True)
    ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    await asyncio.wait({ended, *running}, return_when=asyncio.FIRST_COMPLETED)
    for task in running:
        if task.done():
            task.result()
        task.cancel()


if __name__ == "__main__":
    asyncio.run(simulate(sys.argv[1], sys.argv[2], int(sys.argv[3])))
