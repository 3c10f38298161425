"""Every error the agent raises, in one tree.

    AkoshaError
    ├── SettingsError          a setting is missing, wrong or unsafe; commands exit with 2
    ├── NamingError            a text that is invalid in a key, a subject or an ID
    ├── WireError              bytes that are not valid: an event, a manifest, a note
    │   └── PatchError         a patch is not one of the file before it
    ├── StateError             the state directory or the ledger in it cannot be used
    │   ├── AlreadyRunning     another process holds the state directory
    │   └── LedgerDamaged      the ledger's content is damaged
    ├── SystemIdTaken          another machine owns the default system ID: this one uses another ID
    ├── SnapshotError          a database cannot be copied now
    │   ├── StagingFull        not enough disk space for the copy
    │   ├── DamagedCopy        a copy looks damaged; another one may be intact
    │   └── StagedCopyChanged  a copy does not have the bytes any more that were hashed
    ├── StoreError             the bucket or directory cannot be reached, refused or failed
    │   ├── NoSuchObject       there is no object with this key
    │   ├── UnreadableObject   the disk of the directory cannot read this object, and works otherwise
    │   ├── CopyUnsupported    the store cannot copy an object itself, or reported a copy that it did not make
    │   ├── NotPermitted       the credentials do not allow the operation
    │   └── NotOwner           the system ID in the target belongs to another machine or agent, or its objects are gone
    ├── RestoreError           an upload cannot be restored to the directory
    ├── SinkError              Akosha cannot be reached, refused or failed
    ├── BusError               an event bus cannot be reached, refused or failed
    ├── WebhookError           a webhook cannot be reached, or did not accept an event
    ├── AgentUnavailable       the running agent cannot be reached, or does not understand the request
    └── SyncError              an attempt of a method failed
        ├── CloudUploadError
        ├── HTTPSyncError
        └── HybridSyncError    all methods failed

`transient`: a retry may succeed. `hint`: the command or setting that fixes the problem.
Only adapters catch every exception of a library; an unknown one is raised as the adapter's own error class, with
`transient=True`.
Texts contain no secrets or control characters: `AkoshaError` passes each message and hint through `plain_text`.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from agent.domain.plain_text import safe_text

NO_THREAD = "can't start new thread"
"""The text of CPython's RuntimeError if the operating system starts no further thread."""


class AkoshaError(Exception):
    """Base class of all errors. `str()` returns the message, followed by the hint in parentheses.

    A message may quote file names, servers and other programs: secrets and control characters are removed here, for
    every place that shows, stores or publishes it. `has_lines` keeps line breaks.
    `unexpected`: the kind of error (`KeyError in head_object`) if a library raised one that the adapter does not know.
    `credentials_refused`: the target refused the key or token, or none is configured.
    """

    has_lines: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", transient: bool = False) -> None:
        self.message = safe_text(message, lines=self.has_lines)
        self.hint = safe_text(hint)
        super().__init__(self.message)
        self.transient = transient
        self.unexpected = ""
        self.credentials_refused = False

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


def is_transient(error: BaseException) -> bool:
    """Return whether a retry may succeed: after a transient error, or if the system could not start a thread."""
    if isinstance(error, AkoshaError):
        return error.transient
    return isinstance(error, RuntimeError) and str(error) == NO_THREAD


class SettingsError(AkoshaError):
    """A setting is missing, wrong or unsafe. Several problems are one message with a line each."""

    has_lines = True


class NamingError(AkoshaError, ValueError):
    """A text is invalid in a key, a subject or an ID."""


class WireError(AkoshaError, ValueError):
    """Bytes from outside the process are not valid."""


class PatchError(WireError):
    """A patch does not fit the file before it. `number`: its position in the chain, 1 for the first."""

    def __init__(self, message: str, *, number: int) -> None:
        super().__init__(message)
        self.number = number


class StateError(AkoshaError):
    """The state directory, or the ledger in it, cannot be used."""


class AlreadyRunning(StateError):  # noqa: N818 - named after the condition, like those below
    """Another process holds the state directory: `pid` and `command` identify it (0 and "" if unknown)."""

    def __init__(self, message: str, *, pid: int = 0, command: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.pid = pid
        self.command = command


class AgentUnavailable(AkoshaError):  # noqa: N818
    """The running agent cannot be reached, or does not understand the request. `unresponsive`: it does not answer."""

    def __init__(self, message: str, *, hint: str = "", unresponsive: bool = False) -> None:
        super().__init__(message, hint=hint, transient=True)
        self.unresponsive = unresponsive


class SystemIdTaken(AkoshaError):  # noqa: N818
    """Another machine owns the default system ID `taken` in the target; `instead` is the ID that this machine uses.

    Nothing was sent. The caller writes `instead` to the identity file and builds a new agent.
    """

    def __init__(self, message: str, *, taken: str, instead: str) -> None:
        super().__init__(message, hint="set akosha_system_id to choose an ID yourself")
        self.taken = taken
        self.instead = instead


class LedgerDamaged(StateError):  # noqa: N818
    """The ledger's file, or content in it, is damaged. The process that holds the state directory replaces it."""


class SnapshotError(AkoshaError):
    """A database cannot be copied now. If permanent, it cannot be copied until its files change."""


class StagingFull(SnapshotError):  # noqa: N818
    """The state directory has not enough free space for the copy."""


class StagedCopyChanged(SnapshotError):  # noqa: N818
    """A staged copy has other bytes than when it was hashed, or was deleted: a bit flipped on the disk or in memory, or
    another program deletes files there. Transient.
    """


class DamagedCopy(SnapshotError):  # noqa: N818
    """A copy of a database looks damaged. Another copy may be intact."""

    def __init__(self, database: str, reason: str) -> None:
        super().__init__(f"the copy of {database} looks damaged: {reason}", transient=True)
        self.database = database


class StoreError(AkoshaError):
    """A store cannot be reached, refused or failed, or damaged or lost an object."""


class NoSuchObject(StoreError):  # noqa: N818
    """There is no object with this key."""


class UnreadableObject(StoreError):  # noqa: N818
    """The store works, but cannot read this object: its bytes are lost, as if it were damaged."""


class CopyUnsupported(StoreError):  # noqa: N818
    """The store cannot copy an object itself, or reported a copy that it did not make."""


class NotPermitted(StoreError):  # noqa: N818
    """The credentials do not allow the operation."""


class NotOwner(StoreError):  # noqa: N818
    """The uploads of this system ID in the target do not belong to this agent. Permanent: a person must decide."""


class RestoreError(AkoshaError):
    """An upload cannot be restored to the directory, or differs from its manifest. No file is left half written."""


class SinkError(AkoshaError):
    """Akosha cannot be reached, refused or failed. `retry_after`: seconds to wait before a retry, as Akosha asked."""

    def __init__(
        self, message: str, *, hint: str = "", transient: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message, hint=hint, transient=transient)
        self.retry_after = retry_after


class BusError(AkoshaError):
    """An event bus cannot be reached, refused or failed: what was published may or may not have arrived."""


class WebhookError(AkoshaError):
    """A webhook cannot be reached, or did not accept an event. If permanent, its address or the receiver must change.

    `retry_after`: seconds to wait before a retry, as the receiver asked. `gone`: the receiver wants no more events.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        transient: bool = False,
        retry_after: float | None = None,
        gone: bool = False,
    ) -> None:
        super().__init__(message, hint=hint, transient=transient)
        self.retry_after = retry_after
        self.gone = gone


class SyncError(AkoshaError):
    """An attempt of a method failed.

    `forwardable` is false if the databases are the cause, so that another method would fail, too. `retry_after`:
    seconds to wait before a retry, as the target asked.
    """

    def __init__(
        self,
        message: str,
        method: str,
        original: BaseException | None = None,
        *,
        hint: str = "",
        transient: bool = False,
        forwardable: bool = True,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, transient=transient)
        self.method = method
        self.original = original
        self.forwardable = forwardable
        self.retry_after = retry_after


class CloudUploadError(SyncError):
    """The cloud method's attempt failed."""


class HTTPSyncError(SyncError):
    """The http method's attempt failed."""


class HybridSyncError(SyncError):
    """Every method failed. `errors` has an entry (`method`, `error`) per method, in the order of the attempts."""

    def __init__(self, message: str, method: str, errors: Sequence[Mapping[str, str]], *, hint: str = "") -> None:
        super().__init__(message, method, hint=hint)
        self.errors = [dict(error) for error in errors]
