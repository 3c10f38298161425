"""The demo as a user runs it, and its checks on buckets with something wrong in them."""

import fcntl
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import psutil
import pytest
from rich.console import Console

from agent.entrypoints.demo import shape
from agent.entrypoints.demo.bucket import MANIFEST, upload_folders
from agent.entrypoints.demo.checks import Check, examine, open_all
from agent.entrypoints.demo.children import own_environment
from agent.entrypoints.demo.screen import Screen
from agent.entrypoints.demo.shape import Tally

pytestmark = pytest.mark.long

DEMO = (sys.executable, "-P", "-m", "agent", "demo")
TIMEOUT = 120.0

STAGES = (
    "1  A session begins, and its work goes into the WAL",
    "2  The agent starts, and sends what it finds",
    "3  The writer goes on, without a pause; the agent keeps up",
    "4  A checkpoint folds the WAL into the main file",
    "5  Only the knowledge graph changes",
    "6  The session ends",
)


@dataclass(frozen=True, slots=True)
class Performance:
    """A demo that has been run to its end, with its scratch directory kept."""

    output: str
    status: int
    scratch: Path
    tally: Tally

    @property
    def cloud(self) -> Path:
        return self.scratch / "cloud"


def network_monitor(folder: Path) -> dict[str, str]:
    """A user's environment that would spoil everything, were it to get in."""
    home, temporary = folder / "home", folder / "tmp"
    settings = home / ".claude" / "settings"
    settings.mkdir(parents=True)
    temporary.mkdir()
    (settings / "local.yaml").write_text("akosha_sync_enabled: false\nakosha_cloud_bucket: NOT A BUCKET\n")
    return {
        **os.environ,
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "SESSION_BUDDY_AKOSHA_SYNC_ENABLED": "false",
        "AKOSHA_AGENT_BUS": "nats",
        "AKOSHA_CLOUD_BUCKET": "NOT A BUCKET",
    }


@pytest.fixture(scope="module")
def performance(tmp_path_factory) -> Performance:
    """One for all workers: the first to come runs it, the others wait for it."""
    mine = tmp_path_factory.getbasetemp()
    folder = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "demo-performance"
    folder.mkdir(exist_ok=True)
    output, status = folder / "output", folder / "status"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not status.exists():
            place = {"env": network_monitor(folder), "cwd": folder}
            done = subprocess.run(
                [*DEMO, "--keep"], **place, check=False, capture_output=True, text=True, timeout=TIMEOUT
            )
            output.write_text(done.stdout + done.stderr)
            status.write_text(str(done.returncode))
    said = output.read_text()
    scratch = Path(re.search(r"Kept for a look around: (\S+)", said)[1])
    return Performance(said, int(status.read_text()), scratch, truth(scratch / "data"))


def truth(data: Path) -> Tally:
    """What is in the writer's own files, after it has closed them."""
    told: dict[str, shape.Content] = {}
    for name, tables in shape.TABLES.items():
        with duckdb.connect(":memory:") as engine:
            engine.execute(f"ATTACH '{data / name}' AS memories (READ_ONLY)")
            engine.execute("USE memories")
            told |= {t: shape.Content(*engine.execute(shape.digest_query(t)).fetchone()) for t in tables}
    return told


class TestDemo:
    def test_it_succeeds_and_says_what_happened(self, performance):
        assert performance.status == 0, performance.output
        at = [performance.output.index(stage) for stage in STAGES]
        assert at == sorted(at)
        for said in (
            "committed 400 conversations and 100 reflections into the WAL",
            "a copy of the main file alone would hold no table",
            "change noticed: reflection.duckdb.wal",
            "sync requested: it has started and found what the bucket lacks",
            "sync requested: a file has changed",
            "snapshot of reflection:",
            "checkpoint: the WAL is folded into the main file",
            "copied by the store, unchanged: reflection.duckdb",
            "status: nothing is pending",
            "stopped on SIGTERM, exit status 0",
            "akosha_cloud_endpoint:",
            "akosha-agent run",
        ):
            assert said in performance.output

    def test_every_check_held_and_each_is_shown(self, performance):
        assert "Traceback" not in performance.output
        marks = re.findall(r"^(ok|FAILED) +(.+?)  ", performance.output, re.MULTILINE)
        assert {mark for mark, _ in marks} == {"ok"}
        assert f"All {len(marks)} checks held" in performance.output
        for table, content in performance.tally.items():
            assert f"{content.rows} = {content.rows}, every value alike" in performance.output, table

    def test_in_a_pipe_it_prints_plain_lines(self, performance):
        assert "\x1b" not in performance.output
        assert not re.search(r"[\u2500-\u257f]", performance.output)

    def test_uploads_were_made_while_the_writer_wrote(self, performance):
        """Each upload is of another state: what was read there was really moving."""
        contents = set()
        for folder in upload_folders(performance.cloud):
            manifest = json.loads((folder / MANIFEST).read_bytes())
            contents.add(tuple(sorted((part["name"], part["sha256"]) for part in manifest["parts"])))
        assert len(contents) == len(upload_folders(performance.cloud)) >= 5

    async def test_its_checks_hold_on_what_it_has_left(self, performance, tmp_path):
        checks = await examine(performance.cloud, tmp_path / "unpacked", performance.tally)
        assert [check for check in checks if not check.ok] == []

    @pytest.mark.parametrize(
        ("damage", "place", "failing"),
        [
            pytest.param("flip", 0, {"SHA-256 of every file, unpacked"}, id="one bit is wrong"),
            pytest.param("cut", -1, {"sizes as the manifests say", "SHA-256 of every file, unpacked"}, id="cut short"),
            pytest.param("drop", 0, {"every object is in place, and no other"}, id="an object is gone"),
            pytest.param("stray", -1, {"every object is in place, and no other"}, id="an object too many"),
            pytest.param("no_manifest", 0, {"every upload has its manifest"}, id="no manifest"),
            pytest.param("torn_manifest", -1, {"every upload has its manifest"}, id="half a manifest"),
            pytest.param("renamed", -1, {"every object is in place, and no other"}, id="under another's name"),
            pytest.param("total", 0, {"sizes as the manifests say"}, id="a wrong total"),
            pytest.param("rows", -1, {"rows as the manifests say"}, id="a manifest with wrong rows"),
            pytest.param("uncounted", 0, {"rows as the manifests say"}, id="a manifest without rows"),
            pytest.param("garbage", 0, {"every upload opens with DuckDB"}, id="no database"),
            pytest.param("half", 0, {"no upload holds half a transaction"}, id="half a transaction"),
        ],
    )
    async def test_damage_is_found(self, performance, tmp_path, damage, place, failing):
        cloud = tmp_path / "cloud"
        shutil.copytree(performance.cloud, cloud)
        DAMAGES[damage](upload_folders(cloud)[place])
        checks = await examine(cloud, tmp_path / "unpacked", performance.tally)
        assert failing <= failed(checks)

    async def test_an_older_state_is_not_what_was_written(self, performance, tmp_path):
        cloud = tmp_path / "cloud"
        shutil.copytree(performance.cloud, cloud)
        for folder in upload_folders(cloud)[1:]:
            shutil.rmtree(folder)
        checks = await examine(cloud, tmp_path / "unpacked", performance.tally)
        assert failed(checks) == {MEMORIES, *(f"{table}: the writer's rows" for table in performance.tally)}

    @pytest.mark.parametrize("field", ["rows", "digest"])
    async def test_rows_and_values_are_those_of_the_writer(self, performance, tmp_path, field):
        """One row more in the writer's own count fails, and so does one other value."""
        other = {
            table: replace(content, **{field: content.rows + 1 if field == "rows" else "1"})
            for table, content in performance.tally.items()
        }
        checks = await examine(performance.cloud, tmp_path / "unpacked", other)
        assert failed(checks) - {MEMORIES} == {f"{table}: the writer's rows" for table in other}
        assert (MEMORIES in failed(checks)) == (field == "rows")

    async def test_an_empty_bucket_is_no_success(self, performance, tmp_path):
        (tmp_path / "cloud").mkdir()
        checks = await examine(tmp_path / "cloud", tmp_path / "unpacked", performance.tally)
        assert checks == [Check("uploads with a manifest", ok=False, detail="there is no upload")]


MEMORIES = "memories.json: every row"


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if not check.ok}


def flip(upload: Path) -> None:
    path = upload / shape.REFLECTION
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(upload: Path) -> None:
    path = upload / shape.REFLECTION
    path.write_bytes(path.read_bytes()[:-9])


def rewrite(upload: Path, change: Callable[[dict], None]) -> None:
    document = json.loads((upload / MANIFEST).read_bytes())
    change(document)
    (upload / MANIFEST).write_text(json.dumps(document))


def put(upload: Path, name: str, raw: bytes) -> None:
    """Replace a file and make the manifest agree: nothing but the content is wrong."""
    packed = gzip.compress(raw, 1)
    (upload / name).write_bytes(packed)

    def change(document: dict) -> None:
        part = next(part for part in document["parts"] if part["name"] == name)
        document["total_size_bytes"] += len(packed) - part["stored_size"]
        part |= {"stored_size": len(packed), "raw_size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}

    rewrite(upload, change)


def half(upload: Path) -> None:
    """A reflection less than its transaction had."""
    edited = upload.parent.parent / "edited"
    edited.mkdir()
    for packed in upload.glob("*.duckdb*"):
        (edited / packed.name).write_bytes(gzip.decompress(packed.read_bytes()))
    with duckdb.connect(":memory:") as engine:
        engine.execute(f"ATTACH '{edited / shape.REFLECTION}' AS memories")
        engine.execute("DELETE FROM memories.reflections_v2 WHERE id = (SELECT min(id) FROM memories.reflections_v2)")
        engine.execute("CHECKPOINT memories")
        engine.execute("DETACH memories")
    put(upload, shape.REFLECTION, (edited / shape.REFLECTION).read_bytes())
    wal = f"{shape.REFLECTION}.wal"
    if (upload / wal).exists():
        (upload / wal).unlink()

        def forget(document: dict) -> None:
            document["files"].remove(wal)
            gone = next(part for part in document["parts"] if part["name"] == wal)
            document["parts"].remove(gone)
            document["total_size_bytes"] -= gone["stored_size"]

        rewrite(upload, forget)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flip": flip,
    "cut": cut,
    "drop": lambda upload: (upload / shape.GRAPH).unlink(),
    "stray": lambda upload: (upload / "left.over").write_bytes(b"x"),
    "no_manifest": lambda upload: (upload / MANIFEST).unlink(),
    "torn_manifest": lambda upload: (upload / MANIFEST).write_bytes((upload / MANIFEST).read_bytes()[:200]),
    "renamed": lambda upload: upload.rename(upload.with_name("20010101_000000_demo")),
    "total": lambda upload: rewrite(upload, lambda document: document.update(total_size_bytes=1)),
    "rows": lambda upload: rewrite(
        upload, lambda document: document["metadata"]["rows"]["reflection"].update(conversations_v2=3)
    ),
    "uncounted": lambda upload: rewrite(upload, lambda document: document["metadata"]["rows"].clear()),
    "garbage": lambda upload: put(upload, shape.REFLECTION, b"no database " * 4096),
    "half": half,
}


@dataclass(slots=True)
class Running:
    """A demo at work."""

    process: subprocess.Popen[str]
    output: str = ""

    def until(self, text: str) -> str:
        """Read on to the line that contains `text`; return it."""
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return line
        raise AssertionError(f"{text!r} was never said:\n{self.output}")

    def rest(self) -> int:
        """Read to the end; return the exit status."""
        self.output += self.process.stdout.read()
        return self.process.wait(TIMEOUT)

    @property
    def scratch(self) -> Path:
        return Path(re.search(r"Everything is in (\S+)\.$", self.output, re.MULTILINE)[1])


@contextmanager
def running(folder: Path) -> Iterator[Running]:
    process = subprocess.Popen(
        DEMO, env=network_monitor(folder), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        yield Running(process)
    finally:
        family = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        for one in family:
            one.kill()
        process.wait()
        process.stdout.close()


def test_a_file_that_is_damaged_in_the_bucket_fails_the_demo(tmp_path):
    with running(tmp_path) as demo:
        demo.until("is whole since")
        demo.until("is whole since")
        flip(upload_folders(demo.scratch / "cloud")[0])
        assert demo.rest() == 1
    assert re.search(r"^FAILED +SHA-256 of every file, unpacked +\S+/reflection.duckdb", demo.output, re.MULTILINE)
    assert "checks failed: SHA-256 of every file, unpacked" in demo.output
    assert "akosha_cloud_endpoint:" not in demo.output
    assert not demo.scratch.exists()


def test_an_agent_that_dies_fails_the_demo_and_leaves_nobody_behind(tmp_path):
    with running(tmp_path) as demo:
        pid = int(re.search(r"pid (\d+)", demo.until("akosha-agent run (pid"))[1])
        demo.until("is whole since")
        family = psutil.Process(demo.process.pid).children(recursive=True)
        os.kill(pid, signal.SIGKILL)
        assert demo.rest() == 1
    assert "FAILED  the demo ran to its end  agent ended with -9, and was not asked to" in demo.output
    assert "The last words of agent:" in demo.output
    assert not [child for child in family if child.is_running()]
    assert not demo.scratch.exists()


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_ends_its_processes_and_cleans_up(tmp_path, name):
    with running(tmp_path) as demo:
        demo.until("akosha-agent run (pid")
        demo.until("snapshot of")
        family = psutil.Process(demo.process.pid).children(recursive=True)
        assert len(family) >= 3
        demo.process.send_signal(name)
        assert demo.rest() == 130
    assert "Traceback" not in demo.output
    assert not [child for child in family if child.is_running()]
    assert not demo.scratch.exists()


def test_on_a_terminal_there_are_colours_and_a_table_with_marks():
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=100, highlight=False)
    screen = Screen(console)
    screen.stage(1, "A stage", "What to look for.")
    with screen.waiting("it is so"):
        screen.line("writer", "committed [bold]4[/bold] conversations")
    screen.table([Check("right", ok=True, detail="[1] = [1]"), Check("wrong", ok=False, detail="2 = 3")])
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    assert "\x1b[" in shown.getvalue()
    assert "committed [bold]4[/bold] conversations" in text, "what was said is text, not markup"
    assert re.search(r"right\W+ok\W+\[1\] = \[1\]", text)
    assert re.search(r"wrong\W+failed\W+2 = 3", text)


async def test_a_checker_that_crashes_is_a_failure_of_what_it_had_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("agent.entrypoints.demo.checks.CHECKER", "agent.entrypoints.demo.no_such_module")
    opened = await open_all([tmp_path / "one"])
    assert "no_such_module" in opened["one"].error
    assert opened["one"].tally == {}


def test_the_users_settings_and_credentials_do_not_get_in(monkeypatch, tmp_path):
    monkeypatch.setenv("AKOSHA_CLOUD_BUCKET", "mine")
    monkeypatch.setenv("SESSION_BUDDY_AKOSHA_HTTP_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    environment = own_environment(tmp_path, {"AKOSHA_AGENT_QUIET_SECONDS": "1"})
    ours = {name for name in environment if name.startswith(("AKOSHA_", "SESSION_BUDDY_", "AWS_"))}
    assert ours == {"AKOSHA_AGENT_QUIET_SECONDS"}
    assert environment["HOME"] == str(tmp_path)
