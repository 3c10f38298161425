"""Rows as memories: their text and metadata, the digest, which never changes, times and time zones."""

import hashlib
import json
import time
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, strategies as st

from agent.adapters.duckdb.rows import Row, digest, instant, json_or_text, row_of
from agent.adapters.local_zone import local_zone, zone_named
from agent.domain.errors import WireError
from agent.domain.memories import KINDS

BERLIN = ZoneInfo("Europe/Berlin")
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)


def test_digests_are_those_of_released_versions():
    """Digests are part of IDs in Akosha: if this fails, all memories of all users are sent again as new ones."""
    conversation = row_of(
        "conversation",
        {
            "id": "00f1e2d3c4b5a697",
            "content": 'naïve "quotes" \\ tab\t\x00\x7f 記憶 👩‍💻 \u2028 </script>',
            "project": "démo",
            "session_id": "s-1",
            "category": "context",
            "namespace": "work",
            "source_type": "claude_code",
            "timestamp": "2026-10-25 02:30:00.5",
        },
    )
    assert digest(conversation, embedded=True) == "411768269d0640564f2d2646f825ba03"
    assert digest(conversation, embedded=False) == "ad3926aaf8e6d873154b7dd18d87cacd"
    relationship = row_of(
        "relationship",
        {
            "id": "7b0e",
            "from_entity": "a",
            "to_entity": "b",
            "relation_type": "uses",
            "properties": '{"weight": 1e16, "z": [0.1, -0.0, 1e-7, 18446744073709551615], "ä": {"b": true, "a": null}}',
            "created_at": "2026-09-01 09:00:00",
        },
        graph="home",
        names={"a": "Ada"},
    )
    assert digest(relationship, embedded=False) == "0ca3e9c1932f855016e351d7f7a69552"


@given(
    kind=st.sampled_from(KINDS),
    text=TEXTS,
    metadata=st.dictionaries(TEXTS, TEXTS | st.lists(TEXTS), max_size=3),
    properties=st.none() | st.dictionaries(TEXTS, TEXTS | NUMBERS, min_size=1, max_size=3),
    at=st.none() | TEXTS,
    embedded=st.booleans(),
)
def test_a_digest_is_over_json_as_the_standard_library_encodes_it(kind, text, metadata, properties, at, embedded):
    metadata.pop("properties", None)
    if properties:
        metadata["properties"] = properties
    row = Row(kind=kind, id="é", text=text, metadata=metadata, time=at)
    plain = json.dumps(
        {"kind": kind, "id": "é", "text": text, "metadata": metadata, "time": at, "embedded": embedded},
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
    )
    assert digest(row, embedded=embedded) == hashlib.sha256(plain.encode()).hexdigest()[:32]


def test_fields_that_reading_a_memory_changes_are_left_out():
    plain = {"id": "1", "content": "text", "project": "demo", "timestamp": "2026-09-01 09:00:00"}
    read = {**plain, "access_count": "7", "last_accessed": "2026-09-02", "importance_score": "0.3", "memory_tier": "x"}
    assert row_of("conversation", read) == row_of("conversation", plain)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("conversation", {"content": "text"}),
        ("conversation", {"id": " ", "content": "text"}),
        ("conversation", {"id": "1"}),
        ("reflection", {"id": "1", "content": " \n\t\u3000"}),
        ("entity", {"id": "1", "entity_type": "thing"}),
        ("entity", {"id": "1", "name": " ", "observations": '["", null, " "]'}),
        ("relationship", {"id": "1", "from_entity": "a", "relation_type": "uses"}),
        ("relationship", {"id": "1", "from_entity": " ", "to_entity": "b"}),
    ],
)
def test_a_row_without_id_or_text_is_not_a_memory(kind, values):
    assert row_of(kind, values) is None


def test_an_entity_becomes_lines():
    values = {"id": "1", "name": "DuckDB", "entity_type": "library", "observations": '["fast", null, "in\\nprocess"]'}
    row = row_of("entity", values, graph="home")
    assert row.text == "DuckDB (library)\n- fast\n- in\nprocess"
    assert row.metadata == {
        "name": "DuckDB", "entity_type": "library", "observations": ["fast", "in\nprocess"], "graph": "home",
    }  # fmt: skip
    assert row_of("entity", {"id": "1", "observations": "not a list"}).text == "- not a list"
    assert row_of("entity", {"id": "1", "name": "alone"}).text == "alone"


def test_a_relationship_becomes_an_arrow_between_names_or_ids():
    values = {"id": "1", "from_entity": "a", "to_entity": "b", "relation_type": "uses", "properties": '{"k": [1]}'}
    row = row_of("relationship", values, names={"a": "Ada"})
    assert row.text == "Ada -uses-> b"
    assert row.metadata == {"from_entity": "a", "to_entity": "b", "relation_type": "uses", "properties": {"k": [1]}}


def test_a_reflection_has_its_creation_time_and_the_default_namespace_is_left_out():
    both = {"id": "1", "content": "text", "created_at": "2026-09-01 09:00:00", "timestamp": "2025-01-01"}
    assert row_of("reflection", both).time == "2026-09-01T09:00:00"
    assert row_of("reflection", {**both, "created_at": ""}).time == "2025-01-01"
    assert row_of("conversation", {"id": "1", "content": "text", "namespace": "default"}).metadata == {}


@pytest.mark.parametrize(
    "text",
    [
        "{broken", '"\\ud800"', '{"\\udc00": 1}', "[NaN]", "[1e999]", "[-Infinity]", "123456789012345678901234567890",
        "[" * 1000 + "]" * 1000, "[" * 100_000, "9" * 5000,
    ],
)  # fmt: skip
def test_invalid_or_nonportable_json_stays_text(text):
    assert json_or_text(text) == text


def test_valid_json_is_parsed():
    assert json_or_text('{"a": [1, 2.5, "\\ud83d\\ude00", null, true]}') == {"a": [1, 2.5, "😀", None, True]}
    assert [json_or_text(text) for text in ("", "{}", "null")] == [None, None, None]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("2026-07-01T09:00:00.5", "2026-07-01T09:00:00.500000+02:00"),
        ("2026-12-01T09:00:00", "2026-12-01T09:00:00+01:00"),
        ("2026-10-25T02:30:00", "2026-10-25T02:30:00+02:00"),  # occurs twice that day: the first one
        ("2026-03-29T02:30:00", "2026-03-29T02:30:00+01:00"),  # does not exist that day
        ("2026-07-01T09:00:00.123456789", "2026-07-01T09:00:00.123456+02:00"),
        ("2026-07-01", "2026-07-01T00:00:00+02:00"),
        ("2026-07-01T09:00:00+00:00", "2026-07-01T09:00:00+00:00"),
        ("2026-07-01T09:00:00-05:30", "2026-07-01T14:30:00+00:00"),
        ("1850-01-01T00:00:00", "1849-12-31T23:06:32+00:00"),  # local mean time of Berlin, with seconds in its offset
        ("infinity", None),
        ("12000-01-01T00:00:00", None),
        ("0044-03-15 (BC) 00:00:00", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("1700000000", None),
        ("yesterday", None),
        (None, None),
    ],
)
def test_a_time_has_its_offset(raw, expected):
    assert instant(raw, BERLIN) == expected


@pytest.mark.parametrize("name", ["Europe/Berlin", "UTC", "+02:00", "-03:30", "+00:00", "+14:00"])
def test_a_zone_is_found_by_its_name(name):
    assert datetime(2026, 7, 1, tzinfo=zone_named(name)).utcoffset() is not None


@pytest.mark.parametrize("name", ["", "Nowhere/Land", "../../etc/passwd", "/etc/localtime", "Europe", "+25:00", "a\0b"])
def test_an_unknown_zone_is_an_error_that_names_it(name):
    with pytest.raises(WireError, match="unknown time zone") as caught:
        zone_named(name)
    assert "tzdata" in caught.value.hint


@pytest.fixture
def set_zone(monkeypatch):
    def set_zone(name):
        monkeypatch.setenv("TZ", name)
        time.tzset()

    yield set_zone
    monkeypatch.undo()
    time.tzset()


def test_the_local_zone_has_its_name_and_follows_changes(set_zone):
    for name in ("Europe/Berlin", "Asia/Kolkata", "America/St_Johns"):
        set_zone(name)
        assert local_zone() == (ZoneInfo(name), name)


def test_a_zone_without_name_or_data_is_the_current_offset(set_zone):
    set_zone("ABC-05:30")
    assert local_zone() == (timezone(timedelta(hours=5, minutes=30)), "+05:30")
    set_zone("Nowhere/Land")
    zone, name = local_zone()
    assert (zone.utcoffset(None), zone_named(name)) == (timedelta(), zone)
    assert zone == UTC
