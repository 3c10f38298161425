"""The output of commands for a real state directory."""

import asyncio
import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agent import __main__
from agent.adapters.state_directory import lock
from agent.application.monitoring.status import DatabaseStatus, Status, TargetStatus
from agent.bootstrap.home import Home
from agent.domain.events import IngestCompleted, IngestFailed, SessionEnded, UploadsPruned, UploadVerified
from agent.entrypoints.cli import events, status, streams
from agent.entrypoints.cli.command import Options
from agent.entrypoints.cli.sync import sync
from agent.entrypoints.formatting import sync_summary
from agent.entrypoints.progress_line import progress_bar
from agent.entrypoints.status_document import StatusDocument
from agent.entrypoints.text_lines import print_lines
from agent.ports import MemoryCounts
from agent.settings import load
from tests.support import values
from tests.support.machine import Machine

COUNT = 2_300
AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def settings_of(tmp_path: Path, **keys: object):
    directories = {"agent_data_dir": tmp_path / "data", "agent_state_dir": tmp_path / "state"}
    given = {"system_id": "laptop", "cloud_endpoint": (tmp_path / "bucket").as_uri()} | directories | keys
    text = {key: str(value) for key, value in given.items()}
    return load(command_line=text, settings_file=None, environ={}, cwd=tmp_path, home=tmp_path).settings


def options_of(home: Home) -> Options:
    return Options(data_dir=home.settings.agent_data_dir, state_dir=home.settings.agent_state_dir)


@pytest.fixture
async def home(tmp_path):
    """A home whose ledger has COUNT events, more than one query returns."""
    home = Home.of(settings_of(tmp_path))
    await asyncio.to_thread(home.prepare)
    ledger = await home.open_ledger()
    found = [
        SessionEnded(id=f"s{number}", time=AT, system_id="laptop", session_id=f"{number}") for number in range(COUNT)
    ]
    # In one transaction, because each transaction is synced to the disk.
    await ledger._transactions.write(lambda: [ledger._history.add(event, published_at=AT) for event in found])
    await ledger.aclose()
    return home


async def test_all_of_many_events_are_shown(home, capsys):
    assert await events.show_history(home.settings, follow=False, as_json=True) == 0
    shown = [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]
    assert shown == [f"s{number}" for number in range(COUNT)]


async def test_following_shows_all_past_events_first(home, capsys, monkeypatch):
    class CaughtUpError(Exception):
        pass

    async def asleep(*_):
        raise CaughtUpError

    monkeypatch.setattr(type(home.clock), "sleep", asleep)
    with pytest.raises(CaughtUpError):
        await events.show_history(home.settings, follow=True, as_json=True)
    assert len(capsys.readouterr().out.splitlines()) == COUNT


def test_the_status_shows_names_paths_and_errors_without_markup(tmp_path, capsys):
    """Rich markup in a text is printed unchanged."""
    odd = tmp_path / "[red]old :smile: [/]"
    database = DatabaseStatus(name="knowledge_graph_[bold]", state="owed", pending=True, size=1, problem="bad [y]")
    target = TargetStatus(
        method="cloud",
        endpoint="file:///nas [dim]",
        bucket="b[x]",
        databases=(database,),
        newest_upload_id="u[z]",
        last_success=AT,
        failures=1,
        next_try=AT,
        error="cannot write [red]x[/red] :smile:",
        memories=MemoryCounts(delivered=1_234, waiting={"no [embedding]": 2}, refused={"odd": 3}),
    )
    reported = Status(
        system_id="laptop",
        agent_id="a",
        route=("cloud",),
        targets=(target,),
        pending=(database.name,),
        notes={"watcher": "waiting for [q]"},
    )
    settings = settings_of(tmp_path, agent_data_dir=odd)
    document = StatusDocument.of(reported, settings, running={"pid": 7, "command": "run [w]"}, problem="")
    print_lines(status.lines_of(document, settings))
    text = capsys.readouterr().out
    for wanted in (
        f"databases  {odd}\n",
        "(pid 7, run [w])",
        "watching   waiting for [q]",
        "pending    knowledge_graph_[bold]",
        "\ncloud  file:///nas%20%5Bdim%5D/b%5Bx%5D\n",
        "last upload  u[z]",
        "last error   cannot write [red]x[/red] :smile:\n",
        "memories     1,234 delivered; 2 wait: no [embedding]; 3 were refused: akosha-agent memories --failed",
        "bad [y]",
    ):
        assert wanted in text, wanted
    assert text.startswith("Uploads fail: cannot write [red]x[/red] :smile:\n\n")
    assert text.count("knowledge_graph_[bold]") == 2


class Terminal(io.StringIO):
    def isatty(self):
        return True


async def test_a_message_during_a_sync_has_its_own_line_above_the_progress(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    async with progress_bar() as bar:
        bar.phase("looking for changes", None)
        bar.say("stopped: nothing")
    line = "\r\x1b[K"
    assert terminal.getvalue() == f"{line}looking for changes{line}stopped: nothing\nlooking for changes{line}"


def test_events_have_a_readable_line():
    pushed = replace(
        values.succeeded(values.manifest(reflection=1)), method="http", files_uploaded=(), manifest_key="",
        location="http://localhost:8682/mcp", memories=1_305, incomplete={"reflection": "15 wait: no embedding"},
    )  # fmt: skip
    assert sync_summary(pushed) == (
        "1,305 memories, 1.6 kB sent in 1.5 s to http://localhost:8682/mcp; reflection: 15 wait: no embedding"
    )
    about = {"id": "i", "time": AT, "system_id": "laptop", "upload_id": "u"}
    taken = IngestCompleted(**about, source="memories", stored=1_000, known=2, kept_back={"no embedding": 3})
    assert events.line(taken).endswith(
        "ingest.completed  u: 1,000 memories stored; 2 already stored; 3 not stored: no embedding"
    )
    assert events.line(IngestFailed(**about, error="too large")).endswith("ingest.failed     u: too large")
    assert "next attempt at " in events.line(IngestFailed(**about, error="not yet", retry_at=AT))
    looked = UploadVerified(**about, whole=True, deep=False, objects=4, problems={})
    assert events.line(looked).endswith("archive.verified  u: intact, 4 objects compared with the manifest")
    broken = replace(looked, whole=False, deep=True, problems={"reflection.duckdb": "is missing", "b": "cut"})
    assert events.line(broken).endswith(
        "u: DAMAGED, 4 objects downloaded and read: b: cut; reflection.duckdb: is missing"
    )
    planted = replace(looked, whole=False, problems={"knowledge_graph_\x1b[2J\n.duckdb": "is missing"})
    assert events.line(planted).endswith("manifest: knowledge_graph_\\x1b[2J\\n.duckdb: is missing")
    pruned = UploadsPruned(
        id="i", time=AT, system_id="laptop", upload_ids=("a", "b"), kept=10, objects=6, bytes_freed=1_600, leftovers=0
    )
    assert events.line(pruned).endswith("archive.pruned    2 uploads deleted (6 objects, 1.6 kB), 10 kept")
    refused = replace(pruned, upload_ids=("a",), leftovers=3, error="403 (allow s3:DeleteObject)")
    assert events.line(refused).endswith(
        "  1 upload deleted (6 objects, 1.6 kB), 10 kept; 3 objects left over from unfinished uploads deleted;"
        " not all were deleted: 403 (allow s3:DeleteObject)"
    )


@pytest.mark.parametrize("screen", [Terminal, io.StringIO], ids=["terminal", "pipe"])
async def test_progress_is_shown_only_on_a_terminal(monkeypatch, screen):
    monkeypatch.setattr("sys.stderr", shown := screen())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    async with progress_bar() as bar:
        bar.phase("download", 1_000)
        bar.moved(1_000)
    async with progress_bar(of_bytes=False) as bar:
        bar.show("verifying", 3, 4)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())
    for wanted in (f"downloading  {'#' * 20}  100 %  1.0 kB of 1.0 kB", "75 %  3 of 4"):
        assert (wanted in text) == shown.isatty(), text
    assert bool(text) == shown.isatty()


def test_config_shows_values_without_markup(tmp_path):
    machine = Machine(tmp_path)
    machine.set(agent_data_dir=tmp_path / "[red]old :smile:")
    assert f"{tmp_path}/[red]old :smile:" in machine.call("config", directories=False).out


async def test_a_sync_cancelled_while_it_waits_for_the_agent_removes_its_note(tmp_path, monkeypatch):
    home = Home.of(settings_of(tmp_path))
    await asyncio.to_thread(home.prepare)
    monkeypatch.setattr(lock.time, "sleep", lambda _: pytest.fail("the event loop slept"))

    def notes():
        return list(home.state.spool.glob("*.json"))

    with home.lock("run"):
        syncing = asyncio.create_task(sync(options_of(home), as_json=True))
        async with asyncio.timeout(60):
            while not notes():
                await asyncio.sleep(0.005)
            syncing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await syncing
    assert list(home.state.spool.iterdir()) == []


async def test_a_sync_cancelled_while_it_writes_its_note_removes_the_note(tmp_path, monkeypatch):
    home = Home.of(settings_of(tmp_path))
    await asyncio.to_thread(home.prepare)
    writing, write = asyncio.Event(), Home.leave_note

    async def slow(self, event):
        writing.set()
        return await write(self, event)

    monkeypatch.setattr(Home, "leave_note", slow)
    with home.lock("run"):
        syncing = asyncio.create_task(sync(options_of(home), as_json=True))
        async with asyncio.timeout(60):
            await writing.wait()
            syncing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await syncing
    assert list(home.state.spool.iterdir()) == []


def test_ctrl_c_during_imports_exits_with_130_without_a_traceback(monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(streams, "guard", interrupted)
    monkeypatch.setattr("sys.argv", ["akosha-agent", "status"])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 130


def test_commands_run_in_a_working_directory_that_was_removed(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    monkeypatch.setenv("PWD", str(gone))
    gone.rmdir()
    assert Options().cwd == gone
