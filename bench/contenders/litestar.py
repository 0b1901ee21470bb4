"""Litestar alone, and with a plugin: Transept's, or Advanced Alchemy's, which has the same names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from typing import Any

from database import Place
from litestar import Litestar, MediaType, get
from sqlalchemy.ext.asyncio import AsyncSession

from contenders import App


async def without_session() -> str:
    return "nothing"


async def with_session(db_session: AsyncSession) -> str:
    return "nothing"


@asynccontextmanager
async def started(session_handler: Any, plugins: list[Any]) -> AsyncIterator[App]:
    text = partial(get, media_type=MediaType.TEXT)
    handlers = [text("/litestar-nodb")(without_session), text("/litestar-session")(session_handler)]
    app = Litestar(handlers, plugins=plugins, logging_config=None)
    async with app.lifespan():
        yield app


@asynccontextmanager
async def bare(place: Place, name: str) -> AsyncIterator[App]:
    async with started(without_session, []) as app:
        yield app


@asynccontextmanager
async def with_plugin(place: Place, name: str, *, extension: str) -> AsyncIterator[App]:
    its = import_module(extension)
    config = its.SQLAlchemyAsyncConfig(
        connection_string=place.sqlalchemy_url,
        engine_config=its.EngineConfig(pool_size=place.pool, max_overflow=0),
        before_send_handler="autocommit",
    )
    async with started(with_session, [its.SQLAlchemyInitPlugin(config)]) as app:
        yield app


transept = partial(with_plugin, extension="transept.extensions.litestar")
advanced_alchemy = partial(with_plugin, extension="advanced_alchemy.extensions.litestar")
