"""The agent's identity, and the ownership of a system ID's uploads: `systems/{id}/owner.json`.

One agent owns a system ID in a target. It creates owner.json before its first upload, and its ledger keeps the claim.
No other agent adopts, carries over, prunes or overwrites uploads of that system ID. In a directory owner.json is also
the mount marker: if the ledger has a claim and the directory has no owner.json, another file system is mounted.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Self

from agent.domain import naming
from agent.domain.delivery_state import Target
from agent.domain.errors import WireError
from agent.domain.parsing import aware_time, parse_json

VERSION = 1
MAX_BYTES = 64 * 2**10
"""Larger objects are not read as owner.json."""

SUFFIX_DIGITS = (4, 8)
"""Number of digits of the machine's hash in a suffix; the second if the first suffix is taken, too."""

_SALT = b"akosha-agent owner 1\0"
_HEX_64 = re.compile(r"[0-9a-f]{64}")
_AGENT_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_CLAIM_ID = re.compile(r"[0-9a-f]{32}")
_NOT_HOST = re.compile(r"[^A-Za-z0-9_.-]+")
_LONGEST_HOST = 64
_LONGEST_PATH = 4096

NOTE = "owner "
"""Prefix of the keys of claims' notes; the target's ID follows."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Created at the first start and kept. No two agents share an agent ID.

    `is_default`: the system ID is the host name. If another machine owns it in the cloud target, the agent adds a
    suffix before its first upload.
    """

    agent_id: str
    system_id: str
    is_default: bool = False

    def durable(self, role: str) -> str:
        """Return the name of this agent's durable consumer on the bus, for one role."""
        return f"{self.system_id}-{self.agent_id[:8]}-{role}"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that owns uploads: `digest` of its ID and the data directory; `host` is its name, a label.

    `state_dir` is the agent's state directory, "" if it is unknown or has characters that cannot be printed.
    """

    digest: str
    host: str = ""
    state_dir: str = ""

    @classmethod
    def of(cls, machine_id: str, data_dir: Path, host: str, state_dir: Path | None = None) -> Self:
        """Hash the machine's ID and the data directory, because the users of one machine have a directory each.

        The directories are absolute, with symbolic links resolved, so that one directory has one hash.
        """
        digest = hashlib.sha256(_SALT + machine_id.encode() + b"\0" + str(data_dir).encode(errors="surrogateescape"))
        return cls(digest.hexdigest(), host, _path(str(state_dir)) if state_dir else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The content of owner.json. `claim_id` is random, so that two claims of one agent in one second differ.

    `state_dir` is the state directory of the agent, on its machine; "" if an earlier version wrote owner.json.
    """

    system_id: str
    machine: str
    agent_id: str
    claim_id: str
    claimed_at: datetime
    host: str = ""
    state_dir: str = ""

    @classmethod
    def new(cls, system_id: str, machine: Machine, agent_id: str, at: datetime) -> Self:
        """Return a new claim with a random ID."""
        return cls(
            system_id=system_id,
            machine=machine.digest,
            agent_id=agent_id,
            claim_id=secrets.token_hex(16),
            claimed_at=at,
            host=_label(machine.host),
            state_dir=machine.state_dir,
        )

    @property
    def key(self) -> str:
        return naming.owner_key(self.system_id)

    def encode(self) -> bytes:
        """Return the object's bytes: indented JSON."""
        document = {
            "version": VERSION,
            "system_id": self.system_id,
            "machine": self.machine,
            "host": self.host,
            "agent_id": self.agent_id,
            "claim_id": self.claim_id,
            "claimed_at": self.claimed_at.astimezone(UTC).isoformat(),
            "state_dir": self.state_dir,
        }
        return json.dumps(document, indent=2).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the owner in these bytes. Unknown fields are ignored. Raises WireError."""
        try:
            document = parse_json(data)
            if document["version"] != VERSION:
                raise WireError("owner.json was written by another version", hint="update akosha-agent")
            return cls(
                system_id=naming.check_system_id(document["system_id"]),
                machine=_matching(_HEX_64, document["machine"]),
                agent_id=_matching(_AGENT_ID, document["agent_id"]),
                claim_id=_matching(_CLAIM_ID, document["claim_id"]),
                claimed_at=aware_time(document["claimed_at"]),
                host=_label(str(document.get("host", ""))),
                state_dir=_path(str(document.get("state_dir", ""))),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, WireError):
                raise
            raise WireError(f"owner.json is damaged: {type(error).__name__}") from error

    def __str__(self) -> str:
        """Return the host, the first digits of the machine's hash and the time of the claim, for people."""
        host = f"{self.host} " if self.host else ""
        return f"{host}(machine {self.machine[:8]}, {self.since})"

    @property
    def since(self) -> str:
        """The time of the claim, for people."""
        return f"since {self.claimed_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The ledger's record of its own claim, in a note for each target.

    Not `confirmed`: owner.json was about to be written. `seen` is the newest upload in the target when the claim was
    made, "" for none: uploads up to that one do not show that the state directory was copied.
    """

    claim_id: str
    confirmed: bool
    seen: str = ""

    def note(self) -> str:
        """Return the text of the note."""
        return json.dumps({"claim_id": self.claim_id, "confirmed": self.confirmed, "seen": self.seen})

    @classmethod
    def from_notes(cls, text: str | None) -> Self | None:
        """Return the claim in a note, None without a note or for an invalid one."""
        try:
            document = parse_json(text or "")
            return cls(
                claim_id=_matching(_CLAIM_ID, document["claim_id"]),
                confirmed=document["confirmed"] is True,
                seen=str(document["seen"]),
            )
        except (ValueError, KeyError, TypeError):
            return None


class Refusal(StrEnum):
    """Why a target does not belong to this agent."""

    TAKEN = "taken"
    """owner.json belongs to another machine, and this ledger has no claim."""
    TAKEN_OVER = "taken_over"
    """owner.json is not the one that this ledger claimed."""
    OTHER_STATE = "other_state"
    """owner.json belongs to another state directory on this machine, which still exists."""
    FOREIGN = "foreign"
    """There is no owner.json, and the newest upload was made by another agent."""
    COPIED = "copied"
    """This machine made an upload that is not in this ledger: the state directory is a copy, or was restored."""
    GONE = "gone"
    """This ledger has a claim, or uploads, and there is no owner.json."""
    DAMAGED = "damaged"
    """owner.json cannot be read."""


def note_key(target: Target) -> str:
    """Return the key of the note that keeps the claim on a target."""
    return NOTE + target.id


def suffixed(system_id: str, machine: Machine) -> str | None:
    """Return a default system ID with digits of the machine's hash appended, None if both lengths were tried.

    The digits depend only on the machine and the data directory.
    """
    short, long = (f"-{machine.digest[:digits]}" for digits in SUFFIX_DIGITS)
    if system_id.endswith(long):
        return None
    base, suffix = (system_id.removesuffix(short), long) if system_id.endswith(short) else (system_id, short)
    return naming.check_system_id(base[: naming.MAX_GENERATED_ID - len(suffix)].rstrip("-") + suffix)


def is_decided(notes: Mapping[str, str], system_id: str) -> bool:
    """Return whether a ledger's notes have a confirmed claim of this system ID on any target."""
    kept = (
        Claim.from_notes(text) for key, text in notes.items() if key.startswith(NOTE) and key.endswith(f" {system_id}")
    )
    return any(claim.confirmed for claim in kept if claim is not None)


def without_claims(notes: Mapping[str, str]) -> dict[str, str]:
    """Return the notes that are not claims."""
    return {key: text for key, text in notes.items() if not key.startswith(NOTE)}


def _matching(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"a field does not match {pattern.pattern}")
    return text


def _path(path: str) -> str:
    return path if path.isprintable() and len(path) <= _LONGEST_PATH else ""


def _label(host: str) -> str:
    return _NOT_HOST.sub("-", host)[:_LONGEST_HOST].strip("-")
