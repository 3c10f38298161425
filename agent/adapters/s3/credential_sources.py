"""Where the AWS chain gets credentials from, each outside call of it bounded in time and named where it hangs.

A `credential_process` runs in a session of its own: its process group is killed when it exceeds the limit, when nobody
waits for it any more, and when the store is closed. A helper cannot ask a question at a terminal.
"""

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from agent.domain.plain_text import hide
from agent.ports.concurrency import in_daemon_thread

_PROCESS = "custom-process"
_NAMES = {
    _PROCESS: "credential_process",
    "sso": "the SSO service",
    "assume-role": "the role's source (STS, or what the profile names as source)",
    "assume-role-with-web-identity": "STS, asked for the role of the web identity token",
    "container-role": "the container's credential service",
    "iam-role": "the instance metadata service (IMDS); AWS_EC2_METADATA_DISABLED=true leaves it out",
}
_FILES = "the AWS configuration files"

Fingerprint = tuple[tuple[str, int, int, int], ...]


class SourceTimeout(Exception):  # noqa: N818 - it says what happened
    """A source of credentials, or what else is asked while a client is built, did not answer in time."""

    def __init__(self, source: str, seconds: float) -> None:
        super().__init__(f"{source} did not answer within {seconds:g} s")


class Helpers:
    """The `credential_process` helpers that run now. `seconds`: how long each may take."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: set[Helper] = set()

    async def start(self, *command: str, stdout: int, stderr: int) -> "Helper":
        """Run a helper: what aiobotocore calls in the place of `asyncio.create_subprocess_exec`."""
        guard, made, abandoned = threading.Lock(), list[Helper](), False

        def run() -> Helper:
            process = subprocess.Popen(  # noqa: S603 - the command is the user's own, from ~/.aws/config
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
            )
            helper = Helper(process, self._seconds, self._running.discard)
            with guard:
                made.append(helper)
                self._running.add(helper)
                if abandoned:
                    helper.kill()
            return helper

        try:
            return await in_daemon_thread(run, name="credential-process-start")
        except asyncio.CancelledError:
            with guard:
                abandoned = True
                for helper in made:
                    helper.kill()
            raise

    def kill(self) -> None:
        """End all that run, and their children. Does not wait."""
        for helper in list(self._running):
            helper.kill()


class Helper:
    """A running helper, with that part of `asyncio.subprocess.Process` that aiobotocore uses."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        seconds: float,
        ended: Callable[["Helper"], None],
    ) -> None:
        self._process, self._seconds, self._ended = process, seconds, ended

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def communicate(self) -> tuple[bytes, bytes]:
        """Return its output when it has ended. Raises SourceTimeout; it is killed if this is not waited for."""
        try:
            async with asyncio.timeout(self._seconds):
                output = await in_daemon_thread(self._process.communicate, name="credential-process")
        except TimeoutError as error:
            self.kill()
            raise SourceTimeout(_NAMES[_PROCESS], self._seconds) from error
        except BaseException:
            self.kill()
            raise
        self._ended(self)
        return output

    def kill(self) -> None:
        """End its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._ended(self)


class Sources:
    """The chain of one aiobotocore session. `now` names what is asked at the moment."""

    def __init__(self, session: Any, helpers: Helpers, seconds: float) -> None:
        self._session, self._helpers, self._seconds = session, helpers, seconds
        self.now = _FILES

    async def credentials(self) -> Any:
        """Return what the chain finds, None where that is nothing; its refreshes are bounded too."""
        profile = str(self._session.get_config_variable("profile") or "default")
        resolver = self._session.get_component("credential_provider")
        for provider in resolver.providers:
            self._prepare(provider, profile)
        found = await self._session.get_credentials()
        self.now = _FILES
        if found is not None:
            _hide(vars(found))
        if found is not None and hasattr(found, "_refresh_using"):
            found._refresh_using = self._bounded(  # noqa: SLF001 - there is no public way to bound it
                found._refresh_using,  # noqa: SLF001
                _named(str(found.method), profile),
            )
        return found

    def _prepare(self, provider: Any, profile: str) -> None:
        method = str(provider.METHOD)
        if method == _PROCESS:
            provider._popen = self._helpers.start  # noqa: SLF001 - the constructor's argument, set by the chain's maker
        if (builder := getattr(provider, "_profile_provider_builder", None)) is not None:
            make = builder._create_process_provider  # noqa: SLF001 - a role's source profile may name a process, too

            def make_bounded(profile_name: str) -> Any:
                made = make(profile_name)
                made._popen = self._helpers.start  # noqa: SLF001
                return made

            builder._create_process_provider = make_bounded  # noqa: SLF001
        load = provider.load

        async def traced() -> Any:
            self.now = _named(method, profile)
            return await load()

        provider.load = traced

    def _bounded(self, refresh: Callable[[], Any], name: str) -> Callable[[], Awaitable[Any]]:
        failed_at = -float("inf")

        async def bounded() -> Any:
            nonlocal failed_at
            if time.monotonic() - failed_at < self._seconds:
                # A refresh that is not urgent is tried at each request: one that hangs must not delay all of them.
                raise SourceTimeout(name, self._seconds)
            try:
                async with asyncio.timeout(self._seconds):
                    answer = refresh()
                    fresh = await answer if isinstance(answer, Awaitable) else answer
                _hide(fresh)
                return fresh
            except (TimeoutError, SourceTimeout) as error:
                failed_at = time.monotonic()
                if isinstance(error, SourceTimeout):
                    raise
                raise SourceTimeout(name, self._seconds) from error

        return bounded


def _hide(found: Mapping[str, object]) -> None:
    """Mask the secrets of credentials in all texts from now on: a store may repeat them in an error."""
    hide(*(str(value) for name, value in found.items() if value and name.lstrip("_") in ("secret_key", "token")))


def fingerprint() -> Fingerprint:
    """Return what the files of the AWS chain look like now. Reads directories and file states: off the event loop."""
    home = Path("~/.aws").expanduser()
    environment = os.environ
    files = [
        Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials").expanduser(),
        Path(environment.get("AWS_CONFIG_FILE") or home / "config").expanduser(),
    ]
    named = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_CA_BUNDLE")
    files += [Path(environment[name]) for name in named if environment.get(name)]
    for cache in ("sso/cache", "cli/cache", "login/cache"):
        with contextlib.suppress(OSError):
            files += sorted((home / cache).iterdir())
    found = []
    for file in files:
        with contextlib.suppress(OSError):
            state = file.stat()
            if stat.S_ISREG(state.st_mode):
                found.append((str(file), state.st_mtime_ns, state.st_size, state.st_ino))
    return tuple(found)


def _named(method: str, profile: str) -> str:
    name = _NAMES.get(method, _FILES)
    return f"{name} of profile {profile}" if method in (_PROCESS, "sso", "assume-role") else name
