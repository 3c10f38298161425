"""What nats-py raises, as BusError, translated once here; and cancellations, which nats-py may lose.

All of it may pass, so all of it is transient. `guarded` has the adapter's one `except Exception`; what it does not know
is logged with its traceback, once a kind.

nats-py swallows some cancellations itself, and asyncio.wait_for, on which it builds, swallows one that meets the result
(before Python 3.12). A task that is then not cancelled never ends, and neither does a task that waits for it.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nats.errors import Error as NatsPyError, MaxPayloadError, NoRespondersError
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from agent.adapters.nats.client import Client
from agent.domain.errors import AkoshaError, BusError
from agent.ports import UnexpectedErrors


@contextmanager
def kept_cancellable() -> Iterator[None]:
    """Raise CancelledError at the end of the block if the task was cancelled within it, however the block ended."""
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


_unexpected = UnexpectedErrors("nats_bus", BusError)


class StreamGone(BusError):  # noqa: N818 - the name says the state of the world
    """The stream, or the consumer in it, is not there."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="it will be made again", transient=True)


@contextmanager
def guarded(translation: Callable[[Exception], AkoshaError], *, hidden: bool = False) -> Iterator[None]:
    """Raise an exception of the block as its translation; errors of ours pass as they are.

    `hidden`: without its cause, whose text may be a secret.
    """
    try:
        yield
    except AkoshaError:
        raise
    except Exception as error:  # noqa: BLE001 - a library may raise anything
        raise translation(error) from (None if hidden else error)


@contextmanager
def translated(doing: str, client: Client | None = None) -> Iterator[None]:
    """Raise what goes wrong in the block as BusError: what was being done, what the server says, the cure."""
    if client is not None:
        client.refused = ""
    with guarded(lambda error: _translation(error, doing, client)), kept_cancellable():
        yield


def unexpected(error: Exception, operation: str, text: str, *, hint: str) -> BusError:
    """Return the BusError for an exception that is not known here; the first of its kind is logged."""
    return _unexpected.translate(error, operation, text, hint=f"{hint} The log has the traceback")


def _translation(error: Exception, doing: str, client: Client | None) -> BusError:
    if isinstance(error, NoStreamResponseError | NotFoundError):
        return StreamGone(f"{doing}: the stream is not there")
    if isinstance(error, MaxPayloadError):
        return BusError(f"{doing}: larger than the server takes", hint="raise its max_payload")
    if isinstance(error, NoRespondersError | ServiceUnavailableError):
        hint = "is JetStream enabled on the NATS server, and has it room?"
        return BusError(f"{doing}: {_words(error) or 'JetStream does not answer'}", hint=hint, transient=True)
    if isinstance(error, TimeoutError):
        refused = client.refused if client is not None else ""
        hint = "allow it in the server's permissions for this user" if refused else ""
        return BusError(f"{doing}: {refused or 'no answer'}", hint=hint, transient=True)
    if isinstance(error, APIError):
        return BusError(f"{doing}: {_words(error)}", transient=True)
    if isinstance(error, NatsPyError | OSError):
        text = str(error).removeprefix("nats: ") or type(error).__name__
        return BusError(f"{doing}: {text}", transient=True)
    hint = "does something else answer on that subject?"
    return unexpected(error, doing.partition(" ")[0], f"{doing}: an answer that makes no sense", hint=hint)


def _words(error: Exception) -> str:
    return str(getattr(error, "description", "") or "")
