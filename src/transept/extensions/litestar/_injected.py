"""What Litestar injects for a database: the names, and how each is had."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from keyword import iskeyword
from typing import Any, Protocol, runtime_checkable

from litestar import Litestar
from litestar.di import Provide
from litestar.types import Scope

from transept.database import Database, must_prepare, state_keys
from transept.errors import ImproperConfigurationError
from transept.extensions._base import unit_of_scope
from transept.extensions.litestar._gate import HOW_TO_GATE

__all__ = ["Keyed", "connection_of", "engine_key", "engine_of", "injected", "names_of", "refuse_name", "session_of"]

RESERVED = ("state", "scope", "request", "socket", "headers", "cookies", "query", "body", "data")


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
    makers: dict[str, Callable[[Any], Provide]] = {
        "session_key": session_of,
        "connection_key": connection_of,
        "pool_key": _pool_of,
        "engine_key": lambda found: engine_of(found.get_engine),
    }
    keys = {**state_keys(database), **engine_key(database)}
    return {key: makers[setting](database) for setting, key in keys.items()}


def engine_key(database: Database) -> dict[str, str]:
    """The name of the engine, of a SQLAlchemy database that does not say it itself."""
    if not hasattr(database, "get_engine"):
        return {}
    return {"engine_key": "db_engine" if database.key == "default" else f"{database.key}_engine"}


def refuse_name(owner: str, setting: str, name: str) -> None:
    """Raises ImproperConfigurationError: no handler can have a parameter of this name."""
    if not name.isidentifier() or iskeyword(name) or name in RESERVED:
        raise ImproperConfigurationError(
            f"{owner}: {setting}={name!r}: the name of a handler's parameter is needed, and none of those that "
            f"Litestar keeps for itself ({', '.join(RESERVED)})."
        )


def names_of(database: Database) -> dict[str, Any]:
    """What annotations of handlers may name without importing it at run time."""
    if isinstance(database, Keyed):
        return dict(database.signature_namespace)
    if hasattr(database, "get_engine"):
        from transept.extensions.litestar._config import ASYNC_NAMES, SYNC_NAMES

        return SYNC_NAMES if database.blocking else ASYNC_NAMES
    from transept.sql.connection import BlockingConnection, Connection
    from transept.sql.session import BlockingSQLSession, SQLSession

    kinds = (BlockingSQLSession, BlockingConnection) if database.blocking else (SQLSession, Connection)
    return {kind.__name__: kind for kind in kinds}


def session_of(database: Database) -> Provide:
    if must_prepare(database):

        async def prepared(scope: Scope) -> Any:
            return await unit_of_scope(scope, HOW_TO_GATE).prepared(database)

        return Provide(prepared)

    def session(scope: Scope) -> Any:
        return unit_of_scope(scope, HOW_TO_GATE).session(database)

    return Provide(session, sync_to_thread=False)


def connection_of(database: Database) -> Provide:
    def connection(scope: Scope) -> Any:
        return unit_of_scope(scope, HOW_TO_GATE).connection(database)

    return Provide(connection, sync_to_thread=False)


def engine_of(find: Callable[[], Any]) -> Provide:
    def engine() -> Any:
        return find()

    return Provide(engine, sync_to_thread=False)


def _pool_of(database: Any) -> Provide:
    if database.blocking:
        return Provide(database.provide_pool, sync_to_thread=True)
    return Provide(database.provide_pool)
