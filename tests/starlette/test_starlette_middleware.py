"""The gate among other middleware, above it and below it, and the exception handlers that answer a failed commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from held import COUNT, VIOLATION, File, Postgres, calling, get, http, insert, out_of_pool, post
from sqlalchemy.exc import DBAPIError, IntegrityError
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from transept import after_commit, current_unit
from transept.extensions.starlette import Transept

pytestmark = pytest.mark.anyio


class Noop(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        return await call_next(request)


class ReadsBody(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        assert await request.body() == b"word"
        return await call_next(request)


class Layer:
    """Pure ASGI middleware from a function of (app, scope, receive, send)."""

    def __init__(self, app: Any, *, does: Any) -> None:
        self.app, self.does = app, does

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await self.does(self.app, scope, receive, send)
        else:
            await self.app(scope, receive, send)


def below(app: Starlette, cls: Any, **options: Any) -> None:
    app.user_middleware.append(Middleware(cls, **options))


def above(app: Starlette, cls: Any, **options: Any) -> None:
    app.add_middleware(cls, **options)


PLACES = pytest.mark.parametrize("place", [above, below])
BOTH = pytest.mark.parametrize("places", [(above,), (below,), (above, below), (below, below)])


class Failing:
    """An endpoint whose commit fails; notes whether its background task ran."""

    def __init__(self) -> None:
        self.db: Any = None
        self.ran: list[int] = []
        self.calls = 0

    async def __call__(self, request: Request) -> Response:
        self.calls += 1
        session = self.db.get_session(request)
        await session.execute(insert(self.calls))
        await session.execute(VIOLATION)
        return JSONResponse("ok", 201, background=BackgroundTask(self.ran.append, 1))


def failing(file: File, **options: Any) -> Any:
    endpoint = Failing()

    async def respond(request: Request) -> Response:
        return await endpoint(request)

    app = Starlette(routes=[Route("/", respond, methods=["POST"])], **options)
    endpoint.db = Transept(file.config(), app)
    return app, endpoint


# BaseHTTPMiddleware


@BOTH
async def test_base_http_middleware_anywhere_changes_nothing_for_a_write(file: File, places: Any) -> None:
    app = Starlette()
    db = Transept(file.config(), app)
    for place in places:
        place(app, Noop)

    async def write(request: Request) -> Response:
        await db.get_session(request).execute(insert(1))
        return Response(status_code=int(request.query_params["status"]))

    app.router.routes.append(Route("/", write, methods=["POST"]))
    async with calling(app) as client:
        assert (await client.post("/?status=409")).status_code == 409
        assert file.held() == []
        assert (await client.post("/?status=201")).status_code == 201
    assert file.held() == [1]


@PLACES
async def test_base_http_middleware_that_reads_the_body_leaves_it_to_the_endpoint(file: File, place: Any) -> None:
    app = Starlette()
    db = Transept(file.config(), app)
    place(app, ReadsBody)

    async def write(request: Request) -> Response:
        assert await request.body() == b"word"
        await db.get_session(request).execute(insert(1))
        return Response(status_code=201)

    app.router.routes.append(Route("/", write, methods=["POST"]))
    assert (await post(app, content=b"word")).status_code == 201
    assert file.held() == [1]


@BOTH
async def test_base_http_middleware_anywhere_passes_a_failed_commit_on_to_a_500(file: File, places: Any) -> None:
    app, endpoint = failing(file)
    for place in places:
        place(app, Noop)
    response = await post(app)
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    assert (file.held(), endpoint.ran) == ([], [])


@BOTH
async def test_base_http_middleware_anywhere_lets_a_handler_answer_a_failed_commit(file: File, places: Any) -> None:
    app, endpoint = failing(file, exception_handlers={IntegrityError: lambda request, error: Response("late", 409)})
    for place in places:
        place(app, Noop)
    response = await post(app)
    assert (response.status_code, response.text) == (409, "late")
    assert (file.held(), endpoint.ran) == ([], [])


@BOTH
async def test_a_streamed_body_that_uses_the_session_survives_base_http_middleware(file: File, places: Any) -> None:
    app = Starlette()
    config = file.config()
    db = Transept(config, app)
    for place in places:
        place(app, Noop)

    async def stream(request: Request) -> Response:
        session = db.get_async_session(request)
        await session.execute(insert(1))

        async def body() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield f"{await session.scalar(COUNT)} ".encode()

        return StreamingResponse(body())

    app.router.routes.append(Route("/", stream))
    async with calling(app) as client:
        for turn in range(1, 31):
            response = await client.get("/")
            assert (response.status_code, response.text.split()) == (200, [str(turn)] * 3)
    assert len(file.held()) == 30
    assert out_of_pool(config) == 0


@BOTH
async def test_a_streamed_body_survives_base_http_middleware_on_a_server(pg: Postgres, places: Any) -> None:
    app = Starlette()
    config = pg.config()
    db = Transept(config, app)
    for place in places:
        place(app, Noop)

    async def stream(request: Request) -> Response:
        session = db.get_async_session(request)
        await session.execute(insert(1))

        async def body() -> AsyncIterator[bytes]:
            for _ in range(3):
                yield f"{await session.scalar(COUNT)} ".encode()
                await session.execute(insert(2))

        return StreamingResponse(body())

    app.router.routes.append(Route("/", stream))
    async with calling(app) as client:
        answers = await asyncio.gather(*(client.get("/") for _ in range(30)))
    assert {(one.status_code, len(one.text.split())) for one in answers} == {(200, 3)}
    assert pg.held() == [1] * 30 + [2] * 90
    assert (out_of_pool(config), pg.in_transaction()) == (0, 0)


@BOTH
async def test_a_plain_generator_with_a_blocking_session_survives_base_http_middleware(
    pg: Postgres, places: Any
) -> None:
    app = Starlette()
    config = pg.sync_config()
    db = Transept(config, app)
    for place in places:
        place(app, Noop)

    def stream(request: Request) -> Response:
        session = db.get_sync_session(request)
        session.execute(insert(1))

        def body() -> Iterator[bytes]:
            for _ in range(3):
                yield f"{session.scalar(COUNT)} ".encode()
                session.execute(insert(2))

        return StreamingResponse(body())

    app.router.routes.append(Route("/", stream))
    async with calling(app) as client:
        answers = await asyncio.gather(*(client.get("/") for _ in range(30)))
    assert {(one.status_code, len(one.text.split())) for one in answers} == {(200, 3)}
    assert pg.held() == [1] * 30 + [2] * 90
    assert (out_of_pool(config), pg.in_transaction()) == (0, 0)


@BOTH
async def test_a_background_task_is_kept_whatever_base_http_middleware_is_around(file: File, places: Any) -> None:
    app = Starlette()
    config = file.config()
    db = Transept(config, app)
    for place in places:
        place(app, Noop)

    async def write(request: Request) -> Response:
        async def later() -> None:
            session = db.get_async_session(request)
            await session.execute(insert(2))
            await asyncio.sleep(0)
            await session.execute(insert(3))

        await db.get_session(request).execute(insert(1))
        return JSONResponse("ok", 201, background=BackgroundTask(later))

    app.router.routes.append(Route("/", write, methods=["POST"]))
    async with calling(app, raises=True) as client:
        for _ in range(30):
            assert (await client.post("/")).status_code == 201
    assert file.held() == [1] * 30 + [2] * 30 + [3] * 30
    assert out_of_pool(config) == 0


@BOTH
async def test_a_background_task_that_raises_keeps_nothing_whatever_base_http_middleware_is_around(
    file: File, places: Any
) -> None:
    app = Starlette()
    db = Transept(file.config(), app)
    for place in places:
        place(app, Noop)

    async def write(request: Request) -> Response:
        async def later() -> None:
            session = db.get_async_session(request)
            await session.execute(insert(2))
            await asyncio.sleep(0.01)
            raise KeyError

        await db.get_session(request).execute(insert(1))
        return JSONResponse("ok", 201, background=BackgroundTask(later))

    app.router.routes.append(Route("/", write, methods=["POST"]))
    async with calling(app) as client:
        for _ in range(5):
            assert (await client.post("/")).status_code == 201
    assert file.held() == [1] * 5


@BOTH
async def test_a_background_task_after_a_stream_whose_last_commit_is_slow_is_kept(pg: Postgres, places: Any) -> None:
    pg.slow_commit(0.1)
    app = Starlette()
    config = pg.config()
    db = Transept(config, app)
    for place in places:
        place(app, Noop)

    async def stream(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"chunk"
            await db.get_async_session(request).execute(insert(1))

        async def later() -> None:
            await db.get_async_session(request).execute(insert(2))
            await asyncio.sleep(0.2)
            await db.get_async_session(request).execute(insert(3))

        return StreamingResponse(body(), background=BackgroundTask(later))

    app.router.routes.append(Route("/", stream))
    async with calling(app, raises=True) as client:
        assert (await client.get("/")).text == "chunk"
    assert pg.held() == [1, 2, 3]
    assert (out_of_pool(config), pg.in_transaction()) == (0, 0)


@BOTH
async def test_a_background_task_after_a_slow_commit_that_raises_keeps_nothing(pg: Postgres, places: Any) -> None:
    pg.slow_commit(0.1)
    app = Starlette()
    db = Transept(pg.config(), app)
    for place in places:
        place(app, Noop)

    async def stream(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"chunk"
            await db.get_async_session(request).execute(insert(1))

        async def later() -> None:
            await db.get_async_session(request).execute(insert(2))
            await asyncio.sleep(0.2)
            raise KeyError

        return StreamingResponse(body(), background=BackgroundTask(later))

    app.router.routes.append(Route("/", stream))
    assert (await get(app)).text == "chunk"
    assert pg.held() == [1]


async def test_dispatch_below_the_gate_and_the_endpoint_share_the_session(file: File) -> None:
    class Writes(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            await request.state.db_session.execute(insert(1))
            response = await call_next(request)
            await request.state.db_session.execute(insert(3))
            return response

    app = Starlette()
    db = Transept(file.config(), app)
    below(app, Writes)

    async def write(request: Request) -> Response:
        await db.get_session(request).execute(insert(2))
        return Response(status_code=int(request.query_params["status"]))

    app.router.routes.append(Route("/", write, methods=["POST"]))
    async with calling(app, raises=True) as client:
        assert (await client.post("/?status=400")).status_code == 400
        assert file.held() == []
        assert (await client.post("/?status=201")).status_code == 201
    assert file.held() == [1, 2, 3]


async def test_dispatch_below_the_gate_that_changes_the_status_decides(file: File) -> None:
    class Refuses(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            await call_next(request)
            return Response(status_code=403)

    app = Starlette()
    db = Transept(file.config(), app)
    below(app, Refuses)

    async def write(request: Request) -> Response:
        await db.get_session(request).execute(insert(2))
        return Response(status_code=201)

    app.router.routes.append(Route("/", write, methods=["POST"]))
    assert (await post(app)).status_code == 403
    assert file.held() == []


async def test_dispatch_below_the_gate_that_catches_a_statement_error_may_answer(file: File) -> None:
    class Answers(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            try:
                return await call_next(request)
            except KeyError:
                return Response(status_code=422)

    app = Starlette()
    db = Transept(file.config(), app)
    below(app, Answers)

    async def write(request: Request) -> Response:
        await db.get_session(request).execute(insert(2))
        raise KeyError

    app.router.routes.append(Route("/", write, methods=["POST"]))
    assert (await post(app)).status_code == 422
    assert file.held() == []


async def test_the_unit_is_the_same_in_the_context_below_base_http_middleware(file: File) -> None:
    seen: list[Any] = []

    class Looks(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            seen.append(current_unit())
            return await call_next(request)

    app = Starlette()
    db = Transept(file.config(), app)
    below(app, Looks)

    def look(request: Request) -> Response:
        seen.append(current_unit())
        return Response()

    app.router.routes.append(Route("/", look))
    assert (await get(app)).status_code == 200
    assert seen[0] is seen[1]
    assert db.get_config() is not None


# The request's state


@PLACES
async def test_middleware_that_looked_at_the_state_sees_what_the_endpoint_put_there(file: File, place: Any) -> None:
    seen: list[Any] = []

    class Looks(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            request.state.asked = "above"
            response = await call_next(request)
            seen.append(getattr(request.state, "answered", None))
            return response

    app = Starlette()
    Transept(file.config(), app)
    place(app, Looks)

    async def endpoint(request: Request) -> Response:
        request.state.answered = request.state.asked
        return Response()

    app.router.routes.append(Route("/", endpoint))
    assert (await get(app)).status_code == 200
    assert seen == ["above"]


# Headers that every response has


@pytest.mark.parametrize("order", ["before", "after", "list"])
@pytest.mark.parametrize("handled", [True, False])
async def test_the_answer_to_a_failed_commit_has_cors_headers(file: File, order: str, handled: bool) -> None:
    cors = {"allow_origins": ["http://elsewhere"]}
    app = Starlette(middleware=[Middleware(CORSMiddleware, **cors)] if order == "list" else [])
    if handled:
        app.add_exception_handler(IntegrityError, lambda request, error: Response("late", 409))
    if order == "before":
        app.add_middleware(CORSMiddleware, **cors)
    endpoint = Failing()
    endpoint.db = Transept(file.config(), app)
    if order == "after":
        app.add_middleware(CORSMiddleware, **cors)

    async def respond(request: Request) -> Response:
        return await endpoint(request)

    app.router.routes.append(Route("/", respond, methods=["POST"]))
    response = await post(app, headers={"origin": "http://elsewhere"})
    assert response.status_code == (409 if handled else 500)
    # An unhandled error is answered by Starlette above all middleware, so it never has them.
    assert ("access-control-allow-origin" in response.headers) is handled
    assert file.held() == []


@PLACES
async def test_compressing_middleware_changes_nothing(file: File, place: Any) -> None:
    app, endpoint = failing(file)
    place(app, GZipMiddleware)
    assert (await post(app)).status_code == 500
    assert (file.held(), endpoint.ran) == ([], [])


# Exception handlers


@pytest.mark.parametrize("kind", [IntegrityError, DBAPIError])
@pytest.mark.parametrize("plain", [True, False])
async def test_a_handler_by_class_answers_a_failed_commit(file: File, kind: Any, plain: bool) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        return Response(type(error).__name__, 409)

    def handle_in_a_thread(request: Request, error: Exception) -> Response:
        return Response(type(error).__name__, 409)

    app, endpoint = failing(file, exception_handlers={kind: handle_in_a_thread if plain else handle})
    response = await post(app)
    assert (response.status_code, response.text) == (409, "IntegrityError")
    assert (file.held(), endpoint.ran) == ([], [])


@pytest.mark.parametrize("key", [Exception, 500])
async def test_a_handler_for_everything_answers_a_failed_commit(file: File, key: Any) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        return Response(type(error).__name__, 418)

    app, endpoint = failing(file, exception_handlers={key: handle})
    response = await post(app)
    assert (response.status_code, response.text) == (418, "IntegrityError")
    assert (file.held(), endpoint.ran) == ([], [])
    with pytest.raises(IntegrityError):
        async with calling(app, raises=True) as client:
            await client.post("/")


async def test_handlers_by_status_and_for_http_exceptions_are_not_asked_about_a_failed_commit(file: File) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        return Response("wrong", 418)

    app, _ = failing(file, exception_handlers={HTTPException: handle, 404: handle, 201: handle})
    assert (await post(app)).status_code == 500
    assert file.held() == []


@pytest.mark.parametrize(("status", "held"), [(202, [1]), (409, []), (303, [])])
async def test_a_handler_inside_decides_by_the_status_it_answers(file: File, status: int, held: list[int]) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        return Response(status_code=status)

    app = Starlette(exception_handlers={KeyError: handle, 410: handle, HTTPException: handle})
    db = Transept(file.config(), app)

    async def raises(request: Request) -> Response:
        await db.get_session(request).execute(insert(1))
        raise {"key": KeyError(), "status": HTTPException(410), "http": HTTPException(400)}[request.query_params["e"]]

    app.router.routes.append(Route("/", raises, methods=["POST"]))
    async with calling(app) as client:
        for error in ("key", "status", "http"):
            assert (await client.post(f"/?e={error}")).status_code == status
    assert file.held() == held * 3


async def test_an_http_exception_that_is_a_redirect_is_a_redirect(file: File) -> None:
    app = Starlette()
    db = Transept(file.config(commit_mode="autocommit_include_redirect"), app)

    async def raises(request: Request) -> Response:
        await db.get_session(request).execute(insert(1))
        raise HTTPException(303, headers={"location": "/"})

    app.router.routes.append(Route("/", raises, methods=["POST"]))
    assert (await post(app)).status_code == 303
    assert file.held() == [1]


async def test_a_handler_may_use_the_session_to_answer_a_failed_commit(file: File) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        session = request.state.db_session
        count = await session.scalar(COUNT)
        await session.execute(insert(9))
        return Response(str(count), int(request.query_params["status"]))

    app, _ = failing(file, exception_handlers={IntegrityError: handle})
    async with calling(app, raises=True) as client:
        response = await client.post("/?status=409")
        assert (response.status_code, response.text) == (409, "0")
        assert file.held() == []
        assert (await client.post("/?status=200")).status_code == 200
    assert file.held() == [9]


async def test_a_handler_that_raises_is_a_500(file: File) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        raise KeyError

    app, _ = failing(file, exception_handlers={IntegrityError: handle})
    assert (await post(app)).status_code == 500
    assert file.held() == []


async def test_a_handlers_background_task_runs_and_is_kept(file: File) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        async def later() -> None:
            await request.state.db_session.execute(insert(7))

        return Response(status_code=409, background=BackgroundTask(later))

    app, endpoint = failing(file, exception_handlers={IntegrityError: handle})
    assert (await post(app)).status_code == 409
    assert (file.held(), endpoint.ran) == ([7], [])


# Middleware of the user's own, below the gate


async def answers_503(app: Any, scope: Any, receive: Any, send: Any) -> None:
    try:
        await app(scope, receive, send)
    except Exception:
        await PlainTextResponse("busy", 503)(scope, receive, send)


async def swallows(app: Any, scope: Any, receive: Any, send: Any) -> None:
    try:
        await app(scope, receive, send)
    except Exception:
        return


async def retries(app: Any, scope: Any, receive: Any, send: Any) -> None:
    try:
        await app(scope, receive, send)
    except Exception:
        await app(scope, receive, send)


async def test_error_middleware_below_the_gate_answers_a_failed_commit(file: File) -> None:
    app, endpoint = failing(file)
    below(app, Layer, does=answers_503)
    response = await post(app)
    assert (response.status_code, response.text) == (503, "busy")
    assert (file.held(), endpoint.ran) == ([], [])


async def test_error_middleware_above_the_gate_answers_a_failed_commit(file: File) -> None:
    app, endpoint = failing(file)
    above(app, Layer, does=answers_503)
    response = await post(app)
    assert (response.status_code, response.text) == (503, "busy")
    assert (file.held(), endpoint.ran) == ([], [])


@pytest.mark.parametrize("level", ["route", "mount"])
async def test_error_middleware_of_a_route_or_a_mount_answers_a_failed_commit(file: File, level: str) -> None:
    endpoint = Failing()

    async def respond(request: Request) -> Response:
        return await endpoint(request)

    layer = [Middleware(Layer, does=answers_503)]
    inner = Route("/x", respond, methods=["POST"], middleware=layer if level == "route" else None)
    app = Starlette(routes=[Mount("/in", routes=[inner], middleware=layer if level == "mount" else None)])
    endpoint.db = Transept(file.config(), app)
    response = await post(app, "/in/x")
    assert (response.status_code, response.text) == (503, "busy")
    assert (file.held(), endpoint.ran) == ([], [])


async def test_error_middleware_below_answers_before_the_handlers_are_asked(file: File) -> None:
    app, _ = failing(file, exception_handlers={IntegrityError: lambda request, error: Response("x", 409)})
    below(app, Layer, does=answers_503)
    assert (await post(app)).status_code == 503


async def test_middleware_that_swallows_a_failed_commit_cannot_hide_it(file: File) -> None:
    app, endpoint = failing(file)
    below(app, Layer, does=swallows)
    assert (await post(app)).status_code == 500
    assert (file.held(), endpoint.ran) == ([], [])


async def test_middleware_that_swallows_a_failed_commit_leaves_the_handlers(file: File) -> None:
    app, endpoint = failing(file, exception_handlers={IntegrityError: lambda request, error: Response("late", 409)})
    below(app, Layer, does=swallows)
    assert (await post(app)).status_code == 409
    assert (file.held(), endpoint.ran) == ([], [])


async def test_a_retry_below_the_gate_is_kept(file: File) -> None:
    ran: list[Any] = []
    app = Starlette()
    db = Transept(file.config(), app)
    below(app, Layer, does=retries)
    calls: list[int] = []

    async def flaky(request: Request) -> Response:
        calls.append(1)
        session = db.get_session(request)
        await session.execute(insert(len(calls)))
        after_commit(partial(ran.append, len(calls)))
        if len(calls) == 1:
            await session.execute(VIOLATION)
        return JSONResponse(len(calls), 201, background=BackgroundTask(ran.append, "background"))

    app.router.routes.append(Route("/", flaky, methods=["POST"]))
    response = await post(app)
    assert (response.status_code, response.json()) == (201, 2)
    assert (file.held(), ran) == ([2], [2, "background"])


async def test_a_retry_that_fails_again_is_an_error(file: File) -> None:
    app, endpoint = failing(file)
    below(app, Layer, does=retries)
    assert (await post(app)).status_code == 500
    assert (file.held(), endpoint.ran, endpoint.calls) == ([], [], 2)


async def test_middleware_that_completes_the_body_after_a_failed_commit_completes_nothing(file: File) -> None:
    async def completes(app: Any, scope: Any, receive: Any, send: Any) -> None:
        try:
            await app(scope, receive, send)
        except Exception:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    app = Starlette()
    db = Transept(file.config(), app)
    below(app, Layer, does=completes)

    async def stream(request: Request) -> Response:
        session = db.get_async_session(request)

        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            await session.execute(insert(1))
            await session.execute(VIOLATION)
            yield b"second"

        return StreamingResponse(body())

    app.router.routes.append(Route("/", stream))
    messages: list[Any] = []
    with suppress(IntegrityError):
        await http(app, messages)
    assert file.held() == []
    assert all(message.get("more_body", True) for message in messages), messages


async def test_middleware_that_answers_anew_after_a_failed_commit_in_the_body_is_not_heard(file: File) -> None:
    app = Starlette()
    db = Transept(file.config(), app)
    below(app, Layer, does=answers_503)

    async def stream(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"first"
            await db.get_session(request).execute(VIOLATION)
            yield b"second"

        return StreamingResponse(body())

    app.router.routes.append(Route("/", stream))
    messages: list[Any] = []
    with suppress(IntegrityError):
        await http(app, messages)
    assert [message["type"] for message in messages] == ["http.response.start", "http.response.body"]
    assert messages[-1]["more_body"]


async def test_middleware_added_before_and_after_stands_around_the_gate(file: File) -> None:
    seen: list[tuple[str, list[int]]] = []

    def noting(name: str) -> Any:
        async def note(app: Any, scope: Any, receive: Any, send: Any) -> None:
            async def noted(message: Any) -> None:
                if message["type"] == "http.response.start":
                    seen.append((name, file.held()))
                await send(message)

            await app(scope, receive, noted)

        return note

    app = Starlette(middleware=[Middleware(Layer, does=noting("list"))])
    app.add_middleware(Layer, does=noting("before"))
    db = Transept(file.config(), app)
    app.add_middleware(Layer, does=noting("after"))
    below(app, Layer, does=noting("below"))

    async def write(request: Request) -> Response:
        await db.get_session(request).execute(insert(1))
        return Response(status_code=201)

    app.router.routes.append(Route("/", write, methods=["POST"]))
    assert (await post(app)).status_code == 201
    assert seen == [("below", []), ("list", [1]), ("before", [1]), ("after", [1])]
