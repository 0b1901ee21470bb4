"""Gates beside the ready-made ones: written by hand, around a plain ASGI app, and as Starlette middleware."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from held import HTTP, VIOLATION, Postgres, calling, http, insert, post
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from transept import (
    ASGIHTTPDBSessionMiddleware,
    CommitFailed,
    CommitInDoubt,
    ContextAlreadyInitiatedError,
    ContextNotInitiatedError,
    ImproperConfigurationError,
    OutsideScope,
    PartlyCommitted,
    UsageError,
    after_rollback,
    atomic_db_session,
    auto_commit_by_status_code,
    close_all_sessions,
    commit_all_sessions,
    current_unit,
    db_session,
    doom,
    init_db_session_ctx,
    is_context_initiated,
    reset_db_session_ctx,
    rollback_all_sessions,
    transaction,
    unit_of_work,
)
from transept.extensions.starlette import (
    StarletteHTTPDBSessionMiddleware,
    add_starlette_http_db_session_middleware,
    starlette_http_db_session_middleware,
)

pytestmark = pytest.mark.anyio


class Boom(Exception):
    pass


async def write(database: Any, v: int) -> None:
    await (await db_session(database)).execute(insert(v))


async def gate(work: Any, status: int = 200, before_commit: Any = None) -> None:
    """As the module's own example."""
    token = init_db_session_ctx()
    try:
        await work
        await auto_commit_by_status_code(status, before_commit)
    except BaseException:
        await rollback_all_sessions()
        raise
    finally:
        await reset_db_session_ctx(token)


# By hand


@pytest.mark.parametrize(("status", "kept"), [(200, [1]), (303, [1]), (400, []), (500, [])])
async def test_by_hand_the_status_decides(pg: Postgres, status: int, kept: list[int]) -> None:
    database = pg.dbconnect()
    await gate(write(database, 1), status)
    assert (pg.held(), pg.out_of_pools(), is_context_initiated()) == (kept, 0, False)


async def test_by_hand_each_database_decides_by_its_own_mode(pg: Postgres) -> None:
    first, second = pg.dbconnect(commit_mode="autocommit"), pg.dbconnect(bind_key="second")

    async def both() -> None:
        await write(first, 1)
        await write(second, 2)

    await gate(both(), 303)
    assert pg.held() == [2]


async def test_by_hand_an_error_rolls_back(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def fails() -> None:
        await write(database, 1)
        raise Boom

    with pytest.raises(Boom):
        await gate(fails())
    assert (pg.held(), pg.out_of_pools(), is_context_initiated()) == ([], 0, False)


async def test_by_hand_a_failed_commit_is_raised_before_the_answer(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def violates() -> None:
        await write(database, 1)
        await (await db_session(database)).execute(VIOLATION)

    with pytest.raises(IntegrityError):
        await gate(violates())
    assert (pg.held(), pg.out_of_pools()) == ([], 0)


async def test_by_hand_a_later_database_that_fails_says_what_was_kept(pg: Postgres) -> None:
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")

    async def violates() -> None:
        await write(first, 1)
        await (await db_session(second)).execute(VIOLATION)

    with pytest.raises(PartlyCommitted) as caught:
        await gate(violates())
    assert (caught.value.committed, caught.value.failed, pg.held()) == (("default",), "second", [1])


async def test_by_hand_it_asks_before_each_commit(pg: Postgres) -> None:
    database, asked = pg.dbconnect(), []

    async def ask(session: AsyncSession) -> None:
        asked.append(session)
        await session.execute(insert(2))

    await gate(write(database, 1), 200, ask)
    assert (len(asked), pg.held()) == (1, [1, 2])
    await gate(write(database, 3), 400, ask)
    assert (len(asked), pg.held()) == (1, [1, 2])


async def test_by_hand_cancelled_it_leaves_nothing(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def slow() -> None:
        await write(database, 1)
        await asyncio.sleep(5)

    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await gate(slow())
    assert (pg.held(), pg.out_of_pools(), is_context_initiated()) == ([], 0, False)


async def test_commit_rollback_and_close_of_all_sessions_and_go_on(pg: Postgres) -> None:
    database = pg.dbconnect()
    token = init_db_session_ctx()
    await commit_all_sessions()
    session = await db_session(database)
    await write(database, 1)
    await commit_all_sessions()
    assert (pg.held(), pg.out_of_pools()) == ([1], 0)
    await write(database, 2)
    await rollback_all_sessions()
    assert pg.out_of_pools() == 0
    await write(database, 3)
    assert await db_session(database) is session
    await close_all_sessions()
    assert pg.out_of_pools() == 0
    assert await db_session(database) is not session
    await write(database, 4)
    await commit_all_sessions()
    await write(database, 5)
    await reset_db_session_ctx(token)
    assert (pg.held(), pg.out_of_pools()) == ([1, 4], 0)


SETTLING: dict[str, Any] = {
    "commit_all_sessions": commit_all_sessions,
    "rollback_all_sessions": rollback_all_sessions,
    "close_all_sessions": close_all_sessions,
    "auto_commit_by_status_code": partial(auto_commit_by_status_code, 200),
}


@pytest.mark.parametrize("name", SETTLING)
@pytest.mark.parametrize("block", [unit_of_work, transaction, atomic_db_session])
async def test_inside_a_block_none_of_them_may_settle(pg: Postgres, name: str, block: Any) -> None:
    database = pg.dbconnect()
    arguments = (database,) if block is atomic_db_session else ()

    async def work() -> None:
        await write(database, 1)
        async with block(*arguments):
            await write(database, 2)
            with pytest.raises(UsageError, match=rf"{name}\(\) inside a block, whose end decides"):
                await SETTLING[name]()
            await write(database, 3)

    await gate(work())
    assert (pg.held(), pg.out_of_pools()) == ([1, 2, 3], 0)


@pytest.mark.parametrize("name", SETTLING)
async def test_in_a_block_that_is_a_unit_none_of_them_may_settle(pg: Postgres, name: str) -> None:
    database = pg.dbconnect()
    async with unit_of_work():
        with pytest.raises(UsageError, match=name):
            await SETTLING[name]()
        await write(database, 1)
        with pytest.raises(UsageError, match=name):
            await SETTLING[name]()
    assert pg.held() == [1]


async def test_a_context_that_is_reset_inside_a_block_keeps_nothing(pg: Postgres) -> None:
    database = pg.dbconnect()
    token = init_db_session_ctx()
    async with unit_of_work():
        await write(database, 1)
        await reset_db_session_ctx(token)
    assert (pg.held(), pg.out_of_pools(), is_context_initiated()) == ([], 0, False)


async def test_commit_all_sessions_of_a_doomed_unit_says_that_nothing_was_kept(pg: Postgres) -> None:
    first, second = pg.dbconnect(), pg.dbconnect(bind_key="second")
    hooks: list[int] = []

    async def doomed() -> None:
        await write(first, 1)
        await write(second, 2)
        after_rollback(partial(hooks.append, 1))
        doom("no longer wanted")
        with pytest.raises(CommitFailed, match="'default, second': no longer wanted"):
            await commit_all_sessions()
        assert (pg.out_of_pools(), hooks) == (0, [1])
        await commit_all_sessions()  # nothing is open any more

    await gate(doomed())
    assert pg.held() == []


async def test_a_unit_that_is_doomed_before_its_commit_says_so(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def ask(session: AsyncSession) -> None:
        doom("asked too late")

    async def work() -> None:
        await write(database, 1)
        with pytest.raises(CommitFailed, match="asked too late"):
            await commit_all_sessions(ask)

    await gate(work())
    assert pg.held() == []


async def test_a_hook_that_dooms_comes_too_late_for_a_commit(pg: Postgres) -> None:
    database = pg.dbconnect()
    token = init_db_session_ctx()
    await write(database, 1)
    current_unit().after_commit(doom)
    await commit_all_sessions()
    await reset_db_session_ctx(token)
    assert pg.held() == [1]


async def test_by_hand_a_success_whose_work_was_not_kept_is_warned_of(
    pg: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    automatic, manual = pg.dbconnect(), pg.dbconnect(commit_mode="manual", bind_key="manual")

    async def doomed() -> None:
        await write(automatic, 1)
        doom("no longer wanted")

    await gate(doomed(), 400)
    assert caplog.messages == []
    await gate(doomed(), 201)
    await gate(write(manual, 1), 201)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "answers 201, but its work was rolled back: no longer wanted" in caplog.messages[0]
    assert "answers 201, but its work on 'manual' was rolled back" in caplog.messages[1]
    assert pg.held() == []


async def test_a_context_is_begun_once_unless_forced(pg: Postgres) -> None:
    database = pg.dbconnect()
    outer = init_db_session_ctx()
    mine = await db_session(database)
    with pytest.raises(ContextAlreadyInitiatedError, match="force=True"):
        init_db_session_ctx()
    inner = init_db_session_ctx(force=True)
    assert await db_session(database) is not mine
    await reset_db_session_ctx(inner)
    assert await db_session(database) is mine
    await reset_db_session_ctx(outer)
    assert not is_context_initiated()


async def test_a_context_may_end_without_closing_its_sessions(pg: Postgres) -> None:
    """As a test does that looks afterwards."""
    database = pg.dbconnect()
    token = init_db_session_ctx()
    session = await db_session(database)
    await session.execute(insert(1))
    await reset_db_session_ctx(token, with_close=False)
    assert not is_context_initiated()
    await session.execute(insert(2))
    await session.commit()
    await session.close()
    assert pg.held() == [1, 2]


async def test_without_a_context_each_of_them_says_so() -> None:
    for call in (commit_all_sessions(), rollback_all_sessions(), auto_commit_by_status_code(200)):
        with pytest.raises(ContextNotInitiatedError, match=r"init_db_session_ctx\(\)"):
            await call


async def test_a_context_is_inherited_by_child_tasks_and_over_for_those_that_outlive_it(pg: Postgres) -> None:
    database, over = pg.dbconnect(), asyncio.Event()

    async def outlives() -> None:
        await over.wait()
        await db_session(database)

    token = init_db_session_ctx()
    mine = await db_session(database)
    assert await asyncio.create_task(db_session(database)) is mine
    late = asyncio.create_task(outlives())
    await asyncio.sleep(0)
    await reset_db_session_ctx(token)
    over.set()
    with pytest.raises(OutsideScope):
        await late


# Around any ASGI app


async def plain_app(database: Any, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        assert not is_context_initiated()
        return
    await write(database, 1)
    await send({"type": "http.response.start", "status": scope["status"], "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
    await write(database, 2)


async def test_around_a_plain_asgi_app(pg: Postgres) -> None:
    database, told, asked = pg.dbconnect(), [], []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await plain_app(database, scope, receive, send)

    async def send(message: Any) -> None:
        told.append((message["type"], pg.held()))

    async def ask(session: AsyncSession) -> None:
        asked.append(session)

    gated = ASGIHTTPDBSessionMiddleware(app, ask)
    for status in (400, 201):
        await gated({**HTTP, "type": "http", "method": "POST", "status": status}, _nothing, send)
    start, body = "http.response.start", "http.response.body"
    assert told == [(start, []), (body, []), (start, [1, 2]), (body, [1, 2])]
    assert len(asked) == 3
    assert pg.held() == [1, 2, 2]
    await gated({"type": "lifespan"}, _nothing, send)


async def test_around_a_plain_asgi_app_that_fails(pg: Postgres) -> None:
    database, told = pg.dbconnect(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write(database, 1)
        await (await db_session(database)).execute(VIOLATION)
        await send({"type": "http.response.start", "status": 201, "headers": []})

    with pytest.raises(IntegrityError):
        await http(ASGIHTTPDBSessionMiddleware(app), told, method="POST")
    assert (told, pg.held(), pg.out_of_pools()) == ([], [], 0)


async def test_around_a_plain_asgi_app_with_names(pg: Postgres) -> None:
    database, told = pg.dbconnect(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await write("default", 1)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    await http(ASGIHTTPDBSessionMiddleware(app, registry=database), told, method="POST")
    assert pg.held() == [1]


# As Starlette middleware


def starlette(work: Any, *middleware: Middleware, handlers: Any = None) -> Starlette:
    async def endpoint(request: Request) -> Response:
        return await work() or Response(status_code=201)

    routes = [Route("/", endpoint, methods=["POST"])]
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)


def ready_made() -> list[Middleware]:
    return [
        Middleware(StarletteHTTPDBSessionMiddleware),
        Middleware(BaseHTTPMiddleware, dispatch=starlette_http_db_session_middleware),
        Middleware(ASGIHTTPDBSessionMiddleware),
    ]


@pytest.mark.parametrize("middleware", ready_made(), ids=lambda one: one.cls.__name__)
async def test_in_a_list_of_middleware(pg: Postgres, middleware: Middleware) -> None:
    database = pg.dbconnect()

    async def work() -> Response:
        await write(database, status)
        return Response(status_code=status)

    app = starlette(work, middleware)
    for status in (201, 303, 400):
        assert (await post(app)).status_code == status
    assert (pg.held(), pg.out_of_pools()) == ([201, 303], 0)


@pytest.mark.parametrize("middleware", ready_made(), ids=lambda one: one.cls.__name__)
async def test_in_a_list_of_middleware_a_failed_commit_is_no_success(pg: Postgres, middleware: Middleware) -> None:
    database = pg.dbconnect()
    ran: list[int] = []

    async def background() -> None:
        ran.append(1)

    async def work() -> Response:
        await write(database, 1)
        await (await db_session(database)).execute(VIOLATION)
        return Response(status_code=201, background=BackgroundTask(background))

    assert (await post(starlette(work, middleware))).status_code == 500
    assert (pg.held(), pg.out_of_pools()) == ([], 0)
    assert ran == []


@pytest.mark.parametrize("middleware", ready_made(), ids=lambda one: one.cls.__name__)
async def test_in_a_list_of_middleware_inside_the_ready_made_gate(pg: Postgres, middleware: Middleware) -> None:
    """One gate settles, once."""
    database = pg.dbconnect()

    async def work() -> None:
        await write(database, 1)

    app = starlette(work, middleware)
    add_starlette_http_db_session_middleware(app)
    assert ((await post(app)).status_code, pg.held(), pg.out_of_pools()) == (201, [1], 0)


async def test_as_a_dispatch_function_it_asks_before_the_commit(pg: Postgres) -> None:
    database = pg.dbconnect()

    async def ask(session: AsyncSession) -> None:
        await session.execute(insert(2))

    async def work() -> None:
        await write(database, 1)

    dispatch = partial(starlette_http_db_session_middleware, before_commit=ask)
    assert (await post(starlette(work, Middleware(BaseHTTPMiddleware, dispatch=dispatch)))).status_code == 201
    assert pg.held() == [1, 2]


def failing(database: Any, ran: list[str], handlers: Any, before_commit: Any = None) -> Starlette:
    """An app behind the dispatch function whose commit fails, and which has a background task."""

    async def background() -> None:
        ran.append("background")

    async def work() -> Response:
        await write(database, 1)
        await (await db_session(database)).execute(VIOLATION)
        return Response(status_code=201, background=BackgroundTask(background))

    dispatch = partial(starlette_http_db_session_middleware, before_commit=before_commit)
    return starlette(work, Middleware(BaseHTTPMiddleware, dispatch=dispatch), handlers=handlers)


async def test_as_a_dispatch_function_the_apps_handler_answers_a_failed_commit(pg: Postgres) -> None:
    database, ran = pg.dbconnect(), []

    async def handle(request: Request, error: Exception) -> Response:
        async def later() -> None:
            ran.append("the handler's")

        return Response("taken", 409, background=BackgroundTask(later))

    app = failing(database, ran, {IntegrityError: handle})
    response = await post(app)
    assert (response.status_code, response.text) == (409, "taken")
    assert (pg.held(), pg.out_of_pools(), ran) == ([], 0, ["the handler's"])
    async with calling(app, raises=True) as client:  # the server sees the error, so that it stops the response's tasks
        with pytest.raises(IntegrityError):
            await client.post("/")
    assert ran == ["the handler's"] * 2


async def test_as_a_dispatch_function_what_the_handler_writes_is_kept_by_its_status(pg: Postgres) -> None:
    database, ran = pg.dbconnect(), []

    async def handle(request: Request, error: Exception) -> Response:
        await write(database, status)
        return Response(status_code=status)

    for status in (200, 409):
        assert (await post(failing(database, ran, {IntegrityError: handle}))).status_code == status
    assert (pg.held(), pg.out_of_pools(), ran) == ([200], 0, [])


async def test_as_a_dispatch_function_a_handler_that_fails_is_a_500(pg: Postgres) -> None:
    database, ran = pg.dbconnect(), []

    async def handle(request: Request, error: Exception) -> Response:
        await (await db_session(database)).execute(VIOLATION)
        return Response(status_code=200)

    assert (await post(failing(database, ran, {IntegrityError: handle}))).status_code == 500
    assert (pg.held(), pg.out_of_pools(), ran) == ([], 0, [])


@pytest.mark.parametrize("handled", [False, True])
async def test_as_a_dispatch_function_a_commit_in_doubt_is_a_503(pg: Postgres, handled: bool) -> None:
    database, ran = pg.dbconnect(), []

    async def lost(session: AsyncSession) -> None:
        raise CommitInDoubt("default")

    handlers = {CommitInDoubt: lambda request, error: Response("perhaps", 502)} if handled else None
    response = await post(failing(database, ran, handlers, lost))
    assert response.status_code == (502 if handled else 503)
    assert ("in doubt" in response.text) is not handled
    assert (pg.held(), pg.out_of_pools(), ran) == ([], 0, [])


async def test_as_a_dispatch_function_it_warns_of_a_success_that_was_not_kept(
    pg: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    database = pg.dbconnect()

    async def work() -> None:
        await write(database, 1)
        doom("no longer wanted")

    app = starlette(work, Middleware(BaseHTTPMiddleware, dispatch=starlette_http_db_session_middleware))
    assert (await post(app)).status_code == 201
    assert [message for message in caplog.messages if "POST / answers 201, but its work was rolled back" in message]
    assert pg.held() == []


async def test_as_a_dispatch_function_bodies_and_background_tasks_have_no_session(pg: Postgres) -> None:
    database = pg.dbconnect()
    told: list[str] = []

    async def late() -> None:
        try:
            await db_session(database)
        except OutsideScope as error:
            told.append(str(error))

    async def work() -> Response:
        await write(database, 1)

        async def stream() -> Any:
            yield b"a"
            await late()
            yield b"b"

        return StreamingResponse(stream(), 201, background=BackgroundTask(late))

    app = starlette(work, Middleware(BaseHTTPMiddleware, dispatch=starlette_http_db_session_middleware))
    response = await post(app)
    assert (response.status_code, response.text, pg.held()) == (201, "ab", [1])
    assert len(told) == 2
    assert "in_new_unit()" in told[0]


def test_the_middleware_class_takes_no_dispatch_function() -> None:
    with pytest.raises(ImproperConfigurationError, match="dispatch"):
        StarletteHTTPDBSessionMiddleware(starlette(None), dispatch=print)  # type: ignore[arg-type]


async def _nothing() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}
