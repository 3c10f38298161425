"""The codec: every event is decoded unchanged, and invalid events are refused with a reason."""

import uuid
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import orjson
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from agent.adapters.wire import MAX_EVENT_BYTES, CloudEventsCodec
from agent.domain.errors import WireError
from agent.domain.events import (
    ALL,
    CAUSED_BY_BYTES,
    Event,
    MethodError,
    SessionEnded,
    SyncFailed,
    SyncRequested,
    SyncResult,
    SyncSucceeded,
    limit_caused_by,
)
from tests.support import values
from tests.support.event_strategies import events_of

CODEC = CloudEventsCodec()
AT = datetime(2025, 6, 1, 12, 0, tzinfo=UTC)


def session_ended(**changes: object) -> SessionEnded:
    return SessionEnded(
        **({"id": "e-1", "time": AT, "system_id": "mac", "session_id": "s", "reason": "clear"} | changes)
    )


def envelope(event: Event | None = None, **changes: object) -> bytes:
    """Return a valid event as bytes, with changes to the envelope; None removes an attribute."""
    document = orjson.loads(CODEC.encode(event or session_ended())) | changes
    return orjson.dumps({key: value for key, value in document.items() if value is not None})


def with_data(event: Event, **changes: object) -> bytes:
    document = orjson.loads(CODEC.encode(event))
    document["data"] |= changes
    return orjson.dumps(document)


REQUEST = SyncRequested(
    id="r-1.cloud", time=AT, system_id="mac", request_id="r-1", agent_id="ab", reason="manual", route=("cloud", "http")
)
FAILED = SyncFailed(
    id="r-1.failed", time=AT, system_id="mac", request_id="r-1", method="http", success=False, triggered_by="manual",
    errors=(MethodError(method="http", error="no answer"),), retry_at=AT,
)  # fmt: skip


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.type)
def test_every_event_is_decoded_unchanged(cls):
    @settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
    @given(event=events_of(cls))
    def check(event: Event) -> None:
        decoded = CODEC.decode(CODEC.encode(event))
        assert decoded == event
        assert type(decoded) is cls
        assert CODEC.encode(decoded) == CODEC.encode(event)

    check()


def test_an_event_is_a_cloudevent_in_structured_json_mode():
    assert orjson.loads(CODEC.encode(session_ended(time=AT.astimezone(timezone(timedelta(hours=2)))))) == {
        "specversion": "1.0",
        "id": "e-1",
        "source": "urn:akosha-agent:mac",
        "type": "akosha.session.ended.v1",
        "subject": "akosha.session.mac.ended",
        "time": "2025-06-01T12:00:00+00:00",
        "datacontenttype": "application/json",
        "data": {"system_id": "mac", "session_id": "s", "reason": "clear"},
    }


def test_unknown_attributes_and_fields_are_ignored():
    data = orjson.loads(envelope(traceparent="00-1", dataschema="urn:x"))
    data["data"]["novelty"] = {"deep": [1]}
    assert CODEC.decode(orjson.dumps(data)) == session_ended()
    assert CODEC.decode(with_data(FAILED, errors=[{"method": "http", "error": "no answer", "status": 500}])) == FAILED


@pytest.mark.parametrize("kind", ["akosha.session.ended.v1.1", "akosha.session.ended.v1.27"])
def test_a_newer_minor_version_of_a_type_is_read_as_the_known_one(kind):
    assert CODEC.decode(envelope(type=kind)) == session_ended()


def test_optional_attributes_of_an_envelope_may_be_missing():
    data = orjson.loads(envelope(subject=None, datacontenttype=None))
    del data["data"]["system_id"]
    assert CODEC.decode(orjson.dumps(data)) == session_ended()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 5000, "not JSON"),
        (b'{"id": "\\ud800"}', "not JSON"),
        (b"[]", "a JSON object"),
        (b"null", "a JSON object"),
        (b"{}", "specversion is None"),
        (envelope(specversion="0.3"), "specversion is '0.3'"),
        (envelope(specversion=1.0), "specversion is 1.0"),
        (envelope(type=None), "type is None"),
        (envelope(type=7), "type is 7"),
        (envelope(type="akosha.session.ended.v2"), "unknown event type 'akosha.session.ended.v2'"),
        (envelope(type="akosha.session.ended.v1.x"), "unknown event type"),
        (envelope(type="x" * 5000), "unknown event type 'xxx"),
        (envelope(id=None), "id is None"),
        (envelope(id=""), "id is ''"),
        (envelope(id=5), "id is 5"),
        (envelope(source=None), "source is None"),
        (envelope(source=5), "source is 5, expected a URI reference"),
        (envelope(source=""), "source is '', expected a URI reference"),
        (envelope(source="session buddy"), "source is 'session buddy', expected a URI reference"),
        (envelope(source="50%"), "expected a URI reference"),
        (envelope(source="1:2"), "expected a URI reference"),
        (envelope(source="\x1b[31m"), "expected a URI reference"),
        (envelope(REQUEST, source="urn:another-agent:mac"), "source is 'urn:another-agent:mac'"),
        (envelope(REQUEST, source="urn:akosha-agent:"), "source names no system"),
        (envelope(REQUEST, source="urn:akosha-agent:my.mac"), "source names no system"),
        (envelope(REQUEST, source="urn:akosha-agent:*"), "source names no system"),
        (envelope(REQUEST, source="urn:akosha-agent:pc"), "data.system_id is 'mac', but source says 'pc'"),
        (envelope(source="/buddy", subject=None, data={}), "the session's system is missing"),
        (envelope(source="urn:akosha-agent:my.mac", subject=None, data={}), "source names no system"),
        (envelope(source="/buddy", data={"system_id": 5}), "data.system_id is 5, expected a string"),
        (envelope(source="/buddy", data={"system_id": "my.mac"}), "it names no system"),
        (envelope(source="/buddy", data={"system_id": "pc"}), "but its content belongs to 'akosha.session.pc.ended'"),
        (envelope(source="/buddy", subject="akosha.session.*.ended", data={}), "it names no system"),
        (envelope(source="/buddy", subject="akosha.sync.mac.failed", data={}), "it names no system"),
        (envelope(subject="akosha.session.pc.ended"), "subject is 'akosha.session.pc.ended'"),
        (envelope(subject=["akosha"]), "subject is ['akosha']"),
        (envelope(datacontenttype="text/plain"), "datacontenttype is 'text/plain'"),
        (envelope(time=None), "time: Input should be a valid datetime"),
        (envelope(time="2025-06-01T12:00:00"), "time is '2025-06-01T12:00:00', expected a date, time and offset"),
        (envelope(time="1748779200"), "time is '1748779200'"),
        (envelope(time="2025-06-01"), "time: "),
        (envelope(time=1748779200), "time: "),
        (envelope(data=None), "data must be an object"),
        (envelope(data="{}"), "data must be an object"),
        (with_data(session_ended(), session_id=5), "session_id: Input should be a valid string"),
        (with_data(REQUEST, route="cloud"), "route: "),
        (with_data(REQUEST, route=[]), "its content has no valid subject"),
        (with_data(REQUEST, route=["clo.ud"]), "its content has no valid subject"),
        (with_data(REQUEST, route=[">"]), "its content has no valid subject"),
        (with_data(REQUEST, route=["cloud", 3]), "route.1: "),
        (with_data(REQUEST, upload_reflections="true"), "upload_reflections: Input should be a valid boolean"),
        (with_data(REQUEST, request_id=None), "request_id: "),
        (with_data(FAILED, bytes_transferred="12"), "bytes_transferred: Input should be a valid integer"),
        (with_data(FAILED, bytes_transferred=2.5), "bytes_transferred: "),
        (with_data(FAILED, duration_seconds="1"), "duration_seconds: "),
        (with_data(FAILED, errors=[{"method": "http"}]), "errors.0.error: "),
        (with_data(FAILED, error="DEEP").replace(b'"DEEP"', b"[" * 300 + b"]" * 300), "data is nested too deeply"),
        (with_data(FAILED, new="DEEP").replace(b'"DEEP"', b"[" * 1000 + b"]" * 1000), "data is nested too deeply"),
        (with_data(FAILED, retry_at="2025-06-01T12:00:00"), "retry_at is "),
    ],
)
def test_an_invalid_event_is_refused_with_the_reason(data, reason):
    with pytest.raises(WireError) as caught:
        CODEC.decode(data)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 300


def test_an_event_is_limited_to_64_kib():
    fitting = session_ended(reason="x" * (MAX_EVENT_BYTES - len(CODEC.encode(session_ended(reason="")))))
    assert CODEC.decode(CODEC.encode(fitting)) == fitting
    with pytest.raises(WireError, match="65537 bytes is larger than the 65536 allowed"):
        CODEC.decode(CODEC.encode(session_ended(reason=fitting.reason + "x")))


def test_the_limit_can_be_set():
    large = session_ended(reason="x" * MAX_EVENT_BYTES)
    assert CloudEventsCodec(max_bytes=1 << 20).decode(CODEC.encode(large)) == large


def test_lone_surrogates_are_sent_as_escapes():
    """A result can have a file name with bytes that are not UTF-8."""
    result = SyncSucceeded(
        id="u.succeeded", time=AT, system_id="mac", request_id="r", method="cloud", success=True, triggered_by="manual",
        files_uploaded=("knowledge_graph_\udcff.duckdb",), incomplete={"knowledge_graph_\udcff": "in use \ud800"},
    )  # fmt: skip
    decoded = CODEC.decode(CODEC.encode(result))
    assert isinstance(decoded, SyncResult)
    assert decoded.files_uploaded == ("knowledge_graph_\\udcff.duckdb",)
    assert decoded.incomplete == {"knowledge_graph_\\udcff": "in use \\ud800"}
    errors = (MethodError(method="http", error="no such file: \udcff"),)
    decoded = CODEC.decode(CODEC.encode(replace(FAILED, errors=errors)))
    assert decoded.errors[0].error == "no such file: \\udcff"


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (session_ended(time=AT.replace(tzinfo=None)), "time has no offset"),
        (session_ended(time=datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))), "time is out of range"),
        (
            replace(FAILED, duration_seconds=float("nan")),
            "duration_seconds is not a finite number",
        ),
        (
            replace(FAILED, retry_at=AT.replace(tzinfo=None)),
            "retry_at has no offset",
        ),
        (
            replace(FAILED, bytes_transferred=2**80),
            "cannot be encoded as JSON",
        ),
    ],
)
def test_values_that_json_cannot_represent_are_refused_by_the_encoder(event, reason):
    with pytest.raises(WireError, match=reason):
        CODEC.encode(event)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_random_bytes_are_a_wire_error(data):
    with pytest.raises(WireError):
        CODEC.decode(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150)
@given(event=st.sampled_from([session_ended(), REQUEST, FAILED]), changes=st.data())
def test_an_event_with_one_replaced_value_is_decoded_or_refused(event, changes):
    document = orjson.loads(CODEC.encode(event))
    fields_of_event = document["data"] if changes.draw(st.booleans()) else document
    fields_of_event[changes.draw(st.sampled_from(sorted(fields_of_event)))] = changes.draw(JSON)
    try:
        data = orjson.dumps(document)
    except TypeError:  # an integer beyond 64 bits: orjson cannot encode it, other libraries can
        import json

        data = json.dumps(document).encode()
    with suppress(WireError):
        assert isinstance(CODEC.decode(data), Event)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00"])
def test_a_time_that_cannot_be_converted_to_utc_is_refused(time):
    document = orjson.loads(CODEC.encode(SessionEnded(id="e", time=datetime(2025, 6, 1, tzinfo=UTC), system_id="mac")))
    with pytest.raises(WireError, match="out of range"):
        CODEC.decode(orjson.dumps(document | {"time": time}))


@pytest.mark.parametrize(
    "source",
    [
        "https://buddy.example/mac?x=1#y",
        "/buddy",
        "buddy",
        "urn:uuid:9d1b2c",
        "urn:akosha-agent:pc",
        "//[::1]:80/",
        "1/3:4",
    ],
)
def test_a_session_end_keeps_the_source_of_its_sender(source):
    event = CODEC.decode(envelope(source=source))
    assert event == session_ended(sender=source)
    assert orjson.loads(CODEC.encode(event))["source"] == source


def test_the_source_of_an_agent_is_not_kept_as_sender():
    assert CODEC.decode(envelope(source="urn:akosha-agent:mac")).sender == ""


def test_the_system_of_a_session_comes_from_data_subject_or_source():
    foreign = {"source": "/buddy", "data": {}}
    assert CODEC.decode(envelope(**foreign)).system_id == "mac"
    assert CODEC.decode(envelope(**foreign | {"data": {"system_id": "mac"}}, subject=None)).system_id == "mac"
    nameless = envelope(**foreign, subject=None)
    assert CODEC.decode(nameless, subject="akosha.session.pc.ended").system_id == "pc"
    assert CODEC.decode(envelope(source="urn:akosha-agent:pc", data={}, subject=None)).system_id == "pc"


def test_a_field_of_the_data_does_not_set_the_sender():
    assert CODEC.decode(with_data(session_ended(), sender="x", source="y")) == session_ended()


@pytest.mark.parametrize("event", [REQUEST, FAILED], ids=lambda event: event.type)
def test_events_of_an_earlier_version_have_no_causes(event):
    old = orjson.loads(CODEC.encode(event))
    del old["data"]["caused_by"]
    assert CODEC.decode(orjson.dumps(old)) == event


def test_a_result_of_an_earlier_version_has_no_size_of_the_databases():
    result = values.succeeded(values.manifest(reflection=1))
    old = orjson.loads(CODEC.encode(replace(result, database_bytes=42)))
    del old["data"]["database_bytes"]
    assert CODEC.decode(orjson.dumps(old)) == result


def test_the_longest_result_fits_into_an_event_once_abridged():
    causes = limit_caused_by(f"{number}-" + "\U0001f600" * 50 for number in range(1000))
    long, most = "\x01" * 100_000, 50
    failed = replace(FAILED, errors=(MethodError(method="http", error=long),) * most, error=long, caused_by=causes)
    succeeded = SyncSucceeded(
        id="u", time=AT, system_id="m" * 100, request_id="r", method="cloud", success=True, triggered_by="session_end",
        incomplete={f"{number:03}{long}": long for number in range(most)}, location=long, caused_by=causes,
        errors=(MethodError(method="http", error=long),) * most,
    )  # fmt: skip
    for result in (failed, succeeded):
        assert CODEC.decode(CODEC.encode(result.abridged())).caused_by == causes


def test_as_many_distinct_ids_as_fit_are_named():
    ids = [str(uuid.UUID(int=number)) for number in range(1000)]
    taken = limit_caused_by([*ids[:2], *ids])
    assert taken == tuple(ids[: len(taken)])
    assert len(taken) == CAUSED_BY_BYTES // 39
    assert limit_caused_by([]) == ()
