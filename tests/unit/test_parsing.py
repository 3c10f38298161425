"""Parsing what other programs wrote: one kind of error for everything that is not valid."""

import pytest

from agent.domain.parsing import aware_time, is_unicode, parse_json


@pytest.mark.parametrize("text", ["", "{", "\x00", "[" * 100_000, '{"a":' * 100_000, b"\xff", "9" * 5000])
def test_what_is_not_json_or_too_deep_or_too_long_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2026-03-01T12:00:00", "has no offset"),
        ("2026-03-01", "has no offset"),
        ("0001-01-01T00:00:00+14:00", "is out of range"),
        ("9999-12-31T23:59:59-14:00", "is out of range"),
        ("9999-12-31T23:59:59Z", "is out of range"),
        ("soon", "Invalid isoformat string"),
    ],
)
def test_a_time_without_offset_or_that_another_time_zone_cannot_represent_is_a_value_error(text, reason):
    with pytest.raises(ValueError, match=reason):
        aware_time(text)


def test_a_time_keeps_its_offset():
    assert aware_time("2026-03-01T12:00:00+05:30").isoformat() == "2026-03-01T12:00:00+05:30"


@pytest.mark.parametrize(("text", "expected"), [("", True), ("ä😀", True), ("\ud800", False), ("a\udcff", False)])
def test_a_lone_surrogate_is_not_unicode(text, expected):
    assert is_unicode(text) is expected
