"""Configurations of a Flask app's databases, their life, and what is refused."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask_site import Held, Site, site_of
from held import COUNT, VIOLATION, File, Postgres, insert
from sqlalchemy import select
from sqlalchemy.engine import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from werkzeug.test import Client

from transept import (
    BlockingCallWarning,
    ImproperConfigurationError,
    OutsideScope,
    Registry,
    UsageError,
    db_session,
    sync_db_session,
)
from transept._portal import HELD_SECONDS
from transept.adapters.aiosqlite import AiosqliteConfig
from transept.extensions import flask as extension
from transept.extensions.flask import EngineConfig, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig, Transept


def memory(**settings: Any) -> SQLAlchemySyncConfig:
    return SQLAlchemySyncConfig(connection_string="sqlite://", **settings)


def async_memory(**settings: Any) -> SQLAlchemyAsyncConfig:
    return SQLAlchemyAsyncConfig(connection_string="sqlite+aiosqlite://", **settings)


def loops() -> int:
    return sum(thread.name == "transept-loop" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _no_loop_is_left() -> Iterator[None]:
    yield
    assert loops() == 0


# Which database


@pytest.mark.parametrize("make", [memory, async_memory])
def test_several_binds_without_a_default_need_a_key_and_are_named(make: Any):
    app = Flask("several")
    db = Transept([make(bind_key="users"), make(bind_key="products")], app)
    with app.app_context():
        for ask in (db.get_session, db.get_sync_session, db.get_connection, db.get_engine, db.get_config):
            with pytest.raises(ImproperConfigurationError, match=r"a key is needed: 'users', 'products'"):
                ask()
        assert db.get_session("users") is not db.get_session("products")
    with pytest.raises(ImproperConfigurationError, match=r"'users', 'products'"):
        db.with_session()
    db.close()


def test_several_binds_with_a_default_mean_that_one():
    app = Flask("default")
    configs = [memory(bind_key="users"), memory()]
    db = Transept(configs, app)
    with app.app_context():
        assert db.get_session() is db.get_session("default") is db.get_session("db_session")
        assert db.get_config() is configs[1]
        assert db.config == configs


def test_one_database_is_meant_whatever_its_bind_key():
    app = Flask("one")
    config = memory(bind_key="users", session_key="mine")
    db = Transept(config, app)
    with app.app_context():
        assert db.get_session() is db.get_session("users") is db.get_session("mine") is db.get_session(config)
        assert db.get_engine() is db.get_sync_engine("users") is config.get_engine()


@pytest.mark.parametrize("several", [False, True])
def test_an_unknown_key_is_refused_with_the_nearest(several: bool):
    app = Flask("unknown")
    db = Transept([memory(bind_key="users"), memory()] if several else memory(bind_key="users"), app)
    with (
        app.app_context(),
        pytest.raises(ImproperConfigurationError, match=r"'user'\. Did you mean 'users'\? There is"),
    ):
        db.get_session("user")


def test_databases_of_another_extension_are_none_of_this_ones():
    app = Flask("two")
    first = Transept(memory(), app)
    other = memory(bind_key="other")
    second = Transept(other, app)
    with app.app_context():
        with pytest.raises(ImproperConfigurationError, match="is none of these databases: 'default'"):
            first.get_session(other)
        assert second.get_session() is second.get_session("other")


# Outside


def test_outside_of_any_context_the_error_says_to_push_one(file_site: Site):
    for ask in (file_site.db.get_session, file_site.db.get_sync_session, file_site.db.get_connection):
        with pytest.raises(OutsideScope, match=r"push one with `with app\.app_context\(\):`, or use `with db\.with_se"):
            ask()
    with file_site.db.with_session() as session:
        assert session.scalar(COUNT) == 0


def test_an_app_without_a_transept_is_named(file_site: Site):
    with Flask("bare").app_context(), pytest.raises(OutsideScope, match=r"the app 'bare' has no Transept: pass app="):
        file_site.db.get_session()


# Several extensions, several apps


def test_a_second_transept_joins_the_first_ones_units(file: File, other_file: File):
    with site_of(file, file.sync_config()) as site:
        other = other_file.sync_config(bind_key="other")
        second = Transept(other, site.app)

        @site.view
        def view():
            site.add(1)
            second.get_session().execute(insert(2))
            return "", 409 if site.held() or other_file.held() else 201

        assert site.post().status_code == 201
        assert (site.held(), other_file.held()) == ([1], [2])
        assert site.app.extensions["transept"] is site.db


def test_a_second_transept_may_bring_the_first_async_database(file: File, other_file: File):
    with site_of(file, file.sync_config()) as site:
        second = Transept(other_file.config(bind_key="other"), site.app)

        @site.view
        async def view():
            await second.get_session().execute(insert(2))
            return "made", 201

        @site.view
        def plain():
            site.add(1)
            assert type(second.get_sync_session().get_bind()) is Engine
            return "made", 201

        site.view(plain, "/plain")
        assert (site.post().status_code, site.post("/plain").status_code) == (201, 201)
        assert (site.held(), other_file.held()) == ([1], [2])
        second.close()


def test_an_equal_bind_key_on_one_app_is_refused():
    app = Flask("equal")
    Transept(memory(), app)
    with pytest.raises(
        ImproperConfigurationError, match="unique name for the `bind_key` attribute: two have 'default'"
    ):
        Transept(memory(), app)


def test_another_timeout_on_one_app_is_refused():
    app = Flask("timeouts")
    Transept(memory(), app, timeout=5)
    with pytest.raises(ImproperConfigurationError, match=r"timeout=60: another Transept on this app has timeout=5,"):
        Transept(memory(bind_key="other"), app)
    Transept(memory(bind_key="other"), app, timeout=5.0)


def test_the_same_object_again_does_nothing(file_site: Site):
    ways = {name: vars(file_site.app)[name] for name in ("wsgi_app", "finalize_request", "handle_exception")}
    file_site.db.init_app(file_site.app)
    assert {name: vars(file_site.app)[name] for name in ways} == ways

    @file_site.view
    def view():
        file_site.add(1)
        return "made", 201

    assert (file_site.post().status_code, file_site.held()) == (201, [1])


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_one_object_serves_several_apps(file: File, colour: str):
    with site_of(file, file.sync_config() if colour == "sync" else file.config()) as site:
        other = Flask("other")
        site.db.init_app(other)

        @site.view
        def view():
            site.add(1)
            return "made", 201

        @other.post("/")
        def of_the_other():
            with site.app.app_context():
                site.add(3)
            site.add(2)
            return "refused", 409

        assert (site.post().status_code, Client(other).post("/").status_code) == (201, 409)
        assert site.held() == [1, 3]


def test_two_apps_may_each_have_a_transept_of_their_own(file: File, other_file: File):
    with site_of(file, file.sync_config()) as site, site_of(other_file, other_file.sync_config()) as other:

        @site.view
        def view():
            site.add(1)
            with pytest.raises(ImproperConfigurationError):
                site.db.get_session(other.config)
            return "made", 201

        @other.view
        def view_of_the_other():
            assert site.post().status_code == 201
            other.add(2)
            return "refused", 409

        assert other.post().status_code == 409
        assert (site.held(), other.held()) == ([1], [])


def test_an_app_that_is_gone_is_not_kept():
    db = Transept(memory())
    app = Flask("gone")
    db.init_app(app)
    with app.app_context():
        db.get_session().execute(select(1))
    gone = weakref.ref(app)
    del app
    gc.collect()
    assert gone() is None
    db.close()


# Settings


@pytest.mark.parametrize("app", [object(), "app", Flask, 1])
def test_what_is_no_app_is_refused(app: Any):
    with pytest.raises(ImproperConfigurationError, match="a Flask app is needed"):
        Transept(memory(), app)
    with pytest.raises(ImproperConfigurationError, match="a Flask app is needed"):
        Transept(memory()).init_app(app)


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ([], r"config=\[\]: at least one database configuration is needed"),
        (None, "config has None, which is no database"),
        ("sqlite://", "config has 'sqlite://', which is no database"),
        (SQLAlchemySyncConfig, r"SQLAlchemySyncConfig is the class: pass an object, SQLAlchemySyncConfig\(...\)"),
        ([memory(), None], "config has None, which is no database"),
        ([memory(), memory()], "unique name for the `bind_key`"),
        (EngineConfig(url="sqlite://"), "config has .*EngineConfig.*, which is no database"),
    ],
)
def test_what_is_no_database_is_refused(config: Any, what: str):
    with pytest.raises(ImproperConfigurationError, match=what):
        Transept(config)


@pytest.mark.parametrize("timeout", [0, -1, "60", None, True, float("inf"), float("nan")])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(timeout: Any):
    with pytest.raises(ImproperConfigurationError, match=r"timeout=.*: seconds are needed, more than 0"):
        Transept(memory(), timeout=timeout)


def test_an_unknown_name_of_the_module_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"transept\.extensions\.flask.*'AdvancedAlchemy'"):
        extension.AdvancedAlchemy  # noqa: B018
    assert {name for name in extension.__all__ if not hasattr(extension, name)} == set()


def test_nothing_is_connected_and_no_table_made_before_first_use(tmp_path: Path):
    configs = [
        SQLAlchemySyncConfig(
            connection_string=f"sqlite:///{tmp_path}/sync.db", metadata=Held.metadata, create_all=True
        ),
        SQLAlchemyAsyncConfig(
            connection_string=f"sqlite+aiosqlite:///{tmp_path}/async.db",
            metadata=Held.metadata,
            create_all=True,
            bind_key="async",
        ),
    ]
    app = Flask("lazy")
    db = Transept(configs, app)

    @app.get("/")
    def view():
        return [db.get_session(key).scalars(select(Held)).all() for key in ("default", "async")]

    @app.get("/unused")
    def unused():
        db.get_session()
        return "well"

    assert Client(app).get("/unused").status_code == 200
    assert (list(tmp_path.iterdir()), loops()) == ([], 0)
    assert Client(app).get("/").get_json() == [[], []]
    assert loops() == 1
    db.close()


def test_is_async_enabled_says_whether_one_is_async():
    assert Transept(memory()).is_async_enabled is False
    assert Transept([memory(), async_memory(bind_key="other")]).is_async_enabled is True
    assert Transept(AiosqliteConfig(pool_config={"database": ":memory:"})).is_async_enabled is True


def test_configurations_are_found_by_key_and_by_colour():
    sync, other = memory(), async_memory(bind_key="other")
    db = Transept([sync, other])
    assert (db.config, db.get_config(), db.get_config("other")) == ([sync, other], sync, other)
    assert (db.get_sync_config(), db.get_async_config("other_session")) == (sync, other)
    with pytest.raises(ImproperConfigurationError, match=r"Expected an async config, but got a sync config \(database"):
        db.get_async_config()
    with pytest.raises(ImproperConfigurationError, match=r"Expected a sync config, but got an async config \(database"):
        db.get_sync_config("other")


def test_a_factory_makes_an_app_for_each_call(file: File):
    config = file.sync_config()
    db = Transept(config)

    def create_app(**settings: Any) -> Flask:
        app = Flask("made")
        app.config.update(settings)
        db.init_app(app)

        @app.post("/")
        def view():
            db.get_session().execute(insert(len(file.held())))
            return "made", 201

        return app

    assert [Client(create_app(TESTING=testing)).post("/").status_code for testing in (True, False)] == [201, 201]
    assert file.held() == [0, 1]


@pytest.mark.parametrize("late", [memory, async_memory])
def test_a_registry_may_be_filled_later(file: File, late: Any):
    registry = Registry()
    db = Transept(registry)
    registry.add_config(file.sync_config(), "users")
    app = Flask("late")
    db.init_app(app)
    registry.add_config(late(), "late")

    @app.get("/")
    def view():
        return [db.get_session(key).scalar(select(1)) for key in (None, "late")]

    assert Client(app).get("/").get_json() == [1, 1]
    db.close()


# Engines


def test_the_engine_of_a_sync_database_is_the_sessions(file_site: Site):
    engine = file_site.db.get_engine()
    assert type(engine) is Engine
    assert engine is file_site.db.get_sync_engine() is file_site.config.get_engine()
    with file_site.app.app_context():
        assert file_site.db.get_session().get_bind() is engine
    with pytest.raises(ImproperConfigurationError, match="Expected an async config, but got a sync config"):
        file_site.db.get_async_engine()


@pytest.mark.parametrize("before", [True, False])
def test_the_engine_of_an_async_database_is_the_background_loops(file: File, before: bool):
    with site_of(file, file.config()) as site:
        engines: list[Any] = [site.db.get_engine()] if before else []

        @site.view
        def view():
            site.add(1)
            engines.extend((site.db.get_engine(), site.db.get_async_engine()))
            assert site.db.get_session().get_bind() is engines[0].sync_engine
            return "made", 201

        async def async_view():
            engines.extend((site.db.get_engine(), site.db.get_session().bind))
            return "made", 201

        site.view(async_view, "/async")
        assert (site.post().status_code, site.post("/async").status_code) == (201, 201)
        engines.append(site.db.get_engine())
        assert {id(engine) for engine in engines} == {id(engines[0])}
        assert type(engines[0]) is AsyncEngine
        with pytest.raises(ImproperConfigurationError, match="Expected a sync config, but got an async config"):
            site.db.get_sync_engine()


# Colours


def test_sessions_of_a_sync_database_are_sync_ones(file_site: Site):
    with file_site.app.app_context():
        session = file_site.db.get_session()
        assert isinstance(session, Session)
        assert session is file_site.db.get_sync_session()
        with pytest.raises(ImproperConfigurationError, match="Expected an async config, but got a sync config"):
            file_site.db.get_async_session()


def test_each_colour_of_code_has_its_session_of_an_async_database(file: File):
    with site_of(file, file.config()) as site:

        @site.view
        def plain():
            session = site.db.get_session()
            assert isinstance(session, Session)
            assert session is site.db.get_sync_session()
            with pytest.raises(UsageError, match=r"get_async_session\(\) of database 'default' in plain code, which"):
                site.db.get_async_session()
            return "well"

        async def awaiting():
            session = site.db.get_session()
            assert isinstance(session, AsyncSession)
            assert session is site.db.get_async_session()
            with pytest.raises(UsageError, match=r"get_sync_session\(\) of database 'default', which is async, inside"):
                site.db.get_sync_session()
            return "well"

        site.view(awaiting, "/async")
        assert (site.get().text, site.get("/async").text) == ("well", "well")


# with_session


@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("place", ["outside", "context", "request"])
def test_with_session_is_kept_at_a_clean_end_and_rolled_back_at_an_error(file: File, colour: str, place: str):
    with site_of(file, file.sync_config() if colour == "sync" else file.config(commit_mode="manual")) as site:

        def work():
            with site.db.with_session() as session:
                assert isinstance(session, Session)
                session.add(Held(v=1))
            with pytest.raises(KeyError), site.db.with_session("default") as session:
                session.add(Held(v=2))
                session.flush()
                raise KeyError
            return "refused", 409

        if place == "request":
            site.view(work)
            assert site.post().status_code == 409
        elif place == "context":
            with pytest.raises(LookupError), site.app.app_context():
                site.db.get_session()
                work()
                raise LookupError
        else:
            work()
        assert site.held() == [1]


def test_async_with_session_is_for_async_functions(file: File):
    with site_of(file, file.config(commit_mode="manual")) as site:

        @site.view
        async def view():
            of_the_request = site.db.get_session()
            async with site.db.with_session() as session:
                assert isinstance(session, AsyncSession)
                assert session is not of_the_request
                session.add(Held(v=1))
            with pytest.raises(KeyError):
                async with site.db.with_session() as session:
                    session.add(Held(v=2))
                    await session.flush()
                    raise KeyError
            return "refused", 409

        assert site.post().status_code == 409
        assert site.held() == [1]


def test_a_commit_that_fails_at_the_end_of_with_session_is_raised(pg: Postgres):
    with site_of(pg, pg.config()) as site:
        with pytest.raises(Exception, match="child_p_fkey") as failed, site.db.with_session() as session:
            session.add(Held(v=1))
            session.flush()
            session.execute(VIOLATION)
        assert type(failed.value).__name__ == "IntegrityError"
        assert site.held() == []


# Closing


@pytest.mark.parametrize("colour", ["sync", "async"])
def test_close_closes_and_the_next_use_opens_again(pg: Postgres, colour: str):
    with site_of(pg, pg.sync_config() if colour == "sync" else pg.config()) as site:

        @site.view
        def view():
            site.add(len(site.held()))
            return "made", 201

        for _ in range(2):
            assert site.post().status_code == 201
            assert (pg.backends(), loops()) == (1, int(colour == "async"))
            site.db.close()
            assert loops() == 0
            site.db.close()
        assert site.held() == [0, 1]


def test_the_loop_goes_with_the_last_that_uses_it(file: File, other_file: File):
    with site_of(file, file.config()) as site:
        second = Transept(other_file.config())
        for db in (site.db, second):
            with db.with_session() as session:
                session.add(Held(v=1))
        site.db.close()
        assert loops() == 1
        with second.with_session() as session:
            session.add(Held(v=2))
        second.close()
        assert loops() == 0
        assert (file.held(), other_file.held()) == ([1], [1, 2])


# Warnings


def test_a_warning_that_is_an_error_comes_when_the_view_has_ended(file: File):
    """It says that the view held the loop; half of a view would hold more than that."""
    with site_of(file, file.config()) as site:
        ended: list[bool] = []

        @site.view
        async def view():
            await site.db.get_session().execute(insert(1))
            time.sleep(HELD_SECONDS + 0.1)  # noqa: ASYNC251 - what is warned of
            await site.db.get_session().execute(insert(2))
            ended.append(True)
            return "made", 201

        site.app.register_error_handler(BlockingCallWarning, lambda warning: (str(warning), 418))
        response = site.post()
        assert (response.status_code, ended, site.held()) == (418, [True], [])
        assert "view held the background loop for " in response.text
        assert (site.post().status_code, site.held()) == (201, [1, 2])


# DBConnect


def test_dbconnect_serves_plain_and_async_views(pg: Postgres):
    asked: list[str | None] = []

    async def before(connection: Any) -> None:
        asked.append(connection.host)
        await connection.change_host("localhost")

    connection = pg.dbconnect(before_create_session_handler=before)
    app = Flask("connect")
    db = Transept(connection, app)

    @app.post("/plain/<int:status>")
    def plain(status: int):
        session = db.get_session()
        assert session is db.get_sync_session()
        session.add(Held(v=status))
        return "", status

    @app.post("/async/<int:status>")
    async def awaiting(status: int):
        session = await db_session(connection)
        assert session is db.get_async_session() is db.get_session()
        session.add(Held(v=status + 1000))
        return "", status

    for path in ("plain", "async"):
        for status in (201, 303, 409):
            assert Client(app).post(f"/{path}/{status}").status_code == status
    assert pg.held() == [201, 303, 1201, 1303]
    assert asked == ["127.0.0.1", *["localhost"] * 5]
    assert pg.out_of_pools() == 0
    db.close()
    assert pg.disposed == ["localhost"]


def test_a_handler_is_awaited_before_the_session_is_there_in_async_views(pg: Postgres):
    async def before(connection: Any) -> None: ...

    app = Flask("connect")
    db = Transept(pg.dbconnect(before_create_session_handler=before), app)

    @app.get("/")
    async def view():
        with pytest.raises(
            UsageError, match=r"has to be awaited: ask for the session with `await db_session\(...\)` first"
        ):
            db.get_session()
        async with db.with_session() as session:
            return str(await session.scalar(COUNT))

    assert Client(app).get("/").text == "0"
    db.close()


def test_a_handler_that_fails_is_the_requests_error(pg: Postgres):
    async def before(connection: Any) -> None:
        raise LookupError("no master")

    app = Flask("connect")
    db = Transept(pg.dbconnect(before_create_session_handler=before), app)
    app.register_error_handler(LookupError, lambda error: (str(error), 418))
    app.add_url_rule("/", view_func=lambda: db.get_session())
    response = Client(app).get("/")
    assert (response.status_code, response.text) == (418, "no master")
    db.close()


# Imports


def ran(code: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_extension_imports_no_sqlalchemy_no_driver_and_no_other_framework():
    foreign = {
        *("sqlalchemy", "greenlet", "starlette", "fastapi", "litestar"),
        *("asyncpg", "psycopg", "aiosqlite", "sqlite3", "asyncmy", "pymysql"),
    }
    assert ran(f"import sys, transept.extensions.flask; print(sorted({foreign} & set(sys.modules)))") == "[]"


def test_sqlalchemy_is_imported_by_those_who_ask_for_its_configurations():
    code = (
        "import sys, transept.extensions.flask as ext; assert 'sqlalchemy' not in sys.modules; "
        "ext.SQLAlchemySyncConfig; print('sqlalchemy' in sys.modules)"
    )
    assert ran(code) == "True"


def test_an_app_over_a_raw_driver_imports_no_sqlalchemy():
    code = """
import sys
from flask import Flask, jsonify
from transept._portal import HELD_SECONDS
from transept.adapters.aiosqlite import AiosqliteConfig
from transept.extensions.flask import Transept
app = Flask('raw')
db = Transept(AiosqliteConfig(pool_config={'database': ':memory:'}), app)
app.add_url_rule('/', view_func=lambda: jsonify(db.get_session().select('SELECT 1 AS one')))
print(app.test_client().get('/').json, 'sqlalchemy' in sys.modules)
"""
    assert ran(code) == "[{'one': 1}] False"


def test_nothing_runs_until_an_async_database_is_used():
    code = """
import asyncio, threading
from flask import Flask
from transept.extensions.flask import SQLAlchemyAsyncConfig, Transept
db = Transept(SQLAlchemyAsyncConfig(connection_string='sqlite+aiosqlite://'), app := Flask('idle'))
app.add_url_rule('/', view_func=lambda: 'well')
app.test_client().get('/')
with app.app_context():
    pass
db.close()
print(threading.active_count())
"""
    assert ran(code) == "1"


def test_a_transept_that_was_not_tied_to_the_app_says_so(file):
    app = Flask("half")
    one = Transept(file.sync_config(), app)
    other = Transept(SQLAlchemyAsyncConfig(connection_string=file.url(), bind_key="other"))
    with app.app_context():
        one.get_session()
        with pytest.raises(OutsideScope, match=r"the app 'half' does not know these databases, .*call init_app\(app\)"):
            other.get_session()
    other.init_app(app)
    with app.app_context():
        assert other.get_session() is other.get_session("other")
    one.close()
    other.close()


def test_an_init_app_that_is_refused_leaves_nothing_behind(file):
    app = Flask("refused")
    Transept(file.sync_config(), app)
    more = [file.sync_config(bind_key="more"), file.sync_config()]
    with pytest.raises(ImproperConfigurationError, match="two have 'default'"):
        Transept(more, app)
    Transept([more[0], file.sync_config(bind_key="yet_another")], app)


def test_the_context_api_says_what_there_is_in_flask():
    with pytest.raises(OutsideScope, match=r"In Flask push an app context"):
        sync_db_session()


def test_a_password_is_not_shown_where_the_url_is_wrong():
    with pytest.raises(ImproperConfigurationError, match=r"bob:\*\*\*@") as refused:
        SQLAlchemySyncConfig(connection_string="postgresql//bob:secret@localhost/app")
    assert "secret" not in str(refused.value)
