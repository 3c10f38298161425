"""The stream AKOSHA_SYNC. The agent creates it if it does not exist; an existing stream is used as it is."""

import asyncio
from dataclasses import replace

import structlog
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo

from agent.adapters.nats.client import Client
from agent.adapters.nats.errors import StreamGone, translated
from agent.adapters.nats.options import Limits
from agent.domain.errors import BusError
from agent.domain.naming import STREAM_SUBJECTS, UNSTORED_SUBJECTS, patterns_meet, subject_matches
from agent.ports import StreamMark

STREAM = "AKOSHA_SYNC"

_DESCRIPTION = "What akosha-agent and those around it tell each other"
"""Marks a stream that an agent created. Do not change it: only a stream with this text gets missing subjects added."""

_EXTENSIBLE = frozenset({"max_age", "max_bytes", "duplicate_window"})
"""Limits that an operator may raise with `nats stream edit`; lower values can lose events."""

_log = structlog.get_logger()


class Stream:
    """Creates and checks the stream; warns once if its configuration differs. `mark` is its newest known position."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._reported = limits, ""
        self._replaced = asyncio.Event()
        self.mark: StreamMark | None = None

    async def wait_until_replaced(self, created: str) -> None:
        """Return when the stream that was created at `created` has been replaced."""
        while self.mark is None or self.mark.created == created:
            await self._replaced.wait()

    async def ensure(self, client: Client, seconds: float) -> None:
        """Create the stream if it does not exist. Raises BusError if that fails or if it cannot store the events."""
        jetstream = client.jetstream(timeout=seconds)
        try:
            with translated(f"looking for the stream {STREAM}", client):
                info = await jetstream.stream_info(STREAM)
        except StreamGone:
            info = await self._create(client, jetstream)
        else:
            info = await self._with_missing_subjects(client, jetstream, info)
            self._check_config(info.config)
        before, self.mark = self.mark, StreamMark(str(info.created), info.state.last_seq)
        if before is None or before.created != self.mark.created:
            replaced, self._replaced = self._replaced, asyncio.Event()
            replaced.set()

    async def exists(self, client: Client, seconds: float) -> bool:
        """Return whether the stream exists. Raises BusError if the server does not answer."""
        try:
            with translated(f"looking for the stream {STREAM}", client):
                await client.jetstream(timeout=seconds).stream_info(STREAM)
        except StreamGone:
            return False
        return True

    async def check(self, client: Client, seconds: float) -> bool:
        """Return whether the stream exists. Raises BusError if it cannot store the events, or the server is silent."""
        try:
            with translated(f"looking for the stream {STREAM}", client):
                info = await client.jetstream(timeout=seconds).stream_info(STREAM)
        except StreamGone:
            return False
        self._check_config(info.config)
        return True

    def advance(self, sequence: int) -> None:
        """Record that the stream has stored an event at `sequence`."""
        if self.mark is not None:
            self.mark = StreamMark(self.mark.created, max(self.mark.sequence, sequence))

    async def _create(self, client: Client, jetstream: JetStreamContext) -> StreamInfo:
        with translated(f"creating the stream {STREAM}", client):
            info = await jetstream.add_stream(self._config())
        _log.info(
            "stream_created", stream=STREAM, max_age_seconds=self._limits.max_age, max_bytes=self._limits.max_bytes
        )
        return info

    async def _with_missing_subjects(
        self, client: Client, jetstream: JetStreamContext, found: StreamInfo
    ) -> StreamInfo:
        """Add the subjects that are missing from a stream of an earlier version; return its current state."""
        missing = _missing(found.config)
        if not missing or found.config.description != _DESCRIPTION:
            return found
        try:
            with translated(f"adding {', '.join(missing)} to the stream {STREAM}", client):
                extended = replace(found.config, subjects=[*(found.config.subjects or []), *missing])
                info = await jetstream.update_stream(extended)
        except BusError as error:  # `_check_config` raises with the missing subjects and a hint
            _log.warning("stream_not_updated", stream=STREAM, error=str(error))
            return found
        _log.info("stream_updated", stream=STREAM, subjects=missing)
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
        )

    def _check_config(self, found: StreamConfig) -> None:
        """Warn once if the configuration differs from `_config`. Raises BusError if the subjects are wrong."""
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
        own_config = self._config()
        differences = {
            name: str(actual)
            for name in ("retention", "discard", "storage", "max_age", "max_bytes", "duplicate_window")
            if (actual := getattr(found, name)) != (own := getattr(own_config, name))
            and not (name in _EXTENSIBLE and (actual >= own or actual <= 0))  # 0 and -1: unlimited
        }
        if differences and str(differences) != self._reported:
            _log.warning("stream_differs", stream=STREAM, **differences, reason="the existing stream is used as it is")
        self._reported = str(differences)


def _missing(found: StreamConfig) -> list[str]:
    """Return the subjects of the agent that the stream does not store."""
    prefixes = [subject for subject in found.subjects or [] if subject.endswith(">")]
    return [subject for subject in STREAM_SUBJECTS if not any(subject_matches(prefix, subject) for prefix in prefixes)]
