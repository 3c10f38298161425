"""Validate manifests against Akosha's schema, in Akosha's interpreter.

python schema_main.py        reads a manifest per line; prints "answer: " and its error, or an empty string, for each
"""

import json
import sys

from akosha.models.schemas import SystemMemoryUploadManifest, validate_system_id, validate_upload_id
from pydantic import ValidationError


def validation_error(document: dict[str, object]) -> str:
    try:
        SystemMemoryUploadManifest(**document)
        validate_system_id(str(document["system_id"]))
        validate_upload_id(str(document["upload_id"]))
    except (ValidationError, ValueError, TypeError) as error:
        return str(error)
    return ""


if __name__ == "__main__":
    for line in sys.stdin:
        print(f"answer: {json.dumps(validation_error(json.loads(line)))}")
