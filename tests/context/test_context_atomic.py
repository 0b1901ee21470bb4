"""`atomic_db_session`: a block that commits at its end, in all its modes, alone and inside other blocks."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from held import COUNT, VIOLATION, File, Postgres, insert, post, served
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.responses import Response

from transept import (
    CommitFailed,
    DBConnect,
    ImproperConfigurationError,
    UsageError,
    after_commit,
    atomic_db_session,
    db_session,
    is_context_initiated,
    run_in_new_ctx,
    transaction,
    unit_of_work,
)

pytestmark = pytest.mark.anyio

BAD = Response(status_code=400)


class Boom(Exception):
    pass


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "parent"
    id: Mapped[int] = mapped_column(primary_key=True)


async def test_a_block_is_committed_at_its_end_and_its_connection_is_back(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        async with atomic_db_session(database) as session:
            assert isinstance(session, AsyncSession)
            assert session is await db_session(database)
            await session.execute(insert(1))
            assert (pg.held(), pg.out_of_pools()) == ([], 1)
        assert (pg.held(), pg.out_of_pools()) == ([1], 0)
        await session.execute(insert(2))
        return BAD

    assert (await post(served(work))).status_code == 400
    assert pg.held() == [1]


async def test_a_block_that_fails_is_rolled_back_and_the_error_goes_on(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        with pytest.raises(Boom):
            async with atomic_db_session(database) as session:
                await session.execute(insert(1))
                raise Boom
        assert pg.out_of_pools() == 0
        await session.execute(insert(2))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [2]


@pytest.mark.parametrize(
    ("mode", "status", "kept"),
    [
        ("commit", 201, [1, 2]),
        ("commit", 400, [1, 2]),
        ("rollback", 201, [2]),
        ("rollback", 400, [2]),
        ("append", 201, [1, 2]),
        ("append", 400, [1, 2]),
    ],
)
async def test_what_becomes_of_what_is_open_already(pg: Postgres, mode: Any, status: int, kept: list[int]) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        await (await db_session(database)).execute(insert(1))
        async with atomic_db_session(database, mode) as session:
            await session.execute(insert(2))
        assert pg.held() == kept
        return Response(status_code=status)

    assert (await post(served(work))).status_code == status
    assert pg.held() == kept


@pytest.mark.parametrize(("mode", "kept"), [("commit", [1]), ("rollback", []), ("append", [])])
async def test_what_becomes_of_what_is_open_when_the_block_fails(pg: Postgres, mode: Any, kept: list[int]) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        await (await db_session(database)).execute(insert(1))
        with suppress(Boom):
            async with atomic_db_session(database, mode) as session:
                await session.execute(insert(2))
                raise Boom

    assert (await post(served(work))).status_code == 201
    assert pg.held() == kept


async def test_raise_refuses_an_open_transaction_and_nothing_else(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        session = await db_session(database)
        await session.execute(insert(1))
        with pytest.raises(UsageError, match="current_transaction='raise'"):
            async with atomic_db_session(database, current_transaction="raise"):
                raise AssertionError("not reached")
        await session.rollback()
        async with atomic_db_session(database, "raise"):
            await session.execute(insert(2))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [2]


async def test_a_wrong_mode_names_the_nearest() -> None:
    with pytest.raises(ImproperConfigurationError, match=r"'comit' is not known.*'commit'"):
        atomic_db_session(None, "comit")  # type: ignore[call-overload]


async def test_one_object_serves_one_block(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        block = atomic_db_session(database)
        async with block:
            pass
        with pytest.raises(RuntimeError, match="one for each"):
            async with block:
                pass

    assert (await post(served(work))).status_code == 201


async def test_a_commit_that_fails_leaves_the_block_as_its_error(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        with pytest.raises(IntegrityError):
            async with atomic_db_session(database) as session:
                await session.execute(insert(1))
                await session.execute(VIOLATION)
        assert pg.out_of_pools() == 0
        async with atomic_db_session(database) as session:
            await session.execute(insert(2))
        return BAD

    assert (await post(served(work))).status_code == 400
    assert pg.held() == [2]


async def test_a_swallowed_error_fails_the_block(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        with pytest.raises(CommitFailed, match="nonsense"):
            async with atomic_db_session(database) as session:
                await session.execute(insert(1))
                with suppress(DBAPIError):
                    await session.execute(text("SELECT nonsense"))
        await session.execute(insert(2))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [2]


async def test_a_cancelled_block_is_rolled_back(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1), atomic_db_session(database) as session:
                await session.execute(insert(1))
                await asyncio.sleep(5)
        assert pg.out_of_pools() == 0
        await session.execute(insert(2))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [2]


# Nested


@pytest.mark.parametrize("mode", ["commit", "rollback", "append", "raise"])
async def test_inside_another_it_is_a_savepoint_whatever_its_mode(pg: Postgres, mode: Any) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        async with atomic_db_session(database) as session:
            await session.execute(insert(1))
            async with atomic_db_session(database, mode):
                await session.execute(insert(2))
            assert pg.held() == []
            with suppress(Boom):
                async with atomic_db_session(database, mode):
                    await session.execute(insert(3))
                    raise Boom
            await session.execute(insert(4))
        assert pg.held() == [1, 2, 4]
        return BAD

    assert (await post(served(work))).status_code == 400
    assert pg.held() == [1, 2, 4]


async def test_inside_another_that_fails_nothing_is_kept(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        with suppress(Boom):
            async with atomic_db_session(database) as session:
                async with atomic_db_session(database):
                    await session.execute(insert(1))
                raise Boom

    assert (await post(served(work))).status_code == 201
    assert pg.held() == []


async def test_an_error_of_the_database_inside_a_nested_block_is_undone_with_it(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        async with atomic_db_session(database) as session:
            await session.execute(insert(1))
            with suppress(DBAPIError):
                async with atomic_db_session(database):
                    await session.execute(text("SELECT nonsense"))
        return BAD

    assert (await post(served(work))).status_code == 400
    assert pg.held() == [1]


async def test_a_swallowed_error_inside_a_nested_block_undoes_it_alone(pg: Postgres) -> None:
    """PostgreSQL refuses RELEASE in an aborted transaction."""
    database = pg.dbconnect()

    async def work() -> Response:
        async with atomic_db_session(database) as session:
            await session.execute(insert(1))
            with pytest.raises(CommitFailed, match="nonsense"):
                async with atomic_db_session(database):
                    await session.execute(insert(2))
                    with suppress(DBAPIError):
                        await session.execute(text("SELECT nonsense"))
            await session.execute(insert(3))
        return BAD

    assert (await post(served(work))).status_code == 400
    assert pg.held() == [1, 3]


async def test_a_flush_that_fails_at_the_end_of_a_nested_block_undoes_it_alone(pg: Postgres) -> None:
    database = pg.dbconnect()
    pg.look.execute("INSERT INTO parent VALUES (7)")

    async def work() -> Response:
        async with atomic_db_session(database) as session:
            await session.execute(insert(1))
            with pytest.raises(IntegrityError):
                async with atomic_db_session(database):
                    await session.execute(insert(2))
                    session.add(Parent(id=7))
            await session.execute(insert(3))
        return BAD

    assert (await post(served(work))).status_code == 400
    assert pg.held() == [1, 3]


async def test_a_nested_block_before_the_first_statement_undoes_itself_alone(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        async with atomic_db_session(database) as session:
            with suppress(Boom):
                async with atomic_db_session(database):
                    await session.execute(insert(1))
                    raise Boom
            await session.execute(insert(2))
        return BAD

    assert (await post(served(work))).status_code == 400
    assert pg.held() == [2]


@pytest.mark.parametrize("block", [transaction, unit_of_work])
async def test_inside_another_kind_of_block_it_is_a_savepoint_too(pg: Postgres, block: Any) -> None:
    database = pg.dbconnect()

    async def keep(*, fail: bool) -> None:
        async with block():
            session = await db_session(database)
            await session.execute(insert(1))
            async with atomic_db_session(database):
                await session.execute(insert(2))
            with suppress(Boom):
                async with atomic_db_session(database):
                    await session.execute(insert(3))
                    raise Boom
            assert pg.held() == []
            if fail:
                raise Boom

    async def work() -> Response:
        await keep(fail=False)
        assert pg.held() == []
        return BAD

    assert (await post(served(work))).status_code == 400
    assert pg.held() == []
    with pytest.raises(Boom):
        await keep(fail=True)
    assert pg.held() == []
    await keep(fail=False)
    assert (pg.held(), is_context_initiated()) == ([1, 2], False)


async def test_a_required_block_inside_it_is_a_part_of_it(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        async with atomic_db_session(database) as session:
            await session.execute(insert(1))
            async with transaction():
                await session.execute(insert(2))
        with pytest.raises(CommitFailed, match="Boom"):
            async with atomic_db_session(database):
                await session.execute(insert(3))
                with suppress(Boom):
                    async with transaction():
                        await session.execute(insert(4))
                        raise Boom
        assert pg.out_of_pools() == 0
        async with atomic_db_session(database):
            await session.execute(insert(5))
        return BAD

    assert (await post(served(work))).status_code == 400
    assert pg.held() == [1, 2, 5]


async def test_a_nested_unit_inside_it_is_a_savepoint_of_it(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        async with atomic_db_session(database) as session:
            await session.execute(insert(1))
            with suppress(Boom):
                async with unit_of_work():
                    await session.execute(insert(2))
                    raise Boom
            async with transaction("nested"):
                await session.execute(insert(3))
        return BAD

    assert (await post(served(work))).status_code == 400
    assert pg.held() == [1, 3]


async def test_in_a_unit_of_its_own_it_commits_for_itself(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def alone() -> None:
        async with atomic_db_session(database) as session:
            await session.execute(insert(2))

    async def work() -> None:
        async with atomic_db_session(database) as session:
            await session.execute(insert(1))
            await run_in_new_ctx(alone)
            assert pg.held() == [2]
            raise Boom

    assert (await post(served(work))).status_code == 500
    assert pg.held() == [2]


async def test_hooks_of_a_nested_block_go_with_it(pg: Postgres) -> None:
    database = pg.dbconnect()
    ran: list[Any] = []

    async def work() -> Response:
        async with atomic_db_session(database) as session:
            await session.execute(insert(1))
            after_commit(lambda: ran.append(("outer", pg.held())))
            with suppress(Boom):
                async with atomic_db_session(database):
                    await session.execute(insert(2))
                    after_commit(lambda: ran.append("never"))
                    raise Boom
            assert ran == []
        assert ran == [("outer", [1])]
        return BAD

    assert (await post(served(work))).status_code == 400
    assert ran == [("outer", [1])]


# Several databases


async def test_blocks_over_two_databases_are_each_their_own(pg: Postgres) -> None:
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")

    async def work() -> None:
        with suppress(Boom):
            async with atomic_db_session(first) as session:
                await session.execute(insert(1))
                async with atomic_db_session(second) as other:
                    await other.execute(insert(2))
                assert pg.held() == [2]
                raise Boom
        await other.execute(insert(3))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [2, 3]


async def test_a_block_leaves_the_other_database_as_it_is(pg: Postgres) -> None:
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")

    async def work() -> Response:
        await (await db_session(first)).execute(insert(1))
        async with atomic_db_session("second") as session:
            await session.execute(insert(2))
        assert (pg.held(), pg.out_of_pools()) == ([2], 1)
        return BAD

    assert (await post(served(work, databases=[first, second]))).status_code == 400
    assert pg.held() == [2]


# SQLite


async def test_on_sqlite_it_nests_as_well(file: File) -> None:
    database = file.config()

    async def work() -> Response:
        async with atomic_db_session(database) as session:
            await session.execute(COUNT)
            async with atomic_db_session(database):
                await session.execute(insert(1))
            with suppress(Boom):
                async with atomic_db_session(database):
                    await session.execute(insert(2))
                    raise Boom
            assert file.held() == []
        with suppress(Boom):
            async with atomic_db_session(database):
                await session.execute(COUNT)
                async with atomic_db_session(database):
                    await session.execute(insert(3))
                raise Boom
        return BAD

    assert (await post(served(work))).status_code == 400
    assert file.held() == [1]


async def test_on_an_sqlite_engine_of_the_apps_own_it_never_commits_its_callers_work(file: File) -> None:
    """The driver's old way opens no transaction for a SELECT, and then RELEASE of the savepoint would be a COMMIT."""
    database = DBConnect(
        lambda path: create_async_engine(f"sqlite+aiosqlite:///{path}"), async_sessionmaker, str(file.path)
    )

    async def work() -> Response:
        with suppress(Boom):
            async with atomic_db_session(database) as session:
                await session.execute(COUNT)
                async with atomic_db_session(database):
                    await session.execute(insert(3))
                raise Boom
        return BAD

    assert (await post(served(work))).status_code == 400
    assert file.held() == []
