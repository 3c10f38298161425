"""An adapter translates unexpected errors."""

import pytest
from structlog.testing import capture_logs

from agent.domain.errors import BusError, SinkError, StoreError
from agent.ports import UnexpectedErrors

SECRET = "canary-in-the-text-of-the-library"


@pytest.mark.parametrize("failure", [StoreError, SinkError, BusError])
def test_an_unexpected_error_becomes_a_transient_adapter_error_without_foreign_text(failure):
    made = UnexpectedErrors("s3", failure).translate(KeyError(SECRET), "head_object", "head_object of 'k' failed")
    assert type(made) is failure
    assert made.transient
    assert made.unexpected == "KeyError in head_object"
    assert "KeyError" in str(made)
    assert SECRET not in str(made)


def test_the_traceback_is_logged_once_for_each_kind_of_error():
    unexpected = UnexpectedErrors("s3", StoreError)
    with capture_logs() as lines:
        for error in (KeyError("a"), KeyError("b"), ValueError("c")):
            unexpected.translate(error, "head_object", "failed")
        unexpected.translate(KeyError("d"), "get_object", "failed")
    assert [(line["event"], line["operation"], type(line["exc_info"])) for line in lines] == [
        ("unexpected_error", "head_object", KeyError),
        ("unexpected_error", "head_object", ValueError),
        ("unexpected_error", "get_object", KeyError),
    ]
