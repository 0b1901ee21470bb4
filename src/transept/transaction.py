"""Blocks and functions that are kept as a whole or not at all, inside a unit of work or as one."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import Token
from types import TracebackType
from typing import Any, Generic, Literal, ParamSpec, TypeAlias, TypeVar, get_args, overload

from transept._bridge import is_async, run_now
from transept.block import INNERMOST, Block
from transept.context import CURRENT, LOOP, PLAIN, NamedScope, Nowhere, UnitScope, open_scope, plain_host
from transept.errors import (
    IN_BLOCK,
    CommitFailed,
    ImproperConfigurationError,
    LoopTimeout,
    OutsideScope,
    UsageError,
    unknown_value,
)
from transept.hosts import BridgeHost, PlainHost, from_plain_code, in_thread
from transept.unit import Host, Unit

__all__ = ["Scope", "in_new_unit", "new_unit_of_work", "run_in_new_ctx", "transaction", "unit_of_work"]

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U", Unit, None, covariant=True)
F = TypeVar("F", bound=Callable[..., Any])
Error: TypeAlias = BaseException | None

Scope = Literal["required", "requires_new", "nested", "mandatory", "never"]
SCOPES: tuple[str, ...] = get_args(Scope)


class transaction(Generic[U]):  # noqa: N801 - reads as the function that it is called like
    """A block of work that is kept as a whole or not at all: ``async with transaction():``, ``with``, or a decorator.

    Where there is no open unit of work, the block is one: it commits on a clean exit and rolls back on an error,
    whatever the commit mode, and its sessions end with it. What it is inside an open unit says `scope`:

    - ``"required"``: a part of it. An error that leaves the block undoes the whole unit: where it is swallowed
      further out, the commit raises `CommitFailed`.
    - ``"nested"``: a savepoint of it. An error undoes the block alone.
    - ``"requires_new"``: a unit of its own, with a connection of its own.
    - ``"mandatory"``: a part of it, and `OutsideScope` where there is none.
    - ``"never"``: none is current inside: `db_session()` gives no session (the request still does). `UsageError` if a
      transaction is open.

    ``reads_only=True`` says of a unit made here that it will not write: SQLite then takes no write lock.

    The `with` form, and a decorated plain function, are blocking, for sync databases. Gives the `Unit`.
    """

    @overload
    def __init__(
        self: transaction[Unit],
        scope: Literal["required", "requires_new", "nested", "mandatory"] = ...,
        *,
        reads_only: bool = ...,
    ) -> None: ...
    @overload
    def __init__(self: transaction[None], scope: Literal["never"], *, reads_only: bool = ...) -> None: ...
    def __init__(self, scope: Scope = "required", *, reads_only: bool = False) -> None:
        if callable(scope):
            raise ImproperConfigurationError("@transaction decorates when it is called: write @transaction().")
        if scope not in SCOPES:
            raise unknown_value("scope", scope, SCOPES)
        self._scope = scope
        self._reads_only = reads_only
        self._unit: Unit | None = None
        self._block: Block | None = None
        self._own: NamedScope | None = None
        self._root = Block()  # of a unit of its own
        self._around: Block | None = None
        self._token: Token[UnitScope | None] | None = None
        self._entered = False
        self._host: PlainHost | BridgeHost | None = None  # of the `with` form, if it is another than the context's

    def __call__(self, function: F) -> F:
        """A function that runs in such a block, a new one for each call."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ImproperConfigurationError(
                f"@transaction: {function!r} is a generator, whose caller decides when it runs and ends: "
                "use a block inside it."
            )
        again = functools.partial(_block_of, self._scope, self._reads_only)

        @functools.wraps(function)
        async def awaited(*arguments: Any, **keywords: Any) -> Any:
            async with again():
                return await function(*arguments, **keywords)

        @functools.wraps(function)
        def called(*arguments: Any, **keywords: Any) -> Any:
            with again():
                return _no_coroutine(function, function(*arguments, **keywords))

        made: Any = awaited if is_async(function) else called
        decorated: F = made
        return decorated

    async def __aenter__(self) -> U:
        unit: Any = self._begin(LOOP)
        if self._block is not None and not self._block.joined:
            await unit.enter_block(self._block)
        given: U = unit
        return given

    async def __aexit__(self, kind: type[BaseException] | None, error: Error, traceback: TracebackType | None) -> None:
        if self._own is not None:
            try:
                await self._ended(self._own.open(), error)
            finally:
                self._leave_own(self._own)
        elif self._unit is not None and self._block is not None:
            unit, block = self._unit, self._block
            unit.end_block(block)
            await unit.host.shielded(unit.leave_block(block, error), lambda: unit.cancel_block(block))
        else:
            self._back_to_outer()

    def __enter__(self) -> U:
        unit: Any = self._begin(self._host or plain_host())
        if self._block is not None and not self._block.joined:
            awaiting = [database.key for database, handle in unit.handles() if not database.blocking]
            if not awaiting:
                run_now(unit.enter_block(self._block, PLAIN.leaf))
            elif isinstance(unit.host, BridgeHost) and unit.host.bridge.needed():
                unit.host.run(unit.enter_block(self._block))
            else:
                unit.end_block(self._block)
                raise UsageError(
                    f"a blocking block cannot be a savepoint of {unit.name}, which uses async databases "
                    f"({', '.join(map(repr, awaiting))}): use `async with unit_of_work():` in a coroutine."
                )
        given: U = unit
        return given

    def __exit__(self, kind: type[BaseException] | None, error: Error, traceback: TracebackType | None) -> None:
        if self._own is not None:
            try:
                unit = self._own.open()
                ending = self._ended(unit, error)
                if error is None:
                    from_plain_code(unit, ending, _always)
                else:
                    _roll_back_from_plain_code(unit, ending, error)
            finally:
                self._leave_own(self._own)
        elif self._unit is not None and self._block is not None:
            unit, block = self._unit, self._block
            unit.end_block(block)
            if isinstance(unit.host, BridgeHost) and unit.host.bridge.needed() and unit.awaits():
                _leave_across(unit, unit.host, block, error)
            else:
                run_now(unit.leave_block(block, error, PLAIN.leaf))
        else:
            self._back_to_outer()

    def _begin(self, host: Host) -> Unit | None:
        if self._entered:
            raise RuntimeError("a transaction() or unit_of_work() serves one block: make one for each.")
        self._entered = True
        outer = open_scope()
        if self._scope == "never":
            self._leave_outer(outer)
        elif outer is None and self._scope == "mandatory":
            raise OutsideScope("transaction('mandatory') needs an open unit of work around it, and there is none.")
        elif outer is None or self._scope == "requires_new":
            self._own = own = NamedScope(host, _caller(), reads_only=self._reads_only)
            self._unit = own.open()
            self._token = CURRENT.set(own)
            self._around = INNERMOST.get()
            self._root = self._unit.new_block()
        else:
            self._unit = outer.open()
            self._block = self._unit.new_block(joined=self._scope != "nested")
        return self._unit

    def _leave_outer(self, outer: UnitScope | None) -> None:
        if outer is not None and outer.unit is not None and outer.unit.busy():
            raise UsageError(
                f"transaction('never') inside {outer.describe()}, which has a transaction open: commit it first, or "
                "do this work before or after it."
            )
        self._token = CURRENT.set(Nowhere())

    def _ended(self, unit: Unit, error: Error) -> Coroutine[Any, Any, None]:
        """What is to be awaited at the end of a unit of its own; the context of the caller is as it was before."""
        unit.end_block(self._root)
        INNERMOST.set(self._around)
        return self._end_own(unit, error)

    async def _end_own(self, unit: Unit, error: Error) -> None:
        root = self._root
        if error is None and root.failed is None:
            await unit.finish(_always)
            return
        await _closed(unit, error)
        if error is None and root.failed is not None:
            raise CommitFailed(", ".join(database.key for database, _ in unit.handles()), root.failed, IN_BLOCK)

    def _leave_own(self, own: NamedScope) -> None:
        own.end()
        self._back_to_outer()

    def _back_to_outer(self) -> None:
        """A block may be left in another context than it was entered in, as fixtures and generators do."""
        token, self._token = self._token, None
        if token is not None:
            try:
                CURRENT.reset(token)
            except ValueError:
                if CURRENT.get() is self._own:
                    CURRENT.set(None)


class unit_of_work(transaction[Unit]):  # noqa: N801 - as transaction
    """``transaction("nested")``: a unit of work, or a savepoint of the one that is open."""

    def __init__(self) -> None:
        super().__init__("nested")


class new_unit_of_work(transaction[Unit]):  # noqa: N801 - as transaction
    """``transaction("requires_new")``: a unit of work of its own, also where another one is open."""

    def __init__(self, host: PlainHost | BridgeHost | None = None) -> None:
        super().__init__("requires_new")
        self._host = host


def in_new_unit(function: Callable[P, T]) -> Callable[P, T]:
    """A function that runs in a unit of work of its own: kept when it returns, rolled back when it raises.

    For background tasks that must stand alone, and for tasks that outlive their request. Unlike in a `transaction`
    block, the function may commit in between (`commit_db_session`, `atomic_db_session`).
    """
    where = getattr(function, "__qualname__", repr(function))

    @functools.wraps(function)
    async def awaited(*arguments: P.args, **keywords: P.kwargs) -> Any:
        with _entered(NamedScope(LOOP, where)) as scope:
            try:
                result: Any = function(*arguments, **keywords)
                result = await result
            except BaseException as error:
                await _closed(scope.unit, error)
                raise
            if scope.unit is not None:
                await scope.unit.finish(_always)
            return result

    @functools.wraps(function)
    def called(*arguments: P.args, **keywords: P.kwargs) -> T:
        with _entered(NamedScope(plain_host(), where)) as scope:
            try:
                result = _no_coroutine(function, function(*arguments, **keywords))
            except BaseException as error:
                if scope.unit is not None:
                    _roll_back_from_plain_code(scope.unit, _closed(scope.unit, error), error)
                raise
            if scope.unit is not None:
                from_plain_code(scope.unit, scope.unit.finish(_always), _always)
            return result

    made: Any = awaited if is_async(function) else called
    wrapped: Callable[P, T] = made
    return wrapped


@overload
async def run_in_new_ctx(callable_func: Callable[P, Awaitable[T]], *arguments: P.args, **keywords: P.kwargs) -> T: ...
@overload
async def run_in_new_ctx(callable_func: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T: ...
async def run_in_new_ctx(callable_func: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Run a function in a unit of work of its own, and return what it returns: `in_new_unit`, called at once.

    A coroutine function is awaited here; a plain one runs in a worker thread, over sync databases.
    """
    alone = in_new_unit(callable_func)
    if is_async(callable_func):
        return await alone(*arguments, **keywords)
    return await in_thread(functools.partial(alone, *arguments, **keywords))


def _block_of(scope: Any, reads_only: bool) -> transaction[Any]:
    return transaction(scope, reads_only=reads_only)


@contextmanager
def _entered(scope: NamedScope) -> Iterator[NamedScope]:
    token = CURRENT.set(scope)
    try:
        yield scope
    finally:
        scope.end()
        CURRENT.reset(token)


async def _closed(unit: Unit | None, error: Error) -> None:
    """Roll back what is open; an error already under way comes first."""
    if unit is None:
        return
    try:
        await unit.close()
    except Exception as failure:
        if error is None:
            raise
        error.add_note(f"transept: while closing {unit.name}: {failure!r}")


def _leave_across(unit: Unit, host: BridgeHost, block: Block, error: Error) -> None:
    try:
        host.run(unit.leave_block(block, error))
    except LoopTimeout as failure:
        unit.hooks.failed_block = "a block did not end in time"
        if error is None:
            raise
        error.add_note(f"transept: while undoing a block of {unit.name}: {failure!r}")


def _roll_back_from_plain_code(unit: Unit, work: Coroutine[Any, Any, None], error: BaseException) -> None:
    try:
        from_plain_code(unit, work, None)
    except LoopTimeout as failure:
        error.add_note(f"transept: while closing {unit.name}: {failure!r}")


def _no_coroutine(function: Callable[..., Any], result: T) -> T:
    """What a plain function returned, which must not be work that is still to be done."""
    if inspect.iscoroutine(result):
        result.close()
        raise UsageError(
            f"{function!r} is a plain function and returned a coroutine, which would run outside of the block: make "
            "it an `async def`, or pass the coroutine function itself and its arguments."
        )
    return result


def _always(database: object) -> bool:
    return True


def _caller() -> str:
    """Where the block stands: the first frame outside of the library."""
    frame = sys._getframe(1)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(("transept.", "contextlib")):
        frame = frame.f_back
    return f"the block in {frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"
