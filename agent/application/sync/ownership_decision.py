"""The decision whether a target is this agent's, and the error for a refusal: who owns it, and what a person can do."""

import shlex
from dataclasses import dataclass
from urllib.parse import unquote

from agent.domain import naming
from agent.domain.errors import NotOwner, WireError
from agent.domain.identity import Machine, Owner, Refusal
from agent.domain.manifest import Manifest

TAKE_OVER = "akosha-agent sync --take-over"
NEW_TARGET = "akosha-agent sync --new-target"

_REPLACES = (
    "if this machine replaces the other one (a new machine, a reinstalled OS, a moved data directory, a restored state "
    f"directory): {TAKE_OVER}"
)
_OTHER_ID = "set akosha_system_id to an ID of its own"


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision on a target. `refusal` is None if it is ours or free. `newest`: the upload that decided."""

    refusal: Refusal | None = None
    owner: Owner | None = None
    newest: Manifest | None = None
    owner_error: WireError | None = None
    """The error if owner.json is not valid."""

    @property
    def is_new(self) -> bool:
        """Whether the target has no owner and no upload."""
        return self.owner is None and self.newest is None


def not_owner(decision: Decision, *, location: str, system_id: str, machine: Machine) -> NotOwner:
    """Return the error for a decision that has a refusal. `location`: that of the store. `machine` is this one."""
    refusal, owner, key = decision.refusal, decision.owner, naming.owner_key(system_id)
    other_fixes = f"{_OTHER_ID}; {_REPLACES}"
    if owner is not None and owner.machine == machine.digest and refusal is not Refusal.COPIED:
        verb = "was taken over by" if refusal is Refusal.TAKEN_OVER else "belongs to"
        return NotOwner(
            f"the system ID {system_id} in {location} {verb} {_local_owner(owner, machine)}, {owner.since}",
            hint=_local_fixes(owner, machine),
        )
    if refusal is Refusal.TAKEN:
        return NotOwner(f"the system ID {system_id} in {location} belongs to {owner}", hint=other_fixes)
    if refusal is Refusal.TAKEN_OVER:
        return NotOwner(f"the system ID {system_id} in {location} was taken over by {owner}", hint=other_fixes)
    if refusal is Refusal.FOREIGN and decision.newest:
        newest = f"{decision.newest.upload_id} of agent {decision.newest.agent_id[:8]}"
        return NotOwner(
            f"uploads of {system_id} in {location} belong to another agent: the newest is {newest}",
            hint=other_fixes,
        )
    if refusal is Refusal.COPIED and decision.newest:
        return NotOwner(
            f"{location} has {decision.newest.upload_id}, which this state directory does not know: it was "
            "copied or restored from a backup, and another agent uploads under the same ID",
            hint=f"give each copy a system ID of its own (akosha_system_id); {_REPLACES}",
        )
    if decision.owner_error is not None:
        return NotOwner(
            f"{key} in {location} is not valid: {decision.owner_error.message}",
            hint=decision.owner_error.hint or other_fixes,
        )
    if location.startswith("file:"):
        return NotOwner(
            f"this directory had uploads and is now empty or missing: is the disk mounted? ({location})",
            hint=used_directory_hint(unquote(location.removeprefix("file://"))),
        )
    return NotOwner(
        f"{location} had uploads of {system_id}, and {key} is missing: was the bucket emptied or replaced?",
        hint=f"if that was on purpose: {NEW_TARGET}",
    )


def used_directory_hint(path: str) -> str:
    """Return the fix for a directory that had uploads and is missing or empty."""
    return (
        f"mount it; if the disk or directory was replaced on purpose: mkdir -p {shlex.quote(path)}, then {NEW_TARGET}"
    )


def _local_owner(owner: Owner, machine: Machine) -> str:
    """Return how messages name an owner on this machine that is not this agent."""
    if owner.state_dir == machine.state_dir != "":
        return "an agent with another ID in this state directory: the directory was restored, or moved and back"
    named = f": {owner.state_dir}" if owner.state_dir else ""
    return f"another state directory on this machine{named}"


def _local_fixes(owner: Owner, machine: Machine) -> str:
    if owner.state_dir == machine.state_dir != "":
        return f"if only this state directory is in use: {TAKE_OVER}"
    use = f"--state-dir {shlex.quote(owner.state_dir)}" if owner.state_dir else "--state-dir"
    return (
        f"use that state directory ({use}, or akosha_agent_state_dir); if it is no longer in use: {TAKE_OVER}; "
        "for a second agent, set akosha_system_id to an ID of its own and keep the state directories separate"
    )
