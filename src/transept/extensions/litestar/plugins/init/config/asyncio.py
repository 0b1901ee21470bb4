"""The async configuration and its `before_send` handlers."""

from transept.extensions.litestar._config import SQLAlchemyAsyncConfig
from transept.extensions.litestar._handlers import (
    autocommit_before_send_handler,
    autocommit_handler_maker,
    default_before_send_handler,
    default_handler_maker,
)

__all__ = [
    "SQLAlchemyAsyncConfig",
    "autocommit_before_send_handler",
    "autocommit_handler_maker",
    "default_before_send_handler",
    "default_handler_maker",
]
