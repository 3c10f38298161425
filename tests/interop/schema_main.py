"""Holds manifests to Akosha's own schema, with Akosha's own interpreter.

python schema_main.py        a manifest per line on standard input; "answer: " and what is wrong with it for each
"""

import json
import sys

from akosha.models.schemas import SystemMemoryUploadManifest, validate_system_id, validate_upload_id
from pydantic import ValidationError


def complaint(document: dict[str, object]) -> str:
    try:
        SystemMemoryUploadManifest(**document)
        validate_system_id(str(document["system_id"]))
        validate_upload_id(str(document["upload_id"]))
    except (ValidationError, ValueError, TypeError) as error:
        return str(error)
    return ""


if __name__ == "__main__":
    for line in sys.stdin:
        print(f"answer: {json.dumps(complaint(json.loads(line)))}")
