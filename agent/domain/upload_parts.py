"""What an upload consists of, as its manifest records it: the files of the databases, memories.json, their objects."""

import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Literal, Self, cast, get_args

from agent.domain import naming
from agent.domain.databases import database_of, main_name
from agent.domain.errors import NamingError, WireError
from agent.domain.parsing import expect, expect_optional, expect_optional_texts

LONGEST_NAME_BYTES = 255
"""The longest name of a file, on every file system that is supported."""

Compression = Literal["gzip", "none"]
Patches = Literal["patches (update akosha-agent)"]
PartCompression = Literal["gzip", "none"] | Patches
PATCHES: Patches = "patches (update akosha-agent)"
"""The compression of a file that is stored as a base and patches. Versions that cannot apply patches do not know this
value, and print it in their error. They have no other way to say what helps.
"""
Origin = Literal["sent", "copied", "carried"]

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRecord:
    """An object of an upload. `raw_size` and `sha256` are those of its uncompressed content, `stored_size` is its size.

    `etag` is the store's ETag, as in `StoredObject`; empty if the version that wrote the manifest did not record it.
    """

    key: str
    raw_size: int
    stored_size: int
    sha256: str
    compression: Compression
    etag: str = ""

    def __post_init__(self) -> None:
        if self.raw_size < 0 or self.stored_size < 0:
            raise WireError(f"object {self.key!r}: a size is negative")
        if not _SHA256.fullmatch(self.sha256):
            raise WireError(f"object {self.key!r}: {self.sha256!r} is not a SHA-256")
        if self.compression not in get_args(Compression):
            raise WireError(f"object {self.key!r}: {self.compression!r} is unknown", hint="update akosha-agent")

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the object, with which it can be decoded without the manifest."""
        return {"sha256": self.sha256, "size": str(self.raw_size), "compression": self.compression}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer(ObjectRecord):
    """The base of a patched file, or a patch. A patch makes the file of the next state from that of the state before.

    `file_size` and `file_sha256` are those of the file that the base is, or that the patch makes. `upload_id` is the
    first upload that had it as a layer.
    """

    file_size: int
    file_sha256: str
    upload_id: str

    def __post_init__(self) -> None:
        ObjectRecord.__post_init__(self)
        if self.file_size < 0:
            raise WireError(f"object {self.key!r}: a size is negative")
        if not _SHA256.fullmatch(self.file_sha256):
            raise WireError(f"object {self.key!r}: {self.file_sha256!r} is not a SHA-256")
        naming.upload_time(self.upload_id)

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Self:
        """Return the layer in a JSON object. Unknown fields are ignored. Raises WireError."""
        try:
            known = {"etag": "", **document}
            known = {name: known[name] for name in cls.__dataclass_fields__}
            expect(known, str, "key", "sha256", "compression", "etag", "file_sha256", "upload_id")
            expect(known, int, "raw_size", "stored_size", "file_size")
            return cls(**known)  # type: ignore[arg-type] # checked by the lines above and __post_init__
        except (KeyError, TypeError, NamingError) as error:
            raise WireError(f"a layer is incomplete: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of a database, stored as an object in the bucket, or as several: a base and patches (`layers`).

    `name` is the file's name in the data directory; `sha256` and `raw_size` are those of the uncompressed file,
    `stored_size` is the size of its objects. `key` is its object, or its base. `origin`: `sent` by the agent, whole or
    as a patch; `copied` by the store from the upload before, because the file is unchanged; or `carried` over from it,
    because the database could not be copied this time or was not requested (then `carried_from` is the upload that sent
    this state of the database). `verified`: before the manifest, DuckDB opened the snapshot and read all of it, or it
    replayed the WAL and counted the rows, and had read all of a copy with the same main file within a day before;
    otherwise `unverified_reason` says why not. `header_iteration` counts the main file's checkpoints; `storage_version`
    is its format, None in uploads of earlier versions. `etag` is the ETag of a single object; layers have their own.
    """

    database: str
    name: str
    key: str
    raw_size: int
    stored_size: int
    sha256: str
    compression: PartCompression
    origin: Origin
    verified: bool
    unverified_reason: str = ""
    header_iteration: int | None = None
    carried_from: str | None = None
    storage_version: int | None = None
    etag: str = ""
    layers: tuple[Layer, ...] = ()

    def __post_init__(self) -> None:
        if self.raw_size < 0 or self.stored_size < 0:
            raise WireError(f"part {self.name!r}: a size is negative")
        if not _SHA256.fullmatch(self.sha256):
            raise WireError(f"part {self.name!r}: {self.sha256!r} is not a SHA-256")
        # A restore uses the name as a path, so only file names of the database are valid.
        if database_of(self.name) != self.database:
            raise WireError(f"part {self.name!r} is not a file of database {self.database!r}")
        if len(self.name.encode()) > LONGEST_NAME_BYTES:
            raise WireError(f"part {self.name[:80]!r}... has a name that is too long for a file")
        if self.compression not in (*get_args(Compression), PATCHES) or self.origin not in get_args(Origin):
            raise WireError(
                f"part {self.name!r}: {self.compression!r} or {self.origin!r} is unknown", hint="update akosha-agent"
            )
        if self.carried_from is not None:
            naming.upload_time(self.carried_from)
        if len(self.layers) == 1 or (self.compression == PATCHES) != bool(self.layers):
            raise WireError(f"part {self.name!r}: its layers do not match its compression {self.compression!r}")
        if self.layers and not self._matches_layers():
            raise WireError(f"part {self.name!r} is not the file that its layers make")

    @property
    def objects(self) -> tuple[ObjectRecord, ...]:
        """The objects of the file: one, or its layers in the order in which they are applied."""
        if self.compression == PATCHES:
            return self.layers
        return (
            ObjectRecord(
                key=self.key,
                raw_size=self.raw_size,
                stored_size=self.stored_size,
                sha256=self.sha256,
                compression=self.compression,
                etag=self.etag,
            ),
        )

    def with_etags(self, etags: Mapping[str, str]) -> Self:
        """Return the part with the ETags of its objects, by key."""
        if self.layers:
            return replace(self, layers=tuple(replace(layer, etag=etags[layer.key]) for layer in self.layers))
        return replace(self, etag=etags[self.key])

    def to_document(self) -> dict[str, object]:
        """Return the part as JSON types."""
        document = asdict(self)
        if not self.layers:
            del document["layers"]
        return document

    def _matches_layers(self) -> bool:
        base, last = self.layers[0], self.layers[-1]
        return (
            self.key == base.key
            and (base.file_size, base.file_sha256) == (base.raw_size, base.sha256)
            and (self.raw_size, self.sha256) == (last.file_size, last.file_sha256)
            and self.stored_size == sum(layer.stored_size for layer in self.layers)
        )

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Self:
        """Return the part in a JSON object. Unknown fields are ignored. Raises WireError."""
        try:
            known = {name: document[name] for name in cls.__dataclass_fields__ if name in document}
            expect(known, str, "database", "name", "key", "sha256", "compression", "origin")
            expect(known, int, "raw_size", "stored_size")
            expect({"unverified_reason": "", "etag": "", **known}, str, "unverified_reason", "etag")
            expect_optional(known, int, "header_iteration")
            expect_optional(known, int, "storage_version")
            expect_optional(known, str, "carried_from")
            if not isinstance(known["verified"], bool):
                raise TypeError("verified is not bool")
            expect({"layers": [], **known}, list, "layers")
            layers = cast("list[Mapping[str, object]]", known.get("layers", []))
            known["layers"] = tuple(Layer.from_document(layer) for layer in layers)
            return cls(**known)  # type: ignore[arg-type] # checked by the two lines above and __post_init__
        except (KeyError, TypeError, NamingError) as error:
            raise WireError(f"a part is incomplete: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoriesPart(ObjectRecord):
    """The upload's memories.json, or memories.json.gz: `count` memories that are new or changed since each base.

    `bases` maps the databases whose memories it has to their base: the upload that the memories are a change to, or
    None if all of them are here. A reader that lacks a base reads the database instead.
    """

    count: int
    bases: Mapping[str, str | None]

    def __post_init__(self) -> None:
        ObjectRecord.__post_init__(self)
        if self.count < 0:
            raise WireError("memories: the count is negative")
        check_databases(self.bases)
        for base in self.bases.values():
            if base is not None:
                naming.upload_time(base)

    def to_document(self) -> dict[str, object]:
        """Return the part as JSON types. `raw_size` is named `size`, as earlier versions read it."""
        document = asdict(self)
        document["size"] = document.pop("raw_size")
        return document

    @classmethod
    def from_document(cls, document: Mapping[str, object]) -> Self:
        """Return the part in a JSON object. Unknown fields are ignored. Raises WireError.

        Manifests of earlier versions have no `stored_size` and `compression`: their memories are not compressed.
        """
        try:
            size = document["size"]
            known = {"etag": "", "compression": "none", "stored_size": size, **document, "raw_size": size}
            known = {name: known[name] for name in cls.__dataclass_fields__}
            expect(known, str, "key", "sha256", "compression", "etag")
            expect(known, int, "raw_size", "stored_size", "count")
            expect(known, dict, "bases")
            expect_optional_texts(cast("Mapping[str, object]", known["bases"]))
            return cls(**known)  # type: ignore[arg-type] # checked by the lines above and __post_init__
        except (KeyError, TypeError, NamingError) as error:
            raise WireError(f"memories are incomplete: {error}") from error


def part_keys(system_id: str, upload: str, name: str, *, layers: int) -> tuple[str, ...]:
    """Return the keys of a file's objects: one, or as many as it has `layers`.

    A base never has the file's own name: a program that does not know patches would take it for the file.
    """
    plain = naming.object_name(name)
    names = [f"{plain}.patch-{number:02}" if number else f"{plain}.base" for number in range(layers)]
    return tuple(naming.object_key(system_id, upload, each) for each in names or [plain])


def is_read_by_name(key: str, keys: Container[str]) -> bool:
    """Return whether a restore without the manifest would read the object in an upload with these keys.

    It reads the files of databases, and the patches beside a base.
    """
    patched, is_patch, _ = key.rpartition(".patch-")
    return database_of(key.rpartition("/")[2]) is not None or (bool(is_patch) and f"{patched}.base" in keys)


def relocate(part: Part, *, system_id: str, upload: str, origin: Origin, carried_from: str | None) -> Part:
    """Return the part of another upload with the same bytes. The ETags of its objects are not known yet."""
    keys = part_keys(system_id, upload, part.name, layers=len(part.layers))
    layers = tuple(replace(layer, key=key, etag="") for layer, key in zip(part.layers, keys, strict=False))
    return replace(part, key=keys[0], origin=origin, carried_from=carried_from, etag="", layers=layers)


def check_databases(names: Iterable[str]) -> None:
    """Raise WireError unless all are names of databases."""
    for name in names:
        if database_of(main_name(name)) != name:
            raise WireError(f"memories: {name!r} is not a database")
