"""The error classes: their hierarchy and their text."""

import inspect

import pytest

from agent.domain import errors
from agent.domain.errors import AkoshaError, AlreadyRunning, CloudUploadError, SyncError

TREE = {
    "SettingsError": "AkoshaError",
    "NamingError": "AkoshaError",
    "WireError": "AkoshaError",
    "PatchError": "WireError",
    "StateError": "AkoshaError",
    "AlreadyRunning": "StateError",
    "LedgerDamaged": "StateError",
    "SystemIdTaken": "AkoshaError",
    "SnapshotError": "AkoshaError",
    "StagingFull": "SnapshotError",
    "DamagedCopy": "SnapshotError",
    "StagedCopyChanged": "SnapshotError",
    "StoreError": "AkoshaError",
    "NoSuchObject": "StoreError",
    "CopyUnsupported": "StoreError",
    "UnreadableObject": "StoreError",
    "NotPermitted": "StoreError",
    "NotOwner": "StoreError",
    "RestoreError": "AkoshaError",
    "SinkError": "AkoshaError",
    "BusError": "AkoshaError",
    "WebhookError": "AkoshaError",
    "AgentUnavailable": "AkoshaError",
    "SyncError": "AkoshaError",
    "CloudUploadError": "SyncError",
    "HTTPSyncError": "SyncError",
    "HybridSyncError": "SyncError",
}


def test_the_hierarchy_is_the_one_in_the_module_docstring():
    found = {
        name: cls.__mro__[1].__name__
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, AkoshaError) and cls is not AkoshaError
    }
    assert found == TREE
    assert all(name in (errors.__doc__ or "") for name in found)


def test_the_text_of_an_error_is_its_message_and_its_hint():
    assert str(AkoshaError("no bucket", hint="set akosha_cloud_bucket")) == "no bucket (set akosha_cloud_bucket)"
    assert str(AkoshaError("no bucket")) == "no bucket"
    assert not AkoshaError("x").transient


def test_a_sync_error_takes_message_method_and_original_by_position():
    cause = OSError("gone")
    error = CloudUploadError("upload failed", "cloud", cause)
    assert (error.message, error.method, error.original) == ("upload failed", "cloud", cause)
    assert error.forwardable
    assert SyncError("x", "http").original is None


def test_already_running_names_the_process_that_holds_the_lock():
    error = AlreadyRunning("busy", pid=12, command="akosha-agent run", hint="stop it")
    assert (error.pid, error.command) == (12, "akosha-agent run")


@pytest.mark.parametrize("kind", [errors.NamingError, errors.WireError])
def test_naming_and_wire_errors_are_value_errors_too(kind):
    with pytest.raises(ValueError, match="bad"):
        raise kind("bad")
