"""All fuzz targets: a new one is a row in the `TARGETS` of one of these modules."""

from tests.fuzz import bucket, messages
from tests.fuzz.target import Target

TARGETS: tuple[Target, ...] = (*messages.TARGETS, *bucket.TARGETS)
