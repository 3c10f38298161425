"""What agents tell, for programs on any machine: results of syncs over NATS. And to tell them that a session has ended.

    import asyncio
    from agent.events_client import results

    async def main():
        async for result in results("nats://localhost:4222", durable="my-dashboard", outcomes={"succeeded"}):
            print(result.system_id, result.upload_id)

    asyncio.run(main())

A server that wants to know who asks: `results("tls://nats.example.org", login=Login(token="..."), tls=Tls(...))`. What
else can be set is in `NatsOptions`, which stands in the address's place. Errors are those of `agent.domain.errors`.
What is to be told of NATS (that it is waited for) goes to `logging`, unless the program has set up structlog.
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
