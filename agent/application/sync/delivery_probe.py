"""Whether an Akosha server still has what it was given: one memory that it should have is offered once more.

A server that has lost its memories says nothing of it (Akosha 0.11 keeps them in its process). Offering a memory again
changes nothing where it is there; where the server stores it as new, the others are lost, too, and all are sent again.

    kept       the memory as it was sent, after the server has confirmed it
    sent       the offer is about to be sent; written first
    answered   the server had it

An offer without an answer may have stored the memory, so the answer to the next one would prove nothing: then all is
sent again without asking. The process that holds the ledger is the only one that offers.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Self

from agent.domain.delivery_state import Target
from agent.domain.errors import SinkError
from agent.domain.memories import RowState
from agent.ports import Clock, Ledger, MemorySink, PackedMemory

PREFIX = "akosha_probe "
"""Of the ledger's notes, one a target. They hold a memory's text: `describe` shows none of them."""

EVERY = timedelta(days=1)


class MemoriesLost(SinkError):  # noqa: N818 - as NoSuchObject: it says the state of the world
    """The server no longer has what it was given: the ledger must forget what was delivered to it."""

    def __init__(self, location: str) -> None:
        super().__init__(f"{location} has lost what it had been given", hint="all of it is sent again", transient=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeState:
    """What is offered next (`packed`, None where no memory is fit for it), and how the last offer went.

    `answered` is the last time at which the server confirmed that it has the memory; `sent` is set while an offer has
    no answer.
    """

    packed: PackedMemory | None = None
    sent: datetime | None = None
    answered: datetime | None = None

    @classmethod
    def from_notes(cls, notes: Mapping[str, str], target: Target) -> Self | None:
        """Return what the ledger's notes hold for a target, None where they hold nothing that can be read."""
        try:
            note = json.loads(notes[PREFIX + target.id])
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
        """Return it as `noted` reads it."""
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
    """Offers the memory that was kept for one target. The caller holds the ledger, and runs no push meanwhile."""

    def __init__(self, target: Target, sink: MemorySink, ledger: Ledger, clock: Clock) -> None:
        self._target, self._sink, self._ledger, self._clock = target, sink, ledger, clock

    async def state(self) -> ProbeState | None:
        """Return what is kept, None for nothing. Raises StateError."""
        return ProbeState.from_notes(await self._ledger.notes(), self._target)

    async def keep(self, packed: PackedMemory | None) -> None:
        """The server has just confirmed this memory: offer it next. None: a batch held none that is fit for it."""
        if packed is not None or await self.state() is None:
            await self._write(ProbeState(packed=packed, answered=self._clock.now()))

    async def is_inconclusive(self) -> bool:
        """Say whether no answer can prove anything: an offer has none, or nothing is kept of what was delivered."""
        state = await self.state()
        if state is not None:
            return state.sent is not None
        return bool((await self._ledger.memories().counts(self._target)).delivered)

    async def is_due(self) -> bool:
        """Say whether a day has gone by since the server was asked last, and there is something to ask with."""
        state, now = await self.state(), self._clock.now()
        if state is None or state.sent is not None:
            return await self.is_inconclusive()
        if state.packed is None:
            return False
        # One in the future is of a clock that was put back since.
        return state.answered is None or not now - EVERY < state.answered <= now

    async def capabilities(self) -> bool:
        """Offer the memory; False where there is none to offer, or the server refused it, so that nothing is proved.

        Raises MemoriesLost where the server stored it as new, and other SinkErrors.
        """
        state = await self.state()
        if state is None or state.packed is None:
            return False
        await self._write(replace(state, sent=self._clock.now()))
        try:
            receipt = await self._sink.store([state.packed])
        except SinkError as error:
            if not error.transient:  # it did not come to storing anything
                await self._write(state)
            raise
        if receipt.stored:
            raise MemoriesLost(self._sink.location)
        found = bool(receipt.existing)
        await self._write(replace(state, sent=None, answered=self._clock.now() if found else state.answered))
        return found

    async def drop(self) -> None:
        """What was delivered is forgotten: nothing is left to be offered."""
        await self._ledger.note(PREFIX + self._target.id, "")

    async def _write(self, state: ProbeState) -> None:
        await self._ledger.note(PREFIX + self._target.id, state.note())


def without_probes(notes: Mapping[str, str]) -> dict[str, str]:
    """Return the other notes."""
    return {key: text for key, text in notes.items() if not key.startswith(PREFIX)}
