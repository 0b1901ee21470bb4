"""Work beside the request's: `new_non_ctx_...`, `run_in_new_ctx` and `in_new_unit`."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from fastapi import BackgroundTasks, FastAPI
from held import COUNT, VIOLATION, File, Postgres, insert, post, served
from sqlalchemy.exc import IntegrityError
from starlette.background import BackgroundTask
from starlette.background import BackgroundTasks as Several
from starlette.responses import Response

from transept import (
    ContextNotInitiatedError,
    OutsideScope,
    UsageError,
    after_commit,
    after_rollback,
    atomic_db_session,
    commit_db_session,
    current_unit,
    db_session,
    in_new_unit,
    is_context_initiated,
    new_non_ctx_atomic_session,
    new_non_ctx_session,
    run_in_new_ctx,
    sync_db_session,
    transaction,
)
from transept.context import CURRENT
from transept.extensions.fastapi import add_fastapi_http_db_session_middleware

pytestmark = pytest.mark.anyio


class Boom(Exception):
    pass


async def write(database: Any, v: int, *, fail: bool = False) -> int:
    await (await db_session(database)).execute(insert(v))
    if fail:
        raise Boom
    return v


# Sessions of no context


async def test_a_session_of_no_context_keeps_what_it_commits_itself(pg: Postgres) -> None:
    database = pg.dbconnect()
    async with new_non_ctx_session(database) as session:
        await session.execute(insert(1))
        await session.commit()
        await session.execute(insert(2))
        assert not is_context_initiated()
    assert (pg.held(), pg.out_of_pools()) == ([1], 0)
    with pytest.raises(OutsideScope):
        await session.execute(insert(3))


async def test_an_atomic_session_of_no_context_commits_at_a_clean_end_and_not_on_an_error(pg: Postgres) -> None:
    database = pg.dbconnect(commit_mode="manual")
    async with new_non_ctx_atomic_session(database) as session:
        await session.execute(insert(1))
        assert pg.held() == []
    assert pg.held() == [1]
    with pytest.raises(Boom):
        async with new_non_ctx_atomic_session(database) as session:
            await session.execute(insert(2))
            raise Boom
    with pytest.raises(IntegrityError):
        async with new_non_ctx_atomic_session(database) as session:
            await session.execute(insert(3))
            await session.execute(VIOLATION)
    assert (pg.held(), pg.out_of_pools()) == ([1], 0)


async def test_in_a_request_they_are_not_the_requests_session(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        mine = await db_session()
        await mine.execute(insert(1))
        async with new_non_ctx_session() as other, new_non_ctx_atomic_session("default") as third:
            assert len({id(mine), id(other), id(third)}) == 3
            assert await db_session() is mine
            await other.execute(insert(2))
            await third.execute(insert(3))
        assert pg.held() == [3]
        raise Boom

    assert (await post(served(work, databases=database))).status_code == 500
    assert pg.held() == [3]


async def test_they_serve_concurrent_work(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def one(v: int) -> None:
        async with new_non_ctx_atomic_session(database) as session:
            await session.execute(insert(v))

    async def work() -> Response:
        await asyncio.gather(*(one(v) for v in range(10)))
        return Response(status_code=400)

    assert (await post(served(work))).status_code == 400
    assert pg.held() == list(range(10))


async def test_cancelled_they_give_their_connection_back(pg: Postgres) -> None:
    database = pg.dbconnect()
    for block in (new_non_ctx_session, new_non_ctx_atomic_session):
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1), block(database) as session:
                await session.execute(insert(1))
                await asyncio.sleep(5)
        assert (pg.held(), pg.out_of_pools()) == ([], 0)


# run_in_new_ctx


async def test_run_in_new_ctx_is_kept_when_it_returns_and_not_when_it_raises(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        mine = await db_session(database)
        await mine.execute(insert(1))
        assert await run_in_new_ctx(write, database, 2) == 2
        with pytest.raises(Boom):
            await run_in_new_ctx(write, database, 3, fail=True)
        assert pg.held() == [2]
        assert await db_session(database) is mine
        return Response(status_code=400)

    assert (await post(served(work))).status_code == 400
    assert pg.held() == [2]
    assert await run_in_new_ctx(write, database, 4) == 4
    assert (pg.held(), is_context_initiated()) == ([2, 4], False)


async def test_run_in_new_ctx_in_a_gather(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        done = await asyncio.gather(
            *(run_in_new_ctx(write, database, v, fail=v % 2 == 0) for v in range(10)), return_exceptions=True
        )
        assert [one for one in done if not isinstance(one, Boom)] == [1, 3, 5, 7, 9]

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1, 3, 5, 7, 9]


async def test_run_in_new_ctx_with_a_plain_function_runs_it_in_a_thread(file: File) -> None:
    database = file.sync_config()

    def plain(v: int, *, fail: bool = False) -> int:
        sync_db_session(database).execute(insert(v))
        time.sleep(0.05)
        if fail:
            raise Boom
        return v

    async def work() -> Response:
        assert await asyncio.gather(*(run_in_new_ctx(plain, v) for v in range(3))) == [0, 1, 2]
        with pytest.raises(Boom):
            await run_in_new_ctx(plain, 3, fail=True)
        return Response(status_code=400)

    assert (await post(served(work))).status_code == 400
    assert file.held() == [0, 1, 2]


async def test_run_in_new_ctx_may_commit_in_between(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def steps() -> None:
        await write(database, 1)
        await commit_db_session(database)
        async with atomic_db_session(database) as session:
            await session.execute(insert(2))
        await write(database, 3, fail=True)

    async def work() -> None:
        with suppress(Boom):
            await run_in_new_ctx(steps)

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1, 2]


async def test_run_in_new_ctx_has_hooks_and_a_doom_of_its_own(pg: Postgres) -> None:
    database = pg.dbconnect()
    ran: list[Any] = []

    async def steps(v: int, *, doomed: bool) -> None:
        await write(database, v)
        after_commit(lambda: ran.append(("kept", v)))
        after_rollback(lambda: ran.append(("lost", v)))
        if doomed:
            current_unit().doom()

    async def work() -> None:
        await run_in_new_ctx(steps, 1, doomed=False)
        await run_in_new_ctx(steps, 2, doomed=True)
        assert ran == [("kept", 1), ("lost", 2)]
        await write(database, 3)

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1, 3]


async def test_run_in_new_ctx_knows_the_databases_by_name(pg: Postgres) -> None:
    async def work() -> None:
        await run_in_new_ctx(write, "default", 1)

    assert (await post(served(work, databases=pg.dbconnect()))).status_code == 201
    assert pg.held() == [1]


async def test_run_in_new_ctx_takes_partials_and_methods(pg: Postgres) -> None:
    database = pg.dbconnect()

    class Service:
        async def write(self, v: int) -> int:
            return await write(database, v)

    assert await run_in_new_ctx(partial(write, database), 1) == 1
    assert await run_in_new_ctx(Service().write, 2) == 2
    assert pg.held() == [1, 2]


async def test_a_plain_function_that_returns_a_coroutine_is_refused(pg: Postgres) -> None:
    """It would run outside of the unit; nobody can see from outside what a lambda returns."""
    database = pg.dbconnect()
    alone: Any = in_new_unit(lambda: write(database, 1))
    required: Any = transaction()(lambda: write(database, 1))
    for call in (alone, required):
        with pytest.raises(UsageError, match="async def"):
            call()
    with pytest.raises(UsageError, match="pass the coroutine function itself"):
        await run_in_new_ctx(lambda: write(database, 1))
    assert pg.held() == []


async def test_run_in_new_ctx_when_its_commit_fails(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def violates() -> None:
        session = await db_session(database)
        await session.execute(insert(1))
        await session.execute(VIOLATION)

    async def work() -> None:
        with pytest.raises(IntegrityError):
            await run_in_new_ctx(violates)
        await write(database, 2)

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [2]


async def test_run_in_new_ctx_cancelled(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def slow() -> None:
        await write(database, 1)
        await asyncio.sleep(5)

    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await run_in_new_ctx(slow)
    assert (pg.held(), pg.out_of_pools()) == ([], 0)


async def test_a_transaction_block_inside_run_in_new_ctx_is_a_part_of_it(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def steps() -> None:
        outer = current_unit()
        async with transaction("mandatory") as unit:
            assert unit is outer
            await write(database, 1)
        assert pg.held() == []

    await run_in_new_ctx(steps)
    assert pg.held() == [1]


# in_new_unit


async def test_tasks_after_the_response_each_stand_alone_with_in_new_unit(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        tasks = Several()
        for v, fail in ((1, False), (2, True), (3, False)):
            tasks.add_task(in_new_unit(write), database, v, fail=fail)
        return Response(status_code=400, background=tasks)

    assert (await post(served(work))).status_code == 400
    assert pg.held() == [1]  # Starlette runs no task after one that raised


async def test_a_task_that_swallows_a_failure_of_another_keeps_its_own(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def task() -> None:
        with suppress(Boom):
            await in_new_unit(write)(database, 1, fail=True)
        await write(database, 2)

    async def work() -> Response:
        return Response(background=BackgroundTask(task))

    assert (await post(served(work))).status_code == 200
    assert pg.held() == [2]


async def test_a_plain_task_after_the_response_stands_alone_too(file: File) -> None:
    database = file.sync_config()

    def plain(v: int) -> None:
        sync_db_session(database).execute(insert(v))

    async def work() -> Response:
        return Response(status_code=400, background=BackgroundTask(in_new_unit(plain), 1))

    assert (await post(served(work))).status_code == 400
    assert file.held() == [1]


async def test_as_a_background_task_of_fastapi(pg: Postgres, file: File) -> None:
    database, other = pg.dbconnect(), file.sync_config()
    app = FastAPI()
    add_fastapi_http_db_session_middleware(app)

    def plain(v: int) -> None:
        sync_db_session(other).execute(insert(v))

    @app.post("/", status_code=201)
    async def endpoint(tasks: BackgroundTasks) -> None:
        await write(database, 1)
        tasks.add_task(in_new_unit(write), database, 2)
        tasks.add_task(in_new_unit(plain), 3)
        tasks.add_task(in_new_unit(write), database, 4, fail=True)

    assert (await post(app)).status_code == 201
    assert (pg.held(), file.held()) == ([1, 2], [3])


async def test_a_task_that_outlives_its_request_has_a_unit_of_its_own(pg: Postgres) -> None:
    database = pg.dbconnect()
    over = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def outlives(v: int) -> int:
        await over.wait()
        return await write(database, v)

    async def work() -> None:
        tasks.append(asyncio.create_task(in_new_unit(outlives)(1)))
        tasks.append(asyncio.create_task(outlives(2)))

    assert (await post(served(work))).status_code == 201
    over.set()
    kept, lost = await asyncio.gather(*tasks, return_exceptions=True)
    assert kept == 1
    assert isinstance(lost, ContextNotInitiatedError)
    assert "in_new_unit()" in str(lost)
    assert pg.held() == [1]


def test_in_new_unit_outside_of_everything(file: File) -> None:
    database = file.sync_config()

    @in_new_unit
    def job(v: int) -> str:
        """Docs."""
        sync_db_session(database).execute(insert(v))
        return current_unit().name

    assert "job" in job(1)
    assert (job.__name__, job.__doc__, file.held(), is_context_initiated()) == ("job", "Docs.", [1], False)


async def test_nothing_is_opened_where_nothing_is_asked_for(pg: Postgres) -> None:
    pg.dbconnect()

    async def nothing() -> bool:
        return is_context_initiated()

    assert await run_in_new_ctx(nothing)
    assert (pg.engines, pg.backends()) == ([], 0)


async def test_more_units_than_connections_wait_for_each_other(pg: Postgres) -> None:
    database = pg.dbconnect(pool_size=2)

    async def reads() -> int:
        return int(await (await db_session(database)).scalar(COUNT))

    assert await asyncio.gather(*(run_in_new_ctx(reads) for _ in range(20))) == [0] * 20


async def test_jobs_that_start_the_next_one_for_ever_hold_nothing_of_the_earlier_ones() -> None:
    scopes: list[weakref.ref[Any]] = []
    running: list[asyncio.Task[None]] = []
    done = asyncio.Event()

    async def job() -> None:
        scopes.append(weakref.ref(CURRENT.get()))  # type: ignore[arg-type]
        if len(scopes) == 100:
            done.set()
        else:
            running[:] = [*running[-1:], asyncio.create_task(in_new_unit(job)())]

    await in_new_unit(job)()
    await done.wait()
    gc.collect()
    assert sum(scope() is not None for scope in scopes) < 5
