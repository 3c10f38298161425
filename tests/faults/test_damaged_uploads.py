"""Damaged uploads: verification finds and names the damaged object, and takes nothing else for damage."""

import asyncio
import contextlib
import gzip
import hashlib
import json
import random
import zlib

import pytest

from agent.adapters.directory_store import DirectoryStore
from agent.adapters.duckdb.verification import Verdict
from agent.adapters.gunzip import Unpacker
from agent.adapters.memories_file import JsonMemoriesFile
from agent.adapters.patches import ZstdPatcher
from agent.adapters.s3 import S3Store
from agent.adapters.system_clock import SystemClock
from agent.application.archive.catalog import Catalog
from agent.application.archive.verify import DeepCheckTools, Verifier
from agent.bootstrap.archive import _examine
from agent.domain.errors import NoSuchObject, StoreError
from agent.domain.manifest import Manifest
from tests.support.archive import StoredUpload, flip_bit, memory_store, objects_in, put
from tests.support.faulty_store import FaultyStore
from tests.support.machine import Machine
from tests.support.once import made_once

pytest_plugins = ["tests.support.servers.fixtures"]

SYSTEM = "laptop"
OBJECTS = ["reflection.duckdb", "knowledge_graph.duckdb", "memories.json.gz", "manifest.json"]
DATABASES = OBJECTS[:2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The objects of three uploads of one machine. The last two have memories."""

    def upload(folder):
        machine = Machine(folder / "machine")
        for commits, entities in ((10, 3), (12, 4)):
            machine.write(commits=commits, entities=entities)
            machine.sync()
        machine.write(commits=15, entities=6)
        machine.sync()
        machine.bucket.rename(folder / "bucket")

    return asyncio.run(objects_in(made_once(tmp_path_factory, "three-uploads", upload) / "bucket"))


@pytest.fixture
def both(made):
    """The second upload and the last one, in one store."""
    store = memory_store(made)
    keys = sorted(key for key in made if key.endswith("/manifest.json"))
    return [StoredUpload(store, Manifest.decode(made[key][0])) for key in keys[1:]]


@pytest.fixture
def kept(both):
    return both[1]


def rows_as_reported(manifest):
    async def examine(copy):
        return Verdict(verified=True, rows=manifest.rows[copy.name.removesuffix(".duckdb")])

    return examine


def make_verifier(store, tmp_path, examine=_examine):
    folder = tmp_path / "verifying"
    folder.mkdir(exist_ok=True)
    deep = DeepCheckTools(
        unpacker=Unpacker(folder),
        patcher=ZstdPatcher(),
        examine=examine,
        memories_file=JsonMemoriesFile(folder),
    )
    return Verifier(Catalog(store, SYSTEM, standstill_seconds=20), SystemClock(), deep)


def verifier_without_duckdb(kept, tmp_path):
    """Return a verifier that takes the row counts from the manifest instead of starting a process for each database."""
    return make_verifier(kept.store, tmp_path, rows_as_reported(kept.manifest))


async def test_an_intact_upload_passes_and_leaves_no_file(both, tmp_path):
    verifier, moved = make_verifier(both[0].store, tmp_path), []
    for kept in both:
        totals = []
        found = await verifier.deep(kept.upload, moved.append, totals.append)
        assert (dict(found.problems), dict(found.notes), found.objects) == ({}, {}, 4)
        assert totals == [kept.manifest.stored_bytes]
        assert (await verifier.shallow(kept.upload)).whole
    assert sum(moved) == sum(kept.manifest.stored_bytes for kept in both)
    assert list((tmp_path / "verifying").iterdir()) == []


def same_within(data: bytes, changed: bytes) -> bool:
    """Return whether both are gzip data that unpack to the same bytes."""
    if not data.startswith(b"\x1f\x8b"):
        return False
    with contextlib.suppress(OSError, EOFError, zlib.error):
        return gzip.decompress(changed) == gzip.decompress(data)
    return False


@pytest.mark.parametrize("name", OBJECTS[:3])
async def test_a_deep_verification_finds_a_flipped_bit_in_each_object(kept, tmp_path, name):
    verifier, data = verifier_without_duckdb(kept, tmp_path), kept.data(name)
    for bit in [0, *random.Random(7).sample(range(8 * len(data)), 12), 8 * len(data) - 1]:
        if same_within(data, flip_bit(data, bit)):
            continue  # it unpacks to the same bytes, so nothing is lost
        kept.change(name, flip_bit(data, bit))
        assert (await verifier.shallow(kept.upload)).whole, "only the bytes differ"
        assert set((await verifier.deep(kept.upload)).problems) == {name}, bit


async def test_a_flipped_bit_of_the_manifest_is_found_without_a_download(kept, tmp_path):
    verifier, data = verifier_without_duckdb(kept, tmp_path), kept.data("manifest.json")
    for bit in random.Random(8).sample(range(8 * len(data)), 150):
        kept.change("manifest.json", flip_bit(data, bit))
        assert "manifest.json" in (await verifier.shallow(kept.upload)).problems, bit


async def test_a_changed_manifest_without_metadata_is_found(kept, tmp_path):
    document = json.loads(kept.data("manifest.json"))
    document["parts"][0]["sha256"] = "ab" * 32
    kept.store.objects[kept.manifest.key] = json.dumps(document).encode(), {}
    assert "manifest.json" in (await verifier_without_duckdb(kept, tmp_path).shallow(kept.upload)).problems


@pytest.mark.parametrize("name", OBJECTS)
@pytest.mark.parametrize("length", [0, 1, -1], ids=["empty", "one-byte", "one-byte-less"])
async def test_a_truncated_object_is_found_without_a_download(kept, tmp_path, name, length):
    kept.change(name, kept.data(name)[:length])
    verifier = verifier_without_duckdb(kept, tmp_path)
    assert set((await verifier.shallow(kept.upload)).problems) == {name}
    assert set((await verifier.deep(kept.upload)).problems) == {name}


@pytest.mark.parametrize("name", OBJECTS)
async def test_a_missing_object_is_found_without_a_download(kept, tmp_path, name):
    del kept.store.objects[kept.key(name)]
    found = await verifier_without_duckdb(kept, tmp_path).shallow(kept.upload)
    assert dict(found.problems) == {name: "is missing"}
    assert found.is_missing == (name == "manifest.json")


@pytest.mark.parametrize("name", OBJECTS)
async def test_an_object_of_another_upload_is_found_without_a_download(both, tmp_path, name):
    older, kept = both
    kept.store.objects[kept.key(name)] = older.store.objects[older.key(name)]
    assert set((await verifier_without_duckdb(kept, tmp_path).shallow(kept.upload)).problems) == {name}


@pytest.mark.parametrize("what", ["database", "memories"])
async def test_an_upload_of_a_newer_version_is_refused_with_what_to_do(kept, tmp_path, what):
    if what == "database":
        kept.change_part("reflection.duckdb", compression="of 2030")
    else:
        kept.change_manifest(memories=kept.manifest.memories.to_document() | {"compression": "of 2030"})
    hint = "update akosha-agent"
    problems = (await verifier_without_duckdb(kept, tmp_path).deep(kept.upload)).problems
    assert (problems.keys(), hint in problems["manifest.json"]) == ({"manifest.json"}, True)
    catalog = Catalog(kept.store, SYSTEM)
    assert hint in (await catalog.show(kept.upload)).problems["manifest.json"]
    with pytest.raises(StoreError, match=r"'of 2030'.* unknown") as refused:
        await catalog.manifest(kept.upload)
    assert refused.value.hint == hint


async def test_the_manifest_of_another_system_is_found_and_named(kept, tmp_path):
    kept.write(kept.data("manifest.json").replace(b"laptop", b"tablet"))
    problems = (await verifier_without_duckdb(kept, tmp_path).shallow(kept.upload)).problems
    assert "is the manifest of" in problems["manifest.json"]


@pytest.mark.parametrize(
    "key",
    [
        "/etc/passwd",
        "systems/laptop/uploads/{upload}/../{older}/reflection.duckdb",
        "systems/laptop/uploads/{older}/reflection.duckdb",
        "systems/tablet/uploads/{upload}/reflection.duckdb",
        "systems/laptop/uploads/{upload}/sub/reflection.duckdb",
        "systems/laptop/uploads/{upload}/knowledge_graph.duckdb",
        "reflection.duckdb",
        "",
    ],
    ids=["absolute", "dots", "another-upload", "another-system", "deeper", "another-part", "bare", "empty"],
)
async def test_a_key_outside_the_upload_is_refused_and_never_requested(both, tmp_path, key):
    older, kept = both
    kept.change_part("reflection.duckdb", key=key.format(upload=kept.upload, older=older.upload))
    store = FaultyStore(kept.store)
    found = await make_verifier(store, tmp_path).deep(kept.upload)
    assert set(found.problems) == {"manifest.json"}
    assert store.keys("get") == [kept.manifest.key]


@pytest.mark.parametrize("name", ["../reflection.duckdb", "/reflection.duckdb", "sub/reflection.duckdb", "passwd"])
async def test_a_file_name_that_is_not_a_databases_is_refused(kept, tmp_path, name):
    kept.change_part("reflection.duckdb", name=name)
    assert set((await verifier_without_duckdb(kept, tmp_path).shallow(kept.upload)).problems) == {"manifest.json"}


@pytest.mark.parametrize(
    "sizes",
    [
        {"raw_size": -1},
        {"stored_size": -1},
        {"raw_size": 2**62},
        {"raw_size": 10**400},
        {"stored_size": 10**400},
        {"raw_size": 2**39},
        {"raw_size": 1.5},
    ],
    ids=["raw-negative", "stored-negative", "raw-huge", "raw-vast", "stored-vast", "beyond-gzip", "a-fraction"],
)
async def test_an_impossible_size_is_refused_and_nothing_is_downloaded(kept, tmp_path, sizes):
    kept.change_part("reflection.duckdb", **sizes)
    store = FaultyStore(kept.store)
    found = await make_verifier(store, tmp_path).deep(kept.upload)
    assert set(found.problems) <= {"reflection.duckdb", "manifest.json"}
    assert not found.whole
    assert store.keys("get") == [kept.manifest.key]
    listed = (await Catalog(kept.store, SYSTEM).listing()).uploads[0]
    assert (listed.upload_id, listed.manifest) == (kept.upload, None)
    assert listed.problems


async def test_a_gzip_bomb_is_unpacked_only_up_to_the_size_in_the_manifest(kept, tmp_path):
    bomb = zlib.compressobj(wbits=31)
    packed = b"".join([*(bomb.compress(bytes(2**20)) for _ in range(256)), bomb.flush()])
    kept.rewrite("reflection.duckdb", bytes(2**20), packed=packed)
    found = await verifier_without_duckdb(kept, tmp_path).deep(kept.upload)
    assert set(found.problems) == {"reflection.duckdb"}
    assert "unpacks to more than the 1048576 bytes" in found.problems["reflection.duckdb"]


async def test_a_deep_verification_finds_other_row_counts(kept, tmp_path):
    rows = {name: dict(tables) for name, tables in kept.manifest.rows.items()}
    rows["reflection"]["conversations_v2"] += 1
    kept.change_manifest(metadata={"rows": rows})
    found = await make_verifier(kept.store, tmp_path).deep(kept.upload)
    assert dict(found.problems) == {
        "reflection.duckdb": "has other row counts than its manifest: conversations_v2 15, not 16"
    }


async def test_a_deep_verification_finds_an_invalid_database_with_correct_digests(kept, tmp_path):
    kept.rewrite("reflection.duckdb", b"no database at all" * 1000)
    found = await make_verifier(kept.store, tmp_path).deep(kept.upload)
    assert set(found.problems) == {"reflection.duckdb"}


async def test_a_deep_verification_finds_invalid_memories_with_a_correct_digest(kept, tmp_path):
    text = b'{"conversations": "none"}'
    stored = gzip.compress(text)
    memories = json.loads(kept.data("manifest.json"))["memories"]
    memories |= {"size": len(text), "stored_size": len(stored), "sha256": hashlib.sha256(text).hexdigest()}
    kept.change_manifest(memories=memories)
    document = json.loads(kept.data("manifest.json"))
    kept.write(Manifest.decode(json.dumps(document).encode()).encode())
    kept.store.objects[kept.key("memories.json.gz")] = stored, {}
    found = await verifier_without_duckdb(kept, tmp_path).deep(kept.upload)
    assert set(found.problems) == {"memories.json.gz"}


@pytest.mark.parametrize("call", ["get", "head"])
async def test_an_unreachable_store_is_not_reported_as_damage(kept, tmp_path, call):
    store = FaultyStore(kept.store)
    store.fail(call, StoreError("the network is down", transient=True))
    with pytest.raises(StoreError, match="the network is down"):
        await make_verifier(store, tmp_path).shallow(kept.upload)


async def test_an_upload_deleted_during_its_verification_is_reported_as_missing(kept, tmp_path):
    store = FaultyStore(kept.store)
    store.fail("head", NoSuchObject("deleted"), key="reflection.duckdb")
    store.fail("head", NoSuchObject("deleted"), key="manifest.json", after=True)
    assert (await make_verifier(store, tmp_path).shallow(kept.upload)).is_missing


async def test_a_limited_deep_verification_names_what_it_did_not_download(kept, tmp_path):
    verifier = verifier_without_duckdb(kept, tmp_path)
    sizes = {part.database: part.stored_size for part in kept.manifest.parts}
    kept.change("reflection.duckdb", flip_bit(kept.data("reflection.duckdb"), 4321))
    found = await verifier.deep(kept.upload, most_bytes=sizes["knowledge_graph"])
    assert (found.whole, found.left_out) == (True, ("reflection", "memories.json.gz"))
    found = await verifier.deep(kept.upload, most_bytes=sum(sizes.values()))
    assert (set(found.problems), found.left_out) == ({"reflection.duckdb"}, ("memories.json.gz",))
    found = await verifier.deep(kept.upload, most_bytes=sum(sizes.values()) + kept.manifest.memories.stored_size)
    assert (set(found.problems), found.left_out) == ({"reflection.duckdb"}, ())


@pytest.mark.parametrize("kind", ["directory", "moto", "rclone"])
async def test_damage_is_found_in_every_kind_of_store(request, made, kept, tmp_path, kind):
    """A shallow verification finds other metadata, another size and a missing object; a deep one finds other bytes.

    The upload was made in a directory. There a shallow verification finds other bytes too, by their digests; in a
    bucket it does not, because the manifest has no ETags.
    """
    if kind == "directory":
        store = DirectoryStore(tmp_path / "bucket")
    else:
        request.getfixturevalue("aws")
        server = request.getfixturevalue(kind)
        store = S3Store(bucket=server.new_bucket(), endpoint=server.endpoint, region="auto")
    try:
        for key, (data, metadata) in made.items():
            await put(store, key, data, metadata)
        verifier = make_verifier(store, tmp_path, rows_as_reported(kept.manifest))
        assert (await verifier.deep(kept.upload)).whole
        name, other = "reflection.duckdb", "knowledge_graph.duckdb"
        data, metadata = made[kept.key(name)]
        await put(store, kept.key(name), flip_bit(data, 4321), metadata)
        assert set((await verifier.shallow(kept.upload)).problems) == ({name} if kind == "directory" else set())
        assert set((await verifier.deep(kept.upload)).problems) == {name}
        await put(store, kept.key(name), *made[kept.key(other)])
        await put(store, kept.key("memories.json.gz"), b"{}", made[kept.key("memories.json.gz")][1])
        await store.delete([kept.key(other)])
        found = await verifier.shallow(kept.upload)
        assert set(found.problems) == {name, other, "memories.json.gz"}
        assert set((await verifier.deep(kept.upload)).problems) == set(found.problems)
    finally:
        await store.aclose()
