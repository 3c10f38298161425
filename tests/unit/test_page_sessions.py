"""One-time tokens and sessions of the page: how long they are valid, and what of them is on disk."""

import json
import stat
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from agent.entrypoints.page import sessions
from agent.entrypoints.page.sessions import (
    MOST_SESSIONS,
    MOST_TOKENS,
    SESSION_LIFE,
    STORED_EVERY,
    TOKEN_SECONDS,
    PageSessions,
)
from tests.support.clock import ManualClock

SESSION_SECONDS = SESSION_LIFE.total_seconds()


@pytest.fixture
def clock():
    return ManualClock()


def opened(tmp_path, clock) -> PageSessions:
    made = PageSessions(tmp_path, clock)
    made.address, made.port = "127.1.2.3", 4711
    return made


async def use(page: PageSessions, session: str) -> bool:
    """Use a session; return whether it has not ended."""
    valid = page.is_valid(session)
    await page.use(session)
    return valid


async def start(page: PageSessions) -> str:
    session, _ = await page.start(page.issue_token())
    return session


async def test_a_token_is_valid_for_a_minute_and_once(tmp_path, clock):
    page = opened(tmp_path, clock)
    early, late = page.issue_token(), page.issue_token()
    await clock.advance(TOKEN_SECONDS - 1)
    session, ends = await page.start(early)
    assert (ends - clock.now()).total_seconds() == SESSION_SECONDS
    assert await use(page, session)
    assert await page.start(early) is None
    await clock.advance(1)
    assert await page.start(late) is None


async def test_a_token_ends_while_the_machine_sleeps(tmp_path, clock):
    """The monotonic clock stops then."""
    page = opened(tmp_path, clock)
    token = page.issue_token()
    clock.jump(timedelta(seconds=TOKEN_SECONDS))
    assert page.seconds_left() == 0
    assert await page.start(token) is None


async def test_a_session_ends_12_hours_after_its_last_use(tmp_path, clock):
    page = opened(tmp_path, clock)
    session = await start(page)
    for _ in range(3):
        await clock.advance(SESSION_SECONDS - 1)
        assert await use(page, session)
    assert page.seconds_left() == SESSION_SECONDS
    await clock.advance(SESSION_SECONDS)
    assert page.seconds_left() == 0
    assert not await use(page, session)


async def test_a_clock_that_is_set_back_does_not_make_a_session_longer(tmp_path, clock):
    page = opened(tmp_path, clock)
    used, unused = await start(page), await start(page)
    clock.jump(-timedelta(days=300))
    assert page.seconds_left() == SESSION_SECONDS
    assert await use(page, used)
    await clock.advance(SESSION_SECONDS)
    assert not await use(page, used)
    assert not await use(page, unused)


async def test_sessions_and_the_port_are_stored_privately_without_a_secret(tmp_path, clock):
    page = opened(tmp_path, clock)
    token = page.issue_token()
    session, _ = await page.start(token)
    file = tmp_path / "page.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert token not in file.read_text()
    assert session not in file.read_text()
    await clock.advance(SESSION_SECONDS - 1)
    later = opened(tmp_path, clock)
    later.address, later.port = "", 0
    await later.load()
    assert (later.address, later.port) == ("127.1.2.3", 4711)
    assert (await use(later, session), await later.start(token)) == (True, None)


async def test_uses_are_written_rarely_and_at_the_end(tmp_path, clock, monkeypatch):
    page, written = opened(tmp_path, clock), []
    real = sessions.fs.write_atomically
    monkeypatch.setattr(
        sessions.fs, "write_atomically", lambda *args, **how: (written.append(clock.now()), real(*args, **how))
    )
    session = await start(page)
    for _ in range(100):
        await clock.advance(STORED_EVERY.total_seconds() / 50)
        assert await use(page, session)
    assert len(written) == 3
    await clock.advance(1)
    await use(page, session)
    await page.save_uses()
    await page.save_uses()
    assert len(written) == 4
    later = opened(tmp_path, clock)
    await later.load()
    assert later.seconds_left() == SESSION_SECONDS


async def test_ended_sessions_are_removed_and_the_last_one_with_the_file(tmp_path, clock):
    page = opened(tmp_path, clock)
    await start(page)
    await clock.advance(SESSION_SECONDS / 2)
    second = await start(page)
    await clock.advance(SESSION_SECONDS / 2)
    await use(page, second)
    assert len(json.loads((tmp_path / "page.json").read_text())["sessions"]) == 1
    await clock.advance(SESSION_SECONDS)
    await page.save()
    assert not (tmp_path / "page.json").exists()


async def test_the_number_of_tokens_and_sessions_is_limited(tmp_path, clock):
    page = opened(tmp_path, clock)
    tokens = [page.issue_token() for _ in range(MOST_TOKENS + 1)]
    assert await page.start(tokens[0]) is None
    first, _ = await page.start(tokens[1])
    await clock.advance(1)
    second = await start(page)
    for _ in range(MOST_SESSIONS - 1):
        await start(page)
    assert (await use(page, first), await use(page, second)) == (False, True)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"port": 80, "sessions": {}}',
        b'{"address": "192.0.2.1", "port": 80, "sessions": {}}',
        b'{"address": "localhost", "port": 80, "sessions": {}}',
        b'{"address": "127.1.2.3", "port": 0, "sessions": {}}',
        b'{"address": "127.1.2.3", "port": "80", "sessions": {}}',
        b'{"address": "127.1.2.3", "port": true, "sessions": {}}',
        b'{"address": "127.1.2.3", "port": 80, "sessions": []}',
        b'{"address": "127.1.2.3", "port": 80, "sessions": {"x": "2025-06-01T12:00:00+00:00"}}',
        b'{"address": "127.1.2.3", "port": 80, "sessions": {"' + b"a" * 64 + b'": "2025-06-01T12:00:00"}}',
        b'{"address": "127.1.2.3", "port": 80, "sessions": {"' + b"a" * 64 + b'": 1}}',
        b"[" * 50_000,
        b" " * 100_000,
    ],
)
async def test_a_file_with_other_content_is_logged_and_replaced_by_the_next_session(tmp_path, clock, content):
    file = tmp_path / "page.json"
    file.write_bytes(content)
    file.chmod(0o600)
    page = opened(tmp_path, clock)
    with capture_logs() as logs:
        await page.load()
    assert [line["event"] for line in logs] == ["page_sessions_lost"]
    assert (page.port, page.seconds_left()) == (0, 0)
    await start(page)
    await opened(tmp_path, clock).load()


@pytest.mark.parametrize("kind", ["link", "open to others"])
async def test_a_file_of_others_starts_no_session(tmp_path, clock, kind):
    file = tmp_path / "page.json"
    page = opened(tmp_path, clock)
    session = await start(page)
    file.chmod(0o644)
    if kind == "link":
        file.chmod(0o600)
        file.rename(tmp_path / "elsewhere")
        file.symlink_to("elsewhere")
    later = opened(tmp_path, clock)
    with capture_logs() as logs:
        await later.load()
    assert [line["event"] for line in logs] == ["page_sessions_lost"]
    assert not await use(later, session)


async def test_a_disk_that_is_full_does_not_prevent_a_session(tmp_path, clock, monkeypatch):
    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(sessions.fs, "write_atomically", full)
    page = opened(tmp_path, clock)
    with capture_logs() as logs:
        session = await start(page)
        for _ in range(10):
            assert await use(page, session)
    assert [line["event"] for line in logs] == ["page_sessions_not_stored"]
    await clock.advance(STORED_EVERY.total_seconds())
    with capture_logs() as logs:
        assert await use(page, session)
    assert [line["event"] for line in logs] == ["page_sessions_not_stored"]
