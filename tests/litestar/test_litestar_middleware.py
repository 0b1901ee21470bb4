"""What runs around a Litestar handler: hooks, guards, authentication, middleware of all kinds, and what they keep."""

import asyncio
from typing import Any

import pytest
from held import COUNT, VIOLATION, File, Postgres, calling, get, http, insert, out_of_pool, post, websocket
from litestar import Controller, Litestar, Request, Response, Router, WebSocket
from litestar import get as at_get
from litestar import post as at_post
from litestar import websocket as at_websocket
from litestar.background_tasks import BackgroundTask
from litestar.config.response_cache import ResponseCacheConfig
from litestar.connection import ASGIConnection
from litestar.datastructures import State
from litestar.exceptions import NotAuthorizedException, PermissionDeniedException
from litestar.middleware import AbstractAuthenticationMiddleware, ASGIMiddleware, AuthenticationResult, DefineMiddleware
from litestar.middleware.rate_limit import RateLimitConfig
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar_app import LAYERS, Noting, app_with, clean, config_of, layers, sync_config_of
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from transept import after_commit, current_unit, db_session, unit_of_work
from transept.extensions.litestar import Transept

pytestmark = pytest.mark.anyio

behind = pytest.mark.parametrize("layer", LAYERS)
USER = text("SELECT v FROM held WHERE v = 1")


@at_post("/")
async def write(db_session: AsyncSession) -> str:
    await db_session.execute(insert(1))
    return "ok"


def conflict(request: Request, error: Exception) -> Response:
    return Response({"handled": type(error).__name__}, status_code=409)


async def into(number: int) -> None:
    await (await db_session("default")).execute(insert(number))


# before_request, after_request, after_response


@behind
async def test_what_before_request_and_after_request_write_is_part_of_the_request(pg: Postgres, layer: str) -> None:
    given, config = layers()[layer], config_of(pg)

    async def before(request: Request) -> None:
        await db.get_session(request).execute(insert(10))

    async def after(response: Response) -> Response:
        await into(20)
        response.status_code = status
        return response

    @at_post("/", before_request=before, after_request=after, cache=given.cache)
    async def write(db_session: AsyncSession) -> Response[str]:
        await db_session.execute(insert(1))
        return Response("ok", status_code=201)

    app, db = app_with(config, write, **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        status = 409
        assert (await client.post("/", headers=given.sends)).status_code == 409
        assert pg.held() == []
        status = 201
        assert (await client.post("/", headers=given.sends)).status_code == 201
    assert pg.held() == [1, 10, 20]
    await clean(pg, config)


@pytest.mark.parametrize("place", ["app", "router", "controller", "handler"])
async def test_hooks_of_every_layer_share_the_unit_of_the_handler(file: File, place: str) -> None:
    seen: list[Any] = []

    async def before(request: Request) -> None:
        seen.append(db.get_session(request))

    async def after(response: Response) -> Response:
        seen.append(await db_session())
        return response

    hooks = {one: {"before_request": before, "after_request": after} if one == place else {} for one in PLACES}

    class Things(Controller):
        path = "/"
        before_request = hooks["controller"].get("before_request")
        after_request = hooks["controller"].get("after_request")

        @at_post("/", **hooks["handler"])
        async def write(self, db_session: AsyncSession) -> str:
            seen.append(db_session)
            await db_session.execute(insert(1))
            return "ok"

    app, db = app_with(config_of(file), Router("/", route_handlers=[Things], **hooks["router"]), **hooks["app"])
    assert (await post(app)).status_code == 201
    assert len(seen) == 3
    assert len(set(map(id, seen))) == 1
    assert file.held() == [1]


PLACES = ("app", "router", "controller", "handler")


@pytest.mark.parametrize("status", [200, 403])
async def test_a_before_request_that_answers_decides_by_its_status(file: File, status: int) -> None:
    async def before(request: Request) -> Response:
        await db.get_session(request).execute(insert(10))
        return Response("instead", status_code=status)

    @at_post("/", before_request=before)
    async def write(db_session: AsyncSession) -> Response[str]:
        raise AssertionError("not reached")

    app, db = app_with(config_of(file), write)
    assert (await post(app)).status_code == status
    assert file.held() == ([10] if status == 200 else [])


@pytest.mark.parametrize("hook", ["before_request", "after_request"])
async def test_a_hook_that_raises_keeps_nothing(file: File, hook: str) -> None:
    async def raises(subject: Any) -> Any:
        await into(10)
        raise PermissionDeniedException

    @at_post("/", **{hook: raises})
    async def write(db_session: AsyncSession) -> str:
        await db_session.execute(insert(1))
        return "ok"

    config = config_of(file)
    app, _ = app_with(config, write)
    assert (await post(app)).status_code == 403
    assert (file.held(), out_of_pool(config)) == ([], 0)


@behind
@pytest.mark.parametrize("violating", [True, False])
async def test_what_after_request_writes_may_fail_at_the_commit(pg: Postgres, violating: bool, layer: str) -> None:
    given, config = layers()[layer], config_of(pg)

    async def after(response: Response) -> Response:
        await (await db_session()).execute(VIOLATION if violating else text("SELECT 1"))
        return response

    @at_post("/", after_request=after, cache=given.cache)
    async def write(db_session: AsyncSession) -> str:
        await db_session.execute(insert(1))
        return "ok"

    app, _ = app_with(config, write, exception_handlers={IntegrityError: conflict}, **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        assert (await client.post("/", headers=given.sends)).status_code == (409 if violating else 201)
    await clean(pg, config)
    assert pg.held() == ([] if violating else [1])


@behind
async def test_after_response_writes_in_a_fresh_unit_and_is_kept(pg: Postgres, layer: str) -> None:
    given, config, seen = layers()[layer], config_of(pg), []

    async def after(request: Request) -> None:
        seen.append(pg.held())
        session = db.get_session(request)
        assert session is await db_session()
        assert session is not seen[0]
        await session.execute(insert(2))

    @at_post("/", after_response=after, cache=given.cache)
    async def write(db_session: AsyncSession) -> str:
        seen.append(db_session)
        await db_session.execute(insert(1))
        return "ok"

    app, db = app_with(config, write, **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        assert (await client.post("/", headers=given.sends)).status_code == 201
    assert seen[1:] == [[1]]
    await clean(pg, config)
    assert pg.held() == [1, 2]


async def test_after_response_shares_its_unit_with_background_tasks_and_is_rolled_back_with_them(file: File) -> None:
    async def after(request: Request) -> None:
        await db.get_session(request).execute(insert(3))
        if request.query_params:
            raise ZeroDivisionError

    async def later() -> None:
        await into(2)

    @at_post("/", after_response=after)
    async def write(db_session: AsyncSession) -> Response[str]:
        await db_session.execute(insert(1))
        return Response("ok", background=BackgroundTask(later))

    config = config_of(file)
    app, db = app_with(config, write)
    async with calling(app) as client:
        assert (await client.post("/?fails=1")).status_code == 201
        assert file.held() == [1]
        assert (await client.post("/")).status_code == 201
    assert file.held() == [1, 1, 2, 3]
    assert out_of_pool(config) == 0


async def test_after_response_keeps_its_work_after_an_error_status_of_the_handler(file: File) -> None:
    async def after(request: Request) -> None:
        await db.get_session(request).execute(insert(2))

    @at_post("/", after_response=after)
    async def refuse(db_session: AsyncSession) -> Response[str]:
        await db_session.execute(insert(1))
        return Response("no", status_code=409)

    app, db = app_with(config_of(file), refuse)
    assert (await post(app)).status_code == 409
    assert file.held() == [2]


# Guards and authentication


@behind
@pytest.mark.parametrize("allowed", [True, False])
async def test_a_guard_uses_the_session_of_the_request(pg: Postgres, allowed: bool, layer: str) -> None:
    given, config, seen = layers()[layer], config_of(pg), []

    async def guard(connection: ASGIConnection, handler: Any) -> None:
        session = config.provide_session(connection.app.state, connection.scope)
        assert session is db.get_session(connection)
        seen.append(session)
        await session.execute(insert(10))
        if not allowed:
            raise NotAuthorizedException

    @at_post("/", guards=[guard], cache=given.cache)
    async def write(db_session: AsyncSession) -> str:
        assert db_session is seen[0]
        await db_session.execute(insert(1))
        return "ok"

    app, db = app_with(config, write, **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        assert (await client.post("/", headers=given.sends)).status_code == (201 if allowed else 401)
    await clean(pg, config)
    assert pg.held() == ([1, 10] if allowed else [])


def authenticated(config: Any, seen: list[Any]) -> Any:
    """Authentication as Litestar users write it, over the request's session."""

    class Authentication(AbstractAuthenticationMiddleware):
        async def authenticate_request(self, connection: ASGIConnection) -> AuthenticationResult:
            session = config.provide_session(connection.app.state, connection.scope)
            seen.append(session)
            user = await session.scalar(USER)
            await session.execute(insert(10))  # who asked
            if user is None or connection.headers.get("x-token") != "good":
                raise NotAuthorizedException
            return AuthenticationResult(user=user, auth="good")

    return Authentication


async def test_authentication_uses_the_session_of_the_handler(pg: Postgres) -> None:
    config, seen = config_of(pg), []
    pg.look.execute("INSERT INTO held VALUES (1)")

    @at_post("/")
    async def write(request: Request, db_session: AsyncSession) -> str:
        assert db_session is seen[0]
        await db_session.execute(insert(request.user + 1))
        return "ok"

    app, _ = app_with(config, write, middleware=[authenticated(config, seen)])
    async with calling(app, raises=True) as client:
        assert (await client.post("/", headers={"x-token": "good"})).status_code == 201
        await clean(pg, config)
        assert pg.held() == [1, 2, 10]
        assert (await client.post("/", headers={"x-token": "bad"})).status_code == 401
    await clean(pg, config)
    assert pg.held() == [1, 2, 10]


async def test_rejected_requests_leave_no_connection_out_of_a_small_pool(pg: Postgres) -> None:
    config = config_of(pg, pool_size=1)
    app, _ = app_with(config, write, middleware=[authenticated(config, [])])
    async with calling(app, raises=True) as client:
        for _ in range(3):
            assert (await client.post("/")).status_code == 401
        answers = await asyncio.gather(*(client.post("/") for _ in range(5)))
    assert {answer.status_code for answer in answers} == {401}
    await clean(pg, config)
    assert pg.held() == []


async def test_authentication_of_a_websocket_uses_its_session_and_a_rejected_one_leaves_nothing(pg: Postgres) -> None:
    config, seen = config_of(pg), []

    @at_websocket("/")
    async def socket(socket: WebSocket, db_session: AsyncSession) -> None:
        assert db_session is seen[-1]
        await socket.accept()
        await db_session.execute(insert(2))
        await socket.send_json(socket.user)
        await socket.close()

    class Token:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app({**scope, "headers": [(b"x-token", b"good")]}, receive, send)

    app, _ = app_with(config, socket, middleware=[authenticated(config, seen)])
    told = await websocket(Token(app))
    assert [message["type"] for message in told] == ["websocket.close"]
    await clean(pg, config)
    assert pg.held() == []
    pg.look.execute("INSERT INTO held VALUES (1)")
    told = await websocket(Token(app))
    assert [message["type"] for message in told] == ["websocket.accept", "websocket.send", "websocket.close"]
    await clean(pg, config)
    assert pg.held() == [1, 2, 10]
    told = await websocket(app)
    assert [message["type"] for message in told] == ["websocket.close"]
    await clean(pg, config)
    assert pg.held() == [1, 2, 10]


async def test_a_user_is_retrieved_with_the_session_of_the_handler_as_jwt_backends_do(file: File) -> None:
    config, seen = config_of(file), []

    async def retrieve_user(token: str, connection: ASGIConnection) -> int | None:
        session = db.get_session(connection)
        seen.append(session)
        return await session.scalar(USER) if token == "good" else None

    class Backend(AbstractAuthenticationMiddleware):
        async def authenticate_request(self, connection: ASGIConnection) -> AuthenticationResult:
            token = connection.headers.get("authorization", "")
            user = await retrieve_user(token, connection)
            if user is None:
                raise NotAuthorizedException
            return AuthenticationResult(user=user, auth=token)

    @at_get("/", exclude_from_auth=True)
    async def free(db_session: AsyncSession) -> int:
        return int(await db_session.scalar(COUNT) or 0)

    @at_post("/")
    async def create(request: Request, db_session: AsyncSession) -> None:
        assert db_session is seen[-1]
        await db_session.execute(insert(request.user + 1))

    app, db = app_with(config, free, create, middleware=[DefineMiddleware(Backend, exclude="/schema")])
    async with db.with_async_session() as session:
        await session.execute(insert(1))
    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == 401
        assert (await client.post("/", headers={"authorization": "good"})).status_code == 201
        assert (await client.get("/")).text == "2"
    assert (file.held(), out_of_pool(config)) == ([1, 2], 0)


@behind
async def test_a_blocking_database_serves_guards_in_the_same_unit(file: File, layer: str) -> None:
    given, config = layers()[layer], sync_config_of(file)

    async def guard(connection: ASGIConnection, handler: Any) -> None:
        session = db.get_sync_session(connection)
        await asyncio.to_thread(session.execute, insert(10))

    @at_post("/", guards=[guard], sync_to_thread=True, cache=given.cache)
    def write(db_session: Session) -> str:
        db_session.execute(insert(1))
        return "ok"

    app, db = app_with(config, write, **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        assert (await client.post("/", headers=given.sends)).status_code == 201
    assert (file.held(), out_of_pool(config)) == ([1, 10], 0)


# Middleware


class Writing(ASGIMiddleware):
    """Writes before and after what it stands around."""

    async def handle(self, scope: Any, receive: Any, send: Any, next_app: Any) -> None:
        await into(10)
        await next_app(scope, receive, send)
        await into(20)


async def test_what_middleware_writes_before_is_part_of_the_request_and_after_is_of_a_fresh_unit(file: File) -> None:
    @at_post("/")
    async def refuse(db_session: AsyncSession) -> Response[str]:
        await db_session.execute(insert(1))
        return Response("no", status_code=409)

    config = config_of(file)
    app, _ = app_with(config, refuse, middleware=[Writing()])
    assert (await post(app)).status_code == 409
    assert file.held() == [20]
    app, _ = app_with(config, write, middleware=[Writing()])
    assert (await post(app)).status_code == 201
    assert (file.held(), out_of_pool(config)) == ([1, 10, 20, 20], 0)


def writing_at_the_start(app: Any) -> Any:
    """Middleware that writes when a success starts, as one that stores sessions does."""

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        async def writing(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == 201:
                await into(30)
                if b"fails" in scope["query_string"]:
                    await (await db_session()).execute(VIOLATION)
            await send(message)

        await app(scope, receive, writing)

    return middleware


async def test_what_middleware_writes_when_the_response_starts_is_kept_with_it(pg: Postgres) -> None:
    config = config_of(pg)
    app, _ = app_with(config, write, middleware=[writing_at_the_start])
    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == 201
    await clean(pg, config)
    assert pg.held() == [1, 30]


async def test_what_middleware_writes_when_the_response_starts_may_fail_alone(pg: Postgres) -> None:
    """The route was settled where it answered; this is a transaction after it, whose failure is told."""
    config = config_of(pg)
    handlers: Any = {IntegrityError: conflict}
    app, _ = app_with(config, write, middleware=[writing_at_the_start], exception_handlers=handlers)
    response = await post(app, "/?fails=1")
    assert (response.status_code, response.json()) == (409, {"handled": "IntegrityError"})
    await clean(pg, config)
    assert pg.held() == [1]


async def test_middleware_that_raises_when_the_response_starts_comes_too_late_to_undo_it(file: File) -> None:
    def raising(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            async def refusing(message: Any) -> None:
                raise PermissionDeniedException

            await app(scope, receive, refusing)

        return middleware

    app, _ = app_with(config_of(file), write, middleware=[raising])
    assert (await post(app)).status_code >= 400
    assert file.held() == [1]


async def test_middleware_that_replaces_the_answer_comes_too_late_to_undo_it(file: File) -> None:
    def replacing(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            async def replaced(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["status"] = 409
                await send(message)

            await app(scope, receive, replaced)

        return middleware

    app, _ = app_with(config_of(file), write, middleware=[replacing])
    response = await post(app)
    assert (response.status_code, file.held()) == (409, [1])


@pytest.mark.parametrize("status", [200, 403])
async def test_middleware_that_answers_by_itself_decides_by_its_status(file: File, status: int) -> None:
    def answering(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            await into(10)
            request: Request = Request(scope)
            response = Response("instead", status_code=status).to_asgi_response(app=None, request=request)
            await response(scope, receive, send)

        return middleware

    app, _ = app_with(config_of(file), write, middleware=[answering])
    assert (await post(app)).status_code == status
    assert file.held() == ([10] if status == 200 else [])


@pytest.mark.parametrize("known", [True, False])
async def test_middleware_that_answers_by_itself_and_cannot_be_kept_is_answered_by_the_app(
    pg: Postgres, known: bool
) -> None:
    def answering(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            await (await db_session("default")).execute(VIOLATION)
            request: Request = Request(scope)
            await Response("instead").to_asgi_response(app=None, request=request)(scope, receive, send)

        return middleware

    config = config_of(pg)
    handlers: Any = {IntegrityError: conflict} if known else {}
    app, _ = app_with(config, write, middleware=[answering], exception_handlers=handlers)
    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == (409 if known else 500)
    await clean(pg, config)


async def test_middleware_that_swallows_the_error_does_not_make_it_a_success(pg: Postgres) -> None:
    """Its own answer is heard instead; without one, the client is told of an error."""

    def swallowing(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            async def tried(message: Any) -> None:
                try:
                    await send(message)
                except IntegrityError:
                    caught.append(message["type"])

            await app(scope, receive, tried)

        return middleware

    caught: list[Any] = []

    class Late(ASGIMiddleware):
        async def handle(self, scope: Any, receive: Any, send: Any, next_app: Any) -> None:
            async def violating(message: Any) -> None:
                if message["type"] == "http.response.start":
                    await (await db_session()).execute(VIOLATION)
                await send(message)

            await next_app(scope, receive, violating)

    config, told = config_of(pg), []
    app, _ = app_with(config, write, middleware=[swallowing, Late()])
    await http(app, told, method="POST")
    assert ([one.get("status") for one in told], caught[0]) == ([500, None], "http.response.start")
    await clean(pg, config)


async def test_a_response_from_the_cache_runs_no_handler_and_takes_no_connection(pg: Postgres) -> None:
    calls: list[int] = []

    @at_get("/", cache=60)
    async def read(db_session: AsyncSession) -> int:
        calls.append(1)
        return int(await db_session.scalar(COUNT) or 0)

    config = config_of(pg)
    app, _ = app_with(config, read, response_cache_config=ResponseCacheConfig())
    async with calling(app, raises=True) as client:
        assert [(await client.get("/")).text for _ in range(3)] == ["0"] * 3
    assert calls == [1]
    await clean(pg, config)


async def test_what_a_guard_writes_before_a_response_from_the_cache_is_kept(file: File) -> None:
    async def guard(connection: ASGIConnection, handler: Any) -> None:
        await db.get_session(connection).execute(insert(10))

    @at_get("/", cache=60, guards=[guard])
    async def read() -> str:
        return "ok"

    app, db = app_with(config_of(file), read)
    async with calling(app, raises=True) as client:
        for _ in range(2):
            assert (await client.get("/")).status_code == 200
    assert file.held() == [10, 10]


async def test_a_guards_failed_commit_before_a_response_from_the_cache_is_no_success(pg: Postgres) -> None:
    async def guard(connection: ASGIConnection, handler: Any) -> None:
        if connection.query_params:
            await db.get_session(connection).execute(VIOLATION)

    @at_get("/", cache=60, guards=[guard], cache_key_builder=lambda request: "one")
    async def read() -> str:
        return "ok"

    config = config_of(pg)
    app, db = app_with(config, read, exception_handlers={IntegrityError: conflict})
    async with calling(app, raises=True) as client:
        assert [(await client.get(path)).status_code for path in ("/", "/?fails=1", "/")] == [200, 409, 200]
    await clean(pg, config)


async def test_a_server_side_session_is_not_changed_by_a_response_that_never_started(pg: Postgres) -> None:
    """Litestar's session middleware stores it when the response starts."""

    @at_post("/")
    async def login(request: Request, db_session: AsyncSession) -> str:
        request.set_session({"user": 1})
        await db_session.execute(insert(1))
        if request.query_params:
            await db_session.execute(VIOLATION)
        return "ok"

    sessions = ServerSideSessionConfig()
    config = config_of(pg)
    app, _ = app_with(config, login, middleware=[sessions.middleware])
    async with calling(app, raises=True) as client:
        assert (await client.post("/?fails=1")).status_code == 500
        assert (await client.post("/")).status_code == 201
    await clean(pg, config)
    assert pg.held() == [1]


async def test_rate_limits_count_and_keep_their_headers_on_a_failed_commit(pg: Postgres) -> None:
    @at_post("/")
    async def fail(db_session: AsyncSession) -> str:
        await db_session.execute(VIOLATION)
        return "ok"

    config = config_of(pg)
    app, _ = app_with(config, fail, middleware=[RateLimitConfig(rate_limit=("minute", 2)).middleware])
    async with calling(app, raises=True) as client:
        answers = [await client.post("/") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [500, 500, 429]
    assert "ratelimit-remaining" in answers[0].headers
    await clean(pg, config)


async def test_middleware_with_a_task_of_its_own_for_the_app_leaves_the_unit_as_it_is(pg: Postgres) -> None:
    """As `BaseHTTPMiddleware` of Starlette does."""

    def in_a_task(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            await into(10)
            await asyncio.create_task(app(scope, receive, send))

        return middleware

    config = config_of(pg)
    app, _ = app_with(config, write, middleware=[in_a_task])
    assert (await post(app)).status_code == 201
    await clean(pg, config)
    assert pg.held() == [1, 10]


async def test_a_block_around_the_app_in_middleware_is_undone_by_an_error_status(file: File) -> None:
    """A unit inside the request's: a start inside of it is not settled by the gate over its head."""

    def in_a_block(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            async with unit_of_work():
                await into(10)
            await app(scope, receive, send)

        return middleware

    app, _ = app_with(config_of(file), write, middleware=[in_a_block])
    assert (await post(app)).status_code == 201
    assert file.held() == [1, 10]


@pytest.mark.parametrize("layer", ["nothing", "middleware", "all"])
async def test_after_commit_hooks_of_middleware_and_handler_run_once(file: File, layer: str) -> None:
    given, ran = layers()[layer], []

    def hooking(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            after_commit(lambda: ran.append("middleware"))
            await app(scope, receive, send)

        return middleware

    @at_post("/", cache=given.cache)
    async def create(db_session: AsyncSession) -> str:
        after_commit(lambda: ran.append("handler"))
        await db_session.execute(insert(1))
        return "ok"

    options = {**given.options, "middleware": [*given.options.get("middleware", []), hooking]}
    app, _ = app_with(config_of(file), create, **options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        assert (await client.post("/", headers=given.sends)).status_code == 201
    assert (ran, file.held()) == (["middleware", "handler"], [1])


async def test_a_gate_around_a_gate_is_one_unit(pg: Postgres, file: File) -> None:
    """A Litestar app that is called through another one, each with a plugin of its own."""
    inner_db, outer_db = Transept(config_of(pg)), Transept(config_of(file, bind_key="outer"))

    @at_post("/")
    async def inner_write(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))
        assert current_unit() is not None

    options: Any = {"openapi_config": None, "logging_config": None}
    inner = Litestar([inner_write], plugins=[inner_db], **options)

    def through(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            await into_outer()
            await inner(dict(scope), receive, send)

        return middleware

    async def into_outer() -> None:
        await (await db_session("outer")).execute(insert(2))

    noting = Noting()
    outer = Litestar([write_outer], plugins=[outer_db], middleware=[noting, through], **options)
    assert (await post(outer)).status_code == 201
    assert (pg.held(), file.held(), noting.statuses) == ([1], [2], [201])


@at_post("/")
async def write_outer(outer_session: AsyncSession) -> None:
    raise AssertionError("not reached")


async def test_state_of_the_app_and_of_the_request_are_as_ever(file: File) -> None:
    @at_get("/")
    async def look(request: Request, state: State, db_session: AsyncSession) -> dict[str, Any]:
        return {"app": state.mine, "request": request.state.mine, "copy": sorted(request.state.dict())}

    def marking(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            scope["state"]["mine"] = 2
            await app(scope, receive, send)

        return middleware

    app, _ = app_with(config_of(file), look, middleware=[marking], state=State({"mine": 1}))
    response = await get(app)
    assert (response.status_code, response.json()["app"], response.json()["request"]) == (200, 1, 2)
