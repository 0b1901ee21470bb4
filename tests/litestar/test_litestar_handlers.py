"""`before_send` handlers, ours and the app's own; sessions and units of work inside Litestar's handlers."""

import asyncio
import threading
from collections.abc import Collection
from typing import Any

import pytest
from held import COUNT, VIOLATION, File, Postgres, calling, get, http, insert, out_of_pool, post, websocket
from litestar import Litestar, Request, Response, WebSocket, route
from litestar import get as at_get
from litestar import post as at_post
from litestar import websocket as at_websocket
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.response import Stream
from litestar_app import LAYERS, app_with, clean, config_of, layers, sync_config_of
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from transept import (
    ConcurrentUseError,
    OutsideScope,
    after_commit,
    after_rollback,
    atomic_db_session,
    commit_db_session,
    current_unit,
    db_session,
    doom,
    in_new_unit,
    rollback_db_session,
    sync_db_session,
    transaction,
    unit_of_work,
)
from transept.extensions import litestar as handlers
from transept.extensions.litestar import Transept, autocommit_before_send_handler, autocommit_handler_maker

pytestmark = pytest.mark.anyio

KEY = "_sqlalchemy_db_session"
STATUSES = (200, 201, 204, 302, 303, 400, 404, 422, 500)
behind = pytest.mark.parametrize("layer", LAYERS)


def asked(request: Request) -> int:
    """The number in the path."""
    (number,) = request.path_params.values()
    return int(number)


@at_post("/{status:int}")
async def write(request: Request, db_session: AsyncSession) -> Response[None]:
    status = asked(request)
    await db_session.execute(insert(status))
    return Response(None, status_code=status)


@at_post("/{status:int}", sync_to_thread=True)
def write_in_a_thread(request: Request, db_session: Session) -> Response[None]:
    status = asked(request)
    db_session.execute(insert(status))
    return Response(None, status_code=status)


async def kept(app: Litestar, tables: Any) -> list[int]:
    """Which of the statuses commit."""
    async with calling(app, raises=True) as client:
        for status in STATUSES:
            assert (await client.post(f"/{status}")).status_code == status
    rows: list[int] = tables.held()
    return rows


def successes(*more: int, without: Collection[int] = ()) -> list[int]:
    return sorted({200, 201, 204, *more} - set(without))


# Ours: which statuses commit


@pytest.mark.parametrize(
    ("mode", "commits"),
    [
        (None, []),
        ("autocommit", successes()),
        ("autocommit_include_redirect", successes(302, 303)),
        ("autocommit_include_redirects", successes(302, 303)),
    ],
)
@pytest.mark.parametrize("colour", ["async", "sync"])
async def test_a_word_says_which_statuses_commit(file: File, mode: Any, commits: list[int], colour: str) -> None:
    if colour == "async":
        app, _ = app_with(config_of(file, before_send_handler=mode), write)
    else:
        app, _ = app_with(sync_config_of(file, before_send_handler=mode), write_in_a_thread)
    assert await kept(app, file) == commits


MAKERS = [
    ({}, successes()),
    ({"commit_on_redirect": True}, successes(302, 303)),
    ({"extra_commit_statuses": {404, 500}}, successes(404, 500)),
    ({"extra_rollback_statuses": [204]}, successes(without=[204])),
    ({"commit_on_redirect": True, "extra_rollback_statuses": {303}}, successes(302)),
    (
        {"commit_on_redirect": False, "extra_commit_statuses": {302}, "extra_rollback_statuses": {200}},
        successes(302, without=[200]),
    ),
]


@pytest.mark.parametrize(("arguments", "commits"), MAKERS)
@pytest.mark.parametrize("name", ["autocommit_handler_maker", "async_autocommit_handler_maker"])
@pytest.mark.parametrize("given_to", ["config", "app"])
async def test_an_async_handler_maker_says_which_statuses_commit(
    file: File, arguments: Any, commits: list[int], name: str, given_to: str
) -> None:
    made = getattr(handlers, name)(**arguments)
    if given_to == "config":
        app, _ = app_with(config_of(file, before_send_handler=made), write)
    else:
        app, _ = app_with(config_of(file, before_send_handler=None), write, before_send=[made])
        assert app.before_send == []
    assert await kept(app, file) == commits


@pytest.mark.parametrize(("arguments", "commits"), MAKERS)
@pytest.mark.parametrize("given_to", ["config", "app"])
async def test_a_sync_handler_maker_says_which_statuses_commit(
    file: File, arguments: Any, commits: list[int], given_to: str
) -> None:
    made = handlers.sync_autocommit_handler_maker(**arguments)
    if given_to == "config":
        app, _ = app_with(sync_config_of(file, before_send_handler=made), write_in_a_thread)
    else:
        app, _ = app_with(sync_config_of(file, before_send_handler=None), write_in_a_thread, before_send=[made])
    assert await kept(app, file) == commits


@pytest.mark.parametrize(
    ("name", "commits"),
    [
        ("default_before_send_handler", []),
        ("async_default_before_send_handler", []),
        ("autocommit_before_send_handler", successes()),
        ("async_autocommit_before_send_handler", successes()),
        ("sync_default_before_send_handler", []),
        ("sync_autocommit_before_send_handler", successes()),
    ],
)
@pytest.mark.parametrize("given_to", ["config", "app"])
async def test_a_ready_made_handler_says_which_statuses_commit(
    file: File, name: str, commits: list[int], given_to: str
) -> None:
    made, blocking = getattr(handlers, name), name.startswith("sync_")
    configure = sync_config_of if blocking else config_of
    endpoint = write_in_a_thread if blocking else write
    if given_to == "config":
        app, _ = app_with(configure(file, before_send_handler=made), endpoint)
    else:
        app, _ = app_with(configure(file, before_send_handler=None), endpoint, before_send=[made])
    assert await kept(app, file) == commits


@pytest.mark.parametrize("name", ["default_handler_maker", "async_default_handler_maker", "sync_default_handler_maker"])
async def test_a_default_handler_commits_what_the_app_commits(file: File, name: str) -> None:
    made = getattr(handlers, name)()
    if made.blocking:

        @at_post("/{status:int}", sync_to_thread=True)
        def write(request: Request, db_session: Session) -> Response[None]:
            status = asked(request)
            db_session.execute(insert(status))
            db_session.commit()
            db_session.execute(insert(-status))
            return Response(None, status_code=status)

        app, _ = app_with(sync_config_of(file, before_send_handler=made), write)
    else:

        @at_post("/{status:int}")
        async def write_async(request: Request, db_session: AsyncSession) -> Response[None]:
            status = asked(request)
            await db_session.execute(insert(status))
            await db_session.commit()
            await db_session.execute(insert(-status))
            return Response(None, status_code=status)

        app, _ = app_with(config_of(file, before_send_handler=made), write_async)
    assert await kept(app, file) == sorted(STATUSES)


async def test_handlers_of_two_databases_each_decide_for_their_own(file: File, other_file: File) -> None:
    first = config_of(file, before_send_handler=None)
    second = config_of(other_file, before_send_handler=None, bind_key="other")
    given = [
        autocommit_handler_maker(),
        autocommit_handler_maker(extra_commit_statuses={404}, session_scope_key="_sqlalchemy_other_session"),
    ]

    @at_post("/{status:int}")
    async def write_both(request: Request, db_session: AsyncSession, other_session: AsyncSession) -> Response[None]:
        status = asked(request)
        await db_session.execute(insert(status))
        await other_session.execute(insert(status))
        return Response(None, status_code=status)

    app, _ = app_with([first, second], write_both, before_send=given)
    assert await kept(app, file) == successes()
    assert other_file.held() == successes(404)


async def test_the_apps_own_before_send_hooks_run_as_ever_beside_a_handler_of_ours(file: File) -> None:
    heard: list[Any] = []

    async def hook(message: Any, scope: Any) -> None:
        if message["type"] == "http.response.start":
            heard.append((message["status"], file.held()))
            message["headers"] = [*message["headers"], (b"x-hook", b"yes")]

    app, _ = app_with(
        config_of(file, before_send_handler=None), write, before_send=[hook, autocommit_before_send_handler]
    )
    response = await post(app, "/201")
    assert (response.status_code, response.headers["x-hook"]) == (201, "yes")
    assert (heard, file.held()) == ([(201, [])], [201])


@behind
async def test_what_a_before_send_hook_of_the_app_writes_is_part_of_the_request(file: File, layer: str) -> None:
    given = layers()[layer]

    async def hook(message: Any, scope: Any) -> None:
        if message["type"] == "http.response.start":
            await (await db_session("default")).execute(insert(7))

    @at_post("/", cache=given.cache)
    async def write(db_session: AsyncSession) -> Response[None]:
        await db_session.execute(insert(1))
        return Response(None, status_code=201)

    app, _ = app_with(config_of(file), write, before_send=[hook], **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        assert (await client.post("/", headers=given.sends)).status_code == 201
    assert file.held() == [1, 7]


# The app's own


class Hook:
    """A `before_send_handler` that notes what it hears and sees, and does what it is told at each start."""

    def __init__(self, tables: Any, does: Any = None) -> None:
        self.tables, self.does = tables, does
        self.heard: list[Any] = []
        self.sessions: list[Any] = []
        self.kept: list[Any] = []

    async def __call__(self, message: Any, scope: Any) -> None:
        kind = message["type"].rpartition(".")[2]
        self.heard.append(message["status"] if kind == "start" else kind)
        if kind == "start":
            self.sessions.append(scope["state"].get(KEY))
            self.kept.append(self.tables.held())
            if self.does is not None:
                await self.does(message, scope)


async def commit(message: Any, scope: Any) -> None:
    if message["status"] < 400:
        await scope["state"][KEY].commit()


@behind
async def test_a_handler_of_the_apps_own_runs_once_before_anything_is_settled(file: File, layer: str) -> None:
    given, seen = layers()[layer], []
    hook = Hook(file, commit)

    @at_post("/", cache=given.cache)
    async def write(db_session: AsyncSession) -> str:
        seen.append(db_session)
        await db_session.execute(insert(1))
        return "ok"

    app, _ = app_with(config_of(file, before_send_handler=hook), write, **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        assert (await client.post("/", headers=given.sends)).status_code == 201
    assert hook.heard == [201, "body"]
    assert [session is seen[0] for session in hook.sessions] == [True]
    assert (hook.kept, file.held()) == ([[]], [1])


@pytest.mark.parametrize("status", [201, 409])
async def test_a_handler_of_the_apps_own_decides_what_is_kept(
    file: File, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def the_other_way_round(message: Any, scope: Any) -> None:
        session = scope["state"][KEY]
        await (session.commit() if message["status"] >= 400 else session.rollback())

    app, _ = app_with(config_of(file, before_send_handler=Hook(file, the_other_way_round)), write)
    assert (await post(app, f"/{status}")).status_code == status
    assert file.held() == ([409] if status == 409 else [])
    assert "rolled back" not in caplog.text


async def test_a_handler_of_the_apps_own_that_commits_nothing_keeps_nothing_and_is_warned(
    file: File, caplog: pytest.LogCaptureFixture
) -> None:
    app, _ = app_with(config_of(file, before_send_handler=Hook(file)), write)
    assert (await post(app, "/201")).status_code == 201
    assert file.held() == []
    assert "POST /201 answers 201, but its work" in caplog.text


async def test_a_plain_function_runs_in_a_thread_with_a_blocking_session(file: File) -> None:
    where: list[Any] = []

    def commits(message: Any, scope: Any) -> None:
        session = scope["state"].get(KEY)
        where.append((message["type"], threading.current_thread() is threading.main_thread()))
        if message["type"] == "http.response.start" and session is not None:
            assert session is sync_db_session("default")
            session.commit()

    app, _ = app_with(sync_config_of(file, before_send_handler=commits), write_in_a_thread)
    assert (await post(app, "/400")).status_code == 400
    assert file.held() == [400]
    assert where == [("http.response.start", False), ("http.response.body", False)]


async def test_a_request_without_a_session_shows_none_to_the_handler(file: File) -> None:
    hook = Hook(file)

    @at_get("/")
    async def nothing() -> str:
        return "ok"

    app, _ = app_with(config_of(file, before_send_handler=hook), nothing)
    assert (await get(app)).status_code == 200
    assert (await get(app, "/none")).status_code == 404
    assert (hook.heard, hook.sessions) == ([200, "body", 404, "body"], [None, None])


async def test_a_handler_may_be_the_first_to_open_the_session(file: File) -> None:
    async def opens(message: Any, scope: Any) -> None:
        session = config.provide_session(scope["app"].state, scope)
        await session.execute(insert(message["status"]))
        await session.commit()

    @at_get("/")
    async def nothing() -> str:
        return "ok"

    config = config_of(file, before_send_handler=Hook(file, opens))
    app, _ = app_with(config, nothing)
    assert (await get(app)).status_code == 200
    assert (file.held(), out_of_pool(config)) == ([200], 0)


@behind
async def test_what_the_handler_commits_may_fail_and_is_answered_as_a_failed_commit(pg: Postgres, layer: str) -> None:
    given = layers()[layer]
    hook = Hook(pg, commit)
    config = config_of(pg, before_send_handler=hook)

    @at_post("/", cache=given.cache)
    async def write(db_session: AsyncSession) -> str:
        await db_session.execute(insert(1))
        await db_session.execute(VIOLATION)
        return "ok"

    def conflict(request: Request, error: Exception) -> Response:
        return Response("conflict", status_code=409)

    app, _ = app_with(config, write, exception_handlers={IntegrityError: conflict}, **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        assert (await client.post("/", headers=given.sends)).status_code == 409
    assert (hook.heard, given.noting.statuses in ([], [409])) == ([201, 409, "body"], True)
    await clean(pg, config)
    assert pg.held() == []


@behind
async def test_a_handler_that_raises_at_the_start_keeps_nothing_and_the_app_answers(pg: Postgres, layer: str) -> None:
    given = layers()[layer]

    class Refused(Exception):
        pass

    async def refuses(message: Any, scope: Any) -> None:
        if message["status"] == 201:
            await scope["state"][KEY].execute(insert(2))
            raise Refused

    def answer(request: Request, error: Exception) -> Response:
        return Response("refused", status_code=418)

    @at_post("/", cache=given.cache)
    async def write(db_session: AsyncSession) -> str:
        await db_session.execute(insert(1))
        return "ok"

    hook = Hook(pg, refuses)
    config = config_of(pg, before_send_handler=hook)
    for known, status in (({Refused: answer}, 418), ({}, 500)):
        hook.heard.clear()
        app, _ = app_with(config, write, exception_handlers=known, **given.options)
        async with calling(app, raises=True) as client:
            client.cookies.update(given.cookies)
            assert (await client.post("/", headers=given.sends)).status_code == status
        assert hook.heard == [201, status, "body"]
        await clean(pg, config)
    assert pg.held() == []
    assert 201 not in given.noting.statuses


async def test_a_handler_that_always_raises_keeps_nothing(file: File) -> None:
    async def raises(message: Any, scope: Any) -> None:
        raise ZeroDivisionError

    config = config_of(file, before_send_handler=raises)
    app, _ = app_with(config, write)
    async with calling(app) as client:
        assert (await client.post("/201")).status_code == 500
    with pytest.raises(ZeroDivisionError):
        async with calling(app, raises=True) as client:
            await client.post("/201")
    assert (file.held(), out_of_pool(config)) == ([], 0)


async def test_a_handler_that_raises_at_a_body_message_cuts_it_off(file: File) -> None:
    async def raises(message: Any, scope: Any) -> None:
        if message["type"] == "http.response.body" and not message["more_body"]:
            raise ZeroDivisionError

    @at_post("/")
    async def stream(db_session: AsyncSession) -> Stream:
        await db_session.execute(insert(1))
        await db_session.commit()

        async def body() -> Any:
            yield b"x"
            await db_session.execute(insert(2))

        return Stream(body())

    config, told = config_of(file, before_send_handler=raises), []
    app, _ = app_with(config, stream)
    with pytest.raises(Exception, match=r"."):
        await http(app, told, method="POST")
    assert [message.get("more_body") for message in told] == [None, True]
    assert (file.held(), out_of_pool(config)) == ([1], 0)


@behind
async def test_a_handler_may_call_ours_by_hand(pg: Postgres, layer: str) -> None:
    given = layers()[layer]
    config = config_of(pg, before_send_handler=autocommit_by_hand)

    @at_post("/", cache=given.cache)
    async def write(request: Request, db_session: AsyncSession) -> Response[None]:
        status = int(request.query_params["status"])
        await db_session.execute(insert(status))
        if status == 200:
            await db_session.execute(VIOLATION)
        return Response(None, status_code=status)

    app, _ = app_with(config, write, **given.options)
    async with calling(app, raises=True) as client:
        client.cookies.update(given.cookies)
        for status, told in ((201, 201), (302, 302), (400, 400), (200, 500)):
            response = await client.post("/", params={"status": status}, headers=given.sends)
            assert response.status_code == told
    await clean(pg, config)
    assert pg.held() == [201]


async def autocommit_by_hand(message: Any, scope: Any) -> None:
    await autocommit_before_send_handler(message, scope)


async def test_a_plain_function_may_call_the_sync_one_by_hand(file: File) -> None:
    def by_hand(message: Any, scope: Any) -> None:
        handlers.sync_autocommit_handler_maker(extra_commit_statuses={404})(message, scope)

    app, _ = app_with(sync_config_of(file, before_send_handler=by_hand), write_in_a_thread)
    assert await kept(app, file) == successes(404)


async def test_handlers_of_two_databases_find_each_their_own_session(file: File, other_file: File) -> None:
    found: list[Any] = []

    async def first(message: Any, scope: Any) -> None:
        if message["type"] == "http.response.start":
            found.append(scope["state"][KEY])
            await scope["state"][KEY].commit()

    async def second(message: Any, scope: Any) -> None:
        if message["type"] == "http.response.start":
            found.append(scope["state"]["mine"])
            await scope["state"]["mine"].rollback()

    given: list[Any] = []

    @at_post("/")
    async def write_both(db_session: AsyncSession, other_session: AsyncSession) -> None:
        given.extend([db_session, other_session])
        await db_session.execute(insert(1))
        await other_session.execute(insert(2))

    one = config_of(file, before_send_handler=first)
    other = config_of(other_file, before_send_handler=second, bind_key="other", session_scope_key="mine")
    app, _ = app_with([one, other], write_both)
    assert (await post(app)).status_code == 201
    assert found == given
    assert (file.held(), other_file.held()) == ([1], [])


async def test_a_handler_hears_the_messages_of_a_websocket_and_of_each_chunk(file: File) -> None:
    hook = Hook(file)

    @at_websocket("/")
    async def socket(socket: WebSocket, db_session: AsyncSession) -> None:
        await socket.accept()
        await db_session.execute(insert(await socket.receive_json()))
        await socket.send_json(1)
        await socket.close()

    @at_get("/stream")
    async def stream() -> Stream:
        return Stream(iter([b"1", b"2"]))

    app, _ = app_with(config_of(file, before_send_handler=hook), socket, stream)
    assert len(await websocket(app, 5)) == 3
    assert hook.heard == ["accept", "send", "close"]
    assert file.held() == [5]
    hook.heard.clear()
    assert (await get(app, "/stream")).text == "12"
    assert hook.heard == [200, "body", "body", "body"]


async def test_each_request_shows_the_handler_its_own_session(file: File) -> None:
    hook = Hook(file, commit)
    app, _ = app_with(config_of(file, before_send_handler=hook), write)
    async with calling(app, raises=True) as client:
        await asyncio.gather(*(client.post(f"/{status}") for status in (200, 201, 202, 203)))
    assert len(set(map(id, hook.sessions))) == 4
    assert file.held() == [200, 201, 202, 203]


async def test_a_handler_may_change_the_headers_of_the_response(file: File) -> None:
    async def marks(message: Any, scope: Any) -> None:
        message["headers"] = [*message["headers"], (b"x-kept", b"yes")]

    for layer in layers().values():
        app, _ = app_with(config_of(file, before_send_handler=Hook(file, marks)), write, **layer.options)
        async with calling(app, raises=True) as client:
            client.cookies.update(layer.cookies)
            response = await client.post("/201", headers=layer.sends)
        assert response.headers.get_list("x-kept") == ["yes"]


# The session that is injected


async def test_the_injected_session_is_the_one_of_the_unit_wherever_it_is_asked_for(file: File) -> None:
    config = config_of(file)

    async def dependency(db_session: AsyncSession) -> AsyncSession:
        await db_session.execute(insert(1))
        return db_session

    @at_post("/", dependencies={"other": Provide(dependency)})
    async def write(request: Request, db_session: AsyncSession, other: AsyncSession) -> None:
        again = [
            other,
            db.get_session(request),
            db.get_async_session(request, "default"),
            config.provide_session(request.app.state, request.scope),
            await current_session(config),
            current_unit().session(config),
        ]
        assert all(one is db_session for one in again)
        await db_session.execute(insert(2))

    app, db = app_with(config, write)
    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == 201
    assert (file.held(), out_of_pool(config)) == ([1, 2], 0)


async def current_session(config: Any) -> Any:
    return await db_session(config)


async def test_an_unused_session_takes_no_connection(pg: Postgres) -> None:
    @at_get("/")
    async def nothing(db_session: AsyncSession, db_engine: Any) -> str:
        assert (pg.backends(), out_of_pool(config)) == (0, 0)
        return "ok"

    config = config_of(pg)
    app, _ = app_with(config, nothing)
    assert (await get(app)).text == "ok"
    assert (pg.backends(), out_of_pool(config)) == (0, 0)


async def test_a_request_that_waits_for_nothing_of_a_full_pool_is_served(pg: Postgres) -> None:
    config = config_of(pg, pool_size=1)

    @at_get("/")
    async def nothing(db_session: AsyncSession) -> str:
        return "ok"

    app, _ = app_with(config, nothing)
    async with config.get_engine().connect() as connection:
        await connection.execute(text("SELECT 1"))
        async with calling(app, raises=True) as client:
            answers = await asyncio.gather(*(client.get("/") for _ in range(50)), client.get("/none"))
    assert [answer.status_code for answer in answers] == [200] * 50 + [404]


# The context API


async def test_the_context_api_works_in_a_handler_its_dependencies_and_hooks(pg: Postgres) -> None:
    config, ran = config_of(pg), []

    async def dependency() -> int:
        await (await db_session(config)).execute(insert(1))
        after_commit(lambda: ran.append("dependency"))
        return 1

    @at_post("/", dependencies={"done": Provide(dependency)})
    async def write(done: int) -> int:
        session = await db_session()
        await session.execute(insert(2))
        after_commit(lambda: ran.append("handler"))
        after_rollback(lambda: ran.append("rollback"))
        return int(await session.scalar(COUNT))

    app, _ = app_with(config, write)
    response = await post(app)
    assert (response.status_code, response.text) == (201, "2")
    assert (pg.held(), ran, out_of_pool(config)) == ([1, 2], ["dependency", "handler"], 0)


@behind
async def test_hooks_run_after_the_commit_and_before_the_response(pg: Postgres, layer: str) -> None:
    given, seen = layers()[layer], []

    @at_post("/", cache=given.cache)
    async def write(db_session: AsyncSession) -> str:
        await db_session.execute(insert(1))

        async def hook() -> None:
            seen.append((pg.held(), list(given.noting.statuses), len(told)))

        after_commit(hook)
        return "ok"

    told: list[Any] = []
    app, _ = app_with(config_of(pg), write, **{**given.options, "csrf_config": None, "allowed_hosts": None})
    await http(app, told, method="POST")
    assert seen == [([1], [], 0)]
    assert [message.get("status") for message in told] == [201, None]


@pytest.mark.parametrize("colour", ["async", "thread"])
async def test_a_doomed_unit_keeps_nothing_and_the_route_is_named(
    file: File, colour: str, caplog: pytest.LogCaptureFixture
) -> None:
    @at_post("/")
    async def doomed(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))
        doom("second thoughts")

    @at_post("/", sync_to_thread=True)
    def doomed_in_a_thread(db_session: Session) -> None:
        db_session.execute(insert(1))
        doom("second thoughts")

    if colour == "async":
        app, _ = app_with(config_of(file), doomed)
    else:
        app, _ = app_with(sync_config_of(file), doomed_in_a_thread)
    assert (await post(app)).status_code == 201
    assert file.held() == []
    assert caplog.text.count("second thoughts") == 1
    assert "POST /" in caplog.text


async def test_the_context_api_works_in_a_thread(pg: Postgres) -> None:
    config, ran = sync_config_of(pg), []

    @at_post("/", sync_to_thread=True)
    def write(db_session: Session) -> int:
        assert threading.current_thread() is not threading.main_thread()
        assert sync_db_session(config) is sync_db_session() is db_session
        sync_db_session().execute(insert(1))
        after_commit(lambda: ran.append(threading.current_thread() is threading.main_thread()))
        return int(db_session.scalar(COUNT) or 0)

    app, _ = app_with(config, write)
    assert (await post(app)).text == "1"
    assert (pg.held(), ran, out_of_pool(config)) == ([1], [False], 0)


async def test_blocks_and_commits_by_hand_work_in_a_handler(pg: Postgres) -> None:
    config = config_of(pg)

    @at_post("/")
    async def write() -> None:
        async with atomic_db_session(config) as session:
            await session.execute(insert(1))
        assert pg.held() == [1]
        with pytest.raises(KeyError):
            async with unit_of_work():
                await (await db_session()).execute(insert(2))
                raise KeyError
        async with transaction():
            await (await db_session()).execute(insert(3))
        await commit_db_session()
        assert pg.held() == [1, 3]
        await (await db_session()).execute(insert(4))
        await rollback_db_session()
        await (await db_session()).execute(insert(5))
        raise HTTPException("no", status_code=409)

    app, _ = app_with(config, write)
    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == 409
    await clean(pg, config)
    assert pg.held() == [1, 3]


async def test_two_tasks_of_a_handler_in_one_session_are_refused_and_nothing_is_kept(pg: Postgres) -> None:
    config, errors = config_of(pg), []

    @at_post("/")
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))
        done = await asyncio.gather(
            *(db_session.execute(text(f"SELECT pg_sleep(0.05), {number}")) for number in range(3)),
            return_exceptions=True,
        )
        errors.extend(one for one in done if isinstance(one, Exception))
        if errors:
            raise errors[0]

    app, _ = app_with(config, write)
    assert (await post(app)).status_code == 500
    assert [type(error) for error in errors] == [ConcurrentUseError] * 2
    await clean(pg, config)
    assert pg.held() == []


async def test_tasks_of_a_handler_share_its_unit_or_have_their_own(pg: Postgres) -> None:
    config = config_of(pg)

    async def one(number: int) -> None:
        await (await db_session(config)).execute(insert(number))

    @at_post("/")
    async def write() -> None:
        await asyncio.create_task(one(1))
        await asyncio.gather(*(in_new_unit(one)(number) for number in (2, 3)))
        assert pg.held() == [2, 3]
        raise HTTPException("no", status_code=409)

    app, _ = app_with(config, write)
    async with calling(app, raises=True) as client:
        assert (await client.post("/")).status_code == 409
    await clean(pg, config)
    assert pg.held() == [2, 3]


async def test_a_task_that_outlives_its_request_is_outside_of_its_scope(file: File) -> None:
    config, going, errors = config_of(file), asyncio.Event(), []
    tasks: list[asyncio.Task[None]] = []

    async def later() -> None:
        await going.wait()
        try:
            await (await db_session(config)).execute(insert(2))
        except OutsideScope as error:
            errors.append(str(error))

    @at_post("/")
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))
        tasks.append(asyncio.create_task(later()))

    app, _ = app_with(config, write)
    assert (await post(app)).status_code == 201
    going.set()
    await asyncio.gather(*tasks)
    assert file.held() == [1]
    assert "POST / is over" in errors[0]


async def test_concurrent_requests_have_units_of_their_own(pg: Postgres) -> None:
    config = config_of(pg, pool_size=3)

    @at_post("/{number:int}")
    async def write(request: Request, db_session: AsyncSession) -> Response[None]:
        number = asked(request)
        await (await current_session(config)).execute(insert(number))
        await asyncio.sleep(0.01)
        await db_session.execute(VIOLATION if number % 3 == 0 else text("SELECT 1"))
        return Response(None, status_code=201 if number % 2 else 409)

    app, _ = app_with(config, write)
    async with calling(app, raises=True) as client:
        answers = await asyncio.gather(*(client.post(f"/{number}") for number in range(12)))
    assert [answer.status_code for answer in answers] == [409, 201, 409, 500, 409, 201, 409, 201, 409, 500, 409, 201]
    await clean(pg, config)
    assert pg.held() == [1, 5, 7, 11]


async def test_an_error_that_a_savepoint_has_undone_is_kept_as_a_success(pg: Postgres) -> None:
    config = config_of(pg)

    @at_post("/")
    async def write(db_session: AsyncSession) -> None:
        await db_session.execute(insert(1))
        with pytest.raises(DBAPIError):
            async with db_session.begin_nested():
                await db_session.execute(text("SELECT nonsense"))
        await db_session.execute(insert(2))

    app, _ = app_with(config, write)
    assert (await post(app)).status_code == 201
    assert pg.held() == [1, 2]


async def test_two_databases_end_together(pg: Postgres, file: File) -> None:
    @route("/", http_method=["POST"], status_code=201)
    async def write_both(db_session: AsyncSession, other_session: AsyncSession) -> None:
        await other_session.execute(insert(2))
        await db_session.execute(insert(1))
        with pytest.raises(DBAPIError):
            await db_session.execute(text("SELECT nonsense"))

    one, other = config_of(pg), config_of(file, bind_key="other")
    app, _ = app_with([one, other], write_both)
    assert (await post(app)).status_code == 500
    assert (pg.held(), file.held()) == ([], [])


async def test_two_plugins_of_one_app_share_a_unit(pg: Postgres, file: File) -> None:
    first, second = Transept(config_of(pg)), Transept(config_of(file, bind_key="other"))

    @at_post("/")
    async def write_both(db_session: AsyncSession, other_session: AsyncSession) -> None:
        await other_session.execute(insert(2))
        await db_session.execute(insert(1))
        with pytest.raises(DBAPIError):
            await db_session.execute(text("SELECT nonsense"))

    app = Litestar([write_both], plugins=[first, second], openapi_config=None, logging_config=None)
    assert (await post(app)).status_code == 500
    assert (pg.held(), file.held()) == ([], [])
