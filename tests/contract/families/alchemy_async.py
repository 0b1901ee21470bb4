"""SQLAlchemy's `AsyncSession`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from transept.alchemy import EngineConfig, SQLAlchemyAsyncConfig


class AlchemyAsync:
    name = "alchemy-async"
    blocking = False
    drivers = {
        "sqlite": ("aiosqlite",),
        "memory": ("aiosqlite",),
        "postgres": ("asyncpg", "psycopg"),
        "mariadb": ("asyncmy",),
    }
    can = frozenset({"nested", "cursor", "flush", "create_all"})
    late_error = DBAPIError
    statement_error = DBAPIError
    config: Any = SQLAlchemyAsyncConfig

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        options = {"pool_size": 5, "max_overflow": 0, "pool_timeout": 3}
        url = engine.url(driver, port)
        return self.config(connection_string=url, engine_config=EngineConfig(**options), **settings)

    async def run(self, session: Any, sql: str) -> None:
        await session.execute(text(sql))

    async def value(self, session: Any, sql: str) -> Any:
        return await session.scalar(text(sql))

    async def commit(self, session: Any) -> None:
        await session.commit()

    async def rollback(self, session: Any) -> None:
        await session.rollback()

    async def close(self, session: Any) -> None:
        await session.close()

    async def failing_in_savepoint(self, session: Any, first: Callable[[], Any] = lambda: None) -> None:
        with suppress(DBAPIError):
            async with session.begin_nested():
                first()
                await session.execute(text("SELECT nonsense"))

    async def cursor(self, session: Any, sql: str) -> Any:
        result = await session.stream(text(sql), execution_options={"yield_per": 2})

        async def rows() -> Any:
            async for row in result:
                yield row[0]

        return rows()

    async def stop(self, database: Any) -> None:
        await database.stop()

    def checked_out(self, database: Any) -> int:
        return int(database.get_engine().pool.checkedout())
