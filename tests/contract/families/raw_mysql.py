"""SQL-first sessions over asyncmy and over PyMySQL."""

from __future__ import annotations

from typing import Any

from contract.families.raw import AwaitedSQL, BlockingSQL
from transept.adapters.asyncmy import AsyncmyConfig
from transept.adapters.pymysql import PyMysqlConfig


class RawAsyncmy(AwaitedSQL):
    name = "asyncmy"
    drivers = {"mariadb": ("asyncmy",)}

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return AsyncmyConfig(pool_config={"dsn": engine.url(driver, port)}, **settings)

    def checked_out(self, database: Any) -> int:
        return int(database._pools.get().in_use)


class RawPyMySQL(BlockingSQL):
    name = "pymysql"
    drivers = {"mariadb": ("pymysql",)}

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return PyMysqlConfig(pool_config={"dsn": engine.url(driver, port)}, **settings)

    def checked_out(self, database: Any) -> int:
        return int(database.provide_pool().in_use)
