"""`ObjectStore` on a directory: each object is a file whose path is its key. Files appear atomically.

When a put returns, its size is checked, and data, names and directories are on the disk (fsync). System calls run off
the event loop.
"""

import asyncio
import builtins
import contextlib
import hashlib
import itertools
import os
import stat
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Collection,
    Coroutine,
    Mapping,
    Sequence,
)
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import structlog

from agent.adapters.directory_store import incoming, layout, leftovers, sharing
from agent.adapters.directory_store.errors import reading_object, translated
from agent.adapters.directory_store.incoming import Incoming
from agent.domain.errors import CopyUnsupported, NoSuchObject, StoreError, UnreadableObject
from agent.ports import (
    Creation,
    OpenPut,
    Progress,
    PutJournal,
    RateLimiter,
    StoredObject,
    UnexpectedErrors,
    ignore_progress,
    is_changed,
)
from agent.ports.concurrency import finish_cleanup, in_daemon_thread
from agent.ports.objects import FILE_TAG

T = TypeVar("T")

WRITE_BYTES = 4 * 2**20
READ_BYTES = 2**20
LIST_BATCH = 500
DELETE_BATCH = 100
AVAILABLE_SECONDS = 0.9
CLEANUP_SECONDS = 5.0

log = structlog.get_logger()


class DirectoryStore:
    """Objects below `root`, an absolute path.

    `create` creates the root. `put` and `copy` create it only if this object has not seen it before, and write only to
    the disk on which an object was last read or created: an empty mount point gets no object.
    """

    def __init__(self, root: Path, *, rate_limiter: RateLimiter | None = None) -> None:
        self._root, self._rate_limiter = root, rate_limiter
        self._device: int | None = None
        self._unexpected = UnexpectedErrors("directory", StoreError)
        self._probe: asyncio.Task[bool] | None = None

    @property
    def location(self) -> str:
        return self._root.as_uri()

    async def is_available(self) -> bool:
        """Return False if the root and its parent do not exist, or if the file system reports an error.

        Permissions are not checked: a put reports them. Returns within 1 s; True if the file system has not answered.
        """
        # A mount that hangs blocks one thread, not another one at each call.
        probe = self._probe
        if probe is None or probe.done():
            probe = self._probe = asyncio.create_task(in_daemon_thread(self._answers), name="directory-store-probe")
        done, _ = await asyncio.wait({probe}, timeout=AVAILABLE_SECONDS)
        return not done or probe.result()

    async def check_root(self) -> None:
        """Raise StoreError unless the root is a directory. The other methods take a missing one for an empty store."""
        await self._run("list", "", lambda: os.scandir(self._root).close())

    async def put(
        self,
        key: str,
        body: AsyncIterable[bytes],
        *,
        metadata: Mapping[str, str],
        part_bytes: int,
        progress: Progress,
        kept: Progress = ignore_progress,  # noqa: ARG002 - an interrupted put is not continued
        journal: PutJournal | None = None,  # noqa: ARG002
    ) -> StoredObject:
        layout.check_key(key)
        batch_bytes = min(part_bytes, WRITE_BYTES)
        file = await self._incoming(key)
        try:
            if self._rate_limiter is None:
                await self._write(key, file, body, batch_bytes, progress)
            else:
                async with contextlib.aclosing(self._rate_limiter.limited(body, progress)) as limited:
                    await self._write(key, file, limited, batch_bytes, progress)
            await self._run("write", key, _call(file.commit, metadata))
        except BaseException:
            await _finish(file.discard)
            raise
        return StoredObject(key, file.size, dict(metadata), etag=file.tag)

    async def _write(
        self, key: str, file: Incoming, body: AsyncIterable[bytes], batch_bytes: int, progress: Progress
    ) -> None:
        batch: list[bytes] = []
        size = 0
        async for piece in body:
            batch.append(piece)
            size += len(piece)
            if size >= batch_bytes:
                await self._run("write", key, _call(file.write, batch))
                progress(size)
                batch, size = [], 0
        await self._run("write", key, _call(file.write, batch))
        progress(size)

    async def create(self, key: str, data: bytes, *, replace: bool = False) -> Creation:
        """Put a small object unless the key exists, or with `replace`. Creates the root even if it was seen before."""
        layout.check_key(key)
        self._device = None  # the caller has chosen the disk that is there now
        created = await self._run("write", key, lambda: incoming.create(self._root, key, data, replace=replace))
        if replace:
            return Creation.UNPROVEN
        return Creation.CREATED if created else Creation.EXISTS

    async def copy(
        self, source: str, key: str, *, expected: StoredObject, progress: Progress = ignore_progress
    ) -> StoredObject:
        layout.check_key(key)
        try:
            return await self._copy(source, key, expected, progress)
        except UnreadableObject as error:
            raise CopyUnsupported(error.message, hint=error.hint) from error

    async def _copy(self, source: str, key: str, expected: StoredObject, progress: Progress) -> StoredObject:
        """Copy like `copy`. Raises UnreadableObject, too."""
        found = await self.head(source)
        if found.size != expected.size or dict(found.metadata) != dict(expected.metadata):
            raise CopyUnsupported(f"{source!r} in {self._root} differs from the object of the last upload")
        file = await self._incoming(key)
        try:
            report = _on_this_loop(progress)

            def fill() -> None:
                with reading_object(self._root, source):
                    shared = sharing.to_share(self._root, source, key, expected)
                    if shared is None or not file.share(shared, expected.etag, report):
                        file.copy_from(layout.object_path(self._root, source), report)

            await self._run("copy", source, fill)
            if file.size != expected.size:
                raise CopyUnsupported(f"{source!r} in {self._root} changed while it was copied")
            if is_changed(expected.etag, file.tag):
                raise CopyUnsupported(f"{source!r} in {self._root} has different bytes than the last upload wrote")
            await self._run("copy", key, _call(file.commit, expected.metadata))
        except BaseException:
            await _finish(file.discard)
            raise
        return StoredObject(key, file.size, dict(expected.metadata), etag=file.tag)

    async def head(self, key: str) -> StoredObject:
        def work() -> StoredObject:
            status = layout.object_path(self._root, key).lstat()
            if not stat.S_ISREG(status.st_mode):
                raise NoSuchObject(f"there is no {key!r} in {self._root}")
            size = status.st_size
            with reading_object(self._root, key):
                return StoredObject(key, size, layout.read_record(layout.record_path(self._root, key), size))

        return await self._run("read", key, work, reading=True)

    async def inspect(self, key: str, *, progress: Progress = ignore_progress) -> StoredObject:
        """Return the object with the `etag` of its current bytes. Reads all of them: file systems keep no checksums."""
        described = await self.head(key)
        digest, size = hashlib.sha256(), 0
        async with contextlib.aclosing(self.get(key)) as pieces:
            async for piece in pieces:
                await asyncio.to_thread(digest.update, piece)
                size += len(piece)
                progress(len(piece))
        return StoredObject(key, size, described.metadata, etag=FILE_TAG + digest.hexdigest())

    async def get(self, key: str) -> AsyncGenerator[bytes, None]:
        opening = self._run("read", key, lambda: layout.open_file(layout.object_path(self._root, key)), reading=True)
        file = await _opened(opening, lambda file: file.close)

        def read() -> bytes:
            with reading_object(self._root, key):
                return file.read(READ_BYTES)

        try:
            while piece := await self._run("read", key, read):
                yield piece
        finally:
            await _finish(file.close)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[StoredObject]:
        entries = layout.walk(self._root, prefix, start_after)

        def some() -> builtins.list[StoredObject]:
            batch = itertools.islice(entries, LIST_BATCH)
            return [StoredObject(key, size, modified=_time(modified)) for key, size, modified in batch]

        while batch := await self._run("list", "", some):
            for item in batch:
                yield item

    async def folders(self, prefix: str, *, start: str = "") -> AsyncGenerator[str, None]:
        for name in await self._run("list", "", lambda: layout.folders(self._root, prefix, start)):
            yield name

    async def delete(self, keys: Collection[str]) -> None:
        rest = iter(keys)
        while batch := [*itertools.islice(rest, DELETE_BATCH)]:
            await self._run("delete", "", _call(self._delete_all, batch))

    async def discard(self, put: OpenPut) -> None:
        """Do nothing: this store keeps nothing of an interrupted put."""

    async def sweep(
        self,
        prefix: str,
        *,
        started_before: datetime | None = None,  # noqa: ARG002
        spared: Collection[str] = (),  # noqa: ARG002
    ) -> int:
        """Remove unfinished puts. `started_before` is not needed: the lock on a file ends with its process."""
        return await self._run("sweep", "", lambda: leftovers.sweep(self._root, prefix))

    async def separate_copies(self, prefix: str, *, progress: Progress = ignore_progress) -> None:
        report = _on_this_loop(progress)
        for key in await self._run("read", "", lambda: sharing.only_copies(self._root, prefix, report)):
            with contextlib.suppress(StoreError):  # a full disk, or the object was just deleted: the next call tries
                await self._separate(key, progress)

    async def _separate(self, key: str, progress: Progress) -> None:
        """Give an object a physical copy of its own. Raises StoreError; then it is as before."""
        found, path = await self.inspect(key, progress=progress), layout.object_path(self._root, key)
        file, report = await self._incoming(key), _on_this_loop(progress)
        try:
            await self._run("copy", key, lambda: file.copy_from(path, report))
            if file.tag != found.etag:
                raise StoreError(f"{key!r} in {self._root} changed while it was copied", transient=True)
            await self._run("copy", key, _call(file.commit, found.metadata))
        except BaseException:
            await _finish(file.discard)
            raise

    async def count_unfinished(self, prefix: str) -> int:
        """Return how many files `sweep` would remove."""
        return await self._run("read", "", lambda: leftovers.count_unfinished(self._root, prefix))

    async def aclose(self) -> None:
        """Cancel a probe that still waits for a mount."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
            self._probe = None

    async def _incoming(self, key: str) -> Incoming:
        opening = self._run("write", key, lambda: Incoming(self._root, key, device=self._device))
        return await _opened(opening, lambda file: file.discard)

    async def _run(self, action: str, key: str, work: Callable[[], T], *, reading: bool = False) -> T:
        """Run `work` off the event loop. `reading` an object shows that the right disk is mounted."""

        def working() -> T:
            result = work()
            if (reading or self._device is None) and self._root.is_dir():
                self._device = self._root.stat().st_dev
            return result

        with translated(self._unexpected, action, self._root, key, reading=reading):
            return await in_daemon_thread(working, name="directory-store")

    def _delete_all(self, keys: Sequence[str]) -> None:
        for key in keys:
            with translated(self._unexpected, "delete", self._root, key):
                self._delete(key)

    def _delete(self, key: str) -> None:
        path, record = layout.object_path(self._root, key), layout.record_path(self._root, key)
        if path.is_file():
            sharing.Checks(self._root).unlink(path)
        record.unlink(missing_ok=True)
        incoming.prune(path.parent, self._root)
        incoming.prune(record.parent, self._root / layout.HIDDEN)

    def _answers(self) -> bool:
        """Return whether the root or its parent exists.

        Returns False for a missing mount: neither exists, or the root is a link whose target does not exist.
        """
        try:
            with translated(self._unexpected, "use", self._root):
                return layout.exists(self._root) or (not self._root.is_symlink() and layout.exists(self._root.parent))
        except StoreError as error:
            log.debug("store_unavailable", reason=str(error))
            return False


def _time(modified: float) -> datetime | None:
    """Return a file's time; None if it is out of range (a faulty NAS, a damaged file system)."""
    try:
        return datetime.fromtimestamp(modified, UTC)
    except (ValueError, OverflowError, OSError):
        return None


def _on_this_loop(progress: Progress) -> Progress:
    """Return what has the running event loop call `progress`, for use in another thread."""
    loop = asyncio.get_running_loop()

    def report(count: int) -> None:
        loop.call_soon_threadsafe(progress, count)

    return report


def _call(function: Callable[..., T], *arguments: object) -> Callable[[], T]:
    return lambda: function(*arguments)


async def _opened(opening: Coroutine[None, None, T], closer: Callable[[T], Callable[[], None]]) -> T:
    """Return what `opening` opens; if the caller is cancelled, wait for the thread and close it."""
    task = asyncio.create_task(opening, name="directory-store-open")
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with contextlib.suppress(StoreError, TimeoutError):
            async with asyncio.timeout(CLEANUP_SECONDS):
                file = await task
            await _finish(closer(file))
        raise


async def _finish(work: Callable[[], None]) -> None:
    """Run a clean-up to its end despite cancellation, within a time limit, because a mount may hang."""
    await finish_cleanup(asyncio.create_task(in_daemon_thread(work), name="directory-store-cleanup"), CLEANUP_SECONDS)
