"""Makes the patches of an upload: from what the mirror has of the last upload to the new copies."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agent.domain.databases import main_name
from agent.domain.delivery_state import TargetRecord
from agent.domain.manifest import Manifest
from agent.domain.upload_parts import Part
from agent.domain.upload_plan import Patch, RawFile, largest_patch, layers_to_patch, references
from agent.ports import Mirror, Patcher, Snapshot

PATCH_SUFFIX = ".patch"
"""The name of a patch in the snapshot's folder is the main file's and this."""


@dataclass(frozen=True, slots=True)
class Patching:
    """Makes patches for uploads to one target."""

    mirror: Mirror
    patcher: Patcher

    async def patches(
        self, snapshots: Mapping[str, Snapshot], record: TargetRecord, upload_id: str
    ) -> tuple[Patch, ...]:
        """Return a patch for each main file for which one pays. The patches are in the snapshots' folders."""
        found = []
        for database, snapshot in sorted(snapshots.items()):
            known = record.databases.get(database)
            before = _main(known.parts, database) if known else None
            file = next(file for file in snapshot.files if file.name == main_name(database))
            if before is None or before.sha256 == file.sha256:
                continue
            patch = await self._patch(snapshot, file, before, upload_id)
            if patch is not None:
                found.append(patch)
        return tuple(found)

    async def retain(self, manifest: Manifest) -> None:
        """Let the mirror keep the files that the next patches may need."""
        for database in sorted({part.database for part in manifest.parts}):
            main = _main(manifest.of(database), database)
            await self.mirror.retain(database, references(main) if main else ())

    async def _patch(self, snapshot: Snapshot, file: RawFile, before: Part, upload_id: str) -> Patch | None:
        for layers in layers_to_patch(before, upload_id):
            reference = await self.mirror.file(snapshot.database, layers[-1].file_sha256)
            if reference is None:
                continue
            name = file.name + PATCH_SUFFIX
            limit = largest_patch(layers[0], file)
            path = snapshot.folder / name
            written = await self.patcher.make(
                reference, snapshot.folder / file.name, path, most_bytes=limit, checksums=file.checksums
            )
            # If a bit of the reference has flipped since it was checked, the patch is one of the flipped bit.
            if written is None or await self.mirror.file(snapshot.database, layers[-1].file_sha256) is None:
                return None
            made = RawFile(name, written.size, written.sha256, written.checksums)
            return Patch(snapshot.database, file, tuple(layers), made)
        return None


def _main(parts: Iterable[Part], database: str) -> Part | None:
    return next((part for part in parts if part.name == main_name(database)), None)
