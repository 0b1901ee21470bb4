"""Transept: what your client is told is what your database holds."""

from transept.context import after_commit, after_rollback, current_unit, doom, unit_of_work
from transept.database import Registry
from transept.errors import (
    BlockingCallWarning,
    CommitFailed,
    CommitInDoubt,
    ConcurrentUseError,
    DatabaseSaidNo,
    ImproperConfigurationError,
    OpenCursorError,
    OutsideScope,
    PartlyCommitted,
    PoolBusyOnLoop,
    TranseptError,
    UsageError,
)
from transept.unit import Unit

__all__ = [
    "BlockingCallWarning",
    "CommitFailed",
    "CommitInDoubt",
    "ConcurrentUseError",
    "DatabaseSaidNo",
    "ImproperConfigurationError",
    "OpenCursorError",
    "OutsideScope",
    "PartlyCommitted",
    "PoolBusyOnLoop",
    "Registry",
    "TranseptError",
    "Unit",
    "UsageError",
    "after_commit",
    "after_rollback",
    "current_unit",
    "doom",
    "unit_of_work",
]
