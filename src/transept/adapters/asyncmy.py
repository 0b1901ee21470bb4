"""MySQL and MariaDB through asyncmy."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

try:
    import asyncmy
    from asyncmy.charset import charset_by_name
    from asyncmy.connection import Connection
    from asyncmy.converters import conversions
    from asyncmy.cursors import Cursor, SSCursor
except ImportError as error:
    raise ImportError("transept.adapters.asyncmy needs asyncmy: pip install 'transept[asyncmy]'") from error

from transept._loops import PerLoop
from transept.config import configuration
from transept.sql.faults import Fault, of_mysql
from transept.sql.mysql import NOT_OPTIONS, MySQLLink, MySQLSettings
from transept.sql.pool import AsyncPool
from transept.sql.settings import AsyncSettings
from transept.sql.values import MYSQL_TYPES, Table

__all__ = ["AsyncmyConfig"]


class Hex:
    """Bytes as the server reads them whatever its sql_mode: asyncmy escapes them with backslashes in all of them."""

    __slots__ = ("literal",)

    def __init__(self, value: Any) -> None:
        self.literal = f"x'{bytes(value).hex()}'"


def _literal(value: Hex, mapping: Any = None) -> str:
    return value.literal


@configuration
class AsyncmyConfig(AsyncSettings, MySQLSettings):
    """A MySQL or MariaDB database through asyncmy; the settings of `DriverSettings`.

    Args:
        pool_config: the keywords of `asyncmy.connect`, or a ``dsn`` such as ``"mysql://user:pw@localhost/app"``; and of
            the pool: ``max_size`` (5), ``min_size``, ``max_idle`` in seconds. asyncmy's own spellings are understood:
            ``maxsize``, ``minsize``, ``pool_recycle``.

    The pool is Transept's, one for each event loop, and closed at shutdown or with its loop. An UPDATE counts the rows
    that it finds, not only those that it changes, as on other databases. A connection on which something was done that
    may outlive a transaction (SET, GET_LOCK, CREATE, CALL and the like) is closed instead of given back.
    """

    driver_connection: ClassVar[type] = Connection
    adapts: ClassVar[Table] = MYSQL_TYPES.but({bytes: Hex, bytearray: Hex, memoryview: Hex})

    def __post_init__(self) -> None:
        super().__post_init__()
        self._options["conv"] = {**(self._options.get("conv") or conversions), Hex: _literal}
        self._pools = PerLoop(self._new_pool, AsyncPool.close)

    @classmethod
    def connect_options(cls) -> frozenset[str]:
        return frozenset(inspect.signature(asyncmy.connect).parameters) - NOT_OPTIONS

    @classmethod
    def _knows_charset(cls, name: str) -> bool:
        return charset_by_name(name) is not None

    def fault_of(self, error: BaseException) -> Fault | None:
        return of_mysql(error)

    async def link(self, holder: str) -> AsyncmyLink:
        link = await self._pools.get().acquire(holder)
        link.taken()
        return link

    async def _warm(self, connections: int) -> None:
        pool = self._pools.get()
        self._warming = True
        try:
            await pool.warm(connections)
        finally:
            self._warming = False

    async def stop(self) -> None:
        await self._pools.close()

    async def provide_pool(self) -> AsyncPool[AsyncmyLink]:
        """The pool of the running event loop."""
        return self._pools.get()

    async def close_pool(self) -> None:
        """Close it; the next use makes another."""
        await self.stop()

    def _new_pool(self) -> AsyncPool[AsyncmyLink]:
        async def connect() -> AsyncmyLink:
            connection = await asyncmy.connect(**self._options)
            return AsyncmyLink(connection, pool, self.key, new=not self._warming)

        pool = AsyncPool(connect, AsyncmyLink.close, self._pool_settings())
        self._announce(pool)
        return pool


class AsyncmyLink(MySQLLink):
    """One connection of asyncmy's."""

    __slots__ = ()

    buffered = Cursor
    unbuffered = SSCursor

    async def close(self) -> None:
        await self._driver.ensure_closed()

    async def _done(self, answer: Any) -> Any:
        return await answer

    def _is_alive(self) -> bool:
        alive: bool = self._driver.connected
        return alive

    def _cut(self) -> None:
        self._driver.close()
