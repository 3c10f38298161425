"""Restoring: selection of databases, names of old files, unpacking, and kills between any two steps."""

import hashlib
import itertools
import os
from datetime import UTC, datetime

import pytest

from agent.adapters.gunzip import Unpacker
from agent.adapters.gzip_members import GzipMembers
from agent.adapters.restore_directory import RestoreDirectoryFiles
from agent.domain.databases import database_of
from agent.domain.errors import RestoreError, SettingsError, WireError
from agent.domain.manifest import Manifest
from agent.domain.naming import object_key
from agent.domain.restore_plan import Restorable, Restored, aside_names, restorable
from agent.domain.upload_parts import Part

UPLOAD = "20261120_180000_laptop"
AT = datetime(2026, 11, 21, 19, 30, tzinfo=UTC)


def part(name, raw=b"raw", **fields):
    return Part(
        **{
            "database": database_of(name),
            "name": name,
            "key": object_key("laptop", UPLOAD, name),
            "raw_size": len(raw),
            "stored_size": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
            "compression": "none",
            "origin": "sent",
            "verified": True,
            **fields,
        }
    )


def manifest(*parts):
    return Manifest(
        system_id="laptop",
        upload_id=UPLOAD,
        uploaded_at=AT,
        request_id="r",
        agent_id="a",
        triggered_by="manual",
        parts=parts,
    )


ALL = manifest(part("reflection.duckdb.wal"), part("reflection.duckdb"), part("knowledge_graph.duckdb"))


def test_databases_with_sidecars_are_folded_and_their_main_file_comes_first():
    graph, reflection = restorable(ALL)
    assert (graph.database, graph.folds, graph.names) == ("knowledge_graph", False, ("knowledge_graph.duckdb",))
    assert (reflection.folds, reflection.names) == (True, ("reflection.duckdb", "reflection.duckdb.wal"))
    assert not any(item.folds for item in restorable(ALL, raw=True))


@pytest.mark.parametrize("name", ["reflection", "reflection.duckdb", "reflection.duckdb.wal"])
def test_one_database_can_be_named_by_itself_or_by_its_files(name):
    assert [item.database for item in restorable(ALL, only=[name])] == ["reflection"]


def test_an_unknown_database_name_is_a_settings_error():
    with pytest.raises(SettingsError, match="it has knowledge_graph, reflection"):
        restorable(ALL, only=["knowledge_graph_work"])


def test_sidecars_without_their_main_file_are_not_restored():
    with pytest.raises(RestoreError, match="but not its main file"):
        restorable(manifest(part("reflection.duckdb.wal")))


def test_an_upload_without_databases_is_reported():
    with pytest.raises(RestoreError, match="contains no database"):
        restorable(manifest())


def test_the_age_of_a_carried_part_is_known():
    (item,) = restorable(manifest(part("reflection.duckdb", origin="carried", carried_from="20261118_170000_laptop")))
    assert item.carried_age(UPLOAD).total_seconds() == 2 * 86400 + 3600


def test_old_files_stay_paired_and_are_not_databases():
    found = aside_names(["reflection.duckdb", "reflection.duckdb.wal"], [], AT)
    assert found == {
        "reflection.duckdb": "reflection.duckdb.before-restore-20261121T193000Z",
        "reflection.duckdb.wal": "reflection.duckdb.before-restore-20261121T193000Z.wal",
    }
    assert not any(map(database_of, found.values()))
    again = aside_names(["reflection.duckdb"], found.values(), AT)
    assert again == {"reflection.duckdb": "reflection.duckdb.before-restore-20261121T193000Z-2"}


@pytest.mark.parametrize("member_bytes", [100, 2**20])
@pytest.mark.parametrize("batch_bytes", [1, 7])
async def test_objects_are_unpacked_correctly_for_any_chunk_sizes(tmp_path, monkeypatch, batch_bytes, member_bytes):
    monkeypatch.setattr("agent.adapters.gunzip.BATCH_BYTES", batch_bytes)
    raw = bytes(range(250)) * 3
    (tmp_path / "raw").write_bytes(raw)
    stored = b"".join([piece async for piece in GzipMembers(member_bytes=member_bytes).stream(tmp_path / "raw")])

    async def pieces(data):
        for start in range(0, len(data), 5):
            yield data[start : start + 5]

    recorded = {"compression": "gzip", "raw_size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    unpacker = Unpacker(tmp_path)
    await unpacker.unpack(pieces(stored), tmp_path / "unpacked", stored_size=len(stored), **recorded)
    assert (tmp_path / "unpacked").read_bytes() == raw
    for number, damaged in enumerate((stored[:-1], stored + b"x", stored[:20] + b"\0" + stored[21:])):
        with pytest.raises(WireError):
            await unpacker.unpack(pieces(damaged), tmp_path / f"{number}", stored_size=len(damaged), **recorded)


class Killed(BaseException):
    """Stands for a SIGKILL of the process."""


OLD = {"reflection.duckdb": b"old main", "reflection.duckdb.wal": b"old wal", "knowledge_graph.duckdb": b"old graph"}
NEW = {"reflection.duckdb": b"new main!", "reflection.duckdb.wal": b"new wal!!", "knowledge_graph.duckdb": b"new graph"}
CALLS = ("rename", "unlink", "mkdir", "fsync")


def items(raw):
    names = [("knowledge_graph.duckdb",), ("reflection.duckdb", "reflection.duckdb.wal")]
    return [
        (
            Restorable(database_of(file_names[0]), tuple(part(n, NEW[n]) for n in file_names), folds=False),
            len(file_names) > 1 and not raw,
        )
        for file_names in names
    ]


def no_writer(_name, _folder):
    return None


REPORT = Restored(
    system_id="laptop", upload_id=UPLOAD, uploaded_at="", to="", databases=(), downloaded_bytes=0, duration_seconds=0
)


def prepare(directory_files, raw):
    """Put all new files into the restore folder, like a restore."""
    folder = directory_files.begin(UPLOAD)
    for item, folded in items(raw):
        for each in item.parts:
            folder.incoming().write_bytes(NEW[each.name])
            folder.keep(each.name)
        if folded:
            (folder.begin_folding(item.names) / item.names[1]).unlink()
            folder.end_folding(item.main)


def install(directory_files, raw):
    aside = directory_files.aside_names([item.database for item, _ in items(raw)], AT)
    directory_files.install(items(raw), aside, REPORT, force=True)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def check_pairs(found):
    """Assert that every main file still has its own sidecar under any name, and that no old file is lost."""
    main, wal = found.get("reflection.duckdb"), found.get("reflection.duckdb.wal")
    if main == OLD["reflection.duckdb"]:
        assert wal == OLD["reflection.duckdb.wal"]
    else:
        [aside] = [name for name in found if name.startswith("reflection.duckdb.before") and not name.endswith(".wal")]
        assert (found[aside], found[f"{aside}.wal"]) == (b"old main", b"old wal")
    if main == NEW["reflection.duckdb"]:
        assert wal in (None, NEW["reflection.duckdb.wal"])
    assert OLD["knowledge_graph.duckdb"] in found.values()


def dying(left, work):
    """Return `work` wrapped so that it raises `Killed` as soon as `left` has reached 0."""

    def call(*args, **kwargs):
        if next(left) >= 0:
            raise Killed
        return work(*args, **kwargs)

    return call


@pytest.mark.parametrize("raw", [False, True], ids=["folded", "raw"])
def test_after_a_kill_between_any_steps_pairs_are_complete_and_the_next_restore_finishes(tmp_path, monkeypatch, raw):
    monkeypatch.setattr("os.fsync", lambda _descriptor: None)  # a killed process loses no written bytes
    kinds = {}
    for number in range(100):
        directory = tmp_path / str(number)
        directory.mkdir()
        for name, data in OLD.items():
            (directory / name).write_bytes(data)
        with RestoreDirectoryFiles(directory, no_writer) as directory_files, monkeypatch.context() as patch:
            prepare(directory_files, raw)
            left = itertools.count(-number)
            for call in CALLS:
                patch.setattr(f"agent.adapters.restore_directory.scratch.os.{call}", dying(left, getattr(os, call)))
            try:
                install(directory_files, raw)
                survived = True
            except Killed:
                survived = False
        killed = contents(directory)
        check_pairs(killed)
        with RestoreDirectoryFiles(directory, no_writer) as directory_files:
            finished = directory_files.finish()
            kinds[bool(finished)] = number
            if killed == OLD and not finished:  # the installation had not started
                prepare(directory_files, raw)
                install(directory_files, raw)
        found = contents(directory)
        check_pairs(found)
        expected = {name: data for name, data in NEW.items() if raw or name != "reflection.duckdb.wal"}
        assert {name: data for name, data in found.items() if "before" not in name} == expected
        assert len(found) == len(expected) + len(OLD)
        leftover = [path for path in directory.iterdir() if path.is_dir()]
        assert not any(list(path.iterdir()) for path in leftover)  # the next restore removes an empty folder
        if survived:
            break
    assert survived
    assert kinds.keys() == {True, False}


def test_files_written_since_a_kill_are_not_changed(tmp_path, monkeypatch):
    (tmp_path / "knowledge_graph.duckdb").write_bytes(b"old graph")
    with RestoreDirectoryFiles(tmp_path, no_writer) as directory_files, monkeypatch.context() as patch:
        prepare(directory_files, raw=False)

        def killed(*_):
            raise Killed

        patch.setattr("agent.adapters.restore_directory.directory.put_in_place", killed)
        with pytest.raises(Killed):
            install(directory_files, raw=False)
    (tmp_path / "reflection.duckdb").write_bytes(b"a new session")
    with RestoreDirectoryFiles(tmp_path, no_writer) as directory_files:
        assert directory_files.finish() == ()
        with pytest.raises(RestoreError, match=r"knowledge_graph\.duckdb, reflection\.duckdb"):
            directory_files.check(["knowledge_graph", "reflection"], force=False)
    assert contents(tmp_path) == {"knowledge_graph.duckdb": b"old graph", "reflection.duckdb": b"a new session"}


@pytest.mark.parametrize(
    "journal",
    [
        b"", b"{", b"[]", b"[" * 100_000, b'{"placements": 5, "report": {}}', b'{"placements": [5], "report": {}}',
        b'{"placements": [{"database": "reflection", "new": 5, "old": []}], "report": {}}',
    ],
    ids=range(7),
)  # fmt: skip
def test_a_damaged_journal_is_ignored_and_the_upload_is_restored_again(tmp_path, journal):
    folder = tmp_path / f".akosha-restore-{UPLOAD}"
    folder.mkdir(mode=0o700)
    (folder / "journal.json").write_bytes(journal)
    with RestoreDirectoryFiles(tmp_path, no_writer) as directory_files:
        assert directory_files.finish() == ()
        prepare(directory_files, raw=False)
        install(directory_files, raw=False)
    assert contents(tmp_path)["reflection.duckdb"] == NEW["reflection.duckdb"]


def test_a_second_restore_of_the_same_upload_is_refused(tmp_path):
    with RestoreDirectoryFiles(tmp_path, no_writer) as one, RestoreDirectoryFiles(tmp_path, no_writer) as other:
        one.begin(UPLOAD)
        with pytest.raises(RestoreError, match="another restore"):
            other.begin(UPLOAD)
        other.begin(UPLOAD.replace("2026", "2025"))
        assert len(list(tmp_path.iterdir())) == 2


def test_unused_folders_of_other_uploads_are_removed(tmp_path):
    with RestoreDirectoryFiles(tmp_path, no_writer) as directory_files:
        prepare(directory_files, raw=True)
    with RestoreDirectoryFiles(tmp_path, no_writer) as directory_files:
        folder = directory_files.begin(UPLOAD.replace("2026", "2025"))
        assert list(tmp_path.iterdir()) == [folder.path]


def test_a_downloaded_file_is_reused_only_if_its_digest_matches(tmp_path):
    recorded = part("reflection.duckdb", NEW["reflection.duckdb"])
    with RestoreDirectoryFiles(tmp_path, no_writer) as directory_files:
        prepare(directory_files, raw=True)
    with RestoreDirectoryFiles(tmp_path, no_writer) as directory_files:
        folder = directory_files.begin(UPLOAD)
        assert folder.has(recorded.name, recorded.raw_size, recorded.sha256)
        (folder.path / "raw" / recorded.name).write_bytes(b"New main!")
        assert not folder.has(recorded.name, recorded.raw_size, recorded.sha256)
        assert not (folder.path / "raw" / recorded.name).exists()


@pytest.mark.parametrize("inner", ["", "raw", "folded", "incoming", "journal.json", "raw/reflection.duckdb"])
def test_planted_links_in_the_restore_folder_are_not_followed(tmp_path, inner):
    outside, directory = tmp_path / "outside", tmp_path / "to"
    outside.mkdir()
    (outside / "file").write_bytes(b"foreign")
    planted = directory / f".akosha-restore-{UPLOAD}" / inner
    directory.mkdir()
    if inner:
        (directory / f".akosha-restore-{UPLOAD}").mkdir(mode=0o700)
        planted.parent.mkdir(exist_ok=True)
    planted.symlink_to(outside if inner in ("", "raw", "folded") else outside / "file")
    with RestoreDirectoryFiles(directory, no_writer) as directory_files:
        if not inner:
            with pytest.raises(RestoreError, match="not a usable directory"):
                directory_files.begin(UPLOAD)
        else:
            prepare(directory_files, raw=False)
            install(directory_files, raw=False)
            assert contents(directory)["reflection.duckdb"] == NEW["reflection.duckdb"]
    assert contents(outside) == {"file": b"foreign"}


def test_a_link_instead_of_a_database_is_not_replaced_even_with_force(tmp_path):
    (tmp_path / "reflection.duckdb").symlink_to("/nonexistent")
    with (
        RestoreDirectoryFiles(tmp_path, no_writer) as directory_files,
        pytest.raises(RestoreError, match="is not a regular file"),
    ):
        directory_files.check(["reflection"], force=True)


def test_sidecars_of_another_main_file_block_a_restore(tmp_path):
    (tmp_path / "reflection.duckdb.wal").write_bytes(b"of another")
    with (
        RestoreDirectoryFiles(tmp_path, no_writer) as directory_files,
        pytest.raises(RestoreError, match=r"of another reflection\.duckdb"),
    ):
        directory_files.check(["reflection"], force=False)


def test_a_folder_writable_by_others_is_refused(tmp_path):
    (tmp_path / f".akosha-restore-{UPLOAD}").mkdir()
    (tmp_path / f".akosha-restore-{UPLOAD}").chmod(0o777)
    with (
        RestoreDirectoryFiles(tmp_path, no_writer) as directory_files,
        pytest.raises(RestoreError, match="accessible to other users"),
    ):
        directory_files.begin(UPLOAD)
