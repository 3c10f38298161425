"""The demo: undisturbed, with a damaged object, with a killed agent, and stopped; and its checks of wrong values."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from agent.entrypoints.demo import checks
from agent.entrypoints.demo.processes import environment
from agent.entrypoints.demo.writer import CONVERSATIONS, ENTITIES, REFLECTIONS, RELATIONSHIPS, TABLES
from tests.support import zygote

DEMO = (sys.executable, "-P", "-m", "agent", "demo")
TIMEOUT = 120.0

STAGES = (
    "1  A session begins",
    "2  The agent starts",
    "3  The writer commits 20 times a second",
    "4  The session ends",
    "5  Verify and restore",
)


@dataclass(slots=True)
class Running:
    """A running demo, and its output so far."""

    process: subprocess.Popen[str]
    output: str = ""

    def until(self, text: str) -> str:
        """Read up to the line that contains `text`; return it."""
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return line
        raise AssertionError(f"{text!r} was never printed:\n{self.output}")

    def rest(self) -> int:
        """Read to the end; return the exit status."""
        self.output += self.process.stdout.read()
        return self.process.wait(TIMEOUT)

    @property
    def scratch(self) -> Path:
        return Path(re.search(r"Directory: (\S+)$", self.output, re.MULTILINE)[1])

    @property
    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def running(folder: Path) -> Iterator[Running]:
    """Start the demo with settings and variables of a user that would break it if it used them."""
    settings, temporary = folder / "home" / ".claude" / "settings", folder / "tmp"
    settings.mkdir(parents=True)
    temporary.mkdir()
    (settings / "local.yaml").write_text("akosha_sync_enabled: false\nakosha_cloud_bucket: NOT A BUCKET\n")
    environ = {
        **os.environ,
        "HOME": str(folder / "home"),
        "TMPDIR": str(temporary),
        "SESSION_BUDDY_AKOSHA_SYNC_ENABLED": "false",
        "AKOSHA_AGENT_BUS": "nats",
        "AKOSHA_CLOUD_BUCKET": "NOT A BUCKET",
    }
    process = zygote.popen(DEMO, env=environ, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    demo = Running(process)
    try:
        yield demo
    finally:
        family = [*demo.children, process] if process.poll() is None else []
        for one in family:
            one.kill()
        process.wait()
        process.stdout.close()


def assert_ended(processes: list[psutil.Process]) -> None:
    """Wait until none of them runs. A zombie counts as ended, because an orphan may never be reaped."""
    deadline = time.monotonic() + TIMEOUT
    while left := [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


@pytest.mark.long
def test_the_demo_prints_its_stages_and_passes_every_check(tmp_path):
    with running(tmp_path) as demo:
        assert demo.rest() == 0, demo.output
    output = demo.output
    positions = [output.index(stage) for stage in STAGES]
    assert positions == sorted(positions)
    marks = re.findall(r"^(ok|FAILED) +(.+?)  ", output, re.MULTILINE)
    assert {mark for mark, _ in marks} == {"ok"}
    assert f"All {len(marks)} checks passed" in output
    assert {f"{table}: the writer's rows and values" for tables in TABLES.values() for table in tables} <= {
        name for _, name in marks
    }
    assert len(re.findall("uploaded .*: .* sent in", output)) >= 4
    assert "akosha-agent init" in output
    assert not re.search(r"Traceback|\x1b|[\u2500-\u257f]", output), "plain lines in a pipe"
    assert not demo.scratch.exists()


@pytest.mark.long
def test_a_damaged_object_fails_the_demo(tmp_path):
    with running(tmp_path) as demo:
        upload_id = re.search(r"uploaded (?:.* as )?(\S+):", demo.until("uploaded "))[1]
        damaged = demo.scratch / "cloud" / "systems" / "demo" / "uploads" / upload_id / "reflection.duckdb.wal"
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 0x10
        damaged.write_bytes(data)
        assert demo.rest() == 1
    assert re.search(
        rf"^FAILED +every upload is complete +.*{upload_id}.*reflection.duckdb.wal", demo.output, re.MULTILINE
    )
    assert "checks failed: every upload is complete" in demo.output
    assert "Last lines of agent.log:" in demo.output
    assert "akosha_cloud_endpoint:" not in demo.output
    assert not demo.scratch.exists()


def test_a_killed_agent_fails_the_demo_and_leaves_no_process(tmp_path):
    with running(tmp_path) as demo:
        pid = int(re.search(r"pid (\d+)", demo.until("akosha-agent run (pid"))[1])
        demo.until("databases have changed")
        children = demo.children
        os.kill(pid, signal.SIGKILL)
        assert demo.rest() == 1
    assert "FAILED  the demo completed  agent exited with -9 before the demo stopped it" in demo.output
    assert "Last lines of agent.log:" in demo.output
    assert_ended(children)
    assert not demo.scratch.exists()


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_demo_ends_its_processes_and_cleans_up(tmp_path, name):
    with running(tmp_path) as demo:
        demo.until("akosha-agent run (pid")
        demo.until("databases have changed")
        children = demo.children
        assert len(children) >= 3
        demo.process.send_signal(name)
        assert demo.rest() == 130
    assert "Traceback" not in demo.output
    assert_ended(children)
    assert not demo.scratch.exists()


UPLOAD = {"upload_id": "1_demo", "whole": True, "problems": {}}
DAMAGED = {"upload_id": "2_demo", "whole": False, "problems": {"reflection.duckdb": "damaged"}}
CONTENTS = {CONVERSATIONS: (8, "1"), REFLECTIONS: (2, "2"), ENTITIES: (12, "3"), RELATIONSHIPS: (20, "4")}


def test_a_damaged_upload_or_an_empty_bucket_fails_the_check():
    assert checks.uploads_complete({"whole": True, "uploads": [UPLOAD]}).passed
    damaged = checks.uploads_complete({"whole": False, "uploads": [UPLOAD, DAMAGED]})
    assert (damaged.passed, damaged.found) == (False, "{'2_demo': {'reflection.duckdb': 'damaged'}}")
    assert not checks.uploads_complete({"whole": True, "uploads": []}).passed


def test_each_upload_must_be_reported_once_and_no_sync_may_fail():
    verified = {"whole": True, "uploads": [UPLOAD]}
    assert checks.reported_once(verified, ["1_demo"], []).passed
    for upload_ids, failures in (([], []), (["1_demo"] * 2, []), (["2_demo"], []), (["1_demo"], ["no"])):
        assert not checks.reported_once(verified, upload_ids, failures).passed


@pytest.mark.parametrize(("sent", "passed"), [(0, False), (10, True), (11, False)])
def test_sending_an_unchanged_object_fails_the_check(sent, passed):
    assert checks.unchanged_not_sent(sent, {"reflection.duckdb.wal": 10, "knowledge_graph.duckdb": 5}).passed is passed


@pytest.mark.parametrize("table", CONTENTS)
def test_a_missing_row_fails_the_transaction_check(table):
    assert checks.complete_transactions(CONTENTS).passed
    rows, digest = CONTENTS[table]
    assert not checks.complete_transactions(CONTENTS | {table: (rows - 1, digest)}).passed


@pytest.mark.parametrize("table", CONTENTS)
def test_a_missing_row_or_a_changed_value_fails_the_content_check(table):
    assert all(check.passed for check in checks.same_contents(CONTENTS, CONTENTS))
    rows, digest = CONTENTS[table]
    for other in (CONTENTS | {table: (rows - 1, digest)}, CONTENTS | {table: (rows, "9")}):
        failed = [check.name for check in checks.same_contents(CONTENTS, other) if not check.passed]
        assert failed == [f"{table}: the writer's rows and values"]
    without = {name: contents for name, contents in CONTENTS.items() if name != table}
    assert not all(check.passed for check in checks.same_contents(CONTENTS, without))


def test_the_demo_ignores_the_users_settings_and_credentials(monkeypatch, tmp_path):
    monkeypatch.setenv("AKOSHA_CLOUD_BUCKET", "mine")
    monkeypatch.setenv("SESSION_BUDDY_AKOSHA_HTTP_TOKEN", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    environ = environment(tmp_path, {"AKOSHA_AGENT_QUIET_SECONDS": "1"})
    names = {name for name in environ if name.startswith(("AKOSHA_", "SESSION_BUDDY_", "AWS_"))}
    assert names == {"AKOSHA_AGENT_QUIET_SECONDS"}
    assert environ["HOME"] == str(tmp_path)
