"""S3 and its relatives (R2, MinIO, B2, rclone) as a store. Importing this loads no AWS library: the first call does."""

from agent.adapters.s3.object_options import ObjectOptions
from agent.adapters.s3.store import S3Store

__all__ = ["ObjectOptions", "S3Store"]
