"""A ledger whose process is killed: a write that returned is complete, an unfinished one is absent."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.domain.delivery_state import Target
from agent.ports import MemoryCounts
from tests.support import zygote
from tests.support.memories import seen
from tests.support.memory_source import digests
from tests.support.servers.ledger_process import STORY, opened
from tests.support.values import OTHER_TARGET, TARGET

ROOT = Path(__file__).parents[2]
ROWS = [seen(number, state=state) for number in (1, 2, 3) for state in (0, 1)]


def kill_when_ready(path: Path, count: int, where: str) -> None:
    command = [sys.executable, "-m", "tests.support.servers.ledger_process", "story", str(path), str(count), where]
    with zygote.popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "ready\n"
        finally:
            child.kill()
        assert child.wait(30) == -signal.SIGKILL


async def expected_content(path: Path, count: int) -> tuple[object, ...]:
    """Return the content of a ledger after the first `count` steps of the story and a normal close."""
    ledger = await opened(path)
    for _, step in STORY[:count]:
        await step(ledger)
    await ledger.aclose()
    return await read(path)


async def known(ledger: SqliteLedger, target: Target, file: Path) -> set[str] | None:
    return digests(file) if await ledger.memories().known_rows(target, "reflection", file) else None


async def read(path: Path) -> tuple[object, ...]:
    ledger = await opened(path)
    try:
        return (
            await ledger.record(TARGET),
            await ledger.record(OTHER_TARGET),
            list(await ledger.outbox()),
            [entry.event for entry in await ledger.history()],
            dict(await ledger.notes()),
            await ledger.memories().counts(TARGET),
            list(await ledger.memories().lacking(TARGET, ROWS)),
            dict(await ledger.memories().bases(TARGET)),
            [await known(ledger, target, path.with_suffix(".known")) for target in (TARGET, OTHER_TARGET)],
        )
    finally:
        await ledger.aclose()


@pytest.mark.parametrize(("where", "lost"), [("done", 0), ("inside", 1)])
@pytest.mark.parametrize("count", range(1, len(STORY) + 1), ids=[name for name, _ in STORY])
async def test_a_write_is_complete_if_its_method_returned_before_the_kill(tmp_path, count, where, lost):
    kill_when_ready(tmp_path / "ledger.db", count, where)
    assert await read(tmp_path / "ledger.db") == await expected_content(tmp_path / "closed.db", count - lost)


async def test_the_ledger_continues_after_a_kill(tmp_path):
    kill_when_ready(tmp_path / "ledger.db", 4, "inside")
    ledger = await opened(tmp_path / "ledger.db")
    for _, step in STORY[3:]:
        await step(ledger)
    assert await ledger.memories().counts(TARGET) == MemoryCounts(delivered=2)
    await ledger.aclose()
    assert await read(tmp_path / "ledger.db") == await expected_content(tmp_path / "closed.db", len(STORY))
