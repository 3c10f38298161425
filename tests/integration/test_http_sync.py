"""HttpSync with real databases, a real ledger and a fake Akosha server."""

import asyncio
import shutil
import threading
import uuid
from collections import Counter
from datetime import datetime
from pathlib import Path

import duckdb
import pytest

from agent.bootstrap import agent as agent_bootstrap, methods
from agent.bootstrap.home import Home
from agent.domain.events import SyncAsked, SyncFailed, SyncSkipped, SyncSucceeded
from agent.domain.identity import Identity
from agent.settings import Settings
from tests.support import session_buddy
from tests.support.servers.akosha import Akosha
from tests.support.session_buddy import REAL, STATES

IDENTITY = Identity("agent-1", "laptop")
WITH_EMBEDDING = {name: state.embedded for name, state in STATES.items()}
RELATIONSHIPS = {name: state.rows[-1] for name, state in STATES.items()}
WITHOUT = {
    name: (sum(state.rows[:2]) - sum(state.embedded[:2]), state.rows[2] - state.embedded[2])
    for name, state in STATES.items()
}


class Rig:
    """One machine without a bucket and one Akosha server, for single syncs."""

    def __init__(self, tmp_path: Path, akosha: Akosha) -> None:
        self.tmp_path, self.akosha = tmp_path, akosha
        self.data = tmp_path / "data"
        self.data.mkdir()
        self.settings: dict[str, object] = {"retry_backoff_seconds": 0.05, "max_retries": 0}

    def home(self) -> Home:
        settings = Settings(
            http_endpoint=self.akosha.url,
            agent_data_dir=self.data,
            agent_state_dir=self.tmp_path / "state",
            **self.settings,
        )
        home = Home.of(settings)
        home.state.prepare()
        return home

    async def sync(self, **asked):
        home = self.home()
        ask = SyncAsked(id=str(uuid.uuid4()), time=home.clock.now(), system_id="laptop", **asked)
        async with await agent_bootstrap.build(home, IDENTITY, single_sync=True) as agent, asyncio.timeout(60):
            return await agent.once(ask)

    async def sync_and_stop_akosha_in_the_third_batch(self) -> None:
        stopping: list[threading.Thread] = []

        def interfere(_tool, _arguments):
            if len(self.akosha.calls) == 3:
                stopping.append(threading.Thread(target=self.akosha.stop))
                stopping[0].start()

        self.akosha.interfere = interfere
        assert isinstance(await self.sync(), SyncFailed)
        stopping[0].join()

    async def known(self):
        """Return the target's database states, memory counts and held memories from the ledger."""
        home = self.home()
        ledger = await home.read_ledger()
        try:
            target = home.targets(IDENTITY)["http"]
            record = await ledger.record(target)
            states = {name: known.state.value for name, known in record.databases.items()}
            return states, await ledger.memories().counts(target), await ledger.memories().held(target, limit=9)
        finally:
            await ledger.aclose()

    def use(self, state: str) -> None:
        if not REAL.is_dir():
            pytest.skip("the databases of Session-Buddy are missing")
        for file in (REAL / state).iterdir():
            shutil.copy(file, self.data)

    def make(self, conversations: int, *, start: int = 0, embedded: bool = True) -> None:
        """Add conversations as an ended session does."""
        vector = "list_transform(range(384), lambda x: (random() - 0.5)::FLOAT)::FLOAT[384]" if embedded else "NULL"
        session_buddy.make(
            self.data / session_buddy.REFLECTION,
            session_buddy._REFLECTION_TABLES[0],
            "INSERT INTO conversations_v2(id, content, category, embedding)"
            f" SELECT 'c' || n, 'What was said, the ' || n || 'th time', 'chat', {vector}"
            f" FROM range({start}, {start + conversations}) r(n)",
        )

    def run(self, statement: str) -> None:
        session_buddy.make(self.data / session_buddy.REFLECTION, statement)

    @property
    def batches(self) -> list[int]:
        return [call.size for call in self.akosha.calls]

    @property
    def asked(self) -> Counter[str]:
        return Counter(f"{request.method} {request.path}" for request in self.akosha.requests)


@pytest.fixture
def akosha():
    with Akosha() as server:
        yield server


@pytest.fixture
def rig(tmp_path, akosha):
    return Rig(tmp_path, akosha)


@pytest.mark.parametrize("state", WITH_EMBEDDING)
async def test_databases_of_session_buddy_are_pushed_and_rows_without_embedding_wait(rig, state):
    rig.use(state)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    conversations, reflections, entities = WITH_EMBEDDING[state]
    assert rig.akosha.types() == {"conversation": conversations, "reflection": reflections, "entity": entities}
    assert (result.memories, result.upload_id) == (conversations + reflections + entities, result.request_id)
    assert result.database_bytes > 100_000
    (unembedded, entities), relations = WITHOUT[state], RELATIONSHIPS[state]
    assert f"{unembedded} wait: no embedding" in result.incomplete["reflection"]
    assert f"{relations} wait: the server has no tool for a relationship" in result.incomplete["knowledge_graph"]
    states, counts, _ = await rig.known()
    assert set(states.values()) <= {"clean", "delivered"}
    assert (counts.delivered, counts.waiting["no embedding"]) == (result.memories, unembedded + entities)
    row = rig.akosha.rows("laptop")[0]
    assert row.memory_id.startswith(f"laptop:{row.metadata['original_id']}:")
    assert isinstance(row.timestamp, datetime)
    assert row.timestamp.tzinfo is not None


async def test_a_sync_without_a_change_only_requests_the_health(rig):
    rig.make(50)
    await rig.sync()
    rig.akosha.forget()
    assert isinstance(await rig.sync(reason="session_end"), SyncSkipped)
    assert rig.asked == {"GET /health": 1}


async def test_a_manual_sync_without_a_change_sends_one_memory_as_a_probe(rig):
    rig.make(50)
    await rig.sync()
    result = await rig.sync()
    assert isinstance(result, SyncSkipped)
    assert result.why.endswith("; the server still has what was delivered")
    assert (rig.batches, len(rig.akosha.rows())) == ([50, 1], 50)


async def test_only_new_rows_are_sent(rig):
    rig.make(700)
    await rig.sync()
    assert rig.batches == [500, 200]
    rig.make(50, start=700)
    result = await rig.sync()
    assert (rig.batches[2:], result.memories) == ([1, 50], 50)


async def test_an_access_count_is_not_sent_to_akosha(rig):
    rig.make(20)
    await rig.sync()
    rig.run("UPDATE conversations_v2 SET access_count = 9, last_accessed = now()::TIMESTAMP")
    result = await rig.sync()
    assert isinstance(result, SyncSkipped)
    assert "no memory is new" in result.why
    assert (rig.batches, (await rig.known())[0]) == ([20, 1], {"reflection": "clean"})


async def test_a_changed_row_is_sent_as_another_memory(rig):
    rig.make(20)
    await rig.sync()
    rig.run("UPDATE conversations_v2 SET content = 'said again' WHERE id = 'c7'")
    assert (await rig.sync()).memories == 1
    assert len([one for one in rig.akosha.ids() if one.startswith("laptop:c7:")]) == 2


async def test_a_sync_fails_and_stays_owed_if_every_row_has_to_wait(rig):
    rig.make(15, embedded=False)
    for _ in range(2):
        result = await rig.sync()
        assert isinstance(result, SyncFailed)
        assert "15 wait: no embedding" in result.error
        assert "akosha_http_missing_embedding" in result.error
        assert (await rig.known())[0] == {"reflection": "owed"}
    rig.settings["http_missing_embedding"] = "zero"
    assert (await rig.sync()).memories == 15
    assert (await rig.known())[0] == {"reflection": "clean"}


async def test_a_sync_fails_if_every_new_row_has_to_wait(rig):
    rig.make(5)
    await rig.sync()
    rig.make(3, start=5, embedded=False)
    for _ in range(2):
        result = await rig.sync()
        assert isinstance(result, SyncFailed)
        assert "3 wait: no embedding" in result.error
    rig.run("UPDATE conversations_v2 SET embedding = (SELECT any_value(embedding) FROM conversations_v2)")
    assert (await rig.sync()).memories == 3


async def test_a_waiting_row_with_the_id_of_a_delivered_one_is_sent_later(rig):
    with session_buddy.opened(rig.data / session_buddy.REFLECTION) as base:
        base.execute("CREATE TABLE conversations(id VARCHAR, content VARCHAR, embedding FLOAT[384])")  # without a key
        base.execute("INSERT INTO conversations VALUES ('1', 'delivered', repeat([0.5], 384)), ('1', 'waiting', NULL)")
    assert (await rig.sync()).memories == 1
    rig.settings["http_missing_embedding"] = "zero"
    with session_buddy.opened(rig.data / session_buddy.REFLECTION) as base:
        base.execute("INSERT INTO conversations VALUES ('2', 'new', NULL)")
    await rig.sync()
    assert {row.text for row in rig.akosha.rows()} == {"delivered", "waiting", "new"}


async def test_waiting_rows_are_sent_once_the_server_has_the_tool(rig):
    rig.use("first")
    await rig.sync()
    assert isinstance(await rig.sync(), SyncSkipped)
    rig.akosha.stop()
    rig.akosha.tools, rig.akosha.version = ("create_relation",), "9.9.9"
    rig.akosha.start()
    assert (await rig.sync()).memories == RELATIONSHIPS["first"]
    assert len(rig.akosha.kept["create_relation"]) == RELATIONSHIPS["first"]
    assert "no tool" not in str((await rig.known())[1].waiting)


async def test_a_refused_memory_is_kept_with_its_reason_and_sent_to_the_next_server_version(rig):
    rig.make(10)

    def refuse(_tool, arguments):
        memories = arguments["memories"]
        odd = [one["memory_id"] for one in memories if ":c3:" in one["memory_id"]]
        rig.akosha._store_all([one for one in memories if one["memory_id"] not in odd])
        errors = [{"memory_id": one, "error": "Invalid text: too odd"} for one in odd]
        stored = len(memories) - len(odd)
        return {"status": "partial", "total": len(memories), "stored": stored, "failed": len(odd), "errors": errors}

    rig.akosha.interfere = refuse
    result = await rig.sync()
    assert "1 were refused: Invalid text: too odd" in result.incomplete["reflection"]
    _, counts, (held,) = await rig.known()
    assert (counts.delivered, held.row.id, held.state) == (9, "c3", "refused")
    assert isinstance(await rig.sync(reason="session_end"), SyncSkipped)
    rig.akosha.interfere = None
    rig.akosha.stop()
    rig.akosha.version = "9.9.9"
    rig.akosha.start()
    assert (await rig.sync()).memories == 1
    assert len(rig.akosha.rows()) == 10


async def test_an_akosha_that_is_down_fails_the_sync_with_a_hint_and_nothing_is_lost(rig):
    rig.make(5)
    rig.akosha.stop()
    result = await rig.sync()
    assert isinstance(result, SyncFailed)
    assert "cannot be reached" in result.error
    assert "akosha_http_endpoint" in result.error
    rig.akosha.start()
    assert (await rig.sync()).memories == 5


async def test_a_server_stopped_during_a_push_gets_only_the_rest_later(rig, monkeypatch):
    rig.make(60)
    monkeypatch.setattr(methods, "BATCH_SIZE", 10)
    await rig.sync_and_stop_akosha_in_the_third_batch()
    assert 20 <= (await rig.known())[1].delivered <= 30
    rig.akosha.start()
    assert isinstance(await rig.sync(), SyncSucceeded)
    assert len(rig.akosha.rows()) == 60
    assert sum(rig.batches) <= 70 + 1, "at most one batch is sent twice, plus one probe"


async def test_two_systems_with_equal_rows_have_separate_memories(rig, tmp_path):
    rig.make(3)
    await rig.sync()
    other = Identity("agent-2", "desktop")
    home = rig.home()
    home.state.ledger_file.unlink()
    ask = SyncAsked(id=str(uuid.uuid4()), time=home.clock.now(), system_id="desktop")
    async with await agent_bootstrap.build(home, other, single_sync=True) as agent:
        assert (await agent.once(ask)).memories == 3
    assert (len(rig.akosha.rows("laptop")), len(rig.akosha.rows("desktop"))) == (3, 3)


async def test_an_unreadable_database_does_not_block_the_other(rig):
    rig.use("first")
    (rig.data / "knowledge_graph.duckdb").write_bytes(b"no database" * 2000)
    (rig.data / "knowledge_graph.duckdb.wal").unlink(missing_ok=True)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert "knowledge_graph" in result.incomplete
    assert (await rig.known())[0]["knowledge_graph"] == "owed"


ODD = ("a:b", "line\nbreak", "x" * 10_000, "\U0001f600", "'quoted'", "tab\t", "\x1b[31mred", "a\u2028b")


async def test_ids_may_have_any_character_and_a_memory_that_is_too_large_does_not_block_others(rig):
    rig.settings["http_missing_embedding"] = "zero"
    rig.make(5)
    values = ", ".join(f"('{one.replace(chr(39), chr(39) * 2)}', 'said', 'chat')" for one in ODD)
    rig.run(
        f"INSERT INTO conversations_v2(id, content, category) VALUES {values}, ('long', repeat('x', 5_000_000), 'chat')"
    )
    rig.run("UPDATE conversations_v2 SET timestamp = NULL WHERE id IN ('c1', 'a:b')")
    result = await rig.sync()
    assert result.memories == 5 + len(ODD)
    assert "1 were refused: larger than the server accepts" in result.incomplete["reflection"]
    assert {row.metadata["original_id"] for row in rig.akosha.rows()} == {*ODD, "c0", "c1", "c2", "c3", "c4"}
    assert isinstance(await rig.sync(), SyncSkipped)
    (held,) = (await rig.known())[2]
    assert (held.row.id, held.state) == ("long", "refused")


async def test_a_database_without_rows_or_known_tables_is_delivered(rig):
    rig.make(0)
    with duckdb.connect(str(rig.data / "knowledge_graph.duckdb")) as graph:
        graph.execute("CREATE TABLE something_else AS SELECT 1 AS x")
    result = await rig.sync()
    assert (type(result), result.memories, result.incomplete) == (SyncSucceeded, 0, {})
    assert (await rig.known())[0] == {"reflection": "clean", "knowledge_graph": "clean"}
    assert isinstance(await rig.sync(), SyncSkipped)


async def test_entities_with_equal_ids_in_two_graphs_are_both_sent_and_a_renamed_graph_is_sent_again(rig):
    rig.settings["http_missing_embedding"] = "zero"
    add = "INSERT INTO kg_entities(id, name, entity_type) VALUES ('e1', 'DuckDB', 'tool')"
    for name in ("knowledge_graph", "knowledge_graph_work"):
        session_buddy.make(rig.data / f"{name}.duckdb", add)
    assert (await rig.sync()).memories == len(rig.akosha.ids()) == 2
    (rig.data / "knowledge_graph_work.duckdb").rename(rig.data / "knowledge_graph_play.duckdb")
    assert (await rig.sync()).memories == 1
    assert isinstance(await rig.sync(), SyncSkipped)


async def test_waiting_rows_that_are_deleted_are_no_longer_reported(rig):
    rig.make(3)
    rig.make(4, start=3, embedded=False)
    await rig.sync()
    assert (await rig.known())[1].waiting == {"no embedding": 4}
    rig.run("DELETE FROM conversations_v2 WHERE id IN ('c3', 'c4')")
    assert isinstance(await rig.sync(), SyncSkipped)
    assert (await rig.known())[1].waiting == {"no embedding": 2}


async def test_only_the_requested_databases_are_pushed(rig):
    rig.use("first")
    await rig.sync(upload_reflections=False)
    assert set(rig.akosha.types()) == {"entity"}
    await rig.sync()
    assert rig.akosha.types()["conversation"] == 13


async def test_all_memories_are_sent_again_to_an_akosha_that_lost_them_during_a_push(rig, monkeypatch):
    rig.make(60)
    monkeypatch.setattr(methods, "BATCH_SIZE", 10)
    await rig.sync_and_stop_akosha_in_the_third_batch()
    rig.akosha.forget()
    rig.akosha.interfere = None
    rig.akosha.start()
    rig.settings["max_retries"] = 3
    assert isinstance(await rig.sync(), SyncSucceeded)
    assert len(rig.akosha.rows()) == 60


@pytest.mark.parametrize("new_rows", [0, 1])
async def test_all_memories_are_sent_again_to_an_akosha_that_lost_them(rig, new_rows):
    """A server that keeps memories in RAM loses them on a restart. This is noticed without new rows, too."""
    rig.use("first")
    rig.settings["max_retries"] = 3
    await rig.sync()
    rig.akosha.stop()
    rig.akosha.forget()
    rig.akosha.start()
    if new_rows:
        rig.make(new_rows)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    conversations, reflections, entities = WITH_EMBEDDING["first"]
    assert rig.akosha.types() == {
        "conversation": conversations + new_rows,
        "reflection": reflections,
        "entity": entities,
    }
    assert len(rig.akosha.rows()) == result.memories
