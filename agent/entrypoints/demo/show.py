"""The show: a writer, the agent and a directory as the cloud, in stages; then the checks."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from agent.domain.errors import AkoshaError
from agent.entrypoints.demo import shape
from agent.entrypoints.demo.bucket import upload_folders
from agent.entrypoints.demo.checks import Check, examine
from agent.entrypoints.demo.children import Children, Ended, Heard, own_environment
from agent.entrypoints.demo.chronicle import AGENT, EVENTS, WRITER, Chronicle
from agent.entrypoints.demo.screen import Screen

PATIENCE_SECONDS = 45.0
"""How long one thing may take to happen: on an idle machine each takes about a second."""

UPLOADS_UNDER_WRITING = 2
LOG_LINES_SHOWN = 12

# Quick enough to watch. A real agent waits for 2 s of quiet, and 5 minutes between two uploads.
PACE = {
    "AKOSHA_AGENT_QUIET_SECONDS": "0.3",
    "AKOSHA_AGENT_DEADLINE_SECONDS": "1",
    "AKOSHA_AGENT_MIN_INTERVAL_SECONDS": "1",
    "AKOSHA_AGENT_RESCAN_SECONDS": "2",
    "AKOSHA_AGENT_LOG_LEVEL": "DEBUG",
    "AKOSHA_AGENT_LOG_FORMAT": "json",
}

NEXT = """
Now with your own memories. Two settings, in ~/.claude/settings/session-buddy.yaml:

    akosha_cloud_endpoint: https://<account>.r2.cloudflarestorage.com   # any S3, or file:///path/to/a/disk
    akosha_cloud_bucket: my-memories                                    # not needed with file://

then

    akosha-agent sync      once, to see that it works
    akosha-agent run       and it keeps watching
"""


class Show:
    """One performance in one scratch directory."""

    def __init__(self, screen: Screen, scratch: Path) -> None:
        self._screen, self._scratch = screen, scratch
        self._data, self._state, self._cloud = (scratch / name for name in ("data", "state", "cloud"))
        self._heard = Chronicle(screen, self._cloud)
        self._checks: list[Check] = []
        home = scratch / "home"
        for folder in (self._data, self._cloud, home):
            folder.mkdir()
        where = {"SESSION_BUDDY_AKOSHA_CLOUD_ENDPOINT": self._cloud.as_uri(), "SESSION_BUDDY_AKOSHA_SYSTEM_ID": "demo"}
        self._children = Children(scratch, own_environment(home, where | PACE))
        self._places = ("--data-dir", str(self._data), "--state-dir", str(self._state))

    async def play(self) -> int:
        """Play all stages, check, and sum up. Returns 0 if everything held, else 1."""
        self._screen.title(
            "akosha-agent: every memory that is committed gets to the cloud, whole",
            f"A process writes as Session-Buddy does, a directory is the cloud. Everything is in {self._scratch}.",
        )
        try:
            async with self._children:
                await self._stages()
            self._checks += await examine(self._cloud, self._scratch / "restored", self._heard.tally)
        except AkoshaError as error:
            self._checks.append(Check("the demo ran to its end", ok=False, detail=str(error)))
        return self._verdict()

    async def _stages(self) -> None:
        screen, heard = self._screen, self._heard
        screen.stage(
            1,
            "A session begins, and its work goes into the WAL",
            "Until a checkpoint, new memories are in reflection.duckdb.wal alone; other programs cannot open the file.",
        )
        await self._children.start(WRITER, "agent.entrypoints.demo.writer", str(self._data))
        await self._have_written("commit 100")
        await self._have_written("graph 4")
        sizes = ", ".join(f"{name} {size:,} bytes" for name, size in heard.files.items() if "reflection" in name)
        screen.line("", f"  {sizes}: a copy of the main file alone would hold no table")

        screen.stage(
            2,
            "The agent starts, and sends what it finds",
            "Snapshot: main file and WAL, as they were at one moment, never opened and never locked. Manifest last.",
        )
        pid = await self._children.start(AGENT, "agent", "run", *self._places, listen_to="stderr")
        screen.line(AGENT, f"akosha-agent run (pid {pid})")
        await self._children.start(EVENTS, "agent", "events", "--follow", "--json", *self._places)
        await self._until("what there is has arrived", lambda: heard.up_to_date)

        screen.stage(
            3,
            "The writer goes on, without a pause; the agent keeps up",
            "A change is noticed, the burst is waited out, but not for ever. What is unchanged is not sent again.",
        )
        before = len(heard.uploads)
        await self._children.tell(WRITER, "work")
        await self._until(
            f"{UPLOADS_UNDER_WRITING} uploads were made while the writer wrote",
            lambda: len(heard.uploads) >= before + UPLOADS_UNDER_WRITING,
        )
        await self._have_written("commit 3", answers=2)
        await self._until("the last commit has arrived", lambda: heard.up_to_date)

        screen.stage(
            4,
            "A checkpoint folds the WAL into the main file",
            "The WAL is gone, the main file has grown: now that is what has to go up.",
        )
        await self._have_written("checkpoint")
        await self._until(
            "the main file has arrived, without a WAL",
            lambda: heard.up_to_date and [p.name for p in heard.uploads[-1].of(shape.REFLECTION)] == [shape.REFLECTION],
        )

        screen.stage(
            5,
            "Only the knowledge graph changes",
            "Every upload is whole, so that old ones can be deleted; the store itself copies what has not changed.",
        )
        await self._have_written("graph 2")
        await self._until("the graph has arrived", lambda: heard.up_to_date)
        unchanged = self._unchanged_check()

        screen.stage(6, "The session ends", "A last commit, and everything is closed. Nothing may be left behind.")
        await self._have_written("commit 5")
        await self._have_written("close")
        await self._until("the writer has ended", lambda: WRITER in heard.ended)
        await self._until("the last commit has arrived", lambda: heard.up_to_date)
        pending = await self._nothing_pending()
        stopped = await self._stop_agent()
        self._checks += [self._writer_check(), pending, stopped, self._events_check(), unchanged]

    @property
    def _there(self) -> list[str]:
        """The uploads in the bucket, oldest first."""
        return [folder.name for folder in upload_folders(self._cloud)]

    async def _have_written(self, command: str, *, answers: int = 1) -> None:
        wanted = self._heard.answers + answers
        await self._children.tell(WRITER, command)
        await self._until(f"the writer has answered to {command!r}", lambda: self._heard.answers >= wanted)

    async def _until(self, what: str, met: Callable[[], bool]) -> None:
        """Show what happens until it is so. Raises AkoshaError where it takes too long or somebody ends."""
        try:
            with self._screen.waiting(what):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    while not met():
                        self._take_in(await self._children.next())
        except TimeoutError as error:
            raise AkoshaError(f"waited {PATIENCE_SECONDS:g} s until {what}") from error

    def _take_in(self, heard: Heard) -> None:
        self._heard.hear(heard)
        if isinstance(heard, Ended) and not (heard.child == WRITER and self._heard.tally):
            raise AkoshaError(f"{heard.child} ended with {heard.status}, and was not asked to")

    async def _nothing_pending(self) -> Check:
        """Ask `status` until it says that nothing is pending, waiting for events in between."""
        name, clock = "nothing is pending", asyncio.get_running_loop()
        end = clock.time() + PATIENCE_SECONDS
        while True:
            answer = await self._children.ask("agent", "status", "--json", *self._places)
            pending = json.loads(answer)["pending"]
            if not pending:
                break
            if clock.time() > end:
                return Check(name, ok=False, detail=f"status says: {', '.join(pending)}")
            try:
                async with asyncio.timeout(1):
                    with self._screen.waiting("nothing is pending"):
                        self._take_in(await self._children.next())
            except TimeoutError:
                continue
        await self._until("the last upload has been told", lambda: self._heard.told == self._there)
        self._screen.line(AGENT, "status: nothing is pending")
        return Check(name, ok=True, detail="akosha-agent status, after the writer had closed")

    async def _stop_agent(self) -> Check:
        began = self._screen.seconds
        self._children.terminate(AGENT)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while AGENT not in self._heard.ended:
                    self._heard.hear(await self._children.next())
        except TimeoutError:
            return Check("the agent stops on SIGTERM", ok=False, detail=f"not within {PATIENCE_SECONDS:g} s")
        status, took = self._heard.ended[AGENT], self._screen.seconds - began
        self._screen.line(AGENT, f"stopped on SIGTERM, exit status {status}")
        return Check("the agent stops on SIGTERM", ok=status == 0, detail=f"exit status {status} after {took:.1f} s")

    def _writer_check(self) -> Check:
        heard = self._heard
        status = heard.ended[WRITER]
        detail = f"{heard.commits} commits, {heard.checkpoints} checkpoint, exit status {status}"
        return Check("the writer was never disturbed", ok=status == 0, detail=detail)

    def _events_check(self) -> Check:
        heard = self._heard
        told, there = heard.told, self._there
        detail = f"{len(told)} told, {len(there)} in the bucket, {len(heard.failures)} failed"
        return Check("each upload was told once", ok=told == there and not heard.failures, detail=detail)

    def _unchanged_check(self) -> Check:
        upload = self._heard.uploads[-1]
        parts = upload.of(shape.REFLECTION)
        size = sum(part.stored_size for part in parts)
        sent = self._heard.sent_bytes[upload.upload_id]
        ok = bool(parts) and all(part.origin == "copied" for part in parts) and sent < upload.total_size
        detail = f"{sent:,} bytes sent, {size:,} copied by the store"
        return Check("what is unchanged is not sent again", ok=ok, detail=detail)

    def _verdict(self) -> int:
        self._screen.table(self._checks)
        failed = [check.name for check in self._checks if not check.ok]
        if failed:
            self._screen.say(f"\n{len(failed)} of {len(self._checks)} checks failed: {'; '.join(failed)}")
            for name in (WRITER, EVENTS, AGENT):
                self._last_words(name)
            return 1
        self._screen.say(f"\nAll {len(self._checks)} checks held, in {self._screen.seconds:.0f} s.")
        self._screen.say(NEXT.rstrip())
        return 0

    def _last_words(self, name: str) -> None:
        log = self._scratch / f"{name}.log"
        words = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:] if log.exists() else []
        if words:
            self._screen.say(f"\nThe last words of {name}:")
            for line in words:
                self._screen.say(f"  {line}")
