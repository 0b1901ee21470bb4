"""Transept for Litestar: sessions injected, engines with the app, the gate around it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transept.config import AsyncSessionConfig, EngineConfig, SyncSessionConfig
from transept.extensions.litestar._handlers import (
    autocommit_before_send_handler,
    autocommit_handler_maker,
    default_before_send_handler,
    default_handler_maker,
    sync_autocommit_before_send_handler,
    sync_autocommit_handler_maker,
    sync_default_before_send_handler,
    sync_default_handler_maker,
)
from transept.extensions.litestar._plugin import Transept

if TYPE_CHECKING:
    from transept.extensions.litestar._config import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
    from transept.extensions.litestar._sqlalchemy import SQLAlchemyInitPlugin, SQLAlchemyPlugin

async_autocommit_before_send_handler = autocommit_before_send_handler
async_autocommit_handler_maker = autocommit_handler_maker
async_default_before_send_handler = default_before_send_handler
async_default_handler_maker = default_handler_maker

__all__ = [
    "AsyncSessionConfig",
    "EngineConfig",
    "SQLAlchemyAsyncConfig",
    "SQLAlchemyInitPlugin",
    "SQLAlchemyPlugin",
    "SQLAlchemySyncConfig",
    "SyncSessionConfig",
    "Transept",
    "async_autocommit_before_send_handler",
    "async_autocommit_handler_maker",
    "async_default_before_send_handler",
    "async_default_handler_maker",
    "autocommit_before_send_handler",
    "autocommit_handler_maker",
    "default_before_send_handler",
    "default_handler_maker",
    "sync_autocommit_before_send_handler",
    "sync_autocommit_handler_maker",
    "sync_default_before_send_handler",
    "sync_default_handler_maker",
]


def __getattr__(name: str) -> Any:
    """SQLAlchemy is imported by those who use it."""
    if name in ("SQLAlchemyAsyncConfig", "SQLAlchemySyncConfig"):
        from transept.extensions.litestar import _config

        return getattr(_config, name)
    if name in ("SQLAlchemyInitPlugin", "SQLAlchemyPlugin"):
        from transept.extensions.litestar import _sqlalchemy

        return getattr(_sqlalchemy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
