"""SQL-first sessions over the standard library's sqlite3."""

from __future__ import annotations

from typing import Any

from transept.adapters.sqlite import SqliteConfig
from transept.errors import SQLError


class RawSqlite3:
    name = "sqlite3"
    blocking = True
    drivers = {"sqlite": ("sqlite3",), "memory": ("sqlite3",)}
    can: frozenset[str] = frozenset()
    late_error = SQLError
    statement_error = SQLError

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return SqliteConfig(pool_config=engine.options, **settings)

    async def run(self, session: Any, sql: str) -> None:
        session.execute(sql)

    async def value(self, session: Any, sql: str) -> Any:
        return session.select_value(sql)

    async def commit(self, session: Any) -> None:
        session.commit()

    async def rollback(self, session: Any) -> None:
        session.rollback()

    async def close(self, session: Any) -> None:
        session.rollback()

    def checked_out(self, database: Any) -> int:
        return int(database.provide_pool().in_use)
