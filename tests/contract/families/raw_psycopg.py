"""SQL-first sessions over psycopg, async and blocking."""

from __future__ import annotations

from typing import Any

from contract.families.raw import AwaitedSQL, BlockingSQL
from transept.adapters.psycopg import PsycopgAsyncConfig, PsycopgSyncConfig


class RawPsycopgAsync(AwaitedSQL):
    name = "psycopg-async"
    drivers = {"postgres": ("psycopg",)}
    can = AwaitedSQL.can | {"saves"}

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return PsycopgAsyncConfig(pool_config={"dsn": engine.dsn(port), "max_size": 5}, **settings)

    def checked_out(self, database: Any) -> int:
        return int(database._own_pool().in_use)


class RawPsycopgSync(BlockingSQL):
    name = "psycopg-sync"
    drivers = {"postgres": ("psycopg",)}
    can = BlockingSQL.can | {"saves"}

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return PsycopgSyncConfig(pool_config={"dsn": engine.dsn(port), "max_size": 5}, **settings)

    def checked_out(self, database: Any) -> int:
        return int(database._own_pool().in_use)
