"""The documented Python names: syncs to Akosha out of any program, Session-Buddy's own process included.

    import asyncio
    from agent.api import AkoshaSyncConfig, HybridAkoshaSync

    async def main():
        config = AkoshaSyncConfig(cloud_bucket="memories", cloud_endpoint="https://ACCOUNT.r2.cloudflarestorage.com")
        result = await HybridAkoshaSync(config).sync_memories()
        print(result["method"], result["files_uploaded"])

    asyncio.run(main())

A sync is done by a process of its own: a program that has the databases open would lose DuckDB's lock on them if
anything in it read the files, and nothing of the agent is loaded into the caller's. Where an agent runs on this
machine, it is asked. Log lines go to `logging`, as `agent.api`.

config     the 13 settings
methods    what a method is, and the two that are here
hybrid     methods in their order
reach      whether something is there, within a second
request    what the process is asked for; `process` starts it, `child` is what runs in it
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
