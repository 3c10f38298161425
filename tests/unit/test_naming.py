"""Persistent names: system IDs, growing upload IDs, object keys and subjects that Akosha and stores accept."""

import re
from datetime import UTC, datetime, timedelta, timezone
from string import ascii_letters, digits

import pytest
from hypothesis import given, settings, strategies as st

from agent.domain import naming
from agent.domain.databases import SIDECAR_SUFFIXES, database_of
from agent.domain.errors import NamingError

quick = settings(max_examples=60)
system_ids = st.text(ascii_letters + digits + "_-", min_size=1, max_size=100)
times = st.timedeltas(timedelta(), timedelta(days=7000 * 365)).map(
    lambda since: datetime(2000, 1, 1, tzinfo=UTC) + since
)
PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,200}")


@quick
@given(st.text(max_size=150))
def test_sanitising_a_name_gives_a_system_id_and_is_idempotent(text):
    if not re.search(r"[A-Za-z0-9_]", text):
        with pytest.raises(NamingError, match="set akosha_system_id"):
            naming.sanitise_system_id(text)
        return
    once = naming.sanitise_system_id(text)
    assert naming.check_system_id(once) == once
    assert naming.sanitise_system_id(once) == once


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("my.mac.local", "my-mac-local"),
        ("Лена laptop", "laptop"),
        (" a//b ", "a-b"),
        ("a" * 83 + ".b", "a" * 83),
        ("x" * 300, "x" * 84),
    ],
)
def test_host_names_become_system_ids(given_name, expected):
    assert naming.sanitise_system_id(given_name) == expected


@pytest.mark.parametrize("bad", ["", "a" * 101, "my.mac", "a/b", "..", "a b", "a\n", "ä", "a*", "a>"])
def test_an_invalid_system_id_is_refused_in_keys_and_subjects(bad):
    for use in (
        naming.check_system_id,
        naming.uploads_prefix,
        naming.session_subject,
        naming.progress_subject,
        lambda text: naming.upload_id(datetime(2026, 1, 1, tzinfo=UTC), text),
        lambda text: naming.request_subject(text, "cloud"),
        lambda text: naming.result_subject(text, "succeeded"),
    ):
        with pytest.raises(NamingError):
            use(bad)


@pytest.mark.parametrize("bad", ["", "Cloud", "a.b", "*", ">", "-a", "a" * 33, "cloud\n"])
def test_an_invalid_method_is_refused_in_subjects(bad):
    with pytest.raises(NamingError):
        naming.request_subject("sys", bad)


def test_an_upload_id_is_in_utc_for_any_time_zone():
    east = timezone(timedelta(hours=9))
    assert naming.upload_id(datetime(2026, 1, 1, 8, 0, 1, tzinfo=east), "mac_1") == "20251231_230001_mac_1"


@quick
@given(times, system_ids)
def test_an_upload_id_contains_its_time(at, system):
    assert naming.upload_time(naming.upload_id(at, system)) == at.replace(microsecond=0)


@quick
@given(st.lists(times, min_size=1, max_size=20), system_ids)
def test_upload_ids_grow_for_any_clock(clock, system):
    newest = None
    for now in clock:
        following = naming.next_upload_id(now, newest, system)
        if newest is not None:
            assert following > newest
            assert naming.upload_time(following) > naming.upload_time(newest)
        assert naming.upload_time(following) >= now.replace(microsecond=0)
        newest = following


def test_the_next_id_is_now_or_one_second_after_the_newest():
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert naming.next_upload_id(now, "20260103_000000_a", "a") == "20260103_000001_a"
    assert naming.next_upload_id(now, "20260101_000000_a", "a") == "20260102_000000_a"
    assert naming.next_upload_id(now, None, "a") == "20260102_000000_a"


def test_no_id_follows_the_last_possible_time():
    with pytest.raises(NamingError, match="no upload ID can follow"):
        naming.next_upload_id(datetime(2026, 1, 1, tzinfo=UTC), "99991231_235959_a", "a")


@pytest.mark.parametrize(
    "bad",
    ["", "20260101_000000", "20260101_000000_", "20261301_000000_a", "20260101_000000_a/b", "20260101_000000_a.b",
     "x20260101_000000_a", "20260101_000000_a\n", "\u0662\u0660\u0662\u0666\u0660\u0661\u0660\u0661_000000_a"],
)  # fmt: skip
def test_an_invalid_upload_id_has_no_time_and_no_keys(bad):
    with pytest.raises(NamingError):
        naming.upload_time(bad)
    with pytest.raises(NamingError):
        naming.object_key("sys", bad, "x")


UPLOAD = "20260101_000000_sys"
UPLOAD_PREFIX = f"systems/sys/uploads/{UPLOAD}/"


@quick
@given(st.text(max_size=30) | st.sampled_from([".", "..", "...", "a/b", "../x", "/", "a\0", "x\n", "a\\b"]))
def test_no_object_name_escapes_the_prefix_of_its_upload(name):
    try:
        key = naming.object_key("sys", UPLOAD, name)
    except NamingError:
        assert not PLAIN.fullmatch(name) or not name.strip(".")
        return
    assert key == UPLOAD_PREFIX + name
    assert "/" not in name
    assert name not in (".", "..")


def test_a_key_contains_its_upload_id():
    assert naming.upload_of(naming.manifest_key("sys", UPLOAD)) == UPLOAD
    assert naming.upload_of(naming.memories_key("sys", UPLOAD, gzipped=True)) == UPLOAD
    for bad in ("", "systems/sys/uploads", f"systems/sys/uploads/{UPLOAD}", "a/b/c/d/e", "systems/sys/uploads/x/y"):
        with pytest.raises(NamingError):
            naming.upload_of(bad)


file_names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).map(
    lambda name: f"knowledge_graph_{name}.duckdb"
)


@quick
@given(st.text(max_size=300) | st.sampled_from([".", "..", "\udcff", "a" * 201, ".duckdb", "x.duckdbä"]))
def test_an_object_name_is_plain_short_and_idempotent(name):
    plain = naming.object_name(name)
    assert PLAIN.fullmatch(plain)
    assert plain.strip(".")
    assert ".." not in plain, "Akosha's schema refuses it"
    assert naming.object_name(plain) == plain
    naming.object_key("sys", UPLOAD, plain)


@quick
@given(st.sets(file_names, max_size=8))
def test_different_file_names_give_different_object_names(names):
    assert len({naming.object_name(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "names",
    [
        ("knowledge_graph_ä.duckdb", "knowledge_graph_ö.duckdb"),
        ("knowledge_graph_a.duckdbä.duckdb", "knowledge_graph_a.duckdbö.duckdb"),
        ("knowledge_graph_a b.duckdb", "knowledge_graph_a_b.duckdb", "knowledge_graph_a  b.duckdb"),
        (f"knowledge_graph_{'x' * 200}1.duckdb", f"knowledge_graph_{'x' * 200}2.duckdb"),
    ],
)
def test_names_that_sanitise_alike_stay_distinct(names):
    assert len({naming.object_name(name) for name in names}) == len(names)


@quick
@given(file_names, st.sampled_from(SIDECAR_SUFFIXES))
def test_a_sidecar_has_the_object_name_of_its_main_file_and_its_suffix(name, suffix):
    assert naming.object_name(name + suffix) == naming.object_name(name) + suffix


def test_consecutive_dots_which_akosha_refuses_are_replaced():
    assert naming.object_name("knowledge_graph_a..b.duckdb.wal") == "knowledge_graph_a_b-513db9ee.duckdb.wal"


def test_known_files_keep_their_names():
    for name in ("reflection.duckdb", "reflection.duckdb.checkpoint.wal", "knowledge_graph_Work-2.duckdb"):
        assert naming.object_name(name) == name
        assert database_of(name) is not None


@pytest.mark.parametrize(
    ("pattern", "subject", "matches"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("*.b", "a.b", True),
        ("a.>", "a.b.c", True),
        ("a.>", "a", False),
        (">", "a", True),
        ("a.*.c", "a.b.c", True),
        ("a.b.c", "a.b", False),
        ("a.b", "a.b.c", False),
    ],
)
def test_patterns_match_as_in_nats(pattern, subject, matches):
    assert naming.subject_matches(pattern, subject) is matches


def test_subjects_are_the_documented_ones():
    assert naming.session_subject("s") == "akosha.session.s.ended"
    assert naming.request_subject("s", "http") == "akosha.sync.s.requested.http"
    assert naming.result_subject("s", "failed") == "akosha.sync.s.failed"
    assert naming.progress_subject("s") == "akosha.progress.s"
    assert naming.ingest_subject("s", "completed") == "akosha.ingest.s.completed"


@pytest.mark.parametrize(("minutes", "dated"), [(0, 0), (10, 0), (11, 11), (90, 90)])
def test_an_upload_that_went_on_for_long_is_dated_by_its_manifest(minutes, dated):
    """It has the databases as they were when it went on. A restore of the state before must not find it."""
    begun = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    done = begun + timedelta(minutes=minutes)
    assert naming.made_at(naming.upload_id(begun, "mac"), done, done) == begun + timedelta(minutes=dated)
