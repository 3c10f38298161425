"""Prints what a running agent does, in sentences, on a terminal; the progress of a sync is a live line below them."""

import asyncio
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, repeat

import structlog
from structlog.typing import EventDict

from agent.application.monitoring.agent_service import AgentService
from agent.application.monitoring.status import DatabaseStatus, NextSync
from agent.bootstrap.home import RUN
from agent.bootstrap.stores import location_of
from agent.domain.events import Event, SyncProgress, SyncRequested, SyncResult
from agent.domain.plain_text import printable
from agent.domain.progress import STALLED_SECONDS
from agent.entrypoints import live_line, logs
from agent.entrypoints.formatting import duration, local_time
from agent.entrypoints.progress_line import ProgressBar
from agent.entrypoints.sentences import event_lines, log_lines
from agent.entrypoints.status_document import StatusDocument
from agent.entrypoints.status_text import REASONS, SYNC_NOW, verdict_line
from agent.entrypoints.text_lines import Line, has_colours, rendered
from agent.ports import HistoryEntry
from agent.settings import Settings

TICK_SECONDS = 1.0
"""Interval at which the time until the next sync is shown again."""

_log = structlog.get_logger()

TIME = "%H:%M:%S"
INDENT = len("12:00:00  ")


def log_text(entry: EventDict) -> str:
    """Return a log entry as sentences, for a terminal; "" if it is not shown."""
    fields = dict(entry)
    name, level = str(fields.pop("event", "")), str(fields.pop("level", "info"))
    return "\n".join(_rendered(log_lines(name, level, fields), datetime.now(UTC)))


@asynccontextmanager
async def narrated(service: AgentService, settings: Settings) -> AsyncIterator[None]:
    """Print what the agent does while the block runs, if log entries are rendered by `log_text`."""
    if not logs.is_rendered_by(log_text):
        yield
        return
    position = await service.last_position()  # before the agent requests its first sync
    narrating = asyncio.create_task(Narrator(settings).follow(service, after=position), name="narrator")
    try:
        yield
    finally:
        narrating.cancel()
        await asyncio.wait({narrating})
        with suppress(OSError, ValueError):
            live_line.show("")
        if not narrating.cancelled() and (error := narrating.exception()):
            _log.warning("narrator_ended", error=str(error))


class Narrator:
    """Follows the events of an agent, as long as log entries are rendered by `log_text`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bar = ProgressBar(visible=live_line.is_possible())
        self._progress_at: float | None = None

    async def follow(self, service: AgentService, *, after: int) -> None:
        """Print each event after this position until cancelled. Raises StateError."""
        await self._introduce(service)
        counting = asyncio.create_task(self._count_down(service.upcoming), name="narrator-countdown")
        try:
            async with aclosing(service.events(after=after)) as events:
                async for item in events:
                    event = item.event if isinstance(item, HistoryEntry) else item
                    self.show(event, await _pending(service, event))
        finally:
            counting.cancel()
            await asyncio.wait({counting})

    def show(self, event: Event, pending: Sequence[DatabaseStatus] = ()) -> None:
        """Print an event; a SyncProgress changes the live line. `pending`: see `event_lines`."""
        if not logs.is_rendered_by(log_text):
            return
        with suppress(OSError, ValueError):  # the terminal was closed: the agent continues
            if isinstance(event, SyncProgress):
                self._progress_at = time.monotonic()
                self._bar.show(event.phase, event.done_bytes, event.total_bytes, kept=event.kept_bytes)
                return
            if isinstance(event, SyncResult):
                self._progress_at = None
                self._bar.clear()
            _print(event_lines(event, pending), event.time)

    async def _introduce(self, service: AgentService) -> None:
        """Print what is watched, where memories go, and the verdict."""
        settings = self._settings
        running: dict[str, object] = {"command": RUN}
        problem = await service.survey_problem()
        status = StatusDocument.of(await service.status(), settings, running=running, problem=problem)
        places = [
            location_of(one.method, one.endpoint, one.bucket, settings.cloud_region) for one in status.targets[:1]
        ]
        lines = [
            Line(f"watching {status.data_dir}; memories go to {''.join(places) or 'no target'}"),
            verdict_line(status, datetime.now(UTC)),
        ]
        with suppress(OSError, ValueError):
            for line in lines:
                _print([line], datetime.now(UTC))

    async def _count_down(self, upcoming: Callable[[], NextSync | None]) -> None:
        """Refresh the progress of a sync; while none moves, show when the next one comes."""
        while True:
            with suppress(OSError, ValueError):
                if self._progress_at is not None and time.monotonic() - self._progress_at < STALLED_SECONDS:
                    self._bar.redraw()
                elif logs.is_rendered_by(log_text):
                    self._progress_at = None
                    live_line.show(*waiting_texts(upcoming(), datetime.now(UTC)))
            await asyncio.sleep(TICK_SECONDS)


async def _pending(service: AgentService, event: Event) -> Sequence[DatabaseStatus]:
    """Return the databases that a new request is about; none if its sync has already ended. Raises StateError."""
    if not isinstance(event, SyncRequested):
        return ()
    targets = (await service.brief_status()).targets
    return [one for one in targets[0].databases if one.pending] if targets else ()


def timed(lines: Iterable[Line], at: datetime) -> list[Line]:
    """Return lines with the time before the first one, the others indented, and control characters escaped."""
    heads = chain([f"{local_time(at, TIME)}  "], repeat(" " * INDENT))
    return [
        replace(line, text=head + printable(line.text), indent=INDENT, plain=INDENT)
        for head, line in zip(heads, lines, strict=False)
    ]


def _rendered(lines: Iterable[Line], at: datetime) -> list[str]:
    return rendered(timed(lines, at), width=shutil.get_terminal_size().columns, colours=has_colours(sys.stderr))


def _print(lines: Iterable[Line], at: datetime) -> None:
    """Print to standard error, above the live line. Raises OSError or ValueError if it was closed."""
    if text := _rendered(lines, at):
        live_line.write_above("".join(f"{line}\n" for line in text))


def waiting_texts(upcoming: NextSync | None, now: datetime) -> list[str]:
    """Return the live line about the next sync, and shorter ones for narrower terminals; "" if none is due later."""
    if upcoming is None or upcoming.at is None or upcoming.at <= now:
        return [""]
    wait = f"next sync in {duration((upcoming.at - now).total_seconds())}"
    reason = f"{wait}, {REASONS[upcoming.reason]}"
    return [f"databases have changed; {reason}; {SYNC_NOW}", f"{reason}; {SYNC_NOW}", reason, wait]
