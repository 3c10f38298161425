"""doctor's checks of the settings, of Session-Buddy's built-in sync, and of versions."""

import os
import re
import sys
from pathlib import Path

import pytest

from agent.domain.errors import SettingsError
from agent.entrypoints.doctor import agent_checks, delivery_checks, settings_checks
from agent.entrypoints.doctor.context import DoctorContext
from agent.entrypoints.doctor.findings import Level
from agent.settings import Settings, load

CANARY = "canary-token-that-never-appears"


@pytest.fixture
def home(tmp_path):
    (tmp_path / "work").mkdir()
    return tmp_path


def read_context(home, *, environ=None, settings_file=None):
    """Read the settings as the command does, with only this home and these variables."""
    where = {"environ": environ or {}, "cwd": home / "work"}
    try:
        loaded = load(settings_file=settings_file, home=home, **where)
    except SettingsError as problem:
        settings = Settings(agent_data_dir=home / "data")
        return DoctorContext(settings=settings, settings_error=problem, user_home=home, **where)
    return DoctorContext(
        settings=loaded.settings, origins=loaded.origins, warnings=loaded.warnings, user_home=home, **where
    )


def write(home, name, text):
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


async def test_valid_settings_are_reported_with_their_sources(home):
    write(home, ".claude/settings/local.yaml", "akosha_max_retries: 5\nakosha_system_id: laptop\n")
    (found,) = await settings_checks.sources(read_context(home, environ={"AKOSHA_CLOUD_REGION": "eu-1"}))
    assert found.level is Level.OK
    assert "3 set" in found.found
    assert "~/.claude/settings/local.yaml (2)" in found.found
    assert "the environment (1)" in found.found


async def test_each_invalid_value_is_an_error_with_its_source_and_no_secret(home):
    write(home, ".claude/settings/local.yaml", "akosha_max_retries: many\nakosha_chunk_size_mb: 0\n")
    found = await settings_checks.sources(
        read_context(home, environ={"SESSION_BUDDY_AKOSHA_HTTP_TOKEN": f"{CANARY}\n{CANARY}"})
    )
    assert {one.level for one in found} == {Level.ERROR}
    assert any("akosha_max_retries" in one.found and "~/.claude/settings/local.yaml" in one.found for one in found)
    assert any("akosha_chunk_size_mb" in one.found for one in found)
    assert all(one.hint for one in found)
    assert CANARY not in repr(found)


async def test_a_file_that_is_not_yaml_is_an_error_with_its_line(home):
    write(home, ".claude/settings/local.yaml", "akosha_http_token: 'x\n")
    (found,) = await settings_checks.sources(read_context(home))
    assert found.level is Level.ERROR
    assert "line" in found.found


async def test_unknown_keys_are_warnings(home):
    write(home, ".claude/settings/local.yaml", "akosha_max_retrys: 5\n")
    environ = {"AKOSHA_AGENT_STATEDIR": "/somewhere"}
    _, first, second = await settings_checks.sources(read_context(home, environ=environ))
    assert (first.level, second.level) == (Level.WARNING, Level.WARNING)
    assert "akosha_max_retries" in first.found + second.found
    assert "akosha-agent config" in first.hint


async def built_in(home, **options):
    (found,) = await settings_checks.built_in_sync(read_context(home, **options))
    return found


async def test_the_built_in_sync_without_a_bucket_is_ok(home):
    assert (await built_in(home)).level is Level.OK


@pytest.mark.parametrize("name", [".config/session-buddy/config.yaml", "work/settings/session-buddy.yaml"])
async def test_a_bucket_in_session_buddys_own_files_is_a_warning(home, name):
    write(home, name, "akosha_cloud_bucket: memories\n")
    found = await built_in(home)
    assert found.level is Level.WARNING
    assert "session-buddy" in found.found
    assert "akosha_upload_on_session_end: false" in found.hint
    assert "akosha-agent config set upload_on_session_end true" in found.hint


async def test_a_bucket_in_the_environment_is_a_warning_too(home):
    found = await built_in(home, environ={"SESSION_BUDDY_AKOSHA_CLOUD_BUCKET": "memories"})
    assert found.level is Level.WARNING
    assert "env SESSION_BUDDY_AKOSHA_CLOUD_BUCKET" in found.found


async def test_a_bucket_that_only_this_agent_reads_is_ok(home):
    write(home, ".claude/settings/local.yaml", "akosha_cloud_bucket: memories\n")
    assert (await built_in(home)).level is Level.OK


async def test_following_the_hint_leaves_this_agents_session_ends_on(home):
    write(home, ".config/session-buddy/config.yaml", "akosha_cloud_bucket: memories\n")
    write(home, ".config/session-buddy/local.yaml", "akosha_upload_on_session_end: false\n")
    write(home, ".claude/settings/local.yaml", "akosha_upload_on_session_end: true\n")
    found = await built_in(home)
    assert found.level is Level.OK
    assert "~/.config/session-buddy/local.yaml" in found.found
    settings = read_context(home).settings
    assert settings.upload_on_session_end
    assert settings.cloud_bucket == "memories"


async def test_if_a_variable_enables_the_built_in_sync_the_hint_starts_with_it(home):
    environ = {
        "SESSION_BUDDY_AKOSHA_CLOUD_BUCKET": "memories",
        "SESSION_BUDDY_AKOSHA_UPLOAD_ON_SESSION_END": "true",
    }
    found = await built_in(home, environ=environ)
    assert found.hint.startswith("remove akosha_upload_on_session_end from env SESSION_BUDDY_AKOSHA_")


async def test_a_recent_state_file_of_the_built_in_sync_is_a_warning_and_an_old_one_is_not(home):
    write(home, ".claude/data/akosha_sync_state.json", "{}")
    found = await built_in(home)
    assert found.level is Level.WARNING
    assert "it ran at" in found.found
    os.utime(home / ".claude/data/akosha_sync_state.json", (0, 0))
    assert (await built_in(home)).level is Level.OK


@pytest.mark.parametrize(
    ("ahead", "level"),
    [
        (0.4, Level.OK),
        (-59, Level.OK),
        (61, Level.WARNING),
        (-299, Level.WARNING),
        (300, Level.ERROR),
        (-7200, Level.ERROR),
    ],
)
def test_a_clock_off_by_a_minute_is_a_warning_and_by_five_an_error(ahead, level):
    (found,) = delivery_checks._compared("Akosha's", ahead)
    assert found.level is level
    assert ("behind" in found.found) is (level is not Level.OK and ahead > 0)


async def test_the_versions_name_all_libraries_that_a_report_needs():
    (found,) = await agent_checks.versions(None)
    assert found.level is Level.OK, found
    assert "Python" in found.found
    assert all(name in found.detail for name in ("duckdb 2", "botocore", "nats-py", "watchfiles"))


async def test_a_library_older_than_required_is_an_error(tmp_path, monkeypatch):
    """For example, after `pip install` of another package into the same environment. The metadata has the version."""
    folder = tmp_path / "duckdb-1.4.3.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: duckdb\nVersion: 1.4.3\n")
    monkeypatch.syspath_prepend(tmp_path)
    (found,) = await agent_checks.versions(None)
    assert found.level is Level.ERROR
    assert "duckdb 1.4.3 is older than 2.0" in found.found
    assert "reinstall akosha-agent" in found.hint


async def test_a_library_newer_than_tested_is_an_error(monkeypatch):
    """Libraries of which private parts are used are capped; `pip install` of another package may ignore the cap."""
    needed = [
        "aiohttp<3.1,>=3.0",
        "mcp<99,>=1.27",
        "isal>=99; platform_machine in 'x86_64'",
        "nats-py[nkeys]<2.13,>=2.12",
    ]
    monkeypatch.setattr(agent_checks.metadata, "requires", lambda _name: needed)
    (found,) = await agent_checks.versions(None)
    assert found.level is Level.ERROR
    assert re.findall(r"(\S+) \S+ is not older than (\S+?)(?:,|$)", found.found) == [
        ("aiohttp", "3.1"),
        ("nats-py", "2.13"),
    ]


async def test_a_missing_duckdb_is_an_error(tmp_path, monkeypatch):
    from agent.entrypoints.doctor import machine_checks

    settings = Settings(agent_data_dir=tmp_path, agent_state_dir=tmp_path / "state")
    monkeypatch.setattr(sys, "path", [str(Path(tmp_path))])
    first, *_ = await machine_checks.databases(DoctorContext(settings=settings))
    assert first.level is Level.ERROR
    assert "duckdb" in first.found
