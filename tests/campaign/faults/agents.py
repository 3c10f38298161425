"""More than one agent: on one state directory, in one bucket, before one Akosha, and of another version."""

import random
from collections.abc import Iterator

from tests.campaign.checks import stored_once
from tests.campaign.faults.fault import Fault
from tests.campaign.leftovers import lasting
from tests.campaign.targets import TOKEN
from tests.campaign.world import SAY_SECONDS, NotSettled, Skipped, World
from tests.support.earlier_version import NotInCloneError, earlier_version
from tests.support.machine import Done, Machine, Running
from tests.support.servers.akosha_process import AkoshaProcess
from tests.support.waiting import happens

IN_USE, UPDATE = "is in use by process", "update akosha-agent"
CURES = ("--take-over", "akosha_system_id")


def refused(done: Done, *texts: str) -> None:
    """Check that a command has failed with all these texts. Raises NotSettled."""
    if done.code == 0 or not all(text in done.err for text in texts):
        raise NotSettled(f"a command was not refused with {' and '.join(texts)}: {done}")


def take_over(machine: Machine) -> str:
    """Let a person give the system ID to this machine; return the upload that is then made. Raises NotSettled."""
    done = machine.call("sync", "--json", "--take-over")
    if done.code:
        raise NotSettled(f"the system ID was not taken over: {done}")
    return done.json["upload_id"]


class TwoAgents(Fault):
    """A second agent is started beside the running one, or two agents are started at the same time."""

    row = "Two agents with one state directory"
    rounds = 20
    bar = "the second agent is refused"
    typical_seconds = 6.0

    def strike(self, world: World, rng: random.Random) -> None:
        if rng.random() < 0.5:
            refused(world.machine.call("run"), IN_USE)
            return
        world.kill_agent()
        started = [world.machine.start("run") for _ in range(2)]
        happens(lambda: any(agent.process.poll() is not None for agent in started), SAY_SECONDS)
        ended, world.agent = sorted(started, key=lambda agent: agent.process.poll() is None)
        refused(ended.end(), IN_USE)


class TwoMachines(Fault):
    """A second machine is refused the system ID. A person may let it take over the ID, and the first take it back."""

    row = "Two machines with one system ID"
    rounds = 20
    bar = "the second machine is refused; nothing is mixed"
    typical_seconds = 7.0

    def prepare(self, world: World) -> None:
        self.other, self.allowed = world.another_machine("other"), set[str]()

    def strike(self, world: World, rng: random.Random) -> None:
        self.other.write(commits=rng.randint(1, 9), entities=rng.randint(1, 9))
        with self.other.run():
            refused(self.other.call("sync"), *CURES)
            if rng.random() < 0.5:
                self.allowed.add(take_over(self.other))
                world.commit()
                world.warns("target_not_ours")
                take_over(world.machine)
                self.other.write(commits=10)
                refused(self.other.call("sync"), *CURES)

    def check(self, world: World) -> Iterator[str]:
        """The other machine has uploaded only what a person allowed."""
        for manifest in world.manifests():
            if manifest["agent_id"] != world.agent_id and manifest["upload_id"] not in self.allowed:
                yield f"{manifest['upload_id']} is an upload of the machine that was refused"


class TwoReactors(Fault):
    """Two `react` bring the uploads of one bucket to one Akosha; sometimes one of them is killed."""

    row = "Two react processes with one bucket and one Akosha"
    rounds = 20
    bar = "every memory arrives once"
    typical_seconds = 7.0

    def prepare(self, world: World) -> None:
        self.akosha = AkoshaProcess(world.folder / "akosha", token=TOKEN).__enter__()
        world.at_end(self.akosha.__exit__)
        http = {"http_endpoint": self.akosha.url, "http_token": TOKEN, "http_missing_embedding": "zero"}
        self.machines = [world.another_machine(name, **http) for name in ("reactor-1", "reactor-2")]
        for machine in self.machines:
            machine.secrets += (TOKEN,)
        self.reactors = [*map(self._started, self.machines)]
        world.at_end(lambda: [*map(_ended, self.reactors)])

    def strike(self, world: World, rng: random.Random) -> None:
        if (number := rng.randrange(3)) < len(self.reactors):
            _ended(self.reactors[number])
            self.reactors[number] = self._started(self.machines[number])

    def check(self, world: World) -> Iterator[str]:
        yield from lasting(lambda: stored_once(world, self.akosha.rows()))
        for reactor, machine in zip(self.reactors, self.machines, strict=True):
            if reactor.process.poll() is not None:
                yield f"a reactor has ended: {''.join(reactor.log.raw[-5:])}"
            log = "".join(reactor.log.raw)
            yield from (f"the log of a reactor has {secret[:6]}..." for secret in machine.secrets if secret in log)
            yield from lasting(lambda of=machine: (f"left by a reactor: {path}" for path in of.staged))

    @staticmethod
    def _started(machine: Machine) -> Running:
        return machine.start("react", "--state-dir", str(machine.state), directories=False)


def _ended(running: Running) -> None:
    running.process.kill()
    running.end()


class EarlierVersion(Fault):
    """An agent of an earlier version starts on the state directory, or on another machine with the same system ID."""

    row = "An earlier version beside this one"
    rounds = 20
    bar = "refused or reported; nothing is mixed"
    typical_seconds = 10.0

    def prepare(self, world: World) -> None:
        try:
            self.earlier = earlier_version(world.folder / "earlier")
        except NotInCloneError as error:
            raise Skipped(str(error)) from error
        self.other = world.another_machine("other")

    def strike(self, world: World, rng: random.Random) -> None:
        where, command = rng.choice(("beside", "instead", "elsewhere")), rng.choice(("run", "sync"))
        if where == "beside":
            refused(world.machine.call(command, prefix=self.earlier), IN_USE if command == "run" else UPDATE)
        elif where == "instead":
            assert world.stop_agent() == 0
            refused(world.machine.call(command, prefix=self.earlier), UPDATE)
            world.start_agent()
        else:
            self.other.write(commits=rng.randint(1, 9), entities=rng.randint(1, 9))
            self.other.sync(prefix=self.earlier)
            world.commit()
            world.warns("target_not_ours")
            take_over(world.machine)
