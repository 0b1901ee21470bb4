"""SQL-first sessions over the standard library's sqlite3."""

from __future__ import annotations

from typing import Any

from contract.families.raw import BlockingSQL
from transept.adapters.sqlite import SqliteConfig


class RawSqlite3(BlockingSQL):
    name = "sqlite3"
    drivers = {"sqlite": ("sqlite3",), "memory": ("sqlite3",)}

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return SqliteConfig(pool_config=engine.options, **settings)

    def checked_out(self, database: Any) -> int:
        return int(database.provide_pool().in_use)
