"""The plugins, where users of SQLAlchemy in Litestar look for them."""

from transept.extensions.litestar._config import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.extensions.litestar._sqlalchemy import SQLAlchemyInitPlugin, SQLAlchemyPlugin

__all__ = ["SQLAlchemyAsyncConfig", "SQLAlchemyInitPlugin", "SQLAlchemyPlugin", "SQLAlchemySyncConfig"]
