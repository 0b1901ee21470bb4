"""What Litestar injects for a database: the names, and how each is had."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from litestar import Litestar
from litestar.di import Provide
from litestar.types import Scope

from transept.database import Database, must_prepare, state_keys
from transept.extensions._base import unit_of_scope
from transept.extensions.litestar._gate import HOW_TO_GATE

__all__ = ["Keyed", "connection_of", "injected", "names_of", "session_of"]


@runtime_checkable
class Keyed(Database, Protocol):
    """A database that says itself what is injected for it."""

    before_send_handler: Any
    engine_dependency_key: str
    session_dependency_key: str
    engine_app_state_key: str
    session_maker_app_state_key: str
    session_scope_key: str

    provide_engine: Callable[..., Any]
    provide_session: Callable[..., Any]

    @property
    def signature_namespace(self) -> Mapping[str, Any]: ...

    def take_policy(self, handler: Any) -> None: ...

    def update_app_state(self, app: Litestar) -> None: ...


def injected(database: Database) -> dict[str, Provide]:
    """Providers for this database, by the names of the parameters that ask for them."""
    if getattr(database, "disable_di", False):
        return {}
    if isinstance(database, Keyed):
        return {
            database.engine_dependency_key: Provide(database.provide_engine, sync_to_thread=False),
            database.session_dependency_key: Provide(database.provide_session, sync_to_thread=False),
        }
    makers = {"session_key": session_of, "connection_key": connection_of, "pool_key": _pool_of}
    return {key: makers[setting](database) for setting, key in state_keys(database).items()}


def names_of(database: Database) -> dict[str, Any]:
    """What annotations of handlers may name without importing it at run time."""
    if isinstance(database, Keyed):
        return dict(database.signature_namespace)
    kind = _session_type(database)
    return {} if kind is Any else {kind.__name__: kind}


def session_of(database: Database) -> Provide:
    if must_prepare(database):

        async def prepared(scope: Scope) -> Any:
            return await unit_of_scope(scope, HOW_TO_GATE).prepared(database)

        return Provide(prepared)

    def session(scope: Scope) -> Any:
        return unit_of_scope(scope, HOW_TO_GATE).session(database)

    session.__annotations__["return"] = _session_type(database)
    return Provide(session, sync_to_thread=False)


def connection_of(database: Database) -> Provide:
    def connection(scope: Scope) -> Any:
        return unit_of_scope(scope, HOW_TO_GATE).connection(database)

    return Provide(connection, sync_to_thread=False)


def _pool_of(database: Any) -> Provide:
    if database.blocking:
        return Provide(database.provide_pool, sync_to_thread=True)
    return Provide(database.provide_pool)


def _session_type(database: Database) -> Any:
    if "connection_key" not in state_keys(database):
        return Any
    from transept.sql.session import BlockingSQLSession, SQLSession

    return BlockingSQLSession if database.blocking else SQLSession
