"""Targets: events, NATS messages, requests of remote control, notes in the spool, and the hook's standard input."""

import asyncio
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
from hypothesis import strategies as st

from agent.adapters.nats.messages import decoded, encoded, message_id
from agent.adapters.spool import SpoolDirectory, is_note
from agent.adapters.wire import MAX_EVENT_BYTES, CloudEventsCodec
from agent.application.monitoring.remote_control import SYNC, RemoteControl
from agent.domain.errors import WireError
from agent.domain.events import (
    ALL,
    DeliveryOverdue,
    DeliveryRecovered,
    IngestCompleted,
    IngestFailed,
    SyncResult,
    UploadsPruned,
    UploadVerified,
)
from agent.entrypoints.formatting import ingest_summary, overdue_summary, prune_summary, sync_lines, verify_summary
from agent.entrypoints.hook import note
from agent.entrypoints.hook.session_end import read_options
from agent.ports import BusState
from tests.fuzz.documents import ODD_TEXTS, encoded as as_json, json_near, near, near_text
from tests.fuzz.target import Read, Target, never_refused
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.control_api import FakeAgentService, ended, progress
from tests.support.event_strategies import events_of
from tests.support.ledger import inline_ledger

CODEC = CloudEventsCodec()
LARGE = CloudEventsCodec(max_bytes=2**26)
"""Escapes make some events longer than they were."""

EVENTS = (
    ended(1),
    values.request(),
    values.failed(),
    values.succeeded(values.manifest(reflection=1)),
    progress(),
)
DOCUMENTS = [json.loads(CODEC.encode(event)) for event in EVENTS]

ANY_EVENT = st.one_of([events_of(cls) for cls in ALL]).map(lambda event: json.loads(CODEC.encode(event)))
EVENT_BYTES = json_near(
    *DOCUMENTS, keys=("errors", "retry_at", "caused_by", "system_id", "dataschema", "upload_id")
) | (ANY_EVENT.flatmap(near).map(as_json))


def read_event(data: bytes) -> None:
    check_event(CODEC.decode(data))


@never_refused()
def check_event(event) -> None:
    """Assert that a decoded event can be sent on and shown."""
    assert LARGE.decode(LARGE.encode(event)) == event
    if isinstance(event, SyncResult):
        assert LARGE.decode(LARGE.encode(event.abridged())).subject == event.subject
        assert sync_lines(event)
    elif isinstance(event, IngestCompleted | IngestFailed):
        assert ingest_summary(event)
    elif isinstance(event, UploadVerified):
        assert verify_summary(event)
    elif isinstance(event, UploadsPruned):
        assert prune_summary(event)
    elif isinstance(event, DeliveryOverdue | DeliveryRecovered):
        assert overdue_summary(event)


def read_message(example: tuple[str, bytes]) -> None:
    subject, data = example
    event = decoded(data, subject, CODEC)
    assert event.subject == subject
    assert message_id(event)
    encoded(event, CODEC, max_bytes=2 * MAX_EVENT_BYTES)


MESSAGES = st.one_of([
    st.tuples(st.just(event.subject) | near_text(event.subject), json_near(document, keys=("system_id",)))
    for event, document in zip(EVENTS, DOCUMENTS, strict=True)
])  # fmt: skip


@contextmanager
def remote_control() -> Iterator[Read]:
    """Yield a function that passes a request of another machine to remote control, and checks the answer."""
    clock, answers = ManualClock(values.NOON), {}

    class Responder:
        async def respond(self, subject, answer) -> None:
            answers[subject.rpartition(".")[2]] = answer

    with asyncio.Runner() as runner:
        control = RemoteControl(
            responder=Responder(),
            agent_service=FakeAgentService(),
            ledger=inline_ledger(clock),
            clock=clock,
            bus_state=lambda: BusState("nats", ready=True, since=values.NOON),
        )
        runner.run(control.start())

        def read(request: bytes) -> None:
            answer = json.loads(runner.run(answers[SYNC](request)))
            assert isinstance(answer["accepted"], bool)
            assert answer["accepted"] == ("error" not in answer)

        yield read


@contextmanager
def spool() -> Iterator[Read]:
    """Yield a function that reads a directory with one file: a note is returned, anything else is set aside."""
    with tempfile.TemporaryDirectory() as directory, asyncio.Runner() as runner:

        def read(example: tuple[str, bytes]) -> None:
            name, data = example
            folder = Path(tempfile.mkdtemp(dir=directory))
            path = folder / os.fsdecode(name.encode("utf-8", "backslashreplace")[:200].replace(b"/", b"_"))
            path.write_bytes(data)
            reader = SpoolDirectory(folder, CODEC)
            notes = runner.run(reader.waiting())
            if is_note(path.name):
                kept = [each.name for each in (folder / "rejected").glob("*")]
                assert [each for each, _ in notes] + kept == [path.name]
            for each, event in notes:
                check_event(event)
                assert runner.run(reader.count(lambda _: True)) == 1
                runner.run(reader.remove(each))
            assert runner.run(reader.waiting()) == []

        yield read


NOTES = st.tuples(
    st.just("20260301T120000.123456-000000-0a1b2c3d.json") | near_text("20260301T120000.123456-000000-0a1b2c3d.json"),
    EVENT_BYTES,
).filter(lambda example: example[0].replace("/", "_").strip("\0") not in ("", ".", "..") and "\0" not in example[0])


def read_hook_input(example: tuple[bytes, list[str]]) -> None:
    """The hook must end with a valid note for any input: a session's end must not be lost."""
    data, arguments = example
    given, options = note.parsed(data), read_options(arguments)
    system = note.sanitise(options.get("--system-id", "")) or "mac"
    name, event = note.session_ended(system, given.get("session_id"), given.get("reason"))
    assert is_note(name)
    found = CODEC.decode(event)
    assert found.system_id == system
    session = orjson.loads(event)["data"]["session_id"]
    assert found.session_id == session
    if session:
        assert given["session_id"].startswith(session[:1]) or session.startswith("\\u")


HOOK_INPUT = json_near(
    {"session_id": "3f2a", "transcript_path": "/home/me/x.jsonl", "cwd": "/", "reason": "clear", "more": {"a": [1]}}
)
HOOK_ARGUMENTS = st.lists(
    st.sampled_from(("--state-dir", "--system-id", "--state-dir=/a", "--system-id=b")) | ODD_TEXTS, max_size=5
)

TARGETS = (
    Target("event", EVENT_BYTES, read_event, (WireError,), in_tests=250),
    Target("nats message", MESSAGES, read_message, (WireError,)),
    Target("remote control", json_near({"method": "auto", "enable_fallback": True}), opened=remote_control),
    Target("spool note", NOTES, opened=spool, in_tests=40),
    Target("hook input", st.tuples(HOOK_INPUT, HOOK_ARGUMENTS), read_hook_input),
)
