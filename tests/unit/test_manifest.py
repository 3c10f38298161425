"""Manifests: encoding and decoding, Akosha's schema, and rejection of invalid values."""

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings, strategies as st

from agent.domain.errors import NamingError, WireError
from agent.domain.manifest import MAX_CONVERSATIONS, MAX_TOTAL_BYTES, Manifest
from agent.domain.upload_parts import MemoriesPart, Part, relocate
from tests.support.values import NOON, SYSTEM, manifest, memories_part, parts, patched_part, sha256, upload_id

FULL = replace(
    manifest(20, reflection=3, knowledge_graph=(1, "carried")),
    incomplete={"knowledge_graph": "it was too busy"},
    memories=memories_part(20, count=7, reflection=10),
    without_memories={"knowledge_graph_x": "made by a newer DuckDB"},
    memories_omitted={"knowledge_graph_y": "there is no base upload"},
    time_zone="Europe/Vienna",
)


def document(of: Manifest = FULL) -> dict:
    return json.loads(of.encode())


def damaged(**changes: object) -> bytes:
    return json.dumps(document() | changes).encode()


def test_a_manifest_is_decoded_unchanged():
    assert Manifest.decode(FULL.encode()) == FULL


graphs = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20)


@settings(max_examples=40)
@given(
    st.lists(graphs, max_size=3, unique=True),
    st.dictionaries(st.text(max_size=5), st.dictionaries(st.text(max_size=5), st.integers(0, 2**40), max_size=2)),
    st.text(max_size=20) | st.just("/home/\udcff/x"),
)
def test_a_manifest_with_any_names_and_reasons_is_decoded_unchanged(names, rows, reason):
    databases = [f"knowledge_graph_{name}" for name in names]
    all_parts = tuple(part for database in databases for part in parts(database))
    given_manifest = replace(
        manifest(reflection=0),
        parts=all_parts,
        rows=rows,
        incomplete=dict.fromkeys(databases, reason),
        memories=memories_part(**dict.fromkeys(databases)),
        without_memories=dict.fromkeys(databases, reason),
        memories_omitted={"reflection": reason},
    )
    assert Manifest.decode(given_manifest.encode()) == given_manifest


def test_unknown_fields_are_ignored():
    more = document() | {"future": 1}
    more["parts"][0]["future"] = 1
    assert Manifest.decode(json.dumps(more).encode()) == FULL


def check_akoshas_rules(found: dict, *, now: datetime) -> None:
    """Check every rule of Akosha 0.11.0 for manifests, and for the IDs and file names of an upload."""
    at = datetime.fromisoformat(found["uploaded_at"])
    assert at.utcoffset() is not None
    assert now - timedelta(days=365) <= at <= now + timedelta(minutes=5)
    assert type(found["conversation_count"]) is int
    assert 0 <= found["conversation_count"] <= 1_000_000
    assert type(found["total_size_bytes"]) is int
    assert 0 <= found["total_size_bytes"] <= 100_000_000_000
    assert re.fullmatch(r"\d+\.\d+", found["version"])
    assert 1 <= len(found["system_type"]) <= 50
    assert re.fullmatch(r"[a-f0-9]{64}", found["checksum"])
    assert isinstance(found.get("compressed", False), bool)
    assert found.get("compressed", False) == ("compression_format" in found)
    assert found.get("compression_format", "gzip") in ("gzip", "zstd", "lz4")
    assert isinstance(found["metadata"], dict)
    for name in found["files"]:
        assert re.fullmatch(r"[a-zA-Z0-9_.-]+", name)
        assert len(name) <= 255
        assert ".." not in name
    assert re.fullmatch(r"[a-zA-Z0-9_-]{1,100}", found["system_id"])
    assert re.fullmatch(r"[a-zA-Z0-9_.-]{1,100}", found["upload_id"])
    assert ".." not in found["upload_id"]


def parts_of(*databases: str) -> tuple[Part, ...]:
    return tuple(part for database in databases for part in parts(database, second=20))


UNCOMPRESSED = replace(
    FULL,
    parts=tuple(replace(part, compression="none") for part in FULL.parts),
    memories=memories_part(20, gzipped=False, reflection=10),
)

KINDS = {
    "full": FULL,
    "first": replace(FULL, memories=memories_part(20, reflection=None, knowledge_graph=None)),
    "nothing new": replace(FULL, memories=memories_part(20, count=0, reflection=10)),
    "without memories": replace(FULL, memories=None, without_memories={"reflection": "it is locked"}),
    "carried": manifest(20, reflection=(1, "carried"), knowledge_graph=(1, "copied")),
    "omitted": replace(FULL, memories=None, memories_omitted={"reflection": "there is no base upload"}),
    "uncompressed": UNCOMPRESSED,
    "huge": replace(
        FULL,
        parts=tuple(replace(part, stored_size=MAX_TOTAL_BYTES) for part in FULL.parts),
        memories=replace(memories_part(20), count=MAX_CONVERSATIONS + 1),
    ),
    "odd names": replace(
        FULL,
        parts=parts_of(
            "knowledge_graph_a..b", "knowledge_graph_...", "knowledge_graph_père & fils", "knowledge_graph_~",
            f"knowledge_graph_{'x' * 200}", f"knowledge_graph_{'記' * 60}", "knowledge_graph_.duckdb",
        ),
        memories=memories_part(20, **{"knowledge_graph_a..b": None, "knowledge_graph_père & fils": 3}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("of", KINDS.values(), ids=KINDS)
def test_a_manifest_satisfies_akoshas_schema_and_is_decoded_unchanged(of):
    found = document(of)
    check_akoshas_rules(found, now=of.uploaded_at)
    assert Manifest.decode(of.encode()) == of
    names = {part.key.rpartition("/")[2] for part in of.objects}
    assert set(found["files"]) == names
    assert len(found["files"]) == len(names)


def test_the_total_size_is_the_sum_of_all_objects_up_to_akoshas_limit():
    assert document()["total_size_bytes"] == sum(part.stored_size for part in FULL.parts) + FULL.memories.stored_size
    assert document(KINDS["huge"])["total_size_bytes"] == MAX_TOTAL_BYTES


def test_compressed_and_its_format_are_both_present_or_both_absent():
    assert {"compressed", "compression_format"}.isdisjoint(document(UNCOMPRESSED))
    for mixed in (replace(UNCOMPRESSED, parts=FULL.parts), replace(UNCOMPRESSED, memories=FULL.memories)):
        assert {"compressed", "compression_format"} <= document(mixed).keys()


def test_file_names_are_plain_for_any_graph_name():
    odd = replace(FULL, parts=parts("knowledge_graph_père & fils", second=20))
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in document(odd)["files"])


@pytest.mark.parametrize(("memories", "count"), [(0, 0), (77, 77), (MAX_CONVERSATIONS + 5, MAX_CONVERSATIONS)])
def test_the_conversation_count_is_the_number_of_memories_up_to_akoshas_limit(memories, count):
    counted = replace(FULL, memories=memories_part(20, count=memories))
    assert document(counted)["conversation_count"] == count


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ({}, 0),
        ({"knowledge_graph": {"kg_entities": 7}}, 0),
        ({"reflection": {"conversations_v2": 5, "conversations": 3, "reflections_v2": 2}}, 5),
        ({"reflection": {"conversations": 3}, "knowledge_graph_x": {"conversations_v2": 4}}, 7),
        ({"reflection": {"conversations_v2": MAX_CONVERSATIONS + 5}}, MAX_CONVERSATIONS),
    ],
)
def test_without_memories_the_conversation_count_is_that_of_the_databases(rows, count):
    assert document(replace(FULL, memories=None, rows=rows))["conversation_count"] == count
    assert document(replace(FULL, memories=memories_part(20, count=1), rows=rows))["conversation_count"] == 1


def test_the_checksum_is_over_a_sha256sum_listing_in_key_order():
    all_parts = (*FULL.parts, FULL.memories)
    listing = "".join(
        sorted((f"{each.sha256}  {each.key}\n" for each in all_parts), key=lambda line: line.split("  ")[1])
    )
    assert document()["checksum"] == hashlib.sha256(listing.encode()).hexdigest()
    reversed_parts = replace(FULL, parts=FULL.parts[::-1])
    assert document(reversed_parts)["checksum"] == document()["checksum"]


def test_the_key_has_the_prefix_of_the_upload_and_parts_are_found_by_database():
    assert FULL.key == f"systems/{SYSTEM}/uploads/{FULL.upload_id}/manifest.json"
    assert FULL.of("reflection") == FULL.parts[:2]
    assert FULL.of("nothing") == ()
    assert FULL.digests(["reflection"]) == {part.name: part.sha256 for part in FULL.parts[:2]}
    assert FULL.stored_bytes == sum(part.stored_size for part in FULL.parts) + FULL.memories.stored_size
    assert FULL.keys == (*(part.key for part in FULL.parts), FULL.memories.key)
    assert replace(FULL, memories=None).keys == FULL.keys[:-1]


def test_the_metadata_of_an_object_describes_its_part():
    (main, _) = parts("reflection", 3)
    assert main.objects[0].metadata == {"sha256": main.sha256, "size": "1003", "compression": "gzip"}


PATCHED = patched_part([0, 1, 2], second=20)


def test_a_patched_file_is_decoded_unchanged_and_names_all_its_objects():
    patched = replace(FULL, parts=(PATCHED,), memories=None)
    assert Manifest.decode(patched.encode()) == patched
    names = ["reflection.duckdb.base", "reflection.duckdb.patch-01", "reflection.duckdb.patch-02"]
    assert document(patched)["files"] == names
    assert patched.stored_bytes == 48 * 2**20
    assert [item.key for item in PATCHED.objects] == list(patched.keys)


def test_the_metadata_of_a_base_is_that_of_the_file_that_was_sent_whole():
    base, patch, _ = PATCHED.objects
    assert base.metadata == {"sha256": base.sha256, "size": str(50 * 2**20), "compression": "gzip"}
    assert patch.metadata == {"sha256": patch.sha256, "size": str(4 * 2**20), "compression": "none"}


def test_the_checksum_covers_every_layer():
    other = replace(PATCHED.layers[1], sha256=sha256("other"))
    changed = replace(PATCHED, layers=(PATCHED.layers[0], other, PATCHED.layers[2]))
    assert (
        document(replace(FULL, parts=(changed,)))["checksum"] != document(replace(FULL, parts=(PATCHED,)))["checksum"]
    )


def test_a_relocated_patched_file_has_the_keys_of_its_new_upload_and_no_etags():
    moved = relocate(PATCHED, system_id=SYSTEM, upload=upload_id(9), origin="copied", carried_from=None)
    assert replace(FULL, upload_id=upload_id(9), parts=(moved,), memories=None).keys == tuple(
        item.key.replace(upload_id(20), upload_id(9)) for item in PATCHED.objects
    )
    assert not any(layer.etag for layer in moved.layers)
    etags = {layer.key: f"new-{layer.key}" for layer in moved.layers}
    assert [layer.etag for layer in moved.with_etags(etags).layers] == list(etags.values())


@pytest.mark.parametrize(
    "bad",
    [
        {"layers": ()},
        {"compression": "gzip"},
        {"key": PATCHED.layers[1].key},
        {"raw_size": 1},
        {"sha256": PATCHED.layers[0].sha256},
        {"stored_size": 1},
        {"layers": (replace(PATCHED.layers[0], file_sha256=sha256("x")), *PATCHED.layers[1:])},
        {"layers": PATCHED.layers[:2]},
        {"layers": PATCHED.layers[:1], "stored_size": 40 * 2**20, "sha256": PATCHED.layers[0].sha256},
    ],
    ids=str,
)
def test_a_part_that_is_not_what_its_layers_make_is_refused(bad):
    with pytest.raises(WireError):
        replace(PATCHED, **bad)


def test_a_base_with_the_name_of_the_file_is_refused():
    """A version that does not know patches would restore it beside a newer WAL."""
    key = PATCHED.key.removesuffix(".base")
    base = replace(PATCHED.layers[0], key=key)
    with pytest.raises(WireError, match="is not the key of"):
        replace(FULL, parts=(replace(PATCHED, key=key, layers=(base, *PATCHED.layers[1:])),))


@pytest.mark.parametrize(
    "bad",
    [
        *({"layers": value} for value in (5, None, "x", [5], [{}], [[]])),
        *(
            {"layers": [PATCHED.to_document()["layers"][0] | change]}
            for change in (
                {"raw_size": -1},
                {"file_size": -1},
                {"file_size": 2**63},
                {"sha256": "x"},
                {"file_sha256": None},
                {"compression": "patches"},
                {"upload_id": "yesterday"},
                {"key": 5},
                {"etag": None},
            )
        ),
    ],
    ids=lambda bad: str(bad)[-60:],
)
def test_invalid_layers_are_refused(bad):
    with pytest.raises(WireError):
        Part.from_document(PATCHED.to_document() | bad)


def test_a_time_keeps_its_offset():
    east = NOON.astimezone(timezone(timedelta(hours=9)))
    assert document(replace(FULL, uploaded_at=east))["uploaded_at"].endswith("+09:00")


def test_a_time_without_offset_is_refused():
    with pytest.raises(WireError, match="has no offset"):
        replace(FULL, uploaded_at=NOON.replace(tzinfo=None))
    with pytest.raises(WireError, match="has no offset"):
        Manifest.decode(damaged(uploaded_at="2026-03-01T12:00:00"))


@pytest.mark.parametrize(
    "bad",
    [
        {"uploaded_at": "0001-01-01T00:00:00+14:00"},
        {"uploaded_at": "9999-12-31T23:59:59-14:00"},
        {"bytes_sent": -1},
        {"bytes_sent": 10**30},
        {"duration_seconds": -1.0},
        {"duration_seconds": float("nan")},
        {"duration_seconds": float("inf")},
        {"metadata": {"rows": {"reflection": {"conversations": 10**30}}}},
        *({"parts": [document()["parts"][0] | {name: 10**30}]} for name in ("raw_size", "stored_size")),
        *({"parts": [document()["parts"][0] | {name: 2**63}]} for name in ("header_iteration", "storage_version")),
        {"parts": [document()["parts"][0] | {"carried_from": "yesterday"}]},
        {"memories": document()["memories"] | {"count": 10**30}},
    ],
    ids=lambda bad: str(bad)[-60:],
)
def test_values_that_the_ledger_and_events_cannot_hold_are_refused(bad):
    """Whoever can write to the bucket could otherwise stop every sync of an agent that adopts this manifest."""
    with pytest.raises(WireError):
        Manifest.decode(damaged(**bad))


def test_a_key_outside_the_upload_is_refused():
    stray = replace(FULL.parts[0], key=f"systems/{SYSTEM}/uploads/{upload_id(99)}/reflection.duckdb")
    with pytest.raises(WireError, match="is not the key of"):
        replace(FULL, parts=(stray,))


def test_two_parts_with_the_same_key_are_refused():
    with pytest.raises(WireError, match="have the same key"):
        replace(FULL, parts=(*FULL.parts, FULL.parts[0]))


@pytest.mark.parametrize("bad", [{"system_id": "a/b"}, {"upload_id": "x"}])
def test_invalid_ids_are_refused(bad):
    with pytest.raises(NamingError):
        replace(FULL, parts=(), **bad)
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
def test_an_invalid_part_cannot_be_constructed(bad):
    with pytest.raises(WireError):
        replace(FULL.parts[0], **bad)
    with pytest.raises(WireError):
        Part.from_document(FULL.parts[0].to_document() | bad)


@pytest.mark.parametrize(
    "bad",
    [
        {"size": -1}, {"count": -1}, {"sha256": "A" * 64}, {"bases": {"../x": None}}, {"bases": {"other": None}},
        {"bases": {"reflection": "yesterday"}}, {"size": "5"}, {"count": True}, {"key": 5}, {"bases": []},
        {"bases": {"reflection": 5}}, {"bases": None}, {"stored_size": -1}, {"stored_size": "5"},
        {"compression": "zstd"}, {"compression": "none"}, {"compression": None},
    ],
    ids=str,
)  # fmt: skip
def test_memories_with_invalid_values_are_refused(bad):
    with pytest.raises(WireError):
        Manifest.decode(damaged(memories=document()["memories"] | bad))


def test_a_manifest_without_etags_is_read_with_empty_etags():
    old = document()
    for part in (*old["parts"], old["memories"]):
        del part["etag"]
    read = Manifest.decode(json.dumps(old).encode())
    assert {part.etag for part in read.parts} == {read.memories.etag} == {""}


def test_memories_of_another_upload_or_with_fields_missing_are_refused():
    plain, gzipped = memories_part(20, gzipped=False), memories_part(20)
    for other in (memories_part(21), replace(gzipped, key=plain.key), replace(plain, key=gzipped.key)):
        with pytest.raises(WireError, match="is not the key of its memories"):
            replace(FULL, memories=other)
    for name in document()["memories"].keys() - {"etag", "stored_size", "compression"}:
        lacking = {key: value for key, value in document()["memories"].items() if key != name}
        with pytest.raises(WireError, match="incomplete"):
            MemoriesPart.from_document(lacking)
    for invalid in (5, "x", [1], [], {}):
        with pytest.raises(WireError):
            Manifest.decode(damaged(memories=invalid))


def test_a_manifest_of_a_version_without_memories_has_none():
    old = document()
    for name in ("memories", "without_memories", "memories_omitted", "time_zone"):
        del old[name]
    found = Manifest.decode(json.dumps(old).encode())
    assert (found.memories, found.without_memories, found.memories_omitted, found.time_zone) == (None, {}, {}, "")


def test_uncompressed_memories_have_the_fields_of_earlier_versions():
    plain = memories_part(20, gzipped=False, reflection=10)
    written = plain.to_document()
    earlier = {name: written[name] for name in ("key", "size", "sha256", "count", "bases")}
    assert earlier["size"] == plain.raw_size
    assert MemoriesPart.from_document(earlier) == plain


def test_omitted_memories_are_those_of_databases_that_the_memories_do_not_have():
    omitted = {"knowledge_graph": "there is no base upload"}
    assert replace(FULL, memories_omitted=omitted).base_of == {"knowledge_graph", "reflection"}
    assert replace(FULL, memories=None, memories_omitted=omitted).base_of == {"knowledge_graph"}
    assert replace(FULL, memories=None, memories_omitted={}).base_of == set()
    with pytest.raises(WireError, match="the memories of 'reflection' are there and omitted"):
        replace(FULL, memories_omitted={"reflection": "most rows are new"})
    with pytest.raises(WireError, match="is not a database"):
        Manifest.decode(damaged(memories_omitted={"../x": "most rows are new"}))


@pytest.mark.parametrize("gzipped", [True, False])
def test_the_metadata_of_the_memories_object_describes_it(gzipped):
    part = memories_part(20, count=7, gzipped=gzipped)
    assert part.metadata == {"sha256": part.sha256, "size": "7000", "compression": "gzip" if gzipped else "none"}


@pytest.mark.parametrize(
    "bad",
    [
        {"raw_size": "5"}, {"raw_size": True}, {"raw_size": None}, {"verified": "yes"}, {"verified": None},
        {"header_iteration": "1"}, {"carried_from": 5}, {"unverified_reason": None}, {"key": 1}, {"compression": []},
        {"carried_from": "yesterday"}, {"stored_size": 2**63},
    ],
    ids=str,
)  # fmt: skip
def test_a_part_with_invalid_fields_is_refused(bad):
    with pytest.raises(WireError):
        Part.from_document(FULL.parts[0].to_document() | bad)


@pytest.mark.parametrize("name", ["database", "name", "key", "raw_size", "stored_size", "sha256", "verified"])
def test_a_part_with_fields_missing_is_refused(name):
    lacking = FULL.parts[0].to_document()
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
        # What could be neither stored in the ledger, sent in an event, nor shown as a time.
        damaged(bytes_sent=-1), damaged(bytes_sent=2**63), damaged(metadata={"rows": {"reflection": {"t": 2**63}}}),
        damaged(duration_seconds=float("nan")), damaged(duration_seconds="inf"), damaged(request_id="\ud800"),
        damaged(agent_id="\udcff"), damaged(triggered_by="\ud800"),
        damaged(uploaded_at="0001-01-01T00:00:00+14:00"), damaged(uploaded_at="9999-12-31T23:59:59-14:00"),
    ],
)  # fmt: skip
def test_bytes_that_are_not_a_manifest_are_a_wire_error(data):
    with pytest.raises(WireError):
        Manifest.decode(data)


@settings(max_examples=60)
@given(st.binary(max_size=50), st.integers(0, 3000))
def test_damaged_bytes_are_a_manifest_or_a_wire_error(junk, at):
    data = FULL.encode()
    with suppress(WireError):
        Manifest.decode(data[:at] + junk + data[at + len(junk) :])


def test_a_name_too_long_for_a_file_is_refused():
    """The name becomes a path when the part is verified or restored."""
    [part] = [p for p in parts("knowledge_graph") if p.name == "knowledge_graph.duckdb"]
    name = f"knowledge_graph_{'x' * 250}"
    with pytest.raises(WireError, match="too long for a file"):
        replace(part, database=name, name=f"{name}.duckdb")
