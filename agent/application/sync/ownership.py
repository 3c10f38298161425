"""Decides whether a target's uploads under this system ID belong to this agent, before anything there is changed.

    owner.json     ledger's claim   ->
    none           none                 claimed if there are no uploads, or if the newest one is this agent's
    this claim     this claim           ours
    this machine   none                 ours if the ledger is empty or knows the newest upload; refused if the owner
                                        is another state directory on this machine that still exists
    another claim  any                  refused (NotOwner); a default system ID gets a suffix (SystemIdTaken)
    none           confirmed            refused: the disk is not mounted, or the bucket was emptied

A person resolves a refusal with another system ID, with `--take-over` or with `--new-target`. Until a sync finds that
the target is its own, the refusal is a status warning.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import structlog

from agent.application.status_warnings import clear_warning, has_warning, set_warning
from agent.application.sync.bucket_uploads import BucketUploads
from agent.application.sync.ownership_decision import Decision, not_owner
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
"""Code of a directory's warning. It is computed at each check, so that it ends once the disk is mounted."""

CHECK_SECONDS = 1.0
"""Longest time that a check of a directory may take: a mount that hangs must not block `status`."""

SETTLE_SECONDS = 2.0
"""Time between replacing a claim and reading it back, and time that other agents have to finish a contended claim."""

StateCheck = Callable[[str, str], bool]
"""Returns whether the state directory at a path of this machine belongs to the agent with an ID. Blocks."""

_log = structlog.get_logger()


@dataclass(slots=True)
class Ownership:
    """The ownership of one system ID in one target. `ledger` None: this machine has no ledger, and so no claim."""

    store: ObjectStore
    target: Target
    identity: Identity
    machine: Machine
    ledger: Ledger | None
    clock: Clock
    has_state: StateCheck
    keeps_warning: bool = True
    """False if the ledger is open read-only."""

    claimed: bool = field(default=False, init=False)
    """Whether the target was ours after the last `claim`."""

    _mount_check: "asyncio.Task[None] | None" = field(default=None, init=False)
    _uploads: BucketUploads = field(init=False)
    _key: str = field(init=False)

    def __post_init__(self) -> None:
        self._uploads = BucketUploads(self.store, self.target.system_id)
        self._key = naming.owner_key(self.target.system_id)

    async def claim(self, *, take_over: bool = False, new_target: bool = False, create: bool = False) -> None:
        """Make sure that the target is ours. Called at the start of each sync, before any other use of the target.

        In a new target, owner.json is written only with `create`, before the first upload; otherwise `claimed` stays
        False. Raises NotOwner, StoreError, and SystemIdTaken for a default system ID that this machine has never
        uploaded under.
        """
        assert self.ledger is not None
        uploads = take_over or await has_warning(self.ledger, WARNING)  # the reason of a refusal may be an upload
        decision = await self._examine(await self._stored_claim(), uploads=uploads)
        refusal = decision.refusal
        if refusal is Refusal.GONE and new_target:
            decision = await self._judge_unclaimed(TargetRecord(self.target))
            refusal = decision.refusal
            if refusal is None:
                await self._start_over()
                _log.warning(
                    "target_replaced",
                    location=self.store.location,
                    system_id=self.target.system_id,
                    reason="--new-target: all databases are sent again",
                )
        if refusal is None and decision.is_new and not (create or new_target):
            self.claimed = False
            return
        if refusal is None:
            await self._take(decision)
        elif take_over and refusal is not Refusal.GONE:
            await self._take_over(decision)
        else:
            await self._refuse(decision)
        self.claimed = True
        if await clear_warning(self.ledger, WARNING):
            _log.info("target_ownership_restored", location=self.store.location, system_id=self.target.system_id)

    async def check(self, *, uploads: bool = True) -> None:
        """Raise NotOwner if the target is not ours, or no longer. Changes only the status warning.

        `uploads`: also refuse if there is an upload that the ledger does not know, at the cost of one listing.
        """
        decision = await self._examine(await self._stored_claim(), uploads=uploads)
        if decision.refusal is not None:
            await self._refuse(decision, may_suffix=False)

    async def check_mounted(self) -> None:
        """Raise NotOwner if a directory has no owner.json although the ledger has a claim on it, or uploads in it."""
        if self.is_directory:
            decision = await self._examine(await self._stored_claim(), uploads=False)
            if decision.refusal is Refusal.GONE:
                raise self._error(decision)

    async def warnings(self) -> tuple[StatusWarning, ...]:
        """Return a warning if the target is a directory whose disk is not mounted. Raises StateError.

        At most one check runs at a time, so that a hanging mount blocks only one.
        """
        if not self.is_directory:
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
        if error is not None and not isinstance(error, StoreError):  # a sync reports that it cannot be read
            raise error
        return ()

    async def aclose(self) -> None:
        """Cancel a check that hangs. Idempotent."""
        if self._mount_check is not None:
            self._mount_check.cancel()
            await asyncio.wait({self._mount_check})

    async def system_id(self) -> str:
        """Return the system ID to use in the target: this one, or the suffixed one that replaces a default ID.

        Raises NotOwner if the ID is neither ours nor free.
        """
        decision = await self._examine(await self._stored_claim())
        if decision.refusal is None:
            return self.target.system_id
        if await self._may_suffix(decision) and (replacement := suffixed(self.target.system_id, self.machine)):
            return replacement
        raise self._error(decision)

    # Decisions.

    async def _examine(self, claim: Claim | None, *, uploads: bool = False) -> Decision:
        try:
            owner = await self._read()
        except WireError as error:
            return Decision(Refusal.DAMAGED, owner_error=error)
        return await self._judge(owner, claim, await self._record(), uploads=uploads)

    async def _judge(
        self, owner: Owner | None, claim: Claim | None, record: TargetRecord, *, uploads: bool
    ) -> Decision:
        confirmed = claim is not None and claim.confirmed
        if owner is None:
            return Decision(Refusal.GONE) if confirmed else await self._judge_unclaimed(record)
        if owner.machine != self.machine.digest:
            # With the same claim, this state directory is a copy from the other machine.
            other = claim is not None and confirmed and owner.claim_id != claim.claim_id
            return Decision(Refusal.TAKEN_OVER if other else Refusal.TAKEN, owner)
        if claim is not None and claim.confirmed and owner.claim_id != claim.claim_id:
            return Decision(Refusal.TAKEN_OVER, owner)
        if owner.agent_id != self.identity.agent_id and await self._other_state_exists(owner):
            return Decision(Refusal.OTHER_STATE, owner)
        if record.known and (uploads or not confirmed or record.intent is not None):
            _, complete = await self._uploads.ids_after(record.newest_upload_id)
            newer = await self._unknown_upload(record, claim, complete)
            if newer is not None:
                return Decision(Refusal.COPIED, owner, newer)
        return Decision(None, owner)

    async def _other_state_exists(self, owner: Owner) -> bool:
        """Return whether the owner's state directory is another one than ours, on this machine, and still its own."""
        if owner.state_dir in ("", self.machine.state_dir):
            return False
        return await asyncio.to_thread(self.has_state, owner.state_dir, owner.agent_id)

    async def _judge_unclaimed(self, record: TargetRecord) -> Decision:
        """Judge a target that never had an owner.json: it has no uploads, or those of a version that wrote none."""
        newest = await self._uploads.newest_manifest()
        if newest is None:
            return Decision(Refusal.GONE if self.is_directory and record.newest_upload_id else None)
        known = {record.newest_upload_id, record.intent.upload_id if record.intent else None}
        ours = newest.upload_id in known or newest.agent_id == self.identity.agent_id
        return Decision(None if ours else Refusal.FOREIGN, None, newest)

    async def check_known(self, record: TargetRecord, complete: Sequence[str]) -> None:
        """Raise NotOwner if the ledger does not know one of the uploads that are newer than its newest.

        `complete` as `BucketUploads.ids_after` returns it for the ledger's newest upload.
        """
        newer = await self._unknown_upload(record, await self._stored_claim(), complete)
        if newer is not None:
            await self._refuse(Decision(Refusal.COPIED, None, newer))

    async def _unknown_upload(
        self, record: TargetRecord, claim: Claim | None, complete: Sequence[str]
    ) -> Manifest | None:
        """Return the newest complete upload that this ledger neither made nor saw when it made its claim."""
        for upload in reversed(complete):
            if claim is not None and claim.seen and _time(upload) <= _time(claim.seen):
                return None
            if record.intent is not None and upload == record.intent.upload_id:
                continue
            try:
                manifest = await self._uploads.manifest(upload)
            except StoreError as error:
                if error.transient:
                    raise
                continue  # an upload without a valid manifest decides nothing
            if manifest is not None and not await self._is_requested_here(manifest):
                return manifest
        return None

    async def _is_requested_here(self, manifest: Manifest) -> bool:
        """Return whether this ledger issued the request of an upload that it has not recorded."""
        event_id = request_event_id(manifest.request_id, self.target.method)
        return self.ledger is not None and await self.ledger.find_event(event_id) is not None

    # Actions.

    async def _take(self, decision: Decision) -> None:
        """Claim a target that is ours or free, and keep the claim in the ledger."""
        owner, claim = decision.owner, await self._stored_claim()
        if owner is None:
            await self._create(decision)
        elif owner.agent_id != self.identity.agent_id:
            # The state directory is new. If the old one was moved, its agent finds that the claim was replaced.
            former = f" {owner.state_dir}" if owner.state_dir else ""
            reason = f"the state directory{former} of the former agent on this machine was replaced by a new one"
            _log.warning(
                "target_taken_over", location=self.store.location, system_id=self.target.system_id, reason=reason
            )
            await self._write(replace=True, reason="this machine has a new state directory")
        else:
            if owner.state_dir != self.machine.state_dir and not await self._other_state_exists(owner):
                moved = replace(owner, state_dir=self.machine.state_dir)
                await self.store.create(self._key, moved.encode(), replace=True)
            if claim is None or not claim.confirmed:
                seen = claim.seen if claim and claim.claim_id == owner.claim_id else ""
                await self._store_claim(Claim(claim_id=owner.claim_id, confirmed=True, seen=seen))

    async def _create(self, decision: Decision) -> None:
        reason = f"its newest upload {decision.newest.upload_id} is this agent's" if decision.newest else "it is empty"
        await self._write(replace=False, reason=reason)

    async def _take_over(self, decision: Decision) -> None:
        """Replace the owner, as a person requested."""
        await self._start_over_if_overtaken()
        was = f"it was owned by {decision.owner}" if decision.owner else f"it was {decision.refusal}"
        _log.warning(
            "target_taken_over",
            location=self.store.location,
            system_id=self.target.system_id,
            reason=f"--take-over: {was}",
        )
        await self._write(replace=True, reason="--take-over")
        await self._start_over_if_overtaken()  # the former owner may have finished an upload meanwhile

    async def _start_over_if_overtaken(self) -> None:
        """Discard the ledger's state unless it knows the newest upload."""
        record = await self._record()
        if record.known and await self._newest_id() != record.newest_upload_id:
            await self._start_over()

    async def _start_over(self) -> None:
        """Discard the ledger's state of this target: all databases are sent again, in a new upload.

        The objects of an unfinished upload are removed.
        """
        assert self.ledger is not None
        record = await self._record()
        if record.intent is not None:
            await self._uploads.remove(record.intent.upload_id, await self.ledger.open_puts(self.target))
        await self.ledger.abandon(self.target)
        await self.ledger.forget(self.target, list(record.databases))

    async def _write(self, *, replace: bool, reason: str) -> None:
        """Write owner.json and read it back: if several agents write at the same time, one of them owns the target."""
        owner = Owner.new(self.target.system_id, self.machine, self.identity.agent_id, self.clock.now())
        claim = Claim(claim_id=owner.claim_id, confirmed=False, seen=await self._newest_id())
        await self._store_claim(claim)  # first: after a kill, the ledger recognises the claim that was written
        await self._put_owner(owner.encode(), replace=replace)
        try:
            current = await self._read()
        except WireError as error:
            await self._refuse(Decision(Refusal.DAMAGED, owner_error=error))
            raise AssertionError from None
        if current is None:
            message = f"{self._key} was written to {self.store.location}, but is missing there"
            raise StoreError(message, transient=True)
        if current.claim_id != owner.claim_id:
            await self._refuse(Decision(Refusal.TAKEN, current))
        seen = await self._newest_id() if replace else claim.seen  # the former owner may have finished an upload
        await self._store_claim(Claim(claim_id=owner.claim_id, confirmed=True, seen=seen))
        _log.info("target_claimed", location=self.store.location, system_id=self.target.system_id, reason=reason)

    async def _put_owner(self, data: bytes, *, replace: bool) -> None:
        """Put owner.json unless another agent has; return when no other agent can be replacing it."""
        creation = await self.store.create(self._key, data, replace=replace)
        if creation is Creation.CONTENDED:
            await self.clock.sleep(SETTLE_SECONDS)
            try:
                await self.store.head(self._key)
            except NoSuchObject:
                creation = await self.store.create(self._key, data, replace=True)
        if creation is Creation.UNPROVEN:
            await self.clock.sleep(SETTLE_SECONDS)

    async def _refuse(self, decision: Decision, *, may_suffix: bool = True) -> None:
        """Raise NotOwner or SystemIdTaken, and set the status warning for NotOwner."""
        if may_suffix and await self._may_suffix(decision):
            replacement = suffixed(self.target.system_id, self.machine)
            if replacement is not None:
                raise SystemIdTaken(self._error(decision).message, taken=self.target.system_id, instead=replacement)
        error = self._error(decision)
        mounted = not (self.is_directory and decision.refusal is Refusal.GONE)
        if self.ledger is not None and self.keeps_warning and mounted:
            warning = StatusWarning(code=WARNING, message=error.message, hint=error.hint)
            await set_warning(self.ledger, warning, self.clock)
        raise error

    async def _may_suffix(self, decision: Decision) -> bool:
        """Return whether the system ID is a host name under which this machine has neither a claim nor uploads."""
        if not self.identity.is_default or decision.refusal not in (Refusal.TAKEN, Refusal.FOREIGN):
            return False
        return not (await self._record()).known and not is_decided(await self._notes(), self.target.system_id)

    def _error(self, decision: Decision) -> NotOwner:
        return not_owner(decision, location=self.store.location, system_id=self.target.system_id, machine=self.machine)

    # State.

    @property
    def is_directory(self) -> bool:
        """Whether the target is a directory, whose disk may not be mounted."""
        return self.store.location.startswith("file:")

    async def _read(self) -> Owner | None:
        """Return the owner as `read_owner` does."""
        return await read_owner(self.store, self.target.system_id)

    async def _record(self) -> TargetRecord:
        return TargetRecord(self.target) if self.ledger is None else await self.ledger.record(self.target)

    async def _newest_id(self) -> str:
        """Return the ID of the newest upload that can be read, "" if there is none."""
        newest = await self._uploads.newest_manifest()
        return newest.upload_id if newest else ""

    async def _notes(self) -> Mapping[str, str]:
        return {} if self.ledger is None else await self.ledger.notes()

    async def _stored_claim(self) -> Claim | None:
        return Claim.from_notes((await self._notes()).get(note_key(self.target)))

    async def _store_claim(self, claim: Claim) -> None:
        assert self.ledger is not None
        await self.ledger.note(note_key(self.target), claim.note())


async def read_owner(store: ObjectStore, system_id: str) -> Owner | None:
    """Return the owner of a system, None if there is no owner.json. Raises WireError if it is not valid, StoreError."""
    key, data = naming.owner_key(system_id), bytearray()
    try:
        async with aclosing(store.get(key)) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) > MAX_BYTES:
                    raise WireError(f"{key} is larger than any owner.json")
    except NoSuchObject:
        return None
    owner = Owner.decode(bytes(data))
    if owner.system_id != system_id:
        raise WireError(f"{key} belongs to the system {owner.system_id}")
    return owner


def _time(upload: str) -> tuple[object, str]:
    return naming.upload_time(upload), upload
