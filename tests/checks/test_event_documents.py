"""The schemas in docs/events describe exactly what the codec writes and accepts, for every published event."""

import re
from dataclasses import MISSING, fields, replace
from datetime import timedelta, timezone

import orjson
import pytest
from jsonschema import Draft202012Validator

from agent.adapters.wire import MAX_EVENT_BYTES, CloudEventsCodec
from agent.domain.errors import WireError
from agent.domain.events import (
    ALL,
    DeliveryOverdue,
    DeliveryRecovered,
    Event,
    IngestCompleted,
    IngestFailed,
    MethodError,
    SessionEnded,
    SyncAsked,
    SyncProgress,
    UploadsPruned,
    UploadVerified,
)
from agent.domain.naming import STREAM_SUBJECTS, subject_matches
from docs.events import generate
from tests.support.event_documents import (
    FOLDER,
    asyncapi,
    channels,
    check,
    complaints,
    messages,
    resolved,
    validator,
)
from tests.support.values import NOON, SYSTEM, failed, manifest, request, skipped, succeeded, upload_id

CODEC = CloudEventsCodec()
ERRORS = (MethodError(method="cloud", error="403"), MethodError(method="http", error="no answer"))
RESULT = {
    "files_uploaded": ("a", "b"),
    "bytes_transferred": 2**53,
    "duration_seconds": 0.5,
    "upload_id": upload_id(),
    "caused_by": ("e-1", "e-2"),
}
FULL: tuple[Event, ...] = (
    SessionEnded(id="e-1", time=NOON, system_id=SYSTEM, session_id="s", reason="clear", sender="/session-buddy"),
    replace(
        request(),
        errors=ERRORS,
        upload_reflections=False,
        upload_knowledge_graph=False,
        caused_by=("e-1",),
        take_over=True,
        new_target=True,
    ),
    replace(
        succeeded(manifest(reflection=1)),
        **RESULT,
        error="odd",
        incomplete={"knowledge_graph": "it is a folder"},
        errors=ERRORS[:1],
        memories=7,
        repairs=upload_id(),
        unreadable=("knowledge_graph",),
        database_bytes=4_096,
    ),
    replace(skipped(), **RESULT, error="odd"),
    replace(failed(), **RESULT, errors=ERRORS, retry_at=NOON.astimezone(timezone(timedelta(hours=-5)))),
    SyncProgress(
        id="p",
        time=NOON,
        system_id=SYSTEM,
        request_id="r",
        method="cloud",
        phase="upload",
        done_bytes=5,
        total_bytes=9,
        kept_bytes=4,
    ),
    IngestCompleted(
        id="i",
        time=NOON,
        system_id=SYSTEM,
        upload_id=upload_id(),
        source="memories",
        stored=1,
        known=2,
        kept_back={"no embedding": 3},
        duration_seconds=0.5,
    ),
    UploadVerified(
        id="v",
        time=NOON,
        system_id=SYSTEM,
        upload_id=upload_id(),
        whole=False,
        deep=True,
        objects=3,
        problems={"reflection.duckdb": "is missing"},
        duration_seconds=0.5,
    ),
    UploadsPruned(
        id="pr",
        time=NOON,
        system_id=SYSTEM,
        upload_ids=(upload_id(),),
        kept=3,
        objects=4,
        bytes_freed=5,
        leftovers=1,
        error="odd",
        duration_seconds=0.5,
        held=True,
    ),
    IngestFailed(id="f", time=NOON, system_id=SYSTEM, upload_id=upload_id(), error="odd", retry_at=NOON),
    DeliveryOverdue(
        id="o",
        time=NOON,
        system_id=SYSTEM,
        method="cloud",
        hours=24.0,
        databases=("reflection",),
        since=NOON - timedelta(days=1),
        error="status 503",
    ),
    DeliveryRecovered(
        id="r", time=NOON, system_id=SYSTEM, method="cloud", hours=24.0, since=NOON - timedelta(days=1), removed=("a",)
    ),
)
"""An event of each class with all its optional fields."""

PUBLISHED = [cls for cls in ALL if cls is not SyncAsked]
ABSENT = object()
VALUES = (
    None, "", "x", 5, -2.5, True, [], {}, [5], [{}], ["cloud"], ["Cl.oud"], {"a": 5}, {"a": "b"}, "1.0", "mac",
    [{"method": "http"}], [{"method": "http", "error": "no", "status": 500}], [["cloud"]],
    "2026-03-01T12:00:00", "2026-03-01", "2026-03-01T12:00:00Z", "2026-03-01t12:00:00.5-11:30", "2026-03-01 12:00:00Z",
    "//host:80/a?b#c", "a#b#c", "50%", "50%25", "1:2", "a/1:2",
    "urn:akosha-agent:", "urn:akosha-agent:my.mac", "urn:akosha-agent:mac", "akosha.session.mac.ended",
    "text/plain", "application/json; charset=utf-8", "akosha.session.ended", "akosha.session.ended.v2",
)  # fmt: skip


def bare(event: Event) -> Event:
    """Return the event without its optional fields."""
    needed = [f.name for f in fields(event) if f.default is MISSING and f.default_factory is MISSING]
    return type(event)(**{name: getattr(event, name) for name in needed})


def envelope(event: Event) -> dict:
    return orjson.loads(CODEC.encode(event))


def is_refused(raw: bytes, read: object, error: type[Exception]) -> bool:
    try:
        read(raw)
    except error:
        return True
    return False


def by_type(event: Event) -> str:
    return event.type


def test_the_committed_files_equal_the_generated_ones():
    """If this fails, run `make events`."""
    assert generate.main(["--check"]) == 0


def test_the_generator_writes_missing_files_and_lists_files_that_differ(tmp_path, capsys):
    assert generate.main([], tmp_path) == 0
    assert generate.main(["--check"], tmp_path) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == generate.documents()
    (tmp_path / "akosha.sync.failed.v1.schema.json").write_text("{}")
    (tmp_path / "akosha.removed.v1.schema.json").write_text("{}")
    (tmp_path / "asyncapi.yaml").unlink()
    assert generate.main(["--check"], tmp_path) == 1
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == ["akosha.removed.v1.schema.json", "akosha.sync.failed.v1.schema.json", "asyncapi.yaml"]
    assert generate.main([], tmp_path) == 0
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == generate.documents()


def test_every_published_class_has_a_schema_and_no_other():
    assert {path.name for path in FOLDER.glob("*.json")} == {f"{cls.type}.schema.json" for cls in PUBLISHED}
    assert {type(event) for event in FULL} == set(PUBLISHED)


@pytest.mark.parametrize("cls", PUBLISHED, ids=by_type)
def test_every_field_has_a_schema_and_fields_without_a_default_are_required(cls):
    schema = validator(cls.type).schema
    data = schema["properties"]["data"]
    own = [f for f in fields(cls) if f.name not in {"id", "time", "sender"}]
    assert set(data["properties"]) == {f.name for f in own}
    needed = {f.name for f in own if f.default is MISSING and f.default_factory is MISSING}
    assert set(data["required"]) == needed - {"system_id"}
    assert set(schema["required"]) == {"specversion", "id", "source", "type", "time", "data"}
    assert schema["description"].startswith((cls.__doc__ or "-").split("\n")[0])
    assert "additionalProperties" not in schema | data


@pytest.mark.parametrize("event", FULL, ids=by_type)
def test_the_schema_describes_every_attribute_that_the_codec_writes(event):
    assert list(validator(event.type).schema["properties"]) == list(envelope(event))


@pytest.mark.parametrize("event", FULL, ids=by_type)
def test_encoded_events_are_valid_with_and_without_optional_fields(event):
    minimal = bare(event)
    optional = [f.name for f in fields(event) if not (f.default is MISSING and f.default_factory is MISSING)]
    assert all(getattr(event, name) != getattr(minimal, name) for name in optional), (
        "the sample sets all optional fields"
    )
    check(CODEC.encode(event))
    check(CODEC.encode(minimal))


def test_an_encoded_file_name_with_invalid_unicode_is_valid():
    check(CODEC.encode(replace(FULL[2], files_uploaded=("\udcff.duckdb",), incomplete={"\udcff": "in use"})))


def has_schema_of_earlier_event(event: Event, name: str) -> bool:
    """Return whether an earlier event of FULL has the same schema for this attribute."""
    earlier = FULL[: FULL.index(event)]
    return any(attribute(other, name) == attribute(event, name) for other in earlier)


def attribute(event: Event, name: str) -> dict:
    return validator(event.type).schema["properties"][name]


@pytest.mark.parametrize("event", FULL, ids=by_type)
def test_the_schema_refuses_exactly_the_values_that_decode_refuses(event):
    """Each value of the envelope and of the data is left out, and replaced by each of VALUES, one at a time."""
    for part in ("envelope", "data"):
        document = envelope(bare(event) if part == "envelope" else event)
        mapping = document if part == "envelope" else document["data"]
        for name, original in list(mapping.items()):
            if part == "envelope" and has_schema_of_earlier_event(event, name):
                continue  # the codec checks it in the same way for every type
            for value in (ABSENT, *VALUES):
                if value is ABSENT and name == "subject":
                    continue  # decode does not need it, but every published event has one
                mapping[name] = value
                if value is ABSENT:
                    del mapping[name]
                raw = orjson.dumps(document)
                refused = is_refused(raw, check, AssertionError)
                assert refused == is_refused(raw, CODEC.decode, WireError), f"{part}.{name} = {value!r}"
                mapping[name] = original


def test_unknown_fields_newer_minor_versions_and_a_missing_subject_are_tolerated():
    document = envelope(FULL[4]) | {"traceparent": "00-1", "type": "akosha.sync.failed.v1.12"}
    document["data"]["unknown"] = {"deep": [1]}
    document["data"]["errors"][0]["status"] = 500
    check(orjson.dumps(document))
    del document["subject"]
    assert complaints(document) == []


@pytest.mark.parametrize(
    "change",
    [
        {"specversion": "0.3"},
        {"type": "akosha.sync.failed.v1.x"},
        {"source": "urn:somebody-else:laptop-7"},
        {"source": f"urn:akosha-agent:{'x' * 101}"},
        {"subject": "akosha.sync.laptop-7.succeeded"},
        {"subject": "akosha.sync.other.failed"},
        {"subject": "akosha.sync.*.failed"},
        {"time": "2026-03-01T12:00Z"},
    ],
    ids=str,
)
def test_the_schema_refuses_changes_that_decode_refuses(change):
    raw = orjson.dumps(envelope(FULL[4]) | change)
    assert is_refused(raw, CODEC.decode, WireError)
    assert is_refused(raw, check, AssertionError)


def test_a_local_event_has_no_schema():
    with pytest.raises(AssertionError, match="no schema for"):
        check(CODEC.encode(SyncAsked(id="r", time=NOON, system_id=SYSTEM)))


@pytest.mark.parametrize("time", ["2026-03-01T12:00:00", "2026-03-01", "1772366400", "2026-03-01T12:00:00Z and more"])
def test_times_need_an_offset_even_if_the_validator_ignores_formats(time):
    without_formats = Draft202012Validator(validator("akosha.sync.failed.v1").schema)
    document = envelope(FULL[4])
    assert without_formats.is_valid(document)
    assert not without_formats.is_valid(document | {"time": time})
    assert not without_formats.is_valid(document | {"data": document["data"] | {"retry_at": time}})


@pytest.mark.skipif("date-time" not in Draft202012Validator.FORMAT_CHECKER.checkers, reason="no rfc3339-validator here")
@pytest.mark.parametrize("time", ["2026-02-30T12:00:00Z", "2026-03-01T24:00:00Z", "2026-03-01T12:00:00+24:00"])
def test_times_must_exist_in_the_calendar(time):
    assert complaints(envelope(FULL[0]) | {"time": time})


def test_an_event_above_64_kib_is_refused():
    large = replace(FULL[0], reason="x" * MAX_EVENT_BYTES)
    assert is_refused(CODEC.encode(large), check, AssertionError)
    assert f"{MAX_EVENT_BYTES // 1024} KiB" in asyncapi()["info"]["description"]


def test_every_reference_of_the_asyncapi_document_resolves():
    document = asyncapi()
    references = set(re.findall(r"'\$ref': '([^']+)'", str(document)))
    assert references
    for reference in references:
        assert resolved(reference), reference
    assert document["asyncapi"] == "3.0.0"
    assert document["info"]["title"]
    assert document["info"]["version"]


def test_every_message_has_the_schema_of_its_type_and_one_channel():
    document = asyncapi()
    assert {name for channel in document["channels"] for name in document["channels"][channel]["messages"]} == set(
        document["components"]["messages"]
    )
    kinds = []
    for channel in document["channels"]:
        [message] = messages(channel)
        assert message["payload"] == {"$ref": f"./{message['name']}.schema.json"}
        kinds.append(message["name"])
    assert kinds == [cls.type for cls in PUBLISHED]


def test_every_channel_has_its_parameters_and_an_operation():
    document = asyncapi()
    for channel in document["channels"].values():
        assert set(channel["parameters"]) == set(re.findall(r"{(\w+)}", channel["address"]))
    used = set()
    for operation in document["operations"].values():
        assert operation["action"] in {"send", "receive"}
        channel = operation["channel"]["$ref"]
        assert all(message["$ref"].startswith(f"{channel}/messages/") for message in operation["messages"])
        used.add(channel.removeprefix("#/channels/"))
    assert used == set(document["channels"])


def test_the_stream_keeps_all_but_progress():
    kept = {channel["address"]: channel.get("x-stream") for channel in asyncapi()["channels"].values()}
    assert kept.pop("akosha.progress.{system}") is None
    assert kept == dict.fromkeys(
        [
            "akosha.session.{system}.ended",
            "akosha.sync.{system}.requested.{method}",
            "akosha.sync.{system}.succeeded",
            "akosha.sync.{system}.skipped",
            "akosha.sync.{system}.failed",
            "akosha.ingest.{system}.completed",
            "akosha.ingest.{system}.failed",
            "akosha.archive.{system}.verified",
            "akosha.archive.{system}.pruned",
            "akosha.archive.{system}.overdue",
            "akosha.archive.{system}.recovered",
        ],
        "AKOSHA_SYNC",
    )


def test_channels_with_a_stream_are_those_of_its_subjects():
    for event in FULL:
        [channel] = channels(event.subject)
        in_stream = any(subject_matches(pattern, event.subject) for pattern in STREAM_SUBJECTS)
        assert ("x-stream" in asyncapi()["channels"][channel]) == in_stream


def test_an_unknown_subject_belongs_to_no_channel():
    assert channels(f"akosha.asked.{SYSTEM}") == {}
    assert channels(f"akosha.sync.{SYSTEM}.requested") == {}
    assert channels(f"akosha.sync.{SYSTEM}.requested.cloud.x") == {}
    assert channels(f"akosha.sync.{SYSTEM}.requested.cloud") == {"syncRequested": {"system": SYSTEM, "method": "cloud"}}


README = (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("example", re.findall(r"```json\n(.*?)```", README, re.DOTALL))
def test_the_examples_in_the_readme_are_events(example):
    check(example.encode())
    reencoded = orjson.loads(CODEC.encode(CODEC.decode(example.encode())))
    assert reencoded["data"] == orjson.loads(example)["data"], (
        "the example has no unknown fields and omits none with a default"
    )


def test_the_readme_lists_every_channel_and_its_stream():
    rows = re.findall(r"^\| `(akosha\.[^`]+)` \| \[`([^`]+)`\]\(([^)]+)\) \| .* \| (yes|no) \|$", README, re.MULTILINE)
    document = asyncapi()
    assert rows == [
        (channel["address"], kind, f"{kind}.schema.json", "yes" if "x-stream" in channel else "no")
        for name, channel in document["channels"].items()
        for kind in (messages(name)[0]["name"],)
    ]
