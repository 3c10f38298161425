"""The demo from its beginning to its end: a scratch directory, the show, and nothing left behind."""

import asyncio
import shutil
import signal
import tempfile
from pathlib import Path

from rich.console import Console

from agent.entrypoints.demo.screen import Screen
from agent.entrypoints.demo.show import Show

STOPPED = 130


def run_demo(*, keep: bool) -> int:
    """Show all on scratch data; with `keep`, leave it. Returns 0 if every check held, 1 if not, 130 if stopped."""
    screen = Screen(Console(highlight=False))
    scratch = Path(tempfile.mkdtemp(prefix="akosha-demo-")).resolve()
    try:
        return asyncio.run(_until_stopped(Show(screen, scratch)))
    except asyncio.CancelledError:
        screen.say("\nstopped: every process of the demo has ended")
        return STOPPED
    finally:
        if keep:
            screen.say(f"\nKept for a look around: {scratch} (data, state, cloud, logs)")
        else:
            shutil.rmtree(scratch, ignore_errors=True)


async def _until_stopped(show: Show) -> int:
    """Play; Ctrl-C, SIGTERM and a closed terminal cancel it."""
    loop, playing = asyncio.get_running_loop(), asyncio.current_task()
    assert playing is not None
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(name, playing.cancel)
    return await show.play()
