"""An agent on the hub of docs/scale.md, in an account of its own."""

import asyncio
import json

from agent.adapters.nats import Login, NatsOptions
from agent.adapters.nats.stream import STREAM
from agent.domain.naming import STREAM_SUBJECTS
from agent.events_client import publish_session_ended
from tests.support.machine import Machine
from tests.support.servers.nats import connected
from tests.support.servers.nats_hub import KEYS, running_hub

ADMIN = KEYS["ADMIN"].seed


def test_an_agent_in_its_account_answers_the_hub_and_publishes_results_without_a_warning(tmp_path):
    """Session ends that are published while it is away included."""
    key = tmp_path / "laptop.nk"
    key.touch(0o600)
    key.write_text(KEYS["LAPTOP"].seed)
    with running_hub(tmp_path / "hub") as server:
        hub = NatsOptions(servers=(server.url,), name="hub", login=Login(nkey_seed=ADMIN))

        async def make_stream() -> None:
            async with connected(server.url, nkeys_seed_str=ADMIN) as admin:
                await admin.jetstream().add_stream(name=STREAM, subjects=list(STREAM_SUBJECTS), allow_direct=True)
            await publish_session_ended(hub, system_id="laptop", session_id="1")

        async def ask() -> dict:
            async with connected(server.url, nkeys_seed_str=ADMIN) as admin:
                return json.loads((await admin.request("akosha.agent.laptop.status", timeout=60)).data)

        asyncio.run(make_stream())
        settings = {"agent_nats_url": server.url, "agent_nats_nkey_file": key, "agent_remote_control": True}
        machine = Machine(tmp_path / "machine", **settings)
        machine.write(commits=2)
        with machine.run() as agent:
            agent.logged("session_ended", session_id="1")
            agent.logged("sync_succeeded")
            machine.status(lambda status: status["results_waiting"] == 0)
            assert asyncio.run(ask())["system_id"] == "laptop"
            asyncio.run(publish_session_ended(hub, system_id="laptop", session_id="2"))
            agent.logged("session_ended", session_id="2")
            warnings = [line for line in agent.log.seen if line.get("level") in ("warning", "error")]
        assert warnings == []

        async def stored() -> set[str]:
            async with connected(server.url, nkeys_seed_str=ADMIN) as admin:
                return set((await admin.jetstream().stream_info(STREAM, subjects_filter=">")).state.subjects)

        assert {"akosha.sync.laptop.requested.cloud", "akosha.sync.laptop.succeeded"} <= asyncio.run(stored())
