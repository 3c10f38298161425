"""From a change to its confirmed result: NATS compared with the in-process bus, in turns.

Two agents run at the same time, each with its own database. Commits alternate between them, one at a time. The time of
a commit is the mtime of its file; the other times are read from the ledger afterwards.

A small upload is mostly the start of the child that verifies the copy, which takes between 300 and 400 ms. The result
has the upload's duration, so that the bar applies to the difference without it; the table shows both.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tests.bench.memory import wait_for_uploads
from tests.bench.pairs import Difference, difference, milliseconds
from tests.bench.report import Line
from tests.support import machine as machines
from tests.support.bus_listener import ResultListener
from tests.support.machine import Machine, Running
from tests.support.servers.nats import running_nats
from tests.support.session_buddy import Writer

BAR_SECONDS = 0.010
QUIET_SECONDS = 0.6
"""The watcher reports a change, with its age, within 0.5 s; a longer quiet time is exact."""

_COMMITS = 20
_STEP_SECONDS = 0.02


@dataclass(frozen=True)
class Timing:
    """The times of a commit, its request and its confirmed result, and the seconds of the upload."""

    id: str
    written: float
    requested: float
    confirmed: float
    uploading: float

    @property
    def total(self) -> float:
        return self.confirmed - self.written

    @property
    def without_upload(self) -> float:
        return self.total - self.uploading

    @property
    def bus_and_ledger(self) -> float:
        """From the request to the confirmed result without the upload: the time of bus, ledger and outbox."""
        return self.confirmed - self.requested - self.uploading


@dataclass
class Side:
    """A machine with a running agent, and a process that commits to its database."""

    machine: Machine
    agent: Running
    writer: Writer
    written: list[float] = field(default_factory=list)

    def change(self) -> None:
        """Commit once and wait for the upload."""
        self.writer.run("commit 1")
        self.written.append(max(path.stat().st_mtime for path in self.machine.data.iterdir()))
        wait_for_uploads(self.agent, 1 + len(self.written))

    def timings(self) -> list[Timing]:
        """Wait until all results are confirmed; return their timings. Raises RuntimeError if a result is missing."""
        rows = _confirmed(self.machine.state / "ledger.sqlite")
        requested = {row["data"]["request_id"]: row["time"] for row in rows if ".requested." in row["type"]}
        _at_start, *results = [row for row in rows if ".succeeded." in row["type"]]
        if len(results) != len(self.written):
            raise RuntimeError(f"{len(results)} uploads of {len(self.written)} commits")
        return [self._timing(at, row, requested) for at, row in zip(self.written, results, strict=True)]

    @staticmethod
    def _timing(written: float, row: dict, requested: dict[str, str]) -> Timing:
        data = row["data"]
        timing = Timing(
            id=row["id"],
            written=written,
            requested=_seconds(requested[data["request_id"]]),
            confirmed=_seconds(row["published_at"]),
            uploading=data["duration_seconds"],
        )
        if not written < timing.requested < timing.confirmed:
            raise RuntimeError(f"{timing} is out of order")
        return timing


class TimedListener(ResultListener):
    """Records the time of the first delivery of each result, by id."""

    def __init__(self, url: str) -> None:
        super().__init__(url, pattern="akosha.sync.*.succeeded")
        self.times: dict[str, float] = {}

    def _take(self, document: object, raw: bytes) -> None:
        now = time.time()
        if isinstance(document, dict) and "id" in document:
            self.times.setdefault(document["id"], now)
        super()._take(document, raw)


def lines(folder: Path, rounds: int) -> list[Line]:
    """Make `rounds` changes on each side; return the lines of the table."""
    with running_nats(folder / "nats") as server:
        listener = TimedListener(server.url)
        listener.start()
        try:
            with _side(folder / "local") as local, _side(folder / "nats-side", agent_nats_url=server.url) as remote:
                for number in range(rounds):
                    for side in (local, remote) if number % 2 else (remote, local):
                        side.change()
                local_timings, nats_timings = local.timings(), remote.timings()
                listener.wait(lambda: all(timing.id in listener.times for timing in nats_timings))
        finally:
            listener.stop()
    received = [listener.times[timing.id] - timing.written for timing in nats_timings]
    return _lines(local_timings, nats_timings, received)


def _lines(local: list[Timing], remote: list[Timing], received: list[float]) -> list[Line]:
    def each(what: str, of: Callable[[Timing], float]) -> list[Line]:
        sides = {"in process": local, "through NATS": remote}
        return [Line(f"{what}, {name}", milliseconds([of(timing) for timing in side])) for name, side in sides.items()]

    def added(of: Callable[[Timing], float]) -> Difference:
        return difference([of(timing) for timing in local], [of(timing) for timing in remote])

    change = f"a commit to its result confirmed (quiet time {QUIET_SECONDS * 1000:.0f} ms), median of {len(local)}"
    pairs, rest = "NATS minus in process, median of pairs", added(lambda timing: timing.without_upload)
    return [
        *each(change, lambda timing: timing.total),
        Line(f"{pairs}: from the commit to the result", added(lambda timing: timing.total).words),
        Line(f"{pairs}: of that, the upload", added(lambda timing: timing.uploading).words),
        Line(
            f"{pairs}: all the rest",
            rest.words,
            rest.median / BAR_SECONDS,
            f"at most {BAR_SECONDS * 1000:.0f} ms",
            rest.median <= BAR_SECONDS,
        ),
        *each("of that, the request to the result without the upload", lambda timing: timing.bus_and_ledger),
        Line("a commit to its result at another program, through NATS", milliseconds(received)),
    ]


@contextmanager
def _side(folder: Path, **settings: object) -> Iterator[Side]:
    machine = Machine(folder, agent_quiet_seconds=QUIET_SECONDS, agent_min_interval_seconds=0, **settings)
    machine.write(commits=_COMMITS)
    with Writer(machine.data, "--paused") as writer, machine.run() as agent:
        wait_for_uploads(agent, 1)
        yield Side(machine, agent, writer)


def _confirmed(ledger: Path) -> list[dict]:
    """Wait until the outbox of a ledger is empty; return all events."""
    deadline = time.monotonic() + machines.TIMEOUT
    while True:
        rows = _events(ledger)
        if all(row["published_at"] for row in rows):
            return rows
        if time.monotonic() > deadline:
            raise RuntimeError(f"the outbox of {ledger.parent.parent.name} is not emptied")
        time.sleep(_STEP_SECONDS)


def _events(ledger: Path) -> list[dict]:
    """Return all events of a ledger, oldest first, each with the time of its confirmation."""
    with closing(sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT payload, published_at FROM events ORDER BY position").fetchall()
    return [{**json.loads(payload), "published_at": published_at} for payload, published_at in rows]


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
