"""A sandbox: the app runs as it is, and nothing that it commits outlives the test."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType
from typing import Any, Generic, TypeVar, overload
from weakref import WeakKeyDictionary, finalize

from transept.database import Database, Gives, Sourced
from transept.errors import UsageError
from transept.hosts import in_thread
from transept.testing.errors import SandboxError, SandboxLeak
from transept.testing.home import Home
from transept.testing.shared import Source
from transept.transaction import new_unit_of_work

__all__ = ["Connections", "Sandbox", "SandboxSession"]

S = TypeVar("S")


class Connections:
    """The connections of sandboxes, kept from one to the next: making one takes longer than many a test.

    One sandbox at a time can use those to one database.
    """

    def __init__(self) -> None:
        self._home = Home()
        self._sources: WeakKeyDictionary[Database, Source] = WeakKeyDictionary()

    def source(self, database: Database) -> Source:
        """What `database.use` takes."""
        if database not in self._sources:
            source = _source_for(database, self._home)
            finalize(database, source.close)
            self._sources[database] = source
        return self._sources[database]

    def close(self) -> None:
        """Close them. Blocks."""
        for source in self._sources.values():
            for closing in source.close():
                closing.result()
        self._sources.clear()
        self._home.close()


class Sandbox:
    """``with Sandbox(database):`` (or ``async with``): what the app does to these databases is undone at the end.

    All units of work that begin inside share one connection to each database, in a transaction that is rolled back:
    a commit releases a savepoint, a rollback returns to it. The app needs no change, and does not know.

    Args:
        databases: those of the app that the test uses; others are what they are.
        patience: how many seconds a unit waits for another one that has the connection.
        leak_after: how many seconds, at the end, units that are still open may take to end.
        connections: where connections are kept from one sandbox to the next; without, they are closed at the end.

    Raises:
        SandboxLeak: at the end, when a transaction is still open. Names the line that began it.
        SandboxLost: at the end, when the transaction was ended from within, so that not everything could be undone.
    """

    def __init__(
        self,
        *databases: Database,
        patience: float = 10.0,
        leak_after: float = 0.5,
        connections: Connections | None = None,
    ) -> None:
        if not databases:
            raise UsageError("Sandbox() needs the databases to protect: Sandbox(database, ...).")
        self._databases: tuple[Database, ...] = databases
        self._patience = patience
        self._leak_after = leak_after
        self._connections = connections or Connections()
        self._kept = connections is not None
        self._uses = ExitStack()

    @overload
    def session(self, database: Gives[S]) -> SandboxSession[S]: ...
    @overload
    def session(self) -> SandboxSession[Any]: ...
    def session(self, database: Any = None) -> Any:
        """``with sandbox.session(database) as session:`` (or ``async with``): a session for the test's own work.

        It is on the same connection as the app's, so each sees what the other has committed. The block is a unit of
        work of its own, which commits at a clean end, so end it before the app is called.
        """
        if database is None:
            if len(self._databases) > 1:
                raise UsageError("this sandbox has several databases: say which, session(database).")
            database = next(iter(self._databases))
        if database not in self._databases:
            raise UsageError(f"database {database.key!r} is not in this sandbox: Sandbox({database.key}, ...).")
        return SandboxSession(database)

    def __enter__(self) -> Sandbox:
        with ExitStack() as uses:
            for database in self._databases:
                if not isinstance(database, Sourced):
                    raise UsageError(f"database {database.key!r} ({database!r}) has no use(): no sandbox is possible.")
                source = self._connections.source(database)
                uses.enter_context(database.use(source))
                source.begin(self._patience)
            self._uses = uses.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        failures = self._end()
        if not failures:
            return
        first = failures[0] if error is None else error
        for failure in failures:
            if failure is not first:
                first.add_note(f"transept: {failure}")
        if error is None:
            raise first

    async def __aenter__(self) -> Sandbox:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await in_thread(self.__exit__, kind, error, traceback)

    def _end(self) -> list[Exception]:
        leaks: list[str] = []
        failures: list[Exception] = []
        self._uses.close()
        for database in self._databases:
            leaked, failed = self._connections.source(database).end(self._leak_after)
            leaks += leaked
            failures += failed
        if not self._kept:
            try:
                self._connections.close()
            except Exception as error:
                failures.append(error)
        return [SandboxLeak(leaks), *failures] if leaks else failures


class SandboxSession(Generic[S]):
    """A block with a session in a unit of work of its own; see `Sandbox.session`."""

    def __init__(self, database: Gives[S]) -> None:
        self._database: Any = database
        self._unit = new_unit_of_work()

    def __enter__(self) -> S:
        session: S = self._unit.__enter__().session(self._database)
        return session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._unit.__exit__(kind, error, traceback)

    async def __aenter__(self) -> S:
        unit = await self._unit.__aenter__()
        session: S = await unit.prepared(self._database)
        return session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._unit.__aexit__(kind, error, traceback)


def _source_for(database: Any, home: Home) -> Source:
    """SQLAlchemy is imported by those who use it."""
    if hasattr(database, "link"):
        from transept.testing.links import LinkSource

        return LinkSource(database, home)
    if hasattr(database, "get_engine"):
        from transept.testing.alchemy import EngineSource

        return EngineSource(database, home)
    raise SandboxError(f"database {database!r} is of a kind that a sandbox does not know.")
