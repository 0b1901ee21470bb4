"""`async def` views over async databases: they run where the database is, so everything is native."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from time import sleep

import pytest
from flask import Response, current_app, g, render_template_string, request
from flask_site import Child, Held, Parent, Site, site_of
from held import File, Postgres, out_of_pool
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, selectinload

from transept import (
    BlockingCallWarning,
    CommitFailed,
    ConcurrentUseError,
    OutsideScope,
    UsageError,
    after_commit,
    atomic_db_session,
    commit_db_session,
    db_session,
    in_new_unit,
    sync_db_session,
    transaction,
    unit_of_work,
)
from transept.alchemy import EngineConfig, SQLAlchemyAsyncConfig
from transept.extensions.flask import Transept

VARIABLE: ContextVar[str] = ContextVar("variable", default="unset")


def config_of(driver: str, tables: File | Postgres, **settings: object) -> SQLAlchemyAsyncConfig:
    if driver != "psycopg":
        return tables.config(**settings)
    named = {"application_name": tables.name}
    options = EngineConfig(pool_size=5, max_overflow=0, pool_timeout=5, connect_args=named)
    settings = {"commit_mode": "autocommit", **settings}
    return SQLAlchemyAsyncConfig(connection_string=tables.server.url("psycopg"), engine_config=options, **settings)


@pytest.fixture(params=["aiosqlite", "asyncpg", "psycopg"])
def site(request) -> Iterator[Site]:
    tables = request.getfixturevalue("file" if request.param == "aiosqlite" else "pg")
    with site_of(tables, config_of(request.param, tables)) as made:
        made.app.config["PROPAGATE_EXCEPTIONS"] = True
        yield made


@pytest.fixture
def pg_site(pg) -> Iterator[Site]:
    with site_of(pg, pg.config()) as made:
        made.app.config["PROPAGATE_EXCEPTIONS"] = True
        yield made


def answer(site, view):
    """What a view at / answers."""
    site.view(view)
    return site.post()


async def add(v):
    session = await db_session()
    session.add(Held(v=v))
    await session.flush()


def test_the_session_of_an_async_view_is_an_async_session(site):
    async def view():
        session = site.db.get_session()
        assert type(session).__mro__[0] is AsyncSession
        assert session is site.db.get_async_session() is await db_session() is sync_db_session()
        with pytest.raises(UsageError, match="inside an `async def` function"):
            site.db.get_sync_session()
        return "", 201

    assert answer(site, view).status_code == 201


def test_statements_loads_and_savepoints(site):
    async def view():
        session = site.db.get_async_session()
        session.add_all([Parent(id=1, children=[Child()]), Parent(id=2, children=[Child()])])
        await session.flush()
        session.expunge_all()
        found = await session.scalars(select(Parent).options(selectinload(Parent.children)).order_by(Parent.id))
        assert [one.children[0].p for one in found] == [1, 2]
        session.expunge_all()
        parent = await session.get(Parent, 1)
        assert await session.run_sync(lambda _: parent.children[0].p) == 1
        async with session.begin_nested():
            session.add(Held(v=1))
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                session.add(Held(v=2))
                await session.flush()
                raise ZeroDivisionError
        connection = await session.connection()
        await connection.execute(text("INSERT INTO held VALUES (3)"))
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1, 3]


def test_streams(site):
    async def view():
        session = site.db.get_async_session()
        await session.execute(insert(Held), [{"v": v} for v in range(25)])
        seen = []
        async for v in await session.stream_scalars(select(Held.v).order_by(Held.v)):
            seen.append(v)
        assert seen == list(range(25))
        result = await session.stream(text("SELECT v FROM held ORDER BY v"))
        assert await result.fetchone() == (0,)
        await result.close()
        return "", 201

    assert answer(site, view).status_code == 201


def test_the_status_decides(site):
    async def view():
        await add(request.args.get("v", type=int))
        return "", request.args.get("status", type=int)

    site.view(view)
    for v, status in enumerate([200, 201, 302, 404, 500]):
        assert site.post(f"/?v={v}&status={status}").status_code == status
    assert site.held() == [0, 1]


def test_the_response_starts_after_the_commit(site):
    seen = []
    whole = site.app.wsgi_app

    def server(environ, start_response):
        def start(status, headers, exc_info=None):
            seen.append((status, site.held(), out_of_pool(site.config)))
            return start_response(status, headers, exc_info)

        return whole(environ, start)

    site.app.wsgi_app = server

    async def view():
        assert out_of_pool(site.config) == 0
        await add(1)
        assert out_of_pool(site.config) == 1
        return "", 201

    assert answer(site, view).status_code == 201
    assert seen == [("201 CREATED", [1], 0)]


def test_a_failed_commit_is_answered_by_the_apps_handler(site):
    seen = []

    @site.app.errorhandler(IntegrityError)
    async def handler(error):
        seen.append(type(error))
        return "conflict", 409

    async def view():
        await add(1)
        session = await db_session()
        await session.execute(text("INSERT INTO child VALUES (99)"))
        after_commit(lambda: seen.append("never"))
        return "", 201

    assert answer(site, view).status_code == 409
    assert (seen, site.held()) == ([IntegrityError], [])


def test_a_swallowed_error_fails_the_commit(pg_site):
    async def view():
        await add(1)
        with pytest.raises(IntegrityError):
            await (await db_session()).execute(text("INSERT INTO parent VALUES (1), (1)"))
        return "", 201

    with pytest.raises(CommitFailed):
        answer(pg_site, view)
    assert pg_site.held() == []


def test_gather_over_one_session_is_refused_and_names_both(pg_site):
    async def view():
        session = site.db.get_session()
        await session.connection()
        both = (session.execute(text(f"SELECT {n}, pg_sleep(0.05)")) for n in range(2))
        results = await asyncio.gather(*both, return_exceptions=True)
        refused = [one for one in results if isinstance(one, ConcurrentUseError)]
        assert len(refused) == 1
        assert str(refused[0]).count("Task-") == 2
        await add(1)
        return "", 201

    site = pg_site
    assert answer(site, view).status_code == 201
    assert site.held() == [1]


def test_concurrent_work_in_units_of_its_own(pg_site):
    async def view():
        await asyncio.gather(*(in_new_unit(add)(v) for v in range(4)))
        return "", 500

    assert answer(pg_site, view).status_code == 500
    assert pg_site.held() == [0, 1, 2, 3]


def test_every_function_of_a_request_may_be_async(site):
    seen = []

    @site.app.before_request
    async def before():
        await add(1)

    @site.app.after_request
    async def after(response):
        await add(3)
        return response

    @site.app.teardown_request
    async def teardown(error):
        seen.append(("request", error))

    @site.app.teardown_appcontext
    async def teardown_context(error):
        seen.append(("context", error))

    async def view():
        await add(2)
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1, 2, 3]
    assert seen == [("request", None), ("context", None)]


def test_what_an_async_handler_does_is_part_of_the_request(site):
    @site.app.errorhandler(KeyError)
    async def handler(error):
        await add(2)
        return "", 202

    async def view():
        await add(1)
        raise KeyError

    assert answer(site, view).status_code == 202
    assert site.held() == [1, 2]


def test_async_and_plain_functions_share_one_transaction(site):
    sessions = []

    @site.app.before_request
    async def before():
        sessions.append(site.db.get_session().sync_session)
        await add(1)

    @site.app.after_request
    async def after(response):
        sessions.append(site.db.get_session().sync_session)
        assert await site.db.get_session().scalar(select(func.count()).select_from(Held)) == 2
        return response

    def view():
        session = site.db.get_session()
        sessions.append(session)
        assert isinstance(session, Session)
        assert session.get(Held, 1) in session
        site.add(2)
        return render_template_string("{{ held.v }}", held=session.get(Held, 2)), request.args.get("status", 201, int)

    site.view(view)
    assert site.post("/?status=404").status_code == 404
    assert site.held() == []
    assert len({id(one) for one in sessions}) == 1
    assert site.post().status_code == 201
    assert site.held() == [1, 2]


def test_objects_of_an_async_function_load_lazily_in_plain_code(site):
    @site.app.before_request
    async def before():
        session = site.db.get_session()
        session.add(Parent(id=1, children=[Child()]))
        await session.flush()
        session.expunge_all()
        g.parent = await session.get(Parent, 1)

    def view():
        return str([child.p for child in g.parent.children]), 201

    assert answer(site, view).text == "[1]"


def test_context_variables_set_by_async_functions_are_seen_after_them(site):
    seen = []

    @site.app.before_request
    async def before():
        VARIABLE.set("before")

    @site.app.after_request
    def after(response):
        seen.append(VARIABLE.get())
        return response

    async def view():
        seen.append(VARIABLE.get())
        VARIABLE.set("view")
        g.seen = True
        return "", 201

    token = VARIABLE.set("unset")
    try:
        assert answer(site, view).status_code == 201
    finally:
        VARIABLE.reset(token)
    assert seen == ["before", "view"]


def test_the_request_and_the_app_are_at_hand(site):
    async def view():
        await asyncio.sleep(0)
        assert (request.path, current_app.name) == ("/", "site")
        assert await asyncio.to_thread(lambda: (request.method, current_app.name)) == ("POST", "site")
        return "", 201

    assert answer(site, view).status_code == 201


def test_plain_code_in_a_thread_of_an_async_view_gets_the_plain_session(site):
    def plain():
        session = site.db.get_session()
        assert isinstance(session, Session)
        session.add(Held(v=2))
        session.flush()

    async def view():
        await add(1)
        await asyncio.to_thread(plain)
        assert await site.db.get_session().scalar(select(func.count()).select_from(Held)) == 2
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1, 2]


def test_blocks(site):
    async def view():
        await add(1)
        async with unit_of_work():
            await add(2)
        with pytest.raises(ZeroDivisionError):
            async with unit_of_work():
                await add(3)
                raise ZeroDivisionError
        with pytest.raises(UsageError, match="async with"), unit_of_work():
            pass
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [1, 2]


def test_units_of_their_own(pg_site):
    site = pg_site

    async def view():
        await add(1)
        async with transaction("requires_new"):
            await add(2)
        async with site.db.with_session() as session:
            session.add(Held(v=3))
        async with site.db.with_async_session() as session:
            session.add(Held(v=4))
        async with atomic_db_session():
            await add(5)
        assert site.held() == [1, 2, 3, 4, 5]
        await add(6)
        await commit_db_session()
        await add(7)
        return "", 500

    assert answer(site, view).status_code == 500
    assert site.held() == [1, 2, 3, 4, 5, 6]


def test_hooks(site):
    ran = []

    async def coroutine():
        ran.append(threading.current_thread().name)
        await add(2)

    async def view():
        await add(1)
        after_commit(coroutine)
        after_commit(lambda: ran.append(site.db.get_session().scalar(select(func.count()).select_from(Held))))
        return "", 201

    assert answer(site, view).status_code == 201
    assert ran == ["transept-loop", 2]
    assert site.held() == [1, 2]


def test_a_timeout_of_the_apps_own_leaves_nothing(pg_site):
    async def view():
        await add(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await (await db_session()).execute(text("SELECT pg_sleep(30)"))
        return "", 503

    assert answer(pg_site, view).status_code == 503
    assert pg_site.held() == []


def test_a_statement_cut_off_by_a_timeout_cannot_be_committed_over(pg_site):
    async def view():
        await add(1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await (await db_session()).execute(text("SELECT pg_sleep(30)"))
        return "", 201

    with pytest.raises((CommitFailed, PendingRollbackError)):
        answer(pg_site, view)
    assert pg_site.held() == []


def test_an_error_in_an_async_view_has_its_traceback(site):
    async def view():
        await that_fails()

    async def that_fails():
        await add(1)
        raise LookupError("deep")

    with pytest.raises(LookupError) as caught:
        answer(site, view)
    names = [entry.name for entry in caught.traceback]
    assert names.index("view") < names.index("that_fails")
    assert site.held() == []


def test_a_body_after_an_async_view(site):
    async def view():
        await add(1)

        def body():
            session = sync_db_session()
            assert isinstance(session, Session)
            session.add(Held(v=2))
            session.flush()
            yield "a"
            yield str(session.scalar(select(func.count()).select_from(Held)))

        return Response(body(), 201)

    assert answer(site, view).text == "a2"
    assert site.held() == [1, 2]


def test_a_task_that_outlives_its_view(pg_site):
    site = pg_site
    over = threading.Event()
    told: list[object] = []
    done = threading.Event()
    tasks = []

    async def left_behind():
        session = await db_session()
        await asyncio.to_thread(over.wait)
        for use in (db_session, lambda: session.execute(text("SELECT 1")), lambda: in_new_unit(add)(2)):
            try:
                told.append(await use())
            except Exception as error:
                told.append(type(error))
        done.set()

    async def view():
        await add(1)
        tasks.append(asyncio.create_task(left_behind()))
        return "", 201

    answer(site, view).close()
    over.set()
    assert done.wait(5)
    assert told == [OutsideScope, OutsideScope, None]
    assert site.held() == [1, 2]


def test_a_view_that_holds_the_loop_is_named_once(pg_site, recwarn):
    async def sleeper():
        sleep(0.6)  # noqa: ASYNC251 - that is the case
        return "", 200

    pg_site.view(sleeper)
    with pytest.warns(BlockingCallWarning, match=r"sleeper held the background loop for 0\.\d") as caught:
        assert pg_site.get().status_code == 200
    assert caught[0].filename == __file__
    assert caught[0].lineno == sleeper.__code__.co_firstlineno
    assert pg_site.get().status_code == 200


def test_an_app_context_in_an_async_view_has_to_be_committed_by_hand(pg_site):
    site = pg_site

    async def view():
        with pytest.raises(UsageError, match="popped inside an `async def`"), site.app.app_context():
            await add(1)
        with site.app.app_context():
            await add(2)
            await site.db.get_session().commit()
        return "", 201

    assert answer(site, view).status_code == 201
    assert site.held() == [2]


def test_async_views_need_nothing_installed(pg_site):
    """Flask asks for asgiref; with an async database its functions do not go that way."""
    assert subprocess.run([sys.executable, "-c", "import asgiref"], capture_output=True, check=False).returncode != 0

    async def view():
        return "", 201

    assert answer(pg_site, view).status_code == 201


def test_blueprints_and_class_based_views(site):
    from flask import Blueprint
    from flask.views import MethodView

    blueprint = Blueprint("b", __name__, url_prefix="/b")

    @blueprint.before_request
    async def before():
        await add(1)

    class View(MethodView):
        async def post(self):
            await add(2)
            return "", 201

    blueprint.add_url_rule("/", view_func=View.as_view("v"))
    site.app.register_blueprint(blueprint)
    assert site.post("/b/").status_code == 201
    assert site.held() == [1, 2]


def test_mariadb_in_both_colours(mariadb):
    from flask import Flask

    mariadb.execute("DROP TABLE IF EXISTS held", "CREATE TABLE held (v integer PRIMARY KEY) ENGINE=InnoDB")
    config = SQLAlchemyAsyncConfig(connection_string=mariadb.url("asyncmy"), commit_mode="autocommit")
    app = Flask("mariadb")
    db = Transept(config, app)

    @app.post("/plain/<int:v>/<int:status>")
    def plain(v, status):
        session = db.get_session()
        session.add(Held(v=v))
        with session.begin_nested():
            session.add(Held(v=v + 1))
        assert [one.v for one in session.scalars(select(Held).where(Held.v >= v).execution_options(yield_per=1))]
        return "", status

    @app.post("/async/<int:v>/<int:status>")
    async def native(v, status):
        await add(v)
        return "", status

    client = app.test_client()
    paths = ("/plain/1/201", "/plain/3/404", "/async/5/201", "/async/6/500")
    assert [client.post(path).status_code for path in paths] == [201, 404, 201, 500]
    assert mariadb.execute("SELECT v FROM held ORDER BY v") == [(1,), (2,), (5,)]
    assert out_of_pool(config) == 0
    db.close()


@pytest.mark.anyio
@pytest.mark.parametrize("colour", ["plain", "native"])
async def test_a_test_with_a_loop_of_its_own_calls_the_client(pg_site, colour):
    site = pg_site

    async def native():
        await add(1)
        return "", 201

    def plain():
        site.add(1)
        assert site.db.get_session().scalar(select(func.count()).select_from(Held)) == 1
        return "", 201

    assert answer(site, {"native": native, "plain": plain}[colour]).status_code == 201
    assert site.held() == [1]
    site.db.close()
    assert site.tables.backends() == 0


@pytest.mark.anyio
async def test_a_test_with_a_loop_of_its_own_uses_sessions_and_contexts(pg_site):
    site = pg_site
    with site.db.with_session() as session:
        session.add(Held(v=1))
    with site.app.app_context():
        site.add(2)
    assert site.held() == [1, 2]
    site.db.close()
    assert site.tables.backends() == 0
