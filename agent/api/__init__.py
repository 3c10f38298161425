"""The documented Python API: syncs to Akosha from any program, including Session-Buddy's own process.

    import asyncio
    from agent.api import AkoshaSyncConfig, HybridAkoshaSync

    async def main():
        config = AkoshaSyncConfig(cloud_bucket="memories", cloud_endpoint="https://ACCOUNT.r2.cloudflarestorage.com")
        result = await HybridAkoshaSync(config).sync_memories()
        print(result["method"], result["files_uploaded"])

    asyncio.run(main())

Each sync runs in a child process: a program that has the databases open would lose DuckDB's lock on them if it read the
files itself, and the caller need not import the agent. If an agent is running on this machine, it does the sync. Log
lines go to the logger `agent.api`.

config         the 13 settings
methods        the protocol of a method, and the methods cloud and http
hybrid         tries several methods in order
reachability   whether a server or directory is available, within a second
process        starts the child process and sends it the request; `child` runs in it
"""

from agent.api.config import AkoshaSyncConfig
from agent.api.hybrid import HybridAkoshaSync
from agent.api.methods import CloudSyncMethod, HttpSyncMethod, SyncMethod, SyncMethodType, SyncResult
from agent.domain.errors import CloudUploadError, HTTPSyncError, HybridSyncError, SyncError

__all__ = [
    "AkoshaSyncConfig",
    "CloudSyncMethod",
    "CloudUploadError",
    "HTTPSyncError",
    "HttpSyncMethod",
    "HybridAkoshaSync",
    "HybridSyncError",
    "SyncError",
    "SyncMethod",
    "SyncMethodType",
    "SyncResult",
]
