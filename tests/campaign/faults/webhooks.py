"""The receiver of a webhook fails while changes are synced."""

import json
import random
from collections.abc import Iterable, Mapping

from tests.campaign.faults.fault import Fault
from tests.campaign.world import CANARY, SAY_SECONDS, World
from tests.support.servers.threaded_proxy import running
from tests.support.servers.webhook import HANG, OK, Received, Receiver, answer
from tests.support.waiting import happens

ANSWERS: Mapping[str, bytes] = {
    "refuses": answer("500 Internal Server Error"),
    "is busy": answer("429 Too Many Requests", Retry_After="1"),
    "does not know it": answer("404 Not Found"),
    "redirects": answer("308 Permanent Redirect", Location="http://127.0.0.1:9/"),
    "hangs": HANG,
    "closes early": b"HTTP/1.1 200 OK\r\nContent-Le",
    "is another server": b"SSH-2.0-OpenSSH_9\r\n",
}
KILLED = 0.3
"""The share of the strikes in which the agent is killed, too."""


class WebhookFails(Fault):
    """The receiver gives wrong answers until a change has been delivered; sometimes the agent is killed meanwhile."""

    row = "Webhook: refuses, redirects, hangs, closes early; SIGKILL of the agent while it sends"
    rounds = 20
    typical_seconds = 7.0
    bar = "no sync waits; each result arrives at the webhook, in order, under one ID"

    def prepare(self, world: World) -> None:
        self.now, self.accepted = OK, list[Received]()
        receiver = world.enter(running(Receiver(self._answer)))
        world.machine.set(
            agent_webhooks=json.dumps([{"url": f"{receiver.url}?token={CANARY}", "events": ["succeeded"]}])
        )
        world.machine.constants |= {
            "agent.adapters.webhook_sender:SECONDS": 0.5,
            "agent.domain.webhooks:FIRST_DELAY_SECONDS": 0.05,
            "agent.domain.webhooks:LAST_DELAY_SECONDS": 0.5,
        }
        self.struck.update(dict.fromkeys(ANSWERS, 0))

    def strike(self, world: World, rng: random.Random) -> None:
        how = rng.choice([*ANSWERS])
        self.struck[how] += 1
        self.now = ANSWERS[how]
        world.commit()
        world.settle()
        if rng.random() < KILLED:
            world.kill_agent()
            world.start_agent()

    def heal(self, world: World, rng: random.Random) -> None:
        self.now = OK

    def check(self, world: World) -> Iterable[str]:
        results = [*dict.fromkeys(world.listener.ids())]
        if not happens(lambda: {*results} <= {*self._uploads()}, SAY_SECONDS):
            yield f"the webhook has not got {sorted({*results} - {*self._uploads()})}"
        elif [each for each in dict.fromkeys(self._uploads()) if each in results] != results:
            yield f"the webhook got {self._uploads()}, the bus {results}"
        names = {(one.event["id"], one.headers["webhook-id"]) for one in self.accepted}
        if len(names) != len({event_id for event_id, _ in names}):
            yield "an event came under several webhook-ids"

    def _uploads(self) -> list[str]:
        """Return the IDs of the accepted events about uploads."""
        return [one.event["id"] for one in self.accepted if one.kind == "succeeded"]

    def _answer(self, request: Received) -> bytes:
        if self.now is OK:
            self.accepted.append(request)
        return self.now
