"""SQL-first sessions over asyncpg."""

from __future__ import annotations

from typing import Any

from transept.adapters.asyncpg import AsyncpgConfig
from transept.errors import SQLError


class RawAsyncpg:
    name = "asyncpg"
    blocking = False
    drivers = {"postgres": ("asyncpg",)}
    can: frozenset[str] = frozenset()
    late_error = SQLError
    statement_error = SQLError

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return AsyncpgConfig(pool_config={"dsn": engine.dsn(port), "max_size": 5}, **settings)

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
        pool = database._pools.get()._pool
        return 0 if pool is None else int(pool.get_size() - pool.get_idle_size())
