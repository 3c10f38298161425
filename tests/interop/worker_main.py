"""Runs Akosha's own IngestionWorker once over a bucket, with Akosha's own interpreter and Oneiric's own S3 adapter.

    python worker_main.py ENDPOINT BUCKET [get]

Prints "answer: " and JSON: `uploads` that it found, `rows` that it stored. The client below the adapter is plain HTTP:
what the server of the tests needs, and nothing that would have to be installed. `get`: the adapter has the method by
which the worker asks for memories.json; Oneiric 0.17's has it not.
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


SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=anybody/20260101/us-east-1/s3/aws4_request"}
"""moto wants to see that there is a signature; it does not look at it."""


class Body:
    def __init__(self, data: bytes) -> None:
        self._data = data

    async def read(self) -> bytes:
        return self._data

    async def close(self) -> None: ...


class Client:
    """The two calls of aioboto3's client that the adapter makes."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    async def list_objects_v2(self, **asked: str) -> dict[str, object]:
        query = {"list-type": "2", "prefix": asked["Prefix"]}
        if "ContinuationToken" in asked:
            query["continuation-token"] = asked["ContinuationToken"]
        page = ET.fromstring(self._ask(f"/{asked['Bucket']}?{urlencode(query)}"))
        found = {one.tag.rpartition("}")[2]: one.text for one in page}
        keys = [one.text for one in page.iter() if one.tag.rpartition("}")[2] == "Key"]
        return {
            "Contents": [{"Key": key} for key in keys],
            "IsTruncated": found.get("IsTruncated") == "true",
            "NextContinuationToken": found.get("NextContinuationToken"),
        }

    async def get_object(self, **asked: str) -> dict[str, object]:
        return {"Body": Body(self._ask(f"/{asked['Bucket']}/{quote(asked['Key'])}"))}

    def _ask(self, path: str) -> bytes:
        try:
            with urllib.request.urlopen(urllib.request.Request(self._endpoint + path, headers=SIGNED)) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError("NoSuchKey" if error.code == 404 else str(error)) from error


class AdapterWithGet(S3StorageAdapter):
    get = S3StorageAdapter.download


async def main() -> None:
    endpoint, bucket, *with_get = sys.argv[1:]
    store = HotStore(":memory:")
    await store.initialize()
    kind = AdapterWithGet if with_get else S3StorageAdapter
    worker = IngestionWorker(kind(S3StorageSettings(bucket=bucket), client=Client(endpoint)), store)
    uploads = await worker._discover_uploads()
    await worker.run(uploads)
    answer = {
        "uploads": [[one.system_id, one.upload_id, one.manifest["conversation_count"]] for one in uploads],
        "rows": store.conn.execute(ROWS).fetchall(),
    }
    print(f"answer: {json.dumps(answer)}")


if __name__ == "__main__":
    asyncio.run(main())
