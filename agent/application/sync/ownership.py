"""Whose uploads a target has under this system id: decided before anything there is adopted, changed or removed.

    owner.json     ledger's claim   ->
    none           none                 claim it, where nothing is there, or the newest upload is this agent's
    this claim     this claim           ours
    this machine   none                 ours where the ledger is empty, or knows the newest upload
    another one    any                  refused (NotOwner); a default system id gets a suffix (SystemIdTaken)
    none           confirmed            refused: the disk is not mounted, or the bucket was emptied

A person answers a refusal with another system id, with `--take-over` or with `--new-target`. What is refused is kept as
a warning for `status` and `doctor` until a sync finds the target its own.
"""

import asyncio
import shlex
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from urllib.parse import unquote

import structlog

from agent.application.status_warnings import clear_warning, set_warning
from agent.application.sync.bucket_uploads import BucketUploads
from agent.domain import naming
from agent.domain.delivery_state import Target, TargetRecord
from agent.domain.errors import NoSuchObject, NotOwner, StoreError, SystemIdTaken, WireError
from agent.domain.events import request_event_id
from agent.domain.identity import MAX_BYTES, Claim, Identity, Machine, Owner, Refusal, is_decided, note_key, suffixed
from agent.domain.manifest import Manifest
from agent.domain.status_warning import StatusWarning
from agent.ports import Clock, Creation, Ledger, ObjectStore
from agent.ports.concurrency import mark_retrieved

WARNING = "target_not_ours"
NOT_MOUNTED = "target_not_mounted"
"""Of a directory, and computed at each look: once the disk is mounted, nobody needs to sync for it to pass."""

CHECK_SECONDS = 1.0
"""How long a look at a directory may take: a mount that hangs must not keep `status` from its answer."""

SETTLE_SECONDS = 2.0
"""How long a claim waits before it is read back, where the store cannot create conditionally."""

TAKE_OVER = "akosha-agent sync --take-over"
NEW_TARGET = "akosha-agent sync --new-target"

_REPLACES = (
    "where this machine takes the other's place (a new machine, an OS reinstalled, a data directory moved, a state "
    f"directory restored): {TAKE_OVER}"
)
_OTHER_ID = "set akosha_system_id to an id of its own"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Verdict:
    """`refusal` None: the target is ours, or free. `owner` is what was found; `newest` the upload that decided."""

    refusal: Refusal | None = None
    owner: Owner | None = None
    newest: Manifest | None = None
    unread: WireError | None = None
    """Why owner.json cannot be read."""

    @property
    def is_new(self) -> bool:
        """Whether nothing is there: no owner, no upload."""
        return self.owner is None and self.newest is None


@dataclass(slots=True)
class Ownership:
    """The ownership of one system id in one target. `ledger` None: this machine has none, and no claim either."""

    store: ObjectStore
    target: Target
    identity: Identity
    machine: Machine
    ledger: Ledger | None
    clock: Clock
    keeps_warning: bool = True
    """False where the ledger is open for reading alone."""

    claimed: bool = field(default=False, init=False)
    """Whether the last `claim` found, or made, the target ours."""

    _mount_check: "asyncio.Task[None] | None" = field(default=None, init=False)
    _uploads: BucketUploads = field(init=False)
    _key: str = field(init=False)

    def __post_init__(self) -> None:
        self._uploads = BucketUploads(self.store, self.target.system_id)
        self._key = naming.owner_key(self.target.system_id)

    async def claim(self, *, take_over: bool = False, new_target: bool = False, create: bool = False) -> None:
        """See to it that the target is ours: at the start of each sync, before anything else is asked of it.

        Where nothing is there, and nothing was, owner.json is written with `create` alone, which comes before the first
        upload: then `claimed` is true. Raises NotOwner; SystemIdTaken for a default system id that this machine has
        never uploaded under; StoreError.
        """
        assert self.ledger is not None
        verdict = await self._examine(await self._claim_kept(), uploads=take_over)
        refusal = verdict.refusal
        if refusal is Refusal.GONE and new_target:
            verdict = await self._judge_unclaimed(TargetRecord(self.target))
            refusal = verdict.refusal
            if refusal is None:
                await self._start_over()
                _log.warning(
                    "target_replaced",
                    location=self.store.location,
                    system_id=self.target.system_id,
                    reason="--new-target: everything is sent whole",
                )
        if refusal is None and verdict.is_new and not (create or new_target):
            self.claimed = False
            return
        if refusal is None:
            await self._take(verdict)
        elif take_over and refusal is not Refusal.GONE:
            await self._take_over(verdict)
        else:
            await self._refuse(verdict)
        self.claimed = True
        if await clear_warning(self.ledger, WARNING):
            _log.info("target_ownership_restored", location=self.store.location, system_id=self.target.system_id)

    async def check(self, *, uploads: bool = True) -> None:
        """Raise NotOwner where the target is not, or no longer, ours. Changes nothing but the warning.

        With `uploads`, an upload that the ledger does not know counts, too: one listing more.
        """
        verdict = await self._examine(await self._claim_kept(), uploads=uploads)
        if verdict.refusal is not None:
            await self._refuse(verdict, may_suffix=False)

    async def check_mounted(self) -> None:
        """Raise NotOwner where a directory has no owner.json, and the ledger has a claim on it, or uploads in it."""
        if self._is_directory:
            verdict = await self._examine(await self._claim_kept(), uploads=False)
            if verdict.refusal is Refusal.GONE:
                raise self._error(verdict)

    async def warnings(self) -> tuple[StatusWarning, ...]:
        """Return what a look at a directory says: that its disk is not mounted, or nothing. Raises StateError.

        A mount that hangs holds one look, not one more at each call.
        """
        if not self._is_directory:
            return ()
        if self._mount_check is None or self._mount_check.done():
            self._mount_check = asyncio.create_task(self.check_mounted(), name="check-target")
            self._mount_check.add_done_callback(mark_retrieved)
        mount_check = self._mount_check
        if not (await asyncio.wait({mount_check}, timeout=CHECK_SECONDS))[0] or mount_check.cancelled():
            return ()
        error = mount_check.exception()
        if isinstance(error, NotOwner):
            return (StatusWarning(code=NOT_MOUNTED, message=error.message, hint=error.hint),)
        if error is not None and not isinstance(error, StoreError):  # that it cannot be read is said by what needs it
            raise error
        return ()

    async def aclose(self) -> None:
        """End a look that hangs. Idempotent."""
        if self._mount_check is not None:
            self._mount_check.cancel()
            await asyncio.wait({self._mount_check})

    async def system_id(self) -> str:
        """Return the system id to use there: this one, or the one that this machine takes instead of a default one.

        Raises NotOwner where it is neither ours nor free.
        """
        verdict = await self._examine(await self._claim_kept())
        if verdict.refusal is None:
            return self.target.system_id
        if await self._may_suffix(verdict) and (instead := suffixed(self.target.system_id, self.machine)):
            return instead
        raise self._error(verdict)

    # Deciding.

    async def _examine(self, claim: Claim | None, *, uploads: bool = False) -> _Verdict:
        try:
            found = await self._read()
        except WireError as error:
            return _Verdict(Refusal.DAMAGED, unread=error)
        return await self._judge(found, claim, await self._record(), uploads=uploads)

    async def _judge(
        self, found: Owner | None, claim: Claim | None, record: TargetRecord, *, uploads: bool
    ) -> _Verdict:
        confirmed = claim is not None and claim.confirmed
        if found is None:
            return _Verdict(Refusal.GONE) if confirmed else await self._judge_unclaimed(record)
        if found.machine != self.machine.digest:
            # With this very claim, the state directory comes from there.
            other = claim is not None and confirmed and found.claim_id != claim.claim_id
            return _Verdict(Refusal.TAKEN_OVER if other else Refusal.TAKEN, found)
        if claim is not None and claim.confirmed and found.claim_id != claim.claim_id:
            return _Verdict(Refusal.TAKEN_OVER, found)
        if record.known and (uploads or not confirmed or record.intent is not None):
            _, whole = await self._uploads.ids_after(record.newest_upload_id)
            newer = await self._unknown_upload(record, claim, whole)
            if newer is not None:
                return _Verdict(Refusal.COPIED, found, newer)
        return _Verdict(None, found)

    async def _judge_unclaimed(self, record: TargetRecord) -> _Verdict:
        """There is no owner.json, and never was: uploads of a version before there was one, or none."""
        newest = await self._uploads.newest_manifest()
        if newest is None:
            return _Verdict(Refusal.GONE if self._is_directory and record.newest_upload_id else None)
        known = {record.newest_upload_id, record.intent.upload_id if record.intent else None}
        ours = newest.upload_id in known or newest.agent_id == self.identity.agent_id
        return _Verdict(None if ours else Refusal.FOREIGN, None, newest)

    async def check_known(self, record: TargetRecord, whole: Sequence[str]) -> None:
        """Raise NotOwner where one of the uploads that are newer than the ledger's newest is not known to the ledger.

        `whole` as `BucketUploads.ids_after` returns it for the ledger's newest.
        """
        newer = await self._unknown_upload(record, await self._claim_kept(), whole)
        if newer is not None:
            await self._refuse(_Verdict(Refusal.COPIED, None, newer))

    async def _unknown_upload(self, record: TargetRecord, claim: Claim | None, whole: Sequence[str]) -> Manifest | None:
        """Return the newest whole upload that the ledger did not make, nor see when it made its claim."""
        for upload in reversed(whole):
            if claim is not None and claim.seen and _time(upload) <= _time(claim.seen):
                return None
            if record.intent is not None and upload == record.intent.upload_id:
                continue
            try:
                manifest = await self._uploads.manifest(upload)
            except StoreError as error:
                if error.transient:
                    raise
                continue  # what no manifest of ours names decides nothing
            if manifest is not None and not await self._asked_here(manifest):
                return manifest
        return None

    async def _asked_here(self, manifest: Manifest) -> bool:
        """Say whether this ledger issued the request of an upload whose end it did not see."""
        event_id = request_event_id(manifest.request_id, self.target.method)
        return self.ledger is not None and await self.ledger.find_event(event_id) is not None

    # Acting.

    async def _take(self, verdict: _Verdict) -> None:
        """The target is ours, or free: claim it where it has no owner, and keep the claim."""
        found, claim = verdict.owner, await self._claim_kept()
        if found is None:
            await self._create(verdict)
        elif found.agent_id != self.identity.agent_id:
            # The state directory is a new one, and the agent of the other may still run: one of the two owns.
            await self._write(replace=True, why="this machine has a new state directory")
        elif claim is None or not claim.confirmed:
            seen = claim.seen if claim and claim.claim_id == found.claim_id else ""
            await self._keep(Claim(claim_id=found.claim_id, confirmed=True, seen=seen))

    async def _create(self, verdict: _Verdict) -> None:
        why = f"its newest upload {verdict.newest.upload_id} is this agent's" if verdict.newest else "nothing is there"
        await self._write(replace=False, why=why)

    async def _take_over(self, verdict: _Verdict) -> None:
        """Take the owner's place: a person says so. The ledger counts where it knows the newest upload."""
        record = await self._record()
        newest = await self._uploads.newest_manifest()
        if record.known and (newest is None or newest.upload_id != record.newest_upload_id):
            await self._start_over()
        was = f"it was owned by {verdict.owner}" if verdict.owner else f"it was {verdict.refusal}"
        _log.warning(
            "target_taken_over",
            location=self.store.location,
            system_id=self.target.system_id,
            reason=f"--take-over: {was}",
        )
        await self._write(replace=True, why="--take-over")

    async def _start_over(self) -> None:
        """Nothing that the ledger says of this target counts any more: everything is sent whole, in a new upload."""
        assert self.ledger is not None
        record = await self._record()
        await self.ledger.abandon(self.target)
        await self.ledger.forget(self.target, list(record.databases))

    async def _write(self, *, replace: bool, why: str) -> None:
        """Write owner.json and read it back: of several that write at the same time, one owns the target."""
        owner = Owner.new(self.target.system_id, self.machine, self.identity.agent_id, self.clock.now())
        newest = await self._uploads.newest_manifest()
        claim = Claim(claim_id=owner.claim_id, confirmed=False, seen=newest.upload_id if newest else "")
        await self._keep(claim)  # first: killed after the write, the claim is known as this ledger's
        if await self.store.create(self._key, owner.encode(), replace=replace) is Creation.UNPROVEN:
            await self.clock.sleep(SETTLE_SECONDS)
        try:
            found = await self._read()
        except WireError as error:
            await self._refuse(_Verdict(Refusal.DAMAGED, unread=error))
            raise AssertionError from None
        if found is None:
            raise StoreError(f"{self._key} was written to {self.store.location} and is not there", transient=True)
        if found.claim_id != owner.claim_id:
            await self._refuse(_Verdict(Refusal.TAKEN, found))
        await self._keep(Claim(claim_id=owner.claim_id, confirmed=True, seen=claim.seen))
        _log.info("target_claimed", location=self.store.location, system_id=self.target.system_id, reason=why)

    async def _refuse(self, verdict: _Verdict, *, may_suffix: bool = True) -> None:
        """Raise NotOwner or SystemIdTaken, with the warning kept."""
        if may_suffix and await self._may_suffix(verdict):
            instead = suffixed(self.target.system_id, self.machine)
            if instead is not None:
                raise SystemIdTaken(self._error(verdict).message, taken=self.target.system_id, instead=instead)
        error = self._error(verdict)
        mounted = not (self._is_directory and verdict.refusal is Refusal.GONE)
        if self.ledger is not None and self.keeps_warning and mounted:
            warning = StatusWarning(code=WARNING, message=error.message, hint=error.hint)
            await set_warning(self.ledger, warning, self.clock)
        raise error

    async def _may_suffix(self, verdict: _Verdict) -> bool:
        """Say whether the system id is a host name under which this machine has claimed and uploaded nothing yet."""
        if not self.identity.is_default or verdict.refusal not in (Refusal.TAKEN, Refusal.FOREIGN):
            return False
        return not (await self._record()).known and not is_decided(await self._notes(), self.target.system_id)

    # Texts.

    def _error(self, verdict: _Verdict) -> NotOwner:
        refusal, owner, where = verdict.refusal, verdict.owner, self.store.location
        system_id = self.target.system_id
        other_cures = f"{_OTHER_ID}; {_REPLACES}"
        if refusal is Refusal.TAKEN:
            return NotOwner(f"the system id {system_id} in {where} belongs to {owner}", hint=other_cures)
        if refusal is Refusal.TAKEN_OVER:
            return NotOwner(f"the system id {system_id} in {where} was taken over by {owner}", hint=other_cures)
        if refusal is Refusal.FOREIGN and verdict.newest:
            made = f"{verdict.newest.upload_id} of agent {verdict.newest.agent_id[:8]}"
            return NotOwner(
                f"uploads of {system_id} in {where} are not this agent's: the newest is {made}", hint=other_cures
            )
        if refusal is Refusal.COPIED and verdict.newest:
            return NotOwner(
                f"{where} has {verdict.newest.upload_id}, which this state directory does not know: it was copied, or "
                "restored from a backup, and another agent uploads under the same id",
                hint=f"give each copy a system id of its own (akosha_system_id); {_REPLACES}",
            )
        if verdict.unread is not None:
            return NotOwner(
                f"{self._key} in {where} cannot be read as an owner: {verdict.unread.message}",
                hint=verdict.unread.hint or other_cures,
            )
        if self._is_directory:
            made = f"mkdir -p {shlex.quote(unquote(where.removeprefix('file://')))}"
            return NotOwner(
                f"this directory held uploads and does not now: is the disk mounted? ({where})",
                hint=f"mount it; where the disk or directory was replaced on purpose: {made}, then {NEW_TARGET}",
            )
        return NotOwner(
            f"{where} held uploads of {system_id}, and {self._key} is gone: was the bucket emptied or replaced?",
            hint=f"where that was on purpose: {NEW_TARGET}",
        )

    # What there is.

    @property
    def _is_directory(self) -> bool:
        return self.store.location.startswith("file:")

    async def _read(self) -> Owner | None:
        """Return the owner, None where there is none. Raises WireError for what is no owner, StoreError."""
        data = bytearray()
        try:
            async with aclosing(self.store.get(self._key)) as pieces:
                async for piece in pieces:
                    data += piece
                    if len(data) > MAX_BYTES:
                        raise WireError(f"{self._key} is larger than any owner.json")
        except NoSuchObject:
            return None
        owner = Owner.decode(bytes(data))
        if owner.system_id != self.target.system_id:
            raise WireError(f"{self._key} is of the system {owner.system_id}")
        return owner

    async def _record(self) -> TargetRecord:
        return TargetRecord(self.target) if self.ledger is None else await self.ledger.record(self.target)

    async def _notes(self) -> Mapping[str, str]:
        return {} if self.ledger is None else await self.ledger.notes()

    async def _claim_kept(self) -> Claim | None:
        return Claim.from_notes((await self._notes()).get(note_key(self.target)))

    async def _keep(self, claim: Claim) -> None:
        assert self.ledger is not None
        await self.ledger.note(note_key(self.target), claim.note())


def _time(upload: str) -> tuple[object, str]:
    return naming.upload_time(upload), upload
