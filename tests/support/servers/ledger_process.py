"""A process that writes a ledger, for tests that kill it or read at the same time.

    python -m tests.support.servers.ledger_process COMMAND

    story PATH COUNT done     take COUNT steps of STORY, print `ready`, wait
    story PATH COUNT inside   the same, but wait when the last step has written everything and is about to commit
    busy PATH COUNT           deliver two databases together COUNT times, print `ready`, wait

It waits until its standard input is closed, then closes the ledger.
"""

import asyncio
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from agent.adapters.sqlite_ledger import SqliteLedger
from agent.adapters.wire import CloudEventsCodec
from agent.domain.memories import RowState
from tests.support.clock import ManualClock
from tests.support.memories import seen
from tests.support.memory_source import write_row_set
from tests.support.values import (
    NOON,
    OTHER_TARGET,
    TARGET,
    failed,
    fingerprint,
    intent,
    manifest,
    memories_part,
    problem,
    request,
    skipped,
    succeeded,
)

MEMORIES = memories_part(1, count=2, reflection=None)
FIRST = replace(manifest(1, "r1", reflection=1), memories=MEMORIES)
SECOND = manifest(2, "r2", reflection=2, knowledge_graph=(0, "carried"))


def row_set(book: SqliteLedger, *rows: RowState) -> Path:
    """Write a row set next to the ledger."""
    return write_row_set(book._path.with_suffix(".rows"), rows)


STORY = (
    ("mark_owed", lambda book: book.mark_owed(TARGET, ["reflection", "knowledge_graph"])),
    ("begin", lambda book: book.begin(TARGET, intent(1, "r1", reflection=1))),
    ("stage", lambda book: book.memories().stage(TARGET, FIRST.upload_id, "reflection", row_set(book, seen(1)))),
    ("retry", lambda book: book.count_attempt(TARGET, request("r1"), attempts=1, retry_at=NOON, error="503")),
    (
        "deliver",
        lambda book: book.deliver(
            TARGET, FIRST, {"reflection": fingerprint("reflection", 1)}, {}, succeeded(FIRST)
        ),
    ),
    ("deliver memories", lambda book: book.memories().delivered(TARGET, [seen(2, state=1), seen(3)])),
    ("set rows", lambda book: book.memories().set_rows(OTHER_TARGET, "reflection", row_set(book, seen(2), seen(3)))),
    ("confirm", lambda book: book.confirm(succeeded(FIRST))),
    ("record_problems", lambda book: book.record_problems(TARGET, {"knowledge_graph": problem("knowledge_graph")})),
    ("mark_owed again", lambda book: book.mark_owed(TARGET, ["reflection"])),
    ("begin again", lambda book: book.begin(TARGET, intent(2, "r2", reflection=2))),
    ("give up", lambda book: book.give_up(TARGET, error="403", failures=1, retry_at=NOON, result=failed("r2"))),
    ("settle", lambda book: book.settle(TARGET, skipped("r3"))),
    ("adopt", lambda book: book.adopt(TARGET, SECOND, succeeded(SECOND))),
    ("mark_unchanged", lambda book: book.mark_unchanged(TARGET, {"reflection": fingerprint("reflection", 9)})),
    ("add_to_history", lambda book: book.add_to_history(request("r4"))),
    ("note", lambda book: book.note("bus", "memory")),
)  # fmt: skip


async def opened(path: Path) -> SqliteLedger:
    return await SqliteLedger.open(path, CloudEventsCodec(), clock=ManualClock(NOON))


async def deliver(ledger: SqliteLedger, number: int) -> None:
    """Deliver both databases at generation `number`, in one transaction."""
    both = manifest(number, f"r{number}", reflection=number, knowledge_graph=number)
    await ledger.mark_owed(TARGET, ["reflection", "knowledge_graph"])
    await ledger.begin(TARGET, intent(number, f"r{number}", reflection=number, knowledge_graph=number))
    await ledger.deliver(TARGET, both, {}, {}, succeeded(both))


def stop_before_commit(statement: str) -> None:
    if statement.startswith("COMMIT"):
        os.write(1, b"ready\n")
        while True:
            time.sleep(60)


async def main(command: str, path: Path, count: int, where: str = "done") -> None:
    ledger = await opened(path)
    if command == "busy":
        for number in range(count):
            await deliver(ledger, number)
    else:
        for _, step in STORY[: count - 1]:
            await step(ledger)
        if where == "inside":
            ledger._thread.submit(ledger._connection.set_trace_callback, stop_before_commit)
        await STORY[count - 1][1](ledger)
    os.write(1, b"ready\n")
    await asyncio.to_thread(sys.stdin.read)
    await ledger.aclose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]))
