"""The sessions that talk SQL to a raw driver, in both colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, TypeVar, overload

from transept._bridge import run_now
from transept.errors import ImproperConfigurationError, UsageError
from transept.sql.executor import Executor
from transept.sql.paging import without_limit
from transept.sql.prepared import Arguments
from transept.sql.reading import BlockingRowStream, RowStream
from transept.sql.result import Result

__all__ = ["BlockingSQLSession", "SQLSession"]

T = TypeVar("T")
Row = dict[str, Any]


class SQLSession:
    """An async SQL-first session of one raw database. Lives as long as its unit of work.

    A statement is SQL text or a statement of SQLAlchemy Core. Its parameters come one by one, as a single tuple, list
    or mapping, or as keywords. The transaction begins with the first statement; its unit of work ends it.

    Errors of the driver are raised as `transept.errors.SQLError`, which has a class for each kind.
    """

    __slots__ = ("__weakref__", "_handle")

    def __init__(self, handle: Executor) -> None:
        self._handle = handle

    async def execute(self, statement: Any, /, *parameters: Any, **named: Any) -> Result:
        """Run one statement; its rows are in memory when this returns.

        Raises:
            ParameterError: the parameters do not fit the statement.
            SQLError: the database refused it.
            ConcurrentUseError: another task is using this session.
            OutsideScope: the unit of work is over.
        """
        return await self._handle.execute(statement, arguments_of(parameters, named))

    async def execute_many(self, statement: Any, /, parameters: Iterable[Arguments]) -> Result:
        """Run one statement once for each of these sets of parameters. It gives no rows.

        If one fails, those before it are still a part of the transaction, unless the database aborts that: a
        `transaction()` block around this undoes them.
        """
        return await self._handle.execute_many(statement, list(parameters))

    async def execute_script(self, script: str, /) -> None:
        """Run several statements, separated by semicolons, without parameters."""
        await self._handle.execute_script(script)

    @overload
    async def select(self, statement: Any, /, *parameters: Any, schema_type: type[T], **named: Any) -> list[T]: ...
    @overload
    async def select(
        self, statement: Any, /, *parameters: Any, schema_type: None = None, **named: Any
    ) -> list[Row]: ...
    async def select(self, statement: Any, /, *parameters: Any, schema_type: Any = None, **named: Any) -> Any:
        """All rows: dicts, or instances of `schema_type`.

        That is a dataclass, a msgspec Struct, a pydantic model, an attrs class, a TypedDict or a named tuple.
        """
        return (await self.execute(statement, *parameters, **named)).all(schema_type=schema_type)

    @overload
    async def select_one(self, statement: Any, /, *parameters: Any, schema_type: type[T], **named: Any) -> T: ...
    @overload
    async def select_one(self, statement: Any, /, *parameters: Any, schema_type: None = None, **named: Any) -> Row: ...
    async def select_one(self, statement: Any, /, *parameters: Any, schema_type: Any = None, **named: Any) -> Any:
        """The only row.

        Raises:
            NotFoundError: there is none.
            MultipleResultsFoundError: there are several.
        """
        return (await self.execute(statement, *parameters, **named)).one(schema_type=schema_type)

    @overload
    async def select_one_or_none(
        self, statement: Any, /, *parameters: Any, schema_type: type[T], **named: Any
    ) -> T | None: ...
    @overload
    async def select_one_or_none(
        self, statement: Any, /, *parameters: Any, schema_type: None = None, **named: Any
    ) -> Row | None: ...
    async def select_one_or_none(
        self, statement: Any, /, *parameters: Any, schema_type: Any = None, **named: Any
    ) -> Any:
        """The only row, or None if there is none; else as `select_one`."""
        return (await self.execute(statement, *parameters, **named)).one_or_none(schema_type=schema_type)

    @overload
    async def select_value(self, statement: Any, /, *parameters: Any, value_type: type[T], **named: Any) -> T: ...
    @overload
    async def select_value(self, statement: Any, /, *parameters: Any, value_type: None = None, **named: Any) -> Any: ...
    async def select_value(self, statement: Any, /, *parameters: Any, value_type: Any = None, **named: Any) -> Any:
        """The first column of the only row, as `value_type` if that is given; raises as `select_one`."""
        return (await self.execute(statement, *parameters, **named)).scalar(value_type=value_type)

    @overload
    async def select_value_or_none(
        self, statement: Any, /, *parameters: Any, value_type: type[T], **named: Any
    ) -> T | None: ...
    @overload
    async def select_value_or_none(
        self, statement: Any, /, *parameters: Any, value_type: None = None, **named: Any
    ) -> Any: ...
    async def select_value_or_none(
        self, statement: Any, /, *parameters: Any, value_type: Any = None, **named: Any
    ) -> Any:
        """As `select_value`, or None if there is no row."""
        return (await self.execute(statement, *parameters, **named)).scalar_or_none(value_type=value_type)

    @overload
    async def select_with_total(
        self, statement: Any, /, *parameters: Any, schema_type: type[T], **named: Any
    ) -> tuple[list[T], int]: ...
    @overload
    async def select_with_total(
        self, statement: Any, /, *parameters: Any, schema_type: None = None, **named: Any
    ) -> tuple[list[Row], int]: ...
    async def select_with_total(
        self, statement: Any, /, *parameters: Any, schema_type: Any = None, **named: Any
    ) -> Any:
        """The rows, and how many there would be without LIMIT and OFFSET; one more statement where there is a limit."""
        arguments = arguments_of(parameters, named)
        rows = (await self._handle.execute(statement, arguments)).all(schema_type=schema_type)
        counted = counting(statement, arguments, self._handle)
        if counted is None:
            return rows, len(rows)
        return rows, (await self._handle.execute(*counted)).scalar()

    @overload
    def stream(
        self, statement: Any, /, *parameters: Any, schema_type: type[T], chunk_size: int = 1000, **named: Any
    ) -> RowStream[T]: ...
    @overload
    def stream(
        self, statement: Any, /, *parameters: Any, schema_type: None = None, chunk_size: int = 1000, **named: Any
    ) -> RowStream[Row]: ...
    def stream(
        self, statement: Any, /, *parameters: Any, schema_type: Any = None, chunk_size: int = 1000, **named: Any
    ) -> RowStream[Any]:
        """Rows through a cursor of the server, `chunk_size` at a time: memory does not grow with the result.

        The transaction, and with it the connection, is held until the last row is read or the stream is closed.
        """
        return RowStream(
            self._handle, (statement, arguments_of(parameters, named)), schema_type, checked_size(chunk_size)
        )

    def transaction(self) -> SessionTransaction:
        """A block: a transaction that commits at its end, or a savepoint where one is open. An error undoes it."""
        return SessionTransaction(self._handle)

    async def begin(self) -> None:
        """Begin now, and not with the first statement. Nothing, if a transaction is open."""
        await self._handle.begin()

    async def commit(self) -> None:
        """Commit now, whatever the response will be. The next statement begins anew.

        Raises:
            SQLError: the database could not, and the transaction is rolled back.
            CommitFailed: the transaction was gone before.
            CommitInDoubt: no answer came.
            UsageError: inside a block, whose end decides.
        """
        await self._handle.app_ends(commit=True)

    async def rollback(self) -> None:
        """Roll back now. The next statement begins anew."""
        await self._handle.app_ends(commit=False)


class BlockingSQLSession:
    """The blocking twin of `SQLSession`."""

    __slots__ = ("__weakref__", "_handle")

    def __init__(self, handle: Executor) -> None:
        self._handle = handle

    def execute(self, statement: Any, /, *parameters: Any, **named: Any) -> Result:
        """As `SQLSession.execute`."""
        return run_now(self._handle.execute(statement, arguments_of(parameters, named)))

    def execute_many(self, statement: Any, /, parameters: Iterable[Arguments]) -> Result:
        """As `SQLSession.execute_many`."""
        return run_now(self._handle.execute_many(statement, list(parameters)))

    def execute_script(self, script: str, /) -> None:
        """As `SQLSession.execute_script`."""
        run_now(self._handle.execute_script(script))

    @overload
    def select(self, statement: Any, /, *parameters: Any, schema_type: type[T], **named: Any) -> list[T]: ...
    @overload
    def select(self, statement: Any, /, *parameters: Any, schema_type: None = None, **named: Any) -> list[Row]: ...
    def select(self, statement: Any, /, *parameters: Any, schema_type: Any = None, **named: Any) -> Any:
        """As `SQLSession.select`."""
        return self.execute(statement, *parameters, **named).all(schema_type=schema_type)

    @overload
    def select_one(self, statement: Any, /, *parameters: Any, schema_type: type[T], **named: Any) -> T: ...
    @overload
    def select_one(self, statement: Any, /, *parameters: Any, schema_type: None = None, **named: Any) -> Row: ...
    def select_one(self, statement: Any, /, *parameters: Any, schema_type: Any = None, **named: Any) -> Any:
        """As `SQLSession.select_one`."""
        return self.execute(statement, *parameters, **named).one(schema_type=schema_type)

    @overload
    def select_one_or_none(
        self, statement: Any, /, *parameters: Any, schema_type: type[T], **named: Any
    ) -> T | None: ...
    @overload
    def select_one_or_none(
        self, statement: Any, /, *parameters: Any, schema_type: None = None, **named: Any
    ) -> Row | None: ...
    def select_one_or_none(self, statement: Any, /, *parameters: Any, schema_type: Any = None, **named: Any) -> Any:
        """As `SQLSession.select_one_or_none`."""
        return self.execute(statement, *parameters, **named).one_or_none(schema_type=schema_type)

    @overload
    def select_value(self, statement: Any, /, *parameters: Any, value_type: type[T], **named: Any) -> T: ...
    @overload
    def select_value(self, statement: Any, /, *parameters: Any, value_type: None = None, **named: Any) -> Any: ...
    def select_value(self, statement: Any, /, *parameters: Any, value_type: Any = None, **named: Any) -> Any:
        """As `SQLSession.select_value`."""
        return self.execute(statement, *parameters, **named).scalar(value_type=value_type)

    @overload
    def select_value_or_none(
        self, statement: Any, /, *parameters: Any, value_type: type[T], **named: Any
    ) -> T | None: ...
    @overload
    def select_value_or_none(
        self, statement: Any, /, *parameters: Any, value_type: None = None, **named: Any
    ) -> Any: ...
    def select_value_or_none(self, statement: Any, /, *parameters: Any, value_type: Any = None, **named: Any) -> Any:
        """As `SQLSession.select_value_or_none`."""
        return self.execute(statement, *parameters, **named).scalar_or_none(value_type=value_type)

    @overload
    def select_with_total(
        self, statement: Any, /, *parameters: Any, schema_type: type[T], **named: Any
    ) -> tuple[list[T], int]: ...
    @overload
    def select_with_total(
        self, statement: Any, /, *parameters: Any, schema_type: None = None, **named: Any
    ) -> tuple[list[Row], int]: ...
    def select_with_total(self, statement: Any, /, *parameters: Any, schema_type: Any = None, **named: Any) -> Any:
        """As `SQLSession.select_with_total`."""
        return run_now(
            SQLSession.select_with_total(
                SQLSession(self._handle), statement, *parameters, schema_type=schema_type, **named
            )
        )

    @overload
    def stream(
        self, statement: Any, /, *parameters: Any, schema_type: type[T], chunk_size: int = 1000, **named: Any
    ) -> BlockingRowStream[T]: ...
    @overload
    def stream(
        self, statement: Any, /, *parameters: Any, schema_type: None = None, chunk_size: int = 1000, **named: Any
    ) -> BlockingRowStream[Row]: ...
    def stream(
        self, statement: Any, /, *parameters: Any, schema_type: Any = None, chunk_size: int = 1000, **named: Any
    ) -> BlockingRowStream[Any]:
        """As `SQLSession.stream`."""
        return BlockingRowStream(
            self._handle, (statement, arguments_of(parameters, named)), schema_type, checked_size(chunk_size)
        )

    def transaction(self) -> BlockingSessionTransaction:
        """As `SQLSession.transaction`."""
        return BlockingSessionTransaction(self._handle)

    def begin(self) -> None:
        """As `SQLSession.begin`."""
        run_now(self._handle.begin())

    def commit(self) -> None:
        """As `SQLSession.commit`."""
        run_now(self._handle.app_ends(commit=True))

    def rollback(self) -> None:
        """As `SQLSession.rollback`."""
        run_now(self._handle.app_ends(commit=False))


class SessionTransaction:
    """A block of one session; see `SQLSession.transaction`."""

    def __init__(self, handle: Executor) -> None:
        self._handle = handle
        self._opened: list[Any] = []

    async def __aenter__(self) -> None:
        self._opened.append(await self._handle.enter_block())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._handle.leave_block(self._opened.pop(), error)


class BlockingSessionTransaction:
    """The blocking twin of `SessionTransaction`."""

    def __init__(self, handle: Executor) -> None:
        self._handle = handle
        self._opened: list[Any] = []

    def __enter__(self) -> None:
        self._opened.append(run_now(self._handle.enter_block()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        run_now(self._handle.leave_block(self._opened.pop(), error))


def arguments_of(parameters: tuple[Any, ...], named: dict[str, Any]) -> Arguments:
    """What was given as parameters: positional ones, or named ones."""
    if named:
        if parameters:
            raise UsageError(
                f"the parameters of a statement are positional or named, not both: {parameters!r} and {sorted(named)}."
            )
        return named
    if len(parameters) == 1:
        alone: Arguments = parameters[0]
        if isinstance(alone, (tuple, list, dict)) or (not isinstance(alone, str) and isinstance(alone, Mapping)):
            return alone
    return parameters


def counting(statement: Any, arguments: Arguments, handle: Executor) -> tuple[Any, Arguments] | None:
    """The statement that counts the rows of this one; None if it has no limit, so that they are all there."""
    if not isinstance(statement, str):
        from sqlalchemy import func, select

        return select(func.count()).select_from(statement.limit(None).offset(None).order_by(None).subquery()), arguments
    cut = without_limit(statement, arguments, handle.database.notation)
    if cut is None:
        return None
    return f"SELECT count(*) FROM ({cut[0]}) AS transept_counted", cut[1]


def checked_size(chunk_size: int) -> int:
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ImproperConfigurationError(f"chunk_size={chunk_size!r}: a whole number from 1 is needed.")
    return chunk_size
