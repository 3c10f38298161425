"""The campaign of faults: a short part of it, and planted violations that its checks must find."""

import gzip
import json
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import Mock, patch

import psutil
import pytest

from agent.adapters.directory_store.layout import incoming_folder
from agent.domain.webhooks import signature
from tests.campaign import checks, leftovers, world as world_module
from tests.campaign.checks import violations
from tests.campaign.deliveries import Delivery, Results
from tests.campaign.faults import (
    AgentKilled,
    LedgerDamaged,
    NatsLine,
    PageAttacked,
    PageOpen,
    StoreLine,
    WebhookAnswers,
    page as page_faults,
)
from tests.campaign.faults.lines import HALF_OPEN
from tests.campaign.faults.webhooks import FAULTY, KEY, SECRET, UNDELAYED_SECONDS
from tests.campaign.pages import JSON as PAGE_JSON, Page, unread
from tests.campaign.play import play
from tests.campaign.world import CANARY, NotSettled, World
from tests.support.servers.link import Link

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("kind", "rounds"), [(AgentKilled, 2), (LedgerDamaged, 1), (NatsLine, 1)], ids=["killed", "ledger", "nats"]
)
def test_nothing_is_lost_in_a_seeded_part_of_the_campaign(tmp_path, kind, rounds):
    outcome = play(kind, "7", tmp_path, rounds=rounds)
    assert (outcome.rounds, outcome.violations) == (rounds, [])


def test_the_checks_find_each_planted_violation_and_nothing_else(tmp_path, subtests):
    with World(tmp_path, random.Random(1)) as world:
        world.commit(2)
        world.writer.run("checkpoint")  # the main files of the first and the newest upload differ
        world.commit(2)
        world.settle()
        assert violations(world, at_end=True) == []
        find_each(PLANTED, world, subtests)


def test_the_checks_find_each_planted_violation_at_akosha(tmp_path, subtests):
    with World(tmp_path, random.Random(1), target="akosha") as world:
        assert violations(world, at_end=True) == []
        find_each(PLANTED_AT_AKOSHA, world, subtests)


def test_what_a_killed_prune_has_left_is_pruned_before_the_last_check(tmp_path, monkeypatch):
    monkeypatch.setattr(world_module, "LEFT_OVER_SECONDS", 0.1)
    with World(tmp_path, random.Random(1)) as world:
        world.commit()
        world.settle()
        oldest = world.manifests()[0]
        (world.machine.bucket / checks.manifest_key(oldest)).unlink()
        assert violations(world, at_end=True) == []
        assert not [key for key in world.target.keys if oldest["upload_id"] in key]


def test_a_wait_of_more_than_twice_the_limit_is_a_violation():
    line = StoreLine()
    line.link, line.way = Link(0), HALF_OPEN
    line.link.waits.append(2 * line.limit_seconds)
    assert [*line.check(world=None)] == []
    line.link.waits.append(2 * line.limit_seconds + 1)
    assert [*line.check(world=None)] == ["half-open: the agent waited 5.0 s on a connection; its limit is 2 s"]


def test_the_checks_of_the_page_find_each_planted_violation_and_nothing_else(tmp_path, subtests):
    opened, attacked = PageOpen(), PageAttacked()
    with World(tmp_path, random.Random(1), prepare=opened.prepare) as world:
        opened.page = attacked.page = Page(world, tabs=1)
        attacked.admitted, attacked.clients = [], []
        assert [*opened.check(world), *attacked.check(world), *violations(world)] == []
        with patch.object(page_faults, "LASTING_SECONDS", 0), patch.object(leftovers, "LASTING_SECONDS", 0):
            for plant in PLANTED_ON_THE_PAGE:
                with subtests.test(plant.__name__), plant(world, opened, attacked) as expected:
                    found = [*opened.check(world), *attacked.check(world), *leftovers.secrets(world)]
                    assert [text for text in found if expected in text]
            assert [*opened.check(world), *attacked.check(world), *leftovers.secrets(world)] == []
            opened.clients = opened.stalled = [unread(opened.page, "/v1/history?limit=200", times=200)]
            with subtests.test("a client that never reads"), pytest.raises(NotSettled, match="1 connections of"):
                opened.heal(world, random.Random(1))
            with subtests.test("a triggered sync"):
                assert opened.page.send("POST", "/v1/sync", "{}", PAGE_JSON | opened.page.bearing)[0] == 202
                world.settle()
                assert [text for text in attacked.check(world) if "has triggered" in text]
            with subtests.test("a second session"):
                Page(world)
                assert "2 sessions of the page, but one was opened" in [*attacked.check(world)]


@contextmanager
def lost_session(world, opened, attacked):
    with patch.object(opened.page, "bearing", {"Authorization": "Bearer wrong"}):
        yield "the page has lost its session or its port: 401"


@contextmanager
def lost_port(world, opened, attacked):
    with patch.object(opened.page, "address", ("127.0.0.1", 9)):
        yield "the page has lost its session or its port: 0"


@contextmanager
def gap_in_a_tab(world, opened, attacked):
    with patch.object(opened.page.tabs[0], "error", "position 7 follows position 5"):
        yield "position 7 follows position 5"


@contextmanager
def tab_without_the_newest_event(world, opened, attacked):
    with patch.object(opened.page, "tabs", [Mock(last=1, error="")]):
        yield "a tab of the page has events up to 1 of "


@contextmanager
def gap_in_the_history(world, opened, attacked):
    with patch.object(opened.page, "uploads_of_history", list):
        yield "the history of the page is not the agent's"


@contextmanager
def session_in_the_state_directory(world, opened, attacked):
    page = world.machine.state / "page.json"
    document = json.loads(page.read_text())
    with replaced(page, json.dumps({**document, "session": opened.page.session}).encode()):
        yield f"page.json has {opened.page.session[:6]}..."


@contextmanager
def one_time_token_in_the_log(world, opened, attacked):
    with patch.object(world, "log", [opened.page.token]):
        yield f"the log has {opened.page.token[:6]}..."


@contextmanager
def webhook_secret_in_an_event(world, opened, attacked):
    with (
        patch.object(world.machine, "secrets", (*world.machine.secrets, SECRET)),
        patch.object(world.listener, "raw", [SECRET.encode()]),
    ):
        yield f"an event has {SECRET[:6]}..."


@contextmanager
def answer_to_a_client_without_access(world, opened, attacked):
    with patch.object(attacked, "admitted", []):
        attacked.refused(opened.page, "GET", "/v1/status", opened.page.bearing)
        yield "GET /v1/status with ['Authorization'] was answered with 200"


@contextmanager
def control_socket_without_an_answer(world, opened, attacked):
    with patch.object(attacked, "admitted", []), patch.object(world, "status", lambda: None):
        attacked._answers(world)
        yield "the control socket does not answer"


PLANTED_ON_THE_PAGE = (
    lost_session,
    lost_port,
    gap_in_a_tab,
    tab_without_the_newest_event,
    gap_in_the_history,
    session_in_the_state_directory,
    one_time_token_in_the_log,
    webhook_secret_in_an_event,
    answer_to_a_client_without_access,
    control_socket_without_an_answer,
)


def delivery(event_id, *, webhook_id=None, key=KEY, at=1):
    """A delivery of an event, signed with the key."""
    named = f"msg_{event_id}" if webhook_id is None else webhook_id
    body = json.dumps({"id": event_id})
    signed = signature(key, named, at, body.encode())
    return Delivery(FAULTY, {"webhook-id": named, "webhook-timestamp": str(at), "webhook-signature": signed}, body)


@pytest.mark.parametrize(
    ("deliveries", "expected"),
    [
        ("ab", ["result c has not arrived at the webhook"]),
        ("abbc", []),
        ("acb", ["the webhook got results in another order or not selected ones: ['a', 'c', 'b']"]),
        ("abac", ["the webhook got results in another order or not selected ones: ['a', 'b', 'a', 'c']"]),
        ("abxc", ["the webhook got results in another order or not selected ones: ['a', 'b', 'x', 'c']"]),
    ],
    ids=["missing", "repeated", "reordered", "repeated-later", "not-selected"],
)
def test_a_missing_or_reordered_delivery_to_a_webhook_is_a_violation(deliveries, expected):
    assert [*Results("abc").violations([delivery(one) for one in deliveries], KEY)] == expected


@pytest.mark.parametrize(
    ("delivered", "expected"),
    [
        (delivery("b", webhook_id="msg_2"), "one result has several webhook-ids"),
        (delivery("c", webhook_id="msg_b"), "one webhook-id has several results"),
        (delivery("c", key=b"another"), "msg_c has no valid signature"),
    ],
    ids=["result-with-two-ids", "id-of-two-results", "signature"],
)
def test_a_wrong_webhook_id_or_signature_is_a_violation(delivered, expected):
    deliveries = [delivery("a"), delivery("b"), delivered, *[delivery("c")] * (delivered.event_id == "b")]
    assert [*Results("abc").violations(deliveries, KEY)] == [expected]


def test_an_attempt_that_a_slow_connection_brings_late_is_no_violation_but_a_late_attempt_is():
    deliveries = [delivery("a", at=4), delivery("b", at=5), delivery("c", at=6)]
    assert [*Results("abc").violations([*deliveries, delivery("a", at=2)], KEY)] == []
    assert [*Results("abc").violations([*deliveries, delivery("a", at=7)], KEY)]


def test_a_result_that_a_webhook_may_miss_is_no_violation_unless_it_arrives_in_another_order():
    results = Results("abc", optional="ab")
    assert [*results.violations([delivery("c")], KEY)] == []
    assert [*results.violations([delivery(one) for one in "ca"], KEY)]


def test_a_sync_that_waits_for_a_failing_webhook_is_a_violation():
    fault, world = WebhookAnswers(), Mock()
    fault.lasts, fault._proxy = False, Mock()
    world.settle.side_effect = NotSettled
    with pytest.raises(NotSettled):
        fault.heal(world, random.Random(1))
    world.settle.assert_called_once_with(UNDELAYED_SECONDS)
    fault._proxy.clear.assert_not_called()  # it still fails


def find_each(planted, world, subtests):
    """Plant each violation; the checks find it while it is there, and nothing afterwards."""
    examined, findings = checks._examined, {}

    def examined_once(folder):
        key = tuple((path.name, path.read_bytes()) for path in sorted(folder.iterdir()))
        if key not in findings:
            findings[key] = examined(folder)
        return findings[key]

    with (
        patch.object(leftovers, "LASTING_SECONDS", 0),
        patch.object(checks, "RESULT_SECONDS", 0),
        patch.object(checks, "_examined", examined_once),  # to open databases takes most of the time
    ):
        for plant in planted:
            with subtests.test(plant.__name__), plant(world) as expected:
                assert [text for text in violations(world) if expected in text]
    assert violations(world) == []


@contextmanager
def replaced(path: Path, data: bytes | None) -> Iterator[None]:
    """Replace, create or (None) remove a file for the duration of the block."""
    before = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    if data is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)


def newest(world: World) -> tuple[dict, Path]:
    """Return the newest manifest and the folder of its upload."""
    manifest = world.manifests()[-1]
    return manifest, world.machine.bucket / f"systems/laptop/uploads/{manifest['upload_id']}"


def reflection_of(manifest: dict) -> dict:
    return next(part for part in manifest["parts"] if part["name"] == "reflection.duckdb")


@contextmanager
def lost_commit(world):
    with patch.object(world.writer, "commits", world.writer.commits + 1):
        yield f"but {world.writer.commits} was acknowledged"


@contextmanager
def earlier_commits(world):
    """The newest upload has more commits than the database, which was replaced by an older copy of itself."""
    with patch.object(world.writer, "commits", 0):
        yield "but 0 was acknowledged"


@contextmanager
def outdated_upload(world):
    manifests = world.manifests()
    with patch.object(world, "manifests", lambda: manifests[:1]):
        yield "has another reflection.duckdb than the data directory"


@contextmanager
def doubled_result(world):
    results = world.results()
    (*_, last) = (event for event in results if event["type"] == "akosha.sync.succeeded.v1")
    with patch.object(world, "results", lambda: [*results, {**last, "id": "another"}]):
        yield "has 2 results"


@contextmanager
def missing_result(world):
    results = world.results()
    with patch.object(world, "results", lambda: results[:-1]):
        yield "has no result"


@contextmanager
def result_without_an_upload(world):
    results = world.results()
    data = {**results[-1]["data"], "upload_id": "99991231_235959_laptop"}
    with patch.object(world, "results", lambda: [*results, {**results[-1], "data": data}]):
        yield "99991231_235959_laptop has a result, but is not in the bucket"


@contextmanager
def torn_copy(world):
    """The newest upload has the main file of an older one beside its own WAL, and its manifest agrees."""
    old, (manifest, folder) = reflection_of(world.manifests()[0]), newest(world)
    part = reflection_of(manifest)
    facts = {name: old[name] for name in ("raw_size", "stored_size", "sha256")}
    parts = [{**each, **facts} if each is part else each for each in manifest["parts"]]
    total = manifest["total_size_bytes"] - part["stored_size"] + old["stored_size"]
    torn = json.dumps({**manifest, "parts": parts, "total_size_bytes": total}).encode()
    bucket = world.machine.bucket
    with replaced(bucket / part["key"], (bucket / old["key"]).read_bytes()), replaced(folder / "manifest.json", torn):
        yield "reflection.duckdb"


@contextmanager
def cut_object(world):
    main = world.machine.bucket / reflection_of(newest(world)[0])["key"]
    with replaced(main, main.read_bytes()[:-9]):
        yield "is not what its manifest says"


@contextmanager
def missing_object(world):
    with replaced(newest(world)[1] / "memories.json.gz", None):
        yield "memories.json.gz is in the manifest, but not in the bucket"


@contextmanager
def stray_object(world):
    with replaced(newest(world)[1] / "stray", b"1"):
        yield "/stray belongs to no upload"


@contextmanager
def canary_in_the_log(world):
    with patch.object(world, "log", [f"token={CANARY}"]):
        yield f"the log has {CANARY[:6]}..."


@contextmanager
def canary_in_an_event(world):
    with patch.object(world.listener, "raw", [*world.listener.raw, CANARY.encode()]):
        yield f"an event has {CANARY[:6]}..."


@contextmanager
def canary_in_a_metric(world):
    get = world.get
    with patch.object(world, "get", lambda path: get(path) + CANARY.encode() * (path == "/metrics")):
        yield f"/metrics has {CANARY[:6]}..."


@contextmanager
def canary_in_the_state_directory(world):
    with replaced(world.machine.state / "note.json", CANARY.encode()):
        yield f"note.json has {CANARY[:6]}..."


@contextmanager
def canary_in_an_object(world):
    with replaced(newest(world)[1] / "stray.gz", gzip.compress(CANARY.encode())):
        yield f"/stray.gz has {CANARY[:6]}..."


@contextmanager
def file_left_in_staging(world):
    with replaced(world.machine.state / "staging" / "left.duckdb", b"1"):
        yield "left in the state directory: staging/left.duckdb"


@contextmanager
def note_left_in_the_spool(world):
    with replaced(world.machine.state / "spool" / "left.tmp", b"1"):
        yield "left in the state directory: spool/left.tmp"


@contextmanager
def child_process_left(world):
    """The agent has a second child."""
    with patch.object(world, "children", lambda _: [psutil.Process(), psutil.Process()]):
        yield "child process still runs"


@contextmanager
def child_with_an_open_copy(world):
    path = world.machine.state / "reflection.duckdb"
    with path.open("wb"), patch.object(world, "children", lambda _: [psutil.Process()]):
        path.unlink()
        yield "child process has reflection.duckdb (deleted) open"


@contextmanager
def descriptor_left_open(world):
    before = Counter({name: 1 for name in world.first_usage.descriptors if "ledger" not in name})
    with patch.object(world, "first_usage", replace(world.first_usage, descriptors=before)):
        yield "ledger.sqlite"


@contextmanager
def memory_grown(world):
    less = world.first_usage.memory - leftovers.MEMORY_BYTES - 2**20
    with patch.object(world, "first_usage", replace(world.first_usage, memory=less)):
        yield "memory has grown"


@contextmanager
def file_left_in_the_bucket(world):
    incoming = incoming_folder(world.machine.bucket, "systems/laptop/uploads/1/reflection.duckdb")
    with replaced(incoming / "1", b"1"):
        yield "left in the bucket's directory: .akosha/incoming/systems/laptop/uploads/1/reflection.duckdb/1"


@contextmanager
def error_of_the_writer(world):
    with patch.object(world.writer, "events", [*world.writer.events, {"event": "failed", "reason": "locked"}]):
        yield "the writer failed"


@contextmanager
def lost_memory(world):
    rows = world.target.memories
    with patch.object(world.target.server, "rows", lambda: rows[1:]):
        yield f"{rows[0].metadata['type']} 0 is missing"


@contextmanager
def doubled_memory(world):
    rows = world.target.memories
    with patch.object(world.target.server, "rows", lambda: [*rows, replace(rows[0], memory_id="another")]):
        yield "is 2 memories"


@contextmanager
def changed_memory(world):
    rows = world.target.memories
    with patch.object(world.target.server, "rows", lambda: [replace(rows[0], text="other"), *rows[1:]]):
        yield "0 is not what was written"


@contextmanager
def commit_after_the_last_result(world):
    with patch.object(world, "committed_at", datetime.now(UTC)):
        yield "no result was published after the last commit"


PLANTED = (
    lost_commit,
    earlier_commits,
    outdated_upload,
    doubled_result,
    missing_result,
    result_without_an_upload,
    torn_copy,
    cut_object,
    missing_object,
    stray_object,
    canary_in_the_log,
    canary_in_an_event,
    canary_in_a_metric,
    canary_in_the_state_directory,
    canary_in_an_object,
    file_left_in_staging,
    file_left_in_the_bucket,
    note_left_in_the_spool,
    child_process_left,
    child_with_an_open_copy,
    descriptor_left_open,
    memory_grown,
    error_of_the_writer,
)
PLANTED_AT_AKOSHA = (
    lost_memory,
    doubled_memory,
    changed_memory,
    commit_after_the_last_result,
    doubled_result,
)
