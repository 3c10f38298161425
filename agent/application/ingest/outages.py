"""What the Akosha side waits for, said once: not by each system, and not at each try."""

import structlog

from agent.domain.errors import AkoshaError, SinkError, StateError

_AKOSHA = "akosha "
"""What all systems wait for; no system is called that."""

_log = structlog.get_logger()


class Outages:
    """Says once that something is waited for, and once that it is there again."""

    def __init__(self) -> None:
        self._waits: set[str] = set()

    def failed(self, system_id: str, error: AkoshaError, **more: object) -> None:
        """What all systems wait for is said once for all."""
        place = _place(system_id, error)
        tell = _log.debug if place in self._waits else _log.warning
        self._waits.add(place)
        tell("ingest_waits", system_id=system_id, error=str(error), **more)

    def passed(self, system_id: str, *, akosha: bool) -> None:
        """The system waits for nothing; with `akosha`, that has taken something."""
        over = self._waits & ({system_id, _AKOSHA} if akosha else {system_id})
        if over:
            _log.info("ingest_goes_on", system_id=system_id)
        self._waits -= over


def is_final(error: AkoshaError) -> bool:
    """Say whether no later try mends it: the ledger cannot be used."""
    return isinstance(error, StateError) and not error.transient


def _place(system_id: str, error: AkoshaError) -> str:
    return _AKOSHA if isinstance(error, SinkError) else system_id
