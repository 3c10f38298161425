"""The answers of a DuckDB child process: an invalid one, or none, is a failure with a reason."""

import pytest

from agent.adapters.child_output import BEAT, framed
from agent.adapters.duckdb import child_process
from agent.adapters.duckdb.verification import verify
from tests.support.duckdb_child import EndedChild


async def verdict_of(output, status, tmp_path, monkeypatch):
    async def start(_copy):
        return EndedChild(output, status)

    monkeypatch.setattr(child_process, "start", start)
    return await verify(tmp_path / "reflection.duckdb", timeout_seconds=60)


async def test_the_verdict_follows_heartbeats(tmp_path, monkeypatch):
    output = BEAT + BEAT + framed(b'{"verdict": {"rows": {"notes": 3}, "unread": {}}}')
    verdict = await verdict_of(output, 0, tmp_path, monkeypatch)
    assert (verdict.verified, verdict.rows) == (True, {"notes": 3})


@pytest.mark.parametrize(
    "answer",
    [
        b"not JSON",
        b"[]",
        b"{}",
        b'{"error": 5}',
        b'{"verdict": null}',
        b'{"verdict": {"rows": [], "unread": {}}}',
        b'{"verdict": {"rows": {"notes": true}, "unread": {}}}',
        b'{"verdict": {"rows": {"notes": -1}, "unread": {}}}',
        b'{"verdict": {"rows": {"notes": 9223372036854775808}, "unread": {}}}',
        b'{"verdict": {"rows": {}, "unread": {"notes": 1}}}',
        b'{"verdict": {"error": "x"}}',
    ],
)
async def test_an_invalid_answer_says_nothing_about_the_copy(answer, tmp_path, monkeypatch):
    verdict = await verdict_of(framed(answer), 0, tmp_path, monkeypatch)
    assert (verdict.verified, verdict.damaged, verdict.inconclusive) == (False, False, True)
    assert verdict.reason == "the verification sent an invalid answer"


async def test_an_answer_that_is_cut_off_is_a_child_that_ended_early(tmp_path, monkeypatch):
    verdict = await verdict_of(framed(b'{"verdict": 1}')[:-1], 3, tmp_path, monkeypatch)
    assert verdict.reason == "the verification ended early (exit status 3)"


async def test_a_real_time_signal_is_named_by_its_number(tmp_path, monkeypatch):
    verdict = await verdict_of(b"", -35, tmp_path, monkeypatch)
    assert verdict.reason == "DuckDB crashed on it (signal 35)"
