"""From a change to its result, confirmed on the bus: through NATS against in process, turn by turn.

Two agents run side by side, each with a database of its own, and one commit at a time is made, now here, now there.
The commit's time is its file's mtime; the others are what the ledger says, afterwards.

The upload of so little is mostly the start of the child that verifies the copy: it takes now 300 ms, now 400. Its time
is in the result, so what the buses differ by is held against the bar without it, and told with it, too.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tests.bench.memory import uploaded
from tests.bench.pairs import Difference, difference, milliseconds
from tests.bench.report import Line
from tests.support import machine as machines
from tests.support.bus_listener import ResultListener
from tests.support.machine import Machine, Running
from tests.support.servers.nats import running_nats
from tests.support.session_buddy import Writer

BAR_SECONDS = 0.015
QUIET_SECONDS = 0.6
"""The watch tells a change within 0.5 s, and says how old it is: from then on the quiet time is exact."""

_COMMITS = 20
_STEP_SECONDS = 0.02


@dataclass(frozen=True)
class Told:
    """A commit's result: when it was written, asked for and confirmed, and the seconds that the upload took."""

    id: str
    written: float
    asked: float
    confirmed: float
    uploading: float

    @property
    def whole(self) -> float:
        return self.confirmed - self.written

    @property
    def but_for_upload(self) -> float:
        return self.whole - self.uploading

    @property
    def told_in(self) -> float:
        """From the request to the confirmed result without the upload: bus, ledger and outbox."""
        return self.confirmed - self.asked - self.uploading


@dataclass
class Side:
    """A machine whose agent is at work, and a process that commits there."""

    machine: Machine
    agent: Running
    writer: Writer
    written: list[float] = field(default_factory=list)

    def change(self) -> None:
        """Commit once; return when that is uploaded."""
        self.writer.run("commit 1")
        self.written.append(max(path.stat().st_mtime for path in self.machine.data.iterdir()))
        uploaded(self.agent, 1 + len(self.written))

    def reported(self) -> list[Told]:
        """Return the commits' results, once all are confirmed. Raises RuntimeError where they do not match."""
        rows = _confirmed(self.machine.state / "ledger.sqlite")
        asked = {row["data"]["request_id"]: row["time"] for row in rows if ".requested." in row["type"]}
        _at_start, *results = [row for row in rows if ".succeeded." in row["type"]]
        if len(results) != len(self.written):
            raise RuntimeError(f"{len(results)} uploads of {len(self.written)} commits")
        return [self._told(at, row, asked) for at, row in zip(self.written, results, strict=True)]

    @staticmethod
    def _told(written: float, row: dict, asked: dict[str, str]) -> Told:
        data = row["data"]
        reported = Told(
            id=row["id"],
            written=written,
            asked=_seconds(asked[data["request_id"]]),
            confirmed=_seconds(row["published_at"]),
            uploading=data["duration_seconds"],
        )
        if not written < reported.asked < reported.confirmed:
            raise RuntimeError(f"{reported} is out of order")
        return reported


class TimedEar(ResultListener):
    """Remembers when it had each result first in hand, by id."""

    def __init__(self, url: str) -> None:
        super().__init__(url, pattern="akosha.sync.*.succeeded")
        self.times: dict[str, float] = {}

    def _take(self, document: object, raw: bytes) -> None:
        now = time.time()
        if isinstance(document, dict) and "id" in document:
            self.times.setdefault(document["id"], now)
        super()._take(document, raw)


def lines(folder: Path, rounds: int) -> list[Line]:
    """Change both sides so many times; return the lines of the table."""
    with running_nats(folder / "nats") as server:
        listener = TimedEar(server.url)
        listener.start()
        try:
            with _side(folder / "here") as here, _side(folder / "there", agent_nats_url=server.url) as there:
                for number in range(rounds):
                    for side in (here, there) if number % 2 else (there, here):
                        side.change()
                found, through = here.reported(), there.reported()
                listener.wait(lambda: all(reported.id in listener.times for reported in through))
        finally:
            listener.stop()
    heard = [listener.times[reported.id] - reported.written for reported in through]
    return _lines(found, through, heard)


def _lines(here: list[Told], there: list[Told], heard: list[float]) -> list[Line]:
    def each(what: str, of: Callable[[Told], float]) -> list[Line]:
        sides = {"in process": here, "through NATS": there}
        return [
            Line(f"{what}, {name}", milliseconds([of(reported) for reported in side])) for name, side in sides.items()
        ]

    def over(of: Callable[[Told], float]) -> Difference:
        return difference([of(reported) for reported in here], [of(reported) for reported in there])

    change = f"a commit to its result confirmed (quiet time {QUIET_SECONDS * 1000:.0f} ms), median of {len(here)}"
    by_turns, rest = "NATS over in process, median by turns", over(lambda reported: reported.but_for_upload)
    return [
        *each(change, lambda reported: reported.whole),
        Line(f"{by_turns}: from the commit to the result", over(lambda reported: reported.whole).words),
        Line(f"{by_turns}: what the upload by itself has of that", over(lambda reported: reported.uploading).words),
        Line(
            f"{by_turns}: all the rest",
            rest.words,
            rest.median / BAR_SECONDS,
            f"at most {BAR_SECONDS * 1000:.0f} ms",
            rest.median <= BAR_SECONDS,
        ),
        *each("of that, the request to the result without the upload", lambda reported: reported.told_in),
        Line("a commit to its result in another program's hands, through NATS", milliseconds(heard)),
    ]


@contextmanager
def _side(folder: Path, **settings: object) -> Iterator[Side]:
    machine = Machine(folder, agent_quiet_seconds=QUIET_SECONDS, agent_min_interval_seconds=0, **settings)
    machine.write(commits=_COMMITS)
    with Writer(machine.data, "--paused") as writer, machine.run() as agent:
        uploaded(agent, 1)
        yield Side(machine, agent, writer)


def _confirmed(ledger: Path) -> list[dict]:
    """Return all events of a ledger as soon as nothing is left to publish."""
    deadline = time.monotonic() + machines.TIMEOUT
    while True:
        rows = _events(ledger)
        if all(row["published_at"] for row in rows):
            return rows
        if time.monotonic() > deadline:
            raise RuntimeError(f"what is in the outbox of {ledger.parent.parent.name} stays there")
        time.sleep(_STEP_SECONDS)


def _events(ledger: Path) -> list[dict]:
    """Return all events of a ledger, oldest first, each with the time at which it was confirmed."""
    with closing(sqlite3.connect(f"{ledger.as_uri()}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT payload, published_at FROM events ORDER BY position").fetchall()
    return [{**json.loads(payload), "published_at": published_at} for payload, published_at in rows]


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
