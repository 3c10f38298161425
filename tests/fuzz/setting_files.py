"""Targets: settings files, environment variables, and other files of this user that the agent reads."""

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import nkeys
from hypothesis import strategies as st

from agent.adapters.nats import credentials
from agent.adapters.nats.options import Login
from agent.adapters.state_directory.identity_file import IdentityFile
from agent.domain.errors import SettingsError, StateError
from agent.domain.naming import check_system_id
from agent.entrypoints.hook import note
from agent.entrypoints.hook.claude_settings import ClaudeSettings
from agent.entrypoints.hook.hook_command import HookCommand
from agent.entrypoints.page.sessions import SESSION_LIFE, PageSessions
from agent.settings import load
from agent.settings.aws_config import aws_endpoint
from agent.settings.display import settings_table
from agent.settings.model import ADDRESSES, FIELDS, PROJECT_KEYS, SECRET, Loaded
from agent.settings.sources import REMOVED, SESSION_BUDDY, SHORT_VARIABLES, variable
from agent.settings.validators import PREFIX
from agent.settings.yaml_edit import edited
from agent.settings.yaml_values import top_level
from tests.fuzz.documents import ODD_TEXTS, ODD_VALUES, encoded, json_near, near_bytes, near_text
from tests.fuzz.target import CANARY, Read, Target, never_refused
from tests.support.clock import ManualClock

# ------------------------------------------------------------------------------------------------------------- settings

KEYS = [PREFIX + key for key in (*FIELDS, *REMOVED)] + [*SESSION_BUDDY, "data_dir"]
ODD_YAML = (
    "", "~", "yes", "!!int ''", "!!int x", "!!float ''", "!!bool x", "!!timestamp x", "!!binary x", "!!null x",
    "!!set {a}", "!!str 5", "!x y", "!!python/name:os.system", "0x", "0b", "0o8", "1_000", "1:30:59", "1e400", ".inf",
    ".nan", "'", '"', '"\\ud800"', '"\\x00"', '"\\U00110000"', "2001-99-99", "2001-01-01T00:00:00Z", "|\n  a\n  b",
    ">-\n  a", "&a [*a]", "&a {<<: *a}", "*a", "{a: b}", "[a, b]", "@x", "%x", "- a", "a: b", "? a", "#", "9" * 70,
    "0." + "9" * 70, "${HOME}", "${HOME:-x}", "${UNSET}", "${AWS_SECRET_ACCESS_KEY}", "file:///",
    "file:///tmp/${UNSET}", "nats://host", "nats://a:b@host, tls://x", "https://s3.example",
    "https://akosha.example/mcp", "~/x", "~nobody-here/x", "mac", "warn", "aws:kms",
)  # fmt: skip


def _defaults() -> Iterator[tuple[str, str]]:
    for key, field in FIELDS.items():
        if isinstance(field.default, str | int | float | bool):
            yield PREFIX + key, json.dumps(field.default)


VALUES = (
    st.sampled_from(ODD_YAML)
    | ODD_TEXTS.map(lambda text: text.encode("utf-8", "replace").decode())
    | ODD_VALUES.map(lambda value: encoded(value).decode()[:1000])
)
SECRET_VALUES = st.sampled_from([
    CANARY, f"'{CANARY} x'", f"[{CANARY}]", f"{{a: {CANARY}}}", f"!!binary {CANARY}", f"!!int {CANARY}", f"é{CANARY}",
])  # fmt: skip
ADDRESS_VALUES = st.sampled_from([
    f"nats://{CANARY}@host", f"https://me:{CANARY}@host/p", f"https://host/?token={CANARY}", f"http://{CANARY}@[::1",
    f"nats://a@b, tls://me:{CANARY}@x", f"file://{CANARY}@host/x", f"me:{CANARY}@host", f"http://host/#{CANARY}",
])  # fmt: skip
WEBHOOK_VALUES = st.sampled_from([
    f"[{{url: 'https://me:{CANARY}@host/{CANARY}?a={CANARY}', events: [failed], secret: {CANARY}}}]",
    f"[{{url: 'https://host/{CANARY}', events: [succeeded], overdue_hours: 0.5}}]",
    f"'[{{\"url\": \"https://host/?{CANARY}\", \"events\": [\"failed\"]}}]'",
    f"[{{url: {CANARY}, events: {CANARY}}}, {CANARY}, [{CANARY}]]", f"[{{url: [{CANARY}], secret: {{a: {CANARY}}}}}]",
])  # fmt: skip


@st.composite
def _lines(draw: st.DrawFn) -> tuple[str, str]:
    key = draw(st.sampled_from(KEYS))
    if key == f"{PREFIX}agent_webhooks" and draw(st.booleans()):
        return key, draw(WEBHOOK_VALUES)
    if draw(st.booleans()) and (plain := key.removeprefix(PREFIX)) in SECRET | ADDRESSES:
        return key, draw(SECRET_VALUES if plain in SECRET else ADDRESS_VALUES)
    return draw(st.just(key) | near_text(key) | st.sampled_from(("<<", "? [a]", "'")) | ODD_TEXTS), draw(VALUES)


def _file(lines: list[tuple[str, str]]) -> bytes:
    return "".join(f"{key}: {value}\n" for key, value in lines).encode("utf-8", "surrogatepass")


YAML = st.lists(_lines() | st.sampled_from(list(_defaults())), max_size=5).map(_file)
# In bytes that were changed anywhere, a credential may have become the value of another key.
SETTINGS = YAML | YAML.flatmap(near_bytes).map(lambda data: data.replace(CANARY.encode(), b"")) | st.binary(max_size=64)


@contextmanager
def settings_file(name: str, check: Callable[[Loaded], None]) -> Iterator[Read]:
    """Yield a function that loads the settings with this file: of the working directory, or that of --settings."""
    with tempfile.TemporaryDirectory() as directory:
        cwd = Path(directory)
        file = cwd / name
        file.parent.mkdir(exist_ok=True)
        in_project = file.parent != cwd
        # A user's own file may use any variable; that of a project must not.
        environ = {"HOME": "/home/me", "AWS_SECRET_ACCESS_KEY": CANARY if in_project else "x"}

        def read(data: bytes) -> None:
            file.write_bytes(data)
            loaded = load(settings_file=None if in_project else file, environ=environ, cwd=cwd, home=cwd / "home")
            _check_shown(loaded)
            check(loaded)

        yield read


@contextmanager
def own_file(name: str) -> Iterator[Read]:
    """Yield a function that loads the settings with this file of the agent's own, and then changes it."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        file = home / ".config" / "akosha-agent" / name
        file.parent.mkdir(parents=True)

        def read(data: bytes) -> None:
            file.write_bytes(data)
            file.chmod(0o600)
            loaded = load(environ={}, cwd=home, home=home)
            _check_shown(loaded)
            changed = edited(data, {"http_token": "x", "max_retries": None}, name)
            with never_refused():
                assert top_level(changed, name, lambda _: True).keys() & {"http_token", "akosha_http_token"}

        yield read


def _check_shown(loaded: Loaded) -> None:
    shown = repr((settings_table(loaded), loaded.origins, loaded.warnings))
    assert CANARY not in shown, shown[:2000]


def _check_trusted(loaded: Loaded) -> None:
    for path in (loaded.settings.agent_data_dir, loaded.settings.agent_state_dir, loaded.settings.agent_log_file):
        if path is not None:
            path.exists()  # raises ValueError for a path that no file can have
    if (directory := loaded.settings.directory) is not None:
        directory.exists()


def _check_project(loaded: Loaded) -> None:
    """A cloned repository decides nothing but these keys."""
    decided = {key for key, origin in loaded.origins.items() if "./settings" in origin}
    assert decided <= PROJECT_KEYS


VARIABLES = [variable(key) for key in FIELDS] + [*SHORT_VARIABLES.values(), "SESSION_BUDDY_DATA_DIR", "SESSION_BUDDY_X"]
ENVIRONMENTS = st.one_of(
    st.dictionaries(
        st.sampled_from(VARIABLES),
        st.sampled_from(ODD_YAML) | ODD_TEXTS.map(lambda text: text.replace("\0", "")),
        max_size=4,
    ),
    st.dictionaries(st.sampled_from([variable(key) for key in sorted(SECRET)]), SECRET_VALUES, max_size=2),
    st.dictionaries(st.sampled_from([variable(key) for key in sorted(ADDRESSES)]), ADDRESS_VALUES, max_size=2),
)


@contextmanager
def environment() -> Iterator[Read]:
    with tempfile.TemporaryDirectory() as directory:

        def read(environ: dict[str, str]) -> None:
            loaded = load(environ=environ, cwd=Path(directory), home=Path(directory))
            _check_shown(loaded)
            _check_trusted(loaded)

        yield read


# ----------------------------------------------------------------------------------------------------- the user's files

AWS_CONFIG = b"""\
[default]
endpoint_url = https://one.example
[profile work]
region = eu-west-1
services = local
ignore_configured_endpoint_urls = false
[services local]
s3 =
  endpoint_url = https://two.example
"""
AWS_FILES = st.tuples(
    st.just(AWS_CONFIG) | near_bytes(AWS_CONFIG, odd=(b"[", b"]", b"=", b"\n  ", b"%(x)s", b"[profile work]\n")),
    st.dictionaries(
        st.sampled_from(("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION")),
        st.sampled_from(("work", "default", "local", "", "a b")) | ODD_TEXTS,
        max_size=2,
    ),
)


@contextmanager
def aws_config() -> Iterator[Read]:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, ".aws", "config")
        file.parent.mkdir()

        def read(example: tuple[bytes, dict[str, str]]) -> None:
            data, environ = example
            file.write_bytes(data)
            found = aws_endpoint(environ, Path(directory))
            assert found is None or found.url.value

        yield read


SEED = nkeys.encode_seed(bytes(32), nkeys.PREFIX_BYTE_USER)
CREDENTIALS_FILE = b"""\
-----BEGIN NATS USER JWT-----
%b
------END NATS USER JWT------
-----BEGIN USER NKEY SEED-----
%b
------END USER NKEY SEED------
""" % (CANARY.encode(), SEED)


@contextmanager
def nats_file(read_with: Callable[[Path], Login]) -> Iterator[Read]:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "secret")

        def read(data: bytes) -> None:
            file.write_bytes(data)
            try:
                found = credentials.read(read_with(file))
            except SettingsError as error:
                if SEED.decode() in str(error):
                    raise AssertionError("the message shows the seed") from error
                raise
            assert CANARY not in repr(found)

        yield read


def read_claude_settings(data: bytes) -> None:
    """What is read can be written back; installing and removing the hook leaves the rest as it was."""
    path = Path("settings.json")
    found = ClaudeSettings.parse(path, data)
    before = json.dumps(found.document)
    made = found.insert(HookCommand(("/opt/akosha-agent",), {"--state-dir": "/a b"}))
    installed = ClaudeSettings.parse(path, found.render())
    assert installed.commands
    if len(installed.commands) == 1:
        installed.remove(made)
        assert json.dumps(installed.document) == before or b"akosha-agent" in data


HOOK = {"type": "command", "command": "/opt/akosha-agent hook session-end --state-dir x", "timeout": 5}
CLAUDE_SETTINGS = json_near(
    {"model": "opus", "hooks": {"SessionEnd": [{"hooks": [{"type": "command", "command": "say"}]}], "Stop": []}},
    {"hooks": {"SessionEnd": [{"matcher": "", "hooks": [HOOK]}]}, "disableAllHooks": False},
    keys=("args", "hooks", "command"),
)


@contextmanager
def identity() -> Iterator[Read]:
    """Yield a function that reads identity.json as the agent does, and as the hook does, which must agree."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "identity.json")

        def read(data: bytes) -> None:
            file.write_bytes(data)
            found = IdentityFile(Path(directory)).identity("laptop.local", "")
            with never_refused():
                assert check_system_id(found.system_id)
                assert IdentityFile(Path(directory)).identity("another", "") == found
                if file.stat().st_size <= note._IDENTITY_BYTES:
                    assert note.system_id(directory, "", {}) == found.system_id

        yield read


@contextmanager
def page_sessions() -> Iterator[Read]:
    """Yield a function that reads page.json; content that is not valid has no session and no port."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "page.json")

        def read(data: bytes) -> None:
            file.write_bytes(data)
            file.chmod(0o600)
            sessions = PageSessions(Path(directory), ManualClock(PAGE_USED))
            with never_refused():
                asyncio.run(sessions.load())
                assert 0 <= sessions.seconds_left() <= SESSION_LIFE.total_seconds()
                assert 0 <= sessions.port < 2**16

        yield read


PAGE_USED = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
PAGES = json_near({"port": 40_000, "sessions": {"0a" * 32: PAGE_USED.isoformat()}})
IDENTITIES = json_near({"agent_id": "0a" * 16, "system_id": "laptop"}, {"agent_id": "0a" * 16, "system_id": ""})

TARGETS = (
    Target(
        "settings file", SETTINGS, opened=partial(settings_file, "own.yaml", _check_trusted), errors=(SettingsError,),
        names=r"own\.yaml", in_tests=120,
    ),
    Target(
        "project file", SETTINGS, opened=partial(settings_file, "settings/local.yaml", _check_project),
        errors=(SettingsError,), names=r"\./settings/local\.yaml", in_tests=80,
    ),
    Target(
        "own settings", SETTINGS, opened=partial(own_file, "config.yaml"), errors=(SettingsError,),
        names=r"config\.yaml", in_tests=60,
    ),
    Target(
        "own secrets", SETTINGS, opened=partial(own_file, "credentials.yaml"), errors=(SettingsError,),
        names=r"credentials\.yaml", in_tests=60,
    ),
    Target("environment", ENVIRONMENTS, opened=environment, errors=(SettingsError,), names="AKOSHA_", in_tests=60),
    Target("aws config", AWS_FILES, opened=aws_config, errors=(SettingsError,), names="profile", in_tests=60),
    Target(
        "nats credentials", near_bytes(CREDENTIALS_FILE),
        opened=partial(nats_file, lambda path: Login(credentials_file=path)), errors=(SettingsError,),
        names="nats_credentials_file",
        in_tests=40,
    ),
    Target(
        "nats seed", near_bytes(SEED), opened=partial(nats_file, lambda path: Login(nkey_file=path)),
        errors=(SettingsError,), names="nkey", in_tests=40,
    ),
    Target("claude settings", CLAUDE_SETTINGS, read_claude_settings, (SettingsError,), names=r"settings\.json"),
    Target("page sessions", PAGES, opened=page_sessions, in_tests=60),
    Target("identity", IDENTITIES, opened=identity, errors=(StateError,), names=r"identity\.json", in_tests=60),
)  # fmt: skip
