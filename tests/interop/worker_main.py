"""Run Akosha's IngestionWorker once over a bucket, in Akosha's interpreter, with Oneiric's S3 adapter.

    python worker_main.py ENDPOINT BUCKET [get]

Prints "answer: " and JSON: the `uploads` found and the `rows` stored. The adapter's client is replaced by plain HTTP,
which the test server accepts, so that no other package is needed. `get` adds the method with which the worker reads
memories.json: the adapter of Oneiric 0.17 lacks it.
"""

import asyncio
import json
import sys
import urllib.error
import urllib.request
from urllib.parse import quote, urlencode
from xml.etree import ElementTree as ET

from akosha.ingestion.worker import IngestionWorker
from akosha.storage import HotStore
from oneiric.adapters.storage.s3 import S3StorageAdapter, S3StorageSettings

ROWS = """SELECT system_id, conversation_id, content, "timestamp"::VARCHAR, metadata::VARCHAR,
    list_sum(list_transform(embedding, lambda x: x * x)) FROM conversations ORDER BY conversation_id"""


HEADERS = {"Authorization": "AWS4-HMAC-SHA256 Credential=anybody/20260101/us-east-1/s3/aws4_request"}
"""moto requires a signature but does not verify it."""


class Body:
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self) -> bytes:
        return self._data

    async def close(self) -> None: ...


class Client:
    """The two methods of aiobotocore's client that the adapter calls."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    async def list_objects_v2(self, **parameters: str) -> dict[str, object]:
        query = {"list-type": "2", "prefix": parameters["Prefix"]}
        if "ContinuationToken" in parameters:
            query["continuation-token"] = parameters["ContinuationToken"]
        page = ET.fromstring(self._get(f"/{parameters['Bucket']}?{urlencode(query)}"))
        elements = {one.tag.rpartition("}")[2]: one.text for one in page}
        keys = [one.text for one in page.iter() if one.tag.rpartition("}")[2] == "Key"]
        return {
            "Contents": [{"Key": key} for key in keys],
            "IsTruncated": elements.get("IsTruncated") == "true",
            "NextContinuationToken": elements.get("NextContinuationToken"),
        }

    async def get_object(self, **parameters: str) -> dict[str, object]:
        return {"Body": Body(self._get(f"/{parameters['Bucket']}/{quote(parameters['Key'])}"))}

    def _get(self, path: str) -> bytes:
        try:
            with urllib.request.urlopen(urllib.request.Request(self._endpoint + path, headers=HEADERS)) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError("NoSuchKey" if error.code == 404 else str(error)) from error


class AdapterWithGet(S3StorageAdapter):
    get = S3StorageAdapter.download


async def main() -> None:
    endpoint, bucket, *with_get = sys.argv[1:]
    store = HotStore(":memory:")
    await store.initialize()
    adapter = AdapterWithGet if with_get else S3StorageAdapter
    worker = IngestionWorker(adapter(S3StorageSettings(bucket=bucket), client=Client(endpoint)), store)
    uploads = await worker._discover_uploads()
    await worker.run(uploads)
    answer = {
        "uploads": [[one.system_id, one.upload_id, one.manifest["conversation_count"]] for one in uploads],
        "rows": store.conn.execute(ROWS).fetchall(),
    }
    print(f"answer: {json.dumps(answer)}")


if __name__ == "__main__":
    asyncio.run(main())
