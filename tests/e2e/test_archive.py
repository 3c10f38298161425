"""`uploads` and `verify` on the command line, with and without a running agent."""

import json
import shutil
from contextlib import nullcontext

import pytest

from tests.support.archive import flip_bit
from tests.support.machine import Machine

VERIFIED = "akosha.archive.verified.v1"


@pytest.fixture
def machine(tmp_path):
    made = Machine(tmp_path / "machine")
    made.write(commits=6, entities=3)
    made.sync()
    return made


def verifications(machine):
    return [event["data"] for event in machine.events() if event["type"] == VERIFIED]


def damage(machine, name="reflection.duckdb"):
    (path,) = machine.bucket.glob(f"systems/*/uploads/*/{name}")
    path.write_bytes(flip_bit(path.read_bytes(), 1000))


def test_uploads_lists_newest_first_and_shows_one_in_detail(machine):
    machine.write(commits=9)
    newest = machine.sync()["upload_id"]
    older = machine.manifests[0]["upload_id"]
    document = machine.call("uploads", "--json").json
    assert [upload["upload_id"] for upload in document["uploads"]] == [newest, older]
    first = document["uploads"][0]
    assert (first["rows"], first["verified"], first["carried"], first["problems"]) == (23, True, [], {})
    assert first["stored_bytes"] < first["raw_bytes"]
    listed = machine.call("uploads", "list")
    assert (listed.code, listed.err) == (0, "")
    assert [line.split()[0] for line in listed.out.splitlines()] == ["upload", newest, older]
    shown = machine.call("uploads", "show", older[:15], "--json").json
    assert [part["name"] for part in shown["parts"]] == ["knowledge_graph.duckdb", "reflection.duckdb"]
    assert shown["rows_by_table"]["reflection"] == {"conversations_v2": 6, "reflections_v2": 6}
    text = machine.call("uploads", "show", "latest")
    assert f"new or changed since {older}" in text.out
    nothing = machine.call("uploads", "--system", "another")
    assert (nothing.code, "there are no uploads of another" in nothing.out) == (0, True)


def test_verify_finds_a_flipped_bit_in_a_directory_with_and_without_deep(machine):
    intact = machine.call("verify")
    assert (intact.code, intact.err) == (0, "")
    assert "intact, 3 objects compared with the manifest by digest" in intact.out
    damage(machine)
    every = machine.call("verify", "--all")
    assert (every.code, "DAMAGED\n  reflection.duckdb: was modified after the upload" in every.err) == (1, True)
    deep = machine.call("verify", "latest", "--deep")
    assert (deep.code, deep.out) == (1, "")
    assert "DAMAGED\n  reflection.duckdb: " in deep.err
    assert [(event["deep"], event["whole"]) for event in verifications(machine)] == [
        (False, True),
        (False, False),
        (True, False),
    ]
    assert list(verifications(machine)[-1]["problems"]) == ["reflection.duckdb"]
    assert not [path for path in (machine.state / "verifying").iterdir() if path.is_dir()]


def test_a_usage_error_exits_2_and_an_unknown_upload_exits_1(machine):
    for words in (("latest", "--all"), ("--system", "../x"), ("--nonsense",)):
        assert machine.call("verify", *words).code == 2
    missing = machine.call("verify", "2027", "--json")
    assert (missing.code, missing.out) == (1, "")
    assert "akosha-agent uploads" in missing.err
    for words in (("verify", ""), ("restore", "", "--to", str(machine.home / "to"))):
        unset = machine.call(*words)  # an unset shell variable does not mean the latest
        assert (unset.code, unset.out) == (1, "")
        assert "there is no upload ''" in unset.err
    machine.set(cloud_endpoint=None)
    nowhere = machine.call("uploads")
    assert nowhere.code == 2
    assert "akosha_cloud_bucket" in nowhere.err


def test_verify_publishes_its_result_through_the_running_agent(machine):
    with machine.run() as agent, machine.follow() as following:
        assert machine.call("verify", "--json").json["whole"]
        (event,) = following.printed.wait(lambda line: line.get("type") == VERIFIED)
        assert event["data"]["upload_id"] == machine.manifests[0]["upload_id"]
        assert not [line for line in agent.log.seen if line.get("event") == "note_refused"]
    assert len(verifications(machine)) == 1


def test_verifying_another_systems_uploads_records_no_event(machine):
    machine.set(system_id="tablet")
    found = machine.call("verify", "--system", "laptop", "--json")
    assert (found.code, json.loads(found.out)["system_id"]) == (0, "laptop")
    assert verifications(machine) == []
    unknown = machine.call("verify", "--system", "nosuch")
    assert (unknown.code, "(systems with uploads there: laptop)" in unknown.err) == (1, True), unknown.err


@pytest.mark.parametrize("words", [("list",), ("show", "latest")], ids=["list", "show"])
def test_an_option_before_its_subcommand_is_refused(machine, words):
    done = machine.call("uploads", "--system", "other", *words)
    assert (done.code, done.out) == (2, "")
    assert f"--system must follow {words[0]}" in done.err


@pytest.mark.parametrize("agent_runs", [False, True])
def test_status_shows_the_result_of_verify(machine, agent_runs):
    machine.set(agent_upload_on_change="false")
    newest = machine.manifests[0]["upload_id"]

    def verified(whole):
        def shown(status):
            last = status["verified"]
            return last and (last["upload_id"], last["whole"], last["manual"]) == (newest, whole, True)

        return shown

    with machine.run() if agent_runs else nullcontext():
        assert machine.call("verify").code == 0
        machine.status(until=verified(whole=True))
        damage(machine)
        assert machine.call("verify").code == 1
        machine.status(until=verified(whole=False))
        assert machine.call("verify", "--deep").code == 1
        warnings = machine.status(until=lambda status: status["warnings"])["warnings"]
        assert [warning["code"] for warning in warnings] == ["upload_damaged"]
        assert f"{newest} is DAMAGED" in machine.call("status").out


def test_status_shows_only_a_verification_of_the_present_target(machine, tmp_path):
    machine.call("verify")
    assert machine.status()["verified"]["whole"]
    first = machine.bucket
    machine.bucket = tmp_path / "another"
    machine.set(cloud_endpoint=machine.bucket.as_uri())
    assert machine.status()["verified"] is None
    machine.sync()
    damage(machine)
    machine.call("verify")
    assert "is DAMAGED" in machine.call("status").out
    assert "damaged: reflection.duckdb: " in machine.call("doctor").out.replace("\n", " ")
    assert "is intact" not in machine.call("status").out
    machine.set(cloud_endpoint=first.as_uri())
    assert "is DAMAGED" not in machine.call("status").out


@pytest.mark.parametrize("agent_runs", [False, True])
def test_a_prune_with_nothing_to_delete_reports_a_damaged_newest_upload(machine, agent_runs):
    machine.set(agent_upload_on_change="false")
    assert machine.call("prune", "--dry-run").code == 0
    damage(machine)
    dry = machine.call("prune", "--dry-run")
    assert (dry.code, "is damaged: reflection.duckdb" in dry.err) == (1, True)
    assert machine.status()["warnings"] == []
    with machine.run() if agent_runs else nullcontext():
        assert machine.call("prune").code == 1
        (warning,) = machine.status(until=lambda status: status["warnings"])["warnings"]
        assert (warning["code"], "is damaged: reflection.duckdb" in warning["message"]) == ("pruning_held", True)
        (pruned,) = [e["data"] for e in machine.events() if e["type"] == "akosha.archive.pruned.v1"]
        assert (pruned["held"], pruned["upload_ids"]) == (True, [])


@pytest.mark.parametrize("agent_runs", [False, True])
def test_a_sync_that_repairs_the_newest_upload_names_it(machine, agent_runs):
    machine.set(agent_upload_on_change="false")
    newest = machine.manifests[0]["upload_id"]
    with machine.run() if agent_runs else nullcontext():
        assert "was damaged" not in machine.call("sync").out
        damage(machine)
        assert machine.call("verify").code == 1
        done = machine.call("sync")
        assert (done.code, f"; {newest} was damaged: its damaged databases were sent again" in done.out) == (0, True)
        later = machine.manifests[-1]["upload_id"]
        assert f"akosha-agent verify examines the upload after it, {later}" in machine.call("doctor").out
        assert machine.call("verify").code == 0


@pytest.mark.parametrize(
    "words", [("verify",), ("uploads",), ("restore", "--to", "restored")], ids=lambda words: words[0]
)
def test_a_missing_newest_upload_is_reported_and_sent_again(machine, words):
    machine.write(commits=9)
    newest = machine.sync()["upload_id"]
    shutil.rmtree(machine.bucket / "systems" / "laptop" / "uploads" / newest)
    done = machine.call(*(str(machine.home / word) if word == "restored" else word for word in words))
    assert done.code == (1 if words == ("verify",) else 0)
    assert f"this machine's newest upload, {newest}, is missing" in done.err
    status = machine.status()
    assert status["verdict"]["text"].startswith(f"The newest upload, {newest}, is missing")
    assert status["pending"] == ["knowledge_graph", "reflection"]
    again = machine.sync()["upload_id"]
    assert again > newest
    assert machine.call("verify").code == 0
    assert machine.status()["verdict"]["severity"] == "unknown", "no agent is running"


def test_verify_fails_if_all_uploads_are_missing_and_the_next_sync_sends_everything(machine):
    newest = machine.manifests[-1]["upload_id"]
    shutil.rmtree(machine.bucket / "systems" / "laptop" / "uploads")
    done = machine.call("verify", "--json")
    assert (done.code, json.loads(done.out)["uploads"][0]["upload_id"]) == (1, newest)
    assert machine.status()["verdict"]["severity"] == "damaged"
    assert machine.sync()["upload_id"] > newest
    assert machine.status()["verdict"]["severity"] == "unknown", "no agent is running"


@pytest.mark.parametrize("words", [("verify",), ("uploads", "show"), ("uploads",)], ids=["verify", "show", "uploads"])
def test_the_warning_of_a_damaged_upload_ends_when_a_command_finds_it_gone(machine, words):
    damaged = machine.manifests[-1]["upload_id"]
    damage(machine)
    assert machine.call("verify", "--deep").code == 1
    machine.sync()
    assert [warning["code"] for warning in machine.status()["warnings"]] == ["upload_damaged"]
    assert machine.status()["verdict"]["severity"] == "unknown", "no agent is running"
    shutil.rmtree(machine.bucket / "systems" / "laptop" / "uploads" / damaged)
    machine.call(*words, *((damaged,) if words != ("uploads",) else ()))
    assert machine.status()["warnings"] == []
