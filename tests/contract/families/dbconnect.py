"""SQLAlchemy's `AsyncSession`, over engines that the app makes."""

from __future__ import annotations

from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

from contract.families.alchemy_async import AlchemyAsync
from transept import DBConnect
from transept.alchemy.engine import make_engine


class OverDBConnect(AlchemyAsync):
    name = "dbconnect"
    drivers = {"sqlite": ("aiosqlite",), "postgres": ("asyncpg",), "mariadb": ("asyncmy",)}
    can = AlchemyAsync.can - {"create_all"}

    def database(self, engine: Any, driver: str, port: int | None, **settings: Any) -> Any:
        def make(host: str) -> AsyncEngine:
            options = {"pool_size": 5, "max_overflow": 0, "pool_timeout": 3}
            url = make_url(engine.url(driver, port))
            if driver == "aiosqlite":  # what SQLite needs in a web app, the app has to do itself
                return make_engine(url, options, create_async_engine, blocking=False)
            return create_async_engine(url.set(host=host), **options)

        return DBConnect(make, async_sessionmaker, "127.0.0.1", **settings)
