"""The watcher on real directories, native and polling: it reports changes whatever happens to a directory."""

import asyncio
import errno
import mmap
import os
import shutil
import sys
import threading
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.adapters.system_clock import SystemClock
from agent.adapters.watcher import DirectoryWatcher, scan, watcher as watcher_module
from agent.adapters.watcher.native import WatchSignal
from agent.adapters.watcher.watchfiles_thread import WatchfilesThread
from agent.domain.databases import database_of
from tests.support.clock import ManualClock
from tests.support.waiting import until

NEVER = 1e6
"""A rescan interval so long that only the native watch can report a change."""

MAIN, WAL = "reflection.duckdb", "reflection.duckdb.wal"


class Reader:
    """Reads a watcher and records the reported names, and the modes reported without a name."""

    def __init__(self, watcher: DirectoryWatcher) -> None:
        self.watcher = watcher
        self.reported: list[frozenset[str]] = []
        self.modes: list[str] = []

    async def read(self) -> None:
        async for names in self.watcher.changes():
            if names:
                self.reported.append(names)
            else:
                self.modes.append(self.watcher.mode)

    async def wait_for_names(self, *names: str) -> None:
        """Return once all these names have been reported since the last call."""
        await until(lambda: set(names) <= set().union(*self.reported))
        self.reported.clear()

    async def mode(self, start: str) -> None:
        await until(lambda: self.watcher.mode.startswith(start))


def is_memory(name: str) -> bool:
    return database_of(name) is not None


def watcher_of(directory: Path, **options: object) -> DirectoryWatcher:
    options = {"wanted": is_memory, "rescan_seconds": NEVER, "clock": SystemClock(), "step_ms": 20} | options
    return DirectoryWatcher(directory, **options)


@asynccontextmanager
async def reading(watcher: DirectoryWatcher):
    reader = Reader(watcher)
    task = asyncio.create_task(reader.read(), name="reader")
    try:
        yield reader
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()


WATCHFILES = {"native": WatchfilesThread}
"""The native watch of other systems, which works on Linux, too."""

OPTIONS = {"native": {}, "watchfiles": WATCHFILES, "polling": {"force_polling": True, "rescan_seconds": 0.03}}


@pytest.fixture(params=OPTIONS)
def options(request):
    return OPTIONS[request.param]


@pytest.fixture
def watch_mode(options):
    return "polling" if "force_polling" in options else "native"


@pytest.fixture
async def watched(tmp_path, watch_mode, options):
    """Yield (directory, reader, mode) for a watched directory with a database and its sidecar."""
    directory = tmp_path / "data"
    directory.mkdir()
    (directory / MAIN).write_bytes(b"main")
    (directory / WAL).write_bytes(b"wal")
    async with reading(watcher_of(directory, **options)) as reader:
        await reader.mode(watch_mode)
        yield directory, reader, watch_mode


def rewrite(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b".")


def replace_file(path: Path) -> None:
    draft = path.parent / "draft.tmp"
    draft.write_bytes(b"another")
    draft.rename(path)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"+")


def touch(path: Path) -> None:
    seen = path.stat()
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1_000_000_000))


def rename_away(path: Path) -> None:
    path.rename(path.parent.parent / path.name)


@pytest.mark.parametrize(
    "change", [rewrite, append, replace_file, touch, rename_away, Path.unlink], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("name", [MAIN, WAL])
async def test_every_kind_of_change_to_main_file_and_sidecar_is_reported(watched, change, name):
    directory, reader, _ = watched
    change(directory / name)
    await reader.wait_for_names(name)


@pytest.mark.parametrize(
    "name", ["knowledge_graph.duckdb", "knowledge_graph_work.duckdb.checkpoint.wal", "reflection.duckdb.recovery.wal"]
)
async def test_a_new_file_is_reported(watched, name):
    directory, reader, _ = watched
    (directory / name).touch()
    await reader.wait_for_names(name)


async def test_only_wanted_names_are_reported_and_subdirectories_are_not_watched(watched):
    directory, reader, _ = watched
    (directory / "akosha_sync_state.json").write_text("{}")
    (directory / "agent.log").write_text("line")
    (directory / "sub").mkdir()
    (directory / "sub" / MAIN).write_text("not ours")
    (directory / WAL).write_bytes(b"ours")
    await until(lambda: reader.reported)
    assert set().union(*reader.reported) == {WAL}


async def test_a_new_mode_is_reported_without_a_change(tmp_path):
    async with reading(watcher_of(tmp_path)) as reader:
        await until(lambda: reader.modes == ["starting", "native"])
        assert reader.reported == []


async def test_existing_files_are_not_reported_at_the_start(watched):
    directory, reader, _ = watched
    append(directory / WAL)
    await until(lambda: reader.reported)
    assert set().union(*reader.reported) == {WAL}, "and not the main file"


async def test_each_of_several_changes_is_reported(watched):
    directory, reader, _ = watched
    for _ in range(5):
        append(directory / WAL)
        await reader.wait_for_names(WAL)


async def test_the_watcher_reports_its_start_and_every_change_after_it(tmp_path, watch_mode, options):
    """A reader that scans the directory when the watcher reports its start misses no change."""
    (tmp_path / MAIN).write_bytes(b"main")
    async with aclosing(watcher_of(tmp_path, **options).changes()) as changes:
        async with asyncio.timeout(60):
            assert await anext(changes) == frozenset()
        append(tmp_path / MAIN)
        (tmp_path / WAL).touch()
        reported = set()
        async with asyncio.timeout(60):
            while reported != {MAIN, WAL}:
                reported |= await anext(changes)


async def test_a_directory_that_hangs_does_not_block_the_event_loop(tmp_path, monkeypatch):
    answered, asked = threading.Event(), threading.Event()

    def hang(directory, wanted):
        asked.set()
        assert answered.wait(20)
        return really_look(directory, wanted)

    really_look = watcher_module.read_directory
    monkeypatch.setattr(watcher_module, "read_directory", hang)
    watcher = watcher_of(tmp_path)
    assert not asked.is_set(), "creating the watcher does not read the directory"
    async with reading(watcher) as reader:
        await until(asked.is_set)  # the event loop is not blocked
        assert watcher.mode == "starting"
        answered.set()
        await reader.mode("native")


async def test_a_change_between_two_readers_is_reported(watched):
    directory, _, _ = watched
    watcher = watcher_of(directory, rescan_seconds=NEVER)
    async with reading(watcher) as first:
        await first.mode("native")
    append(directory / MAIN)
    async with reading(watcher) as second:
        await second.wait_for_names(MAIN)


# ---------------------------------------------------------------------------------- changes of the directory itself


@pytest.mark.parametrize("above", ["", "deeper/and/deeper"])
async def test_a_directory_missing_at_the_start_is_waited_for(tmp_path, watch_mode, above, options):
    directory = tmp_path / above / "data"
    async with reading(watcher_of(directory, **options)) as reader:
        await reader.mode(f"waiting for {directory}")
        directory.mkdir(parents=True)
        (directory / MAIN).touch()
        await reader.wait_for_names(MAIN)
        await reader.mode(watch_mode)
        append(directory / MAIN)
        await reader.wait_for_names(MAIN)


async def test_the_files_of_a_directory_that_appears_are_reported(tmp_path, watch_mode, options):
    (tmp_path / "made").mkdir()
    for name in (MAIN, WAL):
        (tmp_path / "made" / name).touch()
    async with reading(watcher_of(tmp_path / "data", **options)) as reader:
        await reader.mode("waiting")
        (tmp_path / "made").rename(tmp_path / "data")
        await reader.wait_for_names(MAIN, WAL)


async def test_a_directory_deleted_and_created_again_at_once_is_watched_every_time(watched):
    """The new directory often has the inode of the old one."""
    directory, reader, watch_mode = watched
    for _ in range(5):
        shutil.rmtree(directory)
        directory.mkdir()
        (directory / MAIN).touch()
        await reader.wait_for_names(MAIN)
        await reader.mode(watch_mode)
        (directory / WAL).touch()
        await reader.wait_for_names(WAL)


async def test_a_deleted_directory_is_waited_for(watched):
    directory, reader, watch_mode = watched
    shutil.rmtree(directory)
    await reader.wait_for_names(MAIN, WAL)
    await reader.mode("waiting for")
    directory.mkdir()
    (directory / MAIN).touch()
    await reader.wait_for_names(MAIN)
    await reader.mode(watch_mode)
    append(directory / MAIN)
    await reader.wait_for_names(MAIN)


def swap_by_rename(directory: Path, other: Path) -> None:
    directory.rename(directory.parent / "old")
    other.rename(directory)


def swap_the_parent(directory: Path, other: Path) -> None:
    """Replace the parent; the watched directory itself does not change."""
    directory.parent.rename(directory.parent.parent / "old-parent")
    directory.parent.mkdir()
    (directory.parent.parent / "old-parent" / other.name).rename(directory)


@pytest.mark.parametrize("swap", [swap_by_rename, swap_the_parent])
async def test_a_directory_replaced_by_another_is_watched(tmp_path, watch_mode, swap, options):
    directory, other = tmp_path / "parent" / "data", tmp_path / "parent" / "other"
    for folder in (directory, other):
        folder.mkdir(parents=True)
        (folder / MAIN).touch()
    async with reading(watcher_of(directory, **options)) as reader:
        await reader.mode(watch_mode)
        swap(directory, other)
        await reader.wait_for_names(MAIN)
        append(directory / MAIN)
        await reader.wait_for_names(MAIN)


async def test_a_symlink_as_directory_is_followed_to_a_new_target(tmp_path, watch_mode, options):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / MAIN).touch()
    link = tmp_path / "data"
    link.symlink_to("one")
    async with reading(watcher_of(link, **options)) as reader:
        await reader.mode(watch_mode)
        append(tmp_path / "one" / MAIN)
        await reader.wait_for_names(MAIN)
        (tmp_path / "new-link").symlink_to("two")
        (tmp_path / "new-link").rename(link)
        await reader.wait_for_names(MAIN)
        append(tmp_path / "two" / MAIN)
        await reader.wait_for_names(MAIN)


async def test_the_watcher_waits_while_a_file_is_in_place_of_the_directory(watched):
    directory, reader, watch_mode = watched
    shutil.rmtree(directory)
    directory.write_text("a file")
    await reader.mode(f"waiting for {directory} (Not a directory)")
    directory.unlink()
    directory.mkdir()
    (directory / MAIN).touch()
    await reader.mode(watch_mode)
    await reader.wait_for_names(MAIN)


# -------------------------------------------------------------------------------------------------- missed changes


def change_without_inotify(path: Path) -> None:
    """Write through a memory map, which inotify does not report."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[0:1] = b"!"
        view.flush()


async def test_a_change_missed_by_the_native_watch_is_reported_by_the_rescan(tmp_path):
    (tmp_path / MAIN).write_bytes(b"main")
    clock = ManualClock()
    async with reading(watcher_of(tmp_path, rescan_seconds=60, clock=clock)) as reader:
        await reader.mode("native")
        await clock.until_asleep()
        change_without_inotify(tmp_path / MAIN)
        await clock.advance(59)
        append(tmp_path / "akosha_sync_state.json")
        assert reader.reported == []
        await clock.advance(1)
        await reader.wait_for_names(MAIN)


async def test_a_clock_jump_does_not_affect_the_watcher(tmp_path):
    (tmp_path / MAIN).write_bytes(b"main")
    clock = ManualClock()
    async with reading(watcher_of(tmp_path, rescan_seconds=60, clock=clock)) as reader:
        await reader.mode("native")
        for days in (-1, 400):
            clock.jump(timedelta(days=days))
            append(tmp_path / MAIN)
            await reader.wait_for_names(MAIN)
            await clock.until_asleep()
            change_without_inotify(tmp_path / MAIN)
            await clock.advance(60)
            await reader.wait_for_names(MAIN)


async def test_native_watch_and_rescan_report_a_change_once(tmp_path):
    (tmp_path / MAIN).write_bytes(b"main")
    clock = ManualClock()
    async with reading(watcher_of(tmp_path, rescan_seconds=60, clock=clock)) as reader:
        await reader.mode("native")
        append(tmp_path / MAIN)
        await reader.wait_for_names(MAIN)
        await clock.until_asleep()
        await clock.advance(120)
        (tmp_path / WAL).touch()
        await until(lambda: reader.reported)
        assert set().union(*reader.reported) == {WAL}


async def test_a_change_of_a_symlinks_target_is_reported_by_the_rescan(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").write_bytes(b"main")
    (tmp_path / "data" / MAIN).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / WAL).symlink_to("nowhere")
    async with reading(watcher_of(tmp_path / "data", rescan_seconds=0.05)) as reader:
        await reader.mode("native")
        append(tmp_path / "elsewhere")
        await reader.wait_for_names(MAIN)


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems reject names that are not UTF-8")
@pytest.mark.parametrize(("options", "warnings"), [({}, []), (WATCHFILES, ["file_name_not_unicode"])])
async def test_a_file_name_that_is_not_utf_8_leaves_the_watch_native(tmp_path, options, warnings):
    """watchfiles ends the watch because of such a file. The watch starts again and misses no change."""
    with capture_logs() as logged:
        async with reading(watcher_of(tmp_path, wanted=lambda name: name.endswith(".duckdb"), **options)) as reader:
            await reader.mode("native")
            for number in range(3):
                (tmp_path / os.fsdecode(b"%d\xff\xfe.tmp" % number)).touch()
                (tmp_path / f"{number}.duckdb").touch()
                await reader.wait_for_names(f"{number}.duckdb")
            odd = os.fsdecode(b"odd_\xff.duckdb")
            (tmp_path / odd).touch()
            await reader.wait_for_names(odd)
            append(tmp_path / odd)
            await reader.wait_for_names(odd)
            assert reader.watcher.mode == "native"
    assert set(reader.modes) == {"starting", "native"}
    assert [line["event"] for line in logged if line["log_level"] == "warning"] == warnings


# -------------------------------------------------------------------------------------------- network file systems

MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
23 22 0:30 / /home rw,relatime shared:1 master:2 - nfs4 server:/home rw
24 23 0:31 / /home/me/My\\040Disk rw - fuseblk /dev/sdb1 rw
25 23 0:32 / /home/me/cloud rw - fuse.sshfs me@host: rw
26 22 0:33 / /mnt/c rw - 9p C: rw
27 22 0:34 / /mnt/c rw - ext4 /dev/vdb rw
"""


@pytest.mark.parametrize(
    ("directory", "kind", "silent"),
    [
        ("/var/lib", "ext4", False),
        ("/home/me/.claude/data", "nfs4", True),
        ("/homes/me", "ext4", False),
        ("/home/me/My Disk/data", "fuseblk", False),
        ("/home/me/cloud", "fuse.sshfs", True),
        ("/mnt/c/data", "ext4", False),
    ],
)
def test_the_file_system_is_that_of_the_innermost_mount(tmp_path, monkeypatch, directory, kind, silent):
    (tmp_path / "mountinfo").write_text(MOUNTS)
    monkeypatch.setattr(scan, "_MOUNTS", tmp_path / "mountinfo")
    assert scan.file_system(Path(directory)) == kind
    assert scan.silent(kind) is silent


def test_without_a_mount_table_every_file_system_counts_as_reporting_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "_MOUNTS", tmp_path / "none")
    assert not scan.silent(scan.file_system(tmp_path))


def test_the_file_system_is_known_if_the_system_has_a_mount_table(tmp_path):
    assert bool(scan.file_system(tmp_path)) is Path("/proc/self/mountinfo").exists()


async def test_a_network_file_system_is_polled(tmp_path, monkeypatch):
    (tmp_path / "mountinfo").write_text(f"1 0 0:30 / {tmp_path}/data rw - cifs //nas/share rw\n")
    monkeypatch.setattr(scan, "_MOUNTS", tmp_path / "mountinfo")
    (tmp_path / "data").mkdir()
    async with reading(watcher_of(tmp_path / "data", rescan_seconds=0.05)) as reader:
        await reader.mode("polling (cifs does not report changes)")
        (tmp_path / "data" / MAIN).touch()
        await reader.wait_for_names(MAIN)
        change = tmp_path / "data" / MAIN
        change.write_bytes(b"main")
        await reader.wait_for_names(MAIN)


async def test_the_native_watch_can_be_forced(tmp_path, monkeypatch):
    (tmp_path / "mountinfo").write_text(f"1 0 0:30 / {tmp_path} rw - cifs //nas/share rw\n")
    monkeypatch.setattr(scan, "_MOUNTS", tmp_path / "mountinfo")
    async with reading(watcher_of(tmp_path, force_polling=False)) as reader:
        await reader.mode("native")
        (tmp_path / MAIN).touch()
        await reader.wait_for_names(MAIN)


# ---------------------------------------------------------------------------------------------------------- the end


def watch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("watch-")]


def inotify_descriptors() -> list[Path]:
    """Return the open inotify descriptors of this process; none without /proc."""
    held = []
    for link in Path("/proc/self/fd").glob("*"):
        with suppress(FileNotFoundError):
            held += [link] if "inotify" in str(link.readlink()) else []
    return held


@pytest.mark.parametrize("options", [{}, WATCHFILES], ids=["native", "watchfiles"])
async def test_a_cancelled_watcher_leaves_no_thread_no_task_and_no_descriptor(tmp_path, options):
    async with reading(watcher_of(tmp_path, **options)) as reader:
        await reader.mode("native")
    await until(lambda: not watch_threads())
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("watch-")]
    await until(lambda: not inotify_descriptors())  # watchfiles closes it in its own thread a moment later


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has inotify")
async def test_inotify_stopped_while_it_starts_leaves_no_descriptor(tmp_path):
    from agent.adapters.watcher.inotify import Inotify

    signal = WatchSignal()
    opening = Inotify(tmp_path, scan.root_of(tmp_path), is_memory, None, signal)
    await opening.stop()
    await asyncio.get_running_loop().shutdown_default_executor()  # the thread that opens it has ended
    await until(lambda: not inotify_descriptors())
    assert not signal.listening


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has inotify")
async def test_inotify_ends_if_the_directory_was_replaced_since_the_scan(tmp_path):
    from agent.adapters.watcher.inotify import Inotify

    signal = WatchSignal()
    Inotify(tmp_path, scan.root_of(tmp_path.parent), is_memory, None, signal)
    await until(lambda: signal.failed == "")
    assert not signal.listening
    assert not inotify_descriptors()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has inotify")
async def test_without_a_free_inotify_instance_the_directory_is_polled(tmp_path, monkeypatch):
    from agent.adapters.watcher import inotify

    def refuse(path, root):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    clock = ManualClock()
    with monkeypatch.context() as patch:
        patch.setattr(inotify, "_open", refuse)
        async with reading(watcher_of(tmp_path, rescan_seconds=60, clock=clock)) as reader:
            await reader.mode("polling (Too many open files)")
            await clock.until_asleep()
            (tmp_path / MAIN).touch()
            await clock.advance(2)
            await reader.wait_for_names(MAIN)
            patch.undo()
            await clock.until_asleep()
            await clock.advance(60)
            await reader.mode("native")


@pytest.mark.skipif(sys.platform != "linux", reason="watchfiles has a thread, which wakes at each step")
async def test_the_watch_has_no_thread_and_no_timer_but_the_rescan(tmp_path):
    """So an idle agent does not wake. A change wakes it at once."""
    clock = ManualClock()
    async with reading(watcher_of(tmp_path, rescan_seconds=60, clock=clock, step_ms=None)) as reader:
        await reader.mode("native")
        await clock.until_asleep()
        assert not watch_threads()
        timers = [timer for timer in asyncio.get_running_loop()._scheduled if not timer.cancelled()]
        assert not [timer for timer in timers if "inotify" in repr(timer)]
        append(tmp_path / MAIN)
        await reader.wait_for_names(MAIN)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has inotify")
async def test_writes_to_other_files_do_not_wake_the_process_each_time(tmp_path, monkeypatch):
    from agent.adapters.watcher import inotify

    reads, events = [], inotify._events
    monkeypatch.setattr(inotify, "_events", lambda data: reads.append(1) or events(data))
    async with reading(watcher_of(tmp_path, step_ms=60_000)) as reader:
        await reader.mode("native")
        for _ in range(100):
            append(tmp_path / "app.log")
            await asyncio.sleep(0)  # the event loop reads what is there
            await asyncio.sleep(0)
    assert 1 <= len(reads) <= inotify.MOST_UNWANTED


async def test_closing_the_iterator_ends_the_watcher(tmp_path):
    changes = watcher_of(tmp_path, **WATCHFILES).changes()
    assert await anext(changes) == frozenset()
    first = asyncio.ensure_future(anext(changes))
    await until(watch_threads)
    (tmp_path / MAIN).touch()
    async with asyncio.timeout(60):
        assert MAIN in await first
    await changes.aclose()
    await until(lambda: not watch_threads())


async def test_a_closed_event_loop_ends_the_watch_thread(tmp_path):
    def abandoned() -> None:
        loop = asyncio.new_event_loop()
        changes = watcher_of(tmp_path, **WATCHFILES).changes()
        assert loop.run_until_complete(anext(changes)) == frozenset()
        task = loop.create_task(anext(changes), name="abandoned")
        while not watch_threads():
            loop.run_until_complete(asyncio.sleep(0.005))
        task.cancel()
        loop.run_until_complete(asyncio.wait({task}))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    await asyncio.to_thread(abandoned)
    await until(lambda: not watch_threads())


async def test_the_lag_of_a_change_is_its_age_limited_to_the_rescan_interval(tmp_path):
    (tmp_path / MAIN).write_bytes(b"main")
    clock = ManualClock()
    watcher = watcher_of(tmp_path, force_polling=True, rescan_seconds=2, clock=clock)
    async with reading(watcher) as reader:
        await clock.until_asleep()
        for age, reported in ((0.75, 0.75), (3600, 2.0), (-3600, 0.0)):
            append(tmp_path / MAIN)
            written = (clock.now().timestamp() + 2 - age) * 1e9  # it is reported in two seconds
            os.utime(tmp_path / MAIN, ns=(int(written), int(written)))
            await clock.advance(2)
            await reader.wait_for_names(MAIN)
            assert watcher.lag == pytest.approx(reported, abs=1e-3)
            await clock.until_asleep()
        (tmp_path / MAIN).unlink()
        await clock.advance(2)
        await reader.wait_for_names(MAIN)
        assert watcher.lag == 0


async def test_the_time_of_the_last_scan_is_updated_without_a_change(tmp_path):
    clock = ManualClock()
    watcher = watcher_of(tmp_path, force_polling=True, rescan_seconds=2, clock=clock)
    async with reading(watcher):
        await clock.until_asleep()
        started_at = watcher.scanned_at
        await clock.advance(2)
        await until(lambda: watcher.scanned_at == started_at + 2)
