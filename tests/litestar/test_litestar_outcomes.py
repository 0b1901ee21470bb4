"""A COMMIT that fails, errors and statuses: what Litestar's own exception handlers are asked, and what is kept then."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from held import VIOLATION, File, Postgres, calling, get, insert, out_of_pool, post
from litestar import Controller, Litestar, MediaType, Request, Response, Router, delete, route
from litestar import post as at_post
from litestar.background_tasks import BackgroundTask
from litestar.config.compression import CompressionConfig
from litestar.di import Provide
from litestar.exceptions import (
    ClientException,
    HTTPException,
    NotFoundException,
    PermissionDeniedException,
    ValidationException,
)
from litestar.response import Redirect
from litestar_app import LAYERS, Layer, Noting, app_with, clean, config_of, layers, sync_config_of
from servers.proxy import FaultProxy
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from transept import (
    CommitFailed,
    CommitInDoubt,
    DatabaseSaidNo,
    DatabaseUnavailable,
    OperationalError,
    PoolTimeout,
    Registry,
    TranseptError,
    after_commit,
    after_rollback,
)
from transept.adapters.asyncpg import AsyncpgConfig
from transept.extensions.litestar import Transept

pytestmark = pytest.mark.anyio

PLACES = ("handler", "controller", "router", "app")
KINDS = (IntegrityError, 500, Exception)
behind = pytest.mark.parametrize("layer", LAYERS)


def conflict(request: Request, error: Exception) -> Response:
    return Response({"handled": type(error).__name__}, status_code=409)


class Failing:
    """An app whose only commit fails, with an exception handler in one place, behind a layer."""

    def __init__(self, config: Any, layer: Layer, place: str = "app", handlers: Any = None) -> None:
        self.layer, self.config = layer, config
        self.ran: list[str] = []
        self.calls = 0
        self.violates = True
        at = {one: {"exception_handlers": handlers} if one == place and handlers else {} for one in PLACES}
        ran = self.ran
        failing = self

        async def after_response(request: Request) -> None:
            ran.append("after_response")

        class Things(Controller):
            path = "/things"
            exception_handlers = at["controller"].get("exception_handlers")

            @at_post("/", cache=layer.cache, after_response=after_response, **at["handler"])
            async def write(self, db_session: AsyncSession) -> Response[str]:
                failing.calls += 1
                await db_session.execute(insert(failing.calls))
                if failing.violates:
                    await db_session.execute(VIOLATION)
                after_commit(lambda: ran.append("commit"))
                after_rollback(lambda: ran.append("rollback"))
                return Response("ok", background=BackgroundTask(ran.append, "background"))

        router = Router("/", route_handlers=[Things], **at["router"])
        self.app, _ = app_with(config, router, **layer.options, **at["app"])

    async def post(self, *, raises: bool = False) -> Any:
        async with calling(self.app, raises=raises) as client:
            client.cookies.update(self.layer.cookies)
            return await client.post("/things", headers=self.layer.sends)


@behind
@pytest.mark.parametrize("place", PLACES)
async def test_a_failed_commit_reaches_the_handler_for_it_by_type_by_status_and_for_all(
    pg: Postgres, layer: str, place: str
) -> None:
    for kind in KINDS:
        given, config = layers()[layer], config_of(pg)
        failing = Failing(config, given, place, {kind: conflict})
        response = await failing.post(raises=True)
        assert (response.status_code, response.json()) == (409, {"handled": "IntegrityError"}), kind
        for name, value in given.answers:
            assert response.headers[name] == value
        assert given.noting.statuses in ([], [409])
        await clean(pg, config)
        assert (pg.held(), failing.ran) == ([], ["rollback"])


@behind
async def test_without_a_handler_a_failed_commit_is_the_500_that_litestar_makes(pg: Postgres, layer: str) -> None:
    given = layers()[layer]
    failing = Failing(config_of(pg), given)
    response = await failing.post(raises=True)
    assert response.status_code == 500
    assert response.json() == {"status_code": 500, "detail": "Internal Server Error"}
    assert response.headers["content-type"] == "application/json"
    for name, value in given.answers:
        assert response.headers[name] == value
    assert given.noting.statuses in ([], [500])
    await clean(pg, failing.config)
    assert (pg.held(), failing.ran) == ([], ["rollback"])


@behind
async def test_the_next_request_is_served_by_the_handler_and_kept(pg: Postgres, layer: str) -> None:
    """Nothing false has been put into a cache, and the layer is as it was."""
    given = layers()[layer]
    failing = Failing(config_of(pg), given)
    assert (await failing.post()).status_code == 500
    failing.violates = False
    response = await failing.post()
    assert (response.status_code, response.text, pg.held()) == (201, "ok", [2])
    assert failing.ran == ["rollback", "commit", "background", "after_response"]
    assert (await failing.post()).status_code == 201
    assert pg.held() == ([2] if given.cache else [2, 3])


@behind
async def test_a_handler_is_asked_the_same_for_an_error_of_a_statement_and_of_the_commit(
    pg: Postgres, layer: str
) -> None:
    given, said = layers()[layer], []

    @route("/", http_method=["POST"], status_code=201, cache=given.cache)
    async def write(db_session: AsyncSession, request: Request) -> str:
        await db_session.execute(VIOLATION)
        if request.query_params["early"] == "true":
            await db_session.execute(text("SET CONSTRAINTS ALL IMMEDIATE"))
        return "ok"

    app, _ = app_with(config_of(pg), write, exception_handlers={IntegrityError: conflict}, **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        for early in ("true", "false"):
            response = await client.post("/", params={"early": early}, headers=given.sends)
            headers = sorted(name for name in response.headers if name != "set-cookie")
            said.append((response.status_code, response.json(), headers))
    assert said[0] == said[1]
    assert said[0][:2] == (409, {"handled": "IntegrityError"})


@behind
async def test_a_blocking_database_answers_a_failed_commit_the_same(pg: Postgres, layer: str) -> None:
    given = layers()[layer]
    ran: list[int] = []

    @at_post("/", sync_to_thread=True, cache=given.cache)
    def write(db_session: Session) -> Response[str]:
        db_session.execute(insert(1))
        db_session.execute(VIOLATION)
        return Response("ok", background=BackgroundTask(ran.append, 1))

    app, _ = app_with(sync_config_of(pg), write, exception_handlers={IntegrityError: conflict}, **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        response = await client.post("/", headers=given.sends)
    assert (response.status_code, response.json()) == (409, {"handled": "IntegrityError"})
    assert (pg.held(), ran, given.noting.statuses) in [([], [], []), ([], [], [409])]


@pytest.mark.parametrize("place", PLACES)
async def test_the_nearest_handler_answers(pg: Postgres, place: str) -> None:
    failing = Failing(config_of(pg), Layer("nothing"), place, {IntegrityError: conflict})
    far = Litestar([], exception_handlers={IntegrityError: lambda request, error: Response(None, status_code=418)})
    assert far.exception_handlers
    if place != "app":
        failing.app.exception_handlers.update(far.exception_handlers)
    assert (await failing.post()).status_code == 409


async def test_debug_mode_shows_the_error_of_the_commit(pg: Postgres) -> None:
    failing = Failing(config_of(pg), Layer("debug", {"debug": True}))
    response = await failing.post(raises=True)
    assert response.status_code == 500
    assert "IntegrityError" in response.text
    assert "child_p_fkey" in response.text


async def test_after_exception_hears_once_of_the_commit_that_failed(pg: Postgres) -> None:
    for options in ({}, {"compression_config": CompressionConfig("gzip")}):
        heard: list[Exception] = []

        async def hook(error: Exception, scope: Any, heard: Any = heard) -> None:
            heard.append(error)

        await Failing(config_of(pg), Layer("hook", {"after_exception": [hook], **options})).post()
        assert [type(error) for error in heard] == [IntegrityError]


@pytest.mark.parametrize("where", ["gzip", "identity"])
async def test_a_small_answer_and_a_large_one_are_readable_to_a_client_that_accepts_gzip(
    pg: Postgres, where: str
) -> None:
    for minimum in (1, 10_000):
        layer = Layer(
            "gzip",
            {"compression_config": CompressionConfig("gzip", minimum_size=minimum)},
            sends={"accept-encoding": where},
        )
        response = await Failing(config_of(pg), layer).post()
        assert (response.status_code, response.json()["detail"]) == (500, "Internal Server Error")
        assert response.headers.get("content-encoding") == ("gzip" if (where, minimum) == ("gzip", 1) else None)
        assert response.headers["content-length"] == str(response.num_bytes_downloaded)


async def test_middleware_that_catches_the_error_may_answer_it(pg: Postgres) -> None:
    """Litestar answers below middleware, so it sees an answer and no error; only its status."""
    caught: list[Any] = []

    def catching(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            except Exception as error:
                caught.append(error)
                raise

        return middleware

    noting = Noting()
    failing = Failing(config_of(pg), Layer("catching", {"middleware": [noting, catching]}))
    assert (await failing.post()).status_code == 500
    assert (noting.statuses, caught) == ([500], [])


@pytest.mark.parametrize("where", ["handler", "router"])
async def test_middleware_of_a_handler_or_a_router_never_sees_the_start_that_failed(pg: Postgres, where: str) -> None:
    noting = Noting()

    @at_post("/", middleware=[noting] if where == "handler" else None)
    async def write(db_session: AsyncSession) -> str:
        await db_session.execute(VIOLATION)
        return "ok"

    router = Router("/", route_handlers=[write], middleware=[noting] if where == "router" else None)
    app, _ = app_with(config_of(pg), router)
    response = await post(app)
    assert (response.status_code, response.headers["x-noted"], noting.statuses) == (500, "yes", [500])


async def test_a_route_that_is_registered_later_is_served_the_same(pg: Postgres) -> None:
    noting = Noting()
    app, _ = app_with(config_of(pg), exception_handlers={IntegrityError: conflict}, middleware=[noting])

    @at_post("/")
    async def write(db_session: AsyncSession) -> str:
        await db_session.execute(VIOLATION)
        return "ok"

    assert (await post(app)).status_code == 404
    app.register(write)
    assert (await post(app)).status_code == 409
    assert noting.statuses == [409]


# A transaction that is gone, an outcome that nobody knows


@behind
async def test_a_swallowed_error_is_a_failed_commit(pg: Postgres, layer: str) -> None:
    given = layers()[layer]

    @at_post("/", cache=given.cache)
    async def write(db_session: AsyncSession) -> str:
        await db_session.execute(insert(1))
        with pytest.raises(DBAPIError, match="nonsense"):
            await db_session.execute(text("SELECT nonsense"))
        return "ok"

    for handlers, status in (({}, 500), ({CommitFailed: conflict}, 409), ({TranseptError: conflict}, 409)):
        config = config_of(pg)
        app, _ = app_with(config, write, exception_handlers=handlers, **given.options)
        async with calling(app, raises=True) as client:
            client.cookies.update(given.cookies)
            assert (await client.post("/", headers=given.sends)).status_code == status
        await clean(pg, config)
    assert pg.held() == []


async def in_doubt(pg: Postgres, **options: Any) -> Any:
    """The answer of an app whose COMMIT got no answer."""
    with FaultProxy(pg.server.host, pg.server.port) as proxy:
        config = config_of(pg, port=proxy.port)

        @at_post("/", exception_handlers=options.pop("at_handler", None))
        async def write(db_session: AsyncSession) -> str:
            await db_session.execute(insert(1))
            proxy.on(b"COMMIT", "cut_after")
            return "ok"

        app, _ = app_with(config, write, **options)
        async with calling(app, raises=True) as client:
            response = await client.post("/")
        assert proxy.hits == 1
        assert out_of_pool(config) == 0
        await config.get_engine().dispose()
    return response


@behind
async def test_a_commit_in_doubt_is_a_503(pg: Postgres, layer: str, caplog: pytest.LogCaptureFixture) -> None:
    given = layers()[layer]
    if given.cookies:
        given.options.pop("csrf_config", None)
    response = await in_doubt(pg, **given.options)
    assert response.status_code == 503
    assert "in doubt" in response.json()["detail"]
    assert "retry-after" not in response.headers
    assert given.noting.statuses in ([], [503])
    assert pg.held() == [1]
    assert "POST /" in caplog.text


@pytest.mark.parametrize("kind", [CommitInDoubt, DatabaseSaidNo, TranseptError])
@pytest.mark.parametrize("place", ["app", "handler"])
async def test_a_commit_in_doubt_is_answered_by_the_apps_own_handler(pg: Postgres, kind: Any, place: str) -> None:
    options: dict[str, Any] = {"exception_handlers" if place == "app" else "at_handler": {kind: conflict}}
    response = await in_doubt(pg, **options)
    assert (response.status_code, response.json()) == (409, {"handled": "CommitInDoubt"})


def nowhere() -> AsyncpgConfig:
    return AsyncpgConfig(pool_config={"dsn": "postgresql://nobody@127.0.0.1:1/nothing"}, commit_mode="autocommit")


@route("/", http_method=["POST"], status_code=201)
async def looks(db_session: Any) -> None:
    await db_session.execute("SELECT 1")


@behind
async def test_a_database_that_cannot_be_reached_is_a_503_that_says_when_to_come_back(layer: str) -> None:
    given = layers()[layer]
    app, _ = app_with(nowhere(), looks, **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        response = await client.post("/", headers=given.sends)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "cannot be reached" in response.json()["detail"]
    for name, value in given.answers:
        assert response.headers[name] == value


@pytest.mark.parametrize("kind", [DatabaseUnavailable, OperationalError, DatabaseSaidNo, TranseptError])
@pytest.mark.parametrize("place", PLACES)
async def test_a_database_that_cannot_be_reached_is_answered_by_the_apps_own_handler(kind: Any, place: str) -> None:
    handlers = {one: {"exception_handlers": {kind: conflict}} if one == place else {} for one in PLACES}

    class Things(Controller):
        path = "/"
        exception_handlers = handlers["controller"].get("exception_handlers")

        @at_post("/", **handlers["handler"])
        async def look(self, db_session: Any) -> None:
            await db_session.execute("SELECT 1")

    app, _ = app_with(nowhere(), Router("/", route_handlers=[Things], **handlers["router"]), **handlers["app"])
    assert (await post(app)).json() == {"handled": "DatabaseUnavailable"}


async def test_a_full_pool_is_a_503(pg: Postgres) -> None:
    config = AsyncpgConfig(
        pool_config={"dsn": pg.server.dsn, "min_size": 0, "max_size": 1}, pool_timeout=0.1, commit_mode="autocommit"
    )
    app, _ = app_with(config, looks)
    registry = Registry()
    registry.add_config(config)
    async with registry.provide_session() as session:
        await session.execute("INSERT INTO held VALUES (1)")
        response = await post(app)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        other, _ = app_with(config, looks, exception_handlers={PoolTimeout: conflict})
        assert (await post(other)).json() == {"handled": "PoolTimeout"}
    assert (await post(app)).status_code == 201


async def test_one_plugin_on_two_apps_leaves_each_its_own_handlers(pg: Postgres) -> None:
    db = Transept(config_of(pg))

    @at_post("/")
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(VIOLATION)

    options: dict[str, Any] = {"plugins": [db], "openapi_config": None, "logging_config": None}
    with_handler = Litestar([write], exception_handlers={IntegrityError: conflict}, **options)
    without = Litestar([write], **options)
    assert (await post(with_handler)).status_code == 409
    assert (await post(without)).status_code == 500


# Errors that the app raises, and the statuses that they become


@pytest.mark.parametrize("status", [303, 400, 403, 404, 409, 422, 500, 503])
@behind
async def test_an_http_exception_decides_by_its_status(file: File, status: int, layer: str) -> None:
    given = layers()[layer]

    @at_post("/", cache=given.cache)
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))
        raise HTTPException("no", status_code=status)

    for extra in (None, {status}):
        handler: Any = None if extra is None else _committing(extra)
        app, _ = app_with(config_of(file, before_send_handler=handler or "autocommit"), write, **given.options)
        async with calling(app, raises=True) as client:
            client.cookies.update(given.cookies)
            response = await client.post("/", headers=given.sends)
        assert response.status_code == status
        assert response.json()["detail"] == ("Internal Server Error" if status == 500 else "no")
        assert file.held() == ([] if extra is None else [1])


def _committing(statuses: set[int]) -> Any:
    from transept.extensions.litestar import autocommit_handler_maker

    return autocommit_handler_maker(extra_commit_statuses=statuses)


@pytest.mark.parametrize("mode", ["autocommit", "autocommit_include_redirect", "autocommit_include_redirects"])
@pytest.mark.parametrize("raised", [True, False])
async def test_a_redirect_is_kept_only_in_its_mode(file: File, mode: str, raised: bool) -> None:
    @at_post("/", status_code=303)
    async def write(db_session: AsyncSession) -> Redirect:
        await db_session.execute(insert(1))
        if raised:
            raise HTTPException("see there", status_code=303, headers={"location": "/elsewhere"})
        return Redirect("/elsewhere", status_code=303)

    app, _ = app_with(config_of(file, before_send_handler=mode), write)
    response = await post(app)
    assert (response.status_code, response.headers["location"]) == (303, "/elsewhere")
    assert file.held() == ([] if mode == "autocommit" else [1])


@behind
@pytest.mark.parametrize("status", [200, 201, 409, 500])
async def test_the_status_of_an_exception_handlers_answer_decides(file: File, status: int, layer: str) -> None:
    given = layers()[layer]

    class Odd(Exception):
        pass

    def answer(request: Request, error: Exception) -> Response:
        return Response("all the same", status_code=status)

    @at_post("/", cache=given.cache)
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))
        raise Odd

    app, _ = app_with(config_of(file), write, exception_handlers={Odd: answer}, **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        assert (await client.post("/", headers=given.sends)).status_code == status
    assert file.held() == ([1] if status < 300 else [])


@behind
async def test_an_exception_handlers_success_whose_commit_fails_is_no_success(pg: Postgres, layer: str) -> None:
    given, config = layers()[layer], config_of(pg)

    class Odd(Exception):
        pass

    def answer(request: Request, error: Exception) -> Response:
        return Response("all the same", status_code=201)

    @at_post("/", cache=given.cache)
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))
        await db_session.execute(VIOLATION)
        raise Odd

    app, _ = app_with(config, write, exception_handlers={Odd: answer}, **given.options)
    async with calling(app) as client:
        client.cookies.update(given.cookies)
        for _ in range(2):
            assert (await client.post("/", headers=given.sends)).status_code == 500
    await clean(pg, config)
    assert pg.held() == []


async def an_exception_handlers_success_that_fails(pg: Postgres, layer: Layer) -> Any:
    """What a client gets when the app has a handler for the error of that commit, too."""
    config = config_of(pg)

    class Odd(Exception):
        pass

    def answer(request: Request, error: Exception) -> Response:
        return Response("all the same", status_code=201)

    @at_post("/", cache=layer.cache)
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(VIOLATION)
        raise Odd

    handlers: Any = {Odd: answer, IntegrityError: conflict}
    app, _ = app_with(config, write, exception_handlers=handlers, **layer.options)
    async with calling(app) as client:
        client.cookies.update(layer.cookies)
        response = await client.post("/", headers=layer.sends)
    await clean(pg, config)
    return response


@behind
async def test_an_exception_handlers_success_that_fails_is_answered_by_the_handler_for_that_error(
    pg: Postgres, layer: str
) -> None:
    response = await an_exception_handlers_success_that_fails(pg, layers()[layer])
    assert (response.status_code, response.text) == (409, '{"handled":"IntegrityError"}')


@pytest.mark.parametrize("layer", ["middleware", "all"])
async def test_an_exception_handlers_success_that_fails_is_never_seen_by_middleware(pg: Postgres, layer: str) -> None:
    given = layers()[layer]
    await an_exception_handlers_success_that_fails(pg, given)
    assert 201 not in given.noting.statuses


class Audited(Response):
    """An answer that writes before it starts, as an exception handler that cannot await may do."""

    violates = False

    def to_asgi_response(self, *arguments: Any, **settings: Any) -> Any:
        response = super().to_asgi_response(*arguments, **settings)
        request = settings["request"]

        async def audited(scope: Any, receive: Any, send: Any) -> None:
            session = request.app.plugins.get(Transept).get_session(request)
            await session.execute(insert(7))
            if self.violates:
                await session.execute(VIOLATION)
            await response(scope, receive, send)

        return audited


@behind
@pytest.mark.parametrize("status", [202, 409])
@pytest.mark.parametrize("late", [True, False])
async def test_an_exception_handler_may_write_and_its_status_decides(
    pg: Postgres, status: int, late: bool, layer: str
) -> None:
    given, config = layers()[layer], config_of(pg)

    def answer(request: Request, error: Exception) -> Response:
        return Audited({"v": 7}, status_code=status)

    @at_post("/", cache=given.cache)
    async def write(db_session: AsyncSession) -> None:
        if late:
            await db_session.execute(insert(1))
            await db_session.execute(VIOLATION)
        else:
            raise KeyError

    handlers: Any = {IntegrityError: answer, KeyError: answer}
    app, _ = app_with(config, write, exception_handlers=handlers, **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        response = await client.post("/", headers=given.sends)
    assert (response.status_code, response.json()) == (status, {"v": 7})
    await clean(pg, config)
    assert pg.held() == ([7] if status == 202 else [])


@behind
async def test_an_exception_handler_whose_own_commit_fails_does_not_answer(pg: Postgres, layer: str) -> None:
    given, config = layers()[layer], config_of(pg)

    class Violates(Audited):
        violates = True

    def answer(request: Request, error: Exception) -> Response:
        return Violates("ok", status_code=200)

    @at_post("/", cache=given.cache)
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(VIOLATION)

    app, _ = app_with(config, write, exception_handlers={IntegrityError: answer}, **given.options)
    async with calling(app) as client:
        client.cookies.update(given.cookies)
        assert (await client.post("/", headers=given.sends)).status_code == 500
    await clean(pg, config)
    assert pg.held() == []


@pytest.mark.filterwarnings("ignore::transept.BlockingCallWarning")
@pytest.mark.parametrize("status", [200, 404])
async def test_a_404_handler_may_use_a_blocking_session(file: File, status: int) -> None:
    config = sync_config_of(file)

    def missing(request: Request, error: Exception) -> Response:
        db.get_sync_session(request).execute(insert(4))
        return Response("nothing here", status_code=status)

    @at_post("/")
    async def write() -> None: ...

    for kind in (404, NotFoundException):
        app, db = app_with(config, write, exception_handlers={kind: missing})
        assert (await post(app, "/none")).status_code == status
    assert file.held() == ([4, 4] if status == 200 else [])
    assert out_of_pool(config) == 0


async def test_an_app_without_routes_has_the_gate_when_it_has_started(file: File) -> None:
    def missing(request: Request, error: Exception) -> Response:
        return Audited("nothing here", status_code=200)

    app, _ = app_with(config_of(file), exception_handlers={404: missing})
    async with app.lifespan():
        assert (await post(app, "/none")).status_code == 200
    assert file.held() == [7]


@pytest.mark.parametrize("status", [200, 404])
async def test_a_404_handler_may_answer_with_what_writes_and_405_too(file: File, status: int) -> None:
    config = config_of(file)

    def missing(request: Request, error: Exception) -> Response:
        return Audited("nothing here", media_type=MediaType.TEXT, status_code=status)

    @delete("/")
    async def remove() -> None: ...

    app, _ = app_with(config, remove, exception_handlers={404: missing, 405: missing})
    assert (await get(app, "/none")).status_code == status
    assert (await get(app, "/")).status_code == status
    assert file.held() == ([7, 7] if status == 200 else [])
    assert out_of_pool(config) == 0


async def test_an_error_nobody_handles_keeps_nothing(file: File) -> None:
    config = config_of(file)

    @at_post("/")
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))
        raise KeyError

    app, _ = app_with(config, write)
    assert (await post(app)).json() == {"status_code": 500, "detail": "Internal Server Error"}
    assert (file.held(), out_of_pool(config)) == ([], 0)


@behind
async def test_an_exception_handler_that_fails_keeps_nothing(file: File, layer: str) -> None:
    given, config = layers()[layer], config_of(file)

    def broken(request: Request, error: Exception) -> Response:
        raise ZeroDivisionError

    @at_post("/", cache=given.cache)
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))
        raise KeyError

    app, _ = app_with(config, write, exception_handlers={KeyError: broken}, **given.options)
    async with calling(app) as client:
        client.cookies.update(given.cookies)
        assert (await client.post("/", headers=given.sends)).status_code == 500
    assert (file.held(), out_of_pool(config)) == ([], 0)


async def test_an_answer_that_cannot_be_encoded_keeps_nothing(file: File) -> None:
    @at_post("/")
    async def write(db_session: AsyncSession) -> Any:
        await db_session.execute(insert(1))
        return {"what": object()}

    app, _ = app_with(config_of(file), write)
    assert (await post(app)).status_code == 500
    assert file.held() == []


async def test_a_request_that_does_not_fit_keeps_nothing_that_a_dependency_wrote(file: File) -> None:
    async def audited(db_session: AsyncSession) -> int:
        await db_session.execute(insert(1))
        return 1

    @at_post("/", dependencies={"audited": Provide(audited)})
    async def write(audited: str, db_session: AsyncSession) -> str:
        return audited

    @at_post("/number/{number:int}", dependencies={"audited": Provide(audited)})
    async def number(audited: int, request: Request) -> None:
        if await request.body() == b"x":
            raise ValidationException("no")

    app, _ = app_with(config_of(file), write, number)
    assert (await post(app)).status_code == 500
    assert (await post(app, "/number/1", content=b"x")).status_code == 400
    assert file.held() == []
    assert (await post(app, "/number/1", content=b"1")).status_code == 201
    assert file.held() == [1]


@pytest.mark.parametrize("error", [ClientException, PermissionDeniedException, ValidationException, KeyError])
async def test_a_generator_dependency_sees_the_error_and_nothing_is_kept(file: File, error: Any) -> None:
    seen: list[Any] = []

    async def around(db_session: AsyncSession) -> AsyncIterator[int]:
        await db_session.execute(insert(1))
        try:
            yield 1
        except Exception as raised:
            seen.append(type(raised))
            raise
        finally:
            await db_session.execute(insert(2))

    @at_post("/", dependencies={"around": Provide(around)})
    async def write(around: int) -> None:
        raise error("no")

    app, _ = app_with(config_of(file), write)
    assert (await post(app)).status_code in (400, 403, 500)
    assert (seen, file.held()) == ([error], [])


async def test_what_a_generator_dependency_writes_when_it_ends_is_kept_with_the_response(file: File) -> None:
    async def around(db_session: AsyncSession) -> AsyncIterator[int]:
        yield 1
        await db_session.execute(insert(2))

    @at_post("/", dependencies={"around": Provide(around)})
    async def write(around: int, db_session: AsyncSession, request: Request) -> Response[None]:
        await db_session.execute(insert(1))
        return Response(None, status_code=int(request.query_params["status"]))

    app, _ = app_with(config_of(file), write)
    assert (await post(app, "/?status=409")).status_code == 409
    assert file.held() == []
    assert (await post(app, "/?status=201")).status_code == 201
    assert file.held() == [1, 2]


async def test_an_error_when_a_generator_dependency_ends_undoes_the_request(file: File) -> None:
    async def around(db_session: AsyncSession) -> AsyncIterator[int]:
        yield 1
        raise KeyError

    @at_post("/", dependencies={"around": Provide(around)})
    async def write(around: int, db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))

    app, _ = app_with(config_of(file), write)
    assert (await post(app)).status_code == 500
    assert file.held() == []
