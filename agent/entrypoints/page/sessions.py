"""One-time tokens and sessions of the page. A token starts one session, within a minute.

Sessions outlive the agent: their SHA-256, their last use and the address and port of the page are in `page.json` in
the state directory. Tokens do not.
"""

import asyncio
import hashlib
import hmac
import json
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Self

import structlog

from agent.adapters import fs
from agent.domain.parsing import aware_time, parse_json
from agent.ports import Clock

FILE = "page.json"

TOKEN_SECONDS = 60.0
"""How long a one-time token is valid."""

SESSION_LIFE = timedelta(hours=12)
"""How long a session lasts after its last use."""

MOST_TOKENS = 16
MOST_SESSIONS = 100
"""How many exist at once; a further one replaces the oldest."""

STORED_EVERY = timedelta(minutes=30)
"""The last use of a session is written to the file if the one in the file is older than this."""

_PROOF = "akosha-agent page"
"""Beginning of each text whose HMAC is a proof."""

_MAX_BYTES = 64 * 1024
_LARGEST_PORT = 65_535
_DIGEST = re.compile(r"[0-9a-f]{64}")

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Token:
    """When a token ends: on the monotonic clock, which stops while the machine sleeps, and on the wall clock."""

    monotonic: float
    wall: datetime

    @classmethod
    def issued_now(cls, clock: Clock) -> Self:
        return cls(clock.monotonic() + TOKEN_SECONDS, clock.now() + timedelta(seconds=TOKEN_SECONDS))

    def seconds_left(self, clock: Clock) -> float:
        return min(self.monotonic - clock.monotonic(), (self.wall - clock.now()).total_seconds())


@dataclass(slots=True)
class _Session:
    """When a session was used last, and that time when the file was last written, or could not be; None: never."""

    last_use: datetime
    stored: datetime | None = None


class PageSessions:
    """The tokens and sessions. Only their digests are kept.

    `address` and `port` are those at which browsers have the page; `port` is 0 if they have none.
    """

    def __init__(self, state_dir: Path, clock: Clock) -> None:
        self._path, self._clock = state_dir / FILE, clock
        self._tokens: dict[str, _Token] = {}
        self._sessions: dict[str, _Session] = {}
        self._saving = asyncio.Lock()
        self.address, self.port = "", 0

    def issue_token(self) -> str:
        """Return a new one-time token."""
        while len(self._tokens) >= MOST_TOKENS:
            del self._tokens[next(iter(self._tokens))]
        token = secrets.token_urlsafe(32)
        self._tokens[_digest(token)] = _Token.issued_now(self._clock)
        return token

    async def start(self, token: str) -> tuple[str, datetime] | None:
        """Start a session with a one-time token: return its secret and its end. None if the token is not valid."""
        found = self._tokens.pop(_digest(token), None)
        if found is None or found.seconds_left(self._clock) <= 0:
            return None
        self._drop_ended()
        while len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[min(self._sessions, key=lambda digest: self._sessions[digest].last_use)]
        session, now = secrets.token_urlsafe(32), self._clock.now()
        self._sessions[_digest(session)] = _Session(now)
        await self.save()
        return session, now + SESSION_LIFE

    def is_valid(self, session: str) -> bool:
        """Return whether this is the secret of a session that has not ended."""
        found = self._sessions.get(_digest(session))
        return found is not None and self._left(found) > 0

    def proof(self, session_id: str, text: str) -> str | None:
        """Return the HMAC of a text with a session's digest, which begins with the ID, as the key.

        None if there is no such session. This is no use of the session.
        """
        found = next((one for one in self._sessions if one.startswith(session_id)), None)
        if found is None or self._left(self._sessions[found]) <= 0:
            return None
        return hmac.digest(bytes.fromhex(found), f"{_PROOF} {text}".encode(), "sha256").hex()

    async def use(self, session: str) -> None:
        """Record that a session is used now. Does nothing if it has ended meanwhile."""
        if not self.is_valid(session):
            return
        found = self._sessions[_digest(session)]
        found.last_use = self._clock.now()
        if found.stored is None or abs(found.last_use - found.stored) >= STORED_EVERY:
            await self.save()

    def seconds_left(self) -> float:
        """Return the seconds until no token and no session is left, 0 if there is none."""
        ends = [token.seconds_left(self._clock) for token in self._tokens.values()]
        ends += [self._left(session) for session in self._sessions.values()]
        return max([0.0, *ends])

    def end_all(self) -> None:
        """End all sessions. `save` removes the file."""
        self._sessions = {}

    async def load(self) -> None:
        """Read the sessions that have not ended, and the address. If the file cannot be used, that is logged."""
        try:
            self._take(await asyncio.to_thread(fs.read_own, self._path, _MAX_BYTES, private=True))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self._sessions, self.port = {}, 0
            _log.warning("page_sessions_lost", path=str(self._path), reason=str(error))

    async def save(self) -> None:
        """Write the sessions and the address and port to the file; remove it if there are none. An error is logged."""
        async with self._saving:
            self._drop_ended()
            uses = {digest: session.last_use for digest, session in self._sessions.items()}
            for session in self._sessions.values():  # after an error, too: not each request tries again and logs it
                session.stored = session.last_use
            try:
                await asyncio.to_thread(self._write, uses)
            except OSError as error:
                _log.warning("page_sessions_not_stored", path=str(self._path), error=str(error))

    async def save_uses(self) -> None:
        """Write the file if a session was used since it was written."""
        if any(session.last_use != session.stored for session in self._sessions.values()):
            await self.save()

    def _left(self, session: _Session) -> float:
        """Return the seconds until a session ends without further use. A last use in the future counts as now."""
        session.last_use = min(session.last_use, now := self._clock.now())
        return (session.last_use + SESSION_LIFE - now).total_seconds()

    def _drop_ended(self) -> None:
        self._sessions = {digest: session for digest, session in self._sessions.items() if self._left(session) > 0}

    def _take(self, data: bytes) -> None:
        """Take the content of the file. Raises ValueError, TypeError, KeyError or AttributeError if it is not valid."""
        document = parse_json(data)
        address, port, uses = IPv4Address(document["address"]), document["port"], document["sessions"]
        if not address.is_loopback:
            raise ValueError("the address is not one of this machine")
        if not (type(port) is int and 0 < port <= _LARGEST_PORT and len(uses) <= MOST_SESSIONS):
            raise ValueError("the port or the number of sessions is not valid")
        for digest, last_use in uses.items():
            if not _DIGEST.fullmatch(digest):
                raise ValueError("a session is not a SHA-256")
            at = aware_time(last_use)
            self._sessions[digest] = _Session(min(at, self._clock.now()), at)
        self._drop_ended()
        self.address, self.port = str(address), port

    def _write(self, uses: dict[str, datetime]) -> None:
        if not uses:
            with suppress(FileNotFoundError):
                self._path.unlink()
            return
        sessions = {digest: last_use.isoformat() for digest, last_use in uses.items()}
        document = {"address": self.address, "port": self.port, "sessions": sessions}
        fs.write_atomically(self._path, json.dumps(document).encode(), sole_writer=True)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
