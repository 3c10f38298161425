"""What a sync would send, from the ledger and the stats of the files alone."""

from dataclasses import replace

import pytest

from agent.domain.delivery_state import DatabaseRecord, Problem, State, TargetRecord
from agent.domain.sync_preview import DatabaseStep, FileStep, preview
from tests.support import values

CLEAN = DatabaseRecord("reflection", State.CLEAN, values.fingerprint("reflection"), values.parts("reflection"))
RECORD = TargetRecord(values.TARGET, known=True, databases={"reflection": CLEAN})
NOW = {"reflection": values.fingerprint("reflection", 1)}
"""The main file is as it was delivered; its WAL has grown."""


def previewed(record=RECORD, survey=NOW, **how):
    given = {"upload_id": values.upload_id(60), "mirror": True, "compression": True, "deduplicate": True} | how
    return preview(record, survey, **given)


def changed_main(generation=1):
    main, wal = values.fingerprint("reflection", generation).files
    return {"reflection": replace(NOW["reflection"], files=(replace(main, size=main.size + 4096), wal))}


def test_nothing_is_sent_of_a_database_with_the_delivered_fingerprint():
    (found,) = previewed(survey={"reflection": values.fingerprint("reflection")})
    assert (found.step, found.files, found.most_bytes) == (DatabaseStep.UNCHANGED, (), 0)


def test_a_file_with_the_delivered_stats_is_copied_by_the_store():
    main, wal = NOW["reflection"].files
    delivered = replace(CLEAN.fingerprint, files=(main, CLEAN.fingerprint.files[1]))
    record = replace(RECORD, databases={"reflection": replace(CLEAN, fingerprint=delivered)})
    (found,) = previewed(record)
    assert [file.step for file in found.files] == [FileStep.UNCHANGED, FileStep.WHOLE]
    assert found.most_bytes == found.files[1].whole_bytes <= wal.size
    (found,) = previewed(record, deduplicate=False)
    assert [file.step for file in found.files] == [FileStep.WHOLE] * 2


def test_a_changed_file_is_estimated_as_its_delivered_state_was_compressed():
    (found,) = previewed(survey=changed_main())
    main = found.files[0]
    assert (main.step, main.whole_bytes) == (FileStep.WHOLE, main.size * 800 // 1000)
    (found,) = previewed(survey=changed_main(), compression=False)
    assert found.files[0].whole_bytes == found.files[0].size


@pytest.mark.parametrize(("mirror", "step"), [(True, FileStep.PATCH), (False, FileStep.WHOLE)])
def test_a_large_main_file_may_be_sent_as_a_patch_if_the_former_one_is_kept(mirror, step):
    part = values.patched_part([0, 1])
    record = replace(RECORD, databases={"reflection": replace(CLEAN, parts=(part,))})
    (found,) = previewed(record, survey=changed_main(2), mirror=mirror)
    main = found.files[0]
    assert main.step is step
    assert (main.patch_bytes is not None) == (step is FileStep.PATCH)
    assert main.whole_bytes == main.size, "the compressed size of a patched file is unknown"


def test_a_new_database_is_sent_whole_and_one_that_is_gone_is_kept():
    old = DatabaseRecord("knowledge_graph", State.CLEAN, values.fingerprint("knowledge_graph"))
    found = previewed(TargetRecord(values.TARGET, databases={"knowledge_graph": old}))
    assert [(one.name, one.step) for one in found] == [
        ("knowledge_graph", DatabaseStep.REMOVED), ("reflection", DatabaseStep.SEND),
    ]  # fmt: skip
    assert {file.step for file in found[1].files} == {FileStep.WHOLE}
    assert found[1].most_bytes == NOW["reflection"].size


def test_a_database_that_could_not_be_copied_has_the_reason():
    problem = Problem("not a DuckDB database", NOW["reflection"], failures=1, retry_at=None)
    record = replace(RECORD, databases={"reflection": replace(CLEAN, state=State.OWED, problem=problem)})
    assert previewed(record)[0].problem == "not a DuckDB database"
