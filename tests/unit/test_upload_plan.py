"""The plan of an upload is always complete; its multipart parts have one size."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings, strategies as st

from agent.domain import naming
from agent.domain.delivery_state import DatabaseRecord, State, TargetRecord
from agent.domain.upload_parts import Layer, Part, is_read_by_name, relocate
from agent.domain.upload_plan import (
    MAX_PARTS,
    Patch,
    RawFile,
    Reuse,
    Send,
    is_worth_continuing,
    largest_patch,
    layers_to_patch,
    part_bytes,
    patched_layers,
    plan,
    references,
)
from tests.support.values import SYSTEM, TARGET, parts, patched_part, sha256, upload_id

MIB = 2**20


def delivered(**generations: int) -> TargetRecord:
    databases = {name: DatabaseRecord(name, State.OWED, None, parts(name, at)) for name, at in generations.items()}
    return TargetRecord(target=TARGET, known=True, databases=databases)


def snapshot(database: str, generation: int = 0, *, sidecar: bool = True) -> tuple[RawFile, ...]:
    files = tuple(RawFile(part.name, part.raw_size, part.sha256, ()) for part in parts(database, generation))
    return files if sidecar else files[:1]


def planned(staged, record, *, carried=(), compression="gzip", deduplicate=True, patches=()):
    return plan(staged, record, carried=carried, compression=compression, deduplicate=deduplicate, patches=patches)


def file_name(step: Send | Reuse) -> str:
    return step.file.name if isinstance(step, Send) else step.part.name


def test_the_first_upload_sends_everything():
    steps = planned({"reflection": snapshot("reflection")}, TargetRecord(target=TARGET))
    assert steps == tuple(Send("reflection", file) for file in snapshot("reflection"))


def test_an_unchanged_file_is_reused_and_a_changed_one_sent():
    main, sidecar = snapshot("reflection", 0)
    newer = replace(sidecar, sha256=sha256("newer"))
    steps = planned({"reflection": (main, newer)}, delivered(reflection=0))
    assert steps == (Reuse(parts("reflection", 0)[0], carried=False), Send("reflection", newer))


def test_a_deleted_sidecar_is_not_in_the_upload():
    steps = planned({"reflection": snapshot("reflection", 0, sidecar=False)}, delivered(reflection=0))
    assert [file_name(step) for step in steps] == ["reflection.duckdb"]


def test_without_deduplication_staged_databases_are_sent_and_others_reused():
    steps = planned(
        {"reflection": snapshot("reflection")}, delivered(reflection=0, knowledge_graph=0), deduplicate=False
    )
    assert [type(step) for step in steps] == [Reuse, Reuse, Send, Send]


def test_another_compression_setting_sends_the_file_again():
    steps = planned({"reflection": snapshot("reflection")}, delivered(reflection=0), compression="none")
    assert all(isinstance(step, Send) for step in steps)


@pytest.mark.parametrize("change", [{"size": 5}, {"sha256": sha256("x")}, {"name": "reflection.duckdb.recovery.wal"}])
def test_only_an_identical_file_is_reused(change):
    (main,) = snapshot("reflection", 0, sidecar=False)
    (step,) = planned({"reflection": (replace(main, **change),)}, delivered(reflection=0))
    assert isinstance(step, Send)


def test_databases_that_could_not_be_copied_are_carried_and_unchanged_ones_reused():
    steps = planned({}, delivered(reflection=0, knowledge_graph=0), carried={"reflection"})
    assert {(step.part.database, step.carried) for step in steps} == {("reflection", True), ("knowledge_graph", False)}


def whole(**change) -> Part:
    (main, _) = parts("reflection", 0)
    return replace(main, **({"raw_size": 50 * MIB, "stored_size": 40 * MIB} | change))


def patch_of(generation: int, layers: Sequence[Layer]) -> Patch:
    file = RawFile("reflection.duckdb", 51 * MIB, sha256(f"reflection.duckdb {generation}"), ())
    return Patch("reflection", file, tuple(layers), RawFile("reflection.duckdb.patch", 4 * MIB, sha256("patch"), ()))


def test_a_large_file_that_was_sent_whole_is_the_base_of_the_next_patch():
    ((base,),) = layers_to_patch(whole(), upload_id(5))
    assert (base.key, base.file_sha256, base.upload_id) == (whole().key, whole().sha256, upload_id(5))


@pytest.mark.parametrize("part", [whole(stored_size=8 * MIB - 1), patched_part([0, 1], base_bytes=8 * MIB - 1)])
def test_a_small_file_is_sent_whole(part):
    assert layers_to_patch(part, upload_id(5)) == ()


def test_a_patch_continues_the_chain_or_starts_from_the_base_if_the_last_state_is_lost():
    part = patched_part([0, 1, 2])
    assert layers_to_patch(part, upload_id(5)) == (part.layers, part.layers[:1])


def test_a_chain_of_ten_patches_or_with_more_bytes_than_its_base_is_replaced_by_one_patch_on_the_base():
    longest = patched_part(range(11), patch_bytes=MIB)
    assert layers_to_patch(longest, upload_id(5)) == (longest.layers[:1],)
    heavy = patched_part([0, 1, 2], patch_bytes=21 * MIB)
    assert layers_to_patch(heavy, upload_id(5)) == (heavy.layers[:1],)


def test_a_base_of_more_than_a_month_is_not_patched():
    month = 30 * 24 * 3600
    assert layers_to_patch(patched_part([0, 1]), upload_id(month))
    assert layers_to_patch(patched_part([0, 1]), upload_id(month + 1)) == ()


def test_a_patch_may_refer_to_the_delivered_file_and_its_base():
    part = patched_part([0, 1, 2])
    assert references(part) == {part.sha256, part.layers[0].file_sha256}
    assert references(whole()) == {whole().sha256}
    assert references(whole(stored_size=8 * MIB - 1)) == frozenset()


def test_a_patch_pays_up_to_half_of_the_size_of_the_whole_file():
    base = patched_part([0, 1]).layers[0]
    assert largest_patch(base, RawFile("reflection.duckdb", 100 * MIB, sha256("x"), ())) == 40 * MIB


def test_a_patched_file_is_planned_as_its_patch_and_reused_with_its_layers():
    part = patched_part([0, 1])
    record = TargetRecord(
        target=TARGET, known=True, databases={"reflection": DatabaseRecord("reflection", State.OWED, None, (part,))}
    )
    patch = patch_of(2, part.layers)
    assert planned({"reflection": (patch.file,)}, record, patches=[patch]) == (patch,)
    same = RawFile(part.name, part.raw_size, part.sha256, ())
    assert planned({"reflection": (same,)}, record, patches=[patch]) == (Reuse(part, carried=False),)


def test_the_layers_of_a_new_upload_are_those_of_the_last_one_and_the_patch():
    part = patched_part([0, 1], second=3)
    step = patch_of(2, part.layers)
    layers = patched_layers(step, system_id=SYSTEM, upload_id=upload_id(9))
    assert [layer.key.rpartition("/")[2] for layer in layers] == [
        "reflection.duckdb.base",
        "reflection.duckdb.patch-01",
        "reflection.duckdb.patch-02",
    ]
    assert [layer.file_sha256 for layer in layers[:2]] == [layer.file_sha256 for layer in part.layers]
    assert (layers[-1].sha256, layers[-1].file_sha256) == (step.patch.sha256, step.file.sha256)
    assert layers[-1].upload_id == upload_id(9)
    assert all(naming.upload_of(layer.key) == upload_id(9) and not layer.etag for layer in layers)


databases = st.sampled_from(["reflection", "knowledge_graph", "knowledge_graph_work", "knowledge_graph_ä b"])
generations = st.dictionaries(databases, st.integers(0, 2), max_size=4)


@settings(max_examples=80)
@given(generations, generations, st.sets(databases), st.booleans(), st.sampled_from(["gzip", "none"]), st.booleans())
def test_a_plan_has_every_file_of_every_staged_and_every_delivered_database_exactly_once(
    now, before, carried, deduplicate, compression, sidecar
):
    staged = {name: snapshot(name, at, sidecar=sidecar) for name, at in now.items()}
    steps = planned(staged, delivered(**before), carried=carried, compression=compression, deduplicate=deduplicate)
    names = sorted(file_name(step) for step in steps)
    expected = [file.name for files in staged.values() for file in files]
    expected += [part.name for name, at in before.items() if name not in staged for part in parts(name, at)]
    assert names == sorted(expected)
    digests = {file.name: file.sha256 for files in staged.values() for file in files}
    for step in steps:
        if isinstance(step, Reuse) and step.part.database in staged:
            assert step.part.sha256 == digests[step.part.name]
            assert not step.carried


def test_a_relocated_part_differs_only_in_its_key_and_origin():
    (part, _) = parts("reflection", 1)
    relocated = relocate(part, system_id=SYSTEM, upload=upload_id(9), origin="carried", carried_from=upload_id(0))
    assert relocated.key == f"systems/{SYSTEM}/uploads/{upload_id(9)}/reflection.duckdb"
    assert replace(relocated, key=part.key, origin="sent", carried_from=None) == part


@pytest.mark.parametrize(
    ("raw", "chunk", "expected"),
    [
        (0, 5 * MIB, 5 * MIB),
        (600 * MIB, 5 * MIB, 5 * MIB),
        (48 * 1024 * MIB, 5 * MIB, 5 * MIB),
        (100 * 1024 * MIB, 5 * MIB, 11 * MIB),
        (100 * 1024 * MIB, 100 * MIB, 100 * MIB),
    ],
)
def test_parts_have_the_set_size_or_a_larger_one_to_fit_into_ten_thousand(raw, chunk, expected):
    assert part_bytes(raw, chunk) == expected


@settings(max_examples=60)
@given(st.integers(0, 10 * 2**40), st.integers(1, 100))
def test_even_incompressible_data_fits_into_ten_thousand_parts(raw, chunk):
    size = part_bytes(raw, chunk * MIB)
    assert size >= chunk * MIB
    assert size * MAX_PARTS >= raw + raw // 10_000 + 65_536


@pytest.mark.parametrize(
    ("changed", "gone", "continues"),
    [("reflection.duckdb.wal", "", True), ("reflection.duckdb", "", False), ("", "reflection.duckdb.wal", False)],
)
def test_an_unfinished_upload_goes_on_if_a_large_file_is_the_same_and_none_is_gone(changed, gone, continues):
    main = RawFile("reflection.duckdb", 6 * MIB, sha256("main"), ())
    wal = RawFile("reflection.duckdb.wal", 4 * MIB, sha256("wal"), ())
    unfinished = {file.name: sha256("other") if file.name == changed else file.sha256 for file in (main, wal)}
    staged = {"reflection": [file for file in (main, wal) if file.name != gone]}
    assert is_worth_continuing(unfinished, staged, 5 * MIB) is continues
    assert not is_worth_continuing(unfinished, staged, 6 * MIB)


@pytest.mark.parametrize(
    ("name", "is_read"),
    [
        ("reflection.duckdb", True),
        ("knowledge_graph_work.duckdb.wal", True),
        ("reflection.duckdb.patch-02", True),
        ("knowledge_graph.duckdb.patch-01", False),
        ("knowledge_graph.duckdb.base", False),
        ("memories.json", False),
    ],
)
def test_a_restore_without_the_manifest_reads_database_files_and_the_patches_of_a_base(name, is_read):
    prefix = f"systems/{SYSTEM}/uploads/{upload_id(1)}/"
    assert is_read_by_name(prefix + name, {f"{prefix}reflection.duckdb.base"}) is is_read
