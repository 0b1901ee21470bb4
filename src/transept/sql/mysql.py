"""What the two drivers of MySQL and MariaDB share: their settings, and a connection in use.

Both drivers have the same names; what one of them awaits, the other blocks for.

Rule 1: autocommit stays off. The server ends a transaction by itself at some errors (1213 and its kin), and what
follows in a new one must not be kept statement by statement.
Rule 2: while rows of a stream are on their way, nothing else may be said on the connection.
Rule 3: a connection whose user was cancelled amid a statement is out of step: it is closed, and the server rolls back.
Rule 4: a connection on which something was done that may outlive the transaction (settings, locks, variables, temporary
tables), or that the app had in its hands, is closed when it comes back: the drivers have no other way to reset it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, ClassVar, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

from transept.config import checked, configuration, options_checked
from transept.errors import CommitFailed, ImproperConfigurationError, UsageError
from transept.sql.faults import Fault
from transept.sql.kinds import Kind, kind_of
from transept.sql.pool import SIZES, PoolSettings
from transept.sql.result import Result
from transept.sql.settings import DriverSettings
from transept.sql.statement import Notation
from transept.sql.tokens import split
from transept.sql.values import MYSQL_TYPES, Table

__all__ = ["MySQLLink", "MySQLSettings"]

NATIVES: frozenset[type] = frozenset({datetime, date, timedelta, Decimal})

# Read write by default. READ WRITE in words is refused to most users while the server is read-only.
BEGIN = "START TRANSACTION"
IN_TRANSACTION = 1  # of the flags that come with each answer
ROLLS_BACK_ON_TIMEOUT = "SELECT @@innodb_rollback_on_timeout"
LOCK_WAIT, NO_SUCH_SAVEPOINT = 1205, 1305
OF_OUR_SAVEPOINT = re.compile(r"(?:ROLLBACK TO|RELEASE) SAVEPOINT transept_\d+$")

FOUND_ROWS = 2  # a client flag: an UPDATE affects the rows that it finds, as on other databases
# Settings that would take the transaction, the rows or the connection out of our hands; and old or unfinished ones.
NOT_OPTIONS = frozenset(
    {"autocommit", "cursor_cls", "cursorclass", "defer_connect", "sock", "compress", "named_pipe", "passwd", "db"}
)
SPELLINGS = {"minsize": "min_size", "maxsize": "max_size", "pool_recycle": "max_idle"}
POOL_OPTIONS = frozenset({"dsn", *SIZES, *SPELLINGS})
INTO_VARIABLE = re.compile(r"\bINTO(?:\s|/\*.*?\*/)*@", re.IGNORECASE | re.DOTALL)
SCHEMES = ("mysql", "mariadb")
CREDENTIALS = re.compile(r"//.*@")


@configuration
class MySQLSettings(DriverSettings):
    """A MySQL or MariaDB database."""

    dialect: ClassVar[str] = "mysql"
    notation: ClassVar[Notation] = Notation("mysql", own="format", out="format")
    natives: ClassVar[frozenset[type]] = NATIVES
    adapts: ClassVar[Table] = MYSQL_TYPES

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        options = _one_spelling(owner, self.pool_config)
        if "dsn" in options:
            dsn = _of_dsn(owner, options.pop("dsn"))
            options_checked(owner, "dsn", dsn, self.connect_options())
            options = {**dsn, **options}
        self._sizes = {name: options.pop(name) for name in SIZES if name in options}
        if self._sizes.get("max_idle") == -1:  # asyncmy's word for never
            self._sizes["max_idle"] = None
        self._check_options(owner, options)
        self._options = {**options, "client_flag": options.get("client_flag", 0) | FOUND_ROWS, "autocommit": False}
        self._warming = False
        self._pool_settings()

    @classmethod
    def connect_options(cls) -> frozenset[str]:
        """The keywords of the driver's own `connect` that `pool_config` may have."""
        raise NotImplementedError

    @classmethod
    def pool_options(cls) -> frozenset[str]:
        return cls.connect_options() | POOL_OPTIONS

    @classmethod
    def _knows_charset(cls, name: str) -> bool:
        raise NotImplementedError

    def _pool_settings(self) -> PoolSettings:
        return PoolSettings(
            self.key,
            timeout=self.pool_timeout,
            owner=f"{type(self).__name__}: pool_config",
            spellings={SPELLINGS[name]: name for name in self.pool_config if name in SPELLINGS},
            **self._sizes,
        )

    def _check_options(self, owner: str, options: Mapping[str, Any]) -> None:
        """The settings of which the drivers would say at the first connection, and not clearly, that they are wrong."""
        for name in ("client_flag", "port"):
            if name in options:
                checked(f"pool_config: {name}", options[name], int, owner)
        charset = options.get("charset") or "utf8mb4"
        if not isinstance(charset, str) or not self._knows_charset(charset):
            raise ImproperConfigurationError(
                f"{owner}: pool_config: charset={charset!r}: a character set that the driver knows is needed, such as "
                "'utf8mb4'."
            )
        if "conv" in options:  # the app teaches the driver types
            checked("pool_config: conv", options["conv"], Mapping, owner, optional=True)
            taught = [key for key in options["conv"] or () if isinstance(key, type)]
            setattr(self, "adapts", self.adapts.also(taught))  # noqa: B010 - it is the class's for all others


class Returns(Protocol):
    """The pool of a connection."""

    def release(self, connection: Any, /) -> None: ...

    def discard(self, connection: Any, /) -> None: ...


class MySQLLink:
    """One connection; pooled as it is."""

    __slots__ = ("_broken", "_driver", "_lock_wait", "_pool", "_sql", "_stained", "_stream", "database", "fresh", "new")

    buffered: ClassVar[Any]
    unbuffered: ClassVar[Any]

    def __init__(self, connection: Any, pool: Returns, database: str, *, new: bool) -> None:
        self._driver = connection
        self.database = database
        self.fresh = False
        self.new = new
        self._pool = pool
        self._broken = False
        self._lock_wait = False
        self._stained = False  # something may outlive the transaction
        self._sql = ""
        self._stream: MySQLStream | None = None

    @property
    def connection(self) -> Any:
        """The driver's own; who asks for it may do anything to its session."""
        self._stained = True
        return self._driver

    async def call(self, method: Any, *arguments: Any) -> Any:
        """Call a method of the driver's. One that is interrupted leaves the connection out of step."""
        try:
            return await self._done(method(*arguments))
        except Exception:
            raise
        except BaseException:
            self.cut()  # not every version of the drivers does; the next statement would get this one's answer
            raise

    async def _done(self, answer: Any) -> Any:
        raise NotImplementedError

    def close(self) -> Any:
        """Say goodbye to the server, and close it."""
        raise NotImplementedError

    def _is_alive(self) -> bool:
        raise NotImplementedError

    def _cut(self) -> None:
        """Close it without waiting for anything."""
        raise NotImplementedError

    def taken(self) -> None:
        """It has a new user."""
        self.fresh, self.new = self.new, False

    def runs_bare(self, kind: Kind) -> bool:
        return False

    def refused_bare(self, fault: Fault) -> bool:
        return False

    async def begin(self, may_write: bool) -> None:
        self._lock_wait = False
        await self._execute(BEGIN, ())

    async def run(self, sql: str, values: Sequence[Any], kind: Kind) -> Result:
        self._note(sql, kind)
        cursor = await self._execute(sql, values)
        if cursor.description is None:
            result = Result((), (), cursor.rowcount, cursor.lastrowid or None, NATIVES)
        else:
            rows = await self.call(cursor.fetchall)
            result = Result(tuple([column[0] for column in cursor.description]), rows, cursor.rowcount, None, NATIVES)
        await self.call(cursor.close)  # reads the further results of a CALL
        return result

    async def run_many(self, sql: str, sets: Sequence[Sequence[Any]]) -> int:
        self._note(sql, kind_of(sql, "mysql"))
        await self._ready(sql)
        cursor = self._driver.cursor(self.buffered)
        if sets[0]:
            await self.call(cursor.executemany, sql, sets)
            count: int = cursor.rowcount
        else:  # the driver would look for placeholders in a text that has none
            count = 0
            for _ in sets:
                await self.call(cursor.execute, sql, None)
                count += cursor.rowcount
        await self.call(cursor.close)
        return count

    async def run_script(self, script: str) -> None:
        for statement in split(script, "mysql"):
            self._note(statement, kind_of(statement, "mysql"))
            cursor = await self._execute(statement, ())
            await self.call(cursor.close)

    async def cursor(self, sql: str, values: Sequence[Any]) -> MySQLStream:
        self._note(sql, kind_of(sql, "mysql"))
        await self._ready(sql)
        cursor = self._driver.cursor(self.unbuffered)
        self._stream = stream = MySQLStream(self, cursor, sql)
        try:
            await self.call(cursor.execute, sql, values or None)
        except BaseException:
            self._stream = None
            raise
        return stream

    def still_in_transaction(self) -> bool:
        return self._is_alive() and bool(self._driver.server_status & IN_TRANSACTION)

    async def ended_by(self, fault: Fault) -> bool:
        if fault.code == LOCK_WAIT:
            self._lock_wait = True
        of_savepoint = fault.code == NO_SUCH_SAVEPOINT and OF_OUR_SAVEPOINT.match(self._sql) is not None
        return fault.ended or of_savepoint

    async def gone(self) -> str | None:
        if not self._lock_wait:
            return None
        cursor = await self._execute(ROLLS_BACK_ON_TIMEOUT, ())
        rows = await self.call(cursor.fetchall)
        return "an earlier lock timeout ended the transaction, as the server is set to" if rows[0][0] else None

    async def commit(self) -> None:
        if self._stream is not None:
            try:
                await self._ready("COMMIT")
            except Exception as error:
                raise CommitFailed(self.database, "the rest of its stream could not be read") from error
        await self.call(self._driver.commit)

    async def rollback(self) -> None:
        """Without reading what is left of a stream: that may be much, and a new connection is not dear."""
        if self._broken or self._stream is not None or not self._is_alive():
            self.cut()
        else:
            await self.call(self._driver.rollback)

    async def release(self) -> None:
        if self._broken or not self._is_alive():
            await self.drop()
        elif self._stained:
            try:
                await self._done(self.close())
            finally:
                self._pool.discard(self)
        else:
            self._pool.release(self)

    async def drop(self) -> None:
        self.cut()
        self._pool.discard(self)

    def cut(self) -> None:
        self._broken = True
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.abandon()
        self._cut()

    def drained(self) -> None:
        self._stream = None

    def _note(self, sql: str, kind: Kind) -> None:
        if kind.session or ("@" in sql and INTO_VARIABLE.search(sql)):
            self._stained = True

    async def _execute(self, sql: str, values: Sequence[Any]) -> Any:
        if self._stream is not None:
            await self._ready(sql)
        self._sql = sql
        cursor = self._driver.cursor(self.buffered)
        # Not even () may be given without values: the drivers would look for placeholders.
        await self.call(cursor.execute, sql, values or None)
        return cursor

    async def _ready(self, sql: str) -> None:
        """Make sure that nothing of a stream is under way."""
        self._sql = sql
        stream = self._stream
        if stream is None:
            return
        if stream.reading:
            raise UsageError(
                f"a stream is open on this connection of database {self.database!r}, and MySQL says nothing else until "
                f"its last row was read: read {_short(stream.sql)!r} to its end, or close it, before {_short(sql)!r}."
            )
        await stream.drain()


class MySQLStream:
    """Rows that the server is sending, as they are read."""

    __slots__ = ("_cursor", "_ended", "_link", "reading", "sql")

    def __init__(self, link: MySQLLink, cursor: Any, sql: str) -> None:
        self._link = link
        self._cursor = cursor
        self._ended = False
        self.reading = True
        self.sql = sql

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column[0] for column in self._cursor.description or ())

    async def fetch(self, count: int) -> Sequence[Sequence[Any]]:
        rows: Sequence[Sequence[Any]] = await self._link.call(self._cursor.fetchmany, count)
        self._ended = len(rows) < count
        return rows

    async def close(self) -> None:
        """The rest is read, and forgotten, before the next statement or COMMIT; after a rollback not at all."""
        self.reading = False
        if self._ended:
            await self.drain()

    async def drain(self) -> None:
        await self._link.call(self._cursor.close)
        self._link.drained()

    def abandon(self) -> None:
        """The connection is closed: the driver must not try to read the rest, when this becomes garbage."""
        result = self._cursor._result
        if result is not None:
            result.unbuffered_active = False
        self._cursor.connection = None


def _short(sql: str) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _one_spelling(owner: str, config: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for name, value in config.items():
        known = SPELLINGS.get(name, name)
        if known in options:
            raise ImproperConfigurationError(f"{owner}: pool_config has {known!r} in two spellings: give one of them.")
        options[known] = value
    return options


def _of_dsn(owner: str, dsn: Any) -> dict[str, Any]:
    """``mysql://user:password@host:3306/database?charset=utf8mb4``, also with ``mariadb`` or ``mysql+asyncmy``."""
    try:
        parts = urlsplit(dsn if isinstance(dsn, str) else "")
        port = parts.port
    except ValueError as error:
        raise _bad_dsn(owner, dsn) from error
    if parts.scheme.partition("+")[0] not in SCHEMES:
        raise _bad_dsn(owner, dsn)
    found = {
        "user": parts.username and unquote(parts.username),
        "password": parts.password and unquote(parts.password),
        "host": parts.hostname,
        "port": port,
        "database": unquote(parts.path[1:]),
    }
    asked = {name: _typed(value) for name, value in parse_qsl(parts.query)}
    return {**{name: value for name, value in found.items() if value}, **asked}


def _bad_dsn(owner: str, dsn: Any) -> ImproperConfigurationError:
    shown = CREDENTIALS.sub("//...@", dsn) if isinstance(dsn, str) else dsn
    return ImproperConfigurationError(
        f"{owner}: dsn={shown!r}: a URL is needed, such as 'mysql://user:password@localhost:3306/app?charset=utf8mb4'."
    )


def _typed(value: str) -> Any:
    """What an option of a URL means to a driver: a number, a truth or a text."""
    return int(value) if value.isdecimal() else {"true": True, "false": False}.get(value.lower(), value)
