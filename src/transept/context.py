"""The current unit of work, wherever the code runs that asks for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Protocol

from transept.database import Databases
from transept.errors import OutsideScope
from transept.hosts import LOOP, PLAIN, BridgeHost, PlainHost
from transept.unit import ASKING, BeforeCommit, Host, Unit

__all__ = [
    "CURRENT",
    "LOOP",
    "PLAIN",
    "NamedScope",
    "Nowhere",
    "Surroundings",
    "UnitScope",
    "after_commit",
    "after_rollback",
    "current_scope",
    "current_unit",
    "doom",
    "is_context_initiated",
    "open_scope",
    "plain",
    "plain_host",
    "surround",
]


class Gate(Protocol):
    """What units of work that begin at a gate, or inside such a unit, know from it."""

    @property
    def registry(self) -> Databases | None: ...

    @property
    def before_commit(self) -> BeforeCommit | None: ...


class NoGate:
    """For units that begin in no request."""

    registry: Databases | None = None
    before_commit: BeforeCommit | None = None


NO_GATE = NoGate()


class UnitScope:
    """What a context variable and a request hold while units come and go: the unit of the moment, made on demand.

    A copied context (a child task, a worker thread) holds the same scope, so it sees a unit end, or be replaced.
    """

    __slots__ = ("closed", "outer", "unit", "within")

    host: Host

    def __init__(self) -> None:
        self.unit: Unit | None = None
        self.closed = False
        self.outer = CURRENT.get()  # the scope that this one was made in
        self.within: object = None if _around is None else _around.place()

    def origin(self) -> Gate:
        """The gate that the unit begins at."""
        raise NotImplementedError

    def may_write(self) -> bool:
        """Whether the unit may write, as far as is known beforehand."""
        return True

    def describe(self) -> str:
        """What the unit is called in errors and logs."""
        raise NotImplementedError

    def end(self) -> None:
        """No other unit will come. A task may live on in this scope, and holds it: it holds no other."""
        self.closed, self.unit, self.outer = True, None, None

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
                    "of its own: wrap the function in in_new_unit(), or use `async with unit_of_work():` (or `with`) "
                    "where the work is done."
                )
            with _opening:
                unit = self.unit
                if unit is None:
                    gate = self.origin()
                    unit = Unit(self.host, self.describe(), gate.registry, reads_only=not self.may_write())
                    unit.before_commit = None if ASKING.get() else gate.before_commit
                    self.unit = unit
        return unit


class NamedScope(UnitScope):
    """The scope of a unit that no request has: a block's, or a function's. Knows the databases of the one around it."""

    def __init__(self, host: Host, name: str, *, reads_only: bool = False) -> None:
        super().__init__()
        self.outer = current_scope()
        self.host = host
        self.name = name
        self._origin = NO_GATE if self.outer is None else self.outer.origin()
        self._reads_only = reads_only

    def origin(self) -> Gate:
        return self._origin

    def may_write(self) -> bool:
        return not self._reads_only

    def describe(self) -> str:
        return self.name


class Surroundings(Protocol):
    """Contexts that a framework has of its own, as Flask has: they, too, have units of work, made on demand."""

    hint: str
    """How to get one where there is none."""

    def place(self) -> object | None:
        """The innermost of them, None outside of all. Asked often."""
        ...

    def scope_at(self, place: Any) -> UnitScope | None:
        """The scope of this one, None if it has none and will have none."""
        ...


class Nowhere(UnitScope):
    """Where no unit of work is to be current, though there is one further out."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = True


CURRENT: ContextVar[UnitScope | None] = ContextVar("transept_current", default=None)

_around: Surroundings | None = None

_opening = threading.Lock()  # threads of one request may ask at the same time; nobody holds it for long


def plain(host: Host) -> PlainHost | BridgeHost:
    """Where plain code that runs in a unit of this host lets a unit settle."""
    return host if isinstance(host, BridgeHost) and host.bridge.needed() else PLAIN


def plain_host() -> PlainHost | BridgeHost:
    """Where a unit that plain code begins here settles: it may use async databases if the one around it may."""
    scope = current_scope()
    return PLAIN if scope is None else plain(scope.host)


def surround(surroundings: Surroundings) -> None:
    """A framework with contexts of its own is in use. There can be one."""
    global _around  # noqa: PLW0603 - set once, when the framework's extension is imported
    _around = surroundings


def current_scope() -> UnitScope | None:
    """The innermost scope that this code runs in: of the context variable, or of a framework's own context."""
    scope = CURRENT.get()
    if _around is not None:
        place = _around.place()
        if place is not None and (scope is None or scope.within is not place):
            return _around.scope_at(place)
    return None if type(scope) is Nowhere else scope


def open_scope() -> UnitScope | None:
    """The scope that this code runs in, unless it is over."""
    scope = current_scope()
    return None if scope is None or scope.closed else scope


def is_context_initiated() -> bool:
    """Whether this code runs in a unit of work, so that `db_session` has something to give."""
    return open_scope() is not None


def current_unit() -> Unit:
    """The unit of work that this code runs in.

    Raises:
        OutsideScope: there is none: no gate around this request, no `unit_of_work()` block, or it is over.
    """
    scope = current_scope()
    if scope is None:
        hint = "" if _around is None else f" {_around.hint}"
        raise OutsideScope(
            "there is no unit of work here. Inside a request the app's Transept (or gate) makes one; anywhere else "
            f"open one with `async with unit_of_work():` (or `with`).{hint}"
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
