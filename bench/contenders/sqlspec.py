"""SQLSpec: its Starlette extension over asyncpg, in its mode `autocommit`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from database import Place
from sqlspec import SQLSpec
from sqlspec.adapters.asyncpg import AsyncpgConfig
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
