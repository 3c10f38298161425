"""What lies in a bucket, read without any of the agent's own code: as the documents describe it, and no more.

Whoever restores by hand needs what is here: a manifest, gzip, SHA-256.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.domain.errors import WireError

MANIFEST = "manifest.json"

_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """One object of an upload, as the manifest has it. Sizes in bytes; `sha256` is of the file before compression."""

    name: str
    key: str
    raw_size: int
    stored_size: int
    sha256: str
    compression: str
    origin: str


@dataclass(frozen=True, slots=True)
class Memories:
    """The upload's memories.json, as the manifest has it. `count` of its memories."""

    key: str
    size: int
    sha256: str
    count: int


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload, as its manifest has it."""

    folder: Path
    upload_id: str
    parts: tuple[Part, ...]
    memories: Memories | None
    files: tuple[str, ...]
    rows: Mapping[str, int]
    total_size: int

    @classmethod
    def read(cls, folder: Path) -> "Upload":
        """Read the manifest of the upload in `folder`. Raises WireError where it is missing or says something else."""
        try:
            document = json.loads((folder / MANIFEST).read_bytes())
            databases = document["metadata"]["rows"].values()
            return cls(
                folder=folder,
                upload_id=str(document["upload_id"]),
                parts=tuple(_part(part) for part in document["parts"]),
                memories=_memories(document["memories"]) if document["memories"] else None,
                files=tuple(str(name) for name in document["files"]),
                rows={str(table): int(count) for tables in databases for table, count in tables.items()},
                total_size=int(document["total_size_bytes"]),
            )
        except FileNotFoundError as error:
            raise WireError(f"{folder.name} has no {MANIFEST}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WireError(f"{folder.name}/{MANIFEST} cannot be read: {error!r}") from error

    def of(self, database: str) -> tuple[Part, ...]:
        """Return the parts of a database: those of its main file `database` and of its sidecars."""
        return tuple(part for part in self.parts if part.name.startswith(database))

    def misplaced(self) -> list[str]:
        """Return what is there and not in the manifest, or the other way round."""
        there = {path.name for path in self.folder.iterdir()} - {MANIFEST}
        wrong = [f"{self.upload_id} calls itself so in {self.folder.name}"] * (self.upload_id != self.folder.name)
        for said in (set(self.files), {key.rpartition("/")[2] for key, _ in self._sizes()}):
            wrong += [f"{self.folder.name}/{name} is missing" for name in sorted(said - there)]
            wrong += [f"{self.folder.name}/{name} is not in the manifest" for name in sorted(there - said)]
        return list(dict.fromkeys(wrong))

    def wrong_sizes(self) -> list[str]:
        """Return the objects that are not as large as the manifest says, and a total that is not their sum."""
        wrong = []
        for key, told in self._sizes():
            path = self.folder / key.rpartition("/")[2]
            size = path.stat().st_size if path.exists() else 0
            if size != told:
                wrong.append(f"{self.folder.name}/{path.name} has {size} bytes, not {told}")
        total = sum(size for _, size in self._sizes())
        if total != self.total_size:
            wrong.append(f"{self.folder.name} says {self.total_size} bytes, its parts {total}")
        return wrong

    def unpack(self, into: Path) -> list[str]:
        """Write the files as they were to the new folder `into`; return those whose SHA-256 or size is not right."""
        into.mkdir(parents=True)
        wrong = []
        for part in self.parts:
            digest, size = hashlib.sha256(), 0
            try:
                source = self._object(part)
                with (
                    gzip.open(source) if part.compression == "gzip" else source.open("rb") as packed,
                    (into / Path(part.name).name).open("wb") as file,
                ):
                    while piece := packed.read(_PIECE):
                        digest.update(piece)
                        size += file.write(piece)
            except (OSError, EOFError, zlib.error) as error:
                wrong.append(f"{self.folder.name}/{part.name}: {error}")
                continue
            if (digest.hexdigest(), size) != (part.sha256, part.raw_size):
                wrong.append(f"{self.folder.name}/{part.name} is not what its SHA-256 says")
        return wrong

    def remembered(self) -> set[tuple[str, str]]:
        """Return (type, id of the row) of each memory in memories.json; nothing where the upload has none.

        Raises WireError for one that is not as the manifest says.
        """
        if self.memories is None:
            return set()
        data = (self.folder / self.memories.key.rpartition("/")[2]).read_bytes()
        if hashlib.sha256(data).hexdigest() != self.memories.sha256:
            raise WireError(f"{self.folder.name}: memories.json is not what its SHA-256 says")
        try:
            entries = json.loads(data)["conversations"]
            rows = {(str(one["metadata"]["type"]), str(one["metadata"]["original_id"])) for one in entries}
        except (ValueError, TypeError, KeyError) as error:
            raise WireError(f"{self.folder.name}: memories.json cannot be read: {error!r}") from error
        if len(entries) != self.memories.count:
            raise WireError(f"{self.folder.name} has {len(entries)} memories, not {self.memories.count}")
        return rows

    def _sizes(self) -> list[tuple[str, int]]:
        """Return each object's key and the size that it is told to have."""
        sizes = [(part.key, part.stored_size) for part in self.parts]
        return [*sizes, (self.memories.key, self.memories.size)] if self.memories else sizes

    def _object(self, part: Part) -> Path:
        return self.folder / part.key.rpartition("/")[2]


def upload_folders(bucket: Path) -> list[Path]:
    """Return the folders of all uploads, oldest first, those without a manifest too."""
    return sorted(bucket.glob("systems/*/uploads/*"))


def _memories(document: Mapping[str, object]) -> Memories:
    return Memories(
        key=str(document["key"]),
        size=int(str(document["size"])),
        sha256=str(document["sha256"]),
        count=int(str(document["count"])),
    )


def _part(document: Mapping[str, object]) -> Part:
    return Part(
        name=str(document["name"]),
        key=str(document["key"]),
        raw_size=int(str(document["raw_size"])),
        stored_size=int(str(document["stored_size"])),
        sha256=str(document["sha256"]),
        compression=str(document["compression"]),
        origin=str(document["origin"]),
    )
