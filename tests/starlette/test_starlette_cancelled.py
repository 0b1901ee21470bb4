"""Requests that are cancelled: what was not committed is gone, a COMMIT that was sent is kept, nothing stays open."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from held import Postgres, calling, eventually, http, insert, out_of_pool, post
from sqlalchemy import text
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from transept import OutsideScope, after_commit, after_rollback, unit_of_work
from transept.extensions.starlette import Transept

pytestmark = pytest.mark.anyio

SLEEP = text("SELECT pg_sleep(1.5)")


async def cancel(app: Any, told: list[Any], after: float) -> None:
    call = asyncio.create_task(http(app, told, method="POST"))
    await asyncio.sleep(after)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()


async def cancel_twice(app: Any, told: list[Any], after: float) -> None:
    call = asyncio.create_task(http(app, told, method="POST"))
    await asyncio.sleep(after)
    call.cancel()
    await asyncio.sleep(0.05)
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()


async def cancel_at_every_turn(app: Any, told: list[Any], after: float) -> None:
    call = asyncio.create_task(http(app, told, method="POST"))
    await asyncio.sleep(after)
    while not call.done():
        call.cancel()
        await asyncio.sleep(0)
    assert call.cancelled()


async def time_out(app: Any, told: list[Any], after: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(after):
            await http(app, told, method="POST")


async def fail_after(app: Any, told: list[Any], after: float) -> None:
    with pytest.raises(TimeoutError):
        with anyio.fail_after(after):
            await http(app, told, method="POST")


async def cancel_a_group(app: Any, told: list[Any], after: float) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: http(app, told, method="POST"))
        await asyncio.sleep(after)
        group.cancel_scope.cancel()


WAYS = pytest.mark.parametrize(
    "way", [cancel, cancel_twice, cancel_at_every_turn, time_out, fail_after, cancel_a_group]
)


def app_with(config: Any, endpoint: Any) -> Starlette:
    app = Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])])
    Transept(config, app)
    return app


async def clean(pg: Postgres, config: Any) -> None:
    assert await eventually(lambda: out_of_pool(config) == 0, 2)
    assert await eventually(lambda: pg.in_transaction() == 0, 2)
    assert pg.backends("idle in transaction%") == 0


@WAYS
async def test_cancelled_while_a_statement_runs_keeps_nothing(pg: Postgres, way: Any) -> None:
    config = pg.config()
    hooks: list[str] = []

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        await session.execute(insert(1))
        after_commit(lambda: hooks.append("kept"))
        after_rollback(lambda: hooks.append("lost"))
        await session.execute(SLEEP)
        return Response(status_code=201)

    told: list[Any] = []
    await way(app_with(config, endpoint), told, 0.2)
    await clean(pg, config)
    assert (told, pg.held(), hooks) == ([], [], ["lost"])


@WAYS
async def test_cancelled_between_statements_keeps_nothing(pg: Postgres, way: Any) -> None:
    config = pg.config()

    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        await asyncio.sleep(5)
        return Response(status_code=201)

    told: list[Any] = []
    await way(app_with(config, endpoint), told, 0.2)
    await clean(pg, config)
    assert (told, pg.held()) == ([], [])


@WAYS
async def test_cancelled_while_commit_runs_is_kept_and_not_told(pg: Postgres, way: Any) -> None:
    pg.slow_commit(0.4)
    config = pg.config()
    hooks: list[str] = []

    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        after_commit(lambda: hooks.append("kept"))
        return JSONResponse("ok", 201, background=BackgroundTask(hooks.append, "background"))

    told: list[Any] = []
    await way(app_with(config, endpoint), told, 0.2)
    await clean(pg, config)
    assert (told, pg.held(), hooks) == ([], [1], ["kept"])


@WAYS
async def test_a_blocking_commit_is_kept_when_its_request_is_cancelled(pg: Postgres, way: Any) -> None:
    pg.slow_commit(0.4)
    config = pg.sync_config()

    def endpoint(request: Request) -> Response:
        request.state.db_session.execute(insert(1))
        return Response(status_code=201)

    told: list[Any] = []
    await way(app_with(config, endpoint), told, 0.2)
    await clean(pg, config)
    assert (told, pg.held()) == ([], [1])


@WAYS
async def test_two_databases_are_both_kept_when_cancelled_while_the_first_commits(pg: Postgres, way: Any) -> None:
    pg.slow_commit(0.3)
    one, two = pg.config(), pg.config(bind_key="two")

    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        await request.state.two_session.execute(insert(2))
        return Response(status_code=201)

    told: list[Any] = []
    await way(app_with([one, two], endpoint), told, 0.15)
    await clean(pg, one)
    await clean(pg, two)
    assert (told, pg.held()) == ([], [1, 2])


@pytest.mark.parametrize("way", [cancel, cancel_twice, time_out])
async def test_a_plain_endpoint_that_goes_on_after_its_request_was_cancelled_keeps_nothing(
    pg: Postgres, way: Any
) -> None:
    config = pg.sync_config()
    ended, seen = threading.Event(), []

    def endpoint(request: Request) -> Response:
        session = request.state.db_session
        session.execute(insert(1))
        session.execute(text("SELECT pg_sleep(0.4)"))
        try:
            session.execute(insert(2))
        except OutsideScope as error:
            seen.append(error)
        finally:
            ended.set()
        return Response(status_code=201)

    told: list[Any] = []
    await way(app_with(config, endpoint), told, 0.2)
    assert await asyncio.to_thread(ended.wait, 5)
    await clean(pg, config)
    assert (told, pg.held()) == ([], [])


@WAYS
async def test_cancelled_while_a_task_of_the_endpoint_uses_the_session_leaves_nothing(pg: Postgres, way: Any) -> None:
    config = pg.config()
    tasks: list[asyncio.Task[Any]] = []

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        await session.execute(insert(1))
        tasks.append(asyncio.create_task(session.execute(text("SELECT pg_sleep(0.6)"))))
        await asyncio.sleep(5)
        return Response(status_code=201)

    told: list[Any] = []
    await way(app_with(config, endpoint), told, 0.2)
    await asyncio.wait(tasks)
    await clean(pg, config)
    assert (told, pg.held()) == ([], [])


@WAYS
async def test_cancelled_while_the_gate_waits_for_a_statement_keeps_nothing(pg: Postgres, way: Any) -> None:
    config = pg.config()
    tasks: list[asyncio.Task[Any]] = []
    hooks: list[str] = []

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        await session.execute(insert(1))
        after_commit(lambda: hooks.append("kept"))
        after_rollback(lambda: hooks.append("lost"))
        tasks.append(asyncio.create_task(session.execute(text("SELECT pg_sleep(0.6)"))))
        await asyncio.sleep(0)
        return Response(status_code=201)

    told: list[Any] = []
    await way(app_with(config, endpoint), told, 0.3)
    await asyncio.wait(tasks)
    await clean(pg, config)
    assert (told, pg.held(), hooks) == ([], [], ["lost"])


@WAYS
async def test_cancelled_while_it_waits_for_a_connection_leaves_nothing(pg: Postgres, way: Any) -> None:
    config = pg.config(pool_size=1)

    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        return Response(status_code=201)

    async with config.get_engine().connect():
        await way(app_with(config, endpoint), [], 0.2)
    await clean(pg, config)
    assert pg.held() == []
    assert (await post(app_with(config, endpoint))).status_code == 201


@pytest.mark.parametrize("way", [cancel, cancel_twice, time_out, fail_after])
async def test_cancelled_while_it_rolls_back_leaves_nothing(pg: Postgres, way: Any) -> None:
    config = pg.config()

    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))

        async def slow() -> None:
            await asyncio.sleep(0.4)

        after_rollback(slow)
        return Response(status_code=400)

    told: list[Any] = []
    await way(app_with(config, endpoint), told, 0.2)
    await clean(pg, config)
    assert (told, pg.held()) == ([], [])


@WAYS
async def test_cancelled_in_a_background_task_keeps_the_request_and_not_the_task(pg: Postgres, way: Any) -> None:
    config = pg.config()

    async def endpoint(request: Request) -> Response:
        async def later() -> None:
            await request.state.db_session.execute(insert(2))
            await request.state.db_session.execute(SLEEP)

        await request.state.db_session.execute(insert(1))
        return JSONResponse("ok", 201, background=BackgroundTask(later))

    told: list[Any] = []
    await way(app_with(config, endpoint), told, 0.3)
    await clean(pg, config)
    assert ([message.get("status") for message in told], pg.held()) == ([201, None], [1])


@WAYS
async def test_cancelled_in_a_stream_keeps_what_was_settled(pg: Postgres, way: Any) -> None:
    config = pg.config()

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session

        async def body() -> AsyncIterator[bytes]:
            await session.execute(insert(1))
            yield b"first"
            await session.execute(insert(2))
            async for _ in await session.stream(text("SELECT pg_sleep(0.05) FROM generate_series(1, 20)")):
                yield b"more"

        return StreamingResponse(body())

    told: list[Any] = []
    await way(app_with(config, endpoint), told, 0.4)
    await clean(pg, config)
    assert pg.held() == [1]
    assert all(message.get("more_body", True) for message in told)


async def test_a_time_out_inside_the_endpoint_is_answered_and_keeps_nothing(pg: Postgres) -> None:
    config = pg.config()

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        await session.execute(insert(1))
        try:
            with anyio.fail_after(0.2):
                await session.execute(SLEEP)
        except TimeoutError:
            return Response(status_code=504)
        return Response(status_code=201)

    assert (await post(app_with(config, endpoint))).status_code == 504
    await clean(pg, config)
    assert pg.held() == []


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("limit", [anyio.move_on_after, asyncio.timeout])
async def test_a_time_out_that_the_endpoint_swallows_is_never_a_success_that_lost_its_work(
    pg: Postgres, limit: Any, again: bool
) -> None:
    config = pg.config()

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        await session.execute(insert(1))
        with suppress(TimeoutError):
            if limit is anyio.move_on_after:
                with anyio.move_on_after(0.2):
                    await session.execute(SLEEP)
            else:
                async with asyncio.timeout(0.2):
                    await session.execute(SLEEP)
        if again:
            await session.execute(insert(2))
        return Response(status_code=201)

    status = (await post(app_with(config, endpoint))).status_code
    await clean(pg, config)
    assert (status, pg.held()) in [(500, []), (201, [1, 2] if again else [1])]


async def test_a_time_out_above_the_gate_while_commit_runs_is_not_a_success(pg: Postgres) -> None:
    pg.slow_commit(0.4)
    config = pg.config()

    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        return Response(status_code=201)

    class Limit:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            try:
                with anyio.fail_after(0.2):
                    await self.app(scope, receive, send)
            except TimeoutError:
                await Response(status_code=504)(scope, receive, send)

    app = app_with(config, endpoint)
    app.add_middleware(Limit)
    assert (await post(app)).status_code == 504
    await clean(pg, config)
    assert pg.held() == [1]


@pytest.mark.parametrize("during", ["statement", "commit"])
@pytest.mark.parametrize("twice", [False, True])
async def test_a_cancelled_block_outside_of_requests_follows_the_same_rule(
    pg: Postgres, during: str, twice: bool
) -> None:
    pg.slow_commit(0.4)
    config = pg.config()

    async def work() -> None:
        async with unit_of_work() as unit:
            await unit.session(config).execute(insert(1))
            if during == "statement":
                await unit.session(config).execute(SLEEP)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.2)
    task.cancel()
    if twice:
        await asyncio.sleep(0.05)
        task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await clean(pg, config)
    assert pg.held() == ([1] if during == "commit" else [])


async def test_the_app_serves_on_after_many_cancelled_requests(pg: Postgres) -> None:
    config = pg.config(pool_size=2)

    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        if request.method == "POST":
            await request.state.db_session.execute(SLEEP)
        return Response(status_code=201)

    app = app_with(config, endpoint)
    calls = [asyncio.create_task(http(app, [], method="POST")) for _ in range(20)]
    await asyncio.sleep(0.2)
    for number, call in enumerate(calls):
        call.cancel()
        if number % 3 == 0:
            await asyncio.sleep(0.01)
    await asyncio.wait(calls)
    await clean(pg, config)
    async with calling(app) as client:
        assert {(await client.get("/")).status_code for _ in range(5)} == {201}
    assert pg.held() == [1] * 5


async def test_a_loop_that_ends_with_requests_under_way_leaves_nothing(pg: Postgres) -> None:
    config = pg.config()

    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        await request.state.db_session.execute(SLEEP)
        return Response(status_code=201)

    async def main() -> None:
        app = app_with(config, endpoint)
        tasks = [asyncio.create_task(http(app, [], method="POST")) for _ in range(3)]
        await asyncio.sleep(0.3)
        assert len(tasks) == 3

    await asyncio.to_thread(asyncio.run, main())
    assert await eventually(lambda: pg.backends() == 0)
    assert pg.held() == []
