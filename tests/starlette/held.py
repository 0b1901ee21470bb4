"""What tests of apps share: tables to write to, a second connection that looks, and ways to call an app."""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx
from servers.server import Server
from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.routing import Route

from transept.alchemy import DBConnect, EngineConfig, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
from transept.extensions.starlette import add_starlette_http_db_session_middleware

SCHEMA = (
    "CREATE TABLE held (v integer)",
    "CREATE TABLE parent (id integer PRIMARY KEY)",
    "CREATE TABLE child (p integer REFERENCES parent (id) DEFERRABLE INITIALLY DEFERRED)",
)
VIOLATION = text("INSERT INTO child VALUES (99)")  # shows at COMMIT, not before
COUNT = text("SELECT count(*) FROM held")


def insert(v: int) -> Any:
    return text(f"INSERT INTO held VALUES ({v})")


class File:
    """A SQLite file with the tables."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.blocking: list[SQLAlchemySyncConfig] = []
        with closing(sqlite3.connect(path)) as look:
            for statement in SCHEMA:
                look.execute(statement)

    def held(self) -> list[int]:
        """The rows, as a second connection sees them."""
        with closing(sqlite3.connect(self.path)) as look:
            return [v for (v,) in look.execute("SELECT v FROM held ORDER BY v")]

    def url(self, driver: str = "aiosqlite") -> str:
        return f"sqlite+{driver}:///{self.path}"

    def config(self, **settings: Any) -> SQLAlchemyAsyncConfig:
        settings = {"commit_mode": "autocommit", **settings}
        return SQLAlchemyAsyncConfig(connection_string=self.url(), **settings)

    def sync_config(self, **settings: Any) -> SQLAlchemySyncConfig:
        settings = {"commit_mode": "autocommit", **settings}
        self.blocking.append(SQLAlchemySyncConfig(connection_string=self.url("pysqlite"), **settings))
        return self.blocking[-1]

    def close(self) -> None:
        """Blocking engines belong to no event loop, so none closes them."""
        for config in self.blocking:
            config.get_engine().dispose()


class Postgres:
    """The tables in PostgreSQL, and what the server says of this test's connections."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.name = f"test_{secrets.token_hex(6)}"
        self.blocking: list[SQLAlchemySyncConfig] = []
        self.engines: list[AsyncEngine] = []
        self.disposed: list[str] = []
        self.look: Any = server.connect()
        self.look.execute("DROP TABLE IF EXISTS held, child, parent CASCADE; " + "; ".join(SCHEMA))

    def close(self) -> None:
        """Whatever the test left must not stop the next one."""
        for config in self.blocking:
            config.get_engine().dispose()
        self.look.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = %s", [self.name]
        )
        self.look.close()

    def held(self) -> list[int]:
        return [v for (v,) in self.look.execute("SELECT v FROM held ORDER BY v")]

    def config(self, pool_size: int = 5, **settings: Any) -> SQLAlchemyAsyncConfig:
        named = {"server_settings": {"application_name": self.name}}
        options = EngineConfig(pool_size=pool_size, max_overflow=0, pool_timeout=5, connect_args=named)
        settings = {"commit_mode": "autocommit", **settings}
        return SQLAlchemyAsyncConfig(connection_string=self.server.url("asyncpg"), engine_config=options, **settings)

    def dbconnect(self, pool_size: int = 5, *, port: int | None = None, **settings: Any) -> DBConnect:
        """A database with engines of the app's own. It has two hosts, "127.0.0.1" and "localhost"."""

        def make(host: str) -> AsyncEngine:
            url = make_url(self.server.url("asyncpg")).set(host=host, port=port or self.server.port)
            named = {"server_settings": {"application_name": self.name}}
            sizes = {"pool_size": pool_size, "max_overflow": 0, "pool_timeout": 5}
            engine = create_async_engine(url, connect_args=named, **sizes)
            event.listen(engine.sync_engine, "engine_disposed", lambda _: self.disposed.append(host))
            self.engines.append(engine)
            return engine

        def maker(engine: AsyncEngine) -> Any:
            return async_sessionmaker(engine, expire_on_commit=False)

        return DBConnect(make, maker, **{"host": "127.0.0.1", **settings})

    def out_of_pools(self) -> int:
        """How many connections are out of the pools that `dbconnect` made."""
        return sum(int(engine.pool.checkedout()) for engine in self.engines)  # type: ignore[attr-defined]

    def sync_config(self, pool_size: int = 5, **settings: Any) -> SQLAlchemySyncConfig:
        named = {"application_name": self.name}
        options = EngineConfig(pool_size=pool_size, max_overflow=0, pool_timeout=5, connect_args=named)
        settings = {"commit_mode": "autocommit", **settings}
        url = self.server.url("psycopg")
        self.blocking.append(SQLAlchemySyncConfig(connection_string=url, engine_config=options, **settings))
        return self.blocking[-1]

    def slow_commit(self, seconds: float) -> None:
        """From now on a COMMIT of rows in `held` takes so long."""
        self.look.execute(
            f"CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
            f"'BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END'; "
            "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON held DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION slow()"
        )

    def backends(self, state: str = "%") -> int:
        """How many of this test's connections there are, in this state."""
        row = self.look.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state LIKE %s", [self.name, state]
        ).fetchone()
        return int(row[0])

    def in_transaction(self) -> int:
        row = self.look.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND xact_start IS NOT NULL", [self.name]
        ).fetchone()
        return int(row[0])


def served(
    work: Callable[[], Any],
    before_commit: Any = None,
    *,
    databases: Any = (),
    middleware: Sequence[Middleware] = (),
    handlers: Any = None,
) -> Starlette:
    """An app whose endpoint awaits `work()`, which returns a response or nothing: `db_session` works in there."""

    async def endpoint(request: Any) -> Response:
        return await work() or Response(status_code=201)

    routes = [Route("/", endpoint, methods=["GET", "POST"])]
    app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers)
    add_starlette_http_db_session_middleware(app, before_commit, databases=databases)
    return app


def out_of_pool(config: Any) -> int:
    return int(config.get_engine().pool.checkedout())


@asynccontextmanager
async def calling(app: Any, *, raises: bool = False) -> AsyncIterator[httpx.AsyncClient]:
    """A client of this app, on this event loop."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=raises)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


async def get(app: Any, path: str = "/", **options: Any) -> httpx.Response:
    async with calling(app) as client:
        return await client.get(path, **options)


async def post(app: Any, path: str = "/", **options: Any) -> httpx.Response:
    async with calling(app) as client:
        return await client.post(path, **options)


async def eventually(holds: Callable[[], bool], seconds: float = 5) -> bool:
    """Whether this becomes true in time."""
    async with asyncio.timeout(seconds + 1):
        for _ in range(int(seconds / 0.02)):
            if holds():
                return True
            await asyncio.sleep(0.02)
    return False


async def websocket(app: Any, *messages: Any) -> list[Any]:
    """Connect, send these as JSON, disconnect; what came back, with the socket served to its end."""
    inbox = [
        {"type": "websocket.connect"},
        *({"type": "websocket.receive", "text": json.dumps(message)} for message in messages),
        {"type": "websocket.disconnect", "code": 1000},
    ]
    told: list[Any] = []

    async def receive() -> Any:
        return inbox.pop(0)

    async def send(message: Any) -> None:
        told.append(message)

    await app({**HTTP, "type": "websocket", "scheme": "ws", "subprotocols": []}, receive, send)
    return told


async def http(
    app: Any, told: list[Any], *, method: str = "GET", gone: asyncio.Event | None = None, spec: str = "2.4"
) -> None:
    """Call the app as a server does; `told` gets the messages it sends. The client leaves when `gone` is set.

    Up to `spec` 2.3 a streamed response listens for that itself, and stops.
    """
    inbox = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        if inbox:
            return inbox.pop(0)
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        told.append(message)

    asgi = {"version": "3.0", "spec_version": spec}
    await app({**HTTP, "type": "http", "method": method, "asgi": asgi}, receive, send)


HTTP = {
    "path": "/", "raw_path": b"/", "query_string": b"", "headers": [], "http_version": "1.1", "scheme": "http",
    "root_path": "", "server": ("test", 80), "client": ("test", 1), "asgi": {"version": "3.0", "spec_version": "2.4"},
}  # fmt: skip
