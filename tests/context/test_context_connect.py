"""`DBConnect`: a database whose engine the app makes, and whose host may change while requests are in flight."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest
from held import COUNT, Postgres, calling, eventually, insert, post, served, websocket
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient

from transept import (
    DBConnect,
    ImproperConfigurationError,
    UsageError,
    db_session,
    new_non_ctx_atomic_session,
    new_non_ctx_session,
    pop_db_session_from_context,
    put_db_session_to_context,
    run_in_new_ctx,
    unit_of_work,
)
from transept.extensions.starlette import Transept

pytestmark = pytest.mark.anyio

HERE, THERE = "127.0.0.1", "localhost"  # one server by two names


async def host_of(database: Any = None) -> str:
    """Which engine the unit's session uses."""
    session = await db_session(database)
    await session.execute(COUNT)
    return str(session.bind.url.host)


# Where it connects


async def test_it_connects_at_first_use(pg: Postgres) -> None:
    database = pg.dbconnect()
    assert (database.host, pg.engines) == (HERE, [])
    async with unit_of_work():
        await host_of(database)
    assert len(pg.engines) == 1
    assert database.get_engine() is pg.engines[0]


async def test_a_host_may_come_later(pg: Postgres) -> None:
    database = pg.dbconnect(host=None)
    assert database.host is None
    for ask in (database.create_session(), database.session_maker()):
        with pytest.raises(ImproperConfigurationError, match=r"'default'.*has no host.*connect\(host\)"):
            await ask
    async with unit_of_work():
        with pytest.raises(ImproperConfigurationError, match="has no host"):
            await db_session(database)
    await database.connect(HERE)
    async with unit_of_work():
        assert await host_of(database) == HERE
    other = pg.dbconnect(host=None)
    await other.change_host(THERE)
    assert other.host == THERE


async def test_without_a_host_a_request_fails_and_says_why(pg: Postgres) -> None:
    database = pg.dbconnect(host=None)

    async def work() -> None:
        await db_session(database)

    async def told(request: Any, error: Exception) -> Response:
        return JSONResponse(str(error), 503)

    response = await post(served(work, handlers={ImproperConfigurationError: told}))
    assert response.status_code == 503
    assert "has no host" in response.json()


async def test_requests_in_flight_finish_on_the_old_engine_which_is_disposed_after_the_last(pg: Postgres) -> None:
    database = pg.dbconnect()
    started, go_on = asyncio.Event(), [asyncio.Event(), asyncio.Event()]
    waiting = iter(go_on)

    async def slow() -> Response:
        mine = next(waiting)
        session = await db_session(database)
        await session.execute(insert(1))
        started.set()
        await mine.wait()
        await session.execute(insert(2))
        return JSONResponse(await host_of(database), 201)

    async def quick() -> Response:
        return JSONResponse(await host_of(database), 201)

    in_flight = [asyncio.create_task(post(served(slow))) for _ in go_on]
    while pg.out_of_pools() < 2:
        await asyncio.sleep(0.01)
    await database.change_host(THERE)
    assert (database.host, pg.disposed) == (THERE, [])
    assert (await post(served(quick))).json() == THERE
    go_on[0].set()
    assert (await in_flight[0]).json() == HERE
    await asyncio.sleep(0.05)
    assert pg.disposed == []
    go_on[1].set()
    assert (await in_flight[1]).json() == HERE
    assert await eventually(lambda: pg.disposed == [HERE])
    assert (await post(served(quick))).json() == THERE
    assert pg.held() == [1, 1, 2, 2]
    assert len(pg.engines) == 2


async def test_a_session_that_has_done_nothing_yet_finishes_on_the_old_engine_too(pg: Postgres) -> None:
    database = pg.dbconnect()
    async with unit_of_work():
        session = await db_session(database)
        await database.change_host(THERE)
        assert pg.disposed == []
        await session.execute(insert(1))
        assert await host_of(database) == HERE
        assert await run_in_new_ctx(host_of, database) == THERE
    assert await eventually(lambda: pg.disposed == [HERE])
    assert pg.held() == [1]


async def test_an_idle_engine_is_disposed_at_once(pg: Postgres) -> None:
    database = pg.dbconnect()
    await run_in_new_ctx(host_of, database)
    await database.change_host(THERE)
    assert pg.disposed == [HERE]
    assert await run_in_new_ctx(host_of, database) == THERE


async def test_the_same_host_again_changes_nothing_and_connecting_anew_makes_a_new_engine(pg: Postgres) -> None:
    database = pg.dbconnect()
    await run_in_new_ctx(host_of, database)
    await database.change_host(HERE)
    assert (len(pg.engines), pg.disposed) == (1, [])
    await database.connect(HERE)
    assert (len(pg.engines), pg.disposed) == (2, [HERE])


async def test_changes_that_race_each_other_and_requests_leave_one_engine(pg: Postgres) -> None:
    database = pg.dbconnect(pool_size=10)

    async def change(host: str) -> None:
        await asyncio.sleep(0)
        await database.change_host(host)

    async def work(v: int) -> None:
        async with new_non_ctx_atomic_session(database) as session:
            await session.execute(insert(v))

    for hosts in ((THERE, THERE), (HERE, THERE, HERE)):
        await asyncio.gather(*(work(v) for v in range(5)), *map(change, hosts), *(work(v) for v in range(5)))
    assert await eventually(lambda: len(pg.disposed) == len(pg.engines) - 1)
    assert (len(pg.held()), pg.out_of_pools()) == (20, 0)


async def test_a_new_host_that_cannot_be_made_leaves_the_old_one(pg: Postgres) -> None:
    def make(host: str) -> Any:
        if host == "nowhere":
            raise OSError("no route")
        return create_async_engine(pg.server.url("asyncpg"))

    database = DBConnect(make, async_sessionmaker, HERE)
    await run_in_new_ctx(host_of, database)
    with pytest.raises(OSError, match="no route"):
        await database.change_host("nowhere")
    assert database.host == HERE
    await run_in_new_ctx(host_of, database)
    await database.close()


async def test_a_websocket_goes_on_as_well(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def socket(websocket: Any) -> None:
        await websocket.accept()
        async for message in websocket.iter_json():
            if message == "change":
                await database.change_host(THERE)
            await (await db_session(database)).execute(insert(1))
            await websocket.send_json(pg.disposed)

    app = Starlette(routes=[WebSocketRoute("/", socket)])
    Transept(database, app)
    await websocket(app, 1, "change", 3)
    assert pg.held() == [1, 1, 1]
    assert await eventually(lambda: pg.disposed == [HERE])


# Sessions taken out and put in


async def test_a_session_of_the_apps_own_keeps_its_engine_as_long_as_it_lives(pg: Postgres) -> None:
    database = pg.dbconnect()
    session = await database.create_session()
    assert isinstance(session, AsyncSession)
    await database.change_host(THERE)
    await session.execute(insert(1))
    await session.commit()
    await session.close()
    assert pg.disposed == []
    del session
    gc.collect()
    assert await eventually(lambda: pg.disposed == [HERE])
    assert pg.held() == [1]


async def test_a_session_that_was_taken_out_keeps_its_engine_as_long_as_it_lives(pg: Postgres) -> None:
    database = pg.dbconnect()
    taken: list[AsyncSession] = []
    async with unit_of_work():
        await host_of(database)
        taken.append(pop_db_session_from_context(database))
    await database.change_host(THERE)
    assert pg.disposed == []
    await taken[0].execute(insert(1))
    await taken[0].commit()
    taken.clear()
    gc.collect()
    assert await eventually(lambda: pg.disposed == [HERE])
    assert pg.held() == [1]


async def test_a_session_that_was_put_in_keeps_its_engine_until_the_unit_is_over(pg: Postgres) -> None:
    database = pg.dbconnect()
    async with unit_of_work():
        put_db_session_to_context(database, await database.create_session())
        await database.change_host(THERE)
        await (await db_session(database)).execute(insert(1))
        assert pg.disposed == []
    gc.collect()
    assert await eventually(lambda: pg.disposed == [HERE])
    assert pg.held() == [1]


async def test_its_sessions_are_garbage_when_they_are_over(pg: Postgres) -> None:
    database = pg.dbconnect()
    async with unit_of_work():
        alive = weakref.ref(await db_session(database))
        await host_of(database)
    gc.collect()
    assert alive() is None


async def test_what_the_maker_makes_is_the_apps_own(pg: Postgres) -> None:
    database = pg.dbconnect()
    maker = await database.session_maker()
    assert isinstance(maker, async_sessionmaker)

    async def work() -> None:
        async with maker() as session:
            await session.execute(insert(1))
        async with maker.begin() as session:
            await session.execute(insert(2))
        async with await database.create_session() as session:
            await session.execute(insert(3))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [2]


# The handler


async def test_the_handler_is_awaited_before_each_session_and_may_change_the_host(pg: Postgres) -> None:
    hosts, asked = iter([THERE, THERE, HERE]), []

    async def find_master(connect: DBConnect) -> None:
        asked.append(connect)
        await asyncio.sleep(0)
        await connect.change_host(next(hosts))

    database = pg.dbconnect(host=None, before_create_session_handler=find_master)

    async def work() -> Response:
        first = await host_of(database)
        assert await host_of(database) == first
        return JSONResponse(first, 201)

    app = served(work)
    async with calling(app) as client:
        assert [(await client.post("/")).json() for _ in range(3)] == [THERE, THERE, HERE]
    assert asked == [database] * 3
    assert pg.disposed == [THERE]


async def test_the_handler_is_awaited_for_sessions_of_every_kind(pg: Postgres) -> None:
    asked: list[Any] = []

    async def handler(connect: Any) -> None:
        asked.append(connect)

    database = pg.dbconnect(before_create_session_handler=handler)
    await database.create_session()
    await database.session_maker()
    async with new_non_ctx_session(database), new_non_ctx_atomic_session(database):
        pass
    await run_in_new_ctx(host_of, database)
    assert len(asked) == 5


async def test_a_handler_that_fails_fails_the_call_and_no_more(pg: Postgres) -> None:
    failing = [True]

    async def handler(connect: Any) -> None:
        if failing:
            raise OSError("no master")

    database = pg.dbconnect(before_create_session_handler=handler)

    async def work() -> None:
        with pytest.raises(OSError, match="no master"):
            await db_session(database)
        failing.clear()
        await (await db_session(database)).execute(insert(1))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1]


async def test_with_a_handler_a_session_must_be_awaited(pg: Postgres) -> None:
    async def handler(connect: Any) -> None:
        pass

    database = pg.dbconnect(before_create_session_handler=handler)

    async def endpoint(request: Request) -> Response:
        for ask in (lambda: db.get_session(request), lambda: request.state.db_session):
            with pytest.raises(UsageError, match="await db_session"):
                ask()
        session = await db_session(database)
        assert db.get_session(request) is request.state.db_session is session
        return Response(status_code=201)

    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    db = Transept(database, app)
    assert (await post(app)).status_code == 201


# A database like every other


@pytest.mark.parametrize(
    ("mode", "kept"),
    [(None, [200, 303]), ("autocommit", [200]), ("autocommit_include_redirect", [200, 303]), ("manual", [])],
)
async def test_its_commit_mode(pg: Postgres, mode: Any, kept: list[int]) -> None:
    database = pg.dbconnect(commit_mode=mode)

    async def work() -> Response:
        await (await db_session(database)).execute(insert(status))
        return Response(status_code=status)

    for status in (200, 303, 404, 500):
        assert (await post(served(work))).status_code == status
    assert pg.held() == kept


async def test_its_extra_statuses_win(pg: Postgres) -> None:
    database = pg.dbconnect(extra_commit_statuses={404}, extra_rollback_statuses={303})

    async def work() -> Response:
        await (await db_session(database)).execute(insert(status))
        return Response(status_code=status)

    for status in (200, 303, 404, 500):
        assert (await post(served(work))).status_code == status
    assert pg.held() == [200, 404]


async def test_close_disposes_the_engine_and_the_next_use_makes_another(pg: Postgres) -> None:
    database = pg.dbconnect()
    await database.close()
    await run_in_new_ctx(host_of, database)
    await database.close()
    assert (pg.disposed, pg.backends()) == ([HERE], 0)
    await database.close()
    assert await run_in_new_ctx(host_of, database) == HERE
    assert (len(pg.engines), pg.disposed) == (2, [HERE])


async def test_close_while_a_request_is_in_flight_lets_it_finish(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        session = await db_session(database)
        await session.execute(insert(1))
        await database.close()
        await session.execute(insert(2))

    assert (await post(served(work))).status_code == 201
    assert pg.held() == [1, 2]


def test_it_stops_with_the_app_that_knows_it(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        await (await db_session()).execute(insert(1))

    with TestClient(served(work, databases=database)) as client:
        assert client.post("/").status_code == 201
        assert pg.disposed == []
    assert (pg.disposed, pg.held()) == ([HERE], [1])


def test_several_event_loops_have_an_engine_each(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        await (await db_session(database)).execute(insert(1))
        return JSONResponse(database.get_engine() is pg.engines[-1], 201)

    client = TestClient(served(work))  # a loop for each request
    assert [client.post("/").json() for _ in range(3)] == [True] * 3
    assert (pg.held(), len(pg.engines), pg.disposed) == ([1] * 3, 3, [HERE] * 3)


def test_several_event_loops_may_change_the_host(pg: Postgres) -> None:
    database = pg.dbconnect()
    hosts = iter([THERE, HERE, THERE])

    async def work() -> Response:
        session = await db_session(database)
        await session.execute(insert(1))
        await database.change_host(next(hosts))
        await session.execute(insert(2))
        return Response(status_code=201)

    client = TestClient(served(work))
    assert [client.post("/").status_code for _ in range(3)] == [201] * 3
    assert pg.held() == [1, 1, 1, 2, 2, 2]
    assert len(pg.disposed) == len(pg.engines) == 6
    assert asyncio.run(eventually(lambda: pg.backends() == 0))
    asyncio.run(database.close())


class OtherLoop:
    """An event loop that runs in another thread, in which a unit can be begun and ended."""

    def __init__(self, database: DBConnect) -> None:
        self._database = database
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._closing.wait())

    def __enter__(self) -> OtherLoop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def run(self, work: Any) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def begin_unit(self) -> None:
        begun = asyncio.Event()

        async def unit() -> None:
            async with unit_of_work():
                await host_of(self._database)
                begun.set()
                await self._ending.wait()

        async def begin() -> None:
            self._unit = asyncio.create_task(unit())
            await begun.wait()

        await self.run(begin())

    async def end_unit(self) -> None:
        async def end() -> None:
            self._ending.set()
            await self._unit

        await self.run(end())


async def test_a_change_of_host_disposes_the_engines_of_all_event_loops(pg: Postgres) -> None:
    database = pg.dbconnect()
    with OtherLoop(database) as other:
        await run_in_new_ctx(host_of, database)
        await other.run(run_in_new_ctx(host_of, database))
        assert (pg.disposed, pg.backends()) == ([], 2)
        await database.change_host(THERE)
        assert await eventually(lambda: (pg.disposed, pg.backends()) == ([HERE, HERE], 0))


@pytest.mark.parametrize("ends", ["change_host", "close"])
async def test_an_engine_is_disposed_when_its_own_event_loop_uses_it_no_more(pg: Postgres, ends: str) -> None:
    database = pg.dbconnect()
    with OtherLoop(database) as other:
        await run_in_new_ctx(host_of, database)
        await other.begin_unit()
        await (database.change_host(THERE) if ends == "change_host" else database.close())
        assert (pg.disposed, pg.backends()) == ([HERE], 1)
        await other.end_unit()
        assert await eventually(lambda: (pg.disposed, pg.backends()) == ([HERE, HERE], 0))
        await run_in_new_ctx(host_of, database)
        await database.close()
        assert (len(pg.disposed), pg.backends()) == (3, 0)


async def test_an_engine_is_disposed_while_another_event_loop_still_uses_the_host(pg: Postgres) -> None:
    database = pg.dbconnect()
    with OtherLoop(database) as other:
        await other.begin_unit()
        async with unit_of_work():
            await host_of(database)
            await database.change_host(THERE)
            assert pg.disposed == []
        assert await eventually(lambda: (pg.disposed, pg.backends()) == ([HERE], 1))
        await other.end_unit()
    await database.close()
    assert (sorted(pg.disposed), pg.backends()) == ([HERE, HERE, THERE], 0)


@pytest.mark.parametrize("turns", range(8))
def test_an_event_loop_that_ends_lets_the_disposal_end(
    pg: Postgres, turns: int, caplog: pytest.LogCaptureFixture
) -> None:
    database = pg.dbconnect()

    async def use() -> None:
        async with unit_of_work():
            await host_of(database)
            await database.connect(HERE)
        for _ in range(turns):
            await asyncio.sleep(0)

    asyncio.run(use())
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
    assert pg.disposed == [HERE, HERE]
    assert asyncio.run(eventually(lambda: pg.backends() == 0))


def test_an_engine_may_be_asked_for_before_there_is_a_loop(pg: Postgres) -> None:
    database = pg.dbconnect()
    engine = database.get_engine()

    async def use() -> bool:
        async with unit_of_work():
            await host_of(database)
        return database.get_engine() is engine

    assert asyncio.run(use())
    assert pg.disposed == [HERE]


# What is refused


def make(host: str) -> Any:
    return create_async_engine(f"sqlite+aiosqlite:///{host}")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"engine_creator": "postgresql://"}, ("engine_creator", "'postgresql://'")),
        ({"session_maker_creator": None}, ("session_maker_creator", "None")),
        ({"before_create_session_handler": 5}, ("before_create_session_handler", "5")),
        ({"host": ""}, ("host", "''")),
        ({"host": 5}, ("host", "5")),
        ({"commit_mode": "autocomit"}, ("commit_mode", "'autocomit'", "'autocommit'")),
        ({"bind_key": ""}, ("bind_key", "''")),
        ({"comit_mode": "manual"}, ("DBConnect", "'comit_mode'", "'commit_mode'")),
        ({"extra_commit_statuses": {404}, "extra_rollback_statuses": {404}}, ("extra_commit_statuses", "404")),
        ({"extra_commit_statuses": {20}}, ("extra_commit_statuses", "20")),
    ],
    ids=str,
)
def test_wrong_settings_fail_at_construction(settings: dict[str, Any], words: tuple[str, ...]) -> None:
    given: dict[str, Any] = {"engine_creator": make, "session_maker_creator": async_sessionmaker, **settings}
    with pytest.raises(ImproperConfigurationError) as caught:
        DBConnect(**given)
    assert all(word in str(caught.value) for word in words), str(caught.value)


async def test_a_wrong_host_is_refused_later_too(pg: Postgres) -> None:
    database = pg.dbconnect()
    for host in ("", None, 5):
        for call in (database.connect, database.change_host):
            with pytest.raises(ImproperConfigurationError, match="host="):
                await call(host)  # type: ignore[arg-type]
    assert database.host == HERE


async def test_a_creator_that_returns_something_else_says_so() -> None:
    wrong: Any
    for wrong in (lambda host: create_engine("sqlite://"), lambda host: None):
        with pytest.raises(ImproperConfigurationError, match=r"engine_creator returned.*AsyncEngine is needed"):
            DBConnect(wrong, async_sessionmaker, "x").get_engine()
    for wrong in (lambda engine: None, AsyncSession):
        database = DBConnect(make, wrong, "x")
        with pytest.raises(ImproperConfigurationError, match=r"session_maker_creator returned"):
            await database.create_session()


async def test_an_awaited_creator_says_so() -> None:
    async def engine(host: str) -> Any:
        return make(host)

    wrong: Any = engine
    with pytest.raises(ImproperConfigurationError, match="engine_creator"):
        DBConnect(wrong, async_sessionmaker, "x").get_engine()
