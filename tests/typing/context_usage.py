"""The context API: what type checkers must accept, and what they must refuse."""

from collections.abc import Callable
from typing import Any, assert_type

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session
from starlette.applications import Starlette

from transept import (
    BeforeCommitCallback,
    DBConnect,
    Unit,
    after_commit,
    atomic_db_session,
    commit_db_session,
    db_session,
    in_new_unit,
    init_db_session_ctx,
    new_non_ctx_atomic_session,
    new_non_ctx_session,
    put_db_session_to_context,
    reset_db_session_ctx,
    run_in_new_ctx,
    sync_db_session,
    transaction,
    unit_of_work,
)
from transept.adapters.sqlite import SqliteConfig
from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.extensions.fastapi import add_fastapi_http_db_session_middleware
from transept.extensions.starlette import add_starlette_http_db_session_middleware


def create_engine(host: str) -> AsyncEngine:
    return create_async_engine(f"sqlite+aiosqlite:///{host}")


def create_session_maker(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine, expire_on_commit=False)


async def find_master(connect: DBConnect) -> None:
    await connect.change_host("other")


connection = DBConnect(create_engine, create_session_maker, "here", find_master, "manual", bind_key="x")
config = SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://")
blocking = SQLAlchemySyncConfig(connection_string="sqlite://")


async def sessions() -> None:
    assert_type(await db_session(connection), AsyncSession)
    assert_type(await db_session(config), AsyncSession)
    assert_type(await db_session("x"), Any)
    assert_type(await db_session(), Any)
    assert_type(sync_db_session(blocking), Session)
    assert_type(await connection.create_session(), AsyncSession)
    assert_type(await connection.session_maker(), async_sessionmaker[AsyncSession])
    assert_type(connection.host, str | None)
    async with atomic_db_session(connection, current_transaction="append") as session:
        assert_type(session, AsyncSession)
    async with atomic_db_session() as anything:
        assert_type(anything, Any)
    async with new_non_ctx_session(connection) as alone, new_non_ctx_atomic_session(connection) as kept:
        assert_type(alone, AsyncSession)
        assert_type(kept, AsyncSession)
    await commit_db_session(connection)
    put_db_session_to_context(connection, await connection.create_session())
    await reset_db_session_ctx(init_db_session_ctx(force=True))


async def blocks() -> None:
    async with transaction() as unit, transaction("nested", reads_only=True) as nested, unit_of_work() as same:
        assert_type(unit, Unit)
        assert_type(nested, Unit)
        assert_type(same, Unit)
    async with transaction("never") as nothing:
        assert_type(nothing, None)
    with transaction("requires_new") as plain:
        assert_type(plain, Unit)


@transaction()
async def awaited(v: int, *, word: str = "") -> str:
    return word * v


@transaction("mandatory")
def called(v: int) -> str:
    return str(v)


@in_new_unit
async def task(v: int) -> bytes:
    return bytes(v)


class Service:
    @transaction("requires_new")
    async def work(self, v: int) -> int:
        return v


async def functions() -> None:
    assert_type(await awaited(1, word="a"), str)
    assert_type(called(1), str)
    assert_type(await task(1), bytes)
    assert_type(await Service().work(1), int)
    assert_type(await run_in_new_ctx(awaited, 1, word="a"), str)
    assert_type(await run_in_new_ctx(called, 1), str)
    kept: Callable[[int], str] = in_new_unit(called)
    kept(1)


async def ask(session: AsyncSession) -> None:
    await session.flush()


def middleware(app: Any) -> None:
    callback: BeforeCommitCallback = ask
    add_starlette_http_db_session_middleware(Starlette(), callback, databases=[connection, blocking])
    add_fastapi_http_db_session_middleware(app, before_commit=ask)
    add_starlette_http_db_session_middleware(Starlette(), databases=SqliteConfig(pool_config={"database": ":memory:"}))


async def refused() -> None:
    transaction("require_new")  # type: ignore[call-overload]
    atomic_db_session(connection, "comit")  # type: ignore[call-overload]
    await awaited("1")  # type: ignore[arg-type]
    await run_in_new_ctx(awaited, "1")  # type: ignore[call-overload]
    DBConnect(create_engine, create_session_maker, 5)  # type: ignore[arg-type]
    DBConnect(create_engine, create_session_maker, comit_mode="manual")  # type: ignore[call-arg]
    DBConnect(create_session_maker, create_engine)  # type: ignore[arg-type]
    DBConnect(create_engine, create_session_maker, commit_mode="autocomit")  # type: ignore[arg-type]
    await db_session(5)  # type: ignore[call-overload]
    session: Session = await db_session(connection)  # type: ignore[arg-type]
    after_commit(session)  # type: ignore[arg-type]
