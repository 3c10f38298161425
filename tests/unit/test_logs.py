"""The logs: what they show of an error, and what they do not."""

import logging

import pytest
import structlog

from agent.faces import logs


@pytest.fixture(autouse=True)
def _as_before():
    """What `configure` sets is the process's."""
    levels = {name: logging.getLogger(name).level for name in logs.LIBRARIES}
    yield
    structlog.reset_defaults()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_traceback_shows_where_and_never_what_the_variables_held(capsys, form):
    logs.configure("INFO", form)
    secret = f"{form}-canary"  # in pieces, for the line itself is shown
    try:
        raise ValueError(len(secret))
    except ValueError:
        structlog.get_logger().exception("it_failed")
    told = capsys.readouterr().err
    assert "it_failed" in told
    assert f"ValueError: {len(secret)}" in told
    assert "test_logs.py" in told
    assert secret not in told


@pytest.mark.parametrize("name", ["watchfiles.main", "botocore.endpoint", "aiobotocore.session", "asyncio"])
def test_libraries_tell_no_more_than_warnings_whatever_the_level_of_others(name, caplog):
    caplog.set_level(logging.DEBUG)
    logs.configure("DEBUG", "console")
    assert not logging.getLogger(name).isEnabledFor(logging.INFO)
    assert logging.getLogger(name).isEnabledFor(logging.WARNING)
