"""Targets: what is read from a database: its files, what DuckDB finds in them, the child's answers, and the rows."""

import asyncio
import functools
import json
import os
import shutil
import struct
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, aclosing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC
from itertools import pairwise
from pathlib import Path
from unittest import mock
from zoneinfo import ZoneInfo

import duckdb
from hypothesis import strategies as st

from agent.adapters import memories_file
from agent.adapters.akosha.sink import pack
from agent.adapters.child_output import BEAT, framed
from agent.adapters.duckdb import DuckdbMemoryReader, DuckdbWalMerger, WarmChild, bracketed_copy, child_process
from agent.adapters.duckdb.bracketed_copy import DatabaseCopy, copy_database
from agent.adapters.duckdb.database_facts import examine
from agent.adapters.duckdb.rows import digest, instant, row_of
from agent.adapters.duckdb.source import HEADER_BYTES, Source, survey
from agent.adapters.duckdb.verification import verify
from agent.adapters.system_clock import SystemClock
from agent.domain.errors import SnapshotError
from agent.domain.manifest import Manifest
from agent.domain.memories import KINDS, Memory, RowState
from tests.fuzz import bucket
from tests.fuzz.documents import ODD_TEXTS, json_near, near_bytes
from tests.fuzz.target import Read, Target, never_refused
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.duckdb_child import EndedChild
from tests.support.memories import embedding
from tests.support.session_buddy import make
from tests.support.values import NOON, SYSTEM

DATABASE = "reflection"
MAIN, WAL = f"{DATABASE}.duckdb", f"{DATABASE}.duckdb.wal"
CLOCK = ManualClock(NOON)
SECONDS = 60

# ------------------------------------------------------------------------------------------ valid and damaged databases

VECTOR = "list_transform(range(384), lambda i: i / 384.0)::FLOAT[384]"
STATEMENTS = (
    f"INSERT INTO conversations_v2(id, content, embedding, category) VALUES ('c1', 'text', {VECTOR}, 'general')",
    "INSERT INTO reflections_v2(id, content, tags) VALUES ('r1', 'text', ['a', 'b'])",
    """INSERT INTO kg_entities(id, name, entity_type, observations, properties)
       VALUES ('e1', 'name', 'tool', ['fast'], '{"a": [1.5]}')""",
    "INSERT INTO kg_relationships(id, from_entity, to_entity, relation_type) VALUES ('k1', 'e1', 'e1', 'uses')",
)
ROWS = {"conversations_v2": 1, "reflections_v2": 1, "kg_entities": 1, "kg_relationships": 1}
OPTIONS = {
    "checkpointed": "STORAGE_VERSION 'v1.0.0', BLOCK_SIZE 16384",
    "newer": "BLOCK_SIZE 16384",
    "encrypted": "BLOCK_SIZE 16384, ENCRYPTION_KEY 'key'",
}
IMAGES = (*OPTIONS, "with a WAL", "new")


@functools.cache
def image(name: str) -> dict[str, bytes]:
    """Return the files of a small database: file name -> bytes."""
    with tempfile.TemporaryDirectory() as directory, duckdb.connect(":memory:") as connection:
        source, main = Path(directory, "source.duckdb"), Path(directory, MAIN)
        make(source, *STATEMENTS)
        connection.execute("SET force_mbedtls_unsafe = true")  # without it, DuckDB encrypts with an extension only
        connection.execute(f"ATTACH '{source}' AS source")
        connection.execute(f"ATTACH '{main}' AS made ({OPTIONS.get(name, OPTIONS['checkpointed'])})")
        connection.execute("COPY FROM DATABASE source TO made")
        if name == "with a WAL":
            connection.execute("CHECKPOINT made")
            connection.execute("UPDATE made.conversations_v2 SET access_count = 5")
        elif name in OPTIONS:
            connection.execute("DETACH made")
        return {path.name: path.read_bytes() for path in (main, Path(directory, WAL)) if path.exists()}


@dataclass(frozen=True)
class Edit:
    """A change of a file: a word (64 bits) or the bits in a byte, or a shorter or longer file."""

    kind: str
    at: int
    value: int = 0

    def apply(self, data: bytes) -> bytes:
        at = self.at % (len(data) + 1)
        match self.kind:
            case "word":
                new = struct.pack("<Q", self.value)
            case "bits":
                new = bytes(byte ^ self.value for byte in data[at : at + 1])
            case "cut":
                return data[:at]
            case _:
                return data + bytes([self.value]) * self.at
        return data[:at] + new + data[at + len(new) :]


def edited(data: bytes, edits: list[Edit]) -> bytes:
    return functools.reduce(lambda changed, edit: edit.apply(changed), edits, data)


BLOCK_BYTES = 16_384


def with_checksums(data: bytes) -> bytes:
    """Return a main file with a valid checksum of each header and block, so that DuckDB reads what was edited."""
    changed = bytearray(data)
    starts = [0, 4096, 8192, *range(HEADER_BYTES, len(data), BLOCK_BYTES)]
    for start, end in pairwise([*starts, len(data)]):
        if end <= len(data) and end - start in (4096, BLOCK_BYTES):
            checksum = 5381
            for (word,) in struct.iter_unpack("<Q", data[start + 8 : end]):
                checksum ^= word * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
            struct.pack_into("<Q", changed, start, checksum)
    return bytes(changed)


HEADER_FIELDS = (0, 8, 12, *(block + 8 * word for block in (4096, 8192) for word in range(7)))
NUMBERS = (0, 1, 2, 63, 64, 68, 999, 4096, 16_384, 2**24, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = st.sampled_from(NUMBERS) | st.integers(0, 2**64 - 1)
SIZES = st.sampled_from([0, 1, 4096, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1]) | st.integers(0, 2**19)
EDITS = st.lists(
    st.one_of(
        st.builds(Edit, st.just("word"), st.sampled_from(HEADER_FIELDS), WORDS),
        st.builds(Edit, st.just("word"), st.integers(0, 2**19), WORDS),
        st.builds(Edit, st.just("bits"), st.integers(0, HEADER_BYTES) | st.integers(0, 2**19), st.integers(1, 255)),
        st.builds(Edit, st.just("cut"), SIZES),
        st.builds(Edit, st.just("longer"), SIZES, st.integers(0, 255)),
    ),
    max_size=4,
)

# ------------------------------------------------------------------------------------------------------------ the files

PLACES = ("file",) * 8 + ("directory", "pipe", "broken link", "link out", "unreadable link", "nothing")
CHANGES = ("nothing",) * 8 + ("replaced", "deleted", "a directory", "WAL replaced", "WAL deleted")


def put(path: Path, place: str, data: bytes) -> None:
    """Put a file with this content, or something else with its name, at a path."""
    remove(path)
    match place:
        case "file":
            path.write_bytes(data)
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "broken link":
            path.symlink_to("missing")
        case "link out":
            path.symlink_to("/etc/hostname")
        case "unreadable link":
            path.symlink_to(path.name)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Files:
    """The files of a database, and how they change each time that the agent compares them during a copy."""

    image: str
    main: list[Edit]
    wal: list[Edit]
    place: str
    place_of_wal: str
    changes: list[tuple[str, list[Edit]]]

    def put(self, folder: Path) -> None:
        files = image(self.image)
        put(folder / MAIN, self.place, edited(files[MAIN], self.main))
        if WAL in files:
            put(folder / WAL, self.place_of_wal, edited(files[WAL], self.wal))


FILES = st.builds(
    Files,
    st.sampled_from(IMAGES),
    EDITS,
    EDITS,
    st.sampled_from(PLACES),
    st.sampled_from(PLACES),
    st.just([]) | st.lists(st.tuples(st.sampled_from(CHANGES), EDITS), max_size=8),
)


@contextmanager
def database_files() -> Iterator[Read]:
    """Yield a function that surveys, examines and copies a database that changes meanwhile, and describes the copy."""
    with ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        use_manifest = stack.enter_context(bucket.manifest())
        stack.enter_context(mock.patch.object(bracketed_copy, "_PAUSE_SECONDS", (0.0, 0.0)))
        expect_same_files = bracketed_copy._expect_same_files

        def read(files: Files) -> None:
            folder, staging = (Path(tempfile.mkdtemp(dir=directory)) for _ in range(2))
            changes = iter(files.changes)
            seen = []

            def change(source, found) -> None:
                seen.append(contents(folder))
                what, edits = next(changes, ("nothing", []))
                _change(folder, what, edits)
                seen.append(contents(folder))
                expect_same_files(source, found)

            try:
                files.put(folder)
                with never_refused():
                    assert set(survey(folder)) == {fact.name for fact in examine(folder)}
                if (folder / MAIN).is_file():
                    DuckdbWalMerger.storage_version(folder / MAIN)
                with mock.patch.object(bracketed_copy, "_expect_same_files", change):
                    copied = copy_database(
                        Source(folder, DATABASE), staging / "copy", clock=CLOCK, seconds=0, halt=threading.Event()
                    )
                assert contents(staging / "copy") in seen, "the copy is a state that the database never had"
                use_manifest(manifest_of(copied))
            finally:
                shutil.rmtree(folder)
                shutil.rmtree(staging)

        yield read


def _change(folder: Path, what: str, edits: list[Edit]) -> None:
    main, wal = folder / MAIN, folder / WAL
    match what:
        case "deleted":
            remove(main)
        case "a directory":
            put(main, "directory", b"")
        case "WAL deleted":
            remove(wal)
        case "WAL replaced":
            put(wal, "file", edited(b"", edits))
        case _ if main.is_file():
            data = edited(main.read_bytes(), edits)
            if what == "replaced":
                remove(main)
            main.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def manifest_of(copied: DatabaseCopy) -> bytes:
    """Return the manifest of an upload of the copy."""
    manifest = values.manifest(20, **{DATABASE: 1})
    known = {part.name: part for part in manifest.parts}
    parts = tuple(
        replace(
            known[file.name],
            raw_size=file.size,
            sha256=file.sha256,
            header_iteration=copied.header.iteration,
            storage_version=copied.header.version,
        )
        for file in copied.files
    )
    return replace(manifest, parts=parts).encode()


# ------------------------------------------------------------------------------------------------- what DuckDB reads


@contextmanager
def database() -> Iterator[Read]:
    """Yield a function that verifies a damaged database, reads its memories, and folds it, in child processes."""
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:

        async def use(folder: Path, example: tuple[str, list[Edit], list[Edit], bool]) -> None:
            name, *edits, repaired = example
            for (file, data), some in zip(image(name).items(), edits, strict=False):
                (folder / file).write_bytes(edited(data, some))
            main, warm = folder / MAIN, WarmChild(SystemClock())
            if repaired and name != "encrypted":
                main.write_bytes(with_checksums(main.read_bytes()))
            verdict = await verify(main, timeout_seconds=SECONDS, warm=warm)
            assert verdict.verified or verdict.reason
            assert not verdict.inconclusive, verdict.reason
            if not any(edits) and name != "encrypted":
                assert verdict.rows == ROWS
            read_all = never_refused() if verdict.verified else nullcontext()
            try:
                with read_all:
                    async for memory in memories_in(main, warm):
                        check_memory(memory)
            finally:
                await warm.end()
            assert sum((await DuckdbWalMerger().fold(main)).values()) == sum(verdict.rows.values())

        def read(example: tuple[str, list[Edit], list[Edit], bool]) -> None:
            folder = Path(tempfile.mkdtemp(dir=directory))
            try:
                runner.run(use(folder, example))
            finally:
                shutil.rmtree(folder)

        yield read


async def memories_in(main: Path, warm: WarmChild | None = None) -> AsyncIterator[Memory]:
    async with (
        DuckdbMemoryReader(warm=warm).open(main, DATABASE, zone=UTC) as source,
        aclosing(source.pages()) as pages,
    ):
        async for page in pages:
            async for memory in source.read(page):
                yield memory


@never_refused()
def check_memory(memory: Memory) -> None:
    """Assert that a memory can be written to memories.json, and packed for Akosha."""
    assert memories_file.decode(memories_file.encode(memory, SYSTEM), SYSTEM) == memory
    json.loads(pack(memory, SYSTEM).body)


DATABASES = st.tuples(st.sampled_from(IMAGES), EDITS, EDITS, st.booleans())

# -------------------------------------------------------------------------------------------------- the child's answers

PAGE = [["conversation", "c1", "a" * 32, True, 4], ["reflection", "r1", "b" * 32, False, 4]]
MEMORIES = [["text", embedding(), "2026-03-01T12:00:00", {"project": "akosha"}], ["text", None, None, {}]]
ANSWERS = {
    "verify": [{"verdict": {"rows": ROWS, "unread": {"kg_entities.name": "unknown type"}}}],
    "fold": [{"folded": {"rows": ROWS}}],
    "read": [{"tables": 2}, {"started": True}, {"page": PAGE}, {"rows": MEMORIES}, {"page": []}, {"page": None}],
}


@st.composite
def _answers(draw: st.DrawFn, command: str) -> tuple[str, bytes, int]:
    """Return a command, the output of a child for it with one odd answer, and the child's exit status."""
    documents = ANSWERS[command]
    odd = draw(st.integers(0, len(documents) - 1))
    frames = [framed(json.dumps(document).encode()) for document in documents]
    frames[odd] = draw(
        json_near(documents[odd], {"error": "damaged"}, {"verdict": {"error": "x", "damaged": True}}).map(framed)
        | near_bytes(frames[odd], odd=(BEAT, b"\xff\xff\xff\xff"))
    )
    return command, b"".join(frames), draw(st.sampled_from([0, 3, -6, -9, -11, -15, -35, -64]))


@contextmanager
def answers() -> Iterator[Read]:
    """Yield a function that sends a command to a child with this output."""
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:
        main = Path(directory, MAIN)
        main.write_bytes(image("checkpointed")[MAIN])

        async def use(command: str, output: bytes, status: int) -> None:
            start = mock.AsyncMock(return_value=EndedChild(output, status))
            with mock.patch.object(child_process, "start", start):
                match command:
                    case "verify":
                        verdict = await verify(main, timeout_seconds=SECONDS)
                        assert verdict.verified or verdict.reason
                        with never_refused():
                            Manifest.decode(replace(bucket.MANIFEST, rows={DATABASE: verdict.rows}).encode())
                    case "fold":
                        rows = await DuckdbWalMerger().fold(main)
                        with never_refused():
                            Manifest.decode(replace(bucket.MANIFEST, rows={DATABASE: rows}).encode())
                    case _:
                        assert all([memory.row.kind in KINDS async for memory in memories_in(main)])

        yield lambda example: runner.run(use(*example))


# ----------------------------------------------------------------------------------------------------------------- rows

COLUMNS = (
    "id", "content", "project", "session_id", "category", "namespace", "source_type", "conversation_id",
    "insight_type", "tags", "name", "entity_type", "observations", "properties", "from_entity", "to_entity",
    "relation_type", "timestamp", "created_at",
)  # fmt: skip
CELLS = (
    ODD_TEXTS.map(lambda text: text.encode("utf-8", "replace").decode())
    | json_near(["a", "b"], {"a": [1.5, {"b": None}]}).map(lambda data: data.decode("utf-8", "replace")[:5000])
    | st.sampled_from(["infinity", "-infinity", "290309-12-22 (BC) 00:00:00", "294247-01-10 04:00:54.775806"])
    | st.datetimes().map(str)
)
ROW = st.tuples(
    st.sampled_from(KINDS),
    st.dictionaries(st.sampled_from(COLUMNS), CELLS, max_size=len(COLUMNS)),
    st.sampled_from(["", "work"]),
    st.dictionaries(st.just("e1") | ODD_TEXTS, CELLS, max_size=2),
    st.sampled_from(["UTC", "Europe/Vienna", "Africa/Monrovia", "Pacific/Apia", "Asia/Kathmandu"]),
)


def read_row(example) -> None:
    """A row is a memory that can be sent, or none. Its digest does not depend on the order of its columns."""
    kind, cells, graph, names, zone = example
    present = {column: text for column, text in cells.items() if text}
    row = row_of(kind, present, graph=graph, names=names)
    if row is None:
        return
    found = digest(row, embedded=True)
    again = row_of(kind, dict(reversed(present.items())), graph=graph, names=names)
    assert again == row
    assert digest(again, embedded=True) == found
    state = RowState(database=DATABASE, kind=kind, id=row.id, digest=found, embedded=True)
    at = instant(row.time, ZoneInfo(zone))
    check_memory(Memory(row=state, text=row.text, embedding=embedding(), created_at=at, metadata=row.metadata))


TARGETS = (
    Target("database files", FILES, opened=database_files, errors=(SnapshotError,), names=DATABASE, in_tests=60),
    Target("database", DATABASES, opened=database, errors=(SnapshotError,), names=f"DuckDB|{DATABASE}", in_tests=3),
    Target(
        "child answers", st.sampled_from(sorted(ANSWERS)).flatmap(_answers), opened=answers, errors=(SnapshotError,),
        names="DuckDB|reader", in_tests=60,
    ),
    Target("row", ROW, read_row, in_tests=60),
)  # fmt: skip
