"""Starlette alone, and what one writes without a library: a session in the handler, committed by the handler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from database import Place
from sqlalchemy import text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from contenders import App, nodb, routes


@asynccontextmanager
async def bare(place: Place, name: str) -> AsyncIterator[App]:
    yield Starlette(routes=[Route("/nodb", nodb)])


@asynccontextmanager
async def by_hand(place: Place, name: str) -> AsyncIterator[App]:
    engine = create_async_engine(place.sqlalchemy_url, pool_size=place.pool, max_overflow=0)
    maker = async_sessionmaker(engine)
    select, insert, insert_orphan = map(text, (place.select, place.insert, place.insert_orphan))

    async def read(request: Request) -> Response:
        async with maker() as session:
            found = await session.scalar(select, {"id": 1})
            await session.commit()
        return PlainTextResponse(found)

    async def write(request: Request) -> Response:
        async with maker() as session:
            await session.execute(insert, {"name": name})
            await session.commit()
        return PlainTextResponse("written", 201)

    async def refused(request: Request) -> Response:
        async with maker() as session:
            await session.execute(insert, {"name": name})
        return PlainTextResponse("refused", 400)

    async def broken(request: Request) -> Response:
        async with maker() as session:
            await session.execute(insert_orphan, {"name": name})
            await session.commit()
        return PlainTextResponse("written", 201)

    try:
        yield Starlette(routes=routes(read, write, refused, broken))
    finally:
        await engine.dispose()
