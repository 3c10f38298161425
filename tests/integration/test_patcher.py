"""The port of patches: made in a child process, applied in a thread."""

import asyncio
import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.adapters import child_process
from agent.adapters.patches import ZstdPatcher, patcher as patcher_module, zstd
from agent.adapters.patches.making import make
from agent.domain.errors import NO_THREAD, AkoshaError, PatchError, StagingFull, StateError, WireError
from tests.support.patches import BLOCK, frame, header, random_bytes, sha256, step, write

MOST_MEMORY = 128 * 10**6

OLD = random_bytes(8 * BLOCK)
NEW = OLD[BLOCK // 2 :] + random_bytes(100_000, 1)


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "old", OLD), write(tmp_path / "new", NEW), tmp_path / "patch"


@pytest.fixture
def children(monkeypatch):
    """The child processes that are started."""
    started, start = [], child_process.start

    async def noted(*arguments, **options):
        started.append(await start(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(child_process, "start", noted)
    return started


@pytest.fixture
def stopped(monkeypatch):
    """The child processes, which are stopped when they get their command; `asked` is set then."""

    class Children(list):
        asked = asyncio.Event()

    children, ask = Children(), child_process.Exchange.ask

    async def noted(self, *arguments):
        self._child.send_signal(signal.SIGSTOP)
        children.append(self._child)
        children.asked.set()
        return await ask(self, *arguments)

    monkeypatch.setattr(child_process.Exchange, "ask", noted)
    return children


@pytest.fixture
def killed(monkeypatch):
    """Every child process is killed when it has started."""
    start = child_process.start

    async def kill(*arguments, **options):
        child = await start(*arguments, **options)
        child.kill()
        return child

    monkeypatch.setattr(child_process, "start", kill)


def limit_file_size(monkeypatch) -> None:
    start = child_process.start

    async def limited(*arguments, **options):
        child = await start(*arguments, **options)
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
        return child

    monkeypatch.setattr(child_process, "start", limited)


async def not_made(files, **options) -> str:
    """Return the reason for which no patch is made; it leaves no file."""
    with capture_logs() as logs:
        assert await ZstdPatcher(**options).make(*files, most_bytes=2**30) is None
    assert not files[2].exists()
    (log,) = [log for log in logs if log["event"] == "patch_failed"]
    return log["error"]


async def test_a_patch_is_made_and_applied(files, tmp_path, children):
    old, new, patch = files
    written = await ZstdPatcher().make(old, new, patch, most_bytes=2**30)
    assert (written.size, written.sha256) == (patch.stat().st_size, sha256(patch.read_bytes()))
    assert written.size < 150_000
    assert stat.S_IMODE(patch.stat().st_mode) == 0o600
    assert [child.returncode is None for child in children] == [False]
    result = tmp_path / "result"
    await ZstdPatcher().apply(old, [patch], result, sizes=[len(NEW)], sha256=sha256(NEW))
    assert result.read_bytes() == NEW
    assert stat.S_IMODE(result.stat().st_mode) == 0o600


async def test_a_patch_that_would_be_too_large_leaves_no_file(files):
    with capture_logs() as logs:
        assert await ZstdPatcher().make(*files, most_bytes=90_000) is None
    assert not files[2].exists()
    assert not logs


async def test_an_existing_patch_is_replaced(files):
    old, new, patch = files
    patch.write_text("another")
    written = await ZstdPatcher().make(old, new, patch, most_bytes=2**30)
    assert written.sha256 == sha256(patch.read_bytes())


async def test_without_disk_space_no_patch_is_made(files, monkeypatch):
    limit_file_size(monkeypatch)
    assert "File too large" in await not_made(files)


async def test_without_memory_no_patch_is_made(files, monkeypatch):
    monkeypatch.setattr(patcher_module, "CHILD", "tests.support.small_child")
    assert "MemoryError" in await not_made(files)


async def test_a_missing_file_gives_no_patch(files):
    files[0].unlink()
    assert "FileNotFoundError" in await not_made(files)


async def test_a_killed_child_gives_no_patch(files, killed):
    assert await not_made(files) == "was killed (SIGKILL)"


async def test_a_child_that_hangs_gives_no_patch_and_is_ended(files, children, monkeypatch):
    monkeypatch.setattr(patcher_module, "CHILD", "tests.support.hanging_child")
    assert "no progress" in await not_made(files, stall_seconds=0.3)
    assert children[0].returncode is not None


async def test_a_child_that_cannot_be_started_gives_no_patch(files, monkeypatch):
    async def failed(*_, **__):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(child_process, "start", failed)
    assert "unavailable" in await not_made(files)


async def test_a_child_ends_with_its_parent(files):
    """The parent closes its standard input while it waits for the writer of a pipe."""
    old, new, patch = files
    old.unlink()
    os.mkfifo(old)
    child = await child_process.start(patcher_module.CHILD, cwd=patch.parent)
    child.stdin.write(json.dumps(["make", str(old), str(new), str(patch), 1, None]).encode() + b"\n")
    child.stdin.close()
    assert await child.wait() == 3


async def cancelled(work, children) -> None:
    """Cancel `work` when its child has got the command, and check that the child is killed."""
    task = asyncio.create_task(work)
    await children.asked.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [child.returncode for child in children] == [-signal.SIGKILL]


async def test_a_cancelled_patch_ends_the_child_and_leaves_no_file(files, stopped):
    await cancelled(ZstdPatcher().make(*files, most_bytes=2**30), stopped)
    assert not files[2].exists()


async def test_a_cancelled_application_ends_the_child_and_leaves_no_file(files, tmp_path, stopped):
    result = tmp_path / "result"
    make(*files, 2**30)
    await cancelled(ZstdPatcher().apply(files[0], [files[2]], result, sizes=[len(NEW)], sha256=sha256(NEW)), stopped)
    assert not result.exists()


async def not_applied(files, **options) -> AkoshaError:
    """Return the error after which there is no file, although the patch is valid."""
    old, _, patch = files
    make(*files, 2**30)
    result = patch.with_name("result")
    with pytest.raises((StateError, StagingFull)) as refused:
        await ZstdPatcher(**options).apply(old, [patch], result, sizes=[len(NEW)], sha256=sha256(NEW))
    assert not result.exists()
    assert refused.value.transient
    return refused.value


async def test_a_killed_child_is_a_transient_error(files, killed):
    assert "was killed (SIGKILL)" in (await not_applied(files)).message


async def test_a_child_that_hangs_is_a_transient_error(files, monkeypatch):
    monkeypatch.setattr(patcher_module, "CHILD", "tests.support.hanging_child")
    assert "no progress" in (await not_applied(files, stall_seconds=0.3)).message


async def test_a_full_disk_is_an_error_of_the_disk(files, monkeypatch):
    limit_file_size(monkeypatch)
    assert isinstance(await not_applied(files), StagingFull)


async def test_too_little_memory_is_a_transient_error(files, monkeypatch):
    monkeypatch.setattr(patcher_module, "CHILD", "tests.support.small_child")
    assert "MemoryError" in (await not_applied(files)).message


async def test_a_child_that_cannot_start_a_thread_is_a_transient_error(files, monkeypatch):
    monkeypatch.setattr(patcher_module, "CHILD", "tests.support.child_without_threads")
    assert NO_THREAD in (await not_applied(files)).message


async def test_a_child_that_is_too_slow_is_a_transient_error(files):
    assert "was not done" in (await not_applied(files, timeout_seconds=0.001)).message


def test_a_decompressor_without_memory_says_nothing_about_the_frame(monkeypatch):
    class NoMemory:
        eof = False

        def decompress(self, *_):
            raise zstd.zstd.ZstdError("Unable to decompress Zstandard data: Allocation error : not enough memory")

    monkeypatch.setattr(zstd.zstd, "ZstdDecompressor", lambda **_: NoMemory())
    with pytest.raises(MemoryError):
        list(zstd.decompress(None, [b"frame"], 9))


async def test_the_error_names_the_patch_that_is_invalid(files, tmp_path):
    make(*files, 2**30)
    chain, sizes = [files[2], files[0]], [len(NEW), 1]
    with pytest.raises(PatchError, match="old is not a patch of this file") as refused:
        await ZstdPatcher().apply(files[0], chain, tmp_path / "result", sizes=sizes, sha256=sha256(b""))
    assert refused.value.number == 2


async def test_a_patch_that_crashes_the_child_is_invalid(files, tmp_path, monkeypatch):
    monkeypatch.setattr(patcher_module, "CHILD", "tests.support.crashing_child")
    with pytest.raises(WireError, match="SIGABRT"):
        await ZstdPatcher().apply(files[0], [files[0]], tmp_path / "result", sizes=[1], sha256=sha256(b""))


async def test_an_existing_file_is_kept(files):
    make(*files, 2**30)
    with pytest.raises(StateError, match="exists"):
        await ZstdPatcher().apply(files[0], [files[2]], files[1], sizes=[len(NEW)], sha256=sha256(NEW))
    assert files[1].read_bytes() == NEW


async def test_an_invalid_patch_is_an_error_without_a_file(files, tmp_path):
    write(files[2], b"AKPATCH1")
    with pytest.raises(WireError):
        await ZstdPatcher().apply(files[0], [files[2]], tmp_path / "result", sizes=[1], sha256=sha256(b""))
    assert not (tmp_path / "result").exists()


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("agent.adapters.patches.patcher", {"backports.zstd", "compression.zstd"}),
        (patcher_module.CHILD, {"asyncio", "structlog", "agent.ports"}),
    ],
    ids=["parent", "child"],
)
def test_parent_and_child_load_only_what_they_need(module, absent):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert absent.isdisjoint(done.stdout.split())


def peak_of_child(folder: Path, work: str) -> int:
    """Return the peak of the resident size of a patcher's child, in bytes. `work` uses `patcher` and `folder`."""
    code = f"""
import asyncio, resource, sys
from pathlib import Path
from agent.adapters.patches import ZstdPatcher
patcher, folder = ZstdPatcher(), Path(sys.argv[1])
asyncio.run({work})
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_making_a_patch_needs_little_memory(tmp_path):
    """Each extent refers to as much of the reference as it can, and a third of it is new."""
    blocks = [random_bytes(BLOCK, seed) for seed in range(260)]
    new = [
        one[: BLOCK // 3] + other[: BLOCK // 3] + random_bytes(BLOCK // 3 + 1)
        for one, other in zip(blocks[::2], blocks[1::2], strict=True)
    ]
    write(tmp_path / "old", b"".join(blocks))
    write(tmp_path / "new", b"".join(new))
    work = 'patcher.make(folder / "old", folder / "new", folder / "patch", most_bytes=2**30)'
    assert peak_of_child(tmp_path, work) < MOST_MEMORY
    assert (tmp_path / "patch").stat().st_size < 0.36 * len(new) * BLOCK


def test_applying_a_hostile_patch_needs_little_memory(tmp_path):
    """Its frames have the largest reference, content and window that a patch may have."""
    size, count = 32 * 2**20, 3
    new, data = bytes(count * size), frame(bytes(size))
    steps = [step([[0, size]], [[number * size, size]], data) for number in range(count)]
    write(tmp_path / "old", random_bytes(size))
    write(tmp_path / "patch", header(size, len(new)) + b"".join(steps))
    result = f'folder / "new", sizes=[{len(new)}], sha256="{sha256(new)}"'
    work = f'patcher.apply(folder / "old", [folder / "patch"], {result})'
    assert peak_of_child(tmp_path, work) < MOST_MEMORY
    assert (tmp_path / "new").read_bytes() == new
