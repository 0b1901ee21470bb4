"""What the testing kit gives, for type checkers."""

from __future__ import annotations

from typing import assert_type

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from transept import DBConnect
from transept.adapters.asyncpg import AsyncpgConfig
from transept.adapters.sqlite import SqliteConfig
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.testing import Sandbox, put_savepoint_session_in_ctx, rollback_session, set_test_context


def blocking(database: SQLAlchemySyncConfig, raw: SqliteConfig) -> None:
    with Sandbox(database, raw, patience=1) as sandbox:
        assert_type(sandbox, Sandbox)
        with sandbox.session(database) as session:
            assert_type(session, Session)


async def awaiting(database: SQLAlchemyAsyncConfig, other: DBConnect, raw: AsyncpgConfig) -> None:
    async with (
        Sandbox(database, other, raw, leak_after=0) as sandbox,
        sandbox.session(database) as session,
        sandbox.session(other) as second,
    ):
        assert_type(session, AsyncSession)
        assert_type(second, AsyncSession)


async def by_hand(database: DBConnect) -> None:
    async with (
        rollback_session(database) as session,
        set_test_context(auto_close=True),
        put_savepoint_session_in_ctx(database, session) as own,
    ):
        assert_type(session, AsyncSession)
        assert_type(own, AsyncSession)


def source(database: SQLAlchemyAsyncConfig) -> None:
    with database.use(lambda hooks: lambda engine: engine) as nothing:
        assert_type(nothing, None)
