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
MAIN = "reflection.duckdb"

KILLS, KILLS_FOLDING = 28, 2

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not REAL.exists(), reason="Session-Buddy's databases are not available"),
]


@pytest.fixture
def plain(tmp_path):
    """A folder with the data and the upload of two databases without a WAL."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "reflection.duckdb").write_bytes(os.urandom(3 * 2**20))
    (data / "knowledge_graph.duckdb").write_bytes(os.urandom(2**20))
    asyncio.run(uploaded(DirectoryStore(tmp_path / "bucket"), data))
    return tmp_path


@pytest.fixture
def wal(tmp_path):
    """A folder with the data and the upload of a database with a WAL."""
    data = tmp_path / "data"
    data.mkdir()
    for path in (REAL / "mid").glob("reflection*"):
        shutil.copyfile(path, data / path.name)
    asyncio.run(uploaded(DirectoryStore(tmp_path / "bucket"), data))
    return tmp_path


def outcomes(*job: object) -> list[dict]:
    """Return the outcomes of the restores of a job."""
    command = [sys.executable, str(PROGRAM), json.dumps(job, default=str)]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM.parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


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


def test_a_killed_restore_leaves_no_partial_file_and_the_next_completes(plain):
    rounds = outcomes("kill", plain / "bucket", plain, KILLS, 2026)
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


def test_a_restore_killed_while_folding_starts_again(wal):
    rounds = outcomes("kill", wal / "bucket", wal, KILLS_FOLDING, 6)
    assert len(rounds) == KILLS_FOLDING
    for number, one in enumerate(rounds):
        check_killed(wal / f"{number}-killed", one)
        assert (one["code"], one["message"]) == (0, "-")
        left = {path.name: path.stat().st_size for path in (wal / str(number)).iterdir()}
        assert {name for name in left if "before" not in name} == {"reflection.duckdb"}
        assert left["reflection.duckdb"] > (wal / "data" / "reflection.duckdb").stat().st_size // 2


@pytest.mark.parametrize(
    ("kind", "most", "times"),
    [pytest.param("plain", 2 * 2**20, 1, id="download"), pytest.param("wal", None, 2, id="merge-of-the-wal")],
)
def test_a_full_disk_names_the_bytes_needed_and_leaves_nothing(request, kind, most, times):
    folder = request.getfixturevalue(kind)
    (one,) = outcomes("full", folder / "bucket", folder / "to", most or (folder / "data" / MAIN).stat().st_size)
    size = sum(path.stat().st_size for path in (folder / "data").iterdir())
    assert one["code"] == 1
    assert f"{folder / 'to'} is full" in one["message"]
    assert f"the restore needs {times * size + 32 * 2**20:,} bytes" in one["message"]
    assert list((folder / "to").iterdir()) == []
