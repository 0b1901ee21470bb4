"""The sync configuration and its `before_send` handlers."""

from transept.extensions.litestar._config import SQLAlchemySyncConfig
from transept.extensions.litestar._handlers import (
    sync_autocommit_before_send_handler as autocommit_before_send_handler,
)
from transept.extensions.litestar._handlers import sync_autocommit_handler_maker as autocommit_handler_maker
from transept.extensions.litestar._handlers import sync_default_before_send_handler as default_before_send_handler
from transept.extensions.litestar._handlers import sync_default_handler_maker as default_handler_maker

__all__ = [
    "SQLAlchemySyncConfig",
    "autocommit_before_send_handler",
    "autocommit_handler_maker",
    "default_before_send_handler",
    "default_handler_maker",
]
