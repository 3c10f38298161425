"""Open a database with Session-Buddy's code and sync it through agent.api; print the results as JSON.

Runs in a Python that has both installed. Arguments: the data directory and the endpoint.
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

OPEN_DATABASE = "import duckdb, sys; duckdb.connect(sys.argv[1])"


async def main(data: Path, endpoint: str) -> None:
    settings = ReflectionAdapterSettings(
        database_path=data / "reflection.duckdb", enable_vss=False, enable_embeddings=False, enable_hnsw_index=False
    )
    database = ReflectionDatabaseAdapterOneiric(settings=settings)
    await database.initialize()
    results = []
    sync = HybridAkoshaSync(AkoshaSyncConfig(cloud_endpoint=endpoint, system_id="session-buddy", enable_fallback=False))
    for number in range(2):
        await database.store_conversation(f"what was said, {number}", {"project": "session-buddy"})
        results.append(await sync.sync_memories())
    command = [sys.executable, "-c", OPEN_DATABASE, str(settings.database_path)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    await database.aclose()
    versions = {name: metadata.version(name) for name in ("session-buddy", "akosha-agent", "mcp", "duckdb")}
    print(
        json.dumps(
            {"results": results, "locked": process.returncode != 0, "error": process.stderr, "versions": versions}
        )
    )


asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
