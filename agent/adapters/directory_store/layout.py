"""The layout below a root directory: objects under their keys, and the store's own files under `.akosha`.

    <root>/<key>                         the object, an ordinary file
    <root>/.akosha/metadata/<key>.json   {"size": ..., "metadata": {...}}
    <root>/.akosha/incoming/<key>/...    puts in progress
    <root>/.akosha/checked/<inode>.json  when the bytes of a file were last read and compared (`sharing.Checks`)

Metadata records are in a hidden mirror of the tree. FAT, many NAS shares and plain copies lose extended attributes. A
sidecar next to the object would be an extra object in the documented layout. The mirror is copied together with the
root, and an object without a record just has no metadata.

A record contains the size of its object and is valid only if that size matches. It is written before a new object
appears. If an object is replaced by one with different metadata, the old record is removed first and the new one is
written last. After a crash, metadata may therefore be missing, but never belongs to another object.

The record of a reflink has `"shares"`, which names the physical copy whose blocks the object has.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from agent.adapters import fs
from agent.domain.errors import NamingError, StoreError
from agent.domain.parsing import is_unicode, parse_json

HIDDEN = ".akosha"

MAX_RECORD_BYTES = 64 * 2**10


def check_key(key: str) -> str:
    """Return the key if all its segments are plain names; else raise NamingError. A key cannot leave its root."""
    segments = key.split("/")
    if any(s in ("", ".", "..") or "\0" in s or "\\" in s for s in segments) or segments[0].casefold() == HIDDEN:
        raise NamingError(f"{key!r} is not a valid key", hint="use plain names separated by /")
    return key


def object_path(root: Path, key: str) -> Path:
    """Return the path of the object. Raises NamingError for an invalid key, StoreError if the path has a symlink."""
    return inside(root, root / check_key(key))


def record_path(root: Path, key: str) -> Path:
    """Return the path of the object's metadata record. Raises as `object_path` does."""
    return inside(root, root / HIDDEN / "metadata" / f"{check_key(key)}.json")


def incoming_folder(root: Path, key: str) -> Path:
    """Return the directory for unfinished puts of this key. Raises as `object_path` does."""
    return inside(root, root / HIDDEN / "incoming" / check_key(key))


def inside(root: Path, path: Path) -> Path:
    """Return `path`. Raises StoreError if `path` or a directory between `root` and `path` is a symlink."""
    step = root
    for name in path.relative_to(root).parts:
        step = step / name
        try:
            mode = step.lstat().st_mode
        except FileNotFoundError:
            break
        if stat.S_ISLNK(mode):
            raise StoreError(
                f"{step} is a symbolic link: links below {root} are not followed",
                hint=f"remove {step}, or set akosha_cloud_endpoint to the directory that it points to",
            )
    return path


def open_file(path: Path) -> BinaryIO:
    """Open a file of the store for reading. Raises OSError.

    What is not a regular file does not count as existing: others who can write to the directory may have put a pipe
    there, whose opening would block.
    """
    try:
        return os.fdopen(fs.open_regular(path), "rb")
    except ValueError as error:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error


def read_record(path: Path, size: int) -> Mapping[str, str]:
    """Return the metadata in a record, empty if the record is missing, invalid or of another size."""
    try:
        record = parse_json(record_bytes(path))
        if record["size"] == size:
            return {str(name): str(value) for name, value in record["metadata"].items()}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        pass  # the object exists without its record
    return {}


def physical_copy(root: Path, key: str) -> str:
    """Return what names the blocks of an object: `shares` in its record, else the number of its inode. Raises OSError.

    Objects with the same name share their blocks.
    """
    status = object_path(root, key).lstat()
    try:
        record = parse_json(record_bytes(record_path(root, key)))
        if record["size"] == status.st_size:
            return str(record["shares"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        pass
    return str(status.st_ino)


def record_bytes(path: Path) -> bytes:
    """Return the bytes of a record, truncated if it is larger than any record. Raises OSError."""
    with open_file(path) as file:
        return file.read(MAX_RECORD_BYTES)


def encode_record(size: int, metadata: Mapping[str, str], shares: str = "") -> bytes:
    """Return a record's bytes."""
    record = {"size": size, "metadata": dict(metadata)} | ({"shares": shares} if shares else {})
    return json.dumps(record, sort_keys=True).encode()


def exists(path: Path) -> bool:
    """Return whether the path exists, accessible or not. Raises OSError if the file system does not respond."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    except (NotADirectoryError, PermissionError):
        pass  # unusable, but it exists
    return True


def walk(root: Path, prefix: str, start_after: str) -> Iterator[tuple[str, int, float]]:
    """Yield (key, size, time) of regular files below `root` in key order, without `.akosha`.

    The time is when the bytes were written: files that share an inode have that of the first object. Does not follow
    symlinks. Skips files that are removed during the walk.
    """
    yield from _walk(root, "", prefix, start_after)


def folders(root: Path, prefix: str, start: str) -> list[str]:
    """Return the names of the folders directly below `prefix` in key order, from the name `start` on.

    Symlinks are not folders. Raises OSError, and StoreError if the path of `prefix` has a symlink.
    """
    try:
        entries = list(os.scandir(inside(root, root / prefix)))
    except (FileNotFoundError, NotADirectoryError):
        return []
    named = sorted(f"{e.name}/" for e in entries if is_unicode(e.name) and e.is_dir(follow_symlinks=False))
    return [name.removesuffix("/") for name in named if name > start and (prefix or name != f"{HIDDEN}/")]


def _walk(folder: Path, above: str, prefix: str, start_after: str) -> Iterator[tuple[str, int, float]]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    entries = [entry for entry in entries if is_unicode(entry.name)]  # keys are valid Unicode
    # In key order, a directory sorts as its prefix.
    named = sorted((e.name + "/" if e.is_dir(follow_symlinks=False) else e.name, e) for e in entries)
    for name, entry in named:
        key = above + name
        if not above and entry.name == HIDDEN:
            continue
        if name.endswith("/"):
            wanted = key.startswith(prefix) or prefix.startswith(key)
            if wanted and (key > start_after or start_after.startswith(key)):
                yield from _walk(Path(entry.path), key, prefix, start_after)
        elif key.startswith(prefix) and key > start_after and entry.is_file(follow_symlinks=False):
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield key, status.st_size, status.st_mtime
