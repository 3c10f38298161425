"""Uploads in a directory that link unchanged objects: space, pruning, verification, and the restore of each."""

import os
import subprocess

import pytest

from tests.support.machine import Machine

GRAPH = "knowledge_graph.duckdb"


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path, agent_prune=False)
    made.write(commits=8, entities=400)
    return made


def upload(machine, count):
    """Make uploads in which knowledge_graph.duckdb does not change; return its files."""
    first = len(machine.manifests)
    for number in range(first, first + count):
        machine.write(commits=8 + number)
        machine.sync()
    return [machine.bucket / part["key"] for m in machine.manifests for part in m["parts"] if part["name"] == GRAPH]


def restored(machine, upload_id, to):
    done = machine.call("restore", upload_id, "--to", str(to), "--json")
    return done.code, (to / GRAPH).read_bytes() if done.code == 0 else done.err


def test_six_uploads_take_two_copies_of_what_does_not_change_and_each_is_restored(machine, tmp_path):
    graphs = upload(machine, 6)
    assert len({path.stat().st_ino for path in graphs}) == 2
    sizes = [part["stored_size"] for m in machine.manifests for part in m["parts"] if part["name"] != GRAPH]
    memories = [m["memories"]["size"] for m in machine.manifests if m["memories"]]
    du = subprocess.run(["du", "-s", "-B1", machine.bucket / "systems"], capture_output=True, check=True).stdout
    blocks = 6 * 8 * 4096  # rounding of each file and directory
    assert int(du.split()[0]) < 2.2 * graphs[0].stat().st_size + sum(sizes) + sum(memories) + blocks

    keep = ("--keep-last", "3", "--keep-daily", "0", "--keep-weekly", "0", "--keep-monthly", "0")
    pruned = machine.call("prune", "--json", *keep)
    assert pruned.code == 0, pruned.err
    left = [path for path in graphs if path.exists()]
    assert len(left) == 3
    assert len({path.stat().st_ino for path in left}) == 2
    assert machine.call("verify", "--all").code == 0
    assert machine.call("verify", "--deep").code == 0
    raw = (machine.data / GRAPH).read_bytes()
    for manifest in machine.manifests:
        assert restored(machine, manifest["upload_id"], tmp_path / manifest["upload_id"]) == (0, raw)


def test_a_bit_flipped_in_one_file_damages_the_uploads_that_link_it_and_no_others(machine, tmp_path):
    graphs = upload(machine, 5)
    data = bytearray(graphs[3].read_bytes())
    data[len(data) // 2] ^= 1
    graphs[3].write_bytes(data)
    damaged = {path.parent.name for path in graphs if path.samefile(graphs[3])}
    assert len(damaged) == 3
    shown = machine.call("verify", "--all", "--json")
    assert shown.code == 1
    raw = (machine.data / GRAPH).read_bytes()
    for manifest in machine.manifests:
        code, found = restored(machine, manifest["upload_id"], tmp_path / manifest["upload_id"])
        assert (code == 0) == (manifest["upload_id"] not in damaged)
        assert code or found == raw
    newer = upload(machine, 2)[5:]
    for path in newer:
        assert path.parent.name not in damaged
        assert restored(machine, path.parent.name, tmp_path / path.parent.name) == (0, raw)


def test_a_damaged_only_copy_is_sent_again(machine, tmp_path):
    (graph,) = upload(machine, 1)
    data = bytearray(graph.read_bytes())
    data[100] ^= 1
    graph.write_bytes(data)
    _, newer = upload(machine, 1)
    origin = {part["name"]: part["origin"] for part in machine.manifests[-1]["parts"]}
    assert origin[GRAPH] == "sent"
    assert not newer.samefile(graph)
    code, raw = restored(machine, newer.parent.name, tmp_path / "to")
    assert (code, raw) == (0, (machine.data / GRAPH).read_bytes())


def test_uploads_are_dated_by_their_manifests_not_by_linked_objects(machine):
    """The time of a linked file is that of its first upload, here two years ago."""
    graphs = upload(machine, 2)
    for path in graphs:
        os.utime(path, (1_700_000_000, 1_700_000_000))
    upload(machine, 1)
    dated = {each["upload_id"]: each["time"] for each in machine.call("uploads", "--json").json["uploads"]}
    assert all(time > "2026" for time in dated.values())
    assert [*dated] == [manifest["upload_id"] for manifest in reversed(machine.manifests)]
    planned = machine.call("prune", "--dry-run", "--json").json
    assert (planned["deleted"], planned["leftovers"]) == ([], 0)
    assert [kept["upload_id"] for kept in planned["kept"]] == sorted(dated, reverse=True)
    assert "upload_id_ahead" not in machine.call("status", "--json").out
