"""SQL-first sessions over asyncmy and over PyMySQL."""

from __future__ import annotations

from typing import Any

from transept.adapters.asyncmy import AsyncmyConfig
from transept.adapters.pymysql import PyMysqlConfig
from transept.errors import SQLError


class RawAsyncmy:
    name = "asyncmy"
    blocking = False
    drivers = {"mariadb": ("asyncmy",)}
    can: frozenset[str] = frozenset()
    late_error = SQLError
    statement_error = SQLError

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return AsyncmyConfig(pool_config={"dsn": engine.url(driver, port)}, **settings)

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


class RawPyMySQL:
    name = "pymysql"
    blocking = True
    drivers = {"mariadb": ("pymysql",)}
    can: frozenset[str] = frozenset()
    late_error = SQLError
    statement_error = SQLError

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return PyMysqlConfig(pool_config={"dsn": engine.url(driver, port)}, **settings)

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
