"""SQLAlchemy's `AsyncSession`, over engines that the app makes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from contract.families.alchemy_async import AlchemyAsync
from transept import DBConnect


class OverDBConnect(AlchemyAsync):
    name = "dbconnect"
    drivers = {"sqlite": ("aiosqlite",), "postgres": ("asyncpg",), "mariadb": ("asyncmy",)}
    can = AlchemyAsync.can - {"create_all"} | {"app_engine"}

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        def make(host: str) -> AsyncEngine:
            options = {"pool_size": 5, "max_overflow": 0, "pool_timeout": 3}
            url = make_url(engine.url(driver, port))
            made = create_async_engine(url if engine.name == "sqlite" else url.set(host=host), **options)
            if engine.name == "sqlite":
                begin_by_hand(made)
            return made

        return DBConnect(make, async_sessionmaker, "127.0.0.1", **settings)


def begin_by_hand(engine: AsyncEngine) -> None:
    """As SQLAlchemy's documentation advises: https://docs.sqlalchemy.org/en/20/dialects/sqlite.html."""

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")
