"""The pure ASGI middleware, and a gate written by hand, around a framework that knows of neither: Quart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from held import VIOLATION, File, Postgres, eventually, http, insert, out_of_pool, post
from quart import Quart, abort, websocket
from sqlalchemy.exc import IntegrityError

from transept import (
    ASGIHTTPDBSessionMiddleware,
    ContextAlreadyInitiatedError,
    OutsideScope,
    after_commit,
    after_rollback,
    auto_commit_by_status_code,
    current_unit,
    db_session,
    in_new_unit,
    init_db_session_ctx,
    is_context_initiated,
    reset_db_session_ctx,
    rollback_all_sessions,
)
from transept.gate.asgi import ASGIGate

pytestmark = pytest.mark.anyio


class Gated(Quart):
    """Settles when a view has returned, where the app's own error handlers still catch what that raises."""

    async def dispatch_request(self, request_context: Any = None) -> Any:
        token = init_db_session_ctx()
        try:
            response = await self.make_response(await super().dispatch_request(request_context))
            await auto_commit_by_status_code(response.status_code)
            return response
        finally:
            await reset_db_session_ctx(token)


@pytest.fixture(params=["sqlite", "postgres"])
def tables(request: pytest.FixtureRequest) -> File | Postgres:
    return request.getfixturevalue("file" if request.param == "sqlite" else "pg")


@pytest.fixture
async def database(tables: File | Postgres) -> AsyncIterator[Any]:
    """After each test nothing is held."""
    made = tables.config()
    yield made
    assert await eventually(lambda: out_of_pool(made) == 0)
    await made.stop()


def filled(app: Quart, database: Any, told: list[Any]) -> Quart:
    """The app with views that write, and error handlers of its own."""

    async def write(v: int) -> None:
        await (await db_session(database)).execute(insert(v))

    @app.post("/answers/<int:status>")
    async def answers(status: int) -> Any:
        await write(status)
        after_commit(lambda: told.append("kept"))
        after_rollback(lambda: told.append("lost"))
        return "told", status

    @app.post("/violates")
    async def violates() -> Any:
        await write(1)
        await (await db_session(database)).execute(VIOLATION)
        return "told", 201

    @app.post("/raises")
    async def raises() -> Any:
        await write(2)
        raise KeyError("handled by the app")

    @app.post("/breaks")
    async def breaks() -> Any:
        await write(3)
        raise ValueError("handled by nobody")

    @app.post("/aborts")
    async def aborts() -> Any:
        await write(4)
        abort(418)

    @app.errorhandler(KeyError)
    async def key_error(error: Exception) -> Any:
        return "handled", 422

    @app.errorhandler(IntegrityError)
    async def integrity_error(error: Exception) -> Any:
        return "handled", 409

    return app


def behind_the_middleware(database: Any, told: list[Any]) -> Quart:
    app = filled(Quart(__name__), database, told)
    app.asgi_app = ASGIHTTPDBSessionMiddleware(app.asgi_app)  # type: ignore[method-assign]
    return app


def behind_a_gate_that_answers(database: Any, told: list[Any]) -> Quart:
    async def answer(scope: Any, receive: Any, send: Any, error: Exception) -> bool:
        if not isinstance(error, IntegrityError):
            return False
        await send({"type": "http.response.start", "status": 409, "headers": []})
        await send({"type": "http.response.body", "body": b"answered"})
        return True

    app = filled(Quart(__name__), database, told)
    app.asgi_app = ASGIGate(app.asgi_app, database, answer=answer)  # type: ignore[method-assign]
    return app


def with_a_gate_of_its_own(database: Any, told: list[Any]) -> Quart:
    return filled(Gated(__name__), database, told)


GATES = [behind_the_middleware, behind_a_gate_that_answers, with_a_gate_of_its_own]
AT_COMMIT = {behind_the_middleware: 500, behind_a_gate_that_answers: 409, with_a_gate_of_its_own: 409}

every_gate = pytest.mark.parametrize("gate", GATES, ids=lambda gate: gate.__name__)


@every_gate
async def test_the_status_decides_what_is_kept(gate: Any, database: Any, tables: File | Postgres) -> None:
    told: list[Any] = []
    app = gate(database, told)
    for status in (201, 303, 404):
        assert (await post(app, f"/answers/{status}")).status_code == status
    assert (tables.held(), told) == ([201], ["kept", "lost", "lost"])


@every_gate
@pytest.mark.parametrize(("path", "status"), [("/raises", 422), ("/breaks", 500), ("/aborts", 418)])
async def test_a_view_that_raises_is_answered_by_the_app_and_rolled_back(
    gate: Any, path: str, status: int, database: Any, tables: File | Postgres
) -> None:
    assert (await post(gate(database, []), path)).status_code == status
    assert tables.held() == []


@every_gate
async def test_a_commit_that_fails_is_no_success(gate: Any, database: Any, tables: File | Postgres) -> None:
    """Nothing is kept or held, and the next request is served."""
    app = gate(database, [])
    assert (await post(app, "/violates")).status_code == AT_COMMIT[gate]
    assert (tables.held(), out_of_pool(database)) == ([], 0)
    assert (await post(app, "/answers/200")).status_code == 200
    assert tables.held() == [200]


@every_gate
async def test_requests_at_the_same_time_have_sessions_of_their_own(
    gate: Any, database: Any, tables: File | Postgres
) -> None:
    app = gate(database, [])
    statuses = [200, 201, 202, 400, 404] * 4
    answers = await asyncio.gather(*(post(app, f"/answers/{status}") for status in statuses))
    assert [one.status_code for one in answers] == statuses
    assert tables.held() == sorted(status for status in statuses if status < 300)


@every_gate
async def test_a_client_that_leaves_while_the_view_works_leaves_nothing(
    gate: Any, database: Any, tables: File | Postgres
) -> None:
    """Quart listens for that, and cancels the view."""
    app, gone, told = gate(database, []), asyncio.Event(), []
    ended = asyncio.Event()

    @app.post("/")
    async def slow() -> Any:
        await (await db_session(database)).execute(insert(1))
        gone.set()
        try:
            await asyncio.sleep(20)
        finally:
            ended.set()
        return "too late", 201

    async with asyncio.timeout(10):
        await http(app, told, method="POST", gone=gone)
        await ended.wait()
    assert (told, tables.held()) == ([], [])
    assert await eventually(lambda: out_of_pool(database) == 0)


@pytest.mark.parametrize("gate", [behind_the_middleware, behind_a_gate_that_answers])
async def test_a_request_that_is_cancelled_leaves_nothing_though_its_view_runs_on(
    gate: Any, database: Any, tables: File | Postgres
) -> None:
    """Quart's views are tasks that nobody cancels with their request."""
    app, seen = gate(database, []), asyncio.Event()

    @app.post("/slow")
    async def slow() -> Any:
        session = await db_session(database)
        await session.execute(insert(1))
        await asyncio.sleep(0.2)
        with pytest.raises(OutsideScope):
            await session.execute(insert(2))
        seen.set()
        return "too late", 201

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await post(app, "/slow")
    assert out_of_pool(database) == 0
    async with asyncio.timeout(5):
        await seen.wait()
    assert tables.held() == []


async def test_a_background_task_and_each_message_of_a_websocket_have_units_of_their_own(
    database: Any, tables: File | Postgres
) -> None:
    app = behind_the_middleware(database, [])

    @in_new_unit
    async def place(v: int) -> None:
        await (await db_session(database)).execute(insert(v))
        if v < 0:
            raise ValueError

    @app.post("/later")
    async def later() -> Any:
        await (await db_session(database)).execute(insert(99))
        app.add_background_task(place, 1)
        return "refused", 400

    @app.websocket("/orders")
    async def orders() -> None:
        while True:
            try:
                await place(int(await websocket.receive()))
            except ValueError:
                await websocket.send("lost")
            else:
                await websocket.send("kept")

    async with app.test_app() as running:
        client = running.test_client()
        assert (await client.post("/later")).status_code == 400
        assert await eventually(lambda: tables.held() == [1])
        async with client.websocket("/orders") as socket:
            for sent, answer in (("2", "kept"), ("-3", "lost"), ("4", "kept")):
                await socket.send(sent)
                assert await socket.receive() == answer
                assert out_of_pool(database) == 0
    assert tables.held() == [1, 2, 4]


async def test_what_runs_after_a_gate_written_by_hand_has_no_context(database: Any, tables: File | Postgres) -> None:
    app = with_a_gate_of_its_own(database, [])

    @app.post("/streams")
    async def streams() -> Any:
        async def body() -> AsyncIterator[bytes]:
            assert not is_context_initiated()
            with pytest.raises(OutsideScope):
                await db_session(database)
            yield b"streamed"

        await (await db_session(database)).execute(insert(1))
        return body()

    assert (await post(app, "/streams")).text == "streamed"
    assert tables.held() == [1]


async def test_a_context_is_begun_once_unless_it_is_forced(database: Any, tables: File | Postgres) -> None:
    """One inside another is independent of it; without closing, its sessions are left as they are."""
    outer = init_db_session_ctx()
    with pytest.raises(ContextAlreadyInitiatedError, match="force=True"):
        init_db_session_ctx()
    inner = init_db_session_ctx(force=True)
    await (await db_session(database)).execute(insert(1))
    await auto_commit_by_status_code(200)
    await reset_db_session_ctx(inner)
    await (await db_session(database)).execute(insert(2))
    unit = current_unit()
    await reset_db_session_ctx(outer, with_close=False)
    assert (is_context_initiated(), tables.held(), out_of_pool(database)) == (False, [1], 1)
    await unit.close()
    assert tables.held() == [1]


async def test_what_is_rolled_back_by_hand_is_gone_and_the_session_goes_on_until_the_end(
    database: Any, tables: File | Postgres
) -> None:
    token = init_db_session_ctx()
    session = await db_session(database)
    await session.execute(insert(1))
    await rollback_all_sessions()
    assert (tables.held(), out_of_pool(database)) == ([], 0)
    await session.execute(insert(2))
    await reset_db_session_ctx(token)
    with pytest.raises(OutsideScope):
        await session.execute(insert(3))
    assert tables.held() == []
