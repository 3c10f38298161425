"""The faults of a campaign, by subject. A fault is a class: `strike` happens while a change is synced, `heal` after it.

To add a fault: a subclass of `Fault` with `row`, `rounds`, `strike` and, if something must be put right again, `heal`;
and its name in ALL. Then `python -m tests.campaign.report` adds the row to docs/reliability.md.
"""

from tests.campaign.faults.agents import EarlierVersion, TwoAgents, TwoMachines, TwoReactors
from tests.campaign.faults.answers import AkoshaAnswers, StoreAnswers, StoreLies
from tests.campaign.faults.bucket import (
    BucketChanged,
    BucketChangedOnS3,
    BucketEmptied,
    BucketEmptiedOnS3,
    SharedObjectFlipped,
)
from tests.campaign.faults.clocks import ClockSet, SummerTime, Suspended, TimeZoneChanged
from tests.campaign.faults.disks import LogDiskFull, StagingFull, StateDiskFull, TargetFull
from tests.campaign.faults.fault import Fault
from tests.campaign.faults.files import (
    DataDirectoryDeleted,
    DataDirectoryMoved,
    DataDirectoryRecreated,
    DataDirectorySwapped,
    OtherFiles,
    Renames,
    ReplacedByAnother,
    ReplacedByOlder,
)
from tests.campaign.faults.kills import (
    AgentKilled,
    AgentKilledAtPoint,
    AgentKilledInMigration,
    AgentKilledInMultipart,
    ChildKilled,
    PatchChildKilled,
    WriterKilled,
)
from tests.campaign.faults.ledger import LedgerDamaged, LedgerDamagedInUse, LedgerNewer, RowSetFlipped
from tests.campaign.faults.limits import (
    NoDescriptors,
    NoMemoryForTheChild,
    NoThreads,
    NoWatches,
    PermissionTaken,
    StateReadOnly,
)
from tests.campaign.faults.lines import AkoshaLine, NatsLine, StoreLine, StoreLineInParts
from tests.campaign.faults.mirrors import MirrorChanged
from tests.campaign.faults.mounts import DataDirectoryUnmounted, TargetUnmounted
from tests.campaign.faults.networks import InterfaceGone, OtherAddresses, Vpn
from tests.campaign.faults.page import PageAttacked, PageOpen
from tests.campaign.faults.servers import AkoshaKilled, CloudDown, NatsKilled, StoreKilled
from tests.campaign.faults.settings import AuthorityReplaced, CredentialsReplaced, SettingsChanged
from tests.campaign.faults.webhooks import WebhookAnswers, WebhookKilled, WebhookLine

ALL: tuple[type[Fault], ...] = (
    AgentKilled,
    AgentKilledAtPoint,
    AgentKilledInMigration,
    AgentKilledInMultipart,
    ChildKilled,
    PatchChildKilled,
    WriterKilled,
    NatsKilled,
    StoreKilled,
    AkoshaKilled,
    StoreLine,
    StoreLineInParts,
    StoreAnswers,
    StoreLies,
    NatsLine,
    AkoshaLine,
    AkoshaAnswers,
    CloudDown,
    BucketChanged,
    BucketChangedOnS3,
    SharedObjectFlipped,
    BucketEmptied,
    BucketEmptiedOnS3,
    DataDirectoryMoved,
    DataDirectoryDeleted,
    DataDirectoryRecreated,
    DataDirectorySwapped,
    DataDirectoryUnmounted,
    TargetUnmounted,
    OtherFiles,
    Renames,
    ReplacedByOlder,
    ReplacedByAnother,
    MirrorChanged,
    LedgerDamaged,
    LedgerDamagedInUse,
    LedgerNewer,
    RowSetFlipped,
    StagingFull,
    StateDiskFull,
    LogDiskFull,
    TargetFull,
    NoDescriptors,
    NoWatches,
    NoThreads,
    NoMemoryForTheChild,
    StateReadOnly,
    PermissionTaken,
    ClockSet,
    TimeZoneChanged,
    SummerTime,
    Suspended,
    TwoAgents,
    TwoMachines,
    TwoReactors,
    EarlierVersion,
    SettingsChanged,
    CredentialsReplaced,
    AuthorityReplaced,
    InterfaceGone,
    OtherAddresses,
    Vpn,
    WebhookLine,
    WebhookAnswers,
    WebhookKilled,
    PageOpen,
    PageAttacked,
)
