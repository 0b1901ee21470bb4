"""SQL-first sessions over aiosqlite."""

from __future__ import annotations

from typing import Any

from transept.adapters.aiosqlite import AiosqliteConfig
from transept.errors import SQLError


class RawAiosqlite:
    name = "aiosqlite"
    blocking = False
    drivers = {"sqlite": ("aiosqlite",), "memory": ("aiosqlite",)}
    can: frozenset[str] = frozenset()
    late_error = SQLError
    statement_error = SQLError

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return AiosqliteConfig(pool_config=engine.options, **settings)

    async def run(self, session: Any, sql: str) -> None:
        await session.execute(sql)

    async def value(self, session: Any, sql: str) -> Any:
        return await session.select_value(sql)

    async def commit(self, session: Any) -> None:
        await session.commit()

    async def rollback(self, session: Any) -> None:
        await session.rollback()

    async def close(self, session: Any) -> None:
        await session.rollback()

    def checked_out(self, database: Any) -> int:
        return int(database._pools.get().in_use)
