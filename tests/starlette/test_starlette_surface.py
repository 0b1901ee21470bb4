"""What `Transept` for Starlette offers: configs, sessions and engines by key, and how it joins an app."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import Any

import pytest
from held import COUNT, File, calling, get, insert, post
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from transept import ImproperConfigurationError, OutsideScope, Registry, unit_of_work
from transept.extensions.starlette import (
    SQLAlchemyAsyncConfig,
    Transept,
    add_starlette_http_db_session_middleware,
)
from transept.gate.asgi import SCOPE_KEY, ASGIGate

pytestmark = pytest.mark.anyio


def writer(db: Transept, key: str | None = None) -> Any:
    async def write(request: Request) -> Response:
        await db.get_async_session(request, key).execute(insert(1))
        return Response(status_code=201)

    return write


def counting(config: Any) -> list[str]:
    """Note each start and stop of this database."""
    seen: list[str] = []
    start, stop = config.start, config.stop

    async def started() -> None:
        seen.append("start")
        await start()

    async def stopped() -> None:
        seen.append("stop")
        await stop()

    config.start, config.stop = started, stopped
    return seen


async def test_an_app_given_at_construction_is_ready(file: File) -> None:
    app = Starlette()
    db = Transept(config=file.config(), app=app)
    app.router.routes.append(Route("/", writer(db), methods=["POST"]))
    assert (await post(app)).status_code == 201
    assert file.held() == [1]


async def test_an_app_given_later_is_as_good(file: File) -> None:
    db = Transept(file.config())
    app = Starlette(routes=[Route("/", writer(db), methods=["POST"])])
    db.init_app(app)
    assert (await post(app)).status_code == 201
    assert file.held() == [1]


async def test_init_app_twice_is_one_gate(file: File) -> None:
    app = Starlette()
    db = Transept(file.config(), app)
    db.init_app(app)
    assert [entry.cls for entry in app.user_middleware] == [ASGIGate]


def test_init_app_after_the_app_has_started_says_when_to_call_it(file: File) -> None:
    app = Starlette()
    with TestClient(app), pytest.raises(ImproperConfigurationError, match="before the first request"):
        Transept(file.config(), app)


async def test_a_second_database_for_an_app_that_has_started_is_refused_and_the_first_is_nothing_new(
    file: File, other_file: File
) -> None:
    app = Starlette(routes=[Route("/", lambda request: Response())])
    db = Transept(file.config(), app)
    async with calling(app) as client:
        assert (await client.get("/")).status_code == 200
    db.init_app(app)
    with pytest.raises(ImproperConfigurationError, match="started already"):
        Transept(other_file.config(bind_key="other"), app)


def test_a_lifespan_by_hand_and_init_app_start_once_and_stop_once(file: File) -> None:
    config = file.config()
    seen = counting(config)
    db = Transept(config)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> Any:
        async with db.lifespan(app):
            assert seen == ["start"]
            yield
        assert seen == ["start"]

    app = Starlette(lifespan=lifespan)
    db.init_app(app)
    with TestClient(app):
        assert seen == ["start"]
    assert seen == ["start", "stop"]


def test_a_lifespan_by_hand_alone_starts_and_stops(file: File) -> None:
    config = file.config()
    seen = counting(config)
    with TestClient(Starlette(lifespan=Transept(config).lifespan)):
        assert seen == ["start"]
    assert seen == ["start", "stop"]


def test_an_app_that_starts_again_finds_its_databases_started(file: File) -> None:
    config = file.config()
    seen = counting(config)
    app = Starlette()
    db = Transept(config, app)
    app.router.routes.append(Route("/", writer(db), methods=["POST"]))
    for _ in range(2):
        with TestClient(app) as client:
            assert client.post("/").status_code == 201
    assert seen == ["start", "stop"] * 2
    assert file.held() == [1, 1]


def two(file: File, other_file: File, **keys: Any) -> list[Any]:
    return [file.config(**keys), other_file.sync_config(bind_key="reports")]


async def test_configs_are_found_by_bind_key_and_by_session_key(file: File, other_file: File) -> None:
    main, reports = two(file, other_file)
    db = Transept([main, reports])
    assert db.get_config() is db.get_config("default") is db.get_config("db_session") is db.get_async_config() is main
    assert db.get_config("reports") is db.get_sync_config("reports_session") is reports


async def test_a_config_of_the_other_colour_is_an_error_that_says_so(file: File, other_file: File) -> None:
    db = Transept(two(file, other_file))
    with pytest.raises(ImproperConfigurationError, match="Expected an async config, but got a sync config"):
        db.get_async_config("reports")
    with pytest.raises(ImproperConfigurationError, match="Expected a sync config, but got an async config"):
        db.get_sync_config()
    with pytest.raises(ImproperConfigurationError, match="Expected an async config, but got a sync config"):
        db.get_async_engine("reports")
    with pytest.raises(ImproperConfigurationError, match="Expected a sync config, but got an async config"):
        db.get_sync_engine()
    with pytest.raises(ImproperConfigurationError, match="Expected an async config, but got a sync config"):
        async with db.with_async_session("reports"):
            pass
    with pytest.raises(ImproperConfigurationError, match="Expected a sync config"), db.with_sync_session():
        pass


async def test_a_session_of_the_other_colour_is_an_error_that_says_so(file: File, other_file: File) -> None:
    app = Starlette()
    db = Transept(two(file, other_file), app)

    async def endpoint(request: Request) -> Response:
        with pytest.raises(ImproperConfigurationError, match="Expected an async config, but got a sync config"):
            db.get_async_session(request, "reports")
        with pytest.raises(ImproperConfigurationError, match="Expected a sync config, but got an async config"):
            db.provide_sync_session()(request)
        return Response()

    app.router.routes.append(Route("/", endpoint))
    assert (await get(app)).status_code == 200


async def test_an_unknown_key_is_an_error_that_names_the_nearest(file: File, other_file: File) -> None:
    db = Transept(two(file, other_file))
    with pytest.raises(ImproperConfigurationError, match=r"'report'.*Did you mean 'reports'"):
        db.get_config("report")


async def test_two_databases_without_a_default_need_a_key(file: File, other_file: File) -> None:
    db = Transept([file.config(bind_key="a"), other_file.config(bind_key="b")])
    with pytest.raises(ImproperConfigurationError, match="'a', 'b'"):
        db.get_config()
    assert db.get_config("b").bind_key == "b"


async def test_a_registry_without_a_default_means_its_first(file: File, other_file: File) -> None:
    registry = Registry([file.config(bind_key="a"), other_file.config(bind_key="b")])
    assert Transept(registry).get_config().bind_key == "a"


async def test_two_of_one_bind_key_are_refused(file: File, other_file: File) -> None:
    with pytest.raises(ImproperConfigurationError, match="unique name for the `bind_key`"):
        Transept([file.config(), other_file.config()])


async def test_two_of_one_session_key_are_refused(file: File, other_file: File) -> None:
    with pytest.raises(ImproperConfigurationError, match="Duplicate state keys found"):
        Transept([file.config(session_key="s"), other_file.config(bind_key="b", session_key="s")])


async def test_no_database_at_all_is_refused() -> None:
    with pytest.raises(ImproperConfigurationError, match="at least one"):
        Transept([])


async def test_what_is_no_database_is_refused() -> None:
    with pytest.raises(ImproperConfigurationError, match="no database"):
        Transept("sqlite+aiosqlite://")  # type: ignore[arg-type]


async def test_every_way_to_a_session_leads_to_the_same_one(file: File, other_file: File) -> None:
    app = Starlette()
    db = Transept(two(file, other_file, session_key="mine"), app)

    async def endpoint(request: Request) -> Response:
        session, report = request.state.mine, request.state.reports_session
        assert isinstance(session, AsyncSession)
        assert isinstance(report, Session)
        assert (
            db.get_session(request) is db.get_session(request, "mine") is db.get_session(request, "default") is session
        )
        assert db.get_async_session(request) is db.provide_session()(request) is session
        assert db.provide_async_session("mine")(request) is session
        assert db.get_sync_session(request, "reports") is db.provide_sync_session("reports")(request) is report
        assert db.provide_session("reports_session")(request) is report
        assert getattr(request.state, "db_session", None) is None
        return Response()

    app.router.routes.append(Route("/", endpoint))
    async with calling(app, raises=True) as client:
        assert (await client.get("/")).status_code == 200


async def test_every_way_to_an_engine_leads_to_the_same_one(file: File, other_file: File) -> None:
    db = Transept(two(file, other_file))
    engine, report = db.get_engine(), db.get_engine("reports")
    assert isinstance(engine, AsyncEngine)
    assert isinstance(report, Engine)
    assert db.get_async_engine() is db.provide_engine()() is db.provide_async_engine("db_session")() is engine
    assert (
        db.get_sync_engine("reports") is db.provide_sync_engine("reports")() is db.provide_engine("reports")() is report
    )


async def test_an_async_block_with_a_session_of_its_own_is_kept_or_undone(file: File) -> None:
    db = Transept(file.config(commit_mode="manual"))
    async with db.with_async_session() as session:
        await session.execute(insert(1))
    with pytest.raises(KeyError):
        async with db.with_async_session("db_session") as session:
            await session.execute(insert(2))
            raise KeyError
    assert file.held() == [1]


def test_a_sync_block_with_a_session_of_its_own_is_kept_or_undone(file: File, other_file: File) -> None:
    db = Transept(two(file, other_file))
    with db.with_sync_session("reports") as report:
        report.execute(insert(3))
    with pytest.raises(KeyError), db.with_sync_session("reports") as report:
        report.execute(insert(4))
        raise KeyError
    assert other_file.held() == [3]


async def test_a_block_within_a_request_is_independent_of_it(file: File, other_file: File) -> None:
    app = Starlette()
    db = Transept([file.config(), other_file.config(bind_key="audit")], app)

    async def endpoint(request: Request) -> Response:
        await db.get_async_session(request).execute(insert(1))
        async with db.with_async_session("audit") as audit:
            assert audit is not db.get_async_session(request, "audit")
            await audit.execute(insert(2))
        assert other_file.held() == [2]
        return Response(status_code=409)

    app.router.routes.append(Route("/", endpoint, methods=["POST"]))
    assert (await post(app)).status_code == 409
    assert (file.held(), other_file.held()) == ([], [2])


async def test_without_a_gate_a_session_says_what_is_missing(file: File) -> None:
    db = Transept(file.config())

    async def endpoint(request: Request) -> Response:
        with pytest.raises(OutsideScope, match="init_app"):
            db.get_session(request)
        return Response()

    assert (await get(Starlette(routes=[Route("/", endpoint)]))).status_code == 200


async def test_a_second_transept_joins_the_gate(file: File, other_file: File) -> None:
    app = Starlette()
    first = Transept(file.config(), app)
    second = Transept(other_file.config(bind_key="b"), app)

    async def endpoint(request: Request) -> Response:
        await first.get_session(request).execute(insert(1))
        await second.get_session(request).execute(insert(2))
        assert request.state.b_session is second.get_session(request)
        return Response(status_code=int(request.query_params["status"]))

    app.router.routes.append(Route("/", endpoint, methods=["POST"]))
    async with calling(app) as client:
        assert (await client.post("/?status=400")).status_code == 400
        assert (file.held(), other_file.held()) == ([], [])
        assert (await client.post("/?status=200")).status_code == 200
    assert (file.held(), other_file.held()) == ([1], [2])
    assert len(app.user_middleware) == 1


def test_a_second_transept_that_joined_is_started_and_stopped_with_the_app(file: File, other_file: File) -> None:
    app = Starlette()
    config, other = file.config(), other_file.config(bind_key="b")
    seen, other_seen = counting(config), counting(other)
    Transept(config, app)
    Transept(other, app)
    with TestClient(app):
        assert (seen, other_seen) == (["start"], ["start"])
    assert (seen, other_seen) == (["start", "stop"], ["start", "stop"])


async def test_a_second_transept_with_an_equal_bind_key_is_refused_and_changes_nothing(
    file: File, other_file: File
) -> None:
    app = Starlette()
    first = Transept(file.config(), app)
    with pytest.raises(ImproperConfigurationError, match="bind_key"):
        Transept([other_file.config(bind_key="b"), other_file.config()], app)

    async def endpoint(request: Request) -> Response:
        await first.get_session(request).execute(insert(1))
        return Response("b_session" if hasattr(request.state, "b_session") else "")

    app.router.routes.append(Route("/", endpoint, methods=["POST"]))
    assert (await post(app)).text == ""
    assert file.held() == [1]


def test_one_object_serves_two_apps_and_stops_with_the_last(file: File) -> None:
    config = file.config()
    seen = counting(config)
    db = Transept(config)
    apps = [Starlette(routes=[Route("/", writer(db), methods=["POST"])]) for _ in range(2)]
    for app in apps:
        db.init_app(app)
    with TestClient(apps[0]) as first:
        with TestClient(apps[1]) as second:
            assert second.post("/").status_code == 201
        assert seen == ["start"]
        assert first.post("/").status_code == 201
    assert seen == ["start", "stop"]
    assert file.held() == [1, 1]


async def test_a_database_added_to_the_first_app_is_none_of_the_second(file: File, other_file: File) -> None:
    db = Transept(file.config())
    one, two = Starlette(), Starlette()
    db.init_app(one)
    db.init_app(two)
    Transept(other_file.config(bind_key="b"), one)

    async def endpoint(request: Request) -> Response:
        return JSONResponse(hasattr(request.state, "b_session"))

    for app in (one, two):
        app.router.routes.append(Route("/", endpoint))
    assert [(await get(app)).json() for app in (one, two)] == [True, False]


async def test_state_of_the_request_stays_the_users(file: File) -> None:
    app = Starlette()
    db = Transept(file.config(), app)

    async def endpoint(request: Request) -> Response:
        request.state.mine = 5
        assert request.state.mine == 5
        assert getattr(request.state, "nothing", None) is None
        with pytest.raises(AttributeError):
            request.state.nothing  # noqa: B018
        del request.state.mine
        assert not hasattr(request.state, "mine")
        assert request.state.db_session is db.get_session(request)
        return Response()

    app.router.routes.append(Route("/", endpoint))
    async with calling(app, raises=True) as client:
        assert (await client.get("/")).status_code == 200


async def test_a_session_is_also_found_by_key_in_the_unit(file: File, other_file: File) -> None:
    app = Starlette()
    db = Transept(two(file, other_file), app)

    async def endpoint(request: Request) -> Response:
        async with unit_of_work() as unit:
            assert unit.session() is unit.session("default") is db.get_session(request)
            assert unit.session("reports") is db.get_session(request, "reports")
        return Response()

    app.router.routes.append(Route("/", endpoint))
    async with calling(app, raises=True) as client:
        assert (await client.get("/")).status_code == 200


async def test_a_session_key_may_not_shadow_a_bind_key(file: File, other_file: File) -> None:
    with pytest.raises(ImproperConfigurationError, match="would mean two databases"):
        Transept([file.config(bind_key="a"), other_file.config(bind_key="b", session_key="a")])


async def test_a_query_and_a_write_share_the_request_transaction(file: File) -> None:
    app = Starlette()
    db = Transept(SQLAlchemyAsyncConfig(connection_string=file.url(), commit_mode="autocommit"), app)

    async def endpoint(request: Request) -> Response:
        await request.state.db_session.execute(insert(1))
        return JSONResponse(await db.get_async_session(request).scalar(COUNT))

    app.router.routes.append(Route("/", endpoint, methods=["POST"]))
    assert (await post(app)).json() == 1


# add_starlette_http_db_session_middleware


class Asked:
    def __init__(self, name: str) -> None:
        self.name = name
        self.sessions: list[Any] = []

    def __repr__(self) -> str:
        return f"<{self.name}>"

    async def __call__(self, session: Any) -> None:
        self.sessions.append(session)


@pytest.mark.parametrize("has_a_gate", [True, False])
async def test_the_function_refuses_an_app_that_has_started(file: File, has_a_gate: bool) -> None:
    app = Starlette()
    if has_a_gate:
        Transept(file.config(), app)
    await get(app)
    with pytest.raises(ImproperConfigurationError, match="before the first request"):
        add_starlette_http_db_session_middleware(app, Asked("late"))


async def test_the_function_called_after_an_extension_asks_before_each_commit(file: File) -> None:
    app, asked = Starlette(), Asked("once")
    db = Transept(file.config(), app)
    app.router.routes.append(Route("/", writer(db), methods=["POST"]))
    add_starlette_http_db_session_middleware(app)
    add_starlette_http_db_session_middleware(app, asked)
    add_starlette_http_db_session_middleware(app, asked)
    add_starlette_http_db_session_middleware(app)
    assert (await post(app)).status_code == 201
    assert (len(asked.sessions), file.held()) == (1, [1])


async def test_the_function_refuses_to_replace_a_before_commit_and_changes_nothing(
    file: File, other_file: File
) -> None:
    app = Starlette()
    Transept(file.config(), app)
    add_starlette_http_db_session_middleware(app, Asked("first"))
    other = other_file.config(bind_key="other")
    with pytest.raises(ImproperConfigurationError, match=r"before_commit=<second>.* <first>"):
        add_starlette_http_db_session_middleware(app, Asked("second"), databases=other)
    with pytest.raises(ImproperConfigurationError, match="two have 'default'"):
        add_starlette_http_db_session_middleware(app, databases=[other, other_file.config()])
    app.router.routes.append(Route("/", keys))
    assert (await get(app)).json() == ["default"]


async def keys(request: Request) -> Response:
    units: Any = request.scope[SCOPE_KEY]
    return JSONResponse([database.key for database in units.origin().registry])


@pytest.mark.parametrize(("given", "says"), [([], "databases=\\[\\]"), ([3], "databases has 3")])
async def test_the_function_speaks_of_its_own_argument(given: Any, says: str) -> None:
    with pytest.raises(ImproperConfigurationError, match=says):
        add_starlette_http_db_session_middleware(Starlette(), databases=given)
