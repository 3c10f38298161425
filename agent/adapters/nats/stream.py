"""The stream AKOSHA_SYNC. The agent creates it if it does not exist; an existing stream is used as it is."""

from contextlib import suppress
from dataclasses import replace

import structlog
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo

from agent.adapters.nats.client import Client
from agent.adapters.nats.errors import Denied, StreamGone, translated
from agent.adapters.nats.options import Limits
from agent.adapters.nats.stream_settings import Lack, cure, lacks
from agent.domain.errors import BusError
from agent.domain.naming import STREAM_SUBJECTS, UNSTORED_SUBJECTS, patterns_meet, subject_matches
from agent.ports import StreamMark

STREAM = "AKOSHA_SYNC"

_DESCRIPTION = "What akosha-agent and those around it tell each other"
"""Marks a stream that an agent created. Do not change it: only a stream with this text gets what it lacks."""

_log = structlog.get_logger()


class Stream:
    """Creates and checks the stream; warns once if its configuration differs.

    `mark` is its newest known position; `consumers` is how many it had when it was last examined, None if unknown.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits, self._reported = limits, ""
        self.mark: StreamMark | None = None
        self.consumers: int | None = None

    async def ensure(self, client: Client, seconds: float) -> bool:
        """Create the stream if it does not exist. Raises BusError if that fails or if it cannot store the events.

        Return False if the user may not examine the stream: the confirmations of events show whether it exists.
        """
        jetstream, self.consumers = client.jetstream(timeout=seconds), None
        try:
            info = await self._found(jetstream)
        except Denied as error:
            _log.debug("stream_not_examined", stream=STREAM, reason=str(error))
            return False
        if info is None:
            info = await self._create(jetstream)
        else:
            info = await self._updated(jetstream, info)
            self._check_config(info.config)
        self.mark, self.consumers = StreamMark(str(info.created), info.state.last_seq), info.state.consumer_count
        return True

    async def examine(self, client: Client, seconds: float) -> list[Lack] | None:
        """Return what the stream lacks, None if it does not exist.

        Raises BusError if it cannot store the events, or the server is silent.
        """
        info = await self._found(client.jetstream(timeout=seconds))
        if info is None:
            return None
        self._check_config(info.config)
        return lacks(info.config, self._config())

    def has_stored(self, sequence: int, *, sent_at: StreamMark | None) -> bool:
        """Record that the stream has stored a new event at `sequence`. Return whether it is another one than before.

        That shows in a position that is not later than `sent_at`, the mark when the event was sent. The sequence of a
        duplicate is that of the first event: it must not be passed.
        """
        replaced = sent_at is not None and sequence <= sent_at.sequence
        if self.mark is None or replaced:
            self.mark = StreamMark("", sequence)
        else:
            self.mark = StreamMark(self.mark.created, max(self.mark.sequence, sequence))
        return replaced

    async def _found(self, jetstream: JetStreamContext) -> StreamInfo | None:
        with suppress(StreamGone), translated(f"looking for the stream {STREAM}"):
            return await jetstream.stream_info(STREAM)
        return None

    async def _create(self, jetstream: JetStreamContext) -> StreamInfo:
        with translated(f"creating the stream {STREAM}"):
            info = await jetstream.add_stream(self._config())
        _log.info(
            "stream_created", stream=STREAM, max_age_seconds=self._limits.max_age, max_bytes=self._limits.max_bytes
        )
        return info

    async def _updated(self, jetstream: JetStreamContext, found: StreamInfo) -> StreamInfo:
        """Add what a stream of an earlier version lacks: subjects and direct gets. Return its current state."""
        subjects = [*(found.config.subjects or []), *_missing(found.config)]
        wanted = replace(found.config, subjects=subjects, allow_direct=True)
        if found.config.description != _DESCRIPTION or wanted == found.config:
            return found
        try:
            with translated(f"adding subjects or direct gets to the stream {STREAM}"):
                info = await jetstream.update_stream(wanted)
        except BusError as error:  # `_check_config` raises with missing subjects and a hint, or warns
            _log.warning("stream_not_updated", stream=STREAM, error=str(error))
            return found
        _log.info("stream_updated", stream=STREAM, subjects=subjects)
        return info

    def _config(self) -> StreamConfig:
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
            max_consumers=self._limits.max_consumers,
            allow_direct=True,
        )

    def _check_config(self, found: StreamConfig) -> None:
        """Warn once about what the stream lacks. Raises BusError if the subjects are wrong."""
        subjects = found.subjects or []
        if missing := _missing(found):
            raise BusError(
                f"the stream {STREAM} does not store {', '.join(missing)}",
                hint=f"nats stream edit {STREAM} --subjects {','.join([*subjects, *missing])}",
                transient=True,
            )
        if any(patterns_meet(subject, passing) for subject in subjects for passing in UNSTORED_SUBJECTS):
            raise BusError(
                f"the stream {STREAM} stores subjects that must not be stored ({', '.join(subjects)})",
                hint=f"nats stream edit {STREAM} --subjects {','.join(STREAM_SUBJECTS)}",
                transient=True,
            )
        found_lacks = lacks(found, self._config())
        differences = "; ".join(lack.found for lack in found_lacks)
        if differences and differences != self._reported:
            reason, hint = "the existing stream is used as it is", cure(STREAM, found_lacks)
            _log.warning("stream_differs", stream=STREAM, lacks=differences, reason=reason, hint=hint)
        self._reported = differences


def _missing(found: StreamConfig) -> list[str]:
    """Return the subjects of the agent that the stream does not store."""
    prefixes = [subject for subject in found.subjects or [] if subject.endswith(">")]
    return [subject for subject in STREAM_SUBJECTS if not any(subject_matches(prefix, subject) for prefix in prefixes)]
