"""The current unit of work, wherever the code runs that asks for it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any

from transept._bridge import run_now
from transept.database import Registry
from transept.errors import OutsideScope, UsageError
from transept.hosts import LoopHost, PlainHost
from transept.unit import Block, Host, Unit

__all__ = ["CURRENT", "UnitScope", "after_commit", "after_rollback", "current_unit", "doom", "unit_of_work"]


class UnitScope:
    """What a context variable and a request hold while units come and go: the unit of the moment, made on demand.

    A copied context (a child task, a worker thread) holds the same scope, so it sees a unit end, or be replaced.
    """

    __slots__ = ("closed", "describe", "host", "reads_only", "registry", "unit")

    def __init__(
        self, host: Host, describe: Callable[[], str], registry: Registry | None = None, reads_only: bool = False
    ) -> None:
        self.host = host
        self.describe = describe
        self.registry = registry
        self.reads_only = reads_only
        self.unit: Unit | None = None
        self.closed = False

    def open(self) -> Unit:
        """The unit of the moment.

        Raises:
            OutsideScope: it is over, and no other will come.
        """
        unit = self.unit
        if unit is None:
            if self.closed:
                raise OutsideScope(
                    f"{self.describe()} is over, and this code outlived it. Give work that outlives a request a unit "
                    "of its own: `async with unit_of_work():` (or `with`) where the work is done."
                )
            with _opening:
                unit = self.unit
                if unit is None:
                    unit = Unit(self.host, self.describe(), self.registry, reads_only=self.reads_only)
                    self.unit = unit
        return unit


CURRENT: ContextVar[UnitScope | None] = ContextVar("transept_current", default=None)

_opening = threading.Lock()  # threads of one request may ask at the same time; nobody holds it for long

LOOP = LoopHost()
PLAIN = PlainHost()


def current_unit() -> Unit:
    """The unit of work that this code runs in.

    Raises:
        OutsideScope: there is none: no gate around this request, no `unit_of_work()` block, or it is over.
    """
    scope = CURRENT.get()
    if scope is None:
        raise OutsideScope(
            "there is no unit of work here. Inside a request the app's Transept (or gate) makes one; anywhere else "
            "open one with `async with unit_of_work():` (or `with`)."
        )
    return scope.open()


def doom(reason: str = "") -> None:
    """Nothing of the current unit will be kept; see `Unit.doom`."""
    current_unit().doom(reason)


def after_commit(hook: Callable[[], Any]) -> Callable[[], Any]:
    """Call `hook()` once the current unit has committed; see `Unit.after_commit`."""
    return current_unit().after_commit(hook)


def after_rollback(hook: Callable[[], Any]) -> Callable[[], Any]:
    """Call `hook()` when the current unit has rolled back; see `Unit.after_rollback`."""
    return current_unit().after_rollback(hook)


class unit_of_work:  # noqa: N801 - reads as the function that it is called like
    """A block of work that is kept as a whole or not at all: ``async with unit_of_work() as unit`` or ``with``.

    Where there is no open unit, the block is one: it commits on a clean exit and rolls back on an error, whatever the
    commit mode, and its sessions end with it. Inside an open unit, it is a savepoint of that unit: an error undoes the
    block alone, and what it did is committed when the unit is.

    The `with` form is blocking, for sync databases.
    """

    def __init__(self) -> None:
        self._unit: Unit | None = None
        self._block: Block | None = None
        self._token: Token[UnitScope | None] | None = None

    async def __aenter__(self) -> Unit:
        unit = self._begin(LOOP)
        if self._token is None:
            self._block = await unit.enter_block()
        return unit

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        unit = self._opened()
        if self._block is not None:
            await unit._host.shielded(unit.leave_block(self._block, error))
            return
        try:
            await self._finish(unit, error)
        finally:
            self._reset()

    def __enter__(self) -> Unit:
        unit = self._begin(PLAIN)
        if self._token is None:
            awaiting = [database.key for database, handle in unit.handles() if not database.blocking]
            if awaiting:
                raise UsageError(
                    f"a blocking block cannot be a part of {unit.name}, which uses async databases "
                    f"({', '.join(map(repr, awaiting))}): use `async with unit_of_work():`."
                )
            self._block = run_now(unit.enter_block(PLAIN.leaf))
        return unit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        unit = self._opened()
        if self._block is not None:
            run_now(unit.leave_block(self._block, error, PLAIN.leaf))
            return
        try:
            run_now(self._finish(unit, error))
        finally:
            self._reset()

    def _begin(self, host: Host) -> Unit:
        if self._unit is not None:
            raise RuntimeError("a unit_of_work() serves one block: call unit_of_work() for each.")
        scope = self._outer()
        if scope is not None and not scope.closed:
            self._unit = scope.open()
        else:
            caller = sys._getframe(2)
            where = f"the block in {caller.f_code.co_name} ({caller.f_code.co_filename}:{caller.f_lineno})"
            scope = UnitScope(host, lambda: where)
            self._unit = scope.open()
            self._token = CURRENT.set(scope)
        return self._unit

    def _outer(self) -> UnitScope | None:
        return CURRENT.get()

    def _opened(self) -> Unit:
        if self._unit is None:
            raise RuntimeError("this unit_of_work() was never entered.")
        return self._unit

    async def _finish(self, unit: Unit, error: BaseException | None) -> None:
        if error is None:
            await unit.finish(lambda database: True)
            return
        try:
            await unit.close()
        except Exception as failure:
            error.add_note(f"transept: while closing {unit.name}: {failure!r}")

    def _reset(self) -> None:
        token, self._token = self._token, None
        if token is not None:
            scope = CURRENT.get()
            if scope is not None:
                scope.closed, scope.unit = True, None
            CURRENT.reset(token)


class new_unit_of_work(unit_of_work):  # noqa: N801 - as unit_of_work
    """A unit of work of its own, also where another one is open."""

    def _outer(self) -> UnitScope | None:
        return None
