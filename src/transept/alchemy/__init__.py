"""SQLAlchemy databases: their configuration, guarded sessions, and how a unit of work settles them."""

from transept.alchemy.connect import DBConnect
from transept.alchemy.database import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.config import AsyncSessionConfig, EngineConfig, SyncSessionConfig

__all__ = [
    "AsyncSessionConfig",
    "DBConnect",
    "EngineConfig",
    "SQLAlchemyAsyncConfig",
    "SQLAlchemySyncConfig",
    "SyncSessionConfig",
]
