"""Events for programs on any machine: receive the results of syncs over NATS, and publish that a session has ended.

    import asyncio
    from agent.events_client import results

    async def main():
        async for result in results("nats://localhost:4222", durable="my-dashboard", outcomes={"succeeded"}):
            print(result.system_id, result.upload_id)

    asyncio.run(main())

For a server with authentication: `results("tls://nats.example.org", login=Login(token="..."), tls=Tls(...))`. For more
options, pass `NatsOptions` instead of an address. Errors are those of `agent.domain.errors`. Log lines, for example
about the availability of NATS, go to `logging`, unless the program has configured structlog.
"""

from agent.adapters.nats import Limits, Login, NatsOptions, Patience, Tls
from agent.domain.errors import AkoshaError, BusError, NamingError, SettingsError
from agent.domain.events import SyncFailed, SyncResult, SyncSkipped, SyncSucceeded
from agent.events_client.consuming import results
from agent.events_client.handover import Result
from agent.events_client.session import publish_session_ended

__all__ = [
    "AkoshaError",
    "BusError",
    "Limits",
    "Login",
    "NamingError",
    "NatsOptions",
    "Patience",
    "Result",
    "SettingsError",
    "SyncFailed",
    "SyncResult",
    "SyncSkipped",
    "SyncSucceeded",
    "Tls",
    "publish_session_ended",
    "results",
]
