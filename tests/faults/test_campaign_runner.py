"""Which rounds a campaign plays, how it goes on after a stop, and what it reports."""

import io
import shlex
import signal
import sys
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from rich.console import Console

from tests.campaign import report, run
from tests.campaign.faults import ALL, AgentKilled, AgentKilledAtPoint, BucketChanged
from tests.campaign.plan import CHUNK_ROUNDS, PROCESSES, Chunk, all_rounds, chunks, seconds, spread
from tests.campaign.play import Outcome
from tests.campaign.record import CHANGED, Played, Record, Results, Run, read_results, write_results
from tests.faults import stopped_campaign
from tests.support import zygote
from tests.support.waiting import wait_until

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
RUN = Run("7", "0123456789", "2 cores")
CHUNK = Chunk(AgentKilled.row, 1, rounds=3, seconds=20.0)


def played(outcome: Outcome, *, run: Run = RUN, chunk: Chunk = CHUNK, ended: datetime = NOON) -> Played:
    return Played(run, chunk, ended, outcome)


def rounds_of(plan, row):
    return sum(chunk.rounds for chunk in plan if chunk.row == row)


# The plan.


def test_a_full_campaign_plays_all_rounds_of_each_row_in_chunks():
    plan = all_rounds(ALL)
    assert {kind.row: rounds_of(plan, kind.row) for kind in ALL} == {kind.row: kind.rounds for kind in ALL}
    assert max(chunk.rounds for chunk in plan) <= CHUNK_ROUNDS
    assert len({(chunk.row, chunk.number) for chunk in plan}) == len(plan)


def test_minutes_are_spread_over_the_rows_in_proportion_to_their_rounds():
    plan, minutes = spread(ALL, 60), 60
    shares = {kind.row: rounds_of(plan, kind.row) / kind.rounds for kind in ALL if kind.rounds >= 100}
    assert max(shares.values()) - min(shares.values()) < 0.02
    assert 0.9 * minutes < seconds(plan) / 60 / PROCESSES <= minutes


def test_each_row_is_played_at_least_once_however_short_the_time_is():
    assert {chunk.row: chunk.rounds for chunk in spread(ALL, 0)} == {kind.row: 1 for kind in ALL}


def test_more_time_than_a_full_campaign_takes_gives_a_full_campaign():
    assert spread(ALL, 100_000) == all_rounds(ALL)


def test_a_shorter_campaign_plays_the_first_rounds_of_the_same_chunks():
    full = {chunk.number: chunk.rounds for chunk in chunks(AgentKilled, AgentKilled.rounds)}
    *whole, last = chunks(AgentKilled, AgentKilled.rounds // 2 + 1)
    assert {chunk.number: chunk.rounds for chunk in whole}.items() <= full.items()
    assert last.rounds <= full[last.number]


# The record.


def test_the_record_gives_back_the_chunks_of_the_same_run(tmp_path):
    record, done = Record(tmp_path / "build" / "record"), played(Outcome(CHUNK.row, rounds=3, violations=["lost"]))
    record.append(done)
    assert record.played(RUN, [CHUNK]) == [done]


@pytest.mark.parametrize("other", [Run("8", "0123456789", "2 cores"), Run("7", "9876543210", "2 cores")])
def test_a_chunk_of_another_seed_or_commit_is_not_taken_as_played(tmp_path, other):
    record = Record(tmp_path / "record")
    record.append(played(Outcome(CHUNK.row), run=other))
    assert record.played(RUN, [CHUNK]) == []


def test_a_chunk_with_fewer_rounds_is_not_taken_as_played(tmp_path):
    record = Record(tmp_path / "record")
    record.append(played(Outcome(CHUNK.row), chunk=Chunk(CHUNK.row, 1, rounds=2, seconds=15.0)))
    assert record.played(RUN, [CHUNK]) == []


def test_a_line_that_a_kill_has_cut_costs_its_chunk_only(tmp_path):
    record = Record(tmp_path / "record")
    record.append(played(Outcome(CHUNK.row)))
    record.path.write_text(record.path.read_text()[:-9])
    record.append(done := played(Outcome(CHUNK.row, rounds=3)))
    assert record.played(RUN, [CHUNK]) == [done]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 3), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_stopped_campaign_leaves_no_process_and_goes_on_with_the_chunks_that_are_left(
    tmp_path, monkeypatch, number, code
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [sys.executable, stopped_campaign.__file__, str(tmp_path), str(int(number))]
    first = zygote.run(command, capture_output=True, text=True)
    assert first.returncode == code, first
    assert (tmp_path / "played").read_text().splitlines() == ["7 1"]
    second = zygote.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second
    assert (tmp_path / "played").read_text().splitlines() == ["7 1", "7 2", "7 3"]
    assert [path.name for path in tmp_path.glob("akosha-faults-*/*")] == ["lock"]
    children = [int(line) for line in (tmp_path / "children").read_text().split()]
    wait_until(lambda: not any(map(psutil.pid_exists, children)))


def test_a_violation_is_printed_with_its_files_and_the_command_that_repeats_its_chunk(tmp_path, monkeypatch):
    files, kind = tmp_path / "run" / "1", AgentKilledAtPoint
    files.mkdir(parents=True)
    monkeypatch.setattr(run, "scratch", lambda: tmp_path)
    console = Console(file=io.StringIO(), soft_wrap=True)
    *_, last = chunks(kind, kind.rounds)
    run.show(console, last, "7", Outcome(kind.row, 3, violations=["round 3: lost"]), files)
    (kept,) = tmp_path.glob("violation-*")
    printed = console.file.getvalue()
    assert f"{kind.row}, chunk {last.number}: rounds: 3, violations: 1, 0 s\n  round 3: lost" in printed
    assert f"files: {kept}" in printed
    command = shlex.split(printed.partition("repeat: ")[2])
    assert command[-6:] == ["--seed", "7", "--only", kind.row, "--chunk", str(last.number)]
    assert run.selected(kind.row) == [kind]


# The report.


def test_the_chunks_of_a_row_are_one_row_of_the_results():
    outcomes = (
        Outcome("row", 3, 30.0, 1.26, [], {"before": 1, "after": 0}),
        Outcome("row", 2, 20.0, 2.04, ["round 2: lost", "round 2: left"], {"before": 2, "after": 0}),
    )
    (row,) = Results.of([played(each, chunk=Chunk("row", 1, 3, 20.0)) for each in outcomes]).rows
    assert (row.rounds, row.violations, row.slowest_seconds) == (5, 2, 2.0)
    assert row.struck == {"before": 3, "after": 0}


def test_the_duration_counts_parallel_chunks_once_and_pauses_not_at_all():
    ends = [(60, 60.0), (90, 60.0), (3600, 30.0)]  # two that overlap by 30 s; one after a pause
    each = [played(Outcome("row", seconds=s), ended=NOON + timedelta(seconds=end)) for end, s in ends]
    assert Results.of(each).seconds == 90 + 30


def test_the_results_are_kept_of_the_last_two_seeds(tmp_path):
    path, results = tmp_path / "results.json", {}
    for seed in ("1", "2", "2", "3"):
        outcome = Outcome(CHUNK.row, struck={"ack:before": 1})
        results[seed] = Results.of([played(outcome, run=Run(seed, "", ""))])
        write_results(path, results[seed])
    assert read_results(path) == [results["3"], results["2"]]


def test_the_page_has_each_row_with_its_figures_and_says_what_was_not_played():
    text = report.page([Results.of([played(Outcome(AgentKilled.row, 3, 20.0, 1.2))])])
    assert f"| {AgentKilled.row} | {AgentKilled.bar} | 3 of {AgentKilled.rounds} | 0 | 1.2 s (120 s) |" in text
    rest = [kind for kind in ALL if kind is not AgentKilled]
    assert [kind for kind in rest if f"| {kind.row} | {kind.bar} | {report.NOT_PLAYED} |" not in text] == []


def test_the_page_names_a_commit_only_if_the_code_was_that_of_the_commit():
    clean, changed = (
        report.page([Results.of([played(Outcome(CHUNK.row), run=Run("7", commit, "2 cores"))])])
        for commit in ("0123456789", "0123456789" + CHANGED)
    )
    assert "`0123456789`" in clean
    assert "0123456789" not in changed


def test_the_report_says_why_a_row_was_skipped():
    results = Results.of([played(Outcome(CHUNK.row, skipped="mounting needs root"))])
    assert report.notes(results) == [f"{CHUNK.row}: skipped, because mounting needs root."]


def test_the_report_of_all_rounds_names_the_variants_that_never_struck():
    kind = AgentKilledAtPoint
    outcome = Outcome(kind.row, kind.rounds, struck={"ack:before": kind.rounds - 1, "ack:after": 0})
    (note,) = report.notes(Results.of([played(outcome, chunk=Chunk(kind.row, 1, kind.rounds, 20.0))]))
    assert f"struck {kind.rounds - 1} times in {kind.rounds} rounds, in 1 of 2 variants" in note
    assert note.endswith("; never ack:after.")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("manifest.json", "manifest"),
        ("reflection.duckdb.base", "base"),
        ("reflection.duckdb.patch-01", "patch"),
        ("reflection.duckdb.wal", "another object"),
    ],
)
def test_the_faults_of_a_bucket_count_which_kind_of_object_they_have_damaged(name, kind):
    fault = BucketChanged()
    fault.count(f"systems/mac/uploads/20260101_000000_mac/{name}")
    assert fault.struck == {"manifest": 0, "base": 0, "patch": 0, "another object": 0} | {kind: 1}
