"""What the two drivers of SQLite share: their settings, how a new connection is made ready, and what is done on one."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Sequence
from typing import Any, ClassVar
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from transept._sqlite import memory_name, prepare
from transept.config import configuration
from transept.errors import ImproperConfigurationError, LockTimeoutError, unknown_option
from transept.sql.faults import Fault, of_sqlite
from transept.sql.kinds import Kind, kind_of
from transept.sql.pool import SIZES, PoolSettings
from transept.sql.result import Result
from transept.sql.settings import DriverSettings
from transept.sql.statement import Notation
from transept.sql.values import TEXT_TYPES, Table

__all__ = ["LiteCursor", "LiteLink", "LiteSettings", "run"]

CONNECT_OPTIONS = frozenset({"database", "timeout", "detect_types", "factory", "cached_statements", "uri"})
POOL_OPTIONS = frozenset({"dsn", *SIZES})
TIMEOUT = 5.0  # seconds that a statement waits for another's lock, unless the settings say otherwise
URI_OPTIONS = ("mode", "cache", "immutable", "nolock", "psow", "vfs")
HINT = "another transaction is writing: keep units that write short, or raise 'timeout' in pool_config."


@configuration
class LiteSettings(DriverSettings):
    """A SQLite database."""

    dialect: ClassVar[str] = "sqlite"
    notation: ClassVar[Notation] = Notation("sqlite", own="qmark", out="qmark")
    natives: ClassVar[frozenset[type]] = frozenset()
    adapts: ClassVar[Table] = TEXT_TYPES

    def __post_init__(self) -> None:
        super().__post_init__()
        owner = type(self).__name__
        options = dict(self.pool_config)
        self._sizes = {name: options.pop(name) for name in SIZES if name in options}
        if "dsn" in options:
            if "database" in options:
                raise ImproperConfigurationError(f"{owner}: pool_config has a dsn and a database: give one of them.")
            dsn = options.pop("dsn")
            options.update(_of_dsn(owner, dsn))
        if not options.get("database"):
            raise ImproperConfigurationError(
                f"{owner}: pool_config={self.pool_config!r}: a 'database' is needed, such as "
                "{'database': 'app.db'} or {'database': ':memory:'}."
            )
        self._options = {"check_same_thread": False, "timeout": TIMEOUT, **options, "isolation_level": None}
        self._in_memory = options["database"] == ":memory:"
        if self._in_memory:
            self._options.update(database=f"file:{memory_name()}?vfs=memdb", uri=True)
        self._keeper: sqlite3.Connection | None = None
        self._one_connects = threading.Lock()
        self._pool_settings()

    @classmethod
    def pool_options(cls) -> frozenset[str]:
        return CONNECT_OPTIONS | POOL_OPTIONS

    def _pool_settings(self) -> PoolSettings:
        owner = f"{type(self).__name__}: pool_config"
        return PoolSettings(self.key, timeout=self.pool_timeout, owner=owner, **self._sizes)

    def fault_of(self, error: BaseException) -> Fault | None:
        fault = of_sqlite(error)
        if fault is not None and fault.kind is LockTimeoutError and HINT not in getattr(error, "__notes__", ()):
            error.add_note(HINT)
        return fault

    def _connected(self) -> sqlite3.Connection:
        """A new connection. An in-memory database lives as long as a connection to it: one is held until `stop`."""
        with self._one_connects:
            if self._in_memory and self._keeper is None:
                self._keeper = sqlite3.connect(**self._options)
        connection: sqlite3.Connection = sqlite3.connect(**self._options)
        try:
            prepare(connection.execute)
        except BaseException:
            connection.close()
            raise
        return connection

    def _forget_memory(self) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    def __del__(self) -> None:
        keeper: sqlite3.Connection | None = getattr(self, "_keeper", None)
        if keeper is not None:
            keeper.close()


LASTING = frozenset({"PRAGMA", "ATTACH", "DETACH"})  # what they do outlives the transaction


class LiteLink:
    """What is the same for a connection in use, whichever driver it is of."""

    __slots__ = ("stained",)

    def __init__(self) -> None:
        self.stained = False

    def note(self, kind: Kind) -> None:
        if kind.verb in LASTING:
            self.stained = True

    def note_script(self, statements: Sequence[str]) -> None:
        for statement in statements:
            self.note(kind_of(statement, "sqlite"))

    fresh = True  # a file does not go away between two uses

    def runs_bare(self, kind: Kind) -> bool:
        return False

    def refused_bare(self, fault: Fault) -> bool:
        return False

    async def gone(self) -> str | None:
        return None


class LiteCursor:
    """A statement that has rows left."""

    __slots__ = ("_cursor",)

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column[0] for column in self._cursor.description or ())


def run(connection: sqlite3.Connection, sql: str, values: Sequence[Any]) -> Result:
    """Run one statement, and fetch its rows."""
    cursor = connection.execute(sql, values)
    if cursor.description is None:
        return Result((), (), cursor.rowcount, cursor.lastrowid)
    rows = cursor.fetchall()
    return Result(cursor.description, rows, len(rows))


def _of_dsn(owner: str, dsn: Any) -> dict[str, Any]:
    """``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``sqlite://`` and ``sqlite:///:memory:``.

    What is behind ``?`` is for SQLite: https://sqlite.org/uri.html
    """
    parts = urlsplit(dsn) if isinstance(dsn, str) else None
    if parts is None or parts.scheme.partition("+")[0] != "sqlite":
        raise _bad_dsn(owner, dsn, "a SQLite URL is needed, such as 'sqlite:///app.db' or 'sqlite:///:memory:'")
    if parts.netloc:
        said = "a file follows three slashes, 'sqlite:///app.db', and four if its path is absolute, 'sqlite:////srv/app.db'"
        raise _bad_dsn(owner, dsn, said)
    if parts.fragment:
        raise _bad_dsn(owner, dsn, "'#' ends a URL: if it is part of the file's name, write %23")
    database = unquote(parts.path[1:]) or ":memory:"
    asked = dict(parse_qsl(parts.query, keep_blank_values=True))
    if not asked:
        return {"database": database}
    for option in asked:
        if option not in URI_OPTIONS:
            raise unknown_option(f"{owner}: dsn={dsn!r}", option, URI_OPTIONS)
    if database == ":memory:" or asked.get("mode") == "memory":
        raise _bad_dsn(owner, dsn, "a database in memory has no options: write 'sqlite:///:memory:'")
    root = "file://" if database.startswith("/") else "file:"
    return {"database": f"{root}{quote(database)}?{urlencode(asked, quote_via=quote)}", "uri": True}


def _bad_dsn(owner: str, dsn: Any, said: str) -> ImproperConfigurationError:
    return ImproperConfigurationError(f"{owner}: dsn={dsn!r}: {said}.")
