"""Checks whether an Akosha server still has its memories, by offering again one memory that it should have.

A server that has lost its memories does not report it (Akosha 0.11 keeps them in its process). Offering a stored memory
again changes nothing. If the server stores it as new, it has lost the others too, and all are sent again.

A note in the ledger keeps the state of the probe:

    packed     the memory as it was sent, kept once the server has confirmed it
    sent       time of an offer without an answer, written before the offer is sent
    answered   time at which the server last confirmed the memory

An offer without an answer may have stored the memory, so a second offer would prove nothing: all memories are sent
again without one. Only the process that holds the ledger makes offers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Self

from agent.domain.delivery_state import Target
from agent.domain.errors import SinkError
from agent.domain.memories import RowState
from agent.domain.parsing import parse_json
from agent.ports import Clock, Ledger, MemorySink, PackedMemory

PREFIX = "akosha_probe "
"""Prefix of the probe's notes in the ledger, one per target. They contain a memory's text: `describe` omits them."""

EVERY = timedelta(days=1)
"""Interval between two offers by `ProbeLoop`."""


class MemoriesLost(SinkError):  # noqa: N818 - named for the condition, as NoSuchObject
    """The server has lost its memories: the ledger must forget what was delivered to it."""

    def __init__(self, location: str) -> None:
        super().__init__(
            f"{location} has lost the memories that it was given", hint="all of them are sent again", transient=True
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeState:
    """The memory to offer next, and the state of the last offer.

    `packed` is None if no memory is suitable. `answered` is when the server last confirmed the memory. `sent` is set
    while an offer has no answer.
    """

    packed: PackedMemory | None = None
    sent: datetime | None = None
    answered: datetime | None = None

    @classmethod
    def from_notes(cls, notes: Mapping[str, str], target: Target) -> Self | None:
        """Return the state of a target from the ledger's notes; None if it is missing or cannot be parsed."""
        try:
            note = parse_json(notes[PREFIX + target.id])
            body, sent, answered = note["body"], note["sent"], note["answered"]
            seen = RowState(**note["seen"]) if body else None
            packed = PackedMemory(row=seen, memory_id=note["memory_id"], body=body.encode()) if seen else None
            return cls(
                packed=packed,
                sent=datetime.fromisoformat(sent) if sent else None,
                answered=datetime.fromisoformat(answered) if answered else None,
            )
        except (KeyError, ValueError, TypeError, AttributeError):
            return None

    def note(self) -> str:
        """Return the text that `from_notes` reads."""
        packed = self.packed
        seen = packed.row if packed else None
        return json.dumps(
            {
                "seen": seen and {name: getattr(seen, name) for name in seen.__slots__},
                "memory_id": packed.memory_id if packed else "",
                "body": packed.body.decode() if packed else "",
                "sent": self.sent and self.sent.isoformat(),
                "answered": self.answered and self.answered.isoformat(),
            }
        )


class DeliveryProbe:
    """Makes offers to one target. The caller holds the ledger, and runs no push meanwhile."""

    def __init__(self, target: Target, sink: MemorySink, ledger: Ledger, clock: Clock) -> None:
        self._target, self._sink, self._ledger, self._clock = target, sink, ledger, clock

    async def state(self) -> ProbeState | None:
        """Return the stored state, None if there is none. Raises StateError."""
        return ProbeState.from_notes(await self._ledger.notes(), self._target)

    async def keep(self, packed: PackedMemory | None) -> None:
        """Keep a memory that the server has just confirmed, to offer it next. None: no memory is suitable."""
        if packed is not None or await self.state() is None:
            await self._write(ProbeState(packed=packed, answered=self._clock.now()))

    async def is_inconclusive(self) -> bool:
        """Return whether an offer would prove nothing: the last one has no answer, or a delivery left no state."""
        state = await self.state()
        if state is not None:
            return state.sent is not None
        return bool((await self._ledger.memories().counts(self._target)).delivered)

    async def is_due(self) -> bool:
        """Return whether the last answer is a day old and there is a memory to offer, or the state is inconclusive."""
        state, now = await self.state(), self._clock.now()
        if state is None or state.sent is not None:
            return await self.is_inconclusive()
        if state.packed is None:
            return False
        # An answer in the future: the clock was set back since.
        return state.answered is None or not now - EVERY < state.answered <= now

    async def offer(self) -> bool:
        """Offer the memory and return whether the server had it.

        False proves nothing: there was no memory to offer, or the server refused it. Raises MemoriesLost if the server
        stored it as new, and other SinkErrors.
        """
        state = await self.state()
        if state is None or state.packed is None:
            return False
        await self._write(replace(state, sent=self._clock.now()))
        try:
            receipt = await self._sink.store([state.packed])
        except SinkError as error:
            if not error.transient:  # nothing was stored
                await self._write(state)
            raise
        if receipt.stored:
            raise MemoriesLost(self._sink.location)
        had_it = bool(receipt.existing)
        await self._write(replace(state, sent=None, answered=self._clock.now() if had_it else state.answered))
        return had_it

    async def drop(self) -> None:
        """Remove the stored state, once the ledger has forgotten what was delivered."""
        await self._ledger.note(PREFIX + self._target.id, "")

    async def _write(self, state: ProbeState) -> None:
        await self._ledger.note(PREFIX + self._target.id, state.note())


def without_probes(notes: Mapping[str, str]) -> dict[str, str]:
    """Return the notes that are not a probe's."""
    return {key: text for key, text in notes.items() if not key.startswith(PREFIX)}
