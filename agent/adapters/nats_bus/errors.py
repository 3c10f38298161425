"""What nats-py raises, as BusError: translated once, here. All of it may pass, so all of it is transient."""

from collections.abc import Iterator
from contextlib import contextmanager

from nats.errors import Error as NatsPyError, MaxPayloadError, NoRespondersError
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError, ServiceUnavailableError

from agent.adapters.nats_bus.cancelling import kept_cancellable
from agent.adapters.nats_bus.client import Client
from agent.domain.errors import BusError


class StreamGone(BusError):  # noqa: N818 - the name says the state of the world
    """The stream, or the consumer in it, is not there."""

    def __init__(self, message: str) -> None:
        super().__init__(message, hint="it will be made again", transient=True)


@contextmanager
def translated(doing: str, client: Client) -> Iterator[None]:
    """Raise what goes wrong in the block as BusError: what was being done, what the server says, the cure."""
    client.refused = ""
    try:
        with kept_cancellable():
            yield
    except (NoStreamResponseError, NotFoundError) as error:
        raise StreamGone(f"{doing}: the stream is not there") from error
    except MaxPayloadError as error:
        raise BusError(f"{doing}: larger than the server takes", hint="raise its max_payload") from error
    except (NoRespondersError, ServiceUnavailableError) as error:
        raise BusError(
            f"{doing}: {_words(error) or 'JetStream does not answer'}",
            hint="is JetStream enabled on the NATS server, and has it room?",
            transient=True,
        ) from error
    except TimeoutError as error:
        refused = client.refused
        hint = "allow it in the server's permissions for this user" if refused else ""
        raise BusError(f"{doing}: {refused or 'no answer'}", hint=hint, transient=True) from error
    except APIError as error:
        raise BusError(f"{doing}: {_words(error)}", transient=True) from error
    except (NatsPyError, OSError) as error:
        raise BusError(f"{doing}: {str(error).removeprefix('nats: ')}", transient=True) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BusError(
            f"{doing}: an answer that makes no sense ({type(error).__name__})",
            hint="does something else answer on that subject?",
            transient=True,
        ) from error


def _words(error: Exception) -> str:
    return str(getattr(error, "description", "") or "")
