"""One implementation, two colours: a coroutine that awaits only its leaves also runs where leaves block."""

from __future__ import annotations

import inspect
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

__all__ = ["is_async", "run_now"]

T = TypeVar("T")


def run_now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine whose leaves block, to its end, without an event loop, and return what it returns.

    Raises:
        RuntimeError: it really suspended, so one of its leaves belongs to the other colour.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: T = stop.value
        return result
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} suspended: a blocking unit of work can only await blocking leaves")


def is_async(function: Any) -> bool:
    """Whether calling this gives a coroutine, as far as can be told without calling it."""
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004
