"""What a fault of the campaign is."""

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from typing import ClassVar

from tests.campaign.targets import Kind
from tests.campaign.world import SETTLE_SECONDS, World


class Fault(ABC):
    """`strike` happens while a change is synced, `heal` after it. `row`: its row in the report.

    `rounds`: its rounds in a full campaign. `target`: what the agent delivers to.
    `bar`: what the agent must do, besides what `checks` demands after every fault.
    `typical_seconds`: duration of a round with its checks, for the plan of a campaign.
    """

    row: ClassVar[str]
    rounds: ClassVar[int]
    bar: ClassVar[str] = "nothing is lost"
    typical_seconds: ClassVar[float] = 5.0
    target: ClassVar[Kind] = "directory"
    delayed: ClassVar[bool] = True
    """Strike at a random moment of the sync; otherwise before the change."""

    calm_seconds: ClassVar[float] = SETTLE_SECONDS
    """Maximum time until everything has arrived after `heal`."""

    def __init__(self) -> None:
        self.struck = Counter[str]()
        """How often each variant has struck, where a fault counts it; 0 for a variant that has not."""

    def prepare(self, world: World) -> None:  # noqa: B027 - most faults need nothing
        """Change the world before its agent starts. Raises Skipped if this machine does not allow the fault."""

    @abstractmethod
    def strike(self, world: World, rng: random.Random) -> None: ...

    def heal(self, world: World, rng: random.Random) -> None:  # noqa: B027 - most faults need none
        """Put right what does not mend itself."""

    def check(self, world: World) -> Iterable[str]:
        """Return what else is wrong after a round, besides what `checks.violations` finds."""
        return ()
