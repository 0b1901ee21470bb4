"""The plugin: databases in a Litestar app."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import UUID

from litestar import Litestar, Request, Response
from litestar.config.app import AppConfig
from litestar.di import Provide
from litestar.exceptions import ServiceUnavailableException
from litestar.exceptions.responses import create_exception_response
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.routes.base import BaseRoute
from litestar.types import Message, Scope
from litestar.utils import ensure_async_callable
from litestar.utils.scope.state import ScopeState

from transept.context import LOOP
from transept.database import Database, Databases, state_keys
from transept.errors import CommitInDoubt, DatabaseUnavailable, ImproperConfigurationError
from transept.extensions._base import Extension, Home
from transept.extensions.litestar._gate import (
    HOW_TO_GATE,
    answer,
    leave_nothing,
    not_started,
    settle_early,
    stand_around,
)
from transept.extensions.litestar._handlers import PolicyHandler
from transept.extensions.litestar._injected import (
    Keyed,
    connection_of,
    engine_key,
    engine_of,
    injected,
    names_of,
    refuse_name,
    session_of,
)
from transept.gate.answer import answer_to
from transept.gate.asgi import ASGIGate
from transept.gate.protocol import unit_scope
from transept.lifecycle import running

__all__ = ["Transept"]

DEPENDENCIES = "dependencies"
ON_STATE = "app.state"

logger = logging.getLogger("transept")


class Transept(Extension, InitPlugin):
    """Request-scoped sessions for a Litestar app: ``Litestar(..., plugins=[Transept(config)])``.

    For each database it injects the session (``db_session``), and the engine of a SQLAlchemy database (``db_engine``)
    or the connection and the pool of a raw one (``db_connection``, ``db_pool``); a bind key of its own, or keys that
    were chosen, give them other names. Databases start and stop with the app. One plugin may serve several apps, and an
    app may have several plugins.

    Args:
        config: one database, several, or a `Registry`. Of several, those that have no bind key of their own are named
            by the key of their session.

    Raises:
        ImproperConfigurationError: no database, or two of one name; when the app is made, a key that two have.
    """

    how_to_gate = HOW_TO_GATE

    def __init__(self, config: Database | Iterable[Database] | Databases) -> None:
        super().__init__(_named(config))

    @property
    def config(self) -> list[Any]:
        """The databases."""
        return list(self._registry)

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Litestar calls this: put databases into the app.

        Raises:
            ImproperConfigurationError: two databases, or a database and the app, have one key; or there is no database.
        """
        if not len(self._registry):
            raise ImproperConfigurationError(
                "Transept(registry): this registry has no database yet: call add_config(...) before Litestar(...)."
            )
        binding = next((plugin for plugin in app_config.plugins if isinstance(plugin, Binding)), None)
        if binding is None:
            binding = Binding(app_config)
            app_config.plugins.append(binding)
        for database in self._registry:
            if database not in binding.registry:
                binding.add(database, app_config)
        return app_config

    def provide_session(self, key: Database | str | None = None) -> Provide:
        """For ``dependencies={...}``: what `get_session` returns for the request."""
        return session_of(self._registry.get(key))

    def provide_async_session(self, key: Database | str | None = None) -> Provide:
        """As `provide_session`, for an async SQLAlchemy database."""
        return session_of(self.get_async_database(key))

    def provide_sync_session(self, key: Database | str | None = None) -> Provide:
        """As `provide_session`, for a sync SQLAlchemy database."""
        return session_of(self.get_sync_config(key))

    def provide_connection(self, key: Database | str | None = None) -> Provide:
        """For ``dependencies={...}``: what `get_connection` returns for the request."""
        return connection_of(self._registry.get(key))

    def provide_engine(self, key: Database | str | None = None) -> Provide:
        """For ``dependencies={...}``: what `get_engine` returns."""
        found = self._registry.get(key)
        return engine_of(lambda: self.get_engine(found))

    def provide_async_engine(self, key: Database | str | None = None) -> Provide:
        """As `provide_engine`, for an async SQLAlchemy database."""
        found = self.get_async_database(key)
        return engine_of(found.get_engine)

    def provide_sync_engine(self, key: Database | str | None = None) -> Provide:
        """As `provide_engine`, for a sync SQLAlchemy database."""
        found = self.get_sync_config(key)
        return engine_of(found.get_engine)


class Binding(InitPlugin, ReceiveRoutePlugin):
    """What all plugins of one app have together: its databases, its gate, and which keys are taken.

    A plugin of Litestar's itself, of this app alone, and the last: Litestar hands it each route.
    """

    def __init__(self, app_config: AppConfig) -> None:
        self.registry = Databases(first_is_default=False)
        self.home = Home(app_config.state)
        self._gate: ASGIGate | None = None
        self._keys: dict[tuple[str, str], tuple[str, Database]] = {}
        self._hooks: list[tuple[Keyed, Callable[[Message, Scope], Any]]] = []
        self._open: list[AsyncExitStack] = []
        app_config.lifespan.insert(0, self._lifespan)
        app_config.on_shutdown.append(self._stop)
        app_config.type_encoders = {UUID: str, **(app_config.type_encoders or {})}  # drivers have subclasses of it
        app_config.after_exception.append(leave_nothing)
        for kind in (CommitInDoubt, DatabaseUnavailable):
            app_config.exception_handlers.setdefault(kind, _unavailable)

    def add(self, database: Database, app_config: AppConfig) -> None:
        """Inject this database, and know its keys."""
        self._claim(database)
        self.registry.add(database)
        self.home.show_pools([database])
        for key, provider in injected(database).items():
            if key in app_config.dependencies:
                raise ImproperConfigurationError(
                    f"Litestar(dependencies=...) has {key!r} already, which is what database {database.key!r} is "
                    "injected as: give one of them another name, or override it at a router, controller or handler."
                )
            app_config.dependencies[key] = provider
        for name, kind in names_of(database).items():
            app_config.signature_namespace.setdefault(name, kind)
        handler = getattr(database, "before_send_handler", None)
        if isinstance(database, Keyed) and callable(handler) and not isinstance(handler, PolicyHandler):
            self._hooks.append((database, ensure_async_callable(handler)))

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Litestar calls this: handlers of ours in ``Litestar(before_send=...)`` are policies of their databases.

        Where they stand, Litestar would call them first; a database has one policy, in all apps.
        """
        given: list[Any] = app_config.before_send
        ours = [handler for handler in given if isinstance(handler, PolicyHandler)]
        keyed = {one.session_scope_key: one for one in self.registry if isinstance(one, Keyed)}
        for handler in ours:
            if handler.session_scope_key not in keyed:
                raise ImproperConfigurationError(
                    f"Litestar(before_send=...) has {handler!r}, whose session_scope_key no database has: there is "
                    f"{', '.join(map(repr, keyed)) or 'none'}."
                )
            keyed[handler.session_scope_key].take_policy(handler)
            given.remove(handler)
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        """Litestar calls this: put the gate around the app, once, and settle where the route answers."""
        handlers: Any = getattr(route, "route_handlers", None) or [getattr(route, "route_handler")]  # noqa: B009
        app: Litestar = handlers[0].ownership_layers[0]
        self.guard(app)
        settle_early(app, route)

    def guard(self, app: Litestar) -> None:
        """Put the gate around the app, once."""
        if self._gate is None:
            itself: Any = app
            self._gate = ASGIGate(itself, self.registry, answer=answer, on_failed_start=not_started)
            self._gate.on_state = {}  # Litestar injects; what it keeps of its own on each state is read often
            if self._hooks:
                self._gate.before_send = self._tell
            stand_around(app, self._gate)

    async def _tell(self, message: Any, scope: Any) -> None:
        """Handlers of the app's own hear of a message, with the session where they look for it."""
        for database, hook in self._hooks:
            units = unit_scope(scope)
            unit = None if units is None else units.unit
            session = None if unit is None else unit.opened(database)
            if session is None:
                scope["state"].pop(database.session_scope_key, None)
            else:
                scope["state"][database.session_scope_key] = session
            await hook(message, scope)

    @asynccontextmanager
    async def _lifespan(self, app: Litestar) -> AsyncIterator[None]:
        """Databases start before all else. They stop last (`_stop`): after Litestar's own hooks of the shutdown."""
        self.guard(app)  # it may have no route yet
        self.home.runs_here()
        self._open.append(AsyncExitStack())
        await self._open[-1].enter_async_context(running(list(self.registry), LOOP))
        for database in self.registry:
            if isinstance(database, Keyed):
                database.update_app_state(app)
        yield

    async def _stop(self) -> None:
        if self._open:  # start-up may have failed before it came here
            await self._open.pop().aclose()

    def _claim(self, database: Database) -> None:
        for space, setting, key in _keys_of(database):
            if space == DEPENDENCIES:
                refuse_name(f"{type(database).__name__} (database {database.key!r})", setting, key)
            setting_there, there = self._keys.get((space, key), (setting, database))
            if (there, setting_there) != (database, setting):
                raise ImproperConfigurationError(
                    f"Duplicate keys found: databases {there.key!r} ({setting_there}) and {database.key!r} ({setting}) "
                    f"both have {key!r}. Give each config a bind_key of its own, or other keys."
                )
            self._keys[space, key] = (setting, database)


def _keys_of(database: Database) -> list[tuple[str, str, str]]:
    """What a database claims in an app: where, by which setting, under which key."""
    if isinstance(database, Keyed):
        return [
            (DEPENDENCIES, "session_dependency_key", database.session_dependency_key),
            (DEPENDENCIES, "engine_dependency_key", database.engine_dependency_key),
            (ON_STATE, "engine_app_state_key", database.engine_app_state_key),
            (ON_STATE, "session_maker_app_state_key", database.session_maker_app_state_key),
            ("scope", "session_scope_key", database.session_scope_key),
        ]
    keys = state_keys(database)
    asked = {} if getattr(database, "disable_di", False) else {**keys, **engine_key(database)}
    return [
        *((DEPENDENCIES, setting, key) for setting, key in asked.items()),
        *((ON_STATE, setting, key) for setting, key in keys.items() if setting == "pool_key"),
    ]


def _named(config: Any) -> Any:
    """Several configurations that were all left at ``"default"`` are told apart by the keys of their sessions."""
    if isinstance(config, Databases) or not isinstance(config, Iterable):
        return config
    several = list(config)
    unnamed = [one for one in several if getattr(one, "key", None) == "default" and hasattr(one, "rename")]
    plain = [one for one in unnamed if one.session_key == "db_session"]
    for one in unnamed if plain else unnamed[1:]:
        if one not in plain:
            one.rename(one.session_key)
    return several


def _unavailable(request: Request[Any, Any, Any], error: Exception) -> Response[Any]:
    """503 for errors that are no 500, unless the app has a handler for a class that they belong to."""
    handlers = ScopeState.from_scope(request.scope).exception_handlers
    for kind in type(error).__mro__[1:]:
        if kind is Exception:
            break
        own = handlers.get(kind, _unavailable) if isinstance(handlers, dict) else _unavailable
        if own is not _unavailable:
            return own(request, error)
    said = answer_to(error)
    assert said is not None
    logger.error("%s %s: %s", request.method, request.scope.get("path", ""), error, exc_info=error)
    unavailable = ServiceUnavailableException(detail=said.body.decode(), headers=dict(said.more))
    return create_exception_response(request, unavailable)
