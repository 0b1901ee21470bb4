"""SQLite through the standard library's sqlite3."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar
from weakref import finalize

from transept._sqlite import begin_statement, memory_name, prepare
from transept.config import DatabaseSettings, configuration, options_checked
from transept.errors import ImproperConfigurationError
from transept.sql.session import Parameters, Result, SQLHandle
from transept.turn import ThreadTurn
from transept.unit import Hooks

__all__ = ["SqliteConfig"]


CONNECT_OPTIONS = [
    "database",
    "timeout",
    "detect_types",
    "isolation_level",
    "check_same_thread",
    "factory",
    "cached_statements",
    "uri",
    "autocommit",
]


@configuration
class SqliteConfig(DatabaseSettings):
    """A SQLite database, for blocking code.

    Args:
        pool_config: the keywords of `sqlite3.connect`, such as ``{"database": "app.db"}``; ``":memory:"`` is one
            in-memory database that lives until it is stopped and that all threads share.
        bind_key, session_key, commit_mode, extra_commit_statuses, extra_rollback_statuses: as on every database.
    """

    pool_config: Mapping[str, Any] = field(default_factory=dict)

    dialect: ClassVar[str] = "sqlite"
    blocking: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        options_checked("SqliteConfig", "pool_config", self.pool_config, CONNECT_OPTIONS)
        if "database" not in self.pool_config:
            raise ImproperConfigurationError(
                f"SqliteConfig: pool_config={self.pool_config!r}: a mapping with 'database' is needed, such as "
                "{'database': 'app.db'} or {'database': ':memory:'}."
            )
        self._options = {"check_same_thread": False, **self.pool_config, "isolation_level": None}
        self._keeper: Any = None
        if self._options["database"] == ":memory:":
            self._options.update(database=f"file:{memory_name()}?vfs=memdb", uri=True)

    def open(self, hooks: Hooks, reads_only: bool) -> SQLHandle:
        return SQLHandle(self._route(hooks) or self, ThreadTurn(), reads_only)

    async def start(self) -> None:
        """A connection is opened for each transaction."""

    async def stop(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper()

    async def link(self) -> SqliteLink:
        if self._keeper is None and "vfs=memdb" in str(self._options["database"]):
            self._keeper = finalize(self, sqlite3.connect(**self._options).close)
        connection = sqlite3.connect(**self._options)
        try:
            prepare(connection.execute)
        except BaseException:
            connection.close()
            raise
        return SqliteLink(connection)


class SqliteLink:
    """One connection for one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._ended = False

    async def begin(self, may_write: bool) -> None:
        self._connection.execute(begin_statement(may_write))

    async def run(self, sql: str, parameters: Parameters) -> Result:
        try:
            cursor = self._connection.execute(sql, parameters)
        except sqlite3.Error:
            self._note_ended()
            raise
        rows = cursor.fetchall()
        names = tuple(column[0] for column in cursor.description or ())
        return Result(names, rows, max(cursor.rowcount, 0))

    async def gone(self) -> str | None:
        return "an earlier error ended the transaction" if self._ended else None

    async def commit(self) -> None:
        self._connection.execute("COMMIT")

    async def rollback(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    async def release(self) -> None:
        self._connection.close()

    async def drop(self) -> None:
        self._connection.close()

    def _note_ended(self) -> None:
        """SQLite dropped the transaction: what follows would autocommit, so a new one is begun, to be rolled back."""
        if not self._connection.in_transaction:
            self._ended = True
            self._connection.execute("BEGIN")
