"""The limits of the operating system, reached in a separate process."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, json, os, resource, sys
from pathlib import Path
import structlog
from structlog.testing import capture_logs
from agent.adapters.system_clock import SystemClock
from agent.adapters.watcher import DirectoryWatcher
from agent.adapters.watcher.watchfiles_thread import WatchfilesThread

directory = Path(sys.argv[1])
reported = []

async def read(watcher):
    async for names in watcher.changes():
        reported.extend(names)

async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)

async def main():
    await asyncio.to_thread(int)  # starts the executor's first thread while descriptors are available
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        os.close(taken.pop())
        os.close(taken.pop())  # two are left: enough for polling, too few for a native watch of watchfiles
    watcher = DirectoryWatcher(
        directory, wanted=str.isalpha, rescan_seconds=0.3, clock=SystemClock(), step_ms=20, native=WatchfilesThread
    )
    task = asyncio.create_task(read(watcher))
    await until(lambda: watcher.mode.startswith("polling"))
    limited = watcher.mode
    (directory / "polled").touch()
    await until(lambda: "polled" in reported)
    started = asyncio.get_running_loop().time()
    await until(lambda: asyncio.get_running_loop().time() > started + 1)  # three more attempts fail and log nothing
    for descriptor in taken:
        os.close(descriptor)
    await until(lambda: watcher.mode == "native")
    (directory / "native").touch()
    await until(lambda: "native" in reported)
    task.cancel()
    await asyncio.wait({task})
    return limited

with capture_logs() as logs:
    limited = asyncio.run(main())
print(json.dumps({"limited": limited, "logs": logs}))
"""


def test_without_a_native_watch_the_watcher_polls_until_it_is_available(tmp_path):
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(tmp_path)],
        capture_output=True, text=True, timeout=120, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    output = json.loads(run.stdout)
    assert "Too many open files" in output["limited"]
    modes = [(line["log_level"], line["mode"]) for line in output["logs"]]
    assert modes == [("warning", output["limited"]), ("info", "native")]
    assert "max_user_instances" in output["logs"][0]["hint"]
