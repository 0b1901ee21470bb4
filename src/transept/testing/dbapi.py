"""A DBAPI connection that is a part of the sandbox's one: its commit is RELEASE, its rollback ROLLBACK TO.

SQLAlchemy stands on it as on any other, so what it does with transactions, events and errors is what it always does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sqlalchemy.util import greenlet_spawn

from transept._bridge import run_now
from transept.testing.control import control_word, refuse_two_phase
from transept.testing.driver import DriverConnection
from transept.testing.errors import SandboxError

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

    from transept.testing.alchemy import SharedConnection
    from transept.testing.turnstile import User

__all__ = ["JoinedConnection"]

SETTINGS = {"autocommit", "deferrable", "isolation_level", "read_only", "readonly"}
LOCAL = {"fetchone", "fetchmany", "fetchall"}


class JoinedConnection:
    """What one unit has of the sandbox's connection: a savepoint, from its first statement to its end."""

    def __init__(self, shared: SharedConnection, user: User, record: ConnectionPoolEntry) -> None:
        names = {"_shared": shared, "_user": user, "_record": record, "_part": None, "_in_use": False, "_over": False}
        self.__dict__.update(names)

    def cursor(self, *arguments: Any, **keywords: Any) -> JoinedCursor:
        return JoinedCursor(self, arguments, keywords)

    def commit(self) -> None:
        if self._in_use:
            self._call(self._keep)
            self.__dict__["_in_use"] = False

    def rollback(self) -> None:
        if self._in_use and not self._over:
            self._call(self._undo)
            self.__dict__["_in_use"] = False

    def close(self) -> None:
        """Give the sandbox's connection to the next unit; what was not committed is rolled back."""
        if self._over:
            return
        self.__dict__["_over"] = True
        if self._in_use:  # also by a statement that was cancelled, and still runs where the connection lives
            self._shared.undo_and_give_back(self._undo_dropped, self._user)
        else:
            self._shared.give_back(self._user)

    terminate = close

    def set_isolation_level(self, level: Any) -> None:
        self._set("isolation_level", level)

    @property
    def driver_connection(self) -> Any:
        """The driver's own, for what SQLAlchemy has no words for, such as COPY."""
        raw = self._shared.raw
        return raw if self._shared.home is None else DriverConnection(raw and raw.driver_connection, self._run_joined)

    @property
    def _connection(self) -> Any:
        """By this name SQLAlchemy's async dialects ask for it."""
        return self.driver_connection

    def abandon(self) -> None:
        """The sandbox is over. The pool's entry lets go, too, or it would complain when it becomes garbage."""
        self.__dict__["_over"] = True
        self._record.invalidate()

    def __getattr__(self, name: str) -> Any:
        if self._over:
            raise self._shared.over()
        if name.startswith("tpc_"):
            refuse_two_phase()
        return getattr(self._shared.raw, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SETTINGS:
            self._set(name, value)
        else:
            setattr(self._shared.raw, name, value)

    def _set(self, name: str, value: Any) -> None:
        """The sandbox's transaction has begun already, with settings of its own; they stay."""
        if (name == "autocommit" and value) or str(value).upper() == "AUTOCOMMIT":
            raise SandboxError("a sandbox cannot keep each statement at once (AUTOCOMMIT): test it with real commits.")

    async def _run_joined(self, work: Callable[[], Any]) -> Any:
        if self._over:
            raise self._shared.over()
        self.__dict__["_in_use"] = True

        async def joined() -> Any:
            await greenlet_spawn(self._join)
            return await work()

        return await self._shared.run(joined)

    # In the driver's thread or loop.

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._over:
            raise self._shared.over()
        return self._shared.call(function, *arguments)

    def _join(self) -> None:
        if self._over:
            raise self._shared.over()
        if self._part is None:
            self.__dict__["_part"] = run_now(self._shared.part_of().begin_part())

    def _keep(self) -> None:
        if self._part is not None:
            run_now(self._shared.part_of().keep_part(self._part))
            self.__dict__["_part"] = None

    def _undo(self) -> None:
        part, self.__dict__["_part"] = self._part, None
        if part is not None:
            run_now(self._shared.part_of().undo_part(part))

    async def _undo_dropped(self) -> None:
        self._undo()

    def _execute(self, cursor: JoinedCursor, method: str, statement: Any, *arguments: Any) -> Any:
        word = control_word(statement)
        if word is None:
            self._join()
            return getattr(cursor.raw(), method)(statement, *arguments)
        if word == "two_phase":
            refuse_two_phase()
        if word == "begin" and not self._shared.begin_again():
            self._join()
        return {"begin": lambda: None, "commit": self._keep, "rollback": self._undo}[word]()


class JoinedCursor:
    """A cursor that is made where its connection lives, with its first statement."""

    def __init__(self, connection: JoinedConnection, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        names = {"_connection": connection, "_how": (arguments, keywords), "_raw": None, "_set_before": {}}
        self.__dict__.update(names)

    def raw(self) -> Any:
        """The driver's cursor. To be called where the connection lives."""
        if self._raw is None:
            arguments, keywords = self._how
            self.__dict__["_raw"] = raw = self._connection._shared.raw.cursor(*arguments, **keywords)
            for name, value in self._set_before.items():
                setattr(raw, name, value)
        return self._raw

    def execute(self, statement: Any, *arguments: Any) -> Any:
        return self._run("execute", statement, *arguments)

    def executemany(self, statement: Any, *arguments: Any) -> Any:
        return self._run("executemany", statement, *arguments)

    def close(self) -> None:
        if self._raw is not None:
            self._connection._shared.call(self._raw.close)

    async def _async_soft_close(self) -> None:
        if self._raw is not None:
            await self._connection._shared.run(self._raw._async_soft_close)

    def _run(self, method: str, statement: Any, *arguments: Any) -> Any:
        connection = self._connection
        connection.__dict__["_in_use"] = True
        return connection._call(connection._execute, self, method, statement, *arguments)

    def __iter__(self) -> Iterator[Any]:
        while (row := self.fetchone()) is not None:
            yield row

    def __getattr__(self, name: str) -> Any:
        shared = self._connection._shared
        raw = self._raw if self._raw is not None else shared.call(self.raw)
        value = getattr(raw, name)
        if not callable(value) or (name in LOCAL and not getattr(raw, "server_side", False)):
            return value

        def called(*arguments: Any, **keywords: Any) -> Any:
            return shared.call(value, *arguments, **keywords)

        return called

    def __setattr__(self, name: str, value: Any) -> None:
        if self._raw is None:
            self._set_before[name] = value
        else:
            setattr(self._raw, name, value)
