"""A manifest survives its bytes, satisfies Akosha's schema, and refuses what it should not hold."""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings, strategies as st

from agent.domain.errors import NamingError, WireError
from agent.domain.manifest import MAX_CONVERSATIONS, Manifest, Part
from tests.fakes.values import NOON, SYSTEM, manifest, parts, upload_id

WHOLE = replace(
    manifest(20, reflection=3, knowledge_graph=(1, "carried")), incomplete={"knowledge_graph": "it was too busy"}
)


def document(of: Manifest = WHOLE) -> dict:
    return json.loads(of.encode())


def damaged(**changes: object) -> bytes:
    return json.dumps(document() | changes).encode()


def test_a_manifest_survives_its_bytes():
    assert Manifest.decode(WHOLE.encode()) == WHOLE


graphs = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(graphs, max_size=3, unique=True),
    st.dictionaries(st.text(max_size=5), st.dictionaries(st.text(max_size=5), st.integers(0, 2**40), max_size=2)),
    st.text(max_size=20) | st.just("/home/\udcff/x"),
)
def test_whatever_names_and_reasons_it_holds_it_survives_its_bytes(names, rows, why):
    databases = [f"knowledge_graph_{name}" for name in names]
    held = tuple(part for database in databases for part in parts(database))
    given_manifest = replace(manifest(reflection=0), parts=held, rows=rows, incomplete=dict.fromkeys(databases, why))
    assert Manifest.decode(given_manifest.encode()) == given_manifest


def test_fields_that_we_do_not_know_are_tolerated():
    more = document() | {"future": 1}
    more["parts"][0]["future"] = 1
    assert Manifest.decode(json.dumps(more).encode()) == WHOLE


def test_it_satisfies_akoshas_schema():
    found = document()
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,100}", found["system_id"])
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", found["upload_id"])
    assert datetime.fromisoformat(found["uploaded_at"]).utcoffset() is not None
    assert 0 <= found["conversation_count"] <= 1_000_000
    assert found["total_size_bytes"] == sum(part.stored_size for part in WHOLE.parts)
    assert re.fullmatch(r"\d+\.\d+", found["version"])
    assert 1 <= len(found["system_type"]) <= 50
    assert re.fullmatch(r"[0-9a-f]{64}", found["checksum"])
    assert (found["compressed"], found["compression_format"]) == (True, "gzip")
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in found["files"])
    assert isinstance(found["metadata"], dict)


def test_compressed_and_its_format_are_both_there_or_neither():
    plain = replace(WHOLE, parts=tuple(replace(part, compression="none") for part in WHOLE.parts))
    assert {"compressed", "compression_format"}.isdisjoint(document(plain))
    mixed = replace(WHOLE, parts=(replace(WHOLE.parts[0], compression="none"), *WHOLE.parts[1:]))
    assert {"compressed", "compression_format"} <= document(mixed).keys()


def test_names_of_files_are_plain_whatever_a_graph_is_called():
    odd = replace(WHOLE, parts=parts("knowledge_graph_père & fils", second=20))
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in document(odd)["files"])


@pytest.mark.parametrize(("rows", "count"), [(0, 0), (77, 77), (MAX_CONVERSATIONS + 5, MAX_CONVERSATIONS)])
def test_conversations_are_counted_within_akoshas_limit(rows, count):
    counted = replace(WHOLE, rows={"reflection": {"conversations_v2": rows}})
    assert document(counted)["conversation_count"] == count
    assert document(replace(WHOLE, rows={}))["conversation_count"] == 0


def test_the_checksum_is_that_of_sha256sums_own_listing_in_the_order_of_keys():
    listing = "".join(sorted((f"{p.sha256}  {p.key}\n" for p in WHOLE.parts), key=lambda line: line.split("  ")[1]))
    assert document()["checksum"] == hashlib.sha256(listing.encode()).hexdigest()
    turned = replace(WHOLE, parts=WHOLE.parts[::-1])
    assert document(turned)["checksum"] == document()["checksum"]


def test_it_lies_under_its_uploads_prefix_and_knows_its_parts():
    assert WHOLE.key == f"systems/{SYSTEM}/uploads/{WHOLE.upload_id}/manifest.json"
    assert WHOLE.of("reflection") == WHOLE.parts[:2]
    assert WHOLE.of("nothing") == ()
    assert WHOLE.digests(["reflection"]) == {part.name: part.sha256 for part in WHOLE.parts[:2]}
    assert WHOLE.stored_bytes == sum(part.stored_size for part in WHOLE.parts)


def test_a_part_tells_the_object_what_it_is():
    (main, _) = parts("reflection", 3)
    assert main.metadata == {"sha256": main.sha256, "size": "1003", "compression": "gzip"}


def test_a_time_keeps_its_offset():
    east = NOON.astimezone(timezone(timedelta(hours=9)))
    assert document(replace(WHOLE, uploaded_at=east))["uploaded_at"].endswith("+09:00")


def test_a_time_without_offset_is_refused():
    with pytest.raises(WireError, match="has no offset"):
        replace(WHOLE, uploaded_at=NOON.replace(tzinfo=None))
    with pytest.raises(WireError, match="has no offset"):
        Manifest.decode(damaged(uploaded_at="2026-03-01T12:00:00"))


def test_a_key_outside_the_upload_is_refused():
    stray = replace(WHOLE.parts[0], key=f"systems/{SYSTEM}/uploads/{upload_id(99)}/reflection.duckdb")
    with pytest.raises(WireError, match="is not the key of"):
        replace(WHOLE, parts=(stray,))


def test_one_key_holds_one_part():
    with pytest.raises(WireError, match="under one key"):
        replace(WHOLE, parts=(*WHOLE.parts, WHOLE.parts[0]))


@pytest.mark.parametrize("bad", [{"system_id": "a/b"}, {"upload_id": "x"}])
def test_ids_that_are_none_are_refused(bad):
    with pytest.raises(NamingError):
        replace(WHOLE, parts=(), **bad)
    with pytest.raises(WireError):
        Manifest.decode(damaged(parts=[], **bad))


@pytest.mark.parametrize(
    "bad",
    [
        {"raw_size": -1},
        {"stored_size": -1},
        {"sha256": "A" * 64},
        {"sha256": ""},
        {"name": "../../.bashrc"},
        {"name": "knowledge_graph_/../../x.duckdb", "database": "knowledge_graph_/../../x"},
        {"name": "knowledge_graph.duckdb"},
        {"database": "other"},
        {"compression": "zstd"},
        {"origin": "found"},
    ],
    ids=str,
)
def test_a_part_is_valid_once_built(bad):
    with pytest.raises(WireError):
        replace(WHOLE.parts[0], **bad)
    with pytest.raises(WireError):
        Part.from_document(WHOLE.parts[0].to_document() | bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"raw_size": "5"}, {"raw_size": True}, {"raw_size": None}, {"verified": "yes"}, {"verified": None},
        {"header_iteration": "1"}, {"carried_from": 5}, {"unverified_reason": None}, {"key": 1}, {"compression": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_parts_document_of_wrong_types_is_refused(bad):
    with pytest.raises(WireError):
        Part.from_document(WHOLE.parts[0].to_document() | bad)


@pytest.mark.parametrize("name", ["database", "name", "key", "raw_size", "stored_size", "sha256", "verified"])
def test_a_part_without_what_it_needs_is_refused(name):
    lacking = WHOLE.parts[0].to_document()
    del lacking[name]
    with pytest.raises(WireError, match="incomplete"):
        Part.from_document(lacking)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"null", b"[]", b"5", b'"x"', b"{}", b"\xff\xfe", b"[" * 100_000,
        damaged(parts={}), damaged(parts=[5]), damaged(parts=None), damaged(system_id=5), damaged(uploaded_at="now"),
        damaged(metadata=5), damaged(metadata={"rows": 5}), damaged(metadata={"rows": {"reflection": 5}}),
        damaged(metadata={"rows": {"reflection": {"t": "many"}}}), damaged(incomplete=[1]),
        damaged(bytes_sent="x"), damaged(bytes_sent=float("inf")), damaged(duration_seconds=[]),
    ],
)  # fmt: skip
def test_bytes_that_are_no_manifest_of_ours_are_refused_in_our_words(data):
    with pytest.raises(WireError):
        Manifest.decode(data)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=50), st.integers(0, 3000))
def test_damage_anywhere_is_a_manifest_or_a_wire_error_never_anything_else(junk, at):
    data = WHOLE.encode()
    with suppress(WireError):
        Manifest.decode(data[:at] + junk + data[at + len(junk) :])
