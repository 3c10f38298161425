"""A week of sessions: the bytes that each sync sends, next to those of an earlier version and of other programs."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from tests.bench import peers
from tests.bench.agents import SyncingAgent, syncing
from tests.bench.chart import Series, chart
from tests.bench.databases import Databases
from tests.bench.report import Line, megabytes
from tests.support.earlier_version import COMMIT, NotInCloneError, earlier_version

EARLIER_RATIO = 1 / 8
CHART = Path(__file__).parents[2] / "docs" / "benchmarks" / "bytes-per-sync.svg"

OURS, BEFORE = "akosha-agent", f"akosha-agent {COMMIT}"
RCLONE, RESTIC, SESSION_BUDDY = "rclone copyto", "restic backup", "Session-Buddy's uploader"


def lines(folder: Path, databases: Databases, size: int, sessions: int, *, draw: bool) -> list[Line]:
    """Sync a database of `size` MiB after each of so many sessions, which end with a checkpoint.

    `draw`: write the chart. rclone copies a changed file as it is, and Session-Buddy's uploader sends it as one gzip
    file: their bytes are computed from the file's size and that of `gzip -6`. The others are measured: what the agents
    send through a proxy, and how much the repository of restic grows.
    """
    sent = _measure(folder, databases, size, sessions)
    what = f"{sessions} sessions, each with a checkpoint, {size} MiB"
    total = sum(sent[OURS])
    table = []
    for name, bar in ((BEFORE, EARLIER_RATIO), (RCLONE, None), (RESTIC, None), (SESSION_BUDDY, None)):
        if name not in sent:
            table.append(Line(f"{what}: compared with {name}", "left out: it is not there"))
            continue
        ratio = total / sum(sent[name])
        measured = f"{megabytes(total)}; {megabytes(sum(sent[name]))}"
        ok = ratio <= bar if bar else None
        table.append(Line(f"{what}: sent; {name}", measured, ratio, f"{bar:.3f} x" if bar else "", ok))
    if draw:
        CHART.parent.mkdir(exist_ok=True)
        series = [Series(f"{name}: {megabytes(sum(counts))}", counts) for name, counts in sent.items()]
        CHART.write_text(chart(f"MB sent by each sync, {what}", series))
    return table


def _measure(folder: Path, databases: Databases, size: int, sessions: int) -> Mapping[str, Sequence[int]]:
    """Return the bytes of each sync by program, without those of the first upload."""
    with syncing(folder / "agent", databases, size) as agent:
        agent.sync()
        restic = peers.Restic(folder / "restic") if peers.installed("restic") else None
        if restic:
            restic.added(agent.file)
        before = _earlier(folder, databases, size)
        sent: dict[str, list[int]] = {OURS: []}
        if before is None:
            return _sessions(agent, sessions, sent, restic, None)
        with before as earlier:
            earlier.sync()
            return _sessions(agent, sessions, sent, restic, earlier)


def _earlier(folder: Path, databases: Databases, size: int) -> AbstractContextManager[SyncingAgent] | None:
    """Return the context of an agent of the earlier version, None if its code is not there."""
    try:
        program = earlier_version(folder / "code")
    except NotInCloneError:
        return None
    return syncing(folder / "earlier", databases, size, program=program)


def _sessions(
    agent: SyncingAgent,
    sessions: int,
    sent: dict[str, list[int]],
    restic: peers.Restic | None,
    earlier: SyncingAgent | None,
) -> Mapping[str, Sequence[int]]:
    for number in range(sessions):
        agent.session(number, checkpoint=True)
        sent[OURS].append(agent.sync().sent)
        if earlier:
            shutil.copyfile(agent.file, earlier.file)
            sent.setdefault(BEFORE, []).append(earlier.sync().sent)
        sent.setdefault(RCLONE, []).append(agent.file.stat().st_size)
        if restic:
            sent.setdefault(RESTIC, []).append(restic.added(agent.file))
        sent.setdefault(SESSION_BUDDY, []).append(peers.gzip_bytes(agent.file))
    return sent
