"""AkoshaSink on a fake Akosha server: sessions, tools for kinds of memories, requests."""

import asyncio
import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from agent.adapters.akosha import AkoshaSink
from agent.domain.errors import SinkError
from tests.support.memories import memory
from tests.support.servers.akosha import EXTRA_TOOLS, Akosha, schema
from tests.support.values import SYSTEM

ALL = tuple(EXTRA_TOOLS)
MAIN = Path(__file__).parents[1] / "support" / "servers" / "akosha_main.py"


@pytest.fixture
def akosha():
    with Akosha() as running:
        yield running


@pytest.fixture
async def sink(akosha):
    made = AkoshaSink(endpoint=akosha.url, timeout_seconds=10)
    yield made
    await made.aclose()


def pack(sink, count=3, *, start=0, **how):
    return [sink.pack(memory(number, **how), SYSTEM) for number in range(start, start + count)]


def sent_bodies(akosha):
    return [request for request in akosha.requests if request.method == "POST"]


def test_the_http_library_is_loaded_at_the_first_use():
    code = "import sys; from agent.adapters.akosha import AkoshaSink; AkoshaSink(endpoint='http://127.0.0.1/mcp');"
    code += "raise SystemExit('httpx2' in sys.modules or 'mcp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


async def test_concurrent_calls_share_one_session_which_is_ended_on_close(akosha, sink):
    await asyncio.gather(*(sink.store(pack(sink, start=n * 10)) for n in range(4)), sink.connect())
    assert akosha.handshakes == 1
    # Only initialize, initialized, tools/list and the batches are sent.
    assert len(sent_bodies(akosha)) == 3 + 4
    await sink.aclose()
    last = akosha.requests[-1]
    assert (last.method, "mcp-session-id" in last.headers) == ("DELETE", True)
    assert akosha.requests[3].headers["mcp-protocol-version"] == "2025-06-18"


async def test_a_server_restart_starts_another_session_and_loses_no_memory(akosha, sink):
    assert (await sink.store(pack(sink))).stored == 3
    akosha.stop()
    with pytest.raises(SinkError) as raised:
        await sink.store(pack(sink, start=3))
    assert raised.value.transient
    akosha.start()
    receipt = await sink.store(pack(sink, 6))
    assert (receipt.stored, receipt.known) == (3, 3)
    assert akosha.handshakes == 2


async def test_a_server_stopped_during_a_call_is_a_transient_error(akosha, sink):
    working, release = threading.Event(), threading.Event()

    def slow(_tool, _arguments):
        working.set()
        release.wait(60)

    akosha.interfere = slow
    storing = asyncio.create_task(sink.store(pack(sink)))
    await asyncio.to_thread(working.wait, 60)
    stopping = asyncio.create_task(asyncio.to_thread(akosha.stop))
    with pytest.raises(SinkError) as raised:
        await storing
    assert raised.value.transient
    release.set()
    await stopping


async def test_the_version_of_the_capabilities_changes_with_server_and_tools():
    versions = set()
    with Akosha() as akosha:
        for change in (
            {},
            {"version": "0.9.6"},
            {"tools": ALL},
            {"tools": {**EXTRA_TOOLS, "create_relation": schema()}},
        ):
            akosha.stop()
            for name, value in change.items():
                setattr(akosha, name, value)
            akosha.start()
            sink = AkoshaSink(endpoint=akosha.url)
            capabilities = await sink.connect()
            assert capabilities.version.startswith(f"akosha-mcp {akosha.version}; batch_store_memories")
            versions.add(capabilities.version)
            await sink.aclose()
    assert len(versions) == 4


async def test_kinds_of_memories_use_their_own_tools_if_the_server_has_them():
    with Akosha(tools=ALL) as akosha:
        sink = AkoshaSink(endpoint=akosha.url)
        capabilities = await sink.connect()
        assert (capabilities.kinds, capabilities.need_embedding) == (
            {"conversation", "reflection", "entity", "relationship"},
            {"conversation"},
        )
        kinds = ("relationship", "entity", "conversation", "reflection")
        batch = [sink.pack(memory(1, kind=kind, embedded=kind == "conversation"), SYSTEM) for kind in kinds]
        receipt = await sink.store(batch)
        assert (receipt.stored, receipt.refused) == (4, {})
        await sink.aclose()
    assert [call.tool for call in akosha.calls] == [
        "batch_store_memories",
        "store_reflection",
        "create_entity",
        "create_relation",
    ]
    [reflection], [entity], [relation] = (akosha.kept[tool] for tool in ALL)
    assert reflection["content"] == memory(1, kind="reflection").text
    assert reflection["tags"] == ["a", "b"]
    assert reflection["memory_id"] == batch[3].memory_id
    assert (entity["name"], entity["entity_type"], entity["observations"]) == ("DuckDB", "tool", ["is fast"])
    assert entity["properties"]["source"] == SYSTEM
    assert (relation["from_entity"], relation["to_entity"], relation["relation_type"]) == ("e1", "e2", "uses")


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}


@pytest.mark.parametrize(
    ("shape", "used"),
    [
        (schema("content", content=TEXT), True),
        (schema("text", "importance", text=TEXT, importance=NUMBER), False),
        (schema("content", content=NUMBER), False),
        (schema("content", content={"anyOf": [TEXT, {"type": "null"}]}), True),
        ({"type": "object", "properties": {}, "additionalProperties": True}, True),
        ({"type": "object"}, False),
    ],
)
async def test_a_tool_with_unknown_required_arguments_is_not_used(shape, used):
    with Akosha(tools={"store_reflection": shape}) as akosha:
        sink = AkoshaSink(endpoint=akosha.url)
        assert (await sink.store(pack(sink, 1, kind="reflection"))).stored == 1
        assert ("reflection" not in (await sink.connect()).need_embedding) is used
        await sink.aclose()
    assert akosha.calls[0].tool == ("store_reflection" if used else "batch_store_memories")
    if used:
        allowed = set(shape["properties"]) or {"memory_id", "text", "metadata", "created_at"}
        assert set(akosha.kept["store_reflection"][0]) == allowed


async def test_a_memory_without_the_required_arguments_of_a_tool_is_batched_or_refused():
    shape = schema("content", "project", content=TEXT, project=TEXT)
    with Akosha(tools={"store_reflection": shape}) as akosha:
        sink = AkoshaSink(endpoint=akosha.url)
        batch = [
            *pack(sink, 1, kind="reflection", project=None),
            sink.pack(memory(2, kind="reflection", embedded=False, project=None), SYSTEM),
            sink.pack(memory(3, kind="reflection"), SYSTEM),
        ]
        receipt = await sink.store(batch)
        assert receipt.stored == 2
        assert receipt.refused == {1: "store_reflection requires arguments that are missing: content, project"}
        await sink.aclose()
    assert sorted(call.tool for call in akosha.calls) == ["batch_store_memories", "store_reflection"]


async def test_relationships_are_not_sent_to_a_server_without_a_tool_for_them(akosha, sink):
    with pytest.raises(SinkError, match="does not accept relationships"):
        await sink.store([*pack(sink), *pack(sink, 1, kind="relationship")])
    assert akosha.calls == []


async def test_a_tool_that_refuses_every_memory_is_not_called_for_each():
    with Akosha(tools=ALL, interfere=lambda _tool, _arguments: {"isError": "1 validation error"}) as akosha:
        sink = AkoshaSink(endpoint=akosha.url)
        with pytest.raises(SinkError) as raised:
            await sink.store(pack(sink, 100, kind="entity"))
        await sink.aclose()
    assert not raised.value.transient
    assert len(akosha.calls) < 30


async def test_calls_of_single_memory_tools_are_limited_in_number():
    running = most = 0
    lock, full = threading.Lock(), threading.Barrier(3)

    def watched(_tool, _arguments):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        full.wait(60)  # continue only when three calls are running
        with lock:
            running -= 1

    with Akosha(tools=ALL, interfere=watched) as akosha:
        sink = AkoshaSink(endpoint=akosha.url, max_in_flight=3)
        assert (await sink.store(pack(sink, 12, kind="entity"))).stored == 12
        await sink.aclose()
    assert most == 3


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ({"success": True}, "stored"),
        ({"result": "Stored it"}, "stored"),
        ({"success": False, "error": "IO Error: database is locked"}, "raised"),
        ({"success": False, "message": "name is too long"}, "name is too long"),
        ({"status": "failed", "error": "no such entity"}, "no such entity"),
        ({"isError": "1 validation error for call[create_entity]"}, "1 validation error for call[create_entity]"),
        ({"isError": "connection to the store timed out"}, "raised"),
        ({"isError": "Unknown tool: 'create_entity'"}, "raised"),
        ({"error": "Duplicate key"}, "known"),
    ],
)
async def test_responses_of_single_memory_tools_are_parsed(answer, outcome):
    with Akosha(tools=ALL) as akosha:
        sink = AkoshaSink(endpoint=akosha.url)
        batch = pack(sink, 1, kind="entity")
        if outcome == "known":
            answer = {"status": "failed", "error": f'Duplicate key "id: {batch[0].memory_id}"'}
        akosha.interfere = lambda _tool, _arguments: answer
        if outcome == "raised":
            with pytest.raises(SinkError) as raised:
                await sink.store(batch)
            assert raised.value.transient
        else:
            receipt = await sink.store(batch)
            reported = {"stored": (1, 0, {}), "known": (0, 1, {})}.get(outcome, (0, 0, {0: outcome}))
            assert (receipt.stored, receipt.known, receipt.refused) == reported
        await sink.aclose()


@pytest.mark.parametrize("form", [{"json_response": True}, {"stateless": True}, {"page_size": 1}])
async def test_other_forms_of_servers_are_supported(form):
    with Akosha(tools=ALL, **form) as akosha:
        sink = AkoshaSink(endpoint=akosha.url)
        assert len((await sink.connect()).kinds) == 4
        assert (await sink.store(pack(sink))).stored == 3
        await sink.aclose()
        assert len(akosha.ids(SYSTEM)) == 3


async def test_a_stored_token_that_was_replaced_is_read_after_a_refusal_and_overrides_no_other_one():
    stored = ["old-token"]
    with Akosha(token="new-token") as akosha:
        sink = AkoshaSink(endpoint=akosha.url, token="old-token", stored_token=lambda: stored[0])
        elsewhere = AkoshaSink(endpoint=akosha.url, token="of-the-shell", stored_token=lambda: stored[0])
        try:
            for one in (sink, elsewhere):
                with pytest.raises(SinkError, match="akosha_http_token") as refused:
                    await one.connect()
                assert refused.value.credentials_refused
            stored[0] = "new-token"
            assert await sink.connect()
            with pytest.raises(SinkError, match="akosha_http_token"):
                await elsewhere.connect()
        finally:
            await sink.aclose()
            await elsewhere.aclose()


async def test_a_token_is_sent_with_each_request_and_a_missing_one_is_reported():
    with Akosha(token="let-me-in") as akosha:
        sink, anonymous = AkoshaSink(endpoint=akosha.url, token="let-me-in"), AkoshaSink(endpoint=akosha.url)
        assert await sink.is_available()
        assert (await sink.store(pack(sink))).stored == 3
        assert await anonymous.is_available(), "the server is available; the handshake reports the missing token"
        with pytest.raises(SinkError, match="akosha_http_token"):
            await anonymous.connect()
        await sink.aclose()
        await anonymous.aclose()


async def test_https_to_a_server_without_tls_is_reported_as_such(akosha):
    sink = AkoshaSink(endpoint=akosha.url.replace("http:", "https:"), token="secret")
    with pytest.raises(SinkError, match="does not use TLS"):
        await sink.connect()
    assert akosha.requests == []
    await sink.aclose()


async def test_each_error_of_akosha_is_parsed(sink):
    good = memory(1)
    odd = {
        "Embedding is required": replace(good, embedding=None),
        "Cannot cast list with length 2": replace(good, embedding="[1,2]"),
        "Invalid isoformat string": replace(good, created_at="yesterday"),
        "Missing required field": replace(good, text=""),
        "validation error": replace(good, embedding='["x"]'),
    }
    batch = [sink.pack(replace(one, row=memory(reason).row), SYSTEM) for reason, one in odd.items()]
    receipt = await sink.store([*batch, sink.pack(good, SYSTEM)])
    assert receipt.stored == 1
    for position, reason in enumerate(odd):
        assert reason in receipt.refused[position]
        assert len(receipt.refused[position]) <= 300
    with pytest.raises(SinkError, match=r"exceeds maximum.*update Akosha") as raised:
        await sink.store(pack(sink, 1001, embedded=False))
    assert not raised.value.transient


async def test_a_body_that_is_too_large_for_the_server_is_sent_in_halves(akosha, sink):
    receipt = await sink.store([sink.pack(memory(n, text="x" * 1_500_000), SYSTEM) for n in range(4)])
    assert receipt.stored == 4
    large, small = sink.pack(memory("large", text="x" * 5_000_000), SYSTEM), sink.pack(memory("small"), SYSTEM)
    assert (await sink.store([large, small])).refused == {0: "larger than the server accepts"}


async def test_a_memory_with_any_content_can_be_packed(akosha, sink):
    deep = value = {}
    for _ in range(300):
        value["a"] = value = {}
    metadata = {"huge": 2**80, "deep": deep, "odd\udcff": "\ud800", "nan": float("nan"), "list": [2**70, 1.5]}
    one = sink.pack(memory(1, text="caf\udcc3 \ud83d end", **metadata), SYSTEM)
    sent = json.loads(one.body)
    assert sent["text"] == "caf\\udcc3 \\ud83d end"
    assert sent["metadata"]["huge"] == str(2**80)
    assert (await sink.store([one])).stored == 1
    assert akosha.rows()[0].text == sent["text"]


async def test_a_missing_embedding_or_time_is_not_sent(sink):
    sent = json.loads(sink.pack(memory(1, embedded=False, created_at=None), SYSTEM).body)
    assert set(sent) == {"memory_id", "text", "metadata"}
    assert "created_at" not in sent["metadata"]


async def test_the_fake_server_also_runs_in_its_own_process():
    command = [sys.executable, str(MAIN), "create_relation"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        sink = AkoshaSink(endpoint=process.stdout.readline().strip())
        assert "relationship" in (await sink.connect()).kinds
        await sink.aclose()
        process.stdin.close()
        assert process.wait(60) == 0
