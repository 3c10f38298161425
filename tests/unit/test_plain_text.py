"""Text quoted from files, servers and other programs is shown without secrets, control characters and long lines."""

import pytest
from hypothesis import given, strategies as st

from agent.domain.errors import AkoshaError, SettingsError, StoreError, SyncError
from agent.domain.events import MethodError
from agent.domain.plain_text import LONGEST_LINE, MASK, hide, printable, safe_text, signal_name
from agent.domain.status_warning import StatusWarning

HOSTILE = "a\x1b[2J\r\nb\u202ec\u2066\x00\x9b\x7f\udc80\u2028"


def test_control_characters_are_escaped():
    assert printable(HOSTILE) == "a\\x1b[2J\\r\\nb\\u202ec\\u2066\\x00\\x9b\\x7f\\udc80\\u2028"
    assert printable("one\ntwo\x1b", lines=True) == "one\ntwo\\x1b"


@pytest.mark.parametrize("text", ["plain", "résumé 東京\u3000都 \N{GRINNING FACE}", "1\u00a0000", "C:\\x1b"])
def test_other_text_is_unchanged(text):
    assert printable(text) == text


@given(st.text(st.characters(codec=None)))
def test_cleaning_is_idempotent_and_gives_valid_unicode(text):
    once = safe_text(text)
    assert safe_text(once) == once
    assert once.encode().decode() == once
    assert not set(once) & {chr(code) for code in (*range(32), *range(127, 160))}


def test_the_text_of_every_error_is_cleaned_and_its_secrets_are_masked():
    hide("c4n4ry-secret")
    for error in (
        AkoshaError(f"{HOSTILE} c4n4ry-secret", hint=HOSTILE),
        StoreError(f"{HOSTILE} c4n4ry-secret", hint=HOSTILE),
        SyncError(f"{HOSTILE} c4n4ry-secret", "cloud", hint=HOSTILE),
        SettingsError(f"{HOSTILE} c4n4ry-secret".replace("\n", ""), hint=HOSTILE),
    ):
        assert "\x1b" not in str(error) + error.message + "".join(map(str, error.args))
        assert "\n" not in str(error)
        assert MASK in error.message
        assert "c4n4ry" not in str(error) + repr(error)


def test_settings_errors_keep_one_line_per_setting():
    assert str(SettingsError("one\ntwo\x1b")) == "one\ntwo\\x1b"


def test_a_line_has_a_bounded_length():
    error = StoreError("x" * 100_000)
    assert error.message == "x" * LONGEST_LINE + "..."
    many = SettingsError("\n".join(["y" * 5000, "z"]))
    assert many.message == "y" * LONGEST_LINE + "...\nz"


def test_warnings_and_the_errors_of_a_request_are_cleaned():
    assert "\x1b" not in str(StatusWarning(code="x", message=HOSTILE, hint=HOSTILE))
    assert MethodError(method="cloud", error=HOSTILE).error == printable(HOSTILE)


def test_a_signal_without_a_name_has_its_number():
    assert (signal_name(9), signal_name(35)) == ("SIGKILL", "signal 35")
