"""Translates nats-py's exceptions to BusError, and restores cancellations that nats-py loses.

Almost all errors are transient, because the server's state can change. `guarded` has the adapter's only
`except Exception`; an unknown exception is logged with its traceback, once for each kind.

nats-py swallows some cancellations. So does asyncio.wait_for, which nats-py uses, when the cancellation and the result
arrive together (before Python 3.12). Such a task would never end, and neither would a task that waits for it.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nats.errors import Error as NatsPyError, MaxPayloadError, NoRespondersError
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from agent.adapters.nats.client import PermissionDenied
from agent.domain.errors import AkoshaError, BusError
from agent.ports import UnexpectedErrors

MORE_CONSUMERS = "nats stream edit AKOSHA_SYNC --max-consumers 10000"
"""The command that lets a stream have more consumers."""

_unexpected = UnexpectedErrors("nats_bus", BusError)


@contextmanager
def preserve_cancellation() -> Iterator[None]:
    """Raise CancelledError at the end of the block if the task was cancelled in it, even if the block swallowed it."""
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    except Exception as error:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task and task.cancelling() > before:
        raise asyncio.CancelledError


class StreamGone(BusError):  # noqa: N818 - the name is the state
    """The stream, or the consumer in it, does not exist."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="the agent creates the stream if the server permits it", transient=True)


class Denied(BusError):  # noqa: N818 - as above
    """The server does not permit the operation."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="allow it in the server's permissions for this user", transient=True)


class NoJetStreamInAccount(Denied):
    """The account has no JetStream. It may import the stream's subjects from an account that has."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.hint = "enable JetStream for this account, or import the stream's subjects from the account that has it"


class NoJetStream(BusError):  # noqa: N818 - as above
    """No server answers JetStream requests."""

    def __init__(self, message: str) -> None:
        hint = "check that JetStream is enabled on the NATS server and has free storage"
        super().__init__(message, hint=hint, transient=True)


@contextmanager
def guarded(translation: Callable[[Exception], AkoshaError], *, hidden: bool = False) -> Iterator[None]:
    """Raise the translation of an exception; an AkoshaError passes unchanged.

    `hidden`: omit the cause, whose text may contain a secret.
    """
    try:
        yield
    except AkoshaError:
        raise
    except Exception as error:  # noqa: BLE001 - a library may raise anything
        raise translation(error) from (None if hidden else error)


@contextmanager
def translated(operation: str) -> Iterator[None]:
    """Raise an exception of the block as BusError with the operation, the server's message and a hint."""
    with guarded(lambda error: _translation(error, operation)), preserve_cancellation():
        yield


def unexpected(error: Exception, operation: str, text: str, *, hint: str) -> BusError:
    """Return the BusError for an unknown exception; the first of its kind is logged."""
    return _unexpected.translate(error, operation, text, hint=f"{hint} The log has the traceback")


_TOO_MANY_CONSUMERS = 10026
_NO_JETSTREAM_IN_ACCOUNT = 10039


def _translation(error: Exception, operation: str) -> BusError:
    if isinstance(error, PermissionDenied):
        return Denied(f"{operation}: {str(error).removeprefix('nats: ')}")
    if isinstance(error, NoStreamResponseError | NotFoundError):
        return StreamGone(f"{operation}: the stream does not exist")
    if isinstance(error, MaxPayloadError):
        return BusError(f"{operation}: the message is larger than the server allows", hint="raise its max_payload")
    if isinstance(error, APIError) and error.err_code == _NO_JETSTREAM_IN_ACCOUNT:
        return NoJetStreamInAccount(f"{operation}: {_description(error)}")
    if isinstance(error, NoRespondersError | ServiceUnavailableError):
        return NoJetStream(f"{operation}: {_description(error) or 'JetStream does not answer'}")
    if isinstance(error, TimeoutError):
        return BusError(f"{operation}: no answer", transient=True)
    if isinstance(error, APIError):
        hint = MORE_CONSUMERS if error.err_code == _TOO_MANY_CONSUMERS else ""
        return BusError(f"{operation}: {_description(error)}", hint=hint, transient=True)
    if isinstance(error, NatsPyError | OSError):
        text = str(error).removeprefix("nats: ") or type(error).__name__
        return BusError(f"{operation}: {text}", transient=True)
    hint = "check whether another program answers on that subject."
    return unexpected(error, operation.partition(" ")[0], f"{operation}: unexpected answer", hint=hint)


def _description(error: Exception) -> str:
    return str(getattr(error, "description", "") or "")
