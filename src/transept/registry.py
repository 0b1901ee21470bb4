"""The databases of a program by name, as users keep them; and sessions of theirs outside of requests."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, overload

from transept.context import LOOP, plain, plain_host
from transept.database import Connects, Database, Databases, Gives, refuse_class
from transept.errors import ImproperConfigurationError, UsageError
from transept.hosts import BridgeHost, PlainHost
from transept.lifecycle import stop_all
from transept.transaction import new_unit_of_work
from transept.unit import Unit

__all__ = ["Registry"]

D = TypeVar("D", bound="Named")
S = TypeVar("S")
Error = BaseException | None


class Named(Database, Protocol):
    """A database that can be given another name, as every config object can."""

    def rename(self, bind_key: str) -> None: ...


class Registry(Databases):
    """Databases by name, in the order they were added; the first one is meant where no key is given."""

    def add_config(self, config: D, name: str | None = None) -> D:
        """Add one database, and return it.

        `name` becomes its bind key. Without one, a config whose bind key was left at ``"default"`` while that is taken
        is named by its session key.

        Raises:
            ImproperConfigurationError: its name, or one of its keys, is taken; or it is no database.
        """
        refuse_class("add_config", config)
        if not callable(getattr(config, "rename", None)):
            raise ImproperConfigurationError(
                f"add_config({config!r}): a database configuration is needed, such as AsyncpgConfig(...)."
            )
        if config not in self:
            if name is not None:
                config.rename(name)
            elif config.key == "default" and "default" in self.configs and config.session_key != "db_session":
                config.rename(config.session_key)
            self.add(config)
        elif name not in (None, config.key):
            raise ImproperConfigurationError(
                f"add_config(..., name={name!r}): this config is in the registry already, as {config.key!r}."
            )
        return config

    @property
    def configs(self) -> dict[str, Database]:
        """All of them, by name."""
        return {database.key: database for database in self}

    def get_config(self, key: Database | str | None = None) -> Any:
        """The database with this name or session key; without one the first."""
        return self.get(key)

    @overload
    def provide_session(self, config: Gives[S]) -> OwnUnit[S]: ...
    @overload
    def provide_session(self, config: Database | str | None = None) -> OwnUnit[Any]: ...
    def provide_session(self, config: Any = None) -> OwnUnit[Any]:
        """A session in a unit of work of its own: ``async with``, or ``with`` for a blocking database.

        It is committed at a clean end of the block, and rolled back on an error, whatever the commit mode.
        """
        return OwnUnit(self._found(config), connection=False)

    @overload
    def provide_connection(self, config: Connects[S]) -> OwnUnit[S]: ...
    @overload
    def provide_connection(self, config: Database | str | None = None) -> OwnUnit[Any]: ...
    def provide_connection(self, config: Any = None) -> OwnUnit[Any]:
        """As `provide_session`, for the driver's connection."""
        return OwnUnit(self._found(config), connection=True)

    async def close_all_pools(self) -> None:
        """Close what all databases have open: the end of a program. The next use opens it again.

        Raises:
            Exception: the first failure, when all have been closed, with the others as notes.
        """
        await stop_all(list(self), LOOP)

    def _found(self, config: Any) -> Database:
        """A config that was never added is, unless its name is taken; it is used all the same."""
        if config is None or isinstance(config, str) or config in self:
            return self.get(config)
        if getattr(config, "key", None) in self.configs:
            found: Database = config
            return found
        added: Database = self.add_config(config)
        return added


class OwnUnit(Generic[S]):
    """A block around a unit of work of its own; gives the session, or the connection, of one database in it."""

    def __init__(self, database: Database, *, connection: bool, host: PlainHost | BridgeHost | None = None) -> None:
        self._database = database
        self._connection = connection
        self._host = host
        self._block = new_unit_of_work(host)

    async def __aenter__(self) -> S:
        unit = await self._block.__aenter__()
        try:
            await unit.prepared(self._database)
            return self._of(unit)
        except BaseException as error:
            await self._block.__aexit__(type(error), error, error.__traceback__)
            raise

    async def __aexit__(self, kind: type[BaseException] | None, error: Error, traceback: TracebackType | None) -> None:
        await self._block.__aexit__(kind, error, traceback)

    def __enter__(self) -> S:
        host = plain_host() if self._host is None else plain(self._host)
        if not self._database.blocking and not isinstance(host, BridgeHost):
            what = "the connection" if self._connection else "the session"
            raise UsageError(f"{what} of database {self._database.key!r}, whose driver is awaited: use `async with`.")
        unit = self._block.__enter__()
        try:
            return self._of(unit)
        except BaseException as error:
            self._block.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: Error, traceback: TracebackType | None) -> None:
        self._block.__exit__(kind, error, traceback)

    def _of(self, unit: Unit) -> S:
        given: Any = unit.connection(self._database) if self._connection else unit.session(self._database)
        session: S = given
        return session
