"""The http method over real databases, a real ledger, and a server that answers as Akosha does."""

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
    """One machine without a bucket, one Akosha, and single syncs."""

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
        """What the ledger has of the target: its databases' states, and its memories' standing."""
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
            pytest.skip("the databases made by Session-Buddy's own code are not here")
        for file in (REAL / state).iterdir():
            shutil.copy(file, self.data)

    def make(self, conversations: int, *, start: int = 0, embedded: bool = True) -> None:
        """Add conversations as a session does that has ended."""
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
async def test_session_buddys_own_databases_arrive_and_what_has_no_embedding_waits(rig, state):
    rig.use(state)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    conversations, reflections, entities = WITH_EMBEDDING[state]
    assert rig.akosha.types() == {"conversation": conversations, "reflection": reflections, "entity": entities}
    assert (result.memories, result.upload_id) == (conversations + reflections + entities, result.request_id)
    (unembedded, entities), relations = WITHOUT[state], RELATIONSHIPS[state]
    assert f"{unembedded} wait: no embedding" in result.incomplete["reflection"]
    assert f"{relations} wait: the server has no tool for a relationship" in result.incomplete["knowledge_graph"]
    states, standing, _ = await rig.known()
    assert set(states.values()) <= {"clean", "delivered"}
    assert (standing.delivered, standing.waiting["no embedding"]) == (result.memories, unembedded + entities)
    row = rig.akosha.rows("laptop")[0]
    assert row.memory_id.startswith(f"laptop:{row.metadata['original_id']}:")
    assert isinstance(row.timestamp, datetime)
    assert row.timestamp.tzinfo is not None


async def test_what_is_unchanged_is_not_read_and_nothing_but_the_health_is_asked(rig):
    rig.make(50)
    await rig.sync()
    rig.akosha.forget()
    assert isinstance(await rig.sync(reason="session_end"), SyncSkipped)
    assert rig.asked == {"GET /health": 1}


async def test_where_a_person_asks_and_nothing_is_new_one_memory_is_offered_and_all_else_is_left_alone(rig):
    rig.make(50)
    await rig.sync()
    result = await rig.sync()
    assert isinstance(result, SyncSkipped)
    assert result.why.endswith("; the server still has what was delivered")
    assert (rig.batches, len(rig.akosha.rows())) == ([50, 1], 50)


async def test_new_rows_alone_are_sent(rig):
    rig.make(700)
    await rig.sync()
    assert rig.batches == [500, 200]
    rig.make(50, start=700)
    result = await rig.sync()
    assert (rig.batches[2:], result.memories) == ([1, 50], 50)


async def test_counting_an_access_is_no_news_for_akosha(rig):
    rig.make(20)
    await rig.sync()
    rig.run("UPDATE conversations_v2 SET access_count = 9, last_accessed = now()::TIMESTAMP")
    result = await rig.sync()
    assert isinstance(result, SyncSkipped)
    assert "no memory is new" in result.why
    assert (rig.batches, (await rig.known())[0]) == ([20, 1], {"reflection": "clean"})


async def test_a_row_that_changed_is_sent_as_another_memory(rig):
    rig.make(20)
    await rig.sync()
    rig.run("UPDATE conversations_v2 SET content = 'said again' WHERE id = 'c7'")
    assert (await rig.sync()).memories == 1
    assert len([one for one in rig.akosha.ids() if one.startswith("laptop:c7:")]) == 2


async def test_where_everything_had_to_wait_that_is_no_success_and_stays_owed(rig):
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


async def test_new_rows_that_all_have_to_wait_are_no_success_either(rig):
    rig.make(5)
    await rig.sync()
    rig.make(3, start=5, embedded=False)
    for _ in range(2):
        result = await rig.sync()
        assert isinstance(result, SyncFailed)
        assert "3 wait: no embedding" in result.error
    rig.run("UPDATE conversations_v2 SET embedding = (SELECT any_value(embedding) FROM conversations_v2)")
    assert (await rig.sync()).memories == 3


async def test_what_waits_beside_others_goes_once_the_server_can_take_it(rig):
    rig.use("first")
    await rig.sync()
    assert isinstance(await rig.sync(), SyncSkipped)
    rig.akosha.stop()
    rig.akosha.tools, rig.akosha.version = ("create_relation",), "9.9.9"
    rig.akosha.start()
    assert (await rig.sync()).memories == RELATIONSHIPS["first"]
    assert len(rig.akosha.kept["create_relation"]) == RELATIONSHIPS["first"]
    assert "no tool" not in str((await rig.known())[1].waiting)


async def test_what_the_server_refuses_is_kept_with_its_reason_and_offered_to_its_next_version(rig):
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
    _, standing, (held,) = await rig.known()
    assert (standing.delivered, held.row.id, held.state) == (9, "c3", "refused")
    assert isinstance(await rig.sync(reason="session_end"), SyncSkipped)
    rig.akosha.interfere = None
    rig.akosha.stop()
    rig.akosha.version = "9.9.9"
    rig.akosha.start()
    assert (await rig.sync()).memories == 1
    assert len(rig.akosha.rows()) == 10


async def test_an_akosha_that_is_away_fails_the_sync_with_the_cure_and_nothing_is_lost(rig):
    rig.make(5)
    rig.akosha.stop()
    result = await rig.sync()
    assert isinstance(result, SyncFailed)
    assert "cannot be reached" in result.error
    assert "akosha_http_endpoint" in result.error
    rig.akosha.start()
    assert (await rig.sync()).memories == 5


async def test_a_server_that_goes_in_the_middle_gets_the_rest_when_it_is_back_and_nothing_twice(rig, monkeypatch):
    rig.make(60)
    monkeypatch.setattr(methods, "BATCH_SIZE", 10)
    await rig.sync_and_stop_akosha_in_the_third_batch()
    assert 20 <= (await rig.known())[1].delivered <= 30
    rig.akosha.start()
    assert isinstance(await rig.sync(), SyncSucceeded)
    assert len(rig.akosha.rows()) == 60
    assert sum(rig.batches) <= 70 + 1, "one batch at most is sent twice, and what was asked after"


async def test_two_systems_with_equal_rows_have_memories_of_their_own(rig, tmp_path):
    rig.make(3)
    await rig.sync()
    other = Identity("agent-2", "desktop")
    home = rig.home()
    home.state.ledger_file.unlink()
    ask = SyncAsked(id=str(uuid.uuid4()), time=home.clock.now(), system_id="desktop")
    async with await agent_bootstrap.build(home, other, single_sync=True) as agent:
        assert (await agent.once(ask)).memories == 3
    assert (len(rig.akosha.rows("laptop")), len(rig.akosha.rows("desktop"))) == (3, 3)


async def test_a_database_that_cannot_be_read_does_not_keep_the_other_from_going(rig):
    rig.use("first")
    (rig.data / "knowledge_graph.duckdb").write_bytes(b"no database" * 2000)
    (rig.data / "knowledge_graph.duckdb.wal").unlink(missing_ok=True)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    assert "knowledge_graph" in result.incomplete
    assert (await rig.known())[0]["knowledge_graph"] == "owed"


ODD = ("a:b", "line\nbreak", "x" * 10_000, "\U0001f600", "'quoted'", "tab\t", "\x1b[31mred", "a\u2028b")


async def test_ids_may_hold_anything_and_one_memory_that_is_too_long_does_not_keep_the_others(rig):
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


async def test_a_database_without_rows_or_without_tables_that_matter_is_delivered_as_it_is(rig):
    rig.make(0)
    with duckdb.connect(str(rig.data / "knowledge_graph.duckdb")) as graph:
        graph.execute("CREATE TABLE something_else AS SELECT 1 AS x")
    result = await rig.sync()
    assert (type(result), result.memories, result.incomplete) == (SyncSucceeded, 0, {})
    assert (await rig.known())[0] == {"reflection": "clean", "knowledge_graph": "clean"}
    assert isinstance(await rig.sync(), SyncSkipped)


async def test_entities_of_equal_ids_in_two_graphs_both_arrive_and_a_renamed_graph_arrives_under_its_name(rig):
    rig.settings["http_missing_embedding"] = "zero"
    add = "INSERT INTO kg_entities(id, name, entity_type) VALUES ('e1', 'DuckDB', 'tool')"
    for name in ("knowledge_graph", "knowledge_graph_work"):
        session_buddy.make(rig.data / f"{name}.duckdb", add)
    assert (await rig.sync()).memories == len(rig.akosha.ids()) == 2
    (rig.data / "knowledge_graph_work.duckdb").rename(rig.data / "knowledge_graph_play.duckdb")
    assert (await rig.sync()).memories == 1
    assert isinstance(await rig.sync(), SyncSkipped)


async def test_rows_deleted_while_they_waited_are_reported_no_more(rig):
    rig.make(3)
    rig.make(4, start=3, embedded=False)
    await rig.sync()
    assert (await rig.known())[1].waiting == {"no embedding": 4}
    rig.run("DELETE FROM conversations_v2 WHERE id IN ('c3', 'c4')")
    assert isinstance(await rig.sync(), SyncSkipped)
    assert (await rig.known())[1].waiting == {"no embedding": 2}


async def test_what_is_asked_for_alone_is_pushed_alone(rig):
    rig.use("first")
    await rig.sync(upload_reflections=False)
    assert set(rig.akosha.types()) == {"entity"}
    await rig.sync()
    assert rig.akosha.types()["conversation"] == 13


async def test_an_akosha_that_loses_in_the_middle_what_it_had_is_given_all_of_it_again(rig, monkeypatch):
    rig.make(60)
    monkeypatch.setattr(methods, "BATCH_SIZE", 10)
    await rig.sync_and_stop_akosha_in_the_third_batch()
    rig.akosha.forget()
    rig.akosha.interfere = None
    rig.akosha.start()
    rig.settings["max_retries"] = 3
    assert isinstance(await rig.sync(), SyncSucceeded)
    assert len(rig.akosha.rows()) == 60


@pytest.mark.parametrize("news", [0, 1])
async def test_an_akosha_that_has_lost_what_it_had_is_given_all_of_it_again(rig, news):
    """As one that keeps it in memory has after a restart: also where nothing is new."""
    rig.use("first")
    rig.settings["max_retries"] = 3
    await rig.sync()
    rig.akosha.stop()
    rig.akosha.forget()
    rig.akosha.start()
    if news:
        rig.make(news)
    result = await rig.sync()
    assert isinstance(result, SyncSucceeded)
    conversations, reflections, entities = WITH_EMBEDDING["first"]
    assert rig.akosha.types() == {"conversation": conversations + news, "reflection": reflections, "entity": entities}
    assert len(rig.akosha.rows()) == result.memories
