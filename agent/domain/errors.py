"""Every error the agent raises, in one tree.

    AkoshaError
    ├── SettingsError          a setting is missing, wrong or unsafe; commands exit with 2
    ├── NamingError            a text that is invalid in a key, a subject or an id
    ├── WireError              bytes that are not what they should be: an event, a manifest, a note
    ├── StateError             the state directory or the ledger in it cannot be used
    │   ├── AlreadyRunning     another process holds the state directory
    │   └── LedgerDamaged      the ledger's content is not what was written
    ├── SystemIdTaken          another machine owns the default system id: this one takes another
    ├── SnapshotError          the source's fault: a database that cannot be copied now
    │   └── StagingFull        our side's fault: no room to copy it to
    ├── StoreError             the bucket's or the network's fault
    │   ├── NoSuchObject       nothing under that key
    │   ├── CopyUnsupported    the store cannot copy on its side, or did not really do it
    │   ├── NotPermitted       the credentials do not allow the operation
    │   └── NotOwner           the system id there belongs to another machine or agent, or what it held is gone
    ├── RestoreError           an upload cannot be restored there, and why
    ├── SinkError              Akosha cannot be reached, refused or failed
    ├── BusError               an event bus cannot be reached, refused or failed
    ├── AgentUnavailable       the running agent cannot be reached, or does not understand the request
    └── SyncError              a method's attempt as a whole failed
        ├── CloudUploadError
        ├── HTTPSyncError
        └── HybridSyncError    all methods failed, each in its own way

`transient` says whether trying the same again may help. `hint` is the command or setting that mends it.
Only an adapter catches all that its library may raise; what it does not know becomes its own error, transient.
Texts never carry secrets or control characters: the root passes every message and hint through `plain_text`.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from agent.domain.plain_text import safe_text


class AkoshaError(Exception):
    """Root of the tree. `str()` gives the message, then the hint.

    A message may quote file names, servers and other programs: it is cleaned here, once for all that shows, stores or
    publishes it. `has_lines` keeps line breaks.
    `unexpected`: the kind of error (`KeyError in head_object`) where a library raised what the adapter does not know.
    `credentials_refused`: the target refused the key or token, or there is none.
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


class SettingsError(AkoshaError):
    """A setting is missing, wrong or unsafe. Several are one message, a line each."""

    has_lines = True


class NamingError(AkoshaError, ValueError):
    """A text is invalid in a key, a subject or an id."""


class WireError(AkoshaError, ValueError):
    """Bytes from outside are not what they should be."""


class StateError(AkoshaError):
    """The state directory, or the ledger in it, cannot be used."""


class AlreadyRunning(StateError):  # noqa: N818 - the name says the state of the world, as FileExistsError does
    """Another process holds the state directory: `pid` and `command` name it (0 and "" where that is unknown)."""

    def __init__(self, message: str, *, pid: int = 0, command: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.pid = pid
        self.command = command


class AgentUnavailable(AkoshaError):  # noqa: N818
    """The running agent cannot be reached, or does not understand the request.

    `unresponsive`: it runs, but does not answer.
    """

    def __init__(self, message: str, *, unresponsive: bool = False) -> None:
        super().__init__(message, transient=True)
        self.unresponsive = unresponsive


class SystemIdTaken(AkoshaError):  # noqa: N818
    """Another machine owns the default system id `taken` in the target; `instead` is the one that this machine takes.

    Nothing was sent. The identity file gets `instead`, and a new agent is built.
    """

    def __init__(self, message: str, *, taken: str, instead: str) -> None:
        super().__init__(message, hint="set akosha_system_id to choose an id yourself")
        self.taken = taken
        self.instead = instead


class LedgerDamaged(StateError):  # noqa: N818
    """The ledger's file, or content in it, is not what was written. The holder of the state directory replaces it."""


class SnapshotError(AkoshaError):
    """A database cannot be copied now. Permanent: not before its files change."""


class StagingFull(SnapshotError):  # noqa: N818
    """There is no room in the state directory for the copy."""


class StoreError(AkoshaError):
    """A store refused, failed, damaged or lost something."""


class NoSuchObject(StoreError):  # noqa: N818
    """There is nothing under that key."""


class CopyUnsupported(StoreError):  # noqa: N818
    """The store cannot copy on its own side, or answered as if it had and did not."""


class NotPermitted(StoreError):  # noqa: N818
    """The credentials do not allow the operation."""


class NotOwner(StoreError):  # noqa: N818
    """Uploads of this system id are not this agent's to change there. Permanent: a person decides."""


class RestoreError(AkoshaError):
    """An upload cannot be restored there, or differs from its manifest. No file is left half written."""


class SinkError(AkoshaError):
    """Akosha cannot be reached, refused or failed. `retry_after` (seconds): how long it asked to be left alone."""

    def __init__(
        self, message: str, *, hint: str = "", transient: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message, hint=hint, transient=transient)
        self.retry_after = retry_after


class BusError(AkoshaError):
    """An event bus cannot be reached, refused or failed: what was published may or may not have arrived."""


class SyncError(AkoshaError):
    """An attempt of a method failed as a whole.

    `forwardable` is false where the fault is the source's: another method would meet the same. `retry_after` (seconds):
    how long the target asked to be left alone.
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
    """Every method failed. `errors` has one entry per method, in the order they were tried: `method`, `error`."""

    def __init__(self, message: str, method: str, errors: Sequence[Mapping[str, str]], *, hint: str = "") -> None:
        super().__init__(message, method, hint=hint)
        self.errors = [dict(error) for error in errors]
