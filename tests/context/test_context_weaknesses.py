"""What systems of this kind do to their users, one test for each pain: here it does not happen."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import anyio
import pytest
from held import COUNT, VIOLATION, Postgres, calling, eventually, insert, post, served, websocket
from servers.proxy import FaultProxy
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient

from transept import (
    ASGIHTTPDBSessionMiddleware,
    CommitFailed,
    ConcurrentUseError,
    OutsideScope,
    PartlyCommitted,
    after_commit,
    atomic_db_session,
    db_session,
    doom,
    in_new_unit,
    init_db_session_ctx,
    reset_db_session_ctx,
)

pytestmark = pytest.mark.anyio


class Boom(Exception):
    pass


async def write(database: Any, v: int) -> None:
    await (await db_session(database)).execute(insert(v))


async def violate(database: Any) -> None:
    await (await db_session(database)).execute(VIOLATION)


async def test_w1_no_success_is_told_before_its_commit(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        await write(database, 1)
        await violate(database)

    assert (await post(served(work))).status_code == 500
    assert pg.held() == []


async def test_w2_a_background_task_neither_holds_the_connection_nor_undoes_what_was_told(pg: Postgres) -> None:
    database, out = pg.dbconnect(), []

    async def mail() -> None:
        out.append(pg.out_of_pools())
        await write(database, 2)
        raise Boom

    async def work() -> Response:
        await write(database, 1)
        return Response(status_code=201, background=BackgroundTask(mail))

    assert (await post(served(work))).status_code == 201
    assert (out, pg.held()) == ([0], [1])


async def test_w3_what_is_written_after_the_handler_returns_is_kept(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def audit() -> None:
        await write(database, 3)

    async def work() -> Response:
        await write(database, 1)

        async def stream() -> Any:
            await write(database, 2)
            yield b"abc"

        return StreamingResponse(stream(), 201, background=BackgroundTask(audit))

    assert (await post(served(work))).text == "abc"
    assert (pg.held(), pg.out_of_pools()) == ([1, 2, 3], 0)


async def test_w4_streams_that_read_poison_no_pool(pg: Postgres) -> None:
    database = pg.dbconnect(pool_size=2)

    async def work() -> Response:
        session = await db_session(database)
        await session.execute(COUNT)

        async def stream() -> Any:
            for _ in range(3):
                yield b"%d" % await session.scalar(COUNT)
                await asyncio.sleep(0.01)

        return StreamingResponse(stream())

    async with calling(served(work)) as client:
        told = await asyncio.gather(*(client.get("/") for _ in range(5)))
        assert [(one.status_code, one.text) for one in told] == [(200, "000")] * 5
        assert (await client.get("/")).text == "000"


async def test_w5_a_commit_that_the_server_answers_with_rollback_is_no_success(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        await write(database, 1)
        with suppress(DBAPIError):
            await (await db_session(database)).execute(text("SELECT nonsense"))

    async def told(request: Any, error: Exception) -> Response:
        return Response(status_code=409)

    assert (await post(served(work, handlers={CommitFailed: told}))).status_code == 409
    assert pg.held() == []


async def test_w6_a_task_that_outlives_its_request_loses_nothing_silently(pg: Postgres) -> None:
    database, over = pg.dbconnect(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def late(v: int) -> None:
        await over.wait()
        await write(database, v)

    async def work() -> None:
        tasks.extend([asyncio.create_task(late(1)), asyncio.create_task(in_new_unit(late)(2))])

    assert (await post(served(work))).status_code == 201
    over.set()
    told, kept = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(told, OutsideScope)
    assert (kept, pg.held(), pg.out_of_pools()) == (None, [2], 0)


async def test_w7_two_first_calls_at_once_make_one_session(pg: Postgres) -> None:
    async def find_master(connect: Any) -> None:
        await asyncio.sleep(0.02)

    database = pg.dbconnect(before_create_session_handler=find_master)

    async def work() -> None:
        one, two = await asyncio.gather(db_session(database), db_session(database))
        assert one is two
        await write(database, 1)

    assert (await post(served(work))).status_code == 201
    assert (pg.held(), pg.out_of_pools()) == ([1], 0)


async def test_w8_two_tasks_in_one_session_are_told_who_they_are(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        done = await asyncio.gather(*(write(database, v) for v in (1, 2, 3)), return_exceptions=True)
        lost = [one for one in done if one is not None]
        assert len(lost) == 2
        assert all(isinstance(one, ConcurrentUseError) and one.user != one.holder for one in lost)

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1]


async def test_w9_a_context_from_before_the_server_started_is_not_that_of_its_requests(pg: Postgres) -> None:
    database, seen = pg.dbconnect(), []

    async def work() -> None:
        seen.append(await db_session(database))
        await write(database, 1)

    token = init_db_session_ctx()
    mine = await db_session(database)
    async with calling(served(work)) as client:
        assert [(await client.post("/")).status_code for _ in range(3)] == [201] * 3
    assert len({id(one) for one in [mine, *seen]}) == 4
    assert (pg.held(), await db_session(database) is mine) == ([1, 1, 1], True)
    await reset_db_session_ctx(token)


async def test_w10_a_nested_block_never_commits_its_callers_work(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        async with atomic_db_session(database) as session:
            await session.execute(insert(1))
            async with atomic_db_session(database):
                await session.execute(insert(2))
            raise Boom

    assert (await post(served(work))).status_code == 500
    assert pg.held() == []


async def test_w11_what_is_wrong_with_the_second_database_is_known_before_the_first_commits(pg: Postgres) -> None:
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")

    async def swallows() -> None:
        await write(first, 1)
        with suppress(DBAPIError):
            await (await db_session(second)).execute(text("SELECT nonsense"))

    async def violates() -> None:
        await write(first, 1)
        await violate(second)

    async def told(request: Any, error: Any) -> Response:
        return JSONResponse([error.committed, error.failed], 500)

    assert (await post(served(swallows))).status_code == 500
    assert pg.held() == []
    response = await post(served(violates, handlers={PartlyCommitted: told}))
    assert (response.json(), pg.held()) == ([["default"], "second"], [1])


def timed(app: Any, seconds: float = 0.2) -> Any:
    """A timeout middleware outside of everything, with anyio's level cancellation."""

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        try:
            with anyio.fail_after(seconds):
                await app(scope, receive, send)
        except TimeoutError:
            await Response(status_code=504)(scope, receive, send)

    return middleware


async def test_w12_a_timeout_leaks_no_session_of_two_databases(pg: Postgres) -> None:
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")

    async def work() -> None:
        await write(first, 1)
        await write(second, 2)
        await asyncio.sleep(5)

    for app in (served(work, middleware=[Middleware(timed)]), timed(served(work))):
        assert (await post(app)).status_code == 504
        assert (pg.held(), pg.out_of_pools(), pg.in_transaction()) == ([], 0, 0)


async def test_w13_a_timeout_during_a_query_stays_a_timeout_and_stops_the_query(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        await write(database, 1)
        await (await db_session(database)).execute(text("SELECT pg_sleep(3)"))

    assert (await post(served(work, middleware=[Middleware(timed)]))).status_code == 504
    assert (pg.held(), pg.out_of_pools()) == ([], 0)
    assert await eventually(lambda: pg.in_transaction() == 0, 4)


async def test_w14_a_cleanup_that_fails_leaks_no_other_and_hides_no_error(pg: Postgres) -> None:
    with FaultProxy(pg.server.host, pg.server.port) as proxy:
        broken = pg.dbconnect(port=proxy.port)
        good = pg.dbconnect(bind_key="second")
        caught: list[Exception] = []

        async def work() -> None:
            await write(broken, 1)
            await write(good, 2)
            proxy.on(b"ROLLBACK", "cut_before")
            raise Boom("the real one")

        try:
            async with calling(served(work), raises=True) as client:
                await client.post("/")
        except Boom as error:
            caught.append(error)
        assert str(caught[0]) == "the real one"
        assert (pg.held(), pg.out_of_pools()) == ([], 0)
        proxy.clear()
        await broken.close()


async def test_w15_after_commit_is_after_the_commit(pg: Postgres) -> None:
    """A token for reading one's own writes must cover the commit record."""
    database, tokens = pg.dbconnect(), []

    async def note() -> None:
        tokens.append(pg.look.execute("SELECT pg_current_wal_lsn()::text").fetchone()[0])
        tokens.append(pg.held())

    async def work() -> Response:
        await write(database, 1)
        after_commit(note)
        return Response(status_code=201)

    assert (await post(served(work))).status_code == 201
    assert tokens[1] == [1]


async def test_w16_a_websocket_has_its_context(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def socket(websocket: Any) -> None:
        await websocket.accept()
        async for v in websocket.iter_json():
            await write(database, v)
            assert pg.out_of_pools() == 1
            await websocket.send_json([pg.held(), pg.out_of_pools()])

    app = ASGIHTTPDBSessionMiddleware(Starlette(routes=[WebSocketRoute("/", socket)]))
    told = await websocket(app, 1, 2)
    assert [one["text"] for one in told if "text" in one] == ["[[],1]", "[[1],1]"]
    assert pg.held() == [1, 2]


async def test_w17_the_rule_is_the_databases_own_and_a_unit_may_be_doomed(pg: Postgres) -> None:
    strict = pg.dbconnect(commit_mode="autocommit", extra_commit_statuses={404}, extra_rollback_statuses={202})

    async def work() -> Response:
        await write(strict, status)
        if status == 200:
            doom("rehearsal")
        return Response(status_code=status)

    for status in (200, 201, 202, 303, 404, 409):
        assert (await post(served(work))).status_code == status
    assert pg.held() == [201, 404]


async def test_w18_a_change_of_host_takes_no_engine_away_from_a_request(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        session = await db_session(database)
        await session.execute(insert(1))
        await database.change_host("localhost")
        await session.commit()
        assert pg.disposed == []
        await session.execute(insert(2))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1, 2]
    assert await eventually(lambda: pg.disposed == ["127.0.0.1"])


async def test_w19_a_database_that_is_added_while_others_commit_leaks_nothing(pg: Postgres) -> None:
    pg.slow_commit(0.2)
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")
    tasks: list[asyncio.Task[None]] = []

    async def late() -> None:
        await asyncio.sleep(0.1)
        session = await db_session(second)
        await session.execute(COUNT)
        await session.execute(insert(2))

    async def work() -> None:
        await write(first, 1)
        tasks.append(asyncio.create_task(late()))

    response = await post(served(work))
    (outcome,) = await asyncio.gather(*tasks, return_exceptions=True)
    assert response.status_code == 201
    assert outcome is None or isinstance(outcome, OutsideScope)
    assert pg.held() == ([1, 2] if outcome is None else [1])


def test_w20_an_engine_of_one_loop_is_not_used_in_another(pg: Postgres) -> None:
    database = pg.dbconnect()
    database.get_engine()  # as code at import time does

    async def work() -> None:
        await write(database, 1)

    client = TestClient(served(work))
    assert [client.post("/").status_code for _ in range(3)] == [201] * 3
    assert pg.held() == [1, 1, 1]
