"""context-async-sqlalchemy: its pure ASGI middleware, and the ready-made one for Starlette."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from context_async_sqlalchemy import ASGIHTTPDBSessionMiddleware, DBConnect, db_session
from context_async_sqlalchemy.starlette_utils import add_starlette_http_db_session_middleware
from database import Place
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from starlette.applications import Starlette

from contenders import App, awaited


@asynccontextmanager
async def with_middleware(place: Place, name: str, add_middleware: Callable[[Starlette], None]) -> AsyncIterator[App]:
    connect = DBConnect(
        lambda url: create_async_engine(url, pool_size=place.pool, max_overflow=0),
        async_sessionmaker,
        host=place.sqlalchemy_url,
    )
    app = Starlette(routes=awaited(partial(db_session, connect), place, name))
    add_middleware(app)
    yield app
    await connect.close()


asgi = partial(with_middleware, add_middleware=lambda app: app.add_middleware(ASGIHTTPDBSessionMiddleware))
ready_made = partial(with_middleware, add_middleware=add_starlette_http_db_session_middleware)
