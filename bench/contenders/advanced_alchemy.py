"""Advanced Alchemy: its Starlette extension, in its mode `autocommit`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from advanced_alchemy.extensions.starlette import AdvancedAlchemy, EngineConfig, SQLAlchemyAsyncConfig
from database import Place
from starlette.applications import Starlette

from contenders import App, on_request


@asynccontextmanager
async def extension(place: Place, name: str) -> AsyncIterator[App]:
    alchemy = AdvancedAlchemy(
        SQLAlchemyAsyncConfig(
            connection_string=place.sqlalchemy_url,
            engine_config=EngineConfig(pool_size=place.pool, max_overflow=0),
            commit_mode="autocommit",
        )
    )
    app = Starlette(routes=on_request(alchemy.get_session, place, name))
    alchemy.init_app(app)
    async with app.router.lifespan_context(app):
        yield app
    await alchemy.get_async_config().get_engine().dispose()
