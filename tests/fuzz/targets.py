"""All fuzz targets: a new one is a row in the `TARGETS` of one of these modules."""

from tests.fuzz import bucket, database_files, messages, servers, setting_files
from tests.fuzz.target import Target

TARGETS: tuple[Target, ...] = (
    *messages.TARGETS,
    *bucket.TARGETS,
    *setting_files.TARGETS,
    *servers.TARGETS,
    *database_files.TARGETS,
)
