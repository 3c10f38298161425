"""The log: format, tracebacks, records of libraries, and values that are not shown."""

import json
import logging
import sys
import threading

import pytest
import structlog

from agent.domain.plain_text import MASK
from agent.entrypoints import logs
from agent.entrypoints.logs import pipeline
from tests.support.logging_state import logging_restored


@pytest.fixture(autouse=True)
def _restore_logging():
    with logging_restored():
        yield


def logged(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_shows_locations_and_no_variables(capsys, form):
    logs.configure("INFO", form)
    secret = f"{form}-canary"  # composed, because the traceback shows this source line
    try:
        raise ValueError(len(secret))
    except ValueError:
        structlog.get_logger().exception("it_failed")
    shown = capsys.readouterr().err
    assert "it_failed" in shown
    assert f"ValueError: {len(secret)}" in shown
    assert "test_logs.py" in shown
    assert secret not in shown


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_value_adds_no_line_and_no_escape_sequence_to_the_log(capsys, form):
    """Names of files, notes, objects and sessions come from others."""
    logs.configure("INFO", form)
    evil = "a\r\n2026-01-01 [info] forged\x1b[2J\x9b\u202e"
    structlog.get_logger().warning("note_rejected", note=evil, names=[evil], problems={evil: evil})
    logging.getLogger("aiohttp.server").warning("odd request: %s", evil)
    lines = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert [line.isprintable() for line in lines] == [True, True]
    assert not any(line.startswith("2026-01-01 [info] forged") for line in lines)


@pytest.mark.parametrize(
    "name", ["watchfiles.main", "botocore.endpoint", "aiobotocore.session", "aiohttp.access", "asyncio"]
)
def test_libraries_log_only_warnings_at_any_level(name, caplog):
    caplog.set_level(logging.DEBUG)
    logs.configure("DEBUG", "console")
    assert not logging.getLogger(name).isEnabledFor(logging.INFO)
    assert logging.getLogger(name).isEnabledFor(logging.WARNING)


def test_a_library_record_has_the_same_format_and_its_logger_name(capsys):
    logs.configure("INFO", "json")
    try:
        raise OSError("the peer is gone")
    except OSError:
        logging.getLogger("aiohttp.server").exception("Error handling %s", "request")
    (line,) = logged(capsys)
    assert (line["event"], line["logger"], line["level"]) == ("Error handling request", "aiohttp.server", "error")
    assert line["exception"].endswith("OSError: the peer is gone")
    assert line["timestamp"].endswith("Z")


def test_an_unformattable_library_record_is_reported_without_its_content(capsys):
    logs.configure("INFO", "json")
    record = logging.LogRecord("aiohttp", logging.WARNING, __file__, 1, "%d of them", ("c4n4ry-s3cr3t",), None)
    pipeline._handler.handle(record)
    shown = capsys.readouterr().err
    assert shown == "akosha-agent: a log line of aiohttp cannot be shown\n"


def test_a_value_without_a_repr_does_not_lose_the_line(capsys):
    class Odd:
        def __repr__(self):
            raise RuntimeError("no")

    ring: dict[str, object] = {}
    ring["ring"] = ring
    logs.configure("INFO", "json")
    structlog.get_logger().info("odd", value=Odd(), ring=ring, number=1.5, flag=True, names=("a", "b"), bad="\udcff")
    (line,) = logged(capsys)
    assert line["value"] == "<Odd>"
    assert (line["number"], line["flag"], line["names"], line["bad"]) == (1.5, True, ["a", "b"], "\\udcff")


def test_nothing_is_raised_if_stderr_is_closed(monkeypatch):
    class Closed:
        def isatty(self):
            return False

        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Closed())
    logs.configure("INFO", "json")
    structlog.get_logger().info("lost")
    logging.getLogger("aiohttp").warning("lost")


def test_configuring_again_leaves_one_handler(capsys):
    for level in ("DEBUG", "WARNING"):
        logs.configure(level, "json")
    structlog.get_logger().info("quiet")
    structlog.get_logger().warning("loud")
    logging.getLogger("aiohttp").warning("loud, too")
    assert [line["event"] for line in logged(capsys)] == ["loud", "loud, too"]


def test_a_crash_is_logged_like_any_event_and_without_secrets(capsys):
    logs.configure("INFO", "json")
    logs.hide("c4n4ry-of-a-crash")
    try:
        raise RuntimeError("it was c4n4ry-of-a-crash")
    except RuntimeError as error:
        sys.excepthook(type(error), error, error.__traceback__)
    thread = threading.Thread(target=lambda: 1 // 0, name="worker")
    thread.start()
    thread.join()
    crash, failed = logged(capsys)
    assert (crash["event"], crash["level"]) == ("crashed", "critical")
    assert crash["exception"].endswith(f"RuntimeError: it was {MASK}")
    assert (failed["event"], failed["thread"]) == ("thread_failed", "worker")
    assert failed["exception"].endswith("ZeroDivisionError: integer division or modulo by zero")
