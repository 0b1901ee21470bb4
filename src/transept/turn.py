"""A session has one user at a time: who is using it now, and who waits.

Rule 1: whoever finds the session free, or has it already, gets the turn.
Rule 2: whoever finds another user in it gets `ConcurrentUseError`, before the driver is reached.
Rule 3: while the gate settles, the app's statements wait instead, and the gate waits for a statement under way.
Rule 4: once the session has ended, every use is `OutsideScope`.
Rule 5: a blocking session on an event loop's thread works, and warns once for each call site.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import warnings
from typing import Any

from transept.errors import BlockingCallWarning, ConcurrentUseError, OutsideScope

__all__ = ["TaskTurn", "ThreadTurn", "on_loop"]

THE_GATE = -1  # in place of a thread's identity
PACKAGES = ("transept.", "sqlalchemy.")

_warned: set[tuple[str, int]] = set()

ENDED = (
    "this session belongs to {}, which is over, so nothing done with it could be kept. Ask for a session where it is "
    "used: db.get_session() there gives a fresh one (in ASGI: with the request), and unit_of_work() works anywhere."
)


class TaskTurn:
    """The turn of an async session, between the tasks of one event loop."""

    __slots__ = ("_user", "_waiters", "depth", "ended", "settling", "wanted")

    def __init__(self) -> None:
        self._user: asyncio.Task[Any] | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self.depth = 0
        self.settling = False
        self.wanted = False  # the gate waits to settle: no other statement comes first
        self.ended: str | None = None

    def take(self) -> asyncio.Future[None] | None:
        """Take the turn. A future that comes back means: the gate settles; await it, then try again."""
        me = asyncio.current_task()
        user = self._user
        if self.ended is not None and user is not me:
            raise OutsideScope(ENDED.format(self.ended))
        if user is me or (user is None and not self.wanted):
            self._user = me
            self.depth += 1
            return None
        if self.settling or self.wanted:
            return self._freed()
        raise ConcurrentUseError(_task_name(me), _task_name(self._user))

    def leave(self) -> None:
        self.depth -= 1
        if not self.depth:
            self._user = None
            if self._waiters:
                self._wake()

    def hold_now(self) -> bool:
        """Take the turn for settling, unless a statement is under way."""
        if self._user is not None:
            return False
        self._user = asyncio.current_task()
        self.depth = 1
        self.settling = True
        return True

    async def hold(self) -> None:
        """Take the turn for settling, after the statement that is under way."""
        self.wanted = True
        try:
            while not self.hold_now():
                await self._freed()
        finally:
            self.wanted = False

    def adopt(self) -> None:
        """Settling goes on in the task that calls this, until `park`."""
        self._user = asyncio.current_task()

    def park(self) -> None:
        """A task runs nothing else in between."""

    def over(self) -> bool:
        """Whether the session has ended for the task that calls this; not for the one that settles it."""
        return self.ended is not None and self._user is not asyncio.current_task()

    def release(self) -> None:
        self.settling = False
        self.leave()

    def _freed(self) -> asyncio.Future[None]:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class ThreadTurn:
    """The turn of a blocking session, between threads."""

    __slots__ = ("_changed", "_lock", "_user", "depth", "ended", "settling", "wanted")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed: threading.Condition | None = None  # made by the first who waits
        self._user: int | None = None
        self.depth = 0
        self.settling = False
        self.wanted = False  # the gate waits to settle: no other statement comes first
        self.ended: str | None = None

    def take(self) -> None:
        """Take the turn, waiting while the gate settles, but never on an event loop's thread."""
        me = threading.get_ident()
        with self._lock:
            if self._user is not None or self.wanted or self.ended is not None:
                self._take_slowly(me)
            self._user = me
            self.depth += 1
        if self.depth == 1 and asyncio._get_running_loop() is not None:
            self._warn()

    def _take_slowly(self, me: int) -> None:
        while self._user != me and (self._user is not None or self.wanted) and self.ended is None:
            if not (self.settling or self.wanted) or on_loop():
                raise ConcurrentUseError(_thread_name(me), _thread_name(self._user))
            self._wait()
        if self.over():
            raise OutsideScope(ENDED.format(self.ended))

    def _wait(self) -> None:
        if self._changed is None:
            self._changed = threading.Condition(self._lock)
        self._changed.wait()

    def _warn(self) -> None:
        try:
            _warn_of_blocking()
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        with self._lock:
            self.depth -= 1
            if not self.depth:
                self._user = None
                if self._changed is not None:
                    self._changed.notify_all()

    def hold_now(self) -> bool:
        """Take the turn for settling, unless a statement is under way."""
        with self._lock:
            return self._hold_if_free()

    async def hold(self) -> None:
        """Take the turn for settling, after the statement that is under way. Blocks; never suspends."""
        with self._lock:
            self.wanted = True
            try:
                while not self._hold_if_free():
                    self._wait()
            finally:
                self.wanted = False

    def _hold_if_free(self) -> bool:
        if self._user is not None:
            return False
        self._user = THE_GATE
        self.depth = 1
        self.settling = True
        return True

    def adopt(self) -> None:
        """Settling goes on in the thread that calls this, until `park`."""
        self._user = threading.get_ident()

    def park(self) -> None:
        """Settling has left the thread, which may run the app's code next."""
        self._user = THE_GATE

    def over(self) -> bool:
        """Whether the session has ended for the thread that calls this; not for the one that settles it."""
        return self.ended is not None and self._user != threading.get_ident()

    def release(self) -> None:
        self.settling = False
        self.leave()


def on_loop() -> bool:
    """Whether this thread is running an event loop right now."""
    return asyncio._get_running_loop() is not None


def _warn_of_blocking() -> None:
    """Names the line of the app's own code that made the call."""
    frame = sys._getframe(3)
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith(PACKAGES):
        frame = frame.f_back
    site = (frame.f_code.co_filename, frame.f_lineno)
    if site not in _warned:
        _warned.add(site)
        warnings.warn_explicit(
            "a blocking session was called on the event loop's thread: nothing else runs until it returns. "
            "Make the endpoint a plain `def` that runs in a thread (Litestar: sync_to_thread=True), or use an async "
            "database.",
            BlockingCallWarning,
            *site,
        )


def _task_name(task: asyncio.Task[Any] | None) -> str:
    return f"task {task.get_name()!r}" if task is not None else "a callback of the event loop"


def _thread_name(ident: int | None) -> str:
    if ident is None or ident == THE_GATE:
        return "the gate, which settles it,"
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return f"thread {names.get(ident, ident)!r}"
