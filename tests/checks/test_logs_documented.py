"""docs/log_events.toml lists exactly the log events and keys that the code logs."""

import re

import pytest

from docs.generator.log_calls import log_calls
from docs.generator.log_events import SEVERITY, Catalogue

ADDED_BY_THE_PIPELINE = {"event", "level", "timestamp", "logger", "exception"}
IN_MAPPINGS = {"exit_code"}
"""Keys that are passed to a log call in a mapping, which the scan does not see."""


@pytest.fixture(scope="module")
def calls():
    return log_calls()


@pytest.fixture(scope="module")
def catalogue():
    return Catalogue.read()


def test_every_call_names_its_event_in_snake_case(calls):
    assert len(calls) > 100
    assert not [call.where for call in calls if call.levels and not call.names]
    names = {name for call in calls for name in call.names}
    assert not [name for name in names if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name)]
    assert set().union(*(call.levels for call in calls)) == set(SEVERITY)


def test_the_catalogue_has_each_logged_event_once_and_no_other(calls, catalogue):
    logged = {name for call in calls for name in call.names}
    documented = [name for events in catalogue.sections.values() for name in events]
    assert sorted(documented) == sorted(set(documented))
    assert (logged - set(documented), set(documented) - logged) == (set(), set())


def test_the_catalogue_has_each_used_key_and_no_other(calls, catalogue):
    used = set().union(*(call.keys for call in calls)) | ADDED_BY_THE_PIPELINE | IN_MAPPINGS
    assert (used - set(catalogue.keys), set(catalogue.keys) - used) == (set(), set())


def test_every_event_and_key_has_a_meaning(catalogue):
    meanings = [*catalogue.keys.values(), *(text for events in catalogue.sections.values() for text in events.values())]
    assert all(meanings)


def test_a_call_is_found_with_its_name_levels_and_keys(tmp_path):
    (tmp_path / "planted.py").write_text(
        "import structlog\n_log = structlog.get_logger()\n"
        "def f(quiet):\n    log = _log.debug if quiet else _log.warning\n"
        "    log('disk_full', path='/', **{'bytes': 1})\n"
        "def g(self, name):\n    _log.info(name, count=1)\n"
        "def h(this):\n    this.g('done', key='k')\n"
    )
    found = {call.names: (set(call.levels), set(call.keys)) for call in log_calls(tmp_path) if call.names}
    assert found == {
        ("disk_full",): ({"debug", "warning"}, {"path", "bytes"}),
        ("done",): ({"info"}, {"count", "key"}),
    }
