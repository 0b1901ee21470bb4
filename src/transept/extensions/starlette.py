"""Transept for Starlette: sessions on the request, engines with the app, the gate among its middleware."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakKeyDictionary, ref

from starlette.applications import Starlette
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transept._bridge import is_async
from transept.config import AsyncSessionConfig, EngineConfig, SyncSessionConfig
from transept.context import CURRENT, LOOP, NamedScope
from transept.database import Connects, Database, Databases, Gives, Pooled
from transept.errors import ImproperConfigurationError, OutsideScope
from transept.gate.answer import answer_to
from transept.gate.asgi import ASGIGate, ASGIHTTPDBSessionMiddleware, unit_scope
from transept.gate.by_hand import auto_commit_by_status_code, reset_db_session_ctx
from transept.lifecycle import running
from transept.transaction import new_unit_of_work
from transept.unit import BeforeCommit, Unit

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

    from transept.alchemy import DBConnect, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig

S = TypeVar("S")

__all__ = [
    "AsyncSessionConfig",
    "EngineConfig",
    "SQLAlchemyAsyncConfig",
    "SQLAlchemySyncConfig",
    "StarletteHTTPDBSessionMiddleware",
    "SyncSessionConfig",
    "Transept",
    "add_starlette_http_db_session_middleware",
    "starlette_http_db_session_middleware",
]


def __getattr__(name: str) -> Any:
    """SQLAlchemy is imported by those who use it."""
    if name in ("SQLAlchemyAsyncConfig", "SQLAlchemySyncConfig"):
        from transept import alchemy

        return getattr(alchemy, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Extension:
    """Databases by key, their sessions and engines, tied to an app: what the extensions of Starlette and FastAPI share.

    A key is a bind key, a session key, or the database itself.

    Args:
        config: one database, several, or a `Registry`.
        app: the app; or call `init_app` later. One object may serve several apps.

    Raises:
        ImproperConfigurationError: no database, two of one name, or an app that has started already.
    """

    def __init__(self, config: Database | Iterable[Database] | Databases, app: Starlette | None = None) -> None:
        self._registry = Databases.of(config)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Starlette) -> None:
        """Put the gate into the app's middleware, innermost, and tie the databases to its lifespan.

        A second `Transept` on one app joins the gate that is there. Called again for the same app, it does nothing.

        Raises:
            ImproperConfigurationError: it is no app, or has started, or another database has one of these names.
        """
        if not isinstance(app, Starlette):
            raise ImproperConfigurationError(f"app={app!r}: a Starlette app is needed.")
        registry = _registry_of(app)
        if registry is None:
            registry = Databases(self._registry)
            _install(app, registry)
            _show_pools(app, self._registry)
        elif any(database not in registry for database in self._registry):
            _refuse_started(app)
            _show_pools(app, [database for database in self._registry if database not in registry])
            _add_all(registry, self._registry)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Start the databases, and stop them at the end: for a lifespan of your own. Does nothing twice."""
        async with running(list(self._registry), LOOP):
            yield

    # Configurations, by bind key or session key.

    def get_config(self, key: Database | str | None = None) -> Any:
        """The database with this key; without one the only one, or the one named ``"default"``."""
        return self._registry.get(key)

    def get_async_config(self, key: Database | str | None = None) -> SQLAlchemyAsyncConfig:
        """As `get_config`, for an async SQLAlchemy database.

        Raises:
            ImproperConfigurationError: it is another kind of database.
        """
        from transept.alchemy import SQLAlchemyAsyncConfig

        config = self._registry.get(key)
        if not isinstance(config, SQLAlchemyAsyncConfig):
            raise _expected("async", config)
        return config

    def get_async_database(self, key: Database | str | None = None) -> SQLAlchemyAsyncConfig | DBConnect:
        """As `get_async_config`, and for a `DBConnect`: whatever gives an `AsyncSession`."""
        from transept.alchemy import DBConnect

        config = self._registry.get(key)
        return config if isinstance(config, DBConnect) else self.get_async_config(key)

    def get_sync_config(self, key: Database | str | None = None) -> SQLAlchemySyncConfig:
        """As `get_config`, for a sync SQLAlchemy database.

        Raises:
            ImproperConfigurationError: it is another kind of database.
        """
        from transept.alchemy import SQLAlchemySyncConfig

        config = self._registry.get(key)
        if not isinstance(config, SQLAlchemySyncConfig):
            raise _expected("sync", config)
        return config

    # Sessions of a request.

    @overload
    def get_session(self, request: HTTPConnection, key: Gives[S]) -> S: ...
    @overload
    def get_session(self, request: HTTPConnection, key: Database | str | None = None) -> Any: ...
    def get_session(self, request: HTTPConnection, key: Any = None) -> Any:
        """The request's session of this database, the same object each time, also on ``request.state``.

        It takes a connection with its first statement, is settled before the response is passed on, and is over when
        the response is complete; in a background task, this gives the session of a fresh unit of work.

        Raises:
            OutsideScope: the request is over, or the app has no gate.
            ImproperConfigurationError: no database has this key.
        """
        return self._session(request, self._registry.get(key))

    @overload
    def get_connection(self, request: HTTPConnection, key: Connects[S]) -> S: ...
    @overload
    def get_connection(self, request: HTTPConnection, key: Database | str | None = None) -> Any: ...
    def get_connection(self, request: HTTPConnection, key: Any = None) -> Any:
        """The driver's connection of a raw database in this request, a handle that connects at first use.

        It has `commit`, `rollback`, `cursor` and `execute` on each driver, and passes all else on. Settled with the
        request's session, as a part of the same transaction.

        Raises:
            UsageError: the database is a SQLAlchemy one.
            OutsideScope: the request is over, or the app has no gate.
            ImproperConfigurationError: no database has this key.
        """
        return unit_of(request).connection(self._registry.get(key))

    def get_async_session(self, request: HTTPConnection, key: Database | str | None = None) -> AsyncSession:
        """As `get_session`, for an async SQLAlchemy database."""
        session: AsyncSession = self._session(request, self.get_async_database(key))
        return session

    def get_sync_session(self, request: HTTPConnection, key: Database | str | None = None) -> Session:
        """As `get_session`, for a sync SQLAlchemy database."""
        session: Session = self._session(request, self.get_sync_config(key))
        return session

    # Sessions outside of requests.

    @asynccontextmanager
    async def with_async_session(self, key: Database | str | None = None) -> AsyncIterator[AsyncSession]:
        """A new session in a unit of work of its own, committed at a clean end of the block, else rolled back."""
        config = self.get_async_database(key)
        async with new_unit_of_work() as unit:
            yield await unit.prepared(config)

    @contextmanager
    def with_sync_session(self, key: Database | str | None = None) -> Iterator[Session]:
        """As `with_async_session`, blocking."""
        config = self.get_sync_config(key)
        with new_unit_of_work() as unit:
            yield unit.session(config)

    # Engines.

    def get_engine(self, key: Database | str | None = None) -> Engine | AsyncEngine:
        """The engine of a SQLAlchemy database; an async one belongs to the running event loop."""
        config = self._registry.get(key)
        return self.get_sync_config(key).get_engine() if config.blocking else self.get_async_database(key).get_engine()

    def get_async_engine(self, key: Database | str | None = None) -> AsyncEngine:
        """The engine of an async SQLAlchemy database, for the running event loop."""
        return self.get_async_database(key).get_engine()

    def get_sync_engine(self, key: Database | str | None = None) -> Engine:
        """The engine of a sync SQLAlchemy database."""
        return self.get_sync_config(key).get_engine()

    def _session(self, request: HTTPConnection, database: Database) -> Any:
        return unit_of(request).session(database)


class Transept(Extension):
    """Request-scoped sessions for a Starlette app; see `Extension`."""

    def provide_session(self, key: Database | str | None = None) -> Callable[[Request], Any]:
        """A callable that takes a request and returns what `get_session` does."""

        def provide(request: Request) -> Any:
            return self.get_session(request, key)

        return provide

    def provide_connection(self, key: Database | str | None = None) -> Callable[[Request], Any]:
        """A callable that takes a request and returns what `get_connection` does."""

        def provide(request: Request) -> Any:
            return self.get_connection(request, key)

        return provide

    def provide_async_session(self, key: Database | str | None = None) -> Callable[[Request], AsyncSession]:
        """A callable that takes a request and returns what `get_async_session` does."""

        def provide(request: Request) -> AsyncSession:
            return self.get_async_session(request, key)

        return provide

    def provide_sync_session(self, key: Database | str | None = None) -> Callable[[Request], Session]:
        """A callable that takes a request and returns what `get_sync_session` does."""

        def provide(request: Request) -> Session:
            return self.get_sync_session(request, key)

        return provide

    def provide_engine(self, key: Database | str | None = None) -> Callable[[], Engine | AsyncEngine]:
        """A callable that returns what `get_engine` does."""
        return lambda: self.get_engine(key)

    def provide_async_engine(self, key: Database | str | None = None) -> Callable[[], AsyncEngine]:
        """A callable that returns what `get_async_engine` does."""
        return lambda: self.get_async_engine(key)

    def provide_sync_engine(self, key: Database | str | None = None) -> Callable[[], Engine]:
        """A callable that returns what `get_sync_engine` does."""
        return lambda: self.get_sync_engine(key)


def add_starlette_http_db_session_middleware(
    app: Starlette,
    before_commit: BeforeCommit | None = None,
    *,
    databases: Databases | Database | Iterable[Database] = (),
) -> None:
    """Put the gate into the app's middleware, innermost, so that `db_session` works in its endpoints.

    Args:
        app: the app, before its first request.
        before_commit: awaited with each session that is going to be committed.
        databases: those to be known by name, and to be started and stopped with the app. Others are passed to
            `db_session` as they are.

    Called again, it adds databases, and a `before_commit` where there is none.

    Raises:
        ImproperConfigurationError: the app has started, or would ask another `before_commit`.
    """
    given = Databases.of(databases if databases != () else Databases(), "databases")
    registry = _registry_of(app)
    if registry is None:
        _install(app, Databases(given, first_is_default=False), before_commit)
        return
    _refuse_started(app)
    settings = _gate_of(app).kwargs
    asked = settings["before_commit"]
    if asked is not None and before_commit not in (None, asked):
        raise ImproperConfigurationError(
            f"before_commit={before_commit!r} would replace {asked!r}, which this app asks already: pass one function "
            "that calls both."
        )
    _add_all(registry, given)
    settings["before_commit"] = before_commit if asked is None else asked


class StarletteHTTPDBSessionMiddleware(ASGIHTTPDBSessionMiddleware):
    """The gate as a middleware class, where the app's middleware is listed by hand. Put it last in the list."""

    def __init__(self, app: ASGIApp, dispatch: None = None, before_commit: BeforeCommit | None = None) -> None:
        if dispatch is not None:
            raise ImproperConfigurationError(
                f"StarletteHTTPDBSessionMiddleware: dispatch={dispatch!r}: it takes no dispatch function; put a "
                "middleware of your own around it."
            )
        super().__init__(app, before_commit)
        self.answer = answer_by_handlers


async def starlette_http_db_session_middleware(
    request: Request, call_next: RequestResponseEndpoint, before_commit: BeforeCommit | None = None
) -> Response:
    """The gate as a dispatch function of `BaseHTTPMiddleware`.

    The response is settled before it is returned. Starlette runs its body and its background tasks in another task,
    where no gate can settle anything any more: `db_session` raises `OutsideScope` there. Use
    `add_starlette_http_db_session_middleware` where they need sessions.

    A failed commit is answered as by the other gates, and raised to the server after that, even where the app has a
    handler for it: nothing else stops the background tasks of the response that was not sent.
    """
    if unit_scope(request.scope) is not None:
        return await call_next(request)
    token = CURRENT.set(NamedScope(LOOP, f"{request.method} {request.url.path}"))
    try:
        response = await call_next(request)
        try:
            await auto_commit_by_status_code(response.status_code, before_commit)
        except Exception as failure:
            response = await _answer_then_raise(request, failure)
            await auto_commit_by_status_code(response.status_code, before_commit)
    finally:
        await reset_db_session_ctx(token)
    return response


async def _answer_then_raise(request: Request, failure: Exception) -> Response:
    answer = await _answer_of_handlers(request, failure)
    if answer is None:
        own_answer = answer_to(failure)
        if own_answer is None:
            raise failure
        answer = PlainTextResponse(own_answer.body, own_answer.status, dict(own_answer.more))

    async def fail() -> None:
        raise failure

    own = [] if answer.background is None else [answer.background]
    answer.background = BackgroundTasks([*own, BackgroundTask(fail)])
    return answer


def unit_of(request: HTTPConnection) -> Unit:
    units = unit_scope(request.scope)
    if units is None:
        raise OutsideScope(
            "no gate stands around this request: pass app= to Transept(...), or call init_app(app) before the app "
            "starts."
        )
    return units.open()


def _gate_of(app: Starlette) -> Any:
    gates: Any = ASGIGate
    return next((entry for entry in app.user_middleware if entry.cls is gates), None)


def _registry_of(app: Starlette) -> Databases | None:
    gate = _gate_of(app)
    registry: Any = None if gate is None else gate.kwargs["registry"]
    return registry if isinstance(registry, Databases) else None


def _add_all(registry: Databases, databases: Databases) -> None:
    Databases([*registry, *databases])  # refuses a clash before anything has changed
    for database in databases:
        registry.add(database)


def _refuse_started(app: Starlette) -> None:
    if app.middleware_stack is not None:
        raise ImproperConfigurationError(
            "this app has started already, so its middleware is fixed: create Transept(..., app=app), call "
            "init_app(app) or add the gate's middleware, before the first request."
        )


def _install(app: Starlette, registry: Databases, before_commit: BeforeCommit | None = None) -> None:
    _refuse_started(app)
    gate = Middleware(
        ASGIGate, registry=registry, answer=answer_by_handlers, before_commit=before_commit, runs_ahead=runs_ahead
    )
    app.user_middleware.append(gate)
    users_own = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(started: Any) -> AsyncIterator[Any]:
        _loops[app] = ref(asyncio.get_running_loop())
        async with running(list(registry), LOOP), users_own(started) as state:
            yield state

    app.router.lifespan_context = lifespan


_loops: WeakKeyDictionary[Starlette, ref[asyncio.AbstractEventLoop]] = WeakKeyDictionary()  # of apps that run


def _show_pools(app: Starlette, databases: Iterable[Database]) -> None:
    """The pools of drivers lie on the app's state as soon as they are made; not those of other apps' event loops."""
    shown = ref(app)

    def show(key: str, pool: Any) -> None:
        here = shown()
        home = None if here is None else _loops.get(here)
        if here is not None and (home is None or home() is asyncio._get_running_loop()):
            setattr(here.state, key, pool)

    for database in databases:
        if isinstance(database, Pooled):
            database.when_pooled(partial(show, database.pool_key))


def runs_ahead(scope: Scope, start: Message) -> bool:
    """Whether the body runs already: FastAPI puts a generator endpoint of server-sent events into a task of its own."""
    for name, value in start.get("headers", ()):
        if name == b"content-type" and value.startswith(b"text/event-stream"):
            endpoint = scope.get("endpoint")
            return inspect.isasyncgenfunction(endpoint) or inspect.isgeneratorfunction(endpoint)
    return False


async def answer_by_handlers(scope: Scope, receive: Receive, send: Send, failure: Exception) -> bool:
    """Let the app's own exception handler for this error answer; False if it has none."""
    response = await _answer_of_handlers(Request(scope, receive, send), failure)
    if response is None:
        return False
    await response(scope, receive, send)
    return True


async def _answer_of_handlers(request: Request, failure: Exception) -> Response | None:
    """What the app's own exception handler for this error returns, found as Starlette finds it."""
    by_class, by_status = request.scope.get("starlette.exception_handlers", ({}, {}))
    handler: Any = by_status.get(failure.status_code) if isinstance(failure, HTTPException) else None
    if handler is None:
        handler = next((by_class[kind] for kind in type(failure).__mro__ if kind in by_class), None)
    if handler is None:
        return None
    response: Response | None
    if is_async(handler):
        response = await handler(request, failure)
    else:
        response = await run_in_threadpool(handler, request, failure)
    return response


def _expected(colour: str, config: Any) -> ImproperConfigurationError:
    other = "a sync config" if config.blocking else "an async config"
    article = "an async" if colour == "async" else "a sync"
    found = other if type(config).__module__.startswith("transept.alchemy") else f"a {type(config).__name__}"
    return ImproperConfigurationError(
        f"Expected {article} config, but got {found} (database {config.key!r}): use get_session() and get_config() "
        "for either kind."
    )
