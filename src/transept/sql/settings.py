"""What users write for a raw database; each config object is one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, ClassVar

from transept.config import DatabaseSettings, checked, configuration, options_checked, text_setting
from transept.errors import ImproperConfigurationError, SQLError, unknown_option, unknown_value
from transept.hooks import Hooks
from transept.sql.connection import BlockingConnection, Connection
from transept.sql.faults import sql_error
from transept.sql.handle import SQLHandle
from transept.sql.link import Linker
from transept.sql.session import BlockingSQLSession, SQLSession
from transept.sql.statement import Notation
from transept.sql.values import Table
from transept.turn import TaskTurn, ThreadTurn

__all__ = ["AsyncSettings", "BlockingSettings", "DriverSettings"]

logger = logging.getLogger("transept")

FRAMEWORKS = ("starlette", "fastapi", "litestar", "flask")
OF_EXTENSIONS = (
    "commit_mode",
    "session_key",
    "connection_key",
    "pool_key",
    "extra_commit_statuses",
    "extra_rollback_statuses",
    "disable_di",
)


@configuration
class DriverSettings(DatabaseSettings):
    """What all raw databases have in common.

    Args:
        pool_config, connection_config: two names of one setting, the keywords of the driver's pool and connections.
        extension_config: settings by framework, such as ``{"starlette": {"commit_mode": "autocommit"}}`` or
            ``{"starlette": StarletteConfig(...)}``; the same as giving them here.
        bind_key: the database's name.
        session_key, connection_key: the names of the session and of the connection on the request's state.
        pool_key: the name of the driver's pool on the app's state.
        commit_mode: ``"manual"``, ``"autocommit"`` (2xx) or ``"autocommit_include_redirect"`` (2xx and 3xx).
        extra_commit_statuses, extra_rollback_statuses: HTTP statuses that win over the mode's range.
        keep_transaction_for_body: let a stream that is open when the response starts keep its transaction until the
            body is complete.
        disable_di: leave session and connection off the request's state and out of dependency injection.
        pool_timeout: how many seconds a statement waits for a connection.
        eager: connect at start-up, and fail there if the database cannot be reached.
    """

    pool_config: Mapping[str, Any] = field(default_factory=dict)
    connection_config: Mapping[str, Any] | None = None
    extension_config: Mapping[str, Mapping[str, Any]] | None = None
    connection_key: str = ""
    pool_key: str = ""
    disable_di: bool = False
    pool_timeout: float = 10.0
    eager: bool = False

    blocking: ClassVar[bool]
    dialect: ClassVar[str]
    notation: ClassVar[Notation]
    natives: ClassVar[frozenset[type]]
    adapts: ClassVar[Table]

    def __post_init__(self) -> None:
        owner = type(self).__name__
        self._take_extension_config(owner)
        super().__post_init__()
        checked("disable_di", self.disable_di, bool, owner)
        checked("eager", self.eager, bool, owner)
        seconds = self.pool_timeout
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds >= 0:
            raise ImproperConfigurationError(f"{owner}: pool_timeout={seconds!r}: seconds are needed, 0 or more.")
        if self.connection_config is not None and self.pool_config:
            raise ImproperConfigurationError(
                f"{owner}: pool_config and connection_config are two names of one setting: give one of them."
            )
        self.pool_config = self.pool_config if self.connection_config is None else self.connection_config
        self._listeners: list[Callable[[Any], None]] = []
        self._latest_pool: Any = None
        options_checked(owner, "pool_config", self.pool_config, self.pool_options())

    @classmethod
    def pool_options(cls) -> frozenset[str]:
        """What `pool_config` may have."""
        raise NotImplementedError

    def when_pooled(self, listener: Callable[[Any], None]) -> None:
        """Call `listener(pool)` whenever the driver's pool is made, and now if there is one."""
        self._listeners.append(listener)
        if self._latest_pool is not None:
            listener(self._latest_pool)

    def _announce(self, pool: Any) -> None:
        self._latest_pool = pool
        for listener in self._listeners:
            listener(pool)

    async def start(self) -> None:
        """Open the pool, and connect as much as the settings say.

        Raises:
            SQLError: with ``eager=True``, the database cannot be reached; without, that is logged.
        """
        try:
            await self._warm(self.pool_config.get("min_size", self.pool_config.get("minsize", 0)) or int(self.eager))
        except Exception as error:
            fault = self._itself().fault_of(error)
            if fault is None and not isinstance(error, SQLError):
                raise
            if not self.eager:
                logger.warning("database %r cannot be reached yet: %r", self.key, error)
            elif fault is None:
                raise
            else:
                raise sql_error(fault, error, self.key, None) from error

    async def _warm(self, connections: int) -> None:
        """Open the pool, with this many connections."""
        raise NotImplementedError

    def _itself(self) -> Linker:
        linker: Any = self
        checked_linker: Linker = linker
        return checked_linker

    def _derive_keys(self) -> None:
        """``db_connection`` beside ``db_session``; ``x_connection`` beside ``x_session``, or beside a session key x."""
        super()._derive_keys()
        given = self._given_keys
        stem = given["session_key"] or ("db" if self.bind_key == "default" else self.bind_key)
        owner = type(self).__name__
        self.connection_key = text_setting(owner, "connection_key", given["connection_key"] or f"{stem}_connection")
        self.pool_key = text_setting(owner, "pool_key", given["pool_key"] or f"{stem}_pool")
        keys = (self.session_key, self.connection_key, self.pool_key)
        if len(set(keys)) < len(keys):
            raise ImproperConfigurationError(
                f"Duplicate state keys found: {owner} (database {self.bind_key!r}) has session_key={keys[0]!r}, "
                f"connection_key={keys[1]!r} and pool_key={keys[2]!r}, which must differ."
            )

    def _take_extension_config(self, owner: str) -> None:
        """One set of settings, whichever framework it is written for."""
        checked("extension_config", self.extension_config, Mapping, owner, optional=True)
        said: dict[str, str] = {}
        for framework, settings in (self.extension_config or {}).items():
            if framework not in FRAMEWORKS:
                raise unknown_value(f"{owner}: extension_config key", framework, FRAMEWORKS)
            checked(f"extension_config[{framework!r}]", settings, Mapping, owner)
            for setting, value in settings.items():
                if setting not in OF_EXTENSIONS:
                    raise unknown_option(f"{owner}: extension_config[{framework!r}]", setting, OF_EXTENSIONS)
                self._take_setting(owner, framework, setting, value, said)

    def _take_setting(self, owner: str, framework: str, setting: str, value: Any, said: dict[str, str]) -> None:
        present = getattr(self, setting)
        taken = setting in said or present != type(self).__dataclass_fields__[setting].default
        if taken and present != value:
            raise ImproperConfigurationError(
                f"{owner}: extension_config[{framework!r}] has {setting}={value!r}, and "
                f"{said.get(setting, 'the config itself')} has {present!r}: a database has one; give each app a "
                "config of its own if they are to differ."
            )
        setattr(self, setting, value)
        said[setting] = f"extension_config[{framework!r}]"


@configuration
class AsyncSettings(DriverSettings):
    """A database whose driver is awaited."""

    blocking: ClassVar[bool] = False

    def open(self, hooks: Hooks, reads_only: bool) -> SQLHandle[SQLSession, Connection]:
        linker = self._route(hooks) or self._itself()
        handle: SQLHandle[SQLSession, Connection] = SQLHandle(linker, TaskTurn(), hooks, reads_only)
        handle.owner, handle.session, handle.connection = self, SQLSession(handle), Connection(handle)
        return handle


@configuration
class BlockingSettings(DriverSettings):
    """A database whose driver blocks."""

    blocking: ClassVar[bool] = True

    def open(self, hooks: Hooks, reads_only: bool) -> SQLHandle[BlockingSQLSession, BlockingConnection]:
        linker = self._route(hooks) or self._itself()
        handle: SQLHandle[BlockingSQLSession, BlockingConnection] = SQLHandle(linker, ThreadTurn(), hooks, reads_only)
        handle.owner, handle.session, handle.connection = self, BlockingSQLSession(handle), BlockingConnection(handle)
        return handle
