"""Transept: what your client is told is what your database holds."""

from typing import TYPE_CHECKING, Any

from transept.context import after_commit, after_rollback, current_unit, doom, is_context_initiated
from transept.errors import (
    BlockingCallWarning,
    CheckViolationError,
    CommitFailed,
    CommitInDoubt,
    ConcurrentUseError,
    ContextAlreadyInitiatedError,
    ContextNotInitiatedError,
    DatabaseSaidNo,
    DatabaseUnavailable,
    DataError,
    DeadlockError,
    ForeignKeyViolationError,
    ImproperConfigurationError,
    IntegrityError,
    LockTimeoutError,
    LoopTimeout,
    MultipleResultsFoundError,
    NotFoundError,
    NotNullViolationError,
    OpenCursorError,
    OperationalError,
    OperationCancelledError,
    OutsideScope,
    ParameterError,
    PartlyCommitted,
    PoolBusyOnLoop,
    PoolTimeout,
    ProgrammingError,
    SerializationConflictError,
    SQLError,
    TranseptError,
    UniqueViolationError,
    UsageError,
)
from transept.gate.asgi import ASGIHTTPDBSessionMiddleware
from transept.gate.by_hand import (
    auto_commit_by_status_code,
    close_all_sessions,
    commit_all_sessions,
    init_db_session_ctx,
    reset_db_session_ctx,
    rollback_all_sessions,
)
from transept.registry import Registry
from transept.sessions import (
    atomic_db_session,
    close_db_session,
    commit_db_session,
    db_session,
    get_db_session_from_context,
    new_non_ctx_atomic_session,
    new_non_ctx_session,
    pop_db_session_from_context,
    put_db_session_to_context,
    rollback_db_session,
    sync_db_session,
)
from transept.transaction import in_new_unit, run_in_new_ctx, transaction, unit_of_work
from transept.unit import BeforeCommit as BeforeCommitCallback
from transept.unit import Unit

if TYPE_CHECKING:
    from transept.alchemy import DBConnect
    from transept.sql.values import Json

__all__ = [
    "ASGIHTTPDBSessionMiddleware",
    "BeforeCommitCallback",
    "BlockingCallWarning",
    "CheckViolationError",
    "CommitFailed",
    "CommitInDoubt",
    "ConcurrentUseError",
    "ContextAlreadyInitiatedError",
    "ContextNotInitiatedError",
    "DBConnect",
    "DataError",
    "DatabaseSaidNo",
    "DatabaseUnavailable",
    "DeadlockError",
    "ForeignKeyViolationError",
    "ImproperConfigurationError",
    "IntegrityError",
    "Json",
    "LockTimeoutError",
    "LoopTimeout",
    "MultipleResultsFoundError",
    "NotFoundError",
    "NotNullViolationError",
    "OpenCursorError",
    "OperationCancelledError",
    "OperationalError",
    "OutsideScope",
    "ParameterError",
    "PartlyCommitted",
    "PoolBusyOnLoop",
    "PoolTimeout",
    "ProgrammingError",
    "Registry",
    "SQLError",
    "SerializationConflictError",
    "TranseptError",
    "UniqueViolationError",
    "Unit",
    "UsageError",
    "after_commit",
    "after_rollback",
    "atomic_db_session",
    "auto_commit_by_status_code",
    "close_all_sessions",
    "close_db_session",
    "commit_all_sessions",
    "commit_db_session",
    "current_unit",
    "db_session",
    "doom",
    "get_db_session_from_context",
    "in_new_unit",
    "init_db_session_ctx",
    "is_context_initiated",
    "new_non_ctx_atomic_session",
    "new_non_ctx_session",
    "pop_db_session_from_context",
    "put_db_session_to_context",
    "reset_db_session_ctx",
    "rollback_all_sessions",
    "rollback_db_session",
    "run_in_new_ctx",
    "sync_db_session",
    "transaction",
    "unit_of_work",
]


def __getattr__(name: str) -> Any:
    """SQLAlchemy is imported by those who use it."""
    if name == "DBConnect":
        from transept.alchemy import DBConnect

        return DBConnect
    if name == "Json":
        from transept.sql.values import Json

        return Json
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
