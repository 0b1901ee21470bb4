"""Where the connections of a sandbox live: right here for a blocking driver, on an event loop of its own for others.

An async driver's connection belongs to one event loop, and the app may run on any: a test client has a loop for each
request. So the connection lives on a loop in a thread of its own, and what is done with it is sent there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, TypeVar

from transept.context import CURRENT

__all__ = ["Home"]

T = TypeVar("T")

PATIENCE = 2.0  # seconds for connections to close


class Home:
    """An event loop in a thread, begun when it is first needed; or one that runs already, and is left running."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run this there, and tell when it is done.

        In the context of the caller but for the unit of work, which what is made there would keep alive.
        """
        context = copy_context()
        context.run(CURRENT.set, None)
        return context.run(self._submit, work)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run this there, to its end, also when the caller is cancelled."""
        outcome = asyncio.wrap_future(self.submit(work))
        outcome.add_done_callback(_heard)
        return await asyncio.shield(outcome)

    def is_here(self) -> bool:
        return self._loop is not None and asyncio._get_running_loop() is self._loop

    def close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            asyncio.run_coroutine_threadsafe(_ended(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    def _submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._running())

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run, args=(loop,), name="transept-sandbox", daemon=True)
                self._thread.start()
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


async def _ended() -> None:
    """What `asyncio.run` does at its end: pools and engines of this loop close."""
    loop = asyncio.get_running_loop()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        _, late = await asyncio.wait(others, timeout=PATIENCE)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    await loop.shutdown_asyncgens()


def _heard(outcome: asyncio.Future[Any]) -> None:
    """A failure that a cancelled caller does not wait for is no news."""
    if not outcome.cancelled():
        outcome.exception()


def finished(work: Callable[[], T]) -> Future[T]:
    """The outcome of a blocking call, in the shape of one that was sent elsewhere."""
    done: Future[T] = Future()
    try:
        done.set_result(work())
    except Exception as error:
        done.set_exception(error)
    return done
