"""The spool note of a session's end: state directory, system ID, text, and file.

Without slow imports; `session_end` explains why. The names of settings files, the state directory, system IDs, and the
format of events and notes are implemented a second time here; tests compare them with the originals.
"""
# ruff: noqa: PTH103, PTH104, PTH108, PTH109, PTH111 - pathlib costs more than all of this

import os
import sys
import time
from _json import encode_basestring_ascii, make_scanner

TYPE = "akosha.session.ended.v1"
TEXT_CHARACTERS = 200

_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_LONGEST_ID = 100
_IDENTITY_BYTES = 4096
_SETTINGS_BYTES = 256 * 1024

SESSION_BUDDY_FILES = (
    ".claude/settings/local.yaml",
    ".claude/settings/session-buddy.yaml",
    ".config/session-buddy/local.yaml",
    ".config/session-buddy/config.yaml",
)
OPTION_KEYS = (b"agent_state_dir", b"system_id")
"""The settings that the hook's options replace."""


def settings_have_options(environ: "os._Environ[str] | dict[str, str]") -> bool:
    """Return whether a settings file of the user contains the key of an option."""
    home = home_directory(environ)
    own = f"{_config_home(home, environ)}/akosha-agent/config.yaml"
    return any(_names_an_option(path) for path in (own, *(f"{home}/{name}" for name in SESSION_BUDDY_FILES)))


def options_of_settings(environ: "os._Environ[str] | dict[str, str]") -> dict[str, str]:
    """Return the hook's options as the settings set them. Takes long: see `settings_have_options`.

    Raises SettingsError if the settings are invalid.
    """
    from pathlib import Path  # noqa: PLC0415 - slow imports, rarely needed

    from agent.entrypoints.hook.hook_command import hook_options  # noqa: PLC0415
    from agent.settings import load  # noqa: PLC0415

    # In the home directory, because the working directory is that of any project.
    path = Path(home_directory(environ) or "/")
    return hook_options(load(environ=environ, cwd=path, home=path).settings)


def _names_an_option(path: str) -> bool:
    """Return whether a settings file contains a key of an option. False if it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            text = os.read(descriptor, _SETTINGS_BYTES)
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return any(key in text for key in OPTION_KEYS)


def _config_home(home: str, environ: "os._Environ[str] | dict[str, str]") -> str:
    chosen = environ.get("XDG_CONFIG_HOME", "")
    if chosen.startswith("/"):
        return chosen.rstrip("/")
    return home + ("/Library/Application Support" if sys.platform == "darwin" else "/.config")


def home_directory(environ: "os._Environ[str] | dict[str, str]") -> str:
    """Return the home directory without a slash at its end: "" for `/`."""
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        import pwd  # noqa: PLC0415 - rarely needed

        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            home = "/"
    return home.rstrip("/")


def state_directory(given: str, environ: "os._Environ[str] | dict[str, str]") -> str:
    """Return the agent's state directory: the option, else the variable, else the default. Reads no settings file."""
    home = home_directory(environ)
    given = given or environ.get("AKOSHA_AGENT_STATE_DIR", "").strip()
    if given == "~" or given.startswith("~/"):
        return home + given[1:]
    if given:
        given = os.path.expanduser(given)
        # The working directory may be gone: a worktree that was removed at the end of the session.
        return given if given.startswith("/") else os.path.join(os.getcwd(), given)  # noqa: PTH118
    base = environ.get("XDG_STATE_HOME", "")
    if not base.startswith("/"):
        base = home + ("/Library/Application Support" if sys.platform == "darwin" else "/.local/state")
    return f"{base.rstrip('/')}/akosha-agent"


def system_id(state: str, given: str, environ: "os._Environ[str] | dict[str, str]") -> str:
    """Return the system ID of the agent with this state directory, or the one that it will choose at its first start.

    Sources in order: the option, the variable (akosha_system_id), the agent's identity.json, the host name, from which
    the agent creates identity.json at its first start.
    """
    chosen = given or environ.get("SESSION_BUDDY_AKOSHA_SYSTEM_ID", "") or environ.get("AKOSHA_SYSTEM_ID", "")
    if sanitised := sanitise(chosen):
        return sanitised
    stored: object = ""
    try:
        descriptor = os.open(f"{state}/identity.json", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            stored = parsed(os.read(descriptor, _IDENTITY_BYTES)).get("system_id")
        finally:
            os.close(descriptor)
    except OSError:
        pass  # it does not exist yet
    if isinstance(stored, str) and stored and len(stored) <= _LONGEST_ID and _PLAIN.issuperset(stored):
        return stored
    return sanitise(os.uname().nodename) or "unknown"


def sanitise(text: str) -> str:
    """Return a text as a system ID; "" if it has no valid character."""
    plain = "".join(character if character in _PLAIN else " " for character in text)
    # A run of invalid characters becomes one hyphen; hyphens in the text are not merged.
    return "-".join(plain.split()).strip("-")[:84].rstrip("-")


def session_ended(system: str, session_id: object, reason: object) -> tuple[str, bytes]:
    """Return the name of the note and the text of the event, with a new ID and the current time."""
    nanoseconds = time.time_ns()
    now, micros = time.gmtime(nanoseconds // 10**9), f"{nanoseconds // 1000 % 10**6:06d}"
    event = (
        f'{{"specversion":"1.0","id":"{_random_id()}","source":"urn:akosha-agent:{system}","type":"{TYPE}",'
        f'"subject":"akosha.session.{system}.ended",'
        f'"time":"{time.strftime("%Y-%m-%dT%H:%M:%S", now)}.{micros}+00:00","datacontenttype":"application/json",'
        f'"data":{{"system_id":"{system}","session_id":{_quoted(session_id)},"reason":{_quoted(reason)}}}}}'
    )
    name = f"{time.strftime('%Y%m%dT%H%M%S', now)}.{micros}-000000-{os.urandom(4).hex()}.json"
    return name, event.encode()


def write_note(state: str, name: str, event: bytes) -> None:
    """Write the note into the spool, which is created if needed. The note is on disk when this returns.

    Raises OSError; then no file is left behind.
    """
    spool = f"{state}/spool"
    draft, flags = f"{spool}/.{name}.draft", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(draft, flags, 0o600)
    except FileNotFoundError:
        os.makedirs(state, 0o700, exist_ok=True)
        os.makedirs(spool, 0o700, exist_ok=True)
        _sync(state)
        descriptor = os.open(draft, flags, 0o600)
    try:
        try:
            rest = memoryview(event)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            _flush(descriptor)
        finally:
            os.close(descriptor)
        os.rename(draft, f"{spool}/{name}")
    except BaseException:
        os.unlink(draft)
        raise
    _sync(spool)


class _Rules:
    """Options of the JSON scanner. Numbers, which are not used, stay strings."""

    strict = False
    object_hook = object_pairs_hook = array_hook = None
    parse_float = parse_int = parse_constant = str


def parsed(data: bytes) -> dict[str, object]:
    """Return the JSON object at the beginning of the bytes; {} if there is none."""
    text = data.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if not text.startswith("{"):
        return {}
    try:
        value: object = make_scanner(_Rules)(text, 0)[0]  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - the session has ended, even if the text is invalid
        return {}
    return value if isinstance(value, dict) else {}


def _random_id() -> str:
    """Return a UUID, version 4."""
    number = bytearray(os.urandom(16))
    number[6], number[8] = number[6] & 0x0F | 0x40, number[8] & 0x3F | 0x80
    digits = number.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _quoted(value: object) -> str:
    """Return a string as JSON, truncated to TEXT_CHARACTERS; an empty string for any other type."""
    text = value[:TEXT_CHARACTERS] if isinstance(value, str) else ""
    return encode_basestring_ascii(text.encode("utf-8", "backslashreplace").decode())


def _sync(directory: str) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def _flush(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError:
        from agent.adapters import fs  # noqa: PLC0415 - imports pathlib, and is needed only after an error

        fs.sync(descriptor)  # ignores that a file system does not support fsync
