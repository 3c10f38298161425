"""The stream AKOSHA_SYNC: made where there is none, else used as it is."""

import asyncio
from dataclasses import replace

import structlog
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo

from agent.adapters.nats.client import Client
from agent.adapters.nats.errors import StreamGone, translated
from agent.adapters.nats.options import Limits
from agent.domain.errors import BusError
from agent.domain.naming import PASSING_SUBJECTS, STREAM_SUBJECTS, patterns_meet, subject_matches
from agent.ports import StreamMark

STREAM = "AKOSHA_SYNC"

_DESCRIPTION = "What akosha-agent and those around it tell each other"

_EXTENSIBLE = frozenset({"max_age", "max_bytes", "duplicate_window"})
"""What an operator may extend with `nats stream edit`; less of it can lose events."""

_log = structlog.get_logger()


class Stream:
    """Knows what the stream should be like, and says once where it is not. `mark`: how far it has come."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._complained = limits, ""
        self._replaced = asyncio.Event()
        self.mark: StreamMark | None = None

    async def wait_beyond(self, created: str) -> None:
        """Return when the stream is another one than that which was made at `created`."""
        while self.mark is None or self.mark.created == created:
            await self._replaced.wait()

    async def ensure(self, client: Client, seconds: float) -> None:
        """Make the stream where there is none. Raises BusError where it cannot be made or cannot hold our events."""
        jetstream = client.jetstream(timeout=seconds)
        try:
            with translated(f"looking for the stream {STREAM}", client):
                info = await jetstream.stream_info(STREAM)
        except StreamGone:
            info = await self._make(client, jetstream)
        else:
            info = await self._with_missing_subjects(client, jetstream, info)
            self._compare(info.config)
        before, self.mark = self.mark, StreamMark(str(info.created), info.state.last_seq)
        if before is None or before.created != self.mark.created:
            replaced, self._replaced = self._replaced, asyncio.Event()
            replaced.set()

    async def exists(self, client: Client, seconds: float) -> bool:
        """Say whether the stream is there. Raises BusError where nobody knows."""
        try:
            with translated(f"looking for the stream {STREAM}", client):
                await client.jetstream(timeout=seconds).stream_info(STREAM)
        except StreamGone:
            return False
        return True

    async def fits(self, client: Client, seconds: float) -> bool:
        """Say whether the stream is there. Raises BusError where nobody knows, and where our events do not fit in."""
        try:
            with translated(f"looking for the stream {STREAM}", client):
                info = await client.jetstream(timeout=seconds).stream_info(STREAM)
        except StreamGone:
            return False
        self._compare(info.config)
        return True

    def advance(self, sequence: int) -> None:
        """An event was put there: the stream has come so far."""
        if self.mark is not None:
            self.mark = StreamMark(self.mark.created, max(self.mark.sequence, sequence))

    async def _make(self, client: Client, jetstream: JetStreamContext) -> StreamInfo:
        with translated(f"making the stream {STREAM}", client):
            info = await jetstream.add_stream(self._wanted())
        _log.info(
            "stream_created", stream=STREAM, max_age_seconds=self._limits.max_age, max_bytes=self._limits.max_bytes
        )
        return info

    async def _with_missing_subjects(
        self, client: Client, jetstream: JetStreamContext, found: StreamInfo
    ) -> StreamInfo:
        """Have a stream that an earlier version of ours made take what that did not know of; return how it is now."""
        missing = _missing(found.config)
        if not missing or found.config.description != _DESCRIPTION:
            return found
        try:
            with translated(f"adding {', '.join(missing)} to the stream {STREAM}", client):
                wider = replace(found.config, subjects=[*(found.config.subjects or []), *missing])
                info = await jetstream.update_stream(wider)
        except BusError as error:  # what follows says what it lacks, and the cure
            _log.warning("stream_not_updated", stream=STREAM, error=str(error))
            return found
        _log.info("stream_updated", stream=STREAM, subjects=missing)
        return info

    def _wanted(self) -> StreamConfig:
        return StreamConfig(
            name=STREAM,
            description=_DESCRIPTION,
            subjects=list(STREAM_SUBJECTS),
            retention=RetentionPolicy.LIMITS,
            discard=DiscardPolicy.OLD,
            storage=StorageType.FILE,
            max_age=self._limits.max_age,
            max_bytes=self._limits.max_bytes,
            duplicate_window=self._limits.duplicate_window,
        )

    def _compare(self, found: StreamConfig) -> None:
        """Warn, once, of what differs from what we would have made. Raises BusError where our events do not fit in."""
        taken = found.subjects or []
        if missing := _missing(found):
            raise BusError(
                f"the stream {STREAM} does not take {', '.join(missing)}",
                hint=f"nats stream edit {STREAM} --subjects {','.join([*taken, *missing])}",
                transient=True,
            )
        if any(patterns_meet(have, passing) for have in taken for passing in PASSING_SUBJECTS):
            raise BusError(
                f"the stream {STREAM} keeps what is to pass by ({', '.join(taken)})",
                hint=f"nats stream edit {STREAM} --subjects {','.join(STREAM_SUBJECTS)}",
                transient=True,
            )
        wanted = self._wanted()
        differ = {
            name: str(getattr(found, name))
            for name in ("retention", "discard", "storage", "max_age", "max_bytes", "duplicate_window")
            if (have := getattr(found, name)) != (own := getattr(wanted, name))
            and not (name in _EXTENSIBLE and (have >= own or have <= 0))  # 0 and -1: unlimited
        }
        if differ and str(differ) != self._complained:
            _log.warning("stream_differs", stream=STREAM, **differ, reason="it was there already: it is used as it is")
        self._complained = str(differ)


def _missing(found: StreamConfig) -> list[str]:
    """Return which of our subjects a stream does not take."""
    whole = [have for have in found.subjects or [] if have.endswith(">")]
    return [subject for subject in STREAM_SUBJECTS if not any(subject_matches(have, subject) for have in whole)]
