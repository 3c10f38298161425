"""The memories of an upload: the rows that the target lacks, and nothing of databases that cannot be read."""

import json
from datetime import UTC, timedelta, timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from agent.adapters import memories_file
from agent.adapters.memories_file import JsonMemoriesFile
from agent.application.memories.delta import MemoryDelta, zone_name
from agent.domain.databases import Fingerprint
from agent.domain.errors import SnapshotError, StagingFull
from agent.domain.upload_plan import RawFile
from agent.ports import Snapshot
from tests.support.memories import memory
from tests.support.memory_source import ListedMemories, ListedReader, digests, write_row_set
from tests.support.values import SYSTEM, TARGET, upload_id

UPLOAD = upload_id(20)
ZONE = ZoneInfo("Asia/Kolkata")


class FakeMemories:
    """The methods of a MemoryLedger that an upload calls. `has`: database -> rows; `based`: database -> base."""

    def __init__(self, *, has=(), based=()) -> None:
        self.has = {database: [each.row for each in memories] for database, memories in dict(has).items()}
        self.based = dict(based)
        self.staged: dict[str, set[str]] = {}

    async def known_rows(self, _target, database, file):
        if database in self.has:
            write_row_set(file, self.has[database])
        return database in self.has

    async def stage(self, _target, upload, database, file):
        assert upload == UPLOAD
        self.staged[database] = digests(file)

    async def unstage(self, _target):
        self.staged.clear()

    async def bases(self, _target):
        return self.based


def copy_of(database: str, unverified: str = "", size: int = 1_000_000) -> Snapshot:
    return Snapshot(
        database=database,
        folder=Path("/staged") / database,
        files=(RawFile(f"{database}.duckdb", size, "0" * 64, ()),),
        fingerprint=Fingerprint(()),
        header_iteration=1,
        verified=not unverified,
        unverified_reason=unverified,
    )


class Rig:
    def __init__(
        self, folder: Path, *, memories: FakeMemories | None = None, complete: bool = True, **databases
    ) -> None:
        self.memories, self.reader = memories or FakeMemories(), ListedReader(databases)
        self.folder, self.complete = folder, complete
        self.snapshots = {name: copy_of(name) for name in reversed(databases)}
        self.data = b""

    async def delta(self):
        made = MemoryDelta(
            target=TARGET,
            reader=self.reader,
            memories=self.memories,
            file=JsonMemoriesFile(self.folder, compression="none"),
            zone=lambda: ZONE,
            complete=self.complete,
        )
        async with made.of(self.snapshots, UPLOAD) as delta:
            if delta.draft is not None:
                self.data = b"".join([piece async for piece in delta.draft.stream()])
        assert list(self.folder.iterdir()) == [], "no temporary file is left"
        return delta

    @property
    def rows(self) -> list[str]:
        return [entry["metadata"]["original_id"] for entry in json.loads(self.data)["conversations"]]


def rows_of(count: int, kind: str = "conversation"):
    return [memory(number, kind=kind) for number in range(count)]


def digests_of(memories) -> set[str]:
    return {each.row.digest for each in memories}


async def test_a_database_without_a_base_has_no_rows_in_the_delta_and_all_its_rows_are_staged(tmp_path):
    reflection, graph = ListedMemories(rows_of(4)), rows_of(2, "entity")
    rig = Rig(tmp_path, complete=False, reflection=reflection, knowledge_graph=graph)
    delta = await rig.delta()
    assert (delta.part, delta.draft, delta.without) == (None, None, {})
    assert reflection.read_rows == 0
    assert rig.memories.staged == {"reflection": digests_of(rows_of(4)), "knowledge_graph": digests_of(graph)}


async def test_a_complete_delta_has_all_rows_of_a_database_without_a_base_one_database_after_another(tmp_path):
    reflection = [*rows_of(4), *rows_of(2, "reflection"), memory(9, embedded=False)]
    graph = [*rows_of(2, "entity"), *rows_of(1, "relationship")]
    rig = Rig(tmp_path, reflection=reflection, knowledge_graph=graph)
    delta = await rig.delta()
    assert rig.rows == [each.row.id for each in graph + reflection]
    assert rig.memories.staged == {"reflection": digests_of(reflection), "knowledge_graph": digests_of(graph)}
    assert delta.part.count == 10
    assert delta.part.bases == {"knowledge_graph": None, "reflection": None}
    assert delta.part.key == f"systems/{SYSTEM}/uploads/{UPLOAD}/memories.json"
    assert (delta.without, delta.time_zone) == ({}, "Asia/Kolkata")


async def test_the_main_files_of_the_copies_are_read_in_the_local_time_zone(tmp_path):
    rig = Rig(tmp_path, reflection=[])
    await rig.delta()
    assert rig.reader.opened == [(Path("/staged/reflection/reflection.duckdb"), "reflection", ZONE)]


@pytest.mark.parametrize("complete", [True, False])
async def test_only_missing_rows_are_read_and_the_base_is_named(tmp_path, complete):
    old, new, changed = rows_of(7), memory(7), memory(3, state="changed")
    source = ListedMemories([*old[:3], changed, *old[4:], new])
    rig = Rig(
        tmp_path,
        complete=complete,
        memories=FakeMemories(has={"reflection": old}, based={"reflection": upload_id(1), "deleted": upload_id(2)}),
        reflection=source,
    )
    delta = await rig.delta()
    assert rig.rows == [changed.row.id, new.row.id]
    assert source.read_rows == 2
    assert delta.part.bases == {"reflection": upload_id(1)}
    assert rig.memories.staged == {"reflection": digests_of([*old[:3], changed, *old[4:], new])}


async def test_without_new_rows_the_delta_is_empty_and_the_chain_continues(tmp_path):
    old = rows_of(4)
    memories = FakeMemories(has={"reflection": old}, based={"reflection": upload_id(1)})
    rig = Rig(tmp_path, complete=False, memories=memories, reflection=old)
    delta = await rig.delta()
    assert (delta.part.count, delta.part.bases) == (0, {"reflection": upload_id(1)})
    assert rig.rows == []


@pytest.mark.parametrize("complete", [True, False])
async def test_a_database_that_is_largely_new_is_left_out(tmp_path, complete):
    old, new = rows_of(4), [memory(number) for number in range(100, 110)]
    new_bytes = sum(len(each.text) + 4 * 384 for each in new)
    for size, left_out in ((2 * new_bytes, False), (2 * new_bytes - 1, True)):
        memories = FakeMemories(has={"reflection": old}, based={"reflection": upload_id(1)})
        rig = Rig(tmp_path, complete=complete, memories=memories, reflection=[*old, *new])
        rig.snapshots["reflection"] = copy_of("reflection", size=size)
        delta = await rig.delta()
        expected = None if left_out and not complete else {"reflection": upload_id(1)}
        assert (delta.part and delta.part.bases) == expected
        assert rig.memories.staged == {"reflection": digests_of([*old, *new])}


async def test_a_database_of_which_the_rows_are_unknown_has_no_base(tmp_path):
    rig = Rig(tmp_path, memories=FakeMemories(based={"reflection": upload_id(1)}), reflection=rows_of(2))
    delta = await rig.delta()
    assert (len(rig.rows), delta.part.bases) == (2, {"reflection": None})


@pytest.mark.parametrize("complete", [True, False])
async def test_rows_that_cannot_be_compared_are_not_staged(tmp_path, complete):
    source = ListedMemories(rows_of(4), comparable=False)
    memories = FakeMemories(has={"reflection": rows_of(4)}, based={"reflection": upload_id(1)})
    rig = Rig(tmp_path, complete=complete, memories=memories, reflection=source, knowledge_graph=[])
    delta = await rig.delta()
    assert rig.memories.staged == {"knowledge_graph": set()}
    assert source.read_rows == (4 if complete else 0)
    assert (delta.part and delta.part.bases) == ({"knowledge_graph": None, "reflection": None} if complete else None)


async def test_rows_that_can_neither_be_compared_nor_read_are_reported(tmp_path):
    source = ListedMemories(rows_of(4), comparable=False, fail_at=2)
    delta = await Rig(tmp_path, complete=False, reflection=source).delta()
    assert delta.without == {"reflection": "the rest cannot be read"}


async def test_an_unverified_copy_is_not_opened_and_the_reason_is_recorded(tmp_path):
    rig = Rig(tmp_path, reflection=rows_of(2), knowledge_graph=[])
    rig.snapshots["knowledge_graph"] = copy_of("knowledge_graph", "made by a newer DuckDB")
    delta = await rig.delta()
    assert [database for _, database, _ in rig.reader.opened] == ["reflection"]
    assert delta.part.bases == {"reflection": None}
    assert delta.without == {"knowledge_graph": "made by a newer DuckDB"}


@pytest.mark.parametrize("fail_at", [0, 4], ids=["at once", "half-way"])
async def test_an_unreadable_database_leaves_no_rows_in_the_delta(tmp_path, fail_at):
    graph, more, broken = rows_of(4, "entity"), rows_of(2, "reflection"), rows_of(9)
    rig = Rig(
        tmp_path,
        knowledge_graph=graph,
        knowledge_graph_x=ListedMemories(broken, fail_at=fail_at),
        reflection=more,
    )
    delta = await rig.delta()
    assert rig.rows == [each.row.id for each in graph + more]
    assert rig.memories.staged == {"knowledge_graph": digests_of(graph), "reflection": digests_of(more)}
    assert delta.part.bases == {"knowledge_graph": None, "reflection": None}
    assert delta.without == {"knowledge_graph_x": "the rest cannot be read"}


async def test_without_a_readable_database_there_is_no_file(tmp_path):
    error = SnapshotError("DuckDB crashed on it")
    rig = Rig(tmp_path, knowledge_graph=error, reflection=error)
    delta = await rig.delta()
    assert (delta.part, delta.draft, rig.memories.staged) == (None, None, {})
    assert delta.without == dict.fromkeys(("knowledge_graph", "reflection"), "DuckDB crashed on it")


async def test_a_row_that_cannot_be_encoded_excludes_only_its_database(tmp_path):
    rig = Rig(tmp_path, knowledge_graph=[memory(half="\ud800")], reflection=rows_of(2))
    delta = await rig.delta()
    assert list(delta.without) == ["knowledge_graph"]
    assert delta.part.bases == {"reflection": None}


async def test_on_a_full_disk_there_is_no_file(tmp_path, monkeypatch):
    def full(*_):
        raise StagingFull("no room for the memories")

    monkeypatch.setattr(memories_file.Draft, "_finish", full)
    rig = Rig(tmp_path, reflection=rows_of(1), knowledge_graph=[])
    delta = await rig.delta()
    assert (delta.part, rig.memories.staged) == (None, {})
    assert delta.without == dict.fromkeys(("knowledge_graph", "reflection"), "no room for the memories")


async def test_the_same_rows_give_the_same_bytes(tmp_path):
    """So the object need not be uploaded again."""
    rig = Rig(tmp_path, reflection=rows_of(2))
    rig.memories.staged["deleted"] = {"staged by an earlier attempt"}
    await rig.delta()
    data = rig.data
    await rig.delta()
    assert rig.data == data
    assert rig.memories.staged.keys() == {"reflection"}


async def test_an_error_of_the_upload_is_not_attributed_to_a_database(tmp_path):
    rig = Rig(tmp_path, reflection=rows_of(1))
    made = MemoryDelta(
        target=TARGET, reader=rig.reader, memories=rig.memories, file=JsonMemoriesFile(tmp_path), zone=lambda: UTC
    )
    with pytest.raises(SnapshotError, match="elsewhere"):
        async with made.of(rig.snapshots, UPLOAD):
            raise SnapshotError("elsewhere")
    assert list(tmp_path.iterdir()) == []
    assert len(rig.reader.opened) == 1


class UnnamedZone(tzinfo):
    def utcoffset(self, _):
        return None

    def __str__(self) -> str:
        return "unnamed"


@pytest.mark.parametrize(
    ("zone", "name"),
    [
        (ZONE, "Asia/Kolkata"),
        (ZoneInfo("UTC"), "UTC"),
        (UTC, "+00:00"),
        (timezone(timedelta(hours=-3, minutes=-30)), "-03:30"),
        (UnnamedZone(), ""),
    ],
    ids=str,
)
def test_a_zone_is_named_by_its_name_or_offset_or_not_at_all(zone, name):
    assert zone_name(zone) == name
