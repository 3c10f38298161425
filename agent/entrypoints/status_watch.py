"""`status --watch`: the status, live.

A running agent streams its events; its status is asked for only after an event, or after the files have changed. The
files are looked at by this process, and so is the time: the agent does nothing while nothing happens.
"""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import NoReturn, Self

from agent.bootstrap.home import Home
from agent.domain.databases import Survey
from agent.domain.errors import AgentUnavailable, AkoshaError, SnapshotError
from agent.domain.events import SyncProgress, SyncResult
from agent.domain.progress import STALLED_SECONDS, Activity, Progress
from agent.entrypoints.control_client import Endpoint
from agent.entrypoints.shutdown import first_of
from agent.entrypoints.status_document import StatusDocument
from agent.entrypoints.status_view import gather_status
from agent.ports import HistoryEntry
from agent.settings import Settings

TICK_SECONDS = 1.0
"""Interval at which ages and times are shown again, and the files are looked at."""

AFTER_EVENT_SECONDS = 0.5
AFTER_CHANGE_SECONDS = 10.0
"""Shortest time between two requests for the status: after an event, and while files change. A request costs the agent
5 ms of CPU time, so changes cost 0.05 % of a core. While events continue, the time doubles with each request, from the
first to the second."""

SHORTEST_SECONDS = 0.05
"""Shortest time between two drawings of the status."""

WITHOUT_AGENT_SECONDS = 2.0
"""Interval at which the ledger is read while no agent answers."""

Draw = Callable[[StatusDocument, datetime], None]
"""Shows a status as of a time."""


class StatusWatch:
    """Keeps a status up to date, and calls `draw` whenever it changes and once a second."""

    def __init__(self, settings: Settings, draw: Draw) -> None:
        self._settings, self._draw = settings, draw
        self._home = Home.of(settings)
        self._clock = self._home.clock
        self._wake = asyncio.Event()
        self._due, self._asked_at = 0.0, float("-inf")
        self._event_pause = AFTER_EVENT_SECONDS
        self._connected = False
        self._progress: tuple[SyncProgress, Progress] | None = None
        self._progress_at = 0.0

    async def run(self) -> NoReturn:
        """Watch until cancelled. Raises StateError."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow(), name="watch-events")
                group.create_task(self._survey(), name="watch-files")
                await self._show()
        except* AkoshaError as group:
            raise first_of(group) from group
        raise AssertionError("watching does not end")

    async def _show(self) -> NoReturn:
        document = await gather_status(self._settings)
        self._asks_now()
        while True:
            if self._clock.monotonic() >= self._due:
                self._asks_now()
                document = await gather_status(self._settings)
            self._draw(self._with_progress(document), datetime.now(UTC))
            self._wake.clear()
            await self._until_woken(min(TICK_SECONDS, max(self._due - self._clock.monotonic(), SHORTEST_SECONDS)))

    async def _until_woken(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    def _refresh(self, *, pause: float, delay: float = 0.0) -> None:
        """Ask for the status after `delay` seconds, and not sooner than `pause` seconds after the last request."""
        due = max(self._clock.monotonic() + delay, self._asked_at + pause)
        if due < self._due:
            self._due = due
            self._wake.set()

    def _asks_now(self) -> None:
        """Record that the status is asked for now."""
        now = self._clock.monotonic()
        is_calm = now - self._asked_at > AFTER_CHANGE_SECONDS + TICK_SECONDS
        self._event_pause = AFTER_EVENT_SECONDS if is_calm else min(2 * self._event_pause, AFTER_CHANGE_SECONDS)
        self._asked_at, self._due = now, float("inf")

    def _with_progress(self, document: StatusDocument) -> StatusDocument:
        """Return the status with the progress of the last event."""
        if self._progress is None:
            if document.activity is not None:  # a failed attempt has no event
                self._refresh(pause=AFTER_CHANGE_SECONDS)
            return document
        event, progress = self._progress
        now = self._clock.monotonic()
        if now - self._progress_at > STALLED_SECONDS:  # the attempt may have failed: the agent knows
            self._progress = None
            self._refresh(pause=self._event_pause)
            return replace(document, activity=None)
        activity = Activity(
            request_id=event.request_id,
            method=event.method,
            phase=event.phase,
            done_bytes=event.done_bytes,
            total_bytes=event.total_bytes,
            bytes_per_second=progress.rate(at=now),
            remaining_seconds=progress.remaining_seconds(at=now),
        )
        return replace(document, activity=activity)

    async def _follow(self) -> NoReturn:
        """Follow the events of the agent; wait for one while none runs."""
        endpoint = Endpoint(self._home)
        while True:
            if (client := await endpoint.client()) is not None:
                try:
                    async with client, client.events() as events:
                        endpoint.reset_pause()
                        self._connected = True
                        self._refresh(pause=self._event_pause)
                        async for item in events:
                            self._take(item)
                except AgentUnavailable:
                    pass
                self._connected, self._progress = False, None
                self._refresh(pause=self._event_pause)
                endpoint.back_off()
            await self._clock.sleep(TICK_SECONDS)

    def _take(self, item: HistoryEntry | SyncProgress) -> None:
        now = self._clock.monotonic()
        if isinstance(item, SyncProgress):
            known = self._progress
            if known is None or (known[0].request_id, known[0].phase) != (item.request_id, item.phase):
                known = item, Progress(item.phase, item.total_bytes, at=now, done=item.done_bytes)
            known[1].update(item.done_bytes, at=now, kept=item.kept_bytes)
            self._progress, self._progress_at = (item, known[1]), now
            self._wake.set()
            return
        if isinstance(item.event, SyncResult):
            self._progress = None
        self._refresh(pause=self._event_pause)

    async def _survey(self) -> NoReturn:
        """Ask for the status when the files have changed: the agent knows about it a moment later."""
        seen: Survey | None = None
        while True:
            try:
                survey = await self._home.taker().survey()
            except SnapshotError:
                survey = {}
            if seen is not None and survey != seen:
                self._refresh(pause=AFTER_CHANGE_SECONDS, delay=TICK_SECONDS)
            seen = survey
            if not self._connected:
                self._refresh(pause=WITHOUT_AGENT_SECONDS)
            await self._clock.sleep(TICK_SECONDS)


class Screen:
    """Draws lines over the whole terminal. The text before it appears again when the block ends."""

    def __enter__(self) -> Self:
        sys.stdout.write("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H\x1b[J")  # no cursor, and long lines are cut
        return self

    def __exit__(self, *_: object) -> None:
        sys.stdout.write("\x1b[?7h\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()

    @staticmethod
    def draw(lines: list[str], rows: int) -> None:
        """Show the first `rows` lines."""
        sys.stdout.write("\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in lines[:rows]) + "\x1b[J")
        sys.stdout.flush()
