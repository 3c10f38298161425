"""Sentences about events and log entries."""

import logging
from dataclasses import replace

import pytest
import structlog

from agent.domain.events import SessionEnded
from agent.entrypoints import logs
from agent.entrypoints.live_line import fitted
from agent.entrypoints.narrator import log_text, timed, waiting_texts
from agent.entrypoints.sentences import SENTENCES, event_lines, log_lines
from agent.entrypoints.text_lines import Line, Style
from tests.support import screens, values
from tests.support.logging_state import logging_restored
from tests.support.values import NOON


def test_requests_and_results_have_a_line_and_other_events_none():
    assert [line.text for line in event_lines(values.request(reason="session_end"))] == [
        "a session has ended: looking for changes"
    ]
    (begins,) = event_lines(values.request(reason="file_change"), [screens.CHANGED, screens.GRAPH])
    assert begins.text == "the databases have changed: uploading reflection (5.4 MB), knowledge_graph (2.6 MB)"
    assert event_lines(values.request(reason="retry")) == []
    assert event_lines(SessionEnded(id="s", time=NOON, system_id="laptop")) == []
    (done,) = event_lines(screens.UPLOADED)
    assert done.style is Style.GOOD
    (partly,) = event_lines(replace(screens.UPLOADED, incomplete={"reflection": "locked"}))
    assert partly.style is Style.WARNING
    first, *_ = event_lines(values.failed())
    assert first.style is Style.BAD


def test_a_log_entry_below_a_warning_is_shown_only_if_it_has_a_sentence():
    assert log_lines("sync_succeeded", "info", {"upload_id": "u"}) == []
    assert log_lines("files_changed", "debug", {}) == []
    assert log_lines("agent_stopped", "info", {}) == [Line("stopped")]
    assert log_lines("sync_failed", "warning", {"errors": ["cloud: no"]}) == [], "the event reports it"


def test_a_warning_without_a_sentence_of_its_own_has_its_cause_its_facts_and_its_hint():
    lines = log_lines("note_refused", "warning", {"id": "n", "reason": "odd", "note": "a.json", "hint": "delete it"})
    assert lines == [Line("note refused: odd (note a.json)", Style.WARNING), Line("  delete it")]
    assert log_lines("agent_failed", "error", {"error": "x", "exception": "Traceback\n  y"})[0].style is Style.BAD


@pytest.mark.parametrize("name", SENTENCES)
def test_a_sentence_without_its_fields_raises_nothing(name):
    """A log entry must never raise."""
    assert log_lines(name, "info", {})


def test_control_characters_of_others_are_escaped():
    (line,) = timed(event_lines(replace(values.failed(), errors=(), error="\x1b[2J", retry_at=None)), NOON)
    assert line.text.endswith("\\x1b[2J")


def test_the_live_line_says_when_the_next_sync_comes_and_why_not_now():
    assert waiting_texts(None, NOON) == waiting_texts(screens.later(-1, "quiet"), NOON) == [""]
    texts = waiting_texts(screens.later(252, "min_interval"), NOON)
    assert fitted(texts, 120) == (
        "databases have changed; next sync in 4:12, because of the minimum interval; akosha-agent sync does it now"
    )
    assert fitted(texts, 80) == "next sync in 4:12, because of the minimum interval"
    assert fitted(texts, 40) == "next sync in 4:12"


def test_log_entries_are_rendered_as_sentences_only_by_auto_on_a_terminal(capsys, monkeypatch):
    with logging_restored():
        logs.configure("INFO", "auto", on_terminal=log_text)
        assert not logs.is_rendered_by(log_text)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        logs.configure("INFO", "json", on_terminal=log_text)
        assert not logs.is_rendered_by(log_text)
        logs.configure("INFO", "auto", on_terminal=log_text)
        assert logs.is_rendered_by(log_text)
        capsys.readouterr()
        structlog.get_logger().info("sync_succeeded", upload_id="u")
        structlog.get_logger().warning("note_refused", reason="odd")
        logging.getLogger("aiohttp.server").warning("odd request")
        shown = capsys.readouterr().err
    assert "note refused: odd" in shown
    assert "odd request" in shown
    assert "sync_succeeded" not in shown
