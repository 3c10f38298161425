"""Network changes: the agent has a network namespace of its own, and reaches S3 and NATS through an interface.

    agent   near 10.0.1.2  --  10.0.1.1 far    servers
            vpn  10.0.9.2  --  10.0.9.1 exit

There is no loopback interface on the agent's side, so that the servers of 127.0.0.1 are beyond its interface. A Link
per server passes on what arrives there.
"""

import ctypes
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.campaign.faults.fault import Fault
from tests.campaign.world import Skipped, World
from tests.support.machine import COMMAND
from tests.support.servers.link import Link
from tests.support.servers.threaded_proxy import running

SYNC_SECONDS = 60.0
"""Maximum time from the end of a network change to the first complete sync."""

_CONNECTED = """
ip link add near type veth peer name far netns {servers}
echo 1 > /proc/sys/net/ipv4/conf/near/route_localnet
"""
_SERVING = """
ip link set lo up
ip link set far up
ip address add 10.0.1.1/24 dev far
ip address add 10.0.2.1/24 dev far
echo 1 > /proc/sys/net/ipv4/conf/far/route_localnet
"""
_UP = "ip link set near up; ip address replace 10.0.{net}.2/24 dev near; ip route replace default via 10.0.{net}.1\n"
_DOWN = "ip link set near down\n"
_VPN_UP = """
ip link add vpn type veth peer name exit netns {servers}
echo 1 > /proc/sys/net/ipv4/conf/vpn/route_localnet
ip address add 10.0.9.2/24 dev vpn
ip link set vpn up
"""
_VPN_EXIT = """
echo 1 > /proc/sys/net/ipv4/conf/exit/route_localnet
echo 1 > /proc/sys/net/ipv4/conf/exit/rp_filter
ip address add 10.0.9.1/24 dev exit
ip link set exit up
"""
"""Packets of connections that were opened before the VPN came are dropped at its other end."""

_VPN_ROUTES = "ip route add 0.0.0.0/1 via 10.0.9.1; ip route add 128.0.0.0/1 via 10.0.9.1\n"
_VPN_DOWN = "ip link delete vpn\n"


class NetworkFault(Fault):
    """A fault of the agent's network. The agent has the product's own back-offs and limits."""

    rounds = 5
    bar = "the first sync follows within 60 s"
    typical_seconds = 25.0
    target = "rclone"
    calm_seconds = SYNC_SECONDS
    net = 1
    """Number of the network that `near` is in."""

    def prepare(self, world: World) -> None:
        for name in [*world.machine.constants]:
            if "BACKOFF" in name or "PAUSE" in name or "FAULT" in name or "PATIENCE" in name:
                del world.machine.constants[name]
        self.servers, self.agent = self._namespace(world), self._namespace(world)
        world.prefix = (*self._inside(self.agent), COMMAND)
        self.run(self.agent, _CONNECTED)
        self.run(self.servers, _SERVING)
        self.run(self.agent, _UP)
        assert world.target.server is not None
        for url in (world.target.server.server.endpoint, world.nats.url):
            world.enter(running(NamespaceLink(urlsplit(url).port or 0, self.servers)))

    def run(self, namespace: int, script: str) -> None:
        """Run a script in the network namespace of a process."""
        script = script.format(servers=self.servers, net=self.net)
        subprocess.run([*self._inside(namespace), "sh", "-ec", script], check=True)

    def _inside(self, namespace: int) -> tuple[str, ...]:
        return ("nsenter", f"--net=/proc/{namespace}/ns/net")

    def _namespace(self, world: World) -> int:
        """Make a network namespace, and return the process that keeps it until the world ends. Raises Skipped."""
        try:
            keeper = subprocess.Popen(
                ["unshare", "--net", "sh", "-c", "ip link && exec cat"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise Skipped("a network namespace needs Linux") from error
        world.at_end(keeper.communicate)
        assert keeper.stdout is not None
        if not keeper.stdout.readline():
            raise Skipped("a network namespace needs root and the command ip")
        return keeper.pid


class NamespaceLink(Link):
    """A Link that listens in the network namespace of a process, at the port that it passes data on to."""

    def __init__(self, port: int, namespace: int) -> None:
        super().__init__(port)
        self.port, self._namespace = port, namespace

    async def open(self) -> None:
        with _entered(Path(f"/proc/{self._namespace}/ns/net")):
            await super().open()


@contextmanager
def _entered(namespace: Path) -> Iterator[None]:
    """Open the sockets of this thread in a network namespace for the duration of the block."""
    library = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/thread-self/ns/net").open() as own, namespace.open() as other:
        if library.setns(other.fileno(), 0):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        try:
            yield
        finally:
            library.setns(own.fileno(), 0)


class InterfaceGone(NetworkFault):
    """The interface goes. Syncs fail, so that the next retry is due in minutes only. Then it comes back."""

    row = "Network interface goes and comes"
    typical_seconds = 60.0

    def strike(self, world: World, rng: random.Random) -> None:
        self.run(self.agent, _DOWN)
        world.commit()
        for _ in range(3):
            world.machine.call("sync", prefix=world.prefix)

    def heal(self, world: World, rng: random.Random) -> None:
        self.run(self.agent, _UP)


class OtherAddresses(NetworkFault):
    """The interface gets an address of another network: open connections fall silent."""

    row = "Network interface with another address"

    def strike(self, world: World, rng: random.Random) -> None:
        self.net = 3 - self.net
        self.run(self.agent, "ip address flush dev near\n" + _UP)


class Vpn(NetworkFault):
    """A VPN takes over the routes, and goes in the same round or in the next: open connections fall silent."""

    row = "VPN that comes and goes"
    up = False

    def strike(self, world: World, rng: random.Random) -> None:
        self._switch()
        if rng.random() < 0.5:
            world.commit()
            world.settle(SYNC_SECONDS)
            self._switch()

    def _switch(self) -> None:
        self.up = not self.up
        if not self.up:
            self.run(self.agent, _VPN_DOWN)
            return
        self.run(self.agent, _VPN_UP)
        self.run(self.servers, _VPN_EXIT)
        self.run(self.agent, _VPN_ROUTES)
