"""SQL-first sessions over aiosqlite."""

from __future__ import annotations

from typing import Any

from contract.families.raw import AwaitedSQL
from transept.adapters.aiosqlite import AiosqliteConfig


class RawAiosqlite(AwaitedSQL):
    name = "aiosqlite"
    drivers = {"sqlite": ("aiosqlite",), "memory": ("aiosqlite",)}

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return AiosqliteConfig(pool_config=engine.options, **settings)

    def checked_out(self, database: Any) -> int:
        return int(database._pools.get().in_use)
