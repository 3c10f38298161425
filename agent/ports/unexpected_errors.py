"""Translates library errors that an adapter does not know into the adapter's error, and logs each kind once.

An adapter has one `except Exception`, which re-raises AkoshaErrors, translates the errors that it knows, and passes the
others to `UnexpectedErrors`. Exceptions that are not `Exception` (cancellation, Ctrl-C) are never caught.
"""

from typing import Generic, TypeVar

import structlog

from agent.domain.errors import AkoshaError

E = TypeVar("E", bound=AkoshaError)

MAX_KINDS = 100

_log = structlog.get_logger()


class UnexpectedErrors(Generic[E]):
    """Creates `failure` errors for one adapter. Logs the traceback of the first error of each kind."""

    def __init__(self, adapter: str, failure: type[E]) -> None:
        self._adapter, self._failure = adapter, failure
        self._kinds: set[str] = set()

    def translate(self, error: Exception, operation: str, text: str, *, hint: str = "") -> E:
        """Return a transient error to raise from `error`, with its kind in `unexpected`.

        `text` says what failed and where, and what the response was. It does not include the error's own message, which
        may quote a response or a secret.
        """
        kind = f"{type(error).__name__} in {operation}"
        if kind not in self._kinds and len(self._kinds) < MAX_KINDS:
            self._kinds.add(kind)
            _log.warning("unexpected_error", adapter=self._adapter, operation=operation, error=text, exc_info=error)
        failure = self._failure(
            f"{text} ({type(error).__name__})", hint=hint or "the log has the traceback", transient=True
        )
        failure.unexpected = kind
        return failure
