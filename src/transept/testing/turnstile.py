"""One unit of work at a time on the sandbox's connection, in the order asked, across event loops and threads."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from typing import Any
from weakref import ref

from transept.context import UnitScope, current_scope
from transept.errors import OutsideScope
from transept.testing.errors import NestedInSandbox, SandboxBusy
from transept.testing.site import call_site
from transept.turn import on_loop

__all__ = ["Turnstile", "User"]


class User:
    """A unit that uses the connection, or waits for it: who it is, and the line of code that asked."""

    def __init__(self, hooks: Any) -> None:
        self.hooks = hooks
        self.site = call_site()
        self.name = next((one.describe() for one in _scopes() if _is_unit(one, hooks)), "a session of its own")
        task = asyncio.current_task() if on_loop() else None
        self._task = None if task is None else ref(task)

    def encloses_the_caller(self, hooks: Any) -> bool:
        """Whether it cannot end before a unit that is begun here has ended."""
        if self.hooks is hooks or any(_is_unit(one, self.hooks) for one in _scopes()):
            return True
        return on_loop() and self._task is not None and self._task() is asyncio.current_task()

    def __str__(self) -> str:
        return f"{self.name} ({self.site})" if self.site else self.name


class Turnstile:
    """Who uses the connection, and who waits for it."""

    def __init__(self, database: str, patience: float) -> None:
        self._database = database
        self._patience = patience
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._waiting: deque[tuple[User, Future[None]]] = deque()
        self.user: User | None = None
        self.closed = False

    def take(self, user: User) -> None:
        """Take the turn, waiting in this thread."""
        turn = self._ask(user)
        if turn is None:
            return
        if on_loop() and turn.cancel():
            raise self._busy("a blocking session asked for it on the event loop's thread, where waiting would stop it")
        try:
            turn.result(self._patience)
        except TimeoutError:
            if turn.cancel():  # else it was had in the last moment
                raise self._too_long() from None

    async def take_async(self, user: User) -> None:
        """Take the turn, waiting in this task."""
        turn = self._ask(user)
        if turn is None:
            return
        try:
            await asyncio.wait_for(asyncio.wrap_future(turn), self._patience)
        except TimeoutError:
            if turn.cancelled():
                raise self._too_long() from None
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.give_back(user)
            raise

    def give_back(self, user: User) -> None:
        """Hand the turn to the one who has waited longest. Nothing, if it is not this user's."""
        with self._lock:
            if self.user is not user:
                return
            self.user = None
            while self._waiting and self.user is None:
                waiter, turn = self._waiting.popleft()
                if turn.set_running_or_notify_cancel():
                    self.user = waiter
                    turn.set_result(None)
            if self.user is None:
                self._idle.notify_all()

    def close(self, patience: float) -> User | None:
        """No turn is given any more. Who still has one after that many seconds."""
        with self._lock:
            self.closed = True
            self._idle.wait_for(lambda: self.user is None, patience)
            waiting, self._waiting = self._waiting, deque()
            for _, turn in waiting:
                if turn.set_running_or_notify_cancel():
                    turn.set_exception(self._over())
            return self.user

    def _ask(self, user: User) -> Future[None] | None:
        with self._lock:
            if self.closed:
                raise self._over()
            if self.user is None:
                self.user = user
                return None
            if self.user.encloses_the_caller(user.hooks):
                raise NestedInSandbox(self._database, str(self.user))
            turn: Future[None] = Future()
            self._waiting.append((user, turn))
            return turn

    def _too_long(self) -> SandboxBusy:
        return self._busy(f"it did not end within {self._patience:g} s")

    def _busy(self, how: str) -> SandboxBusy:
        return SandboxBusy(self._database, str(self.user or "another unit"), how)

    def _over(self) -> OutsideScope:
        return OutsideScope(f"the sandbox of database {self._database!r}, in which this session was opened, is over.")


def _scopes() -> list[UnitScope]:
    """The scope of the code that runs, and those around it."""
    found = []
    scope = current_scope()
    while scope is not None:
        found.append(scope)
        scope = scope.outer
    return found


def _is_unit(scope: UnitScope, hooks: Any) -> bool:
    return scope.unit is not None and scope.unit.hooks is hooks
