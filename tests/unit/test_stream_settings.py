"""What `doctor` says about the settings of an existing stream."""

from dataclasses import replace

import pytest
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from agent.adapters.nats.stream_settings import cure, lacks

WANTED = StreamConfig(
    name="AKOSHA_SYNC", retention=RetentionPolicy.LIMITS, discard=DiscardPolicy.OLD, storage=StorageType.FILE,
    max_age=7 * 86_400, max_bytes=2**28, duplicate_window=600, max_consumers=10_000, allow_direct=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"allow_direct": False}, "--allow-direct"),
        ({"max_consumers": -1}, "--max-consumers=10000"),
        ({"max_consumers": 200}, "--max-consumers=10000"),
        ({"retention": RetentionPolicy.INTEREST}, "--retention=limits"),
        ({"discard": DiscardPolicy.NEW}, "--discard=old"),
        ({"no_ack": True}, "--ack"),
        ({"max_age": 3600.0}, "--max-age=7d"),
        ({"max_bytes": 1000}, "--max-bytes=268435456"),
        ({"max_msgs": 10}, "--max-msgs=-1"),
        ({"max_msgs_per_subject": 1}, "--max-msgs-per-subject=-1"),
        ({"duplicate_window": 120.0}, "--dupe-window=10m"),
    ],
    ids=str,
)
def test_each_setting_that_can_lose_events_has_its_option(change, option):
    (lack,) = lacks(replace(WANTED, **change), WANTED)
    assert lack.option == option
    assert cure("AKOSHA_SYNC", [lack]) == f"nats stream edit AKOSHA_SYNC {option}"


@pytest.mark.parametrize(
    "change", [{"max_age": 0.0}, {"max_age": 30 * 86_400.0}, {"max_bytes": -1}, {"max_consumers": 50_000}], ids=str
)
def test_higher_limits_lack_nothing(change):
    assert lacks(replace(WANTED, **change), WANTED) == []


@pytest.mark.parametrize(
    "change", [{"retention": RetentionPolicy.WORK_QUEUE}, {"storage": StorageType.MEMORY}], ids=str
)
def test_what_no_edit_changes_needs_a_new_stream(change):
    found = lacks(replace(WANTED, **change, allow_direct=False), WANTED)
    assert cure("AKOSHA_SYNC", found).startswith("nats stream rm AKOSHA_SYNC")
