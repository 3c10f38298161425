"""The spool note of a session's end: its state directory, its system id, its text, and the file.

Without slow imports, as `session_end` explains. Tests compare what is implemented a second time here (the state
directory, system ids, the form of an event and of a note) with the original.
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


def state_directory(given: str, environ: "os._Environ[str] | dict[str, str]") -> str:
    """Return the agent's state directory: the option, else the variable, else the default; reads no settings file."""
    home = environ.get("HOME", "")
    if not home.startswith("/"):
        import pwd  # noqa: PLC0415 - rarely needed

        try:
            home = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            home = "/"
    home = home.rstrip("/")
    given = given or environ.get("AKOSHA_AGENT_STATE_DIR", "").strip()
    if given == "~" or given.startswith("~/"):
        return home + given[1:]
    if given:
        return os.path.join(os.getcwd(), os.path.expanduser(given))  # noqa: PTH118
    base = environ.get("XDG_STATE_HOME", "")
    if not base.startswith("/"):
        base = home + ("/Library/Application Support" if sys.platform == "darwin" else "/.local/state")
    return f"{base.rstrip('/')}/akosha-agent"


def system_id(state: str, given: str, environ: "os._Environ[str] | dict[str, str]") -> str:
    """Return the system id of the agent with this state directory, or the one that it will have once it has run.

    The option or the variable (akosha_system_id), else the agent's identity.json, else the host's name, of which the
    agent makes identity.json at its first start.
    """
    chosen = given or environ.get("SESSION_BUDDY_AKOSHA_SYSTEM_ID", "") or environ.get("AKOSHA_SYSTEM_ID", "")
    if sanitised := sanitise(chosen):
        return sanitised
    kept: object = ""
    try:
        descriptor = os.open(f"{state}/identity.json", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            kept = parsed(os.read(descriptor, _IDENTITY_BYTES)).get("system_id")
        finally:
            os.close(descriptor)
    except OSError:
        pass  # none yet
    if isinstance(kept, str) and kept and len(kept) <= _LONGEST_ID and _PLAIN.issuperset(kept):
        return kept
    return sanitise(os.uname().nodename) or "unknown"


def sanitise(text: str) -> str:
    """Return a text as a system id, "" where nothing is left of it."""
    plain = "".join(character if character in _PLAIN else " " for character in text)
    # A run of other characters becomes one hyphen; hyphens of the text itself are not merged.
    return "-".join(plain.split()).strip("-")[:84].rstrip("-")


def session_ended(system: str, session_id: object, reason: object) -> tuple[str, bytes]:
    """Return the name of the note and the text of the event, with a new id and the present time."""
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
    """Write the note into the spool of a state directory, which is made if needed. On disk when this returns.

    Raises OSError; then no file is left behind.
    """
    spool = f"{state}/spool"
    draft, how = f"{spool}/.{name}.draft", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        descriptor = os.open(draft, how, 0o600)
    except FileNotFoundError:
        os.makedirs(state, 0o700, exist_ok=True)
        os.makedirs(spool, 0o700, exist_ok=True)
        _sync(state)
        descriptor = os.open(draft, how, 0o600)
    try:
        try:
            left = memoryview(event)
            while left:
                left = left[os.write(descriptor, left) :]
            _flush(descriptor)
        finally:
            os.close(descriptor)
        os.rename(draft, f"{spool}/{name}")
    except BaseException:
        os.unlink(draft)
        raise
    _sync(spool)


class _Rules:
    """The options of JSON's scanner. Numbers are not used: they stay text."""

    strict = False
    object_hook = object_pairs_hook = array_hook = None
    parse_float = parse_int = parse_constant = str


def parsed(data: bytes) -> dict[str, object]:
    """Return the JSON object that the bytes begin with; {} for anything else."""
    text = data.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    if not text.startswith("{"):
        return {}
    try:
        value: object = make_scanner(_Rules)(text, 0)[0]  # type: ignore[arg-type]
    except Exception:  # noqa: BLE001 - whatever is wrong with the text, the session has ended
        return {}
    return value if isinstance(value, dict) else {}


def _random_id() -> str:
    """Return a UUID, version 4."""
    number = bytearray(os.urandom(16))
    number[6], number[8] = number[6] & 0x0F | 0x40, number[8] & 0x3F | 0x80
    digits = number.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _quoted(value: object) -> str:
    """Return a string in JSON, cut to TEXT_CHARACTERS; the empty one for a value that is not a string."""
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
        from agent.adapters import fs  # noqa: PLC0415 - it imports pathlib, and is needed only after an error

        fs.sync(descriptor)  # a file system without fsync is no error
