"""The verdict of the soak test distinguishes steady growth from fluctuation."""

from dataclasses import replace

import pytest

from tests.bench.report import MEBIBYTE
from tests.soak.usage import Usage, verdict

STEADY = Usage(
    seconds=0, own=60 * MEBIBYTE, anonymous=50 * MEBIBYTE, tree=60 * MEBIBYTE, descriptors=20, threads=9, children=0,
    ledger=0, left=0,
)  # fmt: skip


def over_time(**each) -> list[Usage]:
    """Return a hundred samples; each column is a function of the sample's number."""
    return [replace(STEADY, **{name: value(number) for name, value in each.items()}) for number in range(100)]


def test_fluctuation_is_not_growth():
    busy = {"tree": lambda n: (60 + 20 * (n % 3 == 0)) * MEBIBYTE, "children": lambda n: n % 3 == 0}
    assert verdict(over_time(**busy, threads=lambda n: 9 + n % 2)).grown == ()


def test_loading_at_the_start_is_not_growth():
    assert verdict(over_time(own=lambda n: (40 + min(n, 20)) * MEBIBYTE)).grown == ()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("own", lambda n: 60 * MEBIBYTE + n * MEBIBYTE // 4),
        ("anonymous", lambda n: 50 * MEBIBYTE + n * MEBIBYTE // 4),
        ("descriptors", lambda n: 20 + n // 10),
        ("threads", lambda n: 9 + n // 20),
        ("children", lambda n: n // 15),
    ],
    ids=["own", "anonymous", "descriptors", "threads", "children"],
)
def test_a_column_that_grows_steadily_is_named(column, value):
    assert verdict(over_time(**{column: value})).grown == (column,)


def test_too_few_samples_are_an_error():
    with pytest.raises(ValueError, match="too few"):
        verdict([STEADY] * 9)
