"""Where things lie below a root: objects under their keys, and what is ours alone under `.akosha`.

    <root>/<key>                         the object, as any file: to be read with any tool
    <root>/.akosha/metadata/<key>.json   {"size": ..., "metadata": {...}}
    <root>/.akosha/incoming/<key>/...    puts in progress

Metadata lies in a hidden mirror of the tree. Extended attributes get lost on FAT, many NAS shares and in plain copies;
a sidecar beside the object would be an object too many in the documented layout; a mirror is copied along with the
root, and an object whose record is missing is merely one without metadata. A record names the size of its object and
counts only where that is right. It is written before a new object appears; where an object is replaced by one of other
metadata, the old record goes first and the new one comes last. So after a crash metadata may be missing, but it is
never another object's.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from agent.domain.errors import NamingError, StoreError

HIDDEN = ".akosha"


def check_key(key: str) -> str:
    """Return the key if its segments are plain names, else raise NamingError: no key reaches out of its root."""
    segments = key.split("/")
    if any(s in ("", ".", "..") or "\0" in s or "\\" in s for s in segments) or segments[0].casefold() == HIDDEN:
        raise NamingError(f"{key!r} cannot be a key", hint="plain names with / between them")
    return key


def object_path(root: Path, key: str) -> Path:
    """Return where the object lies. Raises NamingError for a bad key, StoreError where a symlink lies on the way."""
    return inside(root, root / check_key(key))


def record_path(root: Path, key: str) -> Path:
    """Return where the object's metadata lies."""
    return inside(root, root / HIDDEN / "metadata" / f"{check_key(key)}.json")


def incoming_folder(root: Path, key: str) -> Path:
    """Return where puts of this key wait to be whole."""
    return inside(root, root / HIDDEN / "incoming" / check_key(key))


def inside(root: Path, path: Path) -> Path:
    """Return `path` if no symlink lies between `root` and it, itself included. Raises StoreError."""
    step = root
    for name in path.relative_to(root).parts:
        step = step / name
        try:
            mode = step.lstat().st_mode
        except FileNotFoundError:
            break
        if stat.S_ISLNK(mode):
            raise StoreError(
                f"{step} is a symbolic link: what is stored below {root} stays below it",
                hint=f"remove {step}, or let the endpoint name the directory it leads to",
            )
    return path


def read_record(path: Path, size: int) -> Mapping[str, str]:
    """Return the metadata in a record if it belongs to an object of this size; else none."""
    try:
        record = json.loads(path.read_bytes())
        if record["size"] == size:
            return {str(name): str(value) for name, value in record["metadata"].items()}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        pass  # no record, or one that somebody else wrote: the object is there all the same
    return {}


def encode_record(size: int, metadata: Mapping[str, str]) -> bytes:
    """Return a record's bytes."""
    return json.dumps({"size": size, "metadata": dict(metadata)}, sort_keys=True).encode()


def is_there(place: Path) -> bool:
    """Say whether anything is in this place, also what is closed to us. Raises OSError where it does not answer."""
    try:
        place.stat()
    except FileNotFoundError:
        return False
    except (NotADirectoryError, PermissionError):
        pass  # a file on the way, or a closed directory: there, but not to be used
    return True


def walk(root: Path, prefix: str, start_after: str) -> Iterator[tuple[str, int, float]]:
    """Yield (key, size, mtime) of regular files below `root` in key order, without `.akosha`; follows no symlinks.

    What vanishes while it walks is left out.
    """
    yield from _walk(root, "", prefix, start_after)


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(folder: Path, above: str, prefix: str, start_after: str) -> Iterator[tuple[str, int, float]]:
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    # Key order: a directory sorts as the prefix that it is.
    # A name that is no text cannot be a key of ours.
    entries = [entry for entry in entries if _is_text(entry.name)]
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
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield key, found.st_size, found.st_mtime
