"""The disk of the state directory: has it room for what the next sync copies there?

Computed at each look: on a full disk the ledger can keep no warning.
"""

from collections.abc import Sequence

from agent.domain.databases import Survey
from agent.domain.delivery_state import TargetRecord, pending
from agent.domain.status_warning import StatusWarning

MARGIN_BYTES = 16 * 2**20
"""What stays free beside the copies: for the ledger, notes and memories.json."""

STATE_DISK_FULL = "state_disk_full"


def disk_warning(
    directory: str, free_bytes: int | None, records: Sequence[TargetRecord], survey: Survey
) -> StatusWarning | None:
    """Return the warning that the disk has no room, None where it has, or where nobody knows (`free_bytes` None).

    A sync copies all databases that its first target lacks; their copies are there until it ends.
    """
    lacking = pending(records[0], survey) if records else frozenset[str]()
    needed = MARGIN_BYTES + sum(survey[name].size for name in lacking if name in survey)
    if free_bytes is None or free_bytes >= needed:
        return None
    return StatusWarning(
        code=STATE_DISK_FULL,
        message=f"the disk of {directory} is full: a sync needs {needed:,} bytes there, {free_bytes:,} are free",
        hint="free some space there, or let akosha_agent_state_dir name a directory on a bigger disk",
    )
