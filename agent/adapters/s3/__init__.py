"""An object store on S3 and compatible services (R2, MinIO, B2, rclone). The first call loads the AWS libraries."""

from agent.adapters.s3.object_options import ObjectOptions
from agent.adapters.s3.store import S3Store

__all__ = ["ObjectOptions", "S3Store"]
