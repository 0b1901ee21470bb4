"""SQLSpec: its Starlette extension over asyncpg, in its mode `autocommit`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

from database import Place
from sqlspec import SQLSpec
from sqlspec.adapters.asyncpg import AsyncpgConfig
from sqlspec.adapters.sqlite import SqliteConfig
from sqlspec.extensions.starlette import SQLSpecPlugin
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from contenders import App, routes


@asynccontextmanager
async def plugin(place: Place, name: str) -> AsyncIterator[App]:
    spec = SQLSpec()
    spec.add_config(
        AsyncpgConfig(
            connection_config={"dsn": place.url, "min_size": 1, "max_size": place.pool},
            extension_config={"starlette": {"commit_mode": "autocommit"}},
        )
    )
    db = SQLSpecPlugin(spec)
    select, insert, insert_orphan = (
        statement.replace(":id", "$1").replace(":name", "$1")
        for statement in (place.select, place.insert, place.insert_orphan)
    )

    async def read(request: Request) -> Response:
        session = db.get_session(request)
        return PlainTextResponse(await session.select_value(select, 1))

    async def writing(statement: str, status: int, request: Request) -> Response:
        session = db.get_session(request)
        await session.execute(statement, name)
        return PlainTextResponse("written", status)

    async def write(request: Request) -> Response:
        session = db.get_session(request)
        await session.execute(insert, name)
        return PlainTextResponse("written", 201)

    app = Starlette(routes=routes(read, write, partial(writing, insert, 400), partial(writing, insert_orphan, 201)))
    db.init_app(app)
    async with app.router.lifespan_context(app):
        yield app


@contextmanager
def blocking_session() -> Iterator[Any]:
    """On an empty SQLite in memory, in a transaction."""
    spec = SQLSpec()
    config = spec.add_config(SqliteConfig(connection_config={"database": ":memory:"}))
    with spec.provide_session(config) as session:
        session.begin()
        yield session
        session.rollback()
    config.close_pool()


@asynccontextmanager
async def async_session(url: str) -> AsyncIterator[Any]:
    """On asyncpg, in a transaction."""
    spec = SQLSpec()
    config = spec.add_config(AsyncpgConfig(connection_config={"dsn": url, "min_size": 1, "max_size": 1}))
    async with spec.provide_session(config) as session:
        await session.begin()
        yield session
        await session.rollback()
    await config.close_pool()


def stream(session: Any, sql: str, count: int) -> Any:
    # by name, because on asyncpg a stream with parameters by position fails: "tuple object expected; got list"
    named = sql.replace("$1", ":count").replace("?", ":count")
    return session.select_stream(named, count=count, chunk_size=1000)
