"""A database from a bucket cannot make DuckDB read, write or load anything outside the folder of the copy."""

import json
import subprocess
import sys
from datetime import UTC
from pathlib import Path

import duckdb
import pytest

from agent.adapters.child_process import end
from agent.adapters.duckdb import DuckdbMemoryReader
from agent.adapters.duckdb.child_process import start
from tests.support import zygote

SECRET = "c4n4ry"

STATEMENTS = """
import json, sys
from pathlib import Path
from agent.adapters.duckdb.child.engine import opened
copy, outside, verdicts = Path(sys.argv[1]), sys.argv[2], {}
with opened(copy) as engine:
    for statement in json.loads(sys.argv[3]):
        try:
            list(engine.rows(statement.replace("OUTSIDE", outside)))
        except Exception as error:
            verdicts[statement] = type(error).__name__
        else:
            verdicts[statement] = "done"
print(json.dumps(verdicts))
"""

FORBIDDEN = [
    "SELECT * FROM read_text('OUTSIDE')",
    "SELECT * FROM read_csv('OUTSIDE')",
    "SELECT * FROM read_blob('/proc/self/environ')",
    "SELECT * FROM glob('/etc/*')",
    "SELECT * FROM s.main.outside",
    "SELECT s.main.outside_macro()",
    "COPY (SELECT 1) TO 'OUTSIDE.copy'",
    "EXPORT DATABASE 'OUTSIDE.exported'",
    "ATTACH 'OUTSIDE.duckdb' AS other",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SELECT * FROM read_text('https://127.0.0.1:9/x')",
    "SET enable_external_access = true",
    "SET allowed_directories = ['/']",
    "SET autoload_known_extensions = true",
    "SET memory_limit = '100GB'",
    "INSERT INTO s.main.conversations VALUES ('2', 'x')",
]


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "outside.txt"
    path.write_text(SECRET)
    return path


@pytest.fixture
def copy(tmp_path, outside):
    """A database with a view and a macro that read a file of the user."""
    folder = tmp_path / "staging"
    folder.mkdir()
    path = folder / "reflection.duckdb"
    with duckdb.connect(str(path)) as writer:
        writer.execute("CREATE TABLE conversations (id VARCHAR, content VARCHAR)")
        writer.execute("INSERT INTO conversations VALUES ('1', 'harmless')")
        for name in ("outside", "reflections", "conversations_v2"):
            writer.execute(f"CREATE VIEW {name} AS SELECT '1' AS id, content FROM read_text('{outside}')")
        writer.execute(f"CREATE MACRO outside_macro() AS (SELECT content FROM read_text('{outside}'))")
    return path


def test_no_statement_reaches_a_file_an_extension_or_a_setting_outside_the_copy(copy, outside):
    before = copy.read_bytes()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            STATEMENTS,
            copy,
            outside,
            json.dumps([*FORBIDDEN, "SELECT * FROM s.main.conversations"]),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    verdicts = json.loads(done.stdout)
    assert verdicts.pop("SELECT * FROM s.main.conversations") == "done"
    assert [statement for statement, verdict in verdicts.items() if verdict == "done"] == []
    assert SECRET not in done.stdout
    assert copy.read_bytes() == before
    assert sorted(path.name for path in outside.parent.iterdir()) == ["outside.txt", "staging"]


async def test_a_view_that_reads_a_file_of_the_user_is_no_memory(copy):
    found = []
    async with DuckdbMemoryReader().open(copy, "reflection", zone=UTC) as source:
        async for page in source.pages():
            found += [memory.text async for memory in source.read(page)]
    assert found == ["harmless"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_the_child_gets_no_credentials_and_leaves_no_core_dump(copy, monkeypatch):
    monkeypatch.setenv(zygote.EXECUTE, "1")  # the environment of a forked process cannot be read in /proc
    monkeypatch.setenv("HARMLESS", "kept")
    for name in ("AWS_SECRET_ACCESS_KEY", "SESSION_BUDDY_AKOSHA_HTTP_TOKEN", "AKOSHA_AGENT_NATS_PASSWORD"):
        monkeypatch.setenv(name, SECRET)
    child = await start(copy)
    try:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"verify\n")
        await child.stdout.readexactly(1)  # it has limited itself by now
        environment, limits = ((Path("/proc") / str(child.pid) / name).read_text() for name in ("environ", "limits"))
    finally:
        await end(child)
    assert "HARMLESS=kept" in environment
    assert SECRET not in environment
    limit = {line[:25].strip(): line[25:].split()[0] for line in limits.splitlines()}
    assert limit["Max core file size"] == "0"
    assert limit["Max address space"] == str(2 * 2**30)
