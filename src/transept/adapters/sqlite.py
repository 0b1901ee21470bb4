"""SQLite through the standard library's sqlite3."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, ClassVar

from transept._sqlite import begin_statement
from transept.config import configuration
from transept.sql.faults import Fault
from transept.sql.kinds import Kind
from transept.sql.lite import LiteCursor, LiteLink, LiteSettings, run
from transept.sql.pool import ThreadPool
from transept.sql.result import Result
from transept.sql.settings import BlockingSettings
from transept.sql.tokens import split

__all__ = ["SqliteConfig"]


@configuration
class SqliteConfig(BlockingSettings, LiteSettings):
    """A SQLite database, for blocking code; the settings of `DriverSettings`.

    Args:
        pool_config: the keywords of `sqlite3.connect`, such as ``{"database": "app.db"}``, or a ``dsn``, such as
            ``"sqlite:///app.db?mode=ro"``; and of the pool: ``max_size`` (5), ``min_size``, ``max_idle`` in seconds.
            ``timeout`` is how many seconds a statement waits while another transaction writes, 5 unless it is given.
            ``":memory:"`` is one in-memory database that lives until it is stopped and that all threads share.
    """

    driver_connection: ClassVar[type] = sqlite3.Connection

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pool = ThreadPool(self._connect, SqliteLink.close, self._pool_settings())
        self._announce(self._pool)

    async def link(self, holder: str) -> SqliteLink:
        return self._pool.acquire(holder)

    async def _warm(self, connections: int) -> None:
        self._pool.warm(connections)

    async def stop(self) -> None:
        self.close_pool()

    def provide_pool(self) -> ThreadPool[SqliteLink]:
        """The pool, which is Transept's: the driver has none."""
        return self._pool

    def close_pool(self) -> None:
        """Close it, and forget a database in memory; the next use begins anew."""
        self._pool.close()
        self._forget_memory()

    def _connect(self) -> SqliteLink:
        return SqliteLink(self._connected(), self._pool)


class SqliteLink(LiteLink):
    """One connection; pooled as it is."""

    __slots__ = ("_pool", "connection")

    def __init__(self, connection: sqlite3.Connection, pool: ThreadPool[SqliteLink]) -> None:
        super().__init__()
        self.connection = connection
        self._pool = pool

    async def begin(self, may_write: bool) -> None:
        self.connection.execute(begin_statement(may_write))

    async def run(self, sql: str, values: Sequence[Any], kind: Kind) -> Result:
        self.note(kind)
        return run(self.connection, sql, values)

    async def run_many(self, sql: str, sets: Sequence[Sequence[Any]]) -> int:
        return self.connection.executemany(sql, sets).rowcount

    async def run_script(self, script: str) -> None:
        statements = split(script, "sqlite")
        self.note_script(statements)
        for statement in statements:
            self.connection.execute(statement)

    async def cursor(self, sql: str, values: Sequence[Any]) -> SqliteCursor:
        return SqliteCursor(self.connection.execute(sql, values))

    def still_in_transaction(self) -> bool:
        return self.connection.in_transaction

    async def ended_by(self, fault: Fault) -> bool:
        """SQLite drops the transaction at some errors; what follows would be kept at once, so a new one is begun."""
        if self.connection.in_transaction:
            return False
        self.connection.execute("BEGIN")
        return True

    async def commit(self) -> None:
        self.connection.execute("COMMIT")

    async def rollback(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    async def release(self) -> None:
        if self.stained:
            await self.drop()
        else:
            self._pool.release(self)

    async def drop(self) -> None:
        self.close()
        self._pool.discard(self)

    def close(self) -> None:
        self.connection.close()


class SqliteCursor(LiteCursor):
    """A statement that has rows left."""

    __slots__ = ()

    async def fetch(self, count: int) -> Sequence[Sequence[Any]]:
        return self._cursor.fetchmany(count)

    async def close(self) -> None:
        self._cursor.close()
