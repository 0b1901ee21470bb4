"""One event loop in the background, on which plain code uses async databases: one a process, made at first use.

Rule 1: a thread that waits for the loop waits no longer than it was told to, and then says for what it waited.
Rule 2: what is waited for in vain is cancelled; so is what an interrupted thread has waited for.
Rule 3: a process that was forked has no loop until it makes one of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import socket
import sys
import threading
import types
import warnings
from collections.abc import Callable, Coroutine, Generator
from concurrent import futures
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from time import perf_counter
from types import FrameType
from typing import Any, Generic, NamedTuple, TypeVar

from transept.errors import BlockingCallWarning, LoopTimeout, UsageError

__all__ = ["PATIENCE", "PORTAL", "Bridge", "Portal", "watched"]

T = TypeVar("T")

START_SECONDS = 10.0
CANCEL_SECONDS = 5.0
HELD_SECONDS = 0.5
MAKE_SECONDS = 30.0
LIBRARIES = ("asyncio.", "selectors.", "transept.", "concurrent.", "sqlalchemy.", "threading.")

logger = logging.getLogger("transept")


class Exit(NamedTuple):
    """A SystemExit or KeyboardInterrupt, which a task would end its loop with."""

    error: BaseException


class Errand(Generic[T]):
    """One coroutine that runs on the loop while a thread waits for it."""

    def __init__(self, work: Coroutine[Any, Any, T], context: Context, under_way: set[Any]) -> None:
        self.done: futures.Future[T] = futures.Future()
        self._under_way = under_way
        self._work = work
        self._context = context
        self._sender = threading.current_thread().name
        self._task: asyncio.Task[T | Exit] | None = None

    def begin(self) -> None:
        """On the loop."""
        work = _without_exits(self._work)
        name = f"for thread {self._sender}"
        self._task = asyncio.get_running_loop().create_task(work, name=name, context=self._context)
        self._task.add_done_callback(self._end)

    def cancel(self) -> None:
        """On the loop."""
        if self._task is not None:
            self._task.cancel()

    def _end(self, task: asyncio.Task[T | Exit]) -> None:
        self._under_way.discard(self)
        if task.cancelled():
            self._work.close()  # it may not have begun
            self.done.set_exception(RuntimeError(f"{self._work!r} was cancelled on the background loop"))
        elif (failure := task.exception()) is not None:
            self.done.set_exception(failure)
        elif isinstance(result := task.result(), Exit):
            self.done.set_exception(result.error)
        else:
            self.done.set_result(result)


class Portal:
    """The background loop and its thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._errands: set[Errand[Any]] = set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The loop, if it has been made."""
        return self._loop

    def is_here(self) -> bool:
        """Whether this code runs on the loop."""
        loop = self._loop
        return loop is not None and asyncio._get_running_loop() is loop

    def start(self) -> None:
        """Make the loop, unless there is one."""
        if self._loop is None:
            with self._lock:
                self._started()

    def run(
        self,
        work: Coroutine[Any, Any, T],
        seconds: float,
        what: str = "an async database",
        context: Context | None = None,
    ) -> T:
        """Run a coroutine on the loop, in this context or a copy of the present one, and wait for its result.

        Raises:
            LoopTimeout: it took longer than that many seconds. It was cancelled; a COMMIT under way goes on.
            UsageError: this code runs on the loop, which would wait for itself.
        """
        if self.is_here():
            work.close()
            raise UsageError(
                f"the background loop was to wait for itself ({what}): inside an `async def` view, get the session "
                "there, and await it."
            )
        errand = Errand(work, copy_context() if context is None else context, self._errands)
        loop = self._send(errand)
        try:
            with suppress(futures.TimeoutError):  # of this wait: an error of the work is returned here
                errand.done.exception(seconds)
            if errand.done.done():
                return errand.done.result()
            where = self._where()
            _cancel(loop, errand)
            raise LoopTimeout(what, seconds, where)
        except BaseException:  # Ctrl-C, or a server that ends its worker
            if not errand.done.done():
                _cancel(loop, errand)
            raise
        finally:
            del errand  # or its error, which has this frame, would keep it alive

    def leave(self, work: Coroutine[Any, Any, Any], what: str) -> None:
        """Run a coroutine on the loop, and wait for nothing. What it raises is logged."""

        async def alone() -> None:
            try:
                await work
            except Exception:
                logger.exception("%s failed, and nobody waited for it", what)

        self._send(Errand(alone(), copy_context(), self._errands))

    def stop(self, *, unless_used: bool = False) -> None:
        """End the loop: its tasks are cancelled, its engines and pools closed. The next use makes another.

        With `unless_used` nobody is disturbed who waits for something on the loop.
        """
        with self._lock:
            if unless_used and self._errands:
                return
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            if loop is not None:
                self._stopping.set()
                loop.call_soon_threadsafe(loop.stop)
        if thread is not None and thread is not threading.current_thread():
            thread.join(CANCEL_SECONDS)

    def forget(self) -> None:
        """In a forked process: the loop's thread is the parent's. The loop is kept, lest it close what it shares."""
        _abandoned.append(self._loop)
        self._lock = threading.Lock()
        self._loop = self._thread = None
        self._errands.clear()

    def _send(self, errand: Errand[Any]) -> asyncio.AbstractEventLoop:
        with self._lock:  # so that it is sent before the loop is told to stop, or to the next one
            loop = self._loop or self._started()
            self._errands.add(errand)
            loop.call_soon_threadsafe(errand.begin)
        return loop

    def _started(self) -> asyncio.AbstractEventLoop:
        """Under the lock."""
        if self._loop is None:
            ready: futures.Future[asyncio.AbstractEventLoop] = futures.Future()
            self._stopping = threading.Event()
            thread = threading.Thread(target=_run, args=(ready, self._stopping), name="transept-loop", daemon=True)
            thread.start()
            self._loop = ready.result(START_SECONDS)
            self._thread = thread
        return self._loop

    def _where(self) -> str | None:
        """The line of code that holds the loop; None if it waits, as it should."""
        thread = self._thread
        frame = sys._current_frames().get(thread.ident or 0) if thread is not None else None
        if frame is None or frame.f_globals.get("__name__") == "selectors":
            return None
        frame = _of_the_app(frame)
        return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"


class Bridge:
    """The way of plain code to the background loop, with the longest wait that one app allows."""

    def __init__(self, seconds: float, portal: Portal | None = None) -> None:
        self.seconds = seconds
        self.portal = PORTAL if portal is None else portal

    def needed(self) -> bool:
        """Whether this code runs elsewhere than on the loop."""
        return not self.portal.is_here()

    def plain(self) -> bool:
        """Whether this code cannot await: it runs elsewhere, or is called by what does, such as an event listener."""
        greenlet = sys.modules.get("greenlet")
        return self.needed() or (greenlet is not None and greenlet.getcurrent().parent is not None)

    def on_another_loop(self) -> bool:
        """Whether this code, which is elsewhere, is on an event loop all the same: that of an async test."""
        return asyncio._get_running_loop() is not None

    def call(self, function: Callable[[], T]) -> T:
        """Call what may have to wait for the loop, too: no longer than this app allows."""
        patience = PATIENCE.set(self.seconds)
        try:
            return function()
        finally:
            PATIENCE.reset(patience)

    def run(self, work: Coroutine[Any, Any, T], what: str = "an async database", context: Context | None = None) -> T:
        """As `Portal.run`."""
        return self.portal.run(work, self.seconds, what, context)


@types.coroutine
def watched(work: Coroutine[Any, Any, T], function: Any) -> Generator[Any, Any, T]:
    """Run a coroutine, and warn at its end if it held the loop: naming the function that it is of, once for each."""
    value: Any = None
    thrown: BaseException | None = None
    held = 0.0
    try:
        while True:
            began = perf_counter()
            try:
                waits_for = work.send(value) if thrown is None else work.throw(thrown)
            except StopIteration as stop:
                result: T = stop.value
                return result
            finally:
                held = max(held, perf_counter() - began)
            try:
                value, thrown = (yield waits_for), None
            except GeneratorExit:
                work.close()
                raise
            except BaseException as error:
                value, thrown = None, error
    finally:
        if held > HELD_SECONDS:
            _warn_of_held(function, held)


async def _without_exits(work: Coroutine[Any, Any, T]) -> T | Exit:
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as error:
        return Exit(error)


def _warn_of_held(function: Any, seconds: float) -> None:
    code = getattr(function, "__code__", None)
    if code is None or code in _warned:
        return
    _warned.add(code)
    warnings.warn_explicit(
        f"{function.__module__}.{function.__qualname__} held the background loop for {seconds:.2f} s: everything else "
        "that uses an async database in this process waited for it. Make it a plain `def`, or await what is slow.",
        BlockingCallWarning,
        code.co_filename,
        code.co_firstlineno,
    )


def _cancel(loop: asyncio.AbstractEventLoop, errand: Errand[Any]) -> None:
    with suppress(RuntimeError):  # the loop has ended, and has cancelled it
        loop.call_soon_threadsafe(errand.cancel)
    futures.wait([errand.done], CANCEL_SECONDS)


def _run(ready: futures.Future[asyncio.AbstractEventLoop], stopping: threading.Event) -> None:
    """The loop, until it is told to stop: what a task of the app raises to end a program does not end it."""
    with asyncio.Runner() as runner, futures.ThreadPoolExecutor(thread_name_prefix="transept-resolver") as resolvers:
        loop = runner.get_loop()

        async def getaddrinfo(host: Any, port: Any, **options: int) -> Any:  # the loop's own threads may wait for it
            return await loop.run_in_executor(resolvers, partial(socket.getaddrinfo, host, port, **options))

        setattr(loop, "getaddrinfo", getaddrinfo)  # noqa: B010 - of this loop alone
        ready.set_result(loop)
        while not stopping.is_set():
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt):
                logger.exception("something that ran on the background loop was to end the program; the loop goes on")


def _of_the_app(frame: FrameType) -> FrameType:
    """The innermost frame that is no library's; else the innermost one."""
    found: FrameType | None = frame
    while found is not None and f"{found.f_globals.get('__name__')}.".startswith(LIBRARIES):
        found = found.f_back
    return found or frame


PORTAL = Portal()
PATIENCE: ContextVar[float] = ContextVar("transept_patience", default=MAKE_SECONDS)
"""How long plain code waits for an engine or a pool to be made."""

_abandoned: list[asyncio.AbstractEventLoop | None] = []
_warned: set[types.CodeType] = set()

atexit.register(PORTAL.stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PORTAL.forget)
