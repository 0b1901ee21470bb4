"""Transept: the session of the request, by the request and by the context."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from database import Place
from starlette.applications import Starlette

import transept
from contenders import App, MissingError, awaited, on_request
from transept.extensions.starlette import EngineConfig, SQLAlchemyAsyncConfig, Transept


def configured(place: Place) -> Transept:
    return Transept(
        SQLAlchemyAsyncConfig(
            connection_string=place.sqlalchemy_url,
            engine_config=EngineConfig(pool_size=place.pool, max_overflow=0),
            commit_mode="autocommit",
        )
    )


@asynccontextmanager
async def by_request(place: Place, name: str) -> AsyncIterator[App]:
    db = configured(place)
    app = Starlette(routes=on_request(db.get_session, place, name))
    db.init_app(app)
    async with app.router.lifespan_context(app):
        yield app


@asynccontextmanager
async def by_context(place: Place, name: str) -> AsyncIterator[App]:
    db_session = getattr(transept, "db_session", None)
    if db_session is None:
        raise MissingError("this version has no db_session()")
    app = Starlette(routes=awaited(db_session, place, name))
    configured(place).init_app(app)
    async with app.router.lifespan_context(app):
        yield app
