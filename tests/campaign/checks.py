"""What must be true once things have calmed down after a fault. Reads the bucket, the results and what is left behind.

`violations` returns a sentence for each promise that is broken; none is the only good answer.
"""

import hashlib
import shutil
import subprocess
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

from agent.domain.databases import database_of
from agent.domain.events import upload_event_id
from agent.domain.routing import CLOUD
from tests.campaign import leftovers
from tests.campaign.leftovers import lasting
from tests.campaign.targets import AkoshaTarget
from tests.campaign.world import World
from tests.support import upload_contents
from tests.support.servers.akosha import Row
from tests.support.session_buddy import GRAPH, REFLECTION, Checker, Finding, row_id, text_of
from tests.support.waiting import happens

RESULT_SECONDS = 20.0
"""How long a published result may be on its way to the consumer."""


def violations(world: World, *, at_end: bool = False) -> list[str]:
    """Return the broken promises. `at_end`: open all uploads, not only the newest, and restore the newest."""
    if at_end:
        prune_leftovers(world)
    arrived = _memories(world) if isinstance(world.target, AkoshaTarget) else _uploads(world, at_end=at_end)
    left = [
        text
        for look in (leftovers.files, leftovers.children, leftovers.growth)
        for text in lasting(partial(look, world))
    ]
    return [*arrived, *left, *leftovers.secrets(world), *_writer_errors(world)]


def _uploads(world: World, *, at_end: bool) -> Iterator[str]:
    manifests = world.manifests()
    if not manifests:
        yield "nothing was uploaded"
        return
    yield from _commits(world, manifests[-1])
    yield from _outdated(world, manifests[-1])
    yield from lasting(partial(_objects, world, partly_pruned=not at_end))  # a prune may run meanwhile
    yield from _results(world, manifests)
    if at_end:
        for manifest in manifests[:-1]:
            problems, _ = _opened(world, manifest)
            if manifest in world.manifests():  # otherwise it was pruned meanwhile
                yield from problems
        yield from _restore(world)


def prune_leftovers(world: World) -> None:
    """Commit until a prune, which follows each upload, has deleted the objects that belong to no upload."""

    def none_left() -> bool:
        if [*_objects(world, partly_pruned=False)]:
            world.commit()
            world.settle()
            return False
        return True

    happens(none_left, leftovers.LASTING_SECONDS)


def _commits(world: World, newest: Mapping) -> Iterator[str]:
    """Every acknowledged commit is in the newest upload, and each database is consistent."""
    upload = newest["upload_id"]
    problems, findings = _opened(world, newest)
    yield from problems
    yield from _missing(world, findings, upload)


def _missing(world: World, findings: Mapping[str, Finding], where: str) -> Iterator[str]:
    for name, acknowledged in ((REFLECTION, world.writer.commits), (GRAPH, world.writer.entities)):
        last = findings[name].last if name in findings else -1
        if last != acknowledged:
            yield f"{where} has {name} up to commit {last}, but {acknowledged} was acknowledged"


def _outdated(world: World, newest: Mapping) -> Iterator[str]:
    """The newest upload has the bytes that the databases' files have now, and no other file."""
    now = {path.name: path for path in world.machine.data.iterdir() if database_of(path.name)}
    uploaded = {part["name"]: part["sha256"] for part in newest["parts"]}
    for name in sorted(now.keys() | uploaded):
        if name not in now or hashlib.sha256(now[name].read_bytes()).hexdigest() != uploaded.get(name):
            yield f"{newest['upload_id']} has another {name} than the data directory"


def _opened(world: World, manifest: Mapping) -> tuple[list[str], dict[str, Finding]]:
    """Unpack an upload from its objects and open its databases; return the problems, and the findings by file name."""
    upload = manifest["upload_id"]
    folder = world.folder / f"opened-{upload}"
    try:
        upload_contents.unpack(dict(manifest), world.target.fetch, folder)
    except (AssertionError, OSError, EOFError, ValueError, zlib.error, subprocess.SubprocessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        return [f"{upload} is not what its manifest says: {type(error).__name__} {str(error)[:200]}"], {}
    findings = _examined(folder)
    shutil.rmtree(folder)
    return [f"{upload}: {name}: {one}" for name, each in findings.items() for one in each.problems], findings


def _examined(folder: Path) -> dict[str, Finding]:
    with Checker() as checker:
        return {path.name: checker.check(path) for path in sorted(folder.glob("*.duckdb"))}


def _objects(world: World, *, partly_pruned: bool) -> Iterator[str]:
    """The bucket has every object of every manifest, and no other, except of an upload that is `partly_pruned`."""
    keys = set(world.target.keys)
    named, pruned = set[str](), {event["data"]["upload_id"] for event in _succeeded(world)}
    for manifest in world.manifests():
        pruned.discard(manifest["upload_id"])
        of_upload = upload_contents.keys_of(dict(manifest)) | {manifest_key(manifest)}
        for key in sorted(of_upload - keys):
            yield f"{key} is in the manifest, but not in the bucket"
        named |= of_upload
    for key in sorted(keys - named):
        # A killed prune has deleted the manifest only: a later one deletes the rest.
        if not (partly_pruned and key.split("/")[3] in pruned):
            yield f"{key} belongs to no upload"
    if world.target.unfinished_multiparts:
        yield f"{world.target.unfinished_multiparts} multipart uploads are unfinished"


def manifest_key(manifest: Mapping) -> str:
    return f"systems/{manifest['system_id']}/uploads/{manifest['upload_id']}/manifest.json"


def stored_once(world: World, memories: Sequence[Row]) -> Iterator[str]:
    """Akosha has every acknowledged row once, unchanged."""
    stored = [(row.metadata["type"], row.metadata["original_id"]) for row in memories]
    texts = {row.metadata["original_id"]: row.text for row in memories}
    yield from (f"{kind} {key} is {count} memories" for (kind, key), count in Counter(stored).items() if count > 1)
    commits, entities = range(world.writer.commits + 1), range(world.writer.entities + 1)
    for kind, numbers in (("conversation", commits), ("reflection", commits), ("entity", entities)):
        ids = {row_id(kind[0], n): n for n in numbers}
        yield from (f"{kind} {n} is missing" for key, n in ids.items() if (kind, key) not in set(stored))
        yield from (
            f"{kind} {n} is not what was written" for key, n in ids.items() if text_of(n) not in texts.get(key, "")
        )


def _memories(world: World) -> Iterator[str]:
    """Akosha has every memory, and a result was published after the last commit."""
    yield from stored_once(world, world.target.memories)

    def announced() -> bool:
        return any(datetime.fromisoformat(event["time"]) > world.committed_at for event in _succeeded(world))

    if not happens(announced, RESULT_SECONDS):
        yield "no result was published after the last commit"
    yield from _doubled("request_id", _succeeded(world))


def _results(world: World, manifests: list[dict]) -> Iterator[str]:
    """A consumer gets one result of every upload, under one ID, which it may get again; of the newest upload last."""
    happens(lambda: not [*_unannounced(world, manifests)], RESULT_SECONDS)
    yield from _unannounced(world, manifests)
    yield from _doubled("upload_id", _succeeded(world))
    uploaded = (event["data"] for event in _succeeded(world) if event["data"]["method"] == CLOUD)
    newest = max((data["upload_id"] for data in uploaded), default="")
    if newest > manifests[-1]["upload_id"]:
        yield f"{newest} has a result, but is not in the bucket"


def _doubled(key: str, results: Iterable[dict]) -> Iterator[str]:
    """Results with the same value of a field have the same ID, too."""
    ids_of = dict[str, set[str]]()
    for event in results:
        ids_of.setdefault(event["data"][key], set()).add(event["id"])
    yield from (f"{of} has {len(ids)} results" for of, ids in sorted(ids_of.items()) if len(ids) > 1)


def _unannounced(world: World, manifests: list[dict]) -> Iterator[str]:
    ids = {event["id"] for event in _succeeded(world)}
    for manifest in manifests:
        if upload_event_id(manifest["upload_id"], manifest["agent_id"]) not in ids:
            yield f"{manifest['upload_id']} has no result"


def _succeeded(world: World) -> list[dict]:
    return [event for event in world.results() if event["type"] == "akosha.sync.succeeded.v1"]


def _writer_errors(world: World) -> Iterator[str]:
    """The process that writes the databases never had an error."""
    yield from (f"the writer failed: {event}" for event in world.writer.events if event["event"] == "failed")


def _restore(world: World) -> Iterator[str]:
    """`restore` writes databases that open, with every acknowledged commit."""
    folder = world.restored()
    findings = _examined(folder)
    for name, finding in findings.items():
        yield from (f"restored {name}: {problem}" for problem in finding.problems)
    yield from _missing(world, findings, "the restore")
    shutil.rmtree(folder)
