"""Memories: the rows of the databases as Akosha takes them.

Akosha's key is the memory's id alone, across all systems, and what is stored under an id never changes. So the id is a
pure function of what is sent: the system, the row's own id, and eight digits of the digest over the rest. A row that
changes is another memory; one that is sent twice is the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from agent.domain.errors import WireError

Kind = Literal["conversation", "reflection", "entity", "relationship"]
Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

KINDS: tuple[Kind, ...] = get_args(Kind)
EMBEDDING_LENGTH = 384
"""How many numbers an embedding has, in Session-Buddy's databases and in Akosha's."""

HASH_DIGITS = 8

NO_EMBEDDING = "no embedding"
"""The reason of a memory that waits for its embedding."""

EMBEDDING_HINT = (
    "give Session-Buddy an embedding server; or, to have zeros sent, set akosha_http_missing_embedding to zero"
)

CONFIRMED = "the server has what it was given"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowState:
    """A row as a snapshot shows it, before it is read whole: enough to decide whether a target lacks it.

    `id` is the row's own. `digest` (32 hex digits) covers all that is sent of it: kind, id, text, metadata, the naive
    time as it is in the row (travelling is no change), and whether an embedding is there (`embedded`); not the
    embedding's numbers, and nothing that reading a memory changes.
    """

    database: str
    kind: Kind
    id: str
    digest: str
    embedded: bool

    @property
    def key(self) -> tuple[str, str, str]:
        """What the row is called on this machine."""
        return self.database, self.kind, self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A row, whole. `text` is never empty; `embedding` is JSON, an array of 384 finite numbers, or None.

    `created_at` is ISO 8601 with an offset, None where the row has no time. `metadata` is what goes along besides.
    """

    row: RowState
    text: str
    embedding: str | None
    created_at: str | None
    metadata: Mapping[str, Json] = field(default_factory=dict)


def memory_id(system_id: str, row: RowState) -> str:
    """Return the id under which Akosha keeps this state of the row."""
    return f"{system_id}:{row.id}:{row.digest[:HASH_DIGITS]}"


def check_kind(text: str) -> Kind:
    """Return `text` if it is a kind of memory, else raise WireError."""
    for kind in KINDS:
        if text == kind:
            return kind
    raise WireError(f"{text[:80]!r} is no kind of memory", hint="update akosha-agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of memories that a target lacked.

    `stored` now; `known`: the target had them already. `waiting`: not sent, by reason ("no embedding": 13), to be sent
    when that changes; `refused`: not taken, by reason, until the row or the target changes.
    """

    stored: int = 0
    known: int = 0
    waiting: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)

    @property
    def delivered(self) -> int:
        """How many the target has now that it lacked before, as far as we knew."""
        return self.stored + self.known

    @property
    def kept_back(self) -> int:
        """How many it still lacks."""
        return sum(self.waiting.values()) + sum(self.refused.values())

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            stored=self.stored + other.stored,
            known=self.known + other.known,
            waiting=_sum(self.waiting, other.waiting),
            refused=_sum(self.refused, other.refused),
        )


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> Mapping[str, int]:
    return {why: one.get(why, 0) + other.get(why, 0) for why in {**one, **other}}
