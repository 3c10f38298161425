"""`fleet --watch`: the fleet, live.

New events arrive over NATS. An upload makes the watch read what the bucket has of its system. The whole bucket, which
may have systems that do not use NATS, is read every five minutes; the stored events only after a lost connection.
"""

import asyncio
import shutil
import sys
from collections.abc import Callable
from datetime import datetime
from typing import NoReturn

import typer

from agent.application.fleet.fleet import Fleet, FleetReport
from agent.application.fleet.merge import FleetSystem
from agent.domain.events import Event, SyncSucceeded
from agent.domain.plain_text import printable
from agent.entrypoints.fleet_text import fleet_lines
from agent.entrypoints.formatting import local_time
from agent.entrypoints.status_watch import Screen
from agent.entrypoints.text_lines import Line, Style, has_colours, rendered

TICK_SECONDS = 5.0
"""Interval at which ages are shown again, and of attempts to read stored events after a failed one."""

SHORTEST_SECONDS = 0.5
"""Shortest time between two drawings, and between two readings of what has changed."""

BUCKET_SECONDS = 300.0

Draw = Callable[[FleetReport], None]


class FleetWatch:
    """Keeps a fleet up to date, and calls `draw` when it changes and at an interval."""

    def __init__(self, fleet: Fleet, draw: Draw) -> None:
        self._fleet, self._draw, self._clock = fleet, draw, fleet.clock
        self._changed, self._to_read = asyncio.Event(), asyncio.Event()
        self._uploaded: set[str] = set()
        self._missed_events = False

    async def run(self) -> NoReturn:
        """Watch until cancelled."""
        await self._fleet.follow(self._take, self._reconnected)
        await self._fleet.read()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._read_changes(), name="fleet-changes")
            group.create_task(self._read_bucket(), name="fleet-bucket")
            group.create_task(self._show(), name="fleet-screen")
        raise AssertionError("watching does not end")

    async def _take(self, event: Event) -> None:
        if not self._fleet.take(event):
            return
        if self._fleet.events_unread:  # the stream may have been made meanwhile
            self._reconnected()
        if isinstance(event, SyncSucceeded) and event.manifest_key:
            self._uploaded.add(event.system_id)
            self._to_read.set()
        self._changed.set()

    def _reconnected(self) -> None:
        self._missed_events = True
        self._to_read.set()

    async def _read_changes(self) -> NoReturn:
        """Read the systems that have uploaded, and the stored events after a lost connection."""
        while True:
            await self._to_read.wait()
            self._to_read.clear()
            if self._missed_events:
                self._missed_events = False
                await self._fleet.read_events()
            uploaded, self._uploaded = self._uploaded, set()
            await self._fleet.read_systems(uploaded)
            self._changed.set()
            await self._clock.sleep(TICK_SECONDS if self._fleet.events_unread else SHORTEST_SECONDS)

    async def _read_bucket(self) -> NoReturn:
        while True:
            await self._clock.sleep(BUCKET_SECONDS)
            await self._fleet.read_bucket()
            self._changed.set()

    async def _show(self) -> NoReturn:
        while True:
            self._changed.clear()
            self._draw(self._fleet.report())
            await self._clock.sleep(SHORTEST_SECONDS)
            try:
                async with asyncio.timeout(TICK_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                continue


async def watch_fleet(fleet: Fleet) -> int:
    """Show the fleet until Ctrl-C, on the whole terminal; elsewhere print the systems whose state changes."""
    if not sys.stdout.isatty():
        await FleetWatch(fleet, _printer()).run()
    lines: list[str] = []
    colours = has_colours(sys.stdout)
    try:
        with Screen() as screen:

            def draw(report: FleetReport) -> None:
                nonlocal lines
                size = shutil.get_terminal_size()
                lines = rendered(fleet_lines(report, width=size.columns), width=size.columns, colours=colours)
                footer = Line(f"{local_time(report.time)}  Ctrl-C ends", Style.DIM)
                shown = lines[: size.lines - 2]
                screen.draw([*shown, "", *rendered([footer], width=None, colours=colours)], size.lines)

            await FleetWatch(fleet, draw).run()
    except asyncio.CancelledError:
        return 0
    finally:
        typer.echo("\n".join(lines))


def _printer() -> Draw:
    """Return a function that prints a line for each system whose condition, reason or newest result has changed."""
    last: dict[str, tuple[object, ...]] = {}
    sources: tuple[object, ...] = ()

    def print_new(report: FleetReport) -> None:
        nonlocal sources
        if (errors := tuple((one.name, one.error) for one in report.sources if one.error)) != sources:
            sources = errors
            for name, error in errors:
                _print(report.time, f"{name}  could not be read: {error}")
        for one in report.systems:
            if (state := _state(one)) != last.get(one.system_id):
                last[one.system_id] = state
                _print(
                    report.time, f"{one.system_id}  {one.condition.value}" + (f": {one.reason}" if one.reason else "")
                )
        sys.stdout.flush()

    return print_new


def _state(system: FleetSystem) -> tuple[object, ...]:
    result = system.last_result
    return system.condition, system.reason, result and (result.outcome, result.text), system.newest_upload


def _print(at: datetime, text: str) -> None:
    typer.echo(printable(f"{local_time(at)}  {text}"))
