"""An object store on S3 and compatible services (R2, MinIO, B2, rclone). The first call loads the AWS libraries.

store               `S3Store` implements `ObjectStore` with the next four
reading, writing    requests on objects and listings
multipart, part     large objects, and the parts of a body
connection          calls on one bucket; builds and replaces the client
client, session     the S3 client, and its HTTP connections
credential_sources  the AWS credential chain, with time limits
bucket_address      endpoint, region and addressing style
object_options      encryption and storage class
responses           validates responses
errors, local_faults  errors of the store and of this machine as StoreErrors
"""

from agent.adapters.s3.object_options import ObjectOptions
from agent.adapters.s3.store import S3Store

__all__ = ["ObjectOptions", "S3Store"]
