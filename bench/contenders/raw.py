"""asyncpg without SQLAlchemy: by hand, as its documentation shows it, and through Transept's SQL-first sessions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import asyncpg
from database import Place
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from contenders import App, routes
from transept import Registry
from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.sqlite import SqliteConfig
from transept.extensions.starlette import Transept


@asynccontextmanager
async def by_hand(place: Place, name: str) -> AsyncIterator[App]:
    select, insert, insert_orphan = numbered(place)
    async with asyncpg.create_pool(place.url, min_size=1, max_size=place.pool) as pool:

        async def read(request: Request) -> Response:
            async with pool.acquire() as connection, connection.transaction():
                found = await connection.fetchval(select, 1)
            return PlainTextResponse(found)

        async def write(request: Request) -> Response:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(insert, name)
            return PlainTextResponse("written", 201)

        async def refused(request: Request) -> Response:
            async with pool.acquire() as connection:
                transaction = connection.transaction()
                await transaction.start()
                await connection.execute(insert, name)
                await transaction.rollback()
            return PlainTextResponse("refused", 400)

        async def broken(request: Request) -> Response:
            async with pool.acquire() as connection, connection.transaction():
                await connection.execute(insert_orphan, name)
            return PlainTextResponse("written", 201)

        yield Starlette(routes=routes(read, write, refused, broken))


@asynccontextmanager
async def through_transept(place: Place, name: str, *, saves: bool = True) -> AsyncIterator[App]:
    config = AsyncpgConfig(
        pool_config={"dsn": place.url, "max_size": place.pool},
        commit_mode="autocommit",
        bare_reads=saves,
        skip_reset=saves,
    )
    db = Transept(Registry([config]))
    select, insert, insert_orphan = numbered(place)

    async def read(request: Request) -> Response:
        return PlainTextResponse(await db.get_session(request).select_value(select, 1))

    async def writing(statement: str, status: int, request: Request) -> Response:
        await db.get_session(request).execute(statement, name)
        return PlainTextResponse("written", status)

    app = Starlette(
        routes=routes(
            read, partial(writing, insert, 201), partial(writing, insert, 400), partial(writing, insert_orphan, 201)
        )
    )
    db.init_app(app)
    async with app.router.lifespan_context(app):
        yield app


def saving_nothing(place: Place, name: str) -> AbstractAsyncContextManager[App]:
    return through_transept(place, name, saves=False)


@contextmanager
def blocking_session() -> Iterator[Any]:
    """On an empty SQLite in memory, in a transaction."""
    registry = Registry([SqliteConfig(pool_config={"database": ":memory:"})])
    with registry.provide_session() as session:
        session.begin()
        yield session
    registry.get_config().close_pool()


@asynccontextmanager
async def async_session(url: str) -> AsyncIterator[Any]:
    """On asyncpg, in a transaction."""
    registry = Registry([AsyncpgConfig(pool_config={"dsn": url})])
    async with registry.provide_session() as session:
        await session.begin()
        yield session
    await registry.close_all_pools()


def stream(session: Any, sql: str, count: int) -> Any:
    return session.stream(sql, count, chunk_size=1000)


def numbered(place: Place) -> list[str]:
    """The statements as asyncpg takes them."""
    statements = (place.select, place.insert, place.insert_orphan)
    return [statement.replace(":id", "$1").replace(":name", "$1") for statement in statements]
