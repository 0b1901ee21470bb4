"""The configurations of SQLAlchemy databases in Litestar."""

from transept.config import EngineConfig
from transept.extensions.litestar._config import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig

__all__ = ["EngineConfig", "SQLAlchemyAsyncConfig", "SQLAlchemySyncConfig"]
