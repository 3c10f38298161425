"""The ledger is damaged, deleted, or of a newer version."""

import os
import random
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from agent.adapters.sqlite_ledger import damaged_ledgers, schema
from agent.adapters.sqlite_ledger.file import examine
from agent.domain.errors import StateError
from tests.campaign.checks import prune_leftovers
from tests.campaign.faults.fault import Fault
from tests.campaign.world import World

_PAGE = 4096
_KEPT_IN = re.compile(r'"kept_in": "([^"]+)"')


def damage(ledger: Path, rng: random.Random) -> bool:
    """Overwrite a page of the ledger, truncate it, or delete it; return whether the file is still there."""
    how, size = rng.choice(("garbage", "truncate", "delete")), ledger.stat().st_size
    if how == "garbage":
        with ledger.open("r+b") as file:
            file.seek(_PAGE * rng.choice((0, rng.randrange(max(size // _PAGE, 1)))))
            file.write(rng.randbytes(_PAGE))
    elif how == "truncate":
        os.truncate(ledger, rng.randrange(size))
    else:
        for name in (ledger.name, f"{ledger.name}-wal", f"{ledger.name}-shm"):
            ledger.with_name(name).unlink(missing_ok=True)
    return ledger.exists()


def _problems(ledger: Path) -> Iterator[str]:
    try:
        examine(ledger)
    except StateError as error:
        yield f"the ledger: {error}"


class LedgerDamaged(Fault):
    """The ledger is corrupted, truncated or deleted while no agent runs."""

    row = "Ledger corrupted, truncated or deleted"
    rounds = 20
    bar = "rebuilt from the bucket, the old one kept aside"
    delayed = False

    def strike(self, world: World, rng: random.Random) -> None:
        assert world.stop_agent() == 0
        is_there = damage(world.ledger, rng)
        whole = not [*_problems(world.ledger)]  # the page was free
        world.start_agent()
        if is_there and not whole:
            world.said("ledger_set_aside")
        if not whole:
            world.said("upload_adopted")

    def check(self, world: World) -> Iterator[str]:
        """The ledger is whole, and each one that was set aside is where the log says."""
        yield from _problems(world.ledger)
        kept = _KEPT_IN.findall(world.transcript)
        yield from (f"{path} does not exist" for path in kept if not Path(path).exists())


class LedgerDamagedInUse(LedgerDamaged):
    """The agent finds damage when it reads the file, at its next start at the latest; a deleted file while it runs."""

    row = "Ledger corrupted, truncated or deleted while the agent runs"
    delayed = True

    def prepare(self, world: World) -> None:
        world.machine.constants["agent.entrypoints.cli.run:REPLACED_SECONDS"] = 0.0  # rounds are shorter

    def strike(self, world: World, rng: random.Random) -> None:
        if not damage(world.ledger, rng):
            world.said("was deleted or replaced")

    def heal(self, world: World, rng: random.Random) -> None:
        world.settle()
        rng.choice((world.kill_agent, world.stop_agent))()
        world.start_agent()
        world.settle()
        prune_leftovers(world)  # the new ledger does not know an upload that was interrupted


class RowSetFlipped(Fault):
    """A bit flips in the ledger's hashes of the rows that the target has, while no agent runs."""

    row = "Hashes of rows in the ledger: a flipped bit"
    rounds = 20
    bar = "nothing is lost; a row may be sent again"
    delayed = False

    def strike(self, world: World, rng: random.Random) -> None:
        assert world.stop_agent() == 0
        with closing(sqlite3.connect(world.ledger)) as connection:
            chunks = connection.execute("SELECT rowid, hashes FROM row_hashes ORDER BY rowid").fetchall()
            row, hashes = rng.choice(chunks)
            changed = bytearray(hashes)
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            connection.execute("UPDATE row_hashes SET hashes = ? WHERE rowid = ?", (bytes(changed), row))
            connection.commit()
        world.start_agent()


class LedgerNewer(Fault):
    """The ledger is of a newer version: an older agent refuses it, and changes nothing."""

    row = "Ledger of a newer version"
    rounds = 20
    bar = "refused and unchanged; the error names the fix"
    delayed = False

    def strike(self, world: World, rng: random.Random) -> None:
        assert world.stop_agent() == 0
        self._set_version(world, len(schema.MIGRATIONS) + rng.randint(1, 3))
        before = world.ledger.read_bytes()
        world.start_agent()
        world.said("update akosha-agent")
        assert world.stop_agent() == 1
        assert world.ledger.read_bytes() == before

    def heal(self, world: World, rng: random.Random) -> None:
        self._set_version(world, len(schema.MIGRATIONS))
        world.start_agent()

    def check(self, world: World) -> Iterator[str]:
        """The ledger was not replaced by a new one."""
        yield from (f"{path.name} was set aside" for path in damaged_ledgers(world.ledger))

    def _set_version(self, world: World, version: int) -> None:
        with closing(sqlite3.connect(world.ledger)) as connection:
            connection.execute(f"PRAGMA user_version = {version}")
