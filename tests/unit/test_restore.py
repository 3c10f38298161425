"""What is restored of an upload, how old files are named, and that a kill between any two steps loses nothing."""

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
from agent.domain.manifest import Manifest, Part
from agent.domain.naming import object_key
from agent.domain.restore_plan import Restorable, Restored, aside_names, restorable

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


def test_a_name_that_the_upload_does_not_have_is_a_matter_of_usage():
    with pytest.raises(SettingsError, match="it has knowledge_graph, reflection"):
        restorable(ALL, only=["knowledge_graph_work"])


def test_sidecars_without_their_main_file_are_not_restored():
    with pytest.raises(RestoreError, match="but not its main file"):
        restorable(manifest(part("reflection.duckdb.wal")))


def test_an_upload_without_databases_is_reported():
    with pytest.raises(RestoreError, match="contains no database"):
        restorable(manifest())


def test_how_old_a_carried_part_is():
    (item,) = restorable(manifest(part("reflection.duckdb", origin="carried", carried_from="20261118_170000_laptop")))
    assert item.carried_age(UPLOAD).total_seconds() == 2 * 86400 + 3600


def test_old_files_keep_their_pair_and_are_no_database_for_anybody():
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
async def test_objects_are_unpacked_right_however_they_are_cut(tmp_path, monkeypatch, batch_bytes, member_bytes):
    monkeypatch.setattr("agent.adapters.gunzip.BATCH_BYTES", batch_bytes)
    raw = bytes(range(250)) * 3
    (tmp_path / "raw").write_bytes(raw)
    stored = b"".join([piece async for piece in GzipMembers(member_bytes=member_bytes).stream(tmp_path / "raw")])

    async def pieces(data):
        for start in range(0, len(data), 5):
            yield data[start : start + 5]

    recorded = {"compression": "gzip", "raw_size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    unpacker = Unpacker(tmp_path)
    await unpacker.unpack(pieces(stored), tmp_path / "whole", stored_size=len(stored), **recorded)
    assert (tmp_path / "whole").read_bytes() == raw
    for number, damaged in enumerate((stored[:-1], stored + b"x", stored[:20] + b"\0" + stored[21:])):
        with pytest.raises(WireError):
            await unpacker.unpack(pieces(damaged), tmp_path / f"{number}", stored_size=len(damaged), **recorded)


class Killed(BaseException):
    """Where a SIGKILL would strike."""


OLD = {"reflection.duckdb": b"old main", "reflection.duckdb.wal": b"old wal", "knowledge_graph.duckdb": b"old graph"}
NEW = {"reflection.duckdb": b"new main!", "reflection.duckdb.wal": b"new wal!!", "knowledge_graph.duckdb": b"new graph"}
CALLS = ("rename", "unlink", "mkdir", "fsync")


def items(raw):
    names = [("knowledge_graph.duckdb",), ("reflection.duckdb", "reflection.duckdb.wal")]
    return [
        (
            Restorable(database_of(those[0]), tuple(part(n, NEW[n]) for n in those), folds=False),
            len(those) > 1 and not raw,
        )
        for those in names
    ]


def nobody(_name, _folder):
    return None


REPORT = Restored(
    system_id="laptop", upload_id=UPLOAD, uploaded_at="", to="", databases=(), downloaded_bytes=0, duration_seconds=0
)


def ready(place, raw):
    """Bring all new files into the folder, as a restore does."""
    folder = place.begin(UPLOAD)
    for item, folded in items(raw):
        for each in item.parts:
            folder.incoming().write_bytes(NEW[each.name])
            folder.keep(each.name)
        if folded:
            (folder.begin_folding(item.names) / item.names[1]).unlink()
            folder.end_folding(item.main)


def put_in_place(place, raw):
    aside = place.aside_names([item.database for item, _ in items(raw)], AT)
    place.install(items(raw), aside, REPORT, force=True)


def states(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def is_whole(found):
    """Every main file has the sidecars that it had, wherever it is now; nothing of the old is lost."""
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
    """Return the work, which is not done any more as soon as `left` has come to 0."""

    def call(*args, **kwargs):
        if next(left) >= 0:
            raise Killed
        return work(*args, **kwargs)

    return call


@pytest.mark.parametrize("raw", [False, True], ids=["folded", "raw"])
def test_killed_between_any_two_steps_every_pair_is_whole_and_the_next_restore_finishes(tmp_path, monkeypatch, raw):
    kinds = {}
    for number in range(100):
        directory = tmp_path / str(number)
        directory.mkdir()
        for name, data in OLD.items():
            (directory / name).write_bytes(data)
        with RestoreDirectoryFiles(directory, nobody) as place, monkeypatch.context() as patch:
            ready(place, raw)
            left = itertools.count(-number)
            for call in CALLS:
                patch.setattr(f"agent.adapters.restore_directory.scratch.os.{call}", dying(left, getattr(os, call)))
            try:
                put_in_place(place, raw)
                survived = True
            except Killed:
                survived = False
        killed = states(directory)
        is_whole(killed)
        with RestoreDirectoryFiles(directory, nobody) as place:
            finished = place.finish()
            kinds[bool(finished)] = number
            if killed == OLD and not finished:  # it had not begun
                ready(place, raw)
                put_in_place(place, raw)
        found = states(directory)
        is_whole(found)
        expected = {name: data for name, data in NEW.items() if raw or name != "reflection.duckdb.wal"}
        assert {name: data for name, data in found.items() if "before" not in name} == expected
        assert len(found) == len(expected) + len(OLD)
        left_over = [path for path in directory.iterdir() if path.is_dir()]
        assert not any(list(path.iterdir()) for path in left_over)  # a folder that is empty, the next one sweeps
        if survived:
            break
    assert survived
    assert kinds.keys() == {True, False}


def test_what_somebody_has_written_since_a_kill_is_not_touched(tmp_path, monkeypatch):
    (tmp_path / "knowledge_graph.duckdb").write_bytes(b"old graph")
    with RestoreDirectoryFiles(tmp_path, nobody) as place, monkeypatch.context() as patch:
        ready(place, raw=False)

        def killed(*_):
            raise Killed

        patch.setattr("agent.adapters.restore_directory.directory.put_in_place", killed)
        with pytest.raises(Killed):
            put_in_place(place, raw=False)
    (tmp_path / "reflection.duckdb").write_bytes(b"a session began")
    with RestoreDirectoryFiles(tmp_path, nobody) as place:
        assert place.finish() == ()
        with pytest.raises(RestoreError, match=r"knowledge_graph\.duckdb, reflection\.duckdb"):
            place.check(["knowledge_graph", "reflection"], force=False)
    assert states(tmp_path) == {"knowledge_graph.duckdb": b"old graph", "reflection.duckdb": b"a session began"}


def test_two_restores_of_one_upload_do_not_work_in_the_same_folder(tmp_path):
    with RestoreDirectoryFiles(tmp_path, nobody) as one, RestoreDirectoryFiles(tmp_path, nobody) as other:
        one.begin(UPLOAD)
        with pytest.raises(RestoreError, match="another restore"):
            other.begin(UPLOAD)
        other.begin(UPLOAD.replace("2026", "2025"))
        assert len(list(tmp_path.iterdir())) == 2


def test_the_folders_of_other_uploads_are_removed_when_nobody_works_in_them(tmp_path):
    with RestoreDirectoryFiles(tmp_path, nobody) as place:
        ready(place, raw=True)
    with RestoreDirectoryFiles(tmp_path, nobody) as place:
        mine = place.begin(UPLOAD.replace("2026", "2025"))
        assert list(tmp_path.iterdir()) == [mine.path]


def test_a_file_that_has_come_is_believed_by_its_digest_alone(tmp_path):
    recorded = part("reflection.duckdb", NEW["reflection.duckdb"])
    with RestoreDirectoryFiles(tmp_path, nobody) as place:
        ready(place, raw=True)
    with RestoreDirectoryFiles(tmp_path, nobody) as place:
        folder = place.begin(UPLOAD)
        assert folder.has(recorded.name, recorded.raw_size, recorded.sha256)
        (folder.path / "raw" / recorded.name).write_bytes(b"New main!")
        assert not folder.has(recorded.name, recorded.raw_size, recorded.sha256)
        assert not (folder.path / "raw" / recorded.name).exists()


@pytest.mark.parametrize("inner", ["", "raw", "folded", "incoming", "journal.json", "raw/reflection.duckdb"])
def test_links_planted_where_a_restore_works_lead_nowhere(tmp_path, inner):
    outside, directory = tmp_path / "outside", tmp_path / "to"
    outside.mkdir()
    (outside / "file").write_bytes(b"theirs")
    planted = directory / f".akosha-restore-{UPLOAD}" / inner
    directory.mkdir()
    if inner:
        (directory / f".akosha-restore-{UPLOAD}").mkdir(mode=0o700)
        planted.parent.mkdir(exist_ok=True)
    planted.symlink_to(outside if inner in ("", "raw", "folded") else outside / "file")
    with RestoreDirectoryFiles(directory, nobody) as place:
        if not inner:
            with pytest.raises(RestoreError, match="not a usable directory"):
                place.begin(UPLOAD)
        else:
            ready(place, raw=False)
            put_in_place(place, raw=False)
            assert states(directory)["reflection.duckdb"] == NEW["reflection.duckdb"]
    assert states(outside) == {"file": b"theirs"}


def test_a_link_in_the_place_of_a_database_is_not_replaced_even_by_force(tmp_path):
    (tmp_path / "reflection.duckdb").symlink_to("/nonexistent")
    with RestoreDirectoryFiles(tmp_path, nobody) as place, pytest.raises(RestoreError, match="is not a regular file"):
        place.check(["reflection"], force=True)


def test_sidecars_of_another_main_file_are_in_the_way(tmp_path):
    (tmp_path / "reflection.duckdb.wal").write_bytes(b"of another")
    with (
        RestoreDirectoryFiles(tmp_path, nobody) as place,
        pytest.raises(RestoreError, match=r"of another reflection\.duckdb"),
    ):
        place.check(["reflection"], force=False)


def test_a_folder_that_others_may_write_to_is_not_worked_in(tmp_path):
    (tmp_path / f".akosha-restore-{UPLOAD}").mkdir()
    (tmp_path / f".akosha-restore-{UPLOAD}").chmod(0o777)
    with (
        RestoreDirectoryFiles(tmp_path, nobody) as place,
        pytest.raises(RestoreError, match="accessible to other users"),
    ):
        place.begin(UPLOAD)
