"""The bucket is changed behind the agent's back. The agent finds it when it verifies its newest upload, here often."""

import random
from collections.abc import Iterable

from tests.campaign.checks import manifest_key
from tests.campaign.faults.fault import Fault
from tests.campaign.world import SETTLE_SECONDS, NotSettled, World
from tests.support.waiting import happens

VERIFY_SECONDS = 2.0

_MARKS = {"manifest": "/manifest.json", "base": ".base", "patch": ".patch-"}
_OTHER = "another object"


class BucketFault(Fault):
    rounds = 20
    typical_seconds = 10.0
    bar = "found by itself within the verify interval, said, and uploaded again"
    delayed = False

    def prepare(self, world: World) -> None:
        world.machine.set(agent_verify_hours=VERIFY_SECONDS / 3600)
        world.machine.constants["agent.application.archive.verify_loop:FIRST_SECONDS"] = VERIFY_SECONDS

    def until_uploaded_again(self, world: World, damaged: str) -> None:
        """Wait until the agent has made another upload by itself, without a change of the databases."""

        def uploaded_again() -> bool:
            return any(key > damaged and key.endswith("/manifest.json") for key in world.target.keys)

        world.said("upload_damaged")
        if not happens(uploaded_again, SETTLE_SECONDS):
            raise NotSettled(f"{damaged} was damaged, and nothing was uploaded again: {world.last_lines()}")
        world.settle()


class BucketChanged(BucketFault):
    """Somebody deletes or flips an object or the manifest of the newest upload, or puts another object in its place."""

    row = "Objects or manifest deleted, flipped or swapped in a directory"

    def __init__(self) -> None:
        super().__init__()
        self.struck.update(dict.fromkeys((*_MARKS, _OTHER), 0))

    def count(self, key: str) -> None:
        """Count a damaged object."""
        self.struck[next((kind for kind, mark in _MARKS.items() if mark in key), _OTHER)] += 1

    def strike(self, world: World, rng: random.Random) -> None:
        newest = world.manifests()[-1]
        manifest, folder = manifest_key(newest), f"/{newest['upload_id']}/"
        keys = [key for key in world.target.keys if folder in key]
        key = rng.choice((manifest, *keys))
        data, how = bytearray(world.target.fetch(key)), rng.choice(("delete", "flip", "swap"))
        damaged = [key] if how == "delete" else world.target.sharing(key)
        if how == "delete":
            world.target.delete([key])
        elif how == "flip":
            self.flip(world, key, data, rng)
        else:
            world.target.put(key, world.target.fetch(rng.choice([other for other in keys if other != key])))
        self.count(key)
        self.until_uploaded_again(world, manifest)
        self.delete_uploads(world, damaged)

    @staticmethod
    def flip(world: World, key: str, data: bytearray, rng: random.Random) -> None:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        world.target.put(key, data)

    @staticmethod
    def delete_uploads(world: World, damaged: Iterable[str]) -> None:
        """Delete the damaged uploads, as a person does. What has no manifest is deleted by pruning."""
        folders = {key.rpartition("/")[0] for key in damaged}
        world.target.delete([key for key in world.target.keys if key.rpartition("/")[0] in folders])


class SharedObjectFlipped(BucketChanged):
    """A bit flips in a file that several uploads link. The uploads with the other physical copy stay whole."""

    row = "Bit flipped in an object that several uploads share"

    def __init__(self) -> None:
        super().__init__()
        del self.struck["manifest"]  # never shared

    def strike(self, world: World, rng: random.Random) -> None:
        happens(lambda: self._shared(world), 10 * SETTLE_SECONDS)
        key = rng.choice(self._shared(world))
        damaged, manifest = world.target.sharing(key), manifest_key(world.manifests()[-1])
        self.flip(world, key, bytearray(world.target.fetch(key)), rng)
        self.count(key)
        self.until_uploaded_again(world, manifest)
        self.delete_uploads(world, damaged)

    @staticmethod
    def _shared(world: World) -> list[str]:
        """Return the shared objects of the newest upload; if there is none, make another upload."""
        folder = f"/{world.manifests()[-1]['upload_id']}/"
        found = [key for key in world.target.keys if folder in key and len(world.target.sharing(key)) > 1]
        if not found:
            world.commit()
            world.settle()
        return found


class BucketChangedOnS3(BucketChanged):
    row = "Objects or manifest deleted, flipped or swapped on S3"
    target = "s3"


class BucketEmptied(BucketFault):
    """Without its uploads, the bucket gets a new one. Without owner.json, too, the agent waits for `--new-target`.

    It may be another bucket, or a disk that is not mounted.
    """

    row = "Directory that is used as the bucket emptied"
    bar = "said, and uploaded again: by itself if owner.json is left, otherwise at sync --new-target"

    def strike(self, world: World, rng: random.Random) -> None:
        newest = manifest_key(world.manifests()[-1])
        if rng.random() < 0.5:
            world.target.delete(world.target.keys)
            self.until_uploaded_again(world, newest)
        else:
            world.target.empty()
            world.shows("that owner.json is missing", self._is_refused)
            world.machine.call("sync", "--new-target")
            world.settle()

    @staticmethod
    def _is_refused(status: dict) -> bool:
        return bool({"target_not_ours", "target_not_mounted"} & {each["code"] for each in status["warnings"]})


class BucketEmptiedOnS3(BucketEmptied):
    row = "Bucket on S3 emptied"
    target = "s3"
