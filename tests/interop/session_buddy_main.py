"""Session-Buddy's own process: its code holds the database open while it syncs through agent.api. Prints the outcome.

Run by the Python that has both installed; argument: the data directory.
"""

import asyncio
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from session_buddy.adapters.reflection_adapter_oneiric import ReflectionDatabaseAdapterOneiric
from session_buddy.adapters.settings import ReflectionAdapterSettings

from agent.api import AkoshaSyncConfig, HybridAkoshaSync

OPEN = "import duckdb, sys; duckdb.connect(sys.argv[1])"


async def main(data: Path, endpoint: str) -> None:
    settings = ReflectionAdapterSettings(
        database_path=data / "reflection.duckdb", enable_vss=False, enable_embeddings=False, enable_hnsw_index=False
    )
    database = ReflectionDatabaseAdapterOneiric(settings=settings)
    await database.initialize()
    results = []
    sync = HybridAkoshaSync(AkoshaSyncConfig(cloud_endpoint=endpoint, system_id="beside", enable_fallback=False))
    for number in range(2):
        await database.store_conversation(f"what was said, {number}", {"project": "beside"})
        results.append(await sync.sync_memories())
    other = [sys.executable, "-c", OPEN, str(settings.database_path)]
    locked = subprocess.run(other, capture_output=True, text=True, check=False)
    await database.aclose()
    versions = {name: metadata.version(name) for name in ("session-buddy", "akosha-agent", "mcp", "duckdb")}
    print(
        json.dumps({"results": results, "locked": locked.returncode != 0, "why": locked.stderr, "versions": versions})
    )


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
