"""Loading settings: precedence, the origin of each value, the limits of a project's files, and the messages."""

import subprocess
import sys
from dataclasses import FrozenInstanceError
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from agent.adapters.nats.options import DAY, Limits as NatsLimits, Patience
from agent.application.ingest.upload_ingester import Limits as UploadLimits
from agent.bootstrap.methods import BATCH_SIZE
from agent.domain.errors import SettingsError
from agent.domain.plain_text import MASK
from agent.settings import Settings, load, model, settings_table, variable
from agent.settings.display import allowed
from agent.settings.endpoints import BUCKETS
from agent.settings.sources import REMOVED
from tests.support.machine import Machine

SEED = f"SU{'EVIL' * 14}"

# The documented order, high to low: name of the source in messages -> where the source is.
ORDER = {
    "command line": "command line",
    "env SESSION_BUDDY_AKOSHA_SYSTEM_ID": "env",
    "env AKOSHA_SYSTEM_ID": "env",
    "named.yaml": "cwd",
    "~/.config/akosha-agent/config.yaml": "home",
    "./settings/local.yaml": "cwd",
    "./settings/session-buddy.yaml": "cwd",
    "~/.claude/settings/local.yaml": "home",
    "~/.claude/settings/session-buddy.yaml": "home",
    "~/.config/session-buddy/local.yaml": "home",
    "~/.config/session-buddy/config.yaml": "home",
}
PROJECT_FILES = ("./settings/local.yaml", "./settings/session-buddy.yaml")
PROJECT_KEYS = {"agent_log_level": "ERROR", "chunk_size_mb": "9", "max_retries": "1", "retry_backoff_seconds": "9"}
"""The keys that an unnamed file in the working directory can set, with values that are not the default."""

HOSTILE = {
    "agent_webhooks": "[{url: https://evil.example, events: [succeeded]}]",
    "cloud_bucket": "evil-bucket",
    "cloud_endpoint": "https://evil.example",
    "cloud_region": "evil",
    "system_id": "victim",
    "cloud_sse": "AES256",
    "cloud_sse_kms_key_id": "evil",
    "cloud_storage_class": "DEEP_ARCHIVE",
    "force_method": "http",
    "http_endpoint": "https://evil.example/mcp",
    "http_missing_embedding": "zero",
    "http_token": "evil",
    "agent_allow_plaintext": "true",
    "agent_bus": "memory",
    "agent_log_format": "json",
    "agent_nats_url": "nats://evil.example",
    "agent_nats_user": "evil",
    "agent_nats_password": "evil",
    "agent_nats_token": "evil",
    "agent_nats_nkey_seed": SEED,
    "agent_http_token": "evil",
    "agent_prune": "false",
    "agent_upload_on_change": "false",
    "enable_compression": "false",
    "enable_deduplication": "false",
    "enable_fallback": "false",
    "sync_enabled": "false",
    "upload_on_session_end": "false",
    **dict.fromkeys(sorted(model.PATHS), "/evil"),
}
"""Valid values that are not the default. For any other key, a number is valid."""
PAIRS = {
    "agent_nats_user": "agent_nats_password",
    "agent_nats_password": "agent_nats_user",
    "agent_nats_certificate_file": "agent_nats_key_file",
    "agent_nats_key_file": "agent_nats_certificate_file",
    "cloud_sse_kms_key_id": "cloud_sse",
}
"""Keys that are valid only together with another key."""


class World:
    """A working directory, a home directory and an environment, all initially empty."""

    def __init__(self, root):
        self.cwd, self.home, self.environ = root / "cwd", root / "home", {}
        self.command_line, self.settings_file = {}, None
        self.cwd.mkdir()
        self.home.mkdir()

    def write(self, name, text):
        path = self.home / name[2:] if name.startswith("~/") else self.cwd / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def put(self, source, key, value):
        if source == "command line":
            self.command_line[key] = value
        elif source.startswith("env "):
            self.environ[source[4:]] = value
        else:
            self.write(source, f"akosha_{key}: {value}\n")
            if source == "named.yaml":
                self.settings_file = Path(source)

    def put_the_other_of_the_pair(self, key):
        if key in PAIRS:
            self.environ[variable(PAIRS[key])] = "aws:kms" if PAIRS[key] == "cloud_sse" else "other"

    def load(self):
        return load(
            command_line=self.command_line,
            settings_file=self.settings_file,
            environ=self.environ,
            cwd=self.cwd,
            home=self.home,
        )


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


# ---------------------------------------------------------------------------------- Session-Buddy's own data directory


def data_dir(world):
    loaded = world.load()
    return loaded.settings.agent_data_dir, loaded.origins["agent_data_dir"], loaded.warnings


@pytest.mark.parametrize("name", [name for name in ORDER if name.startswith("~/") and "akosha-agent" not in name])
def test_the_data_dir_of_session_buddy_is_the_default_and_its_file_is_named(world, name):
    world.write(name, "data_dir: ~/memories\nlog_level: INFO\n")
    assert data_dir(world) == (world.home / "memories", f"data_dir in {name}", ())


def test_an_explicit_data_directory_of_the_agent_has_priority(world):
    world.environ["SESSION_BUDDY_DATA_DIR"] = "/elsewhere"
    world.write("~/.claude/settings/local.yaml", "data_dir: /elsewhere\n")
    world.write("~/.config/session-buddy/config.yaml", "akosha_agent_data_dir: /mine\n")
    assert data_dir(world)[:2] == (Path("/mine"), "~/.config/session-buddy/config.yaml")


def test_the_variable_of_session_buddy_has_priority_over_its_files(world):
    world.write("~/.claude/settings/session-buddy.yaml", "data_dir: /low\n")
    world.write("~/.claude/settings/local.yaml", "data_dir: ${BASE}/${MORE:-high}\n")
    world.environ["BASE"] = "/base"
    assert data_dir(world)[:2] == (Path("/base/high"), "data_dir in ~/.claude/settings/local.yaml")
    world.environ["SESSION_BUDDY_DATA_DIR"] = "relative/data"
    assert data_dir(world)[:2] == (world.cwd / "relative/data", "env SESSION_BUDDY_DATA_DIR")


def test_a_projects_file_does_not_choose_the_data_directory(world):
    world.write("settings/local.yaml", "data_dir: /evil\n")
    found, origin, (warning,) = data_dir(world)
    assert (found, origin) == (world.home / ".claude" / "data", "default")
    assert warning.startswith("data_dir in ./settings/local.yaml is ignored")
    world.write("settings/local.yaml", "data_dir: ~/.claude/data\n")
    assert data_dir(world)[2] == ()


def test_a_named_file_of_the_project_chooses_the_data_directory(world):
    world.write("settings/local.yaml", "data_dir: chosen\n")
    world.settings_file = Path("settings/local.yaml")
    assert data_dir(world) == (world.cwd / "chosen", "data_dir in settings/local.yaml", ())


@pytest.mark.parametrize("value", ["5", "[a]", "{a: b}", "~nobody-of-this-name/data"])
def test_an_invalid_data_dir_causes_a_warning_and_is_ignored(world, value):
    world.write("~/.claude/settings/local.yaml", f"data_dir: {value}\n")
    found, origin, (warning,) = data_dir(world)
    assert (found, origin) == (world.home / ".claude" / "data", "default")
    assert "is ignored: it is not a valid path" in warning


# ------------------------------------------------------------------------------------------------------ precedence


def rivals():
    """Yield all pairs of sources for one key. No key has both a short variable and a project's file as sources."""
    for high, low in combinations(ORDER, 2):
        if high != "env AKOSHA_SYSTEM_ID" or low not in PROJECT_FILES:
            yield high, low


@pytest.mark.parametrize(("high", "low"), list(rivals()))
def test_the_higher_source_wins_and_is_named(world, high, low):
    key, lesser, greater = ("system_id", "low", "high")
    if {high, low} & {*PROJECT_FILES}:
        key, lesser, greater = ("max_retries", "1", "2")
        high = high.replace("SYSTEM_ID", "MAX_RETRIES")
    world.put(low, key, lesser)
    world.put(high, key, greater)
    loaded = world.load()
    assert str(getattr(loaded.settings, key)) == greater
    assert loaded.origins[key] == high
    assert loaded.warnings == ()


@pytest.mark.parametrize("source", ORDER)
def test_every_source_wins_over_the_default(world, source):
    key, value = ("max_retries", 1) if source in PROJECT_FILES else ("system_id", "given")
    assert world.load().origins[key] == "default"
    world.put(source, key, value)
    assert getattr(world.load().settings, key) == value


@given(
    st.dictionaries(
        st.sampled_from([name for name in ORDER if name not in PROJECT_FILES]), st.integers(0, 9), min_size=1
    )
)
@hypothesis_settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_highest_of_any_set_of_sources_wins(tmp_path_factory, given_by):
    world = World(tmp_path_factory.mktemp("world"))
    for source, value in given_by.items():
        world.put(source, "system_id", f"id{value}")
    best = next(source for source in ORDER if source in given_by)
    loaded = world.load()
    assert (loaded.settings.system_id, loaded.origins["system_id"]) == (f"id{given_by[best]}", best)


@pytest.mark.parametrize("key", list(Settings.model_fields))
def test_every_key_has_one_variable_with_its_prefix(world, key):
    value = {
        "cloud_bucket": "bucket", "cloud_endpoint": "https://s3.example", "cloud_region": "eu", "system_id": "x",
        "force_method": "http", "http_missing_embedding": "zero", "http_token": "token",
        "http_endpoint": "https://akosha.example/mcp",
        "agent_data_dir": "/data", "agent_state_dir": "/state", "agent_bus": "memory", "agent_nats_url": "nats://n",
        "agent_nats_nkey_seed": SEED, "agent_log_level": "error", "agent_log_format": "json",
        "cloud_sse": "aes256", "cloud_storage_class": "STANDARD_IA",
        "agent_webhooks": '[{"url": "https://hooks.example", "events": ["failed"]}]',
    }.get(key, "1")  # fmt: skip
    prefix = "AKOSHA_AGENT_" if key.startswith("agent_") else "SESSION_BUDDY_AKOSHA_"
    assert variable(key) == prefix + key.removeprefix("agent_").upper()
    world.environ[variable(key)] = value
    world.put_the_other_of_the_pair(key)
    loaded = world.load()
    assert loaded.origins[key] == f"env {variable(key)}"
    assert {other for other, origin in loaded.origins.items() if origin != "default"} == {key, PAIRS.get(key, key)}


@pytest.mark.parametrize(
    ("name", "key", "value", "result"),
    [
        ("AKOSHA_CLOUD_BUCKET", "cloud_bucket", "bucket", "bucket"),
        ("AKOSHA_CLOUD_ENDPOINT", "cloud_endpoint", "file:///mnt", "file:///mnt"),
        ("AKOSHA_CLOUD_REGION", "cloud_region", "eu", "eu"),
        ("AKOSHA_SYSTEM_ID", "system_id", "me", "me"),
        ("AKOSHA_ENABLE_FALLBACK", "enable_fallback", "false", False),
    ],
)
def test_the_short_variables_are_known(world, name, key, value, result):
    world.environ[name] = value
    loaded = world.load()
    assert (getattr(loaded.settings, key), loaded.origins[key]) == (result, f"env {name}")


def test_sources_are_merged_key_by_key(world):
    world.put("env AKOSHA_CLOUD_REGION", "cloud_region", "eu")
    world.write("settings/local.yaml", "akosha_max_retries: 1\nakosha_chunk_size_mb: 10\n")
    world.write("~/.claude/settings/local.yaml", "akosha_max_retries: 2\nakosha_cloud_bucket: bucket\n")
    loaded = world.load()
    assert (loaded.settings.max_retries, loaded.settings.chunk_size_mb, loaded.settings.cloud_bucket) == (
        1,
        10,
        "bucket",
    )
    assert loaded.origins["cloud_bucket"] == "~/.claude/settings/local.yaml"


def test_an_unused_option_and_a_null_count_as_not_set(world):
    world.command_line = {"system_id": None}
    world.write("settings/local.yaml", "akosha_system_id:\nakosha_max_retries: null\n")
    world.write("~/.claude/settings/local.yaml", "akosha_system_id: x\nakosha_cloud_bucket: null\n")
    loaded = world.load()
    assert (loaded.settings.system_id, loaded.warnings) == ("x", ())


@pytest.mark.parametrize("empty", ["", "  "])
def test_an_empty_variable_sets_a_text_and_is_ignored_for_other_types(world, empty):
    world.environ = {
        "SESSION_BUDDY_AKOSHA_CLOUD_BUCKET": empty,
        "AKOSHA_CLOUD_BUCKET": "bucket",
        "SESSION_BUDDY_AKOSHA_ENABLE_FALLBACK": empty,
        "AKOSHA_ENABLE_FALLBACK": "false",
        "AKOSHA_AGENT_DATA_DIR": empty,
        "SESSION_BUDDY_AKOSHA_FORCE_METHOD": empty,
        "SESSION_BUDDY_AKOSHA_MAX_RETRIES": empty,
    }
    loaded = world.load()
    assert loaded.settings.cloud_bucket == ""
    assert loaded.origins["cloud_bucket"] == "env SESSION_BUDDY_AKOSHA_CLOUD_BUCKET"
    assert loaded.settings.enable_fallback is False
    assert {loaded.origins[key] for key in ("agent_data_dir", "force_method", "max_retries")} == {"default"}


# ----------------------------------------------------------------------------------------------------------- paths


def test_paths_are_relative_to_the_given_home_and_working_directory(world):
    assert world.load().settings.agent_data_dir == world.home / ".claude" / "data"
    world.environ = {"AKOSHA_AGENT_DATA_DIR": "~/d", "AKOSHA_AGENT_STATE_DIR": "s"}
    settings = world.load().settings
    assert (settings.agent_data_dir, settings.agent_state_dir) == (world.home / "d", world.cwd / "s")
    world.command_line = {"agent_data_dir": Path("/absolute"), "agent_state_dir": Path("~")}
    settings = world.load().settings
    assert (settings.agent_data_dir, settings.agent_state_dir) == (Path("/absolute"), world.home)


@pytest.mark.parametrize(
    ("source", "empty"),
    [
        ("command line", ""),
        ("env AKOSHA_AGENT_NATS_CA_FILE", ""),
        ("named.yaml", "''"),
        ("~/.claude/settings/local.yaml", "''"),
    ],
)
def test_file_paths_are_relative_to_home_or_working_directory_and_an_empty_one_is_none(world, source, empty):
    for written, path in (("~/ca.pem", world.home / "ca.pem"), ("ca.pem", world.cwd / "ca.pem"), ("/a", Path("/a"))):
        world.put(source, "agent_nats_ca_file", written)
        assert world.load().settings.agent_nats_ca_file == path
    world.put(source, "agent_nats_ca_file", empty)
    loaded = world.load()
    assert (loaded.settings.agent_nats_ca_file, loaded.origins["agent_nats_ca_file"]) == (None, source)


def test_an_empty_file_path_overrides_that_of_a_lower_source(world):
    world.put("~/.claude/settings/local.yaml", "agent_nats_ca_file", "/ca.pem")
    world.environ = {"AKOSHA_AGENT_NATS_CA_FILE": " "}
    assert world.load().settings.agent_nats_ca_file is None


# ------------------------------------------------------------------------------------------- the project's files


OTHER_KEYS = [key for key in Settings.model_fields if key not in PROJECT_KEYS]


def test_the_keys_that_a_projects_file_sets_are_those_in_this_test():
    assert set(PROJECT_KEYS) == model.PROJECT_KEYS


@pytest.mark.parametrize("file", PROJECT_FILES)
@pytest.mark.parametrize("key", PROJECT_KEYS)
def test_a_projects_file_sets_log_level_chunk_size_and_retry_numbers(world, file, key):
    world.put(file, key, PROJECT_KEYS[key])
    loaded = world.load()
    assert (str(getattr(loaded.settings, key)).removesuffix(".0"), loaded.origins[key]) == (PROJECT_KEYS[key], file)
    assert loaded.warnings == ()


@pytest.mark.parametrize("file", PROJECT_FILES)
@pytest.mark.parametrize("key", OTHER_KEYS)
def test_a_projects_file_sets_nothing_else(world, file, key):
    """A cloned repository must not choose the target, the system ID or the uploads that are kept."""
    without = world.load()
    world.put(file, key, HOSTILE.get(key, "1"))
    loaded = world.load()
    assert loaded.origins[key] == "default"
    assert loaded.settings == without.settings
    (warning,) = loaded.warnings
    assert warning == (
        f"akosha_{key} in {file} is ignored: files in the working directory can only set log level, chunk size and "
        "retry numbers (akosha-agent config set stores other settings; or name the file with --settings)"
    )


def test_one_warning_names_all_keys_that_a_project_may_not_set(world):
    world.write("settings/local.yaml", "akosha_system_id: victim\nakosha_agent_keep_last: 0\nakosha_max_retries: 1\n")
    many = "".join(f"akosha_{n}: 1\n" for n in range(1000))
    world.write("settings/session-buddy.yaml", f"akosha_agent_keep_last: 0\n{many}")
    (warning,) = world.load().warnings
    assert warning.startswith("akosha_system_id, akosha_agent_keep_last, akosha_0")
    assert " and 992 more in ./settings/local.yaml and ./settings/session-buddy.yaml are ignored" in warning


@pytest.mark.parametrize("key", OTHER_KEYS)
def test_a_projects_file_cannot_clear_what_the_user_set(world, key):
    world.put("~/.claude/settings/local.yaml", key, HOSTILE.get(key, "1"))
    world.put("./settings/local.yaml", key, "''")
    world.put_the_other_of_the_pair(key)
    assert world.load().origins[key] == "~/.claude/settings/local.yaml"


@pytest.mark.parametrize("key", OTHER_KEYS)
@pytest.mark.parametrize("spelling", ["settings/local.yaml", "settings/../settings/local.yaml", "link.yaml"])
def test_a_projects_file_named_with_settings_sets_any_key(world, key, spelling):
    path = world.write("settings/local.yaml", f"akosha_{key}: {HOSTILE.get(key, '1')}\n")
    (world.cwd / "link.yaml").symlink_to(path)
    world.settings_file = Path(spelling)
    world.put_the_other_of_the_pair(key)
    loaded = world.load()
    assert loaded.origins[key] == spelling
    assert not [warning for warning in loaded.warnings if "ignored" in warning]


def test_naming_one_project_file_does_not_trust_the_other(world):
    world.put("./settings/local.yaml", "max_retries", 1)
    world.put("./settings/session-buddy.yaml", "cloud_bucket", "evil-bucket")
    world.settings_file = Path("settings/local.yaml")
    loaded = world.load()
    assert loaded.settings.cloud_bucket == ""
    assert "session-buddy.yaml is ignored" in loaded.warnings[0]


def test_the_files_of_the_user_keep_rank_and_trust_if_a_project_links_to_them(world):
    """A project's symlink must not raise the rank of a user's file. In ~/.claude, project and user share the files."""
    world.put("~/.claude/settings/local.yaml", "cloud_bucket", "current")
    lowest = world.write(
        "~/.config/session-buddy/config.yaml", "akosha_cloud_bucket: former\nakosha_system_id: former\n"
    )
    (world.cwd / "settings").mkdir()
    (world.cwd / "settings" / "local.yaml").symlink_to(lowest)
    world.put("~/.claude/settings/session-buddy.yaml", "system_id", "current")
    for cwd in (world.cwd, world.home / ".claude"):
        world.cwd = cwd
        loaded = world.load()
        assert (loaded.settings.cloud_bucket, loaded.settings.system_id, loaded.warnings) == ("current", "current", ())


@pytest.mark.parametrize("name", ["~/.claude/settings/local.yaml", "~/.config/session-buddy/config.yaml", "named.yaml"])
def test_a_settings_file_that_every_user_can_write_causes_a_warning_with_the_command(world, name):
    world.put(name, "system_id", "mine")
    path = world.home / name[2:] if name.startswith("~") else world.cwd / name
    path.chmod(0o664)
    assert world.load().warnings == ()
    path.chmod(0o646)
    (warning,) = world.load().warnings
    assert warning.startswith(f"every user can write {name} (mode 0646)")
    assert warning.endswith(f": chmod o-w {path}")


def test_a_projects_file_cannot_read_credentials_from_the_environment(world):
    world.environ = {"AWS_SECRET_ACCESS_KEY": "c4n4ry"}
    world.put("./settings/local.yaml", "agent_log_level", "${AWS_SECRET_ACCESS_KEY}")
    loaded = world.load()
    assert loaded.settings.agent_log_level == "INFO"
    (warning,) = loaded.warnings
    assert warning == (
        "akosha_agent_log_level in ./settings/local.yaml is ignored: a project's file may not use AWS_SECRET_ACCESS_KEY"
    )


# -------------------------------------------------------------------------------------------- files and variables


def test_a_missing_settings_file_is_an_error(world):
    world.settings_file = Path("no.yaml")
    with pytest.raises(SettingsError, match=r"no\.yaml does not exist"):
        world.load()


@pytest.mark.parametrize("file", ["./settings/local.yaml", "~/.config/session-buddy/config.yaml", "named.yaml"])
def test_a_broken_file_is_an_error_that_names_it(world, file):
    world.put(file, "system_id", "'open")
    with pytest.raises(SettingsError) as caught:
        world.load()
    assert caught.value.message.startswith(f"{file} is not valid YAML at line ")


def test_variables_in_values_are_replaced(world):
    world.environ = {"ACCOUNT": "abc", "N": "7", "MY_TOKEN": "t0ken"}
    world.write(
        "~/.claude/settings/local.yaml",
        "akosha_cloud_bucket: ${BUCKET:-my-bucket}\n"
        "akosha_cloud_endpoint: https://${ACCOUNT}.r2.cloudflarestorage.com\n"
        "akosha_max_retries: ${N}\nakosha_enable_fallback: ${F:-no}\nakosha_chunk_size_mb: ${C:-}\n"
        "akosha_agent_data_dir: ${D:-~/d}\nakosha_http_token: ${MY_TOKEN}\n",
    )
    loaded = world.load()
    settings = loaded.settings
    assert (settings.cloud_bucket, settings.cloud_endpoint) == ("my-bucket", "https://abc.r2.cloudflarestorage.com")
    assert (settings.max_retries, settings.enable_fallback, settings.chunk_size_mb) == (7, False, 5)
    assert settings.agent_data_dir == world.home / "d"
    assert settings.http_token.get_secret_value() == "t0ken"
    assert loaded.warnings == ()


def test_a_variable_that_is_not_set_causes_a_warning(world):
    world.put("~/.claude/settings/local.yaml", "system_id", "${NOBODY}")
    assert world.load().warnings == ("akosha_system_id in ~/.claude/settings/local.yaml uses NOBODY, which is not set",)


# ---------------------------------------------------------------------------------------------------- unknown keys


def test_unknown_keys_warn_with_the_nearest_known_one(world):
    world.write("~/.claude/settings/local.yaml", "akosha_cloud_buckt: x\nakosha_zzzzzzzz: y\nother: z\n")
    assert world.load().warnings == (
        "akosha_cloud_buckt in ~/.claude/settings/local.yaml is not a setting: did you mean akosha_cloud_bucket?",
        "akosha_zzzzzzzz in ~/.claude/settings/local.yaml is not a setting; akosha-agent config --all lists them",
    )


@pytest.mark.parametrize("name", [name for name in ORDER if name.startswith("~/") and "akosha-agent" not in name])
def test_a_key_without_its_prefix_in_a_file_of_session_buddy_warns_and_has_no_effect(world, name):
    world.write(name, "cloud_bucket: memories\n")
    loaded = world.load()
    assert loaded.settings.cloud_bucket == ""
    assert loaded.warnings == (f"cloud_bucket in {name} is not a setting: did you mean akosha_cloud_bucket?",)


def test_an_unknown_key_cannot_control_or_flood_the_terminal(world):
    hostile = f'"akosha_\\e[2Jx": 1\n"akosha_\\u202ex": 1\nakosha_{"x" * 1000}: 1\n'
    world.write("~/.claude/settings/local.yaml", hostile)
    first, second, third = world.load().warnings
    assert first.isprintable()
    assert second.isprintable()
    assert len(third) < 200
    world.write("settings/local.yaml", hostile)
    *_, last = world.load().warnings
    assert last.isprintable()
    assert len(last) < 500


def test_unknown_variables_with_the_prefix_warn_with_the_nearest_known_one(world):
    world.environ = {
        "SESSION_BUDDY_AKOSHA_MAX_RETRYS": "1",
        "AKOSHA_AGENT_LOGLEVEL": "DEBUG",
        "SESSION_BUDDY_AKOSHA_AGENT_DATA_DIR": "/x",
        "AKOSHA_OTHER": "x",
        "SESSION_BUDDY_OTHER": "x",
    }
    first, second, third = world.load().warnings
    assert first == "env AKOSHA_AGENT_LOGLEVEL is not a setting: did you mean AKOSHA_AGENT_LOG_LEVEL?"
    assert second == "env SESSION_BUDDY_AKOSHA_AGENT_DATA_DIR is not a setting: did you mean AKOSHA_AGENT_DATA_DIR?"
    assert (
        third == "env SESSION_BUDDY_AKOSHA_MAX_RETRYS is not a setting: did you mean SESSION_BUDDY_AKOSHA_MAX_RETRIES?"
    )


@pytest.mark.parametrize("key", REMOVED)
@pytest.mark.parametrize("value", ["7", "nonsense"])
def test_a_removed_setting_warns_once_and_has_no_effect(world, key, value):
    world.environ = {variable(key): value}
    world.write("~/.claude/settings/local.yaml", f"akosha_{key}: {value}\n")
    world.write("~/.config/session-buddy/config.yaml", f"akosha_{key}: [1]\n")
    loaded = world.load()
    assert loaded.warnings == (f"env {variable(key)} has no effect any more; the value is {REMOVED[key]}",)
    assert loaded.settings == Settings(agent_data_dir=world.home / ".claude" / "data")
    assert f"akosha_{key}" not in [row.key for row in settings_table(loaded)]
    world.environ = {variable(key): ""}
    (warning,) = world.load().warnings
    assert warning.startswith(f"akosha_{key} in ~/.claude/settings/local.yaml has no effect any more")


def test_the_values_named_for_removed_settings_are_those_in_use():
    patience, stream, upload = Patience(), NatsLimits(), UploadLimits()
    numbers = {key: float(text.partition(" ")[0].replace(",", "")) for key, text in REMOVED.items()}
    assert numbers == {
        "http_batch_size": BATCH_SIZE,
        "agent_ingest_max_rows": upload.rows,
        "agent_ingest_max_mb": upload.raw_bytes / 2**20,
        "agent_nats_connect_seconds": patience.connect,
        "agent_nats_ping_seconds": patience.ping,
        "agent_nats_ping_timeout_seconds": patience.ping_timeout,
        "agent_nats_reconnect_seconds": patience.reconnect,
        "agent_nats_reconnect_max_seconds": patience.reconnect_max,
        "agent_nats_ack_wait_seconds": patience.ack_wait,
        "agent_nats_max_age_days": stream.max_age / DAY,
        "agent_nats_max_mb": stream.max_bytes / 2**20,
        "agent_nats_duplicate_window_seconds": stream.duplicate_window,
        "agent_nats_inactive_days": stream.inactive / DAY,
    }


def test_an_unknown_option_is_an_error(world):
    world.command_line = {"max_retry": 3}
    with pytest.raises(
        SettingsError, match=r"akosha_max_retry \(command line\) is not a setting: did you mean max_retries"
    ):
        world.load()


# ------------------------------------------------------------------------------------------------- invalid values


def test_all_invalid_values_are_reported_at_once_with_key_value_source_and_what_is_allowed(world):
    world.command_line = {"chunk_size_mb": 500}
    world.environ = {
        "AKOSHA_CLOUD_BUCKET": "My_Bucket",
        "SESSION_BUDDY_AKOSHA_ENABLE_FALLBACK": "perhaps",
        "AKOSHA_AGENT_LOG_FORMAT": "xml",
        "AKOSHA_AGENT_DEADLINE_SECONDS": "0",
    }
    world.write("settings/local.yaml", "akosha_max_retries: [1]\nakosha_retry_backoff_seconds: -1\n")
    world.write("~/.claude/settings/local.yaml", "akosha_system_id: 7\n")
    with pytest.raises(SettingsError) as caught:
        world.load()
    lines = dict(line.split(" is ", 1) for line in str(caught.value).splitlines())
    assert list(lines) == [key for key in (f"akosha_{key}" for key in Settings.model_fields) if key in lines]
    assert lines == {
        "akosha_cloud_bucket": f"'My_Bucket' (env AKOSHA_CLOUD_BUCKET): must be {BUCKETS}",
        "akosha_system_id": f"7 (~/.claude/settings/local.yaml): must be {allowed('system_id')}",
        "akosha_enable_fallback": "'perhaps' (env SESSION_BUDDY_AKOSHA_ENABLE_FALLBACK): must be true or false",
        "akosha_max_retries": "a list (./settings/local.yaml): must be a whole number from 0 to 20",
        "akosha_retry_backoff_seconds": "-1 (./settings/local.yaml): must be a number above 0, up to 3600",
        "akosha_chunk_size_mb": "500 (command line): must be a whole number from 1 to 100",
        "akosha_agent_deadline_seconds": (
            "'0' (env AKOSHA_AGENT_DEADLINE_SECONDS): must be a number above 0, up to 604800"
        ),
        "akosha_agent_log_format": "'xml' (env AKOSHA_AGENT_LOG_FORMAT): must be auto, console or json",
    }


def test_an_invalid_path_of_a_settings_file_is_reported(world):
    world.put("~/.claude/settings/local.yaml", "agent_nats_ca_file", 5)
    with pytest.raises(SettingsError, match=r"akosha_agent_nats_ca_file is 5 \(~/.*\): must be the path of a file"):
        world.load()


def test_a_number_instead_of_a_secret_is_not_shown(world):
    world.put("~/.claude/settings/local.yaml", "agent_nats_token", 8675309)
    with pytest.raises(SettingsError, match=r"akosha_agent_nats_token is .*\(~/.*\): must be a text") as caught:
        world.load()
    assert "8675309" not in str(caught.value)


def test_an_invalid_path_is_reported(world):
    world.put("~/.claude/settings/local.yaml", "agent_data_dir", 5)
    with pytest.raises(SettingsError, match=r"akosha_agent_data_dir is 5 \(~/.*\): must be the path of a directory"):
        world.load()


def test_an_invalid_value_with_a_variable_is_reported_unexpanded(world):
    world.environ = {"N": "c4n4ry"}
    world.put("./settings/local.yaml", "max_retries", "${N}")
    with pytest.raises(SettingsError, match=r"akosha_max_retries is '\$\{N\}' \(./settings/local.yaml\)"):
        world.load()


def test_a_forced_cloud_method_without_a_target_is_an_error_that_names_its_source(world):
    world.environ = {"SESSION_BUDDY_AKOSHA_FORCE_METHOD": "cloud"}
    with pytest.raises(
        SettingsError, match=r"akosha_force_method is 'cloud' \(env SESSION_BUDDY_.*akosha_cloud_bucket"
    ):
        world.load()


def test_an_error_is_one_line_of_limited_length(world):
    world.environ = {"SESSION_BUDDY_AKOSHA_CLOUD_REGION": "a\nb" * 1000, "AKOSHA_AGENT_DATA_DIR": "a\0b"}
    with pytest.raises(SettingsError) as caught:
        world.load()
    assert [len(line) < 500 for line in str(caught.value).splitlines()] == [True, True]


# ------------------------------------------------------------------------------------------------- dependencies


def test_an_akosha_address_in_the_cloud_endpoint_is_used_and_its_origin_is_named(world):
    world.environ = {"AKOSHA_CLOUD_ENDPOINT": "https://akosha.example/mcp"}
    loaded = world.load()
    assert loaded.settings.http_endpoint == "https://akosha.example/mcp"
    assert loaded.origins["http_endpoint"] == "akosha_cloud_endpoint, env AKOSHA_CLOUD_ENDPOINT"
    assert (loaded.settings.cloud_configured, loaded.warnings) == (False, ())


def test_an_endpoint_without_a_bucket_causes_a_warning(world):
    world.environ = {"AKOSHA_CLOUD_ENDPOINT": "https://s3.example"}
    assert world.load().warnings == (
        "akosha_cloud_endpoint (env AKOSHA_CLOUD_ENDPOINT) has no effect without akosha_cloud_bucket",
    )


def test_encryption_and_storage_class_without_a_bucket_cause_a_warning(world):
    world.environ = {"AKOSHA_CLOUD_ENDPOINT": "file:///srv/memories"}
    assert world.load().warnings == ()
    world.environ |= {
        "SESSION_BUDDY_AKOSHA_CLOUD_SSE": "aws:kms",
        "SESSION_BUDDY_AKOSHA_CLOUD_SSE_KMS_KEY_ID": "k",
        "SESSION_BUDDY_AKOSHA_CLOUD_STORAGE_CLASS": "STANDARD_IA",
    }
    names = [name for name in world.environ if name.startswith("SESSION")]
    expected = [f"{name[14:].lower()} (env {name}) has no effect" for name in names]
    assert world.load().warnings == tuple(f"{one} with a directory instead of akosha_cloud_bucket" for one in expected)
    del world.environ["AKOSHA_CLOUD_ENDPOINT"]
    assert world.load().warnings == tuple(f"{one} without akosha_cloud_bucket" for one in expected)
    world.environ |= {"AKOSHA_CLOUD_BUCKET": "memories"}
    assert world.load().warnings == ()


def test_remote_control_without_nats_causes_a_warning(world):
    world.environ = {"AKOSHA_AGENT_REMOTE_CONTROL": "true"}
    expected = "akosha_agent_remote_control (env AKOSHA_AGENT_REMOTE_CONTROL) has no effect "
    assert world.load().warnings == (f"{expected}without akosha_agent_nats_url",)
    world.environ |= {"AKOSHA_AGENT_NATS_URL": "nats://localhost", "AKOSHA_AGENT_BUS": "memory"}
    assert world.load().warnings == (f"{expected}with akosha_agent_bus: memory",)
    world.environ |= {"AKOSHA_AGENT_BUS": "auto"}
    assert world.load().warnings == ()


def test_a_login_and_tls_without_a_nats_url_cause_no_warning(world):
    world.environ = {
        variable(key): "x"
        for key in ("agent_nats_token", "agent_nats_ca_file", "agent_nats_certificate_file", "agent_nats_key_file")
    } | {"AKOSHA_AGENT_NATS_TLS_FIRST": "true"}
    assert world.load().warnings == ()


@pytest.mark.parametrize(
    ("environ", "yaml", "level", "origin"),
    [
        ({}, "log_level: warning", "WARNING", "log_level in ./settings/local.yaml"),
        ({}, "enable_debug_mode: true", "DEBUG", "enable_debug_mode in ./settings/local.yaml"),
        ({}, "enable_debug_mode: true\nlog_level: ERROR", "DEBUG", "enable_debug_mode in ./settings/local.yaml"),
        ({}, "enable_debug_mode: false\nlog_level: ERROR", "ERROR", "log_level in ./settings/local.yaml"),
        ({"SESSION_BUDDY_LOG_LEVEL": "error"}, "log_level: debug", "ERROR", "env SESSION_BUDDY_LOG_LEVEL"),
        ({"SESSION_BUDDY_ENABLE_DEBUG_MODE": "1"}, "", "DEBUG", "env SESSION_BUDDY_ENABLE_DEBUG_MODE"),
        ({"SESSION_BUDDY_ENABLE_DEBUG_MODE": "0"}, "enable_debug_mode: true", "INFO", "default"),
        ({"SESSION_BUDDY_LOG_LEVEL": ""}, "", "INFO", "default"),
        ({"SESSION_BUDDY_LOG_LEVEL": "DEBUG"}, "akosha_agent_log_level: error", "ERROR", "./settings/local.yaml"),
    ],
)
def test_the_log_level_of_session_buddy_is_the_default(world, environ, yaml, level, origin):
    world.environ = environ
    world.write("settings/local.yaml", yaml)
    loaded = world.load()
    assert (loaded.settings.agent_log_level, loaded.origins["agent_log_level"]) == (level, origin)


def test_an_invalid_log_level_of_session_buddy_causes_a_warning(world):
    world.write("settings/local.yaml", "log_level: chatty\nenable_debug_mode: [1]\n")
    loaded = world.load()
    assert loaded.settings.agent_log_level == "INFO"
    assert [warning.split(" ", 1)[0] for warning in loaded.warnings] == ["log_level", "enable_debug_mode"]


# --------------------------------------------------------------------------------------------------------- the table


def test_the_table_has_every_key_with_value_source_default_and_description(world):
    world.environ = {"SESSION_BUDDY_AKOSHA_CHUNK_SIZE_MB": "8"}
    table = {row.key: row for row in settings_table(world.load())}
    assert list(table) == [f"akosha_{key}" for key in Settings.model_fields]
    row = table["akosha_chunk_size_mb"]
    assert (row.value, row.origin, row.default) == ("8", "env SESSION_BUDDY_AKOSHA_CHUNK_SIZE_MB", "5")
    assert table["akosha_sync_enabled"].value == "true"
    row = table["akosha_agent_nats_ca_file"]
    assert (row.value, row.default) == ("", "")
    assert all(row.description for row in table.values())
    with pytest.raises(FrozenInstanceError):
        row.value = "9"


def test_the_defaults_in_the_table_are_the_same_on_every_machine(world):
    table = {row.key: row for row in settings_table(world.load())}
    assert table["akosha_agent_data_dir"].default == "Session-Buddy's own data_dir, else ~/.claude/data"
    assert table["akosha_agent_state_dir"].default == "~/.local/state/akosha-agent on Linux"
    assert not [row for row in table.values() if str(Path.home()) in row.default]


@pytest.mark.parametrize(
    ("settings", "key", "shown"),
    [
        ({"agent_nats_user": "me", "agent_nats_password": "c4n4ry"}, "agent_nats_password", MASK),
        ({"agent_nats_token": "c4n4ry"}, "agent_nats_token", MASK),
        ({"agent_nats_nkey_seed": SEED}, "agent_nats_nkey_seed", MASK),
        ({"agent_nats_url": "tls://me:c4n4ry@nats.lan"}, "agent_nats_url", f"tls://{MASK}@nats.lan"),
    ],
)
def test_the_config_command_and_its_errors_show_no_nats_secret(tmp_path, settings, key, shown):
    machine = Machine(tmp_path, **settings)
    machine.secrets = ("c4n4ry", SEED)
    done = machine.call("config", "--json")
    assert done.code == 0, done.err
    assert shown in done.out
    assert f"akosha_{key}" in done.out
    machine.set(agent_nats_nkey_file="another-way", agent_nats_credentials_file="and-another")
    done = machine.call("config")
    assert done.code == 2
    assert "akosha_agent_nats_nkey_file is 'another-way' (env AKOSHA_AGENT_NATS_NKEY_FILE)" in done.err


def test_importing_the_settings_loads_no_large_library():
    code = "import agent.settings, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    heavy = {"boto3", "botocore", "aiobotocore", "rich", "typer", "duckdb", "httpx", "watchfiles"}
    assert "agent.settings.model" in modules
    assert not heavy.intersection(modules)


# ------------------------------------------------------------------------------------------------ the cloud's endpoint

AWS_CONFIG = """
[default]
endpoint_url = https://profile.example.com
region = eu-profile-1
"""


@pytest.mark.parametrize(
    ("put", "endpoint", "origin"),
    [
        ({}, "", "default"),
        ({"AWS_ENDPOINT_URL": "https://all.example.com"}, "https://all.example.com", "env AWS_ENDPOINT_URL"),
        (
            {"AWS_ENDPOINT_URL": "https://all.example.com", "AWS_ENDPOINT_URL_S3": "https://s3.example.com"},
            "https://s3.example.com",
            "env AWS_ENDPOINT_URL_S3",
        ),
        (
            {"~/.aws/config": AWS_CONFIG},
            "https://profile.example.com",
            "endpoint_url of profile default in ~/.aws/config",
        ),
        ({"~/.aws/config": AWS_CONFIG, "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, "", "default"),
        (
            {"AKOSHA_CLOUD_ENDPOINT": "https://ours.example.com", "AWS_ENDPOINT_URL": "https://all.example.com"},
            "https://ours.example.com",
            "env AKOSHA_CLOUD_ENDPOINT",
        ),
    ],
)
def test_the_endpoint_comes_from_the_settings_or_the_aws_configuration(world, put, endpoint, origin):
    world.environ["AKOSHA_CLOUD_BUCKET"] = "memories"
    for name, value in put.items():
        if name.startswith("~"):
            world.write(name, value)
        else:
            world.environ[name] = value
    loaded = world.load()
    assert (loaded.settings.cloud_endpoint, loaded.origins["cloud_endpoint"]) == (endpoint, origin)


def test_an_empty_endpoint_uses_endpoint_and_region_of_the_aws_configuration(world):
    world.environ |= {"AKOSHA_CLOUD_BUCKET": "memories", "AKOSHA_CLOUD_ENDPOINT": ""}
    world.write("~/.aws/config", AWS_CONFIG)
    loaded = world.load()
    assert loaded.settings.cloud_endpoint == "https://profile.example.com"
    assert loaded.settings.cloud_region == "eu-profile-1"
    assert loaded.origins["cloud_region"] == "region of profile default in ~/.aws/config"
    world.environ["AKOSHA_CLOUD_REGION"] = "weur"
    assert world.load().settings.cloud_region == "weur"
    world.environ |= {"AKOSHA_CLOUD_REGION": "", "AKOSHA_CLOUD_ENDPOINT": "https://ours.example.com"}
    assert world.load().settings.cloud_region == "auto", "the region of AWS is not that of another endpoint"


def test_without_a_bucket_the_aws_configuration_is_ignored(world):
    world.environ |= {"AWS_ENDPOINT_URL": "http://store.lan/mcp"}
    loaded = world.load()
    assert loaded.settings.cloud_endpoint == ""
    assert loaded.settings.http_endpoint == "http://localhost:8682/mcp"


def test_an_endpoint_of_the_aws_configuration_must_meet_the_same_rules(world):
    world.environ |= {"AKOSHA_CLOUD_BUCKET": "memories", "AWS_ENDPOINT_URL": "http://minio.lan:9000"}
    with pytest.raises(SettingsError, match=r"env AWS_ENDPOINT_URL\): would be unencrypted to another machine"):
        world.load()


def test_a_missing_services_section_is_an_error_that_names_it(world):
    world.environ["AKOSHA_CLOUD_BUCKET"] = "memories"
    world.write("~/.aws/config", "[default]\nservices = mine\n")
    expected = r"profile default uses the section \[services mine\], which is not in ~/\.aws/config"
    with pytest.raises(SettingsError, match=expected):
        world.load()


@pytest.mark.parametrize("end", ["/memories", "/memories/"])
@pytest.mark.parametrize("variable_name", ["AKOSHA_CLOUD_ENDPOINT", "AWS_ENDPOINT_URL_S3"])
def test_a_bucket_at_the_end_of_the_endpoint_is_removed_with_one_warning(world, end, variable_name):
    host = "https://0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com"
    world.environ |= {"AKOSHA_CLOUD_BUCKET": "memories", variable_name: f"{host}{end}"}
    loaded = world.load()
    assert loaded.settings.cloud_endpoint == host
    (notice,) = loaded.warnings
    assert notice == f"akosha_cloud_endpoint (env {variable_name}) ends with the bucket, which is removed: {host}"


@pytest.mark.parametrize("end", ["/other", "/memories/more", "/mcp", "/a/mcp"])
def test_any_other_path_is_an_error_that_names_it_and_the_setting(world, end):
    world.environ |= {"AKOSHA_CLOUD_BUCKET": "memories", "AKOSHA_CLOUD_ENDPOINT": f"https://s3.example.com{end}"}
    with pytest.raises(SettingsError) as failure:
        world.load()
    assert f"akosha_cloud_endpoint is 'https://s3.example.com{end}' (env AKOSHA_CLOUD_ENDPOINT)" in str(failure.value)
    assert "path" in str(failure.value)


def test_an_endpoint_that_ends_in_a_slash_is_kept(world):
    world.environ |= {"AKOSHA_CLOUD_BUCKET": "memories", "AKOSHA_CLOUD_ENDPOINT": "https://s3.example.com/"}
    loaded = world.load()
    assert (loaded.settings.cloud_endpoint, loaded.warnings) == ("https://s3.example.com/", ())
