"""A `react` that is killed (SIGKILL) at any step: the next continues, repeats at most one batch, and loses nothing.

This file is also a program, a `react` that kills itself:

    python tests/faults/test_react_killed.py POINT [options of `react`]

POINT is `object.method:before:N` or `object.method:after:N`, for the Nth call of that method.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.system_clock import SystemClock
from agent.adapters.wire import CloudEventsCodec
from tests.support import zygote
from tests.support.constants import replace_constants
from tests.support.machine import Machine
from tests.support.sender import Sender

ROWS = range(1, 8)
SMALL_BATCHES = {"agent.bootstrap.methods:BATCH_SIZE": 3}


def kill_at(owner: type, method: str, when: str, call: int) -> None:
    original, calls = getattr(owner, method), 0

    async def deadly(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if when == "before" and calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await original(self, *args, **kwargs)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, method, deadly)


def main() -> None:
    from agent.adapters.akosha import AkoshaSink
    from agent.entrypoints.cli.app import app

    replace_constants(SMALL_BATCHES)
    target, when, call = sys.argv[1].split(":")
    name, _, method = target.partition(".")
    owners = {"sink": AkoshaSink, "ledger": SqliteLedger}
    kill_at(owners[name], method, when, int(call))
    app(["react", "--once", *sys.argv[2:]])


async def ingest_results(machine: Machine) -> list[str]:
    """Return each upload in the ledger's history with its outcome."""
    path, clock = machine.state / "ledger.sqlite", SystemClock()
    ledger = await SqliteLedger.open(path, CloudEventsCodec(), clock=clock, read_only=True)
    try:
        events = [entry.event for entry in await ledger.history()]
    finally:
        await ledger.aclose()
    return [f"{event.upload_id}.{event.type.split('.')[2]}" for event in events]


@pytest.fixture
def akosha():
    from tests.support.servers.akosha import Akosha  # not imported by the process that is killed

    with Akosha() as akosha:
        yield akosha


@pytest.mark.long
@pytest.mark.parametrize(
    "point",
    ["sink.store:after:2", "ledger.add_to_history:before:1", "ledger.add_to_history:after:1", "ledger.note:after:2"],
)
def test_a_kill_at_any_point_repeats_at_most_one_batch_and_loses_nothing(tmp_path, akosha, point):
    machine = Machine(tmp_path / "m", http_endpoint=akosha.url)
    machine.constants = SMALL_BATCHES
    sender = Sender(DirectoryStore(machine.bucket), tmp_path / "scratch", system="laptop")

    async def fill() -> None:
        await sender.upload(0, ROWS)
        await sender.upload(1, [*ROWS, 8], new=[8], base=0)

    asyncio.run(fill())
    words = ["--state-dir", str(machine.state)]
    killed = zygote.run(
        [sys.executable, __file__, point, *words], env=machine.environ, cwd=machine.home, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = machine.call("react", "--once", *words, directories=False)
    assert done.code == 0, done.err
    assert len(akosha.rows()) == 8
    assert sum(call.size for call in akosha.calls) <= 8 + 3
    assert asyncio.run(ingest_results(machine)) == [f"{sender.id(second)}.completed" for second in (0, 1)]
    assert machine.staged == []


if __name__ == "__main__":
    main()
