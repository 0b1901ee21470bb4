"""One implementation, two colours: a coroutine that awaits only its leaves also runs where leaves block."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run_now"]

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
