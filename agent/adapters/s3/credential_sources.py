"""The sources of credentials: the environment, the agent's `credentials.yaml`, then the rest of the AWS chain.

Each external call has a time limit; a timeout names the source.

A `credential_process` helper runs in its own session. Its process group is killed if it exceeds the limit, if the
caller is cancelled, and when the store is closed. A helper cannot prompt at a terminal.
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

from agent.domain.errors import SettingsError, StoreError
from agent.domain.plain_text import hide
from agent.ports.concurrency import in_daemon_thread
from agent.settings.own_files import S3Credentials, credentials_file, s3_credentials

_PROCESS = "custom-process"
_NAMES = {
    _PROCESS: "credential_process",
    "sso": "the SSO service",
    "assume-role": "the role's source (STS, or the profile's source)",
    "assume-role-with-web-identity": "STS (role of the web identity token)",
    "container-role": "the container's credential service",
    "iam-role": "the instance metadata service (IMDS; AWS_EC2_METADATA_DISABLED=true skips it)",
}
_FILES = "the AWS configuration files"
_ENVIRONMENT = "env"

STORED = "akosha-agent"
"""The source of credentials in the agent's `credentials.yaml`."""

Fingerprint = tuple[tuple[str, int, int, int], ...]


class SourceTimeout(Exception):  # noqa: N818 - "timeout" says that it is an error
    """A source of credentials, or another step of building a client, did not answer in time."""

    def __init__(self, source: str, seconds: float) -> None:
        super().__init__(f"{source} did not answer within {seconds:g} s")


class Helpers:
    """The running `credential_process` helpers. `seconds` is the time limit of each."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: set[Helper] = set()

    async def start(self, *command: str, stdout: int, stderr: int) -> "Helper":
        """Start a helper. aiobotocore calls this instead of `asyncio.create_subprocess_exec`."""
        lock, started, cancelled = threading.Lock(), list[Helper](), False

        def run() -> Helper:
            process = subprocess.Popen(  # noqa: S603 - the command is the user's own, from ~/.aws/config
                command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
            )
            helper = Helper(process, self._seconds, self._running.discard)
            with lock:
                started.append(helper)
                self._running.add(helper)
                if cancelled:
                    helper.kill()
            return helper

        try:
            return await in_daemon_thread(run, name="credential-process-start")
        except asyncio.CancelledError:
            with lock:
                cancelled = True
                for helper in started:
                    helper.kill()
            raise

    def kill(self) -> None:
        """Kill all running helpers and their children. Does not wait."""
        for helper in list(self._running):
            helper.kill()


class Helper:
    """A running helper. It has the part of `asyncio.subprocess.Process` that aiobotocore uses."""

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
        """Wait for the helper and return its output. Raises SourceTimeout. On cancellation, the helper is killed."""
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
        """Kill its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._ended(self)


class CredentialChain:
    """The credential chain of one aiobotocore session. `current_source` names the source that is being asked.

    `given` credentials are used instead of all sources.
    """

    def __init__(self, session: Any, helpers: Helpers, seconds: float, given: S3Credentials | None = None) -> None:
        self._session, self._helpers, self._seconds, self._given = session, helpers, seconds, given
        self.current_source = _FILES

    async def credentials(self) -> Any:
        """Return botocore's credentials or None. Their refreshes have the time limit, too."""
        profile = str(self._session.get_config_variable("profile") or "default")
        resolver = self._session.get_component("credential_provider")
        if self._given is None:
            resolver.insert_after(_ENVIRONMENT, _StoredKeys())
        else:
            resolver.insert_before(_ENVIRONMENT, _StoredKeys(self._given))
        for provider in resolver.providers:
            self._prepare(provider, profile)
        credentials = await self._session.get_credentials()
        self.current_source = _FILES
        if credentials is not None:
            _hide(vars(credentials))
        if credentials is not None and hasattr(credentials, "_refresh_using"):
            credentials._refresh_using = self._with_limit(  # noqa: SLF001 - no public way
                credentials._refresh_using,  # noqa: SLF001
                _source_name(str(credentials.method), profile),
            )
        return credentials

    def _prepare(self, provider: Any, profile: str) -> None:
        method = str(provider.METHOD)
        if method == _PROCESS:
            provider._popen = self._helpers.start  # noqa: SLF001 - an argument of the constructor, which botocore calls
        if (builder := getattr(provider, "_profile_provider_builder", None)) is not None:
            create = builder._create_process_provider  # noqa: SLF001 - a role's source profile may name a process, too

            def create_with_limit(profile_name: str) -> Any:
                process_provider = create(profile_name)
                process_provider._popen = self._helpers.start  # noqa: SLF001
                return process_provider

            builder._create_process_provider = create_with_limit  # noqa: SLF001
        load = provider.load

        async def traced() -> Any:
            self.current_source = _source_name(method, profile)
            return await load()

        provider.load = traced

    def _with_limit(self, refresh: Callable[[], Any], name: str) -> Callable[[], Awaitable[Any]]:
        failed_at = -float("inf")

        async def limited() -> Any:
            nonlocal failed_at
            if time.monotonic() - failed_at < self._seconds:
                # botocore tries an optional refresh at each request: one that hangs must not delay all of them.
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

        return limited


class _StoredKeys:
    """The keys in the agent's `credentials.yaml`, or those that will be stored there, as a provider of the chain."""

    METHOD = CANONICAL_NAME = STORED

    def __init__(self, given: S3Credentials | None = None) -> None:
        self._given = given

    async def load(self) -> Any:
        """Return botocore's credentials, or None. Raises StoreError if the file is invalid or not private."""
        from aiobotocore.credentials import AioCredentials  # noqa: PLC0415 - the client has loaded it

        try:
            found = self._given or s3_credentials(os.environ, Path.home())
        except SettingsError as error:
            refused = StoreError(error.message, hint=error.hint)
            refused.credentials_refused = True
            raise refused from error
        if found is None:
            return None
        return AioCredentials(found.access_key_id, found.secret_access_key, found.session_token, method=STORED)


def _hide(credentials: Mapping[str, object]) -> None:
    """Mask the secrets of credentials in all messages from now on: a store may repeat them in an error."""
    hide(*(str(value) for name, value in credentials.items() if value and name.lstrip("_") in ("secret_key", "token")))


def fingerprint() -> Fingerprint:
    """Return path, mtime, size and inode of each file that credentials may come from. Blocks."""
    home = Path("~/.aws").expanduser()
    environment = os.environ
    files = [
        credentials_file(environment, Path.home()).path,
        Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials").expanduser(),
        Path(environment.get("AWS_CONFIG_FILE") or home / "config").expanduser(),
    ]
    named = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_CA_BUNDLE")
    files += [Path(environment[name]) for name in named if environment.get(name)]
    for cache in ("sso/cache", "cli/cache", "login/cache"):
        with contextlib.suppress(OSError):
            files += sorted((home / cache).iterdir())
    states = []
    for file in files:
        with contextlib.suppress(OSError):
            status = file.stat()
            if stat.S_ISREG(status.st_mode):
                states.append((str(file), status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(states)


def _source_name(method: str, profile: str) -> str:
    name = _NAMES.get(method, _FILES)
    return f"{name} of profile {profile}" if method in (_PROCESS, "sso", "assume-role") else name
