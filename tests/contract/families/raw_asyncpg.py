"""SQL-first sessions over asyncpg."""

from __future__ import annotations

from typing import Any

from contract.families.raw import AwaitedSQL
from transept.adapters.asyncpg import AsyncpgConfig


class RawAsyncpg(AwaitedSQL):
    name = "asyncpg"
    drivers = {"postgres": ("asyncpg",)}
    can = AwaitedSQL.can | {"saves"}

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        return AsyncpgConfig(pool_config={"dsn": engine.dsn(port), "max_size": 5}, **settings)

    def checked_out(self, database: Any) -> int:
        pool = database._pools.get()._pool
        return 0 if pool is None else int(pool.get_size() - pool.get_idle_size())
