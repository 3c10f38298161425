"""A sync after a session of 50 new rows and 200 updates, which are in the WAL, or in the main file by a checkpoint."""

import shutil
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench import peers
from tests.bench.agents import Sync, SyncingAgent, syncing
from tests.bench.databases import Databases
from tests.bench.report import Line, megabytes, seconds

WAL_BYTES = 300_000
CPU_SECONDS, CPU_RATIO = 1.5, 2.0
CHECKPOINT_BYTES = {65: 10 * 10**6, 512: 45 * 10**6}
"""Size of the database in MiB -> the most bytes that a checkpoint may cost."""
ZSTD_RATIO, RESTIC_RATIO, SHA_RATIO = 1.2, 1 / 3, 6.0


def wal(folder: Path, databases: Databases, sizes: Sequence[int], rounds: int) -> list[Line]:
    """Sync sessions that are in the WAL. Each begins with an empty WAL: the one before is checkpointed and synced."""
    measured: dict[int, list[Sync]] = {}
    for size in sizes:
        with syncing(folder / str(size), databases, size) as agent:
            agent.sync()
            for number in range(rounds):
                agent.session(2 * number, checkpoint=False)
                measured.setdefault(size, []).append(_succeeded(agent.sync()))
                agent.session(2 * number + 1, checkpoint=True)
                agent.sync()
        shutil.rmtree(folder / str(size))
    table = []
    for size, syncs in measured.items():
        what, sent = f"session in the WAL, {size} MiB", max(sync.sent for sync in syncs)
        table += [
            Line(f"{what}: sent", megabytes(sent), sent / WAL_BYTES, "0.3 MB", sent <= WAL_BYTES),
            Line(f"{what}: wall", seconds([sync.seconds for sync in syncs])),
        ]
    return [*table, *_cpu({size: [sync.cpu for sync in syncs] for size, syncs in measured.items()})]


def _cpu(measured: Mapping[int, Sequence[float]]) -> list[Line]:
    small, large = min(measured), max(measured)
    medians = {size: statistics.median(times) for size, times in measured.items()}
    ratio = medians[large] / medians[small]
    what = "session in the WAL, {} MiB: CPU of all processes"
    return [
        Line(what.format(small), seconds(measured[small])),
        Line(
            what.format(large),
            seconds(measured[large]),
            ratio,
            f"{CPU_RATIO:g} x that at {small} MiB, {CPU_SECONDS} s",
            ratio <= CPU_RATIO and medians[large] <= CPU_SECONDS,
        ),
    ]


@dataclass(frozen=True)
class _Checkpoint:
    """A sync after a checkpoint, and what the peers took for the same change. None: not installed."""

    sync: Sync
    zstd: int | None
    restic: int | None
    sha256sum: float


def checkpoint(folder: Path, databases: Databases, size: int, rounds: int) -> list[Line]:
    """Sync sessions that end with a checkpoint, next to peers that get the same two states of the file."""
    with syncing(folder, databases, size) as agent:
        agent.sync()
        restic = peers.Restic(folder / "restic") if peers.installed("restic") else None
        if restic:
            restic.added(agent.file)
        measured = [_checkpoint(agent, folder, restic, number) for number in range(rounds)]
    return _checkpoint_lines(f"session, then checkpoint, {size} MiB", size, measured)


def _checkpoint(agent: SyncingAgent, folder: Path, restic: peers.Restic | None, number: int) -> _Checkpoint:
    before = folder / "before.duckdb"
    shutil.copyfile(agent.file, before)
    agent.session(number, checkpoint=True)
    sha256sum = peers.run(("sha256sum", agent.file)).seconds
    sync = _succeeded(agent.sync())
    zstd = peers.patch_bytes(before, agent.file, folder) if peers.installed("zstd") else None
    return _Checkpoint(sync, zstd, restic.added(agent.file) if restic else None, sha256sum)


def _checkpoint_lines(what: str, size: int, measured: Sequence[_Checkpoint]) -> list[Line]:
    sent = [each.sync.sent for each in measured]
    bar = CHECKPOINT_BYTES.get(size)
    table = [
        Line(
            f"{what}: sent",
            f"{megabytes(statistics.median(sent))} (at most {megabytes(max(sent))})",
            max(sent) / bar if bar else None,
            megabytes(bar) if bar else "",
            max(sent) <= bar if bar else None,
        )
    ]
    # zstd needs no extents at 65 MiB; a larger file is compared with restic only.
    zstd_bar = ZSTD_RATIO if size <= min(CHECKPOINT_BYTES) else None
    for name, theirs, ratio_bar in (
        ("zstd -3 --long=31 --patch-from", [each.zstd for each in measured if each.zstd], zstd_bar),
        ("restic backup", [each.restic for each in measured if each.restic], RESTIC_RATIO),
    ):
        if not theirs:
            table.append(peers.missing(name.split()[0], f"{what}: compared with {name}"))
            continue
        ratio = sum(sent) / sum(theirs)
        table.append(
            Line(
                f"{what}: sent, compared with {name}",
                f"{megabytes(statistics.median(sent))}; {megabytes(statistics.median(theirs))}",
                ratio,
                f"{ratio_bar:.2f} x" if ratio_bar else "",
                ratio <= ratio_bar if ratio_bar else None,
            )
        )
    walls = [each.sync.seconds for each in measured]
    own = [each.sync.seconds - each.sync.copying for each in measured]
    sums = [each.sha256sum for each in measured]
    ratio = statistics.median(own) / statistics.median(sums)
    wanted = ratio <= SHA_RATIO if size == max(CHECKPOINT_BYTES) else None
    return [
        *table,
        Line(f"{what}: wall, with the store's copying", seconds(walls)),
        Line(
            f"{what}: wall without it; sha256sum {seconds(sums)}",
            seconds(own),
            ratio,
            "" if wanted is None else f"{SHA_RATIO:g} x sha256sum of the file",
            wanted,
        ),
    ]


def _succeeded(sync: Sync) -> Sync:
    if sync.outcome != "succeeded":
        raise RuntimeError(f"a session was not uploaded: {sync}")
    return sync
