"""Names that outlive a process: they grow, stay in their place, and are what Akosha and a store accept."""

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings, strategies as st

from agent.domain import naming
from agent.domain.databases import SIDECAR_SUFFIXES, database_of
from agent.domain.errors import NamingError

quick = settings(max_examples=60)
system_ids = st.from_regex(r"[A-Za-z0-9_-]{1,100}", fullmatch=True)
times = st.timedeltas(timedelta(), timedelta(days=7000 * 365)).map(
    lambda since: datetime(2000, 1, 1, tzinfo=UTC) + since
)
PLAIN = re.compile(r"[A-Za-z0-9_.-]{1,200}")


@quick
@given(st.text(max_size=150))
def test_a_sanitised_name_is_a_system_id_and_stays_as_it_is(text):
    if not re.search(r"[A-Za-z0-9_]", text):
        with pytest.raises(NamingError, match="set akosha_system_id"):
            naming.sanitise_system_id(text)
        return
    once = naming.sanitise_system_id(text)
    assert naming.check_system_id(once) == once
    assert naming.sanitise_system_id(once) == once


@pytest.mark.parametrize(
    ("given_name", "wanted"),
    [
        ("my.mac.local", "my-mac-local"),
        ("Лена laptop", "laptop"),
        (" a//b ", "a-b"),
        ("a" * 83 + ".b", "a" * 83),
        ("x" * 300, "x" * 84),
    ],
)
def test_host_names_become_system_ids(given_name, wanted):
    assert naming.sanitise_system_id(given_name) == wanted


@pytest.mark.parametrize("bad", ["", "a" * 101, "my.mac", "a/b", "..", "a b", "a\n", "ä", "a*", "a>"])
def test_what_is_no_system_id_cannot_come_into_a_key_or_subject(bad):
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
def test_what_is_no_method_cannot_come_into_a_subject(bad):
    with pytest.raises(NamingError):
        naming.request_subject("sys", bad)


def test_an_upload_id_is_utc_wherever_the_time_comes_from():
    east = timezone(timedelta(hours=9))
    assert naming.upload_id(datetime(2026, 1, 1, 8, 0, 1, tzinfo=east), "mac_1") == "20251231_230001_mac_1"


@quick
@given(times, system_ids)
def test_an_upload_id_tells_its_time(at, system):
    assert naming.upload_time(naming.upload_id(at, system)) == at.replace(microsecond=0)


@quick
@given(st.lists(times, min_size=1, max_size=20), system_ids)
def test_upload_ids_grow_whatever_the_clock_does(clock, system):
    newest = None
    for now in clock:
        following = naming.next_upload_id(now, newest, system)
        if newest is not None:
            assert following > newest
            assert naming.upload_time(following) > naming.upload_time(newest)
        assert naming.upload_time(following) >= now.replace(microsecond=0)
        newest = following


def test_an_id_after_a_clock_set_back_is_one_second_later_and_else_it_is_now():
    now = datetime(2026, 1, 2, tzinfo=UTC)
    assert naming.next_upload_id(now, "20260103_000000_a", "a") == "20260103_000001_a"
    assert naming.next_upload_id(now, "20260101_000000_a", "a") == "20260102_000000_a"
    assert naming.next_upload_id(now, None, "a") == "20260102_000000_a"


def test_nothing_can_come_after_the_end_of_time():
    with pytest.raises(NamingError, match="no upload id can follow"):
        naming.next_upload_id(datetime(2026, 1, 1, tzinfo=UTC), "99991231_235959_a", "a")


@pytest.mark.parametrize(
    "bad",
    ["", "20260101_000000", "20260101_000000_", "20261301_000000_a", "20260101_000000_a/b", "20260101_000000_a.b",
     "x20260101_000000_a", "20260101_000000_a\n", "\u0662\u0660\u0662\u0666\u0660\u0661\u0660\u0661_000000_a"],
)  # fmt: skip
def test_what_is_no_upload_id_has_no_time_and_no_place(bad):
    with pytest.raises(NamingError):
        naming.upload_time(bad)
    with pytest.raises(NamingError):
        naming.object_key("sys", bad, "x")


UPLOAD = "20260101_000000_sys"
PLACE = f"systems/sys/uploads/{UPLOAD}/"


@quick
@given(st.text(max_size=30) | st.sampled_from([".", "..", "...", "a/b", "../x", "/", "a\0", "x\n", "a\\b"]))
def test_no_name_leaves_its_uploads_place(name):
    try:
        key = naming.object_key("sys", UPLOAD, name)
    except NamingError:
        assert not PLAIN.fullmatch(name) or not name.strip(".")
        return
    assert key == PLACE + name
    assert "/" not in name
    assert name not in (".", "..")


def test_a_key_tells_its_upload():
    assert naming.upload_of(naming.manifest_key("sys", UPLOAD)) == UPLOAD
    assert naming.upload_of(naming.memories_key("sys", UPLOAD)) == UPLOAD
    for bad in ("", "systems/sys/uploads", f"systems/sys/uploads/{UPLOAD}", "a/b/c/d/e", "systems/sys/uploads/x/y"):
        with pytest.raises(NamingError):
            naming.upload_of(bad)


file_names = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60).map(
    lambda name: f"knowledge_graph_{name}.duckdb"
)


@quick
@given(st.text(max_size=300) | st.sampled_from([".", "..", "\udcff", "a" * 201, ".duckdb", "x.duckdbä"]))
def test_an_object_name_is_plain_and_short_and_stays_as_it_is(name):
    plain = naming.object_name(name)
    assert PLAIN.fullmatch(plain)
    assert plain.strip(".")
    assert ".." not in plain, "Akosha's schema refuses it"
    assert naming.object_name(plain) == plain
    naming.object_key("sys", UPLOAD, plain)


@quick
@given(st.sets(file_names, max_size=8))
def test_files_of_different_names_are_different_objects(names):
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
def test_names_that_would_become_alike_are_reported_apart(names):
    assert len({naming.object_name(name) for name in names}) == len(names)


@quick
@given(file_names, st.sampled_from(SIDECAR_SUFFIXES))
def test_a_sidecar_lies_beside_its_main_file_under_its_name_and_suffix(name, suffix):
    assert naming.object_name(name + suffix) == naming.object_name(name) + suffix


def test_two_dots_in_a_row_which_akosha_refuses_do_not_stay():
    assert naming.object_name("knowledge_graph_a..b.duckdb.wal") == "knowledge_graph_a_b-513db9ee.duckdb.wal"


def test_known_files_keep_their_names():
    for name in ("reflection.duckdb", "reflection.duckdb.checkpoint.wal", "knowledge_graph_Work-2.duckdb"):
        assert naming.object_name(name) == name
        assert database_of(name) is not None


@pytest.mark.parametrize(
    ("pattern", "subject", "covered"),
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
def test_patterns_cover_as_in_nats(pattern, subject, covered):
    assert naming.subject_matches(pattern, subject) is covered


def test_subjects_are_those_of_the_table():
    assert naming.session_subject("s") == "akosha.session.s.ended"
    assert naming.request_subject("s", "http") == "akosha.sync.s.requested.http"
    assert naming.result_subject("s", "failed") == "akosha.sync.s.failed"
    assert naming.progress_subject("s") == "akosha.progress.s"
    assert naming.ingest_subject("s", "completed") == "akosha.ingest.s.completed"
