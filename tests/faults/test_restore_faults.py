"""Restores that are killed or fill the disk: no file is partial, and the next restore completes."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.adapters.directory_store import DirectoryStore
from tests.faults.killed_restore import OLD
from tests.support.folder_uploads import uploaded
from tests.support.session_buddy import REAL

PROGRAM = Path(__file__).with_name("killed_restore.py")


KILLS, KILLS_FOLDING = 28, 2

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not REAL.exists(), reason="Session-Buddy's databases are not available"),
]


@pytest.fixture(scope="module")
def tmp(tmp_path_factory):
    return tmp_path_factory.mktemp("restores")


@pytest.fixture(scope="module")
def found(tmp):
    """The outcomes of all restores. One process does them, because its start is slow."""
    plain, wal = tmp / "plain", tmp / "wal"
    for folder in (plain, wal):
        (folder / "data").mkdir(parents=True)
    (plain / "data" / "reflection.duckdb").write_bytes(os.urandom(3 * 2**20))
    (plain / "data" / "knowledge_graph.duckdb").write_bytes(os.urandom(2**20))
    for path in (REAL / "mid").glob("reflection*"):
        shutil.copyfile(path, wal / "data" / path.name)
    for folder in (plain, wal):
        asyncio.run(uploaded(DirectoryStore(folder / "bucket"), folder / "data"))
    jobs = {
        "kill plain": ["kill", plain / "bucket", plain, KILLS, 2026],
        "kill wal": ["kill", wal / "bucket", wal, KILLS_FOLDING, 6],
        "full plain": ["full", plain / "bucket", plain / "to", 2 * 2**20],
        "full wal": ["full", wal / "bucket", wal / "to", (wal / "data" / "reflection.duckdb").stat().st_size],
    }
    command = [sys.executable, str(PROGRAM), json.dumps([*jobs.values()], default=str)]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return dict(zip(jobs, map(json.loads, done.stdout.splitlines()), strict=True))


def contents(names, folder):
    return {name: (folder / name).read_bytes() for name in names}


def check_killed(folder, found):
    """Check that the old pair is complete, under its names or renamed."""
    names = set(found["files"])
    aside = {name for name in names if ".before-restore-" in name and not name.endswith(".wal")}
    if "reflection.duckdb" in names and (folder / "reflection.duckdb").read_bytes() == OLD["reflection.duckdb"]:
        assert contents(OLD, folder) == OLD
    else:
        [main] = aside
        assert contents([main, f"{main}.wal"], folder) == {main: b"old main", f"{main}.wal": b"old wal"}


def test_a_killed_restore_leaves_no_partial_file_and_the_next_completes(tmp, found):
    plain, rounds = tmp / "plain", found["kill plain"]
    assert len(rounds) == KILLS
    new = contents(["reflection.duckdb", "knowledge_graph.duckdb"], plain / "data")
    for number, one in enumerate(rounds):
        killed, to = plain / f"{number}-killed", plain / str(number)
        check_killed(killed, one)
        for name in new.keys() & one["files"].keys():
            assert (killed / name).read_bytes() in (new[name], OLD.get(name))
        assert (one["code"], one["message"]) == (0, "-")
        assert contents(new, to) == new
        assert not (to / "reflection.duckdb.wal").exists()
        assert not [path for path in to.iterdir() if path.is_dir()]
    assert -9 in {one["killed"] for one in rounds}
    assert any(one["unfinished"] for one in rounds)


def test_a_restore_killed_while_folding_starts_again(tmp, found):
    wal, rounds = tmp / "wal", found["kill wal"]
    assert len(rounds) == KILLS_FOLDING
    for number, one in enumerate(rounds):
        check_killed(wal / f"{number}-killed", one)
        assert (one["code"], one["message"]) == (0, "-")
        left = {path.name: path.stat().st_size for path in (wal / str(number)).iterdir()}
        assert {name for name in left if "before" not in name} == {"reflection.duckdb"}
        assert left["reflection.duckdb"] > (wal / "data" / "reflection.duckdb").stat().st_size // 2


@pytest.mark.parametrize("kind", ["plain", "wal"])
def test_a_full_disk_names_the_bytes_needed_and_leaves_nothing(tmp, found, kind):
    """During a download, and while a WAL is folded into its main file."""
    (one,) = found[f"full {kind}"]
    size = sum(path.stat().st_size for path in (tmp / kind / "data").iterdir())
    needed = {"plain": size, "wal": 2 * size}[kind] + 32 * 2**20
    assert one["code"] == 1
    assert f"{tmp / kind / 'to'} is full" in one["message"]
    assert f"the restore needs {needed:,} bytes" in one["message"]
    assert list((tmp / kind / "to").iterdir()) == []
