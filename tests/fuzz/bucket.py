"""Targets: what is read from a bucket or a directory: listings, manifests, memories, owner.json, objects, records."""

import asyncio
import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from hypothesis import strategies as st

from agent.adapters import memories_file
from agent.adapters.akosha.sink import pack
from agent.adapters.directory_store import DirectoryStore
from agent.adapters.gunzip import Unpacker
from agent.adapters.patches.applying import apply_chain
from agent.adapters.restore_directory.placement import Journal
from agent.adapters.restore_directory.scratch import JOURNAL, Scratch
from agent.application.archive.catalog import Catalog, CatalogEntry
from agent.application.ingest.cursor import Cursor, plan
from agent.application.ingest.service import systems_in
from agent.application.sync.bucket_uploads import BucketUploads, UploadIds
from agent.application.sync.results import succeeded
from agent.domain import naming
from agent.domain.databases import database_of
from agent.domain.errors import (
    NamingError,
    NoSuchObject,
    RestoreError,
    StoreError,
    WireError,
)
from agent.domain.identity import Machine, Owner
from agent.domain.manifest import Manifest
from agent.domain.memories import KINDS
from agent.domain.restore_plan import aside_names, restorable
from agent.ports import StoredObject
from tests.fuzz.documents import json_near, near_bytes, near_text
from tests.fuzz.messages import check_event
from tests.fuzz.target import Read, Target, never_refused
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.ledger import inline_ledger
from tests.support.memories import memory
from tests.support.memory_store import DatedStore
from tests.support.patches import frame, header, random_bytes, step
from tests.support.values import NOON, SYSTEM, TARGET

CLOCK = ManualClock(NOON)

# ----------------------------------------------------------------------------------------------------------- manifests

MANIFEST = replace(
    values.manifest(20, reflection=3, knowledge_graph=(1, "carried")),
    incomplete={"knowledge_graph": "it was too busy"},
    memories=values.memories_part(20, count=7, reflection=10),
    without_memories={"knowledge_graph_x": "made by a newer DuckDB"},
    time_zone="Europe/Vienna",
)


@contextmanager
def manifest() -> Iterator[Read]:
    """Yield a function that uses a manifest as an upload that is adopted, listed, restored and ingested."""
    with asyncio.Runner() as runner:

        async def use(found: Manifest) -> None:
            result = succeeded(found, method="cloud", location="memory://")
            check_event(result)
            target = replace(TARGET, system_id=found.system_id)
            ledger = inline_ledger(CLOCK)
            await ledger.adopt(target, found, result)
            record = await ledger.record(target)
            assert {part for known in record.databases.values() for part in known.parts} == {*found.parts}
            assert [event.id for event in await ledger.outbox()] == [result.id]
            await ledger.aclose()

        def read(data: bytes) -> None:
            found = Manifest.decode(data)
            with never_refused():
                check(found)

        def check(found: Manifest) -> None:
            assert Manifest.decode(found.encode()) == found
            runner.run(use(found))
            with suppress(RestoreError):
                for database in restorable(found):
                    assert all("/" not in name and database_of(name) for name in database.names)
                    assert database.disk_bytes >= 0
                    database.carried_age(found.upload_id)
                    aside_names(database.names, database.names, NOON)
            done = plan(found, Cursor())
            cursor = Cursor().at(found, done.full | done.delta).past(found.upload_id)
            assert Cursor.decode(cursor.encode()) == cursor
            for modified in (None, NOON):
                assert CatalogEntry(upload_id=found.upload_id, sizes={}, manifest=found, modified=modified).at.tzinfo

        yield read


# ------------------------------------------------------------------------------------------------------------- listings


@contextmanager
def listing() -> Iterator[Read]:
    """Yield a function that reads a bucket with these objects: (key, size, time)."""
    with asyncio.Runner() as runner:

        async def use(objects: list[tuple[str, bytes, int]]) -> None:
            store = DatedStore()
            for key, data, seconds in objects:
                store.objects[key] = data, {}
                with suppress(OverflowError, ValueError):
                    store.times[key] = NOON.fromtimestamp(seconds, NOON.tzinfo)
            catalog, uploads = Catalog(store, SYSTEM), BucketUploads(store, SYSTEM)
            listed = await catalog.listing(exact=True)
            ids = [entry.upload_id for entry in listed.uploads]
            assert sorted(ids) == sorted(await catalog.ids())
            for entry in listed.uploads:
                assert entry.at.tzinfo
                assert (await catalog.show(entry.upload_id)).upload_id == entry.upload_id
                with suppress(StoreError):
                    await catalog.manifest(entry.upload_id)
            with suppress(NoSuchObject):
                assert await catalog.resolve_at(NOON) in ids
            with suppress(NoSuchObject):
                assert await catalog.resolve() in ids
            await systems_in(store)
            await uploads.newest_manifest()
            ledger = inline_ledger(CLOCK)
            started, complete = await uploads.ids_after(None)
            ids_of_uploads = UploadIds(uploads, SYSTEM, "a" * 32, "memory://", ledger, CLOCK)
            chosen = await ids_of_uploads.next(started, complete, None, None)
            assert chosen not in started
            await ids_of_uploads.compare_with_clock(chosen, None)
            await ledger.aclose()

        yield lambda objects: runner.run(use(objects))


KEYS = st.sampled_from([MANIFEST.key, *MANIFEST.keys, f"systems/{SYSTEM}/owner.json"])
UPLOAD_TIMES = ("99991231_235959", "99981231_235959", "00010101_000000", "10000101_000000", "20260301_240000")
OTHER_UPLOADS = st.builds(
    lambda at, name: f"systems/{SYSTEM}/uploads/{at}_{SYSTEM}/{name}",
    st.sampled_from(UPLOAD_TIMES) | st.datetimes().map(lambda at: f"{at:%Y%m%d_%H%M%S}"),
    st.sampled_from(["manifest.json", "reflection.duckdb", ""]),
)
OBJECTS = st.lists(
    st.tuples(
        KEYS | KEYS.flatmap(near_text) | OTHER_UPLOADS,
        st.sampled_from([b"", MANIFEST.encode(), b"x" * 803]),
        st.integers(0, 2**31) | st.integers(-(2**40), 2**40),
    ),
    max_size=6,
)

# ------------------------------------------------------------------------------------------------- owner.json, memories

OWNERS = json_near(json.loads(Owner.new(SYSTEM, Machine("a" * 64, "laptop", "/home/me"), "b" * 32, NOON).encode()))


def read_owner(data: bytes) -> None:
    owner = Owner.decode(data)
    with never_refused():
        assert Owner.decode(owner.encode()) == owner
        assert str(owner).isprintable()
        assert owner.key == naming.owner_key(owner.system_id)


def _line(kind, *, embedded: bool) -> bytes:
    return memories_file.encode(memory(1, kind=kind, embedded=embedded), SYSTEM)


LINES = [_line(kind, embedded=embedded) for kind in KINDS for embedded in (True, False)]
ODD_LINES = json_near(*(json.loads(_line(kind, embedded=False)) for kind in KINDS), keys=("embedding", "timestamp"))
ODD_EMBEDDINGS = st.builds(
    lambda line, numbers: line[:-1] + b',"embedding":' + numbers + b"}",
    st.sampled_from([line for line in LINES if b"embedding" not in line]),
    json_near(json.loads(f"[{', '.join(['0.5'] * 384)}]")),
)
MEMORIES = st.builds(
    lambda lines: memories_file.OPENING + b"\n" + b",\n".join(lines) + b"\n" + memories_file.CLOSING + b"\n",
    st.lists(st.sampled_from(LINES) | ODD_LINES | ODD_EMBEDDINGS, max_size=3),
)


@contextmanager
def memories() -> Iterator[Read]:
    """Yield a function that reads memories.json; whatever is read can be written again, and packed for Akosha."""
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:
        path = Path(directory, naming.MEMORIES_NAME)

        async def use() -> None:
            source = memories_file.JsonMemoriesFile(path.parent).open(path, SYSTEM)
            async with aclosing(source.pages()) as pages:
                async for page in pages:
                    async for found in source.read(page):
                        assert memories_file.decode(memories_file.encode(found, SYSTEM), SYSTEM) == found
                        json.loads(pack(found, SYSTEM).body)

        def read(data: bytes) -> None:
            path.write_bytes(data)
            runner.run(use())

        yield read


# -------------------------------------------------------------------------------------------------------------- objects

RAW = bytes(range(256)) * 40
STORED = gzip.compress(RAW[:5000]) + gzip.compress(RAW[5000:])
BOMB = gzip.compress(bytes(2**24))


@contextmanager
def stored_object() -> Iterator[Read]:
    """Yield a function that unpacks an object, which never becomes larger on disk than the manifest says."""
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:
        path = Path(directory, "object")

        async def use(stored: bytes, compression, piece_bytes: int) -> None:
            async def pieces() -> AsyncIterator[bytes]:
                for start in range(0, len(stored), piece_bytes):
                    yield stored[start : start + piece_bytes]

            await Unpacker(path.parent).unpack(
                pieces(),
                path,
                compression=compression,
                stored_size=len(STORED),
                raw_size=len(RAW),
                sha256=hashlib.sha256(RAW).hexdigest(),
            )

        def read(example: tuple[bytes, str, int]) -> None:
            path.unlink(missing_ok=True)
            try:
                runner.run(use(*example))
                assert path.read_bytes() == RAW
            finally:
                assert not path.exists() or path.stat().st_size <= len(RAW)

        yield read


PIECES = st.tuples(
    st.just(STORED) | near_bytes(STORED, odd=(STORED, BOMB)) | st.sampled_from([RAW, BOMB, STORED + BOMB]),
    st.sampled_from(["gzip", "none"]),
    st.sampled_from([1000, 7, 2**20]),
)


OLD = random_bytes(5000)
NEW = OLD[3000:] + b"added" + OLD[:2000]
LAST = NEW[:1000] + b"changed" + NEW[1000:]
HEADER = {"reference": len(OLD), "size": len(NEW)}
FRAME = frame(NEW[2005:], OLD[:2500])
STEPS = (
    {"from": [[3000, 2000]], "to": [[0, 2000]], "frame": 0},
    {"from": [], "to": [[2000, 5]], "frame": len(frame(b"added"))},
    {"from": [[0, 2500]], "to": [[2005, 1000], [3005, 1000]], "frame": len(FRAME)},
)
FRAMES = (b"", frame(b"added"), FRAME)
LAST_PATCH = header(len(NEW), len(LAST)) + step(
    [[0, 1000]],
    [[0, 1000], [1007, len(NEW) - 1000], [1000, 7]],
    frame(LAST[:1000] + LAST[1007:] + b"changed", NEW[:1000]),
)


def _patch(records: Sequence[bytes], frames: Sequence[bytes] = FRAMES) -> bytes:
    first, *steps = (len(text).to_bytes(4, "little") + text for text in records)
    return b"AKPATCH1" + first + b"".join(text + data for text, data in zip(steps, frames, strict=True))


PATCH_RECORDS = [json.dumps(document).encode() for document in (HEADER, *STEPS)]
PATCH = _patch(PATCH_RECORDS)
PATCHES = st.tuples(
    st.just(PATCH)
    | near_bytes(PATCH, odd=(PATCH, BOMB))
    | st.tuples(*(st.just(text) | json_near(json.loads(text)) for text in PATCH_RECORDS)).map(_patch)
    | st.tuples(*(st.just(data) | near_bytes(data, odd=(frame(bytes(2**24)),)) for data in FRAMES)).map(
        lambda frames: _patch(
            [PATCH_RECORDS[0]]
            + [json.dumps({**each, "frame": len(data)}).encode() for each, data in zip(STEPS, frames, strict=True)],
            frames,
        )
    ),
    st.booleans(),
)


@contextmanager
def patches() -> Iterator[Read]:
    """Yield a function that applies a patch: the last one, or one that another follows."""
    with tempfile.TemporaryDirectory() as directory:
        reference, first, last, file = (Path(directory, name) for name in ("old", "patch", "last", "file"))
        reference.write_bytes(OLD)
        last.write_bytes(LAST_PATCH)

        def read(example: tuple[bytes, bool]) -> None:
            data, alone = example
            first.write_bytes(data)
            chain, sizes, made = ([first], [len(NEW)], NEW) if alone else ([first, last], [len(NEW), len(LAST)], LAST)
            sha256 = hashlib.sha256(made).hexdigest()
            try:
                apply_chain(reference, chain, file, sizes=sizes, sha256=sha256)
                assert file.read_bytes() == made
                file.unlink()
            finally:
                assert {path.name for path in Path(directory).iterdir()} == {"old", "patch", "last"}

        yield read


@contextmanager
def directory_record() -> Iterator[Read]:
    """Yield a function that reads an object in a directory with this record of its metadata."""
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:
        root, key = Path(directory), MANIFEST.key
        record = root / ".akosha" / "metadata" / f"{key}.json"
        for path in (root / key, record):
            path.parent.mkdir(parents=True)
        (root / key).write_bytes(b"12345")
        store = DirectoryStore(root)

        def read(data: bytes) -> None:
            record.write_bytes(data)
            found = runner.run(store.head(key))
            assert found == StoredObject(key, 5, found.metadata)
            assert all(isinstance(text, str) for pair in found.metadata.items() for text in pair)

        yield read


@contextmanager
def journal() -> Iterator[Read]:
    """Yield a function that reads the journal of a killed restore."""
    with tempfile.TemporaryDirectory() as directory:
        folder = os.open(directory, os.O_RDONLY)
        scratch = Scratch(Path(directory), folder, MANIFEST.upload_id, make=True)
        try:

            def read(data: bytes) -> None:
                (scratch.path / JOURNAL).write_bytes(data)
                assert Journal.read(scratch) is not None

            yield read
        finally:
            scratch.close()
            os.close(folder)


MOVE = {
    "source": "raw/reflection.duckdb",
    "to": "reflection.duckdb",
    "look": {"inode": 1, "size": 2, "mtime_ns": 3, "regular": True},
}
RECORDS = json_near({"size": 5, "metadata": {"sha256": "a"}})
JOURNALS = json_near({
    "placements": [{"database": "reflection", "new": [MOVE], "old": [MOVE]}],
    "report": {"system_id": SYSTEM, "databases": []},
})  # fmt: skip

TARGETS = (
    Target("manifest", json_near(json.loads(MANIFEST.encode())), opened=manifest, errors=(WireError,), in_tests=200),
    Target("listing", OBJECTS, opened=listing, errors=(NamingError,), in_tests=60),
    Target("owner", OWNERS, read_owner, (WireError,), names=r"owner\.json", in_tests=150),
    Target("memories", MEMORIES, opened=memories, errors=(WireError,), names=r"memories\.json, line \d"),
    Target("stored object", PIECES, opened=stored_object, errors=(WireError,), names="object", in_tests=40),
    Target("patch", PATCHES, opened=patches, errors=(WireError,), names="patch", in_tests=100),
    Target("directory record", RECORDS, opened=directory_record, in_tests=60),
    Target("restore journal", JOURNALS, opened=journal, errors=(WireError,), names=r"journal\.json"),
)
