"""Flask alone, with SQLAlchemy by hand, and with an extension; all over psycopg, called as a WSGI server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from io import BytesIO, StringIO
from typing import Any

from database import Place
from flask import Flask, g
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from contenders import App

ENVIRON = {
    "SERVER_NAME": "127.0.0.1",
    "SERVER_PORT": "8000",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "HTTP_HOST": "127.0.0.1:8000",
    "SCRIPT_NAME": "",
    "QUERY_STRING": "",
    "wsgi.version": (1, 0),
    "wsgi.url_scheme": "http",
    "wsgi.multithread": False,
    "wsgi.multiprocess": False,
    "wsgi.run_once": False,
}


def over_wsgi(app: Callable[..., Any]) -> App:
    """The app as the other contenders are called. It blocks; requests come one after the other."""

    async def called(scope: Any, receive: Any, send: Any) -> None:
        started: list[str] = []
        environ = {**ENVIRON, "REQUEST_METHOD": scope["method"], "PATH_INFO": scope["path"], "wsgi.input": BytesIO()}
        environ["wsgi.errors"] = StringIO()
        with no_loop_runs():
            body = app(environ, lambda status, headers, exc_info=None: started.append(status))
            first = next(iter(body))
        await send({"type": "http.response.start", "status": int(started[-1][:3])})
        with no_loop_runs():
            content = b"".join((first, *body))
            body.close()
        await send({"type": "http.response.body", "body": content})

    return called


@contextmanager
def no_loop_runs() -> Iterator[None]:
    """As in a server's thread: what blocks here blocks no loop."""
    loop = asyncio.get_running_loop()
    asyncio._set_running_loop(None)
    try:
        yield
    finally:
        asyncio._set_running_loop(loop)


def bare_app() -> Flask:
    app = Flask("contender")
    app.get("/flask-nodb")(nodb)
    return app


def nodb() -> str:
    return "nothing"


def app_with(
    session_of: Callable[[], Any], place: Place, name: str, commit: Callable[[Any], None] = lambda session: None
) -> Flask:
    """The small app over a SQLAlchemy session; `commit` where the handlers do it."""
    app = bare_app()
    select, insert, insert_orphan = map(text, (place.select, place.insert, place.insert_orphan))

    def read() -> str:
        session = session_of()
        found: str = session.scalar(select, {"id": 1})
        commit(session)
        return found

    def writing(statement: Any) -> tuple[str, int]:
        session = session_of()
        session.execute(statement, {"name": name})
        commit(session)
        return "written", 201

    def refused() -> tuple[str, int]:
        session_of().execute(insert, {"name": name})
        return "refused", 400

    app.get("/flask-read")(read)
    app.post("/flask-write", endpoint="write")(partial(writing, insert))
    app.post("/flask-broken", endpoint="broken")(partial(writing, insert_orphan))
    app.post("/flask-refused")(refused)
    return app


@asynccontextmanager
async def bare(place: Place, name: str) -> AsyncIterator[App]:
    yield over_wsgi(bare_app())


@asynccontextmanager
async def by_hand(place: Place, name: str) -> AsyncIterator[App]:
    """A session for each request, committed by the handler and closed at its end."""
    engine = create_engine(place.psycopg_url, pool_size=place.pool, max_overflow=0)

    def session_of() -> Session:
        if "session" not in g:
            g.session = Session(engine)
        session: Session = g.session
        return session

    app = app_with(session_of, place, name, commit=Session.commit)

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        session = g.pop("session", None)
        if session is not None:
            session.close()

    yield over_wsgi(app)
    engine.dispose()


@asynccontextmanager
async def with_extension(place: Place, name: str, *, module: str, extension: str) -> AsyncIterator[App]:
    its = import_module(module)
    config = its.SQLAlchemySyncConfig(
        engine_config=its.EngineConfig(pool_size=place.pool, max_overflow=0),
        connection_string=place.psycopg_url,
        commit_mode="autocommit",
    )
    db = getattr(its, extension)(config)
    app = app_with(db.get_session, place, name)
    db.init_app(app)
    yield over_wsgi(app)
    config.get_engine().dispose()


transept = partial(with_extension, module="transept.extensions.flask", extension="Transept")
advanced_alchemy = partial(with_extension, module="advanced_alchemy.extensions.flask", extension="AdvancedAlchemy")


@asynccontextmanager
async def flask_sqlalchemy(place: Place, name: str) -> AsyncIterator[App]:
    db = import_module("flask_sqlalchemy").SQLAlchemy()
    app = app_with(lambda: db.session, place, name, commit=lambda session: session.commit())
    app.config["SQLALCHEMY_DATABASE_URI"] = place.psycopg_url
    app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": place.pool, "max_overflow": 0}
    db.init_app(app)
    yield over_wsgi(app)
    with app.app_context():
        db.engine.dispose()


@asynccontextmanager
async def sql_first(place: Place, name: str) -> AsyncIterator[App]:
    adapter = import_module("transept.adapters.psycopg")
    config = adapter.PsycopgSyncConfig(
        pool_config={"conninfo": place.url, "min_size": 1, "max_size": place.pool}, commit_mode="autocommit"
    )
    db = import_module("transept.extensions.flask").Transept(config)
    app = sql_app(db.get_session, place, name)
    db.init_app(app)
    yield over_wsgi(app)
    db.close()


@asynccontextmanager
async def sqlspec(place: Place, name: str) -> AsyncIterator[App]:
    psycopg = import_module("sqlspec.adapters.psycopg")
    spec = import_module("sqlspec").SQLSpec()
    config = psycopg.PsycopgSyncConfig(
        connection_config={"conninfo": place.url, "min_size": 1, "max_size": place.pool},
        extension_config={"flask": {"commit_mode": "autocommit"}},
    )
    spec.add_config(config)
    db = import_module("sqlspec.extensions.flask").SQLSpecPlugin(spec)
    app = sql_app(db.get_session, place, name)
    db.init_app(app)
    yield over_wsgi(app)
    config.close_pool()


def sql_app(session_of: Callable[[], Any], place: Place, name: str) -> Flask:
    """The small app over a SQL-first session."""
    select, insert, insert_orphan = (
        statement.replace(":id", "%s").replace(":name", "%s")
        for statement in (place.select, place.insert, place.insert_orphan)
    )
    app = bare_app()

    def read() -> str:
        found: str = session_of().select_value(select, 1)
        return found

    def writing(statement: str, status: int) -> tuple[str, int]:
        session_of().execute(statement, name)
        return "written", status

    app.get("/flask-read")(read)
    app.post("/flask-write", endpoint="write")(partial(writing, insert, 201))
    app.post("/flask-broken", endpoint="broken")(partial(writing, insert_orphan, 201))
    app.post("/flask-refused", endpoint="refused")(partial(writing, insert, 400))
    return app
