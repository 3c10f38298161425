"""The settings model: documented defaults, the rule of each setting, and derived values."""

from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from pydantic import ValidationError

from agent.settings import Settings
from agent.settings.model import SECRET
from agent.settings.validators import EarlierFieldError

DOCUMENTED = {
    "cloud_bucket": "",
    "cloud_endpoint": "",
    "cloud_region": "auto",
    "system_id": "",
    "upload_on_session_end": True,
    "enable_fallback": True,
    "force_method": "auto",
    "upload_timeout_seconds": 300,
    "max_retries": 3,
    "retry_backoff_seconds": 2.0,
    "enable_compression": True,
    "enable_deduplication": True,
    "chunk_size_mb": 5,
    "sync_enabled": True,
    "http_endpoint": "http://localhost:8682/mcp",
    "http_missing_embedding": "wait",
    "ingestion_markers": False,
    "agent_bus": "auto",
    "agent_nats_url": "",
    "agent_nats_user": "",
    "agent_nats_credentials_file": None,
    "agent_nats_nkey_file": None,
    "agent_nats_ca_file": None,
    "agent_nats_certificate_file": None,
    "agent_nats_key_file": None,
    "agent_nats_tls_first": False,
    "agent_nats_allow_plaintext": False,
    "agent_remote_control": False,
    "agent_upload_on_change": True,
    "agent_mirror": True,
    "agent_quiet_seconds": 2.0,
    "agent_deadline_seconds": 30.0,
    "agent_min_interval_seconds": 300.0,
    "agent_rescan_seconds": 60.0,
    "agent_max_upload_kib_per_s": 0,
    "agent_allow_plaintext": "",
    "cloud_sse": "",
    "cloud_sse_kms_key_id": "",
    "cloud_storage_class": "",
    "agent_prune": True,
    "agent_keep_last": 10,
    "agent_keep_daily": 7,
    "agent_keep_weekly": 4,
    "agent_keep_monthly": 12,
    "agent_verify_hours": 24.0,
    "agent_deep_verify_mb": 500,
    "agent_webhooks": (),
    "agent_http_port": 0,
    "agent_log_level": "INFO",
    "agent_log_format": "auto",
    "agent_log_file": None,
    "agent_log_file_mb": 10,
}


def test_the_defaults_are_those_documented():
    settings = Settings()
    assert {key: getattr(settings, key) for key in DOCUMENTED} == DOCUMENTED
    assert {key: getattr(settings, key).get_secret_value() for key in SECRET} == dict.fromkeys(SECRET, "")
    assert settings.agent_data_dir == Path.home() / ".claude" / "data"
    assert settings.agent_state_dir.name == "akosha-agent"
    assert set(Settings.model_fields) == {*DOCUMENTED, *SECRET, "agent_data_dir", "agent_state_dir"}


def test_every_setting_is_described_in_one_line():
    for key, field in Settings.model_fields.items():
        assert field.description, key
        assert "\n" not in field.description
        assert field.description.endswith("."), key


def test_settings_are_frozen_and_unknown_keys_refused():
    with pytest.raises(ValidationError, match="frozen"):
        Settings().max_retries = 4
    with pytest.raises(ValidationError, match="extra"):
        Settings(max_retry=4)


def test_the_model_itself_reads_no_environment(monkeypatch):
    monkeypatch.setenv("CLOUD_BUCKET", "from-nowhere")
    monkeypatch.setenv("SESSION_BUDDY_AKOSHA_CLOUD_BUCKET", "from-nowhere")
    assert Settings().cloud_bucket == ""


@pytest.mark.parametrize(
    ("key", "value", "result"),
    [
        ("max_retries", "7", 7),
        ("max_retries", 0, 0),
        ("chunk_size_mb", "100", 100),
        ("retry_backoff_seconds", "0.5", 0.5),
        ("agent_quiet_seconds", 0, 0.0),
        ("enable_fallback", "No", False),
        ("enable_fallback", "1", True),
        ("sync_enabled", "off", False),
        ("force_method", " HTTP ", "http"),
        ("agent_log_level", "debug", "DEBUG"),
        ("agent_log_level", "warn", "WARNING"),
        ("agent_log_format", "JSON", "json"),
        ("cloud_region", "", "auto"),
        ("http_endpoint", "", "http://localhost:8682/mcp"),
        ("cloud_bucket", " my-bucket\n", "my-bucket"),
        ("agent_data_dir", "~/elsewhere", Path.home() / "elsewhere"),
        ("system_id", "my.mac.local", "my.mac.local"),
        ("agent_nats_ca_file", "~/ca.pem", Path.home() / "ca.pem"),
        ("agent_nats_ca_file", " ", None),
        ("agent_rescan_seconds", "0.1", 0.1),
        ("agent_log_file_mb", "1", 1),
        ("agent_remote_control", "on", True),
    ],
)
def test_texts_are_converted_to_values(key, value, result):
    found = getattr(Settings(**{key: value}), key)
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cloud_bucket", "No_Bucket"),
        ("cloud_bucket", 12345),
        ("cloud_bucket", None),
        ("cloud_endpoint", "ftp://minio.lan"),
        ("cloud_region", "EU West"),
        ("cloud_region", "x@evil.example"),
        ("cloud_region", "evil.example"),
        ("cloud_region", "a\nb"),
        ("system_id", "..."),
        ("system_id", 7),
        ("upload_on_session_end", "perhaps"),
        ("enable_fallback", 2),
        ("enable_compression", ""),
        ("enable_deduplication", []),
        ("sync_enabled", "-1"),
        ("force_method", "grpc"),
        ("agent_webhooks", "x"),
        ("upload_timeout_seconds", 0),
        ("upload_timeout_seconds", 86_401),
        ("upload_timeout_seconds", 1.5),
        ("max_retries", -1),
        ("max_retries", 21),
        ("max_retries", True),
        ("max_retries", "three"),
        ("retry_backoff_seconds", 0),
        ("retry_backoff_seconds", -2.0),
        ("retry_backoff_seconds", "nan"),
        ("retry_backoff_seconds", float("inf")),
        ("retry_backoff_seconds", True),
        ("chunk_size_mb", 0),
        ("chunk_size_mb", 101),
        ("http_endpoint", "file:///mcp"),
        ("http_missing_embedding", "guess"),
        ("ingestion_markers", "maybe"),
        ("http_token", "two\nlines"),
        ("http_token", "tökén"),
        ("http_token", 12345),
        ("agent_data_dir", "~no-such-user-here/x"),
        ("agent_data_dir", "a\0b"),
        ("agent_data_dir", "a\ud800b"),
        ("agent_data_dir", f"/{'x' * 256}/y"),
        ("agent_data_dir", "/x" * 2048),
        ("agent_data_dir", 5),
        ("agent_state_dir", ""),
        ("agent_bus", "kafka"),
        ("agent_nats_url", "http://nats.lan"),
        ("agent_nats_url", "nats://"),
        ("agent_nats_url", "nats://user:@nats.lan"),
        ("agent_nats_user", "a\tb"),
        ("agent_nats_user", 7),
        ("agent_nats_password", "two\nlines"),
        ("agent_nats_password", "without-a-user"),
        ("agent_nats_token", "two\nlines"),
        ("agent_nats_token", 12345),
        ("agent_nats_credentials_file", 5),
        ("agent_nats_credentials_file", "a\0b"),
        ("agent_nats_nkey_seed", "SU"),
        ("agent_nats_nkey_seed", f"SA{'A' * 56}"),
        ("agent_nats_nkey_seed", f"SU{'A' * 55}"),
        ("agent_nats_nkey_seed", f"SU{'A' * 57}"),
        ("agent_nats_nkey_seed", f"SU{'A' * 55}1"),
        ("agent_nats_nkey_seed", f"su{'a' * 56}"),
        ("agent_nats_nkey_file", "~no-such-user-here/x"),
        ("agent_nats_ca_file", Path()),
        ("agent_nats_certificate_file", True),
        ("agent_nats_key_file", []),
        ("agent_nats_key_file", "without-a-certificate.pem"),
        ("agent_nats_tls_first", "maybe"),
        ("agent_nats_allow_plaintext", "maybe"),
        ("agent_allow_plaintext", "http://nas.lan"),
        ("agent_allow_plaintext", "nas.lan:9000"),
        ("agent_allow_plaintext", {}),
        ("agent_remote_control", "perhaps"),
        ("agent_upload_on_change", "sometimes"),
        ("agent_mirror", "sometimes"),
        ("agent_quiet_seconds", -0.1),
        ("agent_deadline_seconds", 0),
        ("agent_deadline_seconds", "nan"),
        ("agent_rescan_seconds", True),
        ("agent_rescan_seconds", 604_801),
        ("agent_min_interval_seconds", -1),
        ("agent_min_interval_seconds", 604_801),
        ("agent_rescan_seconds", 0),
        ("agent_log_level", "LOUD"),
        ("agent_log_format", "xml"),
        ("agent_log_file_mb", 0),
        ("agent_log_file", "a\0b"),
        ("agent_log_file", "a\ud800b"),
        ("cloud_sse", "rot13"),
        ("cloud_storage_class", "two words"),
        ("cloud_sse_kms_key_id", "a\nb"),
        ("agent_keep_last", -1),
        ("agent_keep_daily", 1.5),
        ("agent_keep_weekly", "all"),
        ("agent_keep_monthly", 100_001),
        ("agent_verify_hours", -1),
        ("agent_deep_verify_mb", -1),
        ("agent_prune", "maybe"),
        ("agent_http_port", 65_536),
        ("agent_http_port", True),
        ("agent_http_token", "two words"),
        ("agent_max_upload_kib_per_s", -1),
    ],
)
def test_a_value_outside_its_rule_is_refused(key, value):
    with pytest.raises(ValidationError) as caught:
        Settings(**{key: value})
    assert [error["loc"] for error in caught.value.errors()] == [(key,)]


def test_every_setting_has_a_value_that_is_refused():
    """The table above covers every key."""
    marks = test_a_value_outside_its_rule_is_refused.pytestmark
    assert {row[0] for row in marks[0].args[1]} == set(Settings.model_fields)


def test_a_forced_cloud_needs_a_bucket_or_directory():
    for rest in ({}, {"cloud_endpoint": "https://s3.example"}, {"cloud_endpoint": "https://akosha.example/mcp"}):
        with pytest.raises(ValidationError, match="akosha_cloud_bucket"):
            Settings(force_method="cloud", **rest)
    assert Settings(force_method="cloud", cloud_bucket="bucket").route == ("cloud",)
    assert Settings(force_method="cloud", cloud_endpoint="file:///mnt/nas").route == ("cloud",)


def test_an_invalid_bucket_with_a_forced_cloud_is_one_error():
    with pytest.raises(ValidationError) as caught:
        Settings(force_method="cloud", cloud_bucket="X")
    assert [error["loc"] for error in caught.value.errors()] == [("cloud_bucket",)]


def test_the_nats_bus_needs_an_address():
    with pytest.raises(ValidationError, match="akosha_agent_nats_url"):
        Settings(agent_bus="nats")
    assert Settings(agent_bus="nats", agent_nats_url="nats://localhost").agent_bus == "nats"


@pytest.mark.parametrize(
    ("given_settings", "configured", "route"),
    [
        ({}, False, ("http",)),
        ({"cloud_bucket": "bucket"}, True, ("cloud", "http")),
        ({"cloud_bucket": "bucket", "enable_fallback": False}, True, ("cloud",)),
        ({"cloud_bucket": "bucket", "force_method": "http"}, True, ("http",)),
        ({"cloud_bucket": "bucket", "force_method": "cloud"}, True, ("cloud",)),
        ({"cloud_endpoint": "file:///mnt/nas"}, True, ("cloud", "http")),
        ({"cloud_endpoint": "https://s3.example"}, False, ("http",)),
        ({"cloud_endpoint": "https://akosha.example/mcp"}, False, ("http",)),
    ],
)
def test_the_route_follows_from_the_settings(given_settings, configured, route):
    settings = Settings(**given_settings)
    assert settings.cloud_configured is configured
    assert settings.route == route


def test_only_a_file_endpoint_has_a_directory():
    assert Settings(cloud_endpoint="file:///mnt/my%20nas").directory == Path("/mnt/my nas")
    assert Settings(cloud_endpoint="https://s3.example", cloud_bucket="bucket").directory is None
    assert Settings().directory is None


def test_without_a_bucket_a_cloud_endpoint_that_ends_in_mcp_is_akoshas_address():
    endpoint = "https://akosha.example/mcp"
    assert Settings(cloud_endpoint=endpoint).http_endpoint == endpoint
    assert Settings(cloud_endpoint=endpoint, http_endpoint="").http_endpoint == endpoint


def test_an_explicit_http_endpoint_or_a_bucket_takes_precedence():
    endpoint, own = "https://akosha.example/mcp", "http://localhost:8682/mcp"
    assert Settings(cloud_endpoint=endpoint, http_endpoint=own).http_endpoint == own
    assert Settings(cloud_endpoint=endpoint, cloud_bucket="bucket").http_endpoint == own


@given(st.sampled_from(sorted(DOCUMENTED)), st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()))
def test_any_invalid_value_is_a_validation_error_of_its_key(key, value):
    try:
        Settings(**{key: value})
    except ValidationError as error:
        refused = error
    else:
        return
    assert [_blamed(detail) for detail in refused.errors()] == [key]


def _blamed(detail):
    reason = detail.get("ctx", {}).get("error")
    return reason.key if isinstance(reason, EarlierFieldError) else detail["loc"][0]


def test_a_kms_key_needs_kms_and_values_are_normalised():
    with pytest.raises(ValidationError, match="needs akosha_cloud_sse: aws:kms"):
        Settings(cloud_sse="AES256", cloud_sse_kms_key_id="key")
    settings = Settings(cloud_sse="AWS:KMS", cloud_sse_kms_key_id="key", cloud_storage_class="standard_ia")
    assert (settings.cloud_sse, settings.cloud_storage_class) == ("aws:kms", "STANDARD_IA")


@pytest.mark.parametrize(("key", "path"), [("cloud_endpoint", ""), ("http_endpoint", "/mcp")])
@pytest.mark.parametrize("allowed", ["", "other.lan", "nas.lan.evil.example", "lan", False])
def test_http_to_another_machine_is_refused_unless_its_host_is_allowed(key, path, allowed):
    with pytest.raises(ValidationError) as caught:
        Settings(**{key: f"http://nas.lan:9000{path}", "agent_allow_plaintext": allowed})
    (detail,) = caught.value.errors()
    assert _blamed(detail) == key
    assert "would be unencrypted to another machine" in str(detail["ctx"]["error"])
    assert "akosha_agent_allow_plaintext: nas.lan" in str(detail["ctx"]["error"])


@pytest.mark.parametrize("key", ["cloud_endpoint", "http_endpoint"])
@pytest.mark.parametrize("allowed", ["nas.lan", "NAS.lan", "10.0.0.2, nas.lan", ["nas.lan", "::1"], True, "true"])
def test_http_is_permitted_to_an_allowed_host(key, allowed):
    settings = Settings(**{key: "http://Nas.lan:9000", "agent_allow_plaintext": allowed})
    assert getattr(settings, key) == "http://Nas.lan:9000"
