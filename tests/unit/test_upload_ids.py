"""The ID of the next upload."""

from agent.application.sync.bucket_uploads import BucketUploads, UploadIds
from tests.support import values
from tests.support.clock import ManualClock
from tests.support.ledger import inline_ledger
from tests.support.memory_store import MemoryStore


async def test_an_upload_to_another_target_in_the_same_second_gets_another_id_and_so_a_result_of_its_own():
    clock = ManualClock(values.NOON)
    ledger = inline_ledger(clock)
    manifest = values.manifest(0, reflection=1)
    await ledger.mark_owed(values.OTHER_TARGET, ["reflection"])
    await ledger.begin(values.OTHER_TARGET, values.intent(0, reflection=1))
    seen = {"reflection": values.fingerprint("reflection")}
    await ledger.deliver(values.OTHER_TARGET, manifest, seen, {}, values.succeeded(manifest))
    uploads = BucketUploads(MemoryStore(), values.SYSTEM)
    ids = UploadIds(uploads, values.SYSTEM, manifest.agent_id, "memory://", ledger, clock)
    assert await ids.next((), (), None, None) == values.upload_id(1)
    await ledger.aclose()
