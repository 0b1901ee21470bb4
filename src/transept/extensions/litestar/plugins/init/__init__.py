"""The plugin that ties databases to an app, and its configurations."""

from transept.extensions.litestar._config import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.extensions.litestar._sqlalchemy import SQLAlchemyInitPlugin

__all__ = ["SQLAlchemyAsyncConfig", "SQLAlchemyInitPlugin", "SQLAlchemySyncConfig"]
