"""The documented Python names: the config, and the order of the methods. No test here starts a process."""

import asyncio
import dataclasses
import json
import os
import socket
import threading
from types import SimpleNamespace
from unittest.mock import patch

import pytest

import agent.api
from agent.api import (
    AkoshaSyncConfig,
    CloudSyncMethod,
    CloudUploadError,
    HttpSyncMethod,
    HybridAkoshaSync,
    HybridSyncError,
    SyncError,
    SyncMethod,
    SyncResult,
    reachability,
)
from agent.api.process import Request
from agent.entrypoints.result_document import ResultDocument
from agent.settings.sources import variable

NAMES = {
    "AkoshaSyncConfig", "CloudSyncMethod", "CloudUploadError", "HTTPSyncError", "HttpSyncMethod", "HybridAkoshaSync",
    "HybridSyncError", "SyncError", "SyncMethod", "SyncMethodType", "SyncResult",
}  # fmt: skip
DEFAULTS = {
    "cloud_bucket": "", "cloud_endpoint": "", "cloud_region": "auto", "system_id": "", "upload_on_session_end": True,
    "enable_fallback": True, "force_method": "auto", "upload_timeout_seconds": 300, "max_retries": 3,
    "retry_backoff_seconds": 2.0, "enable_compression": True, "enable_deduplication": True, "chunk_size_mb": 5,
}  # fmt: skip
OTHERS = {
    "cloud_bucket": "memories", "cloud_endpoint": "http://localhost:9000", "cloud_region": "eu-central-1",
    "system_id": "laptop", "upload_on_session_end": False, "enable_fallback": False, "force_method": "http",
    "upload_timeout_seconds": 30, "max_retries": 0, "retry_backoff_seconds": 0.5, "enable_compression": False,
    "enable_deduplication": False, "chunk_size_mb": 7,
}  # fmt: skip


class Own:
    """A user's own method as documented: it uses no class of the agent."""

    def __init__(self, name="mine", *, available=True, outcome=None):
        self.name, self.available, self.outcome, self.asked = name, available, outcome, []

    async def sync(self, upload_reflections=True, upload_knowledge_graph=True, **kwargs):
        self.asked.append((upload_reflections, upload_knowledge_graph))
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome or {"method": self.name, "success": True}

    def is_available(self):
        if isinstance(self.available, Exception):
            raise self.available
        return self.available

    def get_method_name(self):
        return self.name


def hybrid(*methods, **fields):
    made = HybridAkoshaSync(AkoshaSyncConfig(**fields))
    made.methods[:] = methods
    return made


def names(made):
    return [method.get_method_name() for method in made.methods]


def test_the_names_are_the_documented_ones():
    assert set(agent.api.__all__) == NAMES


# ----------------------------------------------------------------------------------------------------------- the config


def test_the_config_has_the_13_settings_with_their_defaults_and_is_frozen():
    config = AkoshaSyncConfig()
    assert dataclasses.asdict(config) == DEFAULTS
    assert config.validate() == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.cloud_bucket = "memories"


def test_from_settings_reads_the_attributes_and_uses_defaults_for_missing_ones():
    full = SimpleNamespace(**{f"akosha_{name}": value for name, value in OTHERS.items()}, log_level="INFO")
    assert dataclasses.asdict(AkoshaSyncConfig.from_settings(full)) == OTHERS
    some = SimpleNamespace(akosha_cloud_bucket=" memories ", akosha_system_id=None, akosha_max_retries=0)
    assert AkoshaSyncConfig.from_settings(some) == AkoshaSyncConfig(cloud_bucket="memories", max_retries=0)
    assert AkoshaSyncConfig.from_settings(object()) == AkoshaSyncConfig()


@pytest.mark.parametrize(
    "fields",
    [
        OTHERS,
        {"cloud_endpoint": "file:///mnt/nas", "force_method": "cloud"},
        {"cloud_bucket": "a.b-c", "cloud_endpoint": "https://s3.eu-west-1.amazonaws.com", "force_method": "CLOUD"},
        {"cloud_endpoint": "http://127.0.0.1:8682/mcp", "force_method": "http"},
    ],
)
def test_valid_configs_have_no_problems(fields):
    assert AkoshaSyncConfig(**fields).validate() == []


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"cloud_bucket": "ab"}, "3 to 63"),
        ({"cloud_bucket": "My_Bucket"}, "lower-case"),
        ({"cloud_bucket": "-memories"}, "at both ends"),
        ({"cloud_bucket": "192.168.0.1"}, "not an IP address"),
        ({"cloud_bucket": 7}, "a text"),
        ({"cloud_endpoint": "http://s3.example.com"}, "unencrypted"),
        ({"cloud_endpoint": "ftp://s3.example.com"}, "https://"),
        ({"cloud_region": "eu west"}, "region"),
        ({"system_id": "..."}, "system ID"),
        ({"enable_fallback": "perhaps"}, "true or false"),
        ({"force_method": "ftp"}, "auto, cloud or http"),
        ({"force_method": "cloud"}, "akosha_cloud_bucket"),
        ({"upload_timeout_seconds": 0}, "from 1 to"),
        ({"max_retries": True}, "a number"),
        ({"retry_backoff_seconds": float("nan")}, "a number"),
        ({"chunk_size_mb": 101}, "from 1 to 100"),
    ],
)
def test_a_problem_names_the_setting_and_the_allowed_values(fields, expected):
    (problem,) = AkoshaSyncConfig(**fields).validate()
    assert problem.startswith(f"akosha_{next(iter(fields))} is ")
    assert expected in problem


def test_all_problems_are_listed_at_once_without_passwords():
    config = AkoshaSyncConfig(cloud_bucket="A", cloud_endpoint="https://me:canary@s3.example.com", chunk_size_mb=0)
    problems = config.validate()
    assert [problem.split()[0] for problem in problems] == [
        "akosha_cloud_bucket", "akosha_cloud_endpoint", "akosha_chunk_size_mb",
    ]  # fmt: skip
    assert "canary" not in str(problems)


@pytest.mark.parametrize(
    ("bucket", "endpoint", "forced", "fallback", "configured", "cloud", "http"),
    [
        ("", "", "auto", True, False, False, True),
        ("", "", "auto", False, False, False, True),
        ("", "", "http", True, False, False, True),
        ("", "http://localhost:8682/mcp", "auto", True, False, False, True),
        ("memories", "", "auto", True, True, True, True),
        ("memories", "", "auto", False, True, True, False),
        ("memories", "", "cloud", True, True, True, False),
        ("memories", "", "http", False, True, False, True),
        ("", "file:///mnt/nas", "auto", False, True, True, False),
    ],
)
def test_a_config_selects_its_methods(bucket, endpoint, forced, fallback, configured, cloud, http):
    config = AkoshaSyncConfig(
        cloud_bucket=bucket, cloud_endpoint=endpoint, force_method=forced, enable_fallback=fallback
    )
    assert (config.cloud_configured, config.should_use_cloud, config.should_use_http) == (configured, cloud, http)


def test_the_system_id_is_the_setting_or_the_agents_or_the_host_name(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "my.mac.local")
    monkeypatch.setenv("AKOSHA_AGENT_STATE_DIR", str(tmp_path))
    identity = tmp_path / "identity.json"
    assert AkoshaSyncConfig(system_id="my laptop").system_id_resolved == "my-laptop"
    assert AkoshaSyncConfig().system_id_resolved == "my-mac-local"
    for damaged in ("", "[]", '{"system_id": "a/b"}', '{"system_id": ""}'):
        identity.write_text(damaged)
        assert AkoshaSyncConfig().system_id_resolved == "my-mac-local"
    identity.write_text(json.dumps({"agent_id": "0" * 32, "system_id": "desk"}))
    assert AkoshaSyncConfig().system_id_resolved == "desk"
    (tmp_path / "system-id").write_text("of-its-service\n")
    assert AkoshaSyncConfig().system_id_resolved == "of-its-service"
    monkeypatch.setenv("AKOSHA_SYSTEM_ID", "set here")
    assert AkoshaSyncConfig().system_id_resolved == "set-here"
    monkeypatch.setattr(socket, "gethostname", lambda: "...")
    with pytest.raises(ValueError, match="akosha_system_id"):
        AkoshaSyncConfig(system_id="?").system_id_resolved  # noqa: B018


@pytest.mark.parametrize("fields", [DEFAULTS, OTHERS])
def test_the_child_process_uses_exactly_the_13_values_of_the_config(tmp_path, monkeypatch, fields):
    """They override the environment and all files, even if empty, except for an empty system ID."""
    elsewhere = OTHERS if fields is DEFAULTS else DEFAULTS
    settings = tmp_path / ".claude" / "settings" / "local.yaml"
    settings.parent.mkdir(parents=True)
    lines = [f"akosha_{name}: {json.dumps(value)}" for name, value in elsewhere.items()]
    settings.write_text("\n".join([*lines, "akosha_http_endpoint: http://localhost:1234/mcp"]))
    monkeypatch.chdir(tmp_path)
    environ = {"HOME": str(tmp_path), "AKOSHA_CLOUD_BUCKET": "short"}
    environ |= {variable(name): str(value) for name, value in elsewhere.items() if name != "max_retries"}
    with patch.dict(os.environ, environ, clear=True):
        config, data_dir = AkoshaSyncConfig(**fields), str(tmp_path / "data")
        request = Request(config=config, method="http", data_dir=data_dir, upload_reflections=False)
        assert Request.decode(request.encode()) == request
        seen = request.load().settings
    expected = fields | {"system_id": fields["system_id"] or elsewhere["system_id"]}
    assert {name: getattr(seen, name) for name in fields} == expected
    assert (seen.agent_data_dir, seen.http_endpoint) == (tmp_path / "data", "http://localhost:1234/mcp")


# ---------------------------------------------------------------------------------------------------------- the methods


def test_own_and_built_in_methods_are_sync_methods():
    config = AkoshaSyncConfig(cloud_bucket="memories")
    for method in (CloudSyncMethod(config), HttpSyncMethod(config), Own()):
        assert isinstance(method, SyncMethod)
    assert not isinstance(SimpleNamespace(sync=1, is_available=2), SyncMethod)


@pytest.mark.parametrize("fields", [{"cloud_bucket": "My_Bucket"}, {"cloud_bucket": "abc", "chunk_size_mb": 0}, {}])
def test_a_cloud_method_rejects_an_invalid_config_and_one_without_a_bucket(fields):
    with pytest.raises(ValueError, match="akosha_c"):
        CloudSyncMethod(AkoshaSyncConfig(**fields))


def test_the_methods_are_the_cloud_if_configured_then_http():
    assert names(HybridAkoshaSync(AkoshaSyncConfig())) == ["http"]
    for fields in ({"cloud_bucket": "memories"}, {"cloud_endpoint": "file:///mnt/nas"}):
        assert names(HybridAkoshaSync(AkoshaSyncConfig(**fields))) == ["cloud", "http"]


def test_the_type_of_a_result_has_all_its_fields():
    """A failure is raised, so a result never has `retry_at`."""
    assert set(ResultDocument.model_fields) - {"retry_at"} == set(SyncResult.__annotations__)
    assert SyncResult.__required_keys__ == {
        "method", "success", "files_uploaded", "bytes_transferred", "duration_seconds", "upload_id", "error",
        "triggered_by",
    }  # fmt: skip


def test_a_target_that_does_not_answer_in_time_counts_as_available():
    gate = threading.Event()
    assert reachability.within(lambda: not gate.wait(), seconds=0.01)
    gate.set()
    assert not reachability.within(lambda: not gate.wait())


def test_a_directory_is_available_if_it_or_its_parent_is_writable(tmp_path):
    def cloud(folder):
        return CloudSyncMethod(AkoshaSyncConfig(cloud_endpoint=folder.as_uri()))

    assert cloud(tmp_path).is_available()
    assert cloud(tmp_path / "new").is_available()
    assert not cloud(tmp_path / "missing" / "new").is_available()
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    (tmp_path / "file").touch()
    assert not cloud(tmp_path / "link").is_available()
    assert not cloud(tmp_path / "file").is_available()


# ----------------------------------------------------------------------------------------------------------- one by one


async def test_the_first_method_that_delivers_is_the_last_one_called():
    first, second = Own("mine"), Own("other")
    result = await hybrid(first, second).sync_memories(upload_knowledge_graph=False)
    assert result == {"method": "mine", "success": True}
    assert (first.asked, second.asked) == ([(True, False)], [])


async def test_an_own_method_can_be_inserted_first_with_the_others_as_fallback():
    made = HybridAkoshaSync(AkoshaSyncConfig(cloud_bucket="memories"))
    made.methods.insert(0, Own(outcome=RuntimeError("no luck")))
    made.methods[1:] = [Own("other", available=False), Own("third")]
    assert (await made.sync_memories())["method"] == "third"
    assert made.methods[1].asked == []


async def test_if_all_methods_fail_the_errors_are_reported_in_order():
    given = [
        Own("raises", outcome=OSError("disk gone")),
        Own("returns", outcome={"method": "returns", "success": False, "error": "refused"}),
        Own("away", available=False),
        Own("asked", available=ValueError("what?")),
        Own("silent", outcome=ZeroDivisionError()),
    ]
    with pytest.raises(HybridSyncError) as caught:
        await hybrid(*given).sync_memories()
    error = caught.value
    assert error.errors == [
        {"method": "raises", "error": "disk gone"},
        {"method": "returns", "error": "refused"},
        {"method": "away", "error": "not available: it cannot be reached"},
        {"method": "asked", "error": "what?"},
        {"method": "silent", "error": "ZeroDivisionError"},
    ]
    assert error.method == "auto"
    assert "raises: disk gone; returns: refused; away: not" in str(error)
    assert isinstance(error.__cause__, ExceptionGroup)
    assert error.__cause__.exceptions[0] is given[0].outcome


async def test_without_fallback_only_the_first_method_is_tried():
    second = Own("other")
    with pytest.raises(HybridSyncError) as caught:
        await hybrid(Own(outcome=OSError("x")), second, enable_fallback=False).sync_memories()
    assert (caught.value.errors, second.asked) == ([{"method": "mine", "error": "x"}], [])


async def test_without_methods_a_sync_fails():
    with pytest.raises(HybridSyncError, match="no sync method") as caught:
        await hybrid().sync_memories()
    assert caught.value.errors == []


async def test_only_a_forced_method_is_tried_and_its_error_is_raised_unchanged():
    first, second = Own("mine"), Own("other", outcome=OSError("x"), available=False)
    with pytest.raises(OSError, match="x") as caught:
        await hybrid(first, second).sync_memories(force_method="other")
    assert caught.value is second.outcome
    assert first.asked == []
    second.outcome = {"success": False, "error": "refused"}
    with pytest.raises(SyncError, match="refused") as refused:
        await hybrid(first, second).sync_memories(force_method="other")
    assert refused.value.method == "other"


async def test_the_configs_forced_method_is_used_unless_the_call_names_one():
    cloud, http = Own("cloud"), Own("http")
    made = hybrid(cloud, http, force_method="http")
    assert (await made.sync_memories())["method"] == "http"
    assert (await made.sync_memories(force_method="cloud"))["method"] == "cloud"


async def test_an_unknown_method_name_is_a_value_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="'ftp'; known methods: auto, http, mine"):
        await hybrid(Own("mine"), Own("http")).sync_memories(force_method="ftp")
    with pytest.raises(CloudUploadError, match="akosha_cloud_bucket"):
        await hybrid(Own("http")).sync_memories(force_method="cloud")


async def test_a_cancellation_does_not_try_the_next_method():
    second = Own("other")
    with pytest.raises(asyncio.CancelledError):
        await hybrid(Own(outcome=asyncio.CancelledError()), second).sync_memories()
    assert second.asked == []
