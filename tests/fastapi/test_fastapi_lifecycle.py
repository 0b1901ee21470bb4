"""How `Transept` joins a FastAPI app: lifespans, middleware, test clients."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from held import COUNT, VIOLATION, File, Postgres, calling, insert, out_of_pool
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from transept import ImproperConfigurationError, current_unit
from transept.extensions.fastapi import Transept
from transept.extensions.starlette import Transept as StarletteTransept
from transept.gate.asgi import ASGIGate

pytestmark = pytest.mark.anyio


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


def add_write(app: FastAPI, db: Transept) -> None:
    @app.post("/", status_code=201)
    async def write(session: Annotated[AsyncSession, Depends(db.provide_session())]) -> int:
        await session.execute(insert(1))
        return int(await session.scalar(COUNT) or 0)


@pytest.mark.parametrize("lifespan", [True, False])
def test_a_test_client_works_with_a_lifespan_and_without(file: File, lifespan: bool) -> None:
    config = file.config()
    seen = counting(config)
    app = FastAPI()
    add_write(app, Transept(config, app))
    if lifespan:
        with TestClient(app) as client:
            assert [client.post("/").json() for _ in range(3)] == [1, 2, 3]
    else:
        client = TestClient(app)
        assert [client.post("/").json() for _ in range(3)] == [1, 2, 3]
    assert seen == (["start", "stop"] if lifespan else [])
    assert file.held() == [1, 1, 1]


@pytest.mark.parametrize("lifespan", [True, False])
def test_a_test_client_works_on_postgresql_with_a_lifespan_and_without(pg: Postgres, lifespan: bool) -> None:
    app = FastAPI()
    add_write(app, Transept(pg.config(), app))
    client = TestClient(app)
    if lifespan:
        with client:
            assert [client.post("/").json() for _ in range(3)] == [1, 2, 3]
    else:
        assert [client.post("/").json() for _ in range(3)] == [1, 2, 3]
    assert pg.held() == [1, 1, 1]


def test_a_lifespan_of_the_apps_own_may_use_the_database(file: File) -> None:
    config = file.config()
    seen = counting(config)
    db = Transept(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
        assert seen == ["start"]
        async with db.with_async_session() as session:
            await session.execute(insert(1))
        yield {"motto": "kept"}
        assert seen == ["start"]
        assert file.held() == [1, 1]

    app = FastAPI(lifespan=lifespan)
    db.init_app(app)
    add_write(app, db)

    @app.get("/motto")
    async def motto(request: Request) -> str:
        return str(request.state.motto)

    with TestClient(app) as client:
        assert client.post("/").json() == 2
        assert client.get("/motto").json() == "kept"
    assert seen == ["start", "stop"]


def test_our_lifespan_may_be_the_apps_own_with_init_app_or_without(file: File) -> None:
    for init in (True, False):
        config = file.config()
        seen = counting(config)
        db = Transept(config)
        app = FastAPI(lifespan=db.lifespan)
        if init:
            db.init_app(app)
        with TestClient(app):
            assert seen == ["start"]
        assert seen == ["start", "stop"]


def test_a_routers_lifespan_runs_while_the_database_is_up(file: File) -> None:
    config = file.config()
    seen = counting(config)

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        seen.append("router up")
        yield
        seen.append("router down")

    app = FastAPI()
    Transept(config, app)
    app.include_router(APIRouter(lifespan=lifespan))
    with TestClient(app):
        pass
    assert seen == ["start", "router up", "router down", "stop"]


def test_init_app_after_the_app_has_started_says_when_to_call_it(file: File) -> None:
    app = FastAPI()
    with TestClient(app), pytest.raises(ImproperConfigurationError, match="before the first request"):
        Transept(file.config(), app)


async def test_a_second_extension_joins_the_gate_also_one_of_starlette(file: File, other_file: File) -> None:
    app = FastAPI()
    first = Transept(file.config(), app)
    second = StarletteTransept(other_file.config(bind_key="other"), app)
    assert [entry.cls for entry in app.user_middleware] == [ASGIGate]

    @app.post("/", status_code=201)
    async def write(request: Request, session: Annotated[AsyncSession, Depends(first.provide_session())]) -> None:
        await session.execute(insert(1))
        await second.get_async_session(request, "other").execute(insert(2))

    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == 201
    assert (file.held(), other_file.held()) == ([1], [2])


async def test_middleware_added_later_stands_around_the_gate(pg: Postgres) -> None:
    """Also around the answer to a failed commit: it has CORS headers."""
    config = pg.config()
    app = FastAPI()
    db = Transept(config, app)
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    seen: list[Any] = []

    @app.middleware("http")
    async def look(request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        seen.append((response.status_code, pg.held(), out_of_pool(config)))
        return response

    @app.exception_handler(IntegrityError)
    async def conflict(request: Request, error: IntegrityError) -> JSONResponse:
        return JSONResponse("conflict", 409)

    add_write(app, db)

    @app.post("/late", status_code=201)
    async def late(session: Annotated[AsyncSession, Depends(db.provide_session())]) -> None:
        assert session is current_unit().session()
        await session.execute(VIOLATION)

    async with calling(app, raises=True) as client:
        for path in ("/", "/late"):
            response = await client.post(path, headers={"origin": "http://elsewhere"})
            assert response.headers["access-control-allow-origin"] == "*"
    assert seen == [(201, [1], 0), (409, [1], 0)]
