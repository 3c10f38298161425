"""The ledger is damaged."""

import random

from tests.campaign.faults.fault import Fault
from tests.campaign.world import World


class LedgerDamaged(Fault):
    """The ledger is corrupted, truncated or deleted while no agent runs."""

    row = "Ledger corrupted, truncated or deleted"
    rounds = 20
    bar = "rebuilt from the bucket"
    delayed = False

    def strike(self, world: World, rng: random.Random) -> None:
        assert world.stop_agent() == 0
        ledger = world.machine.state / "ledger.sqlite"
        how = rng.choice(("garbage", "truncate", "delete"))
        if how == "garbage":
            ledger.write_bytes(rng.randbytes(4096) + ledger.read_bytes()[4096:])
        elif how == "truncate":
            ledger.write_bytes(ledger.read_bytes()[: rng.randrange(100, 4096)])
        else:
            for path in world.machine.state.glob("ledger.sqlite*"):
                path.unlink()
        world.start_agent()
