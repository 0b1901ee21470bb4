"""Where a unit of work runs: on an event loop, or in a thread that may block."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from transept._bridge import is_async, run_now
from transept._portal import Bridge
from transept.database import Database
from transept.errors import CommitInDoubt, LoopTimeout, UsageError
from transept.settling import Keeps
from transept.unit import Unit

__all__ = ["LOOP", "PLAIN", "BridgeHost", "LoopHost", "PlainHost", "from_plain_code", "host_for", "in_thread"]

T = TypeVar("T")


class Driving(threading.local):
    """Whether this thread, a loop's or not, drives a unit's work to its end right now, without any loop."""

    here = False


DRIVING = Driving()


class PlainHost:
    """The blocking colour: everything runs right here. Shields do not exist, for nothing can be cancelled."""

    blocking = True
    bridge: Bridge | None = None

    def leaf(self, blocking: bool, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        return work

    async def shielded(self, work: Coroutine[Any, Any, T], cancelled: Callable[[], None] | None = None) -> T:
        return await work

    async def call(self, hook: Callable[[], Any]) -> None:
        result = hook()
        if inspect.iscoroutine(result):
            result.close()
            raise UsageError(f"{hook!r} returned a coroutine, which a blocking unit of work cannot await.")


class LoopHost:
    """The async colour: blocking I/O goes to worker threads, and what must end is shielded."""

    blocking = False

    @property
    def bridge(self) -> Bridge | None:
        return None

    def leaf(self, blocking: bool, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        if not blocking:
            return work

        def in_a_worker() -> T:
            return run_now(work)

        return in_thread(in_a_worker)

    async def shielded(self, work: Coroutine[Any, Any, T], cancelled: Callable[[], None] | None = None) -> T:
        """In a task of its own: a shielded cancel scope alone does not stop `Task.cancel()` or `asyncio.timeout()`.

        After the first cancellation the scope is there as well, since anyio repeats its own on every turn of the loop.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        task = loop.create_task(_then(work, done))
        try:
            await done
        except asyncio.CancelledError as cancellation:
            await _in_spite_of(cancellation, task, cancelled)
            if _never_began(work):  # all tasks were cancelled at once, as at the end of a loop
                await _in_spite_of(cancellation, loop.create_task(work), cancelled)
            raise
        return task.result()

    async def call(self, hook: Callable[[], Any]) -> None:
        try:
            result = hook() if is_async(hook) else await in_thread(hook)
            if inspect.isawaitable(result):
                await result
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise RuntimeError(f"{hook!r} was cancelled, and not by the unit of work that called it") from error


class BridgeHost(LoopHost):
    """Plain code that may use async databases: a unit that has one settles on the background loop, others here."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    @property
    def bridge(self) -> Bridge:
        return self._bridge

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run what a unit of work is asked to do, on the loop."""
        return self._bridge.run(work, "the end of a unit of work")

    def leaf(self, blocking: bool, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        return work if DRIVING.here else super().leaf(blocking, work)

    async def shielded(self, work: Coroutine[Any, Any, T], cancelled: Callable[[], None] | None = None) -> T:
        return await (work if DRIVING.here else super().shielded(work, cancelled))

    async def call(self, hook: Callable[[], Any]) -> None:
        if not DRIVING.here:
            await super().call(hook)
        elif inspect.isawaitable(result := hook()):
            self._bridge.run(_awaited(result), f"the hook {hook!r}")


LOOP = LoopHost()
PLAIN = PlainHost()


def host_for(databases: Iterable[Database], bridge: Bridge) -> PlainHost | BridgeHost:
    """Where plain code lets units of these databases settle: async ones need the background loop."""
    return PLAIN if all(database.blocking for database in databases) else BridgeHost(bridge)


def from_plain_code(unit: Unit, work: Coroutine[Any, Any, T], keeps: Keeps | None) -> T:
    """Run what ends transactions of this unit, wherever they are; `keeps` says what was to be kept, if anything.

    Raises:
        CommitInDoubt: the loop did not answer in time. Nobody waits for the end of the unit, which comes when it can.
        LoopTimeout: the same, and nothing was to be kept.
    """
    host = unit.host
    if not (isinstance(host, BridgeHost) and unit.awaits()):
        return _right_here(work)
    if not host.bridge.needed():  # called by an async function: `run` refuses to wait for the loop that it runs on
        host.bridge.portal.leave(unit.close(), f"{unit.name}: the end of its unit of work")
    try:
        return host.run(work)
    except LoopTimeout as failure:
        host.bridge.portal.leave(unit.close(), f"{unit.name}: the end of its unit of work")
        kept = [database.key for database, _ in unit.handles() if keeps is not None and keeps(database)]
        if kept:
            raise CommitInDoubt(", ".join(kept)) from failure
        raise


def _right_here(work: Coroutine[Any, Any, T]) -> T:
    outer, DRIVING.here = DRIVING.here, True
    try:
        return run_now(work)
    finally:
        DRIVING.here = outer


async def _awaited(result: Awaitable[Any]) -> None:
    await result


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Call a blocking function in a worker thread and wait for it, however often the caller is cancelled.

    The threads are not those that endpoints run in, and there is no limit but the work itself: what gives a
    connection back must never wait for those who wait for one.
    """
    return await anyio.to_thread.run_sync(function, *args, limiter=anyio.CapacityLimiter(math.inf))


async def _then(work: Coroutine[Any, Any, T], done: asyncio.Future[None]) -> T:
    """Waking the caller here, and not by the end of the task, saves a turn of the loop."""
    try:
        return await work
    finally:
        if not done.done():
            done.set_result(None)


def _never_began(work: Coroutine[Any, Any, Any]) -> bool:
    return inspect.getcoroutinestate(work) == inspect.CORO_CREATED


async def _in_spite_of(
    cancellation: asyncio.CancelledError, task: asyncio.Task[Any], cancelled: Callable[[], None] | None
) -> None:
    """Wait for the task, however often the caller is cancelled."""
    if cancelled is not None:
        cancelled()
    while not task.done():
        try:
            with anyio.CancelScope(shield=True):
                await asyncio.wait((task,))
        except asyncio.CancelledError:
            if cancelled is not None:
                cancelled()
    if not task.cancelled() and (failure := task.exception()) is not None:
        cancellation.add_note(f"transept: the request was cancelled, and settling failed: {failure!r}")
