"""Webhooks of a running agent: nothing waits for a receiver that hangs, and a killed agent sends the event again."""

import asyncio
import json
import signal
from base64 import b64encode
from email.message import Message
from pathlib import Path

from tests.e2e.test_guides import block_with
from tests.support.machine import Done, Machine, Running
from tests.support.servers.webhook import HANG, OK, Receiver

SECRET = f"whsec_{b64encode(b'0123456789abcdef0123456789abcdef').decode()}"
QUERY = "?token=t0ken-of-the-query"


def is_genuine(secret, headers, body):
    scope = {}
    exec(block_with("guides/webhooks.md", "def is_genuine", "python"), scope)
    given = Message()
    for name, value in headers.items():
        given[name] = value
    return scope["is_genuine"](secret, given, body)


async def ended(agent: Running, number: int = signal.SIGTERM) -> Done:
    await asyncio.to_thread(agent.stop, number)
    return await asyncio.to_thread(agent.end)


async def test_nothing_waits_for_a_webhook_that_hangs_and_a_killed_agent_sends_the_event_again(tmp_path: Path):
    async with Receiver(lambda _: HANG) as slow, Receiver() as quick:
        machine = Machine(
            tmp_path,
            agent_webhooks=json.dumps(
                [
                    {"url": slow.url + QUERY, "events": ["succeeded"]},
                    {"url": quick.url, "events": ["succeeded"], "secret": SECRET},
                ]
            ),
        )
        machine.constants = {"agent.adapters.webhook_sender:SECONDS": 3600.0}
        machine.write(commits=1)
        agent = machine.start("run")
        try:
            await asyncio.gather(slow.until(1), quick.until(1))
            (first,), (signed,) = slow.received, quick.received
            assert signed.event["data"]["manifest_key"].startswith("systems/laptop/")
            assert is_genuine(SECRET, signed.headers, signed.body)
            assert not is_genuine(SECRET, signed.headers, signed.body + b" ")
            machine.write(commits=2)  # a sync does not wait
            await quick.until(2)
        finally:
            await ended(agent, signal.SIGKILL)
        agent = machine.start("run")
        try:
            await slow.until(2)
            assert slow.received[1].headers["webhook-id"] == first.headers["webhook-id"]
            assert slow.received[1].body == first.body
        finally:
            assert (await ended(agent)).code == 0  # although a request is open
        slow.answering = lambda _: OK
        agent = machine.start("run")
        try:
            await slow.until(4)
            assert [one.event["id"] for one in slow.received[2:4]] == [one.event["id"] for one in quick.received[:2]]
        finally:
            done = await ended(agent)
        assert len({one.headers["webhook-id"] for one in quick.received}) == 2
        shown = await asyncio.to_thread(machine.call, "config")
        assert f"{quick.url.removesuffix('/hook')}: succeeded" in shown.out
        assert not [one for one in (SECRET, QUERY, "/hook") if one in shown.out + done.out + done.err]
