"""Units of work inside a Starlette app: dooming, hooks, blocks, and tasks that outlive their request."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from held import COUNT, VIOLATION, File, Postgres, calling, get, insert, out_of_pool, post
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import transept
from transept import OutsideScope, UsageError, after_commit, after_rollback, current_unit, doom, unit_of_work
from transept.extensions.starlette import Transept

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "parent"
    id: Mapped[int] = mapped_column(primary_key=True)


def app_with(config: Any, endpoint: Any) -> Starlette:
    app = Starlette(routes=[Route("/", endpoint, methods=["GET", "POST"])])
    Transept(config, app)
    return app


def warnings_of(caplog: Any) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == "transept" and one.levelno == logging.WARNING]


# doom


async def test_a_doomed_request_is_answered_and_keeps_nothing_with_one_warning(file: File, caplog: Any) -> None:
    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        doom("dry run")
        return JSONResponse("ok", 201)

    response = await post(app_with(file.config(), endpoint))
    assert (response.status_code, file.held()) == (201, [])
    [warning] = warnings_of(caplog)
    assert "POST /" in warning
    assert "dry run" in warning


async def test_a_doomed_request_that_fails_anyway_is_not_worth_a_warning(file: File, caplog: Any) -> None:
    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        doom()
        return Response(status_code=400)

    assert (await post(app_with(file.config(), endpoint))).status_code == 400
    assert (file.held(), warnings_of(caplog)) == ([], [])


async def test_dooming_the_request_does_not_doom_its_background_task(file: File) -> None:
    async def endpoint(request: Request) -> Response:
        async def later() -> None:
            await request.state.db_session.execute(insert(2))

        await request.state.db_session.execute(insert(1))
        doom()
        return JSONResponse("ok", background=BackgroundTask(later))

    assert (await post(app_with(file.config(), endpoint))).status_code == 200
    assert file.held() == [2]


async def test_a_background_task_may_doom_itself(file: File) -> None:
    async def endpoint(request: Request) -> Response:
        async def later() -> None:
            await request.state.db_session.execute(insert(2))
            doom()

        await request.state.db_session.execute(insert(1))
        return JSONResponse("ok", background=BackgroundTask(later))

    assert (await post(app_with(file.config(), endpoint))).status_code == 200
    assert file.held() == [1]


async def test_a_plain_endpoint_may_doom_its_request(file: File) -> None:
    def endpoint(request: Request) -> Response:
        request.state.db_session.execute(insert(1))
        transept.doom("no")
        assert current_unit().doomed == "no"
        return Response()

    assert (await post(app_with(file.sync_config(), endpoint))).status_code == 200
    assert file.held() == []


# Hooks


async def test_hooks_of_both_colours_run_in_order_after_the_commit(file: File) -> None:
    seen: list[Any] = []

    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))

        async def on_the_loop() -> None:
            seen.append(("async", file.held()))

        class Callable:
            async def __call__(self) -> None:
                seen.append(("object", file.held()))

        after_commit(on_the_loop)
        after_commit(lambda: seen.append(("plain", file.held())))
        after_commit(partial(seen.append, "partial"))
        after_commit(partial(on_the_loop))
        after_commit(Callable())
        after_rollback(lambda: seen.append("never"))
        return Response(status_code=201)

    async with calling(app_with(file.config(), endpoint), raises=True) as client:
        assert (await client.post("/")).status_code == 201
    assert seen == [("async", [1]), ("plain", [1]), "partial", ("async", [1]), ("object", [1])]


@pytest.mark.parametrize("how", ["status", "raise", "late", "doom"])
async def test_hooks_of_both_colours_run_after_a_rollback_however_it_came(file: File, how: str) -> None:
    seen: list[Any] = []

    async def endpoint(request: Request) -> Response:
        async def on_the_loop() -> None:
            seen.append(("async", file.held()))

        await request.state.db_session.execute(insert(1))
        after_rollback(on_the_loop)
        after_rollback(lambda: seen.append(("plain", file.held())))
        after_commit(lambda: seen.append("never"))
        if how == "raise":
            raise KeyError
        if how == "doom":
            doom()
        if how == "late":
            await request.state.db_session.execute(VIOLATION)
        return Response(status_code=400 if how == "status" else 201)

    await post(app_with(file.config(), endpoint))
    assert seen == [("async", []), ("plain", [])]


async def test_hooks_run_before_the_client_is_told(file: File) -> None:
    seen: list[str] = []

    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))

        async def slow() -> None:
            await asyncio.sleep(0.05)
            seen.append("hook")

        after_commit(slow)
        return Response(status_code=201)

    app = app_with(file.config(), endpoint)

    async def told(scope: Any, receive: Any, send: Any) -> None:
        async def noting(message: Any) -> None:
            seen.append(message["type"])
            await send(message)

        await app(scope, receive, noting)

    assert (await post(told)).status_code == 201
    assert seen == ["hook", "http.response.start", "http.response.body"]


async def test_hooks_without_any_database_run_by_the_status(file: File) -> None:
    seen: list[str] = []

    async def endpoint(request: Request) -> Response:
        status = int(request.query_params["status"])
        after_commit(lambda: seen.append(f"kept {status}"))
        after_rollback(lambda: seen.append(f"lost {status}"))
        return Response(status_code=status)

    async with calling(app_with(file.config(), endpoint)) as client:
        for status in (200, 404):
            assert (await client.get(f"/?status={status}")).status_code == status
    assert seen == ["kept 200", "lost 404"]


async def test_a_hook_that_raises_is_logged_and_the_next_ones_run(file: File, caplog: Any) -> None:
    seen: list[int] = []

    async def endpoint(request: Request) -> Response:
        async def breaks() -> None:
            raise KeyError("hook")

        await request.state.db_session.execute(insert(1))
        after_commit(breaks)
        after_commit(lambda: 1 / 0)
        after_commit(lambda: seen.append(1))
        return Response(status_code=201)

    assert (await post(app_with(file.config(), endpoint))).status_code == 201
    assert (file.held(), seen) == ([1], [1])
    errors = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert [one.exc_info[0] for one in errors if one.exc_info] == [KeyError, ZeroDivisionError]


@pytest.mark.parametrize("error", [True, False])
async def test_hooks_of_a_savepoint_go_with_it(file: File, error: bool) -> None:
    seen: list[str] = []

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        await session.execute(insert(1))
        after_commit(lambda: seen.append("outer"))
        try:
            async with session.begin_nested():
                await session.execute(insert(2))
                after_commit(lambda: seen.append("inner"))
                async with session.begin_nested():
                    after_commit(lambda: seen.append("innermost"))
                if error:
                    raise KeyError
        except KeyError:
            pass
        after_commit(lambda: seen.append("last"))
        return Response(status_code=201)

    assert (await post(app_with(file.config(), endpoint))).status_code == 201
    assert file.held() == ([1] if error else [1, 2])
    assert seen == (["outer", "last"] if error else ["outer", "inner", "innermost", "last"])


async def test_hooks_of_a_savepoint_rolled_back_by_hand_are_dropped(file: File) -> None:
    seen: list[str] = []

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        after_commit(lambda: seen.append("outer"))
        nested = await session.begin_nested()
        after_commit(lambda: seen.append("inner"))
        await nested.rollback()
        await session.execute(insert(1))
        return Response(status_code=201)

    assert (await post(app_with(file.config(), endpoint))).status_code == 201
    assert seen == ["outer"]


async def test_a_savepoint_of_a_blocking_session_drops_its_hooks(file: File) -> None:
    seen: list[str] = []

    def endpoint(request: Request) -> Response:
        session = request.state.db_session
        session.execute(insert(1))
        try:
            with session.begin_nested():
                after_commit(lambda: seen.append("inner"))
                raise KeyError
        except KeyError:
            after_commit(lambda: seen.append("outer"))
        return Response(status_code=201)

    assert (await post(app_with(file.sync_config(), endpoint))).status_code == 201
    assert (file.held(), seen) == ([1], ["outer"])


async def test_a_hook_may_write_and_is_kept(file: File) -> None:
    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        await session.execute(insert(1))

        async def hook() -> None:
            await session.execute(insert(2))

        after_commit(hook)
        return Response(status_code=201)

    assert (await post(app_with(file.config(), endpoint))).status_code == 201
    assert file.held() == [1, 2]


async def test_what_is_no_callable_is_no_hook(file: File) -> None:
    async def endpoint(request: Request) -> Response:
        with pytest.raises(UsageError, match="pass the function"):
            after_commit(None)  # type: ignore[arg-type]
        return Response()

    assert (await get(app_with(file.config(), endpoint))).status_code == 200


def test_an_async_hook_in_a_blocking_unit_is_refused_at_once(file: File) -> None:
    async def hook() -> None: ...

    class Callable:
        async def __call__(self) -> None: ...

    for one in (hook, partial(hook), Callable()):
        with unit_of_work() as unit, pytest.raises(UsageError, match="is async"):
            unit.after_commit(one)


async def test_hooks_in_manual_mode_follow_the_apps_own_commit(file: File) -> None:
    seen: list[str] = []

    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        after_commit(lambda: seen.append("kept"))
        after_rollback(lambda: seen.append("lost"))
        if "commit" in request.query_params:
            await request.state.db_session.commit()
        return Response(status_code=400)

    async with calling(app_with(file.config(commit_mode="manual"), endpoint)) as client:
        await client.post("/?commit=1")
        await client.post("/")
    assert (file.held(), seen) == ([1], ["kept", "lost"])


# Blocks


async def test_a_block_in_an_endpoint_is_undone_alone(file: File) -> None:
    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        await session.execute(insert(1))
        try:
            async with unit_of_work() as unit:
                assert unit is current_unit()
                await session.execute(insert(2))
                raise KeyError
        except KeyError:
            pass
        async with unit_of_work():
            await session.execute(insert(3))
        assert await session.scalar(COUNT) == 2
        assert file.held() == []
        return Response(status_code=int(request.query_params["status"]))

    async with calling(app_with(file.config(), endpoint), raises=True) as client:
        await client.post("/?status=400")
        assert file.held() == []
        await client.post("/?status=201")
    assert file.held() == [1, 3]


async def test_a_block_that_is_the_first_to_use_the_session_is_undone_alone(file: File) -> None:
    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        with pytest.raises(KeyError):
            async with unit_of_work():
                await session.execute(insert(1))
                raise KeyError
        await session.execute(insert(2))
        return Response(status_code=201)

    async with calling(app_with(file.config(), endpoint), raises=True) as client:
        await client.post("/")
    assert file.held() == [2]


async def test_a_block_undoes_pending_objects_that_were_not_flushed(file: File) -> None:
    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        session.add(Parent(id=1))
        with pytest.raises(KeyError):
            async with unit_of_work():
                session.add(Parent(id=2))
                raise KeyError
        session.add(Parent(id=3))
        return Response(status_code=201)

    async with calling(app_with(file.config(), endpoint), raises=True) as client:
        await client.post("/")
    with closing(sqlite3.connect(file.path)) as look:
        assert look.execute("SELECT id FROM parent ORDER BY id").fetchall() == [(1,), (3,)]


async def test_a_blocking_block_in_a_plain_endpoint_is_undone_alone(file: File) -> None:
    def endpoint(request: Request) -> Response:
        session = request.state.db_session
        session.execute(insert(1))
        with pytest.raises(KeyError), unit_of_work():
            session.execute(insert(2))
            raise KeyError
        with unit_of_work():
            session.execute(insert(3))
        return Response(status_code=201)

    async with calling(app_with(file.sync_config(), endpoint), raises=True) as client:
        await client.post("/")
    assert file.held() == [1, 3]


async def test_a_block_in_a_background_task_is_kept_alone(file: File) -> None:
    async def endpoint(request: Request) -> Response:
        async def later() -> None:
            session = request.state.db_session
            with pytest.raises(KeyError):
                async with unit_of_work():
                    await session.execute(insert(2))
                    raise KeyError
            async with unit_of_work() as unit:
                await unit.session().execute(insert(3))

        await request.state.db_session.execute(insert(1))
        return JSONResponse("ok", background=BackgroundTask(later))

    async with calling(app_with(file.config(), endpoint), raises=True) as client:
        await client.post("/")
    assert file.held() == [1, 3]


async def test_a_task_that_outlives_its_request_is_told_so_and_a_block_of_its_own_works(file: File) -> None:
    config = file.config()
    tasks: list[asyncio.Task[None]] = []
    go = asyncio.Event()

    async def endpoint(request: Request) -> Response:
        async def outlives() -> None:
            await go.wait()
            with pytest.raises(OutsideScope, match=r"GET / is over.*unit_of_work\(\)"):
                request.state.db_session  # noqa: B018
            with pytest.raises(OutsideScope):
                current_unit()
            async with unit_of_work() as unit:
                await unit.session(config).execute(insert(1))
            with pytest.raises(KeyError):
                async with unit_of_work() as unit:
                    await unit.session(config).execute(insert(2))
                    raise KeyError

        tasks.append(asyncio.create_task(outlives()))
        return Response()

    assert (await get(app_with(config, endpoint))).status_code == 200
    go.set()
    await tasks[0]
    assert file.held() == [1]
    assert out_of_pool(config) == 0


async def test_a_task_that_outlives_its_request_in_the_middle_of_a_statement_harms_nobody(pg: Postgres) -> None:
    config = pg.config()
    tasks: list[asyncio.Task[Any]] = []

    async def endpoint(request: Request) -> Response:
        session = request.state.db_session
        tasks.append(asyncio.create_task(session.execute(text("SELECT pg_sleep(0.2)"))))
        await asyncio.sleep(0.05)
        return Response(status_code=201)

    app = app_with(config, endpoint)
    assert (await post(app)).status_code == 201
    await asyncio.wait(tasks)
    assert (out_of_pool(config), pg.in_transaction()) == (0, 0)


async def test_a_block_outside_of_any_request_is_kept_whatever_the_mode(file: File) -> None:
    config = file.config(commit_mode="manual")
    async with unit_of_work() as unit:
        await unit.session(config).execute(insert(1))
        async with unit_of_work():
            await unit.session(config).execute(insert(2))
    with pytest.raises(IntegrityError):
        async with unit_of_work() as unit:
            await unit.session(config).execute(insert(3))
            await unit.session(config).execute(VIOLATION)
    assert file.held() == [1, 2]
    assert out_of_pool(config) == 0


async def test_concurrent_work_in_an_endpoint_takes_units_of_its_own(pg: Postgres) -> None:
    config = pg.config()
    db = Transept(config)

    async def endpoint(request: Request) -> Response:
        async def write(number: int) -> None:
            async with db.with_async_session() as session:
                await session.execute(insert(number))

        await asyncio.gather(*(write(number) for number in range(10)))
        return Response(status_code=400)

    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    db.init_app(app)
    assert (await post(app)).status_code == 400
    assert pg.held() == list(range(10))
    assert out_of_pool(config) == 0
