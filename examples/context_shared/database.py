"""The database of the three example apps: a SQLite file, or what the URL in EXAMPLE_DATABASE names."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from transept import DBConnect

URL = make_url(os.environ.get("EXAMPLE_DATABASE", "sqlite+aiosqlite:///example.db"))


class Base(DeclarativeBase):
    pass


class Example(Base):
    __tablename__ = "example"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def create_engine(host: str) -> AsyncEngine:
    """Called at first use, and again when the host changes. A SQLite file has none."""
    url = URL if URL.get_backend_name() == "sqlite" else URL.set(host=host)
    return create_async_engine(url, pool_pre_ping=True)


def create_session_maker(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, expire_on_commit=False)


connection = DBConnect(
    host=URL.host or "localhost",
    engine_creator=create_engine,
    session_maker_creator=create_session_maker,
)


@asynccontextmanager
async def lifespan(app: object) -> AsyncIterator[None]:
    """Make the table, and close the engine when the app stops."""
    async with connection.get_engine().begin() as first:
        await first.run_sync(Base.metadata.create_all)
    yield
    await connection.close()
