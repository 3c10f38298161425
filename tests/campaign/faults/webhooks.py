"""Faults of webhooks' receivers. No sync and no other webhook waits; what a filter selects arrives in order."""

import base64
import json
import random
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from agent.domain.events import DeliveryOverdue, DeliveryRecovered
from tests.campaign.deliveries import ReceiverProcess, Results
from tests.campaign.faults.answers import Answer, Failures
from tests.campaign.faults.fault import Fault
from tests.campaign.faults.lines import LIMIT_SECONDS, Line
from tests.campaign.leftovers import LASTING_SECONDS
from tests.campaign.world import CANARY, NotSettled, World
from tests.support.servers.faulty_proxy import FaultyProxy, another_protocol, refuse
from tests.support.servers.threaded_proxy import running_faulty_proxy
from tests.support.waiting import happens

KEY = f"{CANARY} of webhooks".encode()
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
FAULTY, OTHER = "/faulty", "/other"
"""Paths of the webhook whose receiver fails, and of one that has no fault, except if the receiver is killed."""

UNDELAYED_SECONDS = 20.0
"""Maximum time of the syncs of a round while a webhook fails. An attempt to deliver lasts `LIMIT_SECONDS`."""

DELIVERY_SECONDS = 3.0
"""Maximum time that a kill waits for a result to arrive."""

OVERDUE_HOURS = 1e-5
"""So short that what waits while the agent is killed is overdue when it starts."""

OVERDUE, RECOVERED = DeliveryOverdue.type, DeliveryRecovered.type

GONE = 410


class Webhooks(Fault):
    """Starts the receiver; the agent reaches it by `address`. `optional`: results that FAULTY may not get."""

    bar = "each selected result arrives in order, signed, with one webhook-id; no sync waits"
    delayed = False
    events: Sequence[str] = ("succeeded", "failed")

    def prepare(self, world: World) -> None:
        self.optional = set[str]()
        self.receiver = world.enter(ReceiverProcess(world.folder / "receiver"))
        self.use(world, self.receiver.url)
        super().prepare(world)

    def use(self, world: World, address: str) -> None:
        """Make the agent send the events of FAULTY to this address."""
        webhooks = [
            {
                "url": f"{base}{path}?token={CANARY}",
                "secret": SECRET,
                "events": [*self.events],
                "overdue_hours": OVERDUE_HOURS,
            }
            for base, path in ((address, FAULTY), (self.receiver.url, OTHER))
        ]
        world.machine.set(agent_webhooks=json.dumps(webhooks))
        world.machine.secrets += (SECRET,)
        world.machine.constants |= {
            "agent.domain.webhooks:FIRST_DELAY_SECONDS": 0.1,
            "agent.domain.webhooks:LAST_DELAY_SECONDS": 1.0,
            "agent.adapters.webhook_sender:SECONDS": LIMIT_SECONDS,
            "agent.application.monitoring.overdue:GRACE_SECONDS": 0.0,
        }

    def heal(self, world: World, rng: random.Random) -> None:
        """Neither the syncs nor the other webhook wait while this one fails."""
        world.settle(UNDELAYED_SECONDS)
        self._arrived(world, OTHER, UNDELAYED_SECONDS)
        super().heal(world, rng)

    def check(self, world: World) -> Iterator[str]:
        for path in (FAULTY, OTHER):
            results = self._arrived(world, path, LASTING_SECONDS)
            problems = results.violations(self.receiver.deliveries(path), KEY)
            yield from (f"{path}: {text}" for text in problems)
        yield from super().check(world)

    def _arrived(self, world: World, path: str, seconds: float) -> Results:
        """Wait until a webhook has got the results so far. Raises NotSettled."""
        results = Results.of(world.machine.events(), self.optional if path == FAULTY else ())
        if not happens(lambda: not results.missing(self.receiver.deliveries(path)), seconds):
            raise NotSettled(f"{path} has not got {results.missing(self.receiver.deliveries(path))}")
        return results


class WebhookLine(Webhooks, Line):
    row = "Webhook: connections reset, truncated, stalled, slow, half-open"
    rounds = 40
    typical_seconds = 6.0

    def port(self, world: World) -> int:
        return urlsplit(self.receiver.url).port

    def connect(self, world: World, port: int) -> None:
        self.use(world, f"http://127.0.0.1:{port}")


class WebhookAnswers(Webhooks, Failures):
    """After a 410 the webhook gets nothing until the agent is started again, and then what happens from then on."""

    row = "Webhook: 1 % or 50 % of answers are 500, 503, 429, 301, 307, 404, 410, not HTTP, or lost"
    rounds = 40

    def prepare(self, world: World) -> None:
        super().prepare(world)
        self._proxy = world.enter(running_faulty_proxy(self.receiver.url))
        self.use(world, self._proxy.url)

    def proxy(self, world: World) -> FaultyProxy:
        return self._proxy

    def failures(self) -> Iterator[Answer]:
        yield from super().failures()
        yield "", "", refuse(404, "NotFound")
        yield "", "", refuse(429, "TooManyRequests", headers={"Retry-After": "1"})
        yield "", "", another_protocol()
        yield GONE_ANSWER

    def begin(self, world: World, rng: random.Random, answer: Answer, *, share: float = 1.0) -> None:
        self.gone = answer is GONE_ANSWER
        super().begin(world, rng, answer, share=share)

    def heal(self, world: World, rng: random.Random) -> None:
        super().heal(world, rng)
        if self.gone and self.met.is_set():
            assert world.stop_agent() == 0
            self.optional.update(Results.of(world.machine.events()).ids)
            world.start_agent()


GONE_ANSWER: Answer = ("", "", refuse(GONE, "Gone"))


class WebhookKilled(Webhooks):
    """The agent, the receiver, or both are killed; in half of the rounds when a result has just arrived."""

    row = "SIGKILL of the agent or of a webhook's receiver"
    rounds = 60
    delayed = True
    events = ("succeeded", "failed", "overdue", "recovered")

    def strike(self, world: World, rng: random.Random) -> None:
        self.killed = rng.choice(("agent", "receiver", "both"))
        if rng.random() < 0.5:
            before = len(self.receiver.deliveries(FAULTY))
            happens(lambda: len(self.receiver.deliveries(FAULTY)) > before, DELIVERY_SECONDS)
        if self.killed != "receiver":
            world.kill_agent()
        if self.killed != "agent":
            self.receiver.kill()

    def heal(self, world: World, rng: random.Random) -> None:
        if self.killed != "receiver":
            world.start_agent()
        world.settle(UNDELAYED_SECONDS)
        if self.killed != "agent":
            self.receiver.start()

    def check(self, world: World) -> Iterator[str]:
        if not happens(lambda: are_ended(announcements(world)), LASTING_SECONDS):
            yield f"an overdue has no end, or is announced twice: {announcements(world)}"
        yield from super().check(world)
        self.struck["overdue"] = announcements(world).count(OVERDUE)
        deliveries = self.receiver.deliveries(FAULTY)
        self.struck["delivered twice"] = len(deliveries) - len({one.event_id for one in deliveries})


def announcements(world: World) -> list[str]:
    """Return the types of the events about what is overdue, in the order of the history."""
    return [event["type"] for event in world.machine.events() if event["type"] in (OVERDUE, RECOVERED)]


def are_ended(types: list[str]) -> bool:
    """Return whether each overdue is followed by its end."""
    return types == [OVERDUE, RECOVERED] * (len(types) // 2)
