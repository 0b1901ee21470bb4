"""SQL-first sessions over psycopg, async and blocking."""

from __future__ import annotations

from typing import Any

from transept.adapters.psycopg import PsycopgAsyncConfig, PsycopgSyncConfig
from transept.errors import SQLError


class RawPsycopgAsync:
    name = "psycopg-async"
    blocking = False
    drivers = {"postgres": ("psycopg",)}
    can: frozenset[str] = frozenset()
    late_error = SQLError
    statement_error = SQLError

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return PsycopgAsyncConfig(pool_config={"dsn": engine.dsn(port), "max_size": 5}, **settings)

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
        return int(database._own_pool().in_use)


class RawPsycopgSync:
    name = "psycopg-sync"
    blocking = True
    drivers = {"postgres": ("psycopg",)}
    can: frozenset[str] = frozenset()
    late_error = SQLError
    statement_error = SQLError

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return PsycopgSyncConfig(pool_config={"dsn": engine.dsn(port), "max_size": 5}, **settings)

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
        return int(database._own_pool().in_use)
