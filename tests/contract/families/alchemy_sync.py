"""SQLAlchemy's `Session`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from transept.alchemy import EngineConfig, SQLAlchemySyncConfig


class AlchemySync:
    name = "alchemy-sync"
    blocking = True
    drivers = {
        "sqlite": ("pysqlite",),
        "memory": ("pysqlite",),
        "postgres": ("psycopg",),
        "mariadb": ("pymysql",),
    }
    can = frozenset({"nested", "cursor", "flush", "create_all"})
    late_error = DBAPIError
    statement_error = DBAPIError
    config: Any = SQLAlchemySyncConfig

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        options = {"pool_size": 5, "max_overflow": 0, "pool_timeout": 3}
        url = engine.url(driver, port)
        return self.config(connection_string=url, engine_config=EngineConfig(**options), **settings)

    async def run(self, session: Any, sql: str) -> None:
        session.execute(text(sql))

    async def value(self, session: Any, sql: str) -> Any:
        return session.scalar(text(sql))

    async def commit(self, session: Any) -> None:
        session.commit()

    async def rollback(self, session: Any) -> None:
        session.rollback()

    async def close(self, session: Any) -> None:
        session.close()

    async def failing_in_savepoint(self, session: Any, first: Callable[[], Any] = lambda: None) -> None:
        with suppress(DBAPIError), session.begin_nested():
            first()
            session.execute(text("SELECT nonsense"))

    async def cursor(self, session: Any, sql: str) -> Any:
        result = session.execute(text(sql), execution_options={"yield_per": 2})

        async def rows() -> Any:
            for row in result:
                yield row[0]

        return rows()

    async def stop(self, database: Any) -> None:
        await database.stop()

    def checked_out(self, database: Any) -> int:
        return int(database.get_engine().pool.checkedout())
