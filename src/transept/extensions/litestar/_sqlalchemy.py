"""The plugins under the names that users of SQLAlchemy in Litestar know."""

from __future__ import annotations

from collections.abc import Sequence

from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.errors import ImproperConfigurationError
from transept.extensions.litestar._plugin import Transept

__all__ = ["SQLAlchemyInitPlugin", "SQLAlchemyPlugin"]


class SQLAlchemyInitPlugin(Transept):
    """`Transept` for SQLAlchemy databases alone.

    Args:
        config: a `SQLAlchemyAsyncConfig` or `SQLAlchemySyncConfig`, or several.

    Raises:
        ImproperConfigurationError: another kind of database, or what `Transept` raises.
    """

    def __init__(
        self,
        config: SQLAlchemyAsyncConfig | SQLAlchemySyncConfig | Sequence[SQLAlchemyAsyncConfig | SQLAlchemySyncConfig],
    ) -> None:
        super().__init__(config)
        for database in self._registry:
            if not isinstance(database, (SQLAlchemyAsyncConfig, SQLAlchemySyncConfig)):
                raise ImproperConfigurationError(
                    f"{type(self).__name__}: {database!r} is no SQLAlchemy configuration: use Transept(...)."
                )


class SQLAlchemyPlugin(SQLAlchemyInitPlugin):
    """As `SQLAlchemyInitPlugin`; what models look like in requests and responses will be added here."""
