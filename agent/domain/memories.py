"""Memories: rows of the databases in the form that Akosha stores.

Akosha's key is the memory's ID alone, across all systems, and a stored memory never changes. So the ID is a pure
function of the content: the system, the row's ID, and eight digits of the digest of the rest. A changed row is a new
memory; a row that is sent twice is the same memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from agent.domain.errors import WireError

Kind = Literal["conversation", "reflection", "entity", "relationship"]
Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]

KINDS: tuple[Kind, ...] = get_args(Kind)
EMBEDDING_LENGTH = 384
"""Dimension of embeddings, in Session-Buddy's databases and in Akosha's."""

HASH_DIGITS = 8

NO_EMBEDDING = "no embedding"
"""The reason why a memory without an embedding is waiting."""

EMBEDDING_HINT = (
    "give Session-Buddy an embedding server; or set akosha_http_missing_embedding to zero to send zeros instead"
)

CONFIRMED = "the server still has what was delivered"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowState:
    """The identity and digest of a row in a snapshot, with which the agent decides whether a target lacks it.

    `id` is the row's own. `digest` (32 hex digits) covers what is sent: kind, ID, text, metadata, the naive time as in
    the row (so that another time zone of the machine is not a change), and whether the row has an embedding
    (`embedded`). It does not cover the embedding's numbers, nor columns that change when a memory is read.
    """

    database: str
    kind: Kind
    id: str
    digest: str
    embedded: bool

    @property
    def key(self) -> tuple[str, str, str]:
        """The row's key on this machine."""
        return self.database, self.kind, self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A complete row. `text` is never empty; `embedding` is JSON, an array of 384 finite numbers, or None.

    `created_at` is ISO 8601 with an offset, None if the row has no time. `metadata` has the other columns that are
    sent.
    """

    row: RowState
    text: str
    embedding: str | None
    created_at: str | None
    metadata: Mapping[str, Json] = field(default_factory=dict)


def memory_id(system_id: str, row: RowState) -> str:
    """Return the ID under which Akosha stores this state of the row."""
    return f"{system_id}:{row.id}:{row.digest[:HASH_DIGITS]}"


def check_kind(text: str) -> Kind:
    """Return `text` if it is a kind of memory, else raise WireError."""
    for kind in KINDS:
        if text == kind:
            return kind
    raise WireError(f"{text[:80]!r} is not a kind of memory", hint="update akosha-agent")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts of memories that a target lacked, by outcome.

    `stored`: newly stored; `known`: the target already had them. `waiting`: not sent, by reason ("no embedding": 13),
    sent when that changes; `refused`: by reason, until the row or the target changes.
    """

    stored: int = 0
    known: int = 0
    waiting: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)

    @property
    def delivered(self) -> int:
        """How many the target has now that it lacked before, according to the ledger."""
        return self.stored + self.known

    @property
    def kept_back(self) -> int:
        """How many the target still lacks."""
        return sum(self.waiting.values()) + sum(self.refused.values())

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            stored=self.stored + other.stored,
            known=self.known + other.known,
            waiting=_sum(self.waiting, other.waiting),
            refused=_sum(self.refused, other.refused),
        )


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> Mapping[str, int]:
    return {reason: one.get(reason, 0) + other.get(reason, 0) for reason in {**one, **other}}
