"""Fixtures by hand: a session that the test has for itself, and the app's sessions inside its transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from transept.context import CURRENT, LOOP, NamedScope, current_unit, open_scope
from transept.errors import ContextAlreadyInitiatedError
from transept.hosts import in_thread
from transept.testing.errors import SandboxLeak
from transept.testing.home import Home

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from transept.alchemy import DBConnect, SQLAlchemyAsyncConfig

__all__ = ["put_savepoint_session_in_ctx", "rollback_session", "set_test_context"]


@asynccontextmanager
async def rollback_session(connection: DBConnect | SQLAlchemyAsyncConfig) -> AsyncIterator[AsyncSession]:
    """A session of the test's own, whose transaction is rolled back at the end of the block.

    The app does not see what it writes, unless `put_savepoint_session_in_ctx` makes it a part of that transaction.
    """
    session = await _new_session(connection)
    try:
        yield session
    finally:
        await session.close()


@asynccontextmanager
async def set_test_context(auto_close: bool = False) -> AsyncIterator[None]:
    """A context for `db_session`, as a request has one: for tests that call the app's functions directly.

    Args:
        auto_close: whether its sessions end, and what they have open is rolled back, with the block. Else that is left
            to whoever put them there.

    Requests never join it: each has a unit of its own, in a test as everywhere.

    Raises:
        ContextAlreadyInitiatedError: there is one.
    """
    outer = open_scope()
    if outer is not None:
        raise ContextAlreadyInitiatedError(f"{outer.describe()} has a context already, and this code runs in it.")
    scope = NamedScope(LOOP, "the context of a test")
    token = CURRENT.set(scope)
    try:
        yield
    finally:
        scope.closed = True
        CURRENT.reset(token)
        if auto_close and scope.unit is not None:
            await scope.unit.close()


@asynccontextmanager
async def put_savepoint_session_in_ctx(
    connection: DBConnect | SQLAlchemyAsyncConfig, session: AsyncSession
) -> AsyncIterator[AsyncSession]:
    """Make the app's sessions of this database parts of the transaction of `session`, while the block lasts.

    Gives the session that `db_session(connection)` gives in the test's own context; each request has one of its own.
    Their commits release savepoints, so `session` sees what they wrote, and rolling it back undoes all of it. Use it
    inside `set_test_context`, with a client that runs on the test's own event loop (`httpx.ASGITransport`); for others
    use `Sandbox`.

    Raises:
        OutsideScope: there is no context.
        SandboxLeak: at the end, when a request's transaction is still open.
    """
    from transept.testing.alchemy import BorrowedSource

    unit = current_unit()
    joined: Any = await session.connection()
    source = BorrowedSource(connection, joined.sync_connection, Home(asyncio.get_running_loop()))
    with connection.use(source):
        source.begin(10.0)
        own: AsyncSession = await unit.prepared(connection)
        try:
            yield own
        finally:
            if unit.give_up(connection) is own:
                await own.close()
            leaks, failures = await in_thread(source.end, 0.5)
    if leaks:
        raise SandboxLeak(leaks)
    if failures:
        raise failures[0]


async def _new_session(connection: Any) -> AsyncSession:
    if hasattr(connection, "create_session"):
        session: AsyncSession = await connection.create_session()
    else:
        session = connection.create_session_maker()()
    return session
