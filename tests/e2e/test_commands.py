"""The commands on the command line: their output, its stream, and the exit status."""

import os
import pty
import re
import shutil

import pytest

from agent import __version__
from tests.support import upload_contents
from tests.support.machine import COMMAND, NO_AKOSHA, Machine
from tests.support.session_buddy import REAL, STATES, Checker, Finding

FALLBACK_OFF = "akosha_enable_fallback: false switches the fallback to Akosha off"

PROMISED = {
    "method": str,
    "success": bool,
    "files_uploaded": list,
    "bytes_transferred": int,
    "duration_seconds": float,
    "upload_id": str | None,
    "error": str | None,
    "triggered_by": str,
}
ESCAPE = "\x1b"
ROWS = {name: state.rows for name, state in STATES.items()}


def assert_contract(result: dict) -> None:
    for name, kind in PROMISED.items():
        assert isinstance(result[name], kind), (name, result[name])


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


# ------------------------------------------------------------------------------------------------ usage and settings


def test_shell_completion_lists_the_matching_commands(machine):
    machine.environ |= {"_AKOSHA_AGENT_COMPLETE": "complete_bash", "COMP_WORDS": "akosha-agent se", "COMP_CWORD": "1"}
    done = machine.call(prefix=[COMMAND], directories=False)
    assert (done.code, done.out.split()) == (0, ["service"])


def test_sync_runs_without_standard_streams(machine):
    """Some launchers start a process so: a ledger opened as descriptor 2 would receive the error messages."""
    machine.write(commits=1)
    bare = 'exec "$0" "$@" <&- >&- 2>&-'
    done = machine.call("sync", prefix=["sh", "-c", bare, COMMAND])
    assert (done.code, len(machine.manifests)) == (0, 1)


def test_every_command_has_help(machine):
    done = machine.call(prefix=[COMMAND, "--version"], directories=False)
    assert (done.code, done.out) == (0, f"akosha-agent {__version__}\n")
    overview = machine.call("--help", directories=False)
    assert overview.code == 0
    commands = {
        "run": (),
        "sync": ("--method", "--no-fallback", "--json"),
        "status": ("--json",),
        "events": ("--follow", "--json"),
        "memories": ("--failed", "--json"),
        "mcp": (),
        "config": ("--json", "--all", "set", "unset"),
    }
    running = {command: machine.start(command, "--help", directories=False) for command in commands}
    for command, words in commands.items():
        assert re.search(rf"\b{command}\b", overview.out)
        done = running[command].end()
        assert (done.code, done.err) == (0, "")
        for word in (*words, "--data-dir", "--state-dir", "--settings"):
            assert word in done.out, (command, word)
    assert re.search(r"\bdemo\b", overview.out)


@pytest.mark.parametrize(
    "words", [(), ("upload",), ("sync", "--method", "ftp"), ("status", "--loud"), ("sync", "now")], ids=" ".join
)
def test_a_usage_error_exits_2_with_a_message_on_stderr(machine, words):
    done = machine.call(*words, directories=False)
    assert done.code == 2
    assert not words or (done.out, "Usage" in done.err) == ("", True)


def test_an_invalid_setting_exits_2_and_names_its_key_value_and_source(machine):
    file = machine.home / "mine.yaml"
    file.write_text("akosha_max_retries: many\n")
    machine.set(chunk_size_mb=500)
    done = machine.call("sync", "--json", "--settings", str(file))
    assert (done.code, done.out) == (2, "")
    for text in (
        "akosha_chunk_size_mb is '500' (env SESSION_BUDDY_AKOSHA_CHUNK_SIZE_MB): must be a whole number from 1 to",
        f"akosha_max_retries is 'many' ({file}): must be a whole number from 0 to 20",
    ):
        assert text in done.err
    assert not machine.state.exists()
    assert machine.call("status", "--settings", str(machine.home / "missing.yaml")).code == 2


def test_config_shows_each_value_with_its_source_and_masks_the_token(machine):
    machine.secrets = ("canary-token",)
    machine.set(http_token="canary-token", cloud_bucket="memories", cloud_endpoint=None)
    table, document = machine.call("config", "--all"), machine.call("config", "--json")
    assert (table.code, document.code) == (0, 0)
    for text in (table.out, table.err, document.out, document.err):
        assert ESCAPE not in text
    settings = document.json["settings"]
    assert settings["akosha_http_token"] == {
        "value": "********", "origin": "env SESSION_BUDDY_AKOSHA_HTTP_TOKEN", "default": "",
    }  # fmt: skip
    assert settings["akosha_agent_data_dir"]["value"] == str(machine.data)
    assert settings["akosha_chunk_size_mb"] == {"value": "5", "origin": "default", "default": "5"}
    for key, row in settings.items():
        assert re.search(rf"^{key} .*{re.escape(row['origin'])}", table.out, re.MULTILINE), key


# ------------------------------------------------------------------------------------------------------ no target


def test_sync_without_a_target_names_the_setting(machine):
    machine.write(commits=1, entities=1)
    machine.set(cloud_endpoint=None)
    result = machine.sync(code=1)
    assert_contract(result)
    assert (result["success"], result["upload_id"]) == (False, None)
    assert "akosha_cloud_bucket" in result["error"]
    done = machine.call("sync")
    assert (done.code, done.out) == (1, "")
    assert "akosha_cloud_bucket" in done.err
    assert machine.status()["pending"] == ["knowledge_graph", "reflection"]


def test_sync_without_a_target_and_a_data_directory_names_the_directory(machine):
    machine.data.rmdir()
    machine.set(cloud_endpoint=None)
    done = machine.call("sync")
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[0] == f"http: the data directory {machine.data} does not exist"
    assert "akosha_agent_data_dir" in done.err
    assert "cannot be reached" not in done.err


def test_the_errors_of_two_methods_are_lines_with_their_fixes_below(machine, tmp_path):
    machine.write(commits=1)
    missing = tmp_path / "mnt" / "nas"
    machine.set(cloud_endpoint=missing.as_uri())
    done = machine.call("sync")
    assert done.code == 1
    assert done.err.splitlines() == [
        f"cloud: {missing.as_uri()} cannot be reached",
        f"  is the disk mounted? To make the directory: mkdir -p {missing}",
        f"http: {NO_AKOSHA} cannot be reached",
        f"  start Akosha there, or set akosha_http_endpoint; {FALLBACK_OFF}",
    ]
    shown = machine.call("status").out
    assert (
        f"""
  last error   {missing.as_uri()} cannot be reached
               is the disk mounted? To make the directory: mkdir -p {missing}
"""
        in shown
    )
    assert f"  last error   {NO_AKOSHA} cannot be reached\n" in shown


def test_run_without_a_target_logs_one_failure(machine):
    machine.write(commits=1, entities=1)
    machine.set(cloud_endpoint=None)
    with machine.run() as agent:
        (line,) = agent.logged("sync_failed")
        assert "akosha_cloud_bucket" in line["errors"][0]
        machine.write(commits=1)
    assert [line["event"] for line in agent.log.seen if line["level"] != "info"] == ["sync_failed"]


def test_a_method_that_is_not_configured_is_an_error(machine):
    machine.write(commits=1)
    result = machine.sync("--method", "http", code=1)
    assert_contract(result)
    assert result["method"] == "http"
    assert "http" in result["error"]
    assert machine.manifests == []
    assert machine.sync("--method", "cloud", "--no-fallback")["method"] == "cloud"


def test_with_sync_disabled_changes_are_logged_and_not_synced(machine):
    machine.write(commits=1)
    machine.set(sync_enabled="false")
    done = machine.call("sync", "--json")
    assert (done.code, done.out) == (2, "")
    assert "akosha_sync_enabled" in done.err
    with machine.run() as agent:
        agent.logged("change_ignored")
        machine.write(commits=2)
        first, second = agent.logged("change_ignored", 2)
        assert first["databases"] == second["databases"] == ["reflection"]
    assert not machine.bucket.exists()
    status = machine.status()
    assert (status["sync_enabled"], "reflection" in status["pending"]) == (False, True)


# -------------------------------------------------------------------------------------------------------------- sync


@pytest.mark.skipif(not REAL.is_dir(), reason="the databases made by Session-Buddy's own code are not here")
@pytest.mark.parametrize("state", ROWS)
def test_session_buddys_own_databases_are_uploaded_verified_and_restored_with_all_rows(machine, state, tmp_path):
    """Every command exits with 0 and warns about an older DuckDB or a missing extension where needed."""
    for file in (REAL / state).iterdir():
        shutil.copy(file, machine.data)
    result = machine.sync()
    assert_contract(result)
    (manifest,) = machine.manifests
    conversations, reflections, entities, relationships = ROWS[state]
    arrived = upload_contents.rows(upload_contents.unpack(manifest, machine.object, tmp_path / "arrived"))
    for counted in (arrived, manifest["metadata"]["rows"]):
        assert counted["reflection"]["conversations_v2"] == conversations
        assert counted["reflection"]["reflections_v2"] == reflections
        assert counted["knowledge_graph"]["kg_entities"] == entities
        assert counted["knowledge_graph"]["kg_relationships"] == relationships
    assert (manifest["memories"], manifest["conversation_count"]) == (None, conversations)
    assert manifest["memories_omitted"] == dict.fromkeys(arrived, "there is no base upload")
    assert all(part["verified"] for part in manifest["parts"])
    assert {part["storage_version"] for part in manifest["parts"]} == {STATES[state].storage_version}
    for part in manifest["parts"]:
        assert (tmp_path / "arrived" / part["name"]).read_bytes() == (REAL / state / part["name"]).read_bytes()
    assert {part["name"] for part in manifest["parts"]} == {path.name for path in (REAL / state).iterdir()}
    assert machine.staged == []

    to = tmp_path / "to"
    verified = machine.call("verify", "--deep")
    shown = machine.call("uploads", "show", "latest")
    restored = machine.call("restore", "--to", str(to))
    assert (verified.code, restored.code) == (0, 0), (verified.err, restored.err)
    newer = "needs DuckDB 2.0 or newer (storage version 999): Session-Buddy with an older DuckDB cannot open it"
    for reported in (verified, shown, restored):
        assert (newer in " ".join(reported.out.split())) == (STATES[state].storage_version == 999)
    assert ("warning: restored as it was uploaded" in restored.out) == (not STATES[state].folds)
    assert upload_contents.rows(to) == arrived


def test_only_changed_databases_are_uploaded_again(machine, tmp_path):
    machine.write(commits=20, entities=5)
    first = machine.sync()
    again = machine.sync()
    assert_contract(again)
    assert (again["success"], again["outcome"], again["files_uploaded"]) == (True, "skipped", [])
    assert (again["bytes_transferred"], again["upload_id"]) == (0, None)
    done = machine.call("sync")
    assert (done.code, done.out, done.err) == (0, "nothing has changed since the last sync\n", "")
    assert len(machine.manifests) == 1
    machine.write(commits=25)
    second = machine.sync()
    one, two = machine.manifests
    assert (one["upload_id"], two["upload_id"]) == (first["upload_id"], second["upload_id"])
    assert {part["name"]: part["origin"] for part in two["parts"]} == {
        "reflection.duckdb": "sent", "knowledge_graph.duckdb": "copied",
    }  # fmt: skip
    assert second["files_uploaded"] == [
        *(part["key"] for part in two["parts"]),
        two["memories"]["key"],
        two["parts"][0]["key"].rpartition("/")[0] + "/manifest.json",
    ]
    with Checker() as checker:
        for manifest, last in ((one, 19), (two, 24)):
            folder = upload_contents.unpack(manifest, machine.object, tmp_path / manifest["upload_id"])
            assert checker.check(folder / "reflection.duckdb") == Finding(last, ())
            assert checker.check(folder / "knowledge_graph.duckdb") == Finding(4, ())
    kinds = [event["type"].split(".")[2] for event in machine.events()]
    assert kinds == [
        "requested",
        "succeeded",
        "requested",
        "skipped",
        "requested",
        "skipped",
        "requested",
        "succeeded",
    ]
    lines = machine.call("events")
    assert (lines.code, len(lines.out.splitlines()), ESCAPE in lines.out) == (0, 8, False)


def test_an_upload_id_is_later_than_all_in_the_bucket(machine):
    """The clock was set back by a day; with the ledger and without it."""
    machine.write(commits=1, entities=1)
    first = machine.sync()["upload_id"]
    tomorrow = "20991231_235958_laptop"
    uploads = machine.bucket / "systems" / "laptop" / "uploads"
    manifest = (uploads / first / "manifest.json").read_text().replace(first, tomorrow)
    shutil.copytree(uploads / first, uploads / tomorrow)
    (uploads / tomorrow / "manifest.json").write_text(manifest)
    machine.write(commits=2)
    assert machine.sync()["upload_id"] == "20991231_235959_laptop"
    shutil.rmtree(machine.state)
    machine.write(commits=3)
    assert machine.sync()["upload_id"] == "21000101_000000_laptop"
    assert [part["database"] for part in machine.manifests[-1]["parts"]] == ["knowledge_graph", "reflection"]


def test_progress_is_shown_on_a_terminal_only(machine):
    machine.write(commits=5)
    controller, terminal = pty.openpty()
    shown = bytearray()
    with machine.started("sync", stderr=terminal) as syncing:
        os.close(terminal)
        while piece := _read(controller):
            shown += piece
        assert syncing.end().code == 0
    os.close(controller)
    assert ESCAPE in shown.decode()
    assert "looking for changes" in shown.decode()
    assert "%  " in shown.decode()
    machine.write(commits=6)
    piped = machine.call("sync")
    assert (piped.code, piped.err, ESCAPE in piped.out) == (0, "", False)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # Linux: the other side is closed
        return b""


def test_a_state_directory_within_the_data_directory_is_refused(machine):
    machine.write(commits=1)
    machine.state = machine.data / "state"
    done = machine.call("sync")
    assert (done.code, "--state-dir" in done.err) == (1, True)
    assert not machine.state.exists()


def test_a_dry_run_shows_what_would_be_sent_and_changes_nothing(machine):
    machine.write(commits=5, entities=1)
    first = machine.call("sync", "--dry-run").out
    assert f"a sync would go to {machine.bucket.as_uri()} as laptop" in first
    assert "whole, about" in first
    assert machine.manifests == []
    machine.sync()
    machine.write(commits=6)
    before = machine.call("events", "--json").out, machine.status()["targets"], sorted(machine.bucket.rglob("*"))
    shown = machine.call("sync", "--dry-run", "--json").json
    assert {database["name"]: database["step"] for database in shown["databases"]} == {
        "knowledge_graph": "unchanged", "reflection": "send",
    }  # fmt: skip
    assert shown["most_bytes"] > 0
    after = machine.call("events", "--json").out, machine.status()["targets"], sorted(machine.bucket.rglob("*"))
    assert after == before
