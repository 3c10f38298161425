"""`uploads` and `verify` on the command line, with and without a running agent."""

import json

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
    assert "intact, 4 objects" in intact.out
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


@pytest.mark.parametrize("words", [("list",), ("show", "latest")], ids=["list", "show"])
def test_an_option_before_its_subcommand_is_refused(machine, words):
    done = machine.call("uploads", "--system", "other", *words)
    assert (done.code, done.out) == (2, "")
    assert f"--system must follow {words[0]}" in done.err
