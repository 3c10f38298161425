"""Which files are memory databases, and which database a file belongs to."""

import pytest
from hypothesis import given, settings, strategies as st

from agent.domain.databases import (
    SIDECAR_SUFFIXES,
    FileStat,
    Fingerprint,
    database_of,
    is_requested,
    main_name,
)


@pytest.mark.parametrize(
    ("name", "database"),
    [
        ("reflection.duckdb", "reflection"),
        ("reflection.duckdb.wal", "reflection"),
        ("reflection.duckdb.checkpoint.wal", "reflection"),
        ("reflection.duckdb.recovery.wal", "reflection"),
        ("knowledge_graph.duckdb", "knowledge_graph"),
        ("knowledge_graph.duckdb.wal", "knowledge_graph"),
        ("knowledge_graph_work.duckdb", "knowledge_graph_work"),
        ("knowledge_graph_work.duckdb.wal", "knowledge_graph_work"),
        ("knowledge_graph_my notes, 2026.duckdb", "knowledge_graph_my notes, 2026"),
        ("knowledge_graph_\n.duckdb", "knowledge_graph_\n"),
        ("knowledge_graph_a.duckdb.duckdb", "knowledge_graph_a.duckdb"),
    ],
)
def test_main_files_and_sidecars_belong_to_their_database(name, database):
    assert database_of(name) == database


@pytest.mark.parametrize(
    "name",
    [
        "akosha_sync_state.json", "session.log", "reflection.duckdb.tmp", "reflection.duckdb~", ".reflection.duckdb",
        "reflection.db", "Reflection.duckdb", "knowledge_graph_.duckdb", "knowledge_graphs.duckdb", "other.duckdb",
        "reflection.duckdb.wal.wal", "reflection.wal", "", "reflection.duckdb\n",
        "knowledge_graph_../../x.duckdb", "knowledge_graph_\0.duckdb", "knowledge_graph_\udcff.duckdb",
    ],
)  # fmt: skip
def test_other_files_belong_to_no_database(name):
    assert database_of(name) is None


graphs = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40)


@settings(max_examples=60)
@given(graphs)
def test_every_file_name_of_a_database_maps_to_it(graph):
    database = f"knowledge_graph_{graph}"
    assert {database_of(main_name(database) + suffix) for suffix in ("", *SIDECAR_SUFFIXES)} == {database}


@pytest.mark.parametrize(
    ("database", "reflections", "graphs", "requested"),
    [
        ("reflection", True, False, True),
        ("reflection", False, True, False),
        ("knowledge_graph", False, True, True),
        ("knowledge_graph", True, False, False),
        ("knowledge_graph_work", False, True, True),
        ("knowledge_graph_work", True, False, False),
    ],
)
def test_reflections_and_graphs_are_requested_independently(database, reflections, graphs, requested):
    assert is_requested(database, reflections=reflections, knowledge_graph=graphs) is requested


def test_the_size_of_a_fingerprint_is_the_sum_of_its_files():
    files = (FileStat("reflection.duckdb", 1, 12_288, 0), FileStat("reflection.duckdb.wal", 2, 500, 0))
    assert Fingerprint(files).size == 12_788
    assert Fingerprint(()).size == 0


@pytest.mark.parametrize("field", ["inode", "size", "mtime_ns"])
def test_any_different_stat_field_gives_another_fingerprint(field):
    before = FileStat("reflection.duckdb", 1, 2, 3)
    after = FileStat(**{"name": before.name, "inode": 1, "size": 2, "mtime_ns": 3, field: 9})
    assert Fingerprint((before,)) != Fingerprint((after,))
    assert Fingerprint((before,), "a") != Fingerprint((before,), "b")
