"""What the two drivers of SQLite share: their settings, and how a new connection is made ready."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from transept._sqlite import memory_name, prepare
from transept.config import configuration
from transept.errors import ImproperConfigurationError
from transept.sql.pool import PoolSettings
from transept.sql.settings import DriverSettings
from transept.sql.statement import Notation
from transept.sql.values import TEXT_TYPES, Table

__all__ = ["LiteSettings"]

CONNECT_OPTIONS = frozenset({"database", "timeout", "detect_types", "factory", "cached_statements", "uri"})
POOL_OPTIONS = frozenset({"dsn", "min_size", "max_size", "max_idle"})


@configuration
class LiteSettings(DriverSettings):
    """A SQLite database."""

    dialect: ClassVar[str] = "sqlite"
    notation: ClassVar[Notation] = Notation("sqlite", own="qmark", out="qmark")
    natives: ClassVar[frozenset[type]] = frozenset()
    adapts: ClassVar[Table] = TEXT_TYPES

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        options = dict(self.pool_config)
        self._min_size = options.pop("min_size", 0)
        self._sizes = {name: options.pop(name) for name in ("max_size", "max_idle") if name in options}
        if "dsn" in options:
            options = {**_of_dsn(owner, options.pop("dsn")), **options}
        if not options.get("database"):
            raise ImproperConfigurationError(
                f"{owner}: pool_config={self.pool_config!r}: a 'database' is needed, such as "
                "{'database': 'app.db'} or {'database': ':memory:'}."
            )
        self._options = {"check_same_thread": False, **options, "isolation_level": None}
        self._in_memory = options["database"] == ":memory:"
        if self._in_memory:
            self._options.update(database=f"file:{memory_name()}?vfs=memdb", uri=True)
        self._keeper: sqlite3.Connection | None = None
        self._one_connects = threading.Lock()

    @classmethod
    def pool_options(cls) -> frozenset[str]:
        return CONNECT_OPTIONS | POOL_OPTIONS

    def _pool_settings(self) -> PoolSettings:
        return PoolSettings(self.key, timeout=self.pool_timeout, **self._sizes)

    def _connected(self) -> sqlite3.Connection:
        """A new connection. An in-memory database lives as long as a connection to it: one is held until `stop`."""
        with self._one_connects:
            if self._in_memory and self._keeper is None:
                self._keeper = sqlite3.connect(**self._options)
        connection: sqlite3.Connection = sqlite3.connect(**self._options)
        try:
            prepare(connection.execute)
        except BaseException:
            connection.close()
            raise
        return connection

    def _forget_memory(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    def __del__(self) -> None:
        keeper: sqlite3.Connection | None = getattr(self, "_keeper", None)
        if keeper is not None:
            keeper.close()


def _of_dsn(owner: str, dsn: Any) -> Mapping[str, Any]:
    """``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``sqlite://`` and ``sqlite:///:memory:``."""
    parts = urlsplit(dsn) if isinstance(dsn, str) else None
    if parts is None or parts.scheme.partition("+")[0] != "sqlite" or parts.netloc:
        raise ImproperConfigurationError(
            f"{owner}: dsn={dsn!r}: a SQLite URL is needed, such as 'sqlite:///app.db' or 'sqlite:///:memory:'."
        )
    return {"database": unquote(parts.path[1:]) or ":memory:"}
