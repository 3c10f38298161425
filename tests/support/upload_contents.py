"""The contents of an upload, read from its manifest and objects only.

python upload_contents.py FOLDER     prints the rows per table of every database in it (a process that may crash)
"""

import gzip
import hashlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from tests.support import zygote

_GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "restore.md"


def unpack(manifest: dict, fetch: Callable[[str], bytes], folder: Path) -> Path:
    """Unpack the files of an upload into `folder`; assert that sizes and digests match the manifest."""
    folder.mkdir(parents=True)
    for part in manifest["parts"]:
        (folder / part["name"]).write_bytes(_file(manifest, part, fetch, folder))
    sizes = [part["stored_size"] for part in manifest["parts"]]
    if memories := manifest["memories"]:
        assert len(memories_of(manifest, fetch)) == manifest["conversation_count"]
        sizes.append(memories.get("stored_size", memories["size"]))
    assert manifest["total_size_bytes"] == sum(sizes)
    return folder


def keys_of(manifest: dict) -> set[str]:
    """Return the keys of the upload's objects, without the manifest."""
    parts = {item["key"] for part in manifest["parts"] for item in part.get("layers", [part])}
    return parts | ({manifest["memories"]["key"]} if manifest["memories"] else set())


def _file(manifest: dict, part: dict, fetch: Callable[[str], bytes], folder: Path) -> bytes:
    raw = b""
    for number, item in enumerate(part.get("layers", [part])):
        stored = fetch(item["key"])
        assert len(stored) == item["stored_size"], item["key"]
        content = gzip.decompress(stored) if item["compression"] == "gzip" else stored
        assert (len(content), hashlib.sha256(content).hexdigest()) == (item["raw_size"], item["sha256"]), item["key"]
        assert item["key"].startswith(f"systems/{manifest['system_id']}/uploads/{manifest['upload_id']}/")
        raw = _patched(raw, content, folder) if number else content
        if "file_sha256" in item:
            assert (len(raw), hashlib.sha256(raw).hexdigest()) == (item["file_size"], item["file_sha256"]), item["key"]
    assert (len(raw), hashlib.sha256(raw).hexdigest()) == (part["raw_size"], part["sha256"]), part["key"]
    return raw


def _patched(reference: bytes, patch: bytes, folder: Path) -> bytes:
    """Apply a patch with the program of the guide, which is not the agent's."""
    (program,) = re.findall(r"^```python\n(.*?AKPATCH1.*?)^```", _GUIDE.read_text(), re.DOTALL | re.MULTILINE)
    paths = [folder / f"patching-{name}" for name in ("reference", "patch", "file")]
    paths[0].write_bytes(reference)
    paths[1].write_bytes(patch)
    zygote.run([sys.executable, "-c", program, *paths], check=True, timeout=60)
    made = paths[2].read_bytes()
    for path in paths:
        path.unlink()
    return made


def memories_of(manifest: dict, fetch: Callable[[str], bytes]) -> list[dict]:
    """Return the entries of the upload's memories; assert that size and digest match the manifest."""
    memories = {"stored_size": manifest["memories"]["size"], "compression": "none", **manifest["memories"]}
    stored = fetch(memories["key"])
    assert len(stored) == memories["stored_size"]
    raw = gzip.decompress(stored) if memories["compression"] == "gzip" else stored
    assert (len(raw), hashlib.sha256(raw).hexdigest()) == (memories["size"], memories["sha256"])
    entries = json.loads(raw)["conversations"]
    assert len(entries) == memories["count"]
    return entries


def rows(folder: Path) -> dict[str, dict[str, int]]:
    """Return the rows per database and table."""
    done = zygote.run([sys.executable, __file__, folder], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def main(folder: Path) -> None:
    import duckdb

    counted = {}
    with duckdb.connect(":memory:") as engine:
        for number, path in enumerate(sorted(folder.glob("*.duckdb"))):
            engine.execute(f"ATTACH '{path}' AS s{number} (READ_ONLY)")
            named = "SELECT table_name FROM duckdb_tables() WHERE NOT internal AND database_name = ?"
            tables = [name for (name,) in engine.execute(named, [f"s{number}"]).fetchall()]
            counted[path.stem] = {
                table: engine.execute(f"SELECT count(*) FROM s{number}.{table}").fetchone()[0] for table in tables
            }
    print(json.dumps(counted))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
