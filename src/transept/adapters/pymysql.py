"""MySQL and MariaDB through PyMySQL."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

try:
    import pymysql
    from pymysql.charset import charset_by_name
    from pymysql.connections import Connection
    from pymysql.cursors import Cursor, SSCursor
except ImportError as error:
    raise ImportError("transept.adapters.pymysql needs pymysql: pip install 'transept[pymysql]'") from error

from transept.config import configuration
from transept.sql.faults import Fault, of_mysql
from transept.sql.mysql import NOT_OPTIONS, MySQLLink, MySQLSettings
from transept.sql.pool import ThreadPool
from transept.sql.settings import BlockingSettings

__all__ = ["PyMysqlConfig"]


@configuration
class PyMysqlConfig(BlockingSettings, MySQLSettings):
    """A MySQL or MariaDB database through PyMySQL, for blocking code; the settings of `DriverSettings`.

    Args:
        pool_config: the keywords of `pymysql.connect`, or a ``dsn`` such as ``"mysql://user:pw@localhost/app"``; and of
            the pool: ``max_size`` (5), ``min_size``, ``max_idle`` in seconds; also ``maxsize``, ``minsize`` and
            ``pool_recycle``.

    The pool is Transept's. An UPDATE counts the rows that it finds, not only those that it changes, as on other
    databases. A connection on which something was done that may outlive a transaction (SET, GET_LOCK, CREATE, CALL and
    the like) is closed instead of given back.
    """

    driver_connection: ClassVar[type] = Connection

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pool = ThreadPool(self._connect, PyMysqlLink.close, self._pool_settings())
        self._announce(self._pool)

    @classmethod
    def connect_options(cls) -> frozenset[str]:
        return frozenset(inspect.signature(pymysql.connect).parameters) - NOT_OPTIONS

    @classmethod
    def _knows_charset(cls, name: str) -> bool:
        return charset_by_name(name) is not None

    def fault_of(self, error: BaseException) -> Fault | None:
        return of_mysql(error)

    async def link(self, holder: str) -> PyMysqlLink:
        link = self._pool.acquire(holder)
        link.taken()
        return link

    async def _warm(self, connections: int) -> None:
        self._warming = True
        try:
            self._pool.warm(connections)
        finally:
            self._warming = False

    async def stop(self) -> None:
        self.close_pool()

    def provide_pool(self) -> ThreadPool[PyMysqlLink]:
        """The pool, which is Transept's: the driver has none."""
        return self._pool

    def close_pool(self) -> None:
        """Close it; the next use connects anew."""
        self._pool.close()

    def _connect(self) -> PyMysqlLink:
        return PyMysqlLink(pymysql.connect(**self._options), self._pool, self.key, new=not self._warming)


class PyMysqlLink(MySQLLink):
    """One connection of PyMySQL's."""

    __slots__ = ()

    buffered = Cursor
    unbuffered = SSCursor

    def close(self) -> None:
        self._cut()

    async def _done(self, answer: Any) -> Any:
        return answer

    def _is_alive(self) -> bool:
        alive: bool = self._driver.open
        return alive

    def _cut(self) -> None:
        if self._driver.open:
            self._driver.close()
