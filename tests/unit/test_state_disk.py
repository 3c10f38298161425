"""The warning about too little space on the disk of the state directory."""

import pytest

from agent.application.monitoring.status import MARGIN_BYTES, STATE_DISK_FULL, disk_warning
from agent.domain.databases import FileStat, Fingerprint
from agent.domain.delivery_state import Target, TargetRecord

SURVEY = {"reflection": Fingerprint((FileStat("reflection.duckdb", 1, 42_000_000, 1),), "h")}
RECORDS = [TargetRecord(Target(system_id="laptop", method="cloud", endpoint="", bucket="memories"))]


@pytest.mark.parametrize("free", [0, 1, MARGIN_BYTES, MARGIN_BYTES + 41_999_999])
def test_a_disk_too_full_for_the_copies_is_reported_with_needed_and_free_bytes(free):
    warning = disk_warning("/state", free, RECORDS, SURVEY)
    assert warning.code == STATE_DISK_FULL
    assert f"needs {MARGIN_BYTES + 42_000_000:,} bytes there, {free:,} are free" in warning.message
    assert "akosha_agent_state_dir" in warning.hint


@pytest.mark.parametrize("free", [None, MARGIN_BYTES + 42_000_000])
def test_with_enough_or_unknown_space_there_is_no_warning(free):
    assert disk_warning("/state", free, RECORDS, SURVEY) is None


def test_if_nothing_is_pending_the_margin_is_enough():
    assert disk_warning("/state", MARGIN_BYTES, RECORDS, {}) is None
    assert f"{MARGIN_BYTES:,} bytes" in disk_warning("/state", 0, [], {}).message
