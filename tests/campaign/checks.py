"""What must be true once things have calmed down after a fault. Reads the bucket, the results and what is left behind.

`violations` returns a sentence for each promise that is broken; none is the only good answer.
"""

import gzip
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from agent.adapters.directory_store.layout import incoming_folder
from agent.domain.events import upload_event_id
from tests.campaign.world import CANARY, World
from tests.support import upload_contents
from tests.support.session_buddy import GRAPH, REFLECTION, Checker, Finding
from tests.support.waiting import happens

RESULT_SECONDS = 20.0
"""How long a published result may be on its way to the consumer."""

CHILD_SECONDS = 60.0
"""How long the agent may have a child process at least once; every sync takes less."""


def violations(world: World, *, every_upload: bool = False) -> list[str]:
    """Return the broken promises. `every_upload`: open all uploads, not only the newest, and restore the newest."""
    manifests = world.manifests()
    if not manifests:
        return ["nothing was uploaded"]
    found = [*_commits(world, manifests[-1])]
    found += _objects(world, manifests)
    found += _results(world, manifests)
    found += _leftovers(world)
    found += _secrets(world)
    found += _writer_errors(world)
    if every_upload:
        for manifest in manifests[:-1]:
            found += _opened(world, manifest)[0]
        found += _restore(world)
    return found


def _commits(world: World, newest: Mapping) -> Iterator[str]:
    """Every acknowledged commit is in the newest upload, and each database is consistent."""
    upload = newest["upload_id"]
    problems, findings = _opened(world, newest)
    yield from problems
    yield from _missing(world, findings, upload)


def _missing(world: World, findings: Mapping[str, Finding], where: str) -> Iterator[str]:
    for name, acknowledged in ((REFLECTION, world.writer.commits), (GRAPH, world.writer.entities)):
        last = findings[name].last if name in findings else -1
        # A commit that was not acknowledged before its writer was killed may be there, too.
        if last < acknowledged:
            yield f"{where} has {name} up to commit {last}, but {acknowledged} was acknowledged"


def _opened(world: World, manifest: Mapping) -> tuple[list[str], dict[str, Finding]]:
    """Unpack an upload from its objects and open its databases; return the problems, and the findings by file name."""
    upload = manifest["upload_id"]
    folder = world.folder / f"opened-{upload}"
    try:
        upload_contents.unpack(dict(manifest), world.fetch, folder)
    except (AssertionError, OSError, EOFError, ValueError, zlib.error) as error:
        shutil.rmtree(folder, ignore_errors=True)
        return [f"{upload} is not what its manifest says: {type(error).__name__} {str(error)[:200]}"], {}
    findings = _examined(folder)
    shutil.rmtree(folder)
    return [f"{upload}: {name}: {one}" for name, each in findings.items() for one in each.problems], findings


def _examined(folder: Path) -> dict[str, Finding]:
    with Checker() as checker:
        return {path.name: checker.check(path) for path in sorted(folder.glob("*.duckdb"))}


def _objects(world: World, manifests: list[dict]) -> Iterator[str]:
    """The bucket has every object of every manifest, and no other."""
    keys = set(world.keys)
    named = set[str]()
    for manifest in manifests:
        prefix = f"systems/{manifest['system_id']}/uploads/{manifest['upload_id']}"
        of_upload = {part["key"] for part in manifest["parts"]} | {f"{prefix}/manifest.json"}
        if manifest["memories"]:
            of_upload.add(manifest["memories"]["key"])
        for key in sorted(of_upload - keys):
            yield f"{key} is in the manifest, but not in the bucket"
        named |= of_upload
    for key in sorted(keys - named):
        yield f"{key} belongs to no upload"
    if world.unfinished_multiparts:
        yield f"{world.unfinished_multiparts} multipart uploads are unfinished"


def _results(world: World, manifests: list[dict]) -> Iterator[str]:
    """A consumer gets one result of every upload, under one ID, which it may get again."""
    happens(lambda: not [*_unannounced(world, manifests)], RESULT_SECONDS)
    yield from _unannounced(world, manifests)
    ids_of = dict[str, set[str]]()
    for event in _succeeded(world):
        ids_of.setdefault(event["data"]["upload_id"], set()).add(event["id"])
    yield from (f"{upload} has {len(ids)} results" for upload, ids in sorted(ids_of.items()) if len(ids) > 1)


def _unannounced(world: World, manifests: list[dict]) -> Iterator[str]:
    ids = {event["id"] for event in _succeeded(world)}
    for manifest in manifests:
        if upload_event_id(manifest["upload_id"], manifest["agent_id"]) not in ids:
            yield f"{manifest['upload_id']} has no result"


def _succeeded(world: World) -> list[dict]:
    return [event for event in world.results() if event["type"] == "akosha.sync.succeeded.v1"]


def _leftovers(world: World) -> Iterator[str]:
    """No copy, draft or child process is left."""
    for path in world.machine.staged:
        yield f"left in staging: {path.name}"
    for path in incoming_folder(world.machine.bucket, "systems").rglob("*"):
        if path.is_file():
            yield f"left in the bucket's directory: {path.relative_to(world.machine.bucket)}"
    # A rescan may run one at any moment, but none stays.
    if world.agent is not None and not happens(lambda: not world.children("duckdb.child"), CHILD_SECONDS):
        yield f"child processes still run: {world.children('duckdb.child')}"


def _secrets(world: World) -> Iterator[str]:
    """No secret is in a log, the state directory or the bucket."""
    secrets = (CANARY, *world.machine.secrets)
    yield from (f"the log has {secret[:6]}..." for secret in secrets if secret in world.transcript)
    places: list[tuple[str, Callable[[], bytes]]] = [
        (str(path.relative_to(world.machine.state)), path.read_bytes)
        for path in world.machine.state.rglob("*")
        if path.is_file() and "staging" not in path.parts
    ]
    places += [(key, lambda key=key: world.fetch(key)) for key in world.keys if key not in world.searched]
    world.searched.update(world.keys)
    for name, read in places:
        with suppress(OSError, EOFError, zlib.error):  # damaged objects are reported by `_objects` and `_commits`
            data = read()
            data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
            yield from (f"{name} has {secret[:6]}..." for secret in secrets if secret.encode() in data)


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
