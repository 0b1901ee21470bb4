"""Transept for Starlette: sessions on the request, engines with the app, the gate among its middleware."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from starlette.applications import Starlette
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transept._bridge import is_async
from transept.config import AsyncSessionConfig, EngineConfig, SyncSessionConfig
from transept.context import CURRENT, LOOP, NamedScope
from transept.database import Database, Databases
from transept.errors import ImproperConfigurationError
from transept.extensions._base import Extension, Home
from transept.gate.answer import answer_to
from transept.gate.asgi import ASGIGate, ASGIHTTPDBSessionMiddleware, unit_scope
from transept.gate.by_hand import auto_commit_by_status_code, reset_db_session_ctx
from transept.lifecycle import running
from transept.unit import BeforeCommit

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
    from sqlalchemy.orm import Session

    from transept.alchemy import SQLAlchemyAsyncConfig, SQLAlchemySyncConfig

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


class AppExtension(Extension):
    """What the extensions of Starlette and FastAPI share: databases tied to an app.

    Args:
        config: one database, several, or a `Registry`.
        app: the app; or call `init_app` later. One object may serve several apps.

    Raises:
        ImproperConfigurationError: no database, two of one name, or an app that has started already.
    """

    def __init__(self, config: Database | Iterable[Database] | Databases, app: Starlette | None = None) -> None:
        super().__init__(config)
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
            _homes[app].show_pools(self._registry)
        elif any(database not in registry for database in self._registry):
            _refuse_started(app)
            _homes[app].show_pools([database for database in self._registry if database not in registry])
            _add_all(registry, self._registry)


class Transept(AppExtension):
    """Request-scoped sessions for a Starlette app; see `AppExtension`."""

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


_homes: WeakKeyDictionary[Starlette, Home] = WeakKeyDictionary()


def _install(app: Starlette, registry: Databases, before_commit: BeforeCommit | None = None) -> None:
    _refuse_started(app)
    gate = Middleware(
        ASGIGate, registry=registry, answer=answer_by_handlers, before_commit=before_commit, runs_ahead=runs_ahead
    )
    app.user_middleware.append(gate)
    users_own = app.router.lifespan_context
    home = _homes[app] = Home(app.state)

    @asynccontextmanager
    async def lifespan(started: Any) -> AsyncIterator[Any]:
        home.runs_here()
        async with running(list(registry), LOOP), users_own(started) as state:
            yield state

    app.router.lifespan_context = lifespan


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
