"""`db_session` and its kin: one session, the same wherever it is asked for, and connections only on demand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from held import COUNT, File, Postgres, insert, post, served
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from transept import (
    ContextNotInitiatedError,
    ImproperConfigurationError,
    OutsideScope,
    UsageError,
    atomic_db_session,
    close_db_session,
    commit_db_session,
    current_unit,
    db_session,
    get_db_session_from_context,
    is_context_initiated,
    pop_db_session_from_context,
    put_db_session_to_context,
    rollback_db_session,
    sync_db_session,
    transaction,
    unit_of_work,
)
from transept.extensions.starlette import Transept, add_starlette_http_db_session_middleware

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "parent"
    id: Mapped[int] = mapped_column(primary_key=True)


# The same object


async def test_a_session_is_the_same_by_object_by_key_and_by_nothing(pg: Postgres) -> None:
    database = pg.dbconnect()
    found: list[Any] = []

    async def work() -> None:
        found.extend([await db_session(database), await db_session("default"), await db_session()])
        found.extend([await db_session("db_session"), sync_db_session(), get_db_session_from_context(database)])

    assert (await post(served(work, databases=database))).status_code == 201
    assert isinstance(found[0], AsyncSession)
    assert all(one is found[0] for one in found)


async def test_each_of_two_databases_has_its_session(pg: Postgres) -> None:
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")

    async def work() -> None:
        assert await db_session() is await db_session(first)
        assert await db_session("second") is await db_session(second) is not await db_session(first)
        with pytest.raises(ImproperConfigurationError, match="Did you mean 'second'"):
            await db_session("secnd")

    assert (await post(served(work, databases=[first, second]))).status_code == 201


async def test_two_databases_without_a_default_need_a_key(pg: Postgres) -> None:
    one, two = pg.dbconnect(bind_key="one"), pg.dbconnect(bind_key="two")

    async def work() -> None:
        with pytest.raises(ImproperConfigurationError, match="'one', 'two'"):
            await db_session()

    assert (await post(served(work, databases=[one, two]))).status_code == 201


async def test_a_child_task_and_a_thread_have_the_same_session(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        mine = await db_session(database)
        assert await asyncio.create_task(db_session(database)) is mine
        assert await asyncio.to_thread(sync_db_session, database) is mine

    assert (await post(served(work))).status_code == 201


async def test_the_session_of_the_request_is_that_of_the_context(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def endpoint(request: Request) -> Response:
        same = db.get_session(request) is request.state.db_session is await db_session()
        return Response(status_code=200 if same else 500)

    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    db = Transept(database, app)
    add_starlette_http_db_session_middleware(app)
    assert (await post(app)).status_code == 200


async def test_first_calls_that_race_get_one_session_and_all_of_it_is_kept(pg: Postgres) -> None:
    async def slowly(connect: Any) -> None:
        await asyncio.sleep(0.05)

    database = pg.dbconnect(before_create_session_handler=slowly)

    async def work() -> None:
        one, two, three = await asyncio.gather(*(db_session(database) for _ in range(3)))
        assert one is two is three
        await one.execute(insert(1))
        await three.execute(insert(2))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1, 2]


async def test_no_connection_is_made_before_the_first_statement(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        session = await db_session(database)
        assert pg.backends() == pg.out_of_pools() == 0
        await session.execute(COUNT)
        assert pg.out_of_pools() == 1

    assert (await post(served(work))).status_code == 201
    assert pg.backends() == 1


# Where there is none


async def test_without_a_unit_the_error_says_what_to_open(pg: Postgres) -> None:
    database = pg.dbconnect()
    for ask in (db_session(database), commit_db_session(database), close_db_session(database), db_session()):
        with pytest.raises(ContextNotInitiatedError, match="unit_of_work"):
            await ask
    with pytest.raises(OutsideScope):
        sync_db_session(database)
    with pytest.raises(OutsideScope):
        async with atomic_db_session(database):
            pass


async def test_a_unit_that_knows_no_names_says_so(pg: Postgres) -> None:
    async with unit_of_work():
        for name in (None, "default"):
            with pytest.raises(UsageError, match="pass the database itself"):
                await db_session(name)


async def test_is_context_initiated_wherever_a_session_can_be_had() -> None:
    told: dict[str, bool] = {"nowhere": is_context_initiated()}
    tasks: list[asyncio.Task[bool]] = []
    over = asyncio.Event()

    async def outlives() -> bool:
        await over.wait()
        return is_context_initiated()

    async def background() -> None:
        told["background"] = is_context_initiated()

    async def work() -> Response:
        told["request"] = is_context_initiated()
        told["child"] = await asyncio.to_thread(is_context_initiated)
        async with transaction("never"):
            told["never"] = is_context_initiated()
        tasks.append(asyncio.create_task(outlives()))
        return Response(background=BackgroundTask(background))

    await post(served(work))
    over.set()
    told["outlives"] = await tasks[0]
    async with unit_of_work():
        told["block"] = is_context_initiated()
    told["after"] = is_context_initiated()
    yes = {name for name, initiated in told.items() if initiated}
    assert yes == {"request", "child", "background", "block"}
    assert told.keys() - yes == {"nowhere", "never", "outlives", "after"}


# Sync databases


async def test_a_plain_endpoint_has_its_session_by_the_blocking_twin(file: File) -> None:
    database = file.sync_config()

    def endpoint(request: Request) -> Response:
        session = sync_db_session(database)
        assert isinstance(session, Session)
        assert session is sync_db_session()
        session.execute(insert(1))
        return Response(status_code=201)

    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    add_starlette_http_db_session_middleware(app, databases=database)
    assert ((await post(app)).status_code, file.held()) == (201, [1])


def test_the_blocking_twin_works_in_a_blocking_block_and_refuses_async_databases(file: File) -> None:
    database = file.sync_config()
    with unit_of_work():
        sync_db_session(database).execute(insert(1))
        with pytest.raises(UsageError, match="is async"):
            sync_db_session(file.config(bind_key="other"))
    assert file.held() == [1]


async def test_the_blocking_twin_refuses_a_database_that_must_be_awaited(pg: Postgres) -> None:
    async def handler(connect: Any) -> None:
        pass

    database = pg.dbconnect(before_create_session_handler=handler)

    async def work() -> None:
        with pytest.raises(UsageError, match="await db_session"):
            sync_db_session(database)
        assert await db_session(database) is sync_db_session(database)

    assert (await post(served(work))).status_code == 201


# Commit, roll back, close, and go on


async def test_an_early_commit_is_kept_whatever_the_response_and_the_connection_is_back(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        session = await db_session(database)
        await session.execute(insert(1))
        assert pg.out_of_pools() == 1
        await commit_db_session(database)
        assert (pg.held(), pg.out_of_pools()) == ([1], 0)
        await session.execute(insert(2))
        assert await db_session(database) is session
        return Response(status_code=500)

    assert (await post(served(work))).status_code == 500
    assert pg.held() == [1]


async def test_an_early_rollback_is_lost_and_what_follows_is_kept(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        session = await db_session()
        await session.execute(insert(1))
        await rollback_db_session()
        assert pg.out_of_pools() == 0
        await session.execute(insert(2))

    assert (await post(served(work, databases=database))).status_code == 201
    assert pg.held() == [2]


async def test_an_early_close_gives_the_connection_back_and_loses_what_is_not_committed(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        session = await db_session(database)
        await session.execute(insert(1))
        await close_db_session(database)
        assert (pg.out_of_pools(), pg.held()) == (0, [])
        assert await db_session(database) is session
        await session.execute(insert(2))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [2]


async def test_an_early_close_detaches_what_was_read(pg: Postgres) -> None:
    database = pg.dbconnect()
    pg.look.execute("INSERT INTO parent VALUES (7)")

    async def work() -> None:
        session = await db_session(database)
        parent = await session.get_one(Parent, 7)
        assert parent in session
        await close_db_session(database)
        assert (pg.out_of_pools(), parent in session, parent.id) == (0, False, 7)
        assert await session.get_one(Parent, 7) is not parent

    assert (await post(served(work))).status_code == 201


async def test_an_early_close_after_a_commit_lets_others_have_the_only_connection(pg: Postgres) -> None:
    database = pg.dbconnect(pool_size=1)

    async def work() -> None:
        session = await db_session(database)
        await session.execute(COUNT)
        await close_db_session(database)
        async with database.get_engine().connect() as other:
            await other.execute(COUNT)
        await session.execute(insert(1))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1]


async def test_ending_what_is_not_open_does_nothing(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        for _ in range(2):
            await commit_db_session(database)
            await rollback_db_session(database)
            await close_db_session(database)
            await db_session(database)

    assert (await post(served(work))).status_code == 201
    assert pg.backends() == 0


async def test_a_commit_of_one_database_leaves_the_other_open(pg: Postgres) -> None:
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")

    async def work() -> Response:
        await (await db_session(first)).execute(insert(1))
        await (await db_session(second)).execute(insert(2))
        await commit_db_session("second")
        assert (pg.held(), pg.out_of_pools()) == ([2], 1)
        return Response(status_code=400)

    assert (await post(served(work, databases=[first, second]))).status_code == 400
    assert pg.held() == [2]


@pytest.mark.parametrize("block", [transaction, unit_of_work, None])
async def test_inside_a_block_nobody_ends_a_transaction(pg: Postgres, block: Any) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        async with atomic_db_session(database) if block is None else block():
            await (await db_session(database)).execute(insert(1))
            ends = {"commit": commit_db_session, "rollback": rollback_db_session, "close_db_session": close_db_session}
            for name, end in ends.items():
                with pytest.raises(UsageError, match=f"{name} on database 'default' inside a block"):
                    await end(database)
            await (await db_session(database)).execute(insert(2))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1, 2]


async def test_a_doomed_unit_refuses_an_early_commit(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        await (await db_session(database)).execute(insert(1))
        current_unit().doom("dry run")
        await commit_db_session(database)

    assert (await post(served(work))).status_code == 500
    assert pg.held() == []


# Put, get, pop


async def test_a_session_of_the_apps_own_becomes_the_units(pg: Postgres) -> None:
    database = pg.dbconnect()
    sessions: list[AsyncSession] = []

    async def work() -> None:
        assert get_db_session_from_context(database) is None
        sessions.append(await database.create_session())
        put_db_session_to_context(database, sessions[0])
        assert get_db_session_from_context(database) is await db_session(database) is sessions[0]
        await sessions[0].execute(insert(1))
        with pytest.raises(UsageError, match="already"):
            put_db_session_to_context(database, sessions[0])

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1]
    with pytest.raises(OutsideScope):
        await sessions[0].execute(insert(2))


async def test_a_session_that_was_taken_out_is_the_apps_own(pg: Postgres) -> None:
    database = pg.dbconnect()
    sessions: list[AsyncSession] = []

    async def work() -> Response:
        session = await db_session(database)
        await session.execute(insert(1))
        sessions.append(pop_db_session_from_context(database))
        assert sessions[0] is session
        assert get_db_session_from_context(database) is None
        assert pop_db_session_from_context(database) is None
        assert await db_session(database) is not session
        return Response(status_code=400)

    assert (await post(served(work))).status_code == 400
    await sessions[0].execute(insert(2))
    await sessions[0].commit()
    await sessions[0].close()
    assert pg.held() == [1, 2]


async def test_a_session_that_was_taken_out_may_be_put_back(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        session = await db_session(database)
        await session.execute(insert(1))
        pop_db_session_from_context(database)
        put_db_session_to_context(database, session)
        await session.execute(insert(2))
        assert await db_session(database) is session

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1, 2]


async def test_a_swallowed_error_before_a_session_was_put_back_still_fails_its_commit(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        session = await db_session(database)
        await session.execute(insert(1))
        with pytest.raises(Exception, match="nonsense"):
            await session.execute(text("SELECT nonsense"))
        pop_db_session_from_context(database)
        put_db_session_to_context(database, session)

    assert (await post(served(work))).status_code == 500
    assert pg.held() == []


async def test_a_database_that_takes_no_sessions_in_says_so(pg: Postgres) -> None:
    from transept.adapters.asyncpg import AsyncpgConfig

    async with unit_of_work():
        with pytest.raises(UsageError, match="cannot take in"):
            put_db_session_to_context(AsyncpgConfig(pool_config={"dsn": pg.server.dsn}), object())


async def test_a_session_of_the_other_colour_is_not_taken_in(pg: Postgres, file: File) -> None:
    database, blocking = pg.dbconnect(), file.sync_config()
    async with unit_of_work():
        async with pg.config().create_session_maker()() as session:
            with pytest.raises(UsageError, match=r"database 'default' has sync sessions.*: .*AsyncSession object"):
                put_db_session_to_context(blocking, session)
            await session.execute(insert(1))  # it is as it was
        for awaits in (database, pg.config()):
            with pytest.raises(UsageError, match=r"database 'default' has async sessions.*: .*Session object"):
                put_db_session_to_context(awaits, blocking.create_session_maker()())
            assert get_db_session_from_context(awaits) is None


@pytest.mark.parametrize("key", [None, "default"])
async def test_a_session_that_is_put_where_the_database_belongs_says_so(pg: Postgres, key: str | None) -> None:
    database = pg.dbconnect()
    async with unit_of_work():
        session = await db_session(database)
        with pytest.raises(UsageError, match=r"is no database: .* first, then the session"):
            put_db_session_to_context(key or session, database)  # type: ignore[arg-type]


async def test_a_session_of_the_apps_own_whose_transaction_was_aborted_fails_the_commit(pg: Postgres) -> None:
    """Nobody watched it when the error happened."""
    engine = pg.config().get_engine()

    async def work() -> None:
        session = AsyncSession(engine)
        await session.execute(insert(1))
        with pytest.raises(Exception, match="nonsense"):
            await session.execute(text("SELECT nonsense"))
        put_db_session_to_context(pg.dbconnect(), session)

    assert (await post(served(work))).status_code == 500
    assert pg.held() == []
