"""The demo: its stages and checks, in a scratch directory that is removed at the end.

A separate process writes databases as Session-Buddy does, `run` uploads them to a directory, and `events` reports each
result. Then `verify --deep` reads every upload, `restore` restores two of them, and their rows and values are compared
with those that the writer committed.
"""

import asyncio
import json
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from agent.bootstrap.home import event_codec
from agent.domain.errors import AkoshaError
from agent.domain.events import Event, SyncFailed, SyncSucceeded
from agent.entrypoints.demo import checks
from agent.entrypoints.demo.checks import Check
from agent.entrypoints.demo.processes import Processes, environment
from agent.entrypoints.demo.writer import Contents
from agent.entrypoints.formatting import human_bytes
from agent.entrypoints.sentences import event_lines

STOPPED = 130
STEP_SECONDS = 45.0
"""Limit for one step; on an idle machine each takes about a second."""

AGENT, EVENTS, WRITER = "agent", "events", "writer"
WRITER_MODULE = "agent.entrypoints.demo.writer"
UPLOADS_WHILE_WRITING = 2
LOG_LINES_SHOWN = 12

# Fast enough to watch. By default the agent waits for 2 s of quiet, and 5 minutes between two uploads.
FAST = {
    "AKOSHA_AGENT_QUIET_SECONDS": "0.3",
    "AKOSHA_AGENT_DEADLINE_SECONDS": "1",
    "AKOSHA_AGENT_MIN_INTERVAL_SECONDS": "1",
    "AKOSHA_AGENT_RESCAN_SECONDS": "2",
}
COLOURS = {WRITER: "yellow", AGENT: "cyan", "FAILED": "bold red", "ok": "bold green"}

NEXT = """
To back up your own memories:

    akosha-agent init      asks where they go, tests that, and syncs for the first time"""


def run_demo(*, keep: bool) -> int:
    """Run the demo; with `keep`, leave its directory. Returns 0 if every check passed, 1 if not, 130 if stopped."""
    console = Console(highlight=False)
    scratch = Path(tempfile.mkdtemp(prefix="akosha-demo-")).resolve()
    try:
        return asyncio.run(_until_stopped(Demo(console, scratch)))
    except asyncio.CancelledError:
        console.print("\nstopped: all processes of the demo have ended")
        return STOPPED
    finally:
        if keep:
            console.print(f"\nKept: {scratch} (data, state, cloud, restored, logs)", soft_wrap=True)
        else:
            shutil.rmtree(scratch, ignore_errors=True)


async def _until_stopped(demo: "Demo") -> int:
    """Run the demo; Ctrl-C, SIGTERM and a closed terminal cancel it."""
    loop, running = asyncio.get_running_loop(), asyncio.current_task()
    assert running is not None
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(name, running.cancel)
    return await demo.run()


class Demo:
    """One run of the demo in one scratch directory."""

    def __init__(self, console: Console, scratch: Path) -> None:
        self._console, self._scratch = console, scratch
        self._started = time.monotonic()
        self._data, self._cloud = scratch / "data", scratch / "cloud"
        home = scratch / "home"
        for folder in (self._data, self._cloud, home):
            folder.mkdir()
        target = {"SESSION_BUDDY_AKOSHA_CLOUD_ENDPOINT": self._cloud.as_uri(), "SESSION_BUDDY_AKOSHA_SYSTEM_ID": "demo"}
        self._processes = Processes(scratch, environment(home, target | FAST), self._take)
        self._directories = ("--data-dir", str(self._data), "--state-dir", str(scratch / "state"))
        self._checks: list[Check] = []
        self._answers: list[Mapping[str, object]] = []  # of the writer
        self._codec = event_codec()
        self._uploads: list[SyncSucceeded] = []
        self._failures: list[str] = []
        self._changed = asyncio.Event()
        self._while_writing: SyncSucceeded | None = None
        self._stopping: set[str] = set()
        self._exits: dict[str, int | None] = {}

    async def run(self) -> int:
        """Run all stages and print the checks. Returns 0 if every one passed, else 1."""
        self._print(Text("\nakosha-agent: every committed memory is backed up to the bucket", "bold"))
        self._print(
            f"   A process writes as Session-Buddy does; a directory serves as the bucket. Directory: {self._scratch}"
        )
        try:
            async with self._processes:
                await self._upload()
                await self._verify_and_restore()
        except AkoshaError as error:
            self._check("the demo completed", str(error), passed=False)
        return self._verdict()

    async def _upload(self) -> None:
        self._stage(
            "1  A session begins",
            "Until a checkpoint, new memories are only in reflection.duckdb.wal. The writer keeps the file open.",
        )
        await self._processes.start(WRITER, WRITER_MODULE, str(self._data))
        await self._write("commit 100")
        await self._write("graph 4")
        files = {path.name: human_bytes(path.stat().st_size) for path in sorted(self._data.iterdir())}
        self._line(WRITER, ", ".join(f"{name} {size}" for name, size in files.items()))

        self._stage("2  The agent starts", "It copies main file and WAL as of the same moment, and uploads them.")
        agent = await self._processes.start(AGENT, "agent", "run", *self._directories)
        self._line(AGENT, f"akosha-agent run (pid {agent.pid})")
        await self._processes.start(EVENTS, "agent", "events", "--follow", "--json", *self._directories)
        await self._until("the first upload", lambda: bool(self._uploads))

        self._stage("3  The writer commits 20 times a second", "The agent uploads while it writes.")
        before = len(self._uploads)
        await self._processes.send(WRITER, "work")
        await self._until(
            f"{UPLOADS_WHILE_WRITING} uploads while the writer writes",
            lambda: len(self._uploads) >= before + UPLOADS_WHILE_WRITING,
        )
        self._while_writing = self._uploads[before]

        self._stage("4  The session ends", "Closing is a checkpoint: the WAL is merged into the main file.")
        await self._write("commit 5", answers=2)
        await self._write("graph 2")
        self._stopping.add(WRITER)
        await self._write("close")
        await self._until("the end of the writer", lambda: WRITER in self._exits)
        commits, status = self._answers[-1]["commits"], self._exits[WRITER]
        self._check("the writer was never disturbed", f"{commits} commits, exit status {status}", passed=status == 0)
        await self._nothing_pending()
        self._stopping.add(AGENT)
        agent.terminate()
        await self._until("the end of the agent", lambda: AGENT in self._exits)
        self._check("the agent stops on SIGTERM", f"exit status {self._exits[AGENT]}", passed=not self._exits[AGENT])

    async def _verify_and_restore(self) -> None:
        self._stage(
            "5  Verify and restore",
            "verify --deep downloads and reads every upload; restore writes the databases to a directory.",
        )
        verified = await self._processes.run("agent", "verify", "--all", "--deep", "--json", *self._directories)
        self._checks.append(checks.uploads_complete(verified))
        reported = [str(upload.upload_id) for upload in self._uploads]
        self._checks.append(checks.reported_once(verified, reported, self._failures))

        assert self._while_writing is not None
        upload_id, sent = str(self._while_writing.upload_id), self._while_writing.bytes_transferred
        objects = (self._cloud / "systems" / "demo" / "uploads" / upload_id).iterdir()
        self._checks.append(checks.unchanged_not_sent(sent, {path.name: path.stat().st_size for path in objects}))
        self._checks.append(checks.complete_transactions(await self._restore(upload_id)))

        written = self._answers[-1]["contents"]
        assert isinstance(written, dict)
        written = {table: (rows, digest) for table, (rows, digest) in written.items()}
        self._checks += checks.same_contents(written, await self._restore("latest"))

    async def _restore(self, upload_id: str) -> Contents:
        to = str(self._scratch / "restored" / upload_id)
        result = await self._processes.run("agent", "restore", upload_id, "--to", to, "--json", *self._directories)
        self._line(AGENT, f"restored {result['upload_id']}: {human_bytes(result['downloaded_bytes'])} downloaded")
        counted = await self._processes.run(WRITER_MODULE, "--count", to)
        return {table: (rows, digest) for table, (rows, digest) in counted.items()}

    async def _write(self, command: str, *, answers: int = 1) -> None:
        wanted = len(self._answers) + answers
        await self._processes.send(WRITER, command)
        await self._until(f"the writer's answer to {command!r}", lambda: len(self._answers) >= wanted)

    async def _nothing_pending(self) -> None:
        """Wait until `status` shows nothing pending and each upload in the bucket has been reported."""
        deadline = time.monotonic() + STEP_SECONDS
        while pending := (await self._processes.run("agent", "status", "--json", *self._directories))["pending"]:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(0.2)
        self._check("nothing is pending", f"akosha-agent status: {', '.join(pending) or 'nothing'}", passed=not pending)
        manifests = len(list(self._cloud.glob("systems/*/uploads/*/manifest.json")))
        await self._until("the report of the last upload", lambda: len(self._uploads) >= manifests)

    async def _until(self, what: str, met: Callable[[], bool]) -> None:
        """Wait for a condition. Raises AkoshaError on a timeout, or if a process ends too early."""
        try:
            async with asyncio.timeout(STEP_SECONDS):
                while not met():
                    if ended := self._exits.keys() - self._stopping:
                        name = min(ended)
                        raise AkoshaError(f"{name} exited with {self._exits[name]} before the demo stopped it")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            raise AkoshaError(f"timed out after {STEP_SECONDS:g} s waiting for {what}") from error

    def _take(self, name: str, document: Mapping[str, object] | None) -> None:
        self._changed.set()
        if document is None:
            self._exits[name] = self._processes.exit_status(name)
        elif name == WRITER:
            self._answers.append(document)
            self._line(WRITER, str(document["text"]))
        else:
            self._show_event(self._codec.decode(json.dumps(document).encode()))

    def _show_event(self, event: Event) -> None:
        if isinstance(event, SyncSucceeded):
            self._uploads.append(event)
        elif isinstance(event, SyncFailed):
            self._failures.append(str(event.error))
        for line in event_lines(event):
            self._line(AGENT, line.text)

    def _stage(self, title: str, text: str) -> None:
        self._print(Text(f"\n{title}", "bold"))
        self._print(Text(f"   {text}", "dim"))

    def _line(self, actor: str, text: str) -> None:
        seconds = time.monotonic() - self._started
        self._print(Text.assemble((f"{seconds:5.1f} s  ", "dim"), (f"{actor:<8}", COLOURS[actor]), text))

    def _check(self, name: str, found: str, *, passed: bool) -> None:
        self._checks.append(Check(name, passed, found))

    def _verdict(self) -> int:
        self._print("")
        width = max(len(check.name) for check in self._checks)
        for check in self._checks:
            mark = "ok" if check.passed else "FAILED"
            self._print(Text.assemble((f"{mark:<8}", COLOURS[mark]), f"{check.name:<{width}}  {check.found}"))
        failed = [check.name for check in self._checks if not check.passed]
        if not failed:
            self._print(
                f"\nAll {len(self._checks)} checks passed, in {time.monotonic() - self._started:.0f} s.\n{NEXT}"
            )
            return 0
        self._print(f"\n{len(failed)} of {len(self._checks)} checks failed: {'; '.join(failed)}")
        for name in (WRITER, EVENTS, AGENT):
            log = self._scratch / f"{name}.log"
            lines = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:] if log.exists() else []
            if lines:
                self._print(f"\nLast lines of {name}.log:")
                self._print("\n".join(f"  {line}" for line in lines))
        return 1

    def _print(self, text: str | Text) -> None:
        self._console.print(Text(text) if isinstance(text, str) else text, soft_wrap=True)
