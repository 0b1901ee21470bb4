"""One resource for each event loop that asks for it, closed when its loop ends.

An engine or a pool whose connections were made on one loop fails on another ("attached to a different loop"), and test
clients use a loop for each request. A loop closes the async generators that began on it before it ends
(`loop.shutdown_asyncgens`), so a generator that waits at its only `yield` closes the resource in time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from transept._portal import PATIENCE, PORTAL

__all__ = ["PerLoop", "has_resources", "started"]

T = TypeVar("T")

# Held until they have closed: one that became garbage would be closed by a task, which the end of the loop cancels.
_waiting: dict[object, tuple[asyncio.AbstractEventLoop, AsyncGenerator[None, Any]]] = {}


def has_resources(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether anything is open on this loop."""
    return any(owner is loop for owner, _ in tuple(_waiting.values()))


class PerLoop(Generic[T]):
    """`get()` returns the resource of the running loop, made by `make` at first; `close` ends one."""

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._close = close
        self._lock = threading.Lock()
        self._unclaimed: T | None = None
        self._claimed: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[T, AsyncGenerator[None, Any]]]
        self._claimed = WeakKeyDictionary()

    def get(self) -> T:
        """The resource of the running loop.

        Plain code, where none runs, uses that of the background loop; where there is none, either, the one that the
        first loop to ask will get.
        """
        loop = asyncio._get_running_loop()
        users = PORTAL.loop if loop is None else loop
        if users is not None and (claimed := self._claimed.get(users)) is not None:
            return claimed[0]
        if users is not loop:
            return PORTAL.run(self._get_there(), PATIENCE.get(), "a new engine or pool")
        with self._lock:
            resource = self._unclaimed if self._unclaimed is not None else self._make()
            if loop is None:
                self._unclaimed = resource
            else:
                self._unclaimed = None
                self._claimed[loop] = (resource, _closing_with_the_loop(resource, self._close))
            return resource

    async def _get_there(self) -> T:
        return self.get()

    def loops(self) -> list[asyncio.AbstractEventLoop]:
        """Those that have a resource."""
        with self._lock:
            return list(self._claimed)

    async def close(self, unless: Callable[[T], bool] = lambda resource: False) -> None:
        """Close the running loop's resource, unless it is one to keep. It may be made anew.

        Those of other loops close with their loops.
        """
        loop = asyncio.get_running_loop()
        with self._lock:
            claimed, unclaimed = self._claimed.get(loop), self._unclaimed
            if claimed is not None and unless(claimed[0]):
                claimed = None
            if unclaimed is not None and unless(unclaimed):
                unclaimed = None
            if claimed is not None:
                del self._claimed[loop]
            if unclaimed is not None:
                self._unclaimed = None
        if claimed is not None:
            await claimed[1].aclose()
        if unclaimed is not None:
            await self._close(unclaimed)


class _LastTask(asyncio.Task[None]):
    """A task that the end of its loop waits for instead of cancelling it: that is done while no loop runs."""

    def cancel(self, msg: Any = None) -> bool:
        return asyncio._get_running_loop() is not None and super().cancel(msg)


def started(closing: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Closes something on the running loop, which does not end before that is done."""
    return _LastTask(closing, loop=asyncio.get_running_loop())


def _closing_with_the_loop(resource: T, close: Callable[[T], Awaitable[None]]) -> AsyncGenerator[None, Any]:
    name = object()
    generator = _until_the_loop_ends(name, resource, close)
    with suppress(StopIteration):
        generator.asend(None).send(None)
    _waiting[name] = asyncio.get_running_loop(), generator
    return generator


async def _until_the_loop_ends(
    name: object, resource: T, close: Callable[[T], Awaitable[None]]
) -> AsyncGenerator[None, Any]:
    try:
        yield
    finally:
        try:
            await close(resource)
        except asyncio.CancelledError:  # the loop is about to end: what is left is closed all the same
            await close(resource)
            raise
        finally:
            _waiting.pop(name, None)
