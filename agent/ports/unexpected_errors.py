"""Errors that a library raises and an adapter does not know: logged once a kind, and turned into the adapter's error.

An adapter has one place with `except Exception`, which re-raises AkoshaErrors, translates what it knows, and hands the
rest to `UnexpectedErrors`. What is no Exception (cancellation, Ctrl-C) is never caught.
"""

from typing import Generic, TypeVar

import structlog

from agent.domain.errors import AkoshaError

E = TypeVar("E", bound=AkoshaError)

KINDS_KEPT = 100

_log = structlog.get_logger()


class UnexpectedErrors(Generic[E]):
    """Makes `failure` errors of one adapter. The traceback of a kind of error is logged when it comes first."""

    def __init__(self, adapter: str, failure: type[E]) -> None:
        self._adapter, self._failure = adapter, failure
        self._kinds: set[str] = set()

    def translate(self, error: Exception, operation: str, text: str, *, hint: str = "") -> E:
        """Return a transient error to be raised from `error`; its `unexpected` names the kind.

        `text` says what failed and where, and what was answered. The error's own words stay out of it: they may quote
        an answer, or a secret.
        """
        kind = f"{type(error).__name__} in {operation}"
        if kind not in self._kinds and len(self._kinds) < KINDS_KEPT:
            self._kinds.add(kind)
            _log.warning("unexpected_error", adapter=self._adapter, operation=operation, error=text, exc_info=error)
        failure = self._failure(
            f"{text} ({type(error).__name__})", hint=hint or "the log has the traceback", transient=True
        )
        failure.unexpected = kind
        return failure
